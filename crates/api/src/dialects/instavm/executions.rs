//! `/execute_async` and `/v1/executions`: code that nobody waits for, and what came of it. Kept in memory:
//! a restart of the server ends what runs and forgets what ended.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{Json, extract::State};
use skerry_control::{Caller, WorkspaceRef};
use skerry_model::{AccountId, Timestamp, WorkspaceId};
use tokio_util::task::TaskTracker;

use super::{
    Instavm, convert,
    error_body::Problem,
    execute::{self, Command, Time},
    request::AuthenticatedBody,
    vms::no_such_session,
    wire::{ExecutionBegun, ExecutionRecord},
};
use crate::{ApiState, auth::Authenticated, extract::PathOf, ids};

/// What ended is forgotten after this long.
const KEPT_FOR: Duration = Duration::from_secs(3600);
/// So many are kept of an account: the ones that ended first are forgotten first.
const KEPT_PER_ACCOUNT: usize = 256;
/// So many of an account may run.
const RUNNING_PER_ACCOUNT: usize = 32;
/// All outputs that are kept, of the whole server.
const KEPT_BYTES: usize = 256 * 1024 * 1024;

/// All executions of the server. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Executions {
    all: Arc<Mutex<All>>,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct All {
    begun: u64,
    /// By number: in the order they began.
    by_number: BTreeMap<u64, Execution>,
}

#[derive(Clone, Debug)]
struct Execution {
    id: String,
    account: AccountId,
    session: WorkspaceId,
    began_at: Timestamp,
    /// `None` while it runs.
    ended: Option<Ended>,
}

#[derive(Clone, Debug)]
struct Ended {
    at: Timestamp,
    result: Result<Outcome, String>,
}

#[derive(Clone, Debug)]
struct Outcome {
    stdout: Arc<str>,
    stderr: Arc<str>,
    exit_code: i32,
    execution_time: Duration,
}

impl Execution {
    fn bytes(&self) -> usize {
        match self.ended.as_ref().map(|ended| &ended.result) {
            Some(Ok(outcome)) => outcome.stdout.len() + outcome.stderr.len(),
            Some(Err(_)) | None => 0,
        }
    }
}

impl All {
    /// Forgets what is too old or too much.
    fn tidy(&mut self, now: Timestamp) {
        let old = now.as_millisecond() - i64::try_from(KEPT_FOR.as_millis()).unwrap_or(i64::MAX);
        self.by_number.retain(|_, one| {
            one.ended.as_ref().is_none_or(|ended| ended.at.as_millisecond() > old)
        });
        let mut bytes: usize = self.by_number.values().map(Execution::bytes).sum();
        let mut of_account: BTreeMap<AccountId, usize> = BTreeMap::new();
        for one in self.by_number.values() {
            *of_account.entry(one.account).or_default() += 1;
        }
        self.by_number.retain(|_, one| {
            let kept = of_account.entry(one.account).or_default();
            let one_too_many = bytes > KEPT_BYTES && one.bytes() > 0;
            if one.ended.is_some() && (one_too_many || *kept > KEPT_PER_ACCOUNT) {
                bytes -= one.bytes();
                *kept -= 1;
                return false;
            }
            true
        });
    }
}

impl Executions {
    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a new one, which is the caller's to end.
    fn begin(
        &self,
        account: AccountId,
        session: WorkspaceId,
        now: Timestamp,
    ) -> Result<(u64, String), Problem> {
        let mut all = self.all();
        let running = |one: &&Execution| one.account == account && one.ended.is_none();
        if all.by_number.values().filter(running).count() >= RUNNING_PER_ACCOUNT {
            return Err(Problem::TooManyExecutions { max: RUNNING_PER_ACCOUNT });
        }
        all.begun += 1;
        let number = all.begun;
        // The moment tells them apart from those before the last restart. Not a secret: only the account
        // finds its own.
        let id = format!("exec_{:x}_{number:x}", now.as_millisecond());
        let one = Execution { id: id.clone(), account, session, began_at: now, ended: None };
        all.by_number.insert(number, one);
        all.tidy(now);
        Ok((number, id))
    }

    fn end(&self, number: u64, ended: Ended) {
        let mut all = self.all();
        let at = ended.at;
        if let Some(one) = all.by_number.get_mut(&number) {
            one.ended = Some(ended);
        }
        all.tidy(at);
    }

    /// The account's, newest first.
    fn of(&self, account: AccountId, now: Timestamp) -> Vec<Execution> {
        let mut all = self.all();
        all.tidy(now);
        let mine = all.by_number.values().rev().filter(|one| one.account == account);
        mine.cloned().collect()
    }

