//! The command-line client against a real workspace.

use std::{
    io::{Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::pty::{Winsize, openpty};
use serde_json::Value;
use skerry_e2e::{Options, Server};
use tokio::io::AsyncWriteExt;

struct Ran {
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl Ran {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs `skerry <arguments>` with this input.
async fn skerry(server: &Server, arguments: &[&str], input: &[u8]) -> Result<Ran> {
    let mut child = server
        .cli()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let input = input.to_vec();
    let feed = tokio::spawn(async move {
        // A command that does not read its input closes it early: not a fault of ours.
        let _ = stdin.write_all(&input).await;
    });
    let output = tokio::time::timeout(skerry_e2e::server::READY_WITHIN, child.wait_with_output())
        .await
        .with_context(|| format!("{arguments:?} does not end"))??;
    feed.await?;
    Ok(Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// As [`skerry`], and it must succeed.
async fn succeeds(server: &Server, arguments: &[&str], input: &[u8]) -> Result<Ran> {
    let ran = skerry(server, arguments, input).await?;
    ensure!(ran.code == 0, "{arguments:?}: {} {} {}", ran.code, ran.text(), ran.stderr);
    Ok(ran)
}

#[tokio::test]
async fn a_workspace_lives_its_life_on_the_command_line() -> Result<()> {
    let server = Server::start(Options::default()).await?;
    let create = ["create", "box", "--memory", "512M", "--env", "COLOUR=green"];
    succeeds(&server, &create, b"").await?;
    let listed = succeeds(&server, &["ls", "--json"], b"").await?.text();
    ensure!(listed.contains("\"box\""), "{listed}");
    let got: Value =
        serde_json::from_slice(&succeeds(&server, &["get", "box", "--json"], b"").await?.stdout)?;
    ensure!(got["state"] == "running", "{got}");

    // Input, both outputs and the exit code pass through; input may be large and binary.
    let input: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let ran =
        skerry(&server, &["exec", "box", "--", "sh", "-c", "cat; echo oops >&2; exit 7"], &input)
            .await?;
    ensure!(ran.code == 7, "{} {}", ran.code, ran.stderr);
    ensure!(ran.stdout == input, "{} of {} bytes came back", ran.stdout.len(), input.len());
    ensure!(ran.stderr == "oops\n", "{}", ran.stderr);
    let env = succeeds(&server, &["exec", "box", "--", "printenv", "COLOUR"], b"").await?;
    ensure!(env.text() == "green\n", "{}", env.text());
    let none = skerry(&server, &["exec", "box", "--", "no-such-program"], b"").await?;
    ensure!(none.code == 127 || none.code == 125, "{} {}", none.code, none.stderr);
    let slow =
        skerry(&server, &["exec", "box", "--timeout", "2", "--", "sleep", "60"], b"").await?;
    ensure!(slow.code == 124, "{} {}", slow.code, slow.stderr);

    let logs = succeeds(&server, &["logs", "box", "--source", "commands"], b"").await?.text();
    ensure!(logs.contains("printenv") && logs.contains("green"), "{logs}");
    let console = succeeds(&server, &["logs", "box", "--source", "console"], b"").await?.text();
    ensure!(!console.is_empty(), "the console log is empty");

    succeeds(&server, &["stop", "box"], b"").await?;
    succeeds(&server, &["start", "box"], b"").await?;
    succeeds(&server, &["restart", "box"], b"").await?;
    ensure!(
        succeeds(&server, &["exec", "box", "--", "echo", "again"], b"").await?.text() == "again\n"
    );
    succeeds(&server, &["rm", "--force", "box"], b"").await?;
    ensure!(skerry(&server, &["get", "box"], b"").await?.code == 3, "it is still there");
    server.finish().await
}

#[tokio::test]
async fn cp_copies_files_and_trees_both_ways_byte_for_byte() -> Result<()> {
    let server = Server::start(Options::default()).await?;
    succeeds(&server, &["create", "box"], b"").await?;
    let here = tempfile::tempdir()?;
    let tree = here.path().join("tree");
    std::fs::create_dir_all(tree.join("sub/deep"))?;
    let content: Vec<u8> =
        (0..2_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(tree.join("large.bin"), &content)?;
    std::fs::write(tree.join("sub/deep/name with spaces"), "text\n")?;
    std::fs::write(tree.join("empty"), "")?;
    std::os::unix::fs::symlink("large.bin", tree.join("link"))?;
    let local = |path: &std::path::Path| path.to_string_lossy().into_owned();

    let file = local(&tree.join("large.bin"));
    succeeds(&server, &["cp", &file, "box:/root/copy.bin"], b"").await?;
    let back = local(&here.path().join("back.bin"));
    succeeds(&server, &["cp", "box:/root/copy.bin", &back], b"").await?;
    ensure!(std::fs::read(&back)? == content, "the file changed on its way");

    succeeds(&server, &["cp", &local(&tree), "box:/root/"], b"").await?;
    let there = server
        .run("box", "cd /root/tree && find . | sort && cat 'sub/deep/name with spaces'")
        .await?;
    ensure!(there.contains("./sub/deep/name with spaces") && there.ends_with("text\n"), "{there}");
    let returned = here.path().join("returned");
    std::fs::create_dir(&returned)?;
    succeeds(&server, &["cp", "box:/root/tree", &local(&returned)], b"").await?;
    ensure!(std::fs::read(returned.join("tree/large.bin"))? == content, "the tree changed");
    ensure!(std::fs::read_link(returned.join("tree/link"))?.to_str() == Some("large.bin"), "link");
    let missing = skerry(&server, &["cp", "box:/no/such/file", &back], b"").await?;
    ensure!(missing.code == 3, "{} {}", missing.code, missing.stderr);
    server.finish().await
}

#[tokio::test]
async fn a_key_works_until_it_is_removed() -> Result<()> {
    let server = Server::start(Options::default()).await?;
    let made: Value = serde_json::from_slice(
        &succeeds(&server, &["key", "create", "laptop", "--json"], b"").await?.stdout,
    )?;
    let secret = made["secret"].as_str().context("no secret")?.to_owned();
    let id = made["key"]["id"].as_str().context("no id")?.to_owned();
    let with_it = |server: &Server| {
        let mut command = server.cli();
        command.env("SKERRY_KEY", &secret).args(["ls"]).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    ensure!(with_it(&server).status().await?.success(), "the new key does not work");
    let listed = succeeds(&server, &["key", "ls"], b"").await?.text();
    ensure!(listed.contains("laptop") && !listed.contains(&secret), "{listed}");
    succeeds(&server, &["key", "rm", &id], b"").await?;
    ensure!(with_it(&server).status().await?.code() == Some(6), "a removed key works");
    server.finish().await
}

/// A terminal of our own with `skerry` on the other side.
struct Terminal {
    master: std::fs::File,
    seen: String,
}

impl Terminal {
    fn open() -> Result<(Self, OwnedFd)> {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None)?;
        Ok((Self { master: pair.master.into(), seen: String::new() }, pair.slave))
    }

    fn send(&mut self, text: &str) -> Result<()> {
        Ok(self.master.write_all(text.as_bytes())?)
    }

    /// Reads until `needle` has appeared since the last call.
    fn expect(&mut self, needle: &str) -> Result<()> {
        let mut buffer = [0_u8; 4096];
        let poll = |fd: std::os::fd::BorrowedFd<'_>| {
            let mut fds = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(60_000_u16))
        };
        while !self.seen.contains(needle) {
            use std::os::fd::AsFd;
            ensure!(poll(self.master.as_fd())? == 1, "{needle:?} does not come: {:?}", self.seen);
            let count = self.master.read(&mut buffer).unwrap_or(0);
            ensure!(count > 0, "the terminal closed before {needle:?}: {:?}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        let end = self.seen.find(needle).unwrap_or(0) + needle.len();
        self.seen.drain(..end);
        Ok(())
    }

    /// Reads until the other side is closed (which a terminal's master sees as an error).
    fn read_to_end(&mut self) {
        let mut rest = Vec::new();
        let _ = self.master.read_to_end(&mut rest);
    }

    fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        nix::ioctl_write_ptr_bad!(set_size, nix::libc::TIOCSWINSZ, Winsize);
        // SAFETY: the descriptor is open and the pointer is to a live Winsize.
        unsafe { set_size(self.master.as_raw_fd(), &raw const size) }?;
        Ok(())
    }
}

#[tokio::test]
async fn shell_is_a_real_terminal_with_resize_and_ctrl_c() -> Result<()> {
    let server = Server::start(Options::default()).await?;
    succeeds(&server, &["create", "box"], b"").await?;
    let (mut terminal, slave) = Terminal::open()?;
    let mut command = server.cli();
    command
        .args(["shell", "box"])
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave);
    // A session of its own, with our terminal as the controlling one: resizes then signal it.
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            nix::ioctl_write_int_bad!(set_controlling, nix::libc::TIOCSCTTY);
            set_controlling(0, 0)?;
            Ok(())
        });
    }
    let mut child = command.spawn()?;
    drop(command);
    let session = tokio::task::spawn_blocking(move || -> Result<()> {
        // The echo of what is typed must not satisfy the test: the quotes differ from the output.
        terminal.send("echo re''ady\n")?;
        terminal.expect("ready")?;
        terminal.send("stty size; tty\n")?;
        terminal.expect("24 80")?;
        terminal.expect("/dev/pts/")?;
        terminal.resize(120, 40)?;
        // The resize travels behind the prompt: ask until the new size is there.
        terminal.send("until [ \"$(stty size)\" = '40 120' ]; do :; done; echo si''zed\n")?;
        terminal.expect("sized")?;
        // Said by the process that is to be interrupted: before it runs, Ctrl-C would be the shell's.
        terminal.send("sh -c 'echo slee\"\"ping; exec sleep 1000'\n")?;
        terminal.expect("sleeping")?;
        terminal.send("\x03")?;
        terminal.send("echo inter''rupted $?\n")?;
        terminal.expect("interrupted 130")?;
        terminal.send("exit 3\n")?;
        // Restoring a terminal's mode waits until its output was read.
        terminal.read_to_end();
        Ok(())
    });
    session.await??;
    let status = tokio::time::timeout(Duration::from_secs(60), child.wait()).await??;
    ensure!(status.code() == Some(3), "{status}");
    server.finish().await
}
