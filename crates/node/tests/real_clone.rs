//! Real guests that are frozen, paused, saved and cloned: what the agent and the line to it do then.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod real;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use skerry_internal_api::{
    ExecControl, ExecExit, ExecOutput, GuestApi, NodeError, User, WriteMode,
};
use skerry_node::guest::{Frozen, GuestLink};
use skerry_vmm::{
    BootSpec, DiskSpec, RestoreSpec, RestoredMemory, SaveProgress, SavedMemory, Vm, Vmm,
    qemu::QemuVmm,
};
use tokio::time::timeout;

use real::{TEST_WITHIN, hello_of, hello_of_nobody, prints, run, shell};

const STEP: Duration = Duration::from_secs(60);
const CLONES: u8 = 3;
/// Enough for a disk of 3 GiB and its tables.
const MOST_FILE_BYTES: u64 = 4 << 30;
const DISK: &str = "1G";

/// Saves a paused VM and ends it.
async fn save(vm: &Arc<dyn Vm>, state: &Path, memory: SavedMemory) {
    let file = fs::File::options().read(true).write(true).create_new(true).open(state).unwrap();
    vm.begin_save(file, memory).await.unwrap();
    vm.wait_save(SaveProgress::Complete, STEP).await.unwrap();
}

/// What others start from is nobody's to write.
fn seal(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
}

struct Template {
    dir: PathBuf,
    state: PathBuf,
    ram: PathBuf,
    layer: PathBuf,
}

impl Template {
    async fn make(vmm: &QemuVmm, dir: &Path) -> Self {
        let layer = dir.join("template.qcow2");
        let spec = real::machine(&dir.join("template"), real::disk(&layer, &[], DISK));
        let vm = vmm.boot(&spec, &mut |_| Ok(())).await.unwrap();
        let template = Self {
            dir: dir.to_owned(),
            state: dir.join("template.state"),
            ram: spec.memory_file.clone().unwrap(),
            layer,
        };
        let link = real::open(&vm, hello_of_nobody()).await;
        // What a template must not hand on.
        run(&link, "echo x > /etc/ssh/ssh_host_test_key; echo x > /tmp/left; mkdir /tmp/dir").await;
        let began = Instant::now();
        let prepared = link.prepare_template().await.unwrap();
        let used = prepared.memory_used_bytes >> 20;
        eprintln!("prepared in {:?}, {used} MiB in use", began.elapsed());
        link.leave(STEP).await;
        vm.pause(STEP).await.unwrap();
        save(&vm, &template.state, SavedMemory::InMemoryFile).await;
        vm.kill().await.unwrap();
        for sealed in [&template.state, &template.ram, &template.layer] {
            seal(sealed);
        }
        template
    }

    fn clone_spec(&self, name: &str) -> RestoreSpec {
        let overlay = self.dir.join(format!("{name}.qcow2"));
        let disk = real::disk(&overlay, &[&self.layer], DISK);
        RestoreSpec {
            machine: real::machine(&self.dir.join(name), disk),
            state: self.state.clone(),
            memory: RestoredMemory::CloneOf { file: self.ram.clone() },
        }
    }
}

async fn parked(vmm: &QemuVmm, spec: &RestoreSpec) -> Arc<dyn Vm> {
    let vm = vmm.park(spec, &mut |_| Ok(())).await.unwrap();
    vm.load(STEP).await.unwrap();
    vm
}

/// What two guests must not have in common.
async fn secrets(link: &GuestLink) -> Vec<String> {
    let (said, _) = run(
        link,
        "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid; cat /etc/machine-id; hostname",
    )
    .await;
    said.lines().map(str::to_owned).collect()
}

/// Every test of this file needs a template, so they are one.
#[tokio::test]
async fn a_template_becomes_different_guests_that_can_be_paused_frozen_and_saved() {
    let dir = tempfile::tempdir().unwrap();
    let vmm = Arc::new(real::vmm().await);
    let checked = {
        let (vmm, dir) = (Arc::clone(&vmm), dir.path().to_owned());
        // A task of its own, so that a failed check does not leave VMs behind.
        tokio::spawn(async move { timeout(TEST_WITHIN, check(&vmm, &dir)).await })
    };
    let checked = checked.await;
    for console in ["template", "clone-1", "pooled", "restored"] {
        let console = dir.path().join(console).join("console.log");
        eprintln!("{}:\n{}", console.display(), fs::read_to_string(&console).unwrap_or_default());
    }
    checked.unwrap().expect("the test took too long");
}

