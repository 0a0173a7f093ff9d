//! TCP ports of the guest's loopback that are listened on for somebody outside.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use nix::errno::Errno;
use skerry_agent_protocol::{
    head,
    limits::{ACCEPT_WITHIN_MS, INCOMING_MAX, LISTENERS_MAX, UNPRIVILEGED_PORT_MIN},
    message::{Accept, FailureCode, Incoming, Listen, Listening},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    AgentError,
    body::{self, Answer, RequestBody},
    connect::Connection,
    session::Session,
};

const ACCEPT_WITHIN: Duration = Duration::from_millis(ACCEPT_WITHIN_MS);
/// After a failed accept (no file descriptors, usually).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Announcements that wait for a slow host before nothing more is accepted.
const ANNOUNCEMENTS_WAITING: usize = 1;

/// The listeners of one connection of a host, and who came to them and was not taken over yet.
pub(crate) struct Lobby {
    listeners: Arc<Semaphore>,
    next: AtomicU64,
    guests: Mutex<HashMap<u64, Caller>>,
}

/// Somebody who waits.
struct Caller {
    socket: TcpStream,
    /// The listener's number.
    at: u64,
    _room: OwnedSemaphorePermit,
}

/// Whoever is left must not take it for an orderly end.
fn turn_away(caller: &Caller) {
    let _ = caller.socket.set_zero_linger();
}

impl Default for Lobby {
    fn default() -> Self {
        Self {
            listeners: Arc::new(Semaphore::new(LISTENERS_MAX)),
            next: AtomicU64::new(1),
            guests: Mutex::default(),
        }
    }
}

impl Lobby {
    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<u64, Caller>> {
        // The guarded sections cannot panic halfway through a change.
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A port that is listened on.
pub(crate) struct Listener {
    ipv4: TcpListener,
    /// Not in a guest without IPv6, nor where somebody else has that port.
    ipv6: Option<TcpListener>,
    port: u16,
    number: u64,
    _permit: OwnedSemaphorePermit,
}

/// Listens as `request` says.
pub(crate) async fn open(session: &Arc<Session>, request: Listen) -> Result<Listener, AgentError> {
    let Listen { port, user } = request;
    let permit = Arc::clone(&session.lobby.listeners).try_acquire_owned().map_err(|_| {
        let message = format!("{LISTENERS_MAX} ports are listened on already");
        AgentError::refused(FailureCode::TooLarge, message)
    })?;
    let guest = Arc::clone(&session.guest);
    let account = session.guest.blocking(move || guest.account(&user)).await?;
    if (1..UNPRIVILEGED_PORT_MIN).contains(&port) && account.uid != 0 {
        let message = format!("port {port}: ports below {UNPRIVILEGED_PORT_MIN} are root's");
        return Err(AgentError::refused(FailureCode::PermissionDenied, message));
    }
    let refused = |error: io::Error| refusal(port, &error);
    let ipv4 = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(refused)?;
    let port = ipv4.local_addr().map_err(refused)?.port();
    let ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await.ok();
    Ok(Listener { ipv4, ipv6, port, number: session.lobby.number(), _permit: permit })
}

fn refusal(port: u16, error: &io::Error) -> AgentError {
    if error.raw_os_error().map(Errno::from_raw) == Some(Errno::EADDRINUSE) {
        let message = format!("port {port}: somebody in the guest listens on it");
        return AgentError::refused(FailureCode::Busy, message);
    }
    AgentError::from_io(&format!("port {port}"), error)
}

/// A connection that was announced, for the host to carry on.
pub(crate) fn take(session: &Session, request: Accept) -> Result<Connection, AgentError> {
    let caller = session.lobby.guests().remove(&request.connection);
    caller.map(|caller| Connection::from(caller.socket)).ok_or_else(|| {
        let message = "nobody waits under this number any more";
        AgentError::refused(FailureCode::ConnectTimeout, message)
    })
}

impl Listener {
    /// Answers with the port and then with each connection that comes, until the host hangs up.
    pub(crate) fn run(self, session: &Arc<Session>, input: RequestBody) -> Answer {
        let (output, announcements) = mpsc::channel(ANNOUNCEMENTS_WAITING);
        session.tasks.spawn(input.discard());
        let listening = Arc::clone(session);
        session.tasks.spawn(async move {
            tokio::select! {
                () = self.announce(&listening, &output) => {}
                () = output.closed() => {}
                () = listening.ended.cancelled() => {}
            }
            let number = self.number;
            // Whoever is turned away may find the port free.
            drop(self);
            let mut guests = listening.lobby.guests();
            guests.values().filter(|caller| caller.at == number).for_each(turn_away);
            guests.retain(|_, caller| caller.at != number);
        });
        body::stream(ReceiverStream::new(announcements))
    }

    async fn announce(&self, session: &Arc<Session>, output: &mpsc::Sender<io::Result<Bytes>>) {
        let room = Arc::new(Semaphore::new(INCOMING_MAX));
        let Ok(listening) = head::encode(&Listening { port: self.port }) else { return };
        if output.send(Ok(listening)).await.is_err() {
            return;
        }
        loop {
            // More wait in the kernel. The semaphore is never closed.
            let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
            let (socket, peer) = self.accept().await;
            let connection = session.lobby.number();
            let caller = Caller { socket, at: self.number, _room: place };
            session.lobby.guests().insert(connection, caller);
            session.tasks.spawn(forget(Arc::clone(session), connection));
            let Ok(incoming) = head::encode(&Incoming { connection, peer }) else { return };
            if output.send(Ok(incoming)).await.is_err() {
                return;
            }
        }
    }

    async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            let ipv6 = async {
                match &self.ipv6 {
                    Some(listener) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            let accepted = tokio::select! {
                accepted = self.ipv4.accept() => accepted,
                accepted = ipv6 => accepted,
            };
            match accepted {
                Ok(accepted) => return accepted,
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}

/// Turns away whom nobody takes over.
async fn forget(session: Arc<Session>, connection: u64) {
    tokio::select! {
        () = sleep(ACCEPT_WITHIN) => {}
        () = session.ended.cancelled() => {}
    }
    if let Some(caller) = session.lobby.guests().remove(&connection) {
        turn_away(&caller);
    }
}
