//! Commands, terminals, files and connections.

use std::{fs, process::Stdio, sync::atomic::Ordering, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    time::timeout,
};

use super::ground::{Ground, WITHIN, done, done_with_input, ended, err, out};

#[tokio::test]
async fn a_command_has_its_streams_its_code_and_its_environment() {
    let ground = Ground::open().await;
    let line = "cat; echo $FROM_WORKSPACE $OWN; pwd; echo bad >&2; exit 7";
    let ssh = ground.ssh(&["-o", "SetEnv=OWN=mine", "gate", line]);
    let output = done_with_input(ssh, b"in\n").await;
    let home = ground.home.to_str().unwrap();
    assert_eq!(out(&output), format!("in\nyes mine\n{home}\n"), "{}", err(&output));
    assert_eq!((err(&output).as_str(), output.status.code()), ("bad\n", Some(7)));
    ground.close().await;
}

#[tokio::test]
async fn a_shell_reads_its_commands_and_a_terminal_is_one() {
    let ground = Ground::open().await;
    let output = done_with_input(ground.ssh(&["gate"]), b"echo $((6 * 7))\nexit 3\n").await;
    assert_eq!((out(&output).as_str(), output.status.code()), ("42\n", Some(3)));
    let line = "stty size; test -t 0 && echo tty; echo $TERM";
    let mut ssh = ground.ssh(&["-tt", "gate", line]);
    ssh.env("TERM", "vt100");
    let output = done_with_input(ssh, b"").await;
    assert_eq!(out(&output), "24 80\r\ntty\r\nvt100\r\n");
    ground.close().await;
}

#[tokio::test]
async fn a_wrong_key_and_a_wrong_name_are_refused_alike_and_nobody_is_woken() {
    let ground = Ground::open().await;
    let wrong_name = done(ground.ssh(&["-l", "green", "gate", "true"])).await;
    let other = ground.path("other");
    let mut command = tokio::process::Command::new("ssh");
    let known = format!("UserKnownHostsFile={}", ground.path("known_hosts"));
    command.args([
        "-F",
        "/dev/null",
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "BatchMode=yes",
        "-o",
        &known,
    ]);
    command.args(["-o", "StrictHostKeyChecking=accept-new", "-o", "LogLevel=ERROR", "-i", &other]);
    command.args(["-p", &ground.port.to_string(), "blue@127.0.0.1", "true"]);
    let wrong_key = done(command).await;
    for output in [&wrong_name, &wrong_key] {
        assert_eq!(output.status.code(), Some(255));
        assert!(
            err(output).ends_with("127.0.0.1: Permission denied (publickey).\r\n"),
            "{}",
            err(output)
        );
    }
    assert_eq!(ground.routes.entered.load(Ordering::Relaxed), 0);
    ground.close().await;
}

#[tokio::test]
async fn a_workspace_that_cannot_be_entered_says_why() {
    let ground = Ground::open().await;
    *ground.routes.refusal.lock().unwrap() = Some("the workspace must be running".to_owned());
    let output = done(ground.ssh(&["gate", "true"])).await;
    assert_eq!(err(&output), "skerry: the workspace must be running\n");
    assert_eq!(output.status.code(), Some(255));
    ground.close().await;
}

/// More than all windows and buffers on the way together, both ways at once.
#[tokio::test]
async fn what_goes_in_comes_out_however_much_it_is() {
    let ground = Ground::open().await;
    let sent: Vec<u8> = (0..48 * 1024 * 1024_u32).map(|n| (n ^ (n >> 9)) as u8).collect();
    let output = done_with_input(ground.ssh(&["gate", "cat"]), &sent).await;
    assert!(output.stdout == sent, "{} bytes came back: {}", output.stdout.len(), err(&output));
    ground.close().await;
}

