//! Volumes in real guests: QEMU, the built kernel and agent, the base image.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::time::Instant;

use skerry_internal_api::{NodeApi, NodeError, StartFrom, StopMode, VmSpec};
use skerry_model::{
    CheckpointId, Incarnation, MountMode, MountPath, VolumeId, VolumeMount, VolumeSlot, WorkspaceId,
};
use support::{
    GRACEFUL,
    real::{RealWorld, bounded, stdout},
};

const DATA: VolumeId = VolumeId::from_u128(7);

fn mount(slot: u8, path: &str, mode: MountMode) -> VolumeMount {
    let (slot, path) = (VolumeSlot::new(slot).unwrap(), MountPath::parse(path).unwrap());
    VolumeMount { volume_id: DATA, slot, path, mode, checkpoint_id: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_workspace_wrote_the_next_reads_whichever_way_the_volume_came() {
    bounded(async {
        let world = RealWorld::new().await;
        let node = world.open().await;
        node.ensure_volume(DATA, 256 << 20).await.unwrap();

        // With the start; a stop leaves it consistent.
        let id = world.id;
        let rw = mount(0, "/data", MountMode::ReadWrite);
        let spec = VmSpec { volumes: vec![rw.clone()], ..world.spec(1, 256) };
        node.ensure_running(spec).await.unwrap();
        stdout(&node, id, "echo one > /data/file").await;

        // Suspended and resumed with the file system mounted.
        node.ensure_suspended(id, Incarnation(1)).await.unwrap();
        let again = VmSpec {
            volumes: vec![rw.clone()],
            start_from: StartFrom::SavedMemory,
            ..world.spec(2, 256)
        };
        node.ensure_running(again).await.unwrap();
        stdout(&node, id, "cat /data/file; echo two >> /data/file").await;
        node.ensure_stopped(id, Incarnation(2), GRACEFUL).await.unwrap();

        // Hot, in another workspace.
        let other = WorkspaceId::from_u128(id.as_u128() ^ 1);
        let spec = VmSpec { workspace_id: other, ..world.spec(1, 256) };
        node.ensure_running(spec).await.unwrap();
        let began = Instant::now();
        let rw = mount(1, "/srv/in", MountMode::ReadWrite);
        node.ensure_volume_attached(other, Incarnation(1), rw).await.unwrap();
        eprintln!("attach: {:?}", began.elapsed());
        assert_eq!(stdout(&node, other, "cat /srv/in/file").await, "one\ntwo\n");

        // Somebody is in it.
        let sit = "cd /srv/in && { sleep 600 > /dev/null 2>&1 < /dev/null & echo $!; }";
        let pid = stdout(&node, other, sit).await;
        let busy = node.ensure_volume_detached(other, Incarnation(1), DATA).await;
        assert!(matches!(&busy, Err(NodeError::Guest { code: "busy", .. })), "{busy:?}");
        stdout(&node, other, &format!("echo three >> /srv/in/file; kill {pid}")).await;
        let gone = format!("while kill -0 {} 2> /dev/null; do sleep 0.05; done", pid.trim());
        stdout(&node, other, &gone).await;
        let began = Instant::now();
        node.ensure_volume_detached(other, Incarnation(1), DATA).await.unwrap();
        eprintln!("detach: {:?}", began.elapsed());
        assert_eq!(stdout(&node, other, "ls /srv/in").await, "");

        // For reading, in another place and slot.
        let ro = mount(3, "/read/only", MountMode::ReadOnly);
        node.ensure_volume_attached(other, Incarnation(1), ro).await.unwrap();
        let script = "cat /read/only/file; touch /read/only/x 2> /dev/null || echo refused";
        assert_eq!(stdout(&node, other, script).await, "one\ntwo\nthree\nrefused\n");
        for workspace in [id, other] {
            node.ensure_deleted(workspace).await.unwrap();
        }
        node.ensure_volume_deleted(DATA).await.unwrap();
        node.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_are_taken_while_a_guest_writes_and_nothing_that_it_had_synced_is_lost() {
    bounded(async {
        let world = RealWorld::new().await;
        let node = world.open().await;
        node.ensure_volume(DATA, 1 << 30).await.unwrap();
        let id = world.id;
        let rw = mount(0, "/data", MountMode::ReadWrite);
        let spec = VmSpec { volumes: vec![rw.clone()], ..world.spec(1, 256) };
        node.ensure_running(spec).await.unwrap();
        stdout(&node, id, "echo first > /data/file; sync").await;
        let began = Instant::now();
        node.ensure_checkpoint(DATA, CheckpointId::from_u128(1)).await.unwrap();
        eprintln!("checkpoint of an empty volume: {:?}", began.elapsed());
        let fill = "dd if=/dev/urandom of=/data/large bs=1M count=100 2> /dev/null; sync
            echo second > /data/file";
        stdout(&node, id, fill).await;
        let began = Instant::now();
        node.ensure_checkpoint(DATA, CheckpointId::from_u128(2)).await.unwrap();
        eprintln!("checkpoint of 100 MiB: {:?}", began.elapsed());

        // One after the other, until layers become one, while somebody writes and syncs.
        let count = "n=0; while true; do n=$((n + 1)); echo $n > /data/new; sync /data/new
            mv /data/new /data/count; sync /data/count
            echo $n > /run/n.new; mv /run/n.new /run/acknowledged; done";
        let begin = format!(
            "echo '{count}' > /run/count.sh; setsid sh /run/count.sh > /dev/null 2>&1 < /dev/null &
             while ! [ -s /run/acknowledged ]; do sleep 0.01; done"
        );
        stdout(&node, id, &begin).await;
        for number in 3..15 {
            node.ensure_checkpoint(DATA, CheckpointId::from_u128(number)).await.unwrap();
        }
        let more = "n=$(cat /run/acknowledged); while [ \"$(cat /run/acknowledged)\" -le $n ]
            do sleep 0.01; done; cat /run/acknowledged";
        let acknowledged: u64 = stdout(&node, id, more).await.trim().parse().unwrap();
        node.ensure_stopped(id, Incarnation(1), StopMode::Kill).await.unwrap();

        let other = WorkspaceId::from_u128(id.as_u128() ^ 1);
        let spec = VmSpec { workspace_id: other, volumes: vec![rw.clone()], ..world.spec(1, 256) };
        node.ensure_running(spec).await.unwrap();
        let found: u64 = stdout(&node, other, "cat /data/count").await.trim().parse().unwrap();
        assert!(found >= acknowledged, "{found} of {acknowledged}");
        stdout(&node, other, "echo third > /data/file; rm /data/large").await;
        node.ensure_volume_detached(other, Incarnation(1), DATA).await.unwrap();

        // Each as it was, and the volume as it is.
        for (checkpoint_id, seen) in
            [(Some(1), "first\n"), (Some(2), "second\n"), (None, "third\n")]
        {
            let ro = VolumeMount {
                checkpoint_id: checkpoint_id.map(CheckpointId::from_u128),
                ..mount(1, "/then", MountMode::ReadOnly)
            };
            node.ensure_volume_attached(other, Incarnation(1), ro).await.unwrap();
            assert_eq!(stdout(&node, other, "cat /then/file").await, seen);
            node.ensure_volume_detached(other, Incarnation(1), DATA).await.unwrap();
        }
        for workspace in [id, other] {
            node.ensure_deleted(workspace).await.unwrap();
        }
        node.ensure_volume_deleted(DATA).await.unwrap();
        node.shutdown().await;
    })
    .await;
}
