//! Commands: start them, carry their streams, end them.

pub(crate) mod launch;
mod spawn;
mod streams;

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use bytes::BytesMut;
use nix::{sys::signal::Signal, unistd::Pid};
use skerry_agent_protocol::{
    frame::{Input, Output},
    limits::{ARGV_MAX, FRAME_PAYLOAD_MAX, PATH_MAX},
    message::{Exec, ExecEnd, FailureCode},
};
use tokio::{
    net::unix::pipe,
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

use crate::{
    AgentError, Guest,
    body::{self, Answer, RequestBody},
    children::Children,
    configure::check_env,
    session::Session,
};
use spawn::ParentEnds;
use streams::{OutputEnd, Streams};

/// Frames that wait for a slow reader before the command itself is held back.
const FRAMES_WAITING: usize = 8;
/// What a command gets after its host hung up, before it is killed.
const HANGUP_GRACE: Duration = Duration::from_secs(2);
/// A killed process is gone in no time, unless the kernel holds it.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// A command that has started.
pub(crate) struct Command {
    children: Arc<Children>,
    leader: Pid,
    ended: oneshot::Receiver<ExecEnd>,
    streams: Streams,
    timeout: Option<Duration>,
}

/// Starts the command that `request` asks for.
pub(crate) async fn start(guest: &Arc<Guest>, request: Exec) -> Result<Command, AgentError> {
    check(&request)?;
    let timeout = request.timeout_ms.map(Duration::from_millis);
    let shared = Arc::clone(guest);
    let started =
        guest.blocking(move || spawn::spawn(&shared, &request, shared.workload_cgroup())).await?;
    Ok(Command {
        children: Arc::clone(guest.children()),
        leader: started.leader,
        ended: started.ended,
        streams: Streams::new(started.parent_ends)
            .map_err(|error| AgentError::from_io("the command's streams", &error))?,
        timeout,
    })
}

/// A process that the agent itself looks after. It has no input.
pub(crate) struct Supervised {
    pub(crate) leader: Pid,
    pub(crate) ended: oneshot::Receiver<ExecEnd>,
    pub(crate) stdout: pipe::Receiver,
    pub(crate) stderr: pipe::Receiver,
}

/// Starts a process without a terminal that is not a host's, in this control group or else in that of
/// all commands.
pub(crate) async fn start_supervised(
    guest: &Arc<Guest>,
    request: Exec,
    cgroup: Option<Arc<OwnedFd>>,
) -> Result<Supervised, AgentError> {
    check(&request)?;
    let shared = Arc::clone(guest);
    let started = guest
        .blocking(move || {
            let cgroup = cgroup.as_deref().or_else(|| shared.workload_cgroup());
            spawn::spawn(&shared, &request, cgroup)
        })
        .await?;
    let streams = match started.parent_ends {
        ParentEnds::Pipes { stdin: _, stdout, stderr } => {
            streams::receiver(stdout).and_then(|stdout| Ok((stdout, streams::receiver(stderr)?)))
        }
        ParentEnds::Terminal { master: _ } => Err(io::Error::other("it has a terminal")),
    };
    match streams {
        Ok((stdout, stderr)) => {
            Ok(Supervised { leader: started.leader, ended: started.ended, stdout, stderr })
        }
        Err(error) => {
            guest.children().signal_session(started.leader, Signal::SIGKILL);
            Err(AgentError::from_io("the process's streams", &error))
        }
    }
}

/// Runs a program of the agent's own, as root, in the background and without any streams, for at most `within` or until it
/// is given up, and returns when it has ended.
pub(crate) async fn run_quietly(
    guest: &Arc<Guest>,
    argv: &'static [&'static str],
    within: Duration,
    given_up: &CancellationToken,
) -> Result<ExecEnd, AgentError> {
    let shared = Arc::clone(guest);
    let (leader, mut ended) = guest.blocking(move || spawn::spawn_quietly(&shared, argv)).await?;
    let end = tokio::select! {
        end = &mut ended => end,
        () = async { tokio::select! { () = sleep(within) => {}, () = given_up.cancelled() => {} } } => {
            guest.children().hurry(leader);
            guest.children().signal_session(leader, Signal::SIGKILL);
            ended.await
        }
    };
    end.map_err(|_| AgentError::refused(FailureCode::Other, "the agent is stopping"))
}

fn check(request: &Exec) -> Result<(), AgentError> {
    if request.argv.is_empty() || request.argv.len() > ARGV_MAX || request.argv[0].is_empty() {
        return Err(AgentError::invalid(format!(
            "argv: 1 to {ARGV_MAX} words, the first not empty"
        )));
    }
    if request.argv.iter().any(|word| word.contains('\0')) {
        return Err(AgentError::invalid("argv: no NUL is possible"));
    }
    if let Some(dir) = &request.working_dir
        && (!dir.starts_with('/') || dir.contains('\0') || dir.len() > PATH_MAX)
    {
        return Err(AgentError::invalid("working_dir: an absolute path"));
    }
    if let Some(terminal) = request.terminal
        && (!(1..=1000).contains(&terminal.columns) || !(1..=1000).contains(&terminal.rows))
    {
        return Err(AgentError::invalid("terminal: 1 to 1000 columns and rows"));
    }
    check_env(request.env.iter())
}

