//! Writing a file in one step, or to its end.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::libc;
use skerry_agent_protocol::message::{self, FailureCode, WriteMode, Written};
use tempfile::TempPath;
use tokio::io::AsyncWriteExt;

use crate::{
    AgentError, Guest,
    body::{self, Answer, RequestBody},
    files::{about, checked, make_dirs, refuse_irregular},
    freeze::OffThread,
    users::Account,
};

/// A file under way. Dropped before its end it leaves nothing behind, except that what was appended
/// stays appended.
struct Draft<F> {
    file: F,
    target: PathBuf,
    account: Account,
    /// The name it has until it is whole; `None` when it is appended in place.
    temporary: Option<TempPath>,
    /// Whether owner and permission bits are ours to set: not on a file that was there.
    is_new: bool,
}

impl<F> Draft<F> {
    fn map<G>(self, change: impl FnOnce(F) -> G) -> Draft<G> {
        let Self { file, target, account, temporary, is_new } = self;
        Draft { file: change(file), target, account, temporary, is_new }
    }
}

pub(crate) async fn write(
    guest: &Arc<Guest>,
    request: message::Write,
    content: &mut RequestBody,
) -> Result<Answer, AgentError> {
    let path = checked(&request.path)?;
    let (how, mode) = (request.how, request.mode & 0o7777);
    let shared = Arc::clone(guest);
    let draft = guest.blocking(move || begin(&path, how, shared.account(&request.user)?)).await?;

    // The host may go away at any moment: the draft is not given up on this thread.
    let mut draft = OffThread::new(draft.map(tokio::fs::File::from_std));
    while let Some(bytes) = content.chunk().await? {
        let Some(Draft { file, target, .. }) = draft.get_mut() else { break };
        file.write_all(&bytes).await.map_err(about(target))?;
    }
    if let Some(Draft { file, target, .. }) = draft.get_mut() {
        file.flush().await.map_err(about(target))?;
    }

    let written = guest
        .blocking(move || {
            let given_up = || AgentError::refused(FailureCode::Other, "the write was given up");
            let draft = draft.into_inner().ok_or_else(given_up)?;
            // Everything was flushed: nothing of it is under way any more.
            let in_use = |_| AgentError::refused(FailureCode::Other, "the file is still in use");
            let Draft { file, target, account, temporary, is_new } = draft;
            let file = file.try_into_std().map_err(in_use)?;
            finish(Draft { file, target, account, temporary, is_new }, how, mode)
        })
        .await?;
    body::json(&written)
}

fn begin(path: &Path, how: WriteMode, account: Account) -> Result<Draft<File>, AgentError> {
    // A link stays a link: what it points to is what is written.
    let target = match how {
        WriteMode::Replace => fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()),
        WriteMode::Append | WriteMode::CreateNew => path.to_owned(),
    };
    let (Some(dir), Some(_)) = (target.parent(), target.file_name()) else {
        return Err(AgentError::refused(
            FailureCode::IsDirectory,
            format!("{}: is a directory", path.display()),
        ));
    };
    make_dirs(dir, &account)?;
    if how == WriteMode::Append {
        return begin_append(target, account);
    }
    match fs::symlink_metadata(&target) {
        Ok(_) if how == WriteMode::CreateNew => return Err(exists(&target)),
        Ok(metadata) => refuse_irregular(&target, &metadata)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(about(&target)(error)),
    }
    let (file, temporary) = tempfile::Builder::new()
        .prefix(".skerry-")
        .tempfile_in(dir)
        .map_err(about(&target))?
        .into_parts();
    Ok(Draft { file, target, account, temporary: Some(temporary), is_new: true })
}

fn begin_append(target: PathBuf, account: Account) -> Result<Draft<File>, AgentError> {
    let open = |create_new: bool| {
        File::options()
            .append(true)
            .create_new(create_new)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(&target)
    };
    let (file, is_new) = match open(true) {
        Ok(file) => (file, true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            (open(false).map_err(about(&target))?, false)
        }
        Err(error) => return Err(about(&target)(error)),
    };
    refuse_irregular(&target, &file.metadata().map_err(about(&target))?)?;
    Ok(Draft { file, target, account, temporary: None, is_new })
}

fn finish(draft: Draft<File>, how: WriteMode, mode: u32) -> Result<Written, AgentError> {
    let Draft { file, target, account, temporary, is_new } = draft;
    let failed = about(&target);
    if is_new {
        if account.switch {
            fchown(&file, Some(account.uid), Some(account.gid)).map_err(&failed)?;
        }
        // After the owner: a change of owner clears the set-id bits.
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(&failed)?;
    }
    file.sync_all().map_err(&failed)?;
    if let Some(temporary) = temporary {
        match how {
            WriteMode::CreateNew => {
                temporary.persist_noclobber(&target).map_err(|error| failed(error.error))?;
            }
            WriteMode::Replace | WriteMode::Append => {
                temporary.persist(&target).map_err(|error| failed(error.error))?;
            }
        }
        // The name is as durable as the bytes only once its directory is.
        if let Some(dir) = target.parent() {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(about(dir))?;
        }
    }
    Ok(Written { size_bytes: file.metadata().map_err(&failed)?.len() })
}

fn exists(path: &Path) -> AgentError {
    AgentError::refused(FailureCode::Exists, format!("{}: file exists", path.display()))
}
