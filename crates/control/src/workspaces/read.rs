//! Finding, listing and waiting for workspaces.

use std::{hash::Hash, time::Duration};

use skerry_model::{Desired, ErrorKind, Workspace, WorkspaceId};

use super::{ListWorkspaces, Page, Wait, WorkspaceRef};
use crate::{Caller, Control, Error, control::Inner, reconciler::Watchers};

impl Control {
    /// One workspace.
    ///
    /// # Errors
    /// `NotFound`, also for another account's and for one whose deletion is complete.
    pub async fn get_workspace(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<Workspace, Error> {
        self.inner.find(caller, which).await
    }

    /// The caller's workspaces.
    ///
    /// # Errors
    /// Only faults of the store.
    pub async fn list_workspaces(
        &self,
        caller: &Caller,
        filter: &ListWorkspaces,
    ) -> Result<Page<Workspace>, Error> {
        self.inner.store.list_workspaces(caller.account_id, filter).await
    }
}

impl Inner {
    /// The caller's workspace of this name; another account's is not found.
    pub(crate) async fn find(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<Workspace, Error> {
        let missing = || Error::not_found("workspace");
        let account = caller.account_id;
        match which {
            WorkspaceRef::Id(id) => {
                let found = self.store.workspace(*id).await?;
                found.filter(|found| found.account_id == account).ok_or_else(missing)
            }
            WorkspaceRef::Slug(slug) => {
                self.store.workspace_by_slug(account, slug).await?.ok_or_else(missing)
            }
            WorkspaceRef::SlugOrName(text) => {
                if let Some(found) = self.store.workspace_by_slug(account, text).await? {
                    return Ok(found);
                }
                let mut named = self.store.workspaces_by_name(account, text, 2).await?;
                match (named.pop(), named.pop()) {
                    (Some(only), None) => Ok(only),
                    (None, _) => Err(missing()),
                    (Some(_), Some(_)) => {
                        let shown: String = text.chars().take(64).collect();
                        let why = format!("more than one workspace is named {shown}; use the slug");
                        Err(ErrorKind::Conflict(why).into())
                    }
                }
            }
        }
    }

    /// Waits, as asked, until the workspace is settled; answers the record as it is then, and without
    /// a wait the record as it was written: what the work reached meanwhile depends on luck. A
    /// deletion ends the wait: there is nothing to settle any more.
    pub(crate) async fn until_settled(
        &self,
        workspace: Workspace,
        wait: Wait,
    ) -> Result<Workspace, Error> {
        let bound = match wait {
            Wait::No => return Ok(workspace),
            Wait::UpTo(bound) => bound,
        };
        let done = |record: &Workspace| record.is_settled() || record.desired == Desired::Deleted;
        let reached = self.wait_for(workspace.id, bound, done).await?;
        reached.ok_or_else(|| Error::not_found("workspace"))
    }

    /// Waits at most this long until the record is as wanted or gone (`None`); answers it as it is
    /// then.
    pub(crate) async fn wait_for(
        &self,
        id: WorkspaceId,
        bound: Duration,
        done: impl Fn(&Workspace) -> bool,
    ) -> Result<Option<Workspace>, Error> {
        self.wait_on(&self.watchers, id, bound, || self.store.workspace(id), done).await
    }

    /// Waits at most this long until what `read` answers is as wanted or gone (`None`), reading anew
    /// each time a change is announced; answers it as it is then.
    pub(crate) async fn wait_on<K: Copy + Eq + Hash, T, R>(
        &self,
        watchers: &Watchers<K>,
        id: K,
        bound: Duration,
        read: impl Fn() -> R,
        done: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, Error>
    where
        R: Future<Output = Result<Option<T>, Error>>,
    {
        let watcher = watchers.watch(id);
        let reached = async {
            loop {
                // Listening begins before the record is read, so no change falls between.
                let mut changed = std::pin::pin!(watcher.bell.notified());
                changed.as_mut().enable();
                let record = read().await?;
                if record.as_ref().is_none_or(&done) {
                    return Ok(record);
                }
                changed.await;
            }
        };
        // Control that ends answers what is so now instead of holding up its own end.
        tokio::select! {
            outcome = tokio::time::timeout(bound, reached) => match outcome {
                Ok(outcome) => outcome,
                Err(_) => read().await,
            },
            () = self.ending.cancelled() => read().await,
        }
    }
}
