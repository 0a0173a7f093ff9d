//! What the host can do, and how starts on it went.

use skerry_internal_api::{NodeDoctor, StartStatistics};
use skerry_model::ErrorKind;

use crate::{Caller, Control, Error, control::ADMIN};

impl Control {
    /// What the node says about its host. Only the account `admin` may ask: the answer describes
    /// the machine, not the tenant's things.
    ///
    /// # Errors
    /// `Forbidden` for every other account.
    pub async fn doctor(&self, caller: &Caller) -> Result<NodeDoctor, Error> {
        only_admin(caller, "ask what the host can do")?;
        self.inner.bounded("doctor", self.inner.node.doctor()).await
    }

    /// How the starts of all accounts' workspaces went since the server began, and what is ready for
    /// the next. Only the account `admin` may ask.
    ///
    /// # Errors
    /// `Forbidden` for every other account.
    pub async fn start_statistics(&self, caller: &Caller) -> Result<StartStatistics, Error> {
        only_admin(caller, "ask how starts went")?;
        self.inner.bounded("start_statistics", self.inner.node.start_statistics()).await
    }
}

fn only_admin(caller: &Caller, what: &str) -> Result<(), Error> {
    if caller.account_handle == ADMIN {
        return Ok(());
    }
    Err(ErrorKind::Forbidden(format!("only the account admin may {what}")).into())
}
