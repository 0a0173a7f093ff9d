//! Connections through the gateway: to ports of a workspace, and to the doors of workspaces.

use std::{net::SocketAddr, pin::Pin, sync::Arc};

use russh::{ChannelOpenFailure, server::ChannelOpenHandle};
use skerry_internal_api::GuestStream;
use tokio::io::{AsyncWriteExt as _, copy_bidirectional_with_sizes};
use tokio_util::sync::CancellationToken;

use super::{
    Gateway,
    channel::Fresh,
    connection::{Door, Entry},
    guard::Visit,
    stream::ChannelStream,
};

/// What is carried at a time, in bytes.
const PIECE: usize = 32 * 1024;

/// `SSH_OPEN_CONNECT_FAILED` (RFC 4254, section 5.1).
const CONNECT_FAILED: u32 = 2;

/// Where a connection is to lead.
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
}

/// Joins a channel with a port inside the workspace (`ssh -L`, `ssh -W`, `ssh -D`).
pub(super) async fn splice(
    gateway: Arc<Gateway>,
    entry: Entry,
    to: Target,
    fresh: Fresh,
    reply: ChannelOpenHandle,
) {
    let Fresh { output, input, closed, .. } = fresh;
    let _done = closed.clone().drop_guard();
    let connecting = connect(&gateway, &entry, &to);
    let connected = tokio::select! {
        connected = connecting => connected,
        () = closed.cancelled() => return,
    };
    let mut there = match connected {
        Ok(there) => there,
        Err(failure) => return reply.reject(failure).await,
    };
    reply.accept().await;
    let used = CancellationToken::new();
    let mut here = ChannelStream::new(input, &output, used.drop_guard());
    let copying = copy_bidirectional_with_sizes(&mut here, &mut there, PIECE, PIECE);
    let outcome = tokio::select! {
        outcome = copying => outcome,
        () = closed.cancelled() => return,
    };
    if outcome.is_ok() {
        let _ = here.flush().await;
    }
    // SSH has no reset: the end of the channel is all a client sees.
    let _ = output.close().await;
}

async fn connect(
    gateway: &Gateway,
    entry: &Entry,
    to: &Target,
) -> Result<GuestStream, ChannelOpenFailure> {
    // The client shows the reason beside its code.
    let shown = |reason: String| ChannelOpenFailure::Other { code: CONNECT_FAILED, reason };
    let guest = gateway.routes.enter(&entry.credential, entry.workspace).await;
    let guest = guest.map_err(|error| shown(error.to_string()))?;
    guest.connect(&to.host, to.port).await.map_err(|error| shown(error.to_string()))
}

/// Lets a client speak SSH with a workspace's door (`ssh -J`).
pub(super) fn jump(
    gateway: Arc<Gateway>,
    name: String,
    visit: Arc<Visit>,
    peer: SocketAddr,
    fresh: Fresh,
    reply: ChannelOpenHandle,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    // The conversation behind the door is of the same kind as the one it is reached through.
    Box::pin(async move {
        let Fresh { output, input, closed, .. } = fresh;
        let _done = closed.clone().drop_guard();
        reply.accept().await;
        let used = CancellationToken::new();
        let stream = ChannelStream::new(input, &output, used.drop_guard());
        let key = gateway.keys.workspace(&name);
        let conversing = gateway.converse(stream, key, Door::Workspace(name), visit, peer);
        tokio::select! {
            () = conversing => {}
            () = closed.cancelled() => return,
        }
        let _ = output.eof().await;
        let _ = output.close().await;
    })
}
