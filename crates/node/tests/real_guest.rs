//! The agent as PID 1 of a real virtual machine, reached through the real serial port.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use skerry_internal_api::{
    ExecControl, ExecExit, ExecOutput, ExecRequest, GuestApi, NodeError, Pty, User, WriteMode,
};
use skerry_model::{MemMib, Timestamp, VcpuCount, spec::CpuKind};
use skerry_node::guest::{Dial, Fresh, GuestHello, GuestLink};
use skerry_vmm::{
    BootSpec, Channel, CpuModel, DiskSpec, Exit, Sandbox, Vm, Vmm, VmmError,
    qemu::{AcceleratorChoice, QemuConfig, QemuVmm},
};
use tokio::time::timeout;

const BOOT_WITHIN: Duration = Duration::from_secs(180);
/// For so long the guest is left alone.
const AWAY: Duration = Duration::from_secs(4);
const TEST_WITHIN: Duration = Duration::from_secs(400);

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

struct VmDial(Arc<dyn Vm>);

#[async_trait]
impl Dial for VmDial {
    async fn dial(&self) -> Result<Box<dyn Channel>, VmmError> {
        self.0.connect_guest().await
    }
}

fn hello() -> GuestHello {
    GuestHello {
        hostname: String::from("real-guest"),
        machine_id: "0123456789abcdef".repeat(2),
        env: BTreeMap::from([(String::from("FROM_WORKSPACE"), String::from("yes"))]),
        incarnation: 1,
        fresh: Arc::new(|| Fresh {
            entropy: (0..64).collect(),
            now: Timestamp::from_second(1_900_000_000).unwrap(),
        }),
    }
}

async fn run(link: &GuestLink, script: &str) -> (String, ExecExit) {
    run_as(link, script, User::Root, None).await
}

