//! Starting a program without copying the agent first.
//!
//! The child borrows the agent's memory (`clone3` with `CLONE_VM` and `CLONE_VFORK`), on a stack of its
//! own, until it has become the program: no page table is copied, no page is copied on write
//! afterwards, and why a start failed is simply left in a variable. It begins its life in the control
//! group it belongs to (`CLONE_INTO_CGROUP`): moving a process there later waits for every CPU to have
//! passed through a quiet state, which takes longer than everything else together.
//!
//! Until then the child may only make plain system calls: it shares every lock and the heap with the
//! agent's other threads, which go on meanwhile. No wrapper of the C library that knows about threads
//! is called; its `setuid`, for one, would change the ids of all threads of the agent.

use std::{
    ffi::{CStr, CString, c_char, c_int},
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    ptr,
    sync::atomic::{AtomicI32, AtomicU8, Ordering},
};

use nix::{
    errno::Errno,
    libc,
    sys::signal::{SigSet, SigmaskHow, pthread_sigmask},
    unistd::Pid,
};

use crate::signals::IgnoredSignals;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("guests are x86-64 machines: the agent starts programs by its system calls");

/// The child calls a handful of functions of ours. Builds without optimisation need the most.
const STACK_BYTES: usize = 64 * 1024;
const STACK_ALIGNMENT: usize = 16;
const SHELL: &CStr = c"/bin/sh";
/// `linux/sched.h`; it does not fit the C integer that the other flags are.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A program to start, with everything allocated beforehand.
pub(crate) struct Launch<'a> {
    /// Where it is: absolute.
    pub(crate) program: CString,
    /// Its arguments, itself first.
    pub(crate) argv: Vec<CString>,
    /// `NAME=value` each.
    pub(crate) env: Vec<CString>,
    /// Standard input, output and error.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// Whether the first of them is the terminal to be in control of it.
    pub(crate) has_terminal: bool,
    /// Whom it runs as: uid, gid and groups; as the agent if missing.
    pub(crate) ids: Option<(u32, u32, Vec<u32>)>,
    /// Where it starts.
    pub(crate) working_dir: CString,
    /// The directory of the control group it runs in; the agent's own if missing.
    pub(crate) cgroup: Option<&'a OwnedFd>,
    /// What the agent ignores and it must not.
    pub(crate) ignored_signals: &'a IgnoredSignals,
    /// How much it matters.
    pub(crate) importance: Importance,
}

/// How much a program matters beside others in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Importance {
    /// Somebody waits for it.
    Normal,
    /// It gets what others leave of the processors.
    Background,
}

/// Why a program did not start.
#[derive(Debug)]
pub(crate) enum LaunchError {
    /// The user may not go to the working directory.
    WorkingDir(io::Error),
    /// Anything else.
    Program(io::Error),
}

impl Launch<'_> {
    /// Starts it as the leader of its own session. The calling thread waits until it runs. `pid` is
    /// set before the child executes its first instruction, and stays set if it then fails: whoever
    /// reaps it can tell whose child it was.
    pub(crate) fn start(&self, pid: &AtomicI32) -> Result<Pid, LaunchError> {
        let argv = pointers(&self.argv);
        // What the C library does with a script that names no interpreter.
        let mut script_argv = vec![SHELL.as_ptr(), self.program.as_ptr()];
        script_argv.extend(argv.iter().skip(1));
        let env = pointers(&self.env);
        let child = Child {
            program: self.program.as_ptr(),
            argv: argv.as_ptr(),
            script_argv: script_argv.as_ptr(),
            env: env.as_ptr(),
            stdio: self.stdio.map(|fd| fd.as_raw_fd()),
            has_terminal: self.has_terminal,
            ids: self.ids.as_ref(),
            working_dir: self.working_dir.as_ptr(),
            ignored_signals: self.ignored_signals.as_slice(),
            importance: self.importance,
            error: AtomicI32::new(0),
            stage: AtomicU8::new(Stage::Other as u8),
        };
        let outcome = without_signals(|| self.clone_child(&child, pid)).map_err(program)?;
        match child.error.load(Ordering::Acquire) {
            0 => Ok(outcome),
            errno => {
                let error = io::Error::from_raw_os_error(errno);
                if child.stage.load(Ordering::Acquire) == Stage::WorkingDir as u8 {
                    Err(LaunchError::WorkingDir(error))
                } else {
                    Err(LaunchError::Program(error))
                }
            }
        }
    }

    fn clone_child(&self, child: &Child<'_>, pid: &AtomicI32) -> nix::Result<Pid> {
        let mut stack = Box::<[MaybeUninit<u8>]>::new_uninit_slice(STACK_BYTES);
        let stack = stack.as_mut_ptr() as usize;
        let top = (stack + STACK_BYTES) & !(STACK_ALIGNMENT - 1);
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT_SETTID;
        // SAFETY: all zeroes is a valid `clone_args`.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = flags as u64;
        args.exit_signal = libc::SIGCHLD as u64;
        args.stack = stack as u64;
        args.stack_size = (top - stack) as u64;
        args.parent_tid = pid.as_ptr() as u64;
        let clone3 = |args: &libc::clone_args| {
            // SAFETY: the arguments describe a stack and a number that outlive the call, which
            // returns once the child does not use our memory any more.
            unsafe {
                clone_and_run(
                    [
                        libc::SYS_clone3 as usize,
                        ptr::from_ref(args) as usize,
                        size_of::<libc::clone_args>(),
                        0,
                    ],
                    child,
                )
            }
        };
        if let Some(cgroup) = self.cgroup {
            let mut args = args;
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
            match clone3(&args) {
                // Whatever the tenant has done to the group, its commands run.
                Err(errno) if errno != Errno::EAGAIN && errno != Errno::ENOMEM => {}
                outcome => return outcome,
            }
        }
        match clone3(&args) {
            // Container run-times like to hide `clone3`, whose arguments they cannot inspect.
            Err(Errno::ENOSYS) => {
                let flags = flags | libc::SIGCHLD;
                // SAFETY: as above.
                unsafe {
                    clone_and_run(
                        [libc::SYS_clone as usize, flags as usize, top, pid.as_ptr() as usize],
                        child,
                    )
                }
            }
            outcome => outcome,
        }
    }
}

