//! Saved machines of the floor: templates, and what a suspension leaves.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use skerry_vmm::{RestoreSpec, RestoredMemory, SavedMemory, Vmm};

use super::{Floor, FloorVm, VmFiles, guest::Identity, seal};

/// Freezing writes everything back first.
const FREEZE_WITHIN: Duration = Duration::from_secs(60);

/// A machine that was booted once, warmed and saved, from which any number start.
#[derive(Clone, Debug)]
pub struct Template {
    dir: PathBuf,
    memory_mib: u32,
    state: PathBuf,
    ram: PathBuf,
    layer: PathBuf,
}

impl Template {
    /// As the platform makes one: boot, warm, freeze, pause, save.
    pub(super) async fn make(floor: &Floor, memory_mib: u32) -> Result<Self> {
        let dir = floor.dir.join(format!("template-{memory_mib}"));
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let path = |name: &str| dir.join(name);
        let template = Self {
            memory_mib,
            state: path("state"),
            ram: path("ram"),
            layer: path("layer.qcow2"),
            dir: dir.clone(),
        };
        let files = floor.files()?;
        let spec = floor.machine(&files, memory_mib, Some(template.ram.clone()), &[])?;
        let overlay = spec.disk.as_ref().map(|disk| disk.overlay.clone()).context("no disk")?;
        let mut vm = floor.boot_as(spec, files).await?;
        vm.meet(Identity::Nobody).await?;
        vm.link()?.prepare_template().await?;
        vm.link()?.freeze(FREEZE_WITHIN).await?;
        vm.leave().await;
        vm.pause().await?;
        vm.save(&template.state, SavedMemory::InMemoryFile).await?;
        vm.end_process().await?;
        fs::rename(&overlay, &template.layer).context("keeping the template's disk")?;
        for sealed in [&template.state, &template.ram, &template.layer] {
            seal(sealed)?;
        }
        Ok(template)
    }

    /// The files of a clone, which are made beforehand: only the hypervisor is on the clock.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn prepare(&self, floor: &Floor) -> Result<(RestoreSpec, Arc<VmFiles>)> {
        let files = floor.files()?;
        let layers = [self.layer.clone()];
        let machine = floor.machine(&files, self.memory_mib, None, &layers)?;
        let memory = RestoredMemory::CloneOf { file: self.ram.clone() };
        Ok((RestoreSpec { machine, state: self.state.clone(), memory }, files))
    }

    /// A clone whose guest runs and has been met.
    ///
    /// # Errors
    /// Whatever fails first.
    pub async fn running_clone(&self, floor: &Floor) -> Result<FloorVm> {
        let (spec, files) = self.prepare(floor)?;
        let mut vm = start(floor, &spec, files).await?;
        vm.meet(Identity::Somebody).await?;
        Ok(vm)
    }

    /// A clone that waits: restored, told who it will be, exercised once and paused.
    ///
    /// # Errors
    /// Whatever fails first.
    pub async fn waiting_clone(&self, floor: &Floor) -> Result<FloorVm> {
        let (spec, files) = self.prepare(floor)?;
        let mut vm = start(floor, &spec, files).await?;
        vm.meet(Identity::Nobody).await?;
        vm.tell(Identity::Somebody).await?;
        vm.exec().await?;
        vm.pause().await?;
        Ok(vm)
    }

    pub(super) fn remove(&self) {
        // What stays is told as a leak.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// From nothing to CPUs that run.
///
/// # Errors
/// Whatever fails first.
pub async fn start(floor: &Floor, spec: &RestoreSpec, files: Arc<VmFiles>) -> Result<FloorVm> {
    let vm = floor.vmm.park(spec, &mut |_| Ok(())).await?;
    let vm = FloorVm::new(vm, spec.machine.clone(), files);
    vm.load().await?;
    vm.resume().await?;
    Ok(vm)
}

/// What a VM left when it was suspended: its memory, and its own disk.
pub struct SavedMachine {
    spec: RestoreSpec,
    files: Arc<VmFiles>,
}

impl SavedMachine {
    /// Suspends: file systems are frozen, CPUs stopped, memory is written, the process ended.
    ///
    /// # Errors
    /// Whatever fails first.
    pub async fn suspend(mut vm: FloorVm) -> Result<Self> {
        let state = vm.files.dir.join("suspended");
        remove_if_there(&state)?;
        vm.link()?.freeze(FREEZE_WITHIN).await?;
        vm.pause().await?;
        vm.save(&state, SavedMemory::InState).await?;
        vm.end_process().await?;
        let files = Arc::clone(&vm.files);
        // The sockets of the process that has ended.
        let run_dir = &vm.spec.run_dir;
        fs::remove_dir_all(run_dir).and_then(|()| fs::create_dir(run_dir))?;
        let machine = vm.spec.clone();
        Ok(Self { spec: RestoreSpec { machine, state, memory: RestoredMemory::InState }, files })
    }

    /// Goes on where it was, up to CPUs that run and an agent that was met.
    ///
    /// # Errors
    /// Whatever fails first.
    pub async fn resume(self, floor: &Floor) -> Result<FloorVm> {
        let mut vm = start(floor, &self.spec, self.files).await?;
        vm.meet(Identity::Somebody).await?;
        Ok(vm)
    }
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
