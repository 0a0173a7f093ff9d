//! Which machines Aether offers: ranges, and the pairs of CPUs and memory.
//!
//! The documented ranges are 1 to 8 CPUs and 256 to 16384 MB; the pairs within them are those of
//! Aether's first public generation. A workspace made through another dialect may have a shape
//! outside this table; it is shown as it is.

use skerry_model::{Plan, spec::CpuKind};

use super::wire::HardwareBody;
use crate::number::WholeNumber;

/// What a request means when it leaves hardware out.
pub(super) const DEFAULT: Hardware =
    Hardware { cpu_kind: CpuKind::Shared, cpus: 2, memory_mb: 2048, volume_size_gb: 10 };

const MIB_PER_GIB: u32 = 1024;
const VOLUME_SIZE_GB: (u32, u32) = (1, 500);

/// A machine that Aether offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hardware {
    pub cpu_kind: CpuKind,
    pub cpus: u32,
    pub memory_mb: u32,
    pub volume_size_gb: u32,
}

impl Hardware {
    /// The volume in the core's unit. At most 500 GiB, so it fits.
    pub(super) const fn disk_mib(&self) -> u32 {
        self.volume_size_gb * MIB_PER_GIB
    }
}

/// Mebibytes as gibibytes, rounded up.
pub(super) const fn volume_size_gb(disk_mib: u32) -> u32 {
    disk_mib.div_ceil(MIB_PER_GIB)
}

/// One wrong field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FieldError {
    /// Path of the field, `hardware.cpus`.
    pub field: String,
    /// What is wrong and what would not be.
    pub message: String,
}

impl FieldError {
    pub(super) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// The hardware a request asks for; what it leaves out is taken from `base`.
///
/// # Errors
/// All wrong fields, each with what is allowed.
pub(super) fn parse(
    body: &HardwareBody,
    base: Hardware,
    plan: &Plan,
) -> Result<Hardware, Vec<FieldError>> {
    let mut errors = Vec::new();

    let cpu_kind = match body.cpu_kind.as_deref() {
        None => Some(base.cpu_kind),
        Some("shared") => Some(CpuKind::Shared),
        Some("performance") => Some(CpuKind::Performance),
        Some(_) => {
            let message = "must be one of shared, performance";
            errors.push(FieldError::new("hardware.cpu_kind", message));
            None
        }
    };
    if body.gpu_kind.is_some() {
        let message = "must be null: no GPU kind is available on this server";
        errors.push(FieldError::new("hardware.gpu_kind", message));
    }
    let volume_size_gb = match body.volume_size_gb {
        None => base.volume_size_gb,
        Some(WholeNumber(asked)) => parse_volume(asked, plan).unwrap_or_else(|error| {
            errors.push(error);
            base.volume_size_gb
        }),
    };
    // The pair is checked only if a part of it is asked for, so that a workspace of another
    // dialect's shape can have its volume grown.
    let asks_for_pair = body.cpu_kind.is_some() || body.cpus.is_some() || body.memory_mb.is_some();
    let (cpus, memory_mb) = match cpu_kind {
        Some(kind) if asks_for_pair => {
            let cpus = body.cpus.map_or(i64::from(base.cpus), |WholeNumber(cpus)| cpus);
            let memory_mb = body.memory_mb.map_or(i64::from(base.memory_mb), |WholeNumber(mb)| mb);
            parse_pair(kind, cpus, memory_mb).unwrap_or_else(|error| {
                errors.push(error);
                (base.cpus, base.memory_mb)
            })
        }
        Some(_) | None => (base.cpus, base.memory_mb),
    };
    match cpu_kind {
        Some(cpu_kind) if errors.is_empty() => {
            Ok(Hardware { cpu_kind, cpus, memory_mb, volume_size_gb })
        }
        Some(_) | None => Err(errors),
    }
}

fn parse_volume(asked: i64, plan: &Plan) -> Result<u32, FieldError> {
    let min = VOLUME_SIZE_GB.0.max(plan.disk_mib.min.div_ceil(MIB_PER_GIB));
    let max = VOLUME_SIZE_GB.1.min(plan.disk_mib.max / MIB_PER_GIB);
    u32::try_from(asked).ok().filter(|gb| (min..=max).contains(gb)).ok_or_else(|| {
        FieldError::new("hardware.volume_size_gb", format!("must be {min} to {max}"))
    })
}

fn parse_pair(kind: CpuKind, cpus: i64, memory_mb: i64) -> Result<(u32, u32), FieldError> {
    let table = pairs(kind);
    let Some((cpus, memory)) = table.iter().find(|(count, _)| i64::from(*count) == cpus) else {
        let counts = list(table.iter().map(|(count, _)| *count));
        let message = format!("must be one of {counts} for {} CPUs", kind_word(kind));
        return Err(FieldError::new("hardware.cpus", message));
    };
    match memory.iter().find(|mb| i64::from(**mb) == memory_mb) {
        Some(memory_mb) => Ok((*cpus, *memory_mb)),
        None => {
            let message = format!(
                "must be one of {} for {cpus} {} CPUs",
                list(memory.iter().copied()),
                kind_word(kind),
            );
            Err(FieldError::new("hardware.memory_mb", message))
        }
    }
}

/// CPU counts, each with the memory sizes it may have in MB.
const fn pairs(kind: CpuKind) -> &'static [(u32, &'static [u32])] {
    match kind {
        CpuKind::Shared => &[
            (1, &[256, 512, 1024, 2048]),
            (2, &[512, 1024, 2048, 4096]),
            (4, &[1024, 2048, 4096, 8192]),
            (8, &[2048, 4096, 8192, 16384]),
        ],
        CpuKind::Performance => &[
            (1, &[2048, 4096, 8192]),
            (2, &[4096, 8192, 16384]),
            (4, &[8192, 16384]),
            (8, &[16384]),
        ],
    }
}

