//! Between the wire's types and the core's: pure, total, and without knowledge of HTTP.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use skerry_control::{
    self as control,
    internal_api::{self as node, ExecExit},
};
use skerry_model::{self as model, EnvVar, Invalid, ProjectId, Timestamp, limits::Pool, spec};

use super::{convert_saved as saved, volumes, wire, workloads};
use crate::ids;

/// Longest path taken, in bytes (Linux' own limit).
const MAX_PATH_BYTES: usize = 4096;

/// Names of all states, as `ListWorkspaces` takes them.
const STATE_NAMES: [&str; 10] = [
    "provisioned",
    "starting",
    "running",
    "paused",
    "suspending",
    "suspended",
    "stopping",
    "stopped",
    "failed",
    "deleting",
];

pub(super) fn workspace(workspace: &model::Workspace) -> wire::Workspace {
    let spec = &workspace.spec;
    wire::Workspace {
        id: workspace.id.to_string(),
        ids: wire::WorkspaceIds {
            oblien: ids::oblien_workspace_id(workspace.id),
            rigbox: ids::rigbox_workspace_id(workspace.id),
            aether: ids::uuid_text(workspace.id),
            instavm: ids::instavm_vm_id(workspace.id),
        },
        name: workspace.name.to_string(),
        slug: workspace.slug.to_string(),
        project_id: workspace.project_id.to_string(),
        namespace: workspace.namespace.clone(),
        origin: saved::origin(spec.origin),
        image: spec.image.to_string(),
        image_digest: spec.image_digest.to_string(),
        vcpu_count: spec.shape.vcpu_count.get(),
        memory_mib: spec.shape.memory_mib.get(),
        disk_mib: spec.shape.disk_mib.get(),
        cpu_kind: match spec.shape.cpu_kind {
            spec::CpuKind::Shared => wire::CpuKind::Shared,
            spec::CpuKind::Performance => wire::CpuKind::Performance,
        },
        env_names: spec.env.iter().map(|variable| variable.key.clone()).collect(),
        lifetime: match spec.lifetime {
            spec::Lifetime::Permanent => wire::Lifetime::Permanent,
            spec::Lifetime::Temporary => wire::Lifetime::Temporary,
        },
        expiry: spec.expiry.map(|expiry| wire::Expiry {
            after_seconds: expiry.after_seconds,
            action: match expiry.action {
                spec::ExpiryAction::Stop => wire::ExpiryAction::Stop,
                spec::ExpiryAction::Delete => wire::ExpiryAction::Delete,
                spec::ExpiryAction::Pause => wire::ExpiryAction::Pause,
                spec::ExpiryAction::Suspend => wire::ExpiryAction::Suspend,
            },
        }),
        idle: spec.idle.map(saved::idle_shown),
        keep_active: spec.keep_active,
        restart: saved::restart_shown(spec.restart),
        remove_on_exit: spec.remove_on_exit,
        snapshot_on_terminate: spec
            .snapshot_on_terminate
            .as_ref()
            .map(saved::snapshot_on_terminate_shown),
        auto_resume: spec.auto_resume,
        log_retention: match spec.log_retention {
            spec::LogRetention::AcrossStarts => wire::LogRetention::AcrossStarts,
            spec::LogRetention::ThisStart => wire::LogRetention::ThisStart,
        },
        metadata: spec.metadata.clone(),
        desired: match workspace.desired {
            model::Desired::Running => wire::Desired::Running,
            model::Desired::Paused => wire::Desired::Paused,
            model::Desired::Suspended => wire::Desired::Suspended,
            model::Desired::Stopped => wire::Desired::Stopped,
            model::Desired::Deleted => wire::Desired::Deleted,
        },
        state: state(&workspace.state),
        running_since: workspace.state.ready_since().map(time),
        start_path: workspace.lifecycle.start_path.map(saved::start_path),
        failure: workspace.state.failure().map(saved::failure),
        incarnation: workspace.incarnation.0,
        lifecycle: saved::lifecycle_status(workspace),
        private_address: workspace.private_address.map(|address| address.to_string()),
        expires_at: workspace.expires_at.map(time),
        created_at: time(workspace.created_at),
        updated_at: time(workspace.updated_at),
    }
}

