//! Named points after which a failure can be planned, so that crash safety is tested at every step.
//!
//! Compiled always and inert unless planned: the server that is tested is the server that is shipped.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::Error;

/// What happens at a planned point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The step is reported as failed, once.
    Fail,
    /// The step never returns: to the rest of the process as if the server had died there. Tests
    /// then abandon the node.
    Hang,
    /// The step is taken a second time, as after a crash that forgot it was taken.
    Repeat,
    /// The process ends at once without any clean-up, as by `kill -9`.
    Abort,
}

/// What to do after a point was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Go on.
    Proceed,
    /// Take the step again.
    Again,
}

/// Every point, in the order in which a life of a VM passes them.
pub const POINTS: &[&str] = &[
    "reserve",
    "vm_directory",
    "ledger_intent",
    "run_directory",
    "cgroup",
    "network",
    "disk",
    "memory_file",
    "console_log",
    "boot_commit",
    "boot",
    "guest_ready",
    "mount_volumes",
    "ready",
    "power_off",
    "release_process",
    "release_memory_file",
    "release_cgroup",
    "release_network",
    "release_volumes",
    "release_run_directory",
    "release_uid",
    "release_replacement",
    "released",
    "tombstone",
    "release_disk",
    "release_logs",
    "release_ledger",
    "deleted",
];

/// The points of what is done to a VM that runs: pausing, suspending, snapshots.
pub const STANDSTILL_POINTS: &[&str] = &[
    "pause_noted",
    "paused",
    "pause_undone",
    "cpus_resumed",
    "resume_noted",
    "stop_woken",
    "suspension_noted",
    "suspension_drafted",
    "suspension_woken",
    "suspension_frozen",
    "suspension_stopped",
    "suspension_begun",
    "suspension_saved",
    "suspension_sealed",
    "suspension_committed",
    "save_cancelled",
    "saved_memory_removed",
    "suspension_undone",
    "suspension_ended",
    "memory_forgotten",
    "memory_removed",
    "snapshot_drafted",
    "snapshot_noted",
    "snapshot_woken",
    "snapshot_synced",
    "snapshot_begun",
    "snapshot_converged",
    "overlay_intended",
    "snapshot_frozen",
    "snapshot_stopped",
    "overlay_pushed",
    "snapshot_captured",
    "snapshot_went_on",
    "snapshot_saved",
    "overlay_kept",
    "snapshot_sealed",
    "snapshot_undone",
    "snapshot_ended",
    "disk_frozen",
    "flattened",
    "state_closed",
];

/// The points of starts that do not boot, and of what is made for them beforehand.
pub const INSTANT_POINTS: &[&str] = &[
    "park_commit",
    "park",
    "claim_intent",
    "claim",
    "load",
    "attach_volumes",
    "spend_memory",
    "resume",
    "claim_synced",
    "template_prepared",
    "template_saved",
    "slot_warmed",
    "slot_condemned",
    "promotion_hastened",
    "promotion_loaded",
    "promotion_saved",
];

/// The points of volumes that come to a VM that runs, and go.
pub const VOLUME_POINTS: &[&str] = &[
    "volume_asked_for",
    "volume_attaching",
    "volume_in_slot",
    "volume_mounted",
    "volume_attached",
    "volume_detaching",
    "volume_unmounted",
    "volume_out_of_slot",
    "volume_closed",
    "volume_detached",
];

/// The points of disks and volumes that grow under a running VM.
pub const GROWTH_POINTS: &[&str] = &["growth_recorded", "disk_grown", "file_system_grown"];

/// The points of checkpoints of volumes that a VM writes.
pub const CHECKPOINT_POINTS: &[&str] = &[
    "checkpoint_synced",
    "checkpoint_intended",
    "checkpoint_frozen",
    "checkpoint_pushed",
    "checkpoint_went_on",
    "checkpoint_overlay_kept",
    "checkpoint_recorded",
];

/// The points of disks and saved states. They are passed where nothing can be awaited: a planned hang
/// is a failure there.
pub const SAVED_POINTS: &[&str] = &[
    "overlay_made",
    "disk_recorded",
    "push_intended",
    "layer_sealed",
    "layer_moved",
    "push_recorded",
    "disk_replaced",
    "disk_files_removed",
    "state_sealed",
    "state_described",
    "state_in_place",
    "state_condemned",
    "state_removed",
];

