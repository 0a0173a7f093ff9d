//! The registry of identifiers. One 128-bit number per object; a dialect gives it a printed form.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// An identifier from 16 random bytes drawn by the caller (the UUID version bits are set,
            /// so that the UUID form of the id is a valid version 4 UUID).
            #[must_use]
            pub fn from_random(bytes: [u8; 16]) -> Self {
                Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
            }

            /// The identifier whose UUID form is `uuid`.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID form.
            #[must_use]
            pub const fn as_uuid(self) -> Uuid {
                self.0
            }

            /// The number itself.
            #[must_use]
            pub const fn as_u128(self) -> u128 {
                self.0.as_u128()
            }

            /// The identifier with this number.
            #[must_use]
            pub const fn from_u128(number: u128) -> Self {
                Self(Uuid::from_u128(number))
            }
        }

        impl fmt::Display for $name {
            /// The hyphenated UUID form, used in logs, file names and the database.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::try_parse(text).map(Self)
            }
        }
    )*};
}

ids! {
    /// A tenant: who owns workspaces, projects and keys.
    AccountId;
    /// One API key of an account (the record, not the secret).
    ApiKeyId;
    /// A part of workspaces-to-be that an account keeps: a service, a setup script, a template.
    BlueprintId;
    /// A frozen state of a volume.
    CheckpointId;
    /// A custom domain: a name somebody has brought.
    DomainId;
    /// A machine that runs VMs.
    NodeId;
    /// A grouping of workspaces (Aether's project).
    ProjectId;
    /// A port of a workspace with an address of its own outside.
    PublishedPortId;
    /// A saved state of a workspace: disk, or disk and memory.
    SnapshotId;
    /// One SSH key of an account.
    SshKeyId;
    /// A vault: credentials that guests use without having them.
    VaultId;
    /// One credential of a vault.
    VaultCredentialId;
    /// Hosts for which a vault's credentials are used.
    VaultServiceId;
    /// A volume: a file system that outlives workspaces.
    VolumeId;
    /// A process that a workspace's guest supervises.
    WorkloadId;
    /// A workspace: the tenant's record of one machine over all its starts.
    WorkspaceId;
}

/// Which start of a workspace something belongs to. Counts from 1; a workspace that was never
/// started has incarnation 0. Reports and clean-ups that carry an older number are dropped.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// The number of the next start.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
