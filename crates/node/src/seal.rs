//! What is secret in the node's own files is sealed: a copy of the data directory (a backup, a disk that
//! is thrown away) must not give tenants' passwords away. Whoever can read the server's memory, or the
//! memory of a guest, can read them all the same.

use thiserror::Error;

/// Seals and opens secrets. The keys are the server's.
pub trait Seal: Send + Sync {
    /// Seals `plain` so that only [`Seal::open`] with the same `owner` gives it back.
    ///
    /// # Errors
    /// When it cannot be sealed.
    fn seal(&self, owner: &str, plain: &[u8]) -> Result<Vec<u8>, SealError>;

    /// What was sealed for `owner`.
    ///
    /// # Errors
    /// [`SealError::NoSuchKey`], [`SealError::Damaged`].
    fn open(&self, owner: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError>;

    /// Whether it is sealed with the key that is used now: what is not is sealed anew at the next start,
    /// so that an older key can go.
    fn is_current(&self, sealed: &[u8]) -> bool;
}

/// Why something could not be sealed or opened.
#[derive(Debug, Error)]
pub enum SealError {
    /// The key it was sealed with is not there: the server must not start, for nobody would have what
    /// was sealed.
    #[error("{0}")]
    NoSuchKey(String),
    /// It is not what was sealed, or not for that owner.
    #[error("a sealed value is damaged or belongs to something else")]
    Damaged,
    /// It could not be sealed.
    #[error("a value could not be sealed: {0}")]
    Failed(String),
}
