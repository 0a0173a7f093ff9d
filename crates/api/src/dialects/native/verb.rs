//! What every verb on a workspace (start, stop, pause...) takes and answers.

use axum::{
    Json,
    extract::FromRequestParts,
    response::{IntoResponse as _, Response},
};
use http::request::Parts;
use skerry_control::{Caller, Error, Wait, WorkspaceRef};
use skerry_model::Workspace;

use super::{
    Login, Params, Query, convert,
    error_body::{NativeError, NativeResult},
    wire,
};
use crate::{ApiState, ids::parse_workspace_ref};

/// Extractor: who asks, of which workspace, and how long the answer may take.
pub(super) struct Verb {
    pub(super) state: ApiState,
    pub(super) caller: Caller,
    pub(super) which: WorkspaceRef,
    pub(super) wait: Wait,
}

impl FromRequestParts<ApiState> for Verb {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Response> {
        let login = Login::from_request_parts(parts, state).await?;
        let workspace = Params::<String>::from_request_parts(parts, state).await?;
        let query = Query::<wire::WaitQuery>::from_request_parts(parts, state).await?;
        let wait = convert::wait(&query.value)
            .map_err(|invalid| NativeError::from(invalid).into_response())?;
        let which = parse_workspace_ref(&workspace.value);
        Ok(Self { state: state.clone(), caller: login.caller, which, wait })
    }
}

impl Verb {
    /// The workspace as far as `work` brought it.
    pub(super) async fn reached(
        &self,
        work: impl Future<Output = Result<Workspace, Error>>,
    ) -> NativeResult<Json<wire::Workspace>> {
        let workspace = self.state.until_shutdown(work).await?;
        Ok(Json(convert::workspace(&workspace)))
    }
}
