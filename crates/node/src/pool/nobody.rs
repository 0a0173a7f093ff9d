//! VMs that are nobody's: those that wait in the pool, and those that templates are made of. Each has
//! a directory in the pool's with a ledger in it, and nothing of it outlives this life of the server.

use std::{path::PathBuf, sync::Arc};

use futures::{StreamExt, stream};
use skerry_model::WorkspaceId;
use skerry_vmm::Vm;

use crate::{
    capacity::MemoryPromise,
    error::{Error, blocking, chain},
    faults::Next,
    guest::GuestLink,
    host::{Host, StepFailed},
    layout::{VmPaths, remove_tree},
    ledger::{Entry, Ledger},
    recovery::reclaim,
    release::release_all,
    uids::UidLease,
    vm::bring_up::Leases,
};

/// Directories cleared at the same time.
const PARALLEL: usize = 8;

/// A VM that is nobody's, or as much of one as was acquired: everything that is needed to be rid of
/// it. The leases are given back when nothing is left.
pub(crate) struct Nobodys {
    pub paths: VmPaths,
    pub ledger: Option<Ledger>,
    pub vm: Option<Arc<dyn Vm>>,
    pub link: Option<Arc<GuestLink>>,
    pub uid: Option<UidLease>,
    pub memory: Option<MemoryPromise>,
}

impl Nobodys {
    /// Ends it and removes everything of it. What fails can be repeated.
    pub async fn release(&mut self, host: &Host) -> Result<(), StepFailed> {
        if let Some(link) = self.link.take() {
            link.close().await;
        }
        match &self.ledger {
            Some(ledger) => {
                condemn(host, ledger).await.map_err(StepFailed::at("slot_condemned"))?;
                release_all(host, &self.paths, ledger, self.vm.as_ref()).await?;
            }
            // Nothing is named yet; at most the directory is there.
            None => {
                let dir = self.paths.dir.clone();
                blocking(move || remove_tree(&dir))
                    .await
                    .map_err(StepFailed::at("slot_condemned"))?;
            }
        }
        self.ledger = None;
        self.vm = None;
        Ok(())
    }
}

async fn condemn(host: &Host, ledger: &Ledger) -> Result<(), Error> {
    while !ledger.state().deleting {
        ledger.append(Entry::Deleting).await?;
        match host.config.faults.after("slot_condemned").await? {
            Next::Proceed => break,
            Next::Again => {}
        }
    }
    Ok(())
}

/// Clears away what an earlier life of the server left in the pool's directory; returns what could
/// not be, for another try.
pub(crate) async fn sweep(host: &Host) -> Result<Vec<Nobodys>, Error> {
    let (numbers, strangers) = host.layout.scan_nobodys()?;
    for name in strangers {
        tracing::warn!(name, "something in the pool's directory is not a VM; left alone");
    }
    let swept = stream::iter(numbers).map(|number| sweep_one(host, number));
    let left: Vec<Option<Nobodys>> = swept.buffer_unordered(PARALLEL).collect().await;
    Ok(left.into_iter().flatten().collect())
}

async fn sweep_one(host: &Host, number: WorkspaceId) -> Option<Nobodys> {
    let paths = host.layout.nobodys(number);
    let ledger = match open_ledger(paths.ledger.clone()).await {
        Ok(ledger) => ledger,
        Err(error) => {
            tracing::error!(error = chain(&error), "a ledger of the pool cannot be read");
            return None;
        }
    };
    let holdings = ledger.as_ref().and_then(|ledger| ledger.state().holdings);
    let (uid, memory) = match &holdings {
        Some(holdings) => {
            let Leases { uid, memory } = reclaim(host, holdings);
            (uid, Some(memory))
        }
        None => (None, None),
    };
    let mut nobodys = Nobodys { paths, ledger, vm: None, link: None, uid, memory };
    match nobodys.release(host).await {
        Ok(()) => None,
        Err(failed) => {
            failed.report("clearing a VM of the pool away");
            Some(nobodys)
        }
    }
}

async fn open_ledger(path: PathBuf) -> Result<Option<Ledger>, Error> {
    blocking(move || path.exists().then(|| Ledger::open(&path)).transpose()).await
}
