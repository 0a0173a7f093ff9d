//! Name, machine id, clock and randomness of the machine.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use nix::{
    errno::Errno,
    libc,
    mount::{MsFlags, mount},
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
    unistd::sethostname,
};
use skerry_agent_protocol::limits::ENTROPY_MAX;

use crate::{AgentError, files::about};

const URANDOM: &str = "/dev/urandom";

/// `struct rand_pool_info` of `linux/random.h`, with room for the most entropy a host may send.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    length_bytes: libc::c_int,
    bytes: [u8; ENTROPY_MAX],
}

// The kernel defines this number by the structure's two integers alone.
nix::ioctl_write_ptr_bad!(
    add_entropy,
    nix::request_code_write!(b'R', 0x03, 2 * size_of::<libc::c_int>()),
    PoolInfo
);
nix::ioctl_none!(reseed_generator, b'R', 0x07);

/// Mixes the host's bytes into the kernel's pool, counts them, and makes the generator start over
/// from the pool, so that two guests of one snapshot part ways and early readers do not block.
pub(crate) fn reseed(entropy: &[u8]) -> Result<(), AgentError> {
    let failed = about(Path::new(URANDOM));
    let mut urandom = File::options().write(true).open(URANDOM).map_err(&failed)?;
    urandom.write_all(entropy).map_err(&failed)?;
    let mut pool = PoolInfo { entropy_bits: 0, length_bytes: 0, bytes: [0; ENTROPY_MAX] };
    let length = entropy.len().min(ENTROPY_MAX);
    pool.bytes[..length].copy_from_slice(&entropy[..length]);
    pool.length_bytes = i32::try_from(length).unwrap_or(0);
    pool.entropy_bits = pool.length_bytes * 8;
    // SAFETY: the descriptor is open; the kernel reads `length_bytes` bytes, which are there.
    unsafe { add_entropy(urandom.as_raw_fd(), &raw const pool) }
        .map_err(|errno| failed(errno.into()))?;
    // SAFETY: no argument.
    match unsafe { reseed_generator(urandom.as_raw_fd()) } {
        // ENODATA: the generator was never seeded, so there is nothing to start over.
        Ok(_) | Err(Errno::ENODATA) => Ok(()),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// A clock that is off by less is left alone: what the host says was true a moment ago, and a clock
/// that steps back at every reconnection would be worse than one that is a little off.
const CLOCK_TOLERANCE_NS: i64 = 5_000_000;

/// Sets the wall clock to `unix_time_ns`.
pub(crate) fn set_clock(unix_time_ns: i64) -> Result<(), AgentError> {
    let now = ClockId::CLOCK_REALTIME.now();
    if now.is_ok_and(|now| is_close(now, unix_time_ns)) {
        return Ok(());
    }
    let seconds = unix_time_ns.div_euclid(1_000_000_000);
    let nanoseconds = unix_time_ns.rem_euclid(1_000_000_000);
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, nanoseconds))
        .map_err(|errno| AgentError::from_io("the clock", &errno.into()))
}

/// What a clock that is right may be ahead of what it is told: as long as telling it may take.
const TOLD_WITHIN_NS: i64 = 30_000_000_000;

/// Whether the wall clock of a machine that is only connected anew can be right. What it is told was
/// true when it was said, so a clock that stood still is behind that; and on a host where everybody is
/// connected anew at once, it was said a while ago.
pub(crate) fn clock_goes_on(unix_time_ns: i64) -> bool {
    ClockId::CLOCK_REALTIME.now().is_ok_and(|now| is_told_late(now, unix_time_ns))
}

fn is_told_late(now: TimeSpec, unix_time_ns: i64) -> bool {
    let ahead_ns = nanoseconds(now).saturating_sub(unix_time_ns);
    (0..TOLD_WITHIN_NS).contains(&ahead_ns)
}

fn nanoseconds(time: TimeSpec) -> i64 {
    time.tv_sec().saturating_mul(1_000_000_000).saturating_add(time.tv_nsec())
}

fn is_close(now: TimeSpec, unix_time_ns: i64) -> bool {
    nanoseconds(now).abs_diff(unix_time_ns) < CLOCK_TOLERANCE_NS.unsigned_abs()
}

/// Sets the host name and the files that repeat it.
pub(crate) fn set_hostname(hostname: &str) -> Result<(), AgentError> {
    sethostname(hostname).map_err(|errno| AgentError::from_io("the host name", &errno.into()))?;
    rewrite(Path::new("/etc/hostname"), |_| format!("{hostname}\n"))?;
    rewrite(Path::new("/etc/hosts"), |before| hosts_with(before, hostname))
}

/// `hosts` with our own name at 127.0.1.1 (Debian's place for it) and with localhost.
fn hosts_with(hosts: &str, hostname: &str) -> String {
    let mut lines: Vec<&str> =
        hosts.lines().filter(|line| line.split_whitespace().next() != Some("127.0.1.1")).collect();
    let names_localhost = |line: &&str| {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        words.next().is_some_and(|address| address == "127.0.0.1")
            && words.any(|name| name == "localhost")
    };
    if !lines.iter().any(names_localhost) {
        lines.insert(0, "127.0.0.1 localhost");
        lines.insert(1, "::1 localhost ip6-localhost ip6-loopback");
    }
    format!("{}\n127.0.1.1 {hostname}\n", lines.join("\n"))
}

const MACHINE_ID: &str = "/etc/machine-id";
/// More than this of a file that we keep is somebody else's doing.
const FILE_MAX: u64 = 1024 * 1024;

