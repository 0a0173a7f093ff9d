//! The task that keeps a link connected.

use std::{future::Future, sync::Arc, time::Duration};

use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use skerry_agent_protocol::{
    GENERATION_MAX, call as path,
    handshake::{connect, greet},
    limits::{CONNECTION_WINDOW, HEADER_LIST_MAX, HTTP2_FRAME_MAX, STREAM_WINDOW},
    message::{Clock, Configure, Configured, Empty},
    record::Nonce,
};
use skerry_internal_api::NodeError;
use skerry_model::Timestamp;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    CONTROL_STREAMS, Dial, GuestHello, LONG_STREAMS, SHORT_STREAMS, Shared,
    call::{self, RequestBody},
    failure::lost,
    hold::Hold,
};

/// Where requests of one connection are put in.
pub(super) type Requests = SendRequest<RequestBody>;

/// A connection whose guest is configured.
#[derive(Clone)]
pub(super) struct Connected {
    pub(super) requests: Requests,
    /// Which one of the link's.
    pub(super) number: u64,
    /// How much of the protocol the agent has.
    pub(super) revision: u16,
    /// Which hello the guest was last configured with.
    pub(super) hello_version: u64,
}

/// One try to meet the agent. Dialling again wakes an agent that waits in a dead connection.
pub(crate) const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Dialling is local.
const DIAL_WITHIN: Duration = Duration::from_secs(5);
const CONFIGURE_WITHIN: Duration = Duration::from_secs(30);
/// What a guest's clock may be off by through the time that telling it takes.
const CLOCK_ERROR_MOST: Duration = Duration::from_millis(25);
/// How often a guest that is slow to answer is told the time.
const CLOCK_TOLD_MOST: u32 = 8;
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MOST: Duration = Duration::from_secs(1);
/// While something is under way, the guest is asked for a sign of life this often,
const PING_EVERY: Duration = Duration::from_secs(10);
/// and given up after this long. Generous: a guest under emulation shares a CPU with many.
const PING_WITHIN: Duration = Duration::from_secs(30);
/// and so long after a pause.
const PING_AFTER_PAUSE: Duration = Duration::from_secs(1);
/// How long the tasks of a connection that has ended may take to notice.
const LAST_ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// Bytes of a request that wait for one slow guest.
const SEND_BUFFER: usize = 128 * 1024;

/// Connects again and again until the link is closed.
pub(super) async fn keep_connected(shared: Arc<Shared>, dial: Arc<dyn Dial>) {
    let mut backoff = BACKOFF_FIRST;
    let mut number: u64 = 0;
    loop {
        number += 1;
        let next = async {
            // Nobody answers in a VM that is paused.
            shared.hold.released().await;
            one_connection(&shared, &*dial, number).await
        };
        let (was_ready, ended) = tokio::select! {
            ended = next => ended,
            () = shared.closed.cancelled() => break,
        };
        if was_ready {
            backoff = BACKOFF_FIRST;
            tracing::debug!(reason = ended, "the guest's connection ended");
        } else {
            tracing::debug!(reason = ended, "the guest is not connected yet");
        }
        tokio::select! {
            () = sleep(backoff) => {}
            () = shared.closed.cancelled() => break,
        }
        backoff = (backoff * 2).min(BACKOFF_MOST);
    }
    shared.connected.send_replace(None);
}

/// From dialling to the end of the connection. Returns whether the guest was ready meanwhile, and why
/// it ended. Cancelling it ends the connection as well.
async fn one_connection(shared: &Shared, dial: &dyn Dial, number: u64) -> (bool, String) {
    let (hello_version, hello) = shared.hello();
    let mut channel = match timeout(DIAL_WITHIN, dial.dial()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return (false, error.to_string()),
        Err(_) => return (false, String::from("dialling took too long")),
    };
    let nonce = nonce_of(&hello);
    if let Err(error) = connect(&mut channel, nonce, HANDSHAKE_WITHIN).await {
        return (false, error.to_string());
    }
    let executor = ConnectionExecutor {
        all: shared.tasks.clone(),
        own: TaskTracker::new(),
        ended: shared.closed.child_token(),
    };
    let last_answers = executor.own.clone();
    let _end_tasks = executor.ended.clone().drop_guard();
    let started = http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(HTTP2_FRAME_MAX)
        .max_header_list_size(HEADER_LIST_MAX)
        .max_send_buf_size(SEND_BUFFER)
        .handshake::<_, RequestBody>(TokioIo::new(channel))
        .await;
    let (mut requests, connection) = match started {
        Ok(started) => started,
        Err(error) => return (false, error.to_string()),
    };
    tokio::pin!(connection);
    let configured = tokio::select! {
        ended = &mut connection => return (false, words(ended)),
        configured = configure(&mut requests, &hello, &shared.hold) => configured,
    };
    let revision = match configured {
        Ok(configured) => {
            tracing::info!(
                agent.version = %call::printable(&configured.agent_version),
                "the guest is ready"
            );
            configured.revision
        }
        Err(error) => return (false, error.to_string()),
    };
    let connected = Connected { requests: requests.clone(), number, revision, hello_version };
    shared.connected.send_replace(Some(connected));
    let disconnect = Disconnect(shared);
    let ended = tokio::select! {
        ended = &mut connection => words(ended),
        () = falls_silent(shared, requests) => String::from("the guest does not answer any more"),
    };
    drop(disconnect);
    // Answers that came before the end are still on their way to their callers.
    last_answers.close();
    let _ = timeout(LAST_ANSWERS_WITHIN, last_answers.wait()).await;
    (true, ended)
}

