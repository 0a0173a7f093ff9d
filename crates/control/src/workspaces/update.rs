//! Changing a workspace's record.

use std::sync::Arc;

use skerry_internal_api::{NodeError, StartFrom, VmSpec};
use skerry_model::{
    Demand, Desired, DisplayName, EnvVar, ErrorKind, Plan, Refusal, RequestedShape, Shape, Slug,
    State, Workspace, limits::check_shape, spec::check_metadata,
};

use super::{UpdateWorkspace, WorkspaceRef, wishes::refused};
use crate::{Caller, Control, Error, control::Inner};

impl Control {
    /// Changes a workspace.
    ///
    /// # Errors
    /// As create; `RefusedByState` for a new size while a VM is there, but for a larger disk of one that
    /// runs: that grows at once, and after `Unavailable` with the next start.
    pub async fn update_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        update: UpdateWorkspace,
    ) -> Result<Workspace, Error> {
        let name = update.name.as_deref().map(DisplayName::parse).transpose()?;
        let slug = update.slug.as_deref().map(Slug::parse).transpose()?;
        if let Some(env) = &update.env {
            EnvVar::check_all(env)?;
        }
        if let Some(metadata) = &update.metadata {
            check_metadata(metadata)?;
        }
        let (inner, caller, which) = (Arc::clone(&self.inner), caller.clone(), which.clone());
        let change = async move {
            let change = |workspace: &mut Workspace, now| {
                if workspace.desired == Desired::Deleted {
                    return Err(refused(Refusal::BeingDeleted));
                }
                let demand = resize(workspace, &update, &inner.config.plan)?;
                if let Some(name) = &name {
                    workspace.name = name.clone();
                }
                if let Some(slug) = &slug {
                    workspace.slug = slug.clone();
                }
                if let Some(env) = &update.env {
                    workspace.spec.env.clone_from(env);
                }
                if let Some(keep_active) = update.keep_active {
                    workspace.spec.keep_active = keep_active;
                    workspace.begin_idle_time_anew(now);
                }
                if let Some(metadata) = &update.metadata {
                    workspace.spec.metadata.clone_from(metadata);
                }
                Ok(demand)
            };
            let changed = inner.change(&caller, &which, change).await?;
            if update.disk_mib.is_some() {
                inner.grow_disk(&changed).await?;
            }
            Ok(changed)
        };
        self.inner.to_the_end(change).await
    }
}

impl Inner {
    /// Has the VM's disk grow to what is recorded, if there is a VM that runs. Without one, the next start
    /// comes with it.
    async fn grow_disk(&self, workspace: &Workspace) -> Result<(), Error> {
        let State::Running { .. } = workspace.state else { return Ok(()) };
        let spec = VmSpec {
            workspace_id: workspace.id,
            incarnation: workspace.incarnation,
            hostname: workspace.slug.as_str().to_owned(),
            image_digest: workspace.spec.image_digest.clone(),
            shape: workspace.spec.shape,
            env: self.env_of(workspace).await?,
            log_retention: workspace.spec.log_retention,
            start_from: StartFrom::Disk,
            volumes: self.store.mounts_of(workspace.id).await?,
        };
        match self.bounded("ensure_disk_size", self.node.ensure_disk_size(spec)).await {
            Ok(Ok(())) => Ok(()),
            // It has ended meanwhile.
            Ok(Err(NodeError::NoSuchVm | NodeError::NotRunning)) => Ok(()),
            Ok(Err(error)) => Err(later(&error)),
            Err(error) => Err(later(&error)),
        }
    }
}

fn later(error: &dyn std::fmt::Display) -> Error {
    let why = format!("the disk is larger from its next start on, and not yet: {error}");
    ErrorKind::Unavailable(why).into()
}

/// Applies a new size, if one is asked for; answers what the plan has to admit.
fn resize(
    workspace: &mut Workspace,
    update: &UpdateWorkspace,
    plan: &Plan,
) -> Result<Option<Demand>, Error> {
    let from = workspace.spec.shape;
    // What is not asked for stays, also when the plan no longer allows it.
    let asked = RequestedShape {
        vcpu_count: update.vcpu_count,
        memory_mib: update.memory_mib,
        disk_mib: update.disk_mib,
        cpu_kind: update.cpu_kind.unwrap_or(from.cpu_kind),
    };
    let asked = check_shape(plan, &workspace.spec.made_from.floor.raise_change(&asked))?;
    let mut shape = from;
    shape.cpu_kind = asked.cpu_kind;
    if update.vcpu_count.is_some() {
        shape.vcpu_count = asked.vcpu_count;
    }
    if update.memory_mib.is_some() {
        shape.memory_mib = asked.memory_mib;
    }
    if update.disk_mib.is_some() {
        shape.disk_mib = asked.disk_mib;
    }
    if shape == from {
        return Ok(None);
    }
    let is_disk_alone = Shape { disk_mib: from.disk_mib, ..shape } == from;
    let may_change = match &workspace.state {
        State::Running { .. } => is_disk_alone,
        State::Suspended => false,
        State::Provisioned
        | State::Starting
        | State::Paused { .. }
        | State::Suspending
        | State::Stopping
        | State::Stopped
        | State::Failed(_)
        | State::Deleting => !workspace.counts_as_running(),
    };
    if !may_change {
        return Err(ErrorKind::RefusedByState {
            state: workspace.state.name(),
            reason: "its size can be changed only while it is stopped".to_owned(),
        }
        .into());
    }
    if shape.disk_mib < from.disk_mib {
        let problem = format!("{} is less than it has", shape.disk_mib.get());
        let allowed = format!("{} to {} MiB", from.disk_mib.get(), plan.disk_mib.max);
        return Err(Error::invalid("disk_mib", problem, allowed));
    }
    workspace.spec.shape = shape;
    Ok(Some(match is_disk_alone && workspace.counts_as_running() {
        true => Demand::GrowRunning,
        false => Demand::Resize { from },
    }))
}
