//! Between Rigbox's wire types and the core's: total and pure.

use std::collections::BTreeMap;

use skerry_control::{
    ApiKey, ChosenApp, CreateWorkspace, Error, Quota, StartPolicy, UpdateWorkspace,
    internal_api::{GuestStats, NodeCapacity},
};
use skerry_model::{
    BlueprintId, BlueprintKind, Desired, EnvVar, Failure, Incarnation, Invalid, Plan, Range,
    Snapshot, State, Timestamp, WorkloadOrigin, Workspace, WorkspaceId, WorkspaceSpec,
};

use super::wire;
use crate::{ids, number::WholeNumber};

/// Memory of a workspace whose request names none, as Rigbox's examples document it.
pub(super) const DEFAULT_RAM_MB: u32 = 1024;
/// Virtual CPUs of a workspace whose request names none.
pub(super) const DEFAULT_VCPU_COUNT: u32 = 1;
/// Disk of a workspace whose request names none.
pub(super) const DEFAULT_DISK_SIZE_MB: u32 = 3072;
/// Who setup scripts and service specs run as.
pub(super) const GUEST_USER: &str = "developer";
/// Where they begin.
pub(super) const GUEST_HOME: &str = "/home/developer";
/// Image of a workspace whose request names none.
pub(super) const DEFAULT_IMAGE: &str = "base";

const MIB: u64 = 1024 * 1024;

/// What a create request asks of the core. Rigbox's workspaces begin stopped and are started by a
/// second call.
///
/// # Errors
/// For a missing name, and for a field whose machinery Skerry does not have unless its value means
/// "nothing".
pub(super) fn create(
    body: wire::CreateWorkspaceBody,
    plan: &Plan,
) -> Result<CreateWorkspace, Invalid> {
    let name = body.name.ok_or_else(|| required("name", "1 to 255 characters"))?;
    let apps = body.catalog_ids.unwrap_or_default();
    let setup = blueprint_ids("setup_script_ids", body.setup_script_ids.as_deref())?;
    let services = blueprint_ids("service_spec_ids", body.service_spec_ids.as_deref())?;
    let sizes = Sizes::parse(body.vcpu_count, body.ram_mb, body.disk_size_mb, plan)?;

    // A template has an image and sizes of its own.
    let unless_template = |default: u32| match body.template_id {
        Some(_) => None,
        None => Some(u64::from(default)),
    };
    let image = body.image.or_else(|| match body.template_id {
        Some(_) => None,
        None => Some(DEFAULT_IMAGE.to_owned()),
    });
    Ok(CreateWorkspace {
        name: Some(name),
        image,
        vcpu_count: sizes.vcpu_count.or_else(|| unless_template(DEFAULT_VCPU_COUNT)),
        memory_mib: sizes.memory_mib.or_else(|| unless_template(DEFAULT_RAM_MB)),
        disk_mib: sizes.disk_mib.or_else(|| unless_template(DEFAULT_DISK_SIZE_MB)),
        setup: setup.unwrap_or_default(),
        services: services.unwrap_or_default(),
        apps: apps.into_iter().map(|id| ChosenApp { id, params: BTreeMap::new() }).collect(),
        template: body.template_id,
        ..CreateWorkspace::new(StartPolicy::Later)
    })
}

/// The identifier of something an account keeps; anything else is an id that nothing has.
pub(super) fn blueprint_id(id: &str, kind: BlueprintKind) -> Result<BlueprintId, Error> {
    id.parse().map_err(|_| Error::not_found(kind.noun()))
}

/// The identifiers a request names.
///
/// # Errors
/// For one that nothing can have.
pub(super) fn blueprint_ids(
    field: &'static str,
    ids: Option<&[String]>,
) -> Result<Option<Vec<BlueprintId>>, Invalid> {
    let read = |id: &String| {
        id.parse::<BlueprintId>().map_err(|_| {
            let shown: String = id.chars().take(64).flat_map(char::escape_default).collect();
            Invalid {
                field,
                problem: format!("nothing has the id {shown}"),
                allowed: "ids of the account".to_owned(),
            }
        })
    };
    ids.map(|ids| ids.iter().map(read).collect()).transpose()
}

/// Sizes a request names; their ranges are the core's to check, but for the sign.
struct Sizes {
    vcpu_count: Option<u64>,
    memory_mib: Option<u64>,
    disk_mib: Option<u64>,
}

