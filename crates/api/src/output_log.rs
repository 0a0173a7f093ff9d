//! What a command has printed lately, for readers who come and go. Who reads holds the command back rather
//! than miss anything; with nobody reading the oldest goes.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

/// The largest piece: clients of terminals take no larger message than 1 MiB.
const PIECE_BYTES: usize = 32 * 1024;

/// Where something was printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output; of a terminal, everything.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What comes next for a reader.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<E> {
    /// It printed this.
    Printed(Stream, Bytes),
    /// It has ended in this way, and all of it was read.
    Ended(E),
}

/// The output of one command; `E` is how it ended.
#[derive(Debug)]
pub(crate) struct OutputLog<E> {
    inner: Mutex<Inner<E>>,
    /// There is more to read, or there is room again.
    changed: Notify,
}

#[derive(Debug)]
struct Inner<E> {
    kept_bytes: usize,
    printed: VecDeque<u8>,
    /// Of which streams that is: each with the position behind its last byte.
    runs: VecDeque<(Stream, u64)>,
    /// How much was printed before what is kept.
    forgotten: u64,
    /// How far each of those who read has come.
    read: BTreeMap<u64, u64>,
    readers_begun: u64,
    ended: Option<E>,
}

impl<E> Inner<E> {
    fn end(&self) -> u64 {
        self.forgotten + self.printed.len() as u64
    }

    /// Makes room for `length` bytes; false while somebody has not read what would go.
    fn make_room(&mut self, length: usize) -> bool {
        let excess = (self.printed.len() + length).saturating_sub(self.kept_bytes);
        let excess = excess.min(self.printed.len());
        let goes_to = self.forgotten + excess as u64;
        if excess > 0 && self.read.values().any(|read| *read < goes_to) {
            return false;
        }
        self.printed.drain(..excess);
        self.forgotten = goes_to;
        while self.runs.front().is_some_and(|(_, end)| *end <= goes_to) {
            self.runs.pop_front();
        }
        true
    }

    fn append(&mut self, stream: Stream, piece: &[u8]) {
        self.printed.extend(piece);
        let end = self.end();
        match self.runs.back_mut() {
            Some((last, last_end)) if *last == stream => *last_end = end,
            Some(_) | None => self.runs.push_back((stream, end)),
        }
    }

    /// At most a piece of one stream, from `position` on; `None` at the end.
    fn piece(&self, position: u64) -> Option<(Stream, Bytes)> {
        let (stream, end) = *self.runs.iter().find(|(_, end)| *end > position)?;
        // What is kept is far smaller than an address.
        let index = |at: u64| usize::try_from(at - self.forgotten).unwrap_or(usize::MAX);
        let (from, to) = (index(position), index(end));
        let to = to.min(from.saturating_add(PIECE_BYTES));
        Some((stream, self.printed.range(from..to).copied().collect::<Vec<u8>>().into()))
    }
}

impl<E: Clone> OutputLog<E> {
    /// One that keeps so many bytes.
    pub(crate) fn new(kept_bytes: usize) -> Self {
        let inner = Inner {
            kept_bytes,
            printed: VecDeque::new(),
            runs: VecDeque::new(),
            forgotten: 0,
            read: BTreeMap::new(),
            readers_begun: 0,
            ended: None,
        };
        Self { inner: Mutex::new(inner), changed: Notify::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner<E>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what was printed, once there is room for it.
    pub(crate) async fn print(&self, stream: Stream, bytes: &[u8]) {
        let most = PIECE_BYTES.min(self.kept_bytes()).max(1);
        for piece in bytes.chunks(most) {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                // Before the look, so that no change is missed.
                changed.as_mut().enable();
                {
                    let mut inner = self.inner();
                    if inner.make_room(piece.len()) {
                        inner.append(stream, piece);
                        break;
                    }
                }
                changed.await;
            }
            self.changed.notify_waiters();
        }
    }

    /// Notes the end.
    pub(crate) fn end(&self, how: E) {
        self.inner().ended = Some(how);
        self.changed.notify_waiters();
    }

    /// How it ended.
    pub(crate) fn ended(&self) -> Option<E> {
        self.inner().ended.clone()
    }

    /// How much is kept at most, in bytes.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.inner().kept_bytes
    }

    /// Keeps no more than this from now on; what nobody has read stays for its readers.
    pub(crate) fn shrink(&self, kept_bytes: usize) {
        let mut inner = self.inner();
        inner.kept_bytes = kept_bytes;
        if inner.make_room(0) {
            inner.printed.shrink_to_fit();
        }
    }

    /// The end of what is kept, at most so many bytes.
    pub(crate) fn tail(&self, most_bytes: usize) -> Vec<u8> {
        let inner = self.inner();
        let from = inner.printed.len().saturating_sub(most_bytes);
        inner.printed.range(from..).copied().collect()
    }

