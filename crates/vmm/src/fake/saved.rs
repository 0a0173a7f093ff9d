//! What a fake guest's memory is, and how it gets into files and back.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest, Sha256};

use crate::{SavedMemory, VmmError, state_file::Opened};

const DIGEST_BYTES: usize = 32;
/// Stands for the devices in a state.
const DEVICES: &[u8] = b"fake devices\n";
/// At the beginning of a memory file that was saved; a length of 8 bytes and the memory follow.
const MEMORY_MAGIC: &[u8; 16] = b"fake memory file";
const MEMORY_AT: u64 = 24;

/// The part of a guest's memory that lives on in saved states: whatever the test's guest puts there.
/// Each restored guest has a copy of its own. Clones are the same memory.
#[derive(Clone, Debug, Default)]
pub struct FakeMemory(Arc<Mutex<Vec<u8>>>);

impl FakeMemory {
    pub(super) fn holding(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(bytes)))
    }

    /// What is there now; empty after a boot.
    #[must_use]
    pub fn read(&self) -> Vec<u8> {
        self.lock().clone()
    }

    /// Replaces all of it.
    pub fn write(&self, bytes: &[u8]) {
        *self.lock() = bytes.to_vec();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the driver's bytes of a state, and the memory to where it belongs.
pub(super) fn write_state(
    file: &mut File,
    kind: SavedMemory,
    memory: &[u8],
    memory_file: Option<&Path>,
) -> io::Result<()> {
    let mut content = DEVICES.to_vec();
    match kind {
        SavedMemory::InState => content.extend(memory),
        SavedMemory::InMemoryFile => {
            let path = memory_file.ok_or(io::ErrorKind::NotFound)?;
            let file = File::options().write(true).open(path)?;
            file.write_all_at(MEMORY_MAGIC, 0)?;
            let length = (memory.len() as u64).to_le_bytes();
            file.write_all_at(&length, MEMORY_MAGIC.len() as u64)?;
            file.write_all_at(memory, MEMORY_AT)?;
        }
    }
    file.write_all(&Sha256::digest(&content))?;
    file.write_all(&content)
}

/// Reads the driver's bytes: the memory in them, if it is there.
pub(super) fn read_state(state: &mut Opened) -> Result<Vec<u8>, VmmError> {
    let read = |source| VmmError::Io { context: "read the saved state".into(), source };
    let mut content = Vec::new();
    (&mut state.file).take(state.length).read_to_end(&mut content).map_err(read)?;
    let Some((digest, content)) = content.split_at_checked(DIGEST_BYTES) else {
        return Err(VmmError::InvalidState("it holds no devices".into()));
    };
    if Sha256::digest(content).as_slice() != digest {
        return Err(VmmError::InvalidState("its bytes are not those that were saved".into()));
    }
    match content.strip_prefix(DEVICES) {
        Some(memory) => Ok(memory.to_vec()),
        None => Err(VmmError::InvalidState("it holds other devices".into())),
    }
}

/// The memory in a file that a save left. As with a real guest, wrong bytes in it are not noticed.
pub(super) fn read_memory(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut head = [0; MEMORY_AT as usize];
    file.read_exact_at(&mut head, 0)?;
    let Some(length) = head.strip_prefix(MEMORY_MAGIC) else { return Ok(Vec::new()) };
    let mut bytes = [0; 8];
    bytes.copy_from_slice(length);
    let length = u64::from_le_bytes(bytes).min(file.metadata()?.len() - MEMORY_AT);
    let mut memory = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut memory, MEMORY_AT)?;
    Ok(memory)
}
