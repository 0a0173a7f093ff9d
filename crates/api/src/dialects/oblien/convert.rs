//! From Oblien's requests to the core's: total, pure. The way back is in [`super::object`].

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Number, Value};
use skerry_control::{CreateWorkspace, ListWorkspaces, StartPolicy, UpdateWorkspace, Wait};
use skerry_model::{DisplayName, EnvVar, Expiry, Lifetime, spec::LogRetention};

use super::{
    error_body::Refusal,
    life,
    wire::{CreateBody, ListQuery, UpdateBody},
    workload_parse,
};
use crate::ids;

/// Sizes when the request is silent, from the reference page.
pub(super) const DEFAULT_CPUS: u64 = 1;
pub(super) const DEFAULT_MEMORY_MB: u64 = 512;
pub(super) const DEFAULT_WRITABLE_SIZE_MB: u64 = 512;

/// The label that keeps Oblien's `type`, which means nothing to the server.
pub(super) const TYPE_LABEL: &str = "oblien.type";

/// What a field may be that this server has no machinery for: the value that asks for nothing.
struct Unserved {
    field: &'static str,
    accepted: &'static str,
    asks_nothing: fn(&Value) -> bool,
}

const fn unserved(field: &'static str) -> Unserved {
    Unserved { field, accepted: "leave it out, null, false or empty", asks_nothing: is_nothing }
}

/// Fields at the top of a create request that are refused while they ask for something.
const UNSERVED_FIELDS: [Unserved; 4] = [
    unserved("idempotency_key"),
    unserved("logo"),
    unserved("ready_check"),
    unserved("proxy_assignment_id"),
];

/// Fields of `config` that are refused while they ask for something.
const UNSERVED_CONFIG: [Unserved; 5] = [
    unserved("ready_check"),
    unserved("desktop"),
    unserved("enable_kvm"),
    unserved("kernel_id"),
    unserved("macos"),
];

/// The same in an update: whether SSH is spoken is the server's, and workloads change by their own routes.
const FIXED_CONFIG: [Unserved; 3] =
    [unserved("ssh_access"), unserved("cmd"), unserved("workloads")];

/// Absent, `null`, `false`, `""`, `[]` and `{}` ask for nothing.
pub(super) fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

fn refuse_unserved(
    prefix: &str,
    fields: &Map<String, Value>,
    table: &[Unserved],
    code: &'static str,
) -> Result<(), Refusal> {
    match table
        .iter()
        .find(|entry| fields.get(entry.field).is_some_and(|v| !(entry.asks_nothing)(v)))
    {
        None => Ok(()),
        Some(entry) => Err(Refusal {
            code,
            field: format!("{prefix}{}", entry.field),
            problem: "is not available on this server yet".to_owned(),
            allowed: entry.accepted.to_owned(),
        }),
    }
}

/// Fields of `config` that are about the network: `network` reads them.
const NETWORK_CONFIG: [&str; 3] = ["network_config", "allow_internet", "static_network"];

/// A network changes by its own route.
fn refuse_network(config: &Map<String, Value>) -> Result<(), Refusal> {
    let empty = |value: &Value| match value {
        Value::Object(fields) => fields.values().all(is_nothing),
        other => is_nothing(other),
    };
    let asks = |name: &&&str| config.get(**name).is_some_and(|value| !empty(value));
    match NETWORK_CONFIG.iter().find(asks) {
        None => Ok(()),
        Some(name) => Err(Refusal {
            code: "INVALID_CONFIG",
            field: format!("config.{name}"),
            problem: "cannot be changed here; see PATCH /workspace/:id/network".to_owned(),
            allowed: "leave it out, null, false or empty".to_owned(),
        }),
    }
}

