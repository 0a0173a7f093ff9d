//! What every driver promises. `contract_suite` in this crate's tests holds them to it.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use skerry_model::{MemMib, VcpuCount, VolumeSlot, spec::CpuKind};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

/// A stream to the guest's agent. Bytes only; framing is the node's business.
pub trait Channel: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Channel for T {}

/// How guest instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// Software emulation: the same machine, 10 to 30 times slower.
    Tcg,
    /// No real guest (the fake driver).
    None,
}

/// Something a driver may be able to do beyond boot, adopt and kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// Stop and continue the virtual CPUs with memory resident.
    Pause,
    /// Save device state (and memory) to files.
    Snapshot,
    /// Start from a saved state instead of booting.
    Restore,
    /// Many starts from one saved memory, copied on write.
    CloneMemory,
    /// Further disks while the VM runs.
    Volumes,
}

/// What this driver can do on this host. Callers ask this, never a driver's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// How instructions run.
    pub accelerator: Accelerator,
    /// What is possible beyond the basics.
    pub supported: Vec<Capability>,
    /// The largest number of virtual CPUs of one VM.
    pub max_vcpu_count: u32,
    /// The driver's own version, part of every template's key.
    pub version: String,
}

/// Which CPU the guest sees. Part of a template's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuModel {
    /// The host's under KVM; a fixed x86-64-v2 model under emulation.
    #[default]
    Default,
}

/// The guest's one disk: a writable qcow2 overlay on frozen qcow2 layers on a raw base. What the
/// headers of overlay and layers say of files below them is not read: the chain is the one named here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The overlay, writable by the VMM.
    pub overlay: PathBuf,
    /// Frozen layers between overlay and base, the uppermost first; at most
    /// [`DiskSpec::MAX_LAYERS`]. Never written while anything stands on them; readable by everyone
    /// when a uid is given.
    pub layers: Vec<PathBuf>,
    /// The raw base below it, read-only and shared.
    pub base: PathBuf,
}

impl DiskSpec {
    /// The most frozen layers below an overlay.
    pub const MAX_LAYERS: usize = 32;
}

/// Where a restored VM's memory comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "memory", rename_all = "snake_case")]
pub enum RestoredMemory {
    /// A sealed file of exactly the machine's memory, mapped privately: any number of VMs start from
    /// it at once, none of them writes it, and it is never written while one of them lives. Needs
    /// [`Capability::CloneMemory`]. [`BootSpec::memory_file`] is not made.
    CloneOf {
        /// The sealed file, readable by everyone when a uid is given.
        file: PathBuf,
    },
    /// The state file carries the memory; it is loaded into the process's own, and what was zero
    /// takes neither time nor room. [`BootSpec::memory_file`] is not made.
    InState,
    /// The same, but into a new [`BootSpec::memory_file`], so that it can be saved there
    /// ([`SavedMemory::InMemoryFile`]) and become what clones start from. All of the memory is
    /// touched for that, whatever it holds: for the background.
    InStateToFile,
}

impl RestoredMemory {
    /// As what it must have been saved.
    #[must_use]
    pub const fn saved_as(&self) -> SavedMemory {
        match self {
            Self::CloneOf { .. } => SavedMemory::InMemoryFile,
            Self::InState | Self::InStateToFile => SavedMemory::InState,
        }
    }
}

/// A start from a saved state instead of a boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreSpec {
    /// The machine. Everything that [`Vmm::fingerprint`] covers must be as it was when the state was
    /// saved; paths, rights and label may differ. `kernel` and `initramfs` are not read.
    pub machine: BootSpec,
    /// The saved device state.
    pub state: PathBuf,
    /// The memory that belongs to it.
    pub memory: RestoredMemory,
}

/// What a saved state contains beside the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SavedMemory {
    /// All of memory is written into the state file, also of a running VM.
    InState,
    /// Memory stays in the machine's own [`BootSpec::memory_file`], which from then on belongs to the
    /// saved state: the VM must be paused and has to be killed afterwards, never resumed. Refused for
    /// a VM that has no such file ([`GuestMemory::Private`]).
    InMemoryFile,
}

/// How far saving a state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveProgress {
    /// A running VM's memory has been written once, and only what changed since is left: pausing now
    /// is short, however large the memory is.
    Converged,
    /// All that is saved has left the VM, which may be resumed; the file is still being written.
    /// Reached only by a paused VM.
    Captured,
    /// The state file is complete. Only a paused VM gets there, or one that was [`Self::Captured`].
    Complete,
}

