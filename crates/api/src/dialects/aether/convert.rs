//! Between Aether's wire types and the core's: total and pure.

use skerry_control::{CreateProject, CreateWorkspace, Project, StartPolicy, UpdateWorkspace, Wait};
use skerry_model::{
    Desired, IdleAction, IdlePolicy, Incarnation, Plan, ProjectId, State, Workspace, spec::CpuKind,
};

use super::{
    hardware::{self, FieldError, Hardware},
    wire,
};
use crate::{ids, object::Object};

/// After how many minutes without a connection a workspace stops that is not kept active, by Aether's
/// guide "Workspaces".
pub(super) const IDLE_MINUTES: u32 = 10;

const IDLE: IdlePolicy = IdlePolicy {
    after_seconds: IDLE_MINUTES * 60,
    action: IdleAction::Stop,
    discard_memory_after_seconds: None,
};

/// What a create request asks of the core: the workspace begins to start at once and the answer does
/// not wait for it.
///
/// # Errors
/// All wrong fields.
pub(super) fn create(
    body: wire::CreateWorkspaceBody,
    project_id: ProjectId,
    plan: &Plan,
) -> Result<CreateWorkspace, Vec<FieldError>> {
    let Object(asked) = body.hardware.unwrap_or_default();
    let hardware = hardware::parse(&asked, hardware::DEFAULT, plan)?;
    Ok(CreateWorkspace {
        project_id: Some(project_id),
        vcpu_count: Some(u64::from(hardware.cpus)),
        memory_mib: Some(u64::from(hardware.memory_mb)),
        disk_mib: Some(u64::from(hardware.disk_mib())),
        cpu_kind: hardware.cpu_kind,
        idle: Some(IDLE),
        keep_active: body.keep_active.unwrap_or_default(),
        ..CreateWorkspace::new(StartPolicy::Now(Wait::No))
    })
}

/// What a change asks of the core. Only what differs from `current` is asked for, so that repeating
/// a running workspace's hardware is no change of it.
///
/// # Errors
/// All wrong fields.
pub(super) fn update(
    body: wire::UpdateWorkspaceBody,
    current: &Workspace,
    plan: &Plan,
) -> Result<UpdateWorkspace, Vec<FieldError>> {
    let mut update =
        UpdateWorkspace { keep_active: body.keep_active, ..UpdateWorkspace::default() };
    let Some(Object(asked)) = body.hardware else { return Ok(update) };

    let shape = &current.spec.shape;
    let base = Hardware {
        cpu_kind: shape.cpu_kind,
        cpus: shape.vcpu_count.get(),
        memory_mb: shape.memory_mib.get(),
        volume_size_gb: hardware::volume_size_gb(shape.disk_mib.get()),
    };
    let hardware = hardware::parse(&asked, base, plan)?;
    if hardware.volume_size_gb < base.volume_size_gb {
        let message = format!("must be at least {}: a volume only grows", base.volume_size_gb);
        return Err(vec![FieldError::new("hardware.volume_size_gb", message)]);
    }
    update.cpu_kind = (hardware.cpu_kind != base.cpu_kind).then_some(hardware.cpu_kind);
    update.vcpu_count = (hardware.cpus != base.cpus).then_some(u64::from(hardware.cpus));
    update.memory_mib =
        (hardware.memory_mb != base.memory_mb).then_some(u64::from(hardware.memory_mb));
    update.disk_mib =
        (hardware.volume_size_gb != base.volume_size_gb).then_some(u64::from(hardware.disk_mib()));
    Ok(update)
}

/// What a new project is.
///
/// # Errors
/// When it has no name.
pub(super) fn create_project(body: wire::CreateProjectBody) -> Result<CreateProject, FieldError> {
    let name = body.name.ok_or_else(|| FieldError::new("name", "is required"))?;
    Ok(CreateProject { name, description: body.description })
}

