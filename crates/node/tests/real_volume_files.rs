//! Files of volumes, and volumes and disks that grow, with real guests: QEMU, the built kernel and agent,
//! the base image.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use skerry_internal_api::{
    ByteStream, FileKind, ListDepth, NodeApi, NodeError, RemoveDepth, StartFrom, StopMode, VmSpec,
    VolumeFiles, WriteMode,
};
use skerry_model::{
    DiskMib, Incarnation, MountMode, MountPath, VolumeId, VolumeMount, VolumeSlot, WorkspaceId,
};
use skerry_node::Node;
use support::{
    GRACEFUL,
    real::{RealWorld, bounded, stdout},
};

const DATA: VolumeId = VolumeId::from_u128(7);
const MIB: u64 = 1 << 20;

fn mount(mode: MountMode) -> VolumeMount {
    let (slot, path) = (VolumeSlot::new(1).unwrap(), MountPath::parse("/data").unwrap());
    VolumeMount { volume_id: DATA, slot, path, mode, checkpoint_id: None }
}

fn bytes(content: &'static [u8]) -> ByteStream {
    stream::iter(content.chunks(7).map(|piece| Ok(Bytes::from_static(piece)))).boxed()
}

async fn content(files: &dyn VolumeFiles, path: &str) -> Vec<u8> {
    let pieces: Vec<Bytes> = files.read(path, 0, None).await.unwrap().try_collect().await.unwrap();
    pieces.concat()
}

async fn paths(files: &dyn VolumeFiles, path: &str) -> Vec<String> {
    let listing = files.list(path, ListDepth::All, 1000).await.unwrap();
    assert!(!listing.truncated);
    listing.entries.into_iter().map(|entry| entry.path).collect()
}

async fn write(files: &dyn VolumeFiles, path: &str, content: &'static [u8]) {
    let size = files.write(path, 0o640, WriteMode::Replace, bytes(content)).await.unwrap();
    assert_eq!(size, content.len() as u64);
}

