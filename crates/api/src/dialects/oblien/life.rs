//! Between Oblien's words for the rules of a workspace's life and the core's: total, pure.

use serde_json::Value;
use skerry_model::{
    Expiry, ExpiryAction, IdleAction, IdlePolicy, RestartMode, RestartPolicy, Workspace,
};

use super::{
    convert::{is_nothing, whole_number},
    error_body::Refusal,
};

/// The least idle time, by Oblien's guide "On demand".
const MIN_SUSPEND_AFTER_SECONDS: u32 = 120;
/// The least time for which the memory of a sleeping workspace is kept.
const MIN_STOP_AFTER_SECONDS: u32 = 3600;

const DURATION: &str =
    "\"45s\", \"30m\", \"1h\", \"7d\" or a number of seconds, 1 second to 365 days";

fn refusal(field: String, problem: &str, allowed: impl Into<String>) -> Refusal {
    Refusal { code: "INVALID_CONFIG", field, problem: problem.to_owned(), allowed: allowed.into() }
}

/// What happens when a time to live is over. `prefix` stands before the field's name in a refusal.
pub(super) fn ttl_action(prefix: &str, action: Option<&str>) -> Result<ExpiryAction, Refusal> {
    match action {
        None | Some("stop") => Ok(ExpiryAction::Stop),
        Some("remove") => Ok(ExpiryAction::Delete),
        Some("pause") => Ok(ExpiryAction::Pause),
        Some("suspend") => Ok(ExpiryAction::Suspend),
        Some(_) => Err(refusal(
            format!("{prefix}ttl_action"),
            "is not an action",
            "stop, pause, suspend, remove",
        )),
    }
}

pub(super) const fn ttl_action_word(action: ExpiryAction) -> &'static str {
    match action {
        ExpiryAction::Stop => "stop",
        ExpiryAction::Delete => "remove",
        ExpiryAction::Pause => "pause",
        ExpiryAction::Suspend => "suspend",
    }
}

/// A time to live in seconds; `None` when none is given.
pub(super) fn ttl(prefix: &str, ttl: Option<&Value>) -> Result<Option<u32>, Refusal> {
    let Some(ttl) = ttl.filter(|ttl| !ttl.is_null()) else { return Ok(None) };
    duration_seconds(ttl)
        .filter(|seconds| (1..=Expiry::MAX_SECONDS).contains(seconds))
        .map(Some)
        .ok_or_else(|| refusal(format!("{prefix}ttl"), "is not a time to live", DURATION))
}

/// The other length of a ping.
pub(super) fn ttl_seconds(seconds: Option<&Value>) -> Result<Option<u32>, Refusal> {
    let Some(seconds) = seconds.filter(|seconds| !seconds.is_null()) else { return Ok(None) };
    duration_seconds(seconds)
        .filter(|seconds| (1..=Expiry::MAX_SECONDS).contains(seconds))
        .map(Some)
        .ok_or_else(|| refusal("ttl_seconds".to_owned(), "is not a time to live", DURATION))
}

/// A change of the time to live of a workspace that has none.
pub(super) fn missing_ttl() -> Refusal {
    refusal("ttl".to_owned(), "is missing, and the workspace has none", DURATION)
}

