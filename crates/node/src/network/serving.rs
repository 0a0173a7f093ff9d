//! What guests are served at the hub.

use std::{
    io,
    sync::{Arc, PoisonError},
    time::Duration,
};

use skerry_internal_api::{InjectedRequest, Injections};
use skerry_model::{PrivateAddress, WorkspaceId};
use tokio::{net::TcpListener, sync::broadcast};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Network, NetworkHolding, Service,
    forwarder::Forwarder,
    inspector::Inspector,
    interception::Interceptor,
    names::{Answers, Names},
    outside,
    upstream::Roots,
};
use crate::{Error, error::blocking};

impl Network {
    /// Changes what requests of a VM are given on their way out.
    pub fn inject(
        &self,
        owner: WorkspaceId,
        holding: &NetworkHolding,
        address: PrivateAddress,
        injections: Injections,
    ) {
        let guard = self.guards.of(address, &holding.namespace);
        guard.belongs_to(owner);
        guard.inject(injections);
    }

    /// Requests that were given something, from now on.
    pub fn injected_requests(&self) -> broadcast::Receiver<InjectedRequest> {
        self.injected.subscribe()
    }

    /// Serves guests names, and connections by name, until one of `ends` is cancelled. Without an
    /// uplink there is nothing to serve.
    ///
    /// # Errors
    /// When the sockets cannot be used.
    pub async fn serve(self: Arc<Self>, ends: [CancellationToken; 2]) -> Result<(), Error> {
        let service = self.service.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(Service { servers, doors }), Some(outer)) = (service, &self.outer) else {
            return Ok(());
        };
        if servers.is_empty() {
            tracing::warn!("the uplink has no name servers: guests resolve nothing");
        }
        let names = Arc::new(Names::new(Arc::clone(outer), &servers)?);
        let (guards, terrain) = (Arc::clone(&self.guards), self.terrain.clone());
        let answers = Answers { names: Arc::clone(&names), guards, terrain: terrain.clone() };
        let failed = Error::io("serving guests at the hub");
        let mut server = hickory_server::Server::new(answers);
        let more = self.trusted_certificates.clone();
        let roots = blocking(move || Roots::load(more.as_deref())).await?;
        let inspector = Arc::new(Inspector {
            names,
            guards: Arc::clone(&self.guards),
            hub: self.hub_to_dial()?,
            terrain: terrain.clone(),
            interceptor: Interceptor { roots, requests: self.injected.clone() },
            end: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let forwarder = Arc::new(Forwarder {
            guards: Arc::clone(&self.guards),
            terrain,
            hub: Arc::clone(&inspector.hub),
            end: inspector.end.clone(),
            tasks: inspector.tasks.clone(),
        });
        let listen = || -> io::Result<(TcpListener, Vec<(u16, TcpListener)>)> {
            server.register_socket(outside::from_std(doors.names_udp)?);
            let names_tcp = TcpListener::from_std(doors.names_tcp)?;
            server.register_listener(names_tcp, Duration::from_secs(10), 32);
            let inspected = doors.inspected.into_iter();
            let inspected = inspected.map(|(port, door)| Ok((port, TcpListener::from_std(door)?)));
            Ok((TcpListener::from_std(doors.proxied)?, inspected.collect::<io::Result<_>>()?))
        };
        let (proxied, inspected) = listen().map_err(failed)?;
        forwarder.tasks.spawn(Arc::clone(&forwarder).serve(proxied));
        for (port, listener) in inspected {
            inspector.tasks.spawn(Arc::clone(&inspector).serve(listener, port));
        }
        let [one, other] = ends;
        tokio::select! {
            () = one.cancelled() => {}
            () = other.cancelled() => {}
        }
        inspector.end.cancel();
        inspector.tasks.close();
        inspector.tasks.wait().await;
        // Answers under way are not waited for: who asked asks again.
        drop(server);
        Ok(())
    }
}