/// A create request and whether the call waits for the machine.
pub(super) fn create_request(
    body: CreateBody,
    longest_wait: Wait,
) -> Result<CreateWorkspace, Refusal> {
    let config = body.config.unwrap_or_default();
    refuse_unserved("", &body.others, &UNSERVED_FIELDS, "validation_error")?;
    refuse_unserved("config.", &config.others, &UNSERVED_CONFIG, "INVALID_CONFIG")?;

    if let Some(name) = &body.name {
        check_name_length(name)?;
    }
    if let Some(slug) = &body.slug {
        check_slug(slug)?;
    }
    if body.image.as_deref() == Some("") {
        return Err(Refusal {
            code: "INVALID_IMAGE",
            field: "image".to_owned(),
            problem: "is empty".to_owned(),
            allowed: "the id of an image, see GET /workspace/images".to_owned(),
        });
    }
    let lifetime = lifetime(body.mode.as_deref())?;
    let action = life::ttl_action("config.", config.ttl_action.as_deref())?;
    let ttl = life::ttl("config.", config.ttl.as_ref())?;
    // By the reference a time to live applies to temporary mode only.
    let expiry = match lifetime {
        Lifetime::Temporary => ttl.map(|after_seconds| Expiry { after_seconds, action }),
        Lifetime::Permanent => None,
    };
    let restart =
        life::restart("config.", config.restart_policy.as_ref(), config.max_restarts.as_ref())?;
    let idle = match config.idle.filter(|idle| !is_nothing(idle)) {
        None => None,
        Some(policy) => life::idle("config.idle.", &policy)?,
    };

    let keeps_logs = config.keep_logs.unwrap_or(true);
    let workloads = workload_parse::of_config(&config.others, keeps_logs)?;
    let wait_for_vm = body.wait_ready.unwrap_or(true) || config.wait_for_init.unwrap_or(false);
    let wait = if wait_for_vm { longest_wait } else { Wait::No };
    let mut metadata = BTreeMap::new();
    if let Some(kind) = body.kind {
        metadata.insert(TYPE_LABEL.to_owned(), Value::String(kind));
    }
    Ok(CreateWorkspace {
        name: body.name,
        slug: body.slug,
        namespace: body.namespace,
        image: body.image,
        vcpu_count: Some(
            size(
                &CPUS,
                &[("config.cpus", &config.cpus), ("cpus", &body.cpus), ("vcpus", &body.vcpus)],
            )?
            .unwrap_or(DEFAULT_CPUS),
        ),
        memory_mib: Some(
            size(
                &MEMORY_MB,
                &[
                    ("config.memory_mb", &config.memory_mb),
                    ("memory_mb", &body.memory_mb),
                    ("ram_mb", &body.ram_mb),
                ],
            )?
            .unwrap_or(DEFAULT_MEMORY_MB),
        ),
        disk_mib: Some(
            size(
                &WRITABLE_SIZE_MB,
                &[
                    ("config.writable_size_mb", &config.writable_size_mb),
                    ("config.disk_size_mb", &config.disk_size_mb),
                    ("writable_size_mb", &body.writable_size_mb),
                    ("disk_size_mb", &body.disk_size_mb),
                    ("disk_mb", &body.disk_mb),
                ],
            )?
            .unwrap_or(DEFAULT_WRITABLE_SIZE_MB),
        ),
        env: config.env.map(env).transpose()?.unwrap_or_default(),
        lifetime,
        expiry,
        // A time to live excludes restarts.
        restart: restart.filter(|_| expiry.is_none()).unwrap_or_default(),
        remove_on_exit: config.remove_on_exit.unwrap_or(false),
        idle,
        auto_resume: idle.is_some(),
        workloads,
        log_retention: if keeps_logs {
            LogRetention::AcrossStarts
        } else {
            LogRetention::ThisStart
        },
        metadata,
        ..CreateWorkspace::new(StartPolicy::Now(wait))
    })
}

