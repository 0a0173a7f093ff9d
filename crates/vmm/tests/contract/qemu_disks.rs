//! Saved states and disks of real guests that do something: what is on their disks and in their
//! memory, and what their processes could do to what others start from.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use skerry_model::VcpuCount;
use skerry_vmm::{
    BootSpec, Capability, RestoreSpec, SaveProgress, SavedMemory, Vm, Vmm, VmmError, VmmRecord,
};

use crate::{
    guest::Guest,
    qemu::{DISK_BYTES, QemuHarness, VM_UID, open},
    states::{STEP, Template, from_state, new_file, restore, save, seal},
    suite::{Harness, TEST_DEADLINE, boot},
};

/// Enough for the disk at its largest and its tables.
const MOST_FILE_BYTES: u64 = 8 << 30;

async fn bounded(test: impl Future<Output = ()>) {
    tokio::time::timeout(TEST_DEADLINE, test).await.unwrap();
}

#[tokio::test]
async fn this_driver_can_do_everything() {
    let vmm = open().await;
    let all =
        [Capability::Pause, Capability::Snapshot, Capability::Restore, Capability::CloneMemory];
    assert!(all.iter().all(|one| vmm.capabilities().supported.contains(one)));
}

/// The files that a process has open: path, whether for writing, and its way to them.
fn open_files(record: &VmmRecord) -> Vec<(PathBuf, bool, PathBuf)> {
    let dir = PathBuf::from(format!("/proc/{}", record.pid));
    let open = fs::read_dir(dir.join("fd")).unwrap().map(|file| {
        let way = file.unwrap().path();
        let info = fs::read_to_string(dir.join("fdinfo").join(way.file_name().unwrap())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let for_writing = u32::from_str_radix(flags, 8).unwrap() & 0o3 != 0;
        (fs::read_link(&way).unwrap(), for_writing, way)
    });
    open.collect()
}

/// Writing to it must fail whatever the process does, and whoever tries.
fn assert_beyond_reach(record: &VmmRecord, file: &Path) {
    let meta = fs::metadata(file).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o444), "{}", file.display());
    for (path, for_writing, _) in open_files(record) {
        assert!(path != file || !for_writing, "{} is open for writing", path.display());
    }
}

/// The copy of a template's memory that older versions of QEMU get is open for writing, in vain.
fn assert_sealed_memory(record: &VmmRecord) {
    let copies = open_files(record).into_iter().filter(|(path, ..)| path.starts_with("/memfd:"));
    for (path, _, way) in copies {
        let file = File::options().write(true).open(&way).unwrap();
        assert!(file.write_at(b"x", 0).is_err(), "{} can be written", path.display());
        assert!(file.set_len(0).is_err(), "{} can be cut", path.display());
    }
}

#[tokio::test]
async fn clones_part_from_their_template_on_disk_and_in_memory_and_cannot_touch_it() {
    bounded(async {
        let harness = QemuHarness::new();
        let vmm: Arc<dyn Vmm> = Arc::new(open().await);
        let disk = harness.disk_on("template.qcow2", &[]);
        let layer = disk.overlay.clone();
        let spec = BootSpec { disk: Some(disk), ..harness.spec_in("template") };
        let vm = boot(&vmm, &spec).await;
        Guest::meet(&vm, 1).await.run("echo common | tee /on-disk > /run/in-memory; sync").await;
        let template = Template::of(vm, &spec, &harness.kept_dir()).await;
        seal(&layer);
        let before = [&template.ram, &layer].map(|path| fs::read(path).unwrap());

        let mut clones = Vec::new();
        for name in ["one", "two"] {
            let disk = harness.disk_on(&format!("{name}.qcow2"), &[&layer]);
            let spec = BootSpec { disk: Some(disk), ..harness.spec_in(name) };
            let vm = restore(&vmm, &template.clone_in(spec)).await;
            let mut guest = Guest::meet(&vm, 2).await;
            assert_eq!(guest.run("cat /on-disk /run/in-memory").await, "common\ncommon");
            guest.run(&format!("echo {name} | tee /on-disk > /run/in-memory; sync")).await;
            clones.push((name, vm, guest));
        }
        for (name, vm, guest) in &mut clones {
            let seen = guest
                .run("echo 3 > /proc/sys/vm/drop_caches; cat /on-disk /run/in-memory; cat /proc/sys/kernel/random/boot_id")
                .await;
            assert!(seen.starts_with(&format!("{name}\n{name}\n")), "{seen}");
            if nix::unistd::geteuid().is_root() {
                assert_beyond_reach(vm.record(), &template.ram);
                assert_beyond_reach(vm.record(), &layer);
            }
            assert_sealed_memory(vm.record());
        }
        for (_, vm, _) in clones {
            vm.kill().await.unwrap();
        }
        let after = [&template.ram, &layer].map(|path| fs::read(path).unwrap());
        assert!(before == after, "the template has changed");
    })
    .await;
}

