//! Files of a volume that no VM writes: by a VM of the node's own, which has the volume and nothing else.
//!
//! The host does not parse what a guest wrote, so the file system is mounted where it can do no harm: in a
//! guest restored from the template of a built-in image, with a network policy that permits nothing, that
//! belongs to nobody. It lies in the pool's directory with a ledger, so that a server that dies leaves
//! nothing of it. One helper serves one volume, and no other after it; it goes when it was idle for a
//! while, and at once when somebody attaches the volume.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::StreamExt;
use skerry_internal_api::{
    ByteStream, ListDepth, NodeError, RemoveDepth, VolumeEntry, VolumeFiles, VolumeListing,
    WriteMode,
};
use skerry_model::{
    DiskMib, MemMib, MountMode, MountPath, Shape, VcpuCount, VolumeId, VolumeMount, VolumeSlot,
    WorkspaceId, spec::CpuKind,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    capacity::MemoryPromise,
    error::{Error, blocking},
    guest::GuestVolume,
    host::{Host, StepFailed},
    images::StoredImage,
    pool::Nobodys,
    templates::{Recipe, Template},
    vm::{
        bring_up::{BringUp, Step, neutral_spec},
        volumes::{mount_in, put_in_slot},
    },
};

/// Helpers at a time; one that is idle gives way to a further one.
const HELPERS_MAX: usize = 8;
/// How long a helper stays that nobody uses.
const IDLE: Duration = Duration::from_secs(30);
/// How long a helper that goes may take to unmount. What was acknowledged is on the disk already.
const UNMOUNTED_WITHIN: Duration = Duration::from_secs(5);
/// How often one may find that the helper it was about to use goes.
const TRIES: u32 = 8;
/// The image whose guests help, if it is here.
const IMAGE: &str = "base";
const MEMORY: MemMib = MemMib(256);
/// The largest machine whose template is used for this.
const MEMORY_MOST: MemMib = MemMib(1024);
const DISK: DiskMib = DiskMib(256);
const MOUNT_PATH: &str = "/mnt/volume";

const RESTORE: &[Step] = &[
    Step::Reserve,
    Step::VmDirectory,
    Step::LedgerIntent,
    Step::RunDirectory,
    Step::Cgroup,
    Step::Network,
    Step::Disk,
    Step::ConsoleLog,
    Step::Park,
    Step::Load,
    Step::Resume,
    Step::GuestReady,
];
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

/// The helpers of a node.
#[derive(Debug, Default)]
pub(crate) struct Helpers(Mutex<Books>);

#[derive(Debug, Default)]
struct Books {
    helpers: HashMap<VolumeId, Arc<Helper>>,
    /// Volumes that somebody is about to attach, and how many: they get no helper.
    held: HashMap<VolumeId, usize>,
}

/// One of them, from its making to its end.
#[derive(Debug)]
struct Helper {
    phase: watch::Sender<Phase>,
    users: watch::Sender<usize>,
    /// It is to go, or goes.
    leave: CancellationToken,
}

#[derive(Clone, Debug)]
enum Phase {
    Starting,
    Ready(GuestVolume),
    /// It did not come up; nothing is left of it.
    Failed(NodeError),
    /// Nothing is left of it.
    Gone,
}

/// The right to use a helper: while there is one it is not idle.
#[derive(Debug)]
struct Lease(Arc<Helper>);

impl Lease {
    fn new(helper: &Arc<Helper>) -> Self {
        helper.users.send_modify(|users| *users += 1);
        Self(Arc::clone(helper))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.users.send_modify(|users| *users -= 1);
    }
}

pub(crate) struct WithoutHelper {
    host: Arc<Host>,
    id: VolumeId,
}

impl Drop for WithoutHelper {
    fn drop(&mut self) {
        let mut books = self.host.helpers.books();
        if let Some(count) = books.held.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                books.held.remove(&self.id);
            }
        }
    }
}

/// What to do about a volume's helper.
enum Found {
    Use(Lease),
    /// It goes, or has to go first.
    Await(Arc<Helper>),
}

impl Helpers {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the volume's helper gone, and no other come until the answer is dropped.
    pub async fn without(host: &Arc<Host>, id: VolumeId) -> WithoutHelper {
        let helper = {
            let mut books = host.helpers.books();
            *books.held.entry(id).or_default() += 1;
            books.helpers.get(&id).cloned()
        };
        let without = WithoutHelper { host: Arc::clone(host), id };
        if let Some(helper) = helper {
            helper.leave.cancel();
            helper.gone().await;
        }
        without
    }