/// A change. Only what is named here can be changed; everything else is refused by name.
pub(super) fn update_request(body: UpdateBody) -> Result<UpdateWorkspace, Refusal> {
    let refusal = |field: String, problem: &str, allowed: &str| Refusal {
        code: "validation_error",
        field,
        problem: problem.to_owned(),
        allowed: allowed.to_owned(),
    };
    let mut slug = None;
    for (field, value) in body.others {
        match (field.as_str(), value) {
            ("logo", Value::Null) => {}
            ("slug", Value::String(text)) => {
                check_slug(&text)?;
                slug = Some(text);
            }
            ("slug", _) => {
                return Err(refusal(
                    field,
                    "cannot be cleared here: every workspace has one",
                    SLUG,
                ));
            }
            ("logo", _) => {
                return Err(refusal(field, "is not available on this server yet", "null"));
            }
            _ => return Err(refusal(field, "cannot be updated", "name, slug, config")),
        }
    }
    if let Some(name) = &body.name {
        check_name_length(name)?;
    }
    let config = body.config.unwrap_or_default();
    refuse_unserved("config.", &config.others, &UNSERVED_CONFIG, "INVALID_CONFIG")?;
    refuse_unserved("config.", &config.others, &FIXED_CONFIG, "INVALID_CONFIG")?;
    refuse_network(&config.others)?;
    let fixed = [
        ("ttl", config.ttl.as_ref().is_some_and(|ttl| !is_nothing(ttl))),
        ("ttl_action", config.ttl_action.is_some()),
        ("remove_on_exit", config.remove_on_exit.is_some()),
        ("restart_policy", config.restart_policy.as_ref().is_some_and(|v| !is_nothing(v))),
        ("max_restarts", config.max_restarts.as_ref().is_some_and(|v| !is_nothing(v))),
        ("idle", config.idle.as_ref().is_some_and(|v| !is_nothing(v))),
        ("keep_logs", config.keep_logs.is_some()),
        ("wait_for_init", config.wait_for_init.unwrap_or(false)),
    ];
    if let Some((field, _)) = fixed.into_iter().find(|(_, given)| *given) {
        return Err(Refusal {
            code: "INVALID_CONFIG",
            field: format!("config.{field}"),
            problem: "cannot be changed here; see the routes below /lifecycle".to_owned(),
            allowed: UPDATABLE_CONFIG.to_owned(),
        });
    }
    let known = |name: &str| {
        UNSERVED_CONFIG.iter().chain(&FIXED_CONFIG).any(|entry| entry.field == name)
            || NETWORK_CONFIG.contains(&name)
    };
    if let Some(name) = config.others.keys().find(|name| !known(name)) {
        return Err(Refusal {
            code: "INVALID_CONFIG",
            field: format!("config.{name}"),
            problem: "cannot be updated".to_owned(),
            allowed: UPDATABLE_CONFIG.to_owned(),
        });
    }
    Ok(UpdateWorkspace {
        name: body.name,
        slug,
        vcpu_count: size(&CPUS, &[("config.cpus", &config.cpus)])?,
        memory_mib: size(&MEMORY_MB, &[("config.memory_mb", &config.memory_mb)])?,
        disk_mib: size(
            &WRITABLE_SIZE_MB,
            &[
                ("config.writable_size_mb", &config.writable_size_mb),
                ("config.disk_size_mb", &config.disk_size_mb),
            ],
        )?,
        env: config.env.map(env).transpose()?,
        ..UpdateWorkspace::default()
    })
}

/// `PUT`, `PATCH …/resources`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ResourcesBody {
    cpus: Option<Value>,
    memory_mb: Option<Value>,
    writable_size_mb: Option<Value>,
    disk_size_mb: Option<Value>,
    /// Whether a machine that runs may be started anew for it.
    pub(super) apply: Option<bool>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// Other sizes. Unknown fields are refused by name.
