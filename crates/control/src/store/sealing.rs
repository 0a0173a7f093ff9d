//! Encryption of what the store must be able to give back but nobody who reads its file may see.
//!
//! A value is sealed with XChaCha20-Poly1305 under a key from the key file, with a nonce of its own
//! and bound to the record it belongs to, so that a value moved to another record does not open. Its
//! form is
//!
//! ```text
//! version (1 byte, 1) | key id (8 bytes) | nonce (24 bytes) | ciphertext and tag
//! ```
//!
//! The key file holds one key a line: 32 bytes as base64url without padding. The last one seals, all
//! of them open. To change the key, add a line and start the server: what is sealed with an older key
//! is sealed anew, and the older line can then be removed.

use std::{
    fmt,
    fs::{File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305,
    aead::{Aead as _, Payload},
};
use sha2::{Digest as _, Sha256};

use crate::{Error, Rng};

const VERSION: u8 = 1;
const KEY_BYTES: usize = 32;
const ID_BYTES: usize = 8;
const NONCE_BYTES: usize = 24;
const HEADER_BYTES: usize = 1 + ID_BYTES;
/// More than any number of keys somebody would keep.
const MAX_FILE_BYTES: u64 = 64 * 1024;
const PREAMBLE: &str = "# Opens what is stored encrypted in the database beside this file. Without it the \
                        variables of\n# every workspace are lost: keep a copy, and not where \
                        copies of the database are kept.\n";

/// Why sealed values cannot be used.
#[derive(Debug, thiserror::Error)]
enum SealingError {
    #[error("the key file {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the key file {}: line {line} is not 32 bytes as base64url", path.display())]
    Malformed { path: PathBuf, line: usize },
    #[error(
        "the key file {} has no key {key}, with which values in the database are sealed; put the file \
         back that was there when they were",
        path.display()
    )]
    NoSuchKey { path: PathBuf, key: KeyId },
    #[error("a sealed value is damaged or belongs to another record")]
    Damaged,
    #[error("a value could not be sealed")]
    NotSealed,
}

impl From<SealingError> for Error {
    fn from(error: SealingError) -> Self {
        Self::internal(error)
    }
}

/// Which key sealed a value: the beginning of a hash of the key, so that a key file that was mixed up
/// is recognised.
#[derive(Clone, Copy, PartialEq, Eq)]
struct KeyId([u8; ID_BYTES]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

impl KeyId {
    fn of(key: &[u8; KEY_BYTES]) -> Self {
        let digest: [u8; 32] =
            Sha256::new_with_prefix("skerry key id\0").chain_update(key).finalize().into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        Self([a, b, c, d, e, f, g, h])
    }

    /// The first bytes of everything that is sealed with this key.
    fn header(self) -> [u8; HEADER_BYTES] {
        let [a, b, c, d, e, f, g, h] = self.0;
        [VERSION, a, b, c, d, e, f, g, h]
    }
}

/// The keys of the store. Cheap to clone.
#[derive(Clone)]
pub struct KeyRing {
    path: Arc<Path>,
    /// Seals, and opens what it sealed.
    newest: Arc<Key>,
    /// Open what was sealed with them.
    older: Arc<[Key]>,
    rng: Arc<dyn Rng>,
}

struct Key {
    id: KeyId,
    cipher: XChaCha20Poly1305,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("path", &self.path).finish_non_exhaustive()
    }
}

impl KeyRing {
    /// Reads the key file, or makes one with a new key; only its owner can read it. `rng` must be a
    /// cryptographic source: the keys and the nonces come from it.
    ///
    /// # Errors
    /// When the file cannot be read or made, or is not a key file.
    pub fn open(path: &Path, rng: Arc<dyn Rng>) -> Result<Self, Error> {
        let failed = |source| SealingError::File { path: path.to_owned(), source };
        let text = match read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(path, &*rng).map_err(failed)?;
                read(path).map_err(failed)?
            }
            Err(error) => return Err(failed(error).into()),
        };
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let malformed = SealingError::Malformed { path: path.to_owned(), line: index + 1 };
            let Some(key) = parse(line) else { return Err(malformed.into()) };
            keys.push(Key { id: KeyId::of(&key), cipher: XChaCha20Poly1305::new(&key.into()) });
        }
        let Some(newest) = keys.pop() else {
            let empty = io::Error::new(io::ErrorKind::InvalidData, "it holds no key");
            return Err(failed(empty).into());
        };
        Ok(Self { path: path.into(), newest: Arc::new(newest), older: keys.into(), rng })
    }

    /// How everything begins that is sealed from now on.
    pub(super) fn newest_header(&self) -> [u8; HEADER_BYTES] {
        self.newest.id.header()
    }

    /// Seals `plain` for the record named by `owner`.
    ///
    /// # Errors
    /// When it is too long to be sealed.
    pub fn seal(&self, owner: &str, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let mut nonce = [0_u8; NONCE_BYTES];
        self.rng.fill(&mut nonce);
        let payload = Payload { msg: plain, aad: owner.as_bytes() };
        let ciphertext = self
            .newest
            .cipher
            .encrypt(&nonce.into(), payload)
            .map_err(|_| SealingError::NotSealed)?;
        Ok([self.newest_header().as_slice(), &nonce, &ciphertext].concat())
    }

    /// Opens what was sealed for the record named by `owner`.
    ///
    /// # Errors
    /// There is no key for it, or it is damaged or another's.
    pub fn open_sealed(&self, owner: &str, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let (header, rest) =
            sealed.split_first_chunk::<HEADER_BYTES>().ok_or(SealingError::Damaged)?;
        let (nonce, ciphertext) =
            rest.split_first_chunk::<NONCE_BYTES>().ok_or(SealingError::Damaged)?;
        let cipher = self.key_of(header)?;
        let payload = Payload { msg: ciphertext, aad: owner.as_bytes() };
        Ok(cipher.decrypt(&(*nonce).into(), payload).map_err(|_| SealingError::Damaged)?)
    }

    /// Whether it was sealed with the newest key.
    #[must_use]
    pub fn is_newest(&self, sealed: &[u8]) -> bool {
        sealed.starts_with(&self.newest_header())
    }

    /// Whether there is a key for values that begin with `header`.
    ///
    /// # Errors
    /// That there is none, in words for whoever has the right file.
    pub fn check(&self, header: &[u8]) -> Result<(), Error> {
        let header = header.first_chunk::<HEADER_BYTES>().ok_or(SealingError::Damaged)?;
        self.key_of(header).map(drop).map_err(Error::from)
    }

    fn key_of(&self, header: &[u8; HEADER_BYTES]) -> Result<&XChaCha20Poly1305, SealingError> {
        let [version, id @ ..] = *header;
        if version != VERSION {
            return Err(SealingError::Damaged);
        }
        let key = KeyId(id);
        let mut keys = std::iter::once(&*self.newest).chain(self.older.iter());
        keys.find(|candidate| candidate.id == key)
            .map(|found| &found.cipher)
            .ok_or_else(|| SealingError::NoSuchKey { path: self.path.to_path_buf(), key })
    }
}