impl Sizes {
    fn parse(
        vcpu_count: Option<WholeNumber>,
        ram_mb: Option<WholeNumber>,
        disk_size_mb: Option<WholeNumber>,
        plan: &Plan,
    ) -> Result<Self, Invalid> {
        let size = |field, value: Option<WholeNumber>, range: Range| match value
            .map(|WholeNumber(value)| u64::try_from(value))
        {
            None => Ok(None),
            Some(Ok(size)) => Ok(Some(size)),
            Some(Err(_)) => Err(Invalid {
                field,
                problem: "is negative".to_owned(),
                allowed: format!("{} to {}", range.min, range.max),
            }),
        };
        Ok(Self {
            vcpu_count: size("vcpu_count", vcpu_count, plan.vcpu_count)?,
            memory_mib: size("ram_mb", ram_mb, plan.memory_mib)?,
            disk_mib: size("disk_size_mb", disk_size_mb, plan.disk_mib)?,
        })
    }
}

pub(super) fn required(field: &'static str, allowed: &str) -> Invalid {
    Invalid { field, problem: "is required".to_owned(), allowed: allowed.to_owned() }
}

/// What a resize asks of the core; a field that is absent or null stays as it is.
///
/// # Errors
/// When nothing is asked, and for a negative number.
pub(super) fn resize(body: &wire::ResourcesBody, plan: &Plan) -> Result<UpdateWorkspace, Invalid> {
    if body.ram_mb.is_none() && body.vcpu_count.is_none() && body.disk_size_mb.is_none() {
        return Err(Invalid {
            field: "body",
            problem: "names nothing to change".to_owned(),
            allowed: "at least one of ram_mb, vcpu_count, disk_size_mb".to_owned(),
        });
    }
    let sizes = Sizes::parse(body.vcpu_count, body.ram_mb, body.disk_size_mb, plan)?;
    Ok(UpdateWorkspace {
        vcpu_count: sizes.vcpu_count,
        memory_mib: sizes.memory_mib,
        disk_mib: sizes.disk_mib,
        ..UpdateWorkspace::default()
    })
}

/// The whole new environment.
///
/// # Errors
/// When there is none.
pub(super) fn replace_env(body: wire::EnvBody) -> Result<UpdateWorkspace, Invalid> {
    let env_vars = body
        .env_vars
        .ok_or_else(|| required("env_vars", "an object of names and string values"))?;
    let env = env_vars.into_iter().map(|(key, value)| EnvVar { key, value }).collect();
    Ok(UpdateWorkspace { env: Some(env), ..UpdateWorkspace::default() })
}

/// A workspace's state in Rigbox's words.
///
/// Rigbox has no word for a machine that is paused or suspended: both are shown as `stopped`, the
/// word that tells a client to call start, which is what makes such a workspace usable again. A
/// wish that is recorded but not begun shows as `provisioning` or `stopping`.
pub(super) fn status(state: &State, desired: Desired) -> wire::VmStatus {
    use wire::VmStatus as Status;

    let at_rest = |word| match desired {
        Desired::Running => Status::Provisioning,
        Desired::Paused | Desired::Suspended | Desired::Stopped => word,
        Desired::Deleted => Status::Deleting,
    };
    let active = |word| match desired {
        Desired::Running => word,
        Desired::Paused | Desired::Suspended | Desired::Stopped => Status::Stopping,
        Desired::Deleted => Status::Deleting,
    };
    match state {
        State::Provisioned => at_rest(Status::Provisioned),
        State::Starting => active(Status::Starting),
        State::Running { .. } => active(Status::Running),
        State::Paused { .. } if desired == Desired::Paused => Status::Stopped,
        State::Paused { .. } => active(Status::Stopped),
        State::Stopped | State::Suspended => at_rest(Status::Stopped),
        State::Suspending | State::Stopping => match desired {
            Desired::Running | Desired::Paused | Desired::Suspended | Desired::Stopped => {
                Status::Stopping
            }
            Desired::Deleted => Status::Deleting,
        },
        // A start that fails also gives up the wish: failed and wished for is a new try.
        State::Failed(_) => at_rest(Status::Failed),
        State::Deleting => Status::Deleting,
    }
}

/// The workspace's status.
pub(super) fn status_of(workspace: &Workspace) -> wire::VmStatus {
    status(&workspace.state, workspace.desired)
}

/// Starts in a row up to and including the current or last one: Rigbox's `creation_attempts`.
fn creation_attempts(workspace: &Workspace) -> u32 {
    if workspace.incarnation == Incarnation::default() {
        return 0;
    }
    match &workspace.state {
        State::Starting => workspace.failed_starts.saturating_add(1),
        State::Provisioned
        | State::Running { .. }
        | State::Paused { .. }
        | State::Suspending
        | State::Suspended
        | State::Stopping
        | State::Stopped
        | State::Failed(_)
        | State::Deleting => workspace.failed_starts.max(1),
    }
}

/// Why the workspace is failed, while that is its status.
pub(super) fn failure(workspace: &Workspace) -> Option<&Failure> {
    let is_failed = status_of(workspace) == wire::VmStatus::Failed;
    workspace.state.failure().filter(|_| is_failed)
}

