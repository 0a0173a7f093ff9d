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
