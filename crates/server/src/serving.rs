//! A server at work: it listens until it is told to end, and then brings everything to its end in an
//! order in which nothing is lost.
//!
//! 1. No new connections; requests under way are answered, or cut off after [`DRAIN`].
//! 2. With [`OnShutdown::Stop`], every workspace is stopped. The reconciler does that, so it still runs.
//! 3. The reconciler ends: nobody asks the node for anything any more.
//! 4. The node ends: starts under way are undone, running VMs are let go of and run on.

use std::time::Duration;

use anyhow::{Context, Result};
use skerry_control::AllStopped;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    assemble::{Assembled, Ssh},
    config::{Config, OnShutdown},
    encrypted::Encrypted,
    listener::{self, Limits, Transport},
};

/// How long requests under way may take after the wish to end.
pub const DRAIN: Duration = Duration::from_secs(5);
/// How long stopping all workspaces may take (`--on-shutdown stop`) beyond their own grace.
const STOP_ALL_MARGIN: Duration = Duration::from_secs(10);
/// How long the background tasks may take to finish their step.
const SETTLE: Duration = Duration::from_secs(10);

/// Serves until `shutdown` is cancelled, then ends everything within bounds.
///
/// # Errors
/// The listener failed; everything else was brought to its end all the same.
pub async fn serve_until(
    listener: TcpListener,
    assembled: Assembled,
    config: &Config,
    shutdown: CancellationToken,
) -> Result<()> {
    let Assembled { control, node, router, previews, api, ssh, encrypted } = assembled;
    // The reconciler outlives the listener: stopping workspaces at the end is its work too.
    let background = CancellationToken::new();
    let reconciling = tokio::spawn({
        let (control, background) = (control.clone(), background.clone());
        async move { control.run(background).await }
    });
    let shelling = ssh.map(|Ssh { listener, keys }| {
        let routes = control.routes(skerry_api::ids::parse_ssh_user);
        tokio::spawn(skerry_gateway::ssh::serve(listener, routes, keys, shutdown.clone()))
    });
    let mut doors = vec![(listener, Transport::Clear)];
    let mut watching = None;
    if let Some(Encrypted { listener, acceptor, certificate }) = encrypted {
        doors.push((listener, Transport::Tls(acceptor)));
        watching = certificate.map(|files| tokio::spawn(files.watch(shutdown.clone())));
    }
    let listened = listen(doors, router, shutdown).await;
    if let Some(watching) = watching
        && let Err(error) = watching.await
    {
        tracing::error!(%error, "nobody watched the certificate's files any more");
    }
    if tokio::time::timeout(SETTLE, api.ended()).await.is_err() {
        tracing::error!("what calls had begun did not end within {SETTLE:?}");
    }
    if tokio::time::timeout(SETTLE, previews.ended()).await.is_err() {
        tracing::error!("visits of published ports did not end within {SETTLE:?}");
    }
    if let Some(shelling) = shelling
        && let Err(error) = shelling.await
    {
        tracing::error!(%error, "the SSH gateway broke");
    }
    if config.on_shutdown == OnShutdown::Stop {
        match control.stop_all(config.stop_grace + STOP_ALL_MARGIN).await {
            Ok(AllStopped { count, unfinished }) => {
                tracing::info!(count, "workspaces stopped");
                for id in unfinished {
                    tracing::error!(workspace.id = %id, "not stopped in time: left to the next start");
                }
            }
            Err(error) => tracing::error!(%error, "not every workspace could be stopped"),
        }
    }
    background.cancel();
    match tokio::time::timeout(SETTLE, reconciling).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the reconciler broke"),
        Err(_) => tracing::error!("the reconciler did not end within {SETTLE:?}"),
    }
    if tokio::time::timeout(SETTLE, node.shutdown()).await.is_err() {
        tracing::error!("the node did not end within {SETTLE:?}");
    }
    tracing::info!("ended");
    listened
}

/// Answers requests until `shutdown`, and those under way for at most [`DRAIN`] after it.
async fn listen(
    doors: Vec<(TcpListener, Transport)>,
    router: axum::Router,
    shutdown: CancellationToken,
) -> Result<()> {
    let limits = Limits::for_this_process(doors.len());
    let mut serving = JoinSet::new();
    for (listener, transport) in doors {
        serving.spawn(listener::serve(
            listener,
            transport,
            router.clone(),
            limits,
            shutdown.clone(),
        ));
    }
    drop(router);
    let drained = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    let mut drained = std::pin::pin!(drained);
    loop {
        tokio::select! {
            ended = serving.join_next() => match ended {
                Some(ended) => {
                    // One that broke takes the other along.
                    if ended.is_err() {
                        shutdown.cancel();
                    }
                    ended.context("a listener's task")?;
                }
                None => return Ok(()),
            },
            () = &mut drained => {
                tracing::warn!("requests still under way after {DRAIN:?} are cut off");
                serving.shutdown().await;
                return Ok(());
            }
        }
    }
}
