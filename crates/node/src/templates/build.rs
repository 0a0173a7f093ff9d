//! Making a template: a neutral guest is booted, warmed, frozen, paused and saved.
//!
//! It is a VM like any other, with a ledger in the pool's directory, so that a crash at any moment
//! leaves nothing of it. Nothing of a build is repeated: one that failed begins anew.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use skerry_model::WorkspaceId;
use skerry_vmm::{SaveProgress, SavedMemory};
use tokio_util::sync::CancellationToken;

use super::{Recipe, Template, TemplateKey};
use crate::{
    error::{Error, blocking},
    host::{Host, StepFailed},
    layout::VmPaths,
    saved::{About, Draft, Manifest, RAM_FILE, STATE_FILE, seal_unless},
    vm::bring_up::{BringUp, Step, machine_of, neutral_spec},
};

/// The devices of a machine take a few hundred KiB.
const STATE_BYTES: u64 = 1024 * 1024;
/// What booting and warming writes to the disk.
const OVERLAY_BYTES: u64 = 64 * 1024 * 1024;
/// Saving the state of devices takes milliseconds.
const SAVE_WITHIN: Duration = Duration::from_secs(60);
/// A greeting takes one round trip.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);
const PAUSE_WITHIN: Duration = Duration::from_secs(30);
/// Freezing writes everything back first, of which little is left.
const FREEZE_WITHIN: Duration = Duration::from_secs(60);

/// What makes a guest ready to be saved.
const BOOT: &[Step] = &[
    Step::Reserve,
    Step::VmDirectory,
    Step::LedgerIntent,
    Step::RunDirectory,
    Step::Cgroup,
    Step::Network,
    Step::Disk,
    Step::MemoryFile,
    Step::ConsoleLog,
    Step::Boot,
    Step::GuestReady,
];

/// Makes the template `key` of `recipe`. Cancelled or failed, nothing is left of it.
pub(crate) async fn build(
    host: &Arc<Host>,
    key: &TemplateKey,
    recipe: &Recipe,
    cancel: &CancellationToken,
) -> Result<Arc<Template>, StepFailed> {
    let began = tokio::time::Instant::now();
    let memory = host.memory.set_aside(u64::from(recipe.shape.memory_mib.get()));
    let memory = memory.map_err(StepFailed::at("template_reserve"))?;
    let draft = begin(host, key, recipe).await.map_err(StepFailed::at("template_reserve"))?;
    let number = WorkspaceId::from_random(host.environment.random());
    let paths = VmPaths { memory_file: draft.path(RAM_FILE), ..host.layout.nobodys(number) };
    let spec = neutral_spec(number, &recipe.image_digest, &recipe.shape);
    let mut bring_up = BringUp::for_template(host, &paths, &spec, cancel, memory);
    let built = async {
        bring_up.take_all(BOOT).await?;
        prepare(host, &mut bring_up, cancel).await.map_err(StepFailed::at("template_prepared"))?;
        save(host, &mut bring_up, &draft).await.map_err(StepFailed::at("template_saved"))?;
        seal(host, &paths, recipe, draft, cancel).await.map_err(StepFailed::at("template_sealed"))
    }
    .await;
    // Whatever came of it, the guest has served its purpose.
    let nobodys = bring_up.give_up().await;
    host.pool.discard(host, nobodys).await;
    let template = Template::of(key.clone(), built?).map_err(StepFailed::at("template_sealed"))?;
    let template = Arc::new(template);
    host.templates.made(Arc::clone(&template));
    tracing::info!(template = %key, took = ?began.elapsed(), "template made");
    Ok(template)
}

async fn begin(host: &Arc<Host>, key: &TemplateKey, recipe: &Recipe) -> Result<Draft, Error> {
    let bytes = recipe.shape.memory_mib.bytes() + STATE_BYTES + OVERLAY_BYTES;
    let (host, place) = (Arc::clone(host), host.layout.template(&key.to_string()));
    blocking(move || {
        let room = host.storage.room.reserve(bytes)?;
        host.storage.states.begin(&place, room)
    })
    .await
}

/// Warms the guest, takes from it what clones must not share, and stops all its writing. Nobody is
/// connected to it when it is saved.
async fn prepare(
    host: &Host,
    bring_up: &mut BringUp<'_>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let link = bring_up.link.take().ok_or(Error::StepMissing("guest_ready"))?;
    let prepared = async {
        let prepared = link.prepare_template().await?;
        tracing::debug!(memory_used_bytes = prepared.memory_used_bytes, "guest prepared");
        link.freeze(FREEZE_WITHIN).await
    };
    let prepared = tokio::select! {
        prepared = prepared => prepared.map_err(Error::Guest),
        () = cancel.cancelled() => Err(Error::Cancelled),
    };
    match &prepared {
        // The agent is saved waiting for a hello: a clone's first is not spent on the connection that
        // the agent believes in.
        Ok(()) => link.leave(LEAVE_WITHIN).await,
        Err(_) => link.close().await,
    }
    prepared?;
    host.config.faults.after("template_prepared").await.map(drop)
}

/// Pauses and saves the machine, and ends it: its memory file belongs to the template from here on.
async fn save(host: &Host, bring_up: &mut BringUp<'_>, draft: &Draft) -> Result<(), Error> {
    let vm = bring_up.vm.clone().ok_or(Error::StepMissing("boot"))?;
    vm.pause(PAUSE_WITHIN).await?;
    let state = draft.create(STATE_FILE, STATE_BYTES)?;
    vm.begin_save(state, SavedMemory::InMemoryFile).await?;
    vm.wait_save(SaveProgress::Complete, SAVE_WITHIN).await?;
    vm.kill().await?;
    host.config.faults.after("template_saved").await.map(drop)
}

/// The guest's disk becomes a layer, and everything takes its place.
async fn seal(
    host: &Arc<Host>,
    paths: &VmPaths,
    recipe: &Recipe,
    draft: Draft,
    cancel: &CancellationToken,
) -> Result<crate::saved::Sealed, Error> {
    let disk = host.storage.disks.at(&paths.dir);
    let chain = blocking(move || disk.freeze()).await?;
    let making = Arc::clone(host);
    let (image_digest, shape) = (recipe.image_digest.clone(), recipe.shape);
    seal_unless(host, cancel, draft, move |stop| {
        let layers = chain.layers.iter().map(|id| making.storage.layers.describe(*id, stop));
        Ok(Manifest {
            about: About::Template,
            created_at: making.environment.now(),
            fingerprint: Some(making.vmm.fingerprint(&machine_of(&shape, making.cable()))),
            shape,
            image_digest,
            disk_size_bytes: chain.size_bytes,
            layers: layers.collect::<Result<_, _>>()?,
            files: BTreeMap::new(),
        })
    })
    .await
}
