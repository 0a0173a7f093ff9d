//! Which dialect a request is for: by host label first, by path root otherwise.

use std::{any::Any, sync::Arc};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    response::Response,
    routing::get,
};
use http::{Method, Uri, header};
use tower::ServiceExt;
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{Any as AnyOrigin, CorsLayer},
};

use crate::{
    ApiState, Dialect, Fault,
    dialect::owns_path,
    dialects::{
        aether::{self, Aether},
        instavm::{self, Instavm},
        native::{self, Native},
        oblien::{self, Oblien},
        rigbox::{self, Rigbox},
    },
    extract::MAX_JSON_BYTES,
    health,
};

/// The routers, one per kind of host.
struct Hosts {
    base_domain: String,
    shared: Router,
    labelled: [(&'static str, Router); 4],
}

pub(crate) fn router(state: ApiState) -> Router {
    let hosts = Hosts {
        base_domain: state.config.base_domain.to_ascii_lowercase(),
        shared: shared_origin(&state),
        labelled: [
            (Rigbox::NAME, own_host::<Rigbox>(rigbox::host_router(), &state)),
            (Aether::NAME, own_host::<Aether>(aether::host_router(), &state).layer(any_origin())),
            (Instavm::NAME, own_host::<Instavm>(instavm::host_router(), &state)),
            (Oblien::NAME, own_host::<Oblien>(oblien::host_router(), &state)),
        ],
    };
    Router::new().fallback(dispatch).with_state(Arc::new(hosts))
}

async fn dispatch(State(hosts): State<Arc<Hosts>>, request: Request) -> Response {
    let router = hosts.router_for(&request).clone();
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

impl Hosts {
    fn router_for(&self, request: &Request) -> &Router {
        let label = host(request).and_then(|host| label_below(&host, &self.base_domain));
        self.labelled
            .iter()
            .find(|(name, _)| label.as_deref() == Some(name))
            .map_or(&self.shared, |(_, router)| router)
    }
}

/// The host a request is for, lower case, without port: `:authority` of HTTP/2, else `Host`.
fn host(request: &Request) -> Option<String> {
    let text = match request.uri().host() {
        Some(host) => host,
        None => {
            let value = request.headers().get(header::HOST)?.to_str().ok()?;
            match value.rsplit_once(':') {
                // Not the inside of a bracketed IPv6 address.
                Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
                Some(_) | None => value,
            }
        }
    };
    Some(text.trim_end_matches('.').to_ascii_lowercase())
}

/// `rigbox` of `rigbox.localhost` below `localhost`.
fn label_below(host: &str, base_domain: &str) -> Option<String> {
    let label = host.strip_suffix(base_domain)?.strip_suffix('.')?;
    (!label.is_empty() && !label.contains('.')).then(|| label.to_owned())
}

/// All dialects on one origin.
fn shared_origin(state: &ApiState) -> Router {
    Router::new()
        .merge(guarded::<Native>(native::router()))
        .merge(guarded::<Oblien>(oblien::router()))
        .merge(guarded::<Instavm>(instavm::router()))
        .merge(guarded::<Rigbox>(rigbox::router()))
        .merge(guarded::<Aether>(aether::router()).layer(any_origin()))
        .merge(guarded::<Native>(health_routes()))
        .fallback(async |uri: Uri| no_route_on_shared_origin(uri.path()))
        .with_state(state.clone())
}

/// One dialect on its own host, with the health check.
fn own_host<D: Dialect>(routes: Router<ApiState>, state: &ApiState) -> Router {
    guarded::<D>(routes)
        .merge(guarded::<D>(health_routes()))
        .fallback(async || D::fault(&Fault::NoSuchRoute))
        .with_state(state.clone())
}

fn health_routes() -> Router<ApiState> {
    Router::new().route("/healthz", get(health::get)).route("/health", get(health::get))
}

/// A dialect's routes with its own answers to a wrong method and to a panic, and the limit on bodies
/// (a route that carries files overrides it).
fn guarded<D: Dialect>(routes: Router<ApiState>) -> Router<ApiState> {
    guarded_with::<D, ApiState>(routes)
}

fn guarded_with<D, S>(routes: Router<S>) -> Router<S>
where
    D: Dialect,
    S: Clone + Send + Sync + 'static,
{
    routes
        .method_not_allowed_fallback(async || D::fault(&Fault::MethodNotAllowed))
        .layer(CatchPanicLayer::custom(|panic: Box<dyn Any + Send + 'static>| {
            let message = panic
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("no message");
            tracing::error!(dialect = D::NAME, message, "a request handler panicked");
            D::fault(&Fault::HandlerPanicked)
        }))
        .layer(DefaultBodyLimit::max(MAX_JSON_BYTES))
}

/// The dialect that owns the path says that there is nothing; the native one for nobody's paths.
fn no_route_on_shared_origin(path: &str) -> Response {
    type Render = fn(&Fault) -> Response;
    let dialects: [(&[&str], Render); 4] = [
        (Oblien::ROOTS, Oblien::fault),
        (Rigbox::ROOTS, Rigbox::fault),
        (Aether::ROOTS, Aether::fault),
        (Instavm::ROOTS, Instavm::fault),
    ];
    let render = dialects
        .iter()
        .find(|(roots, _)| owns_path(roots, path))
        .map_or(Native::fault as Render, |(_, render)| *render);
    render(&Fault::NoSuchRoute)
}

/// Aether is called from browsers of any origin; credentials travel in a header, never in a cookie.
fn any_origin() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(AnyOrigin)
        .allow_methods([
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
            Method::OPTIONS,
        ])
        .allow_headers([header::ACCEPT, header::AUTHORIZATION, header::CONTENT_TYPE])
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn request(uri: &str, host: Option<&str>) -> Request {
        let mut request = http::Request::builder().uri(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        request.body(Body::empty()).expect("request")
    }

    #[test]
    fn the_host_is_read_without_port_case_or_root_dot() {
        let of = |uri: &str, value: Option<&str>| host(&request(uri, value));
        assert_eq!(of("/", Some("Rigbox.LocalHost:7070")).as_deref(), Some("rigbox.localhost"));
        assert_eq!(of("/", Some("localhost.")).as_deref(), Some("localhost"));
        assert_eq!(of("/", Some("[::1]:7070")).as_deref(), Some("[::1]"));
        assert_eq!(of("/", Some("[::1]")).as_deref(), Some("[::1]"));
        assert_eq!(of("http://a.localhost:1/x", Some("b")).as_deref(), Some("a.localhost"));
        assert_eq!(of("/", None), None);
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_answered_in_the_dialects_shape() {
        async fn broken() -> Response {
            panic!("a secret of the handler")
        }
        let routes: Router<()> = guarded_with::<Oblien, ()>(Router::new().route("/x", get(broken)));
        let response = routes.oneshot(request("/x", None)).await.expect("infallible");
        assert_eq!(response.status(), 500);
        let body = axum::body::to_bytes(response.into_body(), 4096).await.expect("a body");
        let body = String::from_utf8_lossy(&body);
        assert!(body.contains("internal_error") && !body.contains("secret"), "{body}");
    }

    #[test]
    fn only_one_label_directly_below_the_base_counts() {
        assert_eq!(label_below("oblien.localhost", "localhost").as_deref(), Some("oblien"));
        assert_eq!(label_below("localhost", "localhost"), None);
        assert_eq!(label_below("oblienlocalhost", "localhost"), None);
        assert_eq!(label_below("a.b.localhost", "localhost"), None);
        assert_eq!(label_below("oblien.example.com", "localhost"), None);
    }
}