impl Command {
    /// Answers with the command's output; `input` is what the host sends it. Whoever drops the
    /// answer's body hangs up.
    pub(crate) fn run(self, session: &Arc<Session>, input: RequestBody) -> Answer {
        let (output, frames) = mpsc::channel(FRAMES_WAITING);
        let ended = session.ended.clone();
        session.tasks.spawn(self.carry(input, output, ended));
        body::stream(ReceiverStream::new(frames).map(|frame: Output| Ok(frame.encode())))
    }

    async fn carry(
        self,
        mut input: RequestBody,
        output: mpsc::Sender<Output>,
        connection_ended: CancellationToken,
    ) {
        let Self { children, leader, ended, streams, timeout: time_limit } = self;
        let (mut stdin, outputs) = streams.split();
        let exited = CancellationToken::new();
        let supervise = async {
            let end = supervise(
                &children,
                leader,
                ended,
                time_limit,
                hung_up(&output, &connection_ended),
            )
            .await;
            exited.cancel();
            end
        };
        let forward = forward_all(outputs, &output, &exited);
        let feed = async {
            feed(&mut input, &mut stdin, &children, leader).await;
            std::future::pending::<()>().await
        };
        let end = tokio::select! {
            (end, ()) = async { tokio::join!(supervise, forward) } => end,
            () = feed => None,
        };
        if let Some(end) = end {
            // A host that is gone by now does not need the exit.
            let _ = output.send(Output::Exit(end)).await;
        }
        drop(output);
        input.discard().await;
    }
}

/// Completes when nobody reads the command's output any more.
async fn hung_up(output: &mpsc::Sender<Output>, connection_ended: &CancellationToken) {
    tokio::select! {
        () = output.closed() => {}
        () = connection_ended.cancelled() => {}
    }
}

/// Waits for the end of the command and brings it about when its time is over or its host is gone.
/// `None` when nobody wants to know.
async fn supervise(
    children: &Children,
    leader: Pid,
    mut ended: oneshot::Receiver<ExecEnd>,
    time_limit: Option<Duration>,
    hung_up: impl Future<Output = ()>,
) -> Option<ExecEnd> {
    let time_over = async {
        match time_limit {
            Some(limit) => sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        end = &mut ended => end.ok(),
        () = time_over => {
            children.signal_session(leader, Signal::SIGKILL);
            let _ = timeout(KILLED_WITHIN, &mut ended).await;
            Some(ExecEnd::TimedOut)
        }
        () = hung_up => {
            children.signal_session(leader, Signal::SIGHUP);
            // A stopped process acts on the hang-up only when it is continued.
            children.signal_session(leader, Signal::SIGCONT);
            if timeout(HANGUP_GRACE, &mut ended).await.is_err() {
                children.signal_session(leader, Signal::SIGKILL);
                let _ = timeout(KILLED_WITHIN, &mut ended).await;
            }
            None
        }
    }
}

async fn forward_all(
    outputs: Vec<OutputEnd>,
    output: &mpsc::Sender<Output>,
    exited: &CancellationToken,
) {
    let forwards = outputs.into_iter().map(|end| end.forward(output, exited));
    futures::future::join_all(forwards).await;
}

/// Carries the host's frames to the command until the host has no more.
async fn feed(
    input: &mut RequestBody,
    stdin: &mut streams::InputEnd,
    children: &Children,
    leader: Pid,
) {
    let mut buffer = BytesMut::new();
    loop {
        match Input::take(&mut buffer) {
            Ok(Some(frame)) => act_on(frame, stdin, children, leader).await,
            Ok(None) => match input.chunk().await {
                Ok(Some(bytes)) => buffer.extend_from_slice(&bytes),
                Ok(None) => return stdin.close().await,
                // The answer's body ends with the connection; that is where the hang-up is seen.
                Err(_) => return,
            },
            // A host that sends nonsense gets no further, its command goes on.
            Err(_) => return stdin.close().await,
        }
    }
}

async fn act_on(frame: Input, stdin: &mut streams::InputEnd, children: &Children, leader: Pid) {
    match frame {
        Input::Stdin(bytes) => stdin.write(bytes).await,
        Input::CloseStdin => stdin.close().await,
        Input::Resize { columns, rows } => stdin.resize(columns, rows),
        Input::Signal(number) => {
            let signal =
                i32::try_from(number).ok().and_then(|number| Signal::try_from(number).ok());
            if let Some(signal) = signal
                && !stdin.signal_foreground(signal)
            {
                children.signal_group(leader, signal);
            }
        }
    }
}

/// What is read from a command at a time, in bytes.
const PIECE: usize = 32 * 1024;
const _: () = assert!(PIECE <= FRAME_PAYLOAD_MAX);
