//! The paths of the calls. All are `POST`; the leading number is the protocol generation. Calls that
//! came later than their generation say since which [`REVISION`](crate::REVISION).

/// First call of every connection; every other call is refused before it. It may be repeated later, to
/// give the guest another identity. JSON both ways: [`Configure`](crate::message::Configure),
/// [`Configured`](crate::message::Configured).
///
/// It is also what makes a guest that was paused, saved or cloned right again, before any process of
/// the tenant can run a command through the agent. The agent first makes the kernel's random generator
/// start over from the given entropy, then sets the clock, then thaws what [`FREEZE`] froze (since
/// revision 1), and then does only what differs from the last time: host name (with `/etc/hostname`
/// and `/etc/hosts`), machine id, SSH host keys, size of the root file system. The SSH host keys belong
/// to the machine id: with another one the old keys are gone when the call is answered, and new ones
/// are made after it in a guest with an SSH server.
pub const CONFIGURE: &str = "/1/configure";
/// Sets the wall clock. [`Clock`](crate::message::Clock), empty object.
pub const CLOCK: &str = "/1/clock";
/// Ends all processes and powers the guest off; answered before it begins. Empty objects.
pub const POWER_OFF: &str = "/1/power-off";
/// Runs a command. [`Exec`](crate::message::Exec), then input frames; answered by output frames.
pub const EXEC: &str = "/1/exec";
/// What a path is. [`Path`](crate::message::Path), [`Stat`](crate::message::Stat).
pub const STAT: &str = "/1/files/stat";
/// A directory. [`Path`](crate::message::Path), [`Listing`](crate::message::Listing).
pub const LIST: &str = "/1/files/list";
/// Bytes of a file. [`Read`](crate::message::Read), raw bytes.
pub const READ: &str = "/1/files/read";
/// Writes a file. [`Write`](crate::message::Write) and raw bytes, [`Written`](crate::message::Written).
pub const WRITE: &str = "/1/files/write";
/// Makes a directory. [`MakeDir`](crate::message::MakeDir), empty object.
pub const MAKE_DIR: &str = "/1/files/make-dir";
/// Renames. [`Rename`](crate::message::Rename), empty object.
pub const RENAME: &str = "/1/files/rename";
/// Removes a tree. [`Path`](crate::message::Path), empty object.
pub const REMOVE: &str = "/1/files/remove";
/// Unpacks a tar stream. [`Upload`](crate::message::Upload) and raw bytes,
/// [`Unpacked`](crate::message::Unpacked).
pub const UPLOAD: &str = "/1/tree/upload";
/// Packs a tree. [`Path`](crate::message::Path), raw bytes of a tar stream.
pub const DOWNLOAD: &str = "/1/tree/download";
/// Resource use. Empty object, [`Stats`](crate::message::Stats).
pub const STATS: &str = "/1/stats";
/// Listening TCP ports. Empty object, [`Ports`](crate::message::Ports).
pub const PORTS: &str = "/1/ports";
/// Answered at once, to see whether the agent is there. Empty objects. Since revision 1; an older agent
/// refuses it, which shows the same.
pub const PING: &str = "/1/ping";
/// Writes everything back to the guest's disks. Empty objects. Since revision 1.
pub const SYNC: &str = "/1/file-systems/sync";
/// Writes everything back and stops all writing to the guest's disks until [`THAW`], a configure call,
/// or the end of the time given, whichever comes first: also until then if the connection ends. Freezing
/// what is frozen begins the time anew. [`Freeze`](crate::message::Freeze), empty object. Since
/// revision 1.
pub const FREEZE: &str = "/1/file-systems/freeze";
/// Lets writing go on; that it does already is no error. Empty object,
/// [`Thawed`](crate::message::Thawed). Since revision 1.
pub const THAW: &str = "/1/file-systems/thaw";
/// Grows the root file system to the size of its disk, which was made larger under the running guest.
/// [`Grow`](crate::message::Grow), [`Grown`](crate::message::Grown). Since revision 1.
pub const GROW: &str = "/1/file-systems/grow";
/// Connects to a TCP port from inside the guest. [`Connect`](crate::message::Connect), then the bytes to
/// send; answered, once connected, by the bytes received. The end of either body is the end of that
/// direction alone; a body that breaks off resets the connection. Since revision 2.
pub const CONNECT: &str = "/1/connect";
/// Listens on a TCP port of the guest's loopback for as long as the answer is read.
/// [`Listen`](crate::message::Listen); answered by heads ([`head`](crate::head)): first
/// [`Listening`](crate::message::Listening), then an [`Incoming`](crate::message::Incoming) for each
/// connection somebody in the guest makes. At most [`LISTENERS_MAX`](crate::limits::LISTENERS_MAX) of one
/// host's connection. A host that gives the answer up closes the port and what waits to be taken; what was
/// taken stays. Since revision 5.
pub const LISTEN: &str = "/1/listen";
/// Takes over a connection that came to a port of [`LISTEN`]. [`Accept`](crate::message::Accept), then as
/// [`CONNECT`]. One that nobody takes within [`ACCEPT_WITHIN_MS`](crate::limits::ACCEPT_WITHIN_MS) is reset.
/// Since revision 5.
pub const ACCEPT: &str = "/1/accept";
/// Mounts the ext4 file system of a disk that has come into the machine since its boot; the directory
/// is made if it is not there. [`Mount`](crate::message::Mount), empty object. A disk that is mounted
/// there already, in the same way, is a success. Since revision 3.
pub const MOUNT: &str = "/1/file-systems/mount";
/// Writes a file system back and unmounts it: afterwards nothing is written to its disk any more.
/// Refused with [`Busy`](crate::message::FailureCode::Busy) while something in the guest uses it.
/// [`Unmount`](crate::message::Unmount), empty object. A path where nothing is mounted is a success.
/// Since revision 3.
pub const UNMOUNT: &str = "/1/file-systems/unmount";
/// Says what the agent shall supervise by itself. [`SetWorkloads`](crate::workload::SetWorkloads), empty
/// object. Since revision 6.
pub const SET_WORKLOADS: &str = "/1/workloads/set";
/// How what is supervised is, once that has changed.
/// [`WatchWorkloads`](crate::workload::WatchWorkloads),
/// [`WorkloadReports`](crate::workload::WorkloadReports). Since revision 6.
pub const WATCH_WORKLOADS: &str = "/1/workloads/watch";
/// Notes that an end is being acted on. [`AcknowledgeEnd`](crate::workload::AcknowledgeEnd), empty object.
/// Since revision 6.
pub const ACKNOWLEDGE_END: &str = "/1/workloads/acknowledge";
/// A part of a workload's output. [`ReadLog`](crate::workload::ReadLog),
/// [`LogLines`](crate::workload::LogLines). Since revision 6.
pub const READ_WORKLOAD_LOG: &str = "/1/workloads/log";
/// Removes a workload's output. [`ClearLog`](crate::workload::ClearLog), empty object. Since revision 6.
pub const CLEAR_WORKLOAD_LOG: &str = "/1/workloads/clear-log";
/// Makes a guest that belongs to nobody (configured with an empty machine id) fit to be cloned: removes
/// what must not be shared. Refused by any other guest. [`Prepare`](crate::message::Prepare),
/// [`Prepared`](crate::message::Prepared). Since revision 1.
pub const PREPARE: &str = "/1/prepare";
