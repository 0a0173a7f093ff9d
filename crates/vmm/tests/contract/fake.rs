//! The suite for the in-memory driver, and what only it can do.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::FutureExt;
use skerry_agent_protocol::handshake;
use skerry_model::{MemMib, VcpuCount, spec::CpuKind};
use skerry_vmm::{
    BootSpec, CpuModel, Exit, Sandbox, Vmm, VmmError, VmmRecord,
    fake::{FakeGuestIo, FakeHost, FakeVmm, Fault, GuestEnd},
};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::suite::Harness;

pub(crate) struct FakeHarness {
    dir: TempDir,
    host: FakeHost,
}

impl FakeHarness {
    pub(crate) fn new() -> Self {
        let host = FakeHost::new(Arc::new(|io| guest(io).boxed()));
        Self { dir: tempfile::tempdir().unwrap(), host }
    }

    fn file(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, "").unwrap();
        path
    }
}

/// Obeys the same words as the real kernel and agent.
async fn guest(mut io: FakeGuestIo) -> GuestEnd {
    let is_told = |word: &str| io.spec.kernel_args.iter().any(|arg| arg == word);
    if is_told("loglevel=8") {
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
        std::fs::create_dir(&dir).unwrap();
        dir
    }

    fn spec_in(&self, name: &str) -> BootSpec {
        let run_dir = self.dir.path().join(name);
        std::fs::create_dir(&run_dir).unwrap();
        BootSpec {
            label: "test".into(),
            kernel: self.file("vmlinux"),
            initramfs: self.file("initramfs.cpio"),
            memory_file: run_dir.join("ram"),
            run_dir,
            memory_mib: MemMib(256),
            vcpu_count: VcpuCount(1),
            cpu_kind: CpuKind::Shared,
            cpu_model: CpuModel::Default,
            disk: None,
            mac: [0x52, 0x54, 0, 0, 0, 1],
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

        std::fs::remove_dir(harness.dir.path().join("run")).unwrap();
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
