//! Who calls a runtime: whoever has a token, and the workspace it opens.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, header, request::Parts};
use skerry_control::{Caller, WorkspaceRef, internal_api::GuestApi};
use skerry_model::{ErrorKind, Secret, WorkspaceId};

use super::problem::RuntimeProblem;
use crate::{ApiState, auth::bearer, dialects::oblien::error_body::Problem};

/// Extractor: who has shown a token in `Authorization`. Put it before the body.
pub(super) struct Visitor {
    caller: Caller,
    /// The workspace the token opens.
    pub(super) workspace: WorkspaceId,
}

impl Visitor {
    /// By the header, or else by a token from the query, on routes that take one there: sockets of
    /// browsers can set no headers. Queries are not logged.
    pub(super) async fn of(
        state: &ApiState,
        headers: &HeaderMap,
        in_query: Option<&str>,
    ) -> Result<Self, Problem> {
        let in_header = headers.get(header::AUTHORIZATION);
        let token = match in_header {
            Some(value) => value.to_str().ok().and_then(bearer),
            None => in_query,
        };
        let token = Secret::new(token.ok_or(RuntimeProblem::BadToken)?);
        let visit = state.control.runtime_visit(&token).await;
        let visit = visit.map_err(|error| match error.kind() {
            ErrorKind::Unauthenticated => RuntimeProblem::BadToken.into(),
            _ => Problem::Control(error),
        })?;
        Ok(Self { caller: visit.caller, workspace: visit.workspace })
    }

    /// The inside of the workspace, which is woken if it may be.
    pub(super) async fn guest(&self, state: &ApiState) -> Result<Arc<dyn GuestApi>, Problem> {
        let which = WorkspaceRef::Id(self.workspace);
        state.control.guest(&self.caller, &which).await.map_err(|error| match error.kind() {
            ErrorKind::RefusedByState { state, .. } => Problem::NotRunning { state },
            _ => Problem::Control(error),
        })
    }
}

impl FromRequestParts<ApiState> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Response> {
        Self::of(state, &parts.headers, None).await.map_err(IntoResponse::into_response)
    }
}
