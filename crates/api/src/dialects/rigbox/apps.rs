//! Apps: ports of workspaces with an address of their own, and what was installed from the catalogue.

use axum::{Json, extract};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use skerry_control::{
    Caller, Error, InstalledApp, ListWorkspaces, PortVisibility, PublishPort, PublishedPort,
    WorkspaceRef,
};
use skerry_model::{ErrorKind, PublishedPortId, State, Timestamp, WorkloadOrigin, Workspace};

use super::{
    Rigbox, convert,
    error_body::RigboxError,
    jobs::JobStatus,
    paging::{self, PageQuery, Place},
    services, wire,
    workspaces::workspace_ref,
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf, QueryOf},
    ids,
    number::WholeNumber,
    object::Object,
};

/// The port of an app whose request names none.
const DEFAULT_PORT: u16 = 3000;

/// An app.
#[derive(Serialize)]
pub(super) struct AppView {
    id: String,
    name: String,
    subdomain: String,
    /// Where it is visited. Not of Rigbox's, whose clients know their domain.
    url: String,
    user_id: String,
    node_id: String,
    workspace_id: String,
    port: u16,
    visibility: &'static str,
    allowed_emails: [String; 0],
    status: &'static str,
    metadata: Map<String, Value>,
    system_tags: Vec<String>,
    protocol: &'static str,
    app_kind: &'static str,
    managed: bool,
    depends_on: [String; 0],
    custom_domain_verified: bool,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl AppView {
    /// An app of a workspace that is about to start.
    pub(super) fn expected(self) -> Self {
        Self { status: "installing", ..self }
    }
}

/// Answer of everything that returns one app.
#[derive(Serialize)]
pub(super) struct AppEnvelope {
    app: AppView,
}

/// Answer of `GET /apps`, for both generations of clients.
#[derive(Serialize)]
pub(super) struct AppList {
    apps: Vec<AppView>,
    items: Vec<AppView>,
    next_cursor: Option<String>,
}

/// Answer of `GET /apps/{id}/health`.
#[derive(Serialize)]
pub(super) struct Health {
    live: bool,
    /// `active` and `inactive` of an app from the catalogue; others are not managed from outside.
    service_status: &'static str,
    port_open: bool,
}

/// The query of `GET /apps`.
#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    #[serde(default)]
    workspace_id: Option<String>,
    #[serde(flatten)]
    page: PageQuery,
}

/// Body of `POST /apps`. What has no meaning here is refused unless it says nothing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    #[serde(default)]
    workspace_id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    port: Option<WholeNumber>,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(default)]
    app_kind: Option<String>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
}

/// Body of `PATCH /apps/{id}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangeBody {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    port: Option<WholeNumber>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    visibility: Option<String>,
    #[serde(default)]
    allowed_emails: Option<Vec<String>>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
    #[serde(default)]
    custom_domain: Option<String>,
    #[serde(default)]
    swap_subdomain_with: Option<String>,
}

/// Body of `PUT /apps/{id}/visibility`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VisibilityBody {
    #[serde(default)]
    visibility: Option<String>,
    #[serde(default)]
    allowed_emails: Option<Vec<String>>,
}

/// An app and whose it is.
struct App {
    what: What,
    workspace: Workspace,
}

/// What an app is.
enum What {
    /// A port; if it was installed from the catalogue, by that.
    Port(PublishedPort, Option<Box<InstalledApp>>),
    /// A program from the catalogue that serves nothing, or has not got its address yet.
    Program(Box<InstalledApp>),
}

impl App {
    fn id(&self) -> PublishedPortId {
        match &self.what {
            What::Port(port, _) => port.id,
            What::Program(app) => PublishedPortId::from_u128(app.install.workload.id.as_u128()),
        }
    }

    fn created_at(&self) -> Timestamp {
        match &self.what {
            What::Port(port, _) => port.created_at,
            What::Program(app) => app.install.workload.created_at,
        }
    }

