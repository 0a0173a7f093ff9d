//! What an account may have: ranges for one workspace and sums over many.

use serde::{Deserialize, Serialize};

use crate::{DiskMib, ErrorKind, Invalid, MemMib, Shape, VcpuCount, error::Limit, spec::CpuKind};

/// An inclusive range with the value used when nothing is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// Smallest allowed.
    pub min: u32,
    /// Largest allowed.
    pub max: u32,
    /// Used by the native API when the request is silent; a dialect has defaults of its own.
    pub default: u32,
}

/// Sums over several workspaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Virtual CPUs.
    pub vcpu_count: u64,
    /// Memory.
    pub memory_mib: u64,
    /// Writable disk.
    pub disk_mib: u64,
}

/// The limits of an account, from configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its name: `[a-z0-9-]+`.
    pub name: String,
    /// Its name for people.
    pub label: String,
    /// Virtual CPUs of one workspace.
    pub vcpu_count: Range,
    /// Memory of one workspace, MiB.
    pub memory_mib: Range,
    /// Writable disk of one workspace, MiB.
    pub disk_mib: Range,
    /// Workspaces in all.
    pub max_workspaces: u64,
    /// Sum over all workspaces.
    pub owned_pool: Pool,
    /// Sum over workspaces that run or start.
    pub running_pool: Pool,
    /// Snapshots in all, those of forks not counted.
    #[serde(default = "default_max_snapshots")]
    pub max_snapshots: u64,
    /// Space of all snapshots together, MiB. A snapshot's size is known only afterwards: one that is
    /// begun below this limit may end above it, and then no other is begun.
    #[serde(default = "default_max_snapshot_mib")]
    pub max_snapshot_mib: u64,
    /// Volumes in all.
    #[serde(default = "default_max_volumes")]
    pub max_volumes: u64,
    /// Size of all volumes together, MiB: what they may come to hold, not what they hold.
    #[serde(default = "default_max_volume_mib")]
    pub max_volume_mib: u64,
}

const fn default_max_volumes() -> u64 {
    1000
}

const fn default_max_volume_mib() -> u64 {
    1024 * 1024
}

const fn default_max_snapshots() -> u64 {
    1000
}

const fn default_max_snapshot_mib() -> u64 {
    1024 * 1024
}

/// What an account uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Workspaces in all.
    pub workspaces: u64,
    /// Sum over all of them.
    pub owned: Pool,
    /// Sum over those that run or start.
    pub running: Pool,
    /// Snapshots that are there or being taken, those of forks not counted.
    pub snapshots: u64,
    /// Bytes of all snapshots together.
    pub snapshot_bytes: u64,
}

/// A size as a request gave it, not yet checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestedShape {
    /// Virtual CPUs; `None` means the plan's default. So for the next two.
    pub vcpu_count: Option<u64>,
    /// MiB.
    pub memory_mib: Option<u64>,
    /// MiB.
    pub disk_mib: Option<u64>,
    /// CPU share class.
    pub cpu_kind: CpuKind,
}

/// What a request would add to an account's use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// One more workspace that does not run.
    Create,
    /// One more workspace that runs.
    CreateAndStart,
    /// An owned workspace begins to run.
    Start,
    /// An owned workspace that does not run gets another size.
    Resize {
        /// The size it has.
        from: Shape,
    },
    /// An owned workspace that runs gets a larger disk.
    GrowRunning,
}

impl Plan {
    /// The plan of a machine that serves its owner: generous for one workspace, with the sums that
    /// the caller derived from the machine.
    #[must_use]
    pub fn self_hosted(max_workspaces: u64, owned_pool: Pool, running_pool: Pool) -> Self {
        Self {
            name: "self-hosted".to_owned(),
            label: "Self-hosted".to_owned(),
            vcpu_count: Range { min: 1, max: 32, default: 1 },
            memory_mib: Range { min: 128, max: 65_536, default: 512 },
            disk_mib: Range { min: 64, max: 204_800, default: 1024 },
            max_workspaces,
            owned_pool,
            running_pool,
            max_snapshots: default_max_snapshots(),
            max_snapshot_mib: default_max_snapshot_mib(),
            max_volumes: default_max_volumes(),
            max_volume_mib: default_max_volume_mib(),
        }
    }

