//! The rules of a VM's life in InstaVM's words: how long it lives, whether it is parked then instead of
//! killed, whether use wakes it, and what is kept of it when it is terminated. Pure.

use std::ops::RangeInclusive;

use skerry_control::{LifecycleChange, Setting};
use skerry_model::{
    DisplayName, Expiry, ExpiryAction, Lifetime, SnapshotContents, SnapshotOnTerminate, Workspace,
};

use super::{
    error_body::Problem,
    validation::{FieldError, Fields},
};

/// What a request says of them; `None` where it says nothing.
#[derive(Debug, Default)]
pub(super) struct Rules {
    lifetime_seconds: Option<u32>,
    auto_suspend: Option<bool>,
    auto_resume: Option<bool>,
    snapshot_on_terminate: Option<bool>,
    snapshot_name: Option<String>,
}

/// A name for a snapshot that will not be taken.
const NAME_ALONE: &str = "Input goes with snapshot_on_terminate: true";

impl Rules {
    /// Reads the fields; `lifetime` is what InstaVM's own server accepts as one, in seconds.
    pub(super) fn read(fields: &mut Fields, lifetime: RangeInclusive<u32>) -> Self {
        let lifetime = u64::from(*lifetime.start())..=u64::from(*lifetime.end());
        let seconds = fields.integer("vm_lifetime_seconds", lifetime);
        Self {
            lifetime_seconds: seconds.and_then(|seconds| u32::try_from(seconds).ok()),
            auto_suspend: fields.boolean("auto_suspend"),
            auto_resume: fields.boolean("auto_resume"),
            snapshot_on_terminate: fields.boolean("snapshot_on_terminate"),
            snapshot_name: name(fields, "snapshot_name"),
        }
    }

    /// A lifetime where none was given.
    pub(super) fn or_lifetime(mut self, seconds: u32) -> Self {
        self.lifetime_seconds.get_or_insert(seconds);
        self
    }

    /// Refuses a lifetime above what this kind of VM may have. The wording is that of a plan's limit,
    /// which clients read.
    pub(super) fn check_lifetime(&self, max_seconds: u32) -> Result<(), Problem> {
        if self.lifetime_seconds.is_some_and(|seconds| seconds > max_seconds) {
            return Err(Problem::LifetimeTooLong { max_seconds });
        }
        Ok(())
    }

    /// Refuses, for a new VM, the name of a snapshot that will not be taken.
    pub(super) fn refuse_name_alone(&self, fields: &mut Fields) {
        if self.snapshot_name.is_some() && self.snapshot_on_terminate != Some(true) {
            fields.refuse("snapshot_name", NAME_ALONE);
        }
    }

    /// A new VM's end. One that is to be parked and has no lifetime is parked after the longest one:
    /// without an end there would be nothing that could be shown or changed.
    pub(super) fn expiry(&self) -> Option<Expiry> {
        let parks = self.auto_suspend == Some(true);
        let action = if parks { ExpiryAction::Suspend } else { ExpiryAction::Delete };
        let after_seconds = self.lifetime_seconds.or(parks.then_some(Expiry::MAX_SECONDS))?;
        Some(Expiry { after_seconds, action })
    }

    /// Whether a new VM's lifetime was asked for.
    pub(super) const fn lifetime(&self) -> Lifetime {
        if self.lifetime_seconds.is_some() { Lifetime::Temporary } else { Lifetime::Permanent }
    }

    /// Whether use wakes a new VM.
    pub(super) fn auto_resume(&self) -> bool {
        self.auto_resume.unwrap_or(false)
    }

    /// What is kept of a new VM.
    pub(super) fn last_snapshot(&self) -> Option<SnapshotOnTerminate> {
        let asked = self.snapshot_on_terminate == Some(true);
        asked.then(|| SnapshotOnTerminate {
            name: self.snapshot_name.clone(),
            contents: SnapshotContents::DiskAndMemory,
        })
    }