    /// The files of a volume, by its helper or by a new one.
    ///
    /// # Errors
    /// [`NodeError::VolumeInUse`] when somebody attaches the volume; [`NodeError::NoCapacity`].
    pub async fn files(host: &Arc<Host>, id: VolumeId) -> Result<HelpedVolume, NodeError> {
        for _ in 0..TRIES {
            let lease = match find(host, id)? {
                Found::Use(lease) => lease,
                Found::Await(helper) => {
                    helper.gone().await;
                    continue;
                }
            };
            let mut phase = lease.0.phase.subscribe();
            let settled = phase.wait_for(|phase| !matches!(phase, Phase::Starting)).await;
            match settled.map(|phase| phase.clone()) {
                Ok(Phase::Ready(volume)) => {
                    return Ok(HelpedVolume { volume, lease: Arc::new(lease) });
                }
                Ok(Phase::Failed(error)) => return Err(error),
                // The sender is the lease's own: there is no error.
                Ok(Phase::Gone | Phase::Starting) | Err(_) => {}
            }
        }
        Err(NodeError::VolumeInUse)
    }
}

fn find(host: &Arc<Host>, id: VolumeId) -> Result<Found, NodeError> {
    let mut books = host.helpers.books();
    if books.held.contains_key(&id) {
        return Err(NodeError::VolumeInUse);
    }
    if let Some(helper) = books.helpers.get(&id) {
        return Ok(match helper.leave.is_cancelled() {
            true => Found::Await(Arc::clone(helper)),
            false => Found::Use(Lease::new(helper)),
        });
    }
    if books.helpers.len() >= HELPERS_MAX {
        let idle = books.helpers.values().find(|helper| *helper.users.borrow() == 0);
        let idle = idle.or_else(|| books.helpers.values().find(|one| one.leave.is_cancelled()));
        let Some(idle) = idle else {
            let what = "the files of too many volumes are in use at this moment";
            return Err(NodeError::NoCapacity(what.to_owned()));
        };
        idle.leave.cancel();
        return Ok(Found::Await(Arc::clone(idle)));
    }
    let helper = Arc::new(Helper {
        phase: watch::Sender::new(Phase::Starting),
        users: watch::Sender::new(0),
        leave: host.shutdown.child_token(),
    });
    let lease = Lease::new(&helper);
    books.helpers.insert(id, Arc::clone(&helper));
    drop(books);
    let (host_of_it, abandon) = (Arc::clone(host), host.abandon.clone());
    host.tasks.spawn(async move {
        tokio::select! {
            biased;
            () = abandon.cancelled() => {}
            () = live(&host_of_it, id, &helper) => {}
        }
    });
    Ok(Found::Use(lease))
}

impl Helper {
    /// Returns when nothing is left of it.
    async fn gone(&self) {
        let over = |phase: &Phase| matches!(phase, Phase::Failed(_) | Phase::Gone);
        // The sender is ours: there is no error.
        let _ = self.phase.subscribe().wait_for(over).await;
    }

    /// Completes when nobody has used it for a while.
    async fn idle(&self) {
        let mut users = self.users.subscribe();
        loop {
            let _ = users.wait_for(|users| *users == 0).await;
            if timeout(IDLE, users.wait_for(|users| *users > 0)).await.is_err() {
                return;
            }
        }
    }
}

/// A helper's whole life.
async fn live(host: &Arc<Host>, id: VolumeId, helper: &Arc<Helper>) {
    let last = match come_up(host, id, &helper.leave).await {
        Ok(Up { nobodys, volume, mount }) => {
            helper.phase.send_replace(Phase::Ready(volume));
            stay(host, helper, &nobodys).await;
            leave(host, nobodys, &mount).await;
            Phase::Gone
        }
        Err(failed) => match failed.error {
            // Somebody attaches the volume, or the server ends.
            Error::Cancelled => Phase::Gone,
            _ => Phase::Failed(failed.report("serving the files of a volume")),
        },
    };
    helper.leave.cancel();
    host.helpers.books().helpers.remove(&id);
    helper.phase.send_replace(last);
}

async fn stay(host: &Host, helper: &Helper, nobodys: &Nobodys) {
    loop {
        let ended = async {
            if let Some(vm) = &nobodys.vm {
                drop(vm.wait_exit().await);
            }
        };
        tokio::select! {
            () = helper.leave.cancelled() => return,
            () = ended => return,
            () = helper.idle() => {}
        }
        // Nobody begins to use it once this is decided.
        let _books = host.helpers.books();
        if *helper.users.borrow() == 0 {
            helper.leave.cancel();
            return;
        }
    }
}

