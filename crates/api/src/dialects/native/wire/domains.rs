//! Custom domains.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The account's domains.
#[derive(Debug, Serialize, ToSchema)]
pub struct DomainList {
    /// Oldest first.
    pub domains: Vec<Domain>,
}

/// Where a domain is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DomainState {
    /// Added; nobody is served by it until its TXT record was seen.
    Pending,
    /// Verified and served; it has no certificate of its own (yet).
    Verified,
    /// Served with a certificate of its own.
    Issued,
    /// Verified and served; the last attempt to get a certificate failed. It is repeated by itself.
    Failed,
}

/// A name that leads to a published port.
#[derive(Debug, Serialize, ToSchema)]
pub struct Domain {
    /// The name: lower case, ASCII.
    pub domain: String,
    /// Where it is.
    pub state: DomainState,
    /// What went wrong last, if nothing has gone well since.
    pub last_error: Option<String>,
    /// By whose interface records for its certificates are put in place. Null: by none, the server shows
    /// the name to lead here as it is configured to.
    pub dns_provider: Option<String>,
    /// Where it is visited.
    pub url: String,
    /// The identity of the workspace it leads to.
    pub workspace_id: String,
    /// The published port it leads to. It goes with that.
    pub port: u16,
    /// What the DNS has to say for the domain to be verified.
    pub txt_record: TxtRecord,
    /// Where the name has to lead (CNAME, or the addresses of this).
    pub target: String,
    /// When it was added.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When its TXT record was seen.
    #[schema(format = DateTime)]
    pub verified_at: Option<String>,
    /// Until when its certificate is good.
    #[schema(format = DateTime)]
    pub certificate_expires_at: Option<String>,
}

/// A TXT record.
#[derive(Debug, Serialize, ToSchema)]
pub struct TxtRecord {
    /// Its name.
    pub name: String,
    /// Its text.
    pub value: String,
}

/// A domain to add. No `Debug`: the credentials are secrets.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddDomain {
    /// The name, such as `www.example.com`.
    pub domain: String,
    /// Slug, name, or identity in any API's form.
    pub workspace: String,
    /// A port that the workspace publishes.
    #[schema(minimum = 1)]
    pub port: u16,
    /// `cloudflare` or `rfc2136`: certificates are got by records (ACME's DNS-01) that the server puts in
    /// the name's zone by `dns_credentials` [default: as the server is configured to].
    pub dns_provider: Option<String>,
    /// Write-only. For `cloudflare`: `CLOUDFLARE_API_TOKEN`, and if need be
    /// `CLOUDFLARE_PROPAGATION_SECONDS`. For `rfc2136`: `RFC2136_NAMESERVER`, `RFC2136_TSIG_KEY`,
    /// `RFC2136_TSIG_SECRET`, and if need be `RFC2136_TSIG_ALGORITHM`, `RFC2136_ZONE`,
    /// `RFC2136_PROPAGATION_SECONDS`.
    pub dns_credentials: Option<BTreeMap<String, String>>,
}
