//! That every VM has the policy that follows from the store.
//!
//! A VM starts with a policy that permits nothing. It gets its own before its start is recorded as a
//! success, and a new one whenever something changes that it follows from: its own wish, or wish and
//! address of a neighbour. Whoever changes the store wakes a worker for each VM that may be concerned;
//! the worker derives the policy anew and tells the node, until that succeeds. What was told to the
//! node is remembered only in memory: after a restart every VM is told once more.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use skerry_internal_api::{Injections, NodeError, VmReport};
use skerry_model::{
    ErrorKind, Incarnation, NetworkPolicy, NetworkWish, Outbound, PrivateAddress, State, Workspace,
    WorkspaceId, network_wish::Way,
};
use tokio::sync::Notify;

use crate::{
    Error,
    control::Inner,
    reconciler::{Subject, Workers, backoff, may_pass, work},
    store::Write,
    vaults::permit,
};

/// How often the node is told the policy of a VM that comes up before the start counts as failed.
const ATTEMPTS: u32 = 3;

/// The workspace whose VM's policy a worker is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Policed(WorkspaceId);

impl fmt::Display for Policed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Subject for Policed {
    const WHAT: &'static str = "network policy";

    fn workers(inner: &Inner) -> &Workers<Self> {
        &inner.policy_workers
    }

    async fn drive(self, inner: &Arc<Inner>, _: &Arc<Notify>) -> Result<(), Error> {
        inner.apply_policy(self.0).await
    }
}

/// What the node was told last of each VM. Whoever tells it something holds the VM's place from
/// deriving the policy to the node's answer, so that what was told last is never the older one.
#[derive(Default)]
pub(crate) struct Policies {
    told: Mutex<HashMap<WorkspaceId, Slot>>,
}

type Slot = Arc<tokio::sync::Mutex<Option<Told>>>;

struct Told {
    incarnation: Incarnation,
    /// `None`: it did not say yet.
    policy: Option<NetworkPolicy>,
    injections: Injections,
}

impl Policies {
    fn slot(&self, id: WorkspaceId) -> Slot {
        Arc::clone(self.held().entry(id).or_default())
    }

    /// Whether the node was told anything of this VM by this process.
    pub(crate) fn knows(&self, id: WorkspaceId) -> bool {
        self.held().contains_key(&id)
    }

