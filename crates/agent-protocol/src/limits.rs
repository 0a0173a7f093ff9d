//! Bounds on everything that crosses the channel. Both sides enforce them on what they receive.

/// Payload of one frame of a command's streams, in bytes.
pub const FRAME_PAYLOAD_MAX: usize = 64 * 1024;

/// The JSON head of a request, in bytes. Large enough for a long argument list and environment.
pub const HEAD_MAX: usize = 1024 * 1024;

/// A JSON answer, in bytes.
pub const ANSWER_MAX: usize = 1024 * 1024;

/// The JSON answer that lists a directory, in bytes.
pub const LISTING_MAX: usize = 16 * 1024 * 1024;

/// Entries in one directory listing.
pub const LISTING_ENTRIES_MAX: usize = 50_000;

/// Streams open at the same time on one connection.
pub const CONCURRENT_STREAMS: u32 = 128;

/// HTTP/2 window of one stream: what may be in flight towards a reader that has stopped reading.
pub const STREAM_WINDOW: u32 = 256 * 1024;

/// HTTP/2 window of the connection. It is the sum of all stream windows, so that even if every other
/// stream is full of bytes nobody reads, one more stream can still move: a stalled reader stalls
/// itself alone. The price is that much memory at worst.
pub const CONNECTION_WINDOW: u32 = CONCURRENT_STREAMS * STREAM_WINDOW;

/// Largest HTTP/2 frame. Must stay below [`PADDING`], see there.
pub const HTTP2_FRAME_MAX: u32 = 16 * 1024;

/// Largest header list of a request or answer, in bytes. Our calls carry next to none.
pub const HEADER_LIST_MAX: u32 = 8 * 1024;

/// Bytes of `0xFF` sent before a repeated hello. More than one whole HTTP/2 frame, so that a peer
/// that waits in the middle of a frame of a dead connection gets it filled, then meets a frame
/// header of all ones, which no HTTP/2 peer may accept, and gives the connection up.
pub const PADDING: usize = 32 * 1024;

/// Arguments of one command.
pub const ARGV_MAX: usize = 4096;

/// Length of a path, in bytes (`PATH_MAX` of Linux, less its NUL).
pub const PATH_MAX: usize = 4095;

/// Fewest bytes of entropy in a configure call.
pub const ENTROPY_MIN: usize = 32;

/// Most bytes of entropy in a configure call.
pub const ENTROPY_MAX: usize = 512;

/// The longest a freeze may last without being asked for again, in milliseconds of the guest's time.
pub const THAW_AFTER_MAX_MS: u64 = 120_000;

/// Length of a host name or address to connect to, in bytes (RFC 1035).
pub const HOST_MAX: usize = 253;

/// How long the guest tries to connect to one address, in milliseconds.
pub const CONNECT_WITHIN_MS: u64 = 10_000;

/// Ports listened on at the same time for one connection of a host.
pub const LISTENERS_MAX: usize = 32;

/// Connections to one of them that wait to be taken over; more wait in the kernel.
pub const INCOMING_MAX: usize = 16;

/// How long each waits, in milliseconds.
pub const ACCEPT_WITHIN_MS: u64 = 30_000;

/// The first port that not only root may listen on.
pub const UNPRIVILEGED_PORT_MIN: u16 = 1024;

/// Ports in one answer.
pub const PORTS_MAX: usize = 1024;

/// Workloads of one guest.
pub const WORKLOADS_MAX: usize = 32;

/// The longest that a call about workloads waits for news, in milliseconds: less than a host waits for
/// a short call.
pub const WORKLOAD_WAIT_MAX_MS: u64 = 20_000;

/// Lines in one answer about a workload's output.
pub const LOG_LINES_MAX: u32 = 10_000;

/// Length of one line of a workload's output, in bytes; longer ones are cut into pieces.
pub const LOG_LINE_MAX: usize = 8 * 1024;

const _: () = assert!(PADDING > HTTP2_FRAME_MAX as usize + 9);
