//! What a fake guest has in its memory and on its disk: numbers, so that a test can tell whether one
//! was lost.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use serde_json::Value;
use skerry_internal_api::{NodeApi, NodeError, SnapshotContents, SnapshotInfo, StartFrom};
use skerry_model::{SnapshotId, WorkspaceId};
use skerry_node::Node;
use skerry_vmm::{
    Exit, Vmm, VmmRecord,
    fake::{FakeDisk, FakeMemory, FakeVmm, VmState},
};
use tokio::task::JoinHandle;

use super::{World, assert_running};

/// An overlay's own structures end here; what a fake guest writes follows.
const DATA_AT: usize = 256 * 1024;

impl World {
    /// The process of a workspace's VM.
    pub fn process(&self, workspace: u128) -> Option<VmmRecord> {
        let id = WorkspaceId::from_u128(workspace).to_string();
        let mut running = self.host.running().into_iter();
        running.find(|record| record.run_dir.to_str().unwrap().contains(&id))
    }

    /// Whether the VM of a workspace runs or stands still.
    pub fn vm_state(&self, workspace: u128) -> Option<VmState> {
        self.host.state_of(&self.process(workspace)?)
    }

    /// How a VM will have ended.
    pub async fn exit_of(&self, process: &VmmRecord) -> JoinHandle<Exit> {
        let vm = FakeVmm::new(self.host.clone()).adopt(process).await.unwrap();
        tokio::spawn(async move { vm.wait_exit().await })
    }

    /// What the guest of a workspace remembers.
    pub fn remembered(&self, workspace: u128) -> Vec<u64> {
        numbers(&self.memory_of(workspace).read())
    }

    /// Has the guest of a workspace remember one more number.
    pub fn remember(&self, workspace: u128, number: u64) {
        self.remember_many(workspace, number, 1);
    }

    /// Has the guest of a workspace remember a number so many times.
    pub fn remember_many(&self, workspace: u128, number: u64, times: usize) {
        let memory = self.memory_of(workspace);
        let mut bytes = memory.read();
        bytes.extend(number.to_le_bytes().repeat(times));
        memory.write(&bytes);
    }

    fn memory_of(&self, workspace: u128) -> FakeMemory {
        let process = self.process(workspace).expect("the VM runs");
        self.memories.borrow()[&process.run_dir].clone()
    }

    /// Has the guest of a workspace write one more number to its disk.
    pub fn write(&self, workspace: u128, number: u64) {
        let process = self.process(workspace).expect("the VM runs");
        let disk = self.host.disk_of(&process).unwrap();
        let mut overlay = OpenOptions::new().append(true).open(disk.overlay).unwrap();
        overlay.write_all(&number.to_le_bytes()).unwrap();
    }

    /// What is on the disk of a workspace, whether its VM runs or not, in the order in which it was
    /// written. What the record says and what the VM has are the same disk.
    pub fn written(&self, workspace: u128) -> Vec<u64> {
        let recorded = self.recorded_disk(workspace);
        if let Some(process) = self.process(workspace) {
            let FakeDisk { overlay, layers, .. } = self.host.disk_of(&process).unwrap();
            // It was given a frozen overlay under its earlier name.
            let names = |files: &[PathBuf]| -> Vec<OsString> {
                files.iter().map(|file| file.file_name().unwrap().to_owned()).collect()
            };
            let seen: Vec<PathBuf> = std::iter::once(overlay).chain(layers).collect();
            assert_eq!(names(&seen), names(&recorded), "the VM has another disk than is recorded");
        }
        content(&recorded)
    }

    /// The files of a workspace's disk, the uppermost first.
    pub fn recorded_disk(&self, workspace: u128) -> Vec<PathBuf> {
        let dir = self.vm_dir(workspace);
        let record: Value = read_json(&dir.join("disk.json"));
        assert!(record["pushing"].is_null(), "{record}");
        let chain = &record["chain"];
        let overlay = chain["overlay"].as_str().map(|id| dir.join(format!("{id}.qcow2")));
        overlay.into_iter().chain(self.layer_files(&chain["layers"])).collect()
    }

    /// What is on the disk of a snapshot.
    pub fn kept(&self, snapshot: u128) -> Vec<u64> {
        let layers = self.layers_of_snapshot(snapshot).into_iter();
        let files = layers.map(|name| self.data_dir().join("layers").join(name));
        content(&files.collect::<Vec<_>>())
    }

    /// The manifest of a snapshot as it lies on the disk.
    pub fn manifest(&self, snapshot: u128) -> Value {
        let id = SnapshotId::from_u128(snapshot).to_string();
        read_json(&self.data_dir().join("snapshots").join(id).join("manifest.json"))
    }

    /// Everything in the directory of snapshots.
    pub fn snapshot_places(&self) -> Vec<String> {
        super::machine::names(&self.data_dir().join("snapshots"))
    }

    /// The layers that the disk of a workspace stands on.
    pub fn layers_of_workspace(&self, workspace: u128) -> Vec<String> {
        let record = read_json(&self.vm_dir(workspace).join("disk.json"));
        file_names(&self.layer_files(&record["chain"]["layers"]))
    }

    /// The layers of the disk of a snapshot.
    pub fn layers_of_snapshot(&self, snapshot: u128) -> Vec<String> {
        let manifest = &self.manifest(snapshot)["manifest"];
        let ids = manifest["layers"].as_array().unwrap().iter().map(|layer| layer["id"].clone());
        file_names(&self.layer_files(&Value::Array(ids.collect())))
    }

    /// Whatever a workspace that is gone has left.
    pub fn left_alone(&self, workspace: u128) -> Vec<String> {
        let dir = self.vm_dir(workspace);
        let process = self.process(workspace).map(|process| format!("process {}", process.pid));
        let dir = dir.exists().then(|| format!("directory {}", dir.display()));
        process.into_iter().chain(dir).collect()
    }

    fn layer_files(&self, ids: &Value) -> Vec<PathBuf> {
        let ids = ids.as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned());
        ids.map(|id| self.data_dir().join("layers").join(format!("{id}.qcow2"))).collect()
    }
}

/// A VM that runs, with something in its memory and on its disk.
pub async fn running(world: &World) -> Node {
    let node = world.open().await;
    node.ensure_running(world.spec(1, 1)).await.unwrap();
    world.remember(1, 7);
    world.write(1, 8);
    node
}

/// Takes a snapshot of workspace 1.
pub async fn take(
    node: &Node,
    number: u128,
    contents: SnapshotContents,
) -> Result<SnapshotInfo, NodeError> {
    node.take_snapshot(WorkspaceId::from_u128(1), SnapshotId::from_u128(number), contents).await
}

/// Starts workspace 2 from a snapshot.
pub async fn fork(world: &World, node: &Node, number: u128) {
    let mut spec = world.spec(2, 1);
    spec.start_from = StartFrom::Snapshot { snapshot_id: SnapshotId::from_u128(number) };
    assert_running(&node.ensure_running(spec).await.unwrap());
}

fn file_names(files: &[PathBuf]) -> Vec<String> {
    files.iter().map(|file| file.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn content(files: &[PathBuf]) -> Vec<u64> {
    let data = |file: &PathBuf| numbers(fs::read(file).unwrap().get(DATA_AT..).unwrap_or_default());
    files.iter().rev().flat_map(data).collect()
}

fn numbers(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|number| u64::from_le_bytes(number.try_into().unwrap())).collect()
}
