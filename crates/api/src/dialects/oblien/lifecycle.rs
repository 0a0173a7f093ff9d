//! `/workspace/:id/lifecycle` and below.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use skerry_control::{LifecycleChange, Setting};
use skerry_model::{Expiry, Lifetime, RestartMode, RestartPolicy, Workspace};

use super::{Oblien, error_body::Problem, life, object};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf},
    ids,
    object::Object,
};

type Login = Authenticated<Oblien>;
type Reference = PathOf<String, Oblien>;
type Body<T> = JsonBody<Option<Object<T>>, Oblien>;

/// `POST …/lifecycle/permanent`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct PermanentBody {
    restart_policy: Option<Value>,
    max_restarts: Option<Value>,
}

/// `POST …/lifecycle/temporary` and `PUT …/lifecycle/ttl`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TtlBody {
    ttl: Option<Value>,
    ttl_action: Option<String>,
    remove_on_exit: Option<bool>,
}

pub(super) async fn get(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: Reference,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let workspace = state.control.get_workspace(&caller, &which).await?;
    Ok(answer(&state, &workspace))
}

/// Lasting from now on: no time to live, not removed on exit, and by default restarted always. One
/// that is stopped stays so.
pub(super) async fn permanent(
    state: State<ApiState>,
    login: Login,
    reference: Reference,
    JsonBody { value: body, .. }: Body<PermanentBody>,
) -> Result<Response, Problem> {
    let asked = body.map(|Object(body)| body).unwrap_or_default();
    let restart = life::restart("", asked.restart_policy.as_ref(), asked.max_restarts.as_ref())?
        .unwrap_or(RestartPolicy { mode: RestartMode::Always, ..RestartPolicy::default() });
    let change = LifecycleChange {
        lifetime: Some(Lifetime::Permanent),
        expiry: Setting::Clear,
        remove_on_exit: Some(false),
        restart: Some(restart),
        ..LifecycleChange::default()
    };
    apply(state, login, reference, change).await
}

/// Temporary from now on. With a time to live nothing restarts it.
pub(super) async fn temporary(
    state: State<ApiState>,
    login: Login,
    reference: Reference,
    JsonBody { value: body, .. }: Body<TtlBody>,
) -> Result<Response, Problem> {
    let asked = body.map(|Object(body)| body).unwrap_or_default();
    let action = life::ttl_action("", asked.ttl_action.as_deref())?;
    let ttl = life::ttl("", asked.ttl.as_ref())?;
    let change = LifecycleChange {
        lifetime: Some(Lifetime::Temporary),
        expiry: ttl
            .map_or(Setting::Keep, |after_seconds| Setting::To(Expiry { after_seconds, action })),
        restart: ttl.is_some().then(RestartPolicy::default),
        remove_on_exit: asked.remove_on_exit,
        ..LifecycleChange::default()
    };
    apply(state, login, reference, change).await
}

/// A new time to live, or a new action for the one there is.
pub(super) async fn ttl(
    State(state): State<ApiState>,
    login: Login,
    reference: Reference,
    JsonBody { value: body, .. }: Body<TtlBody>,
) -> Result<Response, Problem> {
    let asked = body.map(|Object(body)| body).unwrap_or_default();
    let which = ids::parse_workspace_ref(&reference.value);
    let now = state.control.get_workspace(&login.caller, &which).await?.spec.expiry;
    let given = life::ttl("", asked.ttl.as_ref())?;
    let Some(after_seconds) = given.or(now.map(|expiry| expiry.after_seconds)) else {
        return Err(Problem::Refused(life::missing_ttl()));
    };
    let action = match (asked.ttl_action.as_deref(), now) {
        (None, Some(expiry)) => expiry.action,
        (word, _) => life::ttl_action("", word)?,
    };
    let change = LifecycleChange {
        lifetime: Some(Lifetime::Temporary),
        expiry: Setting::To(Expiry { after_seconds, action }),
        remove_on_exit: asked.remove_on_exit,
        ..LifecycleChange::default()
    };
    apply(State(state), login, reference, change).await
}

/// Sleep when idle. What sleeps by this rule is woken by use.
pub(super) async fn idle(
    state: State<ApiState>,
    login: Login,
    reference: Reference,
    JsonBody { value: body, .. }: JsonBody<Option<Value>, Oblien>,
) -> Result<Response, Problem> {
    let policy = life::idle("", &body.unwrap_or(Value::Null))?;
    let change = LifecycleChange {
        idle: policy.map_or(Setting::Clear, Setting::To),
        auto_resume: Some(policy.is_some()),
        ..LifecycleChange::default()
    };
    apply(state, login, reference, change).await
}

async fn apply(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: Reference,
    change: LifecycleChange,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let workspace = state.control.set_lifecycle(&caller, &which, change).await?;
    Ok(answer(&state, &workspace))
}

/// The client's `LifecycleStatus`, at the top of the body.
fn answer(state: &ApiState, workspace: &Workspace) -> Response {
    let mut body = json!({ "success": true });
    let shown = object::lifecycle_status(workspace, state.control.now());
    if let (Some(body), Ok(Value::Object(fields))) =
        (body.as_object_mut(), serde_json::to_value(shown))
    {
        body.extend(fields);
    }
    Json(body).into_response()
}