const fn state(state: &model::State) -> wire::State {
    match state {
        model::State::Provisioned => wire::State::Provisioned,
        model::State::Starting => wire::State::Starting,
        model::State::Running { .. } => wire::State::Running,
        model::State::Paused { .. } => wire::State::Paused,
        model::State::Suspending => wire::State::Suspending,
        model::State::Suspended => wire::State::Suspended,
        model::State::Stopping => wire::State::Stopping,
        model::State::Stopped => wire::State::Stopped,
        model::State::Failed(_) => wire::State::Failed,
        model::State::Deleting => wire::State::Deleting,
    }
}

/// RFC 3339, UTC, to the millisecond.
pub(super) fn time(timestamp: Timestamp) -> String {
    format!("{timestamp:.3}")
}

fn env(variables: BTreeMap<String, String>) -> Vec<EnvVar> {
    variables.into_iter().map(|(key, value)| EnvVar { key, value }).collect()
}

pub(super) fn project_id(text: &str) -> Result<ProjectId, Invalid> {
    text.parse().map_err(|_| Invalid {
        field: "project_id",
        problem: "is not a project's identity".to_owned(),
        allowed: "a UUID, as GET /skerry/v1/projects shows it".to_owned(),
    })
}

pub(super) fn wait(query: &wire::WaitQuery) -> Result<control::Wait, Invalid> {
    match query.wait {
        0 => Ok(control::Wait::No),
        seconds @ 1..=600 => Ok(control::Wait::UpTo(Duration::from_secs(seconds.into()))),
        601.. => Err(Invalid {
            field: "wait",
            problem: "is too long".to_owned(),
            allowed: "0 to 600 seconds".to_owned(),
        }),
    }
}

pub(super) fn create(
    request: wire::CreateWorkspace,
    wait: control::Wait,
) -> Result<control::CreateWorkspace, Invalid> {
    let project_id = request.project_id.as_deref().map(project_id).transpose()?;
    Ok(control::CreateWorkspace {
        name: request.name,
        slug: request.slug,
        project_id,
        namespace: request.namespace,
        image: request.image,
        from_snapshot: request.from_snapshot.as_deref().map(saved::snapshot_ref),
        vcpu_count: request.vcpu_count,
        memory_mib: request.memory_mib,
        disk_mib: request.disk_mib,
        cpu_kind: request.cpu_kind.map(cpu_kind).unwrap_or_default(),
        env: env(request.env),
        lifetime: request.lifetime.map(lifetime).unwrap_or_default(),
        expiry: request.expiry.map(expiry),
        idle: request.idle.map(saved::idle),
        keep_active: request.keep_active,
        restart: request.restart.map(saved::restart).unwrap_or_default(),
        remove_on_exit: request.remove_on_exit,
        snapshot_on_terminate: request.snapshot_on_terminate.map(saved::snapshot_on_terminate),
        auto_resume: request.auto_resume,
        log_retention: match request.log_retention {
            None => spec::LogRetention::default(),
            Some(wire::LogRetention::AcrossStarts) => spec::LogRetention::AcrossStarts,
            Some(wire::LogRetention::ThisStart) => spec::LogRetention::ThisStart,
        },
        volumes: request.volumes.into_iter().map(volumes::wish).collect(),
        workloads: request.workloads.into_iter().map(workloads::new_workload).collect(),
        metadata: request.metadata,
        ..control::CreateWorkspace::new(if request.start {
            control::StartPolicy::Now(wait)
        } else {
            control::StartPolicy::Later
        })
    })
}

pub(super) const fn expiry(expiry: wire::Expiry) -> spec::Expiry {
    spec::Expiry { after_seconds: expiry.after_seconds, action: expiry_action(expiry.action) }
}

pub(super) const fn expiry_action(action: wire::ExpiryAction) -> spec::ExpiryAction {
    match action {
        wire::ExpiryAction::Stop => spec::ExpiryAction::Stop,
        wire::ExpiryAction::Delete => spec::ExpiryAction::Delete,
        wire::ExpiryAction::Pause => spec::ExpiryAction::Pause,
        wire::ExpiryAction::Suspend => spec::ExpiryAction::Suspend,
    }
}

const fn cpu_kind(kind: wire::CpuKind) -> spec::CpuKind {
    match kind {
        wire::CpuKind::Shared => spec::CpuKind::Shared,
        wire::CpuKind::Performance => spec::CpuKind::Performance,
    }
}

pub(super) const fn lifetime(lifetime: wire::Lifetime) -> spec::Lifetime {
    match lifetime {
        wire::Lifetime::Permanent => spec::Lifetime::Permanent,
        wire::Lifetime::Temporary => spec::Lifetime::Temporary,
    }
}

