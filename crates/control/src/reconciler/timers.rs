//! Timers: times to live, idle times, restarts, and saved memory that is kept for a while. The store is
//! the only memory: what is due is computed from it each time, so a restart neither forgets a timer
//! nor lets it ring twice.

use std::{sync::Arc, time::Duration};

use skerry_model::{Workspace, WorkspaceId};

use crate::{Error, control::Inner, store::Write};

/// How many workspaces with a timer that is due are handled at a time.
const BATCH: u32 = 200;
/// How long to wait when the store could not be asked.
const RETRY: Duration = Duration::from_secs(1);

impl Inner {
    /// Returns when a timer may be due. Never sleeps longer than the interval of the periodic
    /// comparison, so that a clock that was set is noticed.
    pub(super) async fn next_timer(&self) {
        loop {
            let changed = self.timers_changed.notified();
            let longest = self.config.reconcile_interval;
            let pause = match self.store.next_due().await {
                Ok(None) => {
                    changed.await;
                    continue;
                }
                Ok(Some(due)) => {
                    let left = due.duration_since(self.now());
                    let Ok(left) = Duration::try_from(left) else { return };
                    if left.is_zero() {
                        return;
                    }
                    left.min(longest)
                }
                Err(error) => {
                    tracing::warn!(%error, "timers could not be read; will try again");
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = changed => {}
            }
        }
    }

    pub(super) async fn ring_or_warn(self: &Arc<Self>) {
        if let Err(error) = self.ring_all().await {
            tracing::warn!(%error, "timers that are due could not be handled; will try again");
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn ring_all(self: &Arc<Self>) -> Result<(), Error> {
        let _ringing = self.ringing.lock().await;
        loop {
            let due = self.store.due_workspaces(self.now(), BATCH).await?;
            if due.is_empty() {
                return Ok(());
            }
            for id in due {
                self.ring(id).await?;
            }
        }
    }

    /// Lets one timer of a workspace ring and records what follows. The write that records it also
    /// ends the timer, so it rings once.
    async fn ring(self: &Arc<Self>, id: WorkspaceId) -> Result<(), Error> {
        loop {
            let Some(mut workspace) = self.store.workspace(id).await? else { return Ok(()) };
            let now = self.now();
            self.remember_activity(&mut workspace);
            let written = match workspace.ring(now) {
                Some(timer) => {
                    tracing::info!(workspace.id = %id, ?timer, desired = workspace.desired.as_str(),
                        "a timer rang");
                    self.write(&workspace, None).await?.map(drop)
                }
                // It was used meanwhile, or a change of its record made the timer stand still.
                None => self.write_activity(&workspace).await?,
            };
            match written {
                Write::Done(()) => {
                    self.wake(id);
                    return Ok(());
                }
                Write::Stale | Write::Taken => {}
            }
        }
    }

    /// Takes over a use that is not in the record yet.
    fn remember_activity(&self, workspace: &mut Workspace) {
        let last = self.activity.last(workspace.id, self.now());
        workspace.last_active_at = workspace.last_active_at.map(|at| last.unwrap_or(at).max(at));
    }
}
