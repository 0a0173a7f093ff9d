//! Running programs of the host during a build: bounded in time, output kept only in part, and never
//! through a shell.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError, SyncSender},
    thread,
    time::{Duration, Instant},
};

use nix::unistd::geteuid;

use super::ImageError;

/// Lines of output shown when a program fails.
const TAIL_LINES: usize = 25;
/// A longer line is handed on in pieces of this many bytes.
const MAX_LINE_BYTES: u64 = 4096;
/// Between asking a program to end and killing it: time to remove what it made.
const TERMINATION_GRACE: Duration = Duration::from_secs(15);
/// Name spaces whose end takes every process and every mount in them along, and which end with us:
/// the thread that runs a program waits for it, so that the thread's death is ours (`prctl(2)`,
/// `PR_SET_PDEATHSIG`).
const CONTAINER: &[&str] = &[
    "setpriv",
    "--pdeathsig=KILL",
    "unshare",
    "--mount",
    "--propagation=private",
    "--pid",
    "--fork",
    "--kill-child=KILL",
    "--mount-proc",
];

/// Programs speak English, in which we look for words.
const LOCALE: &str = "C.UTF-8";

/// One program with its arguments, ready to be run.
pub(super) struct HostProgram {
    program: String,
    package: &'static str,
    command: Command,
}

impl HostProgram {
    /// `program`, which Debian has in `package`.
    pub(super) fn new(program: &str, package: &'static str) -> Self {
        Self { program: program.to_owned(), package, command: command(&[program]) }
    }

    /// As [`HostProgram::new`], and nothing of it outlives us or stays mounted, whatever kills us.
    /// Only root may have this; where it is not to be had (in a plain container nothing can be
    /// mounted either) the program runs as any other.
    pub(super) fn contained(program: &str, package: &'static str) -> Self {
        Self::contained_behind(&[], program, package)
    }

    /// As [`HostProgram::contained`], giving way to everything else on the host.
    pub(super) fn contained_at_low_priority(program: &str, package: &'static str) -> Self {
        Self::contained_behind(&["nice", "-n", "10"], program, package)
    }

    fn contained_behind(prefix: &[&str], program: &str, package: &'static str) -> Self {
        // A program that is missing is better missed by us than by what starts it.
        if !program_is_there(program) {
            return Self::new(program, package);
        }
        let contain = geteuid().is_root() && containers_work();
        let container = if contain { CONTAINER } else { &[] };
        let mut command = command(&[container, prefix, &[program]].concat());
        if contain {
            // `mmdebstrap` hangs up on its whole group when it fails: that must not be ours.
            command.process_group(0);
        }
        Self { program: program.to_owned(), package, command }
    }

    /// Passes on nothing of our environment but where programs are.
    pub(super) fn without_environment(mut self) -> Self {
        self.command.env_clear().env("PATH", search_path()).env("LC_ALL", LOCALE);
        self
    }

    pub(super) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub(super) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.command.arg(arg.into());
        self
    }

    pub(super) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(super) fn current_dir(mut self, directory: &std::path::Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Runs to the end, handing on every line of output (both streams).
    pub(super) fn run(
        mut self,
        limit: Duration,
        on_line: &mut dyn FnMut(&str),
    ) -> Result<(), ImageError> {
        let deadline = Instant::now() + limit;
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn()?;
        let (sender, lines) = mpsc::sync_channel(64);
        if let Some(stdout) = child.stdout.take() {
            forward_lines(stdout, sender.clone());
        }
        if let Some(stderr) = child.stderr.take() {
            forward_lines(stderr, sender);
        }
        let mut tail = VecDeque::with_capacity(TAIL_LINES);
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    on_line(&line);
                    if tail.len() == TAIL_LINES {
                        tail.pop_front();
                    }
                    tail.push_back(line);
                }
                Err(RecvTimeoutError::Timeout) => {
                    terminate(&mut child);
                    return Err(ImageError::ProgramTimedOut { program: self.program, limit });
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = wait_until(&mut child, deadline)
            .ok_or_else(|| ImageError::ProgramTimedOut { program: self.program.clone(), limit })?;
        self.succeeded(status, || Vec::from(tail).join("\n"))
    }

    /// Runs to the end and returns what it printed, at most `max_bytes`.
    pub(super) fn stdout(self, max_bytes: u64, limit: Duration) -> Result<Vec<u8>, ImageError> {
        self.stdout_of_input(&[], max_bytes, limit)
    }

    /// Feeds `input` to the program and returns what it printed, at most `max_bytes`.
    pub(super) fn stdout_of_input(
        mut self,
        input: &[u8],
        max_bytes: u64,
        limit: Duration,
    ) -> Result<Vec<u8>, ImageError> {
        let deadline = Instant::now() + limit;
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn()?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        thread::scope(|scope| {
            scope.spawn(move || {
                // A program that ends before it read everything reports its own reason.
                let _ = stdin.map(|mut stdin| stdin.write_all(input));
            });
            let (sender, output) = mpsc::sync_channel(1);
            scope.spawn(move || sender.send(read_up_to(stdout, max_bytes)));
            let (sender, complaint) = mpsc::sync_channel(1);
            scope.spawn(move || sender.send(read_up_to(stderr, 64 << 10)));

            let timed_out = || ImageError::ProgramTimedOut { program: self.program.clone(), limit };
            let Ok(output) =
                output.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            else {
                terminate(&mut child);
                return Err(timed_out());
            };
            let status = wait_until(&mut child, deadline).ok_or_else(timed_out)?;
            let output = output.map_err(ImageError::file("read the output of", &self.program))?;
            self.succeeded(status, || {
                let complaint = complaint.recv().ok().and_then(Result::ok).unwrap_or_default();
                String::from_utf8_lossy(&complaint).trim_end().to_owned()
            })?;
            if output.len() as u64 > max_bytes {
                return Err(ImageError::ProgramFailed {
                    program: self.program.clone(),
                    outcome: format!("it printed more than {max_bytes} bytes"),
                    output_tail: String::new(),
                });
            }
            Ok(output)
        })
    }

    fn spawn(&mut self) -> Result<Child, ImageError> {
        self.command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                ImageError::ProgramMissing { program: self.program.clone(), package: self.package }
            }
            _other => {
                ImageError::File { action: "start", path: self.program.clone().into(), source }
            }
        })
    }

    fn succeeded(
        &self,
        status: ExitStatus,
        output_tail: impl FnOnce() -> String,
    ) -> Result<(), ImageError> {
        if status.success() {
            return Ok(());
        }
        Err(ImageError::ProgramFailed {
            program: self.program.clone(),
            outcome: status.to_string(),
            output_tail: output_tail(),
        })
    }
}

