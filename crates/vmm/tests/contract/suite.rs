//! The promises.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use skerry_agent_protocol::handshake;
use skerry_vmm::{BootSpec, Cable, Channel, Exit, Vm, Vmm, VmmError, VmmRecord};
use tokio::io::AsyncReadExt;

/// Generous: two cores may be emulating several guests at once.
pub(crate) const TEST_DEADLINE: Duration = Duration::from_secs(150);

pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// What a driver's tests need beside the driver.
pub(crate) trait Harness: Sized {
    /// The driver as it is in this life.
    fn vmm(&self) -> impl Future<Output = Arc<dyn Vmm>>;

    /// The driver of the next life. Everything of the former one is gone already.
    fn next_life(&self) -> impl Future<Output = Arc<dyn Vmm>>;

    /// A guest that serves the agent's handshake. The directory is fresh.
    fn spec(&self) -> BootSpec {
        self.spec_in("run")
    }

    /// The same in a fresh directory of this name.
    fn spec_in(&self, name: &str) -> BootSpec;

    /// A fresh directory for what outlives a VM.
    fn kept_dir(&self) -> PathBuf;

    /// Whether the process can still run.
    fn is_alive(&self, record: &VmmRecord) -> bool;

    /// A signal from outside.
    fn kill_from_outside(&self, record: &VmmRecord) -> impl Future<Output = ()>;
}

/// The word on which a guest powers off at once.
const POWER_OFF: &str = "skerry.probe";

/// With no first program the kernel panics, which our command line turns into a reboot.
const REBOOT: &str = "rdinit=/nonexistent";

pub(crate) async fn boot(vmm: &Arc<dyn Vmm>, spec: &BootSpec) -> Arc<dyn Vm> {
    vmm.boot(spec, &mut |_| Ok(())).await.unwrap()
}

pub(crate) async fn connect(vm: &Arc<dyn Vm>) -> Box<dyn Channel> {
    vm.connect_guest().await.unwrap()
}

pub(crate) async fn converse(channel: &mut Box<dyn Channel>, nonce: u8) {
    handshake::connect(channel, [nonce; 16], ANSWER_DEADLINE).await.unwrap();
}

pub(crate) fn files_left(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".log"))
        .collect();
    names.sort();
    names
}

pub(crate) async fn a_guest_answers_on_its_channel_even_when_spoken_to_before_it_is_up(
    harness: impl Harness,
) {
    let vm = boot(&harness.vmm().await, &harness.spec()).await;
    converse(&mut connect(&vm).await, 1).await;
    vm.kill().await.unwrap();
}

