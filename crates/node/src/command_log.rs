//! The command log of a workspace: command lines run without a terminal, their output and their end,
//! as text. Written beside the command and never in its way: when the disk is slower than the output,
//! pieces are dropped and a line says so.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use skerry_internal_api::ExecExit;
use skerry_model::Timestamp;
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{error::blocking, logs::older};

/// Records waiting to be written. With pieces of at most 64 KiB this bounds memory to 4 MiB.
const QUEUE: usize = 64;
/// A command line is shortened to this many characters.
const MAX_COMMAND_CHARS: usize = 400;
/// How long the last records may take to be written when the VM goes.
const CLOSE_BOUND: Duration = Duration::from_secs(5);

/// Something to be written, of the command with this number.
#[derive(Debug)]
enum Record {
    Began { number: u64, at: Timestamp, command: String },
    Output { number: u64, bytes: Bytes },
    Ended { number: u64, exit: ExecExit, after: Duration },
    Lost { number: u64 },
}

/// Where commands are reported to. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct CommandLog {
    records: mpsc::Sender<Record>,
    next_number: Arc<AtomicU64>,
    dropped: Arc<AtomicU64>,
}

/// The task that writes.
#[derive(Debug)]
pub(crate) struct CommandLogWriter {
    task: JoinHandle<()>,
    stop: tokio_util::sync::CancellationToken,
}

/// One command's part of the log.
#[derive(Debug)]
pub(crate) struct CommandEntry {
    log: CommandLog,
    number: u64,
    began: Instant,
}

impl CommandLog {
    /// Starts writing to `path`. Each of its two files takes at most about `limit_bytes`.
    pub fn start(path: PathBuf, limit_bytes: u64) -> (Self, CommandLogWriter) {
        let (records, receiver) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let stop = tokio_util::sync::CancellationToken::new();
        let file = LogFile { path, limit_bytes, open: None, last: 0 };
        let task = tokio::spawn(write_all(receiver, file, Arc::clone(&dropped), stop.clone()));
        let log = Self { records, next_number: Arc::new(AtomicU64::new(1)), dropped };
        (log, CommandLogWriter { task, stop })
    }

    /// A command begins.
    pub fn begin(&self, argv: &[String], at: Timestamp) -> CommandEntry {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        self.report(Record::Began { number, at, command: command_line(argv) });
        CommandEntry { log: self.clone(), number, began: Instant::now() }
    }

    fn report(&self, record: Record) {
        if self.records.try_send(record).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl CommandEntry {
    /// It said something (standard output or error).
    pub fn output(&self, bytes: &Bytes) {
        self.log.report(Record::Output { number: self.number, bytes: bytes.clone() });
    }

    /// It ended.
    pub fn ended(&self, exit: ExecExit) {
        let after = self.began.elapsed();
        self.log.report(Record::Ended { number: self.number, exit, after });
    }

    /// Its end will never be known: the caller hung up or the guest is lost.
    pub fn lost(&self) {
        self.log.report(Record::Lost { number: self.number });
    }
}

impl CommandLogWriter {
    /// Writes what is queued and ends.
    pub async fn close(self) {
        self.stop.cancel();
        let mut task = self.task;
        if tokio::time::timeout(CLOSE_BOUND, &mut task).await.is_err() {
            tracing::warn!("the command log was not written within {CLOSE_BOUND:?}");
            task.abort();
        }
    }
}

async fn write_all(
    mut records: mpsc::Receiver<Record>,
    mut file: LogFile,
    dropped: Arc<AtomicU64>,
    stop: tokio_util::sync::CancellationToken,
) {
    let mut batch = Vec::with_capacity(QUEUE);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled(), if !records.is_closed() => {
                // What was sent before is still received, nothing new is.
                records.close();
                continue;
            }
            count = records.recv_many(&mut batch, QUEUE) => if count == 0 { return },
        }
        let mut text = Vec::new();
        for record in batch.drain(..) {
            file.render(record, &mut text);
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            text.extend(format!("[{lost} pieces were dropped here]\n").into_bytes());
        }
        let written = blocking(move || {
            if let Err(error) = file.append(&text) {
                // A full disk must not stop commands; the log has a gap.
                tracing::warn!(log = %file.path.display(), %error, "command log not written");
            }
            Ok(file)
        })
        .await;
        match written {
            Ok(back) => file = back,
            Err(_) => return,
        }
    }
}

struct LogFile {
    path: PathBuf,
    limit_bytes: u64,
    open: Option<(File, u64)>,
    /// The command whose output is at the end of the file, 0 for none.
    last: u64,
}