pub(super) fn resources_update(body: ResourcesBody) -> Result<UpdateWorkspace, Refusal> {
    let allowed = "cpus, memory_mb, writable_size_mb, disk_size_mb, apply";
    if let Some(field) = body.others.keys().next() {
        return Err(Refusal {
            code: "validation_error",
            field: field.clone(),
            problem: "is no size of a workspace".to_owned(),
            allowed: allowed.to_owned(),
        });
    }
    Ok(UpdateWorkspace {
        vcpu_count: size(&CPUS, &[("cpus", &body.cpus)])?,
        memory_mib: size(&MEMORY_MB, &[("memory_mb", &body.memory_mb)])?,
        disk_mib: size(
            &WRITABLE_SIZE_MB,
            &[("writable_size_mb", &body.writable_size_mb), ("disk_size_mb", &body.disk_size_mb)],
        )?,
        ..UpdateWorkspace::default()
    })
}

const UPDATABLE_CONFIG: &str = "cpus, memory_mb, writable_size_mb, disk_size_mb, env";
const SLUG: &str =
    "3 to 63 characters of a-z, 0-9 and -, not beginning or ending with -, not of an id's form";

/// A resource's absolute range by the reference; the plan's own range is control's.
struct SizeRange {
    min: u64,
    max: u64,
    allowed: &'static str,
}

const CPUS: SizeRange = SizeRange { min: 1, max: 32, allowed: "a whole number from 1 to 32" };
const MEMORY_MB: SizeRange =
    SizeRange { min: 128, max: 65_536, allowed: "a whole number of MB from 128 to 65536" };
const WRITABLE_SIZE_MB: SizeRange =
    SizeRange { min: 64, max: 204_800, allowed: "a whole number of MB from 64 to 204800" };

/// The one value given under any of a size's names.
fn size(range: &SizeRange, names: &[(&str, &Option<Value>)]) -> Result<Option<u64>, Refusal> {
    let mut found: Option<u64> = None;
    for (field, given) in names {
        let Some(given) = given else { continue };
        let refusal = |problem: String| Refusal {
            code: "INVALID_CONFIG",
            field: (*field).to_owned(),
            problem,
            allowed: range.allowed.to_owned(),
        };
        let Value::Number(number) = given else {
            return Err(refusal("is not a number".to_owned()));
        };
        let value = whole_number(number)
            .filter(|value| (range.min..=range.max).contains(value))
            .ok_or_else(|| refusal(format!("is {number}")))?;
        if found.is_some_and(|other| other != value) {
            return Err(refusal("contradicts another name of the same size".to_owned()));
        }
        found = Some(value);
    }
    Ok(found)
}

/// `2` and `2.0`, as JavaScript does not tell them apart.
pub(super) fn whole_number(number: &Number) -> Option<u64> {
    number.as_u64().or_else(|| {
        let float = number.as_f64()?;
        let whole = float.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&float);
        // In range and whole: the conversion loses nothing.
        whole.then_some(float as u64)
    })
}

fn check_name_length(name: &str) -> Result<(), Refusal> {
    if name.chars().count() <= DisplayName::MAX_CHARS {
        return Ok(());
    }
    Err(Refusal {
        code: "INVALID_NAME_LENGTH",
        field: "name".to_owned(),
        problem: "is too long".to_owned(),
        allowed: "at most 255 characters".to_owned(),
    })
}

/// A slug that reads as an id would never be found: ids are looked for first.
fn check_slug(slug: &str) -> Result<(), Refusal> {
    if ids::parse_workspace_id(slug).is_none() {
        return Ok(());
    }
    Err(Refusal {
        code: "validation_error",
        field: "slug".to_owned(),
        problem: "has the form of an id".to_owned(),
        allowed: SLUG.to_owned(),
    })
}

fn lifetime(mode: Option<&str>) -> Result<Lifetime, Refusal> {
    match mode {
        None | Some("temporary") => Ok(Lifetime::Temporary),
        Some("permanent") => Ok(Lifetime::Permanent),
        Some(_) => Err(Refusal {
            code: "validation_error",
            field: "mode".to_owned(),
            problem: "is not a mode".to_owned(),
            allowed: "permanent, temporary".to_owned(),
        }),
    }
}

