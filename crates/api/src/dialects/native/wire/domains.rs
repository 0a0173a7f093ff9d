//! Custom domains.

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

/// A domain to add.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddDomain {
    /// The name, such as `www.example.com`.
    pub domain: String,
    /// Slug, name, or identity in any API's form.
    pub workspace: String,
    /// A port that the workspace publishes.
    #[schema(minimum = 1)]
    pub port: u16,
}