/// What a workspace has of what its account keeps, in the order in which it runs.
fn made_with(
    spec: &WorkspaceSpec,
    of: impl Fn(&WorkloadOrigin) -> Option<&BlueprintId>,
) -> Vec<String> {
    let origins = spec.workloads.items.iter().map(|workload| &workload.origin);
    origins.filter_map(of).map(ToString::to_string).collect()
}

/// A workspace as Rigbox shows it.
pub(super) fn vm(workspace: &Workspace) -> wire::Vm {
    let spec = &workspace.spec;
    let failure = failure(workspace);
    let env_vars: BTreeMap<_, _> =
        spec.env.iter().map(|var| (var.key.clone(), var.value.clone())).collect();
    wire::Vm {
        id: ids::rigbox_workspace_id(workspace.id),
        user_id: workspace.account_id.to_string(),
        node_id: workspace.node_id.map(|id| id.to_string()).unwrap_or_default(),
        name: workspace.name.as_str().to_owned(),
        status: status_of(workspace),
        image: spec.image.to_string(),
        image_digest: spec.image_digest.to_string(),
        ram_mb: spec.shape.memory_mib.get(),
        vcpu_count: spec.shape.vcpu_count.get(),
        disk_size_mb: spec.shape.disk_mib.get(),
        ip_address: workspace
            .private_address
            .filter(|_| matches!(workspace.state, State::Running { .. }))
            .map(|address| address.to_string()),
        env_vars,
        template_id: spec.made_from.template.clone(),
        setup_script_ids: made_with(spec, |origin| {
            if let WorkloadOrigin::Setup { blueprint_id } = origin {
                Some(blueprint_id)
            } else {
                None
            }
        }),
        service_spec_ids: made_with(spec, |origin| {
            if let WorkloadOrigin::Service { blueprint_id } = origin {
                Some(blueprint_id)
            } else {
                None
            }
        }),
        creation_attempts: creation_attempts(workspace),
        creation_started_at: workspace.start_began_at,
        failure_code: failure.map(|failure| failure.code.clone()),
        failure_reason: failure.map(|failure| failure.message.clone()),
        created_at: workspace.created_at,
        updated_at: workspace.updated_at,
    }
}

/// A workspace and, while its status is `failed`, why.
pub(super) fn envelope(workspace: &Workspace) -> wire::VmEnvelope {
    let failure = failure(workspace).map(|failure| wire::FailureView {
        code: failure.code.clone(),
        message: failure.message.clone(),
        attempts: creation_attempts(workspace),
        occurred_at: failure.at,
        retryable: failure.retryable,
    });
    wire::VmEnvelope { vm: vm(workspace), failure }
}

/// A snapshot as Rigbox shows it.
pub(super) fn snapshot(snapshot: &Snapshot) -> wire::SnapshotView {
    wire::SnapshotView {
        id: snapshot.id.to_string(),
        workspace_id: ids::rigbox_workspace_id(snapshot.workspace_id),
        name: snapshot.name.to_string(),
        size_mb: snapshot.size_bytes.div_ceil(MIB),
        size_bytes: snapshot.size_bytes,
        created_at: snapshot.created_at,
    }
}

/// Room on the machine, counted in workspaces of Rigbox's default size.
pub(super) fn capacity(capacity: &NodeCapacity) -> wire::Capacity {
    let unit = u64::from(DEFAULT_RAM_MB);
    let total = capacity.memory_mib / unit;
    let used = capacity.memory_promised_mib.div_ceil(unit);
    let disk_fits = capacity.disk_free_mib >= u64::from(DEFAULT_DISK_SIZE_MB);
    wire::Capacity { available: used < total && disk_fits, total, used }
}

/// The account's limits and use.
pub(super) fn limits(quota: &Quota) -> wire::AccountLimits {
    let (plan, usage) = (&quota.plan, &quota.usage);
    wire::AccountLimits {
        plan: plan.name.clone(),
        custom: false,
        limits: wire::LimitValues {
            max_vms: plan.max_workspaces,
            max_ram_per_vm_mb: plan.memory_mib.max,
            max_ram_total_mb: plan.owned_pool.memory_mib,
            max_disk_total_mb: plan.owned_pool.disk_mib,
            max_vcpu_per_vm: plan.vcpu_count.max,
            max_running_vcpus: plan.running_pool.vcpu_count,
        },
        usage: wire::UsageValues {
            workspace_count: usage.workspaces,
            running_vcpus: usage.running.vcpu_count,
            total_ram_mb: usage.owned.memory_mib,
            total_disk_mb: usage.owned.disk_mib,
        },
    }
}

