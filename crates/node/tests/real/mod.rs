//! A real virtual machine with the real agent, for tests of what only they can show. Built by
//! `make setup`.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use skerry_internal_api::{ExecControl, ExecExit, ExecOutput, ExecRequest, GuestApi, Pty, User};
use skerry_model::{MemMib, Timestamp, VcpuCount, spec::CpuKind};
use skerry_node::guest::{Dial, Fresh, GuestHello, GuestLink, Unsaid};
use skerry_vmm::{
    BootSpec, Channel, CpuModel, DiskSpec, Sandbox, Vm, VmmError,
    qemu::{AcceleratorChoice, QemuConfig, QemuVmm},
};

pub const BOOT_WITHIN: Duration = Duration::from_secs(180);
pub const TEST_WITHIN: Duration = Duration::from_secs(400);
/// What the clock of every guest is set to when it is configured.
pub const NOW: i64 = 1_900_000_000;

fn images() -> PathBuf {
    let images = env::var_os("SKERRY_IMAGE_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../var/images"),
        PathBuf::from,
    );
    assert!(images.join("boot/vmlinux").is_file(), "no images: run `make setup`");
    fs::canonicalize(images).unwrap()
}

fn base(images: &Path) -> PathBuf {
    fs::read_dir(images)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("base@"))
        })
        .expect("no image `base`: run `make setup`")
        .join("root.ext4")
}

pub async fn vmm() -> QemuVmm {
    let config = QemuConfig { binary: None, accelerator: AcceleratorChoice::Tcg };
    QemuVmm::open(config).await.unwrap()
}

/// An overlay of `size` on these frozen layers, uppermost first, on the image `base`.
pub fn disk(overlay: &Path, layers: &[&Path], size: &str) -> DiskSpec {
    let base = base(&images());
    let (backing, format) = match layers.first() {
        Some(layer) => (layer.to_path_buf(), "qcow2"),
        None => (base.clone(), "raw"),
    };
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", format, "-b"])
        .arg(backing)
        .arg(overlay)
        .arg(size)
        .status()
        .unwrap();
    assert!(made.success());
    let layers = layers.iter().map(|layer| layer.to_path_buf()).collect();
    DiskSpec { overlay: overlay.to_owned(), layers, base }
}

/// A machine with its files in `dir`, which is made.
pub fn machine(dir: &Path, disk: DiskSpec) -> BootSpec {
    let images = images();
    let run_dir = dir.join("run");
    fs::create_dir_all(&run_dir).unwrap();
    BootSpec {
        label: "real-guest".into(),
        kernel: images.join("boot/vmlinux"),
        initramfs: env::var_os("SKERRY_TEST_INITRAMFS")
            .map_or_else(|| images.join("boot/initramfs.cpio"), PathBuf::from),
        memory_file: Some(run_dir.join("ram")),
        run_dir,
        memory_mib: MemMib(256),
        vcpu_count: VcpuCount(1),
        cpu_kind: CpuKind::Shared,
        cpu_model: CpuModel::Default,
        disk: Some(disk),
        mac: [0x52, 0x54, 0, 0, 0, 9],
        cable: skerry_vmm::Cable::Loose,
        console_log: dir.join("console.log"),
        console_limit_bytes: 1024 * 1024,
        kernel_args: vec![],
        sandbox: Sandbox::default(),
    }
}

struct VmDial(Arc<dyn Vm>);

#[async_trait]
impl Dial for VmDial {
    async fn dial(&self) -> Result<Box<dyn Channel>, VmmError> {
        self.0.connect_guest().await
    }
}

pub fn dial(vm: &Arc<dyn Vm>) -> Arc<dyn Dial> {
    Arc::new(VmDial(Arc::clone(vm)))
}

pub async fn open(vm: &Arc<dyn Vm>, hello: GuestHello) -> Arc<GuestLink> {
    GuestLink::open(dial(vm), hello, BOOT_WITHIN).await.unwrap()
}

/// A workspace's guest; another digit, another identity. All are told the same randomness, which
/// leaves it to the agent and the kernel to make something different of it.
pub fn hello_of(digit: u8) -> GuestHello {
    GuestHello {
        hostname: format!("real-guest-{digit}"),
        machine_id: format!("{digit:x}123456789abcdef").repeat(2),
        env: BTreeMap::from([(String::from("FROM_WORKSPACE"), digit.to_string())]),
        unsaid: Unsaid::default(),
        incarnation: u64::from(digit),
        fresh: Arc::new(move || Fresh {
            entropy: vec![digit; 64],
            now: Timestamp::from_second(NOW).unwrap(),
        }),
    }
}

/// A guest that belongs to nobody yet.
pub fn hello_of_nobody() -> GuestHello {
    GuestHello { hostname: "nobody".into(), machine_id: String::new(), ..hello_of(0) }
}

pub async fn run(link: &GuestLink, script: &str) -> (String, ExecExit) {
    run_as(link, script, User::Root, None).await
}

pub fn shell(script: &str, user: User, pty: Option<Pty>) -> ExecRequest {
    ExecRequest {
        argv: vec!["sh".into(), "-c".into(), script.into()],
        env: BTreeMap::new(),
        working_dir: None,
        user,
        pty,
        timeout: Some(Duration::from_secs(60)),
    }
}

pub async fn run_as(
    link: &GuestLink,
    script: &str,
    user: User,
    pty: Option<Pty>,
) -> (String, ExecExit) {
    let mut session = link.exec(shell(script, user, pty)).await.unwrap();
    if pty.is_none() {
        // A command that has ended already takes no input.
        let _ = session.control.send(ExecControl::CloseStdin).await;
    }
    let mut said = Vec::new();
    while let Some(output) = session.output.recv().await {
        match output.unwrap() {
            ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes) => said.extend_from_slice(&bytes),
            ExecOutput::Exit(exit) => return (String::from_utf8_lossy(&said).into_owned(), exit),
        }
    }
    panic!("no exit after {}", String::from_utf8_lossy(&said));
}

pub async fn prints(link: &GuestLink, script: &str, expected: &str) {
    assert_eq!(run(link, script).await, (expected.to_owned(), ExecExit::Code(0)), "{script}");
}