    /// What is kept of each stream (standard output, standard error), and whether something of either
    /// is not.
    pub(crate) fn streams(&self) -> (Vec<u8>, Vec<u8>, bool) {
        let inner = self.inner();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut from = 0;
        for (stream, end) in &inner.runs {
            let to = usize::try_from(end - inner.forgotten).unwrap_or(usize::MAX);
            let bytes = inner.printed.range(from..to);
            match stream {
                Stream::Stdout => stdout.extend(bytes),
                Stream::Stderr => stderr.extend(bytes),
            }
            from = to;
        }
        (stdout, stderr, inner.forgotten > 0)
    }

    /// Reads it, from what is kept on.
    pub(crate) fn look(self: &Arc<Self>) -> Look<E> {
        let mut inner = self.inner();
        inner.readers_begun += 1;
        let number = inner.readers_begun;
        let from = inner.forgotten;
        inner.read.insert(number, from);
        drop(inner);
        Look { log: Arc::clone(self), number }
    }
}

/// A reader.
#[derive(Debug)]
pub(crate) struct Look<E: Clone> {
    log: Arc<OutputLog<E>>,
    number: u64,
}

impl<E: Clone> Look<E> {
    /// What comes next. The end is told again and again.
    pub(crate) async fn next(&mut self) -> Next<E> {
        loop {
            let changed = self.log.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(next) = self.there() {
                return next;
            }
            changed.await;
        }
    }

    fn there(&self) -> Option<Next<E>> {
        let mut inner = self.log.inner();
        let read = inner.read.get(&self.number).copied().unwrap_or(inner.forgotten);
        let Some((stream, bytes)) = inner.piece(read) else {
            return inner.ended.clone().map(Next::Ended);
        };
        inner.read.insert(self.number, read + bytes.len() as u64);
        drop(inner);
        self.log.changed.notify_waiters();
        Some(Next::Printed(stream, bytes))
    }
}

impl<E: Clone> Drop for Look<E> {
    fn drop(&mut self) {
        self.log.inner().read.remove(&self.number);
        self.log.changed.notify_waiters();
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "tests")]
mod tests {
    use std::time::Duration;

    use super::*;

    const KEPT_BYTES: usize = 256 * 1024;

    fn log() -> Arc<OutputLog<i32>> {
        Arc::new(OutputLog::new(KEPT_BYTES))
    }

    async fn read(look: &mut Look<i32>) -> Vec<u8> {
        match look.next().await {
            Next::Printed(_, bytes) => bytes.to_vec(),
            Next::Ended(_) => Vec::new(),
        }
    }

    #[tokio::test]
    async fn both_streams_come_in_order_and_then_the_end_to_whoever_reads_whenever() {
        let log = log();
        for (stream, text) in [
            (Stream::Stdout, "a"),
            (Stream::Stdout, "b"),
            (Stream::Stderr, "c"),
            (Stream::Stdout, "d"),
        ] {
            log.print(stream, text.as_bytes()).await;
        }
        log.end(7);
        for _ in 0..2 {
            let mut look = log.look();
            for (stream, text) in
                [(Stream::Stdout, "ab"), (Stream::Stderr, "c"), (Stream::Stdout, "d")]
            {
                assert_eq!(
                    look.next().await,
                    Next::Printed(stream, Bytes::from_static(text.as_bytes()))
                );
            }
            assert_eq!((look.next().await, look.next().await), (Next::Ended(7), Next::Ended(7)));
        }
        assert_eq!(log.streams(), (b"abd".to_vec(), b"c".to_vec(), false));
        assert_eq!((log.tail(2), log.tail(100)), (b"cd".to_vec(), b"abcd".to_vec()));
    }

    #[tokio::test]
    async fn with_nobody_reading_the_oldest_goes() {
        let log = log();
        log.print(Stream::Stderr, b"first").await;
        log.print(Stream::Stdout, &vec![b'a'; KEPT_BYTES]).await;
        log.print(Stream::Stdout, b"z").await;
        let (stdout, stderr, is_cut) = log.streams();
        assert_eq!((stdout.len(), stdout.last(), stderr.len()), (KEPT_BYTES, Some(&b'z'), 0));
        assert!(is_cut);
        log.shrink(4);
        assert_eq!(log.streams().0, b"aaaz");
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_misses_nothing_and_holds_the_command_back_until_gone() {
        let log = log();
        let mut look = log.look();
        log.print(Stream::Stdout, &vec![b'a'; KEPT_BYTES]).await;
        let more =
            tokio::time::timeout(Duration::from_secs(1), log.print(Stream::Stdout, b"z")).await;
        assert!(more.is_err(), "there is no room");
        let reading = async {
            let mut all = Vec::new();
            while all.last() != Some(&b'z') {
                all.extend(read(&mut look).await);
            }
            all.len()
        };
        let (length, ()) = tokio::join!(reading, log.print(Stream::Stdout, b"z"));
        assert_eq!(length, KEPT_BYTES + 1);
        drop(look);
        log.print(Stream::Stdout, &vec![b'b'; 2 * KEPT_BYTES]).await;
    }
}
