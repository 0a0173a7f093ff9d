//! What we ask of a running QEMU and how its answers are read.
//!
//! Commands and their answers are described in QEMU's `qapi/*.json`. The answers come from the
//! process that a hostile guest would take over first: nothing in them is believed further than that
//! VM's own fate.

use std::time::Duration;

use serde_json::{Value, json};

use super::qmp::QmpClient;
use crate::VmmError;

/// QEMU answers from its main loop within milliseconds; on a host that swaps, seconds.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// How often is looked though no event came: an event may have been before we began to listen.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How soon a command is repeated that QEMU is not ready for.
const NOT_YET_INTERVAL: Duration = Duration::from_millis(1);

/// How far an outgoing or incoming migration is (`MigrationStatus`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Migration {
    /// None was ever begun.
    None,
    /// Being prepared, being ended or being given up.
    Busy,
    /// Memory is being copied; so many bytes of it have not been looked at in this round.
    Active { remaining_bytes: u64, total_bytes: u64 },
    /// Everything is written.
    Completed,
    /// Given up.
    Cancelled,
    /// It failed, in QEMU's words.
    Failed(String),
}

impl Migration {
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::None | Self::Completed | Self::Cancelled | Self::Failed(_) => true,
            Self::Busy | Self::Active { .. } => false,
        }
    }

    fn from_wire(answer: &Value) -> Self {
        let number = |name: &str| answer["ram"][name].as_u64().unwrap_or(0);
        match answer["status"].as_str() {
            None | Some("none") => Self::None,
            Some("active") => {
                Self::Active { remaining_bytes: number("remaining"), total_bytes: number("total") }
            }
            Some("completed") => Self::Completed,
            Some("cancelled") => Self::Cancelled,
            Some("failed") => {
                let reason = answer["error-desc"].as_str().unwrap_or("no reason was given");
                Self::Failed(reason.to_owned())
            }
            Some(_) => Self::Busy,
        }
    }
}

/// What the machine does (`RunState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunState {
    /// It waits for a saved state.
    Parked,
    /// The virtual CPUs run.
    Running,
    /// They do not, for whatever reason.
    Stopped,
    /// They do not, since a state was saved.
    Saved,
}

/// What a migration leaves out or tells (`MigrationCapability`).
pub(super) async fn set_capabilities(
    qmp: &QmpClient,
    leave_out_shared_memory: bool,
) -> Result<(), VmmError> {
    let capability = |name: &str, state: bool| json!({ "capability": name, "state": state });
    let capabilities = json!({ "capabilities": [
        capability("events", true),
        capability("x-ignore-shared", leave_out_shared_memory),
    ] });
    run(qmp, "migrate-set-capabilities", capabilities).await
}

/// Whether [`set_capabilities`] was last called so.
pub(super) async fn leaves_out_shared_memory(qmp: &QmpClient) -> Result<bool, VmmError> {
    let answer = qmp.execute("query-migrate-capabilities", None, ANSWER_DEADLINE).await?;
    let all = answer.as_array().into_iter().flatten();
    let mut ours = all.filter(|one| one["capability"] == "x-ignore-shared");
    Ok(ours.any(|one| one["state"] == true))
}

pub(super) async fn migration(qmp: &QmpClient) -> Result<Migration, VmmError> {
    let answer = qmp.execute("query-migrate", None, ANSWER_DEADLINE).await?;
    Ok(Migration::from_wire(&answer))
}

pub(super) async fn run_state(qmp: &QmpClient, within: Duration) -> Result<RunState, VmmError> {
    let answer = qmp.execute("query-status", None, within).await?;
    Ok(match (answer["running"].as_bool(), answer["status"].as_str()) {
        (Some(true), _) => RunState::Running,
        (_, Some("inmigrate")) => RunState::Parked,
        (_, Some("postmigrate" | "finish-migrate")) => RunState::Saved,
        (_, _) => RunState::Stopped,
    })
}

/// Lets the virtual CPUs run. A migration is called complete a moment before it is: then `cont` is
/// refused and has to be repeated.
pub(super) async fn let_run(qmp: &QmpClient, within: Duration) -> Result<(), VmmError> {
    let deadline = tokio::time::Instant::now() + within;
    loop {
        match qmp.execute("cont", None, within).await {
            Err(VmmError::Refused { reason, .. })
                if reason.contains("not finalized") && tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(NOT_YET_INTERVAL).await;
            }
            Err(error) => return Err(error),
            Ok(_) => return Ok(()),
        }
    }
}

/// Runs a command whose answer says nothing but that it was done.
pub(super) async fn run(
    qmp: &QmpClient,
    name: &'static str,
    arguments: Value,
) -> Result<(), VmmError> {
    qmp.execute(name, Some(arguments), ANSWER_DEADLINE).await.map(|_| ())
}

/// Calls `look` until it has an answer: at once, after each event, and every now and then. The caller
/// sets the bound.
pub(super) async fn wait_until<T, Looking>(
    qmp: &QmpClient,
    mut look: impl FnMut() -> Looking,
) -> Result<T, VmmError>
where
    Looking: Future<Output = Result<Option<T>, VmmError>>,
{
    let mut changes = qmp.changes();
    loop {
        changes.borrow_and_update();
        if let Some(found) = look().await? {
            return Ok(found);
        }
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    // The connection is gone: the next look says so.
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            }
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_of_a_migration_is_read() {
        let read = |text: &str| Migration::from_wire(&serde_json::from_str(text).unwrap());
        assert_eq!(read("{}"), Migration::None);
        assert_eq!(
            read(r#"{"status":"active","ram":{"remaining":4096,"total":8192}}"#),
            Migration::Active { remaining_bytes: 4096, total_bytes: 8192 }
        );
        for busy in ["setup", "device", "cancelling", "pre-switchover", "something new"] {
            assert_eq!(read(&format!(r#"{{"status":"{busy}"}}"#)), Migration::Busy);
        }
        assert_eq!(read(r#"{"status":"completed"}"#), Migration::Completed);
        let failed = read(r#"{"status":"failed","error-desc":"broken pipe"}"#);
        assert_eq!(failed, Migration::Failed("broken pipe".into()));
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(status: String, remaining: i64) {
            let answer = json!({ "status": status, "ram": { "remaining": remaining } });
            let _ = Migration::from_wire(&answer);
        }
    }
}
