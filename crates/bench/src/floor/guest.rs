//! One VM of the floor, and what is asked of it.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use skerry_internal_api::{
    ExecControl, ExecExit, ExecOutput, ExecRequest, GuestApi, GuestStream, User,
};
use skerry_node::guest::{Dial, Frozen, GuestHello, GuestLink, Unsaid};
use skerry_vmm::{BootSpec, Channel, SaveProgress, SavedMemory, Vm, VmmError};

use super::{Floor, GUEST_WITHIN, STEP_WITHIN, VmFiles};
use crate::{ARGV, SAYS, ambient};

/// A VM without the platform. Dropping it kills its process and removes its files.
pub struct FloorVm {
    pub(super) vm: Arc<dyn Vm>,
    pub(super) spec: BootSpec,
    link: Option<Arc<GuestLink>>,
    is_gone: bool,
    pub(super) files: Arc<VmFiles>,
}

struct VmDial(Arc<dyn Vm>);

#[async_trait]
impl Dial for VmDial {
    async fn dial(&self) -> Result<Box<dyn Channel>, VmmError> {
        self.0.connect_guest().await
    }
}

/// Who a guest is told to be.
#[derive(Clone, Copy)]
pub enum Identity {
    /// Nobody: it is going to be a template, or waits.
    Nobody,
    /// A workspace, so to speak.
    Somebody,
}

impl Identity {
    fn hello(self) -> GuestHello {
        let (hostname, machine_id) = match self {
            Self::Nobody => ("unclaimed", String::new()),
            Self::Somebody => ("floor", "0123456789abcdef".repeat(2)),
        };
        GuestHello {
            hostname: hostname.to_owned(),
            machine_id,
            env: BTreeMap::new(),
            unsaid: Unsaid::default(),
            incarnation: 1,
            fresh: Arc::new(ambient::fresh),
        }
    }
}

impl FloorVm {
    pub(super) fn new(vm: Arc<dyn Vm>, spec: BootSpec, files: Arc<VmFiles>) -> Self {
        Self { vm, spec, link: None, is_gone: false, files }
    }

    /// The number of its process.
    pub fn pid(&self) -> Result<i32> {
        i32::try_from(self.vm.record().pid).context("no process number")
    }

    /// Loads the state a parked process waits for.
    ///
    /// # Errors
    /// The VMM refuses it.
    pub async fn load(&self) -> Result<()> {
        Ok(self.vm.load(STEP_WITHIN).await?)
    }