/// A program by its name and its first arguments, found where the system keeps such, speaking English.
pub(crate) fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env("PATH", search_path()).env("LC_ALL", LOCALE);
    command
}

/// `mkfs` and friends live where an ordinary user's `PATH` does not look.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

/// Whether a program would be found.
pub(super) fn program_is_there(program: &str) -> bool {
    std::env::split_paths(&search_path()).any(|dir| dir.join(program).is_file())
}

fn containers_work() -> bool {
    let mut trial = command(&[CONTAINER, &["true"]].concat());
    trial.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    trial.status().is_ok_and(|status| status.success())
}

fn forward_lines(stream: impl Read + Send + 'static, sender: SyncSender<String>) {
    // The thread ends with the stream, that is with the last process that holds it, or with the
    // receiver: it owns nothing else and needs no joining.
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while let Ok(1..) = stream.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
}

fn read_up_to(stream: Option<impl Read>, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    if let Some(stream) = stream {
        // One byte more than allowed shows the caller that there was more.
        stream.take(max_bytes + 1).read_to_end(&mut content)?;
    }
    Ok(content)
}

/// Waits for the child, which has closed its output already; kills it at the deadline.
fn wait_until(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
            Ok(None) | Err(_) => {
                terminate(child);
                return None;
            }
        }
    }
}

/// Asks the child to end, waits, and kills it when it does not.
fn terminate(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGTERM,
        );
    }
    let deadline = Instant::now() + TERMINATION_GRACE;
    while Instant::now() < deadline {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> HostProgram {
        HostProgram::new("sh", "dash").args(["-c", script])
    }

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn lines_of_both_streams_are_handed_on() {
        let mut lines = Vec::new();
        shell("echo one; echo two >&2")
            .run(LIMIT, &mut |line| lines.push(line.to_owned()))
            .unwrap();
        lines.sort();
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn a_failure_carries_the_end_of_the_output() {
        let error = shell("seq 100; exit 3").run(LIMIT, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("100"), "{error}");
        assert!(!error.contains("\n50\n"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named_with_its_package() {
        let error = HostProgram::new("skerry-no-such-program", "nowhere").run(LIMIT, &mut |_| {});
        assert_eq!(
            error.unwrap_err().to_string(),
            "`skerry-no-such-program` is not installed (Debian package nowhere)"
        );
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_at_its_limit() {
        let started = Instant::now();
        let outcome = HostProgram::new("sleep", "coreutils")
            .args(["60"])
            .run(Duration::from_millis(50), &mut |_| {});
        assert!(matches!(outcome, Err(ImageError::ProgramTimedOut { .. })));
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn input_goes_in_and_output_comes_back() {
        let input = vec![b'x'; 1 << 20];
        assert_eq!(shell("cat").stdout_of_input(&input, 2 << 20, LIMIT).unwrap(), input);
    }

    #[test]
    fn a_contained_program_does_its_work_and_reports_its_failure() {
        let contained = |script: &str| HostProgram::contained("sh", "dash").args(["-c", script]);
        assert_eq!(contained("echo done").stdout(10, LIMIT).unwrap(), b"done\n");
        let error = contained("echo no >&2; exit 3").run(LIMIT, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("`sh` failed (exit status: 3)"), "{error}");
        let error = HostProgram::contained("skerry-no-such-program", "nowhere");
        let error = error.run(LIMIT, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("Debian package nowhere"), "{error}");
    }

    #[test]
    fn what_a_contained_program_mounts_and_starts_ends_with_it() {
        if !geteuid().is_root() || !containers_work() {
            println!("NOT TESTED: this process may not make name spaces");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().display();
        let (alive, held) = io::pipe().unwrap();
        let mut program = HostProgram::contained("sh", "dash");
        // Both processes hold the pipe's writing end as long as they live.
        program.command.stdout(Stdio::piped()).stderr(Stdio::from(held));
        let script = format!(
            "mount -t tmpfs none {at}; touch {at}/seen; sleep 600 & echo ready; exec sleep 600"
        );
        let mut program = program.args(["-c", &script]);
        let mut child = program.spawn().unwrap();
        // The command keeps its end of the pipe, too.
        drop(program);
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        child.kill().unwrap();
        child.wait().unwrap();
        let (sender, ended) = mpsc::channel();
        thread::spawn(move || sender.send(read_up_to(Some(alive), 100).unwrap()));
        assert_eq!(ended.recv_timeout(LIMIT).expect("a process is left"), b"");
        assert!(!directory.path().join("seen").exists());
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&directory.path().display().to_string()), "{mounts}");
    }

    #[test]
    fn more_output_than_allowed_is_an_error() {
        let outcome = shell("head -c 100 /dev/zero").stdout(50, LIMIT);
        assert!(matches!(outcome, Err(ImageError::ProgramFailed { .. })));
    }
}
