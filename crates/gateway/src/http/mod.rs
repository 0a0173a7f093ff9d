//! Visits of ports inside workspaces, by HTTP.
//!
//! The first label of the host says which port is meant ([`skerry_internal_api::PreviewAddress`]). A
//! request is carried to it over the guest's agent, so that a server bound to loopback is reached and a
//! workspace needs no network. Nothing is kept on the way: bodies of both directions are passed on
//! piece by piece, as fast as the slower side takes them.
//!
//! | request | in the workspace |
//! | --- | --- |
//! | HTTP/1.1, HTTP/2 | HTTP/1.1, one connection for each request |
//! | WebSocket, over either | WebSocket over HTTP/1.1 |
//! | another `Upgrade` | the request without it |
//!
//! The parser is hyper's on both sides, and every request is written anew: what the two sides could
//! understand differently is refused by one or not passed on by the other.

mod credentials;
mod headers;
mod hosts;
mod joined;
mod limits;
mod page;
mod places;
mod progress;
mod upgrade;
mod upstream;

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, body::Body, extract::ConnectInfo};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use skerry_internal_api::{OpenPreview, PreviewAddress, PreviewRefusal, RouteApi};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use credentials::Shown;
use hosts::{Meant, Named};
pub use hosts::{PreviewHosts, Scheme};
pub use limits::Limits;
use page::Page;
use places::Places;
use upgrade::Handover;

/// Fills bytes with randomness.
pub type FillRandom = Arc<dyn Fn(&mut [u8]) + Send + Sync>;

/// The gateway of visits. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Previews {
    inner: Arc<Inner>,
}

struct Inner {
    routes: Arc<dyn RouteApi>,
    hosts: PreviewHosts,
    limits: Limits,
    fill_random: FillRandom,
    places: Places,
    tasks: TaskTracker,
    ending: CancellationToken,
}

impl Previews {
    /// A gateway for these hosts. What is open when `ending` is cancelled is ended.
    #[must_use]
    pub fn new(
        routes: Arc<dyn RouteApi>,
        hosts: PreviewHosts,
        limits: Limits,
        fill_random: FillRandom,
        ending: CancellationToken,
    ) -> Self {
        let places = Places::new(limits);
        let tasks = TaskTracker::new();
        let inner = Inner { routes, hosts, limits, fill_random, places, tasks, ending };
        Self { inner: Arc::new(inner) }
    }

    /// Both on one listener: visits here, every other host `front`. X-Forwarded-For is told the address
    /// in the request's [`ConnectInfo`], X-Forwarded-Proto its [`Scheme`] where the listener knows it.
    pub fn beside(&self, front: Router) -> Router {
        let previews = self.clone();
        Router::new().fallback(async move |request: Request<Body>| {
            match previews.inner.hosts.named(&request) {
                Named::Other => match front.clone().oneshot(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                },
                Named::Ambiguous => Page::BadHost.answer(request.headers()),
                Named::Preview { meant, host } => previews.inner.visit(meant, host, request).await,
            }
        })
    }

    /// Carries a request, and a WebSocket if it asks for one, to a port that was opened for whoever sends
    /// it: what they have shown is taken out already. What goes wrong is told as JSON.
    pub async fn carry(&self, open: OpenPreview, mut request: Request<Body>) -> Response<Body> {
        let host = request.headers().get(header::HOST).cloned();
        let host = host.unwrap_or_else(|| HeaderValue::from_static("localhost"));
        let carried = match Handover::of(&mut request) {
            Ok(handover) => self.inner.joined(open, handover, host, request).await,
            Err(page) => Err(page),
        };
        carried.unwrap_or_else(|page| page::Wanted::Json.page(page))
    }

    /// Resolves when everything that was open has ended, after the gateway was told to end.
    pub async fn ended(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    async fn visit(
        &self,
        meant: Meant,
        host: HeaderValue,
        mut request: Request<Body>,
    ) -> Response<Body> {
        let wanted = page::Wanted::of(request.headers());
        let Some(address) = meant.address() else {
            return wanted.page(Page::Unknown);
        };
        if let PreviewAddress::Domain(name) = &address
            && let Some(answer) = self.hosts.brought.answer(name, request.uri().path())
        {
            return Response::new(Body::from(answer));
        }
        let shown = Shown::take(&mut request);
        let response = match self.carried(&address, shown, host, request).await {
            Ok(response) => response,
            Err(page) => wanted.page(page),
        };
        match address {
            PreviewAddress::Published(_) | PreviewAddress::Domain(_) => response,
            PreviewAddress::Token(_) => headers::for_any_origin(response),
        }
    }

    async fn carried(
        &self,
        address: &PreviewAddress,
        shown: Shown,
        host: HeaderValue,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Page> {
        let handover = Handover::of(&mut request)?;
        let opening = self.routes.open_preview(address, &shown.credentials);
        let open = match timeout(self.limits.open_within, opening).await {
            Ok(Ok(open)) => open,
            Ok(Err(refusal)) => return Err(refusal.into()),
            // Waking goes on.
            Err(_) => return Err(Page::Waking),
        };
        if let Some(token) = shown.in_query
            && handover.is_none()
            && matches!(*request.method(), Method::GET | Method::HEAD)
        {
            return Ok(credentials::kept(&token, request.uri(), self.scheme(&request)));
        }
        self.joined(open, handover, host, request).await
    }

    fn scheme(&self, request: &Request<Body>) -> Scheme {
        request.extensions().get::<Scheme>().copied().unwrap_or(self.hosts.scheme)
    }

    /// Carries a request to a port that is open, for as long as it is.
    async fn joined(
        &self,
        open: OpenPreview,
        handover: Option<Handover>,
        host: HeaderValue,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Page> {
        let scheme = self.scheme(&request);
        let place = self.places.take(open.workspace).await.ok_or(Page::Busy)?;
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
        let forwarded = headers::Forwarded { peer, host, scheme };
        headers::rewrite(&mut request, &forwarded, open.port);
        let OpenPreview { closed, .. } = &open;
        let revoked = Arc::clone(closed);
        let answered = async {
            let line = upstream::connect(self, open, place).await?;
            match handover {
                Some(handover) => upgrade::carry(self, line, request, handover).await,
                None => upstream::carry(self, line, request).await,
            }
        };
        tokio::select! {
            answered = answered => answered,
            () = revoked.cancelled() => Err(Page::Unknown),
        }
    }
}

impl From<PreviewRefusal> for Page {
    fn from(refusal: PreviewRefusal) -> Self {
        match refusal {
            PreviewRefusal::NotFound => Self::Unknown,
            PreviewRefusal::Forbidden => Self::Forbidden,
            PreviewRefusal::NotRunning => Self::NotRunning,
            PreviewRefusal::Unavailable => Self::Unavailable,
            PreviewRefusal::Internal => Self::Internal,
        }
    }
}

/// An answer without a body.
fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
