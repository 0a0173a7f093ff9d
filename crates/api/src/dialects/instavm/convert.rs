//! Between InstaVM's wire and the core: total, pure.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use skerry_control::{
    CreateWorkspace, SnapshotRef, StartPolicy, UpdateWorkspace, Wait, internal_api::GuestStats,
};
use skerry_model::{
    Desired, EnvVar, Expiry, Failure, Incarnation, Origin, Snapshot, SnapshotState, StartFrom,
    State, Timestamp, Workspace,
};

use super::{
    error_body::Problem,
    rules::{self, Rules},
    snapshots::snapshot_ref,
    validation::{FieldError, Fields, parse_boolean},
    volumes,
    wire::{
        Sandbox, SessionRecord, SessionStatus, SnapshotRecord, Usage, VmCreated, VmRecord, VmState,
    },
};
use crate::{SshEndpoint, ids};

/// Where clients look for SSH.
const SSH_PORT: u16 = 22;
const DEFAULT_VCPU_COUNT: u64 = 2;
const DEFAULT_MEMORY_MB: u64 = 512;
const DEFAULT_SESSION_LIFETIME_SECONDS: u32 = 300;
const MIN_SESSION_LIFETIME_SECONDS: u32 = 20;
const MAX_SESSION_LIFETIME_SECONDS: u32 = 86_400;
/// The variant that means the server's default image.
const STANDARD_VARIANT: &str = "standard";
/// How long a call stays for what it asked for: below the 300 s that clients wait.
const LONGEST_WAIT: Duration = Duration::from_secs(280);

/// The values, by their type, that ask for nothing.
const NO_OBJECT: &str = "null";
const NO_LIST: &str = "null or an empty list";

/// What `POST /v1/vms` asks for.
#[derive(Debug)]
pub(super) enum VmRequest {
    /// A new session with a VM.
    New(Box<CreateWorkspace>),
    /// A VM for a session that has none.
    Attach(Box<Attach>),
}

/// A VM for a session that has none: what changes, and what it begins with.
#[derive(Debug)]
pub(super) struct Attach {
    pub(super) session_id: String,
    pub(super) update: UpdateWorkspace,
    pub(super) rules: Rules,
    /// `None`: the session's own disk.
    pub(super) snapshot: Option<SnapshotRef>,
}

/// `?wait=`: absent means yes.
pub(super) fn wait(word: Option<&str>) -> Result<bool, Problem> {
    parse_boolean(word.unwrap_or("true")).ok_or_else(|| {
        Problem::Unprocessable(vec![FieldError::in_query(
            "wait",
            "Input should be a valid boolean, unable to interpret input",
            "bool_parsing",
        )])
    })
}

/// What a yes to waiting means.
pub(super) const fn wait_for(waits: bool) -> Wait {
    if waits { Wait::UpTo(LONGEST_WAIT) } else { Wait::No }
}

/// The body of `POST /v1/vms`.
pub(super) fn vm_request(mut fields: Fields, wait: Wait) -> Result<VmRequest, Problem> {
    let session_id = fields.text("session_id");
    let rules = Rules::read(&mut fields, 1..=u32::MAX);
    let snapshot_id = given_text(&mut fields, "snapshot_id");
    let shape = ShapeAndLabels::read(&mut fields);
    let image = fields.text("image_variant");
    let volumes = volumes::wishes(&mut fields);
    let unserved = first_unserved(&mut fields);
    if session_id.is_none() {
        rules.refuse_name_alone(&mut fields);
    }
    fields.finish()?;
    unserved.map_or(Ok(()), Err)?;
    rules.check_lifetime(Expiry::MAX_SECONDS)?;
    let snapshot = snapshot_id.as_deref().map(snapshot_ref).transpose()?;
    let volumes = volumes?;

    let Some(session_id) = session_id else {
        let request = shape.create(image, snapshot, &rules, wait);
        return Ok(VmRequest::New(Box::new(CreateWorkspace { volumes, ..request })));
    };
    if !volumes.is_empty() {
        return Err(Problem::Unserved {
            field: "volumes together with session_id",
            accepted: "null or an empty list: mount them in the session's VM",
        });
    }
    if image.is_some_and(|variant| variant != STANDARD_VARIANT) {
        return Err(Problem::Unserved {
            field: "image_variant together with session_id",
            accepted: "\"standard\" or null: the session keeps its disk",
        });
    }
    let attach = Attach { session_id, update: shape.update(), rules, snapshot };
    Ok(VmRequest::Attach(Box::new(attach)))
}

