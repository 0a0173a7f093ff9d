//! Limits and what is used of them.

use skerry_model::{ErrorKind, Plan, Usage, limits::admit_create};

use crate::{Caller, Control, Error};

/// The account's plan and use, from one reading of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The limits.
    pub plan: Plan,
    /// What is in use.
    pub usage: Usage,
    /// Why no workspace of the smallest size could be created now, if none could.
    pub blocked: Option<ErrorKind>,
}

impl Control {
    /// The account's limits and use.
    ///
    /// # Errors
    /// Only faults of the store.
    pub async fn quota(&self, caller: &Caller) -> Result<Quota, Error> {
        let plan = self.plan().clone();
        let usage = self.inner.store.usage(caller.account_id).await?;
        let blocked = admit_create(&plan, &usage, &plan.smallest()).err();
        Ok(Quota { plan, usage, blocked })
    }
}
