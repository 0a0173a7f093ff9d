//! What a VM may be asked, depending on what it does: running, standing still, saving, loading.

use std::{fs::File, io, path::Path, time::Duration};

use serde_json::json;
use skerry_model::VolumeSlot;
use tokio::time::timeout;

use super::{
    chain,
    command_line::{Beginning, Mapping, STATE_FD},
    control::{self, Migration, RunState},
    driver::{Driver, io_error},
    files, fingerprint, flatten,
    qmp::QmpClient,
    save::{self, Progress, Source},
    vm::{Cpus, Shared},
    volumes,
};
use crate::{
    DiskSpec, Exit, GuestMemory, SaveProgress, SavedMemory, VmmError, spec_check,
    state_file::{self, Label},
};

const WAITS_FOR_STATE: &str = "it waits for its saved state";
const GAVE_MEMORY_AWAY: &str = "its memory belongs to a saved state";
const IS_BEING_SAVED: &str = "its state is being saved";

impl Shared {
    /// After the control socket has answered a new process.
    pub(super) async fn prepare_for(&self, beginning: Beginning) -> Result<(), VmmError> {
        match beginning {
            Beginning::Boot => Ok(()),
            Beginning::Restore(mapping) => {
                self.cpus.send_replace(Cpus::Parked);
                let memory_is_elsewhere = match mapping {
                    Mapping::Own | Mapping::Anonymous => false,
                    Mapping::Private | Mapping::PrivateReadOnly => true,
                };
                control::set_capabilities(self.qmp()?, memory_is_elsewhere).await
            }
        }
    }

    /// After the control socket has answered a process of an earlier life.
    pub(super) async fn learn_its_state(&self, within: Duration) -> Result<(), VmmError> {
        let qmp = self.qmp()?;
        let cpus = match control::run_state(qmp, within).await? {
            RunState::Parked => Cpus::Parked,
            RunState::Running => Cpus::Running,
            RunState::Stopped => Cpus::Stopped,
            // Private memory is saved nowhere else than in a state.
            RunState::Saved => match self.record.memory {
                GuestMemory::Own
                    if control::leaves_out_shared_memory(qmp).await?
                        && control::migration(qmp).await? == Migration::Completed =>
                {
                    Cpus::GivenAway
                }
                GuestMemory::Own | GuestMemory::Private => Cpus::Stopped,
            },
        };
        self.cpus.send_replace(cpus);
        Ok(())
    }

    pub(super) async fn pause(&self, within: Duration) -> Result<(), VmmError> {
        self.must_live()?;
        match *self.cpus.borrow() {
            Cpus::Parked => return Err(refused("stop", WAITS_FOR_STATE)),
            Cpus::Running | Cpus::Stopped => {}
            Cpus::GivenAway => return Ok(()),
        }
        let stopped = self.qmp()?.execute("stop", None, within).await;
        self.or_gone(stopped).await?;
        self.cpus.send_replace(Cpus::Stopped);
        Ok(())
    }

    pub(super) async fn resume(&self, within: Duration) -> Result<(), VmmError> {
        self.must_live()?;
        match *self.cpus.borrow() {
            Cpus::Parked => return Err(refused("cont", WAITS_FOR_STATE)),
            Cpus::GivenAway => return Err(refused("cont", GAVE_MEMORY_AWAY)),
            Cpus::Running | Cpus::Stopped => {}
        }
        if self.save.lock().await.as_ref().is_some_and(save::Save::needs_the_vm_stopped) {
            return Err(refused("cont", IS_BEING_SAVED));
        }
        let running = control::let_run(self.qmp()?, within).await;
        self.or_gone(running).await?;
        self.cpus.send_replace(Cpus::Running);
        Ok(())
    }

    pub(super) async fn load(&self, within: Duration) -> Result<(), VmmError> {
        self.must_live()?;
        match *self.cpus.borrow() {
            Cpus::Parked => {}
            Cpus::Running | Cpus::Stopped | Cpus::GivenAway => {
                return Err(refused("migrate-incoming", "it waits for no state"));
            }
        }
        let loaded = timeout(within, self.load_state(self.qmp()?)).await;
        match loaded.map_err(|_| VmmError::Timeout("loading the saved state"))? {
            Ok(()) => {
                self.cpus.send_replace(Cpus::Stopped);
                Ok(())
            }
            Err(error) => Err(self.why_not_loaded(error).await),
        }
    }

