//! Connections through the gateway: to ports of a workspace, and to the doors of workspaces.

use std::{
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
};

use futures::{FutureExt as _, future::FusedFuture as _};
use russh::{
    ChannelOpenFailure, ChannelWriteHalf,
    server::{ChannelOpenHandle, Msg},
};
use skerry_internal_api::GuestStream;
use tokio::io::{AsyncWriteExt as _, BufReader, copy_buf};
use tokio_util::sync::CancellationToken;

use super::{
    Gateway,
    channel::Fresh,
    connection::{Door, Entry},
    guard::Visit,
    intake::Input,
    stream::{self, ChannelStream},
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
    ended: CancellationToken,
) {
    let Fresh { output, input, closed, .. } = fresh;
    let _done = closed.clone().drop_guard();
    let connecting = connect(&gateway, &entry, &to);
    let connected = tokio::select! {
        connected = connecting => connected,
        () = closed.cancelled() => return,
    };
    let there = match connected {
        Ok(there) => there,
        Err(failure) => return reply.reject(failure).await,
    };
    reply.accept().await;
    join(input, &output, there, closed, ended).await;
}

/// Carries bytes between a channel and the guest until both have ended. When the client closes the
/// channel, what it had said before still arrives; when its connection `ended`, the guest's is reset.
pub(super) async fn join(
    mut input: Input,
    output: &ChannelWriteHalf<Msg>,
    there: GuestStream,
    closed: CancellationToken,
    ended: CancellationToken,
) {
    let _done = closed.clone().drop_guard();
    let (from_guest, mut to_guest) = tokio::io::split(there);
    let up = async {
        while let Some(bytes) = input.next().await {
            to_guest.write_all(&bytes).await?;
        }
        to_guest.shutdown().await
    };
    let down = async {
        let mut to_client = stream::writer(output);
        let mut from_guest = BufReader::with_capacity(PIECE, from_guest);
        copy_buf(&mut from_guest, &mut to_client).await?;
        to_client.shutdown().await
    };
    let mut up = pin!(up.fuse());
    let both = async { tokio::try_join!(up.as_mut(), down).map(drop) };
    let is_closed = tokio::select! {
        // Either direction may fail; then there is nothing left to carry.
        _ = both => false,
        () = closed.cancelled() => true,
    };
    if is_closed {
        if !up.is_terminated() {
            tokio::select! {
                _ = up => {}
                () = ended.cancelled() => {}
            }
        }
        return;
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