/// An open tap device: the guest's Ethernet frames, each with a `virtio_net_hdr`. Clones are the same
/// one; the device lives as long as any of them, the VMM's own included.
#[derive(Clone, Debug)]
pub struct Tap(Arc<OwnedFd>);

impl Tap {
    /// Of a file on which `TUNSETIFF` was done with `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`.
    #[must_use]
    pub fn new(file: OwnedFd) -> Self {
        Self(Arc::new(file))
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PartialEq for Tap {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Tap {}

/// Where the guest's one network card is plugged in. The card is always there; the kind of cable
/// decides what the card can do, so that it belongs to the machine ([`Vmm::fingerprint`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cable", rename_all = "snake_case")]
pub enum Cable {
    /// Nowhere.
    #[default]
    Loose,
    /// Into a tap.
    Tap {
        /// Which; `None` only where a machine is described and not started.
        #[serde(skip)]
        tap: Option<Tap>,
    },
}

/// With which rights the VMM process runs. Whatever is `None` could not be had on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The uid and gid to run as (one per VM).
    pub uid: Option<u32>,
    /// Files (`cgroup.procs` or v1 `tasks`) into which the VMM's pid is written before it starts.
    pub cgroup_procs: Vec<PathBuf>,
    /// Address space limit and friends when there is no cgroup: the most memory the process may
    /// lock or map, in bytes.
    pub rlimit_address_space_bytes: Option<u64>,
    /// The most bytes a file may come to that the process writes (its overlay, a saved state): a
    /// write beyond fails, and so does what the guest or the save wanted it for. Guest memory's file
    /// has its size from the start. [`Vm::grow_disk`] and [`Vm::attach_volume`] raise it.
    #[serde(default)]
    pub rlimit_file_size_bytes: Option<u64>,
}

/// Everything a boot needs. All paths are absolute. The directories, the kernel, the initial file
/// system and the disk exist already; the driver makes the sockets, the logs and the memory file
/// (replacing what an earlier boot left) and gives the overlay and the memory file to
/// [`Sandbox::uid`]. After the VM's end these files are the caller's to remove.
///
/// The kernel, the initial file system and the base image must be readable by everyone when a uid is
/// given; the directories above them need not be, because the VMM gets them as open files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSpec {
    /// A short word to recognise the process by (`ps`), `[a-z0-9-]`, at most 40 characters.
    pub label: String,
    /// The VM's own directory, made private (0700) by the driver: sockets and `vmm.log` are made
    /// here. Its path is at most 80 bytes.
    pub run_dir: PathBuf,
    /// The uncompressed kernel (PVH entry).
    pub kernel: PathBuf,
    /// The initial file system with the agent as `/init`.
    pub initramfs: PathBuf,
    /// Guest RAM lives in this file, made by the driver with exactly `memory_mib` (on tmpfs or disk),
    /// if the VM is to be saved in it ([`SavedMemory::InMemoryFile`]). Without it RAM is the
    /// process's own, which is as fast and what it never used takes no room; that of a file does as
    /// soon as the VM is saved in any other way.
    pub memory_file: Option<PathBuf>,
    /// Guest memory.
    pub memory_mib: MemMib,
    /// Virtual CPUs.
    pub vcpu_count: VcpuCount,
    /// CPU share class.
    pub cpu_kind: CpuKind,
    /// Which CPU.
    pub cpu_model: CpuModel,
    /// The root disk; `None` boots into the initial file system only (probes).
    pub disk: Option<DiskSpec>,
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// Where its network card is plugged in.
    #[serde(default)]
    pub cable: Cable,
    /// The serial console is appended to this file by the driver, which makes it if need be. What
    /// the guest writes while no driver is connected (between our death and the adoption) is lost.
    pub console_log: PathBuf,
    /// The most the file may hold, at least 4096. When it would grow beyond, it is cut in place to
    /// its newest half: a reader that finds it shorter than its own offset starts again at 0.
    pub console_limit_bytes: u64,
    /// Words added to the kernel's command line, each `[A-Za-z0-9_.=,:/-]+`.
    pub kernel_args: Vec<String>,
    /// Rights.
    pub sandbox: Sandbox,
}

/// Enough to find the process again after our own restart, and to know it is the same one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmRecord {
    /// The driver that made it.
    pub driver: String,
    /// Process id.
    pub pid: u32,
    /// The process's start time in clock ticks since boot (field 22 of `/proc/pid/stat`).
    pub start_time_ticks: u64,
    /// The host's boot id: a record from before a reboot names nothing.
    pub boot_id: String,
    /// The VM's directory with its sockets.
    pub run_dir: PathBuf,
    /// Where the console goes on after an adoption ([`BootSpec::console_log`]).
    pub console_log: PathBuf,
    /// Its limit ([`BootSpec::console_limit_bytes`]).
    pub console_limit_bytes: u64,
    /// [`Vmm::fingerprint`] of its machine: its states are saved under this one. Empty in records
    /// of a version that saved none; such a VM's state cannot be saved.
    #[serde(default)]
    pub fingerprint: String,
    /// Whose its memory is.
    #[serde(default)]
    pub memory: GuestMemory,
    /// How much of it there is: a saved state is not let grow far beyond. 0 in records without a
    /// fingerprint.
    #[serde(default)]
    pub memory_mib: u32,
}

