//! What `/proc` says about this host and its processes (proc(5)).

use std::{fs, io, path::Path};

/// The id the kernel drew when it booted: a process id from another boot names nothing.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The two facts that tell whether a process id still means the same, living process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessStat {
    /// The kernel's letter for its state; `Z` and `X` are dead.
    pub(crate) state: u8,
    /// Clock ticks between the host's boot and the process's start (field 22).
    pub(crate) start_time_ticks: u64,
}

impl ProcessStat {
    /// Reads it. `Ok(None)` when there is no such process.
    pub(crate) fn read(pid: u32) -> io::Result<Option<Self>> {
        match fs::read(format!("/proc/{pid}/stat")) {
            Ok(text) => Self::parse(&text)
                .map(Some)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown stat format")),
            // ESRCH: it ended between open and read.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(nix::libc::ESRCH) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The process's name (field 2) may hold anything, so the fields are counted after its last `)`.
    fn parse(text: &[u8]) -> Option<Self> {
        let end_of_name = text.iter().rposition(|&b| b == b')')?;
        let rest = str::from_utf8(&text[end_of_name + 1..]).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        // `fields` now begins with field 4; field 22 is 18 further on.
        let start_time_ticks = fields.nth(18)?.parse().ok()?;
        Some(Self { state, start_time_ticks })
    }

    /// Whether it can still execute anything.
    pub(crate) fn is_alive(self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// The user with whose rights the process runs now.
pub(crate) fn effective_uid(pid: u32) -> io::Result<u32> {
    effective_uid_in(&fs::read_to_string(format!("/proc/{pid}/status"))?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown status format"))
}

fn effective_uid_in(status: &str) -> Option<u32> {
    // Real, effective, saved and file system user.
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    users.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Whether the process runs the same program as we do: a child of ours before its `exec`.
pub(crate) fn runs_our_program(pid: u32) -> bool {
    let theirs = fs::read_link(format!("/proc/{pid}/exe"));
    let ours = fs::read_link(Path::new("/proc/self/exe"));
    matches!((theirs, ours), (Ok(theirs), Ok(ours)) if theirs == ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_does_not_shift_the_fields() {
        let line = b"42 (a) b (c)) S 1 42 42 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 987654 1 1 1";
        let expected = ProcessStat { state: b'S', start_time_ticks: 987_654 };
        assert_eq!(ProcessStat::parse(line), Some(expected));
    }

    #[test]
    fn the_effective_user_is_the_second_of_four() {
        let status = "Name:\tUid: 7\nUmask:\t0022\nUid:\t1\t2\t3\t4\nGid:\t5\t5\t5\t5\n";
        assert_eq!(effective_uid_in(status), Some(2));
        let ours = nix::unistd::geteuid().as_raw();
        assert_eq!(effective_uid(std::process::id()).unwrap(), ours);
    }

    #[test]
    fn this_process_is_alive_and_runs_our_program() {
        let stat = ProcessStat::read(std::process::id()).unwrap().unwrap();
        assert!(stat.is_alive());
        assert!(runs_our_program(std::process::id()));
    }

    proptest::proptest! {
        #[test]
        fn no_input_makes_the_parser_panic(text: Vec<u8>) {
            let _ = ProcessStat::parse(&text);
        }
    }
}
