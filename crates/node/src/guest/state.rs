//! What pausing, saving and cloning a VM need of its guest.

use std::time::Duration;

use skerry_agent_protocol::{REVISION, call as path, message};
use skerry_internal_api::NodeError;
use tokio::time::timeout;

use super::{
    GuestHello, GuestLink,
    connection::{self, Connected},
};

/// Since when the agent has what this file asks for: it came all at once.
const SINCE_REVISION: u16 = 1;
const _: () = assert!(SINCE_REVISION <= REVISION);

/// A guest whose file systems were frozen and that heard nothing more of us thaws by itself after this
/// much of its own time, which stands still while the VM is paused or saved.
const THAW_AFTER: Duration = Duration::from_secs(30);
/// How long taking back a freeze that failed may take.
const UNDONE_WITHIN: Duration = Duration::from_secs(5);
/// How long it may take until a connection that a call broke with is known to be broken.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);

/// How a freeze was when it was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frozen {
    /// Nothing was written from [`GuestLink::freeze`] until now: a copy of the disk that was made
    /// meanwhile is of one moment.
    UntilNow,
    /// The guest has written: its time was over, somebody inside has thawed it, or it was not frozen.
    NoMore,
}

impl GuestLink {
    /// Tells the link that the VM is about to be paused. From now on its time stands still: what is
    /// under way in the guest is not given up however long the pause, nothing is sent that would have
    /// to be answered, and a lost connection is not dialled again. Calls that are made meanwhile wait
    /// for the release, as in a gap between two connections, and fail if it takes long.
    ///
    /// Doing so twice is the same as once.
    pub fn hold(&self) {
        self.shared.hold.hold();
    }

    /// Tells the link that the VM runs again. A connection that turns out to be dead is dialled again.
    pub fn release(&self) {
        self.shared.hold.release();
    }

    /// Gives the guest a new identity, clock and randomness and thaws its file systems, in one round
    /// trip on the connection that is open; if it breaks, the next one does the same. From the moment
    /// of the call the guest is made the new one on every connection. What ran in the guest goes on.
    ///
    /// The same with an unchanged `hello` is what a guest needs after a pause or a restore.
    ///
    /// # Errors
    /// [`NodeError::Timeout`] after `within`; [`NodeError::GuestUnreachable`]; the agent's refusal.
    pub async fn reconfigure(&self, hello: GuestHello, within: Duration) -> Result<(), NodeError> {
        let version = self.shared.set_hello(hello);
        let outcome = timeout(within, self.make_current(version)).await;
        outcome.unwrap_or(Err(NodeError::Timeout {
            step: path::CONFIGURE,
            bound_seconds: within.as_secs(),
        }))
    }

    /// Returns once the guest is what was asked for when `version` was made, or later.
    async fn make_current(&self, version: u64) -> Result<(), NodeError> {
        let shared = &self.shared;
        let _permit = shared.permit(&shared.control_streams).await?;
        loop {
            let mut connected = shared.connected().await?;
            if connected.hello_version >= version {
                return Ok(());
            }
            let (asked, hello) = shared.hello();
            let outcome =
                connection::configure(&mut connected.requests, &hello, &shared.hold).await;
            match outcome {
                Ok(_) => {
                    shared.connected.send_modify(|current| {
                        if let Some(current) = current
                            && current.number == connected.number
                        {
                            current.hello_version = asked;
                        }
                    });
                }
                // The next connection begins with what we wanted to say.
                Err(NodeError::GuestUnreachable(_)) if self.is_lost(&connected).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether this connection has ended. A call that broke with it may know a little earlier.
    async fn is_lost(&self, connected: &Connected) -> bool {
        let mut current = self.shared.connected.subscribe();
        let other = current.wait_for(|current| {
            current.as_ref().is_none_or(|current| current.number != connected.number)
        });
        connected.requests.is_closed() || matches!(timeout(KNOWN_WITHIN, other).await, Ok(Ok(_)))
    }

    /// Closes the link like [`GuestLink::close`] and makes sure that the guest's agent has noticed, so
    /// that it is saved waiting for its next host, however soon the VM is paused after this. A guest
    /// that does not answer within `within` is left all the same, and met a little later then.
    pub async fn leave(&self, within: Duration) {
        self.close().await;
        connection::only_greet(&*self.dial, &self.shared.hello().1, within).await;
    }

    /// Has the guest write everything back to its disks. Done before a freeze, it makes that short.
    ///
    /// # Errors
    /// [`NodeError::Timeout`] after `within`; [`NodeError::GuestUnreachable`];
    /// [`NodeError::Unsupported`] by a guest whose agent is too old.
    pub async fn sync(&self, within: Duration) -> Result<(), NodeError> {
        let message::Empty {} =
            self.ask_newer(path::SYNC, &message::Empty {}, within, "syncing its disks").await?;
        Ok(())
    }

    /// Has the guest write everything back and write nothing more, until [`GuestLink::thaw`] or
    /// [`GuestLink::reconfigure`], until a connection begins, or until half a minute of the guest's
    /// time has passed. The end of the connection changes nothing about it.
    ///
    /// On an error nothing stays frozen. Whoever gives the call up in the middle has to thaw.
    ///
    /// # Errors
    /// As for [`GuestLink::sync`], and the guest's own refusal.
    pub async fn freeze(&self, within: Duration) -> Result<(), NodeError> {
        let thaw_after_ms = u64::try_from(THAW_AFTER.as_millis()).unwrap_or(u64::MAX);
        let question = message::Freeze { thaw_after_ms };
        let frozen =
            self.ask_newer(path::FREEZE, &question, within, "freezing its file systems").await;
        match frozen {
            Ok(message::Empty {}) => Ok(()),
            Err(error @ NodeError::Unsupported(_)) => Err(error),
            Err(error) => {
                // The answer may be all that was lost. If this is lost too the guest thaws by itself.
                let _ = self.thaw(UNDONE_WITHIN).await;
                Err(error)
            }
        }
    }

    /// Lets the guest write again, and tells whether it was frozen until now.
    ///
    /// # Errors
    /// As for [`GuestLink::sync`].
    pub async fn thaw(&self, within: Duration) -> Result<Frozen, NodeError> {
        let message::Thawed { held } = self
            .ask_newer(path::THAW, &message::Empty {}, within, "thawing its file systems")
            .await?;
        Ok(if held { Frozen::UntilNow } else { Frozen::NoMore })
    }

    /// Has the guest grow its root file system to its disk, which was made `disk_size_bytes` large
    /// under it. Returns how many bytes were gained.
    ///
    /// # Errors
    /// As for [`GuestLink::freeze`].
    pub async fn grow_root(
        &self,
        disk_size_bytes: u64,
        within: Duration,
    ) -> Result<u64, NodeError> {
        let question = message::Grow { disk_size_bytes };
        let message::Grown { gained_bytes } =
            self.ask_newer(path::GROW, &question, within, "growing its disk").await?;
        Ok(gained_bytes)
    }

    /// A call that came with the revision of this file, on a stream of its own kind.
    pub(super) async fn ask_newer<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
        &self,
        path: &'static str,
        question: &Q,
        within: Duration,
        what: &str,
    ) -> Result<A, NodeError> {
        let connected = self.shared.connected().await?;
        if connected.revision < SINCE_REVISION {
            return Err(NodeError::Unsupported(format!(
                "{what}: the agent in the guest is older than this node"
            )));
        }
        self.shared.command(path, question, within).await
    }
}