/// `{"key":…,"value":…}` or `"KEY=value"`. A value is not repeated in a refusal: it may be a secret.
fn env(list: Value) -> Result<Vec<EnvVar>, Refusal> {
    const ENTRY: &str = "{\"key\": string, \"value\": string} or \"KEY=value\"";
    let refusal = |index: usize, problem: &str| Refusal {
        code: "INVALID_CONFIG",
        field: format!("config.env[{index}]"),
        problem: problem.to_owned(),
        allowed: ENTRY.to_owned(),
    };
    let Value::Array(entries) = list else {
        return Err(Refusal {
            code: "INVALID_CONFIG",
            field: "config.env".to_owned(),
            problem: "is not a list".to_owned(),
            allowed: format!("a list of {ENTRY}"),
        });
    };
    let text =
        |entry: &Value, field: &str| entry.get(field).and_then(Value::as_str).map(str::to_owned);
    entries
        .iter()
        .enumerate()
        .map(|(index, entry)| match entry {
            Value::String(pair) => pair
                .split_once('=')
                .map(|(key, value)| EnvVar { key: key.to_owned(), value: value.to_owned() })
                .ok_or_else(|| refusal(index, "has no \"=\"")),
            Value::Object(_) => text(entry, "key")
                .zip(text(entry, "value"))
                .map(|(key, value)| EnvVar { key, value })
                .ok_or_else(|| refusal(index, "has no key or value that is a string")),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
                Err(refusal(index, "is not a variable"))
            }
        })
        .collect()
}

/// A page of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PageRequest {
    pub(super) page: u64,
    pub(super) limit: u64,
    pub(super) filter: ListWorkspaces,
    /// Only those shown with this status. Two statuses may stand for one state, so this filter is
    /// applied to what is shown.
    pub(super) status: Option<&'static str>,
}

/// Every word that a workspace's status can be.
const STATUSES: [&str; 10] = [
    "creating",
    "starting",
    "running",
    "stopping",
    "stopped",
    "paused",
    "suspended",
    "error",
    "deleting",
    "suspending",
];

pub(super) fn page_request(query: ListQuery) -> Result<PageRequest, Refusal> {
    let refusal = |field: &str, problem: &str, allowed: &str| Refusal {
        code: "validation_error",
        field: field.to_owned(),
        problem: problem.to_owned(),
        allowed: allowed.to_owned(),
    };
    let number = |text: Option<&str>, default: u64| match text {
        None => Some(default),
        Some(text) => text.parse::<u64>().ok(),
    };
    let page = number(query.page.as_deref(), 1)
        .filter(|page| (1..=1_000_000).contains(page))
        .ok_or_else(|| refusal("page", "is out of range", "1 to 1000000"))?;
    let limit = number(query.limit.as_deref(), 20)
        .filter(|limit| (1..=100).contains(limit))
        .ok_or_else(|| refusal("limit", "is out of range", "1 to 100"))?;
    let lifetime = query.mode.as_deref().map(|mode| lifetime(Some(mode))).transpose()?;
    let status = match query.status.as_deref() {
        None => None,
        Some(word) => Some(
            STATUSES
                .into_iter()
                .find(|status| *status == word)
                .ok_or_else(|| refusal("status", "is not a status", &STATUSES.join(", ")))?,
        ),
    };
    let (offset, at_most) = match status {
        None => ((page - 1) * limit, Some(limit)),
        Some(_) => (0, None),
    };
    Ok(PageRequest {
        page,
        limit,
        filter: ListWorkspaces {
            namespace: query.namespace,
            lifetime,
            offset,
            limit: at_most,
            ..ListWorkspaces::default()
        },
        status,
    })
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
