//! Templates: one for each image, which anybody may see, and the account's own.

use axum::{Json, extract::State};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use skerry_control::{Error, TemplateView};
use skerry_model::{Blueprint, BlueprintBody, BlueprintKind, Floor, Template, Timestamp};

use super::{Rigbox, convert, error_body::RigboxError, wire};
use crate::{
    ApiState,
    auth::{self, Authenticated},
    extract::{JsonBody, PathOf},
    number::WholeNumber,
    object::Object,
};

const KIND: BlueprintKind = BlueprintKind::Template;

/// Body of `POST /templates` and of `PUT /templates/{id}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TemplateBody {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    icon: Option<String>,
    #[serde(default)]
    category: Option<String>,
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    ram_mb: Option<WholeNumber>,
    #[serde(default)]
    vcpu_count: Option<WholeNumber>,
    #[serde(default)]
    disk_size_mb: Option<WholeNumber>,
    #[serde(default)]
    setup_script_ids: Option<Vec<String>>,
    #[serde(default)]
    service_spec_ids: Option<Vec<String>>,
    #[serde(default)]
    catalog_ids: Option<Vec<String>>,
}

/// A template.
#[derive(Serialize)]
pub(super) struct View {
    id: String,
    name: String,
    description: String,
    icon: String,
    image: String,
    ram_mb: u32,
    vcpu_count: u32,
    disk_size_mb: u32,
    category: String,
    default_log_sources: [String; 0],
    coming_soon: bool,
    image_bound: bool,
    setup_script_ids: Vec<String>,
    service_spec_ids: Vec<String>,
    catalog_ids: Vec<String>,
    /// Absent of one that is there by itself; so for the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    updated_at: Option<Timestamp>,
}

/// Answer of `GET /templates`.
#[derive(Serialize)]
pub(super) struct List {
    templates: Vec<View>,
}

fn view(
    id: String,
    name: String,
    template: Template,
    times: Option<(Timestamp, Timestamp)>,
) -> View {
    let ids = |ids: &[skerry_model::BlueprintId]| ids.iter().map(ToString::to_string).collect();
    View {
        id,
        name,
        ram_mb: template.least.memory_mib,
        vcpu_count: template.least.vcpu_count,
        disk_size_mb: template.least.disk_mib,
        default_log_sources: [],
        coming_soon: false,
        image_bound: true,
        setup_script_ids: ids(&template.setup),
        service_spec_ids: ids(&template.services),
        catalog_ids: template.apps,
        description: template.description,
        icon: template.icon,
        image: template.image,
        category: template.category,
        created_at: times.map(|(created, _)| created),
        updated_at: times.map(|(_, updated)| updated),
    }
}

fn view_of(found: TemplateView) -> View {
    view(found.id, found.name, found.template, found.times)
}

fn view_of_own(own: Blueprint) -> Result<View, Error> {
    match own.body {
        BlueprintBody::Template(template) => {
            let times = Some((own.created_at, own.updated_at));
            Ok(view(own.id.to_string(), own.name, template, times))
        }
        BlueprintBody::Service(_) | BlueprintBody::Setup(_) => Err(Error::not_found(KIND.noun())),
    }
}

/// A body whose numbers and ids were read.
struct Asked {
    body: TemplateBody,
    vcpu_count: Option<u32>,
    memory_mib: Option<u32>,
    disk_mib: Option<u32>,
    setup: Option<Vec<skerry_model::BlueprintId>>,
    services: Option<Vec<skerry_model::BlueprintId>>,
}

impl Asked {
    fn read(body: TemplateBody) -> Result<Self, RigboxError> {
        let size = |field, asked: Option<WholeNumber>| {
            let read = asked.map(|WholeNumber(size)| u32::try_from(size)).transpose();
            read.map_err(|_| RigboxError::invalid(field, "is out of range", "a size of the plan"))
        };
        let (setup, services) = (&body.setup_script_ids, &body.service_spec_ids);
        Ok(Self {
            vcpu_count: size("vcpu_count", body.vcpu_count)?,
            memory_mib: size("ram_mb", body.ram_mb)?,
            disk_mib: size("disk_size_mb", body.disk_size_mb)?,
            setup: convert::blueprint_ids("setup_script_ids", setup.as_deref())?,
            services: convert::blueprint_ids("service_spec_ids", services.as_deref())?,
            body,
        })
    }