    const fn installed(&self) -> Option<&InstalledApp> {
        match &self.what {
            What::Port(_, None) => None,
            What::Port(_, Some(app)) | What::Program(app) => Some(app),
        }
    }

    /// The port, where there is one to be changed.
    fn port(&self) -> Result<&PublishedPort, Error> {
        match &self.what {
            What::Port(port, _) => Ok(port),
            What::Program(_) => {
                let why = "the app serves nothing that could be visited".to_owned();
                Err(ErrorKind::Conflict(why).into())
            }
        }
    }

    fn view(&self, state: &ApiState) -> AppView {
        let workspace = &self.workspace;
        let (name, subdomain, number, visibility) = match &self.what {
            What::Port(port, _) => {
                let subdomain = port.slug.as_str().to_owned();
                let name = port.label.clone().unwrap_or_else(|| subdomain.clone());
                (name, subdomain, port.port, port.visibility)
            }
            What::Program(app) => (app.app_id.clone(), String::new(), 0, PortVisibility::Private),
        };
        let installed = self.installed();
        let url = match &self.what {
            What::Port(..) => state.config.preview_url(&subdomain),
            What::Program(_) => String::new(),
        };
        AppView {
            id: ids::rigbox_app_id(self.id()),
            name,
            subdomain,
            url,
            user_id: workspace.account_id.to_string(),
            node_id: workspace.node_id.map(|id| id.to_string()).unwrap_or_default(),
            workspace_id: ids::rigbox_workspace_id(workspace.id),
            port: number,
            visibility: match visibility {
                PortVisibility::Public => "public",
                PortVisibility::Private => "private",
            },
            allowed_emails: [],
            status: installed.map_or("active", status),
            metadata: Map::new(),
            system_tags: installed.map_or_else(Vec::new, |app| {
                let of = ids::rigbox_workspace_id(workspace.id);
                vec![format!("catalog:{}-{of}", app.app_id), "catalog".to_owned()]
            }),
            protocol: "http",
            app_kind: match installed {
                Some(app) if app.port.is_none() => "cli",
                Some(_) | None => "service",
            },
            managed: installed.is_some(),
            depends_on: [],
            custom_domain_verified: false,
            created_at: self.created_at(),
            updated_at: self.created_at(),
        }
    }

    fn envelope(&self, state: &ApiState) -> Json<AppEnvelope> {
        Json(AppEnvelope { app: self.view(state) })
    }

    fn place(&self) -> Place {
        Place { created_at: self.created_at(), id: self.id().as_u128() }
    }
}

/// The word for how far an app from the catalogue is.
fn status(app: &InstalledApp) -> &'static str {
    match JobStatus::of(&app.install) {
        JobStatus::Running => "installing",
        JobStatus::Failed | JobStatus::Cancelled => "error",
        JobStatus::Unknown => "inactive",
        JobStatus::Done => match app.service.as_ref().map(services::status) {
            None | Some("healthy") => "active",
            Some("installing") => "installing",
            Some("unhealthy") => "error",
            Some(_) => "inactive",
        },
    }
}

/// An app from the catalogue, as it is shown.
pub(super) async fn of_installed(
    state: &ApiState,
    caller: &Caller,
    workspace: Workspace,
    installed: &InstalledApp,
) -> Result<AppView, Error> {
    let ports = state.control.published_ports_of(caller, std::slice::from_ref(&workspace)).await?;
    let port = ports.into_iter().find(|port| Some(port.port) == installed.port);
    let installed = Box::new(installed.clone());
    let what = match port {
        Some(port) => What::Port(port, Some(installed)),
        None => What::Program(installed),
    };
    Ok(App { what, workspace }.view(state))
}

