//! Making a guest that belongs to nobody fit to be cloned.

use std::{fs, io, path::Path, sync::Arc};

use skerry_agent_protocol::message::{FailureCode, Prepare, Prepared};

use crate::{
    AgentError, Guest,
    files::about,
    freeze::{FileSystem, Freezer},
    host_keys, stats,
};

/// What programs leave for a while.
const TEMPORARY: &[&str] = &["/tmp", "/var/tmp"];
/// Randomness that programs keep from one boot to the next.
const SEEDS: &[&str] =
    &["/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed", "/var/lib/seedrng"];
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
/// Both pages of files and what is known about names (Linux `Documentation/admin-guide/sysctl/vm.rst`).
const DROP_ALL: &str = "3";

/// Removes what clones must not share. Of the agent itself there is nothing: it keeps no randomness
/// that is ever told to anybody, and asks the kernel, which configure makes start over.
pub(crate) async fn prepare(guest: &Arc<Guest>, request: Prepare) -> Result<Prepared, AgentError> {
    let identity = guest.identity().lock().await;
    if identity.as_ref().is_none_or(|identity| identity.is_somebodys()) {
        return Err(AgentError::refused(
            FailureCode::PermissionDenied,
            "the guest belongs to somebody, it cannot be made a template",
        ));
    }
    let is_machine = guest.as_machine().is_some();
    let file_systems = guest.freezer().file_systems();
    guest
        .blocking(move || {
            if is_machine {
                clean(&file_systems)?;
                if request.drop_caches {
                    let path = Path::new(DROP_CACHES);
                    fs::write(path, DROP_ALL).map_err(about(path))?;
                }
            }
            Ok(Prepared { memory_used_bytes: stats::memory_used_bytes()? })
        })
        .await
}

fn clean(file_systems: &[Arc<FileSystem>]) -> Result<(), AgentError> {
    host_keys::remove()?;
    for dir in TEMPORARY {
        empty(Path::new(dir))?;
    }
    for seed in SEEDS {
        remove(Path::new(seed))?;
    }
    // What is left in memory only would be written by every clone.
    Freezer::sync(file_systems)
}

fn empty(dir: &Path) -> Result<(), AgentError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(about(dir)(error)),
    };
    for entry in entries {
        remove(&entry.map_err(about(dir))?.path())?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), AgentError> {
    let outcome = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(about(path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_emptied_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        fs::create_dir_all(inside.join("deep")).unwrap();
        fs::write(inside.join("deep/file"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", inside.join("link")).unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        empty(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        empty(&inside).unwrap();
        assert!(Path::new("/etc/passwd").exists());
    }
}
