//! The paths of the calls. All are `POST`; the leading number is the protocol generation.

/// First call of every connection; every other call is refused before it. JSON both ways:
/// [`Configure`](crate::message::Configure), [`Configured`](crate::message::Configured).
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
