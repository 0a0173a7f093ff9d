//! Both ends of the handshake, over any byte stream.

use std::time::Duration;

use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    GENERATION_MAX, GENERATION_MIN,
    limits::PADDING,
    record::{Nonce, RECORD_LEN, Record, RecordKind, Synchroniser},
};

/// How long the host waits for an answer before it says hello again, in the long run.
pub const HELLO_INTERVAL: Duration = Duration::from_millis(200);

/// How long it waits the first time; three times as long each time after that. An agent that still believes
/// in an older connection, as in a machine that was saved with it open, has the first hello break that
/// connection and answers the second.
const HELLO_INTERVAL_FIRST: Duration = Duration::from_millis(5);

/// How long the host waits between acknowledgement and ready before it begins again with another nonce;
/// three times as long each time after that. A guest is told of a host's going and coming beside what the
/// host says: one that hears of them late begins anew, and has forgotten whom it had acknowledged.
const READY_WITHIN_FIRST: Duration = Duration::from_secs(2);

/// Slow hellos between two that are preceded by padding: the padding helps only against a
/// peer stuck in the middle of a frame, and a guest that still boots has to read all of it.
const HELLOS_PER_PADDING: u32 = 8;

const AGENT_READ_LEN: usize = 16 * 1024;

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// The stream ended or broke.
    #[error("the channel broke during the handshake: {0}")]
    Io(#[from] std::io::Error),
    /// No answer.
    #[error("no answer to the handshake within {0:?}")]
    Timeout(Duration),
    /// The two speak no common generation.
    #[error(
        "the agent speaks none of the protocol generations {GENERATION_MIN} to {GENERATION_MAX}"
    )]
    NoCommonGeneration,
}

/// The host's end: returns the agreed generation once the next byte in either direction is HTTP/2.
/// `nonce` must be fresh for every call; the numbers after it may be used, too.
///
/// # Errors
/// [`HandshakeError`], at the latest after `within`.
pub async fn connect<S>(
    stream: &mut S,
    nonce: Nonce,
    within: Duration,
) -> Result<u16, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let attempt = async {
        let (mut nonce, mut patience) = (nonce, READY_WITHIN_FIRST);
        loop {
            let generation = meet(stream, nonce).await?;
            // The greeting may have been cut off in the middle of a hello; the agent's scanner skips the
            // fragment only if the bytes that follow are a record, which they are.
            let start = record(RecordKind::Start, generation, generation, nonce);
            stream.write_all(&start).await?;
            stream.flush().await?;
            if let Ok(ready) = timeout(patience, find(stream, RecordKind::Ready, nonce)).await {
                ready?;
                return Ok(generation);
            }
            // An agent that was only slow takes the next hello for nonsense, and begins anew as well.
            nonce = u128::from_be_bytes(nonce).wrapping_add(1).to_be_bytes();
            patience *= 3;
        }
    };
    timeout(within, attempt).await.unwrap_or(Err(HandshakeError::Timeout(within)))
}

/// The first half of [`connect`]: returns once the agent waits for this host or the next, and for
/// nothing else. The stream is of no use for HTTP/2 after it.
///
/// # Errors
/// [`HandshakeError`], at the latest after `within`.
pub async fn greet<S>(stream: &mut S, nonce: Nonce, within: Duration) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let met = timeout(within, meet(stream, nonce)).await;
    met.unwrap_or(Err(HandshakeError::Timeout(within))).map(drop)
}

/// Says hello until it is acknowledged; returns the agreed generation.
async fn meet<S>(stream: &mut S, nonce: Nonce) -> Result<u16, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    // Greeting must not keep the answer from being read: the channel's buffers may be full of earlier
    // greetings while the guest boots.
    let greeting = keep_greeting(&mut writer, nonce);
    let answer = find(&mut reader, RecordKind::Ack, nonce);
    let generation = tokio::select! {
        broken = greeting => return Err(broken.into()),
        answer = answer => answer?.generation_max,
    };
    if !(GENERATION_MIN..=GENERATION_MAX).contains(&generation) {
        return Err(HandshakeError::NoCommonGeneration);
    }
    Ok(generation)
}