/// Counts as fast as it can, on disk and in memory; returns when it has begun.
const COUNT: &str = "cat > /count.sh << 'END'
n=0
while true; do
    n=$((n + 1))
    echo $n > /run/count.new && mv /run/count.new /run/count
    echo $n > /count.new && mv /count.new /count
done
END
setsid sh /count.sh < /dev/null > /dev/null 2>&1 &
until [ -e /count ]; do sleep 0.01; done";

/// Puts an overlay on top in the middle of a save, as a snapshot does.
async fn save_and_push(vm: &Arc<dyn Vm>, state: &Path, overlay: &Path) {
    vm.begin_save(new_file(state), SavedMemory::InState).await.unwrap();
    vm.wait_save(SaveProgress::Converged, STEP).await.unwrap();
    vm.pause(STEP).await.unwrap();
    vm.push_overlay(overlay, STEP).await.unwrap();
    vm.wait_save(SaveProgress::Captured, STEP).await.unwrap();
    vm.resume(STEP).await.unwrap();
    vm.wait_save(SaveProgress::Complete, STEP).await.unwrap();
}

#[tokio::test]
async fn a_vm_that_is_saved_in_one_life_after_the_other_keeps_every_file_of_its_disk() {
    bounded(async {
        let harness = QemuHarness::new();
        let dir = harness.kept_dir();
        let disk = harness.disk_on("overlay-0.qcow2", &[]);
        let mut top = disk.overlay.clone();
        let spec = BootSpec { disk: Some(disk), memory_file: None, ..harness.spec_in("source") };
        let mut vmm: Arc<dyn Vmm> = Arc::new(open().await);
        let mut vm = boot(&vmm, &spec).await;
        let mut guest = Guest::meet(&vm, 1).await;
        for life in 1..=3_u8 {
            guest.run(&format!("head -c 3000000 /dev/urandom > /{life}; sync")).await;
            guest.run(&format!("md5sum < /{life} > /{life}.sum; sync")).await;
            let next = harness.overlay(&format!("overlay-{life}.qcow2"));
            save_and_push(&vm, &dir.join(format!("state-{life}")), &next).await;
            seal(&top);
            top = next;
            let record = vm.record().clone();
            drop((guest, vm, vmm));
            vmm = Arc::new(open().await);
            vm = vmm.adopt(&record).await.unwrap();
            guest = Guest::meet(&vm, life + 1).await;
            let drop_caches = "echo 3 > /proc/sys/vm/drop_caches";
            guest.run(drop_caches).await;
            for before in 1..=life {
                let look = format!("md5sum < /{before} | cmp - /{before}.sum && echo same");
                assert_eq!(guest.run(&look).await, "same", "file {before} in life {life}");
            }
        }
        let ext4 = guest.run("dmesg | grep -ic 'ext4.*error' || true").await;
        assert_eq!(ext4, "0");
        vm.kill().await.unwrap();
    })
    .await;
}

/// The guest hears of a host's going and coming beside what the host says, and in its own time.
#[tokio::test]
async fn a_guest_answers_whoever_comes_right_after_another_has_gone() {
    bounded(async {
        let harness = QemuHarness::new();
        let vmm: Arc<dyn Vmm> = Arc::new(open().await);
        let disk = harness.disk_on("disk.qcow2", &[]);
        let vm = boot(&vmm, &BootSpec { disk: Some(disk), ..harness.spec_in("vm") }).await;
        for nonce in 1..=40 {
            drop(Guest::meet(&vm, nonce).await);
        }
        vm.kill().await.unwrap();
    })
    .await;
}

const COUNTED: &str = "cat /run/count";

async fn counted(guest: &mut Guest) -> u64 {
    guest.run(COUNTED).await.parse().unwrap()
}

