//! The suite for the in-memory driver, and what only it can do.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::FutureExt;
use skerry_agent_protocol::handshake;
use skerry_model::{MemMib, VcpuCount, VolumeSlot, spec::CpuKind};
use skerry_vmm::{
    BootSpec, CpuModel, DiskSpec, Exit, Sandbox, SaveProgress, SavedMemory, Vm, Vmm, VmmError,
    VmmRecord,
    fake::{
        FakeGuestIo, FakeHost, FakeMemory, FakeVmm, Fault, GuestEnd, GuestStart, Step, StepFault,
        VmState,
    },
};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::{
    states::{STEP, Template, from_state, new_file, park, restore, save},
    suite::{Harness, boot},
};

/// The fake has no such limit.
const MOST_FILE_BYTES: u64 = 4 << 30;

pub(crate) struct FakeHarness {
    dir: TempDir,
    host: FakeHost,
    /// The memory of every guest in the order of their starts.
    memories: Arc<Mutex<Vec<(GuestStart, FakeMemory)>>>,
}

impl FakeHarness {
    pub(crate) fn new() -> Self {
        let memories = Arc::<Mutex<Vec<_>>>::default();
        let seen = memories.clone();
        let host = FakeHost::new(Arc::new(move |io: FakeGuestIo| {
            seen.lock().unwrap().push((io.start, io.memory.clone()));
            guest(io).boxed()
        }));
        Self { dir: tempfile::tempdir().unwrap(), host, memories }
    }

    /// The memory of the guest that started last.
    fn memory(&self) -> FakeMemory {
        self.memories.lock().unwrap().last().unwrap().1.clone()
    }

    fn disk(&self) -> DiskSpec {
        let layers = vec![self.file("layer")];
        DiskSpec { overlay: self.file("overlay"), layers, base: self.file("base") }
    }

    fn file(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, "").unwrap();
        path
    }
}

/// Obeys the same words as the real kernel and agent.
async fn guest(mut io: FakeGuestIo) -> GuestEnd {
    let is_told = |word: &str| io.spec.kernel_args.iter().any(|arg| arg == word);
    if io.start == GuestStart::Booted && is_told("loglevel=8") {
        for line in 0..500 {
            io.console.print(&format!("[    0.{line:06}] a line of the boot\n")).unwrap();
        }
        io.console.print("reboot: Power down\n").unwrap();
    }
    if is_told("rdinit=/nonexistent") {
        return GuestEnd::Rebooted;
    }
    // A real guest needs a while to its first program.
    tokio::task::yield_now().await;
    if is_told("skerry.probe") {
        return GuestEnd::PoweredOff;
    }
    let mut sessions = JoinSet::new();
    while let Some(mut connection) = io.connections.recv().await {
        sessions.abort_all();
        sessions.spawn(async move {
            if handshake::accept(&mut connection).await.is_ok() {
                // Until the host hangs up.
                let _ = tokio::io::copy(&mut connection, &mut tokio::io::sink()).await;
            }
        });
    }
    std::future::pending().await
}

impl Harness for FakeHarness {
    async fn vmm(&self) -> Arc<dyn Vmm> {
        Arc::new(FakeVmm::new(self.host.clone()))
    }

    async fn next_life(&self) -> Arc<dyn Vmm> {
        self.vmm().await
    }

    fn kept_dir(&self) -> PathBuf {
        let dir = self.dir.path().join("kept");
        fs::create_dir(&dir).unwrap();
        dir
    }

    fn spec_in(&self, name: &str) -> BootSpec {
        let run_dir = self.dir.path().join(name);
        fs::create_dir(&run_dir).unwrap();
        BootSpec {
            label: "test".into(),
            kernel: self.file("vmlinux"),
            initramfs: self.file("initramfs.cpio"),
            memory_file: Some(run_dir.join("ram")),
            run_dir,
            memory_mib: MemMib(256),
            vcpu_count: VcpuCount(1),
            cpu_kind: CpuKind::Shared,
            cpu_model: CpuModel::Default,
            disk: None,
            mac: [0x52, 0x54, 0, 0, 0, 1],
            cable: skerry_vmm::Cable::Loose,
            console_log: self.dir.path().join(format!("{name}-console.log")),
            console_limit_bytes: 1024 * 1024,
            kernel_args: vec![],
            sandbox: Sandbox::default(),
        }
    }

    fn is_alive(&self, record: &VmmRecord) -> bool {
        self.host.running().contains(record)
    }

    async fn kill_from_outside(&self, record: &VmmRecord) {
        self.host.crash(record).await;
    }
}

crate::contract!(FakeHarness);
crate::states::state_contract!(FakeHarness);

