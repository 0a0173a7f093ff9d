//! Starts the hypervisor's process with exactly the rights and files it needs.
//!
//! The child is made in two steps so that its record can be durable before it runs a single
//! instruction of the program: [`Blocked::fork`] makes a process that waits on a pipe,
//! [`Blocked::release`] lets it become the program. If we die in between, the pipe closes and the
//! child ends by itself. It keeps no end of any other pipe, so two such children cannot hold each
//! other alive.
//!
//! The standard library's `Command` cannot do this: its `spawn` returns only after the `exec`.

use std::{
    ffi::{CString, OsString},
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::Path,
    ptr,
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    unistd::{ForkResult, Pid},
};
use tokio::{io::AsyncReadExt, net::unix::pipe};

use crate::VmmError;

/// The first inherited file's number in the child; 0 to 2 are the standard streams.
pub(super) const FIRST_FD: RawFd = 3;

/// Our own copies of the child's files are kept above this, so that putting them at their place in
/// the child never overwrites one that is still to be moved.
const PARKED_FDS: RawFd = 200;

/// How long a released child may take to become the program.
const EXEC_DEADLINE: Duration = Duration::from_secs(10);

/// One resource limit, soft and hard alike.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) resource: nix::sys::resource::Resource,
    pub(super) value: u64,
}

/// What the process is to be.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) program: &'a Path,
    pub(super) args: Vec<OsString>,
    /// Become file numbers [`FIRST_FD`] and up, in this order.
    pub(super) files: Vec<OwnedFd>,
    /// Standard output and standard error.
    pub(super) log: OwnedFd,
    /// User and group to become.
    pub(super) uid: Option<u32>,
    /// Supplementary groups; only set together with `uid`.
    pub(super) groups: Vec<u32>,
    pub(super) limits: Vec<Limit>,
}

/// A child that has not yet become the program.
#[derive(Debug)]
pub(super) struct Blocked {
    pub(super) pid: u32,
    go: OwnedFd,
    failure: OwnedFd,
}

/// Where the child failed. The number travels over the pipe.
const STEPS: [&str; 8] = [
    "start",
    "set up file numbers",
    "set a resource limit",
    "drop supplementary groups",
    "change group",
    "change user",
    "give up new privileges",
    "execute the program",
];

impl Blocked {
    /// Makes the child.
    pub(super) fn fork(launch: Launch<'_>) -> io::Result<Self> {
        let program = c_string(launch.program.as_os_str().to_owned())?;
        let mut args = vec![program.clone()];
        for arg in launch.args {
            args.push(c_string(arg)?);
        }
        let mut argv: Vec<*const libc::c_char> = args.iter().map(|arg| arg.as_ptr()).collect();
        argv.push(ptr::null());
        // Nothing of our environment is the hypervisor's business; it may hold secrets.
        let envp: [*const libc::c_char; 1] = [ptr::null()];

        let (go_read, go) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (failure, failure_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let null = std::fs::File::open("/dev/null")?;
        let streams = [park(&null)?, park(&launch.log)?, park(&launch.log)?];
        let files = launch.files.iter().map(park).collect::<io::Result<Vec<_>>>()?;
        let pipes = [park(&go_read)?, park(&failure_write)?];
        let sources: Vec<RawFd> =
            streams.iter().chain(&files).chain(&pipes).map(AsRawFd::as_raw_fd).collect();

        let child = Child {
            program: &program,
            argv: &argv,
            envp: &envp,
            sources: &sources,
            uid: launch.uid,
            groups: &launch.groups,
            limits: &launch.limits,
        };
        // SAFETY: the child calls only async-signal-safe functions and allocates nothing; everything
        // it reads was made above.
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Child => child.run(),
            ForkResult::Parent { child } => {
                let pid = u32::try_from(child.as_raw()).map_err(io::Error::other)?;
                Ok(Self { pid, go, failure })
            }
        }
    }

