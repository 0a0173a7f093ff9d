//! The suite for QEMU, with the kernel and the agent of real workspaces, and what only it can do.

use std::{
    env, fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use skerry_agent_protocol::handshake;
use skerry_model::{MemMib, VcpuCount, spec::CpuKind};
use skerry_vmm::{
    Accelerator, BootSpec, CpuModel, DiskSpec, Exit, Sandbox, Vmm, VmmError, VmmRecord,
    qemu::{AcceleratorChoice, Probe, QemuConfig, QemuVmm},
};
use tempfile::TempDir;

use crate::suite::{Harness, TEST_DEADLINE};

/// An ordinary user that owns nothing on the host.
pub(crate) const VM_UID: u32 = 64_242;

/// As large as the guest sees its disk.
pub(crate) const DISK_BYTES: u64 = 2 << 30;

pub(crate) struct QemuHarness {
    dir: TempDir,
    images: PathBuf,
}

impl QemuHarness {
    pub(crate) fn new() -> Self {
        let images = env::var_os("SKERRY_IMAGE_DIR").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../var/images"),
            PathBuf::from,
        );
        let images = fs::canonicalize(&images).unwrap_or(images);
        let kernel = images.join("boot/vmlinux");
        assert!(
            kernel.is_file(),
            "{} is missing: run `make setup`, or name the directory in SKERRY_IMAGE_DIR",
            kernel.display()
        );
        Self { dir: tempfile::tempdir().unwrap(), images }
    }

    /// As root the VMM gets a user of its own, as in production; otherwise it stays ours.
    fn sandbox(&self) -> Sandbox {
        let uid = nix::unistd::geteuid().is_root().then_some(VM_UID);
        Sandbox { uid, ..Sandbox::default() }
    }

    fn probe(&self, deadline: Duration) -> Probe {
        let scratch_dir = self.dir.path().join("probe");
        fs::create_dir_all(&scratch_dir).unwrap();
        Probe {
            kernel: self.images.join("boot/vmlinux"),
            initramfs: self.images.join("boot/initramfs.cpio"),
            scratch_dir,
            sandbox: self.sandbox(),
            deadline,
        }
    }

    /// The raw file of the image `base`.
    fn base(&self) -> PathBuf {
        fs::read_dir(&self.images)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("base@"))
            })
            .expect("the image `base` is missing: run `make setup`")
            .join("root.ext4")
    }

    /// An overlay whose header names a backing file that must never be opened.
    pub(crate) fn overlay(&self, name: &str) -> PathBuf {
        let overlay = self.dir.path().join(name);
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow"])
            .arg(&overlay)
            .arg(DISK_BYTES.to_string())
            .status()
            .unwrap();
        assert!(made.success());
        overlay
    }

    /// A fresh overlay on these layers (the uppermost first) on the base image.
    pub(crate) fn disk_on(&self, name: &str, layers: &[&Path]) -> DiskSpec {
        let layers = layers.iter().map(|layer| layer.to_path_buf()).collect();
        DiskSpec { overlay: self.overlay(name), layers, base: self.base() }
    }

    fn disk(&self) -> DiskSpec {
        self.disk_on("root.qcow2", &[])
    }
}