pub(crate) async fn the_record_is_committed_once_and_is_the_handles(harness: impl Harness) {
    let committed = Mutex::new(Vec::new());
    let vmm = harness.vmm().await;
    let vm = vmm
        .boot(&harness.spec(), &mut |record| {
            committed.lock().unwrap().push(record.clone());
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(*committed.lock().unwrap(), [vm.record().clone()]);
    assert!(harness.is_alive(vm.record()));
    vm.kill().await.unwrap();
}

pub(crate) async fn a_record_that_cannot_be_kept_leaves_nothing(harness: impl Harness) {
    let spec = harness.spec();
    let before = files_left(&spec.run_dir);
    let mut seen = None;
    let outcome = harness
        .vmm()
        .await
        .boot(&spec, &mut |record| {
            seen = Some(record.clone());
            Err(io::ErrorKind::StorageFull.into())
        })
        .await;
    let error = outcome.err().unwrap();
    assert!(
        matches!(&error, VmmError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull),
        "{error}"
    );
    assert!(!harness.is_alive(&seen.unwrap()));
    assert_eq!(files_left(&spec.run_dir), before);
}

pub(crate) async fn a_boot_given_up_after_its_record_leaves_nothing(harness: impl Harness) {
    let spec = harness.spec();
    let before = files_left(&spec.run_dir);
    let vmm = harness.vmm().await;
    let seen = Mutex::new(None);
    {
        let mut commit = |record: &VmmRecord| {
            *seen.lock().unwrap() = Some(record.clone());
            Ok(())
        };
        let mut booting = vmm.boot(&spec, &mut commit);
        // One poll runs up to the first wait; from the record on it is given up at whichever.
        let given_up = std::future::poll_fn(|cx| {
            let polled = booting.as_mut().poll(cx);
            match (&polled, &*seen.lock().unwrap()) {
                (_, Some(_)) => std::task::Poll::Ready(polled.is_pending()),
                (std::task::Poll::Ready(_), None) => std::task::Poll::Ready(false),
                (std::task::Poll::Pending, None) => std::task::Poll::Pending,
            }
        })
        .await;
        if !given_up {
            // The fake driver is up in one step; there is nothing to give up.
            let record = seen.lock().unwrap().clone().unwrap();
            drop(booting);
            vmm.adopt(&record).await.unwrap().kill().await.unwrap();
            return;
        }
    }
    let record = seen.lock().unwrap().clone().unwrap();
    assert_eq!(files_left(&spec.run_dir), before);
    match vmm.adopt(&record).await {
        // Killed, but perhaps still ending.
        Ok(vm) => assert_ne!(vm.wait_exit().await, Exit::PoweredOff),
        Err(error) => assert!(matches!(error, VmmError::Gone), "{error}"),
    }
    assert!(!harness.is_alive(&record));
}

pub(crate) async fn a_spec_out_of_range_is_refused_before_anything_is_made(harness: impl Harness) {
    let vmm = harness.vmm().await;
    let good = harness.spec();
    let cases = [
        ("label", BootSpec { label: "Bad label".into(), ..good.clone() }),
        ("label", BootSpec { label: String::new(), ..good.clone() }),
        ("kernel_args", BootSpec { kernel_args: vec!["a=1 init=/x".into()], ..good.clone() }),
        ("kernel_args", BootSpec { kernel_args: vec!["a".repeat(4096)], ..good.clone() }),
        ("run_dir", BootSpec { run_dir: format!("/{}", "a".repeat(80)).into(), ..good.clone() }),
        ("run_dir", BootSpec { run_dir: "relative".into(), ..good.clone() }),
        ("kernel", BootSpec { kernel: "/nonexistent/vmlinux".into(), ..good.clone() }),
        ("vcpu_count", BootSpec { vcpu_count: skerry_model::VcpuCount(0), ..good.clone() }),
        ("memory_mib", BootSpec { memory_mib: skerry_model::MemMib(1), ..good.clone() }),
        ("console_limit_bytes", BootSpec { console_limit_bytes: 1, ..good.clone() }),
        ("mac", BootSpec { mac: [1, 0, 0, 0, 0, 1], ..good.clone() }),
        ("cable", BootSpec { cable: Cable::Tap { tap: None }, ..good.clone() }),
    ];
    let before = files_left(&good.run_dir);
    for (expected, spec) in cases {
        let outcome = vmm.boot(&spec, &mut |_| panic!("nothing exists to be recorded")).await;
        let error = outcome.err().unwrap();
        assert!(
            matches!(&error, VmmError::InvalidSpec { field, .. } if *field == expected),
            "{expected}: {error}"
        );
    }
    assert_eq!(files_left(&good.run_dir), before);
    assert!(!good.console_log.exists());
}

pub(crate) async fn a_newer_connection_replaces_the_older(harness: impl Harness) {
    let vm = boot(&harness.vmm().await, &harness.spec()).await;
    let mut older = connect(&vm).await;
    converse(&mut older, 1).await;
    let mut newer = connect(&vm).await;
    let mut rest = Vec::new();
    // Whatever was on its way may come first; then it ends.
    tokio::time::timeout(ANSWER_DEADLINE, older.read_to_end(&mut rest)).await.unwrap().unwrap();
    converse(&mut newer, 2).await;
    vm.kill().await.unwrap();
}

pub(crate) async fn a_dropped_connection_makes_room_for_the_next(harness: impl Harness) {
    let vm = boot(&harness.vmm().await, &harness.spec()).await;
    for nonce in 1..=5 {
        converse(&mut connect(&vm).await, nonce).await;
    }
    vm.kill().await.unwrap();
}

pub(crate) async fn a_kill_ends_it_for_everyone_who_waits_and_may_be_repeated(
    harness: impl Harness,
) {
    let vm = boot(&harness.vmm().await, &harness.spec()).await;
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let vm = vm.clone();
            tokio::spawn(async move { vm.wait_exit().await })
        })
        .collect();
    let mut channel = connect(&vm).await;

    vm.kill().await.unwrap();
    assert!(!harness.is_alive(vm.record()));
    vm.kill().await.unwrap();
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), Exit::Killed);
    }
    assert_eq!(vm.wait_exit().await, Exit::Killed);
    let mut rest = Vec::new();
    // The end of the stream, or a broken one; but not silence.
    let _ = tokio::time::timeout(ANSWER_DEADLINE, channel.read_to_end(&mut rest)).await.unwrap();
    assert!(matches!(vm.connect_guest().await, Err(VmmError::Gone)));
    assert!(matches!(vm.pause(ANSWER_DEADLINE).await, Err(VmmError::Gone)));
    assert!(matches!(vm.resume(ANSWER_DEADLINE).await, Err(VmmError::Gone)));
}

