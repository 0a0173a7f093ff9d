//! Between InstaVM's wire and the core: total, pure.

use std::collections::BTreeMap;

use serde_json::Value;
use skerry_control::{CreateWorkspace, StartPolicy, UpdateWorkspace, Wait};
use skerry_model::{
    Desired, EnvVar, Expiry, ExpiryAction, Failure, Lifetime, State, Timestamp, Workspace,
};

use super::{
    error_body::Problem,
    validation::{FieldError, Fields, parse_boolean},
    wire::{SessionRecord, SessionStatus, VmCreated, VmRecord},
};
use crate::ids;

const DEFAULT_VCPU_COUNT: u64 = 2;
const DEFAULT_MEMORY_MB: u64 = 512;
const DEFAULT_SESSION_LIFETIME_SECONDS: u32 = 300;
const MAX_SESSION_LIFETIME_SECONDS: u32 = 86_400;
/// The variant that means the server's default image.
const STANDARD_VARIANT: &str = "standard";

/// The values, by their type, that ask for nothing.
const NO_TEXT: &str = "null or an empty text";
const NO_FLAG: &str = "null or false";
const NO_OBJECT: &str = "null";
const NO_LIST: &str = "null or an empty list";

/// What `POST /v1/vms` asks for.
#[derive(Debug)]
pub(super) enum VmRequest {
    /// A new session with a VM.
    New(CreateWorkspace),
    /// A VM for a session that has none.
    Attach { session_id: String, update: UpdateWorkspace },
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

/// The body of `POST /v1/vms`.
pub(super) fn vm_request(mut fields: Fields, wait: Wait) -> Result<VmRequest, Problem> {
    let session_id = fields.text("session_id");
    let lifetime = fields.integer("vm_lifetime_seconds", 1..=u64::from(u32::MAX));
    let shape = ShapeAndLabels::read(&mut fields);
    let image = fields.text("image_variant");
    let unserved = first_unserved(&mut fields);
    fields.finish()?;
    unserved.map_or(Ok(()), Err)?;
    let expiry = lifetime.map(|seconds| expiry(seconds, Expiry::MAX_SECONDS)).transpose()?;

    let Some(session_id) = session_id else {
        return Ok(VmRequest::New(shape.create(image, expiry, wait)));
    };
    if expiry.is_some() {
        return Err(Problem::Unserved {
            field: "vm_lifetime_seconds together with session_id",
            accepted: "one of the two",
        });
    }
    if image.is_some_and(|variant| variant != STANDARD_VARIANT) {
        return Err(Problem::Unserved {
            field: "image_variant together with session_id",
            accepted: "\"standard\" or null: the session keeps its disk",
        });
    }
    Ok(VmRequest::Attach { session_id, update: shape.update() })
}

/// The body of `POST /v1/sessions/session`.
pub(super) fn session_request(mut fields: Fields, wait: Wait) -> Result<CreateWorkspace, Problem> {
    let lifetime = fields.integer("vm_lifetime_seconds", 20..=u64::from(u32::MAX));
    let shape = ShapeAndLabels::read(&mut fields);
    let image = fields.text("image_variant");
    let unserved = first_unserved(&mut fields);
    fields.finish()?;
    unserved.map_or(Ok(()), Err)?;
    let seconds = lifetime.unwrap_or(u64::from(DEFAULT_SESSION_LIFETIME_SECONDS));
    let expiry = expiry(seconds, MAX_SESSION_LIFETIME_SECONDS)?;
    Ok(shape.create(image, Some(expiry), wait))
}

/// The body of `PATCH /v1/vms/{id}`.
pub(super) fn vm_update(mut fields: Fields) -> Result<UpdateWorkspace, Problem> {
    let memory_mib = fields.integer("memory_mb", 128..=8192);
    if memory_mib.is_some_and(|memory| memory % 2 != 0) {
        fields.refuse("memory_mb", "Input should be a multiple of 2");
    }
    let metadata = fields.object("metadata");
    let lifetime = fields.integer("vm_lifetime_seconds", 1..=u64::from(u32::MAX));
    let unserved = first_unserved(&mut fields);
    fields.finish()?;
    unserved.map_or(Ok(()), Err)?;
    if lifetime.is_some() {
        return Err(Problem::Unserved { field: "vm_lifetime_seconds", accepted: "null" });
    }
    Ok(UpdateWorkspace {
        memory_mib,
        metadata: metadata.map(|labels| labels.into_iter().collect()),
        ..UpdateWorkspace::default()
    })
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

    fn create(self, image: Option<String>, expiry: Option<Expiry>, wait: Wait) -> CreateWorkspace {
        CreateWorkspace {
            image: image.filter(|variant| variant != STANDARD_VARIANT),
            vcpu_count: Some(self.vcpu_count.unwrap_or(DEFAULT_VCPU_COUNT)),
            memory_mib: Some(self.memory_mib.unwrap_or(DEFAULT_MEMORY_MB)),
            env: self.env.unwrap_or_default(),
            lifetime: if expiry.is_some() { Lifetime::Temporary } else { Lifetime::Permanent },
            expiry,
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
    // All false and empty is what VMs without a network are.
    let egress = fields.object("egress_policy").is_some_and(|policy| {
        policy.values().any(|rule| match rule {
            Value::Null | Value::Bool(false) => false,
            Value::Array(hosts) => !hosts.is_empty(),
            Value::Bool(true) | Value::Number(_) | Value::String(_) | Value::Object(_) => true,
        })
    });
    let asked = [
        ("egress_policy", egress, "null, or a policy that allows nothing: VMs have no network"),
        ("snapshot_id", has_text(fields, "snapshot_id"), NO_TEXT),
        ("snapshot_on_terminate", is_set(fields, "snapshot_on_terminate"), NO_FLAG),
        ("snapshot_name", has_text(fields, "snapshot_name"), NO_TEXT),
        ("share", fields.object("share").is_some(), NO_OBJECT),
        ("custom_domain", fields.object("custom_domain").is_some(), NO_OBJECT),
        ("volumes", has_items(fields, "volumes"), NO_LIST),
        ("vault_ids", has_items(fields, "vault_ids"), NO_LIST),
        ("auto_suspend", is_set(fields, "auto_suspend"), NO_FLAG),
        ("auto_resume", is_set(fields, "auto_resume"), NO_FLAG),
    ];
    asked
        .into_iter()
        .find(|(_, asked, _)| *asked)
        .map(|(field, _, accepted)| Problem::Unserved { field, accepted })
}

fn has_text(fields: &mut Fields, name: &str) -> bool {
    fields.text(name).is_some_and(|text| !text.is_empty())
}

fn has_items(fields: &mut Fields, name: &str) -> bool {
    fields.list(name).is_some_and(|list| !list.is_empty())
}

fn is_set(fields: &mut Fields, name: &str) -> bool {
    fields.boolean(name).unwrap_or(false)
}

fn expiry(seconds: u64, max_seconds: u32) -> Result<Expiry, Problem> {
    u32::try_from(seconds)
        .ok()
        .filter(|seconds| *seconds <= max_seconds)
        .map(|after_seconds| Expiry { after_seconds, action: ExpiryAction::Delete })
        .ok_or(Problem::LifetimeTooLong { max_seconds })
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

/// The status word of a VM. `stopped` and `stopping` are not InstaVM's own: there a VM that does not
/// run is gone, here another dialect may have stopped it and its disk is kept.
pub(super) fn status(workspace: &Workspace) -> &'static str {
    match (&workspace.state, workspace.desired) {
        (State::Deleting, _) | (_, Desired::Deleted) => "killed",
        (State::Starting, _) => "creating",
        (
            State::Provisioned
            | State::Stopping
            | State::Stopped
            | State::Suspended
            | State::Failed(_),
            Desired::Running,
        ) => "creating",
        (
            State::Provisioned | State::Stopped,
            Desired::Paused | Desired::Suspended | Desired::Stopped,
        ) => "stopped",
        (State::Suspended, Desired::Paused | Desired::Suspended | Desired::Stopped) => "suspended",
        (State::Failed(_), Desired::Paused | Desired::Suspended | Desired::Stopped) => "failed",
        (State::Running { .. }, _) => "active",
        (State::Paused { .. }, _) => "suspended",
        (State::Suspending, _) => "suspending",
        (State::Stopping, Desired::Paused | Desired::Suspended | Desired::Stopped) => "stopping",
    }
}

/// Whether `GET /v1/vms` shows it: there is a machine, or is about to be.
pub(super) fn is_live(workspace: &Workspace) -> bool {
    matches!(status(workspace), "creating" | "active" | "suspending" | "suspended" | "stopping")
}

fn env_status(workspace: &Workspace) -> &'static str {
    match (workspace.spec.env.is_empty(), status(workspace)) {
        (true, _) => "none",
        (false, "active") => "configured",
        (false, "failed" | "killed") => "failed",
        (false, _) => "pending",
    }
}

pub(super) fn vm_created(workspace: &Workspace) -> VmCreated {
    VmCreated {
        vm_id: Some(ids::instavm_vm_id(workspace.id)),
        session_id: ids::uuid_text(workspace.id),
        status: status(workspace),
        share: None,
        custom_domain: None,
        env_status: env_status(workspace),
        env_error: None,
    }
}

pub(super) fn vm_record(workspace: &Workspace) -> VmRecord {
    let vm_id = ids::instavm_vm_id(workspace.id);
    VmRecord {
        id: vm_id.clone(),
        vm_id,
        session_id: ids::uuid_text(workspace.id),
        status: status(workspace),
        created_at: time(workspace.created_at),
        expires_at: workspace.expires_at.map(time),
        memory_mb: workspace.spec.shape.memory_mib.get(),
        vcpu_count: workspace.spec.shape.vcpu_count.get(),
        image: workspace.spec.image.0.clone(),
        metadata: workspace.spec.metadata.clone(),
        snapshot_id: None,
        ssh_host: None,
    }
}

pub(super) fn session_record(workspace: &Workspace) -> SessionRecord {
    SessionRecord {
        session_id: ids::uuid_text(workspace.id),
        vm_id: Some(ids::instavm_vm_id(workspace.id)),
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

/// While the machine comes up, no VM is assigned yet: clients take an assigned VM that is not alive
/// for a dead one.
pub(super) fn session_status(workspace: &Workspace, now: Timestamp) -> SessionStatus {
    let status = status(workspace);
    let assigned = status != "creating";
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
        vm_id: assigned.then(|| ids::instavm_vm_id(workspace.id)),
        uptime_seconds: since.map(|since| seconds(since, now)),
        expires_in_seconds: if assigned && !alive && since.is_none() {
            Some(0)
        } else {
            workspace.expires_at.map(|end| seconds(now, end))
        },
        created_at: Some(time(workspace.created_at)),
    }
}

/// UTC, `YYYY-MM-DDTHH:MM:SS`.
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S").to_string()
}

#[cfg(test)]
#[path = "convert_tests.rs"]
#[allow(clippy::expect_used, clippy::panic, reason = "tests")]
mod tests;
