//! Setup scripts that an account keeps for workspaces to come.

use axum::{Json, extract::State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use skerry_control::Error;
use skerry_model::{Blueprint, BlueprintBody, BlueprintKind, SetupRuns, SetupScript, Timestamp};

use super::{Rigbox, convert, error_body::RigboxError, wire};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf},
    number::WholeNumber,
    object::Object,
};

const KIND: BlueprintKind = BlueprintKind::Setup;

/// Body of `POST /setup-scripts` and of `PUT /setup-scripts/{id}`. No `Debug`: a script may hold
/// secrets.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScriptBody {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    run_on: Option<String>,
    #[serde(default)]
    script_order: Option<WholeNumber>,
}

/// A setup script.
#[derive(Serialize)]
pub(super) struct ScriptView {
    id: String,
    user_id: String,
    name: String,
    content: String,
    run_on: &'static str,
    script_order: i32,
    source: &'static str,
    created_at: Timestamp,
    updated_at: Timestamp,
}

/// Answer of `GET /setup-scripts`.
#[derive(Serialize)]
pub(super) struct ScriptList {
    scripts: Vec<ScriptView>,
}

const fn run_on_word(runs: SetupRuns) -> &'static str {
    match runs {
        SetupRuns::Once => "first_boot",
        SetupRuns::AtBoot => "every_start",
    }
}

fn run_on(word: &str) -> Result<SetupRuns, RigboxError> {
    match word {
        "first_boot" => Ok(SetupRuns::Once),
        "every_start" => Ok(SetupRuns::AtBoot),
        _ => Err(RigboxError::invalid("run_on", "is unknown", "first_boot, every_start")),
    }
}

/// A body whose words and numbers were read.
struct Asked {
    name: Option<String>,
    content: Option<String>,
    runs: Option<SetupRuns>,
    order: Option<i32>,
}

impl Asked {
    fn read(body: ScriptBody) -> Result<Self, RigboxError> {
        let order = body.script_order.map(|WholeNumber(order)| i32::try_from(order)).transpose();
        let wrong = |_| RigboxError::invalid("script_order", "is out of range", "a 32-bit number");
        Ok(Self {
            name: body.name,
            content: body.content,
            runs: body.run_on.as_deref().map(run_on).transpose()?,
            order: order.map_err(wrong)?,
        })
    }

    fn apply(&self, name: &mut String, script: &mut SetupScript) {
        if let Some(asked) = &self.name {
            name.clone_from(asked);
        }
        if let Some(asked) = &self.content {
            script.script.clone_from(asked);
        }
        script.runs = self.runs.unwrap_or(script.runs);
        script.order = self.order.unwrap_or(script.order);
    }
}

fn view(blueprint: &Blueprint) -> Result<ScriptView, Error> {
    let BlueprintBody::Setup(script) = &blueprint.body else {
        return Err(Error::not_found(KIND.noun()));
    };
    Ok(ScriptView {
        id: blueprint.id.to_string(),
        user_id: blueprint.account_id.to_string(),
        name: blueprint.name.clone(),
        content: script.script.clone(),
        run_on: run_on_word(script.runs),
        script_order: script.order,
        source: "user",
        created_at: blueprint.created_at,
        updated_at: blueprint.updated_at,
    })
}

/// `GET /setup-scripts`: by `script_order`, oldest first among equals.
pub(super) async fn list(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
) -> Result<Json<ScriptList>, RigboxError> {
    let all = state.control.blueprints(&auth.caller, KIND).await?;
    let mut scripts: Vec<ScriptView> = all.iter().map(view).collect::<Result<_, _>>()?;
    scripts.sort_by_key(|script| script.script_order);
    Ok(Json(ScriptList { scripts }))
}

/// `POST /setup-scripts`.
pub(super) async fn create(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    body: JsonBody<Object<ScriptBody>, Rigbox>,
) -> Result<(StatusCode, Json<ScriptView>), RigboxError> {
    let asked = Asked::read(body.value.0)?;
    let needed = [
        ("name", &asked.name, "1 to 128 characters, no control characters"),
        ("content", &asked.content, "a bash script"),
    ];
    for (field, given, allowed) in needed {
        if given.is_none() {
            return Err(convert::required(field, allowed).into());
        }
    }
    let mut name = String::new();
    let mut script = SetupScript {
        script: String::new(),
        runs: SetupRuns::Once,
        order: 0,
        user: Some(convert::GUEST_USER.to_owned()),
        working_dir: Some(convert::GUEST_HOME.to_owned()),
    };
    asked.apply(&mut name, &mut script);
    let body = BlueprintBody::Setup(script);
    let made = state.control.create_blueprint(&auth.caller, &name, body).await?;
    Ok((StatusCode::CREATED, Json(view(&made)?)))
}

/// `GET /setup-scripts/{id}`.
pub(super) async fn get(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
) -> Result<Json<ScriptView>, RigboxError> {
    let id = convert::blueprint_id(&id.value, KIND)?;
    Ok(Json(view(&state.control.blueprint(&auth.caller, KIND, id).await?)?))
}

/// `PUT /setup-scripts/{id}`: what is absent stays.
pub(super) async fn change(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
    body: JsonBody<Object<ScriptBody>, Rigbox>,
) -> Result<Json<ScriptView>, RigboxError> {
    let asked = Asked::read(body.value.0)?;
    let id = convert::blueprint_id(&id.value, KIND)?;
    let change = |name: &mut String, body: &mut BlueprintBody| match body {
        BlueprintBody::Setup(script) => {
            asked.apply(name, script);
            Ok(())
        }
        BlueprintBody::Service(_) | BlueprintBody::Template(_) => {
            Err(Error::not_found(KIND.noun()))
        }
    };
    let changed = state.control.update_blueprint(&auth.caller, KIND, id, change).await?;
    Ok(Json(view(&changed)?))
}

/// `DELETE /setup-scripts/{id}`.
pub(super) async fn delete(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
) -> Result<Json<wire::Message>, RigboxError> {
    let id = convert::blueprint_id(&id.value, KIND)?;
    state.control.delete_blueprint(&auth.caller, KIND, id).await?;
    let message = "setup script deleted; workspaces made with it keep it".to_owned();
    Ok(Json(wire::Message { message }))
}
