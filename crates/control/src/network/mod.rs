//! What workspaces ask of the network: reading and changing it. That VMs get it is `policies`'.

mod policies;
mod refusals;

use std::{collections::BTreeSet, sync::Arc};

use skerry_internal_api::NodeNetwork;
use skerry_model::{
    ErrorKind, NetworkWish, Outbound, PrivateAddress, ProxyName, Refusal, Workspace, WorkspaceId,
    network_wish::MAX_LINKS,
};

use crate::{Caller, Control, Error, WorkspaceRef, control::Inner, workspaces::refused};

pub(crate) use policies::{Place, Policed, Policies};
pub use refusals::{NetworkRefusal, NetworkRefusals};
pub use skerry_internal_api::RefusedEgress;

/// Another workspace of the same account, as far as the network is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Which.
    pub id: WorkspaceId,
    /// Its name.
    pub name: String,
    /// Its slug.
    pub slug: String,
    /// Under which address it is seen, once it was started.
    pub address: Option<PrivateAddress>,
}

/// A workspace's network.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkView {
    /// The record, with the wish and the address.
    pub workspace: Workspace,
    /// Who is named as a caller and is there, in order of identifiers.
    pub callers: Vec<Peer>,
    /// Who admits it, in order of identifiers.
    pub links: Vec<Peer>,
    /// What the node has to give; `None`: workspaces have no network.
    pub node: Option<NodeNetwork>,
}

impl Control {
    /// What the node gives of the network; `None`: workspaces have none, and nothing can be asked of
    /// it.
    #[must_use]
    pub fn network(&self) -> Option<NodeNetwork> {
        self.inner.node.network()
    }

    /// The names of the server's own proxies, each with the address under which the world sees who goes
    /// through it, as far as that is known.
    pub fn server_proxies(&self) -> impl Iterator<Item = (&ProxyName, Option<std::net::Ipv4Addr>)> {
        let proxies = self.inner.config.outbound_proxies.iter();
        proxies.map(|(name, known)| (name, known.exit_address))
    }

    /// What a workspace gets that asks for nothing: all of the internet, as far as there is a way to
    /// it, and nobody comes in.
    #[must_use]
    pub fn default_network(&self) -> NetworkWish {
        self.inner.default_network()
    }

    /// A workspace's network.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn network_of(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<NetworkView, Error> {
        let workspace = self.inner.find(caller, which).await?;
        self.inner.network_view(workspace).await
    }

    /// Changes what a workspace asks of the network. The change is computed anew from the wish as it
    /// then is whenever somebody else changed the record first. A VM that runs has what follows from it
    /// when the call returns; so have those it concerns, or they get it as soon as they can be told. A
    /// proxy of its own that is new is asked for a connection first.
    ///
    /// # Errors
    /// `NotFound` (`workspace`, also for a caller it does not know), `Invalid` (`callers`,
    /// `caller_networks`, `open_ports`, `egress`, `proxy`, `network`), `RefusedByState` while it is deleted, what
    /// `change` answers, and `Unavailable` or `Timeout` when the node could not be told: it is recorded
    /// then, and goes on being tried.
    pub async fn change_network(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        change: impl Fn(&mut NetworkWish) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Result<NetworkView, Error> {
        let (inner, caller, which) = (Arc::clone(&self.inner), caller.clone(), which.clone());
        let changed = self
            .inner
            .to_the_end(async move { inner.record_network(&caller, &which, change).await });
        let workspace = changed.await?;
        self.inner.network_view(workspace).await
    }
}

impl Inner {
    pub(crate) fn default_network(&self) -> NetworkWish {
        let has_uplink = self.node.network().is_some_and(|network| network.has_uplink);
        let egress = if has_uplink {
            skerry_model::EgressWish::everything()
        } else {
            skerry_model::EgressWish::default()
        };
        NetworkWish { egress, ..NetworkWish::default() }
    }

    /// What a new workspace asks for.
    pub(crate) async fn wish_of_new(
        &self,
        caller: &Caller,
        asked: Option<NetworkWish>,
    ) -> Result<NetworkWish, Error> {
        let Some(wish) = asked else { return Ok(self.default_network()) };
        self.check_wish(&wish)?;
        self.check_callers(caller, None, &wish.callers).await?;
        self.try_proxy(None, &wish.outbound).await?;
        Ok(wish)
    }

    /// Whether this server can give what is asked for.
    fn check_wish(&self, wish: &NetworkWish) -> Result<(), Error> {
        wish.check()?;
        let Some(network) = self.node.network() else {
            if wish.asks_for_something() {
                let problem = "cannot be given: workspaces of this server have no network";
                return Err(Error::invalid("network", problem, "what asks for nothing"));
            }
            return Ok(());
        };
        if !network.has_uplink && wish.outbound != Outbound::Direct {
            let problem = "cannot be used: this server has no uplink";
            return Err(Error::invalid("proxy", problem, "none"));
        }
        if let Outbound::OfServer(name) = &wish.outbound
            && !self.config.outbound_proxies.contains_key(name)
        {
            let problem = format!("{name} is no proxy of this server");
            return Err(Error::invalid("proxy", problem, "the name of one that it has"));
        }
        if wish.egress.asks_for_something() && !network.has_uplink {
            let problem =
                "cannot be given: this server has no uplink, workspaces reach only each other";
            return Err(Error::invalid("egress", problem, "what asks for nothing"));
        }
        Ok(())
    }

