//! `/v1/custom-domains`, and `custom_domain` in the creation of a VM.

use axum::{Json, extract::State};
use serde::Serialize;
use skerry_control::{Caller, DomainRef, DomainView, Error};
use skerry_model::{DnsAccess, DnsProviderKind, DomainState, ErrorKind, Invalid};

use super::{
    Instavm, error_body::Problem, request::AuthenticatedBody, shares::no_such_share,
    validation::Fields,
};
use crate::{ApiConfig, ApiState, auth::Authenticated, dns_access, extract::PathOf};

/// A domain, as clients read it.
#[derive(Debug, Serialize)]
pub(super) struct DomainRecord {
    /// A number: clients say so.
    id: u64,
    domain: String,
    status: &'static str,
    url: String,
    share_id: String,
    dns_provider: &'static str,
    last_error: Option<String>,
    setup: Setup,
}

#[derive(Debug, Serialize)]
struct Setup {
    txt_record: TxtRecord,
    cname: Cname,
    verify_endpoint: String,
}

#[derive(Debug, Serialize)]
struct TxtRecord {
    name: String,
    value: String,
}

#[derive(Debug, Serialize)]
struct Cname {
    name: String,
    target: String,
}

/// The same, and what there is to serve it with.
#[derive(Debug, Serialize)]
pub(super) struct DomainHealth {
    #[serde(flatten)]
    record: DomainRecord,
    cert_present: bool,
    key_present: bool,
    proxy_active: bool,
}

/// The account's domains.
#[derive(Debug, Serialize)]
pub(super) struct DomainList {
    domains: Vec<DomainRecord>,
}

fn record(config: &ApiConfig, DomainView { domain, state, port }: DomainView) -> DomainRecord {
    let setup = Setup {
        txt_record: TxtRecord { name: domain.challenge_name(), value: domain.challenge_value() },
        cname: Cname { name: domain.name.to_string(), target: config.public_host().to_owned() },
        verify_endpoint: format!("/v1/custom-domains/{}/verify", domain.number),
    };
    DomainRecord {
        id: domain.number,
        status: state.as_str(),
        url: config.domain_url(domain.name.as_str(), state),
        domain: domain.name.into(),
        share_id: port.slug.as_str().to_owned(),
        dns_provider: domain.dns_provider.map_or(NO_PROVIDER, DnsProviderKind::as_str),
        last_error: domain.last_error,
        setup,
    }
}

/// A domain that is asked for. No `Debug`: its credentials are secrets.
pub(super) struct Asked {
    domain: String,
    dns: Option<DnsAccess>,
}

/// Clients have to name a provider: `none` is the server's own way.
const NO_PROVIDER: &str = "none";

/// `dns_provider` and `dns_credentials`; what is wrong with them is said for the one of the two.
fn access(fields: &mut Fields) -> Result<Option<DnsAccess>, (&'static str, String)> {
    let provider = fields.text("dns_provider").filter(|provider| provider != NO_PROVIDER);
    let credentials = fields.texts("dns_credentials");
    dns_access::read(provider.as_deref(), credentials).map_err(|invalid| {
        let Invalid { field, problem, allowed } = invalid;
        let others = if field == "dns_provider" { ", none" } else { "" };
        (field, format!("{problem}; allowed: {allowed}{others}"))
    })
}

/// `custom_domain` of `POST /v1/vms`. Without a share it would lead nowhere.
pub(super) fn asked(fields: &mut Fields, has_share: bool) -> Option<Asked> {
    const FIELD: &str = "custom_domain";
    let mut inner = Fields::new(fields.object(FIELD)?);
    let (domain, dns) = (inner.text("domain"), access(&mut inner));
    let (Some(domain), Ok(())) = (domain, inner.finish()) else {
        let msg = "Input should be {\"domain\": a name, \"dns_provider\": a text, \
                   \"dns_credentials\": an object of texts}";
        fields.refuse(FIELD, msg);
        return None;
    };
    if !has_share {
        fields.refuse(FIELD, "A custom domain needs a share");
    }
    match dns {
        Ok(dns) => Some(Asked { domain, dns }),
        Err((field, msg)) => {
            fields.refuse_within(FIELD, field, &msg);
            None
        }
    }
}

