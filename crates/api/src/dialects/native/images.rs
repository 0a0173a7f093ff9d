//! Images: what is here, and what is fetched from registries.

use axum::{Json, extract::State};
use http::StatusCode;
use skerry_control::internal_api as node;

use super::{
    Body, Login, convert,
    error_body::{NativeError, NativeResult},
    wire,
};
use crate::ApiState;

/// Begins to pull an image from a registry. It is the server's, for every account, and what workspaces
/// are made of that ask for this reference from then on. One that is under way is joined.
#[utoipa::path(
    operation_id = "pull_image",
    post, path = "/skerry/v1/images", tag = "images", request_body = wire::PullImage,
    responses(
        (status = 202, body = wire::ImagePull),
        (status = 400, body = wire::ErrorBody, description = "No reference, or its registry is not permitted here"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 503, body = wire::ErrorBody, description = "Too many images are being pulled"),
    ),
)]
pub(super) async fn pull(
    State(state): State<ApiState>,
    login: Login,
    body: Body<wire::PullImage>,
) -> NativeResult<(StatusCode, Json<wire::ImagePull>)> {
    let begun = state.control.pull_image(&login.caller, &body.value.reference).await?;
    Ok((StatusCode::ACCEPTED, Json(shown(begun))))
}

/// Lists the pulls under way, and the last that ended.
#[utoipa::path(
    operation_id = "list_image_pulls",
    get, path = "/skerry/v1/image-pulls", tag = "images",
    responses(
        (status = 200, body = wire::ImagePullList),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
    ),
)]
pub(super) async fn pulls(
    State(state): State<ApiState>,
    login: Login,
) -> NativeResult<Json<wire::ImagePullList>> {
    let pulls = state.control.image_pulls(&login.caller).await?;
    Ok(Json(wire::ImagePullList { pulls: pulls.into_iter().map(shown).collect() }))
}

fn shown(pull: node::ImagePull) -> wire::ImagePull {
    let (state, image, error) = match pull.outcome {
        None => ("pulling", None, None),
        Some(Ok(image)) => ("ready", Some(convert::image(image)), None),
        Some(Err(error)) => {
            let error = NativeError::from(skerry_control::Error::from(error));
            ("failed", None, Some(*error.detail))
        }
    };
    wire::ImagePull {
        reference: pull.reference,
        state,
        step: match pull.step {
            node::PullStep::Waiting => "waiting",
            node::PullStep::Resolving => "resolving",
            node::PullStep::Downloading => "downloading",
            node::PullStep::Unpacking => "unpacking",
            node::PullStep::Building => "building",
        },
        done_bytes: pull.done_bytes,
        total_bytes: pull.total_bytes,
        image,
        error,
    }
}