    /// Resolves when nothing runs any more; begun to after the listener has ended.
    pub(crate) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

pub(super) async fn begin(
    State(state): State<ApiState>,
    AuthenticatedBody { caller, fields }: AuthenticatedBody,
) -> Result<Json<ExecutionBegun>, Problem> {
    let command = execute::command(fields)?;
    let session = &command.session;
    let workspace = state.control.get_workspace(&caller, session).await.map_err(no_such_session)?;
    if convert::is_resting(&workspace) && !workspace.wakes_on_use() {
        return Err(Problem::VmSuspended);
    }
    execute::use_vaults(&state, &caller, &command).await?;
    let now = state.control.now();
    let (number, task_id) = state.executions.begin(caller.account_id(), workspace.id, now)?;
    let session_id = ids::uuid_text(workspace.id);
    let tasks = state.executions.tasks.clone();
    tasks.spawn(async move {
        let result = match run(&state, &caller, workspace.id, command).await {
            Ok(outcome) => Ok(outcome),
            Err(problem) => Err(problem.told().await),
        };
        state.executions.end(number, Ended { at: state.control.now(), result });
    });
    Ok(Json(ExecutionBegun { task_id, session_id, status: "running" }))
}

async fn run(
    state: &ApiState,
    caller: &Caller,
    id: WorkspaceId,
    command: Command,
) -> Result<Outcome, Problem> {
    let time = Time::of_a_task(command.timeout_seconds);
    let (_, guest) =
        execute::inside(state, caller, &WorkspaceRef::Id(id), time.answer_within).await?;
    // Given back once the output is kept: what is kept has its own bound.
    let mut share = state.output_budget.begin();
    let finished =
        execute::execute_within(state, guest.as_ref(), command, time, &mut share).await?;
    Ok(Outcome {
        stdout: finished.stdout.into(),
        stderr: finished.stderr.into(),
        exit_code: finished.exit_code,
        execution_time: finished.execution_time,
    })
}

pub(super) async fn get(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: id, .. }: PathOf<String, Instavm>,
) -> Result<Json<ExecutionRecord>, Problem> {
    let mine = state.executions.of(caller.account_id(), state.control.now());
    let one = mine.into_iter().find(|one| one.id == id).ok_or(Problem::NoSuchExecution)?;
    let (stdout, stderr) = match one.ended.as_ref().map(|ended| &ended.result) {
        None => (String::new(), String::new()),
        Some(Ok(outcome)) => (outcome.stdout.to_string(), outcome.stderr.to_string()),
        Some(Err(why)) => (String::new(), format!("{why}\n")),
    };
    let record = record(one);
    Ok(Json(ExecutionRecord {
        serialized_stdout: Some(stdout),
        serialized_stderr: Some(stderr),
        ..record
    }))
}

pub(super) async fn list(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
) -> Json<Vec<ExecutionRecord>> {
    let mine = state.executions.of(caller.account_id(), state.control.now());
    Json(mine.into_iter().map(record).collect())
}

fn record(one: Execution) -> ExecutionRecord {
    let outcome = one.ended.as_ref().and_then(|ended| ended.result.as_ref().ok());
    ExecutionRecord {
        status: match &one.ended {
            None => "running",
            Some(Ended { result: Ok(_), .. }) => "completed",
            Some(Ended { result: Err(_), .. }) => "failed",
        },
        is_complete: one.ended.is_some(),
        serialized_stdout: None,
        serialized_stderr: None,
        exit_code: outcome.map(|outcome| outcome.exit_code),
        execution_time: outcome.map(|outcome| outcome.execution_time.as_secs_f64()),
        cpu_time: None,
        created_at: convert::time(one.began_at),
        session_id: ids::uuid_text(one.session),
        task_id: one.id.clone(),
        id: one.id,
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "tests")]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("a time")
    }

    fn ended(at: Timestamp, bytes: usize) -> Ended {
        let outcome = Outcome {
            stdout: "x".repeat(bytes).into(),
            stderr: "".into(),
            exit_code: 0,
            execution_time: Duration::ZERO,
        };
        Ended { at, result: Ok(outcome) }
    }

    const ACCOUNT: AccountId = AccountId::from_u128(1);
    const SESSION: WorkspaceId = WorkspaceId::from_u128(2);

    fn begin(executions: &Executions, now: Timestamp) -> u64 {
        executions.begin(ACCOUNT, SESSION, now).expect("room").0
    }

    #[test]
    fn what_ended_is_kept_for_an_hour_and_what_runs_for_as_long_as_it_runs() {
        let executions = Executions::default();
        let first = begin(&executions, at(0));
        begin(&executions, at(0));
        executions.end(first, ended(at(10), 1));
        assert_eq!(executions.of(ACCOUNT, at(3609)).len(), 2);
        let left = executions.of(ACCOUNT, at(3610));
        assert!(left.len() == 1 && left[0].ended.is_none());
        assert!(executions.of(AccountId::from_u128(9), at(0)).is_empty());
    }

    #[test]
    fn the_oldest_outputs_are_forgotten_when_all_are_too_much() {
        let executions = Executions::default();
        for second in 0..5 {
            let number = begin(&executions, at(second));
            executions.end(number, ended(at(second), KEPT_BYTES / 4));
        }
        let mine = executions.of(ACCOUNT, at(5));
        let began: Vec<_> = mine.iter().map(|one| one.began_at).collect();
        assert_eq!(began, [at(4), at(3), at(2), at(1)]);
    }

    #[test]
    fn an_account_runs_only_so_many_at_a_time_and_keeps_so_many() {
        let executions = Executions::default();
        let numbers: Vec<_> = (0..RUNNING_PER_ACCOUNT).map(|_| begin(&executions, at(0))).collect();
        assert!(executions.begin(ACCOUNT, SESSION, at(0)).is_err());
        assert!(executions.begin(AccountId::from_u128(9), SESSION, at(0)).is_ok());
        for number in numbers {
            executions.end(number, ended(at(1), 0));
        }
        for _ in 0..KEPT_PER_ACCOUNT {
            let number = begin(&executions, at(2));
            executions.end(number, ended(at(2), 0));
        }
        assert_eq!(executions.of(ACCOUNT, at(3)).len(), KEPT_PER_ACCOUNT);
    }
}
