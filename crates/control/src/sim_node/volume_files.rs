//! Files of the simulated node's volumes, in memory. Whoever may have them is decided as by a real node.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use skerry_internal_api::{
    ByteStream, FileKind, ListDepth, NodeError, RemoveDepth, VmPhase, VmSpec, VolumeEntry,
    VolumeFiles, VolumeListing, WriteMode,
};
use skerry_model::{MountMode, VolumeId};

use super::{Point, SimNode};

const ENTRIES_MAX: usize = 10_000;
const PIECE: usize = 64 * 1024;

/// What is on a volume: files by their paths; directories with their own.
#[derive(Clone, Debug, Default)]
pub(super) struct SimVolume(Arc<Mutex<BTreeMap<String, Node>>>);

#[derive(Clone, Debug)]
enum Node {
    Directory,
    File { bytes: Bytes, mode: u32 },
}

fn refusal(code: &'static str, message: String) -> NodeError {
    NodeError::Guest { code, message }
}

/// As the agent: relative, without `.`, `..` and empty parts.
fn checked(path: &str) -> Result<&str, NodeError> {
    let plain = path.is_empty() || path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    match plain && !path.contains('\0') {
        true => Ok(path),
        false => Err(NodeError::Invalid {
            field: "request",
            problem: format!("{path:?} is not a path below the volume's top"),
        }),
    }
}

fn entry(path: &str, node: &Node) -> VolumeEntry {
    let (kind, size_bytes, mode) = match node {
        Node::Directory => (FileKind::Directory, 4096, 0o755),
        Node::File { bytes, mode } => (FileKind::File, bytes.len() as u64, *mode),
    };
    let path = path.to_owned();
    VolumeEntry { path, kind, size_bytes, mode, uid: 0, gid: 0, modified_unix_ms: 0 }
}

impl SimVolume {
    fn nodes(&self) -> MutexGuard<'_, BTreeMap<String, Node>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn missing(path: &str) -> NodeError {
    NodeError::NoSuchFile(path.to_owned())
}

#[async_trait]
impl VolumeFiles for SimVolume {
    async fn stat(&self, path: &str) -> Result<VolumeEntry, NodeError> {
        let path = checked(path)?;
        if path.is_empty() {
            return Ok(entry("", &Node::Directory));
        }
        let nodes = self.nodes();
        nodes.get(path).map(|node| entry(path, node)).ok_or_else(|| missing(path))
    }

    async fn list(
        &self,
        path: &str,
        depth: ListDepth,
        limit: u32,
    ) -> Result<VolumeListing, NodeError> {
        let path = checked(path)?;
        let nodes = self.nodes();
        let prefix = match (path, nodes.get(path)) {
            ("", _) => String::new(),
            (_, None) => return Err(missing(path)),
            (_, Some(Node::Directory)) => format!("{path}/"),
            (_, Some(file)) => {
                return Ok(VolumeListing { entries: vec![entry(path, file)], truncated: false });
            }
        };
        let below = nodes.iter().filter_map(|(name, node)| {
            let inner = name.strip_prefix(&prefix)?;
            let is_near = !inner.contains('/');
            (is_near || depth == ListDepth::All).then(|| entry(name, node))
        });
        let limit = usize::try_from(limit).unwrap_or(ENTRIES_MAX).clamp(1, ENTRIES_MAX);
        let mut entries: Vec<VolumeEntry> = below.take(limit + 1).collect();
        let truncated = entries.len() > limit;
        entries.truncate(limit);
        Ok(VolumeListing { entries, truncated })
    }

