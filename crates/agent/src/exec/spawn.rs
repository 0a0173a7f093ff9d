//! From a request to a running process.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    libc,
    pty::{Winsize, openpty},
    unistd::{Gid, Pid, Uid, fchown},
};
use skerry_agent_protocol::message::{Exec, ExecEnd, FailureCode, Terminal};
use tokio::sync::oneshot;

use crate::{AgentError, Guest, init::layout, users::Account};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Our ends of a command's streams.
pub(super) enum ParentEnds {
    Pipes { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
    Terminal { master: OwnedFd },
}

/// A process that runs.
pub(super) struct Started {
    pub(super) leader: Pid,
    pub(super) ended: oneshot::Receiver<ExecEnd>,
    pub(super) parent_ends: ParentEnds,
}

/// Starts the process as the leader of its own session.
pub(super) fn spawn(guest: &Guest, request: &Exec) -> Result<Started, AgentError> {
    let account = guest.account(&request.user)?;
    let env = environment(guest.env(), request, &account);
    let working_dir = working_dir(request, &account)?;
    let program = find_program(&request.argv[0], &env, &working_dir)?;

    let mut command = Command::new(&program);
    command.arg0(&request.argv[0]).args(&request.argv[1..]).env_clear().envs(&env);
    let parent_ends = attach_streams(&mut command, request.terminal, &account)
        .map_err(|error| AgentError::from_io("the command's streams", &error))?;
    let setup = ChildSetup {
        has_terminal: request.terminal.is_some(),
        ids: account.switch.then(|| (account.uid, account.gid, account.groups.clone())),
        is_machine: guest.is_machine(),
        working_dir: CString::new(working_dir.as_os_str().as_bytes())
            .map_err(|_| AgentError::invalid("working_dir: no NUL is possible"))?,
    };
    // SAFETY: between fork and exec the closure makes only async-signal-safe system calls on values
    // prepared before the fork; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || setup.apply());
    }
    let (leader, ended) = guest
        .children()
        .start(&mut command)
        .map_err(|error| refusal_of_start(&request.argv[0], &error))?;
    Ok(Started { leader, ended, parent_ends })
}

fn refusal_of_start(program: &str, error: &io::Error) -> AgentError {
    // The program was found: what is missing now is its interpreter or loader.
    if error.raw_os_error() == Some(libc::ENOENT) {
        return AgentError::refused(
            FailureCode::NoSuchCommand,
            format!("{program}: its interpreter is missing"),
        );
    }
    AgentError::from_io(program, error)
}

/// Defaults, then the workspace's, then the request's.
fn environment(
    workspace: BTreeMap<String, String>,
    request: &Exec,
    account: &Account,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([
        (String::from("PATH"), String::from(DEFAULT_PATH)),
        (String::from("HOME"), account.home.to_string_lossy().into_owned()),
        (String::from("USER"), account.name.clone()),
        (String::from("LOGNAME"), account.name.clone()),
        (String::from("SHELL"), account.shell.clone()),
        (String::from("LANG"), String::from("C.UTF-8")),
    ]);
    if request.terminal.is_some() {
        env.insert(String::from("TERM"), String::from("xterm-256color"));
    }
    env.extend(workspace);
    env.extend(request.env.clone());
    env
}

fn working_dir(request: &Exec, account: &Account) -> Result<PathBuf, AgentError> {
    match &request.working_dir {
        Some(dir) => match fs::metadata(dir) {
            Ok(metadata) if metadata.is_dir() => Ok(PathBuf::from(dir)),
            Ok(_) => Err(AgentError::refused(
                FailureCode::NotDirectory,
                format!("{dir}: not a directory"),
            )),
            Err(error) => Err(AgentError::from_io(dir, &error)),
        },
        // Like a login: no home is no reason not to let somebody in.
        None if account.home.is_dir() => Ok(account.home.clone()),
        None => Ok(PathBuf::from("/")),
    }
}

