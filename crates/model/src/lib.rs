//! What a workspace *is*: identifiers, quantities, the specification of a workspace, its states and
//! the transitions between them, limits, and the decisions made from them.
//!
//! Everything here is pure: no I/O, no async, no clock and no randomness of its own (time and random
//! bytes are arguments). This crate refuses to know HTTP, databases, hypervisors and every dialect:
//! it does not know how an identifier looks on anyone's wire, only which 128 bits it is.

pub mod blueprint;
pub mod checkpoint;
pub mod dns_provider;
pub mod domain;
pub mod error;
pub mod failure;
pub mod id;
pub mod lifecycle;
pub mod limits;
pub mod name;
pub mod network;
pub mod network_wish;
pub mod quantity;
pub mod reconcile;
pub mod secret;
pub mod snapshot;
pub mod spec;
pub mod state;
pub mod vault;
pub mod volume;
pub mod workload;
pub mod workspace;

#[cfg(test)]
mod test_ground;

pub use blueprint::{
    Blueprint, BlueprintBody, BlueprintKind, Floor, MAX_BLUEPRINTS, MAX_SCRIPTS_BYTES, MadeFrom,
    ServiceSpec, SetupRuns, SetupScript, Template,
};
pub use checkpoint::{Checkpoint, MAX_CHECKPOINTS_OF_A_VOLUME, next_checkpoint_step};
pub use dns_provider::{DnsAccess, DnsProvider, DnsProviderKind};
pub use domain::{CustomDomain, DomainState, Issuance, KeyedCertificate, check_domain_name};
pub use error::{ErrorKind, Invalid};
pub use failure::{Failure, FailureCode};
pub use id::{
    AccountId, ApiKeyId, BlueprintId, CheckpointId, DomainId, Incarnation, NodeId, ProjectId,
    PublishedPortId, SnapshotId, SshKeyId, VaultCredentialId, VaultId, VaultServiceId, VolumeId,
    WorkloadId, WorkspaceId,
};
pub use lifecycle::{
    Backoff, Cause, Expiry, ExpiryAction, FinalSnapshot, IdleAction, IdlePolicy, LastEnd,
    Lifecycle, RestartMode, RestartPolicy, SnapshotOnTerminate, Timer,
};
pub use limits::{Demand, Plan, Pool, Range, RequestedShape, Usage};
pub use name::{DisplayName, Slug};
pub use network::{
    Destination, EgressRule, HostName, Ipv4Network, NamePattern, NetworkPolicy, Opening,
    OutboundProxy, PortRange, PrivateAddress, ProxyCredentials, ProxyProtocol, Transport,
};
pub use network_wish::{
    EgressWish, InternetScope, Neighbour, Neighbourhood, NetworkWish, OpenPorts, Outbound,
    ProxyName,
};
pub use quantity::{DiskMib, MemMib, VcpuCount};
pub use reconcile::{NodeView, Step, VmEnd, VmViewPhase, next_step};
pub use secret::Secret;
pub use snapshot::{
    Snapshot, SnapshotContents, SnapshotEvent, SnapshotFacts, SnapshotPurpose, SnapshotState,
    SnapshotStep, StartFrom, StartPath, next_snapshot_step,
};
pub use spec::{EnvVar, ImageRef, Lifetime, Origin, Shape, WorkspaceSpec};
pub use state::{Desired, Event, Moved, Refusal, State, StillThere, Transition, transition};
pub use vault::{
    CATALOGUE, CatalogueAuth, CatalogueEntry, ServiceAuth, Vault, VaultCredential, VaultRequest,
    VaultService,
};
pub use volume::{
    AttachRefusal, Attachment, HeldMount, MountMode, MountPath, MountProgress, MountStep, OnNode,
    Volume, VolumeEvent, VolumeMount, VolumeSlot, VolumeState, VolumeStep, admit_attachment,
    check_volume_growth, check_volume_size, next_mount_step, next_volume_step,
};
pub use workload::{
    MAX_WORKLOADS, OnExit, Workload, WorkloadDesired, WorkloadKind, WorkloadOrigin, WorkloadRef,
    WorkloadRestart, Workloads,
};
pub use workspace::{AfterRestore, Wish, Workspace};

/// A point in time, UTC, with nanosecond precision.
pub type Timestamp = jiff::Timestamp;
