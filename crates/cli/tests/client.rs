//! The client as a process against the real API on a simulated node.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each file's tests use what they need")]
mod ground;

use std::{
    fs::{self, File},
    io::Read as _,
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    process::Stdio,
    time::Duration,
};

use ground::{BOUND, Server, done};
use skerry_control::{
    RefusedEgress, WorkspaceRef,
    internal_api::{EgressRefusal, EgressRefusals, NodeError},
    sim_node::{Point, SimCommand, SimNode},
    testing::KEY,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};

#[tokio::test]
async fn a_workspace_goes_through_its_life() {
    let server = Server::start().await;
    let lines = [
        "create first --slug first-slug --memory 1G --env A=1",
        "ls",
        "ls -q --state stopped",
        "get first",
        "rm first",
        "stop first",
        "start first",
        "restart first-slug",
        "quota",
        "image ls",
        "doctor",
        "stats first",
        "ports first",
        "rm -f first missing",
        "rm missing",
        "ls",
    ];
    insta::assert_snapshot!(server.transcript(&lines).await);
}

#[tokio::test]
async fn a_workspace_rests_is_saved_restored_and_forked() {
    let server = Server::start().await;
    let lines = [
        "create first --slug first-slug --ttl 1h --ttl-action suspend --idle 10m --auto-resume",
        "pause first",
        "resume first",
        "suspend first",
        "get first",
        "pause first",
        "resume first",
        "snapshot create first --name before",
        "snapshot create first --name disk-of-it --disk-only",
        "snapshot ls first",
        "snapshot rename before point",
        "restore first point",
        "restore first missing",
        "fork first --name branch -c 2",
        "create second --slug second-slug --from-snapshot point",
        "lifecycle first --no-ttl --restart on-failure --max-restarts 3",
        "renew first --by 1h",
        "snapshot rm point missing disk-of-it",
        "snapshot ls",
    ];
    insta::assert_snapshot!(server.transcript(&lines).await);
}

#[tokio::test]
async fn networks_are_shown_and_changed() {
    let server = Server::start().await;
    server.test.node.set_network(Some(SimNode::NETWORK));
    let lines = [
        "create web --slug web-slug",
        "create worker --slug worker-slug",
        "net show web",
        "net link worker web --port 8080 -p 53/udp",
        "net show worker",
        "net set web --internet web --package-managers yes",
        "net allow web *.example.org 198.51.100.0/24 --port 443",
        "net disallow web *.example.org -p 443",
        "net disallow web *.example.org",
        "net close web 53/udp",
        "net unlink worker web",
        "net unlink worker web",
        "net set web --internet everything --clear",
        "net allow web http://example.org",
        "net link nobody web --port 80",
    ];
    insta::assert_snapshot!(server.transcript(&lines).await);
}

#[tokio::test]
async fn what_a_workspace_was_refused_is_shown() {
    let server = Server::start().await;
    server.test.node.set_network(Some(SimNode::NETWORK));
    let mut transcript = server.transcript(&["create web --slug web-slug"]).await;
    let mut words = transcript.split_whitespace().skip_while(|word| *word != "id:");
    let id = skerry_api::ids::parse_workspace_id(words.nth(1).expect("an id")).expect("an id");
    let refusal = |what, times| EgressRefusal {
        what,
        name: Some("other.example.org".parse().expect("a name")),
        times,
        ago: Duration::from_secs(times),
    };
    let last =
        vec![refusal(RefusedEgress::Resolution, 60), refusal(RefusedEgress::Connection(80), 2)];
    let refusals = EgressRefusals { total: 62, last, refused_packets: 5, dropped_frames: 1 };
    server.test.node.set_refusals(id, refusals);
    transcript += &server.transcript(&["net refusals web", "net refusals nobody"]).await;
    insta::assert_snapshot!(transcript);
}

#[tokio::test]
async fn volumes_are_made_attached_detached_and_deleted() {
    let server = Server::start().await;
    let lines = [
        "volume create data --size 64M",
        "create box --slug box-slug --volume data:/data",
        "create twin --slug twin-slug",
        "volume ls",
        "volume attach twin data:/data:ro",
        "volume rm data",
        "volume detach box data",
        "volume attach twin data:/data:ro",
        "--json volume get data",
        "volume rename data set",
        "volume get set",
        "volume detach twin set nothing",
        "volume checkpoint create set --name before",
        "volume checkpoint create set",
        "volume checkpoint ls set",
        "volume attach box set:/data",
        "volume attach twin set@before:/then",
        "volume get set",
        "volume checkpoint rm set before",
        "volume detach twin set",
        "volume checkpoint rm set before nothing",
        "volume detach box set",
        "volume create set --size 64M",
        "volume create small --size 1M",
        "volume rm set",
        "volume ls",
    ];
    insta::assert_snapshot!(server.transcript(&lines).await);
}

