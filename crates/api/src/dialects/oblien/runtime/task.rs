//! Commands that are kept track of: what they have printed lately and how they ended, for a while after.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Value, json};
use skerry_control::{
    Error,
    internal_api::{ExecControl, ExecExit, ExecOutput, ExecSession},
};
use skerry_model::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::problem::RuntimeProblem;
use crate::{
    dialects::oblien::object,
    output_budget::OutputShare,
    output_log::{Look, OutputLog, Stream},
};

/// Of one workspace at a time.
pub(super) const RUNNING_MAX: usize = 50;
/// Of one workspace, those that have ended among them.
const KEPT_MAX: usize = 256;
/// Output that is kept of a command nobody waits for.
pub(super) const KEPT_BYTES: usize = 256 * 1024;
/// The exit code of what was ended because its time was over, as `timeout(1)` has it.
const TIMED_OUT_EXIT_CODE: i32 = 124;
/// The exit code of what was killed.
const KILLED_EXIT_CODE: i32 = 137;
/// How long those that have ended are kept by default.
const DEFAULT_TTL: Duration = Duration::from_secs(300);

/// How long a command is kept after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ttl {
    /// So long.
    For(Duration),
    /// As long as there is room.
    Forever,
}

impl Ttl {
    /// As clients say it, in seconds.
    pub(super) fn of(seconds: i64) -> Option<Self> {
        match seconds {
            -1 => Some(Self::Forever),
            0 => Some(Self::For(DEFAULT_TTL)),
            1..=604_800 => Some(Self::For(Duration::from_secs(seconds.unsigned_abs()))),
            _ => None,
        }
    }

    fn seconds(self) -> i64 {
        match self {
            Self::For(duration) => i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
            Self::Forever => -1,
        }
    }
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself, with this code.
    Exited(i32),
    /// Its time was over.
    TimedOut,
    /// Somebody asked for it, or hung up.
    Killed,
    /// The machine, or the server, or the way there ended first.
    Lost(String),
}

impl Ended {
    pub(super) const fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Exited(code) => Some(*code),
            Self::TimedOut => Some(TIMED_OUT_EXIT_CODE),
            Self::Killed => Some(KILLED_EXIT_CODE),
            Self::Lost(_) => None,
        }
    }

    const fn status(&self) -> &'static str {
        match self {
            Self::Exited(_) => "exited",
            Self::TimedOut | Self::Killed | Self::Lost(_) => "failed",
        }
    }

    fn error(&self) -> Option<String> {
        match self {
            Self::Exited(_) => None,
            Self::TimedOut => Some("the command's time was over".to_owned()),
            Self::Killed => Some("the command was killed".to_owned()),
            Self::Lost(why) => Some(why.clone()),
        }
    }

    /// The event that ends a stream.
    pub(super) fn event(&self) -> Value {
        // Clients take a number.
        let exit_code = self.exit_code().unwrap_or(-1);
        let mut event = json!({ "exit_code": exit_code, "status": self.status() });
        if let Some(error) = self.error() {
            event["error"] = json!(error);
        }
        event
    }
}

/// A command.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: String,
    command: Vec<String>,
    ttl: Ttl,
    created_at: Timestamp,
    control: mpsc::Sender<ExecControl>,
    killed: CancellationToken,
    ended_at: Mutex<Option<Timestamp>>,
    log: Arc<OutputLog<Ended>>,
}