    async fn load_state(&self, qmp: &QmpClient) -> Result<(), VmmError> {
        control::run(qmp, "migrate-incoming", json!({ "uri": format!("fd:{STATE_FD}") })).await?;
        control::wait_until(qmp, || async {
            if let Migration::Failed(reason) = control::migration(qmp).await? {
                return Err(VmmError::InvalidState(reason));
            }
            Ok(match control::run_state(qmp, control::ANSWER_DEADLINE).await? {
                RunState::Parked => None,
                RunState::Running | RunState::Stopped | RunState::Saved => Some(()),
            })
        })
        .await
    }

    /// QEMU ends when it does not like a state, and says why on its standard error.
    async fn why_not_loaded(&self, error: VmmError) -> VmmError {
        match self.gone_or(error).await {
            VmmError::Gone => match self.wait_exit().await {
                Exit::Crashed(reason) => VmmError::InvalidState(reason),
                Exit::PoweredOff | Exit::Rebooted | Exit::Killed | Exit::Unknown => VmmError::Gone,
            },
            error => error,
        }
    }

    pub(super) async fn begin_save(
        &self,
        driver: &Driver,
        mut file: File,
        memory: SavedMemory,
    ) -> Result<(), VmmError> {
        self.must_live()?;
        let refused = |reason| Err(refused("migrate", reason));
        let mut save = self.save.lock().await;
        if save.as_ref().is_some_and(|save| !save.is_over()) {
            return refused(IS_BEING_SAVED);
        }
        if self.record.fingerprint.is_empty() {
            return refused("it was started by a version that saved no states");
        }
        let runs = match (*self.cpus.borrow(), memory, self.record.memory) {
            (Cpus::Parked, ..) => return refused(WAITS_FOR_STATE),
            (Cpus::GivenAway, ..) => return refused(GAVE_MEMORY_AWAY),
            (Cpus::Running, SavedMemory::InMemoryFile, _) => return refused("it runs"),
            (Cpus::Stopped, SavedMemory::InMemoryFile, GuestMemory::Private) => {
                return refused("its memory is in no file of its own");
            }
            (Cpus::Stopped, SavedMemory::InMemoryFile, GuestMemory::Own)
            | (Cpus::Stopped, SavedMemory::InState, _) => false,
            (Cpus::Running, SavedMemory::InState, _) => true,
        };

        let qmp = self.qmp()?;
        let begun = async {
            // A disk whose files are being copied cannot be let go of at the end of a save.
            flatten::stop_all(qmp).await?;
            let label = Label {
                fingerprint: self.record.fingerprint.clone(),
                memory,
                tsc_khz: fingerprint::clock_of(driver.accelerator, driver.tsc_khz),
            };
            state_file::begin(&mut file, &label)
                .map_err(|source| io_error("write the saved state", source))?;
            let memory_bytes = u64::from(self.record.memory_mib) << 20;
            save::begin(Source { qmp: qmp.clone(), memory_bytes, runs }, file, memory).await
        }
        .await;
        let (begun, saving) = self.or_gone(begun).await?;
        driver.own(saving);
        *save = Some(begun);
        Ok(())
    }

    pub(super) async fn wait_save(
        &self,
        progress: SaveProgress,
        within: Duration,
    ) -> Result<(), VmmError> {
        let waited = async {
            let outcome = match progress {
                SaveProgress::Converged => self.wait_converged().await,
                SaveProgress::Captured => self.wait_past_the_vm(Progress::is_past_the_vm).await,
                SaveProgress::Complete => self.wait_past_the_vm(Progress::is_over).await,
            };
            self.or_gone(outcome).await
        };
        tokio::select! {
            biased;
            outcome = timeout(within, waited) => {
                outcome.map_err(|_| VmmError::Timeout("saving the state"))?
            }
            _ = self.wait_exit() => Err(VmmError::Gone),
        }
    }

    async fn wait_converged(&self) -> Result<(), VmmError> {
        self.must_live()?;
        let mut progress = match &*self.save.lock().await {
            Some(save) => save.progress.clone(),
            None => return Err(nothing_is_saved()),
        };
        outcome(progress.wait_for(|progress| *progress != Progress::Copying).await.as_deref())
    }

