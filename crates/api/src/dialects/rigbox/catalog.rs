//! What anybody may ask without a credential: room on the machine, and templates.

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

/// `GET /templates`.
pub(super) async fn templates(
    State(state): State<ApiState>,
) -> Result<Json<wire::Templates>, RigboxError> {
    let images = state.control.public_images().await?;
    Ok(Json(wire::Templates { templates: images.iter().map(convert::template).collect() }))
}
