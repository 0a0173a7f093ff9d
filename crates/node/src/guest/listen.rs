//! TCP ports of the guest that are listened on for somebody outside.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use skerry_agent_protocol::{REVISION, call as path, head, message};
use skerry_internal_api::{GuestListener, GuestStream, GuestVisitor, NodeError, User};

use super::{
    GuestLink, Shared,
    call::{ANSWER_BEGINS_WITHIN, bounded, full, head_of, send},
    connect::Permits,
    convert,
    failure::lost,
};

/// Since when the agent can listen.
const SINCE_REVISION: u16 = 5;
const _: () = assert!(SINCE_REVISION <= REVISION);

impl GuestLink {
    pub(super) async fn open_listener(
        &self,
        port: u16,
        user: User,
    ) -> Result<Box<dyn GuestListener>, NodeError> {
        let shared = &self.shared;
        let permits = shared.connection_permits().await?;
        let mut connected = shared.connected().await?;
        if connected.revision < SINCE_REVISION {
            let what = "listening on a port: the agent in the guest is older than this node";
            return Err(NodeError::Unsupported(String::from(what)));
        }
        let question = message::Listen { port, user: convert::user(user) };
        let begun = async {
            let body = full(head_of(&question)?);
            let answer = send(&mut connected.requests, path::LISTEN, body).await?;
            let mut said = Said { body: answer.into_body(), rest: BytesMut::new() };
            let message::Listening { port } = said.next().await?;
            Ok((said, port))
        };
        let (said, is_on) =
            bounded(&shared.hold, path::LISTEN, ANSWER_BEGINS_WITHIN, begun).await?;
        if is_on == 0 || (port != 0 && is_on != port) {
            return Err(lost("it listens on another port than it was asked to"));
        }
        Ok(Box::new(Listener {
            port: is_on,
            said,
            shared: Arc::clone(shared),
            connection: connected.number,
            _permits: permits,
        }))
    }
}

/// What the agent says of a port, part by part.
struct Said {
    body: Incoming,
    rest: BytesMut,
}

impl Said {
    /// A wait that is given up loses nothing.
    async fn next<T: DeserializeOwned>(&mut self) -> Result<T, NodeError> {
        loop {
            if let Some(json) = head::take(&mut self.rest).map_err(lost)? {
                return serde_json::from_slice(&json).map_err(|_| lost("its words make no sense"));
            }
            let frame = self.body.frame().await.ok_or_else(|| lost("it has stopped listening"))?;
            if let Ok(piece) = frame.map_err(lost)?.into_data() {
                self.rest.extend_from_slice(&piece);
            }
        }
    }
}

struct Listener {
    port: u16,
    said: Said,
    shared: Arc<Shared>,
    /// Which of the link's connections it belongs to.
    connection: u64,
    _permits: Permits,
}

impl Listener {
    async fn take(&self, incoming: message::Incoming) -> Result<GuestStream, NodeError> {
        let permits = self.shared.connection_permits().await?;
        let connected = self.shared.connected().await?;
        if connected.number != self.connection {
            return Err(lost("the line to it has broken"));
        }
        let question = message::Accept { connection: incoming.connection };
        self.shared.carry(connected, permits, path::ACCEPT, &question).await
    }
}

#[async_trait]
impl GuestListener for Listener {
    fn port(&self) -> u16 {
        self.port
    }

    async fn accept(&mut self) -> Result<GuestVisitor, NodeError> {
        loop {
            let incoming: message::Incoming = self.said.next().await?;
            match self.take(incoming).await {
                Ok(stream) => return Ok(GuestVisitor { stream, peer: incoming.peer }),
                Err(error @ NodeError::GuestUnreachable(_)) => return Err(error),
                // It has gone away meanwhile, or there are too many: the agent turns it away.
                Err(error) => tracing::debug!(%error, "a connection from the guest was lost"),
            }
        }
    }
}
