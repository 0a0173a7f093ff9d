//! One VM that waits, from its making to its claim.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::FutureExt;
use skerry_internal_api::{
    ExecControl, ExecOutput, ExecRequest, GuestApi, NodeError, User, VmSpec,
};
use skerry_model::WorkspaceId;
use skerry_vmm::Vm;
use tokio_util::sync::CancellationToken;

use super::{Nobodys, PARKED_MIB, Tier, WARM_MIB};
use crate::{
    capacity::MemoryPromise,
    error::Error,
    guest::GuestLink,
    host::{Host, StepFailed},
    identity::GuestIdentity,
    images::ImageDefaults,
    layout::VmPaths,
    ledger::Ledger,
    templates::Template,
    uids::UidLease,
    vm::{
        bring_up::{BringUp, RESUME_WITHIN, Step, neutral_spec},
        link,
    },
};

const PAUSE_WITHIN: Duration = Duration::from_secs(30);
const EXERCISE_WITHIN: Duration = Duration::from_secs(60);

/// A process that waits for a template's state.
const PARK: &[Step] = &[
    Step::Reserve,
    Step::VmDirectory,
    Step::LedgerIntent,
    Step::RunDirectory,
    Step::Cgroup,
    Step::Network,
    Step::Disk,
    Step::ConsoleLog,
    Step::Park,
];

/// Run once before it is paused: what a first command has to translate, load and touch is not left to
/// the one who claims it.
const EXERCISE: &[&str] = &["sh", "-c", ":"];

/// A VM that waits for a workspace.
pub(crate) struct Waiting {
    /// Names it on the host; no workspace has this number.
    pub number: WorkspaceId,
    pub template: Arc<Template>,
    pub paths: VmPaths,
    pub ledger: Ledger,
    pub vm: Arc<dyn Vm>,
    /// Open to the paused guest; `None` while the process has not loaded its state.
    pub link: Option<Arc<GuestLink>>,
    pub uid: Option<UidLease>,
    pub memory: MemoryPromise,
    /// Who the guest will be.
    pub identity: GuestIdentity,
}

impl Waiting {
    pub fn tier(&self) -> Tier {
        if self.link.is_some() { Tier::Warm } else { Tier::Parked }
    }

    pub fn is_alive(&self) -> bool {
        self.vm.wait_exit().now_or_never().is_none()
    }

    pub fn memory_mib(&self) -> u64 {
        match self.tier() {
            Tier::Warm => WARM_MIB,
            Tier::Parked => PARKED_MIB,
        }
    }

    /// What it is while it waits.
    fn spec(&self) -> VmSpec {
        let recipe = &self.template.recipe;
        neutral_spec(self.number, &recipe.image_digest, &recipe.shape)
    }

    pub fn into_nobodys(self) -> Nobodys {
        let Self { paths, ledger, vm, link, uid, memory, .. } = self;
        let (ledger, vm, memory) = (Some(ledger), Some(vm), Some(memory));
        Nobodys { paths, ledger, vm, link, uid, memory }
    }
}

/// Makes a VM of `template` up to `tier`. Cancelled or failed, nothing is left of it.
pub(super) async fn make(
    host: &Arc<Host>,
    template: Arc<Template>,
    tier: Tier,
    cancel: &CancellationToken,
) -> Result<Waiting, StepFailed> {
    let parked = park(host, template, cancel).await?;
    match tier {
        Tier::Parked => Ok(parked),
        Tier::Warm => warm(host, parked, cancel).await,
    }
}

