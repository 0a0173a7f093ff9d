//! Ports of a workspace that lead to the client (`ssh -R`).
//!
//! The guest's agent listens; each connection comes back as a channel that the gateway opens. As with an
//! sshd of default settings the port is on the guest's loopback alone, whichever address was asked for.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use russh::{ChannelId, Disconnect, server::Handle};
use skerry_internal_api::{GuestListener, GuestVisitor};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Gateway, connection::Entry, forward, intake::Input};

/// Ports of one connection.
const PORTS: usize = 8;
/// Connections through all of them at the same time; more wait in the guest.
const VISITORS: usize = 32;
/// How long a workspace may take to wake and listen. The connection's other channels stand still
/// meanwhile: requests of this kind are answered in their order, by `russh` within its loop.
const LISTENING_WITHIN: Duration = Duration::from_secs(90);

/// A port as the client calls it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Called {
    address: String,
    port: u32,
}

/// The ports of one connection.
pub(super) struct Remotes {
    open: HashMap<Called, CancellationToken>,
    room: Arc<Semaphore>,
    pub(super) confirmed: Arc<Confirmed>,
    /// Cancelled with the connection.
    ended: CancellationToken,
}

impl Remotes {
    pub(super) fn new(ended: CancellationToken) -> Self {
        let room = Arc::new(Semaphore::new(VISITORS));
        Self { open: HashMap::new(), room, confirmed: Arc::default(), ended }
    }

    /// Has the workspace listen on `port`, 0 for a free one; answers which it is, or nothing where that
    /// cannot be. The cause is in the log: SSH has no words for it.
    pub(super) async fn open(
        &mut self,
        gateway: &Arc<Gateway>,
        entry: &Entry,
        address: &str,
        port: u32,
        handle: Handle,
    ) -> Option<u16> {
        self.open.retain(|_, closed| !closed.is_cancelled());
        let asked = u16::try_from(port).ok()?;
        if !means_loopback(address) || self.open.len() >= PORTS {
            return None;
        }
        let listening = async {
            let guest = gateway.routes.enter(&entry.credential, entry.workspace).await;
            let guest = guest.map_err(|error| error.to_string())?;
            guest.listen(asked, entry.user.clone()).await.map_err(|error| error.to_string())
        };
        let outcome = tokio::select! {
            outcome = timeout(LISTENING_WITHIN, listening) => outcome,
            () = self.ended.cancelled() => return None,
        };
        let listener = match outcome {
            Ok(Ok(listener)) => listener,
            Ok(Err(error)) => {
                tracing::info!(workspace.id = %entry.workspace, asked, error, "no port for ssh -R");
                return None;
            }
            Err(_) => return None,
        };
        let port = listener.port();
        let called = Called { address: address.to_owned(), port: u32::from(port) };
        let closed = self.ended.child_token();
        self.open.insert(called.clone(), closed.clone());
        let remote = Remote {
            gateway: Arc::clone(gateway),
            entry: entry.clone(),
            called,
            handle,
            room: Arc::clone(&self.room),
            confirmed: Arc::clone(&self.confirmed),
            closed,
            ended: self.ended.clone(),
        };
        gateway.tasks.spawn(Arc::new(remote).serve(listener));
        Some(port)
    }

    /// Gives a port up; what was connected by it stays. False when there is none.
    pub(super) fn close(&mut self, address: &str, port: u32) -> bool {
        let called = Called { address: address.to_owned(), port };
        self.open.remove(&called).is_some_and(|closed| {
            let was_open = !closed.is_cancelled();
            closed.cancel();
            was_open
        })
    }
}

/// Loopback, and what stands for every address (RFC 4254, section 7.1), which is no more here.
fn means_loopback(address: &str) -> bool {
    matches!(address, "" | "*" | "localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback() || address.is_unspecified())
}

/// Channels that the client has agreed to, on their way from `russh`'s loop to whoever has opened them.
#[derive(Default)]
pub(super) struct Confirmed {
    waiting: Mutex<HashMap<ChannelId, (Input, CancellationToken)>>,
    news: Notify,
}

impl Confirmed {
    pub(super) fn put(&self, channel: ChannelId, input: Input, closed: CancellationToken) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(channel, (input, closed));
        self.news.notify_waiters();
    }

    async fn take(&self, channel: ChannelId) -> (Input, CancellationToken) {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            // From here on nothing is missed.
            news.as_mut().enable();
            if let Some(there) = self.remove(channel) {
                return there;
            }
            news.await;
        }
    }

    fn remove(&self, channel: ChannelId) -> Option<(Input, CancellationToken)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&channel)
    }
}

/// One port.
struct Remote {
    gateway: Arc<Gateway>,
    entry: Entry,
    called: Called,
    handle: Handle,
    room: Arc<Semaphore>,
    confirmed: Arc<Confirmed>,
    /// Cancelled when the port is given up,
    closed: CancellationToken,
    /// and when the connection ends.
    ended: CancellationToken,
}

impl Remote {
    async fn serve(self: Arc<Self>, mut listener: Box<dyn GuestListener>) {
        let _closed = self.closed.clone().drop_guard();
        let lost = tokio::select! {
            error = self.receive(&mut *listener) => error,
            () = self.closed.cancelled() => return,
        };
        // The client would wait for connections that cannot come, and never know.
        let why = format!("port {} of the workspace is lost: {lost}", self.called.port);
        let _ = self.handle.disconnect(Disconnect::ByApplication, why, String::new()).await;
    }

    /// Until the guest is lost, or the credential opens it no more.
    async fn receive(self: &Arc<Self>, listener: &mut dyn GuestListener) -> String {
        loop {
            // The semaphore is never closed.
            let Ok(room) = Arc::clone(&self.room).acquire_owned().await else {
                return "the gateway is ending".to_owned();
            };
            let visitor = match listener.accept().await {
                Ok(visitor) => visitor,
                Err(error) => return error.to_string(),
            };
            let entry = &self.entry;
            if let Err(error) = self.gateway.routes.enter(&entry.credential, entry.workspace).await
            {
                return error.to_string();
            }
            self.gateway.tasks.spawn(Arc::clone(self).carry(visitor, room));
        }
    }

    async fn carry(self: Arc<Self>, visitor: GuestVisitor, room: OwnedSemaphorePermit) {
        let GuestVisitor { stream, peer } = visitor;
        let Called { address, port } = &self.called;
        let from = peer.ip().to_string();
        // Waited for whatever else happens: russh ends a connection that refuses what nobody waits for.
        // It takes as long as the client does, or its connection lasts.
        let opened = self.handle.channel_open_forwarded_tcpip(
            address.as_str(),
            *port,
            from,
            u32::from(peer.port()),
        );
        let Ok(channel) = opened.await else { return };
        let id = channel.id();
        let (_, output) = channel.split();
        let (input, closed) = tokio::select! {
            there = self.confirmed.take(id) => there,
            () = self.ended.cancelled() => return,
        };
        forward::join(input, &output, stream, closed, self.ended.clone()).await;
        drop(room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_every_address_are_listened_on_and_are_loopback() {
        for address in ["", "*", "localhost", "127.0.0.1", "127.0.0.2", "::1", "0.0.0.0", "::"] {
            assert!(means_loopback(address), "{address}");
        }
        for address in ["10.0.0.1", "example.com", "::2", "local host"] {
            assert!(!means_loopback(address), "{address}");
        }
    }
}
