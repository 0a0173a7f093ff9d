//! Saving a VM's state: an outgoing migration into a pipe that we read.
//!
//! QEMU never gets the state file. What it may hold open it could still write after the state was
//! sealed; and through the pipe we decide how far it gets. That is needed for a VM that runs: QEMU
//! would stop it by itself as soon as all memory is written, at a moment of its own. So the pipe is
//! read only as far as *cannot* bring it there ([`allowance`]), which leaves a small rest
//! ([`Progress::Converged`]). The rest, and what the guest has changed since, are let through once the
//! caller has stopped the VM.
//!
//! While QEMU waits for us in that first part it holds none of its locks and answers commands; in the
//! last part it does hold its main lock, and we read as fast as we can.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{
    control::{self, ANSWER_DEADLINE, Migration},
    driver::io_error,
    qmp::QmpClient,
};
use crate::{SavedMemory, VmmError, state_file};

/// The pipe until the VM is stopped, for up to so much memory: the larger the faster, and the more is
/// left at the end, because zero pages take only [`ZERO_PAGE_BYTES`] in it.
const SMALL_PIPES: [(u64, u64); 2] = [(512 << 20, 16 * 1024), (u64::MAX, 64 * 1024)];

/// The pipe afterwards: what a process may have without privileges (pipe(7)).
const LARGE_PIPE_BYTES: u64 = 1024 * 1024;

/// What QEMU holds back in buffers of its own; 32 KiB and a few descriptors in all versions so far.
const QEMU_BUFFER_BYTES: u64 = 64 * 1024;

const PAGE_BYTES: u64 = 4096;

/// A page without content in the stream: its address and one byte.
const ZERO_PAGE_BYTES: u64 = 9;

/// Less than this is no step worth asking for.
const LEAST_STEP_BYTES: u64 = 4096;

/// After this long without a byte we ask again where QEMU is.
const SILENCE: Duration = Duration::from_millis(5);

/// How often a held save is looked after.
const HELD_INTERVAL: Duration = Duration::from_secs(1);

/// After its stream has ended QEMU takes this long at most to say how.
const END_DEADLINE: Duration = Duration::from_secs(30);

/// Written to the file at once.
const CHUNK_BYTES: usize = 1024 * 1024;

/// So many chunks may wait for the disk: as many as come while a VM that has converged stands still.
const QUEUED_CHUNKS: usize = 64;

/// What a state may have beyond twice the memory (once in the first round, once more when all of it
/// has changed since): the devices.
const DEVICES_LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// How far a save is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Memory is being written for the first time.
    Copying,
    /// Little is left, and it waits for the VM to be stopped.
    Converged,
    /// QEMU is done, and the file is not yet.
    Captured,
    /// The state file is complete.
    Complete,
    /// As the caller wished.
    GivenUp,
    /// Why.
    Failed(String),
}

impl Progress {
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Copying | Self::Converged | Self::Captured => false,
            Self::Complete | Self::GivenUp | Self::Failed(_) => true,
        }
    }

    /// Whether QEMU is done with it.
    pub(super) fn is_past_the_vm(&self) -> bool {
        match self {
            Self::Copying | Self::Converged => false,
            Self::Captured | Self::Complete | Self::GivenUp | Self::Failed(_) => true,
        }
    }
}

/// What the caller wants of a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Hold,
    Finish,
    GiveUp,
}

/// A save under way, or how it ended. Dropping it gives it up: the pipe closes.
#[derive(Debug)]
pub(super) struct Save {
    pub(super) memory: SavedMemory,
    order: watch::Sender<Order>,
    pub(super) progress: watch::Receiver<Progress>,
}

impl Save {
    /// The VM is stopped: let everything through.
    pub(super) fn finish(&self) {
        self.order.send_if_modified(|order| {
            let held = *order == Order::Hold;
            if held {
                *order = Order::Finish;
            }
            held
        });
    }

    pub(super) fn give_up(&self) {
        self.order.send_replace(Order::GiveUp);
    }

    /// Whether the VM must not run on before it is over.
    pub(super) fn needs_the_vm_stopped(&self) -> bool {
        *self.order.borrow() == Order::Finish && !self.progress.borrow().is_past_the_vm()
    }

    pub(super) fn is_over(&self) -> bool {
        self.progress.borrow().is_over()
    }
}

/// What a save needs to know of its VM.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) qmp: QmpClient,
    pub(super) memory_bytes: u64,
    /// Whether its virtual CPUs run.
    pub(super) runs: bool,
}