pub(super) fn update(request: wire::UpdateWorkspace) -> control::UpdateWorkspace {
    control::UpdateWorkspace {
        name: request.name,
        slug: request.slug,
        vcpu_count: request.vcpu_count,
        memory_mib: request.memory_mib,
        disk_mib: request.disk_mib,
        cpu_kind: request.cpu_kind.map(cpu_kind),
        env: request.env.map(env),
        keep_active: request.keep_active,
        metadata: request.metadata,
    }
}

pub(super) fn list(query: &wire::ListQuery) -> Result<(control::ListWorkspaces, u64), Invalid> {
    let limit = limit(query.limit)?;
    let states = states(query.state.as_deref(), &STATE_NAMES, "is not a state")?;
    let filter = control::ListWorkspaces {
        project_id: query.project_id.as_deref().map(project_id).transpose()?,
        namespace: query.namespace.clone(),
        lifetime: query.lifetime.map(lifetime),
        states,
        offset: query.offset,
        limit: Some(limit),
    };
    Ok((filter, limit))
}

/// How many items of a list are shown.
pub(super) fn limit(asked: Option<u64>) -> Result<u64, Invalid> {
    let limit = asked.unwrap_or(100);
    if (1..=1000).contains(&limit) {
        return Ok(limit);
    }
    Err(Invalid {
        field: "limit",
        problem: "is out of range".to_owned(),
        allowed: "1 to 1000".to_owned(),
    })
}

/// The states in a list of words between commas.
pub(super) fn states(
    words: Option<&str>,
    known: &'static [&'static str],
    problem: &str,
) -> Result<Vec<&'static str>, Invalid> {
    let unknown =
        || Invalid { field: "state", problem: problem.to_owned(), allowed: known.join(", ") };
    let words = words.iter().flat_map(|words| words.split(','));
    words.map(|word| known.iter().copied().find(|name| *name == word).ok_or_else(unknown)).collect()
}

/// An absolute path without NUL, short enough.
pub(super) fn path(field: &'static str, text: &str) -> Result<String, Invalid> {
    let problem = if !text.starts_with('/') {
        "is not absolute"
    } else if text.len() > MAX_PATH_BYTES {
        "is too long"
    } else if text.contains('\0') {
        "contains a NUL"
    } else {
        return Ok(text.to_owned());
    };
    Err(Invalid {
        field,
        problem: problem.to_owned(),
        allowed: format!("an absolute path of at most {MAX_PATH_BYTES} bytes"),
    })
}

/// Permission bits written in octal.
pub(super) fn mode(text: Option<&str>, default: u32) -> Result<u32, Invalid> {
    let Some(text) = text else { return Ok(default) };
    let octal = (1..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    u32::from_str_radix(text, 8).ok().filter(|_| octal).ok_or_else(|| Invalid {
        field: "mode",
        problem: "is not a number of permission bits".to_owned(),
        allowed: "1 to 4 octal digits, such as 644".to_owned(),
    })
}

/// A login name; absent means root. Whether there is such a user, the guest says.
pub(super) fn user(name: Option<&str>) -> Result<node::User, Invalid> {
    match name {
        None | Some("root") => Ok(node::User::Root),
        Some(name)
            if (1..=32).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_graphic() && b != b':' && b != b'/') =>
        {
            Ok(node::User::Named(name.to_owned()))
        }
        Some(_) => Err(Invalid {
            field: "user",
            problem: "is not a login name".to_owned(),
            allowed: "1 to 32 visible ASCII characters without : and /".to_owned(),
        }),
    }
}

pub(super) fn pty(columns: u16, rows: u16) -> Result<node::Pty, Invalid> {
    if (1..=1000).contains(&columns) && (1..=1000).contains(&rows) {
        return Ok(node::Pty { columns, rows });
    }
    Err(Invalid {
        field: "pty",
        problem: "is not a terminal's size".to_owned(),
        allowed: "1 to 1000 columns and rows".to_owned(),
    })
}

pub(super) fn signal(number: i32) -> Result<i32, Invalid> {
    if (1..=64).contains(&number) {
        return Ok(number);
    }
    Err(Invalid {
        field: "signal",
        problem: "is not a signal's number".to_owned(),
        allowed: "1 to 64".to_owned(),
    })
}

