//! Taking the machine down.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::{Pid, sync},
};

use super::console::log;
use crate::volumes;

/// What processes get between being asked and being killed.
const TERM_GRACE: Duration = Duration::from_secs(3);
/// How long the killed may take to go.
const KILL_GRACE: Duration = Duration::from_secs(1);
/// Between two looks whether somebody is left.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Ends all processes, makes the disk consistent and switches the machine off.
pub(super) fn shut_down() -> ! {
    end_all(Signal::SIGTERM, TERM_GRACE);
    end_all(Signal::SIGKILL, KILL_GRACE);
    sync();
    volumes::unmount_all();
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(errno) = mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>) {
        log(&format!("root stays writable: {errno}"));
        sync();
    }
    off()
}

/// Switches the machine off now.
pub(super) fn off() -> ! {
    // Neither returns when it works. A machine that cannot switch itself off restarts, which its
    // hypervisor is told to take for the end as well.
    for mode in [RebootMode::RB_POWER_OFF, RebootMode::RB_AUTOBOOT] {
        let Err(errno) = reboot(mode);
        log(&format!("{mode:?}: {errno}"));
    }
    // The end of PID 1 is the end of the machine in any case.
    std::process::exit(1)
}

/// Signals everybody but us and waits until nobody is left, for at most `within`.
fn end_all(signal: Signal, within: Duration) {
    let deadline = Instant::now() + within;
    // Fails only if there is nobody.
    let _ = kill(Pid::from_raw(-1), signal);
    // Every process is our child or a child's child; orphans come to us.
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while Instant::now() < deadline && waitid(Id::All, look) != Err(Errno::ECHILD) {
        thread::sleep(LOOK_EVERY);
    }
}
