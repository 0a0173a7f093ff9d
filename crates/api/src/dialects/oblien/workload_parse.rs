//! From Oblien's workloads to the core's.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use skerry_control::{NewWorkload, UpdateWorkload};
use skerry_model::{
    Backoff, EnvVar, OnExit, RestartMode, Workload, WorkloadDesired, WorkloadId, WorkloadOrigin,
    WorkloadRestart,
};

use super::{
    convert::{is_nothing, whole_number},
    error_body::Refusal,
    life,
};
use crate::ids;

/// The name of the workload that `config.cmd` is.
pub(super) const MAIN: &str = "main";
/// The longest pause between restarts when nobody says how long: five minutes, as for machines.
const LONGEST_PAUSE_SECONDS: u32 = 300;
const WORKLOAD_PREFIX: &str = "wl_";

/// Fields that this server has no machinery for. (The command line sends `image` and `port`.)
const UNSERVED: [&str; 4] = ["target", "log_path", "image", "port"];

pub(super) type Fields = Map<String, Value>;

/// A field's name in its place.
struct Place<'a>(&'a str);

impl Place<'_> {
    fn refusal(&self, field: &str, problem: &str, allowed: impl Into<String>) -> Refusal {
        Refusal {
            code: if self.0.is_empty() { "validation_error" } else { "INVALID_CONFIG" },
            field: format!("{}{field}", self.0),
            problem: problem.to_owned(),
            allowed: allowed.into(),
        }
    }

    fn text(&self, fields: &Fields, name: &str) -> Result<Option<String>, Refusal> {
        match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(self.refusal(name, "is not a text", "a text")),
        }
    }

    fn flag(&self, fields: &Fields, name: &str) -> Result<Option<bool>, Refusal> {
        match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.refusal(name, "is not true or false", "true, false")),
        }
    }

    fn number(
        &self,
        fields: &Fields,
        name: &str,
        range: std::ops::RangeInclusive<u32>,
    ) -> Result<Option<u32>, Refusal> {
        let whole = match fields.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Number(number)) => whole_number(number),
            Some(_) => None,
        };
        let found = whole.and_then(|whole| u32::try_from(whole).ok());
        let allowed = || format!("a whole number from {} to {}", range.start(), range.end());
        let fits = found.filter(|number| range.contains(number));
        fits.map(Some).ok_or_else(|| self.refusal(name, "is out of range", allowed()))
    }

    fn texts(
        &self,
        fields: &Fields,
        name: &str,
    ) -> Result<Option<BTreeMap<String, String>>, Refusal> {
        let entries = match fields.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(entries)) => entries,
            Some(_) => return Err(self.refusal(name, "is not an object", "an object of texts")),
        };
        let text = |(key, value): (&String, &Value)| {
            let value = value.as_str()?.to_owned();
            Some((key.clone(), value))
        };
        let read: Option<BTreeMap<_, _>> = entries.iter().map(text).collect();
        let refused = || self.refusal(name, "has a value that is no text", "an object of texts");
        read.map(Some).ok_or_else(refused)
    }

    fn command(&self, fields: &Fields) -> Result<Option<Vec<String>>, Refusal> {
        let (name, value) = match (fields.get("cmd"), fields.get("command")) {
            (Some(value), _) if !is_nothing(value) => ("cmd", value),
            (_, Some(value)) if !is_nothing(value) => ("command", value),
            _ => return Ok(None),
        };
        command(value).map(Some).ok_or_else(|| self.refusal(name, "is not a command", COMMAND))
    }

    /// A list of `K=V` or of `{key, value}`, or an object.
    fn env(&self, fields: &Fields) -> Result<Option<Vec<EnvVar>>, Refusal> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let one = |entry: &Value| match entry {
            Value::String(pair) => {
                let (key, value) = pair.split_once('=')?;
                Some(EnvVar { key: key.to_owned(), value: value.to_owned() })
            }
            Value::Object(entry) => {
                Some(EnvVar { key: text(entry.get("key")?)?, value: text(entry.get("value")?)? })
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
        };
        let read: Option<Vec<EnvVar>> = match fields.get("env") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Array(entries)) => entries.iter().map(one).collect(),
            Some(Value::Object(entries)) => entries
                .iter()
                .map(|(key, value)| Some(EnvVar { key: key.clone(), value: text(value)? }))
                .collect(),
            Some(_) => None,
        };
        // Values are not repeated: they may be secrets.
        let allowed = "a list of \"KEY=value\", or an object of texts";
        let refused = || self.refusal("env", "is not a list of variables", allowed);
        read.map(Some).ok_or_else(refused)
    }

    fn on_exit(&self, fields: &Fields) -> Result<Option<OnExit>, Refusal> {
        Ok(match self.text(fields, "vm_on_exit")?.as_deref() {
            None => None,
            Some("") => Some(OnExit::Nothing),
            Some("pause") => Some(OnExit::Pause),
            Some("stop") => Some(OnExit::Stop),
            Some("exit") => Some(OnExit::Exit),
            Some(_) => {
                let allowed = "pause, stop, exit, \"\"";
                return Err(self.refusal("vm_on_exit", "is not what can follow", allowed));
            }
        })
    }

    /// When it is started again, given how it is now.
    fn restart(
        &self,
        fields: &Fields,
        now: WorkloadRestart,
    ) -> Result<Option<WorkloadRestart>, Refusal> {
        let policy = fields.get("restart_policy");
        let asked = life::restart(self.0, policy, fields.get("max_restarts"))?;
        let delay = self.number(fields, "restart_delay", 0..=3600)?;
        let grows = self.flag(fields, "restart_backoff")?;
        if asked.is_none() && delay.is_none() && grows.is_none() {
            return Ok(None);
        }
        let first_seconds = delay.unwrap_or(now.backoff.first_seconds);
        let most_seconds = if grows.unwrap_or_else(|| grows_longer(now)) {
            first_seconds.max(LONGEST_PAUSE_SECONDS)
        } else {
            first_seconds
        };
        Ok(Some(WorkloadRestart {
            mode: match (&asked, policy.is_some_and(|policy| !is_nothing(policy))) {
                (Some(asked), true) => asked.mode,
                (Some(_) | None, _) => now.mode,
            },
            max_restarts: match (&asked, fields.contains_key("max_restarts")) {
                (Some(asked), true) => asked.max_restarts,
                (Some(_) | None, _) => now.max_restarts,
            },
            backoff: Backoff { first_seconds, most_seconds },
        }))
    }
}