/// A key without its secret.
pub(super) fn api_key(key: &ApiKey) -> wire::ApiKeyView {
    wire::ApiKeyView {
        id: key.id.to_string(),
        key_preview: format!("sk_...{}", key.secret_tail),
        name: key.name.clone(),
        created_at: key.created_at,
        last_used_at: key.last_used_at,
    }
}

/// Resource use at `now`, from two readings of the guest. CPU use is that between them; readings
/// without time between them give the average since the guest's boot.
pub(super) fn metrics(
    id: WorkspaceId,
    earlier: &GuestStats,
    later: &GuestStats,
    now: Timestamp,
) -> wire::Metrics {
    let (mut used_ms, mut passed_ms) = (
        later.cpu_used_ms.saturating_sub(earlier.cpu_used_ms),
        later.uptime_ms.saturating_sub(earlier.uptime_ms),
    );
    if passed_ms == 0 {
        (used_ms, passed_ms) = (later.cpu_used_ms, later.uptime_ms);
    }
    wire::Metrics {
        workspace_id: ids::rigbox_workspace_id(id),
        cpu_percent: percent(used_ms, passed_ms.saturating_mul(u64::from(later.cpus_online))),
        ram_used_mb: later.memory_total_bytes.saturating_sub(later.memory_available_bytes) / MIB,
        ram_total_mb: later.memory_total_bytes / MIB,
        disk_used_mb: later.disk_used_bytes / MIB,
        disk_total_mb: later.disk_total_bytes / MIB,
        updated_at: now,
    }
}

/// `part` of `whole` in percent with one decimal, 0 to 100.
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    let per_mille = (u128::from(part) * 1000 / u128::from(whole)).min(1000);
    // At most 1000, so the conversion is exact.
    f64::from(u16::try_from(per_mille).unwrap_or(1000)) / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(uptime_ms: u64, cpu_used_ms: u64) -> GuestStats {
        GuestStats {
            uptime_ms,
            cpu_used_ms,
            cpus_online: 2,
            memory_total_bytes: 1000 * MIB,
            memory_available_bytes: 750 * MIB,
            disk_total_bytes: 3000 * MIB,
            disk_used_bytes: 500 * MIB,
            processes: 12,
        }
    }

    #[test]
    fn cpu_use_is_that_between_two_readings() {
        let id = WorkspaceId::from_u128(7);
        let now = Timestamp::UNIX_EPOCH;
        let metrics = metrics(id, &stats(10_000, 9_000), &stats(10_500, 9_250), now);
        assert!((metrics.cpu_percent - 25.0).abs() < 1e-9);
        assert_eq!((metrics.ram_used_mb, metrics.ram_total_mb), (250, 1000));
        assert_eq!((metrics.disk_used_mb, metrics.disk_total_mb), (500, 3000));
    }

    #[test]
    fn two_equal_readings_give_the_average_since_boot() {
        let id = WorkspaceId::from_u128(7);
        let same = stats(10_000, 5_000);
        let metrics = metrics(id, &same, &same, Timestamp::UNIX_EPOCH);
        assert!((metrics.cpu_percent - 25.0).abs() < 1e-9);
    }

    #[test]
    fn a_guest_that_lies_about_its_clock_stays_within_0_and_100_percent() {
        let id = WorkspaceId::from_u128(7);
        for (earlier, later) in [
            (stats(0, 0), stats(1, u64::MAX)),
            (stats(u64::MAX, u64::MAX), stats(0, 0)),
            (stats(0, u64::MAX), stats(u64::MAX, 0)),
        ] {
            let metrics = metrics(id, &earlier, &later, Timestamp::UNIX_EPOCH);
            assert!((0.0..=100.0).contains(&metrics.cpu_percent));
        }
    }

    #[test]
    fn capacity_is_counted_in_workspaces_of_the_default_size() {
        let mut node = NodeCapacity {
            cpus: 2,
            memory_mib: 4 * 1024 + 500,
            memory_promised_mib: 1500,
            disk_free_mib: 10_000,
        };
        assert_eq!(capacity(&node), wire::Capacity { available: true, total: 4, used: 2 });
        node.disk_free_mib = 100;
        assert!(!capacity(&node).available);
        node.disk_free_mib = 10_000;
        node.memory_promised_mib = 4 * 1024;
        assert_eq!(capacity(&node), wire::Capacity { available: false, total: 4, used: 4 });
    }

    /// Every state under every wish: the table that the documentation prints.
    #[test]
    fn every_state_has_a_word() {
        use std::fmt::Write as _;

        use crate::test_ground::every_state;

        let mut table = String::new();
        for state in &every_state() {
            let words = [Desired::Running, Desired::Stopped, Desired::Deleted]
                .map(|desired| status(state, desired).word());
            let _ =
                writeln!(table, "{:<12}{:<14}{:<14}{}", state.name(), words[0], words[1], words[2]);
        }
        insta::assert_snapshot!(table);
    }
}
