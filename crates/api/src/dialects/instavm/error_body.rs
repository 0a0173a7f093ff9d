//! The one place where an error becomes a status and a body.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use skerry_control::Error;

use super::Instavm;
use crate::{Dialect, Fault};

impl Dialect for Instavm {
    const NAME: &'static str = "instavm";
    const ROOTS: &'static [&'static str] =
        &["/v1", "/execute", "/execute_async", "/kill", "/upload", "/download"];

    fn error(error: &Error) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
    }

    fn fault(fault: &Fault) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("{fault:?}")).into_response()
    }
}