    /// Lets the child become the program, and returns when it has.
    ///
    /// # Errors
    /// [`VmmError::NotUsable`] with the step at which the child failed.
    pub(super) async fn release(self) -> Result<(), VmmError> {
        nix::unistd::write(&self.go, b"g").map_err(|errno| VmmError::Io {
            context: "release the VMM process".into(),
            source: errno.into(),
        })?;
        let mut failure = pipe::Receiver::from_owned_fd(self.failure).map_err(|source| {
            VmmError::Io { context: "watch the VMM process start".into(), source }
        })?;
        // The pipe closes without a word when the program is executed.
        let mut report = Vec::new();
        tokio::time::timeout(EXEC_DEADLINE, failure.read_to_end(&mut report))
            .await
            .map_err(|_| VmmError::Timeout("executing the VMM"))?
            .map_err(|source| VmmError::Io { context: "watch the VMM start".into(), source })?;
        match report.as_slice() {
            [] => Ok(()),
            [step, errno @ ..] => {
                let step = STEPS.get(usize::from(*step)).copied().unwrap_or("start");
                let cause = match <[u8; 4]>::try_from(errno) {
                    Ok(errno) => {
                        io::Error::from_raw_os_error(i32::from_ne_bytes(errno)).to_string()
                    }
                    Err(_) => "unknown cause".to_owned(),
                };
                Err(VmmError::NotUsable(format!("the VMM's process could not {step}: {cause}")))
            }
        }
    }
}

/// A copy of the file with a high number, closed on `exec`.
fn park(file: impl AsFd) -> io::Result<OwnedFd> {
    let fd = fcntl(file, FcntlArg::F_DUPFD_CLOEXEC(PARKED_FDS))?;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_string(text: OsString) -> io::Result<CString> {
    debug_assert!(!text.as_bytes().contains(&0), "checked by the caller");
    CString::new(text.into_vec()).map_err(io::Error::other)
}

/// What the child needs between `fork` and `exec`.
struct Child<'a> {
    program: &'a CString,
    argv: &'a [*const libc::c_char],
    envp: &'a [*const libc::c_char],
    /// Standard streams, inherited files, then the two pipes.
    sources: &'a [RawFd],
    uid: Option<u32>,
    groups: &'a [u32],
    limits: &'a [Limit],
}

impl Child<'_> {
    /// Runs in the child only. Never allocates, never returns, never unwinds.
    fn run(&self) -> ! {
        let pipes_at = self.sources.len() - 2;
        let go = pipes_at as RawFd;
        let failure = go + 1;

        // SAFETY: plain system calls on memory that outlives the call; see `Blocked::fork`.
        unsafe {
            // Out of our terminal's reach first: a Ctrl-C for us is not for it.
            libc::setsid();
            reset_signals();

            for (number, &source) in self.sources.iter().enumerate() {
                let flags = if number >= pipes_at { libc::O_CLOEXEC } else { 0 };
                if libc::dup3(source, number as RawFd, flags) < 0 {
                    fail(self.sources[pipes_at + 1], 1);
                }
            }
            // Everything else of ours, other VMs' pipes among it.
            if libc::syscall(libc::SYS_close_range, failure + 1, u32::MAX, 0) < 0 {
                fail(failure, 1);
            }

            if !wait_for_go(go) {
                libc::_exit(0);
            }

            for limit in self.limits {
                let value = libc::rlimit { rlim_cur: limit.value, rlim_max: limit.value };
                if libc::setrlimit(limit.resource as _, &value) < 0 {
                    fail(failure, 2);
                }
            }
            if let Some(uid) = self.uid {
                // Its only sockets are those it inherits: what listens on the host's loopback
                // trusts local processes. A container may refuse this to its root; then the other
                // walls have to do.
                libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWIPC);
                if libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()) < 0 {
                    fail(failure, 3);
                }
                if libc::syscall(libc::SYS_setresgid, uid, uid, uid) < 0 {
                    fail(failure, 4);
                }
                if libc::syscall(libc::SYS_setresuid, uid, uid, uid) < 0 {
                    fail(failure, 5);
                }
            }
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 {
                fail(failure, 6);
            }
            libc::umask(0o077);
            libc::chdir(c"/".as_ptr());
            libc::execve(self.program.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr());
            fail(failure, 7)
        }
    }
}

