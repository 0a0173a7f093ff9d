//! `GET /workspaces/{id}/metrics`: what the guest itself measures, now.

use std::time::Duration;

use axum::{Json, extract::State};

use super::{Rigbox, convert, error_body::RigboxError, wire, workspaces::WorkspaceId};
use crate::{ApiState, auth::Authenticated};

/// Between the two readings that CPU use is computed from.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);

/// `GET /workspaces/{id}/metrics`. A workspace that does not run measures nothing: 409.
pub(super) async fn get(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
) -> Result<Json<wire::Metrics>, RigboxError> {
    let workspace = state.control.get_workspace(&auth.caller, &which).await?;
    let (earlier, later) = state
        .until_shutdown(async {
            let earlier = state.control.workspace_stats(&auth.caller, &which).await?;
            tokio::time::sleep(SAMPLE_INTERVAL).await;
            let later = state.control.workspace_stats(&auth.caller, &which).await?;
            Ok::<_, skerry_control::Error>((earlier, later))
        })
        .await?;
    Ok(Json(convert::metrics(workspace.id, &earlier, &later, state.control.now())))
}