/// The apps of these workspaces: their number is bounded by the plan's workspaces and the ports of each.
async fn apps_of(
    state: &ApiState,
    caller: &Caller,
    workspaces: Vec<Workspace>,
) -> Result<Vec<App>, Error> {
    let ports = state.control.published_ports_of(caller, &workspaces).await?;
    let mut apps = Vec::with_capacity(ports.len());
    for workspace in workspaces {
        let origins = workspace.spec.workloads.items.iter().map(|workload| &workload.origin);
        let mut installed = Vec::new();
        if origins.into_iter().any(|origin| matches!(origin, WorkloadOrigin::AppInstall { .. })) {
            let which = WorkspaceRef::Id(workspace.id);
            installed = match state.control.installed_apps(caller, &which).await {
                Ok(installed) => installed,
                // It was deleted meanwhile.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound { .. }) => continue,
                Err(error) => return Err(error),
            };
        }
        for port in ports.iter().filter(|port| port.workspace_id == workspace.id) {
            let of = installed.iter().position(|app| app.port == Some(port.port));
            let of = of.map(|index| Box::new(installed.swap_remove(index)));
            let what = What::Port(port.clone(), of);
            apps.push(App { what, workspace: workspace.clone() });
        }
        for app in installed {
            apps.push(App { what: What::Program(Box::new(app)), workspace: workspace.clone() });
        }
    }
    Ok(apps)
}

async fn find(state: &ApiState, caller: &Caller, id: &str) -> Result<App, Error> {
    let missing = || Error::not_found("app");
    let id = ids::parse_rigbox_app_id(id).ok_or_else(missing)?;
    let all = state.control.list_workspaces(caller, &ListWorkspaces::default()).await?.items;
    let apps = apps_of(state, caller, all).await?;
    apps.into_iter().find(|app| app.id() == id).ok_or_else(missing)
}

/// The app of this id that was installed from the catalogue, and where.
///
/// # Errors
/// `NotFound`; `Conflict` when it is a port and nothing more.
pub(super) async fn managed(
    state: &ApiState,
    caller: &Caller,
    id: &str,
) -> Result<(InstalledApp, Workspace), Error> {
    let app = find(state, caller, id).await?;
    let installed = app.installed().cloned().ok_or_else(|| {
        let why = "nothing of the app is managed: it was not installed from the catalogue";
        Error::from(ErrorKind::Conflict(why.to_owned()))
    })?;
    Ok((installed, app.workspace))
}

/// `GET /apps`.
pub(super) async fn list(
    extract::State(state): extract::State<ApiState>,
    auth: Authenticated<Rigbox>,
    query: QueryOf<ListQuery, Rigbox>,
) -> Result<Json<AppList>, RigboxError> {
    let ListQuery { workspace_id, page } = query.value;
    let workspaces = match workspace_id {
        Some(id) => vec![state.control.get_workspace(&auth.caller, &workspace_ref(&id)?).await?],
        None => {
            state.control.list_workspaces(&auth.caller, &ListWorkspaces::default()).await?.items
        }
    };
    let mut apps = apps_of(&state, &auth.caller, workspaces).await?;
    let paged = paging::page(&mut apps, App::place, &page)?;
    let shown = |app: &App| app.view(&state);
    Ok(Json(AppList {
        apps: paged.unpaged.iter().map(shown).collect(),
        items: paged.page.iter().map(shown).collect(),
        next_cursor: paged.next_cursor,
    }))
}

/// `POST /apps`.
pub(super) async fn create(
    extract::State(state): extract::State<ApiState>,
    auth: Authenticated<Rigbox>,
    body: JsonBody<Object<CreateBody>, Rigbox>,
) -> Result<(StatusCode, Json<AppEnvelope>), RigboxError> {
    let body = body.value.0;
    let workspace_id =
        body.workspace_id.ok_or_else(|| convert::required("workspace_id", "a workspace's id"))?;
    let name = body.name.ok_or_else(|| convert::required("name", "3 to 63 of a-z, 0-9 and -"))?;
    let port = match body.port {
        None => DEFAULT_PORT,
        Some(WholeNumber(port)) => port_number(port)?,
    };
    only("protocol", body.protocol.as_deref(), "http", "an app is visited by HTTP")?;
    only("app_kind", body.app_kind.as_deref(), "service", "no programs are installed")?;
    refuse_text("description", body.description.as_deref())?;
    refuse_metadata(body.metadata.as_ref())?;
    let which = workspace_ref(&workspace_id)?;
    let workspace = state.control.get_workspace(&auth.caller, &which).await?;
    let ports = state.control.list_published_ports(&auth.caller, &which).await?;
    if ports.iter().any(|there| there.port == port) {
        let why = format!("port {port} of the workspace is an app's already");
        return Err(Error::from(ErrorKind::Conflict(why)).into());
    }
    let request = PublishPort {
        port,
        slug: Some(name.to_ascii_lowercase()),
        label: Some(name),
        visibility: Some(PortVisibility::Private),
    };
    let made = state.control.publish_port(&auth.caller, &which, request).await?;
    let app = App { what: What::Port(made.port, None), workspace };
    Ok((StatusCode::CREATED, app.envelope(&state)))
}