/// The parts that both forms of exec share.
pub(super) struct Command {
    pub(super) argv: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) working_dir: Option<String>,
    pub(super) user: Option<String>,
    pub(super) pty: Option<wire::Pty>,
    pub(super) timeout_seconds: Option<u32>,
    pub(super) max_timeout_seconds: u32,
}

pub(super) fn exec(command: Command) -> Result<node::ExecRequest, Invalid> {
    let argv_bytes: usize = command.argv.iter().map(|argument| argument.len() + 1).sum();
    let argv_problem = if command.argv.first().is_none_or(String::is_empty) {
        Some("names no program")
    } else if command.argv.len() > 4096 || argv_bytes > 256 * 1024 {
        Some("is too long")
    } else if command.argv.iter().any(|argument| argument.contains('\0')) {
        Some("contains a NUL")
    } else {
        None
    };
    if let Some(problem) = argv_problem {
        return Err(Invalid {
            field: "argv",
            problem: problem.to_owned(),
            allowed: "a program and its arguments: 1 to 4096 strings, 256 KiB in all".to_owned(),
        });
    }
    let env_bytes: usize = command.env.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
    let names_good = command.env.keys().all(|key| env_name_is_good(key));
    let values_good = command.env.values().all(|value| !value.contains('\0'));
    if !names_good || !values_good || command.env.len() > 256 || env_bytes > 128 * 1024 {
        return Err(Invalid {
            field: "env",
            problem: "is not acceptable".to_owned(),
            allowed: "at most 256 variables and 128 KiB; names of letters, digits and _, not \
                      beginning with a digit; values without NUL"
                .to_owned(),
        });
    }
    let max = command.max_timeout_seconds;
    if command.timeout_seconds.is_some_and(|seconds| !(1..=max).contains(&seconds)) {
        return Err(Invalid {
            field: "timeout_seconds",
            problem: "is out of range".to_owned(),
            allowed: format!("1 to {max}"),
        });
    }
    Ok(node::ExecRequest {
        argv: command.argv,
        env: command.env,
        working_dir: command
            .working_dir
            .as_deref()
            .map(|text| path("working_dir", text))
            .transpose()?,
        user: match command.user.as_deref() {
            None => node::User::OfImage,
            said => user(said)?,
        },
        pty: command.pty.map(|size| pty(size.columns, size.rows)).transpose()?,
        timeout: command.timeout_seconds.map(|seconds| Duration::from_secs(seconds.into())),
    })
}

fn env_name_is_good(name: &str) -> bool {
    (1..=256).contains(&name.len())
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// What a finished command is on the wire: exit code, signal, timed out.
pub(super) const fn exit(exit: ExecExit) -> (Option<i32>, Option<i32>, bool) {
    match exit {
        ExecExit::Code(code) => (Some(code), None, false),
        ExecExit::Signal(signal) => (None, Some(signal), false),
        ExecExit::TimedOut => (None, None, true),
    }
}

/// Bytes in JSON: as text when they are text.
pub(super) fn bytes(bytes: Vec<u8>) -> (String, wire::Encoding) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, wire::Encoding::Utf8),
        Err(error) => (STANDARD.encode(error.as_bytes()), wire::Encoding::Base64),
    }
}

/// Standard input given as text or base64.
pub(super) fn stdin(text: Option<String>, base64: Option<String>) -> Result<Vec<u8>, Invalid> {
    match (text, base64) {
        (None, None) => Ok(Vec::new()),
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(encoded)) => STANDARD.decode(encoded).map_err(|_| Invalid {
            field: "stdin_base64",
            problem: "is not base64".to_owned(),
            allowed: "base64 with padding, RFC 4648 section 4".to_owned(),
        }),
        (Some(_), Some(_)) => Err(Invalid {
            field: "stdin",
            problem: "is given twice".to_owned(),
            allowed: "one of stdin and stdin_base64".to_owned(),
        }),
    }
}

pub(super) const fn file_kind(kind: node::FileKind) -> wire::FileKind {
    match kind {
        node::FileKind::File => wire::FileKind::File,
        node::FileKind::Directory => wire::FileKind::Directory,
        node::FileKind::Symlink => wire::FileKind::Symlink,
        node::FileKind::Other => wire::FileKind::Other,
    }
}