    /// Checks the plan itself: ranges in order with their default inside, the smallest above zero.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        let ranges = [
            ("vcpu_count", self.vcpu_count),
            ("memory_mib", self.memory_mib),
            ("disk_mib", self.disk_mib),
        ];
        for (field, range) in ranges {
            if range.min == 0 || range.min > range.default || range.default > range.max {
                return Err(format!("plan: {field}: 1 <= min <= default <= max does not hold"));
            }
        }
        Ok(())
    }

    /// The smallest workspace the plan knows.
    #[must_use]
    pub fn smallest(&self) -> Shape {
        Shape {
            vcpu_count: VcpuCount(self.vcpu_count.min),
            memory_mib: MemMib(self.memory_mib.min),
            disk_mib: DiskMib(self.disk_mib.min),
            cpu_kind: CpuKind::default(),
        }
    }
}

impl Pool {
    /// The sum with one workspace of this size added.
    #[must_use]
    pub fn plus(self, shape: &Shape) -> Self {
        Self {
            vcpu_count: self.vcpu_count + u64::from(shape.vcpu_count.get()),
            memory_mib: self.memory_mib + u64::from(shape.memory_mib.get()),
            disk_mib: self.disk_mib + u64::from(shape.disk_mib.get()),
        }
    }
}

/// Checks the size of one workspace: below the plan's range is `Invalid`, above it is `Quota`. Every
/// field's lower bound is checked before any upper one.
///
/// # Errors
/// [`ErrorKind::Invalid`] or [`ErrorKind::Quota`] with [`Limit::PerWorkspace`].
pub fn check_shape(plan: &Plan, requested: &RequestedShape) -> Result<Shape, ErrorKind> {
    let fields = [
        ("vcpu_count", requested.vcpu_count, plan.vcpu_count, ""),
        ("memory_mib", requested.memory_mib, plan.memory_mib, " MiB"),
        ("disk_mib", requested.disk_mib, plan.disk_mib, " MiB"),
    ];
    let mut values = [0_u32; 3];
    for (field, value, range, unit) in fields {
        if let Some(value) = value
            && value < u64::from(range.min.max(1))
        {
            return Err(ErrorKind::Invalid(Invalid {
                field,
                problem: format!("{value} is too small"),
                allowed: format!("{} to {}{unit}", range.min.max(1), range.max),
            }));
        }
    }
    for (slot, (what, value, range, _)) in values.iter_mut().zip(fields) {
        let requested = value.unwrap_or_else(|| u64::from(range.default));
        *slot = u32::try_from(requested).ok().filter(|value| *value <= range.max).ok_or(
            ErrorKind::Quota {
                limit: Limit::PerWorkspace,
                what,
                requested,
                current: 0,
                max: u64::from(range.max),
            },
        )?;
    }
    let [vcpu_count, memory_mib, disk_mib] = values;
    Ok(Shape {
        vcpu_count: VcpuCount(vcpu_count),
        memory_mib: MemMib(memory_mib),
        disk_mib: DiskMib(disk_mib),
        cpu_kind: requested.cpu_kind,
    })
}

/// Whether an account that uses `usage` may own one more workspace of this size.
///
/// # Errors
/// [`ErrorKind::Quota`]: the count first, then the owned pool.
pub fn admit_create(plan: &Plan, usage: &Usage, shape: &Shape) -> Result<(), ErrorKind> {
    if usage.workspaces >= plan.max_workspaces {
        return Err(ErrorKind::Quota {
            limit: Limit::WorkspaceCount,
            what: "workspaces",
            requested: 1,
            current: usage.workspaces,
            max: plan.max_workspaces,
        });
    }
    admit_pool(Limit::OwnedPool, usage.owned, shape, plan.owned_pool)
}

/// Whether an account may run one more workspace of this size; `usage` is without it.
///
/// # Errors
/// [`ErrorKind::Quota`] with [`Limit::RunningPool`].
pub fn admit_start(plan: &Plan, usage: &Usage, shape: &Shape) -> Result<(), ErrorKind> {
    admit_pool(Limit::RunningPool, usage.running, shape, plan.running_pool)
}

