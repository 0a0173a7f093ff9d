//! What the host can do.

use skerry_internal_api::NodeDoctor;
use skerry_model::ErrorKind;

use crate::{Caller, Control, Error, control::ADMIN};

impl Control {
    /// What the node says about its host. Only the account `admin` may ask: the answer describes
    /// the machine, not the tenant's things.
    ///
    /// # Errors
    /// `Forbidden` for every other account.
    pub async fn doctor(&self, caller: &Caller) -> Result<NodeDoctor, Error> {
        if caller.account_handle != ADMIN {
            let why = "only the account admin may ask what the host can do";
            return Err(ErrorKind::Forbidden(why.to_owned()).into());
        }
        self.inner.bounded("doctor", self.inner.node.doctor()).await
    }
}
