//! `/workspace/quota`.

use axum::{Json, extract::State};
use skerry_control::Quota;
use skerry_model::{Pool as CorePool, Range};

use super::{
    Oblien, convert,
    error_body::Problem,
    wire::{Limits, Pool, QuotaBody, QuotaLimits},
};
use crate::{ApiState, auth::Authenticated};

pub(super) async fn get(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Oblien>,
) -> Result<Json<QuotaBody>, Problem> {
    Ok(Json(body(state.control.quota(&caller).await?)))
}

fn body(Quota { plan, usage, blocked }: Quota) -> QuotaBody {
    QuotaBody {
        success: true,
        plan: plan.name,
        plan_label: plan.label,
        limits: QuotaLimits {
            cpus: limits(plan.vcpu_count, convert::DEFAULT_CPUS),
            memory_mb: limits(plan.memory_mib, convert::DEFAULT_MEMORY_MB),
            writable_size_mb: limits(plan.disk_mib, convert::DEFAULT_WRITABLE_SIZE_MB),
        },
        pool: pool(plan.owned_pool),
        pool_usage: pool(usage.owned),
        running_pool: pool(plan.running_pool),
        running_pool_usage: pool(usage.running),
        max_sandboxes: plan.max_workspaces,
        current_sandboxes: usage.workspaces,
        can_create: blocked.is_none(),
        reason: blocked.map(|kind| kind.to_string()),
    }
}

/// The default shown is the one this dialect uses when a create request is silent.
fn limits(range: Range, default: u64) -> Limits {
    Limits {
        min: range.min,
        max: range.max,
        default: u32::try_from(default).unwrap_or(range.default),
    }
}

fn pool(pool: CorePool) -> Pool {
    Pool { cpus: pool.vcpu_count, memory_mb: pool.memory_mib, disk_mb: pool.disk_mib }
}