/// The machine id in its file; empty when there is none.
pub(crate) fn machine_id() -> Result<String, AgentError> {
    match fs::read_to_string(MACHINE_ID) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        // Not text, so nobody's id.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(String::new()),
        Err(error) => Err(about(Path::new(MACHINE_ID))(error)),
    }
}

/// Sets the machine id: 32 hexadecimal digits, or none. An empty file is what machine-id(5) has for
/// systems that are yet to be cloned.
pub(crate) fn set_machine_id(machine_id: &str) -> Result<(), AgentError> {
    rewrite(Path::new(MACHINE_ID), |_| match machine_id {
        "" => String::new(),
        machine_id => format!("{machine_id}\n"),
    })
}

/// Where programs read which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The kernel's source of random identifiers in the same form.
const FRESH_ID: &str = "/proc/sys/kernel/random/uuid";
/// What a clone shows instead of the kernel's.
const OWN_BOOT_ID: &str = "/run/boot-id";

/// Which boot this is; empty when nobody can say.
pub(crate) fn boot_id() -> String {
    fs::read_to_string(BOOT_ID).map_or_else(|_| String::new(), |text| text.trim().to_owned())
}

/// Gives the machine another boot id. A clone has not booted: the kernel has the id of the machine it was
/// saved of, for as long as it runs, and so have all its other clones. To be called after [`reseed`].
pub(crate) fn renew_boot_id() -> Result<(), AgentError> {
    let failed = about(Path::new(BOOT_ID));
    let fresh = fs::read_to_string(FRESH_ID).map_err(&failed)?;
    rewrite(Path::new(OWN_BOOT_ID), |_| fresh)?;
    let (shown, own) = (fs::metadata(BOOT_ID), fs::metadata(OWN_BOOT_ID));
    let (shown, own) = (shown.map_err(&failed)?, own.map_err(&failed)?);
    if (shown.dev(), shown.ino()) == (own.dev(), own.ino()) {
        return Ok(());
    }
    mount(Some(OWN_BOOT_ID), BOOT_ID, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| failed(errno.into()))
}

/// Gives the file the content that `change` makes of its present one, and leaves it alone if that is
/// the same. It is written in place, not replaced by a new one, because a clone's first command waits
/// for it; and not synced, because the next start writes it again.
fn rewrite(path: &Path, change: impl FnOnce(&str) -> String) -> Result<(), AgentError> {
    let failed = about(path);
    let mut file = open_plain(path).map_err(&failed)?;
    let mut before = Vec::new();
    (&mut file).take(FILE_MAX).read_to_end(&mut before).map_err(&failed)?;
    let after = change(&String::from_utf8_lossy(&before));
    if before == after.as_bytes() {
        return Ok(());
    }
    file.write_all_at(after.as_bytes(), 0).map_err(&failed)?;
    if after.len() < before.len() {
        file.set_len(after.len() as u64).map_err(&failed)?;
    }
    Ok(())
}

/// Opens the file for reading and writing. If it is missing, or a link, or has other names, it is made
/// anew: what we write is meant for this name alone.
fn open_plain(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).mode(0o644).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    match options.open(path) {
        Ok(file) => {
            let metadata = file.metadata()?;
            if metadata.is_file() && metadata.nlink() == 1 {
                return Ok(file);
            }
            fs::remove_file(path)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir)?;
            }
        }
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => fs::remove_file(path)?,
        Err(error) => return Err(error),
    }
    options.create_new(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_keeps_the_users_lines_and_changes_only_our_own() {
        let first = hosts_with("10.0.0.1 db\n", "one");
        assert_eq!(
            first,
            "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n10.0.0.1 db\n127.0.1.1 one\n"
        );
        let second = hosts_with(&first, "two");
        assert_eq!(second, first.replace("one", "two"));
        assert_eq!(hosts_with(&second, "two"), second);
    }

    #[test]
    fn a_clock_that_is_right_is_left_alone() {
        let now = TimeSpec::new(1_900_000_000, 999_999_999);
        let now_ns = 1_900_000_000_999_999_999;
        assert!(is_close(now, now_ns) && is_close(now, now_ns + 4_999_999));
        assert!(!is_close(now, now_ns - 5_000_000) && !is_close(now, i64::MIN));
    }

    #[test]
    fn a_clock_that_is_told_late_goes_on_and_one_that_stood_still_does_not() {
        let now = TimeSpec::new(1_900_000_000, 500);
        let now_ns = 1_900_000_000_000_000_500;
        assert!(is_told_late(now, now_ns) && is_told_late(now, now_ns - 29_999_999_999));
        assert!(!is_told_late(now, now_ns + 1) && !is_told_late(now, now_ns - 30_000_000_000));
        assert!(!is_told_late(now, i64::MIN) && !is_told_late(now, i64::MAX));
    }

    #[test]
    fn a_file_is_rewritten_in_place_and_only_if_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/file");
        rewrite(&path, |before| format!("{before}long content")).unwrap();
        let made = fs::metadata(&path).unwrap();
        assert_eq!(made.mode() & 0o777 & !0o022, 0o644);
        rewrite(&path, |before| before.replace("long ", "")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "content");
        assert_eq!(fs::metadata(&path).unwrap().ino(), made.ino());
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
        rewrite(&path, str::to_owned).unwrap();
        rewrite(&path, |_| String::new()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn what_a_file_is_linked_with_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other");
        let path = dir.path().join("file");
        fs::write(&other, "precious").unwrap();
        for link in [|to, at| std::os::unix::fs::symlink(to, at), |to, at| fs::hard_link(to, at)] {
            let _ = fs::remove_file(&path);
            link(&other, &path).unwrap();
            rewrite(&path, |_| String::from("ours")).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "ours");
            assert_eq!(fs::read_to_string(&other).unwrap(), "precious");
        }
    }
}
