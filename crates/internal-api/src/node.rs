//! What control asks of a node. Every call is idempotent: repeating it after a lost answer is safe.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use skerry_model::{
    CheckpointId, EnvVar, HeldMount, Incarnation, NetworkPolicy, NodeId, OutboundProxy,
    PrivateAddress, Shape, SnapshotId, Timestamp, VolumeId, VolumeMount, WorkspaceId,
    spec::{ImageDigest, ImageRef, LogRetention},
};
use tokio::sync::broadcast;

pub use skerry_model::{SnapshotContents, StartFrom, StartPath};

pub use crate::network::{EgressRefusal, EgressRefusals, NodeNetwork, RefusedEgress};

use crate::{
    ByteStream, GuestApi, InjectedRequest, Injections, NodeDoctor, NodeError, VolumeFiles,
    VolumeInfo,
};

/// What the node has to run for a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// For which workspace.
    pub workspace_id: WorkspaceId,
    /// For which start.
    pub incarnation: Incarnation,
    /// The guest's host name: a DNS label.
    pub hostname: String,
    /// The image its disk starts from (used only the first time; the disk is kept after).
    pub image_digest: ImageDigest,
    /// The size.
    pub shape: Shape,
    /// Environment of every process.
    pub env: Vec<EnvVar>,
    /// What happens to the old console log.
    pub log_retention: LogRetention,
    /// What it begins with.
    #[serde(default)]
    pub start_from: StartFrom,
    /// What is mounted when the guest is ready. From saved memory they are what they were.
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
}

/// A snapshot as the node has it: immutable and complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Which.
    pub id: SnapshotId,
    /// Of which workspace it was taken.
    pub workspace_id: WorkspaceId,
    /// What it contains.
    pub contents: SnapshotContents,
    /// The shape of the machine whose memory it holds.
    pub shape: Shape,
    /// The image at the bottom of its disk.
    pub image_digest: ImageDigest,
    /// Bytes on the node's disk that are the snapshot's own, memory included.
    pub size_bytes: u64,
    /// How long the guest stood still for it; zero for a stopped one.
    pub blackout: Duration,
    /// When it was complete.
    pub created_at: Timestamp,
}

/// How starts went since the node was opened, and what is ready for the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartStatistics {
    /// Starts that took over a VM of the pool.
    pub pool_hits: u64,
    /// Restored from a template.
    pub template_restores: u64,
    /// Booted.
    pub boots: u64,
    /// Boots that happened because a restore failed.
    pub restore_fallbacks: u64,
    /// Resumed from saved memory or a snapshot's.
    pub memory_restores: u64,
    /// Those of them that did not load a snapshot's memory but map it, shared with others.
    pub memory_clones: u64,
    /// Templates on disk.
    pub templates: u64,
    /// VMs that wait in the pool, restored and paused.
    pub pool_warm: u64,
    /// Processes that wait in the pool for a state.
    pub pool_parked: u64,
}

/// How far a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmPhase {
    /// Being brought up.
    Starting,
    /// The guest answered its hello.
    Running,
    /// Virtual CPUs stopped.
    Paused,
    /// Memory is being saved; a resume cancels it.
    Suspending,
    /// No process; disk and saved memory are there.
    Suspended,
    /// Being shut down.
    Stopping,
    /// No process; the disk is there.
    Stopped,
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "exit", rename_all = "snake_case")]
pub enum VmExit {
    /// The guest powered off (by itself or because it was asked to).
    PoweredOff,
    /// The guest asked for a reboot; the node does not reboot by itself.
    Rebooted,
    /// The hypervisor process ended in another way.
    Crashed {
        /// What is known, fit to be shown.
        reason: String,
    },
}

