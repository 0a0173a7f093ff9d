//! `/execute`: code in a session's VM, its output and its exit code.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use skerry_control::{Caller, Wait, WorkspaceRef, internal_api::GuestApi};
use skerry_model::{ErrorKind, State as WorkspaceState, VaultId, WorkspaceId};

use super::{
    convert,
    error_body::Problem,
    request::AuthenticatedBody,
    run::{self, Finished, Language},
    sessions::session_ref,
    validation::Fields,
    vaults,
    vms::no_such_session,
    wire::Executed,
};
use crate::{ApiState, ids};

const DEFAULT_TIMEOUT_SECONDS: u64 = 60;
/// The kernel takes no longer argument (131,072 bytes with the end mark).
const MAX_SCRIPT_BYTES: usize = 131_000;

/// With less time left than this, running anything makes no sense.
const SHORTEST_RUN: Duration = Duration::from_millis(100);

/// What a call asks for.
pub(super) struct Command {
    pub(super) session: WorkspaceRef,
    pub(super) code: String,
    pub(super) language: Language,
    pub(super) timeout_seconds: u64,
    /// Vaults that the session's VM is to use from now on, too.
    pub(super) vaults: Vec<VaultId>,
}

pub(super) async fn execute(
    State(state): State<ApiState>,
    AuthenticatedBody { caller, fields }: AuthenticatedBody,
) -> Result<Response, Problem> {
    let began = Instant::now();
    let command = command(fields)?;
    let time = Time::of_a_call(command.timeout_seconds);
    use_vaults(&state, &caller, &command).await?;
    let (workspace_id, guest) =
        inside(&state, &caller, &command.session, time.answer_within).await?;
    let left = Time { answer_within: time.answer_within.saturating_sub(began.elapsed()), ..time };
    let mut share = state.output_budget.begin();
    let finished = execute_within(&state, guest.as_ref(), command, left, &mut share).await?;
    let answer = executed(workspace_id, finished);
    Ok(share.carried_by(Json(answer).into_response()))
}

/// Has the session's VM use the vaults that a call names, beside those that it uses.
pub(super) async fn use_vaults(
    state: &ApiState,
    caller: &Caller,
    command: &Command,
) -> Result<(), Problem> {
    if command.vaults.is_empty() {
        return Ok(());
    }
    let adding = state.control.add_vaults(caller, &command.session, &command.vaults);
    match adding.await {
        Ok(_) => Ok(()),
        Err(error) if *error.kind() == (ErrorKind::NotFound { what: "workspace" }) => {
            Err(Problem::NoSuchSession)
        }
        Err(error) => Err(error.into()),
    }
}

/// Runs the code in the time that is left.
pub(super) async fn execute_within(
    state: &ApiState,
    guest: &dyn GuestApi,
    command: Command,
    left: Time,
    share: &mut crate::output_budget::OutputShare,
) -> Result<Finished, Problem> {
    if left.answer_within < SHORTEST_RUN {
        return Err(Problem::StillStarting);
    }
    let run = run::run(guest, command, left, share);
    tokio::select! {
        biased;
        finished = run => finished,
        () = state.shutdown_begun() => Err(Problem::ShuttingDown),
    }
}

fn executed(workspace_id: WorkspaceId, finished: Finished) -> Executed {
    Executed {
        session_id: ids::uuid_text(workspace_id),
        stdout: finished.stdout,
        stderr: finished.stderr,
        exit_code: finished.exit_code,
        execution_time: finished.execution_time.as_secs_f64(),
        cpu_time: None,
    }
}

/// The time of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time {
    /// When the answer must be on its way.
    pub(super) answer_within: Duration,
    /// How long after that the guest may still report the end.
    pub(super) exit_grace: Duration,
}

impl Time {
    /// For a caller whose own clock runs from its call and has the same timeout: a fifth, at most a
    /// second, is left for the end of the command and the way back.
    fn of_a_call(timeout_seconds: u64) -> Self {
        let timeout = Duration::from_secs(timeout_seconds);
        let margin = (timeout / 5).min(Duration::from_secs(1));
        Self { answer_within: timeout - margin, exit_grace: margin / 2 }
    }

