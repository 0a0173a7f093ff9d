//! A damaged snapshot is refused, whatever of it is damaged, and costs nobody anything.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::{
    fs::{self, OpenOptions, Permissions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
};

use skerry_internal_api::{NodeApi, NodeError, SnapshotContents, StartFrom, VmPhase};
use skerry_model::{SnapshotId, WorkspaceId};
use support::{GRACEFUL, World, assert_running, bounded};

const ID: WorkspaceId = WorkspaceId::from_u128(1);
const SNAPSHOT: SnapshotId = SnapshotId::from_u128(100);

/// The snapshot's layer, its manifest and its state, as far as they are there.
fn files(world: &World) -> Vec<PathBuf> {
    let place = world.data_dir().join("snapshots").join(SNAPSHOT.to_string());
    let layers = world.data_dir().join("layers");
    let layers = fs::read_dir(layers).unwrap().map(|entry| entry.unwrap().path());
    let layers = layers.filter(|path| path.extension().is_some_and(|found| found == "qcow2"));
    layers.chain(fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path())).collect()
}

fn flip(path: &Path, at: u64) {
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_with_a_wrong_byte_anywhere_is_refused_and_the_workspace_keeps_its_disk() {
    for contents in [SnapshotContents::Disk, SnapshotContents::DiskAndMemory] {
        bounded(async {
            let world = World::new();
            let node = world.open().await;
            assert_running(&node.ensure_running(world.spec(1, 1)).await.unwrap());
            world.write(1, 8);
            node.take_snapshot(ID, SNAPSHOT, contents).await.unwrap();
            world.write(1, 18);
            node.ensure_stopped(ID, skerry_model::Incarnation(1), GRACEFUL).await.unwrap();

            let files = files(&world);
            assert_eq!(files.len(), if contents == SnapshotContents::Disk { 2 } else { 3 });
            let mut incarnation = 2;
            let mut restore = || {
                let mut spec = world.spec(1, incarnation);
                spec.start_from = StartFrom::Snapshot { snapshot_id: SNAPSHOT };
                incarnation += 1;
                spec
            };
            for file in &files {
                let length = fs::metadata(file).unwrap().len();
                // The last byte of a manifest is a line break, which says nothing.
                for at in [0, length / 2, length - 2] {
                    flip(file, at);
                    let error = node.ensure_running(restore()).await.unwrap_err();
                    let NodeError::SavedStateUnusable(problem) = &error else {
                        panic!("{} at {at}: {error:?}", file.display());
                    };
                    // The VMM may be the first to see that a state is none: then the snapshot is named.
                    let name = file.file_name().unwrap().to_string_lossy();
                    let named = problem.contains(&*name) || problem.contains(&SNAPSHOT.to_string());
                    assert!(named, "{problem}");
                    assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Stopped);
                    flip(file, at);
                    // The layer is the workspace's own as well.
                    assert_eq!(world.written(1), [8, 18]);
                }
            }
            assert_running(&node.ensure_running(restore()).await.unwrap());
            assert_eq!(world.written(1), [8]);
            node.ensure_deleted(ID).await.unwrap();
        })
        .await;
    }
}

/// What can become of a file on a disk that lost some of it.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Everything,
    HalfOfIt,
    TheLastByte,
    TheFile,
}

impl Loss {
    const ALL: [Self; 4] = [Self::Everything, Self::HalfOfIt, Self::TheLastByte, Self::TheFile];

    fn happens_to(self, path: &Path, whole: &[u8]) {
        let left = match self {
            Self::Everything => 0,
            Self::HalfOfIt => whole.len() / 2,
            Self::TheLastByte => whole.len() - 1,
            Self::TheFile => return fs::remove_file(path).unwrap(),
        };
        fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        fs::write(path, &whole[..left]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_which_anything_is_missing_is_refused_to_its_workspace_and_to_others() {
    for contents in [SnapshotContents::Disk, SnapshotContents::DiskAndMemory] {
        bounded(async {
            let world = World::new();
            let node = world.open().await;
            assert_running(&node.ensure_running(world.spec(1, 1)).await.unwrap());
            world.write(1, 8);
            node.take_snapshot(ID, SNAPSHOT, contents).await.unwrap();
            world.write(1, 18);
            node.ensure_stopped(ID, skerry_model::Incarnation(1), GRACEFUL).await.unwrap();
            let mut incarnation = 1;
            for file in files(&world) {
                // A manifest is whole without its line break.
                let is_manifest = file.file_name().is_some_and(|name| name == "manifest.json");
                let whole = fs::read(&file).unwrap();
                let mode = fs::metadata(&file).unwrap().permissions();
                for loss in Loss::ALL {
                    if is_manifest && matches!(loss, Loss::TheLastByte) {
                        continue;
                    }
                    loss.happens_to(&file, &whole);
                    incarnation += 1;
                    for workspace in [1, 2] {
                        let mut spec = world.spec(workspace, incarnation);
                        spec.start_from = StartFrom::Snapshot { snapshot_id: SNAPSHOT };
                        let error = node.ensure_running(spec).await.unwrap_err();
                        let refused = matches!(
                            error,
                            NodeError::SavedStateUnusable(_) | NodeError::NoSuchSnapshot
                        );
                        assert!(refused, "{loss:?} of {}: {error:?}", file.display());
                    }
                    assert_eq!(node.inspect(ID).await.unwrap().phase, VmPhase::Stopped);
                    let other = WorkspaceId::from_u128(2);
                    node.ensure_deleted(other).await.unwrap();
                    assert_eq!(node.inspect(other).await, None);
                    fs::write(&file, &whole).unwrap();
                    fs::set_permissions(&file, mode.clone()).unwrap();
                    // The layer is the workspace's own as well.
                    assert_eq!(world.written(1), [8, 18], "{loss:?} of {}", file.display());
                }
            }
            let mut spec = world.spec(1, incarnation + 1);
            spec.start_from = StartFrom::Snapshot { snapshot_id: SNAPSHOT };
            assert_running(&node.ensure_running(spec).await.unwrap());
            assert_eq!(world.written(1), [8]);
            node.ensure_deleted(ID).await.unwrap();
        })
        .await;
    }
}