/// The body of `POST /v1/sessions/session`.
pub(super) fn session_request(mut fields: Fields, wait: Wait) -> Result<CreateWorkspace, Problem> {
    let rules = Rules::read(&mut fields, MIN_SESSION_LIFETIME_SECONDS..=u32::MAX);
    let snapshot_id = given_text(&mut fields, "snapshot_id");
    let shape = ShapeAndLabels::read(&mut fields);
    let image = fields.text("image_variant");
    let unserved = first_unserved(&mut fields);
    rules.refuse_name_alone(&mut fields);
    fields.finish()?;
    unserved.map_or(Ok(()), Err)?;
    let rules = rules.or_lifetime(DEFAULT_SESSION_LIFETIME_SECONDS);
    rules.check_lifetime(MAX_SESSION_LIFETIME_SECONDS)?;
    let snapshot = snapshot_id.as_deref().map(snapshot_ref).transpose()?;
    Ok(shape.create(image, snapshot, &rules, wait))
}

/// The body of `PATCH /v1/vms/{id}`.
pub(super) fn vm_update(mut fields: Fields) -> Result<(UpdateWorkspace, Rules), Problem> {
    let memory_mib = fields.integer("memory_mb", 128..=8192);
    if memory_mib.is_some_and(|memory| memory % 2 != 0) {
        fields.refuse("memory_mb", "Input should be a multiple of 2");
    }
    let metadata = fields.object("metadata");
    let rules = Rules::read(&mut fields, 1..=u32::MAX);
    let unserved = first_unserved(&mut fields);
    fields.finish()?;
    unserved.map_or(Ok(()), Err)?;
    rules.check_lifetime(Expiry::MAX_SECONDS)?;
    let update = UpdateWorkspace {
        memory_mib,
        metadata: metadata.map(|labels| labels.into_iter().collect()),
        ..UpdateWorkspace::default()
    };
    Ok((update, rules))
}

/// The part that create, session and attach have in common.
struct ShapeAndLabels {
    vcpu_count: Option<u64>,
    memory_mib: Option<u64>,
    metadata: Option<BTreeMap<String, Value>>,
    env: Option<Vec<EnvVar>>,
}

impl ShapeAndLabels {
    fn read(fields: &mut Fields) -> Self {
        Self {
            vcpu_count: fields.integer("vcpu_count", 1..=8),
            memory_mib: fields.integer("memory_mb", 128..=8192),
            metadata: fields.object("metadata").map(|labels| labels.into_iter().collect()),
            env: fields
                .texts("env")
                .map(|env| env.into_iter().map(|(key, value)| EnvVar { key, value }).collect()),
        }
    }

    /// Of a snapshot's size when the request names none and a snapshot.
    fn create(
        self,
        image: Option<String>,
        snapshot: Option<SnapshotRef>,
        rules: &Rules,
        wait: Wait,
    ) -> CreateWorkspace {
        let or_default = |given: Option<u64>, default| match snapshot {
            Some(_) => given,
            None => given.or(Some(default)),
        };
        CreateWorkspace {
            image: image.filter(|variant| variant != STANDARD_VARIANT),
            vcpu_count: or_default(self.vcpu_count, DEFAULT_VCPU_COUNT),
            memory_mib: or_default(self.memory_mib, DEFAULT_MEMORY_MB),
            from_snapshot: snapshot,
            env: self.env.unwrap_or_default(),
            lifetime: rules.lifetime(),
            expiry: rules.expiry(),
            auto_resume: rules.auto_resume(),
            snapshot_on_terminate: rules.last_snapshot(),
            metadata: self.metadata.unwrap_or_default(),
            ..CreateWorkspace::new(StartPolicy::Now(wait))
        }
    }

