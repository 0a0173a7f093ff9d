//! What every dialect has in common: a name, the paths it owns, and how it says that something failed.

use axum::response::Response;
use skerry_control::Error;

use crate::extract::JsonProblem;

/// What can go wrong before a handler runs, or when it breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No route has this path.
    NoSuchRoute,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// The request body is larger than the route accepts.
    BodyTooLarge,
    /// The request body ended early or took too long.
    BodyIncomplete,
    /// The request body is not the JSON it should be.
    BadJson(JsonProblem),
    /// The query string or the path could not be read.
    BadUrl {
        /// The parameter, where it is known.
        parameter: Option<String>,
        /// What is wrong, fit to be shown.
        problem: String,
    },
    /// A handler panicked: a fault of ours.
    HandlerPanicked,
}

/// One of the APIs spoken here.
pub trait Dialect: Send + Sync + 'static {
    /// Its name, in logs and as its host label.
    const NAME: &'static str;

    /// The path prefixes it owns on the shared origin; each matches whole path segments.
    const ROOTS: &'static [&'static str];

    /// Renders a failed use case.
    fn error(error: &Error) -> Response;

    /// Renders a fault around a handler.
    fn fault(fault: &Fault) -> Response;
}

/// Whether `path` lies under one of `roots`, segment by segment.
pub(crate) fn owns_path(roots: &[&str], path: &str) -> bool {
    roots.iter().any(|root| {
        path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

#[cfg(test)]
mod tests {
    use super::owns_path;

    #[test]
    fn a_root_matches_whole_segments_only() {
        assert!(owns_path(&["/workspace"], "/workspace"));
        assert!(owns_path(&["/workspace"], "/workspace/ws_1/start"));
        assert!(!owns_path(&["/workspace"], "/workspaces"));
        assert!(!owns_path(&["/v1"], "/"));
    }
}
