use std::time::{Duration, Instant};

use skerry_internal_api::{GuestApi, Pty};

use super::*;

#[tokio::test]
async fn a_command_says_its_piece_and_ends_with_its_code() {
    let lab = Lab::open().await;
    let said = finish(lab.shell("echo out; echo err >&2; exit 7").await).await;
    assert_eq!((said.out().as_str(), &said.stderr[..]), ("out\n", &b"err\n"[..]));
    assert_eq!(said.exit, Some(ExecExit::Code(7)));
    lab.link.close().await;
}

#[tokio::test]
async fn a_command_runs_in_its_home_with_the_workspaces_environment_and_its_own() {
    let lab = Lab::open().await;
    let mut request = shell("pwd; echo $HOME $FROM_WORKSPACE $OWN");
    request.env.insert("OWN".into(), "own".into());
    let said = finish(lab.link.exec(request).await.unwrap()).await;
    let home = lab.text_path("");
    let home = home.trim_end_matches('/');
    assert_eq!(said.out(), format!("{home}\n{home} yes own\n"));
}

#[tokio::test]
async fn a_signal_that_ends_a_command_is_its_exit() {
    let lab = Lab::open().await;
    let said = finish(lab.shell("kill -TERM $$").await).await;
    assert_eq!(said.exit, Some(ExecExit::Signal(15)));
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let lab = Lab::open().await;
    let refused = |request| async { lab.link.exec(request).await.unwrap_err() };
    let mut missing = shell("");
    missing.argv = vec!["no-such-program-here".into()];
    let mut no_dir = shell("true");
    no_dir.working_dir = Some("/no/such/dir".into());
    let mut not_dir = shell("true");
    not_dir.working_dir = Some("/etc/passwd".into());
    let mut not_program = shell("");
    not_program.argv = vec!["/etc/passwd".into()];
    let mut nothing = shell("");
    nothing.argv.clear();
    insta::assert_debug_snapshot!([
        refused(missing).await,
        refused(no_dir).await,
        refused(not_dir).await,
        refused(not_program).await,
        refused(nothing).await,
    ]);
}

#[tokio::test]
async fn eight_mebibytes_go_in_and_come_out_unchanged() {
    let lab = Lab::open().await;
    let ExecSession { control, mut output } = lab.shell("cat").await;
    let sent: Vec<u8> = (0..8 * 1024 * 1024_u32).map(|n| (n ^ (n >> 8)) as u8).collect();
    let to_send = sent.clone();
    let sender = tokio::spawn(async move {
        for piece in to_send.chunks(200_000) {
            control.send(ExecControl::Stdin(Bytes::copy_from_slice(piece))).await.unwrap();
        }
        control.send(ExecControl::CloseStdin).await.unwrap();
        control
    });
    let said = read_on(&mut output, Said::default(), |_| false).await;
    assert_eq!(said.exit, Some(ExecExit::Code(0)));
    assert!(said.stdout == sent, "{} bytes came back", said.stdout.len());
    sender.await.unwrap();
}

#[tokio::test]
async fn a_time_limit_kills_the_whole_session() {
    let lab = Lab::open().await;
    let mut request = shell("trap '' TERM HUP; sh -c 'sleep 1000; true' & echo $! $$; wait");
    request.timeout = Some(Duration::from_millis(300));
    let started = Instant::now();
    let said = finish(lab.link.exec(request).await.unwrap()).await;
    assert_eq!(said.exit, Some(ExecExit::TimedOut));
    assert!(started.elapsed() < Duration::from_secs(20));
    for pid in said.out().split_whitespace() {
        assert!(ends(pid).await, "{pid} goes on");
    }
}

/// Whether the process ends soon.
async fn ends(pid: &str) -> bool {
    let gone = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A zombie waits only for whoever is its parent by now.
        stat.is_empty() || stat.contains(") Z ")
    };
    let looking = async {
        while !gone() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), looking).await.is_ok()
}

#[tokio::test]
async fn a_dropped_session_hangs_up_on_its_command() {
    let lab = Lab::open().await;
    let mark = lab.text_path("hung-up");
    let script =
        format!("trap 'echo hup > {mark}; exit' HUP; echo ready; while :; do sleep 0.1; done");
    let mut session = lab.shell(&script).await;
    read_on(&mut session.output, Said::default(), |said| said.out() == "ready\n").await;
    drop(session);
    let said =
        finish(lab.shell(&format!("until [ -s {mark} ]; do sleep 0.05; done; cat {mark}")).await)
            .await;
    assert_eq!(said.out(), "hup\n");
}