/// `GET /apps/{id}`.
pub(super) async fn get(
    extract::State(state): extract::State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
) -> Result<Json<AppEnvelope>, RigboxError> {
    Ok(find(&state, &auth.caller, &id.value).await?.envelope(&state))
}

/// `PATCH /apps/{id}`.
pub(super) async fn change(
    extract::State(state): extract::State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
    body: JsonBody<Object<ChangeBody>, Rigbox>,
) -> Result<Json<AppEnvelope>, RigboxError> {
    let app = find(&state, &auth.caller, &id.value).await?;
    let body = body.value.0;
    if let Some(WholeNumber(port)) = body.port
        && app.port().map_or(0, |there| there.port) != u16::try_from(port).unwrap_or(0)
    {
        let problem = "cannot be changed";
        return Err(RigboxError::invalid("port", problem, "the app's port; or make another app"));
    }
    only("status", body.status.as_deref(), "active", "to end it, delete the app")?;
    refuse_text("description", body.description.as_deref())?;
    refuse_text("custom_domain", body.custom_domain.as_deref())?;
    refuse_text("swap_subdomain_with", body.swap_subdomain_with.as_deref())?;
    refuse_metadata(body.metadata.as_ref())?;
    let visibility = visibility(body.visibility.as_deref(), body.allowed_emails.as_deref())?;
    Ok(put(&state, &auth.caller, app, body.name, visibility).await?.envelope(&state))
}

/// `PUT /apps/{id}/visibility`.
pub(super) async fn set_visibility(
    extract::State(state): extract::State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
    body: JsonBody<Object<VisibilityBody>, Rigbox>,
) -> Result<Json<AppEnvelope>, RigboxError> {
    let app = find(&state, &auth.caller, &id.value).await?;
    let VisibilityBody { visibility: asked, allowed_emails } = body.value.0;
    let asked = asked.ok_or_else(|| convert::required("visibility", "private or public"))?;
    let visibility = visibility(Some(&asked), allowed_emails.as_deref())?;
    Ok(put(&state, &auth.caller, app, None, visibility).await?.envelope(&state))
}

/// The query of `DELETE /apps/{id}`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct DeleteQuery {
    #[serde(default)]
    force: bool,
    /// Nothing of an app's is destroyed with it.
    #[serde(default, rename = "force_delete")]
    _force_delete: bool,
}

/// `DELETE /apps/{id}`. An app from the catalogue goes with `force` alone.
pub(super) async fn delete(
    extract::State(state): extract::State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
    query: QueryOf<DeleteQuery, Rigbox>,
) -> Result<Json<wire::Message>, RigboxError> {
    let app = find(&state, &auth.caller, &id.value).await?;
    let which = WorkspaceRef::Id(app.workspace.id);
    match (app.installed(), query.value.force) {
        (None, _) => {
            let port = app.port()?.port;
            state.control.revoke_port(&auth.caller, &which, port).await?;
        }
        (Some(_), false) => {
            let why = "the app was installed from the catalogue; force=true takes it away";
            return Err(Error::from(ErrorKind::Conflict(why.to_owned())).into());
        }
        (Some(installed), true) => {
            state.control.uninstall_app(&auth.caller, &which, &installed.app_id).await?;
        }
    }
    Ok(Json(wire::Message { message: "app deleted".to_owned() }))
}

