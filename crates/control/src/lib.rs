//! The control plane: use cases, the reconciler that brings every workspace from what it is to what
//! it should be, limits, keys, and the store.
//!
//! Control places and records; the node executes. It refuses to know HTTP (no status code, no header,
//! no dialect) and hypervisors (no process, no socket). The bytes of exec, files and logs pass through
//! handles it gives out, never through its own queues.

pub mod access;
pub mod blueprints;
pub mod catalogue;
pub mod config;
pub mod doctor;
pub mod domains;
pub mod error;
pub mod images;
pub mod keys;
pub mod network;
pub mod ports;
pub mod projects;
pub mod quota;
pub mod reconciler;
pub mod route;
pub mod runtime_access;
pub mod sim_node;
pub mod snapshots;
pub mod ssh_access;
pub mod ssh_keys;
pub mod store;
pub mod testing;
pub mod vaults;
pub mod volumes;
pub mod workloads;
pub mod workspaces;

mod activity;
mod control;
mod preview;

pub use access::{Caller, Credential};
pub use blueprints::TemplateView;
pub use catalogue::{
    AppCatalogue, AppParam, AppParamKind, AppService, CatalogApp, ChosenApp, InstalledApp,
    Reconciled,
};
pub use config::{ControlConfig, Environment, Rng, ServerProxy};
pub use control::Control;
pub use domains::{DomainCheck, DomainRef, DomainView};
pub use error::Error;
pub use keys::{ApiKey, NewApiKey};
pub use network::{NetworkRefusal, NetworkRefusals, NetworkView, Peer, RefusedEgress};
pub use ports::{PortVisibility, Publication, PublishPort, PublishedPort};
pub use projects::{CreateProject, Project};
pub use quota::Quota;
pub use runtime_access::{RuntimeToken, RuntimeVisit};
pub use snapshots::{CreateSnapshot, DeletedSnapshot, ListSnapshots, SnapshotRef, UpdateSnapshot};
pub use ssh_access::SshAccess;
pub use ssh_keys::SshKey;
pub use vaults::{NewCredential, NewService, UpdateVault};
pub use volumes::{AttachVolume, CheckpointRef, CreateVolume, VolumeRef, VolumeView};
pub use workloads::{NewWorkload, UpdateWorkload, WorkloadVerb, WorkloadView};
pub use workspaces::{
    AllStopped, ConditionalWish, CreateWorkspace, Deleted, ExpiryRenewal, ForkWorkspace, Forked,
    LifecycleChange, ListWorkspaces, Page, RestoreWorkspace, Setting, StartPolicy, UpdateWorkspace,
    Wait, WorkspaceRef,
};

pub use skerry_internal_api as internal_api;