/// Ends the VM however the check ends.
struct Ends(Arc<dyn Vm>);

impl Drop for Ends {
    fn drop(&mut self) {
        // By its number: the driver's own way needs the runtime.
        let pid = i32::try_from(self.0.record().pid).unwrap();
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
    }
}

async fn check(vmm: &QemuVmm, dir: &Path) {
    let template = Template::make(vmm, dir).await;
    clones_have_nothing_in_common(vmm, &template).await;
    let spec = template.clone_spec("pooled");
    let vm = parked(vmm, &spec).await;
    let ends = Ends(Arc::clone(&vm));
    let link = a_guest_in_the_pool_becomes_a_workspaces_in_one_call(&vm).await;
    what_is_written_while_frozen_waits_and_nothing_else_does(&link).await;
    a_disk_grows_under_the_running_guest(&vm, &link).await;
    host_keys_belong_to_an_identity(&link).await;
    a_guest_saved_with_an_open_line_meets_its_new_host(vmm, &template, &vm, &spec.machine, &link)
        .await;
    link.close().await;
    drop(ends);
}

async fn clones_have_nothing_in_common(vmm: &QemuVmm, template: &Template) {
    let mut seen = BTreeSet::new();
    let mut vms = Vec::new();
    for digit in 1..=CLONES {
        let vm = parked(vmm, &template.clone_spec(&format!("clone-{digit}"))).await;
        vms.push(Ends(Arc::clone(&vm)));
        // Whether the host is there first or the guest runs first makes no difference.
        let opening = real::open(&vm, hello_of(digit));
        let began = Instant::now();
        let link = if digit % 2 == 0 {
            tokio::join!(opening, async { vm.resume(STEP).await.unwrap() }).0
        } else {
            vm.resume(STEP).await.unwrap();
            opening.await
        };
        let configured = began.elapsed();
        let own = secrets(&link).await;
        let first = began.elapsed();
        eprintln!("clone {digit}: configured after {configured:?}, first command after {first:?}");
        assert_eq!(own.len(), 4, "{own:?}");
        for secret in own {
            assert!(seen.insert(secret.clone()), "{secret} twice");
        }
        it_is_this_workspaces(&link, digit).await;
        link.close().await;
    }
}

async fn it_is_this_workspaces(link: &GuestLink, digit: u8) {
    let name = format!("real-guest-{digit}");
    let names = format!("127.0.1.1 {name}\n{name}\n{name}\n{digit}\n");
    let script = "tail -n 1 /etc/hosts; cat /etc/hostname; hostname; echo $FROM_WORKSPACE";
    prints(link, script, &names).await;
    // Nothing of the template.
    let left =
        run(link, "grep -c nobody /etc/hosts; ls /tmp /etc/ssh | grep -cE 'left|dir|ssh_host'")
            .await;
    assert_eq!(left, (String::from("0\n0\n"), ExecExit::Code(1)));
    let clock = format!("expr $(date +%s) - {} | grep -cE '^[0-9]{{1,2}}$'", real::NOW);
    prints(link, &clock, "1\n").await;
}

/// A command that is under way: its session, and its process in the guest.
async fn waiting_command(link: &GuestLink) -> (skerry_internal_api::ExecSession, String) {
    let request = shell("echo $$; read line; echo got $line", User::Root, None);
    let mut session = link.exec(request).await.unwrap();
    let pid = next_text(&mut session).await;
    (session, pid.trim().to_owned())
}

async fn next_text(session: &mut skerry_internal_api::ExecSession) -> String {
    match session.output.recv().await.unwrap().unwrap() {
        ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes) => {
            String::from_utf8_lossy(&bytes).into_owned()
        }
        ExecOutput::Exit(exit) => panic!("it ended with {exit:?}"),
    }
}

