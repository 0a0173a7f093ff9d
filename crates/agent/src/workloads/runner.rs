//! The life of one workload: one task, from when the agent is told of it until it is told no more.

use std::{sync::Arc, time::Duration};

use nix::unistd::Pid;
use skerry_agent_protocol::{
    limits::LOG_LINE_MAX,
    message::{Exec, ExecEnd},
    workload::{End, Kind, Phase, Restart, Stream, Workload},
};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe,
    sync::{oneshot, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Supervisor,
    group::Group,
    log::{Log, now_unix_ms},
    marker::Marker,
};
use crate::{
    AgentError, Guest,
    exec::{self, Supervised},
};

/// What a process gets between being asked to end and being killed.
const STOPPED_WITHIN: Duration = Duration::from_secs(10);
/// A killed process is gone in no time, unless the kernel holds it.
const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// How long output is awaited after the end: somebody else may hold the pipe.
const DRAINED_WITHIN: Duration = Duration::from_secs(1);
/// What is read of the output at a time, in bytes.
const PIECE: usize = 32 * 1024;

/// What the agent was told last; `None` once it is told no more.
pub(super) type Orders = watch::Receiver<Option<Arc<Workload>>>;

/// One workload's task.
pub(super) struct Runner {
    pub(super) guest: Arc<Guest>,
    pub(super) id: String,
    pub(super) orders: Orders,
    pub(super) log: Arc<Log>,
    pub(super) group: Arc<Group>,
    pub(super) marker: Marker,
}

/// Why a turn is over.
enum Over {
    /// It ended and is not to be started again.
    Ended,
    /// Something else is asked for.
    Overtaken,
}

/// Kills the processes of a hosted guest whose runner is dropped on its way: nobody else would. A machine
/// that goes down asks all processes to end.
struct Leash<'a> {
    group: &'a Group,
    leader: Option<Pid>,
}

impl Drop for Leash<'_> {
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            self.group.kill(leader);
        }
    }
}

impl Runner {
    fn supervisor(&self) -> &Supervisor {
        self.guest.supervisor()
    }

    /// Runs until the workload is none any more.
    pub(super) async fn run(mut self) {
        let ending = self.supervisor().ending.clone();
        tokio::select! {
            () = self.follow_orders() => {}
            () = ending.cancelled() => {}
        }
    }

    async fn follow_orders(&mut self) {
        // The turn that has ended, so that only another one is begun.
        let mut done: Option<u64> = None;
        loop {
            let order = {
                let due = |order: &Option<Arc<Workload>>| match order {
                    None => true,
                    Some(order) => order.runs && done != Some(order.turn),
                };
                let Ok(order) = self.orders.wait_for(due).await else { return };
                order.clone()
            };
            let Some(order) = order else { return };
            let over = self.turn(&order).await;
            done = match over {
                Over::Ended => Some(order.turn),
                Over::Overtaken => None,
            };
        }
    }

    /// Completes when this turn is not asked for any more.
    async fn overtaken(&self, turn: u64) {
        let mut orders = self.orders.clone();
        let other = |order: &Option<Arc<Workload>>| {
            order.as_ref().is_none_or(|order| !order.runs || order.turn != turn)
        };
        // Who gives the orders is gone: so is what was wanted.
        let _ = orders.wait_for(other).await;
    }

