//! `PUT`, `PATCH /workspace/:id/resources`: other sizes.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::json;
use skerry_control::{UpdateWorkspace, Wait};
use skerry_model::{ErrorKind, State as WorkspaceState, Workspace};

use super::{
    Oblien,
    convert::{self, ResourcesBody},
    error_body::Problem,
    power,
    reads::resources_shown,
    workspaces::LONGEST_WAIT,
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf},
    ids,
    object::Object,
};

/// Whether a machine that runs has to be started anew for it: a disk grows under it.
fn needs_relaunch(workspace: &Workspace, update: &UpdateWorkspace) -> bool {
    let shape = workspace.spec.shape;
    let differs = |asked: Option<u64>, now: u64| asked.is_some_and(|asked| asked != now);
    matches!(workspace.state, WorkspaceState::Running { .. })
        && (differs(update.vcpu_count, shape.vcpu_count.get().into())
            || differs(update.memory_mib, shape.memory_mib.get().into()))
}

pub(super) async fn update(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
    JsonBody { value: Object(body), .. }: JsonBody<Object<ResourcesBody>, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let may_relaunch = body.apply == Some(true);
    let update = convert::resources_update(body)?;
    let workspace = state.control.get_workspace(&caller, &which).await?;
    let relaunched = needs_relaunch(&workspace, &update);
    if relaunched && !may_relaunch {
        let reason = "cpus and memory_mb change while it is stopped, or now with apply: true";
        let kind =
            ErrorKind::RefusedByState { state: workspace.state.name(), reason: reason.to_owned() };
        return Err(Problem::Control(kind.into()));
    }
    let changed = if relaunched {
        let wait = Wait::UpTo(LONGEST_WAIT);
        state.until_shutdown(state.control.stop_workspace(&caller, &which, wait)).await?;
        let changed = state.control.update_workspace(&caller, &which, update).await;
        // What ran runs again, whether it has changed or not.
        let starting = state.control.start_workspace(&caller, &which, wait);
        let started = state.until_shutdown(starting).await?;
        let changed = changed?;
        power::started(&state, &caller, started).await?;
        changed
    } else {
        state.control.update_workspace(&caller, &which, update).await?
    };
    let shape = changed.spec.shape;
    Ok(Json(json!({
        "success": true,
        "updated": {
            "cpus": shape.vcpu_count.get(),
            "memory_mb": shape.memory_mib.get(),
            "disk_size_mb": shape.disk_mib.get(),
        },
        "relaunched": relaunched,
        "resources": resources_shown(&state.control.get_workspace(&caller, &which).await?),
    }))
    .into_response())
}
