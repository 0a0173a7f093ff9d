//! From a request to a running process.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    libc,
    pty::{Winsize, posix_openpt, unlockpt},
    unistd::{Gid, Pid, Uid, fchown},
};
use skerry_agent_protocol::message::{Exec, ExecEnd, FailureCode, Terminal};
use tokio::sync::oneshot;

use super::launch::{Importance, Launch, LaunchError};
use crate::{AgentError, Guest, users::Account};

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

/// Starts the process as the leader of its own session, in this control group.
pub(super) fn spawn(
    guest: &Guest,
    request: &Exec,
    cgroup: Option<&OwnedFd>,
) -> Result<Started, AgentError> {
    let account = guest.account(&request.user)?;
    let env = environment(guest.env(), request, &account);
    let working_dir = working_dir(request, &account)?;
    let program = find_program(&request.argv[0], &env, &working_dir)?;

    let (parent_ends, child_ends) = open_streams(request.terminal, &account)
        .map_err(|error| AgentError::from_io("the command's streams", &error))?;
    let launch = Launch {
        program: c_string(program.as_os_str().as_bytes())?,
        argv: request
            .argv
            .iter()
            .map(|word| c_string(word.as_bytes()))
            .collect::<Result<_, _>>()?,
        env: env
            .iter()
            .map(|(key, value)| c_string(format!("{key}={value}").as_bytes()))
            .collect::<Result<_, _>>()?,
        stdio: child_ends.stdio(),
        has_terminal: request.terminal.is_some(),
        ids: account.switch.then(|| (account.uid, account.gid, account.groups.clone())),
        working_dir: c_string(working_dir.as_os_str().as_bytes())?,
        cgroup,
        ignored_signals: guest.ignored_signals(),
        importance: Importance::Normal,
    };
    let (leader, ended) =
        guest.children().start(&launch).map_err(|error| refusal_of_start(request, &error))?;
    Ok(Started { leader, ended, parent_ends })
}

/// Starts a program of the agent's own as root, in the background and without any streams.
pub(super) fn spawn_quietly(
    guest: &Guest,
    argv: &[&str],
) -> Result<(Pid, oneshot::Receiver<ExecEnd>), AgentError> {
    let nothing = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|error| AgentError::from_io("/dev/null", &error))?;
    let program = argv.first().copied().unwrap_or_default();
    let launch = Launch {
        program: c_string(program.as_bytes())?,
        argv: argv.iter().map(|word| c_string(word.as_bytes())).collect::<Result<_, _>>()?,
        env: vec![c_string(format!("PATH={DEFAULT_PATH}").as_bytes())?],
        stdio: [nothing.as_fd(); 3],
        has_terminal: false,
        ids: None,
        working_dir: c_string(b"/")?,
        cgroup: guest.workload_cgroup(),
        ignored_signals: guest.ignored_signals(),
        importance: Importance::Background,
    };
    guest.children().start(&launch).map_err(|error| match error {
        LaunchError::WorkingDir(error) => AgentError::from_io("/", &error),
        LaunchError::Program(error) => AgentError::from_io(program, &error),
    })
}

/// What was checked to be without NUL when the request came, or comes from a file of text.
fn c_string(bytes: &[u8]) -> Result<CString, AgentError> {
    CString::new(bytes).map_err(|_| AgentError::invalid("no NUL is possible"))
}

fn refusal_of_start(request: &Exec, error: &LaunchError) -> AgentError {
    let program = &request.argv[0];
    match error {
        LaunchError::WorkingDir(error) => {
            let dir = request.working_dir.as_deref().unwrap_or("the user's home");
            AgentError::from_io(dir, error)
        }
        // The program was found: what is missing now is its interpreter or loader.
        LaunchError::Program(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            AgentError::refused(
                FailureCode::NoSuchCommand,
                format!("{program}: its interpreter is missing"),
            )
        }
        LaunchError::Program(error) => AgentError::from_io(program, error),
    }
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

/// The command's ends of its streams.
enum ChildEnds {
    Pipes { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
    Terminal { slave: OwnedFd },
}

impl ChildEnds {
    fn stdio(&self) -> [BorrowedFd<'_>; 3] {
        match self {
            Self::Pipes { stdin, stdout, stderr } => [stdin, stdout, stderr].map(AsFd::as_fd),
            Self::Terminal { slave } => [slave.as_fd(); 3],
        }
    }
}

/// Both ends of three pipes or of a terminal. All are close-on-exec.
fn open_streams(
    terminal: Option<Terminal>,
    account: &Account,
) -> io::Result<(ParentEnds, ChildEnds)> {
    let Some(size) = terminal else {
        let (child_stdin, stdin) = io::pipe()?;
        let (stdout, child_stdout) = io::pipe()?;
        let (stderr, child_stderr) = io::pipe()?;
        let ours =
            ParentEnds::Pipes { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() };
        let theirs = ChildEnds::Pipes {
            stdin: child_stdin.into(),
            stdout: child_stdout.into(),
            stderr: child_stderr.into(),
        };
        return Ok((ours, theirs));
    };
    let (master, slave) = open_terminal(size)?;
    if account.switch {
        // The user must be able to open its own terminal again (sudo, screen); a file system that
        // cannot do that is no reason to fail.
        let _ = fchown(&slave, Some(Uid::from_raw(account.uid)), None::<Gid>);
    }
    Ok((ParentEnds::Terminal { master }, ChildEnds::Terminal { slave }))
}

nix::ioctl_write_int_bad!(
    /// Opens the other end of a terminal; the argument is flags of `open`.
    open_peer, libc::TIOCGPTPEER
);
nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);

/// Both ends, close-on-exec from the start: another command may be starting at this moment.
fn open_terminal(size: Terminal) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags)?;
    unlockpt(&master)?;
    let size = Winsize { ws_col: size.columns, ws_row: size.rows, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open; the kernel reads one `winsize` and makes a new descriptor.
    let slave = unsafe {
        set_window_size(master.as_raw_fd(), &raw const size)?;
        OwnedFd::from_raw_fd(open_peer(master.as_raw_fd(), flags.bits())?)
    };
    Ok((master.into(), slave))
}
