//! One VM: an owner task that does everything to it, one thing after the other, and what others may
//! see and ask.
//!
//! A bring-up, a suspension and a snapshot can be cancelled from outside (a stop must not wait for a
//! guest that hangs, nor a resume for memory that is being written); everything else runs to its end
//! once begun, whoever asked and whether or not they still wait.

pub(crate) mod bring_up;
pub(crate) mod link;
pub(crate) mod owner;
pub(crate) mod tear_down;

mod checkpoint;
mod flatten;
mod growth;
mod pause;
mod snapshot;
mod stillness;
mod suspend;
pub(crate) mod volumes;

pub(crate) use self::{
    snapshot::{Top, settle_push},
    stillness::CPUS_WITHIN,
    suspend::{cancel_save, forget_memory},
};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skerry_internal_api::{
    GuestApi, Injections, NodeError, SnapshotContents, SnapshotInfo, StopMode, VmReport, VmSpec,
};
use skerry_model::{
    CheckpointId, Incarnation, NetworkPolicy, SnapshotId, VolumeId, VolumeMount, WorkspaceId,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::guest::GuestVolume;

/// Requests that may wait for one VM. A caller beyond that waits to be let in.
const MAILBOX: usize = 16;

/// The answer to a request.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, NodeError>>;

/// What can be asked of an owner.
pub(crate) enum Request {
    /// Bring the VM up.
    Run {
        spec: Box<VmSpec>,
        cancel: CancellationToken,
        answer: Answer<VmReport>,
    },
    /// Bring it down, if it is of this incarnation or older.
    Stop {
        through: Incarnation,
        mode: StopMode,
        answer: Answer<()>,
    },
    /// Stop its CPUs, if it is of this incarnation.
    Pause {
        incarnation: Incarnation,
        answer: Answer<VmReport>,
    },
    /// Let it run on.
    Resume {
        incarnation: Incarnation,
        answer: Answer<VmReport>,
    },
    /// Save its memory and end it.
    Suspend {
        incarnation: Incarnation,
        cancel: CancellationToken,
        answer: Answer<VmReport>,
    },
    /// Keep what it is now.
    Snapshot {
        snapshot_id: SnapshotId,
        contents: SnapshotContents,
        cancel: CancellationToken,
        answer: Answer<SnapshotInfo>,
    },
    /// Change what it may do on the network.
    SetNetworkPolicy {
        incarnation: Incarnation,
        policy: Arc<NetworkPolicy>,
        answer: Answer<()>,
    },
    SetInjections {
        incarnation: Incarnation,
        injections: Arc<Injections>,
        answer: Answer<()>,
    },
    /// Give it a volume.
    AttachVolume {
        incarnation: Incarnation,
        mount: Arc<VolumeMount>,
        answer: Answer<()>,
    },
    /// Take a volume away.
    DetachVolume {
        incarnation: Incarnation,
        volume_id: VolumeId,
        answer: Answer<()>,
    },
    /// Keep what a volume is now that it writes.
    Checkpoint {
        volume_id: VolumeId,
        checkpoint_id: CheckpointId,
        answer: Answer<()>,
    },
    /// The files of a volume that it writes.
    VolumeFiles {
        volume_id: VolumeId,
        answer: Answer<GuestVolume>,
    },
    /// Make a volume that it writes larger.
    GrowVolume {
        volume_id: VolumeId,
        size_bytes: u64,
        answer: Answer<()>,
    },
    /// Make its disk as large as this says.
    GrowDisk {
        spec: Arc<VmSpec>,
        answer: Answer<()>,
    },
    /// Remove everything.
    Delete {
        answer: Answer<()>,
    },
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
    /// What was asked for, can be cancelled and has not ended.
    cancellable: Mutex<Vec<Cancellable>>,
}

/// What can be given up while it is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undertaking {
    /// A bring-up.
    Start,
    /// A suspension.
    Suspension,
    /// A snapshot.
    Snapshot,
}

impl Undertaking {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Start, Self::Suspension, Self::Snapshot];
}

/// One of them, asked for and not ended.
struct Cancellable {
    undertaking: Undertaking,
    incarnation: Incarnation,
    token: CancellationToken,
}

impl Slot {
    /// A slot and the mailbox's other end.
    pub fn new(workspace_id: WorkspaceId) -> (Arc<Self>, mpsc::Receiver<Request>) {
        let (mailbox, requests) = mpsc::channel(MAILBOX);
        let slot = Self {
            workspace_id,
            mailbox,
            status: watch::Sender::new(Status::default()),
            cancellable: Mutex::default(),
        };
        (Arc::new(slot), requests)
    }

    /// Notes that this is asked for; it is cancelled with `parent`, or by [`Slot::cancel`].
    pub fn announce(
        &self,
        undertaking: Undertaking,
        incarnation: Incarnation,
        parent: &CancellationToken,
    ) -> CancellationToken {
        let token = parent.child_token();
        let noted = Cancellable { undertaking, incarnation, token: token.clone() };
        self.cancellable().push(noted);
        token
    }

    /// Cancels every one of these asked for until now for a start of which `of` is true.
    pub fn cancel(&self, undertakings: &[Undertaking], of: impl Fn(Incarnation) -> bool) {
        for noted in self.cancellable().iter() {
            if undertakings.contains(&noted.undertaking) && of(noted.incarnation) {
                noted.token.cancel();
            }
        }
    }

    /// Forgets what has ended: its token has no other holder that matters.
    pub fn forget(&self, ended: &CancellationToken) {
        // A cancelled token marks the entry; its clone here is the only one left to compare with.
        ended.cancel();
        self.cancellable().retain(|noted| !noted.token.is_cancelled());
    }

    /// The start it had when it was last looked at.
    pub fn incarnation(&self) -> Option<Incarnation> {
        Some(self.status.borrow().report.as_ref()?.incarnation)
    }

    fn cancellable(&self) -> MutexGuard<'_, Vec<Cancellable>> {
        self.cancellable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
