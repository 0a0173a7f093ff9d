//! One connection: handshake, then HTTP/2, then which call goes where.

use std::{
    convert::Infallible,
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Method, Request};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use skerry_agent_protocol::{
    call,
    handshake::accept,
    limits::{
        CONCURRENT_STREAMS, CONNECTION_WINDOW, HEADER_LIST_MAX, HTTP2_FRAME_MAX, STREAM_WINDOW,
    },
    message::{Empty, FailureCode, Freeze, Grow, Grown, Thawed},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    AgentError, Guest,
    body::{Answer, RequestBody, failure, json},
    configure, connect, exec, files,
    freeze::Freezer,
    listen, ports, prepare, stats, tree, volume_files, volumes, workloads, write,
};

/// How long the last answers may take once power off was asked for.
const LAST_ANSWERS_WITHIN: Duration = Duration::from_millis(500);
/// Bytes of an answer that wait in the agent for one slow reader.
const SEND_BUFFER: usize = 128 * 1024;

/// One connection's own state.
pub(crate) struct Session {
    pub(crate) guest: Arc<Guest>,
    pub(crate) generation: u16,
    /// Every connection begins with a configure call: the host may be another than before.
    pub(crate) configured: AtomicBool,
    /// The ports listened on for it.
    pub(crate) lobby: listen::Lobby,
    /// Cancelled when the connection is gone.
    pub(crate) ended: CancellationToken,
    /// Everything that runs for this guest's connections. What a connection leaves behind ends on its
    /// own, within bounds, and does not hold up the next one.
    pub(crate) tasks: TaskTracker,
}

/// Runs a connection's tasks inside the guest's tracker and ends them with the connection.
#[derive(Clone)]
struct SessionExecutor {
    tasks: TaskTracker,
    ended: CancellationToken,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for SessionExecutor {
    fn execute(&self, future: F) {
        let ended = self.ended.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = future => {}
                () = ended.cancelled() => {}
            }
        });
    }
}

/// Serves one connection: waits for the handshake, then answers calls until the stream ends, breaks,
/// turns to nonsense, or the host asks for power off. Commands that still run then are killed.
///
/// # Errors
/// [`io::Error`] when the stream ends or breaks, during the handshake or after.
pub async fn serve(
    mut io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    guest: &Arc<Guest>,
) -> io::Result<()> {
    let generation = tokio::select! {
        generation = accept(&mut io) => generation?,
        () = guest.powering_off() => return Ok(()),
    };
    let session = Arc::new(Session {
        guest: Arc::clone(guest),
        generation,
        configured: AtomicBool::new(false),
        lobby: listen::Lobby::default(),
        ended: CancellationToken::new(),
        tasks: guest.tasks().clone(),
    });
    let outcome = serve_http2(io, &session).await;
    session.ended.cancel();
    outcome
}

async fn serve_http2(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    session: &Arc<Session>,
) -> io::Result<()> {
    let executor = SessionExecutor { tasks: session.tasks.clone(), ended: session.ended.clone() };
    let service = {
        let session = Arc::clone(session);
        service_fn(move |request| {
            let session = Arc::clone(&session);
            async move { Ok::<_, Infallible>(answer(&session, request).await) }
        })
    };
    let connection = http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(CONCURRENT_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(HTTP2_FRAME_MAX)
        .max_header_list_size(HEADER_LIST_MAX)
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = session.guest.powering_off() => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_ANSWERS_WITHIN, connection).await.unwrap_or(Ok(()))
        }
    };
    outcome.map_err(io::Error::other)
}

async fn answer(session: &Arc<Session>, request: Request<Incoming>) -> Answer {
    let (parts, incoming) = request.into_parts();
    let mut body = RequestBody::new(incoming);
    let outcome = if parts.method == Method::POST {
        dispatch(session, parts.uri.path(), &mut body).await
    } else {
        Err(AgentError::invalid("every call is a POST"))
    };
    match outcome {
        Ok(Dispatched::Answered(answer)) => {
            session.tasks.spawn(body.discard());
            answer
        }
        Ok(Dispatched::Command(command)) => command.run(session, body),
        Ok(Dispatched::Connection(connection)) => connection.run(session, body),
        Ok(Dispatched::Listener(listener)) => listener.run(session, body),
        Err(error) => {
            session.tasks.spawn(body.discard());
            failure(&error)
        }
    }
}

enum Dispatched {
    Answered(Answer),
    /// A command has started; it needs the rest of the body for its input.
    Command(exec::Command),
    /// A connection is made; the rest of the body goes into it.
    Connection(connect::Connection),
    /// A port is listened on.
    Listener(listen::Listener),
}