    fn update(self) -> UpdateWorkspace {
        UpdateWorkspace {
            vcpu_count: self.vcpu_count,
            memory_mib: self.memory_mib,
            env: self.env,
            metadata: self.metadata,
            ..UpdateWorkspace::default()
        }
    }
}

/// The first field, in the reference's order, that asks for something this server does not have.
/// All of them are read, so that their types are checked.
fn first_unserved(fields: &mut Fields) -> Option<Problem> {
    // Whoever makes a VM has read it already.
    let egress = fields.object("egress_policy").is_some_and(|policy| {
        policy.values().any(|rule| match rule {
            Value::Null | Value::Bool(false) => false,
            Value::Array(hosts) => !hosts.is_empty(),
            Value::Bool(true) | Value::Number(_) | Value::String(_) | Value::Object(_) => true,
        })
    });
    let asked = [
        ("egress_policy", egress, "null: a policy changes by POST /v1/egress/vm/{vm_id}"),
        ("share", fields.object("share").is_some(), NO_OBJECT),
        ("custom_domain", fields.object("custom_domain").is_some(), NO_OBJECT),
        ("volumes", has_items(fields, "volumes"), NO_LIST),
    ];
    asked
        .into_iter()
        .find(|(_, asked, _)| *asked)
        .map(|(field, _, accepted)| Problem::Unserved { field, accepted })
}

fn given_text(fields: &mut Fields, name: &str) -> Option<String> {
    fields.text(name).filter(|text| !text.is_empty())
}

fn has_items(fields: &mut Fields, name: &str) -> bool {
    fields.list(name).is_some_and(|list| !list.is_empty())
}

/// The failure that ended the last start or the machine, unless the next try was asked for already.
pub(super) fn failure(workspace: &Workspace) -> Option<&Failure> {
    match &workspace.state {
        State::Failed(failure) if workspace.desired != Desired::Running => Some(failure),
        State::Failed(_)
        | State::Provisioned
        | State::Starting
        | State::Running { .. }
        | State::Paused { .. }
        | State::Suspending
        | State::Suspended
        | State::Stopping
        | State::Stopped
        | State::Deleting => None,
    }
}

/// Whether it is to have a VM that it does not have yet.
fn awaits_start(workspace: &Workspace) -> bool {
    workspace.desired == Desired::Running
        && match workspace.state {
            State::Provisioned
            | State::Suspended
            | State::Stopping
            | State::Stopped
            | State::Failed(_) => true,
            State::Starting
            | State::Running { .. }
            | State::Paused { .. }
            | State::Suspending
            | State::Deleting => false,
        }
}

/// The id of its VM. Every start is a VM of its own: one that is asked for has its id already, so
/// that a resume can be answered with it.
pub(super) fn vm_id(workspace: &Workspace) -> String {
    let current = workspace.incarnation;
    let start = if awaits_start(workspace) { current.next() } else { current };
    ids::instavm_vm_id_of_start(workspace.id, start.max(Incarnation(1)))
}

/// The status word of a VM. `stopped` and `stopping` are not InstaVM's own: there a VM that does not
/// run is gone, here another dialect may have stopped it and its disk is kept.
pub(super) fn status(workspace: &Workspace) -> &'static str {
    let coming = match workspace.lifecycle.start_from {
        StartFrom::SavedMemory => "resuming",
        StartFrom::Disk | StartFrom::Snapshot { .. } => "creating",
    };
    match (&workspace.state, workspace.desired) {
        (State::Deleting, _) | (_, Desired::Deleted) => "killed",
        (State::Starting, _) => coming,
        (
            State::Provisioned
            | State::Stopping
            | State::Stopped
            | State::Suspended
            | State::Failed(_),
            Desired::Running,
        ) => coming,
        (
            State::Provisioned | State::Stopped,
            Desired::Paused | Desired::Suspended | Desired::Stopped,
        ) => "stopped",
        (State::Suspended, Desired::Paused | Desired::Suspended | Desired::Stopped) => "suspended",
        (State::Failed(_), Desired::Paused | Desired::Suspended | Desired::Stopped) => "failed",
        (State::Running { .. }, Desired::Suspended) => "suspending",
        (State::Running { .. }, Desired::Running | Desired::Paused | Desired::Stopped) => "active",
        (State::Paused { .. } | State::Suspending, Desired::Running) => "resuming",
        (State::Paused { .. }, Desired::Paused | Desired::Suspended | Desired::Stopped) => {
            "suspended"
        }
        (State::Suspending, Desired::Paused | Desired::Suspended | Desired::Stopped) => {
            "suspending"
        }
        (State::Stopping, Desired::Paused | Desired::Suspended | Desired::Stopped) => "stopping",
    }
}

