//! Changing a workspace's record.

use std::sync::Arc;

use skerry_model::{
    Demand, Desired, DisplayName, EnvVar, ErrorKind, Plan, Refusal, RequestedShape, Slug, State,
    Workspace, limits::check_shape, spec::check_metadata,
};

use super::{UpdateWorkspace, WorkspaceRef, wishes::refused};
use crate::{Caller, Control, Error};

impl Control {
    /// Changes a workspace.
    ///
    /// # Errors
    /// As create; `RefusedByState` for a new size while a VM is there.
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
            inner.change(&caller, &which, change).await
        };
        self.inner.to_the_end(change).await
    }
}

/// Applies a new size, if one is asked for; answers what the plan has to admit.
fn resize(
    workspace: &mut Workspace,
    update: &UpdateWorkspace,
    plan: &Plan,
) -> Result<Option<Demand>, Error> {
    let from = workspace.spec.shape;
    // What is not asked for stays, also when the plan no longer allows it.
    let asked = check_shape(
        plan,
        &RequestedShape {
            vcpu_count: update.vcpu_count,
            memory_mib: update.memory_mib,
            disk_mib: update.disk_mib,
            cpu_kind: update.cpu_kind.unwrap_or(from.cpu_kind),
        },
    )?;
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
    if workspace.counts_as_running() || workspace.state == State::Suspended {
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
    Ok(Some(Demand::Resize { from }))
}