/// A client that writes on while nobody reads what comes back: it is held back, and nothing is lost.
#[tokio::test]
async fn a_client_that_does_not_read_is_held_back_and_loses_nothing() {
    let ground = Ground::open().await;
    let mut ssh = ground.ssh(&["gate", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (ssh.stdin.take().unwrap(), ssh.stdout.take().unwrap());
    let sent: Vec<u8> = (0..32 * 1024 * 1024_u32).map(|n| (n ^ (n >> 9)) as u8).collect();
    let to_send = sent.clone();
    let mut writing = tokio::spawn(async move { stdin.write_all(&to_send).await });
    assert!(timeout(Duration::from_secs(3), &mut writing).await.is_err(), "it was not held back");
    let mut came = Vec::new();
    timeout(WITHIN, stdout.read_to_end(&mut came)).await.expect("it stands still").unwrap();
    writing.await.unwrap().unwrap();
    assert!(came == sent, "{} bytes came back", came.len());
    assert_eq!(ended(ssh).await.status.code(), Some(0));
    ground.close().await;
}

/// Two commands on one connection: one does not read its input.
#[tokio::test]
async fn a_command_that_does_not_read_does_not_stop_another_on_the_same_connection() {
    let ground = Ground::open().await;
    let control = format!("ControlPath={}", ground.path("control"));
    let mut first = ground.ssh(&["-M", "-o", &control, "gate", "echo ready; sleep 1000"]);
    let mut first = first.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = first.stdin.take().unwrap();
    let mut ready = String::new();
    let mut stdout = BufReader::new(first.stdout.take().unwrap());
    timeout(WITHIN, stdout.read_line(&mut ready)).await.unwrap().unwrap();
    assert_eq!(ready, "ready\n");
    let stuck = timeout(Duration::from_secs(3), stdin.write_all(&vec![1; 32 * 1024 * 1024])).await;
    assert!(stuck.is_err(), "nobody reads that");
    let second = ground.ssh(&["-o", &control, "gate", "head -c 3000000 /dev/zero | wc -c; cat"]);
    let output = done_with_input(second, b"typed").await;
    assert_eq!(out(&output), "3000000\ntyped", "{}", err(&output));
    first.kill().await.unwrap();
    ground.close().await;
}

#[tokio::test]
async fn files_are_copied_by_both_protocols_of_scp() {
    let ground = Ground::open().await;
    fs::create_dir_all(ground.dir.path().join("tree/deep")).unwrap();
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n ^ (n >> 9)) as u8).collect();
    fs::write(ground.dir.path().join("tree/large"), &large).unwrap();
    fs::write(ground.dir.path().join("tree/deep/empty"), b"").unwrap();
    for (protocol, name) in [("-s", "by-sftp"), ("-O", "by-scp")] {
        let mut up = ground.program("scp");
        up.args([protocol, "-r", "-p", &ground.path("tree"), &format!("gate:{name}")]);
        let output = done(up).await;
        assert!(output.status.success(), "{protocol}: {}", err(&output));
        assert!(fs::read(ground.home.join(name).join("large")).unwrap() == large, "{protocol}");
        assert!(ground.home.join(name).join("deep/empty").exists());
        let mut down = ground.program("scp");
        let back = ground.path(&format!("back-{name}"));
        down.args([protocol, "-r", &format!("gate:{name}"), &back]);
        let output = done(down).await;
        assert!(output.status.success(), "{protocol}: {}", err(&output));
        assert!(fs::read(format!("{back}/large")).unwrap() == large, "{protocol}");
    }
    ground.close().await;
}

#[tokio::test]
async fn sftp_does_what_its_users_do() {
    let ground = Ground::open().await;
    fs::write(ground.dir.path().join("local"), "one\n").unwrap();
    fs::write(ground.dir.path().join("more"), "one\ntwo\n").unwrap();
    let (local, more, back) = (ground.path("local"), ground.path("more"), ground.path("back"));
    let batch = format!(
        "pwd\nmkdir d\ncd d\nput {local} a\nrename a b\nreput {more} b\nchmod 600 b\nsymlink b link\n\
         ls -1\nget link {back}\nmkdir e\nrmdir e\n-rmdir ../d\n-get missing\nrm link\nls -l\n"
    );
    let mut sftp = ground.program("sftp");
    sftp.args(["-b", "-", "gate"]);
    let output = done_with_input(sftp, batch.as_bytes()).await;
    assert!(output.status.success(), "{}{}", out(&output), err(&output));
    let text = out(&output);
    assert!(
        text.contains(&format!("Remote working directory: {}\n", ground.home.display())),
        "{text}"
    );
    assert!(text.contains("\nb\nlink\n") || text.contains("b\nlink\n"), "{text}");
    assert!(text.contains("-rw-------"), "{text}");
    assert_eq!(fs::read_to_string(back).unwrap(), "one\ntwo\n");
    assert!(err(&output).contains("missing\" not found"), "{}", err(&output));
    assert_eq!(fs::read_dir(ground.home.join("d")).unwrap().count(), 1);
    ground.close().await;
}

