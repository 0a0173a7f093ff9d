//! One VM: an owner task that does everything to it, one thing after the other, and what others may
//! see and ask.
//!
//! A bring-up can be cancelled from outside (a stop must not wait for a guest that hangs); everything
//! else runs to its end once begun, whoever asked and whether or not they still wait.

pub(crate) mod bring_up;
pub(crate) mod link;
pub(crate) mod owner;
pub(crate) mod tear_down;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skerry_internal_api::{GuestApi, NodeError, StopMode, VmReport, VmSpec};
use skerry_model::{Incarnation, WorkspaceId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Requests that may wait for one VM. A caller beyond that waits to be let in.
const MAILBOX: usize = 16;

/// The answer to a request.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, NodeError>>;

/// What can be asked of an owner.
pub(crate) enum Request {
    /// Bring the VM up.
    Run { spec: Box<VmSpec>, cancel: CancellationToken, answer: Answer<VmReport> },
    /// Bring it down, if it is of this incarnation or older.
    Stop { through: Incarnation, mode: StopMode, answer: Answer<()> },
    /// Remove everything.
    Delete { answer: Answer<()> },
}

/// What others see of a VM without asking its owner.
#[derive(Clone, Default)]
pub(crate) struct Status {
    /// `None` when there is nothing on this node.
    pub report: Option<VmReport>,
    /// The inside, once the guest answered.
    pub guest: Option<Arc<dyn GuestApi>>,
}

/// A VM as the node's register has it.
pub(crate) struct Slot {
    pub workspace_id: WorkspaceId,
    pub mailbox: mpsc::Sender<Request>,
    pub status: watch::Sender<Status>,
    /// Starts that were asked for and have not ended.
    starts: Mutex<Vec<(Incarnation, CancellationToken)>>,
}

impl Slot {
    /// A slot and the mailbox's other end.
    pub fn new(workspace_id: WorkspaceId) -> (Arc<Self>, mpsc::Receiver<Request>) {
        let (mailbox, requests) = mpsc::channel(MAILBOX);
        let slot = Self {
            workspace_id,
            mailbox,
            status: watch::Sender::new(Status::default()),
            starts: Mutex::default(),
        };
        (Arc::new(slot), requests)
    }

    /// Notes a start that is asked for; it is cancelled with `parent`, by a stop, a deletion or a
    /// newer start.
    pub fn announce_start(
        &self,
        incarnation: Incarnation,
        parent: &CancellationToken,
    ) -> CancellationToken {
        let token = parent.child_token();
        self.starts().push((incarnation, token.clone()));
        token
    }

    /// Cancels every start asked for until now of this incarnation or an older one.
    pub fn cancel_starts(&self, through: Incarnation) {
        for (incarnation, token) in self.starts().iter() {
            if *incarnation <= through {
                token.cancel();
            }
        }
    }

    /// Forgets starts that have ended: their tokens have no other holder that matters.
    pub fn forget_start(&self, ended: &CancellationToken) {
        // A cancelled token marks the entry; its clone here is the only one left to compare with.
        ended.cancel();
        self.starts().retain(|(_, token)| !token.is_cancelled());
    }

    fn starts(&self) -> MutexGuard<'_, Vec<(Incarnation, CancellationToken)>> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
