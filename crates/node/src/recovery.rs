//! What earlier lives of the server left: running VMs are taken over, everything half-made or dead is
//! rolled back to a disk or to nothing.

use std::{path::Path, sync::Arc};

use futures::{StreamExt, stream};
use skerry_internal_api::{VmExit, VmSpec};
use skerry_model::WorkspaceId;
use skerry_vmm::{Vm, VmmError, VmmRecord};

use crate::{
    cgroups::remove_group,
    error::{Error, blocking, chain},
    host::Host,
    identity::GuestIdentity,
    layout::{VmPaths, remove_file, remove_tree},
    ledger::{Entry, Holdings, Ledger, LedgerState},
    release::{Remains, release_all},
    vm::{
        CPUS_WITHIN,
        bring_up::Leases,
        owner::{Contact, Cpus, Found},
    },
};

/// VMs looked at at the same time: each may wait for an answer of its process.
const PARALLEL: usize = 8;
/// How long a process may take to be taken over.
const ADOPT_BOUND: std::time::Duration = std::time::Duration::from_secs(15);

/// One workspace as it was found.
pub(crate) struct Recovered {
    pub workspace_id: WorkspaceId,
    pub ledger: Option<Ledger>,
    pub found: Found,
}

/// Repairs everything below the data directory and returns what is there afterwards.
pub(crate) async fn recover(host: &Arc<Host>) -> Result<Vec<Recovered>, Error> {
    let (ids, strangers) = host.layout.scan()?;
    for name in strangers {
        tracing::warn!(name, "something in the directory of VMs is not a VM; left alone");
    }
    let mut recovered: Vec<Recovered> = stream::iter(ids)
        .map(|workspace_id| recover_one(host, workspace_id))
        .buffer_unordered(PARALLEL)
        .collect()
        .await;
    sweep(host, &recovered).await?;
    recovered.retain(|one| match one.found {
        Found::Nothing => false,
        Found::Disk | Found::Leftovers { .. } | Found::Running { .. } => true,
    });
    Ok(recovered)
}

async fn recover_one(host: &Arc<Host>, workspace_id: WorkspaceId) -> Recovered {
    let paths = host.layout.vm(workspace_id);
    let (ledger, outcome) = match open_ledger(&paths).await {
        Ok(Some(ledger)) => {
            let outcome = settle(host, &paths, &ledger).await;
            (Some(ledger), outcome)
        }
        Ok(None) => (None, settle_unnamed(&paths).await),
        Err(error) => (None, Err(error)),
    };
    let found = outcome.unwrap_or_else(|error| {
        let error = chain(&error);
        tracing::error!(workspace.id = %workspace_id, error, "a VM could not be recovered");
        let holdings = ledger.as_ref().and_then(|ledger| ledger.state().holdings);
        Found::Leftovers { leases: holdings.map(|holdings| reclaim(host, &holdings)) }
    });
    Recovered { workspace_id, ledger, found }
}

/// Books what an earlier start holds, whether it runs or could not be released: a process that may
/// still be there must not share its uid, nor its memory, with a new VM.
fn reclaim(host: &Host, holdings: &Holdings) -> Leases {
    // A uid the configuration no longer has is still this process's; it only cannot be given twice.
    let uid = holdings.uid.and_then(|uid| host.uids.as_ref().ok()?.claim(uid));
    Leases { uid, _memory: host.memory.acknowledge(holdings.memory_mib) }
}

async fn open_ledger(paths: &VmPaths) -> Result<Option<Ledger>, Error> {
    let path = paths.ledger.clone();
    blocking(move || path.exists().then(|| Ledger::open(&path)).transpose()).await
}

/// A directory without a ledger: its first start or the end of its deletion was cut short.
async fn settle_unnamed(paths: &VmPaths) -> Result<Found, Error> {
    if paths.disk.exists() {
        return Ok(Found::Disk);
    }
    let dir = paths.dir.clone();
    blocking(move || remove_tree(&dir)).await?;
    Ok(Found::Nothing)
}

