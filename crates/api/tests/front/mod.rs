//! The whole HTTP front on a simulated node, and a transcript of what was said to it.

pub mod instavm;

use std::{fmt::Write as _, sync::Arc, time::Duration};

use axum::{Json, Router, body::Body, response::IntoResponse as _};
use bytes::Bytes;
use http::{HeaderName, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use skerry_api::{ApiConfig, ApiState, PortCarrier, SshEndpoint};
use skerry_control::{
    ControlConfig, Error, ServerProxy, Wait, WorkspaceRef,
    testing::{self, KEY, TestControl},
};
use skerry_model::{ErrorKind, OutboundProxy, ProxyCredentials, ProxyProtocol, Secret, Workspace};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// No test waits longer for anything.
const BOUND: Duration = Duration::from_secs(60);

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub enum As {
    /// The account `admin`.
    Admin,
    /// Another account.
    Other,
    /// Somebody with a key that nobody has.
    Stranger,
    /// Somebody without a credential.
    Nobody,
}

impl As {
    const fn word(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Other => "other",
            Self::Stranger => "stranger",
            Self::Nobody => "nobody",
        }
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: StatusCode,
    /// The body; null when there is none.
    pub body: Value,
}

/// The front and everything behind it.
pub struct Front {
    /// The control plane and its node.
    pub test: TestControl,
    router: Router,
    other_key: String,
    transcript: String,
}

impl Front {
    /// A front with the default configuration.
    pub async fn open() -> Self {
        Self::open_with(testing::config()).await
    }

    /// The front of a server that speaks SSH at this port.
    pub async fn open_with_ssh(port: u16) -> Self {
        let (host, host_key) = ("ssh.example.org".to_owned(), "ssh-ed25519 AAAA".to_owned());
        Self::build(testing::config(), Some(SshEndpoint { host, port, host_key })).await
    }

    /// The front of a server with proxies of its own: `exit-a` and `exit-b`.
    pub async fn with_proxies() -> Self {
        let proxy = |last: u8, port, protocol, credentials| OutboundProxy {
            address: [198, 51, 100, last].into(),
            port,
            protocol,
            credentials,
        };
        let own =
            ProxyCredentials { username: "server".to_owned(), password: Secret::new("secret") };
        let known = [
            ("exit-a", proxy(1, 3128, ProxyProtocol::Http, Some(own)), None),
            ("exit-b", proxy(2, 1080, ProxyProtocol::Socks5, None), Some([203, 0, 113, 8].into())),
        ];
        let known = known.map(|(name, proxy, exit_address)| {
            (name.parse().expect("a name"), ServerProxy { proxy, exit_address })
        });
        Self::open_with(ControlConfig { outbound_proxies: known.into(), ..testing::config() }).await
    }

    /// A front with this configuration.
    pub async fn open_with(config: ControlConfig) -> Self {
        Self::build(config, None).await
    }

    async fn build(config: ControlConfig, ssh: Option<SshEndpoint>) -> Self {
        let test = testing::open_with(config).await;
        let (_, other_key) = test.other_caller("other").await;
        let config = ApiConfig {
            public_url: "http://localhost:7070".to_owned(),
            base_domain: "localhost".to_owned(),
            preview_domain: "localhost".to_owned(),
            version: "0.0.0-test",
        };
        // Says what would be sent to which port.
        let ports: PortCarrier = Arc::new(|open, request| {
            let (head, _) = request.into_parts();
            let names: Vec<&str> = head.headers.keys().map(HeaderName::as_str).collect();
            let (line, port) = (format!("{} {}", head.method, head.uri), open.port);
            let said = Json(json!({ "port": port, "line": line, "headers": names }));
            Box::pin(async move { said.into_response() })
        });
        let state = ApiState::new(test.control.clone(), config, CancellationToken::new());
        let mut state = state.with_ports(ports);
        if let Some(ssh) = ssh {
            state = state.with_ssh(ssh);
        }
        let router = skerry_api::router(state);
        let other_key = other_key.expose().to_owned();
        Self { test, router, other_key, transcript: String::new() }
    }

    /// Calls `line`, a method and a path with query, on the shared origin.
    pub async fn call(&mut self, caller: As, line: &str, body: Option<Value>) -> Answer {
        let text = body.map(|body| body.to_string());
        self.call_on("localhost", caller, line, text.as_deref()).await
    }

    /// Calls with a body that need not be JSON, on this host.
    pub async fn call_on(
        &mut self,
        host: &str,
        caller: As,
        line: &str,
        body: Option<&str>,
    ) -> Answer {
        let answer = self.ask(host, caller, line, body).await;
        let body_shown = body.map(|text| format!(" {text}")).unwrap_or_default();
        let on = if host == "localhost" { String::new() } else { format!(" on {host}") };
        let status = answer.status.as_u16();
        let _ =
            writeln!(self.transcript, "> {line} as {}{on}{body_shown}\n< {status}", caller.word());
        if !answer.body.is_null() {
            let pretty = serde_json::to_string_pretty(&answer.body).expect("JSON");
            let _ = writeln!(self.transcript, "{pretty}");
        }
        self.transcript.push('\n');
        answer
    }

    /// Calls a runtime with its token.
    pub async fn runtime(&mut self, token: &str, line: &str, body: Option<Value>) -> Answer {
        let text = body.map(|body| body.to_string());
        let shown = text.as_ref().map(|text| format!(" {text}")).unwrap_or_default();
        let (status, bytes) = self.bytes(token, line, text.unwrap_or_default().into()).await;
        let _ = writeln!(self.transcript, "> {line} by a token{shown}\n< {}", status.as_u16());
        let body: Value = match bytes.as_ref() {
            [] => Value::Null,
            json => serde_json::from_slice(json).expect("JSON"),
        };
        let _ = writeln!(self.transcript, "{body:#}\n");
        Answer { status, body }
    }

    /// Calls a runtime with bytes, and answers bytes. The transcript does not have it.
    pub async fn bytes(&self, token: &str, line: &str, body: Vec<u8>) -> (StatusCode, Bytes) {
        let (method, path) = line.split_once(' ').expect("a method and a path");
        let method: Method = method.parse().expect("a method");
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "workspace.oblien.com")
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .expect("a request");
        let answer = tokio::time::timeout(BOUND, async {
            let response = self.router.clone().oneshot(request).await.expect("infallible");
            let status = response.status();
            (status, response.into_body().collect().await.expect("a body").to_bytes())
        });
        answer.await.expect("an answer in time")
    }

    /// Calls beside other calls: whose turn comes when is not foretold, so the transcript does not
    /// have it.
    pub async fn beside(&self, caller: As, line: &str, body: Option<Value>) -> Answer {
        let text = body.map(|body| body.to_string());
        self.ask("localhost", caller, line, text.as_deref()).await
    }

    /// Calls with a body of this type. The transcript does not have it.
    pub async fn send(&self, caller: As, line: &str, content_type: &str, body: String) -> Answer {
        self.ask_with("localhost", caller, line, Some((content_type, &body))).await
    }

    async fn ask(&self, host: &str, caller: As, line: &str, body: Option<&str>) -> Answer {
        let body = body.map(|text| ("application/json", text));
        self.ask_with(host, caller, line, body).await
    }

    async fn ask_with(
        &self,
        host: &str,
        caller: As,
        line: &str,
        body: Option<(&str, &str)>,
    ) -> Answer {
        let (method, path) = line.split_once(' ').expect("a method and a path");
        let method: Method = method.parse().expect("a method");
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        let key = match caller {
            As::Admin => Some(KEY),
            As::Other => Some(self.other_key.as_str()),
            As::Stranger => Some("sk_of_nobody"),
            As::Nobody => None,
        };
        if let Some(key) = key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        if let Some((content_type, _)) = body {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let request = request
            .body(body.map_or_else(Body::empty, |(_, text)| Body::from(text.to_owned())))
            .expect("a request");
        let answer = tokio::time::timeout(BOUND, async {
            let response = self.router.clone().oneshot(request).await.expect("infallible");
            let status = response.status();
            let bytes = response.into_body().collect().await.expect("a body").to_bytes();
            (status, bytes)
        });
        let (status, bytes) = answer.await.expect("an answer in time");
        let body = match bytes.as_ref() {
            [] => Value::Null,
            json => serde_json::from_slice(json).expect("JSON"),
        };
        Answer { status, body }
    }

    /// Listens on a socket, too, for as long as the test runs.
    pub async fn listen(&self) -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let router = self.router.clone();
        tokio::spawn(async move { axum::serve(listener, router).await.expect("serve") });
        address
    }

    /// Everything that was said so far.
    pub fn transcript(&self) -> &str {
        &self.transcript
    }

    /// The workspace, once it is there and as wanted.
    pub async fn until(&self, id: &str, wanted: impl Fn(&Workspace) -> bool) -> Workspace {
        let caller = self.test.caller().await;
        let which = self.which(id);
        let reached = async {
            loop {
                match self.test.control.get_workspace(&caller, &which).await {
                    Ok(now) if wanted(&now) => return now,
                    Ok(_) => {}
                    Err(error) => assert!(is_not_found(&error), "{error}"),
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(BOUND, reached).await.expect("the state is reached in time")
    }

    /// Waits until the workspace has gone by itself.
    pub async fn vanished(&self, id: &str) {
        let caller = self.test.caller().await;
        let which = self.which(id);
        let gone = async {
            while let Ok(_still) = self.test.control.get_workspace(&caller, &which).await {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(BOUND, gone).await.expect("the workspace goes in time");
    }

    /// Waits until nothing is left to do for the workspace.
    pub async fn settled(&self, id: &str) -> Workspace {
        self.until(id, Workspace::is_settled).await
    }

    /// Waits until the workspace is gone.
    pub async fn gone(&self, id: &str) {
        let caller = self.test.caller().await;
        let which = self.which(id);
        let wait = Wait::UpTo(BOUND);
        match self.test.control.delete_workspace(&caller, &which, wait).await {
            Ok(deleted) => assert!(deleted.complete, "the deletion ends in time"),
            Err(error) => assert!(is_not_found(&error), "{error}"),
        }
    }

    /// The inside of a VM that runs.
    pub fn guest(&self, id: &str) -> Arc<skerry_control::sim_node::SimGuest> {
        let id = skerry_api::ids::parse_workspace_id(id).expect("an id");
        self.test.node.sim_guest(id).expect("a VM")
    }

    fn which(&self, id: &str) -> WorkspaceRef {
        skerry_api::ids::parse_workspace_ref(id)
    }
}

fn is_not_found(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound { .. })
}