/// Begins a save into a file that has its label already. The future has to be run for the save to go
/// on.
pub(super) async fn begin(
    source: Source,
    file: File,
    memory: SavedMemory,
) -> Result<(Save, impl Future<Output = ()> + Send + 'static), VmmError> {
    let qmp = &source.qmp;
    let in_file = match memory {
        SavedMemory::InState => false,
        SavedMemory::InMemoryFile => true,
    };
    control::set_capabilities(qmp, in_file).await?;
    // The bandwidth is ours to limit; and little may be left when QEMU thinks that it is done.
    let parameters = serde_json::json!({ "max-bandwidth": 1_u64 << 40, "downtime-limit": 1 });
    control::run(qmp, "migrate-set-parameters", parameters).await?;

    let pipe_bytes = pipe_bytes(source.memory_bytes);
    let (ours, theirs) = stream(pipe_bytes).map_err(|source| io_error("make a pipe", source))?;
    let name = serde_json::json!({ "fdname": "state" });
    qmp.execute_with_file("getfd", name, theirs, ANSWER_DEADLINE).await?;
    control::run(qmp, "migrate", serde_json::json!({ "uri": "fd:state" })).await?;

    // Without memory in it a state is small, and nothing of the VM's can change any more.
    let order = if in_file { Order::Finish } else { Order::Hold };
    let (order, ordered) = watch::channel(order);
    let (progress, progressed) = watch::channel(Progress::Copying);
    let limit_bytes = source.memory_bytes.saturating_mul(2).saturating_add(DEVICES_LIMIT_BYTES);
    let saver = Saver { source, pipe: ours, pipe_bytes, ordered, progress };
    let saving = saver.run(Sink::new(file, limit_bytes));
    Ok((Save { memory, order, progress: progressed }, saving))
}

/// Our reading end, QEMU's writing end.
fn stream(pipe_bytes: u64) -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    resize(&read, pipe_bytes)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, write))
}

fn pipe_bytes(memory_bytes: u64) -> u64 {
    let fits = |(most, _): &&(u64, u64)| memory_bytes <= *most;
    SMALL_PIPES.iter().find(fits).map_or(LARGE_PIPE_BYTES, |(_, pipe_bytes)| *pipe_bytes)
}

fn resize(pipe: impl AsFd, bytes: u64) -> io::Result<()> {
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    Ok(fcntl(pipe, FcntlArg::F_SETPIPE_SZ(bytes)).map(|_| ())?)
}

/// How many bytes may be read so that QEMU, which has `remaining_bytes` of memory before it, cannot
/// come to the end: not even if all of it is zero and its own buffers and the pipe are empty.
fn allowance(remaining_bytes: u64, pipe_bytes: u64) -> u64 {
    let least_stream_bytes = remaining_bytes / PAGE_BYTES * ZERO_PAGE_BYTES;
    least_stream_bytes.saturating_sub(pipe_bytes + QEMU_BUFFER_BYTES)
}

/// Why a save ends before it is complete.
enum End {
    /// The caller wishes so.
    GivenUp,
    /// The reason.
    Failed(String),
}

impl From<VmmError> for End {
    fn from(error: VmmError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Failed(format!("write the saved state: {error}"))
    }
}

struct Saver {
    source: Source,
    pipe: pipe::Receiver,
    pipe_bytes: u64,
    ordered: watch::Receiver<Order>,
    progress: watch::Sender<Progress>,
}

impl Saver {
    async fn run(mut self, sink: Sink) {
        let outcome = match self.save(sink).await {
            Ok(()) => Progress::Complete,
            Err(end) => {
                self.stop().await;
                match end {
                    End::GivenUp => Progress::GivenUp,
                    End::Failed(reason) => Progress::Failed(reason),
                }
            }
        };
        self.progress.send_replace(outcome);
    }

    async fn save(&mut self, mut sink: Sink) -> Result<(), End> {
        self.copy_most(&mut sink).await?;
        self.wait_until_stopped().await?;
        self.copy_rest(&mut sink).await?;
        self.progress.send_replace(Progress::Captured);
        sink.complete().await?;
        Ok(())
    }

    /// Reads until only a small rest is left.
    async fn copy_most(&mut self, sink: &mut Sink) -> Result<(), End> {
        while *self.ordered.borrow_and_update() == Order::Hold {
            let allowed = match control::migration(&self.source.qmp).await? {
                // The beginning of the stream is small.
                Migration::None | Migration::Busy => LEAST_STEP_BYTES,
                Migration::Active { remaining_bytes, .. } => {
                    allowance(remaining_bytes, self.pipe_bytes)
                }
                Migration::Completed | Migration::Cancelled => return Err(ended_by_itself()),
                Migration::Failed(reason) => return Err(End::Failed(reason)),
            };
            if allowed < LEAST_STEP_BYTES {
                self.progress.send_replace(Progress::Converged);
                return Ok(());
            }
            self.copy(sink, allowed).await?;
        }
        Ok(())
    }