/// A test that fails must not leave its VM to the tests after it.
impl Drop for QemuHarness {
    fn drop(&mut self) {
        for pid in processes_using(self.dir.path()) {
            let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

pub(crate) async fn open() -> QemuVmm {
    let config = QemuConfig { binary: None, accelerator: AcceleratorChoice::Tcg };
    QemuVmm::open(config).await.unwrap()
}

fn status_field(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line[name.len() + 1..].split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Harness for QemuHarness {
    async fn vmm(&self) -> Arc<dyn Vmm> {
        Arc::new(open().await)
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
            label: "contract".into(),
            kernel: self.images.join("boot/vmlinux"),
            initramfs: self.images.join("boot/initramfs.cpio"),
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
            sandbox: self.sandbox(),
        }
    }

    fn is_alive(&self, record: &VmmRecord) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", record.pid)) else {
            return false;
        };
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let same = fields[19].parse() == Ok(record.start_time_ticks);
        same && !matches!(fields[0], "Z" | "X")
    }

    async fn kill_from_outside(&self, record: &VmmRecord) {
        let pid = nix::unistd::Pid::from_raw(record.pid.try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}

crate::contract!(QemuHarness);
crate::states::state_contract!(QemuHarness);

/// Every promise about rights, files and the root disk on one boot: boots are what costs.
#[tokio::test]
async fn the_process_has_its_own_rights_and_the_guest_its_root_disk() {
    let checked = async {
        let harness = QemuHarness::new();
        let spec =
            BootSpec { disk: Some(harness.disk()), vcpu_count: VcpuCount(2), ..harness.spec() };
        // A file of ours that any program we execute would inherit.
        let leak = fs::File::create(harness.dir.path().join("leak")).unwrap();
        nix::fcntl::fcntl(&leak, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))
            .unwrap();
        let vm = open().await.boot(&spec, &mut |_| Ok(())).await.unwrap();
        let pid = vm.record().pid;

        let expected: Vec<PathBuf> = [
            &spec.kernel,
            &spec.initramfs,
            spec.memory_file.as_ref().unwrap(),
            &spec.disk.as_ref().unwrap().base,
            &spec.disk.as_ref().unwrap().overlay,
        ]
        .map(|path| fs::canonicalize(path).unwrap())
        .into();
        for file in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let file = fs::read_link(file.unwrap().path()).unwrap();
            let name = file.to_string_lossy();
            let anonymous = ["socket:", "anon_inode:", "pipe:", "/dev/null"]
                .iter()
                .any(|kind| name.starts_with(kind));
            assert!(anonymous || expected.contains(&file), "the VMM holds {name}");
        }

        if let Some(uid) = spec.sandbox.uid {
            assert_eq!(status_field(pid, "Uid:"), format!("{uid} {uid} {uid} {uid}"));
            assert_eq!(status_field(pid, "Gid:"), format!("{uid} {uid} {uid} {uid}"));
            assert_eq!(status_field(pid, "Groups:"), "");
            assert_eq!(status_field(pid, "CapEff:"), "0000000000000000");
            // Only a container may keep its root from making name spaces.
            let may_unshare = || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_ok();
            if std::thread::spawn(may_unshare).join().unwrap() {
                for kind in ["net", "ipc"] {
                    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
                    assert_ne!(of(&pid.to_string()), of("self"), "{kind}");
                }
            }
            for file in [spec.memory_file.as_ref().unwrap(), &spec.disk.as_ref().unwrap().overlay] {
                let meta = fs::metadata(file).unwrap();
                assert_eq!((meta.uid(), meta.permissions().mode() & 0o777), (uid, 0o600));
            }
        }
        assert_eq!(status_field(pid, "NoNewPrivs:"), "1");
        assert_eq!(status_field(pid, "Seccomp:"), "2");
        assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
        for name in ["qmp.sock", "agent.sock", "console.sock"] {
            let mode = fs::metadata(spec.run_dir.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(fs::metadata(&spec.run_dir).unwrap().permissions().mode() & 0o777, 0o700);

        let mut channel = vm.connect_guest().await.unwrap();
        handshake::connect(&mut channel, [1; 16], TEST_DEADLINE).await.unwrap();
        let console = fs::read_to_string(&spec.console_log).unwrap();
        assert!(console.contains("root disk /dev/vda"), "{console}");
        vm.kill().await.unwrap();
    };
    tokio::time::timeout(TEST_DEADLINE, checked).await.unwrap();
}

/// The guest's first program runs: emulation works anywhere.
#[tokio::test]
async fn emulation_proves_itself_and_leaves_no_file() {
    let harness = QemuHarness::new();
    let probe = harness.probe(TEST_DEADLINE);
    open().await.probe(Accelerator::Tcg, &probe).await.unwrap();
    assert_eq!(fs::read_dir(&probe.scratch_dir).unwrap().count(), 0);
}

/// Whatever this host's `/dev/kvm` is worth: the answer comes in time, says why, and nothing runs on.
#[tokio::test]
async fn the_choice_of_accelerator_is_made_by_a_guest_within_the_deadline() {
    let harness = QemuHarness::new();
    for sandbox in [harness.sandbox(), Sandbox::default()] {
        let probe = Probe { sandbox, ..harness.probe(Duration::from_secs(10)) };
        let scratch_dir = probe.scratch_dir.clone();
        let choice = AcceleratorChoice::Auto(probe);
        let opened = QemuVmm::open(QemuConfig { binary: None, accelerator: choice });
        let vmm = tokio::time::timeout(Duration::from_secs(25), opened).await.unwrap().unwrap();
        let reason = vmm.accelerator_reason();
        match vmm.capabilities().accelerator {
            Accelerator::Kvm => assert!(reason.contains("powered off"), "{reason}"),
            Accelerator::Tcg => assert!(reason.starts_with("emulation: "), "{reason}"),
            Accelerator::None => panic!("QEMU always has one"),
        }
        println!("{reason}");
        assert_eq!(fs::read_dir(&scratch_dir).unwrap().count(), 0);
    }
}

/// A deadline too short for any guest stands for one that hangs.
#[tokio::test]
async fn a_probe_that_hangs_is_killed_at_its_deadline() {
    let harness = QemuHarness::new();
    let probe = harness.probe(Duration::from_millis(300));
    let outcome = open().await.probe(Accelerator::Tcg, &probe).await;
    assert!(matches!(outcome, Err(VmmError::Timeout(_))), "{outcome:?}");
    assert_eq!(fs::read_dir(&probe.scratch_dir).unwrap().count(), 0);
    assert_eq!(processes_using(harness.dir.path()), Vec::<u32>::new());
}

/// The VMM says on its standard error what it does not like.
#[tokio::test]
async fn a_vmm_that_refuses_its_files_is_quoted() {
    let harness = QemuHarness::new();
    let overlay = harness.dir.path().join("broken.qcow2");
    fs::write(&overlay, "this is no qcow2").unwrap();
    let disk = DiskSpec { overlay, layers: Vec::new(), base: harness.disk().base };
    let spec = BootSpec { disk: Some(disk), ..harness.spec() };
    let error = open().await.boot(&spec, &mut |_| Ok(())).await.err().unwrap();
    let told = matches!(&error, VmmError::EndedEarly(reason) if reason.contains("qcow2"));
    assert!(told, "{error}");
    let log = fs::read_to_string(spec.run_dir.join("vmm.log")).unwrap();
    assert!(log.contains("qcow2"), "{log}");
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_is_not_usable() {
    let harness = QemuHarness::new();
    let program = harness.dir.path().join("qemu");
    fs::write(&program, "#!/bin/sh\necho QEMU emulator version 8.2.0\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let config = QemuConfig { binary: Some(program.clone()), accelerator: AcceleratorChoice::Tcg };
    let vmm = QemuVmm::open(config).await.unwrap();
    assert_eq!(vmm.capabilities().version, "8.2.0");
    fs::remove_file(&program).unwrap();
    let error = vmm.boot(&harness.spec(), &mut |_| Ok(())).await.err().unwrap();
    let told = matches!(&error, VmmError::NotUsable(reason) if reason.contains("execute"));
    assert!(told, "{error}");
}

/// No connection of ours means that output is lost, never that the guest waits.
#[tokio::test]
async fn a_guest_runs_on_while_nobody_listens() {
    let checked = async {
        let harness = QemuHarness::new();
        let spec = BootSpec { kernel_args: vec!["loglevel=8".into()], ..harness.spec() };
        let vmm = open().await;
        let vm = vmm.boot(&spec, &mut |_| Ok(())).await.unwrap();
        let record = vm.record().clone();
        vmm.close().await;
        // The watching is over, not the VM.
        assert_eq!(vm.wait_exit().await, Exit::Unknown);
        drop((vm, vmm));

        let next = open().await;
        let vm = next.adopt(&record).await.unwrap();
        let mut channel = vm.connect_guest().await.unwrap();
        handshake::connect(&mut channel, [1; 16], TEST_DEADLINE).await.unwrap();
        vm.kill().await.unwrap();
    };
    tokio::time::timeout(TEST_DEADLINE, checked).await.unwrap();
}

/// Processes that have a file below `dir` open.
fn processes_using(dir: &Path) -> Vec<u32> {
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
            files
                .flatten()
                .any(|file| fs::read_link(file.path()).is_ok_and(|to| to.starts_with(dir)))
        })
        .collect()
}
