//! The host's end of the line to a guest's agent: [`GuestLink`].
//!
//! One task owns the connection: it dials, finds the agent with the handshake, configures the guest
//! and dials again whenever the connection breaks. Calls made in a gap wait for the next connection
//! for a bounded time; what was under way when the connection broke fails.
//!
//! A VM that is paused answers nothing and has lost nothing. Whoever pauses it tells its link
//! ([`GuestLink::hold`]), for which time then stands still: nothing under way is given up, however long
//! it takes until [`GuestLink::release`].
//!
//! The guest is a stranger. Everything it sends has a bound (header lists, frames, JSON, listings,
//! what is buffered in all: [`CONNECTION_WINDOW`](skerry_agent_protocol::limits::CONNECTION_WINDOW)
//! bytes for a whole VM), every wait has one, and whatever it does only its own calls fail.

mod api;
mod call;
mod connect;
mod connection;
mod convert;
mod exec;
mod failure;
mod hold;
mod listen;
mod state;
mod template;
#[cfg(test)]
mod tests;
mod volume_files;
mod volumes;
mod workloads;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use skerry_agent_protocol::{call as path, message};
use skerry_internal_api::NodeError;
use skerry_model::Timestamp;
use tokio::{
    sync::{Mutex, Semaphore, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use connection::HANDSHAKE_WITHIN;
use connection::{Connected, keep_connected};
use hold::Hold;
pub use state::Frozen;
pub use template::Prepared;
pub(crate) use volume_files::GuestVolume;

/// Streams that may last: commands and transfers.
const LONG_STREAMS: usize = 112;
/// Connections among them: the rest is for commands and transfers, however many connections somebody opens.
const CONNECTIONS: usize = 96;
/// Streams of short calls, kept apart so that a guest busy with commands can still be asked how it is.
const SHORT_STREAMS: usize = 12;
/// Streams of the node's own calls, kept apart so that a guest can always be asked whether it is there,
/// told to power off and, above all, to thaw: file operations may all be waiting for that. Together they
/// are the protocol's limit.
const CONTROL_STREAMS: usize = 4;
const _: () = assert!(
    LONG_STREAMS + SHORT_STREAMS + CONTROL_STREAMS
        == skerry_agent_protocol::limits::CONCURRENT_STREAMS as usize
);
/// Listings at the same time: an answer may be large, and a guest must not fill the host's memory.
const LISTINGS: usize = 2;
/// How long tasks may take to end after the link was closed.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);
/// A short call.
const SHORT_CALL: Duration = Duration::from_secs(30);

/// Makes connections to one guest's agent.
#[async_trait]
pub trait Dial: Send + Sync {
    /// A new connection, which replaces an earlier one.
    async fn dial(&self) -> Result<Box<dyn skerry_vmm::Channel>, skerry_vmm::VmmError>;
}

/// What makes the guest this workspace's guest. Told to it on every connection.
#[derive(Clone)]
pub struct GuestHello {
    /// A DNS label.
    pub hostname: String,
    /// 32 lower-case hexadecimal digits; empty for a guest that belongs to nobody yet and keeps no
    /// identity.
    pub machine_id: String,
    /// Environment of every process; may hold secrets.
    pub env: BTreeMap<String, String>,
    /// What a command has that does not say it.
    pub unsaid: Unsaid,
    /// Which start of the workspace this is.
    pub incarnation: u64,
    /// Clock and randomness, asked anew for every connection.
    pub fresh: Arc<dyn Fn() -> Fresh + Send + Sync>,
}

impl fmt::Debug for GuestHello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestHello")
            .field("hostname", &self.hostname)
            .field("incarnation", &self.incarnation)
            .finish_non_exhaustive()
    }
}

/// What a command has that does not say it: the image's word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unsaid {
    /// Where it starts; `None` means the user's home.
    pub working_dir: Option<String>,
    /// As which login it runs; `None` means root.
    pub user: Option<String>,
}

/// What must never be the same twice.
pub struct Fresh {
    /// At least 32 random bytes for the guest's kernel.
    pub entropy: Vec<u8>,
    /// The wall clock.
    pub now: Timestamp,
}

