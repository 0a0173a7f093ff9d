//! Custom domains: names that people have brought for published ports.

use axum::{Json, extract::State};
use http::StatusCode;
use skerry_control::{self as control, DomainRef, DomainView};
use skerry_model::{DnsProviderKind, DomainState};

use super::{Body, Login, Params, convert, error_body::NativeResult, wire};
use crate::{ApiConfig, ApiState, dns_access, ids::parse_workspace_ref};

fn shown(config: &ApiConfig, DomainView { domain, state, port }: DomainView) -> wire::Domain {
    wire::Domain {
        url: config.domain_url(domain.name.as_str(), state),
        state: match state {
            DomainState::Pending => wire::DomainState::Pending,
            DomainState::Verified => wire::DomainState::Verified,
            DomainState::Issued => wire::DomainState::Issued,
            DomainState::Failed => wire::DomainState::Failed,
        },
        workspace_id: port.workspace_id.to_string(),
        port: port.port,
        txt_record: wire::TxtRecord {
            name: domain.challenge_name(),
            value: domain.challenge_value(),
        },
        target: config.public_host().to_owned(),
        dns_provider: domain.dns_provider.map(DnsProviderKind::as_str).map(str::to_owned),
        created_at: convert::time(domain.created_at),
        verified_at: domain.proven_at.map(convert::time),
        certificate_expires_at: domain.certificate_not_after.map(convert::time),
        last_error: domain.last_error,
        domain: domain.name.into(),
    }
}

/// Lists the account's domains.
#[utoipa::path(
    operation_id = "list_domains",
    get, path = "/skerry/v1/domains", tag = "domains",
    responses(
        (status = 200, body = wire::DomainList),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
    ),
)]
pub(super) async fn list(
    State(state): State<ApiState>,
    login: Login,
) -> NativeResult<Json<wire::DomainList>> {
    let views = state.control.list_domains(&login.caller).await?;
    let domains = views.into_iter().map(|view| shown(&state.config, view)).collect();
    Ok(Json(wire::DomainList { domains }))
}

/// Adds a domain for a published port. It leads there once it is verified.
#[utoipa::path(
    operation_id = "add_domain",
    post, path = "/skerry/v1/domains", tag = "domains", request_body = wire::AddDomain,
    responses(
        (status = 201, body = wire::Domain),
        (status = 400, body = wire::ErrorBody, description = "The name, the provider or its credentials are not acceptable"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such workspace, or the port is not published"),
        (status = 409, body = wire::ErrorBody, description = "The domain was added before, is not available, or there are too many"),
        (status = 503, body = wire::ErrorBody, description = "This server serves no custom domains"),
    ),
)]
pub(super) async fn add(
    State(state): State<ApiState>,
    login: Login,
    body: Body<wire::AddDomain>,
) -> NativeResult<(StatusCode, Json<wire::Domain>)> {
    let wire::AddDomain { domain, workspace, port, dns_provider, dns_credentials } = body.value;
    let dns = dns_access::read(dns_provider.as_deref(), dns_credentials)?;
    let which = parse_workspace_ref(&workspace);
    let published = state.control.list_published_ports(&login.caller, &which).await?;
    let published = published.into_iter().find(|one| one.port == port);
    let published = published.ok_or_else(|| control::Error::not_found("port"))?;
    let view = state.control.add_domain(&login.caller, &domain, &published, dns).await?;
    Ok((StatusCode::CREATED, Json(shown(&state.config, view))))
}

/// Shows a domain.
#[utoipa::path(
    operation_id = "get_domain",
    get, path = "/skerry/v1/domains/{domain}", tag = "domains",
    params(("domain" = String, Path, description = "The name")),
    responses(
        (status = 200, body = wire::Domain),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such domain"),
    ),
)]
pub(super) async fn get(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<Json<wire::Domain>> {
    let view = state.control.domain(&login.caller, &DomainRef::Name(path.value)).await?;
    Ok(Json(shown(&state.config, view)))
}

/// Looks for the TXT record of a domain that is pending; what is missing is in `last_error`. A domain
/// that is verified and could not get a certificate is tried again within a minute.
#[utoipa::path(
    operation_id = "verify_domain",
    post, path = "/skerry/v1/domains/{domain}/verify", tag = "domains",
    params(("domain" = String, Path, description = "The name")),
    responses(
        (status = 200, body = wire::Domain, description = "The domain as it is now: perhaps still pending"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such domain"),
        (status = 409, body = wire::ErrorBody, description = "The domain is not available"),
    ),
)]
pub(super) async fn verify(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<Json<wire::Domain>> {
    let view = state.control.verify_domain(&login.caller, &DomainRef::Name(path.value)).await?;
    Ok(Json(shown(&state.config, view)))
}

/// Gives a domain up: it leads nowhere from then on, and its certificate is forgotten.
#[utoipa::path(
    operation_id = "remove_domain",
    delete, path = "/skerry/v1/domains/{domain}", tag = "domains",
    params(("domain" = String, Path, description = "The name")),
    responses(
        (status = 204, description = "Given up"),
        (status = 401, body = wire::ErrorBody, description = "No valid credential"),
        (status = 404, body = wire::ErrorBody, description = "No such domain"),
    ),
)]
pub(super) async fn remove(
    State(state): State<ApiState>,
    login: Login,
    path: Params<String>,
) -> NativeResult<StatusCode> {
    state.control.remove_domain(&login.caller, &DomainRef::Name(path.value)).await?;
    Ok(StatusCode::NO_CONTENT)
}