impl VmmRecord {
    /// Whether the two name one process. Where its files are may differ: a directory may have been
    /// renamed since.
    #[must_use]
    pub fn is_same_process(&self, other: &Self) -> bool {
        self.pid == other.pid
            && self.start_time_ticks == other.start_time_ticks
            && self.boot_id == other.boot_id
            && self.driver == other.driver
    }
}

/// Whose a VM's memory is, and so in which ways it can be saved ([`SavedMemory`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestMemory {
    /// In its own [`BootSpec::memory_file`].
    #[default]
    Own,
    /// In the process alone; of a clone, what it has written over the file that it shares with others
    /// ([`RestoredMemory::CloneOf`]).
    Private,
}

/// How a VM's process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// The guest powered off.
    PoweredOff,
    /// The guest asked for a reboot.
    Rebooted,
    /// We killed it.
    Killed,
    /// Anything else, in words.
    Crashed(String),
    /// It ended while nobody watched: how is not known.
    Unknown,
}

/// A driver's failure.
#[derive(Debug, Error)]
pub enum VmmError {
    /// The boot was asked for with something the driver does not take. Nothing was started or made.
    #[error("{field}: {reason}")]
    InvalidSpec {
        /// Which field of [`BootSpec`] or [`RestoreSpec`].
        field: &'static str,
        /// What is wrong with it and what is allowed.
        reason: String,
    },
    /// The hypervisor program is missing or cannot run.
    #[error("hypervisor not usable: {0}")]
    NotUsable(String),
    /// The process ended before it was up.
    #[error("the VMM ended during start: {0}")]
    EndedEarly(String),
    /// It did not answer in time.
    #[error("{0} timed out")]
    Timeout(&'static str),
    /// The record names a process that is gone.
    #[error("no such process")]
    Gone,
    /// The control socket said no.
    #[error("the VMM refused {command}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Its answer.
        reason: String,
    },
    /// The driver cannot do that.
    #[error("not supported by this driver: {0:?}")]
    Unsupported(Capability),
    /// A saved state cannot be loaded: it is incomplete or damaged, is none, or belongs to another
    /// machine. It will not load next time either.
    #[error("the saved state is refused: {0}")]
    InvalidState(String),
    /// The host's fault.
    #[error("{context}")]
    Io {
        /// What was being done.
        context: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Makes a record durable; see [`Vmm::boot`].
pub type Commit<'a> = dyn FnMut(&VmmRecord) -> std::io::Result<()> + Send + 'a;

/// A hypervisor on this host.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// What it can do here, found once when the driver was opened.
    fn capabilities(&self) -> &Capabilities;

    /// Starts a VM. Returns once the process runs and its control socket answers; the guest is
    /// still booting then. On an error nothing is left running.
    ///
    /// `committed` is called with the record as soon as the process exists and before it executes a
    /// single guest instruction, so that a crash of ours can never leave a process no record names.
    async fn boot(
        &self,
        spec: &BootSpec,
        committed: &mut Commit<'_>,
    ) -> Result<Arc<dyn Vm>, VmmError>;

    /// Everything of `machine` and of this driver that a saved state depends on (machine, devices,
    /// sizes, processor, program version), as a short word: states are only restored under the
    /// fingerprint they were saved under. Paths, rights, label and kernel do not enter it.
    fn fingerprint(&self, machine: &BootSpec) -> String {
        let capabilities = self.capabilities();
        format!("{}-{}-{}", capabilities.version, machine.vcpu_count, machine.memory_mib)
    }

    /// Starts a process that waits for a saved state ([`Vm::load`]); no guest instruction runs and
    /// hardly any memory is used until then. Promises and duties are those of [`Vmm::boot`].
    ///
    /// The state is opened now: what is cut off, is no state, was saved under another
    /// [`Vmm::fingerprint`] or with other memory is refused before anything is made. Whether each of
    /// its bytes is as it was written only the caller can know, by a digest of its own: a guest
    /// whose memory has a wrong byte is a running guest all the same.
    ///
    /// # Errors
    /// [`VmmError::Unsupported`] without [`Capability::Restore`] (or [`Capability::CloneMemory`]);
    /// [`VmmError::InvalidState`].
    async fn park(
        &self,
        spec: &RestoreSpec,
        committed: &mut Commit<'_>,
    ) -> Result<Arc<dyn Vm>, VmmError> {
        let _ = (spec, committed);
        Err(VmmError::Unsupported(Capability::Restore))
    }

    /// Takes over a process started earlier, possibly by a previous life of this program.
    ///
    /// # Errors
    /// [`VmmError::Gone`] when that process (same pid, start time and boot) is not there any more.
    async fn adopt(&self, record: &VmmRecord) -> Result<Arc<dyn Vm>, VmmError>;
}

/// One running VM. Dropping the handle leaves the VM running.
#[async_trait]
pub trait Vm: Send + Sync {
    /// How to find it again.
    fn record(&self) -> &VmmRecord;