/// What the node knows of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmReport {
    /// For which workspace.
    pub workspace_id: WorkspaceId,
    /// For which start.
    pub incarnation: Incarnation,
    /// How far it is.
    pub phase: VmPhase,
    /// When the guest became ready.
    pub ready_at: Option<Timestamp>,
    /// The hypervisor's process id.
    pub pid: Option<u32>,
    /// How the last VM of this workspace ended, when it is stopped and that is known.
    pub last_exit: Option<VmExit>,
    /// How it came to run, while it runs and that is known.
    pub start_path: Option<StartPath>,
    /// Under which address other workspaces of the node see it, for as long as it exists; `None` on a
    /// node without a network.
    #[serde(default)]
    pub private_address: Option<PrivateAddress>,
    /// The volumes it has or may have, in order of slots; none without a process.
    #[serde(default)]
    pub volumes: Vec<HeldMount>,
}

/// Which log of a workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogSource {
    /// The guest's serial console: kernel and agent.
    Console,
    /// Commands run through exec without a terminal: the command line, its output, its exit.
    Commands,
}

/// How to bring a VM to a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Ask the guest to power off; kill it after this long.
    Graceful {
        /// How long to wait for the guest.
        within: Duration,
    },
    /// Kill it at once.
    Kill,
}

/// Something happened on the node without control asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// A VM ended.
    Exited {
        /// Whose.
        workspace_id: WorkspaceId,
        /// Which start.
        incarnation: Incarnation,
        /// How.
        exit: VmExit,
    },
}

/// An image on the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Its catalogue name.
    pub name: ImageRef,
    /// Its content digest.
    pub digest: ImageDigest,
    /// One line for people.
    pub description: String,
    /// `os`, `runtime`...
    pub category: String,
    /// Size of the base disk file in bytes, as allocated.
    pub size_bytes: u64,
    /// When it was built.
    pub built_at: Timestamp,
}

/// How far a pull of an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullStep {
    /// Others are pulled first.
    Waiting,
    /// The registry is asked what the reference means.
    Resolving,
    /// Layers are transferred.
    Downloading,
    /// Layers are verified and merged.
    Unpacking,
    /// The disk is written.
    Building,
}

/// A pull of an image that is under way or has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePull {
    /// The reference in full, which is the image's name.
    pub reference: String,
    /// How far it is, or was when it ended.
    pub step: PullStep,
    /// Bytes of layers that are there.
    pub done_bytes: u64,
    /// Bytes of layers in all; 0 while that is not known.
    pub total_bytes: u64,
    /// How it ended; `None` while it is under way.
    pub outcome: Option<Result<ImageInfo, NodeError>>,
}

/// What the node could still take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeCapacity {
    /// Host CPUs.
    pub cpus: u32,
    /// Host memory that guests may use in all, in MiB.
    pub memory_mib: u64,
    /// Guest memory promised to VMs that run or start, in MiB.
    pub memory_promised_mib: u64,
    /// Free space where disks live, in MiB.
    pub disk_free_mib: u64,
}

/// One machine that runs VMs.
#[async_trait]
pub trait NodeApi: Send + Sync {
    /// Which node this is.
    fn id(&self) -> NodeId;

    /// Makes the VM of `spec` run and returns once the guest is ready. A VM of the same incarnation
    /// that runs already is returned as it is; one of an older incarnation is stopped first. On an
    /// error nothing of this incarnation is left but the workspace's disk.
    ///
    /// How many start at a time is the node's decision, which alone knows what a start will cost: one
    /// that is served by a VM that waits for it does not wait behind others that boot. See
    /// [`NodeApi::awaits_turn`].
    async fn ensure_running(&self, spec: VmSpec) -> Result<VmReport, NodeError>;

    /// Brings the workspace's VM to a stop if its incarnation is `incarnation` or older; keeps the
    /// disk. Stopping what does not run is a success. Cancels a bring-up under way.
    async fn ensure_stopped(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        mode: StopMode,
    ) -> Result<(), NodeError>;

    /// Stops the virtual CPUs of the VM of this incarnation; memory stays resident. One that is
    /// paused already is returned as it is.
    async fn ensure_paused(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
    ) -> Result<VmReport, NodeError> {
        let _ = (workspace_id, incarnation);
        Err(NodeError::Unsupported("pausing".to_owned()))
    }

