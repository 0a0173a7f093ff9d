//! What the node does to volumes beside any VM, and whom it asks where a VM has one.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use skerry_internal_api::{
    ByteStream, ListDepth, NodeError, RemoveDepth, VmSpec, VolumeEntry, VolumeFiles, VolumeListing,
    WriteMode,
};
use skerry_model::{CheckpointId, VolumeId, WorkspaceId};

use super::Node;
use crate::{
    error::{Error, blocking},
    guest::GuestVolume,
    host::StepFailed,
    vm::{Request, Slot},
    volumes::{Helpers, VolumeUser, Volumes},
};

/// How often the writer of a volume may change while a checkpoint of it is asked for.
const CHANGES_OF_WRITER: u32 = 8;

impl Node {
    pub(super) async fn with_volumes<T: Send + 'static>(
        &self,
        step: &'static str,
        work: impl FnOnce(&Volumes) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, NodeError> {
        if let Some(error) = self.ending() {
            return Err(error);
        }
        let volumes = Arc::clone(&self.host.volumes);
        blocking(move || work(&volumes))
            .await
            .map_err(StepFailed::at(step))
            .map_err(|failed| failed.report("working on volumes"))
    }

    /// The workspace whose VM lies in this directory; `None` for one that is nobody's.
    fn workspace_in(&self, dir: &Path) -> Option<WorkspaceId> {
        let number: WorkspaceId = dir.file_name()?.to_str()?.parse().ok()?;
        (self.host.layout.vm(number).dir == dir).then_some(number)
    }

    /// Who serves the files of a volume: the VM that writes it, or a helper.
    pub(super) async fn files_of_volume(
        &self,
        volume_id: VolumeId,
    ) -> Result<Arc<dyn VolumeFiles>, NodeError> {
        for _ in 0..CHANGES_OF_WRITER {
            let user = self.with_volumes("volume_files", move |all| all.user(volume_id)).await?;
            let workspace_id = match &user {
                VolumeUser::Asleep => return Err(NodeError::NotRunning),
                VolumeUser::Vm(dir) => self.workspace_in(dir),
                VolumeUser::Nobody => None,
            };
            let found: Result<Arc<dyn VolumeFiles>, NodeError> = match workspace_id {
                Some(workspace_id) => {
                    let request = |_: &Slot, answer| Request::VolumeFiles { volume_id, answer };
                    let volume = self.ask_owner(workspace_id, request).await;
                    volume.map(|volume| Arc::new(Attached(volume)) as _)
                }
                None => {
                    Helpers::files(&self.host, volume_id).await.map(|files| Arc::new(files) as _)
                }
            };
            match found {
                // Another came, or the one that was asked has gone.
                Err(NodeError::VolumeInUse | NodeError::NoSuchVm) => {}
                found => return found,
            }
        }
        Err(NodeError::VolumeInUse)
    }

    /// Makes a volume larger: by the VM that writes it, or in its record.
    pub(super) async fn grow_volume(
        &self,
        volume_id: VolumeId,
        size_bytes: u64,
    ) -> Result<(), NodeError> {
        let _no_helper = Helpers::without(&self.host, volume_id).await;
        for _ in 0..CHANGES_OF_WRITER {
            let user = self.with_volumes("growth_recorded", move |all| all.user(volume_id)).await?;
            let grown = match user {
                // Whoever goes on from that memory knows the old size.
                VolumeUser::Asleep => return Err(NodeError::NotRunning),
                VolumeUser::Vm(dir) => match self.workspace_in(&dir) {
                    Some(workspace_id) => {
                        let request = |_: &Slot, answer| Request::GrowVolume {
                            volume_id,
                            size_bytes,
                            answer,
                        };
                        self.ask_owner(workspace_id, request).await
                    }
                    None => Err(NodeError::VolumeInUse),
                },
                VolumeUser::Nobody => {
                    let grow = move |all: &Volumes| all.grow_at_rest(volume_id, size_bytes);
                    self.with_volumes("growth_recorded", grow).await
                }
            };
            match grown {
                Err(NodeError::VolumeInUse | NodeError::NoSuchVm) => {}
                grown => return grown,
            }
        }
        Err(NodeError::VolumeInUse)
    }

    /// Makes the disk of a VM that runs larger.
    pub(super) async fn grow_disk(&self, spec: VmSpec) -> Result<(), NodeError> {
        let (workspace_id, spec) = (spec.workspace_id, Arc::new(spec));
        let request = |_: &Slot, answer| Request::GrowDisk { spec: Arc::clone(&spec), answer };
        self.ask_owner(workspace_id, request).await
    }

    /// Makes a checkpoint: by the VM that writes the volume, or of its files.
    pub(super) async fn make_checkpoint(
        &self,
        volume_id: VolumeId,
        checkpoint_id: CheckpointId,
    ) -> Result<(), NodeError> {
        let _no_helper = Helpers::without(&self.host, volume_id).await;
        for _ in 0..CHANGES_OF_WRITER {
            let writer = move |volumes: &Volumes| volumes.writer(volume_id);
            let made = match self.with_volumes("checkpoint_drafted", writer).await? {
                Some(workspace_id) => {
                    let request =
                        |_: &Slot, answer| Request::Checkpoint { volume_id, checkpoint_id, answer };
                    self.ask_owner(workspace_id, request).await
                }
                None => {
                    self.with_volumes("checkpoint_recorded", move |volumes| {
                        volumes.checkpoint_at_rest(volume_id, checkpoint_id)
                    })
                    .await
                }
            };
            match made {
                // Another came, or the one that was asked has gone.
                Err(NodeError::VolumeInUse | NodeError::NoSuchVm) => {}
                made => return made,
            }
        }
        Err(NodeError::VolumeInUse)
    }
}

/// The files of a volume that a workspace's VM has mounted.
struct Attached(GuestVolume);

#[async_trait]
impl VolumeFiles for Attached {
    async fn stat(&self, path: &str) -> Result<VolumeEntry, NodeError> {
        self.0.stat(path).await
    }

    async fn list(
        &self,
        path: &str,
        depth: ListDepth,
        limit: u32,
    ) -> Result<VolumeListing, NodeError> {
        self.0.list(path, depth, limit).await
    }

    async fn read(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<ByteStream, NodeError> {
        self.0.read(path, offset, length).await
    }

    async fn write(
        &self,
        path: &str,
        mode: u32,
        how: WriteMode,
        content: ByteStream,
    ) -> Result<u64, NodeError> {
        self.0.write(path, mode, how, content).await
    }

    async fn remove(&self, path: &str, depth: RemoveDepth) -> Result<(), NodeError> {
        self.0.remove(path, depth).await
    }
}