/// A workspace's state in Aether's words; `None` while it is being deleted, because for Aether a
/// deleted workspace is gone at once.
///
/// `creating` lasts until the first start is over. Aether's documented words have none for a machine
/// that is paused or suspended: both show as `stopped`, which is what one starts again.
pub(super) fn status(
    state: &State,
    desired: Desired,
    incarnation: Incarnation,
) -> Option<wire::Status> {
    use wire::Status;

    let wants_to_run = match desired {
        Desired::Running => true,
        Desired::Paused | Desired::Suspended | Desired::Stopped => false,
        Desired::Deleted => return None,
    };
    let coming_up = if incarnation.0 <= 1 { Status::Creating } else { Status::Starting };
    let status = match state {
        State::Provisioned if wants_to_run => coming_up,
        // A start that fails also gives up the wish: failed and wished for is a new try.
        State::Suspended | State::Stopped | State::Failed(_) if wants_to_run => Status::Starting,
        State::Provisioned | State::Suspended | State::Stopped => Status::Stopped,
        State::Paused { .. } if wants_to_run => Status::Stopped,
        State::Starting if wants_to_run => coming_up,
        State::Running { .. } if wants_to_run => Status::Running,
        State::Starting
        | State::Running { .. }
        | State::Paused { .. }
        | State::Suspending
        | State::Stopping => Status::Stopping,
        State::Failed(_) => Status::Error,
        State::Deleting => return None,
    };
    Some(status)
}

/// A workspace as Aether shows it; `None` while it is being deleted.
pub(super) fn workspace(workspace: &Workspace) -> Option<wire::Workspace> {
    let status = status(&workspace.state, workspace.desired, workspace.incarnation)?;
    let error_message = workspace.state.failure().map(|failure| failure.message.clone());
    Some(wire::Workspace {
        id: ids::uuid_text(workspace.id),
        project_id: workspace.project_id.to_string(),
        status,
        hardware: hardware_view(workspace),
        keep_active: workspace.spec.keep_active,
        machine_id: machine_id(workspace, status),
        private_ip: workspace.private_address.map(|address| address.to_string()),
        git_ref: None,
        preview_token: workspace.preview_token.expose().to_owned(),
        error_message,
        created_at: workspace.created_at,
        updated_at: workspace.updated_at,
    })
}

/// An opaque word for the machine, the same over all its starts; `None` until one of them succeeded.
fn machine_id(workspace: &Workspace, status: wire::Status) -> Option<String> {
    let under_way = u64::from(workspace.state == State::Starting);
    let starts_over = workspace.incarnation.0.saturating_sub(under_way);
    let never_ran = starts_over <= u64::from(workspace.failed_starts);
    if never_ran || status == wire::Status::Creating {
        return None;
    }
    // The low half of the id: 62 random bits.
    let digits = format!("{:032x}", workspace.id.as_u128());
    Some(digits[16..].to_owned())
}

fn hardware_view(workspace: &Workspace) -> wire::Hardware {
    let shape = &workspace.spec.shape;
    wire::Hardware {
        cpu_kind: cpu_kind(shape.cpu_kind),
        cpus: shape.vcpu_count.get(),
        memory_mb: shape.memory_mib.get(),
        volume_size_gb: hardware::volume_size_gb(shape.disk_mib.get()),
        gpu_kind: None,
    }
}

/// The hardware of a request that names none.
pub(super) fn default_hardware() -> wire::Hardware {
    let Hardware { cpu_kind: kind, cpus, memory_mb, volume_size_gb } = hardware::DEFAULT;
    wire::Hardware { cpu_kind: cpu_kind(kind), cpus, memory_mb, volume_size_gb, gpu_kind: None }
}

const fn cpu_kind(kind: CpuKind) -> wire::CpuKind {
    match kind {
        CpuKind::Shared => wire::CpuKind::Shared,
        CpuKind::Performance => wire::CpuKind::Performance,
    }
}

/// A project as Aether shows it.
pub(super) fn project(project: Project) -> wire::Project {
    wire::Project {
        id: project.id.to_string(),
        name: project.name,
        description: project.description,
        repo_url: None,
        created_at: project.created_at,
        updated_at: project.updated_at,
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::test_ground::every_state;

    /// Every state under every wish, in the first start and in a later one: the table that the
    /// documentation prints.
    #[test]
    fn every_state_has_a_word() {
        let mut table = String::new();
        for state in &every_state() {
            let word = |desired, incarnation| {
                status(state, desired, Incarnation(incarnation)).map_or("gone", wire::Status::word)
            };
            let _ = writeln!(
                table,
                "{:<12}{:<10}{:<10}{:<10}{}",
                state.name(),
                word(Desired::Running, 1),
                word(Desired::Running, 2),
                word(Desired::Stopped, 1),
                word(Desired::Deleted, 1),
            );
        }
        insta::assert_snapshot!(table);
    }
}