fn find_program(
    name: &str,
    env: &BTreeMap<String, String>,
    working_dir: &Path,
) -> Result<PathBuf, AgentError> {
    if name.contains('/') {
        let path = working_dir.join(name);
        return match fs::metadata(&path) {
            Ok(metadata) if is_program(&metadata) => Ok(path),
            Ok(_) => Err(AgentError::refused(
                FailureCode::PermissionDenied,
                format!("{name}: not an executable file"),
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(no_such_command(name)),
            Err(error) => Err(AgentError::from_io(name, &error)),
        };
    }
    let path = env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    path.split(':')
        .map(|dir| working_dir.join(dir).join(name))
        .find(|candidate| fs::metadata(candidate).is_ok_and(|metadata| is_program(&metadata)))
        .ok_or_else(|| no_such_command(name))
}

fn is_program(metadata: &fs::Metadata) -> bool {
    metadata.is_file() && metadata.mode() & 0o111 != 0
}

fn no_such_command(name: &str) -> AgentError {
    AgentError::refused(FailureCode::NoSuchCommand, format!("{name}: command not found"))
}

/// Gives the command its three descriptors; returns ours. All are close-on-exec.
fn attach_streams(
    command: &mut Command,
    terminal: Option<Terminal>,
    account: &Account,
) -> io::Result<ParentEnds> {
    let Some(size) = terminal else {
        let (child_stdin, stdin) = io::pipe()?;
        let (stdout, child_stdout) = io::pipe()?;
        let (stderr, child_stderr) = io::pipe()?;
        command.stdin(child_stdin).stdout(child_stdout).stderr(child_stderr);
        return Ok(ParentEnds::Pipes {
            stdin: stdin.into(),
            stdout: stdout.into(),
            stderr: stderr.into(),
        });
    };
    let size = Winsize { ws_col: size.columns, ws_row: size.rows, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None)?;
    set_close_on_exec(&pty.master)?;
    set_close_on_exec(&pty.slave)?;
    if account.switch {
        // The user must be able to open its own terminal again (sudo, screen); a file system that
        // cannot do that is no reason to fail.
        let _ = fchown(&pty.slave, Some(Uid::from_raw(account.uid)), None::<Gid>);
    }
    command
        .stdin(Stdio::from(pty.slave.try_clone()?))
        .stdout(Stdio::from(pty.slave.try_clone()?))
        .stderr(Stdio::from(pty.slave));
    Ok(ParentEnds::Terminal { master: pty.master })
}

fn set_close_on_exec(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}

/// What the child does to itself between fork and exec.
struct ChildSetup {
    has_terminal: bool,
    ids: Option<(u32, u32, Vec<u32>)>,
    is_machine: bool,
    working_dir: CString,
}

impl ChildSetup {
    fn apply(&self) -> io::Result<()> {
        // SAFETY: plain system calls with valid arguments, see the caller.
        unsafe {
            check(libc::setsid())?;
            if self.has_terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
            libc::umask(0o022);
        }
        default_signals();
        if self.is_machine {
            // The agent is protected from the memory killer and has its own cgroup; its commands
            // are neither. Where that cannot be said the command runs all the same.
            write_to(c"/proc/self/oom_score_adj", b"0");
            write_to(layout::WORKLOAD_CGROUP_PROCS, b"0");
        }
        // SAFETY: as above; the group list outlives the call.
        unsafe {
            if let Some((uid, gid, groups)) = &self.ids {
                check(libc::setgroups(groups.len(), groups.as_ptr()))?;
                check(libc::setgid(*gid))?;
                check(libc::setuid(*uid))?;
            }
            // As the user, who may not be allowed there.
            check(libc::chdir(self.working_dir.as_ptr()))?;
        }
        Ok(())
    }
}

/// What a process ignores its children ignore too, and a shell cannot even trap such a signal. Whoever
/// started the agent must not decide how a tenant's commands take a hang-up.
fn default_signals() {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: a plain system call. Those that may not be changed answer with an error.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}

fn check(outcome: libc::c_int) -> io::Result<()> {
    if outcome < 0 { Err(io::Error::from_raw_os_error(Errno::last_raw())) } else { Ok(()) }
}

fn write_to(path: &std::ffi::CStr, bytes: &[u8]) {
    // SAFETY: plain system calls with valid arguments.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd.as_raw_fd() >= 0 {
            libc::write(fd, bytes.as_ptr().cast(), bytes.len());
            libc::close(fd);
        }
    }
}
