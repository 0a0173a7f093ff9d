//! `/proxy`: HTTP and WebSockets to a port of the workspace's loopback.
//!
//! | target | where it stands |
//! | --- | --- |
//! | `<port>` or `<host>:<port>` | header `X-Oblien-Proxy-Target` |
//! | the same | query `x_oblien_target` |
//! | `<port>` | first part of the path, if neither is there |
//!
//! What says who calls and where to is taken out: the server inside must not get hold of a token.

use axum::{
    extract::{Query, Request, State},
    response::Response,
};
use http::{HeaderName, HeaderValue, Uri, header, uri::PathAndQuery};
use serde::Deserialize;
use skerry_control::internal_api::OpenPreview;

use super::{
    problem::{RuntimeProblem, refusal},
    visitor::Visitor,
};
use crate::{ApiState, dialects::oblien::error_body::Problem};

const TARGET_HEADER: HeaderName = HeaderName::from_static("x-oblien-proxy-target");
const TARGET_QUERY: &str = "x_oblien_target";
const TOKEN_QUERY: &str = "token";
const ROOT: &str = "/proxy";
/// Pages of a workspace are served from where the API is: they may not act as pages of that place.
const SANDBOX: &str = "sandbox allow-scripts allow-forms allow-popups allow-modals allow-downloads";

#[derive(Debug, Default, Deserialize)]
struct Reserved {
    token: Option<String>,
    x_oblien_target: Option<String>,
}

/// The port that a target names on the loopback, whatever that is called.
fn port_of(target: &str) -> Option<u16> {
    let port = match target.rsplit_once(':') {
        None => target,
        Some(("127.0.0.1" | "localhost" | "::1" | "[::1]", port)) => port,
        Some(_) => return None,
    };
    let is_plain = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    port.parse().ok().filter(|port| is_plain && *port != 0)
}

/// Where a request goes: the port, and the path with what is left of the query.
fn way(uri: &Uri, target: Option<&str>) -> Result<(u16, PathAndQuery), Problem> {
    let bad = || {
        let allowed = "a port, or one of 127.0.0.1, localhost and [::1] with a port";
        refusal("X-Oblien-Proxy-Target", "is not a port of the loopback", allowed)
    };
    let path = uri.path().strip_prefix(ROOT).unwrap_or_default();
    let (port, path) = match target {
        Some(target) => (port_of(target), path),
        None => {
            let below = path.strip_prefix('/').unwrap_or_default();
            let end = below.find('/').unwrap_or(below.len());
            let (port, path) = below.split_at(end);
            (port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port_of(port)).flatten(), path)
        }
    };
    let port = port.ok_or_else(bad)?;
    let path = if path.is_empty() { "/" } else { path };
    let is_ours = |pair: &&str| {
        let name = pair.split_once('=').map_or(*pair, |(name, _)| name);
        name == TOKEN_QUERY || name == TARGET_QUERY
    };
    let kept: Vec<&str> =
        uri.query().unwrap_or_default().split('&').filter(|pair| !is_ours(pair)).collect();
    let query = kept.join("&");
    let text = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    // Parts of an address that was one are one.
    Ok((port, text.parse().map_err(|_| bad())?))
}

pub(super) async fn carry(
    State(state): State<ApiState>,
    mut request: Request,
) -> Result<Response, Problem> {
    let reserved = Query::<Reserved>::try_from_uri(request.uri());
    let Query(reserved) =
        reserved.map_err(|_| refusal("query", "has a reserved name twice", "each once"))?;
    let visitor = Visitor::of(&state, request.headers(), reserved.token.as_deref()).await?;
    let in_header = request.headers_mut().remove(TARGET_HEADER);
    let in_header = in_header.as_ref().map(|value| value.to_str().unwrap_or_default());
    // Before the token is looked at for the last time: its end must not be missed.
    let closed = state.runtimes.of(visitor.workspace, state.control.now()).ports();
    let visitor = Visitor::of(&state, request.headers(), reserved.token.as_deref()).await?;
    let (port, path) = way(request.uri(), in_header.or(reserved.x_oblien_target.as_deref()))?;
    *request.uri_mut() = Uri::from(path);
    request.headers_mut().remove(header::AUTHORIZATION);
    let Some(ports) = state.ports() else {
        let why = "this server carries no requests to ports of workspaces";
        return Err(RuntimeProblem::NotHere(why).into());
    };
    let guest = visitor.guest(&state).await?;
    let workspace = visitor.workspace;
    let open = OpenPreview { workspace, port, guest, was_woken: false, closed };
    let mut answer = ports(open, request).await;
    answer.headers_mut().append(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(SANDBOX));
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(uri: &str, target: Option<&str>) -> Option<(u16, String)> {
        let uri: Uri = uri.parse().ok()?;
        way(&uri, target).ok().map(|(port, path)| (port, path.to_string()))
    }

    #[test]
    fn a_target_is_a_port_of_the_loopback_and_nothing_else() {
        let to = |target| gone("/proxy/a//b?x=%20", Some(target)).map(|(port, _)| port);
        for target in ["3000", "127.0.0.1:3000", "localhost:3000", "[::1]:3000", "::1:3000"] {
            assert_eq!(to(target), Some(3000), "{target}");
        }
        for target in ["", "0", "65536", "+80", "10.0.0.1:80", "example.com:80", "localhost:", "a"]
        {
            assert_eq!(to(target), None, "{target}");
        }
    }

    #[test]
    fn the_path_is_kept_as_it_is_and_reserved_names_are_taken_out() {
        let way = |uri, target| gone(uri, target).expect("a way");
        assert_eq!(way("/proxy/a//b?x=%20", Some("80")), (80, "/a//b?x=%20".to_owned()));
        assert_eq!(way("/proxy", Some("80")), (80, "/".to_owned()));
        assert_eq!(way("/proxy/81/c", Some("80")), (80, "/81/c".to_owned()));
        assert_eq!(way("/proxy/81/c/?token=t&a=b", None), (81, "/c/?a=b".to_owned()));
        assert_eq!(way("/proxy/81?x_oblien_target=9&token=t", None), (81, "/".to_owned()));
        for none in ["/proxy", "/proxy/", "/proxy/x/y", "/proxy/localhost:80/x", "/proxy//80"] {
            assert_eq!(gone(none, None), None, "{none}");
        }
    }
}
