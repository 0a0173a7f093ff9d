//! Between the protocol's types and the node's contract.

use skerry_agent_protocol::message;
use skerry_internal_api::{
    ExecExit, ExecRequest, FileKind, FileStat, GuestStats, ListeningPort, User, WriteMode,
};

use super::Unsaid;

pub(super) fn exec(request: ExecRequest, unsaid: &Unsaid) -> message::Exec {
    message::Exec {
        argv: request.argv,
        env: request.env,
        working_dir: request.working_dir.or_else(|| unsaid.working_dir.clone()),
        user: match (request.user, &unsaid.user) {
            (User::OfImage, Some(name)) => message::User::Named(name.clone()),
            (said, _) => user(said),
        },
        terminal: request.pty.map(|pty| message::Terminal { columns: pty.columns, rows: pty.rows }),
        timeout_ms: request
            .timeout
            .map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
    }
}

pub(super) fn exit(end: message::ExecEnd) -> ExecExit {
    match end {
        message::ExecEnd::Code(code) => ExecExit::Code(i32::from(code)),
        message::ExecEnd::Signal(signal) => ExecExit::Signal(i32::from(signal)),
        message::ExecEnd::TimedOut => ExecExit::TimedOut,
    }
}

pub(super) fn user(user: User) -> message::User {
    match user {
        User::Root | User::OfImage => message::User::Root,
        User::Named(name) => message::User::Named(name),
    }
}

pub(super) fn write_mode(how: WriteMode) -> message::WriteMode {
    match how {
        WriteMode::Replace => message::WriteMode::Replace,
        WriteMode::Append => message::WriteMode::Append,
        WriteMode::CreateNew => message::WriteMode::CreateNew,
    }
}

pub(super) fn file_kind(kind: message::FileKind) -> FileKind {
    match kind {
        message::FileKind::File => FileKind::File,
        message::FileKind::Directory => FileKind::Directory,
        message::FileKind::Symlink => FileKind::Symlink,
        message::FileKind::Other => FileKind::Other,
    }
}

/// `path` is where the host asked; the guest's word is not taken for it.
pub(super) fn stat(path: String, stat: message::Stat) -> FileStat {
    FileStat {
        name: stat.name,
        path,
        kind: file_kind(stat.kind),
        size_bytes: stat.size_bytes,
        mode: stat.mode & 0o7777,
        uid: stat.uid,
        gid: stat.gid,
        modified_unix_ms: stat.modified_unix_ms,
        link_target: stat.link_target,
    }
}

pub(super) fn stats(stats: message::Stats) -> GuestStats {
    GuestStats {
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

pub(super) fn port(port: message::Port) -> ListeningPort {
    ListeningPort { port: port.port, address: port.address, pid: port.pid, process: port.process }
}
