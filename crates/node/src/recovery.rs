//! What earlier lives of the server left: running VMs are taken over, everything half-made or dead is
//! rolled back to a disk or to nothing.

use std::{path::Path, sync::Arc};

use futures::{StreamExt, stream};
use skerry_internal_api::VmExit;
use skerry_model::{Incarnation, MountMode, WorkspaceId};
use skerry_vmm::{Vm, VmmError, VmmRecord};

use crate::{
    cgroups::remove_group,
    error::{Error, blocking, chain},
    host::Host,
    identity::GuestIdentity,
    layout::{VmPaths, remove_file, remove_tree},
    ledger::{Entry, Holdings, Ledger, LedgerState, SavePurpose},
    network,
    release::{Remains, release_all},
    saved::{About, Sealed},
    spec_file,
    vm::{
        CPUS_WITHIN, Top,
        bring_up::Leases,
        cancel_save,
        owner::{Contact, Cpus, Found},
        settle_push,
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
    if let Err(error) = adopt_address(host, &paths).await {
        tracing::error!(workspace.id = %workspace_id, error = chain(&error), "its address is lost");
    }
    let (ledger, outcome) = match open_ledger(&paths).await {
        Ok(Some(ledger)) => {
            let outcome = settle(host, &paths, &ledger).await;
            (Some(ledger), outcome)
        }
        Ok(None) => (None, settle_unnamed(host, &paths).await),
        Err(error) => (None, Err(error)),
    };
    if let Some(state) = ledger.as_ref().map(Ledger::state)
        && state.memory_saved
    {
        state.asleep.iter().for_each(|id| host.volumes.sleeps(*id, &paths.dir));
    }
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
pub(crate) fn reclaim(host: &Host, holdings: &Holdings) -> Leases {
    if let (Some(network), Some(place)) = (&host.network, &holdings.network) {
        network.adopt(place);
    }
    // A uid the configuration no longer has is still this process's; it only cannot be given twice.
    let uid = holdings.uid.and_then(|uid| host.uids.as_ref().ok()?.claim(uid));
    Leases { uid, memory: host.memory.acknowledge(holdings.memory_mib) }
}

/// What it is called by others stays its own, also while it is stopped.
async fn adopt_address(host: &Arc<Host>, paths: &VmPaths) -> Result<(), Error> {
    let Some(network) = host.network.clone() else { return Ok(()) };
    let dir = paths.dir.clone();
    blocking(move || network.adopt_address(&dir).map(drop)).await
}

async fn open_ledger(paths: &VmPaths) -> Result<Option<Ledger>, Error> {
    let path = paths.ledger.clone();
    blocking(move || path.exists().then(|| Ledger::open(&path)).transpose()).await
}

/// A directory without a ledger: its first start or the end of its deletion was cut short.
async fn settle_unnamed(host: &Host, paths: &VmPaths) -> Result<Found, Error> {
    if host.storage.disks.at(&paths.dir).exists() {
        return Ok(Found::Disk);
    }
    let dir = paths.dir.clone();
    blocking(move || remove_tree(&dir)).await?;
    Ok(Found::Nothing)
}

async fn settle(host: &Arc<Host>, paths: &VmPaths, ledger: &Ledger) -> Result<Found, Error> {
    settle_saved_memory(host, paths, ledger).await?;
    let state = ledger.state();
    if let Some((record, holdings)) = complete_start(&state) {
        // It may have died between the start's success and this.
        let disk = host.storage.disks.at(&paths.dir);
        blocking(move || disk.keep_replacement()).await?;
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

/// Decides a suspension that was under way: memory that has its place is the truth and the process has
/// no future, else there is none and the VM goes on. Afterwards saved memory is there exactly if the
/// ledger says so.
async fn settle_saved_memory(
    host: &Arc<Host>,
    paths: &VmPaths,
    ledger: &Ledger,
) -> Result<(), Error> {
    let state = ledger.state();
    let (states, place, dir) =
        (host.storage.states.clone(), paths.suspended.clone(), paths.dir.clone());
    let complete = blocking(move || {
        states.sweep(&dir)?;
        if state.memory_saved {
            return Ok(false);
        }
        if state.saving == Some(SavePurpose::Suspension) {
            match states.open(&place) {
                Ok(Some(sealed)) if is_memory_of(&sealed, state.incarnation) => return Ok(true),
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(error = chain(&error), "half a suspension is given up");
                }
            }
        }
        states.delete(&place)?;
        Ok(false)
    });
    if complete.await? {
        ledger.append(Entry::MemorySaved).await?;
    }
    Ok(())
}

fn is_memory_of(sealed: &Sealed, start: Incarnation) -> bool {
    match sealed.manifest.about {
        About::SuspendedMemory { incarnation, workspace_id: _ } => incarnation == start,
        About::Template | About::Snapshot { .. } | About::PromotedMemory { .. } => false,
    }
}

/// The process of a start that was complete, is not suspended and is not to be deleted.
fn complete_start(state: &LedgerState) -> Option<(&VmmRecord, &Holdings)> {
    let over = state.deleting || state.memory_saved || state.last_exit.is_some();
    if over || state.ready_at.is_none() {
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
    let images = host.images.clone();
    let (spec, identity, defaults) = blocking(move || {
        let spec = spec_file::read(&files.spec, &*environment.seal)?;
        // An image that is damaged now does not end a VM that runs.
        let image = images.by_digest(&spec.image_digest).ok();
        let defaults = image.map(|image| image.defaults()).unwrap_or_default();
        Ok((spec, GuestIdentity::ensure(&files, &environment)?, defaults))
    })
    .await?;
    for mount in ledger.state().volumes.values() {
        host.volumes.found(mount, &paths.dir);
    }
    let cpus = settle_vm(host, paths, ledger, &*vm).await?;
    let leases = reclaim(host, holdings);
    let contact = Contact { spec: Box::new(spec), identity, defaults };
    Ok(Found::Running { vm, cpus, leases, contact })
}

/// Undoes what was being done to the VM when we died: it runs, or stands still if it is to.
async fn settle_vm(
    host: &Host,
    paths: &VmPaths,
    ledger: &Ledger,
    vm: &dyn Vm,
) -> Result<Cpus, Error> {
    let state = ledger.state();
    if state.saving.is_some() {
        cancel_save(vm).await?;
    }
    let disk = host.storage.disks.at(&paths.dir);
    let volumes = state.volumes.values().filter(|mount| mount.mode == MountMode::ReadWrite);
    let volumes =
        volumes.map(|mount| (Top::Volume(mount.slot), host.volumes.disk_of(mount.volume_id)));
    for (top, disk) in [(Top::Root, disk.clone())].into_iter().chain(volumes) {
        if let Err(error) = settle_push(vm, top, &disk).await {
            // Nobody depends on knowing it yet.
            tracing::error!(error = chain(&error), "on which file a guest writes is not known");
        }
    }
    // The start that replaced it is complete.
    blocking(move || disk.keep_replacement()).await?;
    let cpus = if state.paused {
        vm.pause(CPUS_WITHIN).await?;
        Cpus::Paused
    } else {
        if state.saving.is_some() {
            vm.resume(CPUS_WITHIN).await?;
        }
        Cpus::Running
    };
    if state.saving.is_some() {
        ledger.note(Entry::SaveEnded).await?;
    }
    Ok(cpus)
}

/// Removes what carries our name and belongs to no VM that runs. The ledgers leave nothing of this
/// kind; it is for directories that somebody removed by hand.
async fn sweep(host: &Arc<Host>, recovered: &[Recovered]) -> Result<(), Error> {
    let in_use: Vec<WorkspaceId> = recovered
        .iter()
        .filter(|one| matches!(one.found, Found::Running { .. } | Found::Leftovers { .. }))
        .map(|one| one.workspace_id)
        .collect();
    // A VM that was claimed from the pool has things that are not named after its workspace.
    let ledgers = recovered.iter().filter_map(|one| one.ledger.as_ref());
    let held: Vec<Holdings> = ledgers.filter_map(|ledger| ledger.state().holdings).collect();
    let all_known = recovered.iter().all(|one| match one.found {
        Found::Leftovers { .. } => one.ledger.is_some(),
        Found::Nothing | Found::Disk | Found::Running { .. } => true,
    });
    let host = Arc::clone(host);
    blocking(move || {
        let in_group = |id: WorkspaceId, group: &Path| {
            in_use.contains(&id)
                || held.iter().any(|one| one.cgroups.iter().any(|own| own == group))
        };
        // Where a ledger cannot be read, what it names is not known.
        for group in host.cgroups.strays(|id, group| !all_known || in_group(id, group)) {
            tracing::warn!(group = %group.display(), "stray cgroup removed");
            if let Err(error) = remove_group(&group) {
                tracing::error!(error = chain(&error), "stray cgroup not removed");
            }
        }
        for file in host.layout.stray_memory_files(|id| in_use.contains(&id)) {
            tracing::warn!(file = %file.display(), "stray memory file removed");
            remove_file(&file)?;
        }
        if all_known {
            match &host.network {
                Some(network) => network.sweep()?,
                None => {
                    let places = held.iter().filter_map(|one| one.network.clone());
                    let (tag, data_dir) = (&host.layout.tag, &host.layout.data_dir);
                    network::clear(tag, data_dir, &places.collect::<Vec<_>>())?;
                }
            }
        }
        let runs_in = |dir: &Path| held.iter().any(|one| one.run_dir.as_deref() == Some(dir));
        for dir in host.layout.stray_run_dirs(|dir| !all_known || runs_in(dir)) {
            tracing::warn!(dir = %dir.display(), "stray directory of sockets removed");
            remove_tree(&dir)?;
        }
        Ok(())
    })
    .await
}