pub(super) fn file(stat: &node::FileStat) -> wire::File {
    wire::File {
        name: stat.name.clone(),
        path: stat.path.clone(),
        kind: file_kind(stat.kind),
        size_bytes: stat.size_bytes,
        mode: format!("{:04o}", stat.mode & 0o7777),
        uid: stat.uid,
        gid: stat.gid,
        // The guest's clock may say anything; what no calendar holds becomes the epoch.
        modified_at: time(
            Timestamp::from_millisecond(stat.modified_unix_ms).unwrap_or(Timestamp::UNIX_EPOCH),
        ),
        link_target: stat.link_target.clone(),
    }
}

pub(super) const fn write_mode(how: Option<wire::WriteMode>) -> node::WriteMode {
    match how {
        None | Some(wire::WriteMode::Replace) => node::WriteMode::Replace,
        Some(wire::WriteMode::Append) => node::WriteMode::Append,
        Some(wire::WriteMode::CreateNew) => node::WriteMode::CreateNew,
    }
}

pub(super) const fn log_source(source: Option<wire::LogSource>) -> node::LogSource {
    match source {
        None | Some(wire::LogSource::Console) => node::LogSource::Console,
        Some(wire::LogSource::Commands) => node::LogSource::Commands,
    }
}

pub(super) fn stats(stats: &node::GuestStats) -> wire::Stats {
    wire::Stats {
        uptime_ms: stats.uptime_ms,
        cpu_used_ms: stats.cpu_used_ms,
        cpus_online: stats.cpus_online,
        memory_total_bytes: stats.memory_total_bytes,
        memory_available_bytes: stats.memory_available_bytes,
        disk_total_bytes: stats.disk_total_bytes,
        disk_used_bytes: stats.disk_used_bytes,
        processes: stats.processes,
    }
}

pub(super) fn port(port: node::ListeningPort) -> wire::Port {
    wire::Port { port: port.port, address: port.address, pid: port.pid, process: port.process }
}

pub(super) fn image(image: node::ImageInfo) -> wire::Image {
    wire::Image {
        name: image.name.to_string(),
        digest: image.digest.to_string(),
        description: image.description,
        category: image.category,
        size_bytes: image.size_bytes,
        built_at: time(image.built_at),
    }
}

pub(super) fn key(key: control::ApiKey) -> wire::Key {
    wire::Key {
        id: key.id.to_string(),
        name: key.name,
        secret_tail: key.secret_tail,
        created_at: time(key.created_at),
        last_used_at: key.last_used_at.map(time),
    }
}

pub(super) fn project(project: control::Project) -> wire::Project {
    wire::Project {
        id: project.id.to_string(),
        name: project.name,
        description: project.description,
        is_default: project.is_default,
        created_at: time(project.created_at),
        updated_at: time(project.updated_at),
    }
}

pub(super) fn quota(quota: &control::Quota, blocked: Option<wire::ErrorDetail>) -> wire::Quota {
    let plan = &quota.plan;
    wire::Quota {
        plan: plan.name.clone(),
        plan_label: plan.label.clone(),
        per_workspace: wire::PerWorkspace {
            vcpu_count: range(plan.vcpu_count),
            memory_mib: range(plan.memory_mib),
            disk_mib: range(plan.disk_mib),
        },
        workspaces: wire::Used { used: quota.usage.workspaces, max: plan.max_workspaces },
        owned: pool(quota.usage.owned, plan.owned_pool),
        running: pool(quota.usage.running, plan.running_pool),
        blocked,
    }
}

const fn range(range: model::Range) -> wire::Range {
    wire::Range { min: range.min, max: range.max, default: range.default }
}

const fn pool(used: Pool, max: Pool) -> wire::PoolUsed {
    wire::PoolUsed {
        vcpu_count: wire::Used { used: used.vcpu_count, max: max.vcpu_count },
        memory_mib: wire::Used { used: used.memory_mib, max: max.memory_mib },
        disk_mib: wire::Used { used: used.disk_mib, max: max.disk_mib },
    }
}

pub(super) fn doctor(doctor: node::NodeDoctor) -> wire::Doctor {
    wire::Doctor {
        accelerator: doctor.accelerator,
        checks: doctor
            .checks
            .into_iter()
            .map(|check| wire::Check {
                name: check.name,
                level: match check.level {
                    node::DoctorLevel::Ok => wire::CheckLevel::Ok,
                    node::DoctorLevel::Degraded => wire::CheckLevel::Degraded,
                    node::DoctorLevel::Missing => wire::CheckLevel::Missing,
                },
                found: check.found,
                remedy: check.remedy,
            })
            .collect(),
    }
}
