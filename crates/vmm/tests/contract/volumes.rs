//! The promises about volumes, and what a real guest sees of one.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use skerry_model::VolumeSlot;
use skerry_vmm::{BootSpec, DiskSpec, SaveProgress, SavedMemory, Vm, VmmError};

use crate::{
    guest::Guest,
    qemu::{QemuHarness, open},
    states::{STEP, from_state, new_file, park},
    suite::{Harness, TEST_DEADLINE, boot},
};

const SIZE_BYTES: u64 = 64 << 20;
/// Enough for every cluster and its tables.
const MOST_FILE_BYTES: u64 = 128 << 20;

fn slot(number: u8) -> VolumeSlot {
    VolumeSlot::new(number).unwrap()
}

/// An empty file system below an empty overlay.
fn volume(dir: &Path, name: &str) -> DiskSpec {
    let (base, overlay) = (dir.join(format!("{name}.raw")), dir.join(format!("{name}.qcow2")));
    fs::File::create(&base).unwrap().set_len(SIZE_BYTES).unwrap();
    let mut mkfs = std::process::Command::new("mkfs.ext4");
    mkfs.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    assert!(mkfs.args(["-q", "-F"]).arg(&base).status().unwrap().success());
    let made = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&overlay)
        .arg(SIZE_BYTES.to_string())
        .status();
    assert!(made.unwrap().success());
    DiskSpec { overlay, layers: Vec::new(), base }
}

async fn attach(vm: &Arc<dyn Vm>, number: u8, disk: &DiskSpec) -> Result<(), VmmError> {
    vm.attach_volume(slot(number), disk, MOST_FILE_BYTES, STEP).await
}

/// What the agent does, in words of the shell.
async fn look_anew(guest: &mut Guest, number: u8) {
    let script = format!(
        "disk=$(basename $(dirname $(grep -lx volume-{number} /sys/block/*/serial)))
         bus=$(basename $(readlink /sys/block/$disk/device))
         echo $bus > /sys/bus/virtio/drivers/virtio_blk/unbind
         echo $bus > /sys/bus/virtio/drivers/virtio_blk/bind
         while ! grep -qx volume-{number} /sys/block/*/serial; do sleep 0.01; done
         mkdir -p /volume
         mount -t ext4 /dev/$(basename $(dirname $(grep -lx volume-{number} /sys/block/*/serial))) /volume"
    );
    guest.run(&script).await;
}

async fn bounded(test: impl Future<Output = ()>) {
    tokio::time::timeout(TEST_DEADLINE, test).await.unwrap();
}

#[tokio::test]
async fn a_volume_goes_from_one_running_guest_to_the_next_with_what_was_written() {
    bounded(async {
        let harness = QemuHarness::new();
        let vmm: Arc<dyn skerry_vmm::Vmm> = Arc::new(open().await);
        let dir = harness.kept_dir();
        let disk = volume(&dir, "data");
        let spec = |name: &str| BootSpec {
            disk: Some(harness.disk_on(&format!("{name}.qcow2"), &[])),
            ..harness.spec_in(name)
        };
        let one = boot(&vmm, &spec("one")).await;
        let mut guest = Guest::meet(&one, 1).await;
        attach(&one, 1, &disk).await.unwrap();
        // What is there already is a success; another is not.
        attach(&one, 1, &disk).await.unwrap();
        let other = volume(&dir, "other");
        assert!(attach(&one, 1, &other).await.is_err());
        look_anew(&mut guest, 1).await;
        guest.run("echo kept > /volume/file; sync; echo flushed > /volume/last").await;

        let two = boot(&vmm, &spec("two")).await;
        let mut second = Guest::meet(&two, 2).await;
        let taken = attach(&two, 0, &disk).await.unwrap_err();
        assert!(matches!(taken, VmmError::Refused { .. }), "{taken}");

        guest.run("umount /volume").await;
        one.detach_volume(slot(1), STEP).await.unwrap();
        one.detach_volume(slot(1), STEP).await.unwrap();
        attach(&two, 0, &disk).await.unwrap();
        look_anew(&mut second, 0).await;
        assert_eq!(second.run("cat /volume/file /volume/last").await, "kept\nflushed");
        for vm in [one, two] {
            vm.kill().await.unwrap();
        }
    })
    .await;
}

/// A new, empty overlay of a volume.
fn overlay(dir: &Path, name: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    let made = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&path)
        .arg(SIZE_BYTES.to_string())
        .status();
    assert!(made.unwrap().success());
    path
}