/// The plan of failures; empty in production. Clones share one plan.
#[derive(Clone, Debug)]
pub struct Faults {
    planned: Arc<Mutex<BTreeMap<&'static str, FaultKind>>>,
    reached: watch::Sender<Option<&'static str>>,
}

impl Default for Faults {
    fn default() -> Self {
        Self { planned: Arc::default(), reached: watch::Sender::new(None) }
    }
}

impl Faults {
    /// Reads a plan such as `disk:abort` or `disk:fail,boot:hang`.
    ///
    /// # Errors
    /// An unknown point or kind: a misspelt plan must not pass silently.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let faults = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let bad = |problem: &str| Error::Config {
                setting: "fault",
                problem: format!("{part:?}: {problem}"),
            };
            let (point, kind) = part.split_once(':').ok_or_else(|| bad("is not POINT:KIND"))?;
            let kind = match kind {
                "fail" => FaultKind::Fail,
                "hang" => FaultKind::Hang,
                "repeat" => FaultKind::Repeat,
                "abort" => FaultKind::Abort,
                other => return Err(bad(&format!("unknown kind {other}"))),
            };
            if !faults.plan(point, kind) {
                return Err(bad("unknown point"));
            }
        }
        Ok(faults)
    }

    /// Plans `kind` for the next time `point` is passed; false when there is no such point.
    pub fn plan(&self, point: &str, kind: FaultKind) -> bool {
        let Some(point) = all_points().find(|known| *known == point) else {
            return false;
        };
        // One that happened at the same point before is not this one.
        self.reached.send_replace(None);
        self.lock().insert(point, kind);
        true
    }

    /// Whether a planned fault has not happened yet.
    #[must_use]
    pub fn pending(&self) -> bool {
        !self.lock().is_empty()
    }

    /// Forgets what was planned and has not happened.
    pub fn forget_pending(&self) {
        self.lock().clear();
    }

    /// Completes once the fault that was planned last has happened, at `point`.
    pub async fn happened(&self, point: &str) {
        let mut reached = self.reached.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = reached.wait_for(|last| *last == Some(point)).await;
    }

    /// Passes `point`.
    pub(crate) async fn after(&self, point: &'static str) -> Result<Next, Error> {
        match self.take(point) {
            None => Ok(Next::Proceed),
            Some(FaultKind::Repeat) => Ok(Next::Again),
            Some(FaultKind::Hang) => std::future::pending().await,
            Some(FaultKind::Fail) => Err(Error::Planned(point)),
            Some(FaultKind::Abort) => std::process::abort(),
        }
    }

    /// Passes `point` where nothing can be awaited or repeated; a planned hang is a failure there.
    pub(crate) fn after_blocking(&self, point: &'static str) -> Result<(), Error> {
        match self.take(point) {
            None | Some(FaultKind::Repeat) => Ok(()),
            Some(FaultKind::Hang | FaultKind::Fail) => Err(Error::Planned(point)),
            Some(FaultKind::Abort) => std::process::abort(),
        }
    }

    fn take(&self, point: &'static str) -> Option<FaultKind> {
        debug_assert!(all_points().any(|known| known == point), "{point} is not in the list");
        let kind = self.lock().remove(point)?;
        tracing::warn!(point, ?kind, "planned fault");
        self.reached.send_replace(Some(point));
        Some(kind)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, FaultKind>> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn all_points() -> impl Iterator<Item = &'static str> {
    POINTS
        .iter()
        .chain(STANDSTILL_POINTS)
        .chain(SAVED_POINTS)
        .chain(INSTANT_POINTS)
        .chain(VOLUME_POINTS)
        .chain(CHECKPOINT_POINTS)
        .chain(GROWTH_POINTS)
        .copied()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_plan_that_names_no_known_point_or_kind_is_refused() {
        assert!(Faults::parse("").unwrap().planned.lock().unwrap().is_empty());
        assert!(Faults::parse("disk:abort,boot:fail").unwrap().pending());
        for bad in ["disk", "disc:abort", "disk:explode"] {
            assert!(Faults::parse(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_planned_failure_happens_once() {
        let faults = Faults::parse("disk:fail").unwrap();
        faults.after("boot").await.unwrap();
        assert!(faults.after("disk").await.is_err());
        faults.happened("disk").await;
        faults.after("disk").await.unwrap();
        assert!(faults.plan("disk", FaultKind::Repeat));
        assert!(faults.happened("disk").now_or_never().is_none(), "not this one");
        assert_eq!(faults.after("disk").await.unwrap(), Next::Again);
        faults.happened("disk").await;
    }
}
