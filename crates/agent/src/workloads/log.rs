//! What a workload says, in two files that take turns: when the newer one has half of what may be kept,
//! it becomes the older one. A line in them is
//!
//! ```text
//! <milliseconds since 1970> <o, e or s> <text>
//! ```
//!
//! A position counts the bytes that were ever written; it stays good while files take turns.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::{libc, time::ClockId};
use skerry_agent_protocol::{
    limits::{LOG_LINE_MAX, LOG_LINES_MAX},
    workload::{LogLine, LogLines, Stream},
};
use tokio::sync::watch;

/// What one answer looks at.
const READ_MAX: u64 = 512 * 1024;
/// What the texts of one answer may take as JSON, whatever has to be escaped in them.
const TEXT_MAX: usize = 768 * 1024;
/// What a line costs in JSON beside its text.
const LINE_OVERHEAD: usize = 80;
const NEWER: &str = "log";
const OLDER: &str = "log.1";

/// Milliseconds since 1970.
pub(super) fn now_unix_ms() -> i64 {
    ClockId::CLOCK_REALTIME
        .now()
        .map_or(0, |now| now.tv_sec().saturating_mul(1000) + now.tv_nsec() / 1_000_000)
}

/// A workload's output.
#[derive(Debug)]
pub(super) struct Log {
    dir: PathBuf,
    files: Mutex<Files>,
    /// How much was ever written.
    written: watch::Sender<u64>,
}

#[derive(Debug)]
struct Files {
    newer: Option<File>,
    /// Where each file begins, as a position.
    older_at: u64,
    newer_at: u64,
    end: u64,
    limit_bytes: u64,
}

impl Log {
    /// Opens what is in `dir`, or begins anew if nothing of before is to be kept. Blocks.
    pub(super) fn open(dir: PathBuf, limit_bytes: u64, keeps: bool) -> Self {
        if !keeps {
            remove_both(&dir);
        }
        let size = |name: &str| fs::symlink_metadata(dir.join(name)).map_or(0, |found| found.len());
        let (older, newer) = (size(OLDER), size(NEWER));
        let end = older + newer;
        let files = Files { newer: None, older_at: 0, newer_at: older, end, limit_bytes };
        Self { dir, files: Mutex::new(files), written: watch::Sender::new(end) }
    }

    /// Completes when something was written after `position`.
    pub(super) async fn grown_past(&self, position: u64) {
        let mut written = self.written.subscribe();
        // The sender is ours.
        let _ = written.wait_for(|end| *end != position).await;
    }