pub(crate) async fn a_guest_that_powers_off_is_reported_so_ever_after(harness: impl Harness) {
    let vmm = harness.vmm().await;
    let spec = BootSpec { kernel_args: vec![POWER_OFF.into()], ..harness.spec() };
    let vm = boot(&vmm, &spec).await;
    assert_eq!(vm.wait_exit().await, Exit::PoweredOff);
    assert!(!harness.is_alive(vm.record()));
    vm.kill().await.unwrap();
    assert_eq!(vm.wait_exit().await, Exit::PoweredOff);
    assert!(matches!(vm.connect_guest().await, Err(VmmError::Gone)));
    assert!(matches!(vmm.adopt(vm.record()).await, Err(VmmError::Gone)));
}

pub(crate) async fn a_guest_that_reboots_is_reported_so(harness: impl Harness) {
    let spec = BootSpec { kernel_args: vec![REBOOT.into()], ..harness.spec() };
    let vm = boot(&harness.vmm().await, &spec).await;
    assert_eq!(vm.wait_exit().await, Exit::Rebooted);
}

pub(crate) async fn an_end_from_outside_is_a_crash(harness: impl Harness) {
    let vm = boot(&harness.vmm().await, &harness.spec()).await;
    harness.kill_from_outside(vm.record()).await;
    let exit = vm.wait_exit().await;
    assert_eq!(exit, Exit::Crashed("the VMM was ended by SIGKILL".into()));
}

pub(crate) async fn a_dropped_handle_leaves_the_vm_and_the_driver_adopts_it_again(
    harness: impl Harness,
) {
    let vmm = harness.vmm().await;
    let vm = boot(&vmm, &harness.spec()).await;
    let record = vm.record().clone();
    converse(&mut connect(&vm).await, 1).await;
    drop(vm);
    assert!(harness.is_alive(&record));

    let vm = vmm.adopt(&record).await.unwrap();
    assert_eq!(*vm.record(), record);
    converse(&mut connect(&vm).await, 2).await;
    vm.kill().await.unwrap();
    assert!(!harness.is_alive(&record));
}

pub(crate) async fn the_next_life_adopts_talks_and_kills(harness: impl Harness) {
    let record = {
        let vm = boot(&harness.vmm().await, &harness.spec()).await;
        converse(&mut connect(&vm).await, 1).await;
        vm.record().clone()
    };
    assert!(harness.is_alive(&record));

    let vm = harness.next_life().await.adopt(&record).await.unwrap();
    assert_eq!(*vm.record(), record);
    converse(&mut connect(&vm).await, 2).await;
    vm.pause(ANSWER_DEADLINE).await.unwrap();
    vm.resume(ANSWER_DEADLINE).await.unwrap();
    vm.kill().await.unwrap();
    assert_eq!(vm.wait_exit().await, Exit::Killed);
    assert!(!harness.is_alive(&record));
}

