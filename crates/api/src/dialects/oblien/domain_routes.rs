//! `/domain/...`: what an account has of names, over all of its workspaces.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use skerry_control::{ListWorkspaces, PublishedPort};
use skerry_model::{DomainState, Workspace};

use super::{
    Oblien,
    domains::{dns_answer, missing_domain, refused},
    error_body::Problem,
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::{JsonBody, QueryOf},
    ids,
    object::Object,
};

type Login = Authenticated<Oblien>;

/// `POST /domain/check-slug`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct SlugBody {
    slug: Option<String>,
    domain: Option<String>,
}

/// `POST /domain/verify`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct VerifyBody {
    domain: Option<String>,
    resource_id: Option<String>,
}

/// `GET /domain/routes`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RoutesQuery {
    namespace: Option<String>,
}

/// Whether a port could be exposed under this slug now. Keeps it for nobody.
pub(super) async fn check_slug(
    State(state): State<ApiState>,
    _: Login,
    JsonBody { value: body, .. }: JsonBody<Object<SlugBody>, Oblien>,
) -> Result<Response, Problem> {
    let Object(SlugBody { slug, domain }) = body;
    let rule = "3 to 63 of a-z, 0-9 and -";
    let slug = slug.ok_or_else(|| refused("slug", "is missing", rule))?;
    let ours = &state.config.preview_domain;
    if domain.as_ref().is_some_and(|domain| domain != ours) {
        return Err(refused("domain", "is not one of this server's", ours));
    }
    let available = state.control.is_slug_free(&slug).await?;
    Ok(Json(json!({
        "success": true,
        "hostname": format!("{slug}.{ours}"),
        "url": state.config.preview_url(&slug),
        "slug": slug,
        "domain": ours,
        "available": available,
    }))
    .into_response())
}

/// What the DNS says of a name that is to be brought. Changes nothing.
pub(super) async fn verify(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    JsonBody { value: body, .. }: JsonBody<Object<VerifyBody>, Oblien>,
) -> Result<Response, Problem> {
    let Object(VerifyBody { domain, resource_id }) = body;
    let name = domain.ok_or_else(missing_domain)?;
    if let Some(which) = resource_id {
        // The proof is the account's; what is named has only to be there.
        state.control.get_workspace(&caller, &ids::parse_workspace_ref(&which)).await?;
    }
    Ok(Json(dns_answer(&state, &caller, &name).await?).into_response())
}

/// The addresses that lead into the account's workspaces: exposed ports, and names of its own.
pub(super) async fn routes(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    QueryOf { value: query, .. }: QueryOf<RoutesQuery, Oblien>,
) -> Result<Response, Problem> {
    let all = state.control.list_workspaces(&caller, &ListWorkspaces::default()).await?.items;
    let wanted = |of: &Workspace| query.namespace.is_none() || of.namespace == query.namespace;
    let workspaces: Vec<Workspace> = all.into_iter().filter(wanted).collect();
    let owner = |port: &PublishedPort| workspaces.iter().find(|one| one.id == port.workspace_id);
    let mut routes = Vec::new();
    for port in state.control.published_ports_of(&caller, &workspaces).await? {
        let Some(owner) = owner(&port) else { continue };
        let hostname = format!("{}.{}", port.slug.as_str(), state.config.preview_domain);
        let route = Route {
            id: numbered(port.id.as_u128()),
            hostname,
            slug: port.slug.as_str(),
            domain: &state.config.preview_domain,
            kind: "port",
            is_custom: false,
            status: "active",
        };
        routes.push(route.shown(&port, owner, port.created_at));
    }
    for view in state.control.list_domains(&caller).await? {
        let Some(owner) = owner(&view.port) else { continue };
        let name = view.domain.name.as_str();
        let route = Route {
            id: numbered(view.domain.id.as_u128()),
            hostname: name.to_owned(),
            slug: view.port.slug.as_str(),
            domain: name,
            kind: "custom_domain",
            is_custom: true,
            status: match view.state {
                DomainState::Pending => "pending",
                DomainState::Verified | DomainState::Issued | DomainState::Failed => "active",
            },
        };
        routes.push(route.shown(&view.port, owner, view.domain.created_at));
    }
    Ok(Json(json!({ "success": true, "data": routes })).into_response())
}

struct Route<'a> {
    id: u64,
    hostname: String,
    slug: &'a str,
    domain: &'a str,
    kind: &'static str,
    is_custom: bool,
    status: &'static str,
}

impl Route<'_> {
    fn shown(&self, port: &PublishedPort, owner: &Workspace, at: skerry_model::Timestamp) -> Value {
        json!({
            "id": self.id,
            "hostname": self.hostname,
            "slug": self.slug,
            "domain": self.domain,
            "route_type": self.kind,
            "target": format!("{}:{}", owner.slug.as_str(), port.port),
            "owner_type": "workspace",
            "owner_id": ids::oblien_workspace_id(owner.id),
            "namespace": owner.namespace,
            "is_custom": self.is_custom,
            "status": self.status,
            "created_at": at.to_string(),
        })
    }
}

/// A number that JavaScript has no smaller neighbour of: the first 53 bits of an identifier.
fn numbered(id: u128) -> u64 {
    u64::try_from(id >> 75).unwrap_or(u64::MAX)
}