/// Default handlers and an empty mask: ours would run on our memory's copy, and ignored signals stay
/// ignored across `exec`. One is ignored on purpose: a write beyond the limit of a file's size is to
/// fail like one to a full disk, and not to end the machine.
///
/// # Safety
/// Only in a child between `fork` and `exec`.
unsafe fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is a valid handler; the call fails harmlessly for SIGKILL and SIGSTOP.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: SIG_IGN is a valid handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    // SAFETY: an all-zero sigset_t is what sigemptyset makes on Linux, and is then set properly.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
}

/// Waits for one byte. False when the other end closed without it: our parent is gone.
///
/// # Safety
/// Only in a child between `fork` and `exec`.
unsafe fn wait_for_go(go: RawFd) -> bool {
    let mut byte = 0_u8;
    loop {
        // SAFETY: one byte into one byte.
        let read = unsafe { libc::read(go, (&raw mut byte).cast(), 1) };
        if read >= 0 {
            return read == 1;
        }
        // SAFETY: errno is thread-local and always readable.
        if unsafe { *libc::__errno_location() } != libc::EINTR {
            return false;
        }
    }
}

/// Reports the failed step and errno, and ends the child.
///
/// # Safety
/// Only in a child between `fork` and `exec`.
unsafe fn fail(pipe: RawFd, step: u8) -> ! {
    // SAFETY: errno is thread-local; the message is five bytes on the stack.
    unsafe {
        let errno = (*libc::__errno_location()).to_ne_bytes();
        let message = [step, errno[0], errno[1], errno[2], errno[3]];
        libc::write(pipe, message.as_ptr().cast(), message.len());
        libc::_exit(127)
    }
}

/// A descriptor that names the process and nothing else ever after (pidfd_open(2)). Closed on `exec`.
pub(super) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
    // SAFETY: no memory is passed; the result is a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Raises the limit of the size of files the process writes (prlimit(2)); never lowers it. The caller
/// holds a descriptor of the process, so that the number is still its own. Where the process is another
/// user's this takes `CAP_SYS_RESOURCE`, which containers often lack.
pub(super) fn raise_file_size_limit(pid: u32, bytes: u64) -> io::Result<()> {
    // Everybody may read this, where prlimit(2) would ask for the same rights as for the change.
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    if file_size_limit_in(&limits).is_none_or(|limit| limit >= bytes) {
        return Ok(());
    }
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    let raised = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: the kernel reads one `rlimit` and writes none.
    if unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &raw const raised, ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The soft limit in `/proc/PID/limits` (proc(5)); `None` when there is none.
fn file_size_limit_in(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max file size"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Sends SIGKILL. A process that is gone is fine.
pub(super) fn kill(pidfd: &OwnedFd) -> io::Result<()> {
    let none = ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means the same as kill(2).
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, none, 0)
    };
    match sent {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read};

    use nix::{
        sys::{
            resource::Resource,
            wait::{WaitStatus, waitpid},
        },
        unistd::Pid,
    };

    use super::*;

    #[tokio::test]
    async fn a_write_beyond_the_limit_of_a_files_size_fails_and_does_not_kill() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("file"), dir.path().join("log"));
        let mut output = OsString::from("of=");
        output.push(&file);
        let launch = Launch {
            program: Path::new("/bin/dd"),
            args: vec!["if=/dev/zero".into(), output, "bs=4096".into(), "count=100".into()],
            files: Vec::new(),
            log: File::create(&log).unwrap().into(),
            uid: None,
            groups: Vec::new(),
            limits: vec![Limit { resource: Resource::RLIMIT_FSIZE, value: 40_960 }],
        };
        let child = Blocked::fork(launch).unwrap();
        let pid = Pid::from_raw(i32::try_from(child.pid).unwrap());
        child.release().await.unwrap();
        let ended = tokio::task::spawn_blocking(move || waitpid(pid, None)).await.unwrap();
        let mut said = String::new();
        File::open(&log).unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(ended, Ok(WaitStatus::Exited(pid, 1)), "{said}");
        assert_eq!(file.metadata().unwrap().len(), 40_960);
    }
}