    async fn wait_past_the_vm(&self, is_reached: fn(&Progress) -> bool) -> Result<(), VmmError> {
        self.must_live()?;
        let (mut progress, memory) = match &*self.save.lock().await {
            Some(save) => (save.progress.clone(), save.memory),
            None => return Err(nothing_is_saved()),
        };
        let mut cpus = self.cpus.subscribe();
        {
            let past = async { drop(progress.wait_for(Progress::is_past_the_vm).await) };
            let stopped = async { drop(cpus.wait_for(|cpus| *cpus != Cpus::Running).await) };
            tokio::select! {
                biased;
                () = past => {}
                () = stopped => {}
            }
        }
        if let Some(save) = &*self.save.lock().await {
            save.finish();
        }
        outcome(progress.wait_for(is_reached).await.as_deref())?;
        match memory {
            SavedMemory::InMemoryFile => {
                self.cpus.send_replace(Cpus::GivenAway);
            }
            SavedMemory::InState => {}
        }
        Ok(())
    }

    pub(super) async fn cancel_save(&self, within: Duration) -> Result<(), VmmError> {
        self.must_live()?;
        let given_up = async {
            let progress = {
                let save = self.save.lock().await;
                let under_way = save.as_ref().filter(|save| !save.is_over());
                under_way.map(|save| {
                    save.give_up();
                    save.progress.clone()
                })
            };
            match progress {
                Some(mut progress) => {
                    // An error means that the task is gone, and with it the save.
                    let _ = progress.wait_for(Progress::is_over).await;
                    Ok(())
                }
                None => self.cancel_foreign_save(self.qmp()?).await,
            }
        };
        let outcome =
            timeout(within, given_up).await.map_err(|_| VmmError::Timeout("giving up a save"))?;
        self.or_gone(outcome).await
    }

    /// One of an earlier life: its pipe is broken, so it is failing anyway.
    async fn cancel_foreign_save(&self, qmp: &QmpClient) -> Result<(), VmmError> {
        if *self.cpus.borrow() == Cpus::Parked || control::migration(qmp).await?.is_over() {
            return Ok(());
        }
        control::run(qmp, "migrate_cancel", json!({})).await?;
        control::wait_until(qmp, || async {
            Ok(control::migration(qmp).await?.is_over().then_some(()))
        })
        .await
    }

    pub(super) async fn push_overlay(
        &self,
        overlay: &Path,
        within: Duration,
    ) -> Result<(), VmmError> {
        spec_check::check_overlay(overlay)?;
        self.may_change_its_disk("blockdev-snapshot").await?;
        let file = files::give_overlay(overlay, self.uid()?)?;
        let pushed = timeout(within, chain::push_overlay(self.qmp()?, file)).await;
        self.or_gone(pushed.map_err(|_| VmmError::Timeout("blockdev-snapshot"))?).await
    }

    pub(super) async fn flatten_disk(&self, within: Duration) -> Result<(), VmmError> {
        self.may_change_its_disk("block-stream").await?;
        if self.save.lock().await.as_ref().is_some_and(|save| !save.is_over()) {
            return Err(refused("block-stream", IS_BEING_SAVED));
        }
        let flattened = timeout(within, chain::flatten(self.qmp()?)).await;
        self.or_gone(flattened.map_err(|_| VmmError::Timeout("block-stream"))?).await
    }

    pub(super) async fn grow_disk(
        &self,
        size_bytes: u64,
        most_file_bytes: u64,
        within: Duration,
    ) -> Result<(), VmmError> {
        spec_check::check_disk_size(size_bytes)?;
        self.may_change_its_disk("block_resize").await?;
        self.raise_file_size_limit(most_file_bytes)?;
        let grown = chain::grow(self.qmp()?, size_bytes, within).await;
        self.or_gone(grown).await
    }

    pub(super) async fn grow_volume(
        &self,
        slot: VolumeSlot,
        size_bytes: u64,
        most_file_bytes: u64,
        within: Duration,
    ) -> Result<(), VmmError> {
        spec_check::check_disk_size(size_bytes)?;
        self.may_change_its_disk("block_resize").await?;
        self.raise_file_size_limit(most_file_bytes)?;
        let grown = timeout(within, volumes::grow(self.qmp()?, slot, size_bytes)).await;
        self.or_gone(grown.map_err(|_| VmmError::Timeout("block_resize"))?).await
    }

    fn raise_file_size_limit(&self, most_file_bytes: u64) -> Result<(), VmmError> {
        self.process.raise_file_size_limit(most_file_bytes).map_err(|source| VmmError::Io {
            context: "raise the VMM's limit of a file's size".into(),
            source,
        })
    }