async fn run_as(
    link: &GuestLink,
    script: &str,
    user: User,
    pty: Option<Pty>,
) -> (String, ExecExit) {
    let request = ExecRequest {
        argv: vec!["sh".into(), "-c".into(), script.into()],
        env: BTreeMap::new(),
        working_dir: None,
        user,
        pty,
        timeout: Some(Duration::from_secs(60)),
    };
    let mut session = link.exec(request).await.unwrap();
    if pty.is_none() {
        session.control.send(ExecControl::CloseStdin).await.unwrap();
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

async fn prints(link: &GuestLink, script: &str, expected: &str) {
    assert_eq!(run(link, script).await, (expected.to_owned(), ExecExit::Code(0)), "{script}");
}

#[tokio::test]
async fn the_agent_is_a_whole_machine() {
    let dir = tempfile::tempdir().unwrap();
    let images = images();
    let run_dir = dir.path().join("run");
    fs::create_dir(&run_dir).unwrap();
    let overlay = dir.path().join("root.qcow2");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .arg(base(&images))
        .arg(&overlay)
        .arg("3G")
        .status()
        .unwrap();
    assert!(made.success());
    let spec = BootSpec {
        label: "real-guest".into(),
        kernel: images.join("boot/vmlinux"),
        initramfs: images.join("boot/initramfs.cpio"),
        memory_file: Some(run_dir.join("ram")),
        run_dir,
        memory_mib: MemMib(256),
        vcpu_count: VcpuCount(1),
        cpu_kind: CpuKind::Shared,
        cpu_model: CpuModel::Default,
        disk: Some(DiskSpec { overlay, layers: Vec::new(), base: base(&images) }),
        mac: [0x52, 0x54, 0, 0, 0, 9],
        console_log: dir.path().join("console.log"),
        console_limit_bytes: 1024 * 1024,
        kernel_args: vec![],
        sandbox: Sandbox::default(),
    };
    let config = QemuConfig { binary: None, accelerator: AcceleratorChoice::Tcg };
    let vmm = QemuVmm::open(config).await.unwrap();
    let vm = vmm.boot(&spec, &mut |_| Ok(())).await.unwrap();
    let checked = {
        let vm = Arc::clone(&vm);
        // A task of its own, so that a failed check does not leave the VM behind.
        tokio::spawn(async move { timeout(TEST_WITHIN, check(&vm)).await })
    };
    let checked = checked.await;
    vm.kill().await.unwrap();
    vmm.close().await;
    let console = fs::read_to_string(dir.path().join("console.log")).unwrap_or_default();
    eprintln!("console:\n{console}");
    checked.unwrap().expect("the test took too long");
}

async fn check(vm: &Arc<dyn Vm>) {
    let booted = Instant::now();
    let dial: Arc<dyn Dial> = Arc::new(VmDial(Arc::clone(vm)));
    let link = GuestLink::open(Arc::clone(&dial), hello(), BOOT_WITHIN).await.unwrap();
    eprintln!("ready {:?} after the start", booted.elapsed());

    it_is_the_workspaces_own(&link).await;
    commands_have_streams_users_and_terminals(&link).await;
    files_and_trees_travel(&link).await;
    round_trips(&link).await;

    // A new link after an old one, as after a restart of the node. What was left in the background
    // goes on.
    let (pid, _) = run(&link, "sleep 1000 >/dev/null 2>&1 & echo $!").await;
    let before = link.stats().await.unwrap();
    link.close().await;
    // How long is what is measured: the agent must not spin while its host is away.
    tokio::time::sleep(AWAY).await;
    let started = Instant::now();
    let second = GuestLink::open(dial, hello(), BOOT_WITHIN).await.unwrap();
    eprintln!("reconnected in {:?}", started.elapsed());
    let after = second.stats().await.unwrap();
    let busy = Duration::from_millis(after.cpu_used_ms - before.cpu_used_ms);
    eprintln!("busy for {busy:?} of {AWAY:?} without a host");
    assert!(busy < AWAY / 2);
    prints(&second, &format!("kill -0 {} && echo alive", pid.trim()), "alive\n").await;
    second.close().await;
    for _ in 0..5 {
        let again: Arc<dyn Dial> = Arc::new(VmDial(Arc::clone(vm)));
        let third = GuestLink::open(again, hello(), BOOT_WITHIN).await.unwrap();
        prints(&third, "echo $FROM_WORKSPACE", "yes\n").await;
        third.close().await;
    }

    let last: Arc<dyn Dial> = Arc::new(VmDial(Arc::clone(vm)));
    let last = GuestLink::open(last, hello(), BOOT_WITHIN).await.unwrap();
    last.power_off().await.unwrap();
    let asked = Instant::now();
    let exit = timeout(Duration::from_secs(30), vm.wait_exit()).await.unwrap();
    eprintln!("off {:?} after it was asked", asked.elapsed());
    last.close().await;
    assert_eq!(exit, Exit::PoweredOff);
}

async fn it_is_the_workspaces_own(link: &GuestLink) {
    prints(link, "hostname; cat /etc/machine-id", "real-guest\n0123456789abcdef0123456789abcdef\n")
        .await;
    prints(link, "grep -c real-guest /etc/hosts", "1\n").await;
    prints(link, "expr $(date +%s) - 1900000000 | grep -cE '^[0-9]{1,2}$'", "1\n").await;
    prints(link, "cat /proc/self/oom_score_adj", "0\n").await;
    prints(link, "cat /proc/self/cgroup", "0::/workload\n").await;
    prints(link, "cat /sys/class/net/lo/flags", "0x9\n").await;
    prints(link, "test -w /dev/shm && test -w /tmp && ls -l /dev/fd | grep -c self", "1\n").await;
    let stats = link.stats().await.unwrap();
    assert!(stats.disk_total_bytes > 2_700_000_000, "the root was not grown: {stats:?}");
    assert!(stats.memory_total_bytes > 150_000_000 && stats.cpus_online == 1, "{stats:?}");
    // Orphans are reaped, and nobody else's exit is taken for it.
    prints(
        link,
        "for i in 1 2 3 4 5; do (sh -c 'exit 3' & ) ; done; sleep 0.5; \
                  grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l",
        "0\n",
    )
    .await;
    assert_eq!(run(link, "exit 7").await.1, ExecExit::Code(7));
}

async fn commands_have_streams_users_and_terminals(link: &GuestLink) {
    let developer = || User::Named("developer".into());
    let (said, exit) = run_as(link, "id -un; pwd; sudo -n id -un", developer(), None).await;
    assert_eq!((said.as_str(), exit), ("developer\n/home/developer\nroot\n", ExecExit::Code(0)));
    let pty = Some(Pty { columns: 90, rows: 30 });
    let (said, _) =
        run_as(link, "stty size; tty; test -w $(tty) && echo mine", developer(), pty).await;
    assert_eq!(said, "30 90\r\n/dev/pts/0\r\nmine\r\n");
    let missing = ExecRequest {
        argv: vec!["true".into()],
        env: BTreeMap::new(),
        working_dir: None,
        user: User::Named("nobody-here".into()),
        pty: None,
        timeout: None,
    };
    let refused = link.exec(missing).await.unwrap_err();
    assert!(matches!(refused, NodeError::Guest { code: "no_such_user", .. }), "{refused:?}");
}

async fn files_and_trees_travel(link: &GuestLink) {
    let content = Bytes::from(vec![b'x'; 4 * 1024 * 1024]);
    let started = Instant::now();
    let piece = content.clone();
    let stream = Box::pin(futures::stream::iter([Ok(piece)]));
    let developer = User::Named("developer".into());
    let path = "/home/developer/new/file";
    link.write_file(path, 0o600, WriteMode::Replace, developer, stream).await.unwrap();
    eprintln!("4 MiB written in {:?}", started.elapsed());
    let stat = link.stat(path).await.unwrap();
    assert_eq!((stat.uid, stat.gid, stat.mode, stat.size_bytes), (1000, 1000, 0o600, 4 << 20));
    assert_eq!(link.stat("/home/developer/new").await.unwrap().uid, 1000);
    let started = Instant::now();
    let mut bytes = Vec::new();
    let mut reading = link.read_file(path, 0, None).await.unwrap();
    while let Some(piece) = reading.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    eprintln!("4 MiB read in {:?}", started.elapsed());
    assert!(bytes == content);
    let mut tar = Vec::new();
    let mut packing = link.download_tree("/home/developer/new").await.unwrap();
    while let Some(piece) = packing.next().await {
        tar.push(piece);
    }
    let unpacking = Box::pin(futures::stream::iter(tar));
    assert_eq!(link.upload_tree("/root/copy", User::Root, unpacking).await.unwrap(), 2);
    prints(link, &format!("cmp {path} /root/copy/new/file && echo same"), "same\n").await;
    link.remove("/root/copy").await.unwrap();
    let names: Vec<_> =
        link.list_dir("/").await.unwrap().into_iter().map(|entry| entry.name).collect();
    for name in ["bin", "etc", "home", "root"] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
}

async fn round_trips(link: &GuestLink) {
    let mut times = Vec::new();
    for _ in 0..30 {
        let started = Instant::now();
        link.stat("/").await.unwrap();
        times.push(started.elapsed());
    }
    times.sort();
    eprintln!("stat: p50 {:?}, most {:?}", times[15], times[29]);
    let mut times = Vec::new();
    for _ in 0..20 {
        let started = Instant::now();
        run(link, "exit 0").await;
        times.push(started.elapsed());
    }
    times.sort();
    eprintln!("exec: p50 {:?}, most {:?}", times[10], times[19]);
}