    pub(super) fn set_limit(&self, limit_bytes: u64) {
        self.files().limit_bytes = limit_bytes;
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds lines. Blocks, for as long as the file system is frozen.
    ///
    /// # Errors
    /// What the file system says; the lines are lost then.
    pub(super) fn append(&self, lines: &[(Stream, Vec<u8>)]) -> io::Result<()> {
        let mut files = self.files();
        let at = now_unix_ms();
        for (stream, text) in lines {
            let word = match stream {
                Stream::Stdout => 'o',
                Stream::Stderr => 'e',
                Stream::Supervisor => 's',
            };
            let mut record = format!("{at} {word} ").into_bytes();
            record.extend(text.iter().take(LOG_LINE_MAX).map(|byte| match byte {
                b'\n' => b' ',
                other => *other,
            }));
            record.push(b'\n');
            files.append(&self.dir, &record)?;
        }
        let end = files.end;
        drop(files);
        self.written.send_replace(end);
        Ok(())
    }

    /// Forgets everything. Positions go on.
    pub(super) fn clear(&self) {
        let mut files = self.files();
        files.newer = None;
        remove_both(&self.dir);
        files.older_at = files.end;
        files.newer_at = files.end;
    }

    /// The last lines. Blocks.
    pub(super) fn tail(&self, lines: u32) -> LogLines {
        let files = self.files();
        let from = files.end.saturating_sub(READ_MAX).max(files.older_at);
        let bytes = files.read(&self.dir, from);
        let (position, is_cut) = (files.end, from > files.older_at);
        drop(files);
        // A line that begins before what was read is not whole.
        let whole = if is_cut { after_first_line(&bytes) } else { &bytes[..] };
        let wanted = usize::try_from(lines.min(LOG_LINES_MAX)).unwrap_or(usize::MAX);
        let mut budget = TEXT_MAX;
        let mut found: Vec<LogLine> = whole
            .split(|byte| *byte == b'\n')
            .rev()
            .filter_map(parse)
            .take(wanted)
            .take_while(|line| spend(&mut budget, line))
            .collect();
        found.reverse();
        LogLines { lines: found, position, has_more: false }
    }

    /// What comes after a position. Blocks.
    pub(super) fn after(&self, position: u64) -> LogLines {
        let files = self.files();
        // What is gone is skipped; a position of another life of the log is its end.
        let from = position.clamp(files.older_at, files.end);
        let bytes = files.read(&self.dir, from);
        let end = files.end;
        drop(files);
        let mut lines = Vec::new();
        let mut used = 0_usize;
        let mut budget = TEXT_MAX;
        for record in bytes.split_inclusive(|byte| *byte == b'\n') {
            if record.last() != Some(&b'\n') || lines.len() >= LOG_LINES_MAX as usize {
                break;
            }
            if let Some(line) = parse(&record[..record.len() - 1]) {
                if !spend(&mut budget, &line) {
                    break;
                }
                lines.push(line);
            }
            used += record.len();
        }
        if used == 0 {
            // Nothing, or what somebody inside has made unreadable.
            return LogLines { lines, position: end, has_more: false };
        }
        let position = from + used as u64;
        LogLines { lines, position, has_more: position < end }
    }
}

impl Files {
    fn append(&mut self, dir: &Path, record: &[u8]) -> io::Result<()> {
        let size = record.len() as u64;
        if self.end - self.newer_at + size > self.limit_bytes / 2 && self.end > self.newer_at {
            self.newer = None;
            match fs::rename(dir.join(NEWER), dir.join(OLDER)) {
                Ok(()) => {}
                // Somebody inside has removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            (self.older_at, self.newer_at) = (self.newer_at, self.end);
        }
        let file = match &mut self.newer {
            Some(file) => file,
            None => self.newer.insert(open(dir)?),
        };
        file.write_all(record)?;
        self.end += size;
        Ok(())
    }

    /// At most [`READ_MAX`] bytes from a position; what cannot be read is not there.
    fn read(&self, dir: &Path, from: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        if from < self.newer_at {
            read_into(&mut bytes, &dir.join(OLDER), from - self.older_at);
        }
        read_into(&mut bytes, &dir.join(NEWER), from.saturating_sub(self.newer_at));
        bytes
    }
}

fn read_into(bytes: &mut Vec<u8>, path: &Path, offset: u64) {
    let room = READ_MAX.saturating_sub(bytes.len() as u64);
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
    let Ok(mut file) = opened else { return };
    if file.seek(SeekFrom::Start(offset)).is_ok() {
        // What was read until an error is as good as what comes before the end.
        let _ = file.take(room).read_to_end(bytes);
    }
}

fn open(dir: &Path) -> io::Result<File> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(dir.join(NEWER))
}

fn remove_both(dir: &Path) {
    for name in [NEWER, OLDER] {
        // Not there, mostly.
        let _ = fs::remove_file(dir.join(name));
    }
}

fn after_first_line(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    end.map_or(&[], |end| &bytes[end + 1..])
}

/// Whether the line still fits into an answer.
fn spend(budget: &mut usize, line: &LogLine) -> bool {
    let escaped = serde_json::to_string(&line.text).map_or(usize::MAX, |text| text.len());
    match budget.checked_sub(escaped.saturating_add(LINE_OVERHEAD)) {
        Some(left) => {
            *budget = left;
            true
        }
        None => false,
    }
}

fn parse(record: &[u8]) -> Option<LogLine> {
    let mut parts = record.splitn(3, |byte| *byte == b' ');
    let unix_ms = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let stream = match parts.next()? {
        b"o" => Stream::Stdout,
        b"e" => Stream::Stderr,
        b"s" => Stream::Supervisor,
        _ => return None,
    };
    Some(LogLine { unix_ms, stream, text: String::from_utf8_lossy(parts.next()?).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(log: &Log, texts: &[&str]) {
        let lines: Vec<_> =
            texts.iter().map(|text| (Stream::Stdout, text.as_bytes().to_vec())).collect();
        log.append(&lines).unwrap();
    }

    fn texts(lines: &LogLines) -> Vec<&str> {
        lines.lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn the_end_of_a_log_is_what_was_said_last_and_positions_lead_on_from_there() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path().join("one"), 1 << 20, true);
        assert_eq!(texts(&log.tail(10)), Vec::<&str>::new());
        lines(&log, &["one", "two words", "three"]);
        let tail = log.tail(2);
        assert_eq!(texts(&tail), ["two words", "three"]);
        lines(&log, &["four\nfive"]);
        let more = log.after(tail.position);
        assert_eq!((texts(&more), more.has_more), (vec!["four five"], false));
        assert_eq!(texts(&log.after(0)).len(), 4);
    }

    #[test]
    fn a_log_keeps_at_most_what_it_may_and_the_newest_half_of_that() {
        let dir = tempfile::tempdir().unwrap();
        let limit = 16 * 1024;
        let log = Log::open(dir.path().join("one"), limit, true);
        for number in 0..2000 {
            lines(&log, &[&format!("line number {number}")]);
        }
        let size: u64 = fs::read_dir(dir.path().join("one"))
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        assert!((limit / 2..=limit).contains(&size), "{size}");
        let tail = log.tail(3);
        assert_eq!(texts(&tail), ["line number 1997", "line number 1998", "line number 1999"]);
        // Who asks for what is gone gets what is left, to the end, without a gap.
        let (mut position, mut all) = (0, Vec::new());
        loop {
            let part = log.after(position);
            all.extend(texts(&part).into_iter().map(str::to_owned));
            position = part.position;
            if !part.has_more {
                break;
            }
        }
        let first: usize = all[0].rsplit_once(' ').unwrap().1.parse().unwrap();
        let expected: Vec<String> = (first..2000).map(|n| format!("line number {n}")).collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn a_log_that_is_kept_is_there_after_it_was_opened_again_and_another_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one");
        lines(&Log::open(path.clone(), 1 << 20, true), &["before"]);
        let kept = Log::open(path.clone(), 1 << 20, true);
        lines(&kept, &["after"]);
        assert_eq!(texts(&kept.tail(9)), ["before", "after"]);
        let emptied = Log::open(path, 1 << 20, false);
        lines(&emptied, &["anew"]);
        assert_eq!(texts(&emptied.tail(9)), ["anew"]);
    }

    #[test]
    fn what_was_cleared_is_gone_and_a_reader_goes_on_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path().join("one"), 1 << 20, true);
        lines(&log, &["secret"]);
        let position = log.tail(1).position;
        log.clear();
        assert_eq!(texts(&log.tail(9)), Vec::<&str>::new());
        lines(&log, &["fresh"]);
        assert_eq!(texts(&log.after(position)), ["fresh"]);
        assert_eq!(texts(&log.after(0)), ["fresh"]);
    }

    #[test]
    fn an_answer_of_lines_that_are_all_escapes_is_bounded_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path().join("one"), 64 << 20, true);
        let nasty = "\u{1}".repeat(LOG_LINE_MAX);
        for _ in 0..50 {
            lines(&log, &[&nasty]);
        }
        let (mut position, mut seen) = (0, 0);
        loop {
            let part = log.after(position);
            assert!(serde_json::to_vec(&part).unwrap().len() < 1024 * 1024);
            seen += part.lines.len();
            position = part.position;
            if !part.has_more {
                break;
            }
        }
        assert_eq!(seen, 50);
        assert!(serde_json::to_vec(&log.tail(10_000)).unwrap().len() < 1024 * 1024);
    }

    #[test]
    fn a_link_where_the_log_should_be_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("one"), dir.path().join("victim"));
        fs::create_dir(&path).unwrap();
        fs::write(&victim, "untouched").unwrap();
        std::os::unix::fs::symlink(&victim, path.join(NEWER)).unwrap();
        let log = Log::open(path, 1 << 20, true);
        assert!(log.append(&[(Stream::Stdout, b"x".to_vec())]).is_err());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    }
}