    /// Whether these are workspaces of the caller's that may have one more link.
    async fn check_callers(
        &self,
        caller: &Caller,
        to: Option<WorkspaceId>,
        added: &BTreeSet<WorkspaceId>,
    ) -> Result<(), Error> {
        if added.is_empty() {
            return Ok(());
        }
        let neighbours = self.store.neighbourhood(caller.account_id).await?;
        for id in added {
            if Some(*id) == to {
                let problem = "names the workspace itself";
                return Err(Error::invalid("callers", problem, "other workspaces"));
            }
            let named = self.find(caller, &WorkspaceRef::Id(*id)).await?;
            let Some(address) = named.private_address else { continue };
            if neighbours.linked(*id, address).count() >= MAX_LINKS {
                let problem = format!("{} is linked to {MAX_LINKS} workspaces already", named.slug);
                let allowed = format!("workspaces with fewer than {MAX_LINKS} links");
                return Err(Error::invalid("callers", problem, allowed));
            }
        }
        Ok(())
    }

    /// Asks a tenant's own proxy for a connection, unless it is the one that is in use.
    async fn try_proxy(&self, before: Option<&Outbound>, now: &Outbound) -> Result<(), Error> {
        match now {
            Outbound::Own(proxy) if before != Some(now) => {
                let call = self.node.check_proxy(proxy.clone());
                Ok(self.bounded("check_proxy", call).await??)
            }
            Outbound::Own(_) | Outbound::Direct | Outbound::OfServer(_) => Ok(()),
        }
    }

    async fn record_network(
        self: &Arc<Self>,
        caller: &Caller,
        which: &WorkspaceRef,
        change: impl Fn(&mut NetworkWish) -> Result<(), Error> + Send + Sync,
    ) -> Result<Workspace, Error> {
        // Who is named is looked up before the record is changed: callers that the change adds to the
        // wish as it is now.
        let found = self.find(caller, which).await?;
        let mut wished = found.spec.network.clone();
        change(&mut wished)?;
        self.check_wish(&wished)?;
        let added = &wished.callers - &found.spec.network.callers;
        self.check_callers(caller, Some(found.id), &added).await?;
        self.try_proxy(Some(&found.spec.network.outbound), &wished.outbound).await?;
        let before = std::sync::Mutex::new(found.spec.network);
        let which = WorkspaceRef::Id(found.id);
        let written = self.change(caller, &which, |workspace, _| {
            if workspace.desired == skerry_model::Desired::Deleted {
                return Err(refused(Refusal::BeingDeleted));
            }
            let mut wish = workspace.spec.network.clone();
            change(&mut wish)?;
            self.check_wish(&wish)?;
            if !wish.callers.is_subset(&(&wished.callers | &workspace.spec.network.callers)) {
                let busy = "the workspace's network changes too quickly";
                return Err(ErrorKind::Unavailable(busy.to_owned()).into());
            }
            let old = std::mem::replace(&mut workspace.spec.network, wish);
            *before.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = old;
            Ok(None)
        });
        let written = written.await?;
        let before = before.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if before != written.spec.network {
            self.wake_concerned(&written, &[&before, &written.spec.network]).await?;
        }
        let applied = self.apply_policy(written.id).await;
        if applied.is_err() {
            self.wake_policy(written.id);
        }
        applied?;
        Ok(written)
    }

    async fn network_view(&self, workspace: Workspace) -> Result<NetworkView, Error> {
        let mut callers = Vec::new();
        for id in &workspace.spec.network.callers {
            callers.extend(self.peer(&workspace, *id).await?);
        }
        let mut links = Vec::new();
        if self.store.admits_anybody(workspace.account_id).await? {
            let neighbours = self.store.neighbourhood(workspace.account_id).await?;
            // Before its first start it has no address that a network could contain.
            let nowhere = PrivateAddress(std::net::Ipv4Addr::UNSPECIFIED);
            let address = workspace.private_address.unwrap_or(nowhere);
            for (id, _) in neighbours.linked(workspace.id, address).take(MAX_LINKS) {
                links.extend(self.peer(&workspace, id).await?);
            }
        }
        Ok(NetworkView { node: self.node.network(), workspace, callers, links })
    }

    async fn peer(&self, of: &Workspace, id: WorkspaceId) -> Result<Option<Peer>, Error> {
        let found = self.store.workspace(id).await?;
        Ok(found.filter(|found| found.account_id == of.account_id).map(|found| Peer {
            id,
            name: found.name.as_str().to_owned(),
            slug: found.slug.as_str().to_owned(),
            address: found.private_address,
        }))
    }
}