    /// For nobody who waits.
    pub(super) fn of_a_task(timeout_seconds: u64) -> Self {
        Self {
            answer_within: Duration::from_secs(timeout_seconds),
            exit_grace: Duration::from_secs(1),
        }
    }
}

pub(super) fn command(mut fields: Fields) -> Result<Command, Problem> {
    let code = fields.text("command");
    let code = code.or_else(|| fields.text("code"));
    if code.is_none() {
        fields.missing("command");
    }
    let session_id = fields.text("session_id");
    if session_id.is_none() {
        fields.missing("session_id");
    }
    let language = fields.text("language");
    let timeout = fields.integer("timeout", 1..=600);
    let vaults = vaults::asked(&mut fields);
    let code = code.unwrap_or_default();
    let language = match language.as_deref() {
        None => Language::Unsaid,
        Some("python") => Language::Python,
        Some("bash") => Language::Bash,
        Some(_) => {
            fields.refuse("language", "Input should be 'python' or 'bash'");
            Language::Unsaid
        }
    };
    if language == Language::Bash && code.len() > MAX_SCRIPT_BYTES {
        fields.refuse("command", "Input should have at most 131000 bytes");
    }
    if code.contains('\0') {
        fields.refuse("command", "Input should not contain a NUL character");
    }
    fields.finish()?;
    let session = session_ref(&session_id.unwrap_or_default()).ok_or(Problem::NoSuchSession)?;
    let vaults = vaults::ids_of(vaults.as_ref())?;
    let timeout_seconds = timeout.unwrap_or(DEFAULT_TIMEOUT_SECONDS);
    Ok(Command { session, code, language, timeout_seconds, vaults })
}

/// The inside of a session's VM. One that does not run is brought up as far as the caller's time
/// allows; one that is parked stays so unless use is to wake it.
pub(super) async fn inside(
    state: &ApiState,
    caller: &Caller,
    session: &WorkspaceRef,
    within: Duration,
) -> Result<(WorkspaceId, Arc<dyn GuestApi>), Problem> {
    let workspace = state.control.get_workspace(caller, session).await.map_err(no_such_session)?;
    if workspace.wakes_on_use() {
        let waking = state.until_shutdown(state.control.guest(caller, session));
        // It goes on waking when the caller's time is over.
        let woken = tokio::time::timeout(within, waking).await;
        let guest = woken.map_err(|_| Problem::StillStarting)?.map_err(no_such_session)?;
        return Ok((workspace.id, guest));
    }
    if convert::is_resting(&workspace) {
        return Err(Problem::VmSuspended);
    }
    if !matches!(workspace.state, WorkspaceState::Running { .. }) {
        bring_up(state, caller, session, within).await?;
    }
    let guest = state.control.guest(caller, session).await.map_err(no_such_session)?;
    Ok((workspace.id, guest))
}

async fn bring_up(
    state: &ApiState,
    caller: &Caller,
    session: &WorkspaceRef,
    within: Duration,
) -> Result<(), Problem> {
    let starting = state.control.start_workspace(caller, session, Wait::UpTo(within));
    let workspace = state.until_shutdown(starting).await.map_err(no_such_session)?;
    match convert::failure(&workspace) {
        Some(failure) => Err(Problem::VmFailed(failure.clone())),
        None if matches!(workspace.state, WorkspaceState::Running { .. }) => Ok(()),
        None => Err(Problem::StillStarting),
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_answer_leaves_before_the_callers_clock_runs_out() {
        for seconds in [1, 2, 10, 60, 600] {
            let body = serde_json::json!({
                "command": "true", "session_id": "9f1c2d3e-4b5a-4c6d-8e7f-001122334455",
                "timeout": seconds,
            });
            let fields = Fields::new(body.as_object().expect("an object").clone());
            let command = command(fields).expect("accepted");
            let time = Time::of_a_call(command.timeout_seconds);
            let latest = time.answer_within + time.exit_grace;
            assert!(latest + Duration::from_millis(50) < Duration::from_secs(seconds));
            assert!(time.answer_within >= Duration::from_millis(800 * seconds));
        }
    }
}