/// Adds a domain for a share.
pub(super) async fn of_share(
    state: &ApiState,
    caller: &Caller,
    Asked { domain, dns }: Asked,
    share: &str,
) -> Result<DomainRecord, Problem> {
    let port = state.control.published_port(caller, share).await.map_err(no_such_share)?;
    let view = state.control.add_domain(caller, &domain, &port, dns).await?;
    Ok(record(&state.config, view))
}

pub(super) async fn create(
    State(state): State<ApiState>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<DomainRecord>, Problem> {
    for name in ["domain", "share_id"] {
        if !fields.has(name) {
            fields.missing(name);
        }
    }
    let (domain, share) = (fields.text("domain"), fields.text("share_id"));
    let dns = access(&mut fields).unwrap_or_else(|(field, msg)| {
        fields.refuse(field, &msg);
        None
    });
    fields.finish()?;
    let (domain, share) = (domain.unwrap_or_default(), share.unwrap_or_default());
    Ok(Json(of_share(&state, &caller, Asked { domain, dns }, &share).await?))
}

pub(super) async fn list(
    State(state): State<ApiState>,
    login: Authenticated<Instavm>,
) -> Result<Json<DomainList>, Problem> {
    let views = state.control.list_domains(&login.caller).await?;
    let domains = views.into_iter().map(|view| record(&state.config, view)).collect();
    Ok(Json(DomainList { domains }))
}

pub(super) async fn get(
    State(state): State<ApiState>,
    login: Authenticated<Instavm>,
    PathOf { value: domain, .. }: PathOf<String, Instavm>,
) -> Result<Json<DomainRecord>, Problem> {
    let found = state.control.domain(&login.caller, &which(&domain)?).await;
    Ok(Json(record(&state.config, found.map_err(no_such_domain)?)))
}

pub(super) async fn health(
    State(state): State<ApiState>,
    login: Authenticated<Instavm>,
    PathOf { value: domain, .. }: PathOf<String, Instavm>,
) -> Result<Json<DomainHealth>, Problem> {
    let found = state.control.domain(&login.caller, &which(&domain)?).await;
    let view = found.map_err(no_such_domain)?;
    // They are kept together.
    let has_certificate = view.domain.certificate_not_after.is_some();
    let proxy_active = match view.state {
        DomainState::Pending => false,
        DomainState::Verified | DomainState::Issued | DomainState::Failed => true,
    };
    let record = record(&state.config, view);
    let (cert_present, key_present) = (has_certificate, has_certificate);
    Ok(Json(DomainHealth { record, cert_present, key_present, proxy_active }))
}

pub(super) async fn verify(
    State(state): State<ApiState>,
    login: Authenticated<Instavm>,
    PathOf { value: domain, .. }: PathOf<String, Instavm>,
) -> Result<Json<DomainRecord>, Problem> {
    let verified = state.control.verify_domain(&login.caller, &which(&domain)?).await;
    Ok(Json(record(&state.config, verified.map_err(no_such_domain)?)))
}

/// What was given up.
#[derive(Debug, Serialize)]
pub(super) struct DomainDeleted {
    id: u64,
    domain: String,
    status: &'static str,
}

pub(super) async fn delete(
    State(state): State<ApiState>,
    login: Authenticated<Instavm>,
    PathOf { value: domain, .. }: PathOf<String, Instavm>,
) -> Result<Json<DomainDeleted>, Problem> {
    let removed = state.control.remove_domain(&login.caller, &which(&domain)?).await;
    let removed = removed.map_err(no_such_domain)?;
    let domain = removed.name.into();
    Ok(Json(DomainDeleted { id: removed.number, domain, status: "deleted" }))
}

/// Clients know domains by number.
fn which(text: &str) -> Result<DomainRef, Problem> {
    text.parse().map(DomainRef::Number).map_err(|_| Problem::NoSuchDomain)
}

fn no_such_domain(error: Error) -> Problem {
    match error.kind() {
        ErrorKind::NotFound { .. } => Problem::NoSuchDomain,
        _ => error.into(),
    }
}
