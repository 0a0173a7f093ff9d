//! Between the wire's types of snapshots and of the rules of a life, and the core's.

use skerry_control::{self as control, SnapshotRef, Wait, internal_api::StartStatistics};
use skerry_model::{
    self as model, AfterRestore, Backoff, Failure, IdleAction, IdlePolicy, Invalid, RestartMode,
    RestartPolicy, SnapshotContents, SnapshotId, SnapshotOnTerminate, SnapshotPurpose,
    SnapshotState, StartPath, Timer, Timestamp, spec,
};

use super::{
    convert::{expiry, expiry_action, lifetime, limit, states, time, workspace},
    wire,
};

/// Names of all states of a snapshot.
const STATE_NAMES: [&str; 4] = ["creating", "ready", "failed", "deleting"];

/// A snapshot by id, else by name.
pub(super) fn snapshot_ref(text: &str) -> SnapshotRef {
    text.parse::<SnapshotId>().map_or_else(|_| SnapshotRef::Name(text.to_owned()), SnapshotRef::Id)
}

pub(super) fn snapshot(snapshot: &model::Snapshot) -> wire::Snapshot {
    let (state, why) = match &snapshot.state {
        SnapshotState::Creating => (wire::SnapshotState::Creating, None),
        SnapshotState::Ready => (wire::SnapshotState::Ready, None),
        SnapshotState::Failed(why) => (wire::SnapshotState::Failed, Some(failure(why))),
        SnapshotState::Deleting => (wire::SnapshotState::Deleting, None),
    };
    wire::Snapshot {
        id: snapshot.id.to_string(),
        name: snapshot.name.to_string(),
        workspace_id: snapshot.workspace_id.to_string(),
        purpose: match snapshot.purpose {
            SnapshotPurpose::User => wire::SnapshotPurpose::User,
            SnapshotPurpose::Fork => wire::SnapshotPurpose::Fork,
            SnapshotPurpose::Terminate => wire::SnapshotPurpose::Terminate,
        },
        contents: contents_shown(snapshot.contents),
        state,
        failure: why,
        image: snapshot.image.to_string(),
        image_digest: snapshot.image_digest.to_string(),
        vcpu_count: snapshot.shape.vcpu_count.get(),
        memory_mib: snapshot.shape.memory_mib.get(),
        disk_mib: snapshot.shape.disk_mib.get(),
        size_bytes: snapshot.size_bytes,
        blackout_ms: snapshot.blackout.map(|stood_still| stood_still.as_secs_f64() * 1000.0),
        taken_at: snapshot.taken_at.map(time),
        metadata: snapshot.metadata.clone(),
        created_at: time(snapshot.created_at),
        updated_at: time(snapshot.updated_at),
    }
}

pub(super) const fn start_path(path: StartPath) -> wire::StartPath {
    match path {
        StartPath::Pool => wire::StartPath::Pool,
        StartPath::Template => wire::StartPath::Template,
        StartPath::Boot => wire::StartPath::Boot,
        StartPath::SavedMemory => wire::StartPath::SavedMemory,
        StartPath::SnapshotMemory => wire::StartPath::SnapshotMemory,
    }
}

pub(super) const fn start_statistics(starts: &StartStatistics) -> wire::StartStatistics {
    wire::StartStatistics {
        pool_hits: starts.pool_hits,
        template_restores: starts.template_restores,
        memory_restores: starts.memory_restores,
        boots: starts.boots,
        restore_fallbacks: starts.restore_fallbacks,
        templates: starts.templates,
        pool_warm: starts.pool_warm,
        pool_parked: starts.pool_parked,
    }
}

pub(super) fn failure(failure: &Failure) -> wire::Failure {
    wire::Failure {
        code: failure.code.clone(),
        message: failure.message.clone(),
        attempts: failure.attempts,
        retryable: failure.retryable,
        at: time(failure.at),
    }
}

const fn contents_shown(contents: SnapshotContents) -> wire::SnapshotContents {
    match contents {
        SnapshotContents::DiskAndMemory => wire::SnapshotContents::DiskAndMemory,
        SnapshotContents::Disk => wire::SnapshotContents::Disk,
    }
}

