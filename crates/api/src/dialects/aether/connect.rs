//! `POST /workspaces/{id}/connect`: where a workspace's socket is, and what has to happen before.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use skerry_control::Wait;
use skerry_model::{State as Life, Workspace};

use super::{
    Aether, convert,
    error_body::AetherError,
    hardware::FieldError,
    wire::Status,
    workspaces::{WorkspacePath, shown},
};
use crate::{ApiState, auth::Authenticated, extract::QueryOf, ids};

/// After how long a client may ask again, in milliseconds.
const RETRY_AFTER_MS: u64 = 500;

/// The query. Without `start` a workspace is started, as whoever connects by hand expects.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ConnectQuery {
    #[serde(default)]
    start: Option<String>,
}

/// Whether connecting may start a workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Allowed,
    Never,
}

/// What a client that wants to connect is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// There is a socket.
    Running,
    /// There will be one.
    Connecting,
    /// It is to be started, and then there will be one.
    Starts,
    /// Something else is under way.
    Transitional,
    /// There would be one after a start.
    Startable,
    /// Its last start failed, and only a new one can help.
    NotConnectable,
}

fn outcome(status: Status, start: Start) -> Outcome {
    match (status, start) {
        (Status::Running, Start::Allowed | Start::Never) => Outcome::Running,
        (Status::Creating | Status::Starting, Start::Allowed | Start::Never) => Outcome::Connecting,
        (Status::Stopping | Status::Stopped | Status::Error, Start::Allowed) => Outcome::Starts,
        (Status::Stopping, Start::Never) => Outcome::Transitional,
        (Status::Stopped, Start::Never) => Outcome::Startable,
        (Status::Error, Start::Never) => Outcome::NotConnectable,
    }
}

/// The state in the words for display that connecting has, which know suspension.
fn display_state(workspace: &Workspace, status: Status) -> &'static str {
    match (status, &workspace.state) {
        (Status::Running, _) => "ready",
        (Status::Creating, _) => "preparing",
        (Status::Starting, _) => "starting",
        (Status::Stopping, Life::Suspending) => "suspending",
        (Status::Stopping, _) => "stopping",
        (Status::Stopped, Life::Suspended | Life::Paused { .. }) => "suspended",
        (Status::Stopped, _) => "stopped",
        (Status::Error, _) => "error",
    }
}

/// `POST /workspaces/{id}/connect`.
pub(super) async fn connect(
    State(state): State<ApiState>,
    auth: Authenticated<Aether>,
    WorkspacePath(which): WorkspacePath,
    query: QueryOf<ConnectQuery, Aether>,
) -> Result<Response, AetherError> {
    let start = match query.value.start.as_deref() {
        None | Some("true") => Start::Allowed,
        Some("false") => Start::Never,
        Some(_) => return Err(FieldError::new("start", "must be true or false").into()),
    };
    let mut workspace = state.control.get_workspace(&auth.caller, &which).await?;
    let mut answer = outcome(shown(&workspace)?.status, start);
    if answer == Outcome::Starts {
        workspace = state.control.start_workspace(&auth.caller, &which, Wait::No).await?;
        answer = match outcome(shown(&workspace)?.status, Start::Allowed) {
            Outcome::Running => Outcome::Running,
            Outcome::Connecting
            | Outcome::Starts
            | Outcome::Transitional
            | Outcome::Startable
            | Outcome::NotConnectable => Outcome::Connecting,
        };
    }
    let (status, body) = told(&workspace, shown(&workspace)?.status, answer);
    Ok((status, Json(body)).into_response())
}

fn told(workspace: &Workspace, status: Status, answer: Outcome) -> (StatusCode, Value) {
    let id = ids::uuid_text(workspace.id);
    let display = display_state(workspace, status);
    let conflict = |body: Value| (StatusCode::CONFLICT, body);
    match answer {
        Outcome::Running => {
            let body = json!({
                "state": "running",
                "workspace_id": id,
                "display_state": display,
                "last_started_at": workspace.state.ready_since(),
                "transport": {
                    "websocket_path": format!("/workspaces/{id}/ws"),
                    "preview_token": workspace.preview_token.expose(),
                },
            });
            (StatusCode::OK, body)
        }
        Outcome::Connecting | Outcome::Starts => {
            let body = json!({
                "state": "connecting",
                "workspace_id": id,
                "display_state": display,
                "retry_after_ms": RETRY_AFTER_MS,
            });
            (StatusCode::OK, body)
        }
        Outcome::Transitional => conflict(json!({
            "kind": "transitional",
            "error": format!("The workspace is {display}"),
            "retry_after_ms": RETRY_AFTER_MS,
        })),
        Outcome::Startable => conflict(json!({
            "kind": "startable",
            "error": format!("The workspace is {display}; connect with start=true starts it"),
        })),
        Outcome::NotConnectable => conflict(json!({
            "kind": "not_connectable",
            "error": convert::workspace(workspace)
                .and_then(|shown| shown.error_message)
                .unwrap_or_else(|| "The workspace cannot be connected to".to_owned()),
            "display_state": display,
        })),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn every_status_has_an_outcome_with_and_without_a_start() {
        let mut table = String::new();
        for status in Status::ALL {
            let (allowed, never) = (outcome(status, Start::Allowed), outcome(status, Start::Never));
            let _ = writeln!(table, "{:<10}{:<12}{never:?}", status.word(), format!("{allowed:?}"));
        }
        insta::assert_snapshot!(table, @r"
        creating  Connecting  Connecting
        starting  Connecting  Connecting
        running   Running     Running
        stopping  Starts      Transitional
        stopped   Starts      Startable
        error     Starts      NotConnectable
        ");
    }
}
