//! SSH.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where the server speaks SSH.
#[derive(Debug, Serialize, ToSchema)]
pub struct Ssh {
    /// Null when it does not.
    pub endpoint: Option<SshEndpoint>,
}

/// An address for `ssh`.
#[derive(Debug, Serialize, ToSchema)]
pub struct SshEndpoint {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The gateway's public key, as in a `.pub` file.
    pub host_key: String,
}

/// Who enters a workspace by SSH, beside who has a key of the account.
#[derive(Debug, Serialize, ToSchema)]
pub struct SshAccess {
    /// Whether anybody does.
    pub open: bool,
    /// Whether it has a password.
    pub has_password: bool,
    /// Whether one of its passwords was chosen by its owner.
    pub password_chosen: bool,
}

/// A workspace that was opened to SSH.
#[derive(Serialize, ToSchema)]
pub struct SshOpened {
    /// A password for root, which was made because there was none. It is shown this once.
    pub password: Option<String>,
}

/// A password of a workspace.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSshPassword {
    /// Whose, inside [default: root].
    pub user: Option<String>,
    /// At least 8 characters, at most 128 bytes, no control characters.
    pub password: String,
}

/// The account's SSH keys.
#[derive(Debug, Serialize, ToSchema)]
pub struct SshKeyList {
    /// The keys, oldest first.
    pub ssh_keys: Vec<SshKey>,
}

/// An SSH key.
#[derive(Debug, Serialize, ToSchema)]
pub struct SshKey {
    /// Its identity, a UUID.
    pub id: String,
    /// The owner's name for it.
    pub name: String,
    /// As SSH names it: `ssh-ed25519`...
    pub algorithm: String,
    /// `SHA256:` and the digest in base 64, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// As in a `.pub` file, without its comment.
    pub public_key: String,
    /// When it was added.
    #[schema(format = DateTime)]
    pub created_at: String,
}

/// An SSH key to add.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddSshKey {
    /// A name to tell keys apart [default: the key's comment].
    #[schema(min_length = 1, max_length = 100)]
    pub name: Option<String>,
    /// A line of a `.pub` file. DSA, and RSA of less than 2048 bits, are not accepted.
    pub public_key: String,
}
