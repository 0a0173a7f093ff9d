//! A gateway in front of one workspace of a simulated node.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::Request};
use hyper::client::conn::http2::SendRequest;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use skerry_control::{
    Caller, CreateWorkspace, PortVisibility, PublishPort, StartPolicy, Wait, WorkspaceRef,
    internal_api::OpenPreview,
    testing::{self, TestControl},
};
use skerry_gateway::http::{Limits, PreviewHosts, Previews, Scheme};
use skerry_model::{State, Workspace};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, tungstenite};
use tokio_util::sync::CancellationToken;

/// Every step of a test ends within this.
pub const WITHIN: Duration = Duration::from_secs(60);
const LONG: Wait = Wait::UpTo(WITHIN);

pub struct Ground {
    pub test: TestControl,
    pub workspace: Workspace,
    /// Where the gateway listens.
    pub front: SocketAddr,
    caller: Caller,
    previews: Previews,
    ending: CancellationToken,
    serving: JoinHandle<()>,
}

impl Ground {
    pub async fn open() -> Self {
        Self::with(Limits::default()).await
    }

    pub async fn with(limits: Limits) -> Self {
        Self::of(limits, CreateWorkspace::new(StartPolicy::Now(LONG))).await
    }

    /// One with this site on port 3000, open to everybody as `front`.
    pub async fn serving(site: Router) -> Self {
        let ground = Self::open().await;
        ground.serve(3000, site);
        ground.publish(3000, "front", PortVisibility::Public).await;
        ground
    }

    /// One whose workspace is woken by use.
    pub async fn sleepy() -> Self {
        let request =
            CreateWorkspace { auto_resume: true, ..CreateWorkspace::new(StartPolicy::Now(LONG)) };
        Self::of(Limits::default(), request).await
    }

    async fn of(limits: Limits, request: CreateWorkspace) -> Self {
        let test = testing::open().await;
        let caller = test.caller().await;
        let workspace = test.control.create_workspace(&caller, request).await.unwrap();
        let ending = CancellationToken::new();
        let hosts = PreviewHosts {
            domains: vec!["localhost".to_owned(), "preview.localhost".to_owned()],
            own: Vec::new(),
            brought: Arc::default(),
            scheme: Scheme::Http,
        };
        let routes = test.control.routes(|text| WorkspaceRef::SlugOrName(text.to_owned()));
        let random = Arc::new(|bytes: &mut [u8]| bytes.fill(7));
        let previews = Previews::new(routes, hosts, limits, random, ending.clone());
        let own = Router::new().fallback(async || "the front");
        let router = previews.beside(own);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let front = listener.local_addr().unwrap();
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let until = ending.clone();
        let serving = tokio::spawn(async move {
            let serving = axum::serve(listener, service);
            tokio::select! {
                served = serving.into_future() => served.unwrap(),
                () = until.cancelled() => {}
            }
        });
        Self { test, workspace, front, caller, previews, ending, serving }
    }

    fn which(&self) -> WorkspaceRef {
        WorkspaceRef::Id(self.workspace.id)
    }

    /// A server that carries everything to this port, as a caller of [`Previews::carry`] does, until what
    /// is answered is cancelled.
    pub async fn carrying(&self, port: u16) -> (SocketAddr, Arc<CancellationToken>) {
        let guest = self.test.control.guest(&self.caller, &self.which()).await.unwrap();
        let closed = Arc::new(CancellationToken::new());
        let (previews, workspace) = (self.previews.clone(), self.workspace.id);
        let revoked = Arc::clone(&closed);
        let router = Router::new().fallback(async move |request: Request| {
            let closed = Arc::clone(&revoked);
            let guest = Arc::clone(&guest);
            let open = OpenPreview { workspace, port, guest, was_woken: false, closed };
            previews.carry(open, request).await
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (address, closed)
    }

    /// Publishes a port; answers its token if it has one.
    pub async fn publish(
        &self,
        port: u16,
        slug: &str,
        visibility: PortVisibility,
    ) -> Option<String> {
        let visibility = Some(visibility);
        let request = PublishPort { port, slug: Some(slug.to_owned()), label: None, visibility };
        let made = self.test.control.publish_port(&self.caller, &self.which(), request).await;
        made.unwrap().token.map(|token| token.expose().to_owned())
    }

    pub async fn revoke(&self, port: u16) {
        self.test.control.revoke_port(&self.caller, &self.which(), port).await.unwrap();
    }

    pub async fn stop(&self) {
        self.test.control.stop_workspace(&self.caller, &self.which(), LONG).await.unwrap();
    }

    pub async fn suspend(&self) {
        self.test.control.suspend_workspace(&self.caller, &self.which(), LONG).await.unwrap();
    }

    pub async fn until_running(&self) {
        let runs = |workspace: &Workspace| matches!(workspace.state, State::Running { .. });
        testing::until(&self.test.control, self.workspace.id, runs).await;
    }

    /// Has a server listen on a port inside.
    pub fn serve(&self, port: u16, site: Router) {
        let guest = self.test.node.sim_guest(self.workspace.id).unwrap();
        let mut connections = guest.serve(port);
        tokio::spawn(async move {
            while let Some(connection) = connections.recv().await {
                let service = TowerToHyperService::new(site.clone());
                tokio::spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    let stream = TokioIo::new(connection);
                    // A visitor may go away at any time.
                    let _ = server.serve_connection_with_upgrades(stream, service).await;
                });
            }
        });
    }