/// Takes the connection's sender back however its future ends.
struct Disconnect<'a>(&'a Shared);

impl Drop for Disconnect<'_> {
    fn drop(&mut self) {
        self.0.connected.send_replace(None);
    }
}

fn words(ended: hyper::Result<()>) -> String {
    ended.map_or_else(|error| error.to_string(), |()| String::from("closed"))
}

/// Completes when the guest, which is not paused, does not answer. It is asked only while something is
/// under way, so that an idle guest stays idle, and after every pause.
async fn falls_silent(shared: &Shared, mut requests: Requests) {
    loop {
        let was_paused = tokio::select! {
            () = shared.hold.held() => {
                shared.hold.released().await;
                // Whoever has let it run on is asking it something right now.
                shared.hold.sleep(PING_AFTER_PAUSE).await;
                true
            }
            () = shared.hold.sleep(PING_EVERY) => false,
        };
        if !was_paused && !is_busy(shared) {
            continue;
        }
        let Ok(_permit) = shared.permit(&shared.control_streams).await else { continue };
        let ping = call::ask::<_, Empty>(&mut requests, path::PING, &Empty {});
        // An agent that does not know the call refuses it, and is there.
        if shared.hold.bounded(PING_WITHIN, ping).await.is_none() {
            return;
        }
    }
}

fn is_busy(shared: &Shared) -> bool {
    shared.long_streams.available_permits() < LONG_STREAMS
        || shared.short_streams.available_permits() < SHORT_STREAMS
        || shared.control_streams.available_permits() < CONTROL_STREAMS
}

/// Makes the guest what `hello` says.
pub(super) async fn configure(
    requests: &mut Requests,
    hello: &GuestHello,
    hold: &Hold,
) -> Result<Configured, NodeError> {
    let fresh = (hello.fresh)();
    let request = Configure {
        hostname: hello.hostname.clone(),
        machine_id: hello.machine_id.clone(),
        entropy: fresh.entropy,
        unix_time_ns: unix_time_ns(fresh.now),
        env: hello.env.clone(),
        incarnation: hello.incarnation,
    };
    let began = Instant::now();
    let asked = call::ask(requests, path::CONFIGURE, &request);
    let configured: Configured =
        call::bounded(hold, path::CONFIGURE, CONFIGURE_WITHIN, asked).await?;
    if !configured.clock_kept && began.elapsed() > CLOCK_ERROR_MOST {
        for clock in times_to_tell(hello) {
            let set = call::ask(requests, path::CLOCK, &clock);
            let Empty {} = call::bounded(hold, path::CLOCK, CONFIGURE_WITHIN, set).await?;
        }
    }
    if configured.incarnation != hello.incarnation || configured.generation > GENERATION_MAX {
        return Err(lost("the agent's answer to configure does not fit the question"));
    }
    Ok(configured)
}

/// The time as a guest is to be told it: once, and again while telling it took so long that it has grown
/// old on the way, for what a guest does for the first time after a restore it does slowly. On a host that
/// never comes to be quick, the guest's clock stays a little behind.
pub(super) fn times_to_tell(hello: &GuestHello) -> impl Iterator<Item = Clock> + Send {
    let mut told = 0;
    let mut began: Option<Instant> = None;
    std::iter::from_fn(move || {
        if began.is_some_and(|began| began.elapsed() <= CLOCK_ERROR_MOST) {
            return None;
        }
        if told == CLOCK_TOLD_MOST {
            tracing::warn!(
                guest.hostname = hello.hostname,
                "the guest's clock may be a little late"
            );
            return None;
        }
        told += 1;
        began = Some(Instant::now());
        Some(Clock { unix_time_ns: unix_time_ns((hello.fresh)().now) })
    })
}

/// Nanoseconds since 1970; the ends of time for what does not fit.
pub(super) fn unix_time_ns(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
}

fn nonce_of(hello: &GuestHello) -> Nonce {
    let mut nonce = [0; 16];
    for (to, from) in nonce.iter_mut().zip((hello.fresh)().entropy) {
        *to = from;
    }
    nonce
}

/// Meets the agent and says nothing more. Whatever connection it had is over for it then, and it waits
/// for a hello.
pub(super) async fn only_greet(dial: &dyn Dial, hello: &GuestHello, within: Duration) {
    let greeting = async {
        if let Ok(mut channel) = dial.dial().await {
            let _ = greet(&mut channel, nonce_of(hello), within).await;
        }
    };
    let _ = timeout(within, greeting).await;
}

/// Runs a connection's tasks inside the link's tracker and ends them with the connection.
#[derive(Clone)]
struct ConnectionExecutor {
    /// Those of the link.
    all: TaskTracker,
    /// Those of this connection among them.
    own: TaskTracker,
    ended: CancellationToken,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for ConnectionExecutor {
    fn execute(&self, future: F) {
        let ended = self.ended.clone();
        self.all.spawn(self.own.track_future(async move {
            tokio::select! {
                () = future => {}
                () = ended.cancelled() => {}
            }
        }));
    }
}
