//! The SSH host keys of the guest. They belong to its machine id: with another one they are removed, so
//! that no two clones share them, and made anew if the guest has an SSH server.
//!
//! Making them takes seconds on a slow machine, so nobody waits for it, and it takes no time from
//! anything else that wants to run. The kind that is made in no time
//! comes first, so that a server that is started soon has one; a server that runs is told.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use skerry_agent_protocol::message::ExecEnd;
use tokio::{sync::Mutex, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{AgentError, Guest, exec, files::about, init::log};

const DIRECTORY: &str = "/etc/ssh";
const SERVER: &str = "/usr/sbin/sshd";
/// Where a running server leaves its number.
const SERVER_PID: &str = "/run/sshd.pid";
const FIRST_KEY: &str = "/etc/ssh/ssh_host_ed25519_key";
/// Makes the first key (ssh-keygen(1)).
const MAKE_FIRST: &[&str] =
    &["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", FIRST_KEY];
/// Makes every kind of key that is missing.
const MAKE_ALL: &[&str] = &["/usr/bin/ssh-keygen", "-A"];
/// RSA keys take long to find, also on a busy machine under emulation.
const MADE_WITHIN: Duration = Duration::from_secs(600);

/// Removes all host keys. Blocks.
pub(crate) fn remove() -> Result<(), AgentError> {
    remove_from(Path::new(DIRECTORY))
}

fn remove_from(dir: &Path) -> Result<(), AgentError> {
    for key in keys(dir).map_err(about(dir))? {
        match fs::remove_file(&key) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(about(&key)(error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Both halves of all host keys.
fn keys(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut keys = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            keys.push(entry.path());
        }
    }
    Ok(keys)
}

/// The making of keys, at most one at a time.
#[derive(Debug, Default)]
pub(crate) struct KeyMaker(Mutex<Option<Making>>);

#[derive(Debug)]
struct Making {
    given_up: CancellationToken,
    task: JoinHandle<()>,
}

impl KeyMaker {
    /// Makes what is missing in a guest with an SSH server, in the background. Whatever does not work is
    /// reported: the guest is a good guest without.
    pub(crate) async fn make_missing(&self, guest: &Arc<Guest>) {
        let mut current = self.0.lock().await;
        end(current.take()).await;
        let given_up = CancellationToken::new();
        // Not one of the tasks of a connection: it goes on when the host goes away.
        let task = tokio::spawn(make(Arc::clone(guest), given_up.clone()));
        *current = Some(Making { given_up, task });
    }

    /// Returns when no key is being made. What was begun under another identity must not be finished
    /// under this one: a clone would finish it with the same randomness.
    pub(crate) async fn stop(&self) {
        end(self.0.lock().await.take()).await;
    }
}

async fn end(making: Option<Making>) {
    if let Some(Making { given_up, task }) = making {
        given_up.cancel();
        // A task that panicked has ended as well.
        let _ = task.await;
    }
}

async fn make(guest: Arc<Guest>, given_up: CancellationToken) {
    let look = || Ok((Path::new(SERVER).exists(), Path::new(FIRST_KEY).exists()));
    let commands = match guest.blocking(look).await {
        Ok((true, false)) => &[MAKE_FIRST, MAKE_ALL][..],
        Ok((true, true)) => &[MAKE_ALL],
        Ok((false, _)) | Err(_) => return,
    };
    for command in commands {
        let end = exec::run_quietly(&guest, command, MADE_WITHIN, &given_up).await;
        if given_up.is_cancelled() {
            return;
        }
        match end {
            Ok(ExecEnd::Code(0)) => {}
            Ok(end) => return log(&format!("SSH host keys: ssh-keygen ended with {end:?}")),
            Err(error) => return log(&format!("SSH host keys: {error}")),
        }
        let told = guest.blocking(|| {
            tell_server();
            Ok(())
        });
        if told.await.is_err() {
            return;
        }
    }
}

/// Has a server that runs read its keys again: a clone's still holds those of the original.
fn tell_server() {
    let Ok(text) = fs::read_to_string(SERVER_PID) else { return };
    let Ok(pid) = text.trim().parse::<i32>() else { return };
    // The file may be older than whatever has this number now.
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    if pid > 1 && program == Path::new(SERVER) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGHUP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "sshd_config", "ssh_config"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        remove_from(dir.path()).unwrap();
        remove_from(dir.path()).unwrap();
        assert!(keys(dir.path()).unwrap().is_empty());
        assert!(dir.path().join("sshd_config").exists() && dir.path().join("ssh_config").exists());
        remove_from(&dir.path().join("missing")).unwrap();
    }
}
