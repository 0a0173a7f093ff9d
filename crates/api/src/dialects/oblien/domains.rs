//! `/workspace/:id/domain`: the one domain of its own that a workspace has here.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skerry_control::{
    Caller, DomainCheck, DomainRef, DomainView, PortVisibility, PublishPort, PublishedPort,
    WorkspaceRef,
};
use skerry_model::{DomainState, ErrorKind, Workspace};

use super::{
    Oblien,
    convert::is_nothing,
    error_body::{Problem, Refusal},
    public_access::port_number,
};
use crate::{
    ApiConfig, ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf},
    ids,
    object::Object,
};

type Login = Authenticated<Oblien>;

/// Where a domain leads when nobody says otherwise.
const PORT: u16 = 3000;

/// `GET …/domain`.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    success: bool,
    domain: Option<DomainInfo>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DomainInfo {
    custom_domain: String,
    port: u16,
    ssl_status: &'static str,
    ssl_expiry: Option<String>,
    ssl_error: Option<String>,
    include_www: bool,
}

/// `POST …/domain`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ConnectBody {
    domain: Option<String>,
    port: Option<Value>,
    include_www: Option<Value>,
}

/// `POST …/domain/check`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct CheckBody {
    domain: Option<String>,
}

/// Answer of `POST …/domain`.
#[derive(Debug, Serialize)]
pub(super) struct Connected {
    success: bool,
    domain: String,
    port: u16,
    ssl: Ssl,
    dns: Dns,
    url: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ssl {
    status: &'static str,
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Dns {
    verified: bool,
    cname: bool,
    ownership: bool,
    errors: Vec<String>,
}

/// Answer of `POST …/domain/check`.
#[derive(Debug, Serialize)]
pub(super) struct Checked {
    success: bool,
    domain: String,
    enterprise: bool,
    #[serde(flatten)]
    dns: Dns,
    /// By type.
    records: BTreeMap<&'static str, Vec<String>>,
    required_records: Required,
    edge_ips: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Required {
    cname: Cname,
    txt: Txt,
}

#[derive(Debug, Serialize)]
struct Cname {
    host: String,
    target: String,
}

#[derive(Debug, Serialize)]
struct Txt {
    host: String,
    value: String,
}

/// Answer of `POST …/domain/ssl/renew`.
#[derive(Debug, Serialize)]
pub(super) struct Renewed {
    success: bool,
    domain: String,
    ssl: Ssl,
}

/// Answer of `DELETE …/domain`.
#[derive(Debug, Serialize)]
pub(super) struct Disconnected {
    success: bool,
}

impl Ssl {
    fn of(view: &DomainView) -> Self {
        Self {
            status: view.state.as_str(),
            expires_at: view.domain.certificate_not_after.map(|at| at.to_string()),
            error: ssl_error(view),
        }
    }
}

/// What went wrong with the certificate; before there is any, it is the proof that is missing.
fn ssl_error(view: &DomainView) -> Option<String> {
    match view.state {
        DomainState::Pending => None,
        DomainState::Verified | DomainState::Issued | DomainState::Failed => {
            view.domain.last_error.clone()
        }
    }
}

impl Dns {
    fn of(check: &DomainCheck, target: &str) -> Self {
        let DomainCheck { name, leads_here, is_proven, challenge_name, challenge_value, .. } =
            check;
        let mut errors = check.problems.clone();
        if !leads_here {
            errors.push(format!("{name} does not lead to {target}"));
        }
        if !is_proven {
            errors.push(format!("no TXT record {challenge_name} says {challenge_value}"));
        }
        Self {
            verified: *leads_here && *is_proven,
            cname: *leads_here,
            ownership: *is_proven,
            errors,
        }
    }
}

pub(super) fn refused(field: &str, problem: &str, allowed: &str) -> Problem {
    Problem::Refused(Refusal {
        code: "validation_error",
        field: field.to_owned(),
        problem: problem.to_owned(),
        allowed: allowed.to_owned(),
    })
}

pub(super) fn missing_domain() -> Problem {
    refused("domain", "is missing", "a name such as app.example.com")
}

/// The domain of a workspace: the oldest, if another API has added several.
async fn of_workspace(
    state: &ApiState,
    caller: &Caller,
    workspace: &Workspace,
) -> Result<Option<DomainView>, Problem> {
    let all = state.control.list_domains(caller).await?;
    Ok(all.into_iter().find(|view| view.port.workspace_id == workspace.id))
}

async fn workspace(
    state: &ApiState,
    caller: &Caller,
    reference: &str,
) -> Result<Workspace, Problem> {
    Ok(state.control.get_workspace(caller, &ids::parse_workspace_ref(reference)).await?)
}

/// The domain of the workspace that is named, which has to be there.
async fn connected(
    state: &ApiState,
    caller: &Caller,
    reference: &str,
) -> Result<DomainView, Problem> {
    let workspace = workspace(state, caller, reference).await?;
    let found = of_workspace(state, caller, &workspace).await?;
    Ok(found.ok_or_else(|| skerry_control::Error::not_found("domain"))?)
}

pub(super) async fn get(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
) -> Result<Json<Shown>, Problem> {
    let workspace = workspace(&state, &caller, &reference).await?;
    let domain = of_workspace(&state, &caller, &workspace).await?.map(|view| DomainInfo {
        ssl_status: view.state.as_str(),
        ssl_expiry: view.domain.certificate_not_after.map(|at| at.to_string()),
        ssl_error: ssl_error(&view),
        custom_domain: view.domain.name.into(),
        port: view.port.port,
        include_www: false,
    });
    Ok(Json(Shown { success: true, domain }))
}

/// Connects a domain, which waits until its record is there; again looks for the record again.
pub(super) async fn connect(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
    JsonBody { value: body, .. }: JsonBody<Object<ConnectBody>, Oblien>,
) -> Result<Json<Connected>, Problem> {
    let Object(ConnectBody { domain, port, include_www }) = body;
    let name = domain.ok_or_else(missing_domain)?;
    let port = match port.filter(|port| !port.is_null()) {
        Some(port) => port_number(Some(&port))?,
        None => PORT,
    };
    if include_www.is_some_and(|asked| !is_nothing(&asked)) {
        return Err(refused(
            "include_www",
            "is not available on this server",
            "leave it out or false",
        ));
    }
    let workspace = workspace(&state, &caller, &reference).await?;
    // What the DNS says is asked first: a name that is none changes nothing.
    let check = state.control.check_domain(&caller, &name, state.config.public_host()).await?;
    let view = match of_workspace(&state, &caller, &workspace).await? {
        Some(view) if view.domain.name == check.name && view.port.port == port => view,
        Some(view) => {
            let why = format!(
                "{} leads to port {} of the workspace; disconnect it first",
                view.domain.name, view.port.port
            );
            return Err(Problem::Control(ErrorKind::Conflict(why).into()));
        }
        None => {
            let published = published(&state, &caller, &workspace, port).await?;
            state.control.add_domain(&caller, check.name.as_str(), &published, None).await?
        }
    };
    let view = state.control.verify_domain(&caller, &DomainRef::Id(view.domain.id)).await?;
    Ok(Json(Connected {
        success: true,
        port,
        ssl: Ssl::of(&view),
        dns: Dns::of(&check, state.config.public_host()),
        url: url(&state.config, &view),
        domain: view.domain.name.into(),
    }))
}

fn url(config: &ApiConfig, view: &DomainView) -> String {
    config.domain_url(view.domain.name.as_str(), view.state)
}

/// The port a domain leads to, with an address of its own: one that was published for a few stays so.
async fn published(
    state: &ApiState,
    caller: &Caller,
    workspace: &Workspace,
    port: u16,
) -> Result<PublishedPort, Problem> {
    let which = WorkspaceRef::Id(workspace.id);
    let all = state.control.list_published_ports(caller, &which).await?;
    if let Some(found) = all.into_iter().find(|one| one.port == port) {
        return Ok(found);
    }
    let visibility = Some(PortVisibility::Public);
    let request = PublishPort { port, slug: None, label: None, visibility };
    Ok(state.control.publish_port(caller, &which, request).await?.port)
}

/// What the DNS says of a domain. Changes nothing.
pub(super) async fn check(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
    JsonBody { value: body, .. }: JsonBody<Object<CheckBody>, Oblien>,
) -> Result<Json<Checked>, Problem> {
    let Object(CheckBody { domain }) = body;
    let name = domain.ok_or_else(missing_domain)?;
    workspace(&state, &caller, &reference).await?;
    Ok(Json(dns_answer(&state, &caller, &name).await?))
}

/// The same for an account, which is all that the proof depends on.
pub(super) async fn dns_answer(
    state: &ApiState,
    caller: &Caller,
    name: &str,
) -> Result<Checked, Problem> {
    let target = state.config.public_host();
    let check = state.control.check_domain(caller, name, target).await?;
    let dns = Dns::of(&check, target);
    let addresses = |is_kind: fn(&std::net::IpAddr) -> bool| {
        let found = check.addresses.iter().filter(|address| is_kind(address));
        found.map(ToString::to_string).collect()
    };
    let records = BTreeMap::from([
        ("A", addresses(std::net::IpAddr::is_ipv4)),
        ("AAAA", addresses(std::net::IpAddr::is_ipv6)),
        ("TXT", check.texts.clone()),
    ]);
    let host = check.name.to_string();
    let cname = Cname { host: host.clone(), target: target.to_owned() };
    let txt = Txt { host: check.challenge_name, value: check.challenge_value };
    Ok(Checked {
        success: true,
        domain: host,
        enterprise: false,
        dns,
        records,
        required_records: Required { cname, txt },
        edge_ips: Vec::new(),
    })
}

pub(super) async fn disconnect(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
) -> Result<Json<Disconnected>, Problem> {
    let view = connected(&state, &caller, &reference).await?;
    state.control.remove_domain(&caller, &DomainRef::Id(view.domain.id)).await?;
    Ok(Json(Disconnected { success: true }))
}

/// Has a certificate that is missing got soon. One that is good is renewed by itself when its time comes:
/// who could have it renewed at will could use up what the issuer permits.
pub(super) async fn renew(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
) -> Result<Json<Renewed>, Problem> {
    let view = connected(&state, &caller, &reference).await?;
    if !state.control.gets_certificates() {
        let why = "this server gets no certificates: it shows those that it was given";
        return Err(Problem::Control(ErrorKind::Conflict(why.to_owned()).into()));
    }
    if let (DomainState::Issued, Some(until)) = (view.state, view.domain.certificate_not_after) {
        let why =
            format!("the certificate is good until {until}, and renewed before that by itself");
        return Err(Problem::Control(ErrorKind::Conflict(why).into()));
    }
    let view = state.control.verify_domain(&caller, &DomainRef::Id(view.domain.id)).await?;
    let ssl = Ssl::of(&view);
    Ok(Json(Renewed { success: true, domain: view.domain.name.into(), ssl }))
}