#[tokio::test]
async fn a_port_of_the_workspace_is_reached_and_one_that_is_not_there_says_so() {
    let ground = Ground::open().await;
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = service.local_addr().unwrap().port();
    let answering = tokio::spawn(async move {
        let (mut client, _) = service.accept().await.unwrap();
        let mut asked = String::new();
        client.read_to_string(&mut asked).await.unwrap();
        client.write_all(format!("you said {asked}").as_bytes()).await.unwrap();
    });
    let to = format!("127.0.0.1:{port}");
    let output = done_with_input(ground.ssh(&["-W", &to, "gate"]), b"hello").await;
    assert_eq!(out(&output), "you said hello", "{}", err(&output));
    answering.await.unwrap();
    let output = done(ground.ssh(&["-o", "LogLevel=INFO", "-W", &to, "gate"])).await;
    assert!(err(&output).contains("connection refused"), "{}", err(&output));
    ground.close().await;
}

#[tokio::test]
async fn through_the_jump_host_a_workspace_answers_with_its_own_key_and_asks_for_yours() {
    let ground = Ground::open().await;
    let output = done(ground.ssh(&["-J", "jump", "root@blue", "echo here"])).await;
    assert_eq!(out(&output), "here\n", "{}", err(&output));
    // One that is not there answers too, and lets nobody in.
    let output = done(ground.ssh(&["-J", "jump", "root@nobody", "echo here"])).await;
    assert!(err(&output).contains("Permission denied (publickey,password)"), "{}", err(&output));
    let known = fs::read_to_string(ground.path("known_hosts")).unwrap();
    let keys: std::collections::BTreeSet<&str> =
        known.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    assert_eq!(keys.len(), 3, "the gateway, blue and nobody have a key each:\n{known}");
    // Files go that way too.
    fs::write(ground.dir.path().join("local"), "text").unwrap();
    let mut scp = ground.program("scp");
    scp.args(["-J", "jump", &ground.path("local"), "root@blue:copied"]);
    let output = done(scp).await;
    assert!(output.status.success(), "{}", err(&output));
    assert_eq!(fs::read_to_string(ground.home.join("copied")).unwrap(), "text");
    ground.close().await;
}

#[tokio::test]
async fn the_jump_host_itself_does_nothing_else() {
    let ground = Ground::open().await;
    let output = done(ground.ssh(&["jump", "echo here"])).await;
    assert_eq!((out(&output).as_str(), output.status.success()), ("", false));
    let output = done(ground.ssh(&["-o", "LogLevel=INFO", "-W", "127.0.0.1:80", "jump"])).await;
    assert!(err(&output).contains("administratively prohibited"), "{}", err(&output));
    assert_eq!(ground.routes.entered.load(Ordering::Relaxed), 0);
    ground.close().await;
}

#[tokio::test]
async fn a_session_whose_guest_is_lost_ends_and_says_so() {
    let ground = Ground::open().await;
    let mut ssh = ground.ssh(&["gate", "echo ready; sleep 1000"]).spawn().unwrap();
    let mut stdout = BufReader::new(ssh.stdout.take().unwrap());
    let mut line = String::new();
    timeout(WITHIN, stdout.read_line(&mut line)).await.unwrap().unwrap();
    ground.link.close().await;
    let output = ended(ssh).await;
    assert_eq!(output.status.code(), Some(255));
    assert!(err(&output).starts_with("skerry: "), "{}", err(&output));
    ground.close().await;
}

#[tokio::test]
async fn sessions_end_with_the_server_and_commands_with_their_client() {
    let ground = Ground::open().await;
    let script = "echo $$; sleep 1000";
    let begin = async |ground: &Ground| {
        let mut ssh = ground.ssh(&["gate", script]).spawn().unwrap();
        let mut stdout = BufReader::new(ssh.stdout.take().unwrap());
        let mut line = String::new();
        timeout(WITHIN, stdout.read_line(&mut line)).await.unwrap().unwrap();
        (ssh, line.trim().to_owned())
    };
    let gone = async |pid: &str| {
        let path = format!("/proc/{pid}");
        let gone = async {
            while fs::exists(&path).unwrap() {
                tokio::task::yield_now().await;
            }
        };
        timeout(WITHIN, gone).await.expect("the command runs on");
    };
    let (mut first, pid) = begin(&ground).await;
    first.kill().await.unwrap();
    gone(&pid).await;
    let (second, pid) = begin(&ground).await;
    ground.ending.cancel();
    assert_eq!(ended(second).await.status.code(), Some(255));
    gone(&pid).await;
    ground.close().await;
}
