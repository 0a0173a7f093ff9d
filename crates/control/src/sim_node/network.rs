//! The simulated node's network: addresses that last as long as a workspace, and policies that last as
//! long as a VM.

use std::net::Ipv4Addr;

use skerry_internal_api::{
    EgressRefusals, InjectedRequest, Injections, NodeError, NodeNetwork, VmPhase,
};
use skerry_model::{
    Incarnation, NetworkPolicy, OutboundProxy, PrivateAddress, Transport, WorkspaceId,
};

use super::{Point, SimNode, SimState, SimVm};

/// The first address that is given out; the lowest that is free is the next.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 2);

impl SimNode {
    /// VMs that come up from now on are given a network, or none.
    pub fn set_network(&self, network: Option<NodeNetwork>) {
        let mut state = self.state();
        state.network = network;
        let addresses = state.addresses.clone();
        let has_network = network.is_some();
        // One that was started without a network has none; the others have what they had.
        for vm in state.vms.values_mut() {
            let own = addresses.iter().find(|(_, owner)| **owner == vm.report.workspace_id);
            let own = own.filter(|_| has_network && (vm.is_networked || vm.report.pid.is_none()));
            vm.report.private_address = own.map(|(address, _)| *address);
        }
    }

    /// A network with a way to the world.
    pub const NETWORK: NodeNetwork =
        NodeNetwork { gateway: Ipv4Addr::new(10, 0, 2, 1), has_uplink: true };
    /// A network without one.
    pub const NETWORK_WITHOUT_UPLINK: NodeNetwork =
        NodeNetwork { has_uplink: false, ..Self::NETWORK };

    /// What the workspace's VM may do on the network; `None` when there is no VM.
    #[must_use]
    pub fn policy(&self, id: WorkspaceId) -> Option<NetworkPolicy> {
        let state = self.state();
        let vm = state.vms.get(&id).filter(|vm| vm.report.pid.is_some())?;
        Some(vm.policy.clone())
    }

    /// From now on proxies at this address and port make no connections, for this reason; all others do.
    pub fn break_proxy(&self, address: Ipv4Addr, port: u16, why: &str) {
        self.state().broken_proxies.insert((address, port), why.to_owned());
    }

    pub(super) async fn ask_proxy(&self, proxy: &OutboundProxy) -> Result<(), NodeError> {
        self.state().called(Point::CheckProxy, format!("check_proxy {proxy}"))?;
        self.gate(Point::CheckProxy).await;
        let state = self.state();
        if state.network.is_none_or(|network| !network.has_uplink) {
            return Err(NodeError::Unsupported("egress: the node has no uplink".to_owned()));
        }
        match state.broken_proxies.get(&(proxy.address, proxy.port)) {
            Some(why) => Err(NodeError::Invalid { field: "proxy", problem: why.clone() }),
            None => Ok(()),
        }
    }

    /// From now on the workspace's VM was refused this.
    pub fn set_refusals(&self, id: WorkspaceId, refusals: EgressRefusals) {
        if let Some(vm) = self.state().vms.get_mut(&id) {
            vm.refusals = refusals;
        }
    }

    pub(super) fn refusals(&self, id: WorkspaceId) -> Option<EgressRefusals> {
        let state = self.state();
        let up = |vm: &&SimVm| vm.report.pid.is_some() && vm.is_networked;
        Some(state.vms.get(&id).filter(up)?.refusals.clone())
    }

    /// Whether a connection by TCP from one VM to a port of another would come about: each side has to
    /// permit it.
    #[must_use]
    pub fn connects(&self, from: WorkspaceId, to: WorkspaceId, port: u16) -> bool {
        let address_of = |id| self.state().vms.get(&id).and_then(|vm| vm.report.private_address);
        let (Some(here), Some(there)) = (address_of(from), address_of(to)) else { return false };
        let (Some(out), Some(into)) = (self.policy(from), self.policy(to)) else { return false };
        out.links.contains(&there)
            && into.ingress.iter().any(|opening| {
                opening.from == here
                    && opening.transport == Transport::Tcp
                    && (opening.ports.first()..=opening.ports.last()).contains(&port)
            })
    }

    pub(super) async fn take_policy(
        &self,
        id: WorkspaceId,
        incarnation: Incarnation,
        policy: NetworkPolicy,
    ) -> Result<(), NodeError> {
        let what = format!("set_network_policy #{incarnation}");
        self.state().called(Point::SetNetworkPolicy, what)?;
        self.gate(Point::SetNetworkPolicy).await;
        let mut state = self.state();
        if state.network.is_none() {
            return Err(NodeError::Unsupported("networks".to_owned()));
        }
        policy.check().map_err(|invalid| NodeError::Unsupported(invalid.to_string()))?;
        state.networked(id, incarnation)?.policy = policy;
        Ok(())
    }

    /// What requests of the workspace's guest are given; nothing without a VM.
    #[must_use]
    pub fn injections(&self, id: WorkspaceId) -> Injections {
        let state = self.state();
        let vm = state.vms.get(&id).filter(|vm| vm.report.pid.is_some());
        vm.map(|vm| vm.injections.clone()).unwrap_or_default()
    }

    /// A guest has sent a request, as it would be reported.
    pub fn report_injected(&self, request: InjectedRequest) {
        let _nobody = self.injected.send(request);
    }

    pub(super) async fn take_injections(
        &self,
        id: WorkspaceId,
        incarnation: Incarnation,
        injections: Injections,
    ) -> Result<(), NodeError> {
        let what = format!("set_injections #{incarnation}");
        self.state().called(Point::SetInjections, what)?;
        self.gate(Point::SetInjections).await;
        let mut state = self.state();
        if state.network.is_none() {
            return Err(NodeError::Unsupported("networks".to_owned()));
        }
        state.networked(id, incarnation)?.injections = injections;
        Ok(())
    }
}

impl SimState {
    /// The VM of this incarnation, if it is up and has a network.
    fn networked(
        &mut self,
        id: WorkspaceId,
        incarnation: Incarnation,
    ) -> Result<&mut SimVm, NodeError> {
        let vm = self.vms.get_mut(&id).ok_or(NodeError::NoSuchVm)?;
        let is_up = match vm.report.phase {
            VmPhase::Running | VmPhase::Paused | VmPhase::Suspending => true,
            VmPhase::Starting | VmPhase::Suspended | VmPhase::Stopping | VmPhase::Stopped => false,
        };
        if !is_up || vm.report.incarnation != incarnation || !vm.is_networked {
            return Err(NodeError::NotRunning);
        }
        Ok(vm)
    }

    /// The workspace's address: the one it has, or the lowest that is free.
    pub(super) fn address_of(&mut self, id: WorkspaceId) -> Option<PrivateAddress> {
        self.network?;
        if let Some((address, _)) = self.addresses.iter().find(|(_, owner)| **owner == id) {
            return Some(*address);
        }
        let free = (FIRST_ADDRESS.to_bits()..)
            .map(|bits| PrivateAddress(Ipv4Addr::from_bits(bits)))
            .find(|address| !self.addresses.contains_key(address))?;
        self.addresses.insert(free, id);
        Some(free)
    }
}
