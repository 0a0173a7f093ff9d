//! SSH keys of an account: whoever holds the private half enters the account's workspaces.

use std::ops::RangeInclusive;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use skerry_internal_api::KeyFingerprint;
use skerry_model::{ErrorKind, SshKeyId, Timestamp, name::check_key_name};
use ssh_key::{Algorithm, HashAlg, PublicKey, public::RsaPublicKey};

use crate::{Caller, Control, Error, store::SshKeyInsertion};

/// Keys of one account.
pub const SSH_KEYS_MAX: u32 = 50;
/// A line of a `.pub` file is far shorter.
const PUBLIC_KEY_MAX_BYTES: usize = 4096;
const ALLOWED: &str = "one line of a .pub file: ssh-ed25519, ecdsa-sha2-nistp256, -384 or -521, \
                       sk-ssh-ed25519@openssh.com, sk-ecdsa-sha2-nistp256@openssh.com, or ssh-rsa \
                       of 2048 to 4096 bits";
/// Below, a key can be found by whoever has the means; above, verifying takes a server too long.
const RSA_BITS: RangeInclusive<usize> = 2048..=4096;

/// A public key of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshKey {
    /// Its identity.
    pub id: SshKeyId,
    /// The owner's name for it.
    pub name: String,
    /// As in a `.pub` file, without its comment.
    pub public_key: String,
    /// SHA-256 of its wire form.
    pub fingerprint: KeyFingerprint,
    /// When it was added.
    pub created_at: Timestamp,
}

impl SshKey {
    /// Its algorithm as SSH names it: the first word of the key.
    #[must_use]
    pub fn algorithm(&self) -> &str {
        self.public_key.split(' ').next().unwrap_or_default()
    }

    /// The fingerprint as `ssh-keygen -l` prints it.
    #[must_use]
    pub fn fingerprint_text(&self) -> String {
        format!("SHA256:{}", STANDARD_NO_PAD.encode(self.fingerprint.0))
    }
}

impl Control {
    /// Adds a key to the caller's account. `public_key` is a line of a `.pub` file; `name` has 1 to 100
    /// characters and is by default the key's comment.
    ///
    /// # Errors
    /// `Invalid` (`public_key`, `name`); `Conflict` when the key is registered already, for whichever
    /// account, or the account has [`SSH_KEYS_MAX`].
    pub async fn add_ssh_key(
        &self,
        caller: &Caller,
        name: Option<&str>,
        public_key: &str,
    ) -> Result<SshKey, Error> {
        let (mut parsed, fingerprint) = parse(public_key)?;
        let comment = parsed.comment().as_str_lossy().trim().to_owned();
        let name = match name {
            Some(name) => {
                check_key_name(name)?;
                name.to_owned()
            }
            None if check_key_name(&comment).is_ok() => comment,
            None => "ssh key".to_owned(),
        };
        parsed.set_comment("");
        let key = SshKey {
            id: SshKeyId::from_random(self.inner.random()),
            name,
            public_key: parsed.to_openssh().map_err(Error::internal)?.trim().to_owned(),
            fingerprint,
            created_at: self.now(),
        };
        let store = &self.inner.store;
        let why = match store.insert_ssh_key(caller.account_id, &key, SSH_KEYS_MAX).await? {
            SshKeyInsertion::Done => return Ok(key),
            SshKeyInsertion::Taken => "this key is registered already".to_owned(),
            SshKeyInsertion::TooMany => format!("an account has at most {SSH_KEYS_MAX} SSH keys"),
        };
        Err(ErrorKind::Conflict(why).into())
    }

    /// The account's keys, oldest first.
    ///
    /// # Errors
    /// Only faults of the store.
    pub async fn list_ssh_keys(&self, caller: &Caller) -> Result<Vec<SshKey>, Error> {
        self.inner.store.list_ssh_keys(caller.account_id).await
    }

    /// Removes a key: nothing is opened with it from then on. What is open stays open.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_ssh_key(&self, caller: &Caller, id: SshKeyId) -> Result<(), Error> {
        if self.inner.store.remove_ssh_key(caller.account_id, id).await? {
            Ok(())
        } else {
            Err(Error::not_found("ssh key"))
        }
    }
}