async fn leave(host: &Arc<Host>, nobodys: Nobodys, mount: &VolumeMount) {
    if let Some(link) = &nobodys.link
        && let Err(error) = link.unmount(mount, UNMOUNTED_WITHIN).await
    {
        tracing::debug!(volume.id = %mount.volume_id, %error, "a helper goes without unmounting");
    }
    host.pool.discard(host, nobodys).await;
}

/// A helper that serves.
struct Up {
    nobodys: Nobodys,
    volume: GuestVolume,
    mount: VolumeMount,
}

async fn come_up(
    host: &Arc<Host>,
    id: VolumeId,
    cancel: &CancellationToken,
) -> Result<Up, StepFailed> {
    let chosen = Arc::clone(host);
    let (recipe, template) =
        blocking(move || choose(&chosen)).await.map_err(StepFailed::at("reserve"))?;
    let Some(template) = template else { return attempt(host, id, &recipe, None, cancel).await };
    match attempt(host, id, &recipe, Some(Arc::clone(&template)), cancel).await {
        Err(failed) if may_boot(&failed) => {
            failed.report("restoring a helper");
            host.templates.failed(&template, Instant::now());
            attempt(host, id, &recipe, None, cancel).await
        }
        settled => settled,
    }
}

/// Whether the machine may be at fault rather than the volume or the host.
fn may_boot(failed: &StepFailed) -> bool {
    let is_restore = [Step::Park, Step::Load, Step::Resume, Step::GuestReady]
        .iter()
        .any(|step| step.name() == failed.step);
    is_restore && !matches!(failed.error, Error::Cancelled | Error::NoCapacity(_))
}

async fn attempt(
    host: &Arc<Host>,
    id: VolumeId,
    recipe: &Recipe,
    template: Option<Arc<Template>>,
    cancel: &CancellationToken,
) -> Result<Up, StepFailed> {
    let memory = promise(host, recipe.shape.memory_mib).await.map_err(StepFailed::at("reserve"))?;
    let number = WorkspaceId::from_random(host.environment.random());
    let paths = host.layout.nobodys(number);
    let spec = neutral_spec(number, &recipe.image_digest, &recipe.shape);
    let (mut bring_up, steps) = match template {
        Some(template) => {
            let restored = BringUp::for_slot(host, &paths, &spec, cancel, memory, template);
            (restored.waited_for(), RESTORE)
        }
        None => (BringUp::for_template(host, &paths, &spec, cancel, memory), BOOT),
    };
    let taken = bring_up.take_all(steps).await;
    let nobodys = bring_up.give_up().await;
    let up = async {
        taken?;
        let (Some(ledger), Some(vm), Some(link)) = (&nobodys.ledger, &nobodys.vm, &nobodys.link)
        else {
            return Err(StepFailed { step: "ready", error: Error::StepMissing("guest_ready") });
        };
        let mount = mount_of(id).map_err(StepFailed::at("mount_volumes"))?;
        let mounted = async {
            put_in_slot(host, &paths, ledger, vm, &mount).await?;
            tokio::select! {
                mounted = mount_in(link, &mount) => mounted,
                () = cancel.cancelled() => Err(Error::Cancelled),
            }
        };
        mounted.await.map_err(StepFailed::at("mount_volumes"))?;
        Ok((GuestVolume::new(Arc::clone(link), &mount), mount))
    };
    match up.await {
        Ok((volume, mount)) => Ok(Up { nobodys, volume, mount }),
        Err(failed) => {
            host.pool.discard(host, nobodys).await;
            Err(failed)
        }
    }
}

/// What waits in the pool gives way.
async fn promise(host: &Arc<Host>, memory: MemMib) -> Result<MemoryPromise, Error> {
    match host.memory.promise(memory) {
        Err(Error::NoCapacity(_)) => {
            host.pool.make_room(host, u64::from(memory.get())).await;
            host.memory.promise(memory)
        }
        other => other,
    }
}

fn mount_of(volume_id: VolumeId) -> Result<VolumeMount, Error> {
    let wrong = || Error::StepMissing("mount_volumes");
    Ok(VolumeMount {
        volume_id,
        slot: VolumeSlot::new(0).ok_or_else(wrong)?,
        path: MountPath::parse(MOUNT_PATH).map_err(|_| wrong())?,
        mode: MountMode::ReadWrite,
        checkpoint_id: None,
    })
}

