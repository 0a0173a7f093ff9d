//! `/v1/vaults`, and `vault_ids` wherever a VM is asked for or used.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use skerry_control::{Caller, Error, NewCredential, NewService, UpdateVault};
use skerry_model::{
    CATALOGUE, CatalogueAuth, CatalogueEntry, Secret, ServiceAuth, Vault, VaultCredential,
    VaultCredentialId, VaultId, VaultRequest, VaultService, VaultServiceId,
};

use super::{
    Instavm, convert, error_body::Problem, request::AuthenticatedBody, validation::Fields,
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{PathOf, QueryOf},
    ids::{base36, parse_base36},
};

const VAULT: &str = "vlt_";
const CREDENTIAL: &str = "cred_";
const SERVICE: &str = "svc_";
const FIELD: &str = "vault_ids";
const DEFAULT_LOGS: u32 = 100;

#[derive(Debug, Serialize)]
pub(super) struct VaultRecord {
    id: String,
    name: String,
    description: Option<String>,
    created_at: String,
}

#[derive(Debug, Serialize)]
pub(super) struct CredentialRecord {
    id: String,
    name: String,
    credential_type: String,
    /// There is no switch for it: one that is not to be used is deleted.
    enabled: bool,
    description: Option<String>,
    created_at: String,
    rotated_at: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct ServiceRecord {
    id: String,
    host: String,
    auth_config: Value,
    enabled: bool,
    description: Option<String>,
    created_at: String,
}

#[derive(Debug, Serialize)]
pub(super) struct CatalogRecord {
    id: &'static str,
    name: &'static str,
    host: &'static str,
    auth_type: &'static str,
    credential_key: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    username_key: Option<&'static str>,
    header: Option<&'static str>,
    prefix: Option<&'static str>,
    path_placeholder: Option<&'static str>,
}

#[derive(Debug, Serialize)]
pub(super) struct RequestRecord {
    timestamp: String,
    host: String,
    method: String,
    status: u16,
    credential_name: Option<String>,
    session_id: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Deleted {
    id: String,
    status: &'static str,
}

#[derive(Debug, Deserialize)]
pub(super) struct LogsQuery {
    limit: Option<u32>,
}

fn vault_record(vault: Vault) -> VaultRecord {
    VaultRecord {
        id: vault_text(vault.id),
        name: vault.name,
        description: vault.description,
        created_at: convert::time(vault.created_at),
    }
}

fn credential_record(credential: VaultCredential) -> CredentialRecord {
    let enabled = true;
    CredentialRecord {
        id: format!("{CREDENTIAL}{}", base36(credential.id.as_u128())),
        name: credential.name,
        credential_type: credential.kind,
        enabled,
        description: credential.description,
        created_at: convert::time(credential.created_at),
        rotated_at: credential.rotated_at.map(convert::time),
    }
}

fn service_record(service: VaultService) -> ServiceRecord {
    ServiceRecord {
        id: format!("{SERVICE}{}", base36(service.id.as_u128())),
        host: service.host.to_string(),
        auth_config: auth_value(&service.auth),
        enabled: service.is_enabled,
        description: service.description,
        created_at: convert::time(service.created_at),
    }
}

fn request_record(request: VaultRequest) -> RequestRecord {
    let names = request.credentials.join(", ");
    RequestRecord {
        timestamp: convert::time(request.at),
        host: request.host,
        method: request.method,
        status: request.status,
        credential_name: Some(names).filter(|names| !names.is_empty()),
        session_id: crate::ids::uuid_text(request.workspace_id),
    }
}

fn catalog_record(entry: &CatalogueEntry) -> CatalogRecord {
    let record = |auth_type, credential_key| CatalogRecord {
        id: entry.id,
        name: entry.name,
        host: entry.host,
        auth_type,
        credential_key,
        username_key: None,
        header: None,
        prefix: None,
        path_placeholder: None,
    };
    match entry.auth {
        CatalogueAuth::Bearer(key) => record("bearer", key),
        CatalogueAuth::ApiKey(header, key, prefix) => CatalogRecord {
            header: Some(header),
            prefix: Some(prefix).filter(|prefix| !prefix.is_empty()),
            ..record("api-key", key)
        },
        CatalogueAuth::Basic(username, password) => {
            CatalogRecord { username_key: Some(username), ..record("basic", password) }
        }
        CatalogueAuth::UrlPath(key, placeholder) => {
            CatalogRecord { path_placeholder: Some(placeholder), ..record("url-path", key) }
        }
    }
}

/// What a service does, as it is said here.
fn auth_value(auth: &ServiceAuth) -> Value {
    match auth {
        ServiceAuth::Bearer { token } => json!({ "type": "bearer", "token": token }),
        ServiceAuth::ApiKey { header, key, prefix } if prefix.is_empty() => {
            json!({ "type": "api-key", "header": header, "key": key })
        }
        ServiceAuth::ApiKey { header, key, prefix } => {
            json!({ "type": "api-key", "header": header, "key": key, "prefix": prefix })
        }
        ServiceAuth::Basic { username, password } => {
            json!({ "type": "basic", "username": username, "password": password })
        }
        ServiceAuth::Custom { headers } => {
            let headers: Map<String, Value> =
                headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
            json!({ "type": "custom", "headers": headers })
        }
        ServiceAuth::UrlPath { token, placeholder } => {
            json!({ "type": "url-path", "token": token, "placeholder": placeholder })
        }
        ServiceAuth::Passthrough => json!({ "type": "passthrough" }),
    }
}

/// The same the other way; what is wrong with it is said in `fields`.
fn auth_config(fields: &mut Fields) -> Option<ServiceAuth> {
    const AUTH: &str = "auth_config";
    if !fields.has(AUTH) {
        fields.missing(AUTH);
        return None;
    }
    let mut said = Fields::new(fields.object(AUTH)?);
    let kind = said.text("type").unwrap_or_default();
    let mut missing = None;
    let mut needed = |said: &mut Fields, name: &'static str| {
        let text = said.text(name).filter(|text| !text.is_empty());
        text.unwrap_or_else(|| {
            missing.get_or_insert(name);
            String::new()
        })
    };
    let auth = match kind.as_str() {
        "bearer" => ServiceAuth::Bearer { token: needed(&mut said, "token") },
        "api-key" | "header" => ServiceAuth::ApiKey {
            header: needed(&mut said, "header"),
            key: needed(&mut said, "key"),
            prefix: said.text("prefix").unwrap_or_default(),
        },
        "basic" => ServiceAuth::Basic {
            username: needed(&mut said, "username"),
            password: needed(&mut said, "password"),
        },
        "custom" => {
            let headers = said.texts("headers").unwrap_or_default();
            if headers.is_empty() {
                missing.get_or_insert("headers");
            }
            ServiceAuth::Custom { headers: headers.into_iter().collect() }
        }
        "url-path" => {
            let token = needed(&mut said, "token");
            let placeholder = said.text("placeholder").unwrap_or_else(|| token.clone());
            ServiceAuth::UrlPath { token, placeholder }
        }
        "passthrough" => ServiceAuth::Passthrough,
        _ => {
            let msg = "Input should be 'bearer', 'api-key', 'header', 'basic', 'custom', 'url-path' \
                       or 'passthrough'";
            fields.refuse_within(AUTH, "type", msg);
            return None;
        }
    };
    if let Some(name) = missing {
        fields.refuse_within(AUTH, name, "Field required");
        return None;
    }
    if said.finish().is_err() {
        fields.refuse(AUTH, "Input should be an object of texts");
        return None;
    }
    Some(auth)
}

fn vault_text(id: VaultId) -> String {
    format!("{VAULT}{}", base36(id.as_u128()))
}

fn number(text: &str, prefix: &str, what: &'static str) -> Result<u128, Problem> {
    let number = text.strip_prefix(prefix).and_then(parse_base36);
    number.ok_or_else(|| Error::not_found(what).into())
}

fn vault_id(text: &str) -> Result<VaultId, Problem> {
    number(text, VAULT, "vault").map(VaultId::from_u128)
}

/// `vault_ids`: `None` when nothing is said of them. They are looked up by whoever uses them.
pub(super) struct Asked(Vec<String>);

impl Asked {
    /// The vaults.
    ///
    /// # Errors
    /// 404 for what is no id of any.
    pub(super) fn ids(&self) -> Result<Vec<VaultId>, Problem> {
        self.0.iter().map(|text| vault_id(text)).collect()
    }
}

impl Asked {
    /// The same, seen to be there before anything else is changed.
    ///
    /// # Errors
    /// 404.
    pub(super) async fn found(
        &self,
        state: &ApiState,
        caller: &Caller,
    ) -> Result<Vec<VaultId>, Problem> {
        let ids = self.ids()?;
        for id in &ids {
            state.control.vault(caller, *id).await?;
        }
        Ok(ids)
    }
}

/// Reads `vault_ids`.
pub(super) fn asked(fields: &mut Fields) -> Option<Asked> {
    let list = fields.list(FIELD)?;
    let texts: Option<Vec<String>> =
        list.iter().map(|item| item.as_str().map(str::to_owned)).collect();
    if texts.is_none() {
        fields.refuse(FIELD, "Input should be a list of strings");
    }
    texts.map(Asked)
}

/// The vaults that are asked for, none if nothing is said.
pub(super) fn ids_of(asked: Option<&Asked>) -> Result<Vec<VaultId>, Problem> {
    asked.map_or_else(|| Ok(Vec::new()), Asked::ids)
}

pub(super) async fn create(
    State(state): State<ApiState>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<VaultRecord>, Problem> {
    let (name, description) = (fields.text("name"), fields.text("description"));
    if name.is_none() {
        fields.missing("name");
    }
    fields.finish()?;
    let name = name.unwrap_or_default();
    Ok(Json(vault_record(state.control.create_vault(&caller, &name, description).await?)))
}

pub(super) async fn list(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
) -> Result<Json<Value>, Problem> {
    let vaults = state.control.list_vaults(&caller).await?;
    let vaults: Vec<VaultRecord> = vaults.into_iter().map(vault_record).collect();
    Ok(Json(json!({ "vaults": vaults })))
}

pub(super) async fn get(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: vault, .. }: PathOf<String, Instavm>,
) -> Result<Json<VaultRecord>, Problem> {
    Ok(Json(vault_record(state.control.vault(&caller, vault_id(&vault)?).await?)))
}

pub(super) async fn update(
    State(state): State<ApiState>,
    PathOf { value: vault, .. }: PathOf<String, Instavm>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<VaultRecord>, Problem> {
    let (name, description) = (fields.text("name"), fields.text("description"));
    fields.finish()?;
    let update = UpdateVault { name, description };
    let updated = state.control.update_vault(&caller, vault_id(&vault)?, update).await?;
    Ok(Json(vault_record(updated)))
}

pub(super) async fn delete(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: vault, .. }: PathOf<String, Instavm>,
) -> Result<Json<Deleted>, Problem> {
    let deleted = state.control.delete_vault(&caller, vault_id(&vault)?).await?;
    Ok(Json(Deleted { id: vault_text(deleted.id), status: "deleted" }))
}

/// Names and hosts, and no values.
pub(super) async fn discover(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: vault, .. }: PathOf<String, Instavm>,
) -> Result<Json<Value>, Problem> {
    let vault = state.control.vault(&caller, vault_id(&vault)?).await?;
    let credentials = state.control.list_vault_credentials(&caller, vault.id).await?;
    let services = state.control.list_vault_services(&caller, vault.id).await?;
    let names: Vec<String> = credentials.into_iter().map(|one| one.name).collect();
    let services: Vec<Value> = services
        .into_iter()
        .map(|service| {
            let auth_type = auth_value(&service.auth)["type"].take();
            let host = service.host.to_string();
            json!({ "host": host, "auth_type": auth_type, "enabled": service.is_enabled })
        })
        .collect();
    Ok(Json(json!({
        "id": vault_text(vault.id), "name": vault.name,
        "credentials": names, "services": services,
    })))
}