    /// A new connection to the guest's agent. At most one is open at a time: a new one replaces the
    /// old. Succeeds before the agent is up; bytes then wait.
    async fn connect_guest(&self) -> Result<Box<dyn Channel>, VmmError>;

    /// Kills the process and returns once it is gone. Killing what is gone is a success.
    async fn kill(&self) -> Result<(), VmmError>;

    /// Completes when the process is gone. May be called many times, from many tasks.
    async fn wait_exit(&self) -> Exit;

    /// Stops the virtual CPUs; memory stays resident.
    async fn pause(&self, within: Duration) -> Result<(), VmmError>;

    /// Continues after [`Vm::pause`], [`Vm::load`] or a save that is [`SaveProgress::Captured`].
    /// Refused for a process that is still parked, and after a [`SavedMemory::InMemoryFile`] save.
    async fn resume(&self, within: Duration) -> Result<(), VmmError>;

    /// Loads the state a parked process waits for and returns with the VM paused. Once for each
    /// parked process, also for one that was adopted.
    ///
    /// # Errors
    /// [`VmmError::InvalidState`] when the devices do not take what it says; [`VmmError::Timeout`].
    /// After any error the process is of no use and should be killed.
    async fn load(&self, within: Duration) -> Result<(), VmmError> {
        let _ = within;
        Err(VmmError::Unsupported(Capability::Restore))
    }

    /// Begins to write the VM's state to `state`, an empty file which the caller made, opened for
    /// reading and writing, and syncs afterwards. A VM that runs keeps running until it is paused by
    /// the caller (after [`SaveProgress::Converged`]); a paused one stays so. One save at a time.
    /// What is in the file before [`SaveProgress::Complete`] is refused by every load. A save ends
    /// with the driver that began it: the next life gives it up ([`Vm::cancel_save`]).
    async fn begin_save(&self, state: std::fs::File, memory: SavedMemory) -> Result<(), VmmError> {
        let _ = (state, memory);
        Err(VmmError::Unsupported(Capability::Snapshot))
    }

    /// Waits until the save is as far as that. A wait that ends too early changes nothing: the save
    /// goes on, and another wait may follow.
    async fn wait_save(&self, progress: SaveProgress, within: Duration) -> Result<(), VmmError> {
        let _ = (progress, within);
        Err(VmmError::Unsupported(Capability::Snapshot))
    }

    /// Gives up a save under way; the VM is as it was before (running or paused). Giving up what is
    /// not under way is a success.
    async fn cancel_save(&self, within: Duration) -> Result<(), VmmError> {
        let _ = within;
        Err(VmmError::Unsupported(Capability::Snapshot))
    }