async fn goes_on(session: &mut skerry_internal_api::ExecSession) {
    session.control.send(ExecControl::Stdin(Bytes::from_static(b"it\n"))).await.unwrap();
    assert_eq!(next_text(session).await, "got it\n");
}

async fn a_guest_in_the_pool_becomes_a_workspaces_in_one_call(vm: &Arc<dyn Vm>) -> Arc<GuestLink> {
    vm.resume(STEP).await.unwrap();
    let link = real::open(vm, hello_of_nobody()).await;
    prints(&link, "hostname; cat /etc/machine-id", "nobody\n").await;
    let (mut session, _) = waiting_command(&link).await;
    link.hold();
    vm.pause(STEP).await.unwrap();

    let began = Instant::now();
    vm.resume(STEP).await.unwrap();
    link.release();
    link.reconfigure(hello_of(7), STEP).await.unwrap();
    let claimed = began.elapsed();
    prints(&link, "hostname", "real-guest-7\n").await;
    let first = began.elapsed();
    eprintln!("pool: configured after {claimed:?}, first command after {first:?}");
    it_is_this_workspaces(&link, 7).await;
    goes_on(&mut session).await;
    link
}

async fn what_is_written_while_frozen_waits_and_nothing_else_does(link: &Arc<GuestLink>) {
    link.sync(STEP).await.unwrap();
    let began = Instant::now();
    link.freeze(STEP).await.unwrap();
    eprintln!("frozen in {:?}", began.elapsed());
    prints(link, "cat /etc/hostname", "real-guest-7\n").await;

    let request = shell("echo x > /root/by-command; echo written", User::Root, None);
    let mut command = link.exec(request).await.unwrap();
    // More than the agent has threads for.
    let writes: Vec<_> = (0..20)
        .map(|number| {
            let link = Arc::clone(link);
            tokio::spawn(async move {
                let content = Box::pin(futures::stream::iter([Ok(Bytes::from_static(b"x"))]));
                let path = format!("/root/by-call-{number}");
                link.write_file(&path, 0o600, WriteMode::Replace, User::Root, content).await
            })
        })
        .collect();
    // And one that is given up while it waits.
    let given_up = link.write_file(
        "/root/given-up",
        0o600,
        WriteMode::Replace,
        User::Root,
        Box::pin(futures::stream::pending::<Result<Bytes, NodeError>>()),
    );
    assert!(timeout(Duration::from_millis(500), given_up).await.is_err());
    assert!(timeout(Duration::from_millis(500), command.output.recv()).await.is_err());
    assert!(writes.iter().all(|write| !write.is_finished()));

    let began = Instant::now();
    assert_eq!(link.thaw(STEP).await, Ok(Frozen::UntilNow));
    eprintln!("thawed in {:?}", began.elapsed());
    assert_eq!(next_text(&mut command).await, "written\n");
    for write in writes {
        assert_eq!(write.await.unwrap(), Ok(1));
    }
    let left = run(link, "ls /root | grep -c by-; ls -A /root | grep -cE 'given-up|skerry'").await;
    assert_eq!(left, (String::from("21\n0\n"), ExecExit::Code(1)));
}

async fn a_disk_grows_under_the_running_guest(vm: &Arc<dyn Vm>, link: &GuestLink) {
    let size = || async { link.stats().await.unwrap().disk_total_bytes >> 20 };
    let before = size().await;
    vm.grow_disk(2 << 30, MOST_FILE_BYTES, STEP).await.unwrap();
    let gained = link.grow_root(2 << 30, STEP).await.unwrap() >> 20;
    assert!(gained > 900 && size().await == before + gained, "{before} + {gained} MiB");
    assert_eq!(link.grow_root(2 << 30, STEP).await, Ok(0));
    // Without being told, with the next configure call.
    vm.grow_disk(3 << 30, MOST_FILE_BYTES, STEP).await.unwrap();
    let bigger = run(link, "until [ $(cat /sys/block/vda/size) = 6291456 ]; do sleep 0.05; done");
    assert_eq!(bigger.await.1, ExecExit::Code(0));
    link.reconfigure(hello_of(7), STEP).await.unwrap();
    assert!(size().await > before + gained + 900);
    // A guest that never sees the size it is told says so.
    let refused = link.grow_root(1 << 40, STEP).await;
    assert!(matches!(refused, Err(NodeError::Guest { .. })), "{refused:?}");
}