fn program(errno: Errno) -> LaunchError {
    LaunchError::Program(errno.into())
}

/// `argv` or `envp` for `execve`; points into `words`.
fn pointers(words: &[CString]) -> Vec<*const c_char> {
    words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect()
}

/// Runs `start` while this thread takes no signal: a handler of ours must not run in the child, on
/// shared memory.
fn without_signals<T>(start: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let outcome = start();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    outcome
}

/// Makes the system call (its number and first three arguments), which must create a child on a stack
/// of its own; there the child runs [`run`] and never comes back. Returns in the parent.
///
/// # Safety
/// The call must be `clone3` or `clone` with `CLONE_VM`, `CLONE_VFORK` and a stack that is unused.
unsafe fn clone_and_run(call: [usize; 4], child: &Child<'_>) -> nix::Result<Pid> {
    let outcome: isize;
    // SAFETY: in the parent this is a plain system call. The child begins behind it with the same
    // registers and an empty, aligned stack: it leaves this function's frame alone and calls `run`
    // with its argument in the register the C calling convention names.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") call[0] => outcome,
            in("rdi") call[1],
            in("rsi") call[2],
            in("rdx") call[3],
            // The child's thread id and thread pointer, for `clone` only: neither is asked for.
            in("r10") 0,
            in("r8") 0,
            in("r12") ptr::from_ref(child).cast::<Child<'static>>(),
            in("r13") run as extern "C" fn(*const Child<'static>) -> !,
            out("rcx") _,
            out("r11") _,
        );
    }
    let outcome = i32::try_from(outcome).map_err(|_| Errno::ERANGE)?;
    if outcome < 0 { Err(Errno::from_raw(-outcome)) } else { Ok(Pid::from_raw(outcome)) }
}

/// How far the child is.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Stage {
    Other = 0,
    WorkingDir = 1,
}

/// What the child needs, in the agent's memory.
struct Child<'a> {
    program: *const c_char,
    argv: *const *const c_char,
    script_argv: *const *const c_char,
    env: *const *const c_char,
    stdio: [c_int; 3],
    has_terminal: bool,
    ids: Option<&'a (u32, u32, Vec<u32>)>,
    working_dir: *const c_char,
    ignored_signals: &'a [c_int],
    importance: Importance,
    /// Why it has failed; 0 as long as it has not.
    error: AtomicI32,
    stage: AtomicU8,
}

/// What the child does.
extern "C" fn run(child: *const Child<'static>) -> ! {
    // SAFETY: the agent keeps it for as long as this child uses it.
    let child = unsafe { &*child };
    let errno = match child.become_program() {
        Ok(()) => libc::EIO,
        Err(errno) => errno as c_int,
    };
    child.error.store(errno, Ordering::Release);
    // SAFETY: ends this process alone: it shares memory with the agent, not its threads.
    unsafe { libc::_exit(127) }
}

impl Child<'_> {
    /// Returns only on failure.
    fn become_program(&self) -> nix::Result<()> {
        // SAFETY: plain system calls; every pointer leads to memory that the agent keeps until this
        // child has become a program or ended.
        unsafe {
            for (number, fd) in (0..).zip(self.stdio) {
                // Ours are above 2 and close themselves when the program starts; its own do not.
                check(libc::dup2(fd, number))?;
            }
            check(libc::setsid())?;
            if self.has_terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
            libc::umask(0o022);
            for signal in self.ignored_signals {
                libc::signal(*signal, libc::SIG_DFL);
            }
            match self.importance {
                Importance::Normal => {}
                // A kernel that cannot do that runs it all the same.
                Importance::Background => {
                    let parameters = libc::sched_param { sched_priority: 0 };
                    libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters);
                }
            }
            if let Some((uid, gid, groups)) = self.ids {
                check_long(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
                check_long(libc::syscall(libc::SYS_setgid, *gid))?;
                check_long(libc::syscall(libc::SYS_setuid, *uid))?;
            }
            self.stage.store(Stage::WorkingDir as u8, Ordering::Release);
            // As the user, who may not be allowed there.
            check(libc::chdir(self.working_dir))?;
            self.stage.store(Stage::Other as u8, Ordering::Release);
            let none = SigSet::empty();
            check(libc::sigprocmask(libc::SIG_SETMASK, none.as_ref(), ptr::null_mut()))?;
            libc::execve(self.program, self.argv, self.env);
            if Errno::last() == Errno::ENOEXEC {
                libc::execve(SHELL.as_ptr(), self.script_argv, self.env);
            }
        }
        Err(Errno::last())
    }
}

fn check(outcome: c_int) -> nix::Result<()> {
    Errno::result(outcome).map(drop)
}

fn check_long(outcome: libc::c_long) -> nix::Result<()> {
    Errno::result(outcome).map(drop)
}