pub(super) async fn catalog(_: Authenticated<Instavm>) -> Json<Value> {
    let templates: Vec<CatalogRecord> = CATALOGUE.iter().map(catalog_record).collect();
    Json(json!({ "templates": templates }))
}

pub(super) async fn credentials(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: vault, .. }: PathOf<String, Instavm>,
) -> Result<Json<Value>, Problem> {
    let found = state.control.list_vault_credentials(&caller, vault_id(&vault)?).await?;
    let records: Vec<CredentialRecord> = found.into_iter().map(credential_record).collect();
    Ok(Json(json!({ "credentials": records })))
}

pub(super) async fn add_credential(
    State(state): State<ApiState>,
    PathOf { value: vault, .. }: PathOf<String, Instavm>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<CredentialRecord>, Problem> {
    let (name, value) = (fields.text("name"), fields.text("value").map(Secret::new));
    if name.is_none() {
        fields.missing("name");
    }
    if value.is_none() {
        fields.missing("value");
    }
    let (kind, description) = (fields.text("credential_type"), fields.text("description"));
    fields.finish()?;
    let (Some(name), Some(value)) = (name, value) else {
        return Err(Problem::Unprocessable(Vec::new()));
    };
    let new = NewCredential { name, value, kind, description };
    let added = state.control.add_vault_credential(&caller, vault_id(&vault)?, new).await?;
    Ok(Json(credential_record(added)))
}

pub(super) async fn rotate_credential(
    State(state): State<ApiState>,
    PathOf { value: (vault, credential), .. }: PathOf<(String, String), Instavm>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<CredentialRecord>, Problem> {
    let value = fields.text("value").map(Secret::new);
    if value.is_none() {
        fields.missing("value");
    }
    fields.finish()?;
    let Some(value) = value else { return Err(Problem::Unprocessable(Vec::new())) };
    let (vault, credential) = (vault_id(&vault)?, credential_id(&credential)?);
    let rotated = state.control.rotate_vault_credential(&caller, vault, credential, value).await?;
    Ok(Json(credential_record(rotated)))
}

fn credential_id(text: &str) -> Result<VaultCredentialId, Problem> {
    number(text, CREDENTIAL, "credential").map(VaultCredentialId::from_u128)
}

pub(super) async fn delete_credential(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: (vault, credential), .. }: PathOf<(String, String), Instavm>,
) -> Result<Json<Deleted>, Problem> {
    let id = credential_id(&credential)?;
    state.control.remove_vault_credential(&caller, vault_id(&vault)?, id).await?;
    Ok(Json(Deleted { id: credential, status: "deleted" }))
}

pub(super) async fn services(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: vault, .. }: PathOf<String, Instavm>,
) -> Result<Json<Value>, Problem> {
    let found = state.control.list_vault_services(&caller, vault_id(&vault)?).await?;
    let records: Vec<ServiceRecord> = found.into_iter().map(service_record).collect();
    Ok(Json(json!({ "services": records })))
}