const fn contents(contents: wire::SnapshotContents) -> SnapshotContents {
    match contents {
        wire::SnapshotContents::DiskAndMemory => SnapshotContents::DiskAndMemory,
        wire::SnapshotContents::Disk => SnapshotContents::Disk,
    }
}

pub(super) fn create_snapshot(request: wire::CreateSnapshot) -> control::CreateSnapshot {
    control::CreateSnapshot {
        name: request.name,
        contents: request.contents.map(contents),
        metadata: request.metadata,
    }
}

pub(super) fn update_snapshot(request: wire::UpdateSnapshot) -> control::UpdateSnapshot {
    control::UpdateSnapshot { name: request.name, metadata: request.metadata }
}

/// Everything of the filter but the workspace, which has to be looked up.
pub(super) fn list_snapshots(
    query: &wire::ListSnapshotsQuery,
) -> Result<(control::ListSnapshots, u64), Invalid> {
    let limit = limit(query.limit)?;
    let states = states(query.state.as_deref(), &STATE_NAMES, "is not a state of a snapshot")?;
    let filter = control::ListSnapshots {
        workspace_id: None,
        name: query.name.clone(),
        purposes: Vec::new(),
        states,
        offset: query.offset,
        limit: Some(limit),
    };
    Ok((filter, limit))
}

pub(super) fn restore(request: &wire::RestoreWorkspace) -> control::RestoreWorkspace {
    control::RestoreWorkspace {
        snapshot: snapshot_ref(&request.snapshot),
        then: if request.start { AfterRestore::Run } else { AfterRestore::AsBefore },
    }
}

pub(super) fn fork(request: wire::ForkWorkspace, wait: Wait) -> control::ForkWorkspace {
    control::ForkWorkspace {
        count: request.count,
        name: request.name,
        metadata: request.metadata,
        snapshot_name: request.snapshot_name,
        start: if request.start {
            control::StartPolicy::Now(wait)
        } else {
            control::StartPolicy::Later
        },
    }
}

pub(super) fn forked(forked: &control::Forked) -> wire::Forked {
    wire::Forked {
        snapshot_id: forked.snapshot_id.to_string(),
        snapshot: forked.snapshot.as_ref().map(snapshot),
        workspaces: forked.workspaces.iter().map(workspace).collect(),
    }
}

pub(super) fn idle(policy: wire::IdlePolicy) -> IdlePolicy {
    IdlePolicy {
        after_seconds: policy.after_seconds,
        action: match policy.action {
            wire::IdleAction::Stop => IdleAction::Stop,
            wire::IdleAction::Pause => IdleAction::Pause,
            wire::IdleAction::Suspend => IdleAction::Suspend,
        },
        discard_memory_after_seconds: policy.discard_memory_after_seconds,
    }
}

pub(super) fn idle_shown(policy: IdlePolicy) -> wire::IdlePolicy {
    wire::IdlePolicy {
        after_seconds: policy.after_seconds,
        action: match policy.action {
            IdleAction::Stop => wire::IdleAction::Stop,
            IdleAction::Pause => wire::IdleAction::Pause,
            IdleAction::Suspend => wire::IdleAction::Suspend,
        },
        discard_memory_after_seconds: policy.discard_memory_after_seconds,
    }
}

pub(super) fn restart(policy: wire::RestartPolicy) -> RestartPolicy {
    RestartPolicy {
        mode: match policy.mode {
            wire::RestartMode::Never => RestartMode::Never,
            wire::RestartMode::OnFailure => RestartMode::OnFailure,
            wire::RestartMode::Always => RestartMode::Always,
        },
        max_restarts: policy.max_restarts,
        backoff: policy.backoff.map_or_else(Backoff::default, |backoff| Backoff {
            first_seconds: backoff.first_seconds,
            most_seconds: backoff.most_seconds,
        }),
    }
}

