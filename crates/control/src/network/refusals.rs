//! What workspaces wanted of the network and were refused.

use skerry_internal_api::{EgressRefusal, RefusedEgress};
use skerry_model::{HostName, Timestamp};

use crate::{Caller, Control, Error, WorkspaceRef};

/// What a workspace's VM wanted of the network and was refused since it was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkRefusals {
    /// How often that concerned names; counted anew when the server is restarted.
    pub total: u64,
    /// The last of these, the newest first; a bounded number.
    pub last: Vec<NetworkRefusal>,
    /// Packets to addresses and ports that were not permitted.
    pub refused_packets: u64,
    /// Frames that were neither IPv4 nor ARP, or said to be from somebody else.
    pub dropped_frames: u64,
}

/// Something that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkRefusal {
    /// What was wanted.
    pub what: RefusedEgress,
    /// The name that the guest gave, if it gave one.
    pub name: Option<HostName>,
    /// How often in a row.
    pub times: u64,
    /// The last time.
    pub last_at: Timestamp,
}

impl Control {
    /// What a workspace's VM wanted of the network and was refused; nothing without a VM.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` or `Timeout` when the node could not be asked.
    pub async fn network_refusals(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<NetworkRefusals, Error> {
        let workspace = self.inner.find(caller, which).await?;
        let call = self.inner.node.egress_refusals(workspace.id);
        let Some(found) = self.inner.bounded("egress_refusals", call).await?? else {
            return Ok(NetworkRefusals::default());
        };
        let now = self.inner.now();
        let shown = |one: EgressRefusal| NetworkRefusal {
            last_at: now.checked_sub(one.ago).unwrap_or(now),
            what: one.what,
            name: one.name,
            times: one.times,
        };
        Ok(NetworkRefusals {
            total: found.total,
            last: found.last.into_iter().rev().map(shown).collect(),
            refused_packets: found.refused_packets,
            dropped_frames: found.dropped_frames,
        })
    }
}
