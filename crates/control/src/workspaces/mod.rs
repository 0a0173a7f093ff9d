//! Use cases on workspaces.

mod create;
mod fork;
mod inside;
mod lifecycle;
mod read;
mod rest;
mod restore;
mod stop_all;
mod update;
mod wishes;

pub use fork::{ForkWorkspace, Forked};
pub use lifecycle::{ExpiryRenewal, LifecycleChange, Setting};
pub use restore::RestoreWorkspace;
pub use stop_all::AllStopped;

pub(crate) use wishes::refused;

use std::{collections::BTreeMap, time::Duration};

use skerry_model::{
    BlueprintId, EnvVar, Expiry, IdlePolicy, Lifetime, NetworkWish, ProjectId, RestartPolicy,
    SnapshotOnTerminate, VaultId, Workspace, WorkspaceId,
    spec::{CpuKind, LogRetention},
};

use crate::{AttachVolume, ChosenApp, NewWorkload, SnapshotRef};

/// How a request names a workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkspaceRef {
    /// By identity.
    Id(WorkspaceId),
    /// By slug.
    Slug(String),
    /// By slug, else by name when the caller has exactly one of that name (`Conflict` when there
    /// are more).
    SlugOrName(String),
}

/// Whether creating also starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartPolicy {
    /// Stays provisioned until started.
    Later,
    /// Starts.
    Now(Wait),
}

/// How long a call stays for the work it asked for. The work goes on when the wait is over; the
/// answer then shows the state reached so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Answer as soon as the wish is recorded.
    No,
    /// Answer when the workspace has settled (running, paused, suspended, stopped, failed, gone), or
    /// after this long.
    UpTo(Duration),
}

/// What became of a wish that depended on a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConditionalWish {
    /// The condition was met: the record with the wish.
    Recorded(Workspace),
    /// It was not, and nothing changed: the record as it is.
    NotMet(Workspace),
}

/// What a new workspace should be. Numbers are as the request gave them: they are checked here.
#[derive(Clone, Debug, PartialEq)]
pub struct CreateWorkspace {
    /// `None`: a name is made from the image's.
    pub name: Option<String>,
    /// `None`: a slug is made from the name.
    pub slug: Option<String>,
    /// `None`: the default project.
    pub project_id: Option<ProjectId>,
    /// Oblien's grouping word.
    pub namespace: Option<String>,
    /// A template, as [`crate::TemplateView::id`] names it. Its image, sizes and blueprints are the
    /// workspace's; sizes asked for below its own are raised to them.
    pub template: Option<String>,
    /// Setup scripts of the account, which run in this order after the template's and before services.
    pub setup: Vec<BlueprintId>,
    /// Services of the account.
    pub services: Vec<BlueprintId>,
    /// Apps of the catalogue, and what was decided of each. They are installed by the first start.
    pub apps: Vec<ChosenApp>,
    /// `None`: the template's, the snapshot's, or else the configured default.
    pub image: Option<String>,
    /// Its disk, and with the same shape its memory, are this snapshot's. Then `image` must be `None`.
    pub from_snapshot: Option<SnapshotRef>,
    /// `None`: the snapshot's, or else the plan's default. So for the next two. From a snapshot,
    /// another number of CPUs or amount of memory than its own means that the guest boots from its
    /// disk.
    pub vcpu_count: Option<u64>,
    /// MiB.
    pub memory_mib: Option<u64>,
    /// MiB of writable space; from a snapshot not less than the snapshot's.
    pub disk_mib: Option<u64>,
    /// CPU share class.
    pub cpu_kind: CpuKind,
    /// Environment.
    pub env: Vec<EnvVar>,
    /// Permanent or temporary.
    pub lifetime: Lifetime,
    /// Time to live.
    pub expiry: Option<Expiry>,
    /// Exempt from what the idle policy would do.
    pub keep_active: bool,
    /// What happens when nobody uses it.
    pub idle: Option<IdlePolicy>,
    /// What happens when its VM ends by itself.
    pub restart: RestartPolicy,
    /// It is deleted when its VM ends by itself.
    pub remove_on_exit: bool,
    /// A deletion takes a snapshot first.
    pub snapshot_on_terminate: Option<SnapshotOnTerminate>,
    /// Using its inside wakes it when it is paused, suspended, or was stopped by its idle policy.
    pub auto_resume: bool,
    /// Console log across starts.
    pub log_retention: LogRetention,
    /// What it asks of the network; `None`: what the server gives who does not ask.
    pub network: Option<NetworkWish>,
    /// Volumes it has from its first start on.
    pub volumes: Vec<AttachVolume>,
    /// Whose credentials its guest may use.
    pub vaults: Vec<VaultId>,
    /// What its guest supervises.
    pub workloads: Vec<NewWorkload>,
    /// Labels.
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// Start at once or later.
    pub start: StartPolicy,
}

impl CreateWorkspace {
    /// A request in which everything is left to the defaults.
    #[must_use]
    pub fn new(start: StartPolicy) -> Self {
        Self {
            name: None,
            slug: None,
            project_id: None,
            namespace: None,
            template: None,
            setup: Vec::new(),
            services: Vec::new(),
            apps: Vec::new(),
            image: None,
            from_snapshot: None,
            vcpu_count: None,
            memory_mib: None,
            disk_mib: None,
            cpu_kind: CpuKind::default(),
            env: Vec::new(),
            lifetime: Lifetime::default(),
            expiry: None,
            keep_active: false,
            idle: None,
            restart: RestartPolicy::default(),
            remove_on_exit: false,
            snapshot_on_terminate: None,
            auto_resume: false,
            log_retention: LogRetention::default(),
            network: None,
            volumes: Vec::new(),
            vaults: Vec::new(),
            workloads: Vec::new(),
            metadata: BTreeMap::new(),
            start,
        }
    }
}

/// Which workspaces to list; newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListWorkspaces {
    /// Only of this project.
    pub project_id: Option<ProjectId>,
    /// Only of this namespace.
    pub namespace: Option<String>,
    /// Only permanent or temporary ones.
    pub lifetime: Option<Lifetime>,
    /// Only in a state of one of these names ([`skerry_model::State::name`]); empty means all.
    pub states: Vec<&'static str>,
    /// Skip this many.
    pub offset: u64,
    /// At most this many; `None` means all.
    pub limit: Option<u64>,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// How many there are without `offset` and `limit`.
    pub total: u64,
}

/// What to change; `None` leaves as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UpdateWorkspace {
    /// New name.
    pub name: Option<String>,
    /// New slug.
    pub slug: Option<String>,
    /// New size; only while no VM is there. MiB; disk may only grow.
    pub vcpu_count: Option<u64>,
    /// See `vcpu_count`.
    pub memory_mib: Option<u64>,
    /// See `vcpu_count`.
    pub disk_mib: Option<u64>,
    /// New CPU share class; only while no VM is there.
    pub cpu_kind: Option<CpuKind>,
    /// New environment (replaces); takes effect at the next start.
    pub env: Option<Vec<EnvVar>>,
    /// Exempt from idle stop.
    pub keep_active: Option<bool>,
    /// New labels (replace).
    pub metadata: Option<BTreeMap<String, serde_json::Value>>,
}

/// What is left of a workspace that was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// The record as it was last.
    pub workspace: Workspace,
    /// Whether everything is gone already; `false` means it goes on in the background.
    pub complete: bool,
}
