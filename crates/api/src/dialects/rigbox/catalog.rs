//! What anybody may ask without a credential: room on the machine.

use axum::{Json, extract::State};

use super::{convert, error_body::RigboxError, wire};
use crate::ApiState;

/// `GET /capacity`.
pub(super) async fn capacity(
    State(state): State<ApiState>,
) -> Result<Json<wire::Capacity>, RigboxError> {
    let capacity = state.control.capacity().await?;
    Ok(Json(convert::capacity(&capacity)))
}