    async fn turn(&mut self, order: &Arc<Workload>) -> Over {
        let turn = order.turn;
        self.supervisor().report(&self.id, |report| {
            report.turn = turn;
            report.phase = Phase::Waiting;
            report.restarts = 0;
            report.is_acknowledged = false;
        });
        if order.kind == Kind::SetupOnce
            && let Some(end) = self.marker.end_of(turn)
        {
            self.supervisor().report(&self.id, |report| {
                report.phase = Phase::Ended;
                report.last_end = Some(end);
            });
            return Over::Ended;
        }
        tokio::select! {
            () = self.supervisor().setup_over(&self.id) => {}
            () = self.overtaken(turn) => {
                self.stopped();
                return Over::Overtaken;
            }
        }
        let mut row = 0_u32;
        loop {
            // What has changed meanwhile takes effect at each start.
            let now = self.orders.borrow().clone();
            let Some(order) = now.filter(|order| order.runs && order.turn == turn) else {
                self.stopped();
                return Over::Overtaken;
            };
            if self.guest.power_off_requested() {
                self.stopped();
                return Over::Ended;
            }
            let began = Instant::now();
            let Some(end) = self.one_process(&order).await else { return Over::Overtaken };
            if began.elapsed() >= Duration::from_millis(order.steady_ms) {
                row = 0;
            }
            if !again(&order, end) || (order.restarts_max > 0 && row >= order.restarts_max) {
                return self.ended(&order, end).await;
            }
            let pause = pause(&order, row);
            row = row.saturating_add(1);
            self.supervisor().report(&self.id, |report| {
                report.phase = Phase::Waiting;
                report.restarts = row;
            });
            tokio::select! {
                () = sleep(pause) => {}
                () = self.overtaken(turn) => {
                    self.stopped();
                    return Over::Overtaken;
                }
            }
        }
    }

    async fn ended(&self, order: &Workload, end: End) -> Over {
        if order.kind == Kind::SetupOnce {
            let (marker, turn) = (self.marker.clone(), order.turn);
            let noted = self.guest.blocking(move || marker.note(turn, end)).await;
            if let Err(error) = noted {
                self.say(&format!("that it has run could not be noted: {error}")).await;
            }
        }
        self.supervisor().report(&self.id, |report| report.phase = Phase::Ended);
        Over::Ended
    }

    fn stopped(&self) {
        self.supervisor().report(&self.id, |report| report.phase = Phase::Stopped);
    }

    /// Starts a process and waits for its end; `None` when it was stopped because something else is
    /// asked for.
    async fn one_process(&self, order: &Workload) -> Option<End> {
        let (group, guest) = (Arc::clone(&self.group), &self.guest);
        let started = exec::start_supervised(guest, exec_of(order), group.dir()).await;
        let Supervised { leader, mut ended, stdout, stderr } = match started {
            Ok(process) => process,
            Err(error) => return Some(self.not_started(&error).await),
        };
        let is_hosted = self.guest.hosted_home().is_some();
        let mut leash = Leash { group: &group, leader: is_hosted.then_some(leader) };
        let at = now_unix_ms();
        self.supervisor().report(&self.id, |report| {
            report.phase = Phase::Running;
            report.starts += 1;
            report.pid = u32::try_from(leader.as_raw()).ok();
            report.started_unix_ms = Some(at);
            report.start_error = None;
        });
        let exited = CancellationToken::new();
        let outputs = async {
            tokio::join!(
                self.keep(stdout, Stream::Stdout, &exited),
                self.keep(stderr, Stream::Stderr, &exited),
            );
        };
        let supervise = async {
            let end = self.until_end(order.turn, &group, leader, &mut ended).await;
            exited.cancel();
            end
        };
        let ((end, was_stopped), ()) = tokio::join!(supervise, outputs);
        leash.leader = None;
        group.kill_rest();
        let what = match end {
            End::Code(code) => format!("ended with code {code}"),
            End::Signal(signal) => format!("ended by signal {signal}"),
            End::NotStarted => String::from("did not end: the kernel holds it"),
        };
        self.say(&what).await;
        let at = now_unix_ms();
        self.supervisor().report(&self.id, |report| {
            report.pid = None;
            report.last_end = Some(end);
            report.ended_unix_ms = Some(at);
            if was_stopped {
                report.phase = Phase::Stopped;
            }
        });
        (!was_stopped).then_some(end)
    }

    /// How the process ended, and whether it was stopped.
    async fn until_end(
        &self,
        turn: u64,
        group: &Group,
        leader: Pid,
        ended: &mut oneshot::Receiver<ExecEnd>,
    ) -> (End, bool) {
        tokio::select! {
            biased;
            end = &mut *ended => return (end_of(end.ok()), false),
            () = self.overtaken(turn) => {}
        }
        self.supervisor().report(&self.id, |report| report.phase = Phase::Stopping);
        group.terminate(leader);
        if let Ok(end) = timeout(STOPPED_WITHIN, &mut *ended).await {
            return (end_of(end.ok()), true);
        }
        group.kill(leader);
        let end = timeout(KILLED_WITHIN, &mut *ended).await.ok().and_then(Result::ok);
        (end_of(end), true)
    }