async fn park(
    host: &Arc<Host>,
    template: Arc<Template>,
    cancel: &CancellationToken,
) -> Result<Waiting, StepFailed> {
    let memory = host.memory.set_aside(PARKED_MIB).map_err(StepFailed::at("reserve"))?;
    let number = WorkspaceId::from_random(host.environment.random());
    let paths = host.layout.nobodys(number);
    let recipe = &template.recipe;
    let spec = neutral_spec(number, &recipe.image_digest, &recipe.shape);
    let mut bring_up =
        BringUp::for_slot(host, &paths, &spec, cancel, memory, Arc::clone(&template));
    let parked = bring_up.take_all(PARK).await;
    let identity = bring_up.identity.take();
    let Nobodys { ledger, vm, link, uid, memory, .. } = bring_up.give_up().await;
    match (parked, ledger, vm, memory, identity) {
        (Ok(()), Some(ledger), Some(vm), Some(memory), Some(identity)) => Ok(Waiting {
            number,
            template,
            paths: paths.clone(),
            ledger,
            vm,
            link,
            uid,
            memory,
            identity,
        }),
        (parked, ledger, vm, memory, _) => {
            host.pool.discard(host, Nobodys { paths, ledger, vm, link, uid, memory }).await;
            Err(parked.err().unwrap_or(StepFailed {
                step: Step::Park.name(),
                error: Error::StepMissing("park"),
            }))
        }
    }
}

/// Restores a parked VM, exercises it and pauses it. Cancelled or failed, nothing is left of it.
pub(super) async fn warm(
    host: &Arc<Host>,
    mut parked: Waiting,
    cancel: &CancellationToken,
) -> Result<Waiting, StepFailed> {
    let ready = async {
        let memory = host.memory.set_aside(WARM_MIB).map_err(StepFailed::at("reserve"))?;
        tokio::select! {
            warmed = exercise(host, &mut parked) => warmed?,
            () = cancel.cancelled() => {
                return Err(StepFailed { step: "slot_warmed", error: Error::Cancelled });
            }
        }
        parked.memory = memory;
        Ok(())
    }
    .await;
    match ready {
        Ok(()) => Ok(parked),
        Err(failed) => {
            host.pool.discard(host, parked.into_nobodys()).await;
            Err(failed)
        }
    }
}

async fn exercise(host: &Host, parked: &mut Waiting) -> Result<(), StepFailed> {
    let at = |error: skerry_vmm::VmmError| StepFailed { step: "slot_warmed", error: error.into() };
    let bound = host.restore_bound();
    parked.vm.load(bound).await.map_err(at)?;
    parked.vm.resume(RESUME_WITHIN).await.map_err(at)?;
    let link = link::open_unclaimed(&parked.vm, &host.environment, bound).await;
    let link = link.map_err(Error::Guest).map_err(StepFailed::at("slot_warmed"))?;
    parked.link = Some(Arc::clone(&link));
    let exercised = async {
        // Who it will be is known but for the name: what a claim has to do shrinks to that, and goes
        // through what has been gone through before.
        let spec = parked.spec();
        let defaults = ImageDefaults::default();
        let tenant = link::Tenant { spec: &spec, identity: &parked.identity, defaults: &defaults };
        link::claim(&link, tenant, &host.environment, bound).await?;
        run_once(&link).await
    };
    exercised.await.map_err(Error::Guest).map_err(StepFailed::at("slot_warmed"))?;
    link.hold();
    parked.vm.pause(PAUSE_WITHIN).await.map_err(at)?;
    let passed = host.config.faults.after("slot_warmed").await;
    passed.map(drop).map_err(StepFailed::at("slot_warmed"))
}

async fn run_once(link: &GuestLink) -> Result<(), NodeError> {
    let request = ExecRequest {
        argv: EXERCISE.iter().map(|word| (*word).to_owned()).collect(),
        env: BTreeMap::new(),
        working_dir: None,
        user: User::Root,
        pty: None,
        timeout: Some(EXERCISE_WITHIN),
    };
    let mut session = link.exec(request).await?;
    // A command that has ended already takes no input.
    let _ = session.control.send(ExecControl::CloseStdin).await;
    while let Some(output) = session.output.recv().await {
        match output? {
            ExecOutput::Stdout(_) | ExecOutput::Stderr(_) => {}
            ExecOutput::Exit(_) => break,
        }
    }
    Ok(())
}