async fn settle(host: &Arc<Host>, paths: &VmPaths, ledger: &Ledger) -> Result<Found, Error> {
    let state = ledger.state();
    if let Some((record, holdings)) = complete_start(&state) {
        match take_over(host, paths, ledger, record, holdings).await {
            Ok(running) => {
                tracing::info!(pid = record.pid, dir = %paths.dir.display(), "VM taken over");
                return Ok(running);
            }
            Err(Error::Vmm(VmmError::Gone)) => {
                let reason = "it ended while the node was not there to see it".to_owned();
                ledger.append(Entry::Exited { exit: VmExit::Crashed { reason } }).await?;
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(pid = record.pid, error, "VM not taken over: ended instead");
                let reason = "the node could not take it over after a restart".to_owned();
                ledger.append(Entry::Exited { exit: VmExit::Crashed { reason } }).await?;
            }
        }
    }
    match release_all(host, paths, ledger, None).await {
        Ok(Remains::Disk) => Ok(Found::Disk),
        Ok(Remains::Nothing) => Ok(Found::Nothing),
        Err(failed) => Err(failed.error),
    }
}

/// The process of a start that was complete and is not to be deleted.
fn complete_start(state: &LedgerState) -> Option<(&VmmRecord, &Holdings)> {
    if state.deleting || state.ready_at.is_none() || state.last_exit.is_some() {
        return None;
    }
    Some((state.processes.last()?, state.holdings.as_ref()?))
}

async fn take_over(
    host: &Arc<Host>,
    paths: &VmPaths,
    ledger: &Ledger,
    record: &VmmRecord,
    holdings: &Holdings,
) -> Result<Found, Error> {
    let adopt = tokio::time::timeout(ADOPT_BOUND, host.vmm.adopt(record));
    let vm: Arc<dyn Vm> =
        adopt.await.map_err(|_| Error::Timeout { bound_seconds: ADOPT_BOUND.as_secs() })??;
    let (files, environment) = (paths.clone(), host.environment.clone());
    let (spec, identity) = blocking(move || {
        Ok((read_spec(&files.spec)?, GuestIdentity::ensure(&files, &environment)?))
    })
    .await?;
    let cpus = settle_cpus(&*vm, ledger).await?;
    let leases = reclaim(host, holdings);
    let contact = Contact { spec: Box::new(spec), identity };
    Ok(Found::Running { vm, cpus, leases, contact })
}

/// A VM whose CPUs are to stand still stands still; one that was being paused when we died may run.
async fn settle_cpus(vm: &dyn Vm, ledger: &Ledger) -> Result<Cpus, Error> {
    if ledger.state().paused {
        vm.pause(CPUS_WITHIN).await?;
        return Ok(Cpus::Paused);
    }
    Ok(Cpus::Running)
}

fn read_spec(path: &Path) -> Result<VmSpec, Error> {
    let text = std::fs::read(path).map_err(Error::path("reading", path))?;
    serde_json::from_slice(&text).map_err(|error| Error::path("understanding", path)(error.into()))
}

/// Removes what carries our name and belongs to no VM that runs. The ledgers leave nothing of this
/// kind; it is for directories that somebody removed by hand.
async fn sweep(host: &Arc<Host>, recovered: &[Recovered]) -> Result<(), Error> {
    let in_use: Vec<WorkspaceId> = recovered
        .iter()
        .filter(|one| matches!(one.found, Found::Running { .. } | Found::Leftovers { .. }))
        .map(|one| one.workspace_id)
        .collect();
    let host = Arc::clone(host);
    blocking(move || {
        for group in host.cgroups.strays(|id, _| in_use.contains(&id)) {
            tracing::warn!(group = %group.display(), "stray cgroup removed");
            if let Err(error) = remove_group(&group) {
                tracing::error!(error = chain(&error), "stray cgroup not removed");
            }
        }
        for file in host.layout.stray_memory_files(|id| in_use.contains(&id)) {
            tracing::warn!(file = %file.display(), "stray memory file removed");
            remove_file(&file)?;
        }
        Ok(())
    })
    .await
}
