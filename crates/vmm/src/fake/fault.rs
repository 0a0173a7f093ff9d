//! What can be made to go wrong.

use std::time::Duration;

/// Something that goes wrong with one start, be it a boot or a parked process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The start fails before the record is committed.
    FailBeforeCommit,
    /// The start fails after the record is committed, before the guest runs.
    FailAfterCommit,
    /// The start times out after the record is committed.
    HangInBoot,
    /// The VM crashes this long after it started.
    DieAfter(Duration),
    /// Every connection to the guest is refused.
    RefuseConnect,
    /// Connections open but the guest never answers: its agent did not come up.
    SilentGuest,
}

/// Something a VM is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// [`crate::Vm::pause`].
    Pause,
    /// [`crate::Vm::resume`].
    Resume,
    /// [`crate::Vm::load`].
    Load,
    /// [`crate::Vm::begin_save`].
    BeginSave,
    /// [`crate::Vm::wait_save`] for [`crate::SaveProgress::Converged`].
    Converge,
    /// [`crate::Vm::wait_save`] for [`crate::SaveProgress::Captured`].
    Capture,
    /// [`crate::Vm::wait_save`] for [`crate::SaveProgress::Complete`].
    CompleteSave,
    /// [`crate::Vm::cancel_save`].
    CancelSave,
    /// [`crate::Vm::push_overlay`].
    PushOverlay,
    /// [`crate::Vm::flatten_disk`].
    FlattenDisk,
    /// [`crate::Vm::grow_disk`].
    GrowDisk,
    /// [`crate::Vm::attach_volume`].
    AttachVolume,
    /// [`crate::Vm::push_volume_overlay`].
    PushVolumeOverlay,
    /// [`crate::Vm::flatten_volume`].
    FlattenVolume,
    /// [`crate::Vm::grow_volume`].
    GrowVolume,
    /// [`crate::Vm::detach_volume`].
    DetachVolume,
}

impl Step {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Load => "load",
            Self::BeginSave => "begin_save",
            Self::Converge | Self::Capture | Self::CompleteSave => "wait_save",
            Self::CancelSave => "cancel_save",
            Self::PushOverlay => "push_overlay",
            Self::FlattenDisk => "flatten_disk",
            Self::GrowDisk => "grow_disk",
            Self::AttachVolume => "attach_volume",
            Self::PushVolumeOverlay => "push_volume_overlay",
            Self::FlattenVolume => "flatten_volume",
            Self::GrowVolume => "grow_volume",
            Self::DetachVolume => "detach_volume",
        }
    }
}

/// Something that goes wrong with one step of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepFault {
    /// Refused, and nothing has changed.
    Refuse,
    /// No answer in time, and nothing has changed.
    Hang,
    /// No answer in time, though it was done.
    LoseAnswer,
    /// The VM crashes instead.
    Die,
}