/// `"90s"`, `"30m"`, `"1h"`, `"7d"`, `"90"` or `90`.
pub(super) fn duration_seconds(text: &Value) -> Option<u32> {
    let seconds = match text {
        Value::Number(number) => whole_number(number)?,
        Value::String(text) => {
            let text = text.trim();
            let (digits, unit) = match text.char_indices().last()? {
                (_, '0'..='9') => (text, 1),
                (at, 's') => (text.get(..at)?, 1),
                (at, 'm') => (text.get(..at)?, 60),
                (at, 'h') => (text.get(..at)?, 3600),
                (at, 'd') => (text.get(..at)?, 86_400),
                _ => return None,
            };
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse::<u64>().ok()).flatten()?.checked_mul(unit)?
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    u32::try_from(seconds).ok()
}

/// `restart_policy` and `max_restarts`; `None` when neither is given.
pub(super) fn restart(
    prefix: &str,
    policy: Option<&Value>,
    max_restarts: Option<&Value>,
) -> Result<Option<RestartPolicy>, Refusal> {
    let max_restarts = match max_restarts.filter(|max| !max.is_null()) {
        None => None,
        Some(max) => {
            let whole = match max {
                Value::Number(number) => whole_number(number),
                Value::Null
                | Value::Bool(_)
                | Value::String(_)
                | Value::Array(_)
                | Value::Object(_) => None,
            };
            let max = whole.and_then(|max| u32::try_from(max).ok()).ok_or_else(|| {
                let allowed = "a whole number from 0, which means without limit";
                refusal(format!("{prefix}max_restarts"), "is not a number of restarts", allowed)
            })?;
            Some(max)
        }
    };
    let mode = match policy.filter(|policy| !is_nothing(policy)) {
        None => None,
        Some(policy) => Some(match policy.as_str() {
            Some("no" | "never") => RestartMode::Never,
            Some("always" | "unless-stopped") => RestartMode::Always,
            Some("on-failure") => RestartMode::OnFailure,
            Some(_) | None => {
                let allowed = "no, always, on-failure";
                let field = format!("{prefix}restart_policy");
                return Err(refusal(field, "is not a restart policy", allowed));
            }
        }),
    };
    if mode.is_none() && max_restarts.is_none() {
        return Ok(None);
    }
    Ok(Some(RestartPolicy {
        mode: mode.unwrap_or_default(),
        max_restarts: max_restarts.unwrap_or(0),
        ..RestartPolicy::default()
    }))
}

pub(super) const fn restart_word(mode: RestartMode) -> &'static str {
    match mode {
        RestartMode::Never => "no",
        RestartMode::OnFailure => "on-failure",
        RestartMode::Always => "always",
    }
}

/// `{suspend_after, stop_after?}`; `None` means that the workspace never sleeps.
pub(super) fn idle(prefix: &str, policy: &Value) -> Result<Option<IdlePolicy>, Refusal> {
    let field = |name: &str| format!("{prefix}{name}");
    let Value::Object(fields) = policy else {
        let whole = if prefix.is_empty() { "body" } else { prefix.trim_end_matches('.') };
        return Err(refusal(whole.to_owned(), "is not an object", "{suspend_after, stop_after?}"));
    };
    let seconds = |name: &str, least: u32| match fields.get(name).filter(|v| !v.is_null()) {
        None => Ok(None),
        Some(value) => match duration_seconds(value) {
            Some(0) => Ok(Some(0)),
            Some(seconds) if (least..=Expiry::MAX_SECONDS).contains(&seconds) => Ok(Some(seconds)),
            Some(_) | None => {
                let allowed = format!("0, or {least} seconds to 365 days (\"15m\", 900)");
                Err(refusal(field(name), "is out of range", allowed))
            }
        },
    };
    let after = seconds("suspend_after", MIN_SUSPEND_AFTER_SECONDS)?.ok_or_else(|| {
        refusal(field("suspend_after"), "is missing", "0, or 120 seconds or more")
    })?;
    let kept = seconds("stop_after", MIN_STOP_AFTER_SECONDS)?.filter(|seconds| *seconds > 0);
    if after == 0 {
        return Ok(None);
    }
    Ok(Some(IdlePolicy {
        after_seconds: after,
        action: IdleAction::Suspend,
        discard_memory_after_seconds: kept,
    }))
}

/// The idle policy in seconds, as the client expects it.
pub(super) fn idle_shown(workspace: &Workspace) -> Option<(u32, u32)> {
    workspace
        .spec
        .idle
        .map(|idle| (idle.after_seconds, idle.discard_memory_after_seconds.unwrap_or(0)))
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_are_seconds_or_text_with_a_unit() {
        let read = |value: Value| duration_seconds(&value);
        assert_eq!(read(json!(90)), Some(90));
        assert_eq!(read(json!("90")), Some(90));
        assert_eq!((read(json!("30m")), read(json!("7d"))), (Some(1800), Some(604_800)));
        for bad in [json!(-1), json!(1.5), json!("1w"), json!(""), json!("h"), json!(true)] {
            assert_eq!(duration_seconds(&bad), None, "{bad}");
        }
    }

    #[test]
    fn an_idle_policy_keeps_to_the_documented_least_times() {
        let policy = idle("", &json!({ "suspend_after": "15m", "stop_after": "72h" }));
        let policy = policy.expect("accepted").expect("a policy");
        assert_eq!(
            (policy.after_seconds, policy.discard_memory_after_seconds),
            (900, Some(259_200))
        );
        assert_eq!(idle("", &json!({ "suspend_after": 0 })), Ok(None));
        for bad in [
            json!({ "suspend_after": 119 }),
            json!({ "suspend_after": 120, "stop_after": 3599 }),
            json!({}),
            json!("15m"),
        ] {
            assert!(idle("", &bad).is_err(), "{bad}");
        }
    }
}
