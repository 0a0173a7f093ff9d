//! Who is calling.

use skerry_model::{AccountId, ApiKeyId, ProjectId, Secret};

use crate::store::Tenant;

/// What a request presented. Every dialect's way of authenticating ends in one of these.
#[derive(Clone, Debug)]
pub struct Credential {
    /// The key's secret, in whatever header or body field it came.
    pub secret: Secret,
    /// The account the request claims to be (Oblien's `X-Client-ID`), by handle or id. When present
    /// it must be the key's own.
    pub account: Option<String>,
}

/// An authenticated caller: passed to every use case, made only by [`crate::Control::authenticate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub(crate) account_id: AccountId,
    pub(crate) account_handle: String,
    pub(crate) default_project_id: ProjectId,
    pub(crate) key_id: Option<ApiKeyId>,
}

impl Caller {
    /// The account itself, without a key of its own, for somebody it has let in.
    pub(crate) fn of(tenant: Tenant) -> Self {
        Self {
            account_id: tenant.account.id,
            account_handle: tenant.account.handle,
            default_project_id: tenant.default_project_id,
            key_id: None,
        }
    }

    /// The account.
    #[must_use]
    pub fn account_id(&self) -> AccountId {
        self.account_id
    }

    /// The account's handle (`admin`).
    #[must_use]
    pub fn account_handle(&self) -> &str {
        &self.account_handle
    }

    /// The API key that was presented; none by whoever came with an SSH key.
    #[must_use]
    pub fn key_id(&self) -> Option<ApiKeyId> {
        self.key_id
    }
}