    /// Moves up to so many bytes, less when they do not come.
    async fn copy(&mut self, sink: &mut Sink, allowed: u64) -> Result<(), End> {
        let mut left = allowed;
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(usize::MAX);
            tokio::select! {
                read = sink.take_from(&mut self.pipe, step) => match read? {
                    0 => return Ok(()),
                    read => left -= read as u64,
                },
                () = tokio::time::sleep(SILENCE) => return Ok(()),
            }
        }
        Ok(())
    }

    async fn wait_until_stopped(&mut self) -> Result<(), End> {
        while *self.ordered.borrow_and_update() == Order::Hold {
            tokio::select! {
                changed = self.ordered.changed() => {
                    if changed.is_err() {
                        return Err(End::GivenUp);
                    }
                }
                () = tokio::time::sleep(HELD_INTERVAL) => {
                    match control::migration(&self.source.qmp).await? {
                        Migration::Active { .. } => {}
                        Migration::None
                        | Migration::Busy
                        | Migration::Completed
                        | Migration::Cancelled => return Err(ended_by_itself()),
                        Migration::Failed(reason) => return Err(End::Failed(reason)),
                    }
                }
            }
        }
        Ok(())
    }

    /// Lets everything through, and returns when QEMU is done.
    async fn copy_rest(&mut self, sink: &mut Sink) -> Result<(), End> {
        // Only a matter of speed.
        let _ = resize(&self.pipe, LARGE_PIPE_BYTES);
        loop {
            if *self.ordered.borrow_and_update() == Order::GiveUp {
                return Err(End::GivenUp);
            }
            tokio::select! {
                read = sink.take_from(&mut self.pipe, CHUNK_BYTES) => {
                    if read? == 0 {
                        break;
                    }
                }
                changed = self.ordered.changed() => {
                    if changed.is_err() {
                        return Err(End::GivenUp);
                    }
                }
            }
        }
        match self.migration_end().await? {
            Migration::Completed => Ok(()),
            Migration::Failed(reason) => Err(End::Failed(reason)),
            Migration::None | Migration::Busy | Migration::Active { .. } | Migration::Cancelled => {
                Err(End::Failed("the VMM gave it up".into()))
            }
        }
    }

    async fn migration_end(&self) -> Result<Migration, VmmError> {
        let qmp = &self.source.qmp;
        let over = control::wait_until(qmp, || async {
            let migration = control::migration(qmp).await?;
            Ok(migration.is_over().then_some(migration))
        });
        tokio::time::timeout(END_DEADLINE, over)
            .await
            .map_err(|_| VmmError::Timeout("ending a save"))?
    }

    /// Brings QEMU back to where it was before the save. What it still writes is thrown away: it may
    /// be waiting for that with its main lock held.
    async fn stop(&mut self) {
        let mut rest = vec![0; CHUNK_BYTES];
        let pipe = &mut self.pipe;
        let drained = async { while matches!(pipe.read(&mut rest).await, Ok(1..)) {} };
        let qmp = &self.source.qmp;
        let cancelled = async {
            control::run(qmp, "migrate_cancel", serde_json::json!({})).await?;
            control::wait_until(qmp, || async {
                Ok(control::migration(qmp).await?.is_over().then_some(()))
            })
            .await
        };
        let stopped = async {
            let drained_meanwhile = async {
                drained.await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                outcome = cancelled => outcome,
                () = drained_meanwhile => Ok(()),
            }
        };
        match tokio::time::timeout(END_DEADLINE, stopped).await {
            Ok(Ok(())) => {}
            // A VMM that is ending, most of the time.
            Ok(Err(error)) => tracing::debug!(%error, "a save given up"),
            Err(_) => tracing::warn!("a VMM does not give up a save"),
        }
        self.let_run_again().await;
    }

    /// QEMU stops a running VM for the end of a save. If that was not its caller's wish, and it is
    /// not to stay so.
    async fn let_run_again(&self) {
        if !self.source.runs || *self.ordered.borrow() == Order::Finish {
            return;
        }
        let state = control::run_state(&self.source.qmp, ANSWER_DEADLINE).await;
        if let Ok(control::RunState::Saved) = state
            && let Err(error) = control::let_run(&self.source.qmp, ANSWER_DEADLINE).await
        {
            tracing::warn!(%error, "a VM that stopped by itself in a save does not run on");
        }
    }
}

fn ended_by_itself() -> End {
    End::Failed("the VMM ended the save at a moment of its own".into())
}

/// The state file, written by a thread of its own: while the VM stands still, nothing waits for a
/// disk that is busy.
struct Sink {
    filling: Vec<u8>,
    queue: mpsc::Sender<Vec<u8>>,
    writer: JoinHandle<io::Result<File>>,
    taken_bytes: u64,
    limit_bytes: u64,
}