#[tokio::test]
async fn failures_have_their_exit_codes_and_say_what_helps() {
    let (server, _) = Server::with_box().await;
    let mut transcript = String::new();
    for (code, line) in [
        (2, "create big --vcpu 0"),
        (4, "create big --vcpu 99"),
        (2, "create big --image plan9"),
        (3, "get missing"),
        (4, "create twin --slug box-slug"),
        (6, "--key wrong ls"),
        (2, "--url nonsense ls"),
        (125, "exec missing -- true"),
        (127, "exec box -- no-such-thing"),
        (2, "cp a b"),
        (3, "cp box:/no/such ."),
        (2, "--json create big --vcpu 0"),
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let done = server.run(&arguments).await;
        transcript.push_str(&format!("$ skerry {line}\n{}{}\n", done.text(), done.stderr));
        assert_eq!(done.code, code, "{line}: {}", done.stderr);
    }
    insta::assert_snapshot!(transcript);
    // A port that was free a moment ago.
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        listener.local_addr().expect("address")
    };
    let unreachable = server.run(&["--url", &format!("http://{address}"), "ls"]).await;
    assert_eq!(unreachable.code, 5, "{}", unreachable.stderr);
    assert!(unreachable.stderr.contains("cannot reach"), "{}", unreachable.stderr);
}

#[tokio::test]
async fn a_start_that_fails_is_a_failure() {
    let server = Server::start().await;
    server.test.node.fail_next(Point::EnsureRunning, NodeError::NoCapacity("memory".to_owned()));
    let done = server.run(&["create", "unlucky"]).await;
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("no_capacity"), "{}", done.stderr);
}

#[tokio::test]
async fn json_is_one_document() {
    let (server, _) = Server::with_box().await;
    for line in [
        "ls",
        "get box",
        "image ls",
        "quota",
        "key ls",
        "doctor",
        "stats box",
        "ports box",
        "logs box",
        "stop box",
        "start box",
        "rm -f box",
        "create x --no-start",
    ] {
        let arguments: Vec<&str> = ["--json"].into_iter().chain(line.split(' ')).collect();
        let done = server.run(&arguments).await;
        assert_eq!(done.code, 0, "{line}: {}", done.stderr);
        assert!(done.json().is_object(), "{line}");
        assert_eq!(done.stderr, "", "{line}");
    }
}

#[tokio::test]
async fn exec_passes_streams_and_exit_code_through() {
    let (server, _) = Server::with_box().await;
    let done =
        server.run(&["exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]).await;
    assert_eq!((done.code, done.text().as_str(), done.stderr.as_str()), (3, "out\n", "err\n"));

    let bytes: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 251) as u8).collect();
    let done = server.run_with_input(&["exec", "box", "--", "cat"], &bytes).await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout == bytes, "{} bytes of {}", done.stdout.len(), bytes.len());

    let done = server.run(&["exec", "box", "-e", "X=y z", "--", "env"]).await;
    assert_eq!(done.text(), "X=y z\n");
    let done = server.run(&["exec", "box", "-u", "developer", "--", "whoami"]).await;
    assert_eq!(done.text(), "developer\n");
    let done = server.run(&["exec", "box", "-w", "/tmp", "--", "pwd"]).await;
    assert_eq!(done.text(), "/tmp\n");
    let done = server.run(&["exec", "box", "--timeout", "1", "--", "sleep", "60"]).await;
    assert_eq!(done.code, 124);
    let done = server.run(&["exec", "box", "-n", "--", "cat"]).await;
    assert_eq!((done.code, done.text().as_str()), (0, ""));

    let done = server.run(&["--json", "exec", "box", "--", "sh", "-c", "echo out; exit 3"]).await;
    assert_eq!(done.code, 3);
    assert_eq!((&done.json()["exit_code"], &done.json()["stdout"]), (&3.into(), &"out\n".into()));
}