#[tokio::test]
async fn what_a_volume_was_is_frozen_while_its_guest_writes_on_and_becomes_one_layer_again() {
    bounded(async {
        let harness = QemuHarness::new();
        let vmm: Arc<dyn skerry_vmm::Vmm> = Arc::new(open().await);
        let dir = harness.kept_dir();
        let disk = volume(&dir, "data");
        let root = harness.disk_on("one.qcow2", &[]);
        let vm = boot(&vmm, &BootSpec { disk: Some(root), ..harness.spec_in("one") }).await;
        let mut guest = Guest::meet(&vm, 1).await;
        let empty = vm.push_volume_overlay(slot(1), &overlay(&dir, "early"), STEP).await;
        assert!(matches!(empty, Err(VmmError::Refused { .. })), "{empty:?}");
        attach(&vm, 1, &disk).await.unwrap();
        look_anew(&mut guest, 1).await;
        guest.run("echo first > /volume/file; sync").await;

        let tops = [overlay(&dir, "second"), overlay(&dir, "third")];
        for top in &tops {
            // What is on top already stays where it is.
            for _ in 0..2 {
                vm.push_volume_overlay(slot(1), top, STEP).await.unwrap();
            }
            guest.run("echo more >> /volume/file; sync").await;
        }
        vm.flatten_volume(slot(1), TEST_DEADLINE).await.unwrap();
        assert_eq!(guest.run("cat /volume/file").await, "first\nmore\nmore");
        guest.run("umount /volume").await;
        vm.detach_volume(slot(1), STEP).await.unwrap();

        // The top stands on the base alone now, and what was frozen is as it was.
        let flat = DiskSpec { overlay: tops[1].clone(), ..disk.clone() };
        let frozen = DiskSpec {
            overlay: overlay(&dir, "reader"),
            layers: vec![disk.overlay.clone()],
            base: disk.base.clone(),
        };
        // The caller of the driver seals it.
        fs::set_permissions(&disk.overlay, fs::Permissions::from_mode(0o444)).unwrap();
        for (disk, seen) in [(flat, "first\nmore\nmore"), (frozen, "first")] {
            attach(&vm, 1, &disk).await.unwrap();
            look_anew(&mut guest, 1).await;
            assert_eq!(guest.run("cat /volume/file; umount /volume").await, seen);
            vm.detach_volume(slot(1), STEP).await.unwrap();
        }
        vm.kill().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_guest_that_is_killed_while_it_writes_loses_nothing_it_had_synced() {
    bounded(async {
        let harness = QemuHarness::new();
        let vmm: Arc<dyn skerry_vmm::Vmm> = Arc::new(open().await);
        let disk = volume(&harness.kept_dir(), "data");
        let spec = |name: &str| BootSpec {
            disk: Some(harness.disk_on(&format!("{name}.qcow2"), &[])),
            ..harness.spec_in(name)
        };
        let vm = boot(&vmm, &spec("one")).await;
        let mut guest = Guest::meet(&vm, 1).await;
        attach(&vm, 0, &disk).await.unwrap();
        look_anew(&mut guest, 0).await;
        let count = "n=0; while true; do n=$((n + 1)); echo $n > /volume/new
            sync /volume/new; mv /volume/new /volume/count; sync /volume/count
            echo $n > /run/acknowledged.new; mv /run/acknowledged.new /run/acknowledged; done";
        guest.run(&format!("echo '{count}' > /run/count.sh; setsid sh /run/count.sh < /dev/null > /dev/null 2>&1 &")).await;
        let acknowledged = "while ! [ \"$(cat /run/acknowledged 2> /dev/null || echo 0)\" -ge 20 ]
            do sleep 0.01; done; cat /run/acknowledged";
        let acknowledged: u64 = guest.run(acknowledged).await.parse().unwrap();
        vm.kill().await.unwrap();

        let vm = boot(&vmm, &spec("two")).await;
        let mut guest = Guest::meet(&vm, 2).await;
        attach(&vm, 0, &disk).await.unwrap();
        look_anew(&mut guest, 0).await;
        let found: u64 = guest.run("cat /volume/count").await.parse().unwrap();
        assert!(found >= acknowledged, "{found} of {acknowledged}");
        vm.kill().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_suspended_guest_goes_on_with_the_volume_it_had_mounted() {
    bounded(async {
        let harness = QemuHarness::new();
        let vmm: Arc<dyn skerry_vmm::Vmm> = Arc::new(open().await);
        let dir = harness.kept_dir();
        let disk = volume(&dir, "data");
        let root = harness.disk_on("one.qcow2", &[]);
        let spec = BootSpec { disk: Some(root), ..harness.spec_in("one") };
        let vm = boot(&vmm, &spec).await;
        let mut guest = Guest::meet(&vm, 1).await;
        attach(&vm, 3, &disk).await.unwrap();
        look_anew(&mut guest, 3).await;
        guest.run("echo before > /volume/file").await;
        vm.pause(STEP).await.unwrap();
        let state = dir.join("state");
        vm.begin_save(new_file(&state), SavedMemory::InState).await.unwrap();
        vm.wait_save(SaveProgress::Complete, STEP).await.unwrap();
        vm.kill().await.unwrap();

        let spec = BootSpec { run_dir: harness.spec_in("again").run_dir, ..spec };
        let vm = park(&vmm, &from_state(spec, &state)).await;
        assert!(attach(&vm, 3, &disk).await.is_err(), "it waits for its state");
        vm.load(Duration::from_secs(60)).await.unwrap();
        attach(&vm, 3, &disk).await.unwrap();
        vm.resume(STEP).await.unwrap();
        let mut guest = Guest::meet(&vm, 2).await;
        let seen = guest
            .run(
                "echo after > /volume/next; sync; echo 3 > /proc/sys/vm/drop_caches; cat /volume/file /volume/next",
            )
            .await;
        assert_eq!(seen, "before\nafter");
        vm.kill().await.unwrap();
    })
    .await;
}