/// The guest's end: throws away whatever comes until a host has said hello and start. Returns the
/// agreed generation; the next byte in either direction is HTTP/2.
///
/// # Errors
/// [`std::io::Error`] when the stream ends or breaks. Waits as long as the host is silent.
pub async fn accept<S>(stream: &mut S) -> std::io::Result<u16>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut synchroniser = Synchroniser::new();
    let mut agreed: Option<(Nonce, u16)> = None;
    let mut buffer = vec![0; AGENT_READ_LEN];
    loop {
        // Large reads are safe here: between its start and our ready the host sends nothing.
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let (used, found) = synchroniser.feed(rest);
            rest = &rest[used..];
            let Some(found) = found else { continue };
            match found.kind {
                RecordKind::Hello => {
                    let generation = common_generation(&found);
                    agreed = generation.map(|generation| (found.nonce, generation));
                    let shown = generation.unwrap_or(0);
                    stream.write_all(&record(RecordKind::Ack, shown, shown, found.nonce)).await?;
                    stream.flush().await?;
                }
                RecordKind::Start => {
                    let Some((nonce, generation)) = agreed else { continue };
                    if nonce != found.nonce {
                        continue;
                    }
                    let ready = record(RecordKind::Ready, generation, generation, nonce);
                    stream.write_all(&ready).await?;
                    stream.flush().await?;
                    return Ok(generation);
                }
                // Our own words come back only from a looped channel.
                RecordKind::Ack | RecordKind::Ready => {}
            }
        }
    }
}

fn common_generation(hello: &Record) -> Option<u16> {
    let newest = hello.generation_max.min(GENERATION_MAX);
    (newest >= hello.generation_min.max(GENERATION_MIN)).then_some(newest)
}

fn record(kind: RecordKind, oldest: u16, newest: u16, nonce: Nonce) -> [u8; RECORD_LEN] {
    Record { kind, generation_min: oldest, generation_max: newest, nonce }.encode()
}

/// Says hello again and again; returns only when the stream breaks.
async fn keep_greeting<W: AsyncWrite + Unpin>(writer: &mut W, nonce: Nonce) -> std::io::Error {
    let hello = record(RecordKind::Hello, GENERATION_MIN, GENERATION_MAX, nonce);
    let mut pause = HELLO_INTERVAL_FIRST;
    let mut count: u32 = 0;
    loop {
        let greet = async {
            // Those in quick succession go out alone: nobody who could read them is stuck yet.
            if count % HELLOS_PER_PADDING == 1 {
                writer.write_all(&vec![0xFF; PADDING]).await?;
            }
            writer.write_all(&hello).await?;
            writer.flush().await
        };
        if let Err(error) = greet.await {
            return error;
        }
        sleep_until(Instant::now() + pause).await;
        if pause > HELLO_INTERVAL / 2 {
            count = count.wrapping_add(1);
        }
        pause = (pause * 3).min(HELLO_INTERVAL);
    }
}

