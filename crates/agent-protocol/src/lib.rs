//! What node and guest agent say to each other over the VM's serial channel.
//!
//! The channel is one byte stream. On every connection a handshake of fixed-size records finds the
//! start of fresh bytes behind whatever an earlier connection left in the buffers ([`handshake`]);
//! right after it HTTP/2 begins, with the guest as the server. Calls are `POST`s to the paths in
//! [`call`]; a request body is a JSON head ([`head`]) followed by raw bytes or, for commands, by
//! frames ([`frame`]); an answer is JSON, raw bytes or frames.
//!
//! Both sides treat the other as a stranger: every length is bounded by [`limits`], unknown JSON
//! fields are ignored, unknown frame kinds are an error.
//!
//! This crate refuses to know what a workspace, a VM or a hypervisor is, and depends on none of our
//! other crates: it is a wire that has to stay readable across versions.

pub mod call;
pub mod frame;
pub mod handshake;
pub mod head;
pub mod limits;
pub mod message;
pub mod record;
pub mod volume_files;
pub mod workload;

/// The oldest generation of this protocol that this build speaks.
pub const GENERATION_MIN: u16 = 1;
/// The newest generation of this protocol that this build speaks.
pub const GENERATION_MAX: u16 = 1;

/// How much of the newest generation this build serves. Generations tell what breaks, revisions what was
/// added: a call of a later revision is refused by an agent of an earlier one, and JSON fields of a
/// later revision are ignored by it. An agent says its own in
/// [`Configured`](message::Configured::revision); one that says nothing has revision 0.
///
/// | revision | added |
/// | --- | --- |
/// | 0 | |
/// | 1 | [`call::PING`], [`call::SYNC`], [`call::FREEZE`], [`call::THAW`], [`call::GROW`], [`call::PREPARE`]; an empty machine id in configure, which also thaws and grows |
/// | 2 | [`call::CONNECT`] |
/// | 3 | [`call::MOUNT`], [`call::UNMOUNT`] |
/// | 4 | the calls in [`volume_files`] |
/// | 5 | [`call::LISTEN`], [`call::ACCEPT`] |
/// | 6 | the calls in [`workload`] |
/// | 7 | [`clock_kept`](message::Configured::clock_kept) |
pub const REVISION: u16 = 7;

/// The name of the virtio-serial port the agent serves on.
pub const PORT_NAME: &str = "skerry.agent";
