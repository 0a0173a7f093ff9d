//! Paths and logins.

use futures::StreamExt as _;
use russh_sftp::{
    protocol::{FileAttributes, StatusCode},
    server::StatusReply,
};
use skerry_internal_api::{FileKind, FileStat, GuestApi, NodeError, User};

/// More than this of the guest's `/etc/passwd` is not read.
const PASSWD_BYTES: u64 = 256 * 1024;
/// As in Linux.
const LINKS_MAX: usize = 40;

/// Who is who in the guest.
pub(super) struct Logins(Vec<Login>);

struct Login {
    name: String,
    uid: u32,
    home: String,
}

impl Logins {
    pub(super) async fn of(guest: &dyn GuestApi) -> Result<Self, NodeError> {
        let mut text = Vec::new();
        match guest.read_file("/etc/passwd", 0, Some(PASSWD_BYTES)).await {
            Ok(mut pieces) => {
                while let Some(piece) = pieces.next().await {
                    text.extend_from_slice(&piece?);
                    if text.len() as u64 > PASSWD_BYTES {
                        break;
                    }
                }
            }
            // Somebody has to be root even so.
            Err(NodeError::NoSuchFile(_)) => {}
            Err(error) => return Err(error),
        }
        Ok(Self::parse(&String::from_utf8_lossy(&text)))
    }

    fn parse(passwd: &str) -> Self {
        let login = |line: &str| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, _, _, home, ..] = fields[..] else { return None };
            let uid = uid.parse().ok()?;
            Some(Login { name: name.to_owned(), uid, home: home.to_owned() })
        };
        Self(passwd.lines().filter_map(login).collect())
    }

    pub(super) fn home(&self, user: &User) -> &str {
        let (name, otherwise) = match user {
            User::Root | User::OfImage => ("root", "/root"),
            User::Named(name) => (name.as_str(), "/"),
        };
        let login = self.0.iter().find(|login| login.name == name);
        login.map_or(otherwise, |login| login.home.as_str())
    }

    /// The login that a file of `uid` is to stay with.
    pub(super) fn of_uid(&self, uid: u32) -> Option<User> {
        if uid == 0 {
            return Some(User::Root);
        }
        self.0.iter().find(|login| login.uid == uid).map(|login| User::Named(login.name.clone()))
    }
}

/// `path` made absolute, without `.`, `..` and doubled slashes.
pub(super) fn absolute(path: &str, home: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let from = if path.starts_with('/') { "" } else { home };
    for part in from.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

/// `~` and `~/x` for the user's own home; `None` for somebody else's.
pub(super) fn expanded(path: &str, home: &str) -> Option<String> {
    match path.strip_prefix('~') {
        None => Some(absolute(path, home)),
        Some("") => Some(absolute("", home)),
        Some(rest) => rest.strip_prefix('/').map(|rest| absolute(rest, home)),
    }
}

/// What `path` is, links followed.
pub(super) async fn followed(guest: &dyn GuestApi, path: &str) -> Result<FileStat, NodeError> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let stat = guest.stat(&path).await?;
        match (&stat.kind, &stat.link_target) {
            (FileKind::Symlink, Some(target)) => {
                let parent = path.rsplit_once('/').map_or("/", |(parent, _)| parent);
                path = absolute(target, parent);
            }
            _ => return Ok(stat),
        }
    }
    Err(NodeError::Guest { code: "other", message: format!("{path}: too many levels of links") })
}

pub(super) fn attributes(stat: &FileStat) -> FileAttributes {
    /// `S_IFMT` values of `stat(2)`.
    const DIRECTORY: u32 = 0o040_000;
    const REGULAR: u32 = 0o100_000;
    const LINK: u32 = 0o120_000;
    let kind = match stat.kind {
        FileKind::File => REGULAR,
        FileKind::Directory => DIRECTORY,
        FileKind::Symlink => LINK,
        FileKind::Other => 0,
    };
    let seconds = u32::try_from(stat.modified_unix_ms / 1000).unwrap_or_default();
    FileAttributes {
        size: Some(stat.size_bytes),
        uid: Some(stat.uid),
        gid: Some(stat.gid),
        user: None,
        group: None,
        permissions: Some(kind | stat.mode),
        atime: Some(seconds),
        mtime: Some(seconds),
    }
}

/// What a client is told.
pub(super) fn status(error: &NodeError) -> StatusReply {
    let code = match error {
        NodeError::NoSuchFile(_) => StatusCode::NoSuchFile,
        NodeError::Guest { code: "permission_denied", .. } => StatusCode::PermissionDenied,
        NodeError::Unsupported(_) => StatusCode::OpUnsupported,
        NodeError::Guest { .. }
        | NodeError::NotConnected { .. }
        | NodeError::NoSuchVm
        | NodeError::Cancelled
        | NodeError::NoSuchSnapshot
        | NodeError::NoSuchVolume
        | NodeError::NoSuchCheckpoint
        | NodeError::VolumeInUse
        | NodeError::SavedStateUnusable(_)
        | NodeError::NotRunning
        | NodeError::NoSuchImage(_)
        | NodeError::Pull { .. }
        | NodeError::Invalid { .. }
        | NodeError::NoCapacity(_)
        | NodeError::Timeout { .. }
        | NodeError::GuestUnreachable(_)
        | NodeError::Step { .. } => StatusCode::Failure,
    };
    code.with_message(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_absolute_from_home() {
        for (path, made) in [
            (".", "/home/ada"),
            ("", "/home/ada"),
            ("x/../y//z", "/home/ada/y/z"),
            ("/etc/./passwd", "/etc/passwd"),
            ("../../../..", "/"),
        ] {
            assert_eq!(absolute(path, "/home/ada"), made, "{path}");
        }
        assert_eq!(expanded("~/x", "/home/ada").as_deref(), Some("/home/ada/x"));
        assert_eq!(expanded("~", "/home/ada").as_deref(), Some("/home/ada"));
        assert_eq!(expanded("~bob/x", "/home/ada"), None);
    }

    #[test]
    fn logins_are_read_from_passwd_and_root_needs_none() {
        let logins =
            Logins::parse("root:x:0:0:root:/root:/bin/sh\nbad\nada:x:1000:1000::/home/ada:\n");
        assert_eq!(logins.home(&User::Named("ada".to_owned())), "/home/ada");
        assert_eq!(logins.of_uid(1000), Some(User::Named("ada".to_owned())));
        assert_eq!(logins.of_uid(7), None);
        assert_eq!(Logins::parse("").home(&User::Root), "/root");
    }
}