    /// What they change of a VM that is there; `None` when they say nothing.
    pub(super) fn change(&self, now: &Workspace) -> Result<Option<LifecycleChange>, Problem> {
        let mut change = LifecycleChange {
            auto_resume: self.auto_resume,
            snapshot_on_terminate: self.last_snapshot_of(now)?,
            ..LifecycleChange::default()
        };
        self.change_end(now, &mut change);
        Ok((change != LifecycleChange::default()).then_some(change))
    }

    /// A lifetime begins anew; `auto_suspend` alone changes what comes at the end and not when. An end
    /// that another dialect gave the VM, a stop or a pause, is changed only into being parked.
    fn change_end(&self, now: &Workspace, change: &mut LifecycleChange) {
        let current = now.spec.expiry;
        match (self.lifetime_seconds, self.auto_suspend, current) {
            (Some(after_seconds), parks, _) => {
                let action = match (parks, current.map(|expiry| expiry.action)) {
                    (Some(true), _) => ExpiryAction::Suspend,
                    (None, Some(action)) => action,
                    (Some(false), Some(kept @ (ExpiryAction::Stop | ExpiryAction::Pause))) => kept,
                    (Some(false), Some(ExpiryAction::Suspend | ExpiryAction::Delete) | None)
                    | (None, None) => ExpiryAction::Delete,
                };
                change.lifetime = Some(Lifetime::Temporary);
                change.expiry = Setting::To(Expiry { after_seconds, action });
            }
            (None, Some(true), None) => {
                let after_seconds = Expiry::MAX_SECONDS;
                change.expiry =
                    Setting::To(Expiry { after_seconds, action: ExpiryAction::Suspend });
            }
            (None, Some(true), Some(expiry)) if expiry.action != ExpiryAction::Suspend => {
                change.expiry_action = Some(ExpiryAction::Suspend);
            }
            (None, Some(false), Some(Expiry { action: ExpiryAction::Suspend, after_seconds })) => {
                // The end that parking alone brought goes with it.
                if now.spec.lifetime == Lifetime::Permanent && after_seconds == Expiry::MAX_SECONDS
                {
                    change.expiry = Setting::Clear;
                } else {
                    change.expiry_action = Some(ExpiryAction::Delete);
                }
            }
            (None, Some(true | false) | None, Some(_)) | (None, Some(false) | None, None) => {}
        }
    }

    fn last_snapshot_of(&self, now: &Workspace) -> Result<Setting<SnapshotOnTerminate>, Problem> {
        let current = now.spec.snapshot_on_terminate.as_ref();
        match (self.snapshot_on_terminate, &self.snapshot_name) {
            (None, None) => Ok(Setting::Keep),
            (Some(false), None) => Ok(Setting::Clear),
            (Some(true), given) => Ok(Setting::To(SnapshotOnTerminate {
                name: given.clone().or_else(|| current.and_then(|kept| kept.name.clone())),
                contents: current.map_or(SnapshotContents::DiskAndMemory, |kept| kept.contents),
            })),
            (None, Some(name)) if current.is_some() => Ok(Setting::To(SnapshotOnTerminate {
                name: Some(name.clone()),
                contents: current.map_or(SnapshotContents::DiskAndMemory, |kept| kept.contents),
            })),
            (None | Some(false), Some(_)) => {
                Err(Problem::Unprocessable(vec![FieldError::in_body("snapshot_name", NAME_ALONE)]))
            }
        }
    }
}

/// A name of a snapshot; an empty one is none.
pub(super) fn name(fields: &mut Fields, field: &'static str) -> Option<String> {
    let name = fields.text(field).filter(|name| !name.is_empty())?;
    match DisplayName::parse(&name) {
        Ok(_) => Some(name),
        Err(invalid) => {
            fields.refuse(field, &format!("{}; allowed: {}", invalid.problem, invalid.allowed));
            None
        }
    }
}

/// Whether it is parked when its time is over.
pub(super) fn parks(workspace: &Workspace) -> bool {
    workspace.spec.expiry.is_some_and(|expiry| expiry.action == ExpiryAction::Suspend)
}

#[cfg(test)]
#[path = "rules_tests.rs"]
#[allow(clippy::expect_used, reason = "tests")]
mod tests;