    /// Puts an empty qcow2 file (made by the caller with the disk's size, not yet given to the VM's
    /// user) above the current overlay: from now on the guest writes there, and the former overlay
    /// is a frozen layer. Exact for a paused VM; for a running one the moment is any. The driver
    /// gives the file to the VM's user, and the former overlay to nobody: it stays that user's, to be
    /// sealed by the caller. During a save into the state it is possible until
    /// [`SaveProgress::Captured`] (or a later one) is waited for, and then once the VM was resumed.
    ///
    /// Asked for the file the guest writes already, it does nothing: after a [`VmmError::Timeout`],
    /// and for a VM taken over from a life of ours that ended in the middle, it is not known on which
    /// file the guest writes, and asking again is how to know.
    async fn push_overlay(
        &self,
        overlay: &std::path::Path,
        within: Duration,
    ) -> Result<(), VmmError> {
        let _ = (overlay, within);
        Err(VmmError::Unsupported(Capability::Snapshot))
    }

    /// Copies into the overlay what it needs from the layers below, and drops them from the VM's
    /// chain: afterwards the overlay stands on the base alone. Runs beside the guest, slowly; waits
    /// until it is done. When the time is over (or the caller goes away) it goes on, and another call
    /// waits for the same copy. A save or a new overlay ends it ([`VmmError::Refused`]); what is
    /// copied stays copied. The process may keep the dropped files open until it ends.
    async fn flatten_disk(&self, within: Duration) -> Result<(), VmmError> {
        let _ = within;
        Err(VmmError::Unsupported(Capability::Snapshot))
    }

    /// Grows the disk the guest sees to `size_bytes`, a multiple of 512; never shrinks. The size it
    /// has already is a success. `most_file_bytes` is as in [`Vm::attach_volume`].
    async fn grow_disk(
        &self,
        size_bytes: u64,
        most_file_bytes: u64,
        within: Duration,
    ) -> Result<(), VmmError> {
        let _ = (size_bytes, most_file_bytes, within);
        Err(VmmError::Unsupported(Capability::Snapshot))
    }

    /// Puts a disk into a slot of a VM that runs, is paused or was just loaded; every machine with a
    /// disk has all slots, empty at its start. The guest sees the disk once it looks at the slot's
    /// device anew. `most_file_bytes` is what the overlay may grow to at most; the process's limit
    /// ([`Sandbox::rlimit_file_size_bytes`]) is raised to it where it is lower.
    ///
    /// The driver gives the overlay to the VM's user. The disk that is in the slot already is a
    /// success, another one a refusal; so is a disk that another process writes. On a refusal the slot
    /// is as it was.
    async fn attach_volume(
        &self,
        slot: VolumeSlot,
        disk: &DiskSpec,
        most_file_bytes: u64,
        within: Duration,
    ) -> Result<(), VmmError> {
        let _ = (slot, disk, most_file_bytes, within);
        Err(VmmError::Unsupported(Capability::Volumes))
    }

    /// [`Vm::push_overlay`] for the disk in a slot; an empty slot is a refusal.
    async fn push_volume_overlay(
        &self,
        slot: VolumeSlot,
        overlay: &std::path::Path,
        within: Duration,
    ) -> Result<(), VmmError> {
        let _ = (slot, overlay, within);
        Err(VmmError::Unsupported(Capability::Volumes))
    }

    /// [`Vm::flatten_disk`] for the disk in a slot. Emptying the slot ends it, too.
    async fn flatten_volume(&self, slot: VolumeSlot, within: Duration) -> Result<(), VmmError> {
        let _ = (slot, within);
        Err(VmmError::Unsupported(Capability::Volumes))
    }

    /// [`Vm::grow_disk`] for the disk in a slot; an empty slot is a refusal.
    async fn grow_volume(
        &self,
        slot: VolumeSlot,
        size_bytes: u64,
        most_file_bytes: u64,
        within: Duration,
    ) -> Result<(), VmmError> {
        let _ = (slot, size_bytes, most_file_bytes, within);
        Err(VmmError::Unsupported(Capability::Volumes))
    }

    /// Empties a slot: everything the guest had flushed is in the overlay, which the process does not
    /// have open any more. The guest should have let go of the disk; one that has not gets errors. An
    /// empty slot is a success.
    async fn detach_volume(&self, slot: VolumeSlot, within: Duration) -> Result<(), VmmError> {
        let _ = (slot, within);
        Err(VmmError::Unsupported(Capability::Volumes))
    }
}
