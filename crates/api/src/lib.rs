//! The HTTP front: every dialect on one listener, authentication, error bodies.
//!
//! A dialect translates: it parses its own wire form, calls one use case of `skerry-control`, and
//! renders the answer. This crate decides nothing about workspaces; it refuses to know the store, the
//! node and hypervisors. It is the only crate that knows status codes.
//!
//! # One listener, several dialects
//! The path roots of the dialects are disjoint ([`Dialect::ROOTS`]), so all of them share one origin.
//! A host label decides where two would claim one path: requests for `rigbox.<base>`,
//! `aether.<base>`, `instavm.<base>` and `oblien.<base>` reach that dialect alone (with the paths that
//! only its own host serves, such as Rigbox's `/v1/...`). Every other host is the shared origin.
//! There, `/v1/...` is InstaVM's and `/health` is answered for everybody by [`health`].

pub mod auth;
mod bodies;
pub mod dialect;
pub mod dialects;
mod dns_access;
pub mod extract;
pub mod health;
mod hosts;
pub mod ids;
pub mod number;
pub mod object;
mod output_budget;
mod output_log;
mod telemetry;
mod terminal;
#[cfg(test)]
mod test_ground;
mod unread;

use std::{future::Future, sync::Arc};

use axum::{Router, extract::Request, response::Response};
use futures::future::BoxFuture;
use skerry_control::{Control, Error, internal_api::OpenPreview};
use skerry_model::{DomainState, ErrorKind};
use tokio_util::sync::CancellationToken;

pub use dialect::{Dialect, Fault};

/// What the HTTP front is told at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiConfig {
    /// Where clients reach this server: scheme, host and port, without a trailing slash.
    pub public_url: String,
    /// The domain whose labels choose a dialect (`rigbox.<base>`), without a port.
    pub base_domain: String,
    /// The domain whose labels are published ports, without a port.
    pub preview_domain: String,
    /// The version shown to clients.
    pub version: &'static str,
}

impl ApiConfig {
    /// Where the port with this label is visited.
    #[must_use]
    pub fn preview_url(&self, label: &str) -> String {
        let (scheme, authority) =
            self.public_url.split_once("://").unwrap_or(("http", self.public_url.as_str()));
        let port = port_of(authority);
        format!("{scheme}://{label}.{}{port}", self.preview_domain)
    }

    /// Where a custom domain is visited: on the usual port of the encrypted listener when it has a
    /// certificate of its own, else as the server itself.
    #[must_use]
    pub fn domain_url(&self, name: &str, state: DomainState) -> String {
        let (scheme, authority) =
            self.public_url.split_once("://").unwrap_or(("http", self.public_url.as_str()));
        match state {
            DomainState::Issued => format!("https://{name}"),
            DomainState::Pending | DomainState::Verified | DomainState::Failed => {
                format!("{scheme}://{name}{}", port_of(authority))
            }
        }
    }

    /// The host under which clients reach this server: where custom domains have to lead.
    #[must_use]
    pub fn public_host(&self) -> &str {
        let authority =
            self.public_url.split_once("://").map_or(&*self.public_url, |(_, rest)| rest);
        authority.strip_suffix(&*port_of(authority)).unwrap_or(authority)
    }
}

/// The port of an authority with its colon; empty when there is none.
fn port_of(authority: &str) -> String {
    let port = authority.rsplit_once(':').map(|(_, port)| port);
    // Not the inside of a bracketed IPv6 address.
    let port = port.filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    port.map(|port| format!(":{port}")).unwrap_or_default()
}

/// What every handler is given. Cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    /// The use cases.
    pub control: Control,
    /// Configuration.
    pub config: Arc<ApiConfig>,
    pub(crate) output_budget: output_budget::OutputBudget,
    pub(crate) executions: dialects::instavm::Executions,
    pub(crate) terminals: dialects::instavm::Terminals,
    pub(crate) shells: dialects::aether::Terminals,
    pub(crate) runtimes: dialects::oblien::Runtimes,
    shutdown: CancellationToken,
    ssh: Option<Arc<SshEndpoint>>,
    ports: Option<PortCarrier>,
}

/// Carries an HTTP request, and a WebSocket if it asks for one, to a port inside a workspace that was
/// opened for whoever sends it.
pub type PortCarrier =
    Arc<dyn Fn(OpenPreview, Request) -> BoxFuture<'static, Response> + Send + Sync>;

/// Where the server speaks SSH, for what clients are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshEndpoint {
    /// Name or address.
    pub host: String,
    /// The port that was really taken.
    pub port: u16,
    /// The gateway's public key, as in a `.pub` file.
    pub host_key: String,
}

impl ApiState {
    /// `shutdown` ends the waiting of calls under way when the server is to stop.
    #[must_use]
    pub fn new(control: Control, config: ApiConfig, shutdown: CancellationToken) -> Self {
        Self {
            control,
            config: Arc::new(config),
            output_budget: output_budget::OutputBudget::default(),
            executions: dialects::instavm::Executions::default(),
            terminals: dialects::instavm::Terminals::default(),
            shells: dialects::aether::Terminals::default(),
            runtimes: dialects::oblien::Runtimes::default(),
            shutdown,
            ssh: None,
            ports: None,
        }
    }

    /// The same of a server that carries requests to ports inside workspaces in this way.
    #[must_use]
    pub fn with_ports(self, ports: PortCarrier) -> Self {
        Self { ports: Some(ports), ..self }
    }

    /// How requests are carried to ports inside; `None` where they are not.
    #[must_use]
    pub fn ports(&self) -> Option<&PortCarrier> {
        self.ports.as_ref()
    }

    /// The same of a server that speaks SSH there.
    #[must_use]
    pub fn with_ssh(self, endpoint: SshEndpoint) -> Self {
        Self { ssh: Some(Arc::new(endpoint)), ..self }
    }

    /// Where SSH is spoken; `None` where it is not.
    #[must_use]
    pub fn ssh(&self) -> Option<&SshEndpoint> {
        self.ssh.as_deref()
    }

    /// Runs a use case that may wait long, but no longer than the server runs. The work itself is
    /// control's and goes on.
    ///
    /// # Errors
    /// Those of the use case, or `Unavailable` when the server stops first.
    pub async fn until_shutdown<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            result = work => result,
            () = self.shutdown.cancelled() => Err(Error::new(ErrorKind::Unavailable(
                "the server is shutting down; what was asked for goes on when it is back".to_owned(),
            ))),
        }
    }

    /// Resolves when nothing that was begun by a call runs on without it. To be awaited after the listener
    /// has ended.
    pub async fn ended(&self) {
        tokio::join!(
            self.executions.ended(),
            self.terminals.ended(),
            self.shells.ended(),
            self.runtimes.ended()
        );
    }

    /// Resolves when the server is to stop, for streams and sockets that must end then.
    pub async fn shutdown_begun(&self) {
        self.shutdown.cancelled().await;
    }
}

/// The whole HTTP front.
pub fn router(state: ApiState) -> Router {
    let unread = axum::middleware::from_fn(unread::read_rest);
    telemetry::layered(hosts::router(state).layer(unread))
}