impl Sink {
    fn new(mut file: File, limit_bytes: u64) -> Self {
        let (queue, mut chunks) = mpsc::channel::<Vec<u8>>(QUEUED_CHUNKS);
        // Ends when the queue does.
        let writer = tokio::task::spawn_blocking(move || {
            while let Some(chunk) = chunks.blocking_recv() {
                file.write_all(&chunk)?;
            }
            Ok(file)
        });
        let filling = Vec::with_capacity(CHUNK_BYTES);
        Self { filling, queue, writer, taken_bytes: 0, limit_bytes }
    }

    /// Reads up to so many bytes. Cancel-safe: nothing that was read is lost.
    async fn take_from(&mut self, pipe: &mut pipe::Receiver, most: usize) -> io::Result<usize> {
        if self.filling.len() >= CHUNK_BYTES {
            self.queue_chunk().await?;
        }
        let room = (CHUNK_BYTES - self.filling.len()).min(most);
        let read = pipe.take(room as u64).read_buf(&mut self.filling).await?;
        self.taken_bytes += read as u64;
        if self.taken_bytes > self.limit_bytes {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than it can be"));
        }
        Ok(read)
    }

    /// Waits when the disk is far behind. Cancel-safe.
    async fn queue_chunk(&mut self) -> io::Result<()> {
        match self.queue.reserve().await {
            Ok(place) => {
                let empty = Vec::with_capacity(CHUNK_BYTES);
                place.send(std::mem::replace(&mut self.filling, empty));
                Ok(())
            }
            // The thread has ended, so it has something to say.
            Err(_) => match (&mut self.writer).await {
                Ok(Err(error)) => Err(error),
                Ok(Ok(_)) => Err(io::ErrorKind::BrokenPipe.into()),
                Err(error) => Err(io::Error::other(error)),
            },
        }
    }

    /// Waits until everything is written, and marks the end.
    async fn complete(mut self) -> io::Result<()> {
        self.queue_chunk().await?;
        drop(self.queue);
        let file = self.writer.await.map_err(io::Error::other)??;
        let completed = tokio::task::spawn_blocking(move || state_file::complete(&file));
        completed.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_allowed_never_brings_qemu_to_the_end() {
        for (_, pipe_bytes) in SMALL_PIPES {
            for remaining in (0..4096).map(|mib| mib * MIB) {
                let allowed = allowance(remaining, pipe_bytes);
                let pages = (allowed + pipe_bytes + QEMU_BUFFER_BYTES) / ZERO_PAGE_BYTES;
                assert!(allowed == 0 || pages * PAGE_BYTES <= remaining, "{remaining}");
            }
        }
    }

    #[test]
    fn a_save_converges_with_little_left_of_every_size() {
        for memory_mib in [64, 256, 512, 1024, 65_536] {
            let pipe_bytes = pipe_bytes(memory_mib * MIB);
            let is_held = |mib: &u64| allowance(mib * MIB, pipe_bytes) < LEAST_STEP_BYTES;
            let left = (0..memory_mib).rev().find(is_held).unwrap();
            assert!(left < 64 && left * 8 < memory_mib * 5, "{left} of {memory_mib} MiB");
        }
    }

    async fn taken(limit_bytes: u64, sent: usize) -> (io::Result<()>, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let mut sink = Sink::new(file, limit_bytes);
        let (mut ours, theirs) = stream(16 * 1024).unwrap();
        let writer = tokio::task::spawn_blocking(move || {
            let content: Vec<u8> = (0..sent).map(|n| (n % 251) as u8).collect();
            let _ = io::Write::write_all(&mut File::from(theirs), &content);
        });
        let outcome = loop {
            match sink.take_from(&mut ours, 70_000).await {
                Ok(0) => break sink.complete().await,
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        drop(ours);
        writer.await.unwrap();
        (outcome, std::fs::read(&path).unwrap())
    }

    #[tokio::test]
    async fn every_byte_comes_into_the_file_in_order_and_its_end_is_marked() {
        let sent = 3 * CHUNK_BYTES + 12_345;
        let (outcome, content) = taken(u64::MAX, sent).await;
        outcome.unwrap();
        assert!(content[..sent].iter().zip(0_usize..).all(|(byte, n)| *byte == (n % 251) as u8));
        assert_eq!(content[sent..sent + 16], *b"skerry-state-end");
    }

    #[tokio::test]
    async fn a_stream_without_end_is_refused() {
        let (outcome, content) = taken(2 * CHUNK_BYTES as u64, 8 * CHUNK_BYTES).await;
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(content.len() <= 2 * CHUNK_BYTES);
    }
}