/// `GET /apps/{id}/health`. Wakes nobody.
pub(super) async fn health(
    extract::State(state): extract::State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
) -> Result<Json<Health>, RigboxError> {
    let app = find(&state, &auth.caller, &id.value).await?;
    let port_open = match app.workspace.state {
        State::Running { .. } => {
            let which = WorkspaceRef::Id(app.workspace.id);
            let guest = state.control.guest(&auth.caller, &which).await?;
            let ports = guest.listening_ports().await.map_err(Error::from)?;
            let own = app.port().map(|port| port.port).ok();
            ports.iter().any(|listening| Some(listening.port) == own)
        }
        State::Provisioned
        | State::Starting
        | State::Paused { .. }
        | State::Suspending
        | State::Suspended
        | State::Stopping
        | State::Stopped
        | State::Failed(_)
        | State::Deleting => false,
    };
    let service_status = match app.installed().and_then(|app| app.service.as_ref()) {
        None => "unmanaged",
        Some(service) if services::status(service) == "healthy" => "active",
        Some(_) => "inactive",
    };
    Ok(Json(Health { live: port_open, service_status, port_open }))
}

/// Changes what differs. A private app that stays private keeps its token.
async fn put(
    state: &ApiState,
    caller: &Caller,
    app: App,
    label: Option<String>,
    visibility: Option<PortVisibility>,
) -> Result<App, Error> {
    let port = app.port()?;
    let number = port.port;
    let visibility = visibility.filter(|wanted| *wanted != port.visibility);
    if label.is_none() && visibility.is_none() {
        return Ok(app);
    }
    let which = WorkspaceRef::Id(app.workspace.id);
    let request = PublishPort { port: number, slug: None, label, visibility };
    let changed = state.control.update_port(caller, &which, request).await?;
    let installed = match app.what {
        What::Port(_, installed) => installed,
        What::Program(installed) => Some(installed),
    };
    Ok(App { what: What::Port(changed.port, installed), workspace: app.workspace })
}

fn port_number(port: i64) -> Result<u16, RigboxError> {
    let number = u16::try_from(port).ok().filter(|port| *port > 0);
    number.ok_or_else(|| RigboxError::invalid("port", "is no port", "1 to 65535"))
}

/// By Rigbox's rules `allowed_emails` means nothing beside `public` and `private`.
fn visibility(
    asked: Option<&str>,
    emails: Option<&[String]>,
) -> Result<Option<PortVisibility>, RigboxError> {
    let refused = |problem| RigboxError::invalid("visibility", problem, "private or public");
    match asked {
        None if emails.is_none_or(<[String]>::is_empty) => Ok(None),
        None => Err(RigboxError::invalid(
            "allowed_emails",
            "cannot be given: this server knows nobody by an e-mail address",
            "an empty list",
        )),
        Some("public") => Ok(Some(PortVisibility::Public)),
        Some("private") => Ok(Some(PortVisibility::Private)),
        Some("privileged") => {
            Err(refused("cannot be privileged: this server knows nobody by an e-mail address"))
        }
        Some(_) => Err(refused("is no visibility")),
    }
}

fn only(field: &str, asked: Option<&str>, only: &str, why: &str) -> Result<(), RigboxError> {
    match asked {
        None => Ok(()),
        Some(asked) if asked == only => Ok(()),
        Some(_) => Err(RigboxError::invalid(field, why, only)),
    }
}

fn refuse_text(field: &str, asked: Option<&str>) -> Result<(), RigboxError> {
    match asked {
        None | Some("") => Ok(()),
        Some(_) => Err(RigboxError::invalid(field, "is not supported by this server", "null")),
    }
}

fn refuse_metadata(asked: Option<&Map<String, Value>>) -> Result<(), RigboxError> {
    match asked {
        Some(metadata) if !metadata.is_empty() => {
            Err(RigboxError::invalid("metadata", "is not supported by this server", "{}"))
        }
        Some(_) | None => Ok(()),
    }
}
