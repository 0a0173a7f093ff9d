//! Disks, layers and saved states of a node, opened together: the books of layers are made from what
//! lies in all the other directories.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{DiskRoom, KnownDigests, SavedStates, states::sweep};
use crate::{
    Error, NodeConfig, NodeEnvironment, disk,
    disk::Disks,
    error::chain,
    layers::{Holder, LayerId, LayerStore, Named},
    layout::{Layout, make_private_dir, names_in},
};

/// What a node keeps on its disk beside images.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    /// Frozen disk layers.
    pub layers: Arc<LayerStore>,
    /// The disks of workspaces and of the pool's slots.
    pub disks: Disks,
    /// Templates, snapshots, memory of suspended VMs.
    pub states: SavedStates,
    /// Room for more of all that.
    pub room: DiskRoom,
}

impl Storage {
    /// Opens everything below the data directory: what crashes left half-made or half-removed is
    /// gone afterwards, and so are layers that nobody needs. Before anything else of the node runs.
    pub fn open(
        layout: &Layout,
        config: &NodeConfig,
        environment: &NodeEnvironment,
    ) -> Result<Self, Error> {
        let digests = KnownDigests::default();
        let faults = config.faults.clone();
        let mut named = Named::default();
        for parent in [layout.templates_dir(), layout.snapshots_dir()] {
            make_private_dir(&parent)?;
            sweep(&parent)?;
            gather(&parent, &mut named, super::layers_named_by)?;
        }
        for parent in [layout.vms_dir(), layout.pool_dir()] {
            make_private_dir(&parent)?;
            gather(&parent, &mut named, disk::layers_named_by)?;
        }
        crate::volumes::sweep(&layout.volumes_dir())?;
        gather(&layout.volumes_dir(), &mut named, disk::layers_named_by)?;
        for volume in dirs_in(&layout.volumes_dir())? {
            let checkpoints = crate::volumes::checkpoints_dir(&volume);
            if checkpoints.exists() {
                gather(&checkpoints, &mut named, disk::layers_named_by)?;
            }
        }
        // What VMs have beside their own disk: `volume-N`.
        for dir in dirs_in(&layout.vms_dir())? {
            gather(&dir, &mut named, disk::layers_named_by)?;
        }
        // A snapshot's promoted memory and a VM's suspended memory lie one level deeper.
        for parent in [layout.snapshots_dir(), layout.vms_dir()] {
            dirs_in(&parent)?.iter().try_for_each(|dir| sweep(dir))?;
        }
        let layers =
            LayerStore::open(&layout.layers_dir(), named, digests.clone(), faults.clone())?;
        Ok(Self {
            disks: Disks::new(Arc::clone(&layers), environment.clone(), faults.clone()),
            states: SavedStates::new(Arc::clone(&layers), digests, faults),
            room: DiskRoom::new(&layout.data_dir, config.min_disk_free_mib * 1024 * 1024),
            layers,
        })
    }
}

/// Asks every directory in `parent` which layers it names.
fn gather(
    parent: &Path,
    named: &mut Named,
    read: impl Fn(&Path) -> Result<Option<BTreeSet<LayerId>>, Error>,
) -> Result<(), Error> {
    for dir in dirs_in(parent)? {
        match read(&dir) {
            Ok(Some(layers)) if !layers.is_empty() => {
                named.held.insert(Holder(dir), layers);
            }
            Ok(Some(_) | None) => {}
            Err(error) => {
                tracing::error!(error = chain(&error), "what a directory names is not known");
                named.unreadable.push(dir);
            }
        }
    }
    Ok(())
}

/// Whatever else lies there names nothing.
fn dirs_in(parent: &Path) -> Result<Vec<PathBuf>, Error> {
    let paths = names_in(parent)?.into_iter().map(|name| parent.join(name));
    Ok(paths.filter(|path| path.is_dir() && !path.is_symlink()).collect())
}
