//! Service specs: services that an account keeps for workspaces to come.

use std::{collections::BTreeMap, fmt::Write as _};

use axum::{Json, extract::State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use skerry_control::{Caller, Error};
use skerry_model::{
    Blueprint, BlueprintBody, BlueprintKind, EnvVar, RestartMode, ServiceSpec, Timestamp,
};

use super::{Rigbox, convert, error_body::RigboxError, wire};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{JsonBody, PathOf},
    object::Object,
};

const KIND: BlueprintKind = BlueprintKind::Service;

/// Body of `POST /service-specs` and of `PUT /service-specs/{id}`. No `Debug`: the values may be
/// secrets.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SpecBody {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    exec_start: Option<String>,
    #[serde(default)]
    env_vars: Option<BTreeMap<String, String>>,
    #[serde(default)]
    restart_policy: Option<String>,
    #[serde(default)]
    auto_enable: Option<bool>,
    /// The empty text removes it; so for the next.
    #[serde(default)]
    environment_file: Option<String>,
    #[serde(default)]
    setup_script: Option<String>,
}

/// A service spec.
#[derive(Serialize)]
pub(super) struct SpecView {
    id: String,
    user_id: String,
    name: String,
    exec_start: String,
    env_vars: BTreeMap<String, String>,
    restart_policy: &'static str,
    auto_enable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    environment_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    setup_script: Option<String>,
    source: &'static str,
    systemd_unit_preview: String,
    created_at: Timestamp,
    updated_at: Timestamp,
}

/// Answer of `GET /service-specs`.
#[derive(Serialize)]
pub(super) struct SpecList {
    services: Vec<SpecView>,
}

const fn policy_word(mode: RestartMode) -> &'static str {
    match mode {
        RestartMode::Always => "always",
        RestartMode::OnFailure => "on-failure",
        RestartMode::Never => "no",
    }
}

fn policy(word: &str) -> Result<RestartMode, RigboxError> {
    match word {
        "always" => Ok(RestartMode::Always),
        "on-failure" => Ok(RestartMode::OnFailure),
        "no" => Ok(RestartMode::Never),
        _ => {
            let allowed = "always, on-failure, no";
            Err(RigboxError::invalid("restart_policy", "is no restart policy", allowed))
        }
    }
}

/// A body whose words were read.
struct Asked {
    body: SpecBody,
    restart: Option<RestartMode>,
}

impl Asked {
    fn read(body: SpecBody) -> Result<Self, RigboxError> {
        let restart = body.restart_policy.as_deref().map(policy).transpose()?;
        Ok(Self { body, restart })
    }

    fn apply(&self, name: &mut String, spec: &mut ServiceSpec) {
        let Self { body, restart } = self;
        if let Some(asked) = &body.name {
            name.clone_from(asked);
        }
        if let Some(asked) = &body.exec_start {
            spec.command_line.clone_from(asked);
        }
        if let Some(asked) = &body.env_vars {
            let var = |(key, value): (&String, &String)| EnvVar {
                key: key.clone(),
                value: value.clone(),
            };
            spec.env = asked.iter().map(var).collect();
        }
        spec.restart = restart.unwrap_or(spec.restart);
        spec.starts_by_itself = body.auto_enable.unwrap_or(spec.starts_by_itself);
        let or_none = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        if let Some(asked) = &body.environment_file {
            spec.environment_file = or_none(asked);
        }
        if let Some(asked) = &body.setup_script {
            spec.setup = or_none(asked);
        }
    }
}

/// The same as a unit of systemd. It is shown and not used: the guest's agent supervises.
fn unit(name: &str, spec: &ServiceSpec) -> String {
    let mut text = format!("[Unit]\nDescription={name}\nAfter=network.target\n\n[Service]\n");
    // A string takes everything.
    if let Some(user) = &spec.user {
        let _ = writeln!(text, "User={user}");
    }
    if let Some(dir) = &spec.working_dir {
        let _ = writeln!(text, "WorkingDirectory={dir}");
    }
    if let Some(file) = &spec.environment_file {
        let _ = writeln!(text, "EnvironmentFile={file}");
    }
    for EnvVar { key, value } in &spec.env {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
        let _ = writeln!(text, "Environment=\"{key}={}\"", value.replace('\n', "\\n"));
    }
    let restart = policy_word(spec.restart);
    let _ = writeln!(text, "ExecStart={}\nRestart={restart}", spec.command_line);
    text.push_str("\n[Install]\nWantedBy=multi-user.target\n");
    text
}