pub(super) fn restart_shown(policy: RestartPolicy) -> wire::RestartPolicy {
    wire::RestartPolicy {
        mode: match policy.mode {
            RestartMode::Never => wire::RestartMode::Never,
            RestartMode::OnFailure => wire::RestartMode::OnFailure,
            RestartMode::Always => wire::RestartMode::Always,
        },
        max_restarts: policy.max_restarts,
        backoff: Some(wire::Backoff {
            first_seconds: policy.backoff.first_seconds,
            most_seconds: policy.backoff.most_seconds,
        }),
    }
}

pub(super) fn snapshot_on_terminate(asked: wire::SnapshotOnTerminate) -> SnapshotOnTerminate {
    SnapshotOnTerminate {
        name: asked.name,
        contents: asked.contents.map_or(SnapshotContents::DiskAndMemory, contents),
    }
}

pub(super) fn snapshot_on_terminate_shown(
    asked: &SnapshotOnTerminate,
) -> wire::SnapshotOnTerminate {
    wire::SnapshotOnTerminate {
        name: asked.name.clone(),
        contents: Some(contents_shown(asked.contents)),
    }
}

pub(super) fn origin(origin: spec::Origin) -> wire::Origin {
    match origin {
        spec::Origin::Image => wire::Origin::Image,
        spec::Origin::Snapshot { snapshot_id } => {
            wire::Origin::Snapshot { snapshot_id: snapshot_id.to_string() }
        }
    }
}

pub(super) fn lifecycle_status(workspace: &model::Workspace) -> wire::LifecycleStatus {
    let memory = &workspace.lifecycle;
    let rings = |timer| workspace.timers().find(|(kind, _)| *kind == timer).map(|(_, at)| time(at));
    wire::LifecycleStatus {
        desired_by: memory.desired_by.as_str(),
        last_end: memory
            .last_end
            .map(|end| wire::LastEnd { cause: end.cause.as_str(), at: time(end.at) }),
        last_active_at: workspace.last_active_at.map(time),
        resting_since: memory.resting_since.map(time),
        idle_at: rings(Timer::Idle),
        restart_at: memory.restart_at.map(time),
        discard_memory_at: rings(Timer::DiscardMemory),
        restart_count: memory.restart_count,
        rest_failure: memory.rest_failure.as_ref().map(failure),
    }
}

pub(super) fn lifecycle_change(request: wire::ChangeLifecycle) -> control::LifecycleChange {
    control::LifecycleChange {
        lifetime: request.lifetime.map(lifetime),
        expiry: setting(request.expiry, expiry),
        expiry_action: request.expiry_action.map(expiry_action),
        idle: setting(request.idle, idle),
        restart: request.restart.map(restart),
        remove_on_exit: request.remove_on_exit,
        snapshot_on_terminate: setting(request.snapshot_on_terminate, snapshot_on_terminate),
        auto_resume: request.auto_resume,
        keep_active: request.keep_active,
    }
}

fn setting<T, U>(asked: Option<Option<T>>, convert: impl FnOnce(T) -> U) -> control::Setting<U> {
    match asked {
        None => control::Setting::Keep,
        Some(None) => control::Setting::Clear,
        Some(Some(value)) => control::Setting::To(convert(value)),
    }
}

pub(super) fn renewal(request: &wire::RenewExpiry) -> Result<control::ExpiryRenewal, Invalid> {
    match (request.after_seconds, request.by_seconds, request.at.as_deref()) {
        (None, None, None) => Ok(control::ExpiryRenewal::Anew),
        (Some(seconds), None, None) => Ok(control::ExpiryRenewal::AnewFor(seconds)),
        (None, Some(seconds), None) => Ok(control::ExpiryRenewal::By(seconds)),
        (None, None, Some(text)) => {
            let at: Timestamp = text.parse().map_err(|_| Invalid {
                field: "at",
                problem: "is not a time".to_owned(),
                allowed: "RFC 3339 with an offset, as 2030-01-31T12:00:00Z".to_owned(),
            })?;
            Ok(control::ExpiryRenewal::At(at))
        }
        (_, _, _) => Err(Invalid {
            field: "after_seconds",
            problem: "is given together with another".to_owned(),
            allowed: "at most one of after_seconds, by_seconds and at".to_owned(),
        }),
    }
}