const fn kind_word(kind: CpuKind) -> &'static str {
    match kind {
        CpuKind::Shared => "shared",
        CpuKind::Performance => "performance",
    }
}

fn list(numbers: impl Iterator<Item = u32>) -> String {
    numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use skerry_model::{Range, limits::Pool};

    use super::*;

    fn plan() -> Plan {
        let pool = Pool { vcpu_count: 64, memory_mib: 65536, disk_mib: 1_000_000 };
        Plan {
            name: "test".to_owned(),
            label: "Test".to_owned(),
            vcpu_count: Range { min: 1, max: 32, default: 1 },
            memory_mib: Range { min: 128, max: 65536, default: 1024 },
            disk_mib: Range { min: 512, max: 51_200, default: 3072 },
            max_workspaces: 10,
            owned_pool: pool,
            running_pool: pool,
            max_snapshots: 10,
            max_snapshot_mib: 10_000,
            max_volumes: 10,
            max_volume_mib: 10_000,
        }
    }

    fn body(json: serde_json::Value) -> HardwareBody {
        serde_json::from_value(json).expect("hardware")
    }

    #[test]
    fn what_is_left_out_is_the_default() {
        assert_eq!(parse(&HardwareBody::default(), DEFAULT, &plan()), Ok(DEFAULT));
        let hardware = parse(&body(serde_json::json!({ "memory_mb": 512 })), DEFAULT, &plan());
        assert_eq!(hardware, Ok(Hardware { memory_mb: 512, ..DEFAULT }));
    }

    #[test]
    fn every_wrong_field_is_reported_with_what_is_allowed() {
        let body = body(serde_json::json!({
            "cpu_kind": "shared", "cpus": 2, "memory_mb": 8192, "volume_size_gb": 51, "gpu_kind": "a10"
        }));
        let errors = parse(&body, DEFAULT, &plan()).expect_err("wrong");
        let text: Vec<_> = errors.iter().map(|e| format!("{} {}", e.field, e.message)).collect();
        assert_eq!(
            text,
            [
                "hardware.gpu_kind must be null: no GPU kind is available on this server",
                "hardware.volume_size_gb must be 1 to 50",
                "hardware.memory_mb must be one of 512, 1024, 2048, 4096 for 2 shared CPUs",
            ]
        );
    }

    #[test]
    fn the_volume_of_a_shape_outside_the_table_can_be_grown() {
        let odd =
            Hardware { cpu_kind: CpuKind::Shared, cpus: 3, memory_mb: 700, volume_size_gb: 3 };
        let grown = parse(&body(serde_json::json!({ "volume_size_gb": 5 })), odd, &plan());
        assert_eq!(grown, Ok(Hardware { volume_size_gb: 5, ..odd }));
        assert!(parse(&body(serde_json::json!({ "cpus": 2 })), odd, &plan()).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_in_the_table_and_within_the_plan(
            performance: bool, cpus: i64, memory_mb: i64, volume_size_gb: i64, near in 0_usize..4,
        ) {
            let pick = [cpus, 1, 2, 4][near];
            let body = HardwareBody {
                cpu_kind: Some(if performance { "performance" } else { "shared" }.to_owned()),
                cpus: Some(WholeNumber(pick)),
                memory_mb: Some(WholeNumber(if near == 0 { memory_mb } else { 4096 })),
                volume_size_gb: Some(WholeNumber(volume_size_gb)),
                gpu_kind: None,
            };
            if let Ok(hardware) = parse(&body, DEFAULT, &plan()) {
                let row = pairs(hardware.cpu_kind).iter().find(|(n, _)| *n == hardware.cpus);
                prop_assert!(row.is_some_and(|(_, mb)| mb.contains(&hardware.memory_mb)));
                prop_assert!((1..=50).contains(&hardware.volume_size_gb));
            }
        }
    }
}