fn view(blueprint: &Blueprint) -> Result<SpecView, Error> {
    let BlueprintBody::Service(spec) = &blueprint.body else {
        return Err(Error::not_found(KIND.noun()));
    };
    Ok(SpecView {
        id: blueprint.id.to_string(),
        user_id: blueprint.account_id.to_string(),
        name: blueprint.name.clone(),
        exec_start: spec.command_line.clone(),
        env_vars: spec.env.iter().map(|var| (var.key.clone(), var.value.clone())).collect(),
        restart_policy: policy_word(spec.restart),
        auto_enable: spec.starts_by_itself,
        environment_file: spec.environment_file.clone(),
        setup_script: spec.setup.clone(),
        source: "user",
        systemd_unit_preview: unit(&blueprint.name, spec),
        created_at: blueprint.created_at,
        updated_at: blueprint.updated_at,
    })
}

async fn find(state: &ApiState, caller: &Caller, id: &str) -> Result<Blueprint, Error> {
    let id = convert::blueprint_id(id, KIND)?;
    state.control.blueprint(caller, KIND, id).await
}

/// `GET /service-specs`.
pub(super) async fn list(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
) -> Result<Json<SpecList>, RigboxError> {
    let all = state.control.blueprints(&auth.caller, KIND).await?;
    Ok(Json(SpecList { services: all.iter().map(view).collect::<Result<_, _>>()? }))
}

/// `POST /service-specs`.
pub(super) async fn create(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    body: JsonBody<Object<SpecBody>, Rigbox>,
) -> Result<(StatusCode, Json<SpecView>), RigboxError> {
    let asked = Asked::read(body.value.0)?;
    let needed = [
        ("name", &asked.body.name, "1 to 48 characters of A-Z, a-z, 0-9, ., _ and -"),
        ("exec_start", &asked.body.exec_start, "a program and its arguments in one line"),
    ];
    for (field, given, allowed) in needed {
        if given.is_none() {
            return Err(convert::required(field, allowed).into());
        }
    }
    let mut name = String::new();
    let mut spec = ServiceSpec {
        command_line: String::new(),
        env: Vec::new(),
        restart: RestartMode::OnFailure,
        starts_by_itself: false,
        environment_file: None,
        setup: None,
        user: Some(convert::GUEST_USER.to_owned()),
        working_dir: Some(convert::GUEST_HOME.to_owned()),
    };
    asked.apply(&mut name, &mut spec);
    let body = BlueprintBody::Service(spec);
    let made = state.control.create_blueprint(&auth.caller, &name, body).await?;
    Ok((StatusCode::CREATED, Json(view(&made)?)))
}

/// `GET /service-specs/{id}`.
pub(super) async fn get(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
) -> Result<Json<SpecView>, RigboxError> {
    Ok(Json(view(&find(&state, &auth.caller, &id.value).await?)?))
}

/// `PUT /service-specs/{id}`: what is absent stays.
pub(super) async fn change(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
    body: JsonBody<Object<SpecBody>, Rigbox>,
) -> Result<Json<SpecView>, RigboxError> {
    let asked = Asked::read(body.value.0)?;
    let id = convert::blueprint_id(&id.value, KIND)?;
    let change = |name: &mut String, body: &mut BlueprintBody| match body {
        BlueprintBody::Service(spec) => {
            asked.apply(name, spec);
            Ok(())
        }
        BlueprintBody::Setup(_) | BlueprintBody::Template(_) => Err(Error::not_found(KIND.noun())),
    };
    let changed = state.control.update_blueprint(&auth.caller, KIND, id, change).await?;
    Ok(Json(view(&changed)?))
}

/// `DELETE /service-specs/{id}`.
pub(super) async fn delete(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
) -> Result<Json<wire::Message>, RigboxError> {
    let id = convert::blueprint_id(&id.value, KIND)?;
    state.control.delete_blueprint(&auth.caller, KIND, id).await?;
    let message = "service spec deleted; workspaces made with it keep it".to_owned();
    Ok(Json(wire::Message { message }))
}