    /// Lets the paused VM of this incarnation run on, its clock set, and returns once the guest
    /// answers. Cancels a suspension under way, unless the memory is saved already: then
    /// [`NodeError::NotRunning`], and a start from [`StartFrom::SavedMemory`] is the way on. One
    /// that runs already is returned as it is.
    async fn ensure_resumed(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
    ) -> Result<VmReport, NodeError> {
        let _ = (workspace_id, incarnation);
        Err(NodeError::Unsupported("resuming".to_owned()))
    }

    /// Saves the memory of the VM of this incarnation durably and ends the process. Returns when
    /// phase [`VmPhase::Suspended`] is reached; that it is there already is a success. On an error
    /// or a cancellation ([`NodeError::Cancelled`]) the VM runs (or is paused) as before.
    async fn ensure_suspended(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
    ) -> Result<VmReport, NodeError> {
        let _ = (workspace_id, incarnation);
        Err(NodeError::Unsupported("suspending".to_owned()))
    }

    /// Takes a snapshot under an identifier chosen by the caller. One of that identifier that is
    /// there already is returned as it is. The VM goes on as before; on an error nothing of the
    /// snapshot is left.
    async fn take_snapshot(
        &self,
        workspace_id: WorkspaceId,
        snapshot_id: SnapshotId,
        contents: SnapshotContents,
    ) -> Result<SnapshotInfo, NodeError> {
        let _ = (workspace_id, snapshot_id, contents);
        Err(NodeError::Unsupported("snapshots".to_owned()))
    }

    /// Removes a snapshot. Workspaces that were made from it are not touched. Removing what is not
    /// there is a success.
    async fn ensure_snapshot_deleted(&self, snapshot_id: SnapshotId) -> Result<(), NodeError> {
        let _ = snapshot_id;
        Err(NodeError::Unsupported("snapshots".to_owned()))
    }

    /// The complete snapshots on the node, in no order.
    async fn snapshots(&self) -> Vec<SnapshotInfo> {
        Vec::new()
    }

    /// Makes a volume with an empty file system; one of this identifier and size that is there is a
    /// success. On an error nothing of it is left.
    async fn ensure_volume(&self, id: VolumeId, size_bytes: u64) -> Result<(), NodeError> {
        let _ = (id, size_bytes);
        Err(NodeError::Unsupported("volumes".to_owned()))
    }

    /// Makes a checkpoint of a volume: what is on it now, kept. One of this identifier that is there is a
    /// success. Where a guest writes the volume it stands still for that moment, its file systems written
    /// back. On an error there is no such checkpoint.
    ///
    /// # Errors
    /// [`NodeError::NoSuchVolume`]; [`NodeError::NotRunning`] when the VM that writes it stands still.
    async fn ensure_checkpoint(
        &self,
        volume_id: VolumeId,
        checkpoint_id: CheckpointId,
    ) -> Result<(), NodeError> {
        let _ = (volume_id, checkpoint_id);
        Err(NodeError::Unsupported("checkpoints of volumes".to_owned()))
    }

    /// Removes a checkpoint; who reads it keeps what it has. Removing what is not there is a success.
    async fn ensure_checkpoint_deleted(
        &self,
        volume_id: VolumeId,
        checkpoint_id: CheckpointId,
    ) -> Result<(), NodeError> {
        let _ = (volume_id, checkpoint_id);
        Err(NodeError::Unsupported("checkpoints of volumes".to_owned()))
    }

    /// Removes a volume and its checkpoints. Removing what is not there is a success.
    ///
    /// # Errors
    /// [`NodeError::VolumeInUse`] while a VM writes it. One that is only read goes, and its readers
    /// keep what they have.
    async fn ensure_volume_deleted(&self, id: VolumeId) -> Result<(), NodeError> {
        let _ = id;
        Err(NodeError::Unsupported("volumes".to_owned()))
    }