fn parse(line: &str) -> Option<[u8; KEY_BYTES]> {
    URL_SAFE_NO_PAD.decode(line).ok()?.try_into().ok()
}

/// The file's text; its rights are narrowed to its owner if they were wider.
fn read(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others could read the key file; now they cannot");
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    let mut text = String::new();
    file.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Makes the file with one new key. Written whole and synced under another name first: a crash must
/// leave either no key or one that lasts, because values are sealed with it from then on.
fn make(path: &Path, rng: &dyn Rng) -> io::Result<()> {
    let mut key = [0_u8; KEY_BYTES];
    rng.fill(&mut key);
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(PREAMBLE.as_bytes())?;
    writeln!(file, "{}", URL_SAFE_NO_PAD.encode(key))?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()?;
    tracing::info!(path = %path.display(), "a key for stored secrets was made");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SeededRng;

    fn ring(directory: &Path) -> KeyRing {
        KeyRing::open(&directory.join("secret.key"), Arc::new(SeededRng::new(7))).unwrap()
    }

    fn cause(error: &Error) -> String {
        std::error::Error::source(error).unwrap().to_string()
    }

    #[test]
    fn the_key_file_is_made_once_and_only_its_owner_can_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let first = ring(directory.path());
        let path = directory.path().join("secret.key");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let sealed = first.seal("a", b"words").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let second = ring(directory.path());
        assert_eq!(second.open_sealed("a", &sealed).unwrap(), b"words");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_sealed_value_opens_only_for_its_record_and_only_whole() {
        let directory = tempfile::tempdir().unwrap();
        let ring = ring(directory.path());
        let sealed = ring.seal("a", b"words").unwrap();
        assert!(!sealed.windows(5).any(|window| window == b"words"));
        assert!(ring.open_sealed("b", &sealed).is_err());
        for end in 0..sealed.len() {
            assert!(ring.open_sealed("a", &sealed[..end]).is_err(), "{end}");
            let mut flipped = sealed.clone();
            flipped[end] ^= 1;
            assert!(ring.open_sealed("a", &flipped).is_err(), "{end}");
        }
        assert_eq!(ring.open_sealed("a", &sealed).unwrap(), b"words");
    }

    #[test]
    fn the_same_value_sealed_twice_does_not_look_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let ring = ring(directory.path());
        assert_ne!(ring.seal("a", b"words").unwrap(), ring.seal("a", b"words").unwrap());
    }

    #[test]
    fn a_new_line_seals_from_then_on_and_the_old_ones_still_open() {
        let directory = tempfile::tempdir().unwrap();
        let before = ring(directory.path());
        let old = before.seal("a", b"old").unwrap();
        let path = directory.path().join("secret.key");
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str(&format!("\n{}\n", URL_SAFE_NO_PAD.encode([9; KEY_BYTES])));
        std::fs::write(&path, text).unwrap();
        let after = ring(directory.path());
        let new = after.seal("a", b"new").unwrap();
        assert_eq!(after.open_sealed("a", &old).unwrap(), b"old");
        assert_eq!(after.open_sealed("a", &new).unwrap(), b"new");
        let refused = cause(&before.open_sealed("a", &new).unwrap_err());
        assert!(refused.contains("has no key") && refused.contains("secret.key"), "{refused}");
        assert!(after.check(&old).is_ok() && before.check(&new).is_err());
    }

    #[test]
    fn a_file_that_is_not_a_key_file_is_refused_without_being_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret.key");
        for text in ["# only words\n", "", "hunter2\n"] {
            std::fs::write(&path, text).unwrap();
            let error = KeyRing::open(&path, Arc::new(SeededRng::new(7))).unwrap_err();
            let error = cause(&error);
            assert!(error.contains("secret.key") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_key_ring_does_not_print_its_keys() {
        let directory = tempfile::tempdir().unwrap();
        let ring = ring(directory.path());
        let text = std::fs::read_to_string(directory.path().join("secret.key")).unwrap();
        let key = text.lines().last().unwrap();
        assert!(!format!("{ring:?}").contains(key));
    }
}
