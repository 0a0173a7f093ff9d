//! A VM of the pool becomes a workspace's: its directory is renamed into the workspace's place, with
//! the disk, the console's log and a ledger that already says whose it is. Before that rename it is
//! the pool's in every respect, after it the workspace's.
//!
//! Nothing is synced before the guest is let go: a server that dies leaves its files in the page
//! cache, and a host that goes down takes the VM along. The syncing goes on beside the guest's first
//! steps, and the start is not complete before it is done.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use skerry_vmm::VmmRecord;

use super::{BringUp, aside::Aside, source::Source};
use crate::{
    cgroups::CpuWeight,
    error::{Error, blocking},
    ledger::{Entry, Holdings, Ledger},
    pool::Waiting,
};

impl BringUp<'_> {
    pub(super) async fn claim(&mut self) -> Result<(), Error> {
        let Some(Source::Pool { waiting, .. }) = &mut self.source else {
            return Err(Error::StepMissing("reserve"));
        };
        let Some(waiting) = waiting.take() else { return Ok(()) };
        match self.take_over(&waiting).await {
            Ok(ledger) => {
                let Waiting { vm, link, uid, identity, memory, .. } = *waiting;
                // The whole memory was promised before it was claimed.
                drop(memory);
                self.ledger = Some(ledger);
                self.vm = Some(vm);
                self.link = link;
                self.uid = uid;
                self.identity = Some(identity);
                self.begin_syncing();
                Ok(())
            }
            Err(error) => {
                self.host.pool.discard(self.host, waiting.into_nobodys()).await;
                Err(error)
            }
        }
    }

    async fn take_over(&self, waiting: &Waiting) -> Result<Ledger, Error> {
        let state = waiting.ledger.state();
        let (Some(holdings), Some(record)) = (state.holdings, state.processes.last()) else {
            return Err(Error::StepMissing("park"));
        };
        let move_ = Move { from: waiting.paths.dir.clone(), to: self.paths.dir.clone() };
        let entries = vec![
            Entry::Begun {
                incarnation: self.spec.incarnation,
                holdings: Holdings { memory_mib: self.spec.shape.memory_mib, ..holdings },
            },
            Entry::Process { record: move_.record(record) },
        ];
        let (host, shape) = (self.host.clone(), self.spec.shape);
        let (number, spec, paths) = (waiting.number, self.spec_text()?, self.paths.clone());
        blocking(move || {
            host.cgroups.reweigh(number, &shape, CpuWeight::OfShape)?;
            write_unsynced(&move_.before(&paths.spec)?, &spec)?;
            let ledger = Ledger::replace(&move_.before(&paths.ledger)?, &paths.ledger, entries)?;
            host.config.faults.after_blocking("claim_intent")?;
            fs::rename(&move_.from, &move_.to).map_err(Error::path("claiming", &move_.from))?;
            host.storage.disks.moved(&move_.from, &move_.to);
            if let Some(network) = &host.network {
                network.moved(&move_.from, &move_.to);
            }
            Ok(ledger)
        })
        .await
    }

    fn begin_syncing(&mut self) {
        let (paths, pool_dir) = (self.paths.clone(), self.host.layout.pool_dir());
        let faults = self.host.config.faults.clone();
        self.before_ready = Some(Aside::begin(move || {
            for file in [&paths.spec, &paths.ledger, &paths.dir] {
                sync(file)?;
            }
            // Where it is now before where it is not any more.
            crate::layout::sync_parent(&paths.dir)?;
            sync(&pool_dir)?;
            faults.after_blocking("claim_synced")
        }));
    }
}

/// A directory that is about to be renamed.
struct Move {
    from: PathBuf,
    to: PathBuf,
}

impl Move {
    /// Where a file is now that will be at `path`.
    fn before(&self, path: &Path) -> Result<PathBuf, Error> {
        match path.strip_prefix(&self.to) {
            Ok(rest) => Ok(self.from.join(rest)),
            Err(_) => Err(Error::StepMissing("claim")),
        }
    }

    /// The process as it has to be found afterwards.
    fn record(&self, record: &VmmRecord) -> VmmRecord {
        let console_log = match record.console_log.strip_prefix(&self.from) {
            Ok(rest) => self.to.join(rest),
            Err(_) => record.console_log.clone(),
        };
        VmmRecord { console_log, ..record.clone() }
    }
}

/// A new file in a directory of ours, private.
fn write_unsynced(path: &Path, content: &[u8]) -> Result<(), Error> {
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(content)
    };
    write().map_err(Error::path("writing", path))
}

fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::path("syncing", path))
}