/// Whether pauses grow.
pub(super) const fn grows_longer(restart: WorkloadRestart) -> bool {
    restart.backoff.most_seconds > restart.backoff.first_seconds
}

const COMMAND: &str = "a list of texts, or a text for the shell";

/// A list is program and arguments; a text is the shell's.
fn command(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(line) => Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()]),
        Value::Array(words) => words.iter().map(|word| word.as_str().map(str::to_owned)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

/// The printed form of a workload's id.
pub(super) fn workload_id(id: WorkloadId) -> String {
    format!("{WORKLOAD_PREFIX}{}", ids::base36(id.as_u128()))
}

/// The workload with this id.
pub(super) fn parse_workload_id(text: &str) -> Option<WorkloadId> {
    let number = text.strip_prefix(WORKLOAD_PREFIX).and_then(ids::parse_base36)?;
    Some(WorkloadId::from_u128(number))
}

fn refuse_unserved(place: &Place<'_>, fields: &Fields) -> Result<(), Refusal> {
    let asks = |name: &&&str| fields.get(**name).is_some_and(|value| !is_nothing(value));
    match UNSERVED.iter().find(asks) {
        None => Ok(()),
        Some(name) => {
            let problem = "is not available on this server";
            Err(place.refusal(name, problem, "leave it out, null, false or empty"))
        }
    }
}

/// A workload to be made. `prefix` names where it stands in a larger request.
pub(super) fn new_workload(prefix: &str, fields: &Fields) -> Result<NewWorkload, Refusal> {
    let place = Place(prefix);
    refuse_unserved(&place, fields)?;
    let Some(argv) = place.command(fields)? else {
        return Err(place.refusal("cmd", "is missing", COMMAND));
    };
    let id = match place.text(fields, "id")?.filter(|id| !id.is_empty()) {
        None => None,
        Some(text) => Some(parse_workload_id(&text).ok_or_else(|| {
            place.refusal("id", "is not an id", "wl_ and 25 of 0-9 and a-z, or leave it out")
        })?),
    };
    let made = NewWorkload::new(argv);
    let log_limit = place.number(fields, "max_log_size_mb", 1..=100)?;
    Ok(NewWorkload {
        id,
        name: place.text(fields, "name")?.filter(|name| !name.is_empty()),
        env: place.env(fields)?.unwrap_or_default(),
        working_dir: place.text(fields, "working_dir")?.filter(|dir| !dir.is_empty()),
        user: place.text(fields, "user")?.filter(|user| !user.is_empty()),
        restart: place.restart(fields, made.restart)?.unwrap_or(made.restart),
        on_exit: place.on_exit(fields)?.unwrap_or_default(),
        log_limit_kib: log_limit.map_or(made.log_limit_kib, |mib| mib * 1024),
        labels: place.texts(fields, "labels")?.unwrap_or_default(),
        annotations: place.texts(fields, "annotations")?.unwrap_or_default(),
        desired: desired(place.flag(fields, "enabled")?.unwrap_or(true)),
        ..made
    })
}

const fn desired(enabled: bool) -> WorkloadDesired {
    if enabled { WorkloadDesired::Running } else { WorkloadDesired::Stopped }
}

/// What to change of a workload that is as `now`. Fields that are not given stay.
pub(super) fn update(fields: &Fields, now: &Workload) -> Result<UpdateWorkload, Refusal> {
    const KNOWN: [&str; 18] = [
        "id",
        "name",
        "cmd",
        "command",
        "env",
        "working_dir",
        "user",
        "restart_policy",
        "max_restarts",
        "restart_delay",
        "restart_backoff",
        "vm_on_exit",
        "max_log_size_mb",
        "labels",
        "annotations",
        "enabled",
        "target",
        "log_path",
    ];
    let place = Place("");
    refuse_unserved(&place, fields)?;
    if let Some(name) = fields.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        return Err(place.refusal(name, "cannot be changed", KNOWN[1..16].join(", ")));
    }
    if let Some(id) = place.text(fields, "id")?
        && parse_workload_id(&id) != Some(now.id)
    {
        return Err(place.refusal("id", "cannot be changed", "its own id"));
    }
    let or_default = |text: Option<String>| text.map(|text| Some(text).filter(|t| !t.is_empty()));
    let log_limit = place.number(fields, "max_log_size_mb", 1..=100)?;
    Ok(UpdateWorkload {
        name: place.text(fields, "name")?,
        argv: place.command(fields)?,
        env: place.env(fields)?,
        working_dir: or_default(place.text(fields, "working_dir")?),
        user: or_default(place.text(fields, "user")?),
        restart: place.restart(fields, now.restart)?,
        on_exit: place.on_exit(fields)?,
        log_limit_kib: log_limit.map(|mib| mib * 1024),
        labels: place.texts(fields, "labels")?,
        annotations: place.texts(fields, "annotations")?,
        desired: place.flag(fields, "enabled")?.map(desired),
    })
}