/// Reads up to the end of the record of this kind and nonce and not a byte further.
async fn find<R: AsyncRead + Unpin>(
    reader: &mut R,
    kind: RecordKind,
    nonce: Nonce,
) -> std::io::Result<Record> {
    let mut synchroniser = Synchroniser::new();
    let mut buffer = [0; RECORD_LEN];
    loop {
        let wanted = synchroniser.wanted();
        let length = reader.read(&mut buffer[..wanted]).await?;
        if length == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let (_, Some(record)) = synchroniser.feed(&buffer[..length])
            && record.kind == kind
            && record.nonce == nonce
        {
            return Ok(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::HTTP2_FRAME_MAX;

    #[tokio::test(start_paused = true)]
    async fn both_ends_meet_after_garbage_in_both_directions() {
        let (mut host, mut guest) = tokio::io::duplex(256 * 1024);
        host.write_all(&[0xFF; 1000]).await.unwrap();
        guest.write_all(b"stale bytes of an older answer").await.unwrap();
        let agent = tokio::spawn(async move {
            let generation = accept(&mut guest).await.unwrap();
            guest.write_all(b"fresh").await.unwrap();
            (generation, guest)
        });
        let generation = connect(&mut host, [7; 16], Duration::from_secs(30)).await.unwrap();
        let mut fresh = [0; 5];
        host.read_exact(&mut fresh).await.unwrap();
        assert_eq!((&fresh, generation), (b"fresh", GENERATION_MAX));
        assert_eq!(agent.await.unwrap().0, GENERATION_MAX);
    }

    /// An agent that learns only after its acknowledgement that another host had gone.
    #[tokio::test(start_paused = true)]
    async fn an_agent_that_forgets_whom_it_acknowledged_is_greeted_again() {
        let (mut host, mut guest) = tokio::io::duplex(64 * 1024);
        let agent = tokio::spawn(async move {
            let hello = find(&mut guest, RecordKind::Hello, [7; 16]).await.unwrap();
            let ack = record(RecordKind::Ack, GENERATION_MAX, GENERATION_MAX, hello.nonce);
            guest.write_all(&ack).await.unwrap();
            accept(&mut guest).await.unwrap();
            guest
        });
        let began = Instant::now();
        connect(&mut host, [7; 16], Duration::from_secs(30)).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        drop(agent.await.unwrap());
    }

    /// One that takes longer than the host waits at first, and has begun by then.
    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_ready_late_is_met_in_the_end() {
        let (mut host, mut guest) = tokio::io::duplex(64 * 1024);
        let agent = tokio::spawn(async move {
            let newest = GENERATION_MAX;
            find(&mut guest, RecordKind::Hello, [7; 16]).await.unwrap();
            guest.write_all(&record(RecordKind::Ack, newest, newest, [7; 16])).await.unwrap();
            find(&mut guest, RecordKind::Start, [7; 16]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
            guest.write_all(&record(RecordKind::Ready, newest, newest, [7; 16])).await.unwrap();
            // Another hello is no HTTP/2, which ends that connection.
            guest.read_exact(&mut [0; 24]).await.unwrap();
            accept(&mut guest).await.unwrap();
            guest
        });
        connect(&mut host, [7; 16], Duration::from_secs(30)).await.unwrap();
        drop(agent.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_comes_late_is_still_met() {
        let (mut host, mut guest) = tokio::io::duplex(64 * 1024);
        let agent = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(20)).await;
            let generation = accept(&mut guest).await;
            (generation, guest)
        });
        connect(&mut host, [1; 16], Duration::from_secs(30)).await.unwrap();
        assert!(agent.await.unwrap().0.is_ok());
    }

    /// An agent whose older connection is broken by the first hello and that listens from then on.
    #[tokio::test(start_paused = true)]
    async fn an_agent_that_loses_the_first_hello_hears_one_soon_after() {
        let (mut host, mut guest) = tokio::io::duplex(256 * 1024);
        let agent = tokio::spawn(async move {
            guest.read_exact(&mut [0; 9]).await.unwrap();
            accept(&mut guest).await.unwrap();
            guest
        });
        let began = Instant::now();
        connect(&mut host, [7; 16], Duration::from_secs(30)).await.unwrap();
        assert!(began.elapsed() <= Duration::from_millis(10), "{:?}", began.elapsed());
        drop(agent.await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_was_only_greeted_takes_the_next_host_at_once() {
        let (mut host, mut guest) = tokio::io::duplex(256 * 1024);
        let agent = tokio::spawn(async move {
            accept(&mut guest).await.unwrap();
            guest
        });
        greet(&mut host, [1; 16], Duration::from_secs(30)).await.unwrap();
        let began = Instant::now();
        connect(&mut host, [2; 16], Duration::from_secs(30)).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        drop(agent.await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_stuck_in_the_middle_of_a_frame_is_freed_by_padding() {
        let (mut host, mut guest) = tokio::io::duplex(256 * 1024);
        let agent = tokio::spawn(async move {
            guest.read_exact(&mut vec![0; HTTP2_FRAME_MAX as usize]).await.unwrap();
            accept(&mut guest).await.unwrap();
            guest
        });
        let began = Instant::now();
        connect(&mut host, [7; 16], Duration::from_secs(30)).await.unwrap();
        assert!(
            began.elapsed() <= HELLO_INTERVAL + Duration::from_millis(50),
            "{:?}",
            began.elapsed()
        );
        drop(agent.await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_another_hello_does_not_count() {
        let (mut host, mut guest) = tokio::io::duplex(1024 * 1024);
        for kind in [RecordKind::Ack, RecordKind::Ready] {
            guest.write_all(&record(kind, 1, 1, [9; 16])).await.unwrap();
        }
        let outcome = connect(&mut host, [1; 16], Duration::from_secs(5)).await;
        assert!(matches!(outcome, Err(HandshakeError::Timeout(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_from_the_future_learns_that_there_is_no_common_generation() {
        let (mut host, mut guest) = tokio::io::duplex(64 * 1024);
        host.write_all(&record(RecordKind::Hello, 500, 600, [3; 16])).await.unwrap();
        let mut answer = [0; RECORD_LEN];
        tokio::select! {
            _ = accept(&mut guest) => unreachable!("no start was sent"),
            read = host.read_exact(&mut answer) => { read.unwrap(); }
        }
        let answer = Record::decode(&answer).unwrap();
        assert_eq!((answer.kind, answer.generation_max), (RecordKind::Ack, 0));
    }
}