/// Directories of VMs that are nobody's.
fn helpers(world: &RealWorld) -> usize {
    std::fs::read_dir(world.dir.path().join("data/pool")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_served_whether_a_workspace_has_the_volume_or_not() {
    bounded(async {
        let world = RealWorld::new().await;
        let node = world.open().await;
        node.ensure_volume(DATA, 64 * MIB).await.unwrap();
        let missing = node.volume_files(VolumeId::from_u128(8)).await.err();
        assert_eq!(missing, Some(NodeError::NoSuchVolume));

        // Nobody has it.
        let files = node.volume_files(DATA).await.unwrap();
        assert_eq!(paths(&*files, "").await, Vec::<String>::new());
        write(&*files, "a/b/file", b"hello from outside").await;
        write(&*files, "a/b/file", b"hello again").await;
        assert_eq!(content(&*files, "a/b/file").await, b"hello again");
        assert_eq!(paths(&*files, "").await, ["a", "a/b", "a/b/file"]);
        let found = files.stat("a/b/file").await.unwrap();
        assert_eq!((found.kind, found.size_bytes, found.mode), (FileKind::File, 11, 0o640));
        let twice = files.write("a/b/file", 0o600, WriteMode::CreateNew, bytes(b"x")).await;
        assert!(matches!(&twice, Err(NodeError::Guest { code: "exists", .. })), "{twice:?}");
        for path in ["/etc/passwd", "../x", "a/../../x"] {
            let refused = files.stat(path).await;
            assert!(matches!(&refused, Err(NodeError::Invalid { .. })), "{path}: {refused:?}");
        }
        let none = files.read("none", 0, None).await.err();
        assert!(matches!(&none, Some(NodeError::NoSuchFile(_))), "{none:?}");
        assert!(node.list().await.is_empty(), "the helper is nobody's");
        assert_eq!(helpers(&world), 1);

        // A workspace gets it at once; what was written is there, and nothing of the helper is left.
        let id = world.id;
        let spec = VmSpec { volumes: vec![mount(MountMode::ReadWrite)], ..world.spec(1, 256) };
        node.ensure_running(spec).await.unwrap();
        assert_eq!(helpers(&world), 0);
        assert_eq!(stdout(&node, id, "cat /data/a/b/file").await, "hello again");
        let late = files.stat("a").await;
        assert_eq!(late.err(), Some(NodeError::VolumeInUse), "it is the workspace's now");

        // Now through the workspace, and never out of the volume.
        let plant = "echo secret > /root/secret; ln -s /root/secret /data/absolute
            ln -s ../root/secret /data/upwards; ln -s .. /data/out; ln -s a/b /data/near
            ln -s /proc/self/root /data/magic; mkdir -p /data/other; mount -t tmpfs none /data/other
            echo hidden > /data/other/hidden; mkfifo /data/pipe; echo inside > /data/inside";
        stdout(&node, id, plant).await;
        let files = node.volume_files(DATA).await.unwrap();
        assert_eq!(content(&*files, "inside").await, b"inside\n");
        assert_eq!(content(&*files, "near/file").await, b"hello again");
        for path in ["absolute", "upwards", "out/root/secret", "magic/root/secret", "other/hidden"]
        {
            assert!(files.read(path, 0, None).await.is_err(), "{path}");
            let written =
                files.write(&format!("{path}/x"), 0o644, WriteMode::Replace, bytes(b"x")).await;
            assert!(written.is_err(), "{path}");
        }
        // A link is replaced, not followed.
        write(&*files, "absolute", b"public").await;
        assert_eq!(stdout(&node, id, "cat /root/secret").await, "secret\n");
        let listed = paths(&*files, "").await;
        assert!(listed.contains(&"pipe".to_owned()), "{listed:?}");
        assert!(!listed.contains(&"other/hidden".to_owned()), "{listed:?}");
        let not_empty = files.remove("a", RemoveDepth::One).await;
        assert!(
            matches!(&not_empty, Err(NodeError::Guest { code: "exists", .. })),
            "{not_empty:?}"
        );
        files.remove("a", RemoveDepth::All).await.unwrap();
        assert_eq!(stdout(&node, id, "ls /data | grep -cx a; umount /data/other").await, "0\n");

        // While it is saved, nobody may.
        node.ensure_suspended(id, Incarnation(1)).await.unwrap();
        assert_eq!(node.volume_files(DATA).await.err(), Some(NodeError::NotRunning));
        node.shutdown().await;
        drop(node);
        let node = world.open().await;
        assert_eq!(node.volume_files(DATA).await.err(), Some(NodeError::NotRunning));
        let again = VmSpec {
            volumes: vec![mount(MountMode::ReadWrite)],
            start_from: StartFrom::SavedMemory,
            ..world.spec(2, 256)
        };
        node.ensure_running(again).await.unwrap();
        let files = node.volume_files(DATA).await.unwrap();
        assert_eq!(content(&*files, "absolute").await, b"public");

        // Killed: what was acknowledged is there, by the next helper, and it goes with the node.
        write(&*files, "last", b"acknowledged").await;
        node.ensure_stopped(id, Incarnation(2), StopMode::Kill).await.unwrap();
        let files = node.volume_files(DATA).await.unwrap();
        assert_eq!(content(&*files, "last").await, b"acknowledged");
        node.ensure_deleted(id).await.unwrap();
        node.ensure_volume_deleted(DATA).await.unwrap();
        assert_eq!(helpers(&world), 0);
        node.shutdown().await;
        assert_eq!(world.left(), Vec::<String>::new());
    })
    .await;
}

async fn size_mib(node: &Node, id: WorkspaceId, path: &str) -> u64 {
    let shown = stdout(node, id, &format!("df -Pm {path} | tail -1 | awk '{{print $2}}'")).await;
    shown.trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_and_disks_grow_under_their_guests_and_at_rest_and_keep_what_is_on_them() {
    bounded(async {
        let world = RealWorld::new().await;
        let node = world.open().await;
        node.ensure_volume(DATA, 64 * MIB).await.unwrap();
        let (id, rw) = (world.id, mount(MountMode::ReadWrite));
        let spec = VmSpec { volumes: vec![rw.clone()], ..world.spec(1, 256) };
        node.ensure_running(spec.clone()).await.unwrap();
        stdout(&node, id, "echo kept > /data/file; sync").await;
        let before = size_mib(&node, id, "/data").await;

        // Under the guest, twice the same, and with a file open all the while.
        stdout(&node, id, "(while true; do echo x >> /data/log; done) > /dev/null 2>&1 &").await;
        for _ in 0..2 {
            node.ensure_volume_size(DATA, 256 * MIB).await.unwrap();
        }
        let after = size_mib(&node, id, "/data").await;
        assert!(before < 64 && after > 200, "{before} to {after} MiB");
        // Less than it has is no wish.
        node.ensure_volume_size(DATA, 128 * MIB).await.unwrap();
        assert_eq!(node.volumes().await.unwrap()[0].size_bytes, 256 * MIB);

        // The root disk.
        let before = size_mib(&node, id, "/").await;
        let mut larger = spec.clone();
        larger.shape.disk_mib = DiskMib(1024);
        for _ in 0..2 {
            node.ensure_disk_size(larger.clone()).await.unwrap();
        }
        let after = size_mib(&node, id, "/").await;
        assert!(after > before + 600, "{before} to {after} MiB");

        // Freed blocks are freed on the host.
        stdout(&node, id, "dd if=/dev/urandom of=/data/large bs=1M count=100 2>/dev/null; sync")
            .await;
        let full = node.volumes().await.unwrap()[0].used_bytes;
        stdout(&node, id, "rm /data/large; sync; fstrim /data").await;
        let empty = node.volumes().await.unwrap()[0].used_bytes;
        assert!(full > 100 * MIB && empty + 90 * MIB < full, "{full} to {empty}");

        // A power cut, and growth at rest: everything that was acknowledged is there.
        stdout(&node, id, "echo more >> /data/file; sync /data/file").await;
        node.ensure_stopped(id, Incarnation(1), StopMode::Kill).await.unwrap();
        node.ensure_volume_size(DATA, 512 * MIB).await.unwrap();
        let files = node.volume_files(DATA).await.unwrap();
        assert_eq!(content(&*files, "file").await, b"kept\nmore\n");
        drop(files);
        let again = VmSpec { incarnation: Incarnation(2), ..larger };
        node.ensure_running(again).await.unwrap();
        let after = size_mib(&node, id, "/data").await;
        assert!(after > 450, "{after} MiB");
        assert_eq!(stdout(&node, id, "cat /data/file").await, "kept\nmore\n");
        node.ensure_stopped(id, Incarnation(2), GRACEFUL).await.unwrap();
        node.ensure_deleted(id).await.unwrap();
        node.ensure_volume_deleted(DATA).await.unwrap();
        node.shutdown().await;
    })
    .await;
}
