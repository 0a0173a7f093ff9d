//! What the host can do.

use skerry_internal_api::NodeDoctor;

use crate::{Caller, Control, Error};

impl Control {
    /// What the node says about its host. Only the account `admin` may ask: the answer describes
    /// the machine, not the tenant's things.
    ///
    /// # Errors
    /// `Forbidden` for every other account.
    pub async fn doctor(&self, caller: &Caller) -> Result<NodeDoctor, Error> {
        unimplemented!("{caller:?}")
    }
}