    async fn not_started(&self, error: &AgentError) -> End {
        self.say(&format!("could not be started: {error}")).await;
        let at = now_unix_ms();
        self.supervisor().report(&self.id, |report| {
            report.starts += 1;
            report.start_error = Some(error.to_string());
            report.last_end = Some(End::NotStarted);
            report.ended_unix_ms = Some(at);
        });
        End::NotStarted
    }

    async fn say(&self, what: &str) {
        self.write(vec![(Stream::Supervisor, what.as_bytes().to_vec())]).await;
    }

    async fn write(&self, lines: Vec<(Stream, Vec<u8>)>) {
        let log = Arc::clone(&self.log);
        let supervisor = self.supervisor();
        let Ok(_turn) = supervisor.log_writers.acquire().await else { return };
        // On a thread of its own kind: a file system may be frozen, and must be thawed meanwhile. A full
        // disk loses output, and holds up nobody.
        let _ = tokio::task::spawn_blocking(move || log.append(&lines)).await;
    }

    /// Keeps what the process says. It is held back by a log that cannot be written.
    async fn keep(&self, mut pipe: pipe::Receiver, stream: Stream, exited: &CancellationToken) {
        let mut cutter = Cutter::default();
        let mut piece = vec![0; PIECE];
        loop {
            let read = tokio::select! {
                read = pipe.read(&mut piece) => read,
                () = async { exited.cancelled().await; sleep(DRAINED_WITHIN).await } => Ok(0),
            };
            let Ok(length @ 1..) = read else { break };
            let lines = cutter.cut(&piece[..length]);
            if !lines.is_empty() {
                self.write(lines.into_iter().map(|line| (stream, line)).collect()).await;
            }
        }
        if let Some(rest) = cutter.rest() {
            self.write(vec![(stream, rest)]).await;
        }
    }
}

/// Cuts a stream into lines of a bounded length.
#[derive(Default)]
struct Cutter {
    open: Vec<u8>,
}

impl Cutter {
    fn cut(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for byte in bytes {
            if *byte == b'\n' {
                if self.open.last() == Some(&b'\r') {
                    self.open.pop();
                }
                lines.push(std::mem::take(&mut self.open));
            } else {
                self.open.push(*byte);
                if self.open.len() == LOG_LINE_MAX {
                    lines.push(std::mem::take(&mut self.open));
                }
            }
        }
        lines
    }

    fn rest(self) -> Option<Vec<u8>> {
        (!self.open.is_empty()).then_some(self.open)
    }
}

fn end_of(end: Option<ExecEnd>) -> End {
    match end {
        Some(ExecEnd::Code(code)) => End::Code(code),
        Some(ExecEnd::Signal(signal)) => End::Signal(signal),
        Some(ExecEnd::TimedOut) | None => End::NotStarted,
    }
}

fn again(order: &Workload, end: End) -> bool {
    match order.restart {
        Restart::Never => false,
        Restart::OnFailure => end != End::Code(0),
        Restart::Always => true,
    }
}

/// How long to wait after so many restarts in a row.
fn pause(order: &Workload, row: u32) -> Duration {
    let doubled = order.pause_ms.saturating_mul(1 << row.min(31));
    Duration::from_millis(doubled.min(order.pause_max_ms))
}

fn exec_of(order: &Workload) -> Exec {
    Exec {
        argv: order.argv.clone(),
        env: order.env.clone(),
        working_dir: order.working_dir.clone(),
        user: order.user.clone(),
        terminal: None,
        timeout_ms: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_at_ends_of_lines_and_where_a_line_is_too_long() {
        let mut cutter = Cutter::default();
        assert_eq!(cutter.cut(b"one\r\ntw"), [b"one".to_vec()]);
        assert_eq!(cutter.cut(b"o\n\n"), [b"two".to_vec(), Vec::new()]);
        let long = vec![b'x'; LOG_LINE_MAX + 1];
        assert_eq!(cutter.cut(&long), [vec![b'x'; LOG_LINE_MAX]]);
        assert_eq!(cutter.rest(), Some(b"x".to_vec()));
        assert_eq!(Cutter::default().rest(), None);
    }
}