pub(crate) async fn the_next_life_learns_how_an_adopted_guest_ended(harness: impl Harness) {
    let record = {
        let spec = BootSpec { kernel_args: vec![POWER_OFF.into()], ..harness.spec() };
        let vm = boot(&harness.vmm().await, &spec).await;
        // Long before the guest reaches its first program.
        vm.pause(ANSWER_DEADLINE).await.unwrap();
        vm.record().clone()
    };
    let vm = harness.next_life().await.adopt(&record).await.unwrap();
    vm.resume(ANSWER_DEADLINE).await.unwrap();
    assert_eq!(vm.wait_exit().await, Exit::PoweredOff);
}

pub(crate) async fn a_record_that_names_another_process_is_gone(harness: impl Harness) {
    let vmm = harness.vmm().await;
    let vm = boot(&vmm, &harness.spec()).await;
    let record = vm.record();
    let others = [
        VmmRecord { boot_id: "an-earlier-boot".into(), ..record.clone() },
        VmmRecord { start_time_ticks: record.start_time_ticks + 1, ..record.clone() },
        VmmRecord { pid: u32::MAX >> 2, ..record.clone() },
    ];
    for other in others {
        let outcome = vmm.adopt(&other).await;
        assert!(matches!(outcome, Err(VmmError::Gone)), "{other:?}");
    }
    assert!(harness.is_alive(record));
    vm.kill().await.unwrap();
}

pub(crate) async fn a_record_of_another_driver_is_not_touched(harness: impl Harness) {
    let vmm = harness.vmm().await;
    let vm = boot(&vmm, &harness.spec()).await;
    let other = VmmRecord { driver: "other".into(), ..vm.record().clone() };
    assert!(matches!(vmm.adopt(&other).await, Err(VmmError::NotUsable(_))));
    assert!(harness.is_alive(vm.record()));
    vm.kill().await.unwrap();
}

pub(crate) async fn a_paused_guest_is_silent_until_resumed(harness: impl Harness) {
    let vm = boot(&harness.vmm().await, &harness.spec()).await;
    converse(&mut connect(&vm).await, 1).await;

    vm.pause(ANSWER_DEADLINE).await.unwrap();
    // Pausing what is paused is a success.
    vm.pause(ANSWER_DEADLINE).await.unwrap();
    let mut channel = connect(&vm).await;
    let nonce = [2; 16];
    let silence = handshake::connect(&mut channel, nonce, Duration::from_secs(1)).await;
    assert!(matches!(silence, Err(handshake::HandshakeError::Timeout(_))), "{silence:?}");

    vm.resume(ANSWER_DEADLINE).await.unwrap();
    vm.resume(ANSWER_DEADLINE).await.unwrap();
    converse(&mut connect(&vm).await, 3).await;
    vm.kill().await.unwrap();
}

pub(crate) async fn the_console_is_kept_within_its_limit(harness: impl Harness) {
    const LIMIT: u64 = 4096;
    // The whole boot is told on the console: many times the limit.
    let spec = BootSpec {
        kernel_args: vec!["loglevel=8".into(), POWER_OFF.into()],
        console_limit_bytes: LIMIT,
        ..harness.spec()
    };
    let vm = boot(&harness.vmm().await, &spec).await;
    assert_eq!(vm.wait_exit().await, Exit::PoweredOff);
    let console = fs::read_to_string(&spec.console_log).unwrap();
    assert!(console.len() as u64 <= LIMIT, "{}", console.len());
    assert!(console.starts_with("[older output dropped]\n"), "{console}");
    // What was said last was kept.
    assert!(console.contains("Power down"), "{console}");
}
