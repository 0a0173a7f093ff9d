//! `/workspace/:id/ssh`. SSH is spoken by the server, for every workspace until it is switched off for one.
//! Keys are the account's, passwords a workspace's.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use skerry_control::{Caller, SshKey, WorkspaceRef};
use skerry_model::{ErrorKind, Secret, Workspace};

use super::{
    Oblien,
    convert::is_nothing,
    error_body::{Problem, Refusal},
};
use crate::{
    ApiState, SshEndpoint,
    auth::Authenticated,
    extract::{JsonBody, PathOf},
    ids,
    object::Object,
};

/// Who clients are in a workspace when nobody says otherwise.
const USER: &str = "root";
/// The port that need not be said.
const SSH_PORT: u16 = 22;

/// How a workspace is reached. No word has a space: clients take the command apart at them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Connection {
    user: &'static str,
    /// What the workspace is called behind the bastion.
    host: String,
    bastion: String,
    command: String,
    scp_upload: String,
    scp_download: String,
}

/// Answer of `GET …/ssh` and of calls that change it.
#[derive(Debug, Serialize)]
struct Status {
    success: bool,
    supported: bool,
    ssh_enabled: bool,
    ssh_id: Option<String>,
    ssh_password_changed: bool,
    ssh_key_set: bool,
    auth_methods: &'static [&'static str],
    password_auth_enabled: bool,
    connection: Option<Connection>,
    /// One that was made just now: it is not kept in a form that could be shown again.
    ssh_password: Option<String>,
}

/// Body of `POST …/ssh/key`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct KeyBody {
    public_key: Option<String>,
    /// By a key of the account one is whom one asks to be.
    #[serde(rename = "user")]
    _user: Option<String>,
}

/// Body of `POST …/ssh/password`.
#[derive(Default, Deserialize)]
pub(super) struct PasswordBody {
    password: Option<String>,
    user: Option<String>,
}

impl Connection {
    /// Through the jump host that the gateway is.
    pub(super) fn of(workspace: &Workspace, ssh: &SshEndpoint) -> Self {
        let host = ids::oblien_workspace_id(workspace.id);
        let bastion = match ssh.port {
            SSH_PORT => ssh.host.clone(),
            port => format!("{}:{port}", ssh.host),
        };
        let through = format!("-J {USER}@{bastion}");
        Self {
            user: USER,
            command: format!("ssh {USER}@{host} {through}"),
            scp_upload: format!("scp {through} FILE {USER}@{host}:PATH"),
            scp_download: format!("scp {through} {USER}@{host}:PATH FILE"),
            host,
            bastion,
        }
    }
}

/// What `config.ssh_access` of a create request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AskedAccess {
    /// Nothing: the account's keys open the workspace.
    Keys,
    /// A password too, told once.
    Password,
}

/// `config.ssh_access` of a create request: whether it can be had.
pub(super) fn asked_access(
    config: &Map<String, Value>,
    ssh: Option<&SshEndpoint>,
) -> Result<AskedAccess, Refusal> {
    let Some(asked) = config.get("ssh_access").filter(|asked| !is_nothing(asked)) else {
        return Ok(AskedAccess::Keys);
    };
    let refused = |problem: &str| Refusal {
        code: "INVALID_CONFIG",
        field: "config.ssh_access".to_owned(),
        problem: problem.to_owned(),
        allowed: "leave it out, null or false".to_owned(),
    };
    match (asked, ssh) {
        (Value::Bool(true), Some(_)) => Ok(AskedAccess::Password),
        (Value::Bool(true), None) => Err(refused("is not available: this server speaks no SSH")),
        (_, _) => Err(refused("is not a boolean")),
    }
}

async fn status(
    state: &ApiState,
    caller: &Caller,
    workspace: &Workspace,
    made: Option<Secret>,
) -> Result<Response, Problem> {
    let which = WorkspaceRef::Id(workspace.id);
    let access = state.control.ssh_access(caller, &which).await?;
    let keys = state.control.list_ssh_keys(caller).await?;
    let spoken = state.ssh();
    let open = spoken.filter(|_| access.is_open);
    let auth_methods: &[&str] = match (open, access.has_password) {
        (None, _) => &[],
        (Some(_), false) => &["publickey"],
        (Some(_), true) => &["publickey", "password"],
    };
    Ok(Json(Status {
        success: true,
        supported: spoken.is_some(),
        ssh_enabled: open.is_some(),
        ssh_id: spoken.map(|_| ids::oblien_workspace_id(workspace.id)),
        ssh_password_changed: access.is_password_chosen,
        ssh_key_set: !keys.is_empty(),
        auth_methods,
        password_auth_enabled: open.is_some() && access.has_password,
        connection: open.map(|ssh| Connection::of(workspace, ssh)),
        ssh_password: made.map(|made| made.expose().to_owned()),
    })
    .into_response())
}

/// `GET …/ssh`.
pub(super) async fn get(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let workspace = state.control.get_workspace(&caller, &which).await?;
    status(&state, &caller, &workspace, None).await
}

/// `POST …/ssh/enable`: opens the workspace, with a password for root where there is none.
pub(super) async fn enable(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let workspace = state.control.get_workspace(&caller, &which).await?;
    if state.ssh().is_none() {
        return Err(Problem::NotServed);
    }
    let made = state.control.open_ssh(&caller, &WorkspaceRef::Id(workspace.id)).await?;
    status(&state, &caller, &workspace, made).await
}

/// `POST …/ssh/disable`: nobody enters, by whatever, until it is enabled again. Passwords are forgotten.
pub(super) async fn disable(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    state.control.close_ssh(&caller, &which).await?;
    Ok(Json(json!({ "success": true })).into_response())
}

/// `POST …/ssh/password`: the one before opens nothing any more.
pub(super) async fn set_password(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
    JsonBody { value: body, .. }: JsonBody<Object<PasswordBody>, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let workspace = state.control.get_workspace(&caller, &which).await?;
    if state.ssh().is_none() {
        return Err(Problem::NotServed);
    }
    let PasswordBody { password, user } = body.0;
    let password = password.map(Secret::new).ok_or_else(|| Refusal {
        code: "validation_error",
        field: "password".to_owned(),
        problem: "is missing".to_owned(),
        allowed: "at least 8 characters".to_owned(),
    });
    let password = password.map_err(Problem::Refused)?;
    let which = WorkspaceRef::Id(workspace.id);
    state.control.set_ssh_password(&caller, &which, user.as_deref(), &password).await?;
    status(&state, &caller, &workspace, None).await
}

/// `POST …/ssh/key`: a key of the account from then on. One that is there already is a success.
pub(super) async fn add_key(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
    JsonBody { value: body, .. }: JsonBody<Object<KeyBody>, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let workspace = state.control.get_workspace(&caller, &which).await?;
    let public_key = body.0.public_key.ok_or_else(|| Refusal {
        code: "validation_error",
        field: "public_key".to_owned(),
        problem: "is missing".to_owned(),
        allowed: "one line of a .pub file".to_owned(),
    });
    let public_key = public_key.map_err(Problem::Refused)?;
    match state.control.add_ssh_key(&caller, None, &public_key).await {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::Conflict(_)) => {
            let own = state.control.list_ssh_keys(&caller).await?;
            if !own.iter().any(|key| is_the_same(key, &public_key)) {
                return Err(error.into());
            }
        }
        Err(error) => return Err(error.into()),
    }
    status(&state, &caller, &workspace, None).await
}

/// But for the comment.
fn is_the_same(key: &SshKey, line: &str) -> bool {
    let words = |text: &str| text.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>();
    words(&key.public_key) == words(line)
}
