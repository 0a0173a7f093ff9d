//! Where a test can stand in the way.

use skerry_internal_api::NodeError;

use super::SimNode;

/// Where the simulated node can be made to fail or hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Point {
    /// Bringing a VM up.
    EnsureRunning,
    /// Bringing a VM to a stop.
    EnsureStopped,
    /// Removing everything of a workspace.
    EnsureDeleted,
    /// Stopping virtual CPUs.
    EnsurePaused,
    /// Letting a VM run on.
    EnsureResumed,
    /// Saving memory. One that hangs is under way: a resume or stop cancels it.
    EnsureSuspended,
    /// Taking a snapshot.
    TakeSnapshot,
    /// Removing a snapshot.
    EnsureSnapshotDeleted,
    /// Making a volume.
    EnsureVolume,
    /// Making the disk of a VM that runs larger.
    GrowDisk,
    /// Making a volume larger.
    GrowVolume,
    /// Making a checkpoint of a volume.
    EnsureCheckpoint,
    /// Putting a volume into a VM that runs.
    AttachVolume,
    /// Taking a volume out of a VM that runs.
    DetachVolume,
    /// Changing what a VM may do on the network.
    SetNetworkPolicy,
    /// Changing what requests of a guest are given.
    SetInjections,
    /// Asking a proxy for a connection.
    CheckProxy,
}

impl Point {
    pub(super) const ALL: [Self; 17] = [
        Self::EnsureRunning,
        Self::EnsureStopped,
        Self::EnsureDeleted,
        Self::EnsurePaused,
        Self::EnsureResumed,
        Self::EnsureSuspended,
        Self::TakeSnapshot,
        Self::EnsureSnapshotDeleted,
        Self::EnsureVolume,
        Self::GrowDisk,
        Self::GrowVolume,
        Self::EnsureCheckpoint,
        Self::AttachVolume,
        Self::DetachVolume,
        Self::SetNetworkPolicy,
        Self::SetInjections,
        Self::CheckProxy,
    ];
}

impl SimNode {
    /// The next call at `point` fails with `error` (several are used up in order).
    pub fn fail_next(&self, point: Point, error: NodeError) {
        self.state().failures.entry(point).or_default().push_back(error);
    }

    /// Calls at `point` hang until [`SimNode::release`]. A hanging boot is under way: it can be
    /// cancelled by a stop.
    pub fn hang(&self, point: Point) {
        if let Some(gate) = self.hanging.get(&point) {
            gate.send_replace(true);
        }
    }

    /// Calls that hang at `point` go on, and later ones no longer hang.
    pub fn release(&self, point: Point) {
        if let Some(gate) = self.hanging.get(&point) {
            gate.send_replace(false);
        }
    }
}
