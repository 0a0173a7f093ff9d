//! The certificate that somebody else renews, in files.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
};

use skerry_model::Secret;
use thiserror::Error;

use super::{BadCertificate, ServerCertificate};

/// Why files cannot be used; names the file.
#[derive(Debug, Error)]
pub enum BadFiles {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in them is of no use.
    #[error("{} and {}: {source}", certificate.display(), key.display())]
    Unusable {
        /// The chain's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: BadCertificate,
    },
}

/// Which state of a file was read: another one is told by any of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl From<Metadata> for Seen {
    fn from(found: Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

/// A PEM chain and a PEM key on disk.
#[derive(Debug)]
pub struct CertificateFiles {
    certificate: PathBuf,
    key: PathBuf,
    seen: Option<[Seen; 2]>,
}

impl CertificateFiles {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(certificate: PathBuf, key: PathBuf) -> Self {
        Self { certificate, key, seen: None }
    }

    /// Reads both.
    ///
    /// # Errors
    /// [`BadFiles`]. They are then read again as soon as they have changed, and not before.
    pub fn read(&mut self) -> Result<ServerCertificate, BadFiles> {
        // Looked at first: a change while they are read is then seen the next time.
        self.seen = Some(self.look()?);
        let chain = fs::read_to_string(&self.certificate);
        let chain = chain.map_err(|source| unreadable(&self.certificate, source))?;
        let key = fs::read_to_string(&self.key);
        let key = Secret::new(key.map_err(|source| unreadable(&self.key, source))?);
        ServerCertificate::from_pem(&chain, &key).map_err(|source| BadFiles::Unusable {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        })
    }

    /// Reads both if one of them is not as it was when they were read.
    ///
    /// # Errors
    /// As [`CertificateFiles::read`].
    pub fn read_if_changed(&mut self) -> Result<Option<ServerCertificate>, BadFiles> {
        let changed = self.seen != Some(self.look()?);
        if changed { self.read().map(Some) } else { Ok(None) }
    }

    fn look(&self) -> Result<[Seen; 2], BadFiles> {
        let look = |path: &PathBuf| {
            fs::metadata(path).map(Seen::from).map_err(|source| unreadable(path, source))
        };
        Ok([look(&self.certificate)?, look(&self.key)?])
    }
}

fn unreadable(path: &std::path::Path, source: io::Error) -> BadFiles {
    BadFiles::Unreadable { path: path.to_owned(), source }
}
