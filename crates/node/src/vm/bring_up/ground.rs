//! What a start stands on: read before anything is touched.

use std::path::PathBuf;

use skerry_internal_api::StartFrom;
use skerry_model::{Shape, SnapshotId, spec::ImageDigest};
use tokio::time::Instant;

use super::{machine::machine_of, shared::SnapshotMemory};
use crate::{
    error::Error,
    host::Host,
    images::{BootFiles, ImageDefaults},
    layout::VmPaths,
    promotion,
    saved::{About, STATE_FILE, Sealed},
    templates::TemplateKey,
};

/// What was found.
pub(super) struct Ground {
    /// The image at the bottom of the disk.
    pub image_digest: ImageDigest,
    /// Its raw file.
    pub base: PathBuf,
    /// The length of that, of which the disk's size is counted.
    pub base_bytes: u64,
    /// What the image says about the programs in it.
    pub defaults: ImageDefaults,
    /// What a boot needs; `None` where nothing boots.
    pub boot: Option<BootFiles>,
    /// Which template would stand for a boot; `None` where none may.
    pub key: Option<TemplateKey>,
    /// What the start begins with.
    pub begin: Begin,
}

/// What there is to begin with.
pub(super) enum Begin {
    /// Nothing: it is the workspace's first start.
    Nothing,
    /// The workspace's disk.
    Disk,
    /// The memory that a suspension saved.
    Suspended(Sealed),
    /// A snapshot without memory, or whose memory is that of another shape.
    SnapshotDisk(Sealed),
    /// A snapshot with memory.
    SnapshotMemory(SnapshotMemory),
}

impl Ground {
    /// Looks. Blocks.
    pub fn look(
        host: &Host,
        paths: &VmPaths,
        start_from: StartFrom,
        wanted_image: &ImageDigest,
        shape: &Shape,
        memory_is_saved: bool,
    ) -> Result<Self, Error> {
        let disk = host.storage.disks.at(&paths.dir);
        let begin = match start_from {
            StartFrom::Disk if disk.exists() => Begin::Disk,
            StartFrom::Disk => Begin::Nothing,
            StartFrom::SavedMemory => {
                Begin::Suspended(suspended(host, paths, shape, memory_is_saved)?)
            }
            StartFrom::Snapshot { snapshot_id } => snapshot(host, snapshot_id, shape)?,
        };
        let image_digest = match &begin {
            Begin::Nothing => wanted_image.clone(),
            Begin::Disk | Begin::Suspended(_) => {
                disk.chain()?.map_or_else(|| wanted_image.clone(), |chain| chain.image_digest)
            }
            Begin::SnapshotDisk(snapshot)
            | Begin::SnapshotMemory(SnapshotMemory { snapshot, .. }) => {
                snapshot.manifest.image_digest.clone()
            }
        };
        let image = host.images.by_digest(&image_digest).map_err(|error| {
            tracing::warn!(%error, "image not usable");
            Error::NoSuchImage(image_digest.to_string())
        })?;
        let boots = match &begin {
            Begin::Nothing | Begin::Disk | Begin::SnapshotDisk(_) => true,
            Begin::Suspended(_) | Begin::SnapshotMemory(_) => false,
        };
        let boot = boots
            .then(|| host.images.boot_files())
            .transpose()
            .map_err(|error| Error::NoBootFiles(error.to_string()))?;
        let key = boot
            .as_ref()
            .filter(|_| matches!(begin, Begin::Nothing))
            .and_then(|boot| host.templates.key(host, &image_digest, boot, shape));
        let base_bytes = image.disk_bytes();
        let defaults = image.defaults();
        Ok(Self { image_digest, base: image.disk, base_bytes, defaults, boot, key, begin })
    }
}

/// The memory that belongs to the workspace's disk.
fn suspended(
    host: &Host,
    paths: &VmPaths,
    shape: &Shape,
    memory_is_saved: bool,
) -> Result<Sealed, Error> {
    let unusable = |problem: &str| Error::SavedState {
        path: paths.suspended.clone(),
        problem: problem.to_owned(),
    };
    // The ledger has the last word: memory that was spent must never be loaded on a disk that has
    // changed since.
    if !memory_is_saved {
        return Err(unusable("is not there"));
    }
    let sealed = host.storage.states.open(&paths.suspended)?;
    let sealed = sealed.ok_or_else(|| unusable("is missing"))?;
    match sealed.manifest.about {
        About::SuspendedMemory { .. } => {}
        About::Template | About::Snapshot { .. } | About::PromotedMemory { .. } => {
            return Err(unusable("is something else"));
        }
    }
    check_machine(host, &sealed, shape)?;
    if sealed.file(STATE_FILE).is_none() {
        return Err(unusable("has no state"));
    }
    Ok(sealed)
}

fn snapshot(host: &Host, snapshot_id: SnapshotId, shape: &Shape) -> Result<Begin, Error> {
    let states = &host.storage.states;
    let place = host.layout.snapshot(snapshot_id);
    let snapshot = states.open(&place)?.ok_or(Error::NoSuchSnapshot)?;
    match snapshot.manifest.about {
        About::Snapshot { .. } => {}
        About::Template | About::SuspendedMemory { .. } | About::PromotedMemory { .. } => {
            let problem = "is no snapshot".to_owned();
            return Err(Error::SavedState { path: place, problem });
        }
    }
    if snapshot.file(STATE_FILE).is_none() || !same_machine(&snapshot.manifest.shape, shape) {
        return Ok(Begin::SnapshotDisk(snapshot));
    }
    check_machine(host, &snapshot, shape)?;
    let stream = SnapshotMemory::stream(snapshot_id, snapshot)?;
    // Shared memory is faster to start from; if it is not as it should be, the snapshot itself is.
    let promoted = host.promotions.may_use(snapshot_id, Instant::now());
    let promoted = promoted.then(|| promotion::of_snapshot(host, snapshot_id)).flatten();
    let promoted = promoted.filter(|promoted| check_machine(host, promoted, shape).is_ok());
    // It may be removed meanwhile.
    let promoted = promoted.filter(|found| states.used(found, host.environment.now()).is_ok());
    Ok(Begin::SnapshotMemory(match promoted {
        Some(promoted) => stream.shared(promoted)?,
        None => stream,
    }))
}

/// Whether a machine of one shape can go on as one of the other.
fn same_machine(saved: &Shape, wanted: &Shape) -> bool {
    saved.vcpu_count == wanted.vcpu_count
        && saved.memory_mib == wanted.memory_mib
        && saved.disk_mib == wanted.disk_mib
}

fn check_machine(host: &Host, sealed: &Sealed, shape: &Shape) -> Result<(), Error> {
    let fingerprint = host.vmm.fingerprint(&machine_of(shape, host.cable()));
    if sealed.manifest.fingerprint.as_ref() == Some(&fingerprint) {
        return Ok(());
    }
    let problem = "was saved of a machine that does not exist here any more".to_owned();
    Err(Error::SavedState { path: sealed.place().to_owned(), problem })
}