/// The line to one guest. [`GuestLink::close`] ends it; a link that is only dropped ends its tasks
/// without waiting for them.
pub struct GuestLink {
    shared: Arc<Shared>,
    dial: Arc<dyn Dial>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

/// What calls and the connection's task share.
struct Shared {
    connected: watch::Sender<Option<Connected>>,
    /// What the guest is to be, and how often that has changed.
    hello: std::sync::Mutex<(u64, Arc<GuestHello>)>,
    hold: Hold,
    long_streams: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    short_streams: Arc<Semaphore>,
    control_streams: Arc<Semaphore>,
    listings: Arc<Semaphore>,
    tasks: TaskTracker,
    closed: CancellationToken,
}

impl Shared {
    fn hello(&self) -> (u64, Arc<GuestHello>) {
        self.hello.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_hello(&self, hello: GuestHello) -> u64 {
        let mut current = self.hello.lock().unwrap_or_else(PoisonError::into_inner);
        *current = (current.0 + 1, Arc::new(hello));
        current.0
    }
}

impl fmt::Debug for GuestLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestLink").field("connected", &self.is_connected()).finish_non_exhaustive()
    }
}

impl GuestLink {
    /// Connects and returns once the guest is configured, which is to say ready.
    ///
    /// # Errors
    /// [`NodeError::Timeout`] (`guest_ready`) after `deadline`; nothing of the link is left then.
    pub async fn open(
        dial: Arc<dyn Dial>,
        hello: GuestHello,
        deadline: Duration,
    ) -> Result<Arc<Self>, NodeError> {
        let shared = Arc::new(Shared {
            connected: watch::Sender::new(None),
            hello: std::sync::Mutex::new((0, Arc::new(hello))),
            hold: Hold::default(),
            long_streams: Arc::new(Semaphore::new(LONG_STREAMS)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            short_streams: Arc::new(Semaphore::new(SHORT_STREAMS)),
            control_streams: Arc::new(Semaphore::new(CONTROL_STREAMS)),
            listings: Arc::new(Semaphore::new(LISTINGS)),
            tasks: TaskTracker::new(),
            closed: CancellationToken::new(),
        });
        let mut connected = shared.connected.subscribe();
        let keeper = tokio::spawn(keep_connected(Arc::clone(&shared), Arc::clone(&dial)));
        let link = Arc::new(Self { shared, dial, keeper: Mutex::new(Some(keeper)) });
        let ready = connected.wait_for(Option::is_some);
        let is_ready = matches!(timeout(deadline, ready).await, Ok(Ok(_)));
        if is_ready {
            return Ok(link);
        }
        link.close().await;
        Err(NodeError::Timeout { step: "guest_ready", bound_seconds: deadline.as_secs() })
    }

    /// Whether the agent is connected and configured at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.connected.borrow().is_some()
    }

    /// Asks the guest to end everything and power itself off. Returns when it has agreed; the VM's
    /// end shows that it is done.
    ///
    /// # Errors
    /// [`NodeError::GuestUnreachable`] and [`NodeError::Timeout`].
    pub async fn power_off(&self) -> Result<(), NodeError> {
        let message::Empty {} =
            self.shared.command(path::POWER_OFF, &message::Empty {}, SHORT_CALL).await?;
        Ok(())
    }

    /// Sets the guest's wall clock to the time it is.
    ///
    /// # Errors
    /// [`NodeError::GuestUnreachable`] and [`NodeError::Timeout`].
    pub async fn sync_clock(&self) -> Result<(), NodeError> {
        let (_, hello) = self.shared.hello();
        for clock in connection::times_to_tell(&hello) {
            let message::Empty {} = self.shared.command(path::CLOCK, &clock, SHORT_CALL).await?;
        }
        Ok(())
    }

    /// Ends the connection and everything that uses it; returns when all of it has ended.
    pub async fn close(&self) {
        self.shared.closed.cancel();
        if let Some(keeper) = self.keeper.lock().await.take() {
            // A task that panicked has ended as well.
            let _ = keeper.await;
        }
        self.shared.tasks.close();
        if timeout(CLOSED_WITHIN, self.shared.tasks.wait()).await.is_err() {
            tracing::error!("tasks of a guest's link did not end in time");
        }
    }
}

impl Drop for GuestLink {
    fn drop(&mut self) {
        self.shared.closed.cancel();
    }
}
