//! The frame that every driver puts around a saved state.
//!
//! ```text
//! 512 bytes  "skerry-state 1 " and a line of JSON ([`Label`]), filled up with spaces and a newline
//! ...        the driver's own bytes
//! 24 bytes   "skerry-state-end" and the length of the whole file, little-endian
//! ```
//!
//! The end is written when the state is complete, so that a file whose writing was interrupted, or
//! that was cut off later, is known for what it is before a process is started for it. Bytes that
//! changed in between are not looked for: a digest of the whole is its keeper's.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{SavedMemory, VmmError};

/// The driver's bytes begin here.
const LABEL_BYTES: usize = 512;
const MAGIC: &[u8] = b"skerry-state 1 ";
const END_MAGIC: &[u8; 16] = b"skerry-state-end";
const END_BYTES: usize = END_MAGIC.len() + 8;

/// What a state belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Label {
    /// The machine's.
    pub(crate) fingerprint: String,
    /// Where the memory is.
    pub(crate) memory: SavedMemory,
    /// The frequency of the time-stamp counter that the guest measures time with, in kHz, where it
    /// is the host's own.
    pub(crate) tsc_khz: Option<u64>,
}

/// Begins a file: the driver's bytes follow where the file's position is now.
pub(crate) fn begin(file: &mut File, label: &Label) -> io::Result<()> {
    let text = serde_json::to_vec(label)?;
    let mut block = Vec::with_capacity(LABEL_BYTES);
    block.extend_from_slice(MAGIC);
    block.extend_from_slice(&text);
    if block.len() >= LABEL_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the state's label is too long"));
    }
    block.resize(LABEL_BYTES - 1, b' ');
    block.push(b'\n');
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&block)
}

/// Marks the file as complete.
pub(crate) fn complete(file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut end = [0; END_BYTES];
    end[..END_MAGIC.len()].copy_from_slice(END_MAGIC);
    end[END_MAGIC.len()..].copy_from_slice(&(length + END_BYTES as u64).to_le_bytes());
    file.write_all_at(&end, length)
}

/// A complete state, positioned at the driver's bytes.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: File,
    pub(crate) label: Label,
    /// How many bytes are the driver's.
    pub(crate) length: u64,
}

/// Opens a state of this machine and kind.
///
/// # Errors
/// [`VmmError::InvalidState`], or [`VmmError::Io`] when it cannot be read.
pub(crate) fn open(
    path: &Path,
    fingerprint: &str,
    memory: SavedMemory,
) -> Result<Opened, VmmError> {
    let opened = read(path).map_err(|error| match error {
        Unreadable::Io(source) => {
            VmmError::Io { context: format!("read the saved state {}", path.display()), source }
        }
        Unreadable::Invalid(reason) => VmmError::InvalidState(reason.into()),
    })?;
    if opened.label.fingerprint != fingerprint {
        return Err(VmmError::InvalidState(format!(
            "it was saved from a machine {:?}, this one is {fingerprint:?}",
            opened.label.fingerprint
        )));
    }
    if opened.label.memory != memory {
        let place = match opened.label.memory {
            SavedMemory::InState => "it contains the memory, which was to come from a file",
            SavedMemory::InMemoryFile => "it contains no memory",
        };
        return Err(VmmError::InvalidState(place.into()));
    }
    Ok(opened)
}

enum Unreadable {
    Io(io::Error),
    Invalid(&'static str),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn read(path: &Path) -> Result<Opened, Unreadable> {
    let mut file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path)?;
    let whole = file.metadata()?.len();
    let Some(length) = whole.checked_sub((LABEL_BYTES + END_BYTES) as u64) else {
        return Err(Unreadable::Invalid("it is too short to be one"));
    };
    let mut block = [0; LABEL_BYTES];
    file.read_exact(&mut block)?;
    let Some(text) = block.strip_prefix(MAGIC) else {
        return Err(Unreadable::Invalid("it is none"));
    };
    let label = serde_json::from_slice(text.trim_ascii_end())
        .map_err(|_| Unreadable::Invalid("its label is damaged"))?;
    let mut end = [0; END_BYTES];
    file.read_exact_at(&mut end, whole - END_BYTES as u64)?;
    if end[..END_MAGIC.len()] != *END_MAGIC || end[END_MAGIC.len()..] != whole.to_le_bytes() {
        return Err(Unreadable::Invalid("it is incomplete"));
    }
    file.seek(SeekFrom::Start(LABEL_BYTES as u64))?;
    Ok(Opened { file, label, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label() -> Label {
        Label { fingerprint: "f".into(), memory: SavedMemory::InState, tsc_khz: None }
    }

    fn written(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("state");
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        begin(&mut file, &label()).unwrap();
        file.write_all(b"devices").unwrap();
        complete(&file).unwrap();
        path
    }

    fn refusal(path: &Path, fingerprint: &str, memory: SavedMemory) -> String {
        match open(path, fingerprint, memory) {
            Err(VmmError::InvalidState(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_complete_state_is_opened_at_the_drivers_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open(&written(dir.path()), "f", SavedMemory::InState).unwrap();
        assert_eq!((opened.label, opened.length), (label(), 7));
        let mut bytes = [0; 7];
        opened.file.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"devices");
    }

    #[test]
    fn a_state_of_another_machine_or_kind_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        assert!(refusal(&path, "g", SavedMemory::InState).contains("machine"));
        assert!(refusal(&path, "f", SavedMemory::InMemoryFile).contains("contains the memory"));
    }

    #[test]
    fn a_state_cut_off_anywhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            refusal(&path, "f", SavedMemory::InState);
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        refusal(&path, "f", SavedMemory::InState);
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_the_reader_panic(bytes: Vec<u8>, labelled: bool) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("state");
            let mut content = bytes;
            if labelled {
                content = [MAGIC, &content, &[b' '; LABEL_BYTES], END_MAGIC].concat();
            }
            std::fs::write(&path, content).unwrap();
            proptest::prop_assert!(open(&path, "f", SavedMemory::InState).is_err());
        }
    }
}
