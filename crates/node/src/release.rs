//! The clean slate: one function that releases everything a VM's ledger names. A failed bring-up, a
//! stop, a deletion and recovery after a crash all end here. Every undo may be repeated.

use std::{sync::Arc, time::Duration};

use skerry_vmm::{Vm, VmmError, VmmRecord};

use crate::{
    Error,
    cgroups::remove_group,
    disk::Disk,
    error::blocking,
    faults::Next,
    host::{Host, StepFailed},
    layout::{VmPaths, names_in, remove_dir, remove_file, remove_tree},
    ledger::{Entry, Ledger},
    network,
    volumes::Scratch,
};

/// Killing is a signal and a wait; a process that the kernel does not let go within this time is
/// stuck in an uninterruptible call.
const KILL_BOUND: Duration = Duration::from_secs(30);

/// What is left after a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remains {
    /// The disk and the logs.
    Disk,
    /// Nothing.
    Nothing,
}

/// Releases everything the last start holds; if a deletion has begun, or no disk was ever made,
/// everything else of the workspace too. `live` is the handle of a process we already have.
///
/// On an error the ledger still names what is left, and the call can be repeated.
pub(crate) async fn release_all(
    host: &Host,
    paths: &VmPaths,
    ledger: &Ledger,
    live: Option<&Arc<dyn Vm>>,
) -> Result<Remains, StepFailed> {
    let state = ledger.state();
    let faults = &host.config.faults;
    loop {
        for record in state.processes.iter().rev() {
            end_process(host, record, live).await.map_err(StepFailed::at("release_process"))?;
        }
        let passed = faults.after("release_process").await;
        match passed.map_err(StepFailed::at("release_process"))? {
            Next::Proceed => break,
            Next::Again => {}
        }
    }
    if let Some(holdings) = state.holdings {
        let memory_file = holdings.memory_file.clone();
        undo(host, "release_memory_file", move || {
            memory_file.as_deref().map_or(Ok(()), remove_file)
        })
        .await?;
        let cgroups = holdings.cgroups.clone();
        undo(host, "release_cgroup", move || {
            cgroups.iter().try_for_each(|group| remove_group(group))
        })
        .await?;
        let (network, place) = (host.network.clone(), holdings.network.clone());
        undo(host, "release_network", move || match (&network, &place) {
            (Some(network), Some(place)) => network.release(place),
            // It was switched off since; the next start of the server clears the rest away.
            (None, Some(place)) => network::release(place),
            (_, None) => Ok(()),
        })
        .await?;
        let (volumes, held, dir) =
            (Arc::clone(&host.volumes), state.volumes.clone(), paths.dir.clone());
        // A suspended guest goes on with what it has seen of them.
        let scratch = if state.memory_saved { Scratch::Keep } else { Scratch::Remove };
        undo(host, "release_volumes", move || {
            held.values().try_for_each(|mount| volumes.close(mount, &dir, scratch))
        })
        .await?;
        let run_dir = holdings.run_dir.clone();
        undo(host, "release_run_directory", move || run_dir.as_deref().map_or(Ok(()), remove_tree))
            .await?;
        let disk = host.storage.disks.at(&paths.dir);
        undo(host, "release_uid", move || match holdings.uid {
            // The next VM that gets this uid has no claim on the disk.
            Some(_) => disk.take_back(),
            None => Ok(()),
        })
        .await?;
        let disk = host.storage.disks.at(&paths.dir);
        undo(host, "release_replacement", move || {
            settle_replacement(&disk, state.ready_at.is_some())
        })
        .await?;
        loop {
            ledger.append(Entry::Released).await.map_err(StepFailed::at("released"))?;
            match faults.after("released").await.map_err(StepFailed::at("released"))? {
                Next::Proceed => break,
                Next::Again => {}
            }
        }
    }
    if state.deleting {
        let disk = host.storage.disks.at(&paths.dir);
        let (volumes, dir) = (Arc::clone(&host.volumes), paths.dir.clone());
        undo(host, "release_disk", move || {
            volumes.forget_scratch(&dir).and_then(|()| disk.remove())
        })
        .await?;
    } else if host.storage.disks.at(&paths.dir).exists() {
        return Ok(Remains::Disk);
    }
    remove_directory(host, paths).await?;
    Ok(Remains::Nothing)
}

/// Removes a VM's directory: the ledger after everything it could be needed for, so that a directory
/// without a ledger has nothing to release.
async fn remove_directory(host: &Host, paths: &VmPaths) -> Result<(), StepFailed> {
    let (dir, ledger) = (paths.dir.clone(), paths.ledger.clone());
    undo(host, "release_logs", move || {
        for name in names_in(&dir)? {
            let path = dir.join(name);
            if path == ledger {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                remove_tree(&path)?;
            } else {
                remove_file(&path)?;
            }
        }
        Ok(())
    })
    .await?;
    let ledger = paths.ledger.clone();
    undo(host, "release_ledger", move || remove_file(&ledger)).await?;
    let dir = paths.dir.clone();
    undo(host, "deleted", move || remove_dir(&dir)).await?;
    if let Some(network) = &host.network {
        network.forget(&paths.dir);
    }
    Ok(())
}

/// One undo, off the async threads, and the point after it where a failure may be planned.
async fn undo(
    host: &Host,
    step: &'static str,
    work: impl Fn() -> Result<(), Error> + Send + Sync + 'static,
) -> Result<(), StepFailed> {
    let work = Arc::new(work);
    loop {
        let once = Arc::clone(&work);
        blocking(move || once()).await.map_err(StepFailed::at(step))?;
        match host.config.faults.after(step).await.map_err(StepFailed::at(step))? {
            Next::Proceed => return Ok(()),
            Next::Again => {}
        }
    }
}

async fn end_process(
    host: &Host,
    record: &VmmRecord,
    live: Option<&Arc<dyn Vm>>,
) -> Result<(), Error> {
    let kill = async {
        // A second handle would compete with the first for the control socket.
        match live.filter(|vm| vm.record().is_same_process(record)) {
            Some(vm) => vm.kill().await,
            None => match host.vmm.adopt(record).await {
                Ok(vm) => vm.kill().await,
                Err(VmmError::Gone) => Ok(()),
                Err(error) => Err(error),
            },
        }
    };
    match tokio::time::timeout(KILL_BOUND, kill).await {
        Ok(result) => result.map_err(Error::Vmm),
        Err(_) => Err(Error::Timeout { bound_seconds: KILL_BOUND.as_secs() }),
    }
}

/// A start that was to replace the disk has succeeded or has not.
fn settle_replacement(disk: &Disk, has_succeeded: bool) -> Result<(), Error> {
    let settled = if has_succeeded { disk.keep_replacement() } else { disk.revert_replacement() };
    match settled {
        // A disk that cannot be understood must not keep the rest from being released.
        Err(Error::Disk { path, problem }) => {
            tracing::error!(disk = %path.display(), problem, "the disk is damaged");
            Ok(())
        }
        other => other,
    }
}
