//! What the gateways ask: whom somebody at the door may see, and the inside of it.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use skerry_model::{Secret, WorkspaceId};
use thiserror::Error;

use crate::{GuestApi, OpenPreview, PreviewAddress, PreviewCredential, PreviewRefusal};

/// SHA-256 of a public SSH key's wire form (RFC 4253, section 6.6).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyFingerprint(pub [u8; 32]);

impl fmt::Debug for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyFingerprint(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// Which password of a workspace somebody has shown: each has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SshPasswordId(pub u128);

/// 32 hexadecimal digits.
impl fmt::Display for SshPasswordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::str::FromStr for SshPasswordId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

/// What somebody at the door has shown. The gateway has made sure that it is theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteCredential {
    /// An SSH key of an account.
    SshKey(KeyFingerprint),
    /// The password of a login of one workspace.
    SshPassword(SshPasswordId),
}

/// Why somebody does not get in.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RouteError {
    /// Nobody has this credential, or its owner has no such workspace: the two are not told apart.
    #[error("no such workspace")]
    NotFound,
    /// It is there and cannot be entered now: fit to be shown to its owner.
    #[error("{0}")]
    Refused(String),
    /// A fault of ours; the cause is in the log.
    #[error("internal error")]
    Internal,
}

/// The way from the gateways to workspaces.
#[async_trait]
pub trait RouteApi: Send + Sync {
    /// The workspace that the credential's owner means by `name`: a name, a slug, an identifier in any
    /// printed form, or Rigbox's `<name>-<identifier>`. In whatever state; wakes nobody.
    ///
    /// # Errors
    /// [`RouteError::NotFound`], also for a name that fits more than one.
    async fn find(
        &self,
        credential: &RouteCredential,
        name: &str,
    ) -> Result<WorkspaceId, RouteError>;

    /// Whether the password is that of a login of the workspace that `name` says, in any printed form of
    /// its identifier; then what shows it from then on. How often that may be tried is bounded.
    ///
    /// # Errors
    /// [`RouteError::NotFound`], whatever is wrong.
    async fn log_in(
        &self,
        name: &str,
        login: &str,
        password: &Secret,
    ) -> Result<(RouteCredential, WorkspaceId), RouteError>;

    /// The inside of it: checks anew that the credential still opens it, and wakes it if it may be
    /// woken. Use of the handle counts as use of the workspace.
    ///
    /// # Errors
    /// [`RouteError::NotFound`]; [`RouteError::Refused`] when it does not run and is not woken.
    async fn enter(
        &self,
        credential: &RouteCredential,
        workspace: WorkspaceId,
    ) -> Result<Arc<dyn GuestApi>, RouteError>;

    /// The port at this address, if it is open to everybody or to one of these credentials, of a
    /// workspace that is woken if it may be.
    ///
    /// # Errors
    /// [`PreviewRefusal`].
    async fn open_preview(
        &self,
        address: &PreviewAddress,
        shown: &[PreviewCredential],
    ) -> Result<OpenPreview, PreviewRefusal>;
}