#[tokio::test]
async fn a_running_guest_is_saved_with_its_disk_at_one_instant_and_both_go_on() {
    bounded(async {
        let harness = QemuHarness::new();
        let vmm: Arc<dyn Vmm> = Arc::new(open().await);
        let dir = harness.kept_dir();
        let disk = harness.disk_on("first.qcow2", &[]);
        let (first, base) = (disk.overlay.clone(), disk.base.clone());
        let spec = BootSpec {
            disk: Some(disk),
            vcpu_count: VcpuCount(2),
            // As most VMs are.
            memory_file: None,
            ..harness.spec_in("source")
        };
        let vm = boot(&vmm, &spec).await;
        let mut guest = Guest::meet(&vm, 1).await;
        guest.run(COUNT).await;

        vm.begin_save(new_file(&dir.join("state")), SavedMemory::InState).await.unwrap();
        vm.wait_save(SaveProgress::Converged, STEP).await.unwrap();
        let before = counted(&mut guest).await;
        vm.pause(STEP).await.unwrap();
        let second = harness.overlay("second.qcow2");
        vm.push_overlay(&second, STEP).await.unwrap();
        vm.push_overlay(&second, STEP).await.unwrap();
        vm.wait_save(SaveProgress::Captured, STEP).await.unwrap();
        vm.resume(STEP).await.unwrap();
        vm.wait_save(SaveProgress::Complete, STEP).await.unwrap();
        // What was the overlay is a layer now, and the process cannot write it any more.
        seal(&first);
        let frozen = fs::read(&first).unwrap();
        if nix::unistd::geteuid().is_root() {
            assert_beyond_reach(vm.record(), &first);
            assert_eq!(fs::metadata(&second).unwrap().uid(), VM_UID);
        }

        // The same connection goes on, and so does the count.
        let after = counted(&mut guest).await;
        assert!(after >= before, "{after} after {before}");
        let disk = harness.disk_on("copy.qcow2", &[&first]);
        let spec = BootSpec { disk: Some(disk), ..harness.spec_in("copy") };
        let spec = BootSpec { vcpu_count: VcpuCount(2), ..spec };
        let copy = restore(&vmm, &from_state(spec, &dir.join("state"))).await;
        let mut in_copy = Guest::meet(&copy, 2).await;
        let at_once = counted(&mut in_copy).await;
        assert!(at_once >= before, "{at_once} after {before}");
        // Both go on with sound file systems.
        for (guest, name) in [(&mut guest, "source"), (&mut in_copy, "copy")] {
            let script = "pkill -f '[c]ount.sh'; sync; echo 3 > /proc/sys/vm/drop_caches; cat /count; \
                dmesg | grep -i 'ext4.*error' || true";
            let seen = guest.run(script).await;
            assert!(seen.parse::<u64>().is_ok_and(|n| n >= before), "{name}: {seen}");
        }
        copy.kill().await.unwrap();
        assert!(fs::read(&first).unwrap() == frozen, "the frozen layer has changed");

        // The next life pushes onto the chain as it finds it, and flattens it.
        let record = vm.record().clone();
        drop((vm, copy, vmm, guest, in_copy));
        let vmm = open().await;
        let vm: Arc<dyn Vm> = vmm.adopt(&record).await.unwrap();
        // Whoever does not know whether it was done asks again.
        vm.push_overlay(&second, STEP).await.unwrap();
        let third = harness.overlay("third.qcow2");
        vm.push_overlay(&third, STEP).await.unwrap();
        seal(&second);
        let mut guest = Guest::meet(&vm, 3).await;
        guest.run("echo third > /third; sync").await;
        vm.flatten_disk(STEP).await.unwrap();
        vm.flatten_disk(STEP).await.unwrap();
        let after = fs::read(&second).unwrap();
        let fourth = harness.overlay("fourth.qcow2");
        vm.push_overlay(&fourth, STEP).await.unwrap();
        guest
            .run(
                "echo 3 > /proc/sys/vm/drop_caches; cat /count /third; echo fourth > /fourth; sync",
            )
            .await;
        assert!(fs::read(&second).unwrap() == after, "a dropped layer has changed");

        vm.grow_disk(DISK_BYTES + (1 << 30), MOST_FILE_BYTES, STEP).await.unwrap();
        vm.grow_disk(DISK_BYTES + (1 << 30), MOST_FILE_BYTES, STEP).await.unwrap();
        let sectors = guest.run("cat /sys/block/vda/size").await;
        assert_eq!(sectors.parse::<u64>().unwrap() * 512, DISK_BYTES + (1 << 30));
        let shrunk = vm.grow_disk(DISK_BYTES, MOST_FILE_BYTES, STEP).await;
        assert!(matches!(shrunk, Err(VmmError::Refused { .. })), "{shrunk:?}");
        vm.kill().await.unwrap();

        // The flattened overlay and what came after are the whole disk.
        let disk = skerry_vmm::DiskSpec { overlay: fourth, layers: vec![third], base };
        seal(&disk.layers[0]);
        let spec = BootSpec { disk: Some(disk), ..harness.spec_in("again") };
        let vmm: Arc<dyn Vmm> = Arc::new(vmm);
        let vm = boot(&vmm, &spec).await;
        let mut guest = Guest::meet(&vm, 4).await;
        assert_eq!(guest.run("cat /third /fourth").await, "third\nfourth");
        vm.kill().await.unwrap();
    })
    .await;
}