    /// The complete volumes on the node, in no order.
    async fn volumes(&self) -> Result<Vec<VolumeInfo>, NodeError> {
        Ok(Vec::new())
    }

    /// Puts a volume into the running VM of this incarnation and has its guest mount it. What is mounted
    /// already is a success. On an error the VM does not have it.
    ///
    /// # Errors
    /// [`NodeError::NotRunning`], also for a VM that is paused; [`NodeError::NoSuchVolume`];
    /// [`NodeError::NoSuchCheckpoint`]; [`NodeError::VolumeInUse`]; the guest's refusal.
    async fn ensure_volume_attached(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        mount: VolumeMount,
    ) -> Result<(), NodeError> {
        let _ = (workspace_id, incarnation, mount);
        Err(NodeError::Unsupported("volumes".to_owned()))
    }

    /// Has the guest write the volume back and unmount it, and takes it out of the VM. One that the VM
    /// does not have is a success. A guest that refuses (something in it uses the volume) keeps it.
    async fn ensure_volume_detached(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        volume_id: VolumeId,
    ) -> Result<(), NodeError> {
        let _ = (workspace_id, incarnation, volume_id);
        Err(NodeError::Unsupported("volumes".to_owned()))
    }

    /// The files of a volume: by the VM that writes it, or, while none has it, by one of the node's own
    /// that has nothing else. Whoever attaches the volume takes it from there at once.
    ///
    /// # Errors
    /// [`NodeError::NoSuchVolume`]; [`NodeError::NotRunning`] when the VM that writes it stands still, is
    /// saved, or is on its way; [`NodeError::NoCapacity`].
    async fn volume_files(&self, id: VolumeId) -> Result<Arc<dyn VolumeFiles>, NodeError> {
        let _ = id;
        Err(NodeError::Unsupported("files of volumes".to_owned()))
    }

    /// Makes a volume at least so large; a success when it is. Where a VM writes it, its file system has
    /// grown when this returns, else it grows when it is mounted next. On an error the volume has its old
    /// size or its new one, and nothing that is on it is lost.
    ///
    /// # Errors
    /// [`NodeError::NoSuchVolume`]; [`NodeError::NotRunning`] when the VM that writes it stands still.
    async fn ensure_volume_size(&self, id: VolumeId, size_bytes: u64) -> Result<(), NodeError> {
        let _ = (id, size_bytes);
        Err(NodeError::Unsupported("growing volumes".to_owned()))
    }

    /// Makes the disk of the running VM of this incarnation so large as `spec`'s shape says, and its root
    /// file system with it; never shrinks. What is that large is a success. Later starts have at least
    /// that size.
    ///
    /// # Errors
    /// [`NodeError::NotRunning`], also for a VM that is paused; the guest's refusal.
    async fn ensure_disk_size(&self, spec: VmSpec) -> Result<(), NodeError> {
        let _ = spec;
        Err(NodeError::Unsupported("growing disks".to_owned()))
    }

    /// How starts went.
    async fn start_statistics(&self) -> StartStatistics {
        StartStatistics::default()
    }

    /// What VMs are given of the network; `None`: they have none. Always the same answer.
    fn network(&self) -> Option<NodeNetwork> {
        None
    }

    /// What the workspace's VM wanted of the network and was refused; `None` without a VM that has a
    /// network and a policy.
    async fn egress_refusals(
        &self,
        workspace_id: WorkspaceId,
    ) -> Result<Option<EgressRefusals>, NodeError> {
        let _ = workspace_id;
        Ok(None)
    }

    /// Changes what the running VM of this incarnation may do on the network, all of it at the same
    /// moment. What is not permitted any more ends, also in connections that exist; the others go
    /// on. Every start begins with a policy that permits nothing.
    async fn set_network_policy(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        policy: NetworkPolicy,
    ) -> Result<(), NodeError> {
        let _ = (workspace_id, incarnation, policy);
        Err(NodeError::Unsupported("networks".to_owned()))
    }

