//! How a workspace is shown in Oblien's shape: total, pure.

use serde_json::Value;
use skerry_model::{
    Cause, Desired, Failure, Lifetime, State, Timestamp, Workspace, spec::LogRetention,
};

use super::{
    convert::TYPE_LABEL,
    life, network,
    public_access::PublicPort,
    ssh::Connection,
    wire::{
        Access, ApiAccess, DetailedConfig, DetailedLifecycle, Details, Idle, Info, Lifecycle,
        LifecycleStatus, Provisioning, ProvisioningError, Resources, RestartInfo, Ssh, Stats,
        WorkspaceObject,
    },
};
use crate::{SshEndpoint, ids};

/// The failure that ended the last start or the machine, unless the next try was asked for already (a
/// start that fails gives up the wish for it).
pub(super) fn failure(workspace: &Workspace) -> Option<&Failure> {
    workspace.state.failure().filter(|_| workspace.desired != Desired::Running)
}

/// Whether the machine has never been up: every start so far failed, or the first is under way.
fn is_being_created(workspace: &Workspace) -> bool {
    let failed_starts = u64::from(workspace.failed_starts);
    match &workspace.state {
        State::Starting => failed_starts + 1 >= workspace.incarnation.0,
        State::Provisioned | State::Failed(_) => failed_starts >= workspace.incarnation.0,
        State::Running { .. }
        | State::Paused { .. }
        | State::Suspending
        | State::Suspended
        | State::Stopping
        | State::Stopped
        | State::Deleting => false,
    }
}

/// The status word of a workspace.
pub(super) fn status(workspace: &Workspace) -> &'static str {
    let coming_up = if is_being_created(workspace) { "creating" } else { "starting" };
    match (&workspace.state, workspace.desired) {
        (State::Deleting, _) | (_, Desired::Deleted) => "deleting",
        (State::Starting, _) => coming_up,
        (
            State::Provisioned | State::Stopped | State::Suspended | State::Failed(_),
            Desired::Running,
        ) => coming_up,
        (
            State::Provisioned | State::Stopped,
            Desired::Paused | Desired::Suspended | Desired::Stopped,
        ) => "stopped",
        (State::Suspended, Desired::Paused | Desired::Suspended | Desired::Stopped) => "suspended",
        (State::Failed(_), Desired::Paused | Desired::Suspended | Desired::Stopped) => "error",
        (State::Running { .. }, _) => "running",
        (State::Paused { .. }, _) => "paused",
        (State::Suspending, _) => "suspending",
        (State::Stopping, _) => "stopping",
    }
}

fn provisioning(workspace: &Workspace) -> Provisioning {
    let status = status(workspace);
    let failed = failure(workspace).filter(|_| is_being_created(workspace));
    let (state, phase, message) = match (status, failed) {
        ("deleting", _) => ("running", "deleting", "the workspace is being deleted"),
        (_, Some(failure)) => ("failed", "failed", failure.message.as_str()),
        ("creating", None) => match &workspace.state {
            State::Starting => ("running", "starting", "the machine is being started"),
            State::Provisioned
            | State::Running { .. }
            | State::Paused { .. }
            | State::Suspending
            | State::Suspended
            | State::Stopping
            | State::Stopped
            | State::Failed(_)
            | State::Deleting => ("queued", "queued", "the workspace waits to be started"),
        },
        // A later start is no provisioning, but a client that waits takes everything else that is not
        // ready for stopped.
        ("starting", None) => ("running", "starting", "the machine is being started"),
        ("stopping", None) if workspace.desired == Desired::Running => {
            ("running", "starting", "the machine is being replaced")
        }
        (_, None) => ("ready", "ready", "the workspace has been set up"),
    };
    let ready_at = match &workspace.state {
        // Later starts are no provisioning; when the first was ready is not kept.
        State::Running { since } if workspace.incarnation.0 == 1 => Some(*since),
        State::Running { .. }
        | State::Provisioned
        | State::Starting
        | State::Paused { .. }
        | State::Suspending
        | State::Suspended
        | State::Stopping
        | State::Stopped
        | State::Failed(_)
        | State::Deleting => None,
    };
    Provisioning {
        state,
        phase,
        message: message.to_owned(),
        error: failed.map(|failure| ProvisioningError {
            code: failure.code.clone(),
            message: failure.message.clone(),
        }),
        created_at: time(workspace.created_at),
        updated_at: time(workspace.updated_at),
        completed_at: ready_at.or(failed.map(|failure| failure.at)).map(time),
    }
}

