//! `/v1/shares`, and `share` in the creation of a VM.

use axum::{Json, extract::State};
use serde::Serialize;
use skerry_control::{
    Caller, Error, PortVisibility, Publication, PublishPort, PublishedPort, WorkspaceRef,
};
use skerry_model::{ErrorKind, Workspace};

use super::{
    Instavm, convert, error_body::Problem, request::AuthenticatedBody, sessions::session_ref,
    validation::Fields, vms::no_such_session,
};
use crate::{ApiState, extract::PathOf, ids};

const PORTS: std::ops::RangeInclusive<u64> = 1..=65_535;

/// A port of a VM with an address of its own. Without `Debug`: it may have a token.
#[derive(Serialize)]
pub(super) struct ShareRecord {
    share_id: String,
    url: String,
    port: u16,
    is_public: bool,
    status: &'static str,
    vm_id: String,
    session_id: String,
    /// What opens a private share; only in the answer to the call that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    access_token: Option<String>,
}

impl ShareRecord {
    /// Its id.
    pub(super) fn id(&self) -> &str {
        &self.share_id
    }
}

/// A share that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    port: u16,
    visibility: PortVisibility,
}

const fn visibility(is_public: bool) -> PortVisibility {
    if is_public { PortVisibility::Public } else { PortVisibility::Private }
}

fn read(fields: &mut Fields) -> Option<Share> {
    let port = fields.integer("port", PORTS).and_then(|port| u16::try_from(port).ok());
    let is_public = fields.boolean("is_public").unwrap_or_default();
    Some(Share { port: port?, visibility: visibility(is_public) })
}

/// `share` of `POST /v1/vms`.
pub(super) fn asked(fields: &mut Fields) -> Option<Share> {
    let mut inner = Fields::new(fields.object("share")?);
    let share = read(&mut inner);
    if share.is_none() || inner.finish().is_err() {
        let allowed = "Input should be {\"port\": 1 to 65535, \"is_public\": a boolean}";
        fields.refuse("share", allowed);
        return None;
    }
    share
}

fn record(
    state: &ApiState,
    workspace: &Workspace,
    Publication { port, token }: Publication,
    status: &'static str,
) -> ShareRecord {
    ShareRecord {
        url: format!("{}/", state.config.preview_url(port.slug.as_str())),
        share_id: port.slug.as_str().to_owned(),
        port: port.port,
        is_public: port.visibility == PortVisibility::Public,
        status,
        vm_id: convert::vm_id(workspace),
        session_id: ids::uuid_text(workspace.id),
        access_token: token.map(|token| token.expose().to_owned()),
    }
}

/// Shares a port of this VM; one that is shared already keeps its address.
pub(super) async fn of_vm(
    state: &ApiState,
    caller: &Caller,
    workspace: &Workspace,
    Share { port, visibility }: Share,
) -> Result<ShareRecord, Problem> {
    let request = PublishPort { port, slug: None, label: None, visibility: Some(visibility) };
    let which = WorkspaceRef::Id(workspace.id);
    let made = state.control.publish_port(caller, &which, request).await?;
    Ok(record(state, workspace, made, "active"))
}

/// Clients may send both ids; the VM's is the more precise one.
pub(super) async fn create(
    State(state): State<ApiState>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<ShareRecord>, Problem> {
    let (vm, session) = (fields.text("vm_id"), fields.text("session_id"));
    if vm.is_none() && session.is_none() {
        fields.missing("vm_id");
    }
    if !fields.has("port") {
        fields.missing("port");
    }
    let share = read(&mut fields);
    fields.finish()?;
    let share = share.ok_or(Problem::NoSuchSession)?;
    let workspace = match (vm, session) {
        (Some(vm), _) => {
            state.control.get_workspace(&caller, &ids::parse_workspace_ref(&vm)).await?
        }
        (None, session) => {
            let which = session_ref(&session.unwrap_or_default()).ok_or(Problem::NoSuchSession)?;
            state.control.get_workspace(&caller, &which).await.map_err(no_such_session)?
        }
    };
    Ok(Json(of_vm(&state, &caller, &workspace, share).await?))
}

/// Makes a share public or private, or revokes it.
pub(super) async fn update(
    State(state): State<ApiState>,
    PathOf { value: share, .. }: PathOf<String, Instavm>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<ShareRecord>, Problem> {
    let is_public = fields.boolean("is_public");
    let revoke = fields.boolean("revoke").unwrap_or_default();
    if revoke && is_public.is_some() {
        fields.refuse("revoke", "Either revoke a share or change it");
    }
    fields.finish()?;
    let port = state.control.published_port(&caller, &share).await.map_err(no_such_share)?;
    let which = WorkspaceRef::Id(port.workspace_id);
    let workspace = state.control.get_workspace(&caller, &which).await.map_err(no_such_share)?;
    if revoke {
        let port = state.control.revoke_port(&caller, &which, port.port).await;
        let port = port.map_err(no_such_share)?;
        let revoked = Publication { port, token: None };
        return Ok(Json(record(&state, &workspace, revoked, "revoked")));
    }
    let wanted = is_public.map(visibility).filter(|wanted| *wanted != port.visibility);
    let changed = change(&state, &caller, &which, port, wanted).await.map_err(no_such_share)?;
    Ok(Json(record(&state, &workspace, changed, "active")))
}

/// A share that is as it should be keeps its token.
async fn change(
    state: &ApiState,
    caller: &Caller,
    which: &WorkspaceRef,
    port: PublishedPort,
    wanted: Option<PortVisibility>,
) -> Result<Publication, Error> {
    if wanted.is_none() {
        return Ok(Publication { port, token: None });
    }
    let request = PublishPort { port: port.port, slug: None, label: None, visibility: wanted };
    state.control.update_port(caller, which, request).await
}

pub(super) fn no_such_share(error: Error) -> Problem {
    match error.kind() {
        ErrorKind::NotFound { .. } => Error::not_found("Share").into(),
        _ => error.into(),
    }
}
