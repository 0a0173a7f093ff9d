//! The agent as PID 1 of a real virtual machine, reached through the real serial port.
#![allow(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod real;

use std::{
    collections::BTreeMap,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::StreamExt;
use skerry_internal_api::{ExecExit, ExecRequest, GuestApi, NodeError, Pty, User, WriteMode};
use skerry_node::guest::{GuestHello, GuestLink};
use skerry_vmm::{Exit, Vm, Vmm};
use tokio::time::timeout;

use real::{TEST_WITHIN, prints, run, run_as};

/// For so long the guest is left alone.
const AWAY: Duration = Duration::from_secs(4);

fn hello() -> GuestHello {
    real::hello_of(1)
}

#[tokio::test]
async fn the_agent_is_a_whole_machine() {
    let dir = tempfile::tempdir().unwrap();
    let disk = real::disk(&dir.path().join("root.qcow2"), &[], "3G");
    let spec = real::machine(dir.path(), disk);
    let vmm = real::vmm().await;
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
    let link = real::open(vm, hello()).await;
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
    let second = real::open(vm, hello()).await;
    eprintln!("reconnected in {:?}", started.elapsed());
    let after = second.stats().await.unwrap();
    let busy = Duration::from_millis(after.cpu_used_ms - before.cpu_used_ms);
    eprintln!("busy for {busy:?} of {AWAY:?} without a host");
    assert!(busy < AWAY / 2);
    prints(&second, &format!("kill -0 {} && echo alive", pid.trim()), "alive\n").await;
    second.close().await;
    for _ in 0..5 {
        let third = real::open(vm, hello()).await;
        prints(&third, "echo $FROM_WORKSPACE", "1\n").await;
        third.close().await;
    }

    let last = real::open(vm, hello()).await;
    last.power_off().await.unwrap();
    let asked = Instant::now();
    let exit = timeout(Duration::from_secs(30), vm.wait_exit()).await.unwrap();
    eprintln!("off {:?} after it was asked", asked.elapsed());
    last.close().await;
    assert_eq!(exit, Exit::PoweredOff);
}

async fn it_is_the_workspaces_own(link: &GuestLink) {
    prints(
        link,
        "hostname; cat /etc/machine-id",
        "real-guest-1\n1123456789abcdef1123456789abcdef\n",
    )
    .await;
    prints(link, "grep -c real-guest-1 /etc/hosts", "1\n").await;
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