    fn forget(&self, id: WorkspaceId) {
        self.held().remove(&id);
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<WorkspaceId, Slot>> {
        // The guarded sections cannot panic halfway through a change.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a VM that came up is on the network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) incarnation: Incarnation,
    /// `None`: the node gives it no network.
    pub(crate) address: Option<PrivateAddress>,
}

impl Place {
    /// As the node says.
    pub(crate) fn of(report: &VmReport) -> Self {
        Self { incarnation: report.incarnation, address: report.private_address }
    }
}

impl Inner {
    /// Brings the policy of the workspace's VM, if it has one, to what follows from the store.
    pub(crate) async fn apply_policy(&self, id: WorkspaceId) -> Result<(), Error> {
        let slot = self.policies.slot(id);
        let mut told = slot.lock().await;
        let Some(workspace) = self.store.workspace(id).await? else {
            self.policies.forget(id);
            return Ok(());
        };
        // One without an address was not started yet, or is on a node without a network. One without a
        // VM gets its policy when it has one.
        let Some(address) = workspace.private_address.filter(|_| workspace.state.has_vm()) else {
            *told = None;
            return Ok(());
        };
        self.tell(&workspace, workspace.incarnation, address, &mut told).await
    }

    /// Gives a VM that came up the policy it should have, before that it came up is recorded. The
    /// address is written by whoever records that; [`Inner::settled_at`] comes after it.
    pub(crate) async fn join_network(&self, id: WorkspaceId, place: Place) -> Result<(), Error> {
        let Some(address) = place.address else { return Ok(()) };
        self.take_address(id, address).await?;
        let slot = self.policies.slot(id);
        for attempt in 1.. {
            let mut told = slot.lock().await;
            let Some(workspace) = self.store.workspace(id).await? else { return Ok(()) };
            let outcome = self.tell(&workspace, place.incarnation, address, &mut told).await;
            drop(told);
            match outcome {
                Err(error) if attempt < ATTEMPTS && is_passing(&error) => {
                    tracing::info!(workspace.id = %id, %error, attempt, "a network policy; once more");
                    tokio::time::sleep(backoff(attempt)).await;
                }
                outcome => return outcome,
            }
        }
        Ok(())
    }

    /// What follows once a start is recorded that may have changed the workspace's address.
    pub(crate) async fn settled_at(
        self: &Arc<Self>,
        before: Option<PrivateAddress>,
        written: &Workspace,
    ) -> Result<(), Error> {
        if before == written.private_address {
            return Ok(());
        }
        // Once more for itself, too: a change of its wish may have fallen between.
        self.wake_policy(written.id);
        self.wake_concerned(written, &[&written.spec.network]).await
    }

    /// Sees that a record has the address that the node says its VM has, if that is up. A node whose
    /// network was switched off gives nobody one.
    pub(crate) async fn compare_address(
        self: &Arc<Self>,
        workspace: &Workspace,
        reported: Option<Place>,
    ) -> Result<(), Error> {
        let is_settled = match workspace.state {
            State::Running { .. } | State::Paused { .. } => true,
            State::Provisioned
            | State::Starting
            | State::Suspending
            | State::Suspended
            | State::Stopping
            | State::Stopped
            | State::Failed(_)
            | State::Deleting => false,
        };
        let known = workspace.private_address;
        let address = match reported {
            Some(place) if is_settled => place.address,
            Some(_) | None if self.node.network().is_none() => None,
            Some(_) | None => known,
        };
        if address == known {
            return Ok(());
        }
        if let Some(address) = address {
            self.take_address(workspace.id, address).await?;
        }
        let learned = Workspace { private_address: address, ..workspace.clone() };
        // One that changed meanwhile is compared again.
        if let Write::Done(written) = self.write(&learned, None).await? {
            self.settled_at(known, &written).await?;
        }
        Ok(())
    }

    /// Takes a workspace that is being deleted out of its neighbours' policies: once this succeeds its
    /// address may be anybody's.
    pub(crate) async fn leave_network(&self, workspace: &Workspace) -> Result<(), Error> {
        for peer in self.concerned(workspace, &[&workspace.spec.network]).await? {
            self.apply_policy(peer).await?;
        }
        Ok(())
    }

    /// Forgets what the node was told of a workspace that is gone.
    pub(crate) fn forget_policy(&self, id: WorkspaceId) {
        self.policies.forget(id);
        self.issuers.forget(id);
    }

    /// Has a worker look at the policy of a workspace's VM.
    pub(crate) fn wake_policy(self: &Arc<Self>, id: WorkspaceId) {
        if self.ending.is_cancelled() {
            return;
        }
        if let Some(post) = self.policy_workers.wake(Policed(id)) {
            self.tasks.spawn(work(Arc::clone(self), Policed(id), post));
        }
    }

    /// Has the policies looked at that may depend on a workspace with one of these wishes.
    pub(crate) async fn wake_concerned(
        self: &Arc<Self>,
        workspace: &Workspace,
        wishes: &[&NetworkWish],
    ) -> Result<(), Error> {
        for peer in self.concerned(workspace, wishes).await? {
            self.wake_policy(peer);
        }
        Ok(())
    }

    async fn concerned(
        &self,
        workspace: &Workspace,
        wishes: &[&NetworkWish],
    ) -> Result<BTreeSet<WorkspaceId>, Error> {
        let Some(address) = workspace.private_address else { return Ok(BTreeSet::new()) };
        let account = workspace.account_id;
        let admits = wishes.iter().any(|wish| wish.admits_peers());
        if !admits && !self.store.admits_anybody(account).await? {
            return Ok(BTreeSet::new());
        }
        let neighbours = self.store.neighbourhood(account).await?;
        let concerned = wishes.iter().map(|wish| neighbours.concerned(workspace.id, address, wish));
        Ok(concerned.flatten().collect())
    }

    /// Tells the node the policy that follows for this VM, unless that is what it was told last.
    async fn tell(
        &self,
        workspace: &Workspace,
        incarnation: Incarnation,
        address: PrivateAddress,
        told: &mut Option<Told>,
    ) -> Result<(), Error> {
        let neighbours = if self.store.admits_anybody(workspace.account_id).await? {
            self.store.neighbourhood(workspace.account_id).await?
        } else {
            skerry_model::Neighbourhood::default()
        };
        let mut policy = neighbours.policy_of(workspace.id, address, &workspace.spec.network);
        if let Outbound::OfServer(name) = &workspace.spec.network.outbound {
            // Without it nothing of the world is reached, least of all directly.
            match self.config.outbound_proxies.get(name) {
                Some(known) => {
                    let of = NetworkPolicy::through(
                        Way::Through(&known.proxy),
                        &workspace.spec.network.egress,
                    );
                    (policy.egress, policy.proxy) = (of.egress, of.proxy);
                }
                None => tracing::warn!(
                    workspace.id = %workspace.id, proxy = %name,
                    "the server has this proxy no more: the workspace reaches nothing of the world"
                ),
            }
        }
        if self.node.network().is_some_and(|network| !network.has_uplink) {
            // It had one when this was asked for.
            policy.egress.clear();
            policy.proxy = None;
        }
        let has_uplink = self.node.network().is_some_and(|network| network.has_uplink);
        let lacks_proxy = match &workspace.spec.network.outbound {
            Outbound::OfServer(_) => policy.proxy.is_none(),
            Outbound::Direct | Outbound::Own(_) => false,
        };
        let injections = match has_uplink && !lacks_proxy {
            true => self.injections_of(workspace).await?,
            false => Injections::default(),
        };
        permit(&mut policy, &injections)?;
        let known = told.take().filter(|known| known.incarnation == incarnation);
        if known.as_ref().is_some_and(|known| {
            known.policy.as_ref() == Some(&policy) && known.injections == injections
        }) {
            *told = known;
            return Ok(());
        }
        let before = known.map(|known| known.injections).unwrap_or_default();
        let nothing = Injections::default();
        if before != nothing || injections != nothing {
            // Until it answers, nobody knows what it has. A host is opened when what its requests are
            // given is there, and never before.
            let may_have = if injections == nothing { before } else { injections.clone() };
            *told = Some(Told { incarnation, policy: None, injections: may_have });
            let call = self.node.set_injections(workspace.id, incarnation, injections.clone());
            match self.bounded("set_injections", call).await? {
                Ok(()) => {}
                Err(NodeError::NotRunning | NodeError::NoSuchVm) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        let call = self.node.set_network_policy(workspace.id, incarnation, policy.clone());
        match self.bounded("set_network_policy", call).await? {
            Ok(()) => {
                *told = Some(Told { incarnation, policy: Some(policy), injections });
                Ok(())
            }
            // It has no VM, or not this one: the next start begins with nothing and is told anew.
            Err(NodeError::NotRunning | NodeError::NoSuchVm) => Ok(()),
            Err(NodeError::Unsupported(_)) if self.node.network().is_none() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sees that no other record has this address: the node, which knows, gives each to one workspace
    /// at a time. Only a node that lost what it had can make this necessary.
    async fn take_address(&self, id: WorkspaceId, address: PrivateAddress) -> Result<(), Error> {
        let own = self.store.workspace(id).await?;
        if own.is_none_or(|own| own.private_address == Some(address)) {
            return Ok(());
        }
        for other in self.store.workspaces_at(address).await? {
            if other == id {
                continue;
            }
            loop {
                let Some(stale) = self.store.workspace(other).await? else { break };
                if stale.private_address != Some(address) {
                    break;
                }
                let without = Workspace { private_address: None, ..stale.clone() };
                if let Write::Done(_) = self.write(&without, None).await? {
                    tracing::warn!(workspace.id = %other, %address, "its address is another's now");
                    self.leave_network(&stale).await?;
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Whether telling the node once more may help.
fn is_passing(error: &Error) -> bool {
    let cause = std::error::Error::source(error);
    let of_node = cause.and_then(|cause| cause.downcast_ref::<NodeError>());
    of_node.map_or(matches!(error.kind(), ErrorKind::Timeout(_)), may_pass)
}