/// The workspace object.
pub(super) fn workspace_object(
    workspace: &Workspace,
    public_ports: Vec<PublicPort>,
    ssh: Option<&SshEndpoint>,
    now: Timestamp,
) -> WorkspaceObject {
    let status = status(workspace);
    let is_running = matches!(workspace.state, State::Running { .. });
    let by_user = workspace.lifecycle.desired_by == Cause::User;
    let stop_wanted = match (workspace.desired, &workspace.state) {
        (Desired::Stopped, State::Stopping | State::Stopped) => by_user,
        (
            Desired::Stopped
            | Desired::Running
            | Desired::Paused
            | Desired::Suspended
            | Desired::Deleted,
            _,
        ) => false,
    };
    WorkspaceObject {
        id: ids::oblien_workspace_id(workspace.id),
        name: workspace.name.as_str().to_owned(),
        slug: workspace.slug.as_str().to_owned(),
        logo: None,
        namespace: workspace.namespace.clone(),
        mode: mode(workspace.spec.lifetime),
        image: workspace.spec.image.0.clone(),
        kind: workspace.spec.metadata.get(TYPE_LABEL).and_then(Value::as_str).map(str::to_owned),
        status,
        ready: is_running,
        provisioning: provisioning(workspace),
        ip: workspace.private_address.map(|address| address.to_string()).unwrap_or_default(),
        uptime: uptime_seconds(&workspace.state, now),
        start_time: workspace
            .state
            .ready_since()
            .or(workspace.start_began_at)
            .map(time)
            .unwrap_or_default(),
        info: Info { status, is_running, user_requested_stop: stop_wanted },
        access: Access { ssh_enabled: ssh.is_some() },
        network: network::shown(&workspace.spec.network),
        public_ports,
        resources: Resources {
            cpus: workspace.spec.shape.vcpu_count.get(),
            memory_mb: workspace.spec.shape.memory_mib.get(),
            disk_size_mb: workspace.spec.shape.disk_mib.get(),
        },
        lifecycle: lifecycle(workspace),
        created_at: time(workspace.created_at),
        updated_at: time(workspace.updated_at),
    }
}

fn lifecycle(workspace: &Workspace) -> Lifecycle {
    let expiry = workspace.spec.expiry;
    Lifecycle {
        ttl: expiry.map(|expiry| ttl_text(expiry.after_seconds)),
        ttl_action: expiry.map(|expiry| life::ttl_action_word(expiry.action)),
        remove_on_exit: workspace.spec.remove_on_exit,
        restart_policy: life::restart_word(workspace.spec.restart.mode),
        max_restarts: workspace.spec.restart.max_restarts,
        idle: life::idle_shown(workspace)
            .map(|(suspend_after, stop_after)| Idle { suspend_after, stop_after }),
        ttl_expires_at: workspace.expires_at.map(time),
    }
}

/// The rules of its life and what they have done.
pub(super) fn lifecycle_status(workspace: &Workspace, now: Timestamp) -> LifecycleStatus {
    let memory = &workspace.lifecycle;
    LifecycleStatus {
        mode: mode(workspace.spec.lifetime),
        status: status(workspace),
        policy: lifecycle(workspace),
        restart_info: RestartInfo {
            restart_count: memory.restart_count,
            next_restart_at: memory.restart_at.map(time),
            last_exit: memory.last_end.map(|end| end.cause.as_str()),
            last_exit_at: memory.last_end.map(|end| time(end.at)),
        },
        uptime: uptime_seconds(&workspace.state, now),
        expires_at: workspace.expires_at.map(time),
        created_at: time(workspace.created_at),
        snapshot_supported: true,
        snapshot_unavailable_reason: None,
    }
}

/// The workspace object with everything else that is known; `stats` where the guest answered.
pub(super) fn details(
    workspace: &Workspace,
    public_ports: Vec<PublicPort>,
    ssh: Option<&SshEndpoint>,
    stats: Option<Stats>,
    now: Timestamp,
) -> Details {
    Details {
        workspace: workspace_object(workspace, public_ports, ssh, now),
        token: None,
        stats,
        ssh: Ssh {
            ssh_enabled: ssh.is_some(),
            ssh_id: ssh.map(|_| ids::oblien_workspace_id(workspace.id)),
            connection: ssh.map(|ssh| Connection::of(workspace, ssh)),
        },
        api_access: ApiAccess { terminal: false, preview: false },
        lifecycle: DetailedLifecycle {
            mode: mode(workspace.spec.lifetime),
            policy: lifecycle(workspace),
            uptime: uptime_seconds(&workspace.state, now),
        },
        config: DetailedConfig {
            cpus: workspace.spec.shape.vcpu_count.get(),
            memory_mb: workspace.spec.shape.memory_mib.get(),
            writable_size_mb: workspace.spec.shape.disk_mib.get(),
            image_digest: workspace.spec.image_digest.0.clone(),
            keep_logs: match workspace.spec.log_retention {
                LogRetention::AcrossStarts => true,
                LogRetention::ThisStart => false,
            },
            env_keys: workspace.spec.env.iter().map(|var| var.key.clone()).collect(),
        },
    }
}

fn mode(lifetime: Lifetime) -> &'static str {
    match lifetime {
        Lifetime::Permanent => "permanent",
        Lifetime::Temporary => "temporary",
    }
}

fn uptime_seconds(state: &State, now: Timestamp) -> i64 {
    state.ready_since().map_or(0, |since| now.duration_since(since).as_secs().max(0))
}

/// `2026-02-24T10:30:00Z`.
pub(super) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The shortest text that reads back as the same time: `1h`, `90m`, `45s`.
pub(super) fn ttl_text(seconds: u32) -> String {
    for (unit, length) in [("d", 86_400), ("h", 3600), ("m", 60)] {
        if seconds.is_multiple_of(length) {
            return format!("{}{unit}", seconds / length);
        }
    }
    format!("{seconds}s")
}

#[cfg(test)]
#[path = "object_tests.rs"]
#[allow(clippy::expect_used, reason = "tests")]
mod tests;