/// Whether `GET /v1/vms` shows it: there is a machine or what it goes on from, or is about to be.
pub(super) fn is_live(workspace: &Workspace) -> bool {
    matches!(
        status(workspace),
        "creating" | "active" | "suspending" | "suspended" | "resuming" | "stopping"
    )
}

/// Whether it is parked, or going to be, and stays so until it is resumed or used.
pub(super) fn is_resting(workspace: &Workspace) -> bool {
    matches!(status(workspace), "suspending" | "suspended")
}

fn env_status(workspace: &Workspace) -> &'static str {
    match (workspace.spec.env.is_empty(), status(workspace)) {
        (true, _) => "none",
        (false, "active" | "suspending" | "suspended" | "resuming") => "configured",
        (false, "failed" | "killed") => "failed",
        (false, _) => "pending",
    }
}

pub(super) fn vm_created(workspace: &Workspace) -> VmCreated {
    VmCreated {
        vm_id: Some(vm_id(workspace)),
        session_id: ids::uuid_text(workspace.id),
        status: status(workspace),
        share: None,
        custom_domain: None,
        env_status: env_status(workspace),
        env_error: None,
    }
}

/// `ssh` is where the server speaks SSH.
pub(super) fn vm_record(workspace: &Workspace, ssh: Option<&SshEndpoint>) -> VmRecord {
    let vm_id = vm_id(workspace);
    let spec = &workspace.spec;
    let last_snapshot = spec.snapshot_on_terminate.as_ref();
    VmRecord {
        id: vm_id.clone(),
        vm_id,
        session_id: ids::uuid_text(workspace.id),
        status: status(workspace),
        created_at: time(workspace.created_at),
        expires_at: workspace.expires_at.map(time),
        vm_lifetime_seconds: spec.expiry.map(|expiry| expiry.after_seconds),
        auto_suspend: rules::parks(workspace),
        auto_resume: spec.auto_resume,
        snapshot_on_terminate: last_snapshot.is_some(),
        snapshot_name: last_snapshot.and_then(|asked| asked.name.clone()),
        memory_mb: spec.shape.memory_mib.get(),
        vcpu_count: spec.shape.vcpu_count.get(),
        image: spec.image.0.clone(),
        metadata: spec.metadata.clone(),
        private_ip: workspace.private_address.map(|address| address.to_string()),
        snapshot_id: match spec.origin {
            Origin::Image => None,
            Origin::Snapshot { snapshot_id } => Some(snapshot_id.to_string()),
        },
        // Clients make `ssh <vm_id>@<ssh_host>` of it and have no place for a port.
        ssh_host: ssh.filter(|ssh| ssh.port == SSH_PORT).map(|ssh| ssh.host.clone()),
    }
}

/// What became of a VM.
pub(super) fn vm_state(workspace: &Workspace) -> VmState {
    VmState {
        vm_id: vm_id(workspace),
        session_id: ids::uuid_text(workspace.id),
        status: status(workspace),
    }
}