/// Whether an account may take one more snapshot.
///
/// # Errors
/// [`ErrorKind::Quota`]: [`Limit::SnapshotCount`] first, then [`Limit::SnapshotSpace`].
pub fn admit_snapshot(plan: &Plan, usage: &Usage) -> Result<(), ErrorKind> {
    if usage.snapshots >= plan.max_snapshots {
        return Err(ErrorKind::Quota {
            limit: Limit::SnapshotCount,
            what: "snapshots",
            requested: 1,
            current: usage.snapshots,
            max: plan.max_snapshots,
        });
    }
    let used_mib = usage.snapshot_bytes.div_ceil(1024 * 1024);
    if used_mib >= plan.max_snapshot_mib {
        return Err(ErrorKind::Quota {
            limit: Limit::SnapshotSpace,
            what: "snapshot_mib",
            requested: 1,
            current: used_mib,
            max: plan.max_snapshot_mib,
        });
    }
    Ok(())
}

/// The decision for one more volume, where the account has `volumes` of `volume_mib` together.
///
/// # Errors
/// [`ErrorKind::Quota`]: [`Limit::VolumeCount`] first, then [`Limit::VolumeSpace`].
pub fn admit_volume(
    plan: &Plan,
    volumes: u64,
    volume_mib: u64,
    size_mib: u64,
) -> Result<(), ErrorKind> {
    let limits = [
        (Limit::VolumeCount, "volumes", 1, volumes, plan.max_volumes),
        (Limit::VolumeSpace, "volume_mib", size_mib, volume_mib, plan.max_volume_mib),
    ];
    for (limit, what, requested, current, max) in limits {
        if current.saturating_add(requested) > max {
            return Err(ErrorKind::Quota { limit, what, requested, current, max });
        }
    }
    Ok(())
}

/// Whether an account whose volumes have `volume_mib` in all may make one of them larger by `more_mib`.
///
/// # Errors
/// [`ErrorKind::Quota`]: [`Limit::VolumeSpace`].
pub fn admit_volume_growth(plan: &Plan, volume_mib: u64, more_mib: u64) -> Result<(), ErrorKind> {
    if volume_mib.saturating_add(more_mib) <= plan.max_volume_mib {
        return Ok(());
    }
    Err(ErrorKind::Quota {
        limit: Limit::VolumeSpace,
        what: "volume_mib",
        requested: more_mib,
        current: volume_mib,
        max: plan.max_volume_mib,
    })
}

/// The decision for any demand. `others` is the account's use without the workspace in question.
///
/// # Errors
/// [`ErrorKind::Quota`]: the count, then the owned pool, then the running pool.
pub fn admit(plan: &Plan, others: &Usage, shape: &Shape, demand: Demand) -> Result<(), ErrorKind> {
    match demand {
        Demand::Create => admit_create(plan, others, shape),
        Demand::CreateAndStart => {
            admit_create(plan, others, shape)?;
            admit_start(plan, others, shape)
        }
        Demand::Start => admit_start(plan, others, shape),
        Demand::GrowRunning => {
            admit_pool(Limit::OwnedPool, others.owned, shape, plan.owned_pool)?;
            admit_pool(Limit::RunningPool, others.running, shape, plan.running_pool)
        }
        Demand::Resize { from } => {
            let grows = shape.vcpu_count > from.vcpu_count
                || shape.memory_mib > from.memory_mib
                || shape.disk_mib > from.disk_mib;
            // A plan that was made smaller does not forbid giving something back.
            if grows {
                admit_pool(Limit::OwnedPool, others.owned, shape, plan.owned_pool)
            } else {
                Ok(())
            }
        }
    }
}

fn admit_pool(limit: Limit, used: Pool, shape: &Shape, pool: Pool) -> Result<(), ErrorKind> {
    let resources = [
        ("vcpu_count", shape.vcpu_count.get(), used.vcpu_count, pool.vcpu_count),
        ("memory_mib", shape.memory_mib.get(), used.memory_mib, pool.memory_mib),
        ("disk_mib", shape.disk_mib.get(), used.disk_mib, pool.disk_mib),
    ];
    for (what, requested, current, max) in resources {
        let requested = u64::from(requested);
        if current.saturating_add(requested) > max {
            return Err(ErrorKind::Quota { limit, what, requested, current, max });
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