    /// Asks a proxy for a connection, in the way that guests' connections are made through it, and ends
    /// that: whether it makes them, and takes these credentials.
    ///
    /// # Errors
    /// [`NodeError::Invalid`] with field `proxy`, in words for whoever named it; it is not tried again.
    async fn check_proxy(&self, proxy: OutboundProxy) -> Result<(), NodeError> {
        let _ = proxy;
        Err(NodeError::Unsupported("networks".to_owned()))
    }

    /// Changes what requests of the guest of the running VM of this incarnation are given on their way
    /// out, at the same moment for all of them: for those that begin from now on, also over connections
    /// that exist; what is under way to hosts that are not served any more ends. To reach the hosts, a
    /// policy has to permit that. Every start begins with nothing.
    async fn set_injections(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
        injections: Injections,
    ) -> Result<(), NodeError> {
        let _ = (workspace_id, incarnation, injections);
        Err(NodeError::Unsupported("networks".to_owned()))
    }

    /// Requests that were given something, from now on. A receiver that lags loses the oldest.
    fn injected_requests(&self) -> broadcast::Receiver<InjectedRequest> {
        broadcast::channel(1).1
    }

    /// Removes everything the node has of the workspace: VM, disk, logs. Removing what is not there
    /// is a success.
    async fn ensure_deleted(&self, workspace_id: WorkspaceId) -> Result<(), NodeError>;

    /// What the node knows of the workspace's VM; `None` when nothing is there.
    async fn inspect(&self, workspace_id: WorkspaceId) -> Option<VmReport>;

    /// Whether the start of this workspace waits for its turn behind others now. That is not bounded by
    /// itself (each start before it is), and nothing of the VM is there meanwhile.
    async fn awaits_turn(&self, workspace_id: WorkspaceId) -> bool;

    /// Everything the node has, in no order.
    async fn list(&self) -> Vec<VmReport>;

    /// Events from now on. A receiver that lags loses events and must `list` again.
    fn subscribe(&self) -> broadcast::Receiver<NodeEvent>;

    /// The inside of the running VM.
    async fn guest(&self, workspace_id: WorkspaceId) -> Result<Arc<dyn GuestApi>, NodeError>;

    /// The last `tail_bytes` of a log, oldest first; empty when there is none.
    async fn log(
        &self,
        workspace_id: WorkspaceId,
        source: LogSource,
        tail_bytes: u64,
    ) -> Result<ByteStream, NodeError>;

    /// The images that can be used.
    async fn images(&self) -> Vec<ImageInfo>;

    /// Makes what `reference` means in its registry now the newest image of that name here, and returns
    /// when it can be used. Everybody who asks for the same meanwhile waits for the same pull; it goes on
    /// when nobody waits any more, and a repetition finds what is there. [`NodeError::Pull`] says what
    /// was wrong.
    async fn ensure_image(&self, reference: &str) -> Result<ImageInfo, NodeError> {
        let _ = reference;
        Err(NodeError::Unsupported("pulling images".to_owned()))
    }

    /// Begins what [`NodeApi::ensure_image`] does, unless it is under way, and says how far it is.
    async fn begin_image_pull(&self, reference: &str) -> Result<ImagePull, NodeError> {
        let _ = reference;
        Err(NodeError::Unsupported("pulling images".to_owned()))
    }

    /// The newest image here of this name, or of this reference as people write it (`alpine` for
    /// `docker.io/library/alpine:latest`). No registry is asked.
    async fn image_named(&self, name: &str) -> Option<ImageInfo>;

    /// The pulls under way, and some that ended.
    async fn image_pulls(&self) -> Vec<ImagePull> {
        Vec::new()
    }

    /// Room on the host.
    async fn capacity(&self) -> NodeCapacity;

    /// What the host can do.
    async fn doctor(&self) -> NodeDoctor;
}
