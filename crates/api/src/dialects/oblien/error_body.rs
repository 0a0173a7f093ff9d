//! The one place where an error becomes a status and a body.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use skerry_control::Error;

use super::Oblien;
use crate::{Dialect, Fault};

impl Dialect for Oblien {
    const NAME: &'static str = "oblien";
    const ROOTS: &'static [&'static str] =
        &["/workspace", "/namespaces", "/tokens", "/webhooks", "/credits", "/auth", "/settings"];

    fn error(error: &Error) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
    }

    fn fault(fault: &Fault) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("{fault:?}")).into_response()
    }
}