async fn dispatch(
    session: &Arc<Session>,
    path: &str,
    body: &mut RequestBody,
) -> Result<Dispatched, AgentError> {
    if path == call::CONFIGURE {
        let configured = configure::configure(session, &body.head().await?).await?;
        session.configured.store(true, Ordering::Release);
        return json(&configured).map(Dispatched::Answered);
    }
    if !session.configured.load(Ordering::Acquire) {
        return Err(AgentError::refused(
            FailureCode::NotConfigured,
            "the first call of a connection is configure",
        ));
    }
    let guest = &session.guest;
    let answer = match path {
        call::EXEC => {
            let command = exec::start(guest, body.head().await?).await?;
            return Ok(Dispatched::Command(command));
        }
        call::CONNECT => {
            let connection = connect::open(guest, body.head().await?).await?;
            return Ok(Dispatched::Connection(connection));
        }
        call::ACCEPT => {
            let connection = listen::take(session, body.head().await?)?;
            return Ok(Dispatched::Connection(connection));
        }
        call::LISTEN => {
            let listener = listen::open(session, body.head().await?).await?;
            return Ok(Dispatched::Listener(listener));
        }
        call::CLOCK => {
            configure::set_clock(guest, body.head().await?)?;
            json(&Empty {})?
        }
        call::PING => {
            let Empty {} = body.head().await?;
            json(&Empty {})?
        }
        call::SYNC => {
            let Empty {} = body.head().await?;
            let file_systems = guest.freezer().file_systems();
            guest.blocking(move || Freezer::sync(&file_systems)).await?;
            json(&Empty {})?
        }
        call::FREEZE => {
            let Freeze { thaw_after_ms } = body.head().await?;
            guest.freezer().freeze(Duration::from_millis(thaw_after_ms)).await?;
            json(&Empty {})?
        }
        call::THAW => {
            let Empty {} = body.head().await?;
            json(&Thawed { held: guest.freezer().thaw().await? })?
        }
        call::MOUNT => {
            volumes::mount_disk(guest, body.head().await?).await?;
            json(&Empty {})?
        }
        call::UNMOUNT => {
            volumes::unmount_disk(guest, body.head().await?).await?;
            json(&Empty {})?
        }
        call::SET_WORKLOADS => json(&workloads::set(guest, body.head().await?).await?)?,
        call::WATCH_WORKLOADS => json(&workloads::watch(guest, body.head().await?).await?)?,
        call::ACKNOWLEDGE_END => json(&workloads::acknowledge(guest, &body.head().await?))?,
        call::READ_WORKLOAD_LOG => json(&workloads::read_log(guest, body.head().await?).await?)?,
        call::CLEAR_WORKLOAD_LOG => json(&workloads::clear_log(guest, body.head().await?).await?)?,
        call::GROW => json(&grow(guest, body.head().await?).await?)?,
        call::PREPARE => json(&prepare::prepare(guest, body.head().await?).await?)?,
        call::POWER_OFF => {
            let Empty {} = body.head().await?;
            // What is frozen cannot be made consistent. A freeze that hangs is no reason to stay on.
            let _ = guest.freezer().thaw().await;
            guest.request_power_off();
            json(&Empty {})?
        }
        call::STAT => files::stat(guest, body.head().await?).await?,
        call::LIST => files::list(guest, body.head().await?).await?,
        call::READ => files::read(guest, body.head().await?).await?,
        call::MAKE_DIR => files::make_dir(guest, body.head().await?).await?,
        call::RENAME => files::rename(guest, body.head().await?).await?,
        call::REMOVE => files::remove(guest, body.head().await?).await?,
        call::WRITE => write::write(guest, body.head().await?, body).await?,
        call::UPLOAD => tree::upload(guest, body.head().await?, body).await?,
        call::DOWNLOAD => tree::download(guest, body.head().await?).await?,
        call::STATS => {
            let Empty {} = body.head().await?;
            json(&guest.blocking(stats::read).await?)?
        }
        call::PORTS => {
            let Empty {} = body.head().await?;
            json(&guest.blocking(ports::read).await?)?
        }
        _ => match volume_files::answer(guest, path, body).await? {
            Some(answer) => answer,
            None => return Err(AgentError::invalid(format!("there is no call {path}"))),
        },
    };
    Ok(Dispatched::Answered(answer))
}

/// Grows the root file system to the size of its disk.
async fn grow(guest: &Guest, request: Grow) -> Result<Grown, AgentError> {
    let disk = guest.as_machine().and_then(|machine| machine.root_disk.clone());
    let Some(disk) = disk else { return Ok(Grown { gained_bytes: 0 }) };
    guest
        .blocking(move || {
            let grown = disk.wait_for(request.disk_size_bytes).and_then(|()| disk.grow("/"));
            let gained_bytes =
                grown.map_err(|error| AgentError::from_io("the root file system", &error))?;
            Ok(Grown { gained_bytes })
        })
        .await
}
