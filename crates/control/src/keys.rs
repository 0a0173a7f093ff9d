//! API keys: made, listed and revoked; the secret is shown once and stored as a hash.

use skerry_model::{ApiKeyId, ErrorKind, Secret, Timestamp, name::check_key_name};

use crate::{Caller, Control, Error, store::KeyRemoval};

/// The record of a key, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Its identity.
    pub id: ApiKeyId,
    /// The owner's name for it.
    pub name: String,
    /// The last four characters of the secret, to tell keys apart.
    pub secret_tail: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
}

/// A key just made.
#[derive(Debug)]
pub struct NewApiKey {
    /// The record.
    pub key: ApiKey,
    /// The secret: `sk_` and 43 characters. Shown this once.
    pub secret: Secret,
}

impl Control {
    /// Makes a key for the caller's account. `name`: 1 to 100 characters.
    ///
    /// # Errors
    /// `Invalid` for the name.
    pub async fn create_key(&self, caller: &Caller, name: &str) -> Result<NewApiKey, Error> {
        check_key_name(name)?;
        self.inner.make_key(caller.account_id, name).await
    }

    /// The account's keys, oldest first, with every use that was begun before this call: a caller sees
    /// its own.
    ///
    /// # Errors
    /// Only faults of the store.
    pub async fn list_keys(&self, caller: &Caller) -> Result<Vec<ApiKey>, Error> {
        // Read before the store: what is taken off this list in between is in the store by then.
        let touching = self.inner.key_uses.touching();
        let mut keys = self.inner.store.list_keys(caller.account_id).await?;
        for key in &mut keys {
            if let Some(used_at) = touching.get(&key.id) {
                key.last_used_at = key.last_used_at.max(Some(*used_at));
            }
        }
        Ok(keys)
    }

    /// Revokes a key at once. The last key of an account cannot be revoked.
    ///
    /// # Errors
    /// `NotFound`, or `Conflict` for the last key.
    pub async fn delete_key(&self, caller: &Caller, id: ApiKeyId) -> Result<(), Error> {
        match self.inner.store.remove_key(caller.account_id, id).await? {
            KeyRemoval::Removed => Ok(()),
            KeyRemoval::NotFound => Err(Error::not_found("key")),
            KeyRemoval::LastOne => {
                let why = "the last key of an account cannot be revoked";
                Err(ErrorKind::Conflict(why.to_owned()).into())
            }
        }
    }
}
