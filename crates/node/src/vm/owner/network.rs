//! What a VM that runs may do on the network.

use std::sync::Arc;

use skerry_internal_api::{Injections, NodeError};
use skerry_model::{Incarnation, NetworkPolicy, PrivateAddress};

use super::Owner;
use crate::{error::blocking, host::StepFailed, network::NetworkHolding};

impl Owner {
    pub(super) async fn set_network_policy(
        &mut self,
        incarnation: Incarnation,
        policy: Arc<NetworkPolicy>,
    ) -> Result<(), NodeError> {
        policy.check().map_err(|invalid| NodeError::Unsupported(invalid.to_string()))?;
        let network = self.host.network.clone();
        let network = network.ok_or_else(|| NodeError::Unsupported("networks".to_owned()))?;
        if let Some(problem) = network.unsupported(&policy) {
            return Err(NodeError::Unsupported(problem.to_owned()));
        }
        let (held, address) = self.place(incarnation)?;
        let owner = self.slot.workspace_id;
        blocking(move || network.apply(owner, &held, address, &policy))
            .await
            .map_err(StepFailed::at("network_policy"))
            .map_err(|failed| failed.report("changing a network policy"))
    }

    pub(super) fn set_injections(
        &mut self,
        incarnation: Incarnation,
        injections: &Injections,
    ) -> Result<(), NodeError> {
        let network = self.host.network.clone();
        let network = network.ok_or_else(|| NodeError::Unsupported("networks".to_owned()))?;
        let (held, address) = self.place(incarnation)?;
        network.inject(self.slot.workspace_id, &held, address, injections.clone());
        Ok(())
    }

    /// Where the running VM of this incarnation is on the network.
    fn place(
        &self,
        incarnation: Incarnation,
    ) -> Result<(NetworkHolding, PrivateAddress), NodeError> {
        if self.running.is_none() || incarnation != self.incarnation {
            return Err(NodeError::NotRunning);
        }
        let held = self.ledger.as_ref().and_then(|ledger| ledger.state().holdings?.network);
        // One that was started before the network was switched on.
        let held = held.ok_or(NodeError::NotRunning)?;
        let address = self.private_address().ok_or(NodeError::NotRunning)?;
        Ok((held, address))
    }

    pub(super) fn private_address(&self) -> Option<PrivateAddress> {
        self.host.network.as_ref()?.known_address(&self.paths.dir)
    }
}
