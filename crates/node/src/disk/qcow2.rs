//! The little of the qcow2 format that is ours: an empty overlay is written here, and of one that a
//! VM has used nothing but the header is read, and nothing but the size in it is written.
//!
//! Source: QEMU's `docs/interop/qcow2.txt`; all numbers are big-endian. An empty image is four
//! clusters: header, reference-count table, one reference-count block, and an L1 table for the largest
//! disk we know, all of whose entries are "not allocated". Because the table is as large as it ever
//! needs to be, a disk grows by changing its size in the header. No backing file is named: the VMM is
//! told what is below, and what a file says of itself would not be believed anyway.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use nix::libc;

const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// One L2 table is a cluster of 8-byte entries, each for one cluster.
const BYTES_OF_L1_ENTRY: u64 = CLUSTER_BYTES / 8 * CLUSTER_BYTES;
/// No plan permits more; a forged size must not pass as a large disk.
pub(super) const MAX_SIZE_BYTES: u64 = 1 << 42;
/// Enough for [`MAX_SIZE_BYTES`]: the table fills exactly one cluster.
const L1_ENTRIES: u32 = (MAX_SIZE_BYTES / BYTES_OF_L1_ENTRY) as u32;
const SECTOR_BYTES: u64 = 512;
/// Version 3 without additional fields.
const HEADER_BYTES: usize = 104;
/// Header, reference-count table, reference-count block, L1 table.
const CLUSTERS: u64 = 4;
/// The two clusters that are not all zero from the beginning: what an empty image has at its start
/// and in its table and block of reference counts.
const REFCOUNT_TABLE_AT: u64 = CLUSTER_BYTES;
const REFCOUNT_BLOCK_AT: u64 = 2 * CLUSTER_BYTES;
const L1_TABLE_AT: u64 = 3 * CLUSTER_BYTES;
const SIZE_AT: u64 = 24;

/// What may be known of an overlay's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The size of the disk it claims.
    pub size_bytes: u64,
    /// The largest size it can be given in place.
    pub capacity_bytes: u64,
}

/// Writes an empty image of this size into the new, empty `file`.
pub(super) fn write_empty(file: &File, size_bytes: u64) -> io::Result<()> {
    if size_bytes == 0 || size_bytes > MAX_SIZE_BYTES || !size_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "impossible size of a disk"));
    }
    for (at, content) in pieces(size_bytes) {
        file.write_all_at(&content, at)?;
    }
    file.set_len(CLUSTERS * CLUSTER_BYTES)
}

/// Everything in an empty image that is not zero, with its place.
fn pieces(size_bytes: u64) -> [(u64, Vec<u8>); 3] {
    // The 16-bit count of each cluster we use is one; the rest of the block is zero.
    let counts = [0_u8, 1].repeat(usize::try_from(CLUSTERS).unwrap_or_default());
    [
        (0, header(size_bytes)),
        (REFCOUNT_TABLE_AT, REFCOUNT_BLOCK_AT.to_be_bytes().to_vec()),
        (REFCOUNT_BLOCK_AT, counts),
    ]
}

fn header(size_bytes: u64) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_BYTES + 8);
    header.extend(b"QFI\xfb");
    header.extend(3_u32.to_be_bytes());
    header.extend([0; 12]); // no backing file
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(size_bytes.to_be_bytes());
    header.extend(0_u32.to_be_bytes()); // not encrypted
    header.extend(L1_ENTRIES.to_be_bytes());
    header.extend(L1_TABLE_AT.to_be_bytes());
    header.extend(REFCOUNT_TABLE_AT.to_be_bytes());
    header.extend(1_u32.to_be_bytes()); // clusters of the reference-count table
    header.extend([0; 12]); // no internal snapshots
    header.extend([0; 24]); // no incompatible, compatible or auto-clear features
    header.extend(4_u32.to_be_bytes()); // counts of 1 << 4 bits
    header.extend((HEADER_BYTES as u32).to_be_bytes());
    header.extend([0; 8]); // the end of the header extensions
    header
}

/// A new, empty file for an overlay, ours alone.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Opens an overlay for reading and, when it is to grow, writing. Not followed: a VM's user may have
/// owned the file.
fn open(path: &Path, write: bool) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
}

/// Reads the header and refuses what would make a tool open other files.
///
/// # Errors
/// The outer one when the file cannot be read, the inner one says what is wrong with it.
pub(super) fn read_header(path: &Path) -> io::Result<Result<Header, &'static str>> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    open(path, false)?.take(HEADER_BYTES as u64).read_to_end(&mut bytes)?;
    Ok(match <&[u8; HEADER_BYTES]>::try_from(bytes.as_slice()) {
        Ok(bytes) => parse(bytes),
        Err(_) => Err("is cut off"),
    })
}

fn parse(header: &[u8; HEADER_BYTES]) -> Result<Header, &'static str> {
    let word = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let double = |at: usize| (u64::from(word(at)) << 32) | u64::from(word(at + 4));
    if header[..4] != *b"QFI\xfb" || word(4) != 3 {
        return Err("is not a qcow2 file of version 3");
    }
    if word(20) != CLUSTER_BITS {
        return Err("has clusters of another size");
    }
    if word(32) != 0 {
        return Err("claims to be encrypted");
    }
    if word(60) != 0 {
        return Err("claims to hold internal snapshots");
    }
    // Bit 2 of the incompatible features: the data are in another file.
    if double(72) & 0b100 != 0 {
        return Err("names an external data file");
    }
    let size_bytes = double(24);
    if size_bytes == 0 || size_bytes > MAX_SIZE_BYTES || !size_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err("has an impossible size");
    }
    let capacity_bytes = u64::from(word(36)).saturating_mul(BYTES_OF_L1_ENTRY).min(MAX_SIZE_BYTES);
    if capacity_bytes < size_bytes {
        return Err("has a table too small for its size");
    }
    Ok(Header { size_bytes, capacity_bytes })
}

/// Writes a new size into the header of an overlay that no process has open, durably. The eight bytes
/// lie in one sector: a crash leaves the old size or the new one.
pub(super) fn write_size(path: &Path, size_bytes: u64) -> io::Result<()> {
    let file = open(path, true)?;
    file.write_all_at(&size_bytes.to_be_bytes(), SIZE_AT)?;
    file.sync_all()
}

/// Whether the file is, byte for byte, an empty image of this size as [`write_empty`] makes it: no
/// guest has written anything through it.
pub(super) fn is_empty(path: &Path, size_bytes: u64) -> io::Result<bool> {
    let file = open(path, false)?;
    let length = CLUSTERS * CLUSTER_BYTES;
    if file.metadata()?.size() != length {
        return Ok(false);
    }
    let mut expected = vec![0_u8; usize::try_from(length).map_err(io::Error::other)?];
    for (at, content) in pieces(size_bytes) {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        expected[at..at + content.len()].copy_from_slice(&content);
    }
    let mut found = vec![0; expected.len()];
    file.read_exact_at(&mut found, 0)?;
    Ok(found == expected)
}

/// The most bytes the file of an overlay of this size can honestly come to: every cluster of data,
/// their tables (8 bytes for 64 KiB), their reference counts (2 bytes for 64 KiB of file), rounded up
/// generously. A limit for the process that writes it.
pub(crate) const fn most_file_bytes(size_bytes: u64) -> u64 {
    const SLACK_BYTES: u64 = 64 << 20;
    size_bytes.saturating_add(size_bytes / 1024).saturating_add(SLACK_BYTES)
}