    fn apply(&self, name: &mut String, template: &mut Template) {
        let texts = [
            (&self.body.name, name),
            (&self.body.description, &mut template.description),
            (&self.body.icon, &mut template.icon),
            (&self.body.category, &mut template.category),
            (&self.body.image, &mut template.image),
        ];
        for (asked, text) in texts {
            if let Some(asked) = asked {
                text.clone_from(asked);
            }
        }
        let least = &mut template.least;
        least.vcpu_count = self.vcpu_count.unwrap_or(least.vcpu_count);
        least.memory_mib = self.memory_mib.unwrap_or(least.memory_mib);
        least.disk_mib = self.disk_mib.unwrap_or(least.disk_mib);
        if let Some(asked) = &self.setup {
            template.setup.clone_from(asked);
        }
        if let Some(asked) = &self.body.catalog_ids {
            template.apps.clone_from(asked);
        }
        if let Some(asked) = &self.services {
            template.services.clone_from(asked);
        }
    }
}

/// `GET /templates`: who shows a credential sees their own too.
pub(super) async fn list(
    State(state): State<ApiState>,
    headers: HeaderMap,
) -> Result<Json<List>, RigboxError> {
    let templates = match auth::credential(&headers, None) {
        None => state.control.public_templates().await?,
        Some(_) => {
            let caller = auth::caller(&state, &headers).await?;
            state.control.templates(&caller).await?
        }
    };
    Ok(Json(List { templates: templates.into_iter().map(view_of).collect() }))
}

/// `POST /templates`.
pub(super) async fn create(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    body: JsonBody<Object<TemplateBody>, Rigbox>,
) -> Result<(StatusCode, Json<View>), RigboxError> {
    let asked = Asked::read(body.value.0)?;
    if asked.body.name.is_none() {
        return Err(convert::required("name", "1 to 128 characters").into());
    }
    let mut name = String::new();
    let mut template = Template {
        image: convert::DEFAULT_IMAGE.to_owned(),
        least: Floor {
            vcpu_count: convert::DEFAULT_VCPU_COUNT,
            memory_mib: convert::DEFAULT_RAM_MB,
            disk_mib: convert::DEFAULT_DISK_SIZE_MB,
        },
        ..Template::default()
    };
    asked.apply(&mut name, &mut template);
    let body = BlueprintBody::Template(template);
    let made = state.control.create_blueprint(&auth.caller, &name, body).await?;
    Ok((StatusCode::CREATED, Json(view_of_own(made)?)))
}

/// `GET /templates/{id}`.
pub(super) async fn get(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
) -> Result<Json<View>, RigboxError> {
    Ok(Json(view_of(state.control.template(&auth.caller, &id.value).await?)))
}

/// `PUT /templates/{id}`: what is absent stays. Only the account's own.
pub(super) async fn change(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
    body: JsonBody<Object<TemplateBody>, Rigbox>,
) -> Result<Json<View>, RigboxError> {
    let asked = Asked::read(body.value.0)?;
    let id = convert::blueprint_id(&id.value, KIND)?;
    let change = |name: &mut String, body: &mut BlueprintBody| match body {
        BlueprintBody::Template(template) => {
            asked.apply(name, template);
            Ok(())
        }
        BlueprintBody::Service(_) | BlueprintBody::Setup(_) => Err(Error::not_found(KIND.noun())),
    };
    let changed = state.control.update_blueprint(&auth.caller, KIND, id, change).await?;
    Ok(Json(view_of_own(changed)?))
}

/// `DELETE /templates/{id}`. Only the account's own.
pub(super) async fn delete(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    id: PathOf<String, Rigbox>,
) -> Result<Json<wire::Message>, RigboxError> {
    let id = convert::blueprint_id(&id.value, KIND)?;
    state.control.delete_blueprint(&auth.caller, KIND, id).await?;
    Ok(Json(wire::Message { message: "template deleted".to_owned() }))
}