impl LogFile {
    fn render(&mut self, record: Record, text: &mut Vec<u8>) {
        match record {
            Record::Began { number, at, command } => {
                self.end_line(text);
                text.extend(format!("[{number} {at:.3}] $ {command}\n").into_bytes());
                self.last = number;
            }
            Record::Output { number, bytes } => {
                if self.last != number {
                    self.end_line(text);
                    text.extend(format!("[{number}]\n").into_bytes());
                    self.last = number;
                }
                text.extend_from_slice(&bytes);
            }
            Record::Ended { number, exit, after } => {
                self.end_line(text);
                let exit = match exit {
                    ExecExit::Code(code) => format!("exit {code}"),
                    ExecExit::Signal(signal) => format!("signal {signal}"),
                    ExecExit::TimedOut => "timed out".to_owned(),
                };
                text.extend(format!("[{number} {exit}, {} ms]\n", after.as_millis()).into_bytes());
                self.last = 0;
            }
            Record::Lost { number } => {
                self.end_line(text);
                text.extend(format!("[{number} ended unseen]\n").into_bytes());
                self.last = 0;
            }
        }
    }

    /// Begins a new line if output did not end with one. What was written in an earlier batch is not
    /// looked at again: one blank line too many is the worst.
    fn end_line(&self, text: &mut Vec<u8>) {
        if self.last != 0 && text.last().is_none_or(|byte| *byte != b'\n') {
            text.push(b'\n');
        }
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        let (mut file, length) = match self.open.take() {
            Some((file, length)) if length < self.limit_bytes => (file, length),
            Some(_) => {
                std::fs::rename(&self.path, older(&self.path))?;
                open(&self.path)?
            }
            None => open(&self.path)?,
        };
        file.write_all(text)?;
        self.open = Some((file, length + text.len() as u64));
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

/// Arguments as a shell would read them, on one line, shortened.
fn command_line(argv: &[String]) -> String {
    let mut line = String::new();
    for (index, argument) in argv.iter().enumerate() {
        if index > 0 {
            line.push(' ');
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
        if !argument.is_empty() && argument.chars().all(plain) {
            line.push_str(argument);
        } else {
            line.push('\'');
            for c in argument.chars() {
                match c {
                    '\'' => line.push_str("'\\''"),
                    c if c.is_control() => line.extend(c.escape_default()),
                    c => line.push(c),
                }
            }
            line.push('\'');
        }
        // No need to look at the rest of a megabyte of arguments.
        if line.len() > 4 * MAX_COMMAND_CHARS {
            break;
        }
    }
    match line.char_indices().nth(MAX_COMMAND_CHARS) {
        Some((at, _)) => format!("{} …", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_command_line_is_one_line_quoted_and_shortened() {
        assert_eq!(command_line(&words(&["uname", "-a"])), "uname -a");
        assert_eq!(command_line(&words(&["sh", "-c", "a b\n'"])), "sh -c 'a b\\n'\\'''");
        let long = command_line(&words(&["echo", &"ü".repeat(100_000)]));
        assert_eq!(long.chars().count(), MAX_COMMAND_CHARS + 2);
    }

    #[tokio::test]
    async fn commands_their_output_and_their_end_are_written_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("commands.log");
        let (log, writer) = CommandLog::start(path.clone(), 1 << 20);
        let one = log.begin(&words(&["echo", "hi"]), Timestamp::UNIX_EPOCH);
        one.output(&Bytes::from_static(b"hi"));
        let two = log.begin(&words(&["false"]), Timestamp::UNIX_EPOCH);
        one.output(&Bytes::from_static(b"ho\n"));
        one.ended(ExecExit::Code(0));
        two.lost();
        writer.close().await;
        let text = std::fs::read_to_string(&path).unwrap();
        let (head, ms_and_rest) = text.split_once("exit 0, ").unwrap();
        insta::assert_snapshot!(format!(
            "{head}exit 0, N{}",
            ms_and_rest.trim_start_matches(char::is_numeric)
        ));
    }

    #[tokio::test]
    async fn the_log_never_grows_beyond_its_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("commands.log");
        let (log, writer) = CommandLog::start(path.clone(), 1000);
        for _ in 0..20 {
            let entry = log.begin(&words(&["yes"]), Timestamp::UNIX_EPOCH);
            entry.output(&Bytes::from(vec![b'y'; 900]));
            // Each in a batch of its own, as a slow stream of commands would be.
            while log.records.capacity() < QUEUE {
                tokio::task::yield_now().await;
            }
        }
        writer.close().await;
        let size = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert!(size(&path) < 4000, "{}", size(&path));
        assert!(size(&older(&path)) < 4000);
    }

    #[tokio::test]
    async fn a_flood_is_dropped_with_a_marker_instead_of_being_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("commands.log");
        let (log, writer) = CommandLog::start(path.clone(), 1 << 20);
        // The writer has no chance to run between these: the runtime has one thread.
        let entry = log.begin(&words(&["yes"]), Timestamp::UNIX_EPOCH);
        for _ in 0..QUEUE + 9 {
            entry.output(&Bytes::from_static(b"y\n"));
        }
        writer.close().await;
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("[10 pieces were dropped here]"), "{text}");
    }
}