pub(super) fn snapshot_record(snapshot: &Snapshot) -> SnapshotRecord {
    let id = snapshot.id.to_string();
    let error = match &snapshot.state {
        SnapshotState::Failed(failure) => Some(failure.message.clone()),
        SnapshotState::Creating | SnapshotState::Ready | SnapshotState::Deleting => None,
    };
    SnapshotRecord {
        snapshot_id: id.clone(),
        id,
        name: snapshot.name.to_string(),
        status: snapshot.state.name(),
        kind: "user",
        snapshot_type: "user",
        is_public: false,
        session_id: ids::uuid_text(snapshot.workspace_id),
        oci_image: None,
        vcpu_count: snapshot.shape.vcpu_count.get(),
        memory_mb: snapshot.shape.memory_mib.get(),
        size_bytes: snapshot.size_bytes,
        error: error.clone(),
        last_error: error,
        created_at: time(snapshot.created_at),
    }
}

pub(super) fn session_record(workspace: &Workspace) -> SessionRecord {
    SessionRecord {
        session_id: ids::uuid_text(workspace.id),
        vm_id: Some(vm_id(workspace)),
        status: status(workspace),
        created_at: time(workspace.created_at),
        expires_at: workspace.expires_at.map(time),
        vm_lifetime_seconds: workspace.spec.expiry.map(|expiry| expiry.after_seconds),
        memory_mb: workspace.spec.shape.memory_mib.get(),
        vcpu_count: workspace.spec.shape.vcpu_count.get(),
        metadata: workspace.spec.metadata.clone(),
        env_status: env_status(workspace),
    }
}

/// A session and its VM in one record.
pub(super) fn sandbox(workspace: &Workspace) -> Sandbox {
    Sandbox {
        sandbox_id: ids::uuid_text(workspace.id),
        vm_id: vm_id(workspace),
        template_id: workspace.spec.image.0.clone(),
        name: workspace.name.to_string(),
        metadata: workspace.spec.metadata.clone(),
        started_at: time(workspace.created_at),
        end_at: workspace.expires_at.map(time),
        status: status(workspace),
    }
}

/// What a VM uses, if it runs.
pub(super) fn usage(workspace: &Workspace, stats: Option<GuestStats>) -> Usage {
    let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
    Usage {
        session_id: ids::uuid_text(workspace.id),
        vm_id: vm_id(workspace),
        status: status(workspace),
        vcpu_count: workspace.spec.shape.vcpu_count.get(),
        memory_mb: workspace.spec.shape.memory_mib.get(),
        uptime_seconds: stats.map(|stats| seconds(stats.uptime_ms)),
        cpu_seconds: stats.map(|stats| seconds(stats.cpu_used_ms)),
        memory_used_bytes: stats
            .map(|stats| stats.memory_total_bytes.saturating_sub(stats.memory_available_bytes)),
        disk_used_bytes: stats.map(|stats| stats.disk_used_bytes),
        processes: stats.map(|stats| stats.processes),
    }
}

/// While the machine comes up, no VM is assigned yet: clients take an assigned VM that is not alive
/// for a dead one.
pub(super) fn session_status(workspace: &Workspace, now: Timestamp) -> SessionStatus {
    let status = status(workspace);
    let assigned = !matches!(status, "creating" | "resuming");
    let since = match &workspace.state {
        State::Running { since } | State::Paused { since } => Some(*since),
        State::Provisioned
        | State::Starting
        | State::Suspending
        | State::Suspended
        | State::Stopping
        | State::Stopped
        | State::Failed(_)
        | State::Deleting => None,
    };
    let seconds = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs().max(0);
    let alive = status == "active";
    SessionStatus {
        session_id: ids::uuid_text(workspace.id),
        exists: true,
        vm_assigned: assigned,
        vm_alive: alive,
        vm_status: assigned.then_some(status),
        vm_id: assigned.then(|| vm_id(workspace)),
        uptime_seconds: since.map(|since| seconds(since, now)),
        expires_in_seconds: if assigned && !alive && since.is_none() && !is_resting(workspace) {
            Some(0)
        } else {
            workspace.expires_at.map(|end| seconds(now, end))
        },
        created_at: Some(time(workspace.created_at)),
    }
}

/// UTC, `YYYY-MM-DDTHH:MM:SS`.
pub(super) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S").to_string()
}

#[cfg(test)]
#[path = "convert_tests.rs"]
#[allow(clippy::expect_used, clippy::panic, reason = "tests")]
pub(super) mod tests;
