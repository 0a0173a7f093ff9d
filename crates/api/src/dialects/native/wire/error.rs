//! Errors.

use serde::Serialize;
use utoipa::ToSchema;

/// Every error's body.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// Stable word for programs.
    #[schema(example = "invalid")]
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
    /// The field or parameter that was not acceptable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What would have been acceptable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed: Option<String>,
    /// The limit that would be passed; with the code `quota`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<QuotaDetail>,
    /// The workspace's state; with the code `refused_by_state`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<&'static str>,
}

/// Which limit would be passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct QuotaDetail {
    /// `workspace_count`, `per_workspace`, `owned_pool`, `running_pool`, `snapshot_count` or
    /// `snapshot_space`.
    pub limit: &'static str,
    /// The resource with its unit.
    pub what: &'static str,
    /// What the request adds.
    pub requested: u64,
    /// What is in use.
    pub current: u64,
    /// What the plan allows.
    pub max: u64,
}
