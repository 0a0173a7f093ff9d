//! One layer from its blob into the merged tree: decompressed to a file and verified first, then read
//! entry by entry. Everything in it is input of strangers.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::Path,
};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    StreamingDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};
use sha2::{Digest, Sha256};

use super::{
    super::ImageError,
    PullError,
    documents::too_large,
    pax::Extensions,
    tree::{Attributes, Content, Entry, Tree},
};

/// Names and extended headers of one entry.
const MAX_EXTENSION_BYTES: u64 = 256 << 10;

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub(super) fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/vnd.oci.image.layer.v1.tar" => Some(Self::None),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Some(Self::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd" => Some(Self::Zstd),
            _other => None,
        }
    }
}

/// Decompresses `blob` to `archive` and compares it with the digest the configuration names.
/// `budget` is what all layers may still take unpacked.
pub(super) fn decompress(
    blob: &Path,
    compression: Compression,
    archive: &Path,
    diff_id: &str,
    budget: &mut Budget,
) -> Result<(), PullError> {
    let source = File::open(blob).map_err(ImageError::file("open", blob))?;
    let target = File::create(archive).map_err(ImageError::file("make", archive))?;
    let mut source = BufReader::with_capacity(256 << 10, source);
    let mut target = BufWriter::with_capacity(256 << 10, target);
    let mut hasher = Sha256::new();
    let mut write = |piece: &[u8]| {
        budget.take_bytes(piece.len() as u64)?;
        hasher.update(piece);
        target
            .write_all(piece)
            .map_err(|source| PullError::from(ImageError::file("write", archive)(source)))
    };
    match compression {
        Compression::None => pump(&mut source, &mut write)?,
        Compression::Gzip => pump(&mut MultiGzDecoder::new(source), &mut write)?,
        Compression::Zstd => pump_zstd(&mut source, &mut write)?,
    }
    target.flush().map_err(ImageError::file("write", archive))?;
    if format!("sha256:{:x}", hasher.finalize()) == diff_id {
        return Ok(());
    }
    Err(PullError::BadDigest { what: "the content of a layer".to_owned() })
}

fn pump(
    source: &mut dyn Read,
    write: &mut dyn FnMut(&[u8]) -> Result<(), PullError>,
) -> Result<(), PullError> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => write(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(damaged(&error)),
        }
    }
}

/// A file of frames one after the other, some of which hold nothing for us.
fn pump_zstd(
    source: &mut BufReader<File>,
    write: &mut dyn FnMut(&[u8]) -> Result<(), PullError>,
) -> Result<(), PullError> {
    loop {
        if io::BufRead::fill_buf(source).map_err(|error| damaged(&error))?.is_empty() {
            return Ok(());
        }
        match StreamingDecoder::new(&mut *source) {
            Ok(mut frame) => pump(&mut frame, write)?,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => {
                let skipped = source.seek_relative(i64::from(length));
                skipped.map_err(|error| damaged(&error))?;
            }
            Err(error) => return Err(damaged(&error)),
        }
    }
}

fn damaged(problem: &dyn std::fmt::Display) -> PullError {
    PullError::refused(format!("a layer is damaged: {problem}"))
}

/// What all layers together may still use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    bytes: u64,
    entries: u64,
    limits: super::PullLimits,
}

impl Budget {
    pub(super) fn new(limits: super::PullLimits) -> Self {
        Self { bytes: limits.unpacked_bytes, entries: limits.entries, limits }
    }

    fn take_bytes(&mut self, count: u64) -> Result<(), PullError> {
        let left = self.bytes.checked_sub(count);
        self.bytes = left.ok_or_else(|| too_large("the image", self.limits.unpacked_bytes))?;
        Ok(())
    }

    fn take_entry(&mut self) -> Result<(), PullError> {
        let left = self.entries.checked_sub(1);
        self.entries = left.ok_or_else(|| PullError::TooLarge {
            what: "the number of the image's files".to_owned(),
            limit: self.limits.entries.to_string(),
        })?;
        Ok(())
    }
}