#[tokio::test]
async fn a_signal_goes_to_the_command_and_its_end_comes_back() {
    let (server, guest) = Server::with_box().await;
    let _ = guest;
    let mut command = server.command(&["exec", "box", "--", "cat"]);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("spawned");
    let mut stdin = child.stdin.take().expect("stdin");
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout"));
    stdin.write_all(b"hello\n").await.expect("written");
    let mut line = String::new();
    // The command runs, so its signals are caught.
    tokio::time::timeout(BOUND, stdout.read_line(&mut line)).await.expect("in time").expect("read");
    assert_eq!(line, "hello\n");
    let pid = nix::unistd::Pid::from_raw(child.id().expect("a pid").try_into().expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("killed");
    let status = tokio::time::timeout(BOUND, child.wait()).await.expect("in time").expect("ran");
    assert_eq!(status.code(), Some(130));
}

#[tokio::test]
async fn a_reader_that_stops_is_no_disaster() {
    let (server, guest) = Server::with_box().await;
    for arguments in [&["ls"][..], &["exec", "box", "--", "flood"]] {
        let stdout = vec![b'x'; 4_000_000];
        guest.program("flood", SimCommand { stdout, ..SimCommand::default() });
        let (reader, writer) = nix::unistd::pipe().expect("pipe");
        drop(reader);
        let child = server.command(arguments).stdout(writer).spawn().expect("spawned");
        let done = done(child).await;
        assert_eq!(done.stderr, "", "nothing to say about it");
        assert!([0, 141].contains(&done.code), "{arguments:?}: {} {}", done.code, done.stderr);
    }
}

#[tokio::test]
async fn a_shell_has_a_terminal_and_leaves_ours_as_it_was() {
    let (server, guest) = Server::with_box().await;
    let login_shell =
        "/bin/sh -c if command -v bash >/dev/null 2>&1; then exec bash -l; else exec sh -l; fi";
    let stdout = b"welcome\r\n".to_vec();
    guest.program(login_shell, SimCommand { stdout, code: 7, ..SimCommand::default() });
    let pty = nix::pty::openpty(None, None).expect("openpty");
    let before = nix::sys::termios::tcgetattr(&pty.slave).expect("tcgetattr");
    let end = |fd: &OwnedFd| fd.try_clone().expect("clone");
    let mut child = server
        .command(&["shell", "box"])
        .stdin(end(&pty.slave))
        .stdout(end(&pty.slave))
        .spawn()
        .expect("spawned");
    let status = tokio::time::timeout(BOUND, child.wait()).await.expect("in time").expect("ran");
    assert_eq!(status.code(), Some(7));
    assert_eq!(nix::sys::termios::tcgetattr(&pty.slave).expect("tcgetattr"), before);
    let mut heard = [0; 64];
    let count = File::from(pty.master).read(&mut heard).expect("read");
    assert_eq!(&heard[..count], b"welcome\r\n");
}

#[tokio::test]
async fn keys_typed_in_a_shell_reach_it_raw() {
    let (server, _) = Server::with_box().await;
    let pty = nix::pty::openpty(None, None).expect("openpty");
    let end = |fd: &OwnedFd| fd.try_clone().expect("clone");
    let mut child = server
        .command(&["shell", "box", "--", "cat"])
        .stdin(end(&pty.slave))
        .stdout(end(&pty.slave))
        .spawn()
        .expect("spawned");
    let raw = async {
        loop {
            let now = nix::sys::termios::tcgetattr(&pty.slave).expect("tcgetattr");
            if !now.local_flags.contains(nix::sys::termios::LocalFlags::ISIG) {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, raw).await.expect("raw mode in time");
    let mut master = tokio::fs::File::from_std(File::from(end(&pty.master)));
    master.write_all(b"a\x03b").await.expect("written");
    master.flush().await.expect("flushed");
    let mut heard = vec![0; 3];
    tokio::time::timeout(BOUND, master.read_exact(&mut heard))
        .await
        .expect("in time")
        .expect("read");
    assert_eq!(heard, b"a\x03b", "Ctrl-C is a byte like others");
    let pid = nix::unistd::Pid::from_raw(child.id().expect("a pid").try_into().expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("killed");
    let status = tokio::time::timeout(BOUND, child.wait()).await.expect("in time").expect("ran");
    assert_eq!(status.code(), Some(143));
    let after = nix::sys::termios::tcgetattr(&pty.slave).expect("tcgetattr");
    assert!(after.local_flags.contains(nix::sys::termios::LocalFlags::ISIG), "cooked again");
}

#[tokio::test]
async fn files_and_trees_are_copied_both_ways() {
    let (server, guest) = Server::with_box().await;
    let here = server.scratch.path();
    let bytes: Vec<u8> = (0..500_000_u32).map(|n| (n % 253) as u8).collect();
    fs::create_dir_all(here.join("tree/sub")).expect("mkdir");
    fs::write(here.join("tree/sub/data.bin"), &bytes).expect("write");
    fs::set_permissions(here.join("tree/sub/data.bin"), fs::Permissions::from_mode(0o755))
        .expect("chmod");
    let copy = async |from: &str, to: &str| {
        let done = server.run(&["cp", from, to]).await;
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{from} {to}");
        done
    };

    copy("tree/sub/data.bin", "box:/tmp/").await;
    assert_eq!(guest.file("/tmp/data.bin").as_deref(), Some(&bytes[..]));
    copy("tree/sub/data.bin", "box:/tmp").await;
    copy("tree/sub/data.bin", "box:/tmp/other.bin").await;
    assert_eq!(guest.file("/tmp/other.bin").as_deref(), Some(&bytes[..]));
    copy("box:/tmp/data.bin", "back.bin").await;
    assert_eq!(fs::read(here.join("back.bin")).expect("read"), bytes);
    let mode = fs::metadata(here.join("back.bin")).expect("stat").permissions().mode();
    assert_eq!(mode & 0o100, 0o100, "the executable bit comes along");
    assert_eq!(copy("box:/tmp/data.bin", "-").await.stdout, bytes);

    copy("tree", "box:/srv/app").await;
    assert_eq!(guest.file("/srv/app/sub/data.bin").as_deref(), Some(&bytes[..]));
    copy("tree", "box:/srv/app").await;
    assert!(guest.file("/srv/app/tree/sub/data.bin").is_some(), "into what is there already");
    copy("box:/srv/app/tree", "fetched").await;
    assert_eq!(fs::read(here.join("fetched/sub/data.bin")).expect("read"), bytes);
    copy("box:/srv/app/tree", ".").await;
    let mut names: Vec<String> = fs::read_dir(here)
        .expect("list")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["back.bin", "fetched", "tree"], "no draft is left");

    let done = server.run_with_input(&["cp", "-", "box:/tmp/piped"], b"from a pipe").await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(guest.file("/tmp/piped").as_deref(), Some(&b"from a pipe"[..]));
}

#[tokio::test]
async fn logs_are_shown() {
    let (server, _) = Server::with_box().await;
    server.run(&["exec", "box", "--", "echo", "logged"]).await;
    let done = server.run(&["logs", "box", "--source", "commands"]).await;
    assert_eq!(done.text(), "$ echo logged\nlogged\n");
}

#[tokio::test]
async fn a_login_is_remembered_for_its_server_only() {
    let (server, _) = Server::with_box().await;
    let file = server.scratch.path().join("config/skerry/login.toml");
    let bare = |arguments: &[&str]| {
        let mut command = server.command(arguments);
        command.env_remove("SKERRY_URL").env_remove("SKERRY_KEY");
        command
    };
    let wrong = done(bare(&["login", &server.url, "wrong"]).spawn().expect("spawned")).await;
    assert_eq!(wrong.code, 6);
    assert!(!file.exists());

    let mut login = bare(&["login", &server.url]).stdin(Stdio::piped()).spawn().expect("spawned");
    let mut stdin = login.stdin.take().expect("stdin");
    stdin.write_all(format!("{KEY}\n").as_bytes()).await.expect("written");
    drop(stdin);
    let login = done(login).await;
    assert_eq!(login.code, 0, "{}", login.stderr);
    assert_eq!(fs::metadata(&file).expect("stat").permissions().mode() & 0o777, 0o600);

    let listed = done(bare(&["ls", "-q"]).spawn().expect("spawned")).await;
    assert_eq!((listed.code, listed.text().as_str()), (0, "box\n"), "{}", listed.stderr);
    let elsewhere = server.url.replace("127.0.0.1", "localhost");
    let other = done(bare(&["--url", &elsewhere, "ls"]).spawn().expect("spawned")).await;
    assert_eq!(other.code, 6, "the key does not go to another address: {}", other.stderr);

    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("chmod");
    let exposed = done(bare(&["ls"]).spawn().expect("spawned")).await;
    assert_eq!(exposed.code, 2);
    assert!(exposed.stderr.contains("chmod 600"), "{}", exposed.stderr);

    let logout = done(bare(&["logout"]).spawn().expect("spawned")).await;
    assert_eq!(logout.code, 0);
    assert!(!file.exists());
}

#[tokio::test]
async fn a_key_made_works_until_it_is_revoked() {
    let (server, _) = Server::with_box().await;
    let made = server.run(&["--json", "key", "create", "ci"]).await.json();
    let secret = made["secret"].as_str().expect("a secret");
    let id = made["key"]["id"].as_str().expect("an id");
    assert_eq!(server.run(&["--key", secret, "ls"]).await.code, 0);
    assert_eq!(server.run(&["key", "rm", id]).await.code, 0);
    assert_eq!(server.run(&["--key", secret, "ls"]).await.code, 6);
}

#[tokio::test]
async fn removing_needs_force_for_what_runs() {
    let (server, _) = Server::with_box().await;
    let refused = server.run(&["rm", "box"]).await;
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    assert_eq!(server.run(&["rm", "-f", "box"]).await.code, 0);
    let caller = server.test.caller().await;
    let gone = server
        .test
        .control
        .get_workspace(&caller, &WorkspaceRef::SlugOrName("box".to_owned()))
        .await;
    assert!(gone.is_err());
}
