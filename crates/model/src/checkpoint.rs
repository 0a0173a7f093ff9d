//! Checkpoints of volumes: what one was at a moment, kept unchanged. They go with their volume.
//!
//! The states are a volume's ([`VolumeState`]): being made, ready, failed, being removed.

use crate::{
    AccountId, CheckpointId, DisplayName, OnNode, Timestamp, VolumeEvent, VolumeId, VolumeState,
    VolumeStep,
};

/// The most that a volume has at a time.
pub const MAX_CHECKPOINTS_OF_A_VOLUME: u32 = 64;

/// A checkpoint. `control::store` is the only writer.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Its identity; dialects render it in their own form.
    pub id: CheckpointId,
    /// Of which volume.
    pub volume_id: VolumeId,
    /// Who owns that.
    pub account_id: AccountId,
    /// The name for people; several may have the same.
    pub name: DisplayName,
    /// How far it is.
    pub state: VolumeState,
    /// When the record was made.
    pub created_at: Timestamp,
    /// When the record last changed.
    pub updated_at: Timestamp,
    /// Counts the writes of this record; a write with a stale number is refused.
    pub revision: u64,
}

impl Checkpoint {
    /// Applies something that happened; answers whether the record changed. A deletion is accepted in
    /// every state and nothing after it.
    pub fn apply(&mut self, event: &VolumeEvent) -> bool {
        self.state.apply(event)
    }
}

/// Decides the next step from the record and from what its node has under its identifier. Pure and
/// total.
#[must_use]
pub fn next_checkpoint_step(
    checkpoint: &Checkpoint,
    observed: OnNode,
    now: Timestamp,
) -> VolumeStep {
    checkpoint.state.next_step(observed, "the checkpoint is no longer on its node", now)
}
