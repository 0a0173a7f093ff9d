//! The SSH server.
//!
//! Nothing of SSH runs in the guest: commands, terminals, files and connections are asked of its
//! [`GuestApi`](skerry_internal_api::GuestApi), so that any image can be entered.
//!
//! | who | is |
//! | --- | --- |
//! | `<workspace>@gateway` | `root` in that workspace, by a key of the account |
//! | `root@gateway` | nobody: may do nothing but connect to `<workspace>` port 22 through the gateway (`ssh -J`) |
//! | `<user>@<workspace>`, through that | that user of the guest, by a key of the account; answered with a host key of the workspace's own |
//!
//! A name that leads nowhere and a key that opens nothing are refused alike and equally late; through
//! the jump host a workspace that is not there answers like one that is, with a host key, and lets
//! nobody in.

mod channel;
mod command;
mod connection;
mod forward;
mod guard;
mod host_keys;
mod intake;
mod remote;
mod sftp;
mod stream;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use russh::{Preferred, SshId, server};
use skerry_internal_api::RouteApi;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use connection::Door;
use guard::Guard;
pub use host_keys::{HostKeyError, HostKeys};

/// How long somebody may take to show a key that opens something.
const LOGIN_WITHIN: Duration = Duration::from_secs(60);
/// How long a refusal takes, whatever was wrong.
const REFUSED_AFTER: Duration = Duration::from_millis(300);
/// Tries of one connection. Clients offer every key they have.
const LOGIN_TRIES: usize = 16;
/// A client that says nothing is asked whether it is there this often,
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
/// and given up after so many times.
const KEEPALIVE_MOST: usize = 10;
/// A client that takes no bytes for so long is given up, whatever it says.
const STUCK_AFTER: Duration = Duration::from_secs(900);
/// What a client may send on a channel before it is told to go on.
pub(crate) const WINDOW_BYTES: u32 = 1024 * 1024;
const PACKET_BYTES: u32 = 32 * 1024;
/// Events of all channels of a connection that wait to be sent.
const EVENTS_WAITING: usize = 16;
/// After a failed accept (no file descriptors, usually).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client may take to close its side when it was told to go.
const PARTING_WITHIN: Duration = Duration::from_secs(1);
/// How long open sessions may take to notice that the server ends.
const ENDED_WITHIN: Duration = Duration::from_secs(2);

/// What every connection shares.
pub(crate) struct Gateway {
    routes: Arc<dyn RouteApi>,
    keys: HostKeys,
    guard: Guard,
    tasks: TaskTracker,
    ending: CancellationToken,
}

/// Serves SSH on `listener` until `ending` is cancelled; sessions that are open then are closed.
pub async fn serve(
    listener: TcpListener,
    routes: Arc<dyn RouteApi>,
    keys: HostKeys,
    ending: CancellationToken,
) {
    let gateway = Arc::new(Gateway {
        routes,
        keys,
        guard: Guard::default(),
        tasks: TaskTracker::new(),
        ending: ending.clone(),
    });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ending.cancelled() => break,
        };
        match accepted {
            Ok((socket, peer)) => gateway.admit(socket, peer),
            Err(error) => {
                tracing::warn!(%error, "an SSH connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    gateway.tasks.close();
    if timeout(ENDED_WITHIN, gateway.tasks.wait()).await.is_err() {
        tracing::warn!("SSH sessions did not end within {ENDED_WITHIN:?}");
    }
}

impl Gateway {
    fn admit(self: &Arc<Self>, socket: TcpStream, peer: SocketAddr) {
        let Some(visit) = self.guard.admit(peer.ip()) else {
            tracing::debug!(peer = %peer.ip(), "an SSH connection was refused: too many");
            return;
        };
        // Keystrokes wait for nobody.
        let _ = socket.set_nodelay(true);
        let gateway = Arc::clone(self);
        self.tasks.spawn(async move {
            let key = gateway.keys.gateway().clone();
            gateway.converse(socket, key, Door::Outer, Arc::new(visit), peer).await;
        });
    }

    /// Speaks SSH on a stream until either side ends it.
    async fn converse<S>(
        self: &Arc<Self>,
        stream: S,
        key: russh::keys::PrivateKey,
        door: Door,
        visit: Arc<guard::Visit>,
        peer: SocketAddr,
    ) where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let ended = self.ending.child_token();
        let _end_all = ended.clone().drop_guard();
        let config = config(key, &door);
        let handler =
            connection::Connection::new(self, door, Arc::clone(&visit), peer, ended.clone());
        // Its task is russh's own; without its stream it ends.
        let severed = CancellationToken::new();
        let _sever = severed.clone().drop_guard();
        let stream = stream::Severable::new(stream, severed);
        let began = timeout(LOGIN_WITHIN, server::run_stream(config, stream, handler));
        let mut session = tokio::select! {
            began = began => match began {
                Ok(Ok(session)) => session,
                Ok(Err(_)) | Err(_) => return,
            },
            () = ended.cancelled() => return,
        };
        let handle = session.handle();
        let too_late = async {
            if timeout(LOGIN_WITHIN, visit.recognised()).await.is_err() {
                return;
            }
            std::future::pending().await
        };
        let why = tokio::select! {
            outcome = &mut session => {
                if let Err(error) = outcome {
                    tracing::debug!(peer = %peer.ip(), %error, "an SSH connection broke");
                }
                return;
            }
            () = too_late => "nobody has logged in",
            () = ended.cancelled() => "the server is ending",
        };
        let bye = handle.disconnect(russh::Disconnect::ByApplication, why.into(), String::new());
        // Whoever does not listen is left.
        let _ = timeout(PARTING_WITHIN, async { tokio::join!(bye, session) }).await;
    }
}

fn config(key: russh::keys::PrivateKey, door: &Door) -> Arc<server::Config> {
    // What clients are told to sign with (RFC 8308): RSA with SHA-2 alone.
    let signatures = Preferred::DEFAULT.key.iter();
    let signatures = signatures.filter(|algorithm| !connection::is_weak(algorithm)).cloned();
    let preferred = Preferred { key: signatures.collect(), ..Preferred::DEFAULT };
    Arc::new(server::Config {
        server_id: SshId::Standard("SSH-2.0-Skerry".into()),
        methods: door.methods(),
        preferred,
        auth_rejection_time: REFUSED_AFTER,
        // Clients ask with no credential first to learn what is accepted.
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        window_size: WINDOW_BYTES,
        maximum_packet_size: PACKET_BYTES,
        event_buffer_size: EVENTS_WAITING,
        max_auth_attempts: LOGIN_TRIES,
        inactivity_timeout: Some(STUCK_AFTER),
        keepalive_interval: Some(KEEPALIVE_EVERY),
        keepalive_max: KEEPALIVE_MOST,
        nodelay: true,
        ..server::Config::default()
    })
}

/// The address as it is counted: an IPv6 site has 2^64 of them.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => IpAddr::V4(address),
            None => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6([a, b, c, d, 0, 0, 0, 0].into())
            }
        },
    }
}