fn parse(text: &str) -> Result<(PublicKey, KeyFingerprint), Error> {
    let refused = |problem: &str| Error::invalid("public_key", problem, ALLOWED);
    let text = text.trim();
    if text.contains("PRIVATE KEY") {
        // The text is not repeated anywhere.
        return Err(refused("is a private key, which has to stay where it was made"));
    }
    if text.len() > PUBLIC_KEY_MAX_BYTES {
        return Err(refused("is too long"));
    }
    if text.contains(['\n', '\r']) {
        return Err(refused("has more than one line"));
    }
    let key = PublicKey::from_openssh(text).map_err(|_| refused("is not an SSH public key"))?;
    match key.algorithm() {
        Algorithm::Ed25519
        | Algorithm::Ecdsa { .. }
        | Algorithm::SkEd25519
        | Algorithm::SkEcdsaSha2NistP256 => {}
        Algorithm::Rsa { .. } => {
            let rsa = key.key_data().rsa().ok_or_else(|| refused("is not an SSH public key"))?;
            check_rsa(rsa).map_err(refused)?;
        }
        _ => return Err(refused("is of a kind that is not accepted")),
    }
    let fingerprint = key.fingerprint(HashAlg::Sha256);
    let digest = fingerprint.as_bytes().try_into().map_err(Error::internal)?;
    Ok((key, KeyFingerprint(digest)))
}

/// Whether signatures of this key can be verified and mean something.
fn check_rsa(key: &RsaPublicKey) -> Result<(), &'static str> {
    let (modulus, exponent) = (key.n().as_positive_bytes(), key.e().as_positive_bytes());
    let (Some([first, .., last]), Some(exponent)) = (modulus, exponent) else {
        return Err("is not an RSA key that can be used");
    };
    let bits = modulus.map_or(0, <[u8]>::len) * 8 - first.leading_zeros() as usize;
    if bits < *RSA_BITS.start() {
        return Err(
            "is an RSA key of less than 2048 bits; make another with ssh-keygen -t ed25519",
        );
    }
    if bits > *RSA_BITS.end() {
        return Err("is an RSA key of more than 4096 bits");
    }
    let is_odd = |byte: u8| byte & 1 == 1;
    let exponent_fits = match exponent {
        [only] => *only >= 3 && is_odd(*only),
        [_, .., last] => exponent.len() <= 4 && is_odd(*last),
        [] => false,
    };
    if exponent_fits && is_odd(*last) { Ok(()) } else { Err("is not an RSA key that can be used") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const ED25519: &str = "ssh-ed25519 \
        AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAmwHBWfYXtYs4ZUu6kd2aXYuQxTJ2lzGWnNNPM ada@laptop";

    #[tokio::test]
    async fn a_key_is_named_by_its_comment_and_shown_without_it() {
        let test = testing::open().await;
        let caller = test.caller().await;
        let key = test.control.add_ssh_key(&caller, None, &format!("  {ED25519}\n")).await.unwrap();
        assert_eq!((key.name.as_str(), key.algorithm()), ("ada@laptop", "ssh-ed25519"));
        assert_eq!(format!("{} ada@laptop", key.public_key), ED25519);
        assert_eq!(test.control.list_ssh_keys(&caller).await.unwrap(), vec![key.clone()]);
        test.control.delete_ssh_key(&caller, key.id).await.unwrap();
        let gone = test.control.delete_ssh_key(&caller, key.id).await.unwrap_err();
        assert_eq!(gone.kind(), &ErrorKind::NotFound { what: "ssh key" });
        let named = test.control.add_ssh_key(&caller, Some("work"), ED25519).await.unwrap();
        assert_eq!(named.name, "work");
    }

    #[tokio::test]
    async fn a_key_registered_by_anybody_is_not_registered_again() {
        let test = testing::open().await;
        let (first, second) = (test.caller().await, test.other_caller("other").await.0);
        test.control.add_ssh_key(&first, None, ED25519).await.unwrap();
        for caller in [&first, &second] {
            let twice = test.control.add_ssh_key(caller, None, ED25519).await.unwrap_err();
            assert!(matches!(twice.kind(), ErrorKind::Conflict(_)), "{twice:?}");
        }
    }

    #[test]
    fn what_is_no_acceptable_key_is_told_why_without_being_repeated() {
        let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAQQC7Y0r1uWqcbm4u0ZB0GGmVFNhmCcgGvXhtIk0mzlfY\
                   AGGCSvWyNNDl3AvaKVJZKGEq7QKTrB6fHAbk2vZ6cNdV";
        for (text, problem) in [
            ("", "is not an SSH public key"),
            ("hello", "is not an SSH public key"),
            ("ssh-ed25519 AAAA", "is not an SSH public key"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nsecret", "is a private key"),
            (&format!("{ED25519}\n{ED25519}"), "has more than one line"),
            (&"x".repeat(5000), "is too long"),
            (rsa, "is an RSA key of less than 2048 bits"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