/// Reads the layer `archive`, number `layer`, into the tree.
pub(super) fn apply(
    archive: &Path,
    layer: u32,
    tree: &mut Tree,
    budget: &mut Budget,
) -> Result<(), PullError> {
    let mut file = File::open(archive).map_err(ImageError::file("open", archive))?;
    let length = file.seek(SeekFrom::End(0)).map_err(ImageError::file("read", archive))?;
    file.seek(SeekFrom::Start(0)).map_err(ImageError::file("read", archive))?;
    apply_stream(BufReader::with_capacity(64 << 10, file), length, layer, tree, budget)
}

/// As [`apply`], of `length` bytes from anywhere.
pub(super) fn apply_stream(
    stream: impl Read + Seek,
    length: u64,
    layer: u32,
    tree: &mut Tree,
    budget: &mut Budget,
) -> Result<(), PullError> {
    tree.begin_layer(layer);
    let mut archive = tar::Archive::new(stream);
    // Raw: the crate would read an extended header of any length into memory.
    let entries = archive.entries_with_seek().map_err(|error| damaged(&error))?.raw(true);
    let mut extensions = Extensions::default();
    for entry in entries {
        let mut entry = entry.map_err(|error| damaged(&error))?;
        budget.take_entry()?;
        let kind = entry.header().entry_type();
        let size = entry.header().entry_size().map_err(|error| damaged(&error))?;
        if kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink() {
            if size > MAX_EXTENSION_BYTES {
                return Err(PullError::refused("the header of one of its files is too long"));
            }
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(|error| damaged(&error))?;
            extensions.add(kind, content)?;
            continue;
        }
        if kind.is_pax_global_extensions() {
            // What `git archive` leaves: comments that concern no file.
            continue;
        }
        let extensions = std::mem::take(&mut extensions);
        let content = Content { layer, offset: entry.raw_file_position(), length: size };
        if content.offset.checked_add(size).is_none_or(|end| end > length) {
            return Err(PullError::refused("a file is longer than the layer it is in"));
        }
        let entry = described(entry.header(), extensions, content)?;
        tree.add(entry)?;
    }
    Ok(())
}

fn described(
    header: &tar::Header,
    extensions: Extensions,
    content: Content,
) -> Result<(Vec<u8>, Entry), PullError> {
    let number = |value: io::Result<u64>| value.map_err(|error| damaged(&error));
    if extensions.size.is_some_and(|size| size != content.length) {
        return Err(PullError::refused("a file has two sizes"));
    }
    let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let link = extensions
        .link
        .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
        .unwrap_or_default();
    let id = |extended: Option<u64>, own: io::Result<u64>| {
        let id = match extended {
            Some(id) => id,
            None => number(own)?,
        };
        // The last number means nobody.
        u32::try_from(id)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| PullError::refused("the owner of a file is not a number of Linux"))
    };
    let attributes = Attributes {
        mode: header.mode().map_err(|error| damaged(&error))? & 0o7777,
        uid: id(extensions.uid, header.uid())?,
        gid: id(extensions.gid, header.gid())?,
        mtime: extensions.mtime.map_or_else(|| number(header.mtime()), Ok)?,
        xattrs: extensions.xattrs,
    };
    let entry = match header.entry_type() {
        // Old archives write directories as files whose name ends in a slash.
        tar::EntryType::Regular if path.ends_with(b"/") && content.length == 0 => {
            Entry::Directory(attributes)
        }
        tar::EntryType::Regular | tar::EntryType::Continuous => Entry::File(attributes, content),
        tar::EntryType::Directory => Entry::Directory(attributes),
        tar::EntryType::Symlink => Entry::Symlink(attributes, link),
        tar::EntryType::Link => Entry::HardLink(link),
        tar::EntryType::Fifo => Entry::Fifo(attributes),
        tar::EntryType::Block | tar::EntryType::Char => {
            return Err(PullError::refused(format!("{} is a device", super::tree::shown(&path))));
        }
        _other => {
            return Err(PullError::refused(format!(
                "{} is of a kind that no layer has",
                super::tree::shown(&path)
            )));
        }
    };
    Ok((path, entry))
}
