//! The steps that take what a VM needs from the host.

use skerry_model::spec::LogRetention;

use super::{BringUp, Whose, ground::Ground, shared::SnapshotMemory, source::Source};
use crate::{
    capacity::{MemoryPromise, disk_free_mib},
    disk::{Disk, DiskChain, Foundation},
    error::{Error, blocking},
    identity::GuestIdentity,
    layout::{make_private_dir, remove_file, remove_tree, sync_parent, write_durably},
    ledger::{Holdings, Ledger},
    logs::older,
    saved::Sealed,
    spec_file,
    vm::forget_memory,
};

impl BringUp<'_> {
    pub(super) async fn reserve(&mut self) -> Result<(), Error> {
        if self.ground.is_none() {
            let ground = self.look().await?;
            self.ground = Some(self.await_promotion(ground).await?);
            self.check_room()?;
        }
        if self.memory.is_none() {
            self.memory = Some(self.promise_memory().await?);
        }
        if self.source.is_none() {
            self.source = Some(self.choose_source()?);
            self.await_turn().await?;
            self.choose_again();
        }
        self.await_turn().await?;
        self.lease_uid()?;
        self.reserve_place()
    }

    pub(super) async fn look(&self) -> Result<Ground, Error> {
        let (host, paths) = (self.host.clone(), self.paths.clone());
        let (image, shape) = (self.spec.image_digest.clone(), self.spec.shape);
        let start_from = self.spec.start_from;
        let saved = self.ledger.as_ref().is_some_and(|ledger| ledger.state().memory_saved);
        blocking(move || Ground::look(&host, &paths, start_from, &image, &shape, saved)).await
    }

    fn check_room(&self) -> Result<(), Error> {
        let capabilities = self.host.vmm.capabilities();
        if self.spec.shape.vcpu_count.get() > capabilities.max_vcpu_count {
            return Err(Error::NoCapacity(format!(
                "at most {} virtual CPUs are possible here",
                capabilities.max_vcpu_count
            )));
        }
        let needed_mib = self.host.config.min_disk_free_mib;
        let free_mib = disk_free_mib(&self.host.layout.data_dir);
        if free_mib < needed_mib {
            return Err(Error::NoCapacity(format!(
                "{free_mib} MiB of disk are free, {needed_mib} MiB have to stay free"
            )));
        }
        Ok(())
    }

    /// What waits in the pool, or is being made ready for it, gives way to a workspace.
    async fn promise_memory(&self) -> Result<MemoryPromise, Error> {
        let memory_mib = self.spec.shape.memory_mib;
        match self.host.memory.promise(memory_mib) {
            Err(Error::NoCapacity(_)) if self.whose == Whose::Workspace => {
                self.host.pool.make_room(self.host, u64::from(memory_mib.get())).await;
                self.host.memory.promise(memory_mib)
            }
            other => other,
        }
    }

    fn lease_uid(&mut self) -> Result<(), Error> {
        if self.uid.is_none() && !self.source()?.brings_uid() {
            self.uid = self.host.uids.as_ref().ok().map(|pool| pool.lease()).transpose()?;
        }
        Ok(())
    }

    pub(super) async fn make_vm_directory(&mut self) -> Result<(), Error> {
        let (paths, environment) = (self.paths.clone(), self.host.environment.clone());
        let spec = match self.whose {
            // Kept for taking the VM over after a restart.
            Whose::Workspace => Some(self.spec_text()?),
            Whose::Nobody => None,
        };
        let make = move || {
            make_private_dir(&paths.dir)?;
            sync_parent(&paths.dir)?;
            if let Some(spec) = spec {
                write_durably(&paths.spec, &spec)?;
            }
            GuestIdentity::ensure(&paths, &environment)
        };
        self.identity = Some(blocking(make).await?);
        Ok(())
    }

    pub(super) fn spec_text(&self) -> Result<Vec<u8>, Error> {
        spec_file::text(self.spec, &*self.host.environment.seal)
    }

    pub(super) async fn write_intent(&mut self) -> Result<(), Error> {
        let ledger = match &self.ledger {
            Some(ledger) => ledger.clone(),
            None => {
                let path = self.paths.ledger.clone();
                blocking(move || Ledger::open(&path)).await?
            }
        };
        self.ledger = Some(ledger.clone());
        let holdings = Holdings {
            run_dir: Some(self.paths.run_dir.clone()),
            memory_file: Some(self.paths.memory_file.clone()),
            cgroups: self.host.cgroups.paths(self.spec.workspace_id),
            uid: self.uid.as_ref().map(|lease| lease.uid()),
            memory_mib: self.spec.shape.memory_mib,
            network: self.place_to_hold(),
        };
        ledger.begin(self.spec.incarnation, holdings).await?;
        match self.source()? {
            // The disk is about to be written to.
            Source::Boot => {
                forget_memory(self.host, self.paths, &ledger).await.map_err(|failed| failed.error)
            }
            Source::Template(_)
            | Source::Pool { .. }
            | Source::SavedMemory(_)
            | Source::SnapshotMemory(_)
            | Source::SnapshotDisk(_) => Ok(()),
        }
    }

    pub(super) async fn make_run_directory(&mut self) -> Result<(), Error> {
        let dir = self.paths.run_dir.clone();
        blocking(move || {
            remove_tree(&dir)?;
            make_private_dir(&dir)
        })
        .await
    }

    pub(super) async fn make_cgroup(&mut self) -> Result<(), Error> {
        let cgroups = self.host.cgroups.clone();
        let (id, shape, weight) = (self.spec.workspace_id, self.spec.shape, self.weight);
        self.cgroup_procs = blocking(move || cgroups.ensure(id, &shape, weight)).await?;
        Ok(())
    }

    pub(super) async fn make_disk(&mut self) -> Result<(), Error> {
        let disk = self.host.storage.disks.at(&self.paths.dir);
        let how = self.disk_to_make()?;
        let unread = match self.source()? {
            // Read in full before anything stands on it; where memory is restored too, all of it is
            // read beside that.
            Source::SnapshotDisk(snapshot) => Some(snapshot.clone()),
            Source::Boot
            | Source::SavedMemory(_)
            | Source::Template(_)
            | Source::SnapshotMemory(_)
            | Source::Pool { .. } => None,
        };
        let states = self.host.storage.states.clone();
        let made = blocking(move || {
            unread.iter().try_for_each(|snapshot| states.verify_disk(snapshot))?;
            how.make(&disk)
        });
        self.disk = Some(made.await?);
        Ok(())
    }

    fn disk_to_make(&self) -> Result<DiskToMake, Error> {
        let ground = self.ground()?;
        let wanted_bytes = ground.base_bytes.saturating_add(self.spec.shape.disk_mib.bytes());
        let own = || Foundation {
            image_digest: ground.image_digest.clone(),
            layers: Vec::new(),
            size_bytes: ground.base_bytes,
        };
        Ok(match self.source()? {
            Source::Boot => DiskToMake::Own { foundation: own(), wanted_bytes },
            // What the guest knows of its disk is in its memory: it is what it was.
            Source::SavedMemory(_) => DiskToMake::Own { foundation: own(), wanted_bytes: 0 },
            Source::Template(template) => {
                DiskToMake::Own { foundation: foundation_of(&template.sealed), wanted_bytes }
            }
            Source::SnapshotMemory(SnapshotMemory { snapshot, .. }) => {
                DiskToMake::Replacement { foundation: foundation_of(snapshot), wanted_bytes: 0 }
            }
            Source::SnapshotDisk(snapshot) => {
                DiskToMake::Replacement { foundation: foundation_of(snapshot), wanted_bytes }
            }
            Source::Pool { .. } => return Err(Error::StepMissing("claim")),
        })
    }

    pub(super) async fn check_memory_room(&mut self) -> Result<(), Error> {
        let file = self.paths.memory_file.clone();
        let needed_mib = u64::from(self.spec.shape.memory_mib.get());
        blocking(move || {
            remove_file(&file)?;
            // A guest that touches memory its file system cannot hold would be killed.
            let free_mib = file.parent().map_or(0, disk_free_mib);
            if free_mib < needed_mib {
                return Err(Error::NoCapacity(format!(
                    "{needed_mib} MiB of memory are needed, its file system has {free_mib} MiB"
                )));
            }
            Ok(())
        })
        .await
    }

    pub(super) async fn prepare_logs(&mut self) -> Result<(), Error> {
        let logs = [self.paths.console_log.clone(), self.paths.command_log.clone()];
        let retention = self.spec.log_retention;
        blocking(move || match retention {
            // Both are appended to, and kept below their limits.
            LogRetention::AcrossStarts => Ok(()),
            LogRetention::ThisStart => {
                logs.iter().try_for_each(|log| remove_file(log).and(remove_file(&older(log))))
            }
        })
        .await
    }

    pub(super) fn ground(&self) -> Result<&Ground, Error> {
        self.ground.as_ref().ok_or(Error::StepMissing("reserve"))
    }
}

/// How the disk comes about.
enum DiskToMake {
    /// What is there, made at least so large; made on `foundation` when there is none.
    Own { foundation: Foundation, wanted_bytes: u64 },
    /// A new one in place of what is there, which is kept until the start has succeeded.
    Replacement { foundation: Foundation, wanted_bytes: u64 },
}

impl DiskToMake {
    /// Blocks.
    fn make(&self, disk: &Disk) -> Result<DiskChain, Error> {
        match self {
            Self::Own { foundation, wanted_bytes } => disk.ensure(foundation, *wanted_bytes),
            Self::Replacement { foundation, wanted_bytes } => {
                disk.replace(foundation, *wanted_bytes)
            }
        }
    }
}

/// A disk on a saved one.
fn foundation_of(sealed: &Sealed) -> Foundation {
    Foundation {
        image_digest: sealed.manifest.image_digest.clone(),
        layers: sealed.manifest.layer_ids(),
        size_bytes: sealed.manifest.disk_size_bytes,
    }
}