pub(super) async fn add_service(
    State(state): State<ApiState>,
    PathOf { value: vault, .. }: PathOf<String, Instavm>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<ServiceRecord>, Problem> {
    let host = fields.text("host");
    if host.is_none() {
        fields.missing("host");
    }
    let auth = auth_config(&mut fields);
    let is_enabled = fields.boolean("enabled").unwrap_or(true);
    let description = fields.text("description");
    fields.finish()?;
    let (Some(host), Some(auth)) = (host, auth) else {
        return Err(Problem::Unprocessable(Vec::new()));
    };
    let new = vec![NewService { host, auth, is_enabled, description }];
    let added = state.control.add_vault_services(&caller, vault_id(&vault)?, new).await?;
    let added = added.into_iter().next().ok_or_else(|| Error::internal("no service"))?;
    Ok(Json(service_record(added)))
}

pub(super) async fn add_services_from_templates(
    State(state): State<ApiState>,
    PathOf { value: vault, .. }: PathOf<String, Instavm>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<Value>, Problem> {
    const TEMPLATES: &str = "template_ids";
    let list = fields.list(TEMPLATES).unwrap_or_default();
    let texts: Option<Vec<String>> =
        list.iter().map(|item| item.as_str().map(str::to_owned)).collect();
    let texts = texts.filter(|texts| !texts.is_empty());
    if texts.is_none() {
        fields.refuse(TEMPLATES, "Input should be a list of strings, at least one");
    }
    fields.finish()?;
    let texts = texts.unwrap_or_default();
    let added = state.control.add_vault_services_from(&caller, vault_id(&vault)?, &texts).await?;
    let records: Vec<ServiceRecord> = added.into_iter().map(service_record).collect();
    Ok(Json(json!({ "services": records })))
}

pub(super) async fn delete_service(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: (vault, service), .. }: PathOf<(String, String), Instavm>,
) -> Result<Json<Deleted>, Problem> {
    let id = number(&service, SERVICE, "service").map(VaultServiceId::from_u128)?;
    state.control.remove_vault_service(&caller, vault_id(&vault)?, id).await?;
    Ok(Json(Deleted { id: service, status: "deleted" }))
}

pub(super) async fn request_logs(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: vault, .. }: PathOf<String, Instavm>,
    QueryOf { value: query, .. }: QueryOf<LogsQuery, Instavm>,
) -> Result<Json<Value>, Problem> {
    let limit = query.limit.unwrap_or(DEFAULT_LOGS);
    let found = state.control.vault_requests(&caller, vault_id(&vault)?, limit).await?;
    let records: Vec<RequestRecord> = found.into_iter().map(request_record).collect();
    Ok(Json(json!({ "logs": records })))
}