#[tokio::test]
async fn a_command_starts_with_default_signals_whatever_the_agent_ignores() {
    // SAFETY: nothing in this process handles or awaits this signal.
    unsafe { nix::libc::signal(nix::libc::SIGUSR2, nix::libc::SIG_IGN) };
    let lab = Lab::open().await;
    let said = finish(lab.shell("kill -USR2 $$; echo survived").await).await;
    assert_eq!(said.out(), "");
    assert_eq!(said.exit, Some(ExecExit::Signal(nix::libc::SIGUSR2)));
}

#[tokio::test]
async fn a_background_process_that_keeps_the_pipe_does_not_keep_the_command() {
    let lab = Lab::open().await;
    let started = Instant::now();
    let said = finish(lab.shell("sleep 600 & echo $!").await).await;
    assert_eq!(said.exit, Some(ExecExit::Code(0)));
    assert!(started.elapsed() < Duration::from_secs(20));
    let pid = said.out().trim().to_owned();
    let killed = finish(lab.shell(&format!("kill -9 {pid}")).await).await;
    assert_eq!(killed.exit, Some(ExecExit::Code(0)), "it outlives its command: {killed:?}");
}

#[tokio::test]
async fn a_reader_that_has_stopped_stalls_nobody_else() {
    let lab = Lab::open().await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(lab.shell("cat /dev/zero").await);
    }
    for _ in 0..5 {
        let said = finish(lab.shell("head -c 3000000 /dev/zero").await).await;
        assert_eq!((said.stdout.len(), said.exit), (3_000_000, Some(ExecExit::Code(0))));
    }
    assert!(lab.link.stats().await.unwrap().processes > 0);
    drop(stalled);
}

#[tokio::test]
async fn a_terminal_has_a_size_that_can_change_and_takes_ctrl_c() {
    let lab = Lab::open().await;
    let mut request =
        shell("stty size; trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done");
    request.pty = Some(Pty { columns: 80, rows: 24 });
    let mut session = lab.link.exec(request).await.unwrap();
    let said =
        read_on(&mut session.output, Said::default(), |said| said.out().contains("ready\r\n"))
            .await;
    assert!(said.out().starts_with("24 80\r\n"), "{said:?}");
    let size = Pty { columns: 132, rows: 50 };
    session.control.send(ExecControl::Resize(size)).await.unwrap();
    let said = read_on(&mut session.output, said, |said| said.out().contains("50 132")).await;
    session.control.send(stdin("\u{3}")).await.unwrap();
    let said = read_on(&mut session.output, said, |_| false).await;
    assert_eq!(said.exit, Some(ExecExit::Signal(2)), "{said:?}");
    assert!(said.stderr.is_empty());
}

#[tokio::test]
async fn a_signal_reaches_the_foreground_of_a_terminal_and_the_group_behind_pipes() {
    let lab = Lab::open().await;
    for pty in [None, Some(Pty { columns: 80, rows: 24 })] {
        let mut request =
            shell("trap 'echo got it; exit 9' USR1; echo ready; while :; do sleep 0.1; done");
        request.pty = pty;
        let mut session = lab.link.exec(request).await.unwrap();
        let said =
            read_on(&mut session.output, Said::default(), |said| said.out().contains("ready"))
                .await;
        session.control.send(ExecControl::Signal(10)).await.unwrap();
        let said = read_on(&mut session.output, said, |_| false).await;
        assert_eq!(said.exit, Some(ExecExit::Code(9)), "{said:?}");
        assert!(said.out().contains("got it"));
    }
}

#[tokio::test]
async fn a_command_that_ends_without_reading_its_input_still_reports_its_end() {
    let lab = Lab::open().await;
    let ExecSession { control, mut output } = lab.shell("exec <&-; echo done; exit 4").await;
    let writer = tokio::spawn(async move {
        while control.send(ExecControl::Stdin(Bytes::from(vec![0; 60_000]))).await.is_ok() {}
    });
    let said = read_on(&mut output, Said::default(), |_| false).await;
    assert_eq!((said.out().as_str(), said.exit), ("done\n", Some(ExecExit::Code(4))), "{said:?}");
    within(writer).await.unwrap();
}