    async fn read(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<ByteStream, NodeError> {
        let path = checked(path)?;
        let found = self.nodes().get(path).cloned();
        match found {
            None if !path.is_empty() => Err(missing(path)),
            None | Some(Node::Directory) => {
                Err(refusal("is_directory", format!("{path}: is a directory")))
            }
            Some(Node::File { bytes, .. }) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let most = usize::try_from(length.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
                let end = start.saturating_add(most).min(bytes.len());
                let bytes = bytes.slice(start..end);
                let pieces: Vec<_> =
                    bytes.chunks(PIECE).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
                Ok(stream::iter(pieces).boxed())
            }
        }
    }

    async fn write(
        &self,
        path: &str,
        mode: u32,
        how: WriteMode,
        mut content: ByteStream,
    ) -> Result<u64, NodeError> {
        let path = checked(path)?;
        let mut bytes = Vec::new();
        while let Some(piece) = content.next().await {
            bytes.extend_from_slice(&piece?);
        }
        let mut nodes = self.nodes();
        match (nodes.get(path), how) {
            (_, WriteMode::Append) => {
                let problem = "files of volumes are written as a whole".to_owned();
                return Err(NodeError::Invalid { field: "request", problem });
            }
            (Some(Node::Directory), _) => {
                return Err(refusal("is_directory", format!("{path}: is a directory")));
            }
            (Some(Node::File { .. }), WriteMode::CreateNew) => {
                return Err(refusal("exists", format!("{path}: file exists")));
            }
            (Some(Node::File { .. }) | None, WriteMode::Replace) | (None, WriteMode::CreateNew) => {
            }
        }
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        for parent in parents {
            if let Node::File { .. } =
                nodes.entry(parent.to_owned()).or_insert_with(|| Node::Directory)
            {
                return Err(refusal("not_directory", format!("{parent}: not a directory")));
            }
        }
        let size_bytes = bytes.len() as u64;
        nodes.insert(path.to_owned(), Node::File { bytes: bytes.into(), mode });
        Ok(size_bytes)
    }

    async fn remove(&self, path: &str, depth: RemoveDepth) -> Result<(), NodeError> {
        let path = checked(path)?;
        let mut nodes = self.nodes();
        if !nodes.contains_key(path) {
            return Err(missing(path));
        }
        let prefix = format!("{path}/");
        let is_empty = !nodes.keys().any(|name| name.starts_with(&prefix));
        match (is_empty, depth) {
            (false, RemoveDepth::One) => {
                Err(refusal("exists", format!("{path}: directory not empty")))
            }
            (true, _) | (false, RemoveDepth::All) => {
                nodes.retain(|name, _| name != path && !name.starts_with(&prefix));
                Ok(())
            }
        }
    }
}

impl SimNode {
    /// As a real node: by the VM that writes it, which has to run, or by one of its own.
    pub(super) fn files_of_volume(&self, id: VolumeId) -> Result<Arc<dyn VolumeFiles>, NodeError> {
        let mut state = self.state();
        state.called_for_volume(id)?;
        let volume = state.volumes.files(id);
        Ok(Arc::new(volume))
    }

    pub(super) fn grow_volume(&self, id: VolumeId, size_bytes: u64) -> Result<(), NodeError> {
        let mut state = self.state();
        state.called(Point::GrowVolume, "ensure_volume_size".to_owned())?;
        state.called_for_volume(id)?;
        state.volumes.grow(id, size_bytes);
        Ok(())
    }

    pub(super) fn grow_disk(&self, spec: &VmSpec) -> Result<(), NodeError> {
        self.must_run(spec.workspace_id, spec.incarnation)?;
        self.state().called(Point::GrowDisk, format!("ensure_disk_size {}", spec.shape.disk_mib))
    }
}

impl super::SimState {
    /// That the volume is there, and that who writes it does not stand still.
    fn called_for_volume(&mut self, id: VolumeId) -> Result<(), NodeError> {
        self.forget_ended();
        if !self.volumes.has(id) {
            return Err(NodeError::NoSuchVolume);
        }
        let writer = self.volumes.writer(id);
        let stands_still =
            writer.and_then(|writer| self.vms.get(&writer)).is_some_and(|vm| {
                match vm.report.phase {
                    VmPhase::Running | VmPhase::Stopped => false,
                    VmPhase::Starting
                    | VmPhase::Paused
                    | VmPhase::Suspending
                    | VmPhase::Suspended
                    | VmPhase::Stopping => true,
                }
            });
        match stands_still {
            true => Err(NodeError::NotRunning),
            false => Ok(()),
        }
    }
}

/// Whether a mount is one for writing.
pub(super) fn writes(mode: MountMode) -> bool {
    match mode {
        MountMode::ReadWrite => true,
        MountMode::ReadOnly => false,
    }
}
