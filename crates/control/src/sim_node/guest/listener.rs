//! Ports of the simulated guest that are listened on for somebody outside.

use std::net::{Ipv4Addr, SocketAddr};

use async_trait::async_trait;
use skerry_internal_api::{GuestListener, GuestVisitor, NodeError, User};
use tokio::{io::DuplexStream, sync::mpsc};

use super::{SimGuest, refused, uid_of};

/// The first port that not only root may listen on.
const UNPRIVILEGED_PORT_MIN: u16 = 1024;
/// Where a port is looked for when any will do, as the kernel does.
const EPHEMERAL_PORT_MIN: u16 = 32768;

struct Listener {
    port: u16,
    visitors: mpsc::Receiver<DuplexStream>,
}

/// As the agent does it; a listener that is dropped refuses connections.
pub(super) fn open(
    guest: &SimGuest,
    port: u16,
    user: &User,
) -> Result<Box<dyn GuestListener>, NodeError> {
    let uid = uid_of(user)?;
    if (1..UNPRIVILEGED_PORT_MIN).contains(&port) && uid != 0 {
        let message = format!("port {port}: ports below {UNPRIVILEGED_PORT_MIN} are root's");
        return Err(refused("permission_denied", message));
    }
    let mut inner = guest.inner();
    let is_taken = |port: u16| {
        inner.services.get(&port).is_some_and(|service| !service.is_closed())
            || inner.ports.iter().any(|listening| listening.port == port)
    };
    let free = if port == 0 {
        (EPHEMERAL_PORT_MIN..=u16::MAX).find(|port| !is_taken(*port))
    } else {
        Some(port).filter(|port| !is_taken(*port))
    };
    let Some(port) = free else {
        let message = format!("port {port}: somebody in the guest listens on it");
        return Err(refused("busy", message));
    };
    let (service, visitors) = mpsc::channel(16);
    inner.services.insert(port, service);
    Ok(Box::new(Listener { port, visitors }))
}

#[async_trait]
impl GuestListener for Listener {
    fn port(&self) -> u16 {
        self.port
    }

    async fn accept(&mut self) -> Result<GuestVisitor, NodeError> {
        let gone = || NodeError::GuestUnreachable("the guest is gone".to_owned());
        let stream = self.visitors.recv().await.ok_or_else(gone)?;
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, EPHEMERAL_PORT_MIN));
        Ok(GuestVisitor { stream: Box::new(stream), peer })
    }
}