    /// Meets the agent: it connects, is told who it is, what time it is and some randomness.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn meet(&mut self, identity: Identity) -> Result<()> {
        let dial = Arc::new(VmDial(Arc::clone(&self.vm)));
        self.link = Some(GuestLink::open(dial, identity.hello(), GUEST_WITHIN).await?);
        Ok(())
    }

    /// Tells it once more, on the line that is open.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn tell(&self, identity: Identity) -> Result<()> {
        Ok(self.link()?.reconfigure(identity.hello(), STEP_WITHIN).await?)
    }

    pub(super) fn link(&self) -> Result<&Arc<GuestLink>> {
        self.link.as_ref().context("the agent was not met yet")
    }

    /// Hangs up.
    pub(super) async fn leave(&mut self) {
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }

    /// Runs the command every sample ends with, and reads what it says.
    ///
    /// # Errors
    /// It did not run, or said something else.
    pub async fn exec(&self) -> Result<()> {
        let (exit, said) = self.output_of(ARGV.map(str::to_owned).to_vec()).await?;
        ensure!(
            exit == ExecExit::Code(0) && said == SAYS,
            "{ARGV:?} ended with {exit:?} and said {said}"
        );
        Ok(())
    }

    async fn output_of(&self, argv: Vec<String>) -> Result<(ExecExit, String)> {
        let request = ExecRequest {
            argv,
            env: BTreeMap::new(),
            working_dir: None,
            user: User::Root,
            pty: None,
            timeout: Some(STEP_WITHIN),
        };
        let mut session = self.link()?.exec(request).await?;
        // A command that has ended already takes no input.
        let _ = session.control.send(ExecControl::CloseStdin).await;
        let mut said = Vec::new();
        while let Some(output) = session.output.recv().await {
            match output? {
                ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes) => said.extend(bytes),
                ExecOutput::Exit(exit) => {
                    return Ok((exit, String::from_utf8_lossy(&said).into_owned()));
                }
            }
        }
        anyhow::bail!("the command did not end")
    }

    /// Runs a script, which has to succeed.
    ///
    /// # Errors
    /// It did not.
    pub async fn run(&self, script: &str) -> Result<()> {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let (exit, said) = self.output_of(argv).await?;
        ensure!(exit == ExecExit::Code(0), "it ended with {exit:?} and said {said}");
        Ok(())
    }

    /// A connection to a port of the guest's loopback, over the line to the agent.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(&self, port: u16) -> Result<GuestStream> {
        Ok(self.link()?.connect("127.0.0.1", port).await?)
    }

    /// Stops the CPUs.
    ///
    /// # Errors
    /// The VMM refuses.
    pub async fn pause(&self) -> Result<()> {
        if let Some(link) = &self.link {
            link.hold();
        }
        Ok(self.vm.pause(STEP_WITHIN).await?)
    }

    /// Lets the CPUs run.
    ///
    /// # Errors
    /// The VMM refuses.
    pub async fn resume(&self) -> Result<()> {
        self.vm.resume(STEP_WITHIN).await?;
        if let Some(link) = &self.link {
            link.release();
        }
        Ok(())
    }

    /// Writes the memory and the devices of a guest that stands still into `state`.
    pub(super) async fn save(&self, state: &Path, memory: SavedMemory) -> Result<()> {
        self.vm.begin_save(new_file(state)?, memory).await?;
        Ok(self.vm.wait_save(SaveProgress::Complete, STEP_WITHIN).await?)
    }

    /// Takes a snapshot of the running guest, as the platform does: memory is copied while it runs,
    /// then file systems are frozen, CPUs stopped, a new overlay put on top, the rest of memory taken,
    /// and all goes on. Returns how long it stood still, from the freezing to the thawing. The
    /// snapshot's memory is removed; its disk stays below the VM's.
    ///
    /// # Errors
    /// Whatever fails first.
    pub async fn snapshot(&self, floor: &Floor, number: usize) -> Result<Duration> {
        let link = self.link()?;
        link.sync(STEP_WITHIN).await?;
        let state = self.files.dir.join("snapshot");
        self.vm.begin_save(new_file(&state)?, SavedMemory::InState).await?;
        self.vm.wait_save(SaveProgress::Converged, STEP_WITHIN).await?;
        let overlay: PathBuf =
            floor.new_overlay(&self.files.dir, &format!("above-{number}.qcow2"))?;
        let began = Instant::now();
        link.freeze(STEP_WITHIN).await?;
        self.pause().await?;
        self.vm.push_overlay(&overlay, STEP_WITHIN).await?;
        self.vm.wait_save(SaveProgress::Captured, STEP_WITHIN).await?;
        self.resume().await?;
        let thawed = link.thaw(STEP_WITHIN).await?;
        let stood_still = began.elapsed();
        ensure!(thawed == Frozen::UntilNow, "the guest wrote while it was to be frozen");
        self.vm.wait_save(SaveProgress::Complete, STEP_WITHIN).await?;
        std::fs::remove_file(&state)?;
        Ok(stood_still)
    }

    /// Ends it and removes its files.
    ///
    /// # Errors
    /// Its process does not end.
    pub async fn end(mut self) -> Result<()> {
        self.end_process().await
    }

    pub(super) async fn end_process(&mut self) -> Result<()> {
        self.leave().await;
        self.vm.kill().await?;
        self.is_gone = true;
        Ok(())
    }
}

impl Drop for FloorVm {
    fn drop(&mut self) {
        if self.is_gone {
            return;
        }
        // By its number: the driver's own way needs the runtime's time. A process that ended by itself
        // may have left its number to another, which has another command line.
        let Ok(pid) = self.pid() else { return };
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(&self.spec.label) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn new_file(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .with_context(|| format!("making {}", path.display()))
}
