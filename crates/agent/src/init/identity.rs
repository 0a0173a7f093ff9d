//! Name, machine id, clock and randomness of the machine.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::Path,
};

use nix::{
    errno::Errno,
    libc,
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

/// Sets the wall clock to `unix_time_ns`.
pub(crate) fn set_clock(unix_time_ns: i64) -> Result<(), AgentError> {
    let seconds = unix_time_ns.div_euclid(1_000_000_000);
    let nanoseconds = unix_time_ns.rem_euclid(1_000_000_000);
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, nanoseconds))
        .map_err(|errno| AgentError::from_io("the clock", &errno.into()))
}

/// Sets the host name and the files that repeat it.
pub(crate) fn set_hostname(hostname: &str) -> Result<(), AgentError> {
    sethostname(hostname).map_err(|errno| AgentError::from_io("the host name", &errno.into()))?;
    write_if_different(Path::new("/etc/hostname"), &format!("{hostname}\n"))?;
    let hosts = Path::new("/etc/hosts");
    let before = fs::read_to_string(hosts).unwrap_or_default();
    write_if_different(hosts, &hosts_with(&before, hostname))
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

/// Sets the machine id: 32 hexadecimal digits.
pub(crate) fn set_machine_id(machine_id: &str) -> Result<(), AgentError> {
    write_if_different(Path::new("/etc/machine-id"), &format!("{machine_id}\n"))
}

/// Replaces the file in one step, unless it holds `content` already.
fn write_if_different(path: &Path, content: &str) -> Result<(), AgentError> {
    let failed = about(path);
    match fs::read_to_string(path) {
        Ok(before) if before == content => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).map_err(&failed)?;
    let mut file = tempfile::Builder::new()
        .prefix(".skerry-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(dir)
        .map_err(&failed)?;
    file.write_all(content.as_bytes()).map_err(&failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
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
}