/// The image has no SSH server; anything that looks like one will do.
async fn host_keys_belong_to_an_identity(link: &GuestLink) {
    let keys = "cat /etc/ssh/ssh_host_*_key.pub";
    run(link, "cp /bin/sleep /usr/sbin/sshd").await;
    let mut seen = BTreeSet::new();
    for digit in [5, 6] {
        let start = "/usr/sbin/sshd 1000 >/dev/null 2>&1 & echo $! | tee /run/sshd.pid";
        let (server, _) = run(link, start).await;
        link.reconfigure(hello_of(digit), STEP).await.unwrap();
        // Told of its new keys, this server ends.
        let told = format!("while kill -0 {} 2>/dev/null; do sleep 0.05; done", server.trim());
        run(link, &told).await;
        let (key, _) = run(link, keys).await;
        assert!(key.starts_with("ssh-ed25519 ") && seen.insert(key.clone()), "{key}");
    }
    // The same identity, the same keys; and nobody's has none.
    let (before, _) = run(link, "cat /etc/ssh/ssh_host_ed25519_key.pub").await;
    link.reconfigure(hello_of(6), STEP).await.unwrap();
    prints(link, "cat /etc/ssh/ssh_host_ed25519_key.pub", &before).await;
    link.reconfigure(hello_of_nobody(), STEP).await.unwrap();
    prints(link, "ls /etc/ssh | grep -c ssh_host || true; cat /etc/machine-id", "0\n").await;
    link.reconfigure(hello_of(7), STEP).await.unwrap();
    run(link, "rm /usr/sbin/sshd").await;
}

async fn a_guest_saved_with_an_open_line_meets_its_new_host(
    vmm: &QemuVmm,
    template: &Template,
    vm: &Arc<dyn Vm>,
    machine: &BootSpec,
    link: &GuestLink,
) {
    let (pid, _) = run(link, "sleep 1000 >/dev/null 2>&1 & echo $!").await;
    let background = pid.trim();
    let (mut session, foreground) = waiting_command(link).await;
    let state = template.dir.join("open.state");
    let old = machine.disk.as_ref().unwrap().overlay.clone();
    let new = template.dir.join("pooled-next.qcow2");
    real::disk(&new, &[&old, &template.layer], "3G");

    link.freeze(STEP).await.unwrap();
    link.hold();
    vm.pause(STEP).await.unwrap();
    vm.push_overlay(&new, STEP).await.unwrap();
    save(vm, &state, SavedMemory::InState).await;
    vm.resume(STEP).await.unwrap();
    link.release();
    assert_eq!(link.thaw(STEP).await, Ok(Frozen::UntilNow));
    // The one that was saved has noticed nothing.
    goes_on(&mut session).await;
    prints(link, &format!("kill -0 {background} && echo alive"), "alive\n").await;

    let overlay = template.dir.join("restored.qcow2");
    let disk: DiskSpec = real::disk(&overlay, &[&old, &template.layer], "3G");
    let spec = RestoreSpec {
        machine: real::machine(&template.dir.join("restored"), disk),
        state,
        memory: RestoredMemory::InState,
    };
    let restored = parked(vmm, &spec).await;
    let _ends = Ends(Arc::clone(&restored));
    let began = Instant::now();
    restored.resume(STEP).await.unwrap();
    let link = real::open(&restored, hello_of(8)).await;
    eprintln!("saved with an open line: configured after {:?}", began.elapsed());
    it_is_this_workspaces(&link, 8).await;
    // It was saved frozen. What ran in the background goes on; what somebody waited for ends.
    prints(&link, "echo x > /root/thawed && echo written", "written\n").await;
    prints(&link, &format!("kill -0 {background} && echo alive"), "alive\n").await;
    let ended = format!("while kill -0 {foreground} 2>/dev/null; do sleep 0.05; done; echo ended");
    prints(&link, &ended, "ended\n").await;
    link.close().await;
}