/// The smallest machine of a built-in image that there is a template of; else one to boot, of which a
/// template is made for the next time.
fn choose(host: &Host) -> Result<(Recipe, Option<Arc<Template>>), Error> {
    let images = host.images.list();
    let built_in: Vec<&StoredImage> =
        images.iter().filter(|image| image.manifest.oci.is_none()).collect();
    let is_usable = |template: &Arc<Template>| {
        let recipe = &template.recipe;
        recipe.shape.memory_mib <= MEMORY_MOST
            && built_in.iter().any(|image| *image.digest() == recipe.image_digest)
    };
    let templates = host.templates.all().into_iter().filter(is_usable);
    if let Some(template) = templates.min_by_key(|template| template.recipe.shape.memory_mib) {
        return Ok((template.recipe.clone(), Some(template)));
    }
    let image = built_in
        .iter()
        .find(|image| image.manifest.name.0 == IMAGE)
        .or_else(|| built_in.first())
        .ok_or_else(|| Error::NoSuchImage("of those built here".to_owned()))?;
    let shape = Shape {
        vcpu_count: VcpuCount(1),
        memory_mib: MemMib(MEMORY.get().max(image.manifest.min_memory_mib)),
        disk_mib: DISK,
        cpu_kind: CpuKind::Shared,
    };
    let recipe = Recipe { image_digest: image.digest().clone(), shape };
    if let Ok(boot) = host.images.boot_files()
        && let Some(key) = host.templates.key(host, &recipe.image_digest, &boot, &shape)
        && host.templates.want(&key, recipe.clone())
    {
        host.pool.wake();
    }
    Ok((recipe, None))
}

/// The files of a volume, served by a helper that stays as long as this does.
#[derive(Debug)]
pub(crate) struct HelpedVolume {
    volume: GuestVolume,
    lease: Arc<Lease>,
}

impl HelpedVolume {
    /// A helper that had to go has not failed.
    fn explain(&self, error: NodeError) -> NodeError {
        match error {
            NodeError::GuestUnreachable(_) if self.lease.0.leave.is_cancelled() => {
                NodeError::VolumeInUse
            }
            other => other,
        }
    }
}

#[async_trait]
impl VolumeFiles for HelpedVolume {
    async fn stat(&self, path: &str) -> Result<VolumeEntry, NodeError> {
        self.volume.stat(path).await.map_err(|error| self.explain(error))
    }

    async fn list(
        &self,
        path: &str,
        depth: ListDepth,
        limit: u32,
    ) -> Result<VolumeListing, NodeError> {
        self.volume.list(path, depth, limit).await.map_err(|error| self.explain(error))
    }

    async fn read(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<ByteStream, NodeError> {
        let bytes = self.volume.read(path, offset, length).await;
        let bytes = bytes.map_err(|error| self.explain(error))?;
        let lease = Arc::clone(&self.lease);
        // Whoever reads slowly still uses it.
        Ok(Box::pin(bytes.inspect(move |_| {
            let _in_use = &lease;
        })))
    }

    async fn write(
        &self,
        path: &str,
        mode: u32,
        how: WriteMode,
        content: ByteStream,
    ) -> Result<u64, NodeError> {
        let written = self.volume.write(path, mode, how, content).await;
        written.map_err(|error| self.explain(error))
    }

    async fn remove(&self, path: &str, depth: RemoveDepth) -> Result<(), NodeError> {
        self.volume.remove(path, depth).await.map_err(|error| self.explain(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_helper_is_idle_once_nobody_has_used_it_for_a_while() {
        let helper = Arc::new(Helper {
            phase: watch::Sender::new(Phase::Starting),
            users: watch::Sender::new(0),
            leave: CancellationToken::new(),
        });
        let lease = Lease::new(&helper);
        assert!(timeout(2 * IDLE, helper.idle()).await.is_err(), "it is in use");
        let began = Instant::now();
        let (idle, ()) = tokio::join!(
            async {
                helper.idle().await;
                began.elapsed()
            },
            async {
                tokio::time::sleep(IDLE).await;
                drop(lease);
                tokio::time::sleep(IDLE / 2).await;
                let lease = Lease::new(&helper);
                tokio::task::yield_now().await;
                drop(lease);
            },
        );
        assert_eq!(idle, IDLE + IDLE / 2 + IDLE);
    }
}