    pub(super) async fn attach_volume(
        &self,
        slot: VolumeSlot,
        disk: &DiskSpec,
        most_file_bytes: u64,
        within: Duration,
    ) -> Result<(), VmmError> {
        spec_check::check_disk(disk)?;
        self.may_change_its_disk("blockdev-add").await?;
        let files = files::open_volume(disk, self.uid()?)?;
        self.raise_file_size_limit(most_file_bytes)?;
        let attached = timeout(within, volumes::attach(self.qmp()?, slot, files)).await;
        self.or_gone(attached.map_err(|_| VmmError::Timeout("blockdev-reopen"))?).await
    }

    pub(super) async fn push_volume_overlay(
        &self,
        slot: VolumeSlot,
        overlay: &Path,
        within: Duration,
    ) -> Result<(), VmmError> {
        spec_check::check_overlay(overlay)?;
        self.may_change_its_disk("blockdev-snapshot").await?;
        let file = files::give_overlay(overlay, self.uid()?)?;
        let pushed = timeout(within, volumes::push(self.qmp()?, slot, file)).await;
        self.or_gone(pushed.map_err(|_| VmmError::Timeout("blockdev-snapshot"))?).await
    }

    pub(super) async fn flatten_volume(
        &self,
        slot: VolumeSlot,
        within: Duration,
    ) -> Result<(), VmmError> {
        self.may_change_its_disk("block-stream").await?;
        if self.save.lock().await.as_ref().is_some_and(|save| !save.is_over()) {
            return Err(refused("block-stream", IS_BEING_SAVED));
        }
        let flattened = timeout(within, volumes::flatten(self.qmp()?, slot)).await;
        self.or_gone(flattened.map_err(|_| VmmError::Timeout("block-stream"))?).await
    }

    pub(super) async fn detach_volume(
        &self,
        slot: VolumeSlot,
        within: Duration,
    ) -> Result<(), VmmError> {
        self.may_change_its_disk("blockdev-del").await?;
        let detached = timeout(within, volumes::detach(self.qmp()?, slot)).await;
        self.or_gone(detached.map_err(|_| VmmError::Timeout("blockdev-reopen"))?).await
    }

    /// At the end of a save QEMU lets go of the disk, and takes it again when the VM is resumed.
    async fn may_change_its_disk(&self, command: &'static str) -> Result<(), VmmError> {
        self.must_live()?;
        match *self.cpus.borrow() {
            Cpus::Parked => return Err(refused(command, WAITS_FOR_STATE)),
            Cpus::GivenAway => return Err(refused(command, GAVE_MEMORY_AWAY)),
            Cpus::Running | Cpus::Stopped => {}
        }
        if self.save.lock().await.as_ref().is_some_and(save::Save::needs_the_vm_stopped) {
            return Err(refused(command, IS_BEING_SAVED));
        }
        Ok(())
    }

    /// The user that the process runs as, which owns what it may write.
    fn uid(&self) -> Result<Option<u32>, VmmError> {
        let ours = nix::unistd::geteuid().as_raw();
        let theirs =
            self.process.uid().map_err(|source| io_error("read the VMM's user", source))?;
        Ok((theirs != ours).then_some(theirs))
    }

    fn must_live(&self) -> Result<(), VmmError> {
        if self.has_ended() { Err(VmmError::Gone) } else { Ok(()) }
    }

    fn qmp(&self) -> Result<&QmpClient, VmmError> {
        self.qmp.get().ok_or_else(|| {
            refused("qmp_capabilities", "the control socket did not answer when the VM was adopted")
        })
    }

    async fn or_gone<T>(&self, outcome: Result<T, VmmError>) -> Result<T, VmmError> {
        match outcome {
            Ok(done) => Ok(done),
            Err(error) => Err(self.gone_or(error).await),
        }
    }
}

fn outcome<E>(progress: Result<&Progress, E>) -> Result<(), VmmError> {
    match progress {
        Ok(Progress::Copying | Progress::Converged | Progress::Captured | Progress::Complete) => {
            Ok(())
        }
        Ok(Progress::GivenUp) => Err(nothing_is_saved()),
        Ok(Progress::Failed(reason)) => {
            Err(io_error("save the VM's state", io::Error::other(reason.clone())))
        }
        Err(_) => Err(refused("migrate", "the driver was closed")),
    }
}

fn refused(command: &'static str, reason: &str) -> VmmError {
    VmmError::Refused { command, reason: reason.into() }
}

fn nothing_is_saved() -> VmmError {
    refused("migrate", "nothing is being saved")
}
