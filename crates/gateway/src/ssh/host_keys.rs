//! The keys the gateway and the workspaces are known by.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use russh::keys::{PrivateKey, PublicKey, ssh_key};
use ssh_key::{LineEnding, private::Ed25519Keypair};
use thiserror::Error;

/// What workspaces' keys are derived for (`blake3::derive_key`). Changing it changes them all.
const WORKSPACES: &str = "skerry 2026-11-22 ssh host keys of workspaces";
const FILE: &str = "ssh_host_ed25519_key";

/// Why there are no host keys.
#[derive(Debug, Error)]
pub enum HostKeyError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is in the file is not an Ed25519 key in OpenSSH's form without a passphrase.
    #[error("{0}: not an Ed25519 private key in OpenSSH's format without a passphrase")]
    Damaged(PathBuf),
}

/// The gateway's host key, and from it the keys of workspaces.
pub struct HostKeys {
    gateway: PrivateKey,
    workspaces: [u8; 32],
}

impl HostKeys {
    /// The key kept in `directory`, made the first time from what `fill_random` gives. Only the owner
    /// can read the file.
    ///
    /// # Errors
    /// [`HostKeyError`].
    pub fn open(
        directory: &Path,
        fill_random: impl FnOnce(&mut [u8]),
    ) -> Result<Self, HostKeyError> {
        let path = directory.join(FILE);
        let failed = |source| HostKeyError::File { path: path.clone(), source };
        let damaged = || HostKeyError::Damaged(path.clone());
        let gateway = match fs::read_to_string(&path) {
            Ok(text) => PrivateKey::from_openssh(text).map_err(|_| damaged())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut seed = [0; 32];
                fill_random(&mut seed);
                let key = from_seed(&seed, "skerry");
                let text = key.to_openssh(LineEnding::LF).map_err(|_| damaged())?;
                keep(&path, text.as_bytes()).map_err(failed)?;
                key
            }
            Err(error) => return Err(failed(error)),
        };
        let pair = gateway.key_data().ed25519().ok_or_else(damaged)?;
        let workspaces = blake3::derive_key(WORKSPACES, &pair.private.to_bytes());
        Ok(Self { gateway, workspaces })
    }

    /// The gateway's own.
    #[must_use]
    pub fn gateway(&self) -> &PrivateKey {
        &self.gateway
    }

    /// The public half of the gateway's own, as in a `.pub` file.
    #[must_use]
    pub fn gateway_public(&self) -> String {
        let mut key = PublicKey::from(&self.gateway);
        key.set_comment("");
        key.to_openssh().unwrap_or_default()
    }

    /// The key with which a workspace called `name` answers. There is one for every name, whether there
    /// is a workspace of that name or not, and always the same.
    #[must_use]
    pub fn workspace(&self, name: &str) -> PrivateKey {
        let seed = blake3::keyed_hash(&self.workspaces, name.to_ascii_lowercase().as_bytes());
        from_seed(seed.as_bytes(), "")
    }
}

fn from_seed(seed: &[u8; 32], comment: &str) -> PrivateKey {
    let mut key = PrivateKey::from(Ed25519Keypair::from_seed(seed));
    key.set_comment(comment);
    key
}

/// Writes it whole under another name first: a crash must not leave half a key.
fn keep(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn fingerprint(key: &PrivateKey) -> String {
        key.fingerprint(ssh_key::HashAlg::Sha256).to_string()
    }

    #[test]
    fn the_gateways_key_is_made_once_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = HostKeys::open(dir.path(), |seed| seed.fill(7)).unwrap();
        let again = HostKeys::open(dir.path(), |_| unreachable!("it is there")).unwrap();
        assert_eq!(fingerprint(first.gateway()), fingerprint(again.gateway()));
        assert!(first.gateway_public().starts_with("ssh-ed25519 "));
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn every_name_has_its_own_key_which_stays() {
        let dir = tempfile::tempdir().unwrap();
        let keys = HostKeys::open(dir.path(), |seed| seed.fill(7)).unwrap();
        let again = HostKeys::open(dir.path(), |_| unreachable!("it is there")).unwrap();
        let of = |keys: &HostKeys, name| fingerprint(&keys.workspace(name));
        assert_eq!(of(&keys, "blue"), of(&again, "blue"));
        // Names of hosts have no case.
        assert_eq!(of(&keys, "blue"), of(&keys, "BLUE"));
        assert_ne!(of(&keys, "blue"), of(&keys, "green"));
        assert_ne!(of(&keys, "blue"), fingerprint(keys.gateway()));
    }

    /// A private RSA operation would leak the key by its timing (RUSTSEC-2023-0071).
    #[test]
    fn an_rsa_key_is_no_host_key() {
        let dir = tempfile::tempdir().unwrap();
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f"])
            .arg(dir.path().join(FILE))
            .status()
            .unwrap();
        assert!(made.success());
        let opened = HostKeys::open(dir.path(), |_| unreachable!("something is there"));
        assert!(matches!(opened, Err(HostKeyError::Damaged(_))));
    }

    #[test]
    fn a_damaged_key_is_an_error_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "half a key").unwrap();
        let opened = HostKeys::open(dir.path(), |_| unreachable!("something is there"));
        assert!(matches!(opened, Err(HostKeyError::Damaged(_))));
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), "half a key");
    }
}