/// Rewrites the driver's bytes of a state, and keeps its label and its end.
fn damaged(state: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    const LABEL: usize = 512;
    const END: usize = 24;
    let whole = fs::read(state).unwrap();
    let mut inner = whole[LABEL..whole.len() - END].to_vec();
    change(&mut inner);
    let length = (LABEL + inner.len() + END) as u64;
    let path = state.with_file_name(name);
    let mut end = b"skerry-state-end".to_vec();
    end.extend(length.to_le_bytes());
    fs::write(&path, [&whole[..LABEL], &inner, &end].concat()).unwrap();
    path
}

/// What looks whole from outside and is not.
#[tokio::test]
async fn a_state_that_the_devices_do_not_take_is_refused_and_its_process_ends() {
    bounded(async {
        let harness = QemuHarness::new();
        let vmm: Arc<dyn Vmm> = Arc::new(open().await);
        let dir = harness.kept_dir();
        let vm = boot(&vmm, &harness.spec_in("source")).await;
        Guest::meet(&vm, 1).await;
        vm.pause(STEP).await.unwrap();
        let state = dir.join("state");
        save(&vm, &state, SavedMemory::InState).await;
        vm.kill().await.unwrap();

        let half = damaged(&state, "half", |bytes| bytes.truncate(bytes.len() / 2));
        let zeroes = damaged(&state, "zeroes", |bytes| bytes.fill(0));
        let devices = damaged(&state, "devices", |bytes| {
            let end = bytes.len();
            bytes[end - 20_000..].fill(0xFF);
        });
        for path in [half, zeroes, devices] {
            let name = path.file_name().unwrap().to_str().unwrap();
            let spec = from_state(harness.spec_in(name), &path);
            let vm = vmm.park(&spec, &mut |_| Ok(())).await.unwrap();
            let outcome = vm.load(STEP).await;
            assert!(matches!(outcome, Err(VmmError::InvalidState(_))), "{name}: {outcome:?}");
            vm.kill().await.unwrap();
            assert!(!harness.is_alive(vm.record()));
        }
    })
    .await;
}

/// A process that is gone in the middle of a load is no damaged state.
#[tokio::test]
async fn a_parked_process_that_is_killed_while_it_loads_is_gone() {
    bounded(async {
        let harness = QemuHarness::new();
        let vmm: Arc<dyn Vmm> = Arc::new(open().await);
        let vm = boot(&vmm, &harness.spec_in("source")).await;
        vm.pause(STEP).await.unwrap();
        let state = harness.kept_dir().join("state");
        save(&vm, &state, SavedMemory::InState).await;
        vm.kill().await.unwrap();
        let spec: RestoreSpec = from_state(harness.spec_in("clone"), &state);
        let vm = vmm.park(&spec, &mut |_| Ok(())).await.unwrap();
        let loading = {
            let vm = vm.clone();
            tokio::spawn(async move { vm.load(STEP).await })
        };
        tokio::task::yield_now().await;
        vm.kill().await.unwrap();
        let outcome = loading.await.unwrap();
        assert!(matches!(outcome, Err(VmmError::Gone)), "{outcome:?}");
    })
    .await;
}