    /// Has somebody listen on a port inside who hands out the head of each request and answers with
    /// these bytes.
    pub async fn raw(&self, port: u16, answer: &'static str) -> mpsc::Receiver<String> {
        let guest = self.test.node.sim_guest(self.workspace.id).unwrap();
        let mut connections = guest.serve(port);
        let (seen, heads) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Some(mut connection) = connections.recv().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if connection.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                let _ = connection.write_all(answer.as_bytes()).await;
                let _ = connection.shutdown().await;
                // Whoever does not look at them lets them go.
                let _ = seen.try_send(String::from_utf8_lossy(&head).into_owned());
            }
        });
        heads
    }

    /// Has a server listen on a port inside that hands out the path of each request.
    pub fn paths(&self, port: u16) -> mpsc::UnboundedReceiver<String> {
        let (seen, paths) = mpsc::unbounded_channel();
        let site = Router::new().fallback(async move |request: Request| {
            let path = request.uri().path().to_owned();
            // The whole body, however long it says it is.
            let _ = axum::body::to_bytes(request.into_body(), usize::MAX).await;
            let _ = seen.send(path);
            "seen"
        });
        self.serve(port, site);
        paths
    }

    /// A WebSocket to `front`, and what it was opened with.
    pub async fn chat(
        &self,
    ) -> (WebSocketStream<TcpStream>, tungstenite::handshake::client::Response) {
        let stream = TcpStream::connect(self.front).await.unwrap();
        tokio_tungstenite::client_async("ws://front.localhost/chat", stream).await.unwrap()
    }

    /// Ends the gateway; everything that was open through it ends with it.
    pub async fn close(self) {
        self.ending.cancel();
        timeout(WITHIN, self.serving).await.unwrap().unwrap();
        timeout(WITHIN, self.previews.ended()).await.unwrap();
    }
}

/// Sends these bytes; answers everything until the end of the connection.
pub async fn h1(ground: &Ground, request: &str) -> String {
    let mut visitor = TcpStream::connect(ground.front).await.unwrap();
    visitor.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Closed with bytes of ours unread, the connection is reset, which is an end as well.
    let _ = timeout(WITHIN, visitor.read_to_end(&mut answer)).await.expect("closed in time");
    String::from_utf8_lossy(&answer).into_owned()
}

/// A connection of HTTP/2 without TLS.
pub async fn h2(ground: &Ground) -> SendRequest<Body> {
    let stream = TcpStream::connect(ground.front).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender
}

/// Everything up to and with this text.
pub async fn read_until(visitor: &mut TcpStream, text: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(text) {
        let count = timeout(WITHIN, visitor.read_buf(&mut read)).await.unwrap().unwrap();
        assert!(count > 0, "ended: {}", String::from_utf8_lossy(&read));
    }
    String::from_utf8(read).unwrap()
}

/// The first line.
pub fn head_of(answer: &str) -> &str {
    answer.lines().next().unwrap_or_default()
}

/// How many answers there are.
pub fn chunks(answer: &str) -> usize {
    answer.matches("HTTP/1.1 ").count()
}
