//! Connections of guests whose policy names a proxy: the rules of the guest's namespace lead them here,
//! and from here the proxy is asked for them. Nothing goes out any other way, whatever becomes of the
//! proxy or of this server.

use std::{io, net::SocketAddrV4, sync::Arc};

use skerry_internal_api::RefusedEgress;
use skerry_model::OutboundProxy;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    guards::{Guard, Guards},
    namespace::Namespace,
    outside,
    rules::{PROXIED_PORT, Terrain},
    tracked,
    uplink::Outer,
};
use crate::error::{blocking, chain};

/// What proxied connections are made with.
pub(super) struct Forwarder {
    pub guards: Arc<Guards>,
    pub terrain: Terrain,
    /// From where proxies are reached.
    pub hub: Arc<Outer>,
    /// Ends all of it.
    pub end: CancellationToken,
    /// Every connection.
    pub tasks: TaskTracker,
}

impl Forwarder {
    /// Serves until the end; connections end then, too.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        while let Some((stream, from, guard)) = self.guards.accepted(&listener, &self.end).await {
            let Ok(permit) = Arc::clone(&guard.proxied).try_acquire_owned() else {
                guard.refused(RefusedEgress::Connection(PROXIED_PORT), None);
                reset(&stream);
                continue;
            };
            let this = Arc::clone(&self);
            let end = self.end.clone();
            self.tasks.spawn(async move {
                tokio::select! {
                    () = end.cancelled() => {}
                    () = this.connection(stream, from, guard) => {}
                }
                drop(permit);
            });
        }
    }

    async fn connection(&self, mut client: TcpStream, from: SocketAddrV4, guard: Arc<Guard>) {
        let mut policy = guard.policy();
        let proxy = policy.borrow_and_update().proxy.clone();
        let to = match self.meant(&guard, from).await {
            Ok(to) => to,
            Err(error) => {
                tracing::debug!(%error, "a guest's connection to nowhere");
                return reset(&client);
            }
        };
        let Some(proxy) = proxy.filter(|_| *to.ip() != self.terrain.gateway) else {
            return reset(&client);
        };
        if !self.goes_on(&guard, &proxy, to).await {
            guard.refused(RefusedEgress::Connection(to.port()), None);
            return reset(&client);
        }
        let taken_back = async {
            // That the guard is gone is a change, too, after which there is none.
            while policy.changed().await.is_ok() && self.goes_on(&guard, &proxy, to).await {}
        };
        let carried = async {
            let mut server = match outside::dial(&self.hub, Some(&proxy), to).await {
                Ok(server) => server,
                Err(error) => {
                    guard.proxy_failed(&proxy, &error);
                    return Ended::Badly;
                }
            };
            match copy_bidirectional(&mut client, &mut server).await {
                Ok(_) => Ended::Well,
                Err(_) => Ended::Badly,
            }
        };
        let ended = tokio::select! {
            ended = carried => ended,
            () = taken_back => Ended::Badly,
        };
        match ended {
            Ended::Well => {}
            Ended::Badly => reset(&client),
        }
    }

    /// To where the guest meant to connect.
    async fn meant(&self, guard: &Arc<Guard>, from: SocketAddrV4) -> io::Result<SocketAddrV4> {
        let by = SocketAddrV4::new(self.terrain.gateway, PROXIED_PORT);
        let guard = Arc::clone(guard);
        let looked = move || Namespace::open(guard.namespace())?.enter(|| tracked::meant(by, from));
        blocking(looked).await.map_err(|error| io::Error::other(chain(&error)))
    }

    /// Whether the policy that is in force now has this connection made by this proxy.
    async fn goes_on(&self, guard: &Arc<Guard>, proxy: &OutboundProxy, to: SocketAddrV4) -> bool {
        let policy = Arc::clone(&guard.policy().borrow());
        if policy.proxy.as_ref() != Some(proxy) {
            return false;
        }
        let (guard, terrain) = (Arc::clone(guard), self.terrain.clone());
        // The guard may be busy telling the kernel something.
        let asked = blocking(move || Ok(guard.permits(&terrain, &policy, to)));
        asked.await.unwrap_or(false)
    }
}

/// How a connection ended, for the guest.
enum Ended {
    Well,
    Badly,
}

/// What the guest is told when there is no connection: it was reset (RFC 9293, 3.5.3).
fn reset(client: &TcpStream) {
    // One that is closed already needs none.
    let _ = client.set_zero_linger();
}
