//! A log file with a limit, for what a guest writes to its console.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Written where older lines were dropped.
const CUT_MARK: &[u8] = b"[older output dropped]\n";

/// Appends to a file and keeps it below a limit by dropping its older half.
#[derive(Debug)]
pub(crate) struct ConsoleLog {
    file: File,
    limit_bytes: u64,
}

impl ConsoleLog {
    /// Opens the file for appending, making it (mode 0600) if it is not there.
    pub(crate) fn open(path: &Path, limit_bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path)?;
        Ok(Self { file, limit_bytes })
    }

    /// Appends `bytes`. Blocks for as long as the disk does.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        if length.saturating_add(bytes.len() as u64) > self.limit_bytes {
            self.cut(length)?;
        }
        // More than a whole log at once: only its end can stay.
        let room = usize::try_from(self.limit_bytes / 2).unwrap_or(usize::MAX);
        let kept = &bytes[bytes.len().saturating_sub(room.saturating_sub(CUT_MARK.len()))..];
        self.file.write_all(kept)
    }

    /// Keeps the newest whole lines, less than half of the limit. In place, not by renaming: readers
    /// follow the file they have open.
    fn cut(&mut self, length: u64) -> io::Result<()> {
        let keep = (self.limit_bytes / 2).saturating_sub(CUT_MARK.len() as u64).min(length);
        let mut tail = Vec::new();
        self.file.seek(SeekFrom::Start(length - keep))?;
        (&mut self.file).take(keep).read_to_end(&mut tail)?;
        let first_whole_line = tail.iter().position(|&b| b == b'\n').map_or(0, |at| at + 1);
        self.file.set_len(0)?;
        self.file.write_all(CUT_MARK)?;
        self.file.write_all(&tail[first_whole_line..])
    }
}

/// Moves everything from `reader` into `log` until it ends. Each piece is shown to `watch` first.
///
/// Reading goes on when the disk refuses: whoever writes on the other side must never have to wait.
pub(crate) async fn drain(
    mut reader: impl AsyncRead + Unpin,
    log: ConsoleLog,
    mut watch: impl FnMut(&[u8]),
) {
    let mut log = Some(log);
    let mut buffer = vec![0_u8; 16 * 1024];
    loop {
        let count = match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        watch(&buffer[..count]);
        let Some(mut open_log) = log.take() else { continue };
        let piece = buffer[..count].to_vec();
        let written =
            tokio::task::spawn_blocking(move || open_log.append(&piece).map(|()| open_log));
        match written.await {
            Ok(Ok(open_log)) => log = Some(open_log),
            Ok(Err(error)) => tracing::warn!(%error, "log file not writable; output is dropped"),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_stay_and_the_limit_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = ConsoleLog::open(&path, 4096).unwrap();
        for n in 0..1000 {
            log.append(format!("line {n}\n").as_bytes()).unwrap();
            assert!(std::fs::metadata(&path).unwrap().len() <= 4096);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("[older output dropped]\nline "), "{text}");
        assert!(text.ends_with("line 998\nline 999\n"), "{text}");
    }

    #[test]
    fn a_later_opening_continues_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        ConsoleLog::open(&path, 4096).unwrap().append(b"first\n").unwrap();
        ConsoleLog::open(&path, 4096).unwrap().append(b"second\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "first\nsecond\n");
    }

    #[test]
    fn one_write_beyond_the_limit_keeps_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = ConsoleLog::open(&path, 4096).unwrap();
        log.append(&[b'x'; 10_000]).unwrap();
        log.append(b"end").unwrap();
        let written = std::fs::read(&path).unwrap();
        assert!(written.len() <= 4096 && written.ends_with(b"xend"));
    }
}