async fn boot_with(
    harness: &FakeHarness,
    fault: Fault,
) -> Result<Arc<dyn skerry_vmm::Vm>, VmmError> {
    harness.host.inject(fault);
    harness.vmm().await.boot(&harness.spec(), &mut |_| Ok(())).await
}

#[tokio::test(start_paused = true)]
async fn an_injected_fault_fails_one_boot_and_leaves_nothing() {
    for fault in [Fault::FailBeforeCommit, Fault::FailAfterCommit, Fault::HangInBoot] {
        let harness = FakeHarness::new();
        let error = boot_with(&harness, fault).await.err().unwrap();
        match fault {
            Fault::HangInBoot => assert!(matches!(error, VmmError::Timeout(_)), "{error}"),
            Fault::FailBeforeCommit
            | Fault::FailAfterCommit
            | Fault::DieAfter(_)
            | Fault::RefuseConnect
            | Fault::SilentGuest => assert!(matches!(error, VmmError::EndedEarly(_)), "{error}"),
        }
        assert_eq!(harness.host.running(), []);
        assert!(!harness.dir.path().join("run/ram").exists());

        fs::remove_dir(harness.dir.path().join("run")).unwrap();
        let vmm = harness.vmm().await;
        vmm.boot(&harness.spec(), &mut |_| Ok(())).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_vm_told_to_die_later_does() {
    let harness = FakeHarness::new();
    let vm = boot_with(&harness, Fault::DieAfter(Duration::from_secs(3600))).await.unwrap();
    assert!(matches!(vm.wait_exit().await, Exit::Crashed(_)));
}

#[tokio::test(start_paused = true)]
async fn a_silent_guest_takes_connections_and_never_answers() {
    let harness = FakeHarness::new();
    let vm = boot_with(&harness, Fault::SilentGuest).await.unwrap();
    let mut channel = vm.connect_guest().await.unwrap();
    let nonce = [1; 16];
    let outcome = handshake::connect(&mut channel, nonce, Duration::from_secs(60)).await;
    assert!(matches!(outcome, Err(handshake::HandshakeError::Timeout(_))), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_refuses_connections_still_runs() {
    let harness = FakeHarness::new();
    let vm = boot_with(&harness, Fault::RefuseConnect).await.unwrap();
    assert!(matches!(vm.connect_guest().await, Err(VmmError::Io { .. })));
    assert!(harness.is_alive(vm.record()));
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_of_the_host_every_record_is_gone() {
    let harness = FakeHarness::new();
    let vmm = harness.vmm().await;
    let vm = vmm.boot(&harness.spec(), &mut |_| Ok(())).await.unwrap();
    harness.host.reboot().await;
    assert!(matches!(vmm.adopt(vm.record()).await, Err(VmmError::Gone)));
    assert_eq!(harness.host.running(), []);
}

#[tokio::test]
async fn a_guest_goes_on_with_the_memory_it_had_and_clones_part_from_there() {
    let harness = FakeHarness::new();
    let vmm = harness.vmm().await;
    let spec = harness.spec_in("origin");
    let origin = boot(&vmm, &spec).await;
    harness.memory().write(b"common");
    let template = Template::of(origin, &spec, &harness.kept_dir()).await;
    let first = restore(&vmm, &template.clone_in(harness.spec_in("first"))).await;
    assert_eq!(harness.memory().read(), b"common");
    harness.memory().write(b"of the first");
    let _second = restore(&vmm, &template.clone_in(harness.spec_in("second"))).await;
    assert_eq!(harness.memory().read(), b"common");

    // What a running guest writes until it is paused is saved too.
    let state = template.ram.with_file_name("state");
    first.begin_save(new_file(&state), SavedMemory::InState).await.unwrap();
    first.wait_save(SaveProgress::Converged, STEP).await.unwrap();
    harness.memories.lock().unwrap()[1].1.write(b"late");
    first.pause(STEP).await.unwrap();
    first.wait_save(SaveProgress::Captured, STEP).await.unwrap();
    first.resume(STEP).await.unwrap();
    harness.memories.lock().unwrap()[1].1.write(b"too late");
    first.wait_save(SaveProgress::Complete, STEP).await.unwrap();
    restore(&vmm, &from_state(harness.spec_in("third"), &state)).await;
    assert_eq!(harness.memory().read(), b"late");
    let starts: Vec<_> = harness.memories.lock().unwrap().iter().map(|(start, _)| *start).collect();
    let restored = GuestStart::Restored;
    assert_eq!(starts, [GuestStart::Booted, restored, restored, restored]);
}

#[tokio::test]
async fn a_state_with_a_changed_byte_is_refused_and_its_process_runs_no_guest() {
    let harness = FakeHarness::new();
    let vmm = harness.vmm().await;
    let state = harness.kept_dir().join("state");
    let vm = boot(&vmm, &harness.spec_in("first")).await;
    vm.pause(STEP).await.unwrap();
    save(&vm, &state, SavedMemory::InState).await;
    let mut bytes = fs::read(&state).unwrap();
    bytes[550] ^= 1;
    fs::write(&state, bytes).unwrap();

    let vm = park(&vmm, &from_state(harness.spec_in("second"), &state)).await;
    let outcome = vm.load(STEP).await;
    assert!(matches!(outcome, Err(VmmError::InvalidState(_))), "{outcome:?}");
    assert!(matches!(vm.resume(STEP).await, Err(VmmError::Refused { .. })));
    assert!(harness.is_alive(vm.record()));
    vm.kill().await.unwrap();
    assert_eq!(harness.memories.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_volume_is_in_one_slot_of_one_vm() {
    let harness = FakeHarness::new();
    let vmm = harness.vmm().await;
    let spec = |name: &str| BootSpec { disk: Some(harness.disk()), ..harness.spec_in(name) };
    let (one, two) = (boot(&vmm, &spec("one")).await, boot(&vmm, &spec("two")).await);
    let (first, second) = (VolumeSlot::new(0).unwrap(), VolumeSlot::new(1).unwrap());
    let volume = |name: &str| DiskSpec {
        overlay: harness.file(name),
        layers: Vec::new(),
        base: harness.file("volume-base"),
    };
    let (data, other) = (volume("data"), volume("other"));
    for _ in 0..2 {
        one.attach_volume(first, &data, 1 << 30, STEP).await.unwrap();
    }
    assert!(one.attach_volume(first, &other, 1 << 30, STEP).await.is_err(), "another is there");
    assert!(one.attach_volume(second, &data, 1 << 30, STEP).await.is_err(), "it is written");
    assert!(two.attach_volume(first, &data, 1 << 30, STEP).await.is_err(), "it is written");
    assert_eq!(harness.host.volumes_of(one.record())[&first], data);
    for _ in 0..2 {
        one.detach_volume(first, STEP).await.unwrap();
    }
    two.attach_volume(first, &data, 1 << 30, STEP).await.unwrap();
    two.kill().await.unwrap();
    one.attach_volume(second, &data, 1 << 30, STEP).await.unwrap();
    let gone = DiskSpec { overlay: "/nonexistent".into(), ..data };
    assert!(one.attach_volume(first, &gone, 1 << 30, STEP).await.is_err());
}

#[tokio::test]
async fn the_chain_of_a_disk_is_what_was_done_to_it() {
    let harness = FakeHarness::new();
    let disk = harness.disk();
    let spec = BootSpec { disk: Some(disk.clone()), ..harness.spec() };
    let vm = boot(&harness.vmm().await, &spec).await;
    let seen = || harness.host.disk_of(vm.record()).unwrap();

    let next = harness.file("next");
    vm.push_overlay(&next, STEP).await.unwrap();
    assert_eq!(seen().overlay, next);
    assert_eq!(seen().layers, [disk.overlay.clone(), disk.layers[0].clone()]);
    vm.grow_disk(1 << 30, MOST_FILE_BYTES, STEP).await.unwrap();
    vm.grow_disk(1 << 30, MOST_FILE_BYTES, STEP).await.unwrap();
    assert!(vm.grow_disk(1 << 29, MOST_FILE_BYTES, STEP).await.is_err());
    vm.push_overlay(&next, STEP).await.unwrap();
    assert_eq!(seen().layers.len(), 2);
    assert!(vm.push_overlay(&disk.overlay, STEP).await.is_err());
    assert!(vm.push_overlay(Path::new("/nonexistent"), STEP).await.is_err());
    vm.flatten_disk(STEP).await.unwrap();
    let expected: [PathBuf; 0] = [];
    assert_eq!((seen().layers, seen().grown_to_bytes), (expected.to_vec(), Some(1 << 30)));
    for n in 0..DiskSpec::MAX_LAYERS {
        vm.push_overlay(&harness.file(&format!("layer-{n}")), STEP).await.unwrap();
    }
    assert!(vm.push_overlay(&harness.file("too-many"), STEP).await.is_err());
}

/// Calls a step for its outcome alone.
async fn take(vm: &Arc<dyn Vm>, step: Step, dir: &Path) -> Result<(), VmmError> {
    let file = |name: &str| {
        let path = dir.join(name);
        let _ = fs::remove_file(&path);
        new_file(&path)
    };
    match step {
        Step::Pause => vm.pause(STEP).await,
        Step::Resume => vm.resume(STEP).await,
        Step::Load => vm.load(STEP).await,
        Step::BeginSave => vm.begin_save(file("state"), SavedMemory::InState).await,
        Step::Converge => vm.wait_save(SaveProgress::Converged, STEP).await,
        Step::Capture => vm.wait_save(SaveProgress::Captured, STEP).await,
        Step::CompleteSave => vm.wait_save(SaveProgress::Complete, STEP).await,
        Step::CancelSave => vm.cancel_save(STEP).await,
        Step::PushOverlay => {
            drop(file("pushed"));
            vm.push_overlay(&dir.join("pushed"), STEP).await
        }
        Step::FlattenDisk => vm.flatten_disk(STEP).await,
        Step::GrowDisk => vm.grow_disk(1 << 30, MOST_FILE_BYTES, STEP).await,
        Step::AttachVolume => {
            drop(file("volume"));
            let (overlay, base) = (dir.join("volume"), dir.join("volume"));
            let disk = DiskSpec { overlay, layers: Vec::new(), base };
            vm.attach_volume(VolumeSlot::new(0).unwrap(), &disk, 1 << 30, STEP).await
        }
        Step::PushVolumeOverlay => {
            drop(file("pushed-volume"));
            let pushed = dir.join("pushed-volume");
            vm.push_volume_overlay(VolumeSlot::new(0).unwrap(), &pushed, STEP).await
        }
        Step::FlattenVolume => vm.flatten_volume(VolumeSlot::new(0).unwrap(), STEP).await,
        Step::GrowVolume => {
            vm.grow_volume(VolumeSlot::new(0).unwrap(), 1 << 30, MOST_FILE_BYTES, STEP).await
        }
        Step::DetachVolume => vm.detach_volume(VolumeSlot::new(0).unwrap(), STEP).await,
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_injected_at_a_step_is_met_there_once_and_nowhere_else() {
    let steps = [
        Step::Pause,
        Step::BeginSave,
        Step::Converge,
        Step::Capture,
        Step::CompleteSave,
        Step::Resume,
        Step::CancelSave,
        Step::PushOverlay,
        Step::FlattenDisk,
        Step::GrowDisk,
        Step::AttachVolume,
        Step::PushVolumeOverlay,
        Step::FlattenVolume,
        Step::GrowVolume,
        Step::DetachVolume,
    ];
    for faulty in steps {
        for fault in [StepFault::Refuse, StepFault::Hang, StepFault::LoseAnswer, StepFault::Die] {
            let harness = FakeHarness::new();
            let kept = harness.kept_dir();
            let spec = BootSpec { disk: Some(harness.disk()), ..harness.spec() };
            let vm = boot(&harness.vmm().await, &spec).await;
            harness.host.inject_at(faulty, fault);
            for step in steps {
                let outcome = take(&vm, step, &kept).await;
                if step == faulty {
                    match fault {
                        StepFault::Refuse => {
                            assert!(
                                matches!(outcome, Err(VmmError::Refused { .. })),
                                "{outcome:?}"
                            );
                        }
                        StepFault::Hang | StepFault::LoseAnswer => {
                            assert!(matches!(outcome, Err(VmmError::Timeout(_))), "{outcome:?}");
                        }
                        StepFault::Die => {
                            assert!(matches!(outcome, Err(VmmError::Gone)), "{outcome:?}");
                            assert!(matches!(vm.wait_exit().await, Exit::Crashed(_)));
                            break;
                        }
                    }
                    // Again, without the fault; what was done already is no second save or layer.
                    if fault != StepFault::LoseAnswer {
                        take(&vm, step, &kept).await.unwrap();
                    }
                } else {
                    outcome.unwrap();
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_that_hangs_leaves_a_parked_process() {
    let harness = FakeHarness::new();
    let vmm = harness.vmm().await;
    let state = harness.kept_dir().join("state");
    let vm = boot(&vmm, &harness.spec_in("first")).await;
    vm.pause(STEP).await.unwrap();
    save(&vm, &state, SavedMemory::InState).await;
    let vm = park(&vmm, &from_state(harness.spec_in("second"), &state)).await;
    harness.host.inject_at(Step::Load, StepFault::Hang);
    assert!(matches!(vm.load(STEP).await, Err(VmmError::Timeout(_))));
    assert_eq!(harness.host.state_of(vm.record()), Some(VmState::Parked));
    vm.kill().await.unwrap();
    assert_eq!(harness.host.state_of(vm.record()), None);
}
