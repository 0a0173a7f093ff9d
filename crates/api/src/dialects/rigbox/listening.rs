//! `GET /workspaces/{id}/listening-ports`: what in the guest waits for connections.

use axum::{Json, extract::State};
use serde::Serialize;
use skerry_control::Error;

use super::{Rigbox, error_body::RigboxError, workspaces::WorkspaceId};
use crate::{ApiState, auth::Authenticated};

/// A port that somebody listens at.
#[derive(Serialize)]
pub(super) struct PortView {
    port: u16,
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<String>,
    /// Whether it is an app's.
    already_exposed: bool,
}

/// Answer of `GET /workspaces/{id}/listening-ports`.
#[derive(Serialize)]
pub(super) struct PortList {
    ports: Vec<PortView>,
}

/// `GET /workspaces/{id}/listening-ports`, by port.
pub(super) async fn list(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
) -> Result<Json<PortList>, RigboxError> {
    let published = state.control.list_published_ports(&auth.caller, &which).await?;
    let guest = state.control.guest(&auth.caller, &which).await?;
    let listening = guest.listening_ports().await.map_err(Error::from)?;
    let mut ports: Vec<PortView> = listening
        .into_iter()
        .map(|one| PortView {
            already_exposed: published.iter().any(|port| port.port == one.port),
            port: one.port,
            address: one.address,
            process: one.process,
        })
        .collect();
    ports.sort_by(|a, b| (a.port, &a.address).cmp(&(b.port, &b.address)));
    Ok(Json(PortList { ports }))
}