impl Task {
    /// Takes what the command says until it ends; dropping the session ends it. `share` covers what is
    /// kept beyond what each has.
    pub(super) async fn run(
        &self,
        mut session: ExecSession,
        mut share: Option<&mut OutputShare>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<Ended, Error> {
        let listening = async {
            let mut printed = 0;
            loop {
                let (stream, bytes) = match session.output.recv().await {
                    Some(Ok(ExecOutput::Stdout(bytes))) => (Stream::Stdout, bytes),
                    Some(Ok(ExecOutput::Stderr(bytes))) => (Stream::Stderr, bytes),
                    Some(Ok(ExecOutput::Exit(ExecExit::Code(code)))) => {
                        return Ok(Ended::Exited(code));
                    }
                    Some(Ok(ExecOutput::Exit(ExecExit::Signal(signal)))) => {
                        return Ok(Ended::Exited(128 + signal));
                    }
                    Some(Ok(ExecOutput::Exit(ExecExit::TimedOut))) => return Ok(Ended::TimedOut),
                    Some(Err(error)) => return Ok(Ended::Lost(error.to_string())),
                    None => return Ok(Ended::Lost("the guest is gone".to_owned())),
                };
                if let Some(share) = share.as_deref_mut() {
                    printed = self.log.kept_bytes().min(printed + bytes.len());
                    share.cover(printed)?;
                }
                self.log.print(stream, &bytes).await;
            }
        };
        tokio::select! {
            ended = listening => ended,
            () = self.killed.cancelled() => Ok(Ended::Killed),
            () = shutdown => Ok(Ended::Lost("the server has stopped".to_owned())),
        }
    }

    /// Notes its end.
    pub(super) fn end(&self, how: Ended, at: Timestamp) {
        self.ended_at().get_or_insert(at);
        self.log.end(how);
    }

    fn ended_at(&self) -> MutexGuard<'_, Option<Timestamp>> {
        self.ended_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ended(&self) -> Option<Ended> {
        self.log.ended()
    }

    pub(super) fn kill(&self) {
        self.killed.cancel();
    }

    pub(super) fn look(&self) -> Look<Ended> {
        self.log.look()
    }

    /// What is kept of its output, as text.
    pub(super) fn texts(&self) -> (String, String, bool) {
        let (stdout, stderr, is_cut) = self.log.streams();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (text(stdout), text(stderr), is_cut)
    }

    /// Keeps no more than what every command has.
    pub(super) fn shrink(&self) {
        self.log.shrink(KEPT_BYTES);
    }

    /// Hands input in; false when it takes none any more.
    pub(super) async fn write(&self, bytes: Bytes) -> bool {
        self.ended().is_none() && self.control.send(ExecControl::Stdin(bytes)).await.is_ok()
    }

    /// No input comes any more.
    pub(super) async fn close_input(&self) {
        let _ = self.control.send(ExecControl::CloseStdin).await;
    }

    /// As clients see it, with what is kept of its output.
    pub(super) fn shown(&self) -> Value {
        let (stdout, stderr, is_cut) = self.texts();
        let mut shown = self.listed();
        shown["stdout"] = json!(stdout);
        shown["stderr"] = json!(stderr);
        if is_cut {
            shown["truncated"] = json!(true);
        }
        shown
    }

    /// The same without its output.
    pub(super) fn listed(&self) -> Value {
        let ended = self.ended();
        let mut shown = json!({
            "id": self.id,
            "command": self.command,
            "status": ended.as_ref().map_or("running", Ended::status),
            "exit_code": ended.as_ref().and_then(Ended::exit_code),
            "created_at": object::time(self.created_at),
            "started_at": object::time(self.created_at),
            "exited_at": self.ended_at().map(object::time),
            "ttl_seconds": self.ttl.seconds(),
        });
        if let Some(error) = ended.as_ref().and_then(Ended::error) {
            shown["error"] = json!(error);
        }
        shown
    }

    fn is_over(&self, now: Timestamp) -> bool {
        match (*self.ended_at(), self.ttl) {
            (Some(at), Ttl::For(ttl)) => at.saturating_add(ttl).is_ok_and(|until| until <= now),
            (Some(_), Ttl::Forever) | (None, _) => false,
        }
    }
}

/// The commands of one workspace.
#[derive(Debug, Default)]
pub(super) struct Tasks(Mutex<All>);

#[derive(Debug, Default)]
struct All {
    begun: u64,
    by_number: BTreeMap<u64, Arc<Task>>,
}

impl All {
    fn running(&self) -> usize {
        self.by_number.values().filter(|task| task.ended().is_none()).count()
    }

    fn tidy(&mut self, now: Timestamp) {
        self.by_number.retain(|_, task| !task.is_over(now));
        while self.by_number.len() > KEPT_MAX {
            let ended = self.by_number.iter().find(|(_, task)| task.ended().is_some());
            let Some(number) = ended.map(|(number, _)| *number) else { return };
            self.by_number.remove(&number);
        }
    }
}

impl Tasks {
    fn all(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more may run.
    pub(super) fn has_room(&self) -> Result<(), RuntimeProblem> {
        if self.all().running() >= RUNNING_MAX {
            return Err(RuntimeProblem::TooMany { what: "commands running", max: RUNNING_MAX });
        }
        Ok(())
    }

    /// Notes one that has begun, and keeps so much of what it prints.
    pub(super) fn keep(
        &self,
        control: mpsc::Sender<ExecControl>,
        command: Vec<String>,
        ttl: Ttl,
        kept_bytes: usize,
        now: Timestamp,
    ) -> Result<Arc<Task>, RuntimeProblem> {
        let mut all = self.all();
        if all.running() >= RUNNING_MAX {
            return Err(RuntimeProblem::TooMany { what: "commands running", max: RUNNING_MAX });
        }
        all.begun += 1;
        let number = all.begun;
        let task = Arc::new(Task {
            id: number.to_string(),
            command,
            ttl,
            created_at: now,
            control,
            killed: CancellationToken::new(),
            ended_at: Mutex::new(None),
            log: Arc::new(OutputLog::new(kept_bytes)),
        });
        all.by_number.insert(number, Arc::clone(&task));
        all.tidy(now);
        Ok(task)
    }

    /// In the order they began.
    pub(super) fn list(&self, now: Timestamp) -> Vec<Arc<Task>> {
        let mut all = self.all();
        all.tidy(now);
        all.by_number.values().cloned().collect()
    }

    pub(super) fn get(&self, id: &str, now: Timestamp) -> Result<Arc<Task>, RuntimeProblem> {
        let found = self.list(now).into_iter().find(|task| task.id == id);
        found.ok_or(RuntimeProblem::NoSuch("task"))
    }

    /// Forgets one, and kills it if it runs.
    pub(super) fn remove(&self, id: &str, now: Timestamp) -> Result<(), RuntimeProblem> {
        let task = self.get(id, now)?;
        task.kill();
        self.all().by_number.retain(|_, other| !Arc::ptr_eq(other, &task));
        Ok(())
    }

    /// The same of all; answers how many.
    pub(super) fn kill_all(&self) -> usize {
        let all = std::mem::take(&mut self.all().by_number);
        all.values().for_each(|task| task.kill());
        all.len()
    }

    pub(super) fn is_empty(&self, now: Timestamp) -> bool {
        let mut all = self.all();
        all.tidy(now);
        all.by_number.is_empty()
    }
}