/// The workloads of a create request: `config.cmd` is the one called [`MAIN`], whose end is the machine's.
pub(super) fn of_config(config: &Fields, keeps_logs: bool) -> Result<Vec<NewWorkload>, Refusal> {
    let refusal = |field: &str, problem: &str, allowed: &str| Refusal {
        code: "INVALID_CONFIG",
        field: field.to_owned(),
        problem: problem.to_owned(),
        allowed: allowed.to_owned(),
    };
    let mut all = Vec::new();
    if let Some(value) = config.get("cmd").filter(|value| !is_nothing(value)) {
        let refused = || refusal("config.cmd", "is not a command", COMMAND);
        let argv = command(value).ok_or_else(refused)?;
        all.push(NewWorkload {
            name: Some(MAIN.to_owned()),
            on_exit: OnExit::Exit,
            origin: WorkloadOrigin::Main,
            ..NewWorkload::new(argv)
        });
    }
    match config.get("workloads").filter(|value| !is_nothing(value)) {
        None => {}
        Some(Value::Array(list)) => {
            for (index, entry) in list.iter().enumerate() {
                let field = format!("config.workloads[{index}]");
                let Value::Object(fields) = entry else {
                    return Err(refusal(&field, "is not an object", "a workload"));
                };
                all.push(new_workload(&format!("{field}."), fields)?);
            }
        }
        Some(_) => {
            return Err(refusal("config.workloads", "is not a list", "a list of workloads"));
        }
    }
    for workload in &mut all {
        workload.keeps_log = keeps_logs;
    }
    Ok(all)
}

pub(super) const fn restart_word(mode: RestartMode) -> &'static str {
    match mode {
        RestartMode::Never => "never",
        RestartMode::OnFailure => "on-failure",
        RestartMode::Always => "always",
    }
}

#[cfg(test)]
#[path = "workload_parse_tests.rs"]
mod tests;
