//! Who enters one workspace by SSH, beside the account's keys: passwords, and whether anybody does.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
};

use argon2::{Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version};
use lru::LruCache;
use skerry_internal_api::{RouteCredential, SshPasswordId};
use skerry_model::{ErrorKind, Secret, Timestamp, Workspace, WorkspaceId};
use tokio::sync::Semaphore;

use crate::{
    Caller, Control, Error, WorkspaceRef,
    control::Inner,
    store::{EarlierPassword, PasswordInsertion, SshPassword},
};

/// Who passwords are for when nobody says otherwise.
const ROOT: &str = "root";
/// Logins of one workspace that have a password.
const LOGINS_MAX: u32 = 8;
const LOGIN_MAX_BYTES: usize = 32;
const PASSWORD_MIN_CHARS: usize = 8;
const PASSWORD_MAX_BYTES: usize = 128;
/// Characters of a password that is made here: 124 random bits.
const MADE_CHARS: usize = 24;
/// Memory of one hash in KiB, and passes over it: what RFC 9106 and OWASP name for servers.
const HASH_MEMORY_KIB: u32 = 19 * 1024;
const HASH_PASSES: u32 = 2;
const HASH_LANES: u32 = 1;
const SALT_BYTES: usize = 16;
/// Hashes made at the same time, by whomever.
const HASHING: usize = 2;
/// Wrong passwords for one workspace within a minute; after that none is looked at for the rest of it.
const MISSES: u32 = 10;
const MISSES_KEPT_SECONDS: i64 = 60;
/// Workspaces whose misses are remembered; the one that was tried longest ago is forgotten first.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Who enters a workspace by SSH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshAccess {
    /// Whether anybody does.
    pub is_open: bool,
    /// Whether it has a password.
    pub has_password: bool,
    /// Whether one of them was chosen by its owner.
    pub is_password_chosen: bool,
}

/// Tries of passwords: how many were wrong, and turns for the work they are.
pub(crate) struct PasswordTries {
    misses: Mutex<LruCache<WorkspaceId, Misses>>,
    hashing: Semaphore,
}

#[derive(Clone, Copy)]
struct Misses {
    count: u32,
    since: Timestamp,
}

impl Default for PasswordTries {
    fn default() -> Self {
        Self { misses: Mutex::new(LruCache::new(REMEMBERED)), hashing: Semaphore::new(HASHING) }
    }
}

impl PasswordTries {
    /// Counts a try before its outcome is known, so that many at once are not more; false when there
    /// were too many.
    fn begin(&self, workspace: WorkspaceId, now: Timestamp) -> bool {
        let mut misses = self.misses.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Misses { count: 0, since: now };
        let seen = misses.get_or_insert_mut(workspace, || fresh);
        if now.duration_since(seen.since).as_secs() >= MISSES_KEPT_SECONDS {
            *seen = fresh;
        }
        seen.count = seen.count.saturating_add(1);
        seen.count <= MISSES
    }

    fn was_right(&self, workspace: WorkspaceId) {
        self.misses.lock().unwrap_or_else(PoisonError::into_inner).pop(&workspace);
    }
}

impl Control {
    /// Who enters the workspace.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn ssh_access(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<SshAccess, Error> {
        let workspace = self.inner.find(caller, which).await?;
        let is_open = self.inner.is_open_to_ssh(workspace.id).await?;
        let passwords = self.inner.store.ssh_passwords(workspace.id).await?;
        Ok(SshAccess {
            is_open,
            has_password: !passwords.is_empty(),
            is_password_chosen: passwords.iter().any(|password| password.is_chosen),
        })
    }

    /// Which of these workspaces nobody enters.
    ///
    /// # Errors
    /// Only faults of the store.
    pub async fn closed_to_ssh(&self, workspaces: &[Workspace]) -> Result<Vec<WorkspaceId>, Error> {
        let ids: Vec<WorkspaceId> = workspaces.iter().map(|workspace| workspace.id).collect();
        self.inner.store.closed_to_ssh(&ids).await
    }

    /// Opens the workspace to SSH. One without a password for root gets one, which is answered and
    /// shown this once.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn open_ssh(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<Option<Secret>, Error> {
        let workspace = self.inner.find(caller, which).await?;
        self.inner.store.open_ssh(workspace.id).await?;
        let there = self.inner.store.ssh_passwords(workspace.id).await?;
        if there.iter().any(|password| password.login == ROOT) {
            return Ok(None);
        }
        let made = Secret::new(self.inner.random_word(MADE_CHARS));
        let hash = self.inner.password_hash(made.clone()).await?;
        let password = SshPassword {
            id: SshPasswordId(u128::from_be_bytes(self.inner.random())),
            workspace_id: workspace.id,
            login: ROOT.to_owned(),
            hash,
            is_chosen: false,
            created_at: self.now(),
        };
        let earlier = EarlierPassword::Stays;
        let inserted = self.inner.store.insert_ssh_password(&password, earlier, LOGINS_MAX).await?;
        match inserted {
            PasswordInsertion::Done => Ok(Some(made)),
            PasswordInsertion::There => Ok(None),
            other => Err(refusal(other)),
        }
    }

    /// Closes the workspace to SSH: to its passwords, which are forgotten, and to the account's keys. What
    /// is open stays open, and nothing is begun on it any more.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn close_ssh(&self, caller: &Caller, which: &WorkspaceRef) -> Result<(), Error> {
        let workspace = self.inner.find(caller, which).await?;
        self.inner.store.close_ssh(workspace.id).await
    }

    /// Sets a login's password. The one before opens nothing any more.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` (`password`: at least 8 characters, at most 128 bytes, none of them control
    /// characters; `user`); `Conflict` when the workspace is closed, or has passwords for 8 other logins.
    pub async fn set_ssh_password(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        login: Option<&str>,
        password: &Secret,
    ) -> Result<(), Error> {
        let login = login.unwrap_or(ROOT);
        check_login(login)?;
        check_password(password)?;
        let workspace = self.inner.find(caller, which).await?;
        let password = SshPassword {
            id: SshPasswordId(u128::from_be_bytes(self.inner.random())),
            workspace_id: workspace.id,
            login: login.to_owned(),
            hash: self.inner.password_hash(password.clone()).await?,
            is_chosen: true,
            created_at: self.now(),
        };
        let earlier = EarlierPassword::Goes;
        match self.inner.store.insert_ssh_password(&password, earlier, LOGINS_MAX).await? {
            PasswordInsertion::Done => Ok(()),
            other => Err(refusal(other)),
        }
    }

    /// Whether `password` opens the workspace as `login`; then what shows that from then on.
    pub(crate) async fn log_in(
        &self,
        which: &WorkspaceRef,
        login: &str,
        password: &Secret,
    ) -> Result<(RouteCredential, WorkspaceId), Error> {
        let refused = || Error::not_found("workspace");
        // By an identifier alone: names are not unique, and nobody says of which account.
        let WorkspaceRef::Id(id) = which else { return Err(refused()) };
        if password.expose().len() > PASSWORD_MAX_BYTES {
            return Err(refused());
        }
        let passwords = self.inner.store.ssh_passwords(*id).await?;
        let kept = passwords.into_iter().find(|kept| kept.login == login).ok_or_else(refused)?;
        let tries = &self.inner.password_tries;
        if !tries.begin(*id, self.now()) {
            tracing::warn!(workspace.id = %id, "too many wrong passwords: none is looked at");
            return Err(refused());
        }
        if !self.inner.is_password(password.clone(), kept.hash).await? {
            return Err(refused());
        }
        tries.was_right(*id);
        Ok((RouteCredential::SshPassword(kept.id), *id))
    }
}

impl Inner {
    pub(crate) async fn is_open_to_ssh(&self, workspace: WorkspaceId) -> Result<bool, Error> {
        Ok(self.store.closed_to_ssh(&[workspace]).await?.is_empty())
    }

    async fn password_hash(&self, password: Secret) -> Result<Secret, Error> {
        let salt: [u8; SALT_BYTES] = self.random();
        self.hashing(move || {
            let hash = hasher()?.hash_password_with_salt(password.expose().as_bytes(), &salt);
            Ok(Secret::new(hash.map_err(Error::internal)?.to_string()))
        })
        .await
    }

    async fn is_password(&self, password: Secret, hash: Secret) -> Result<bool, Error> {
        self.hashing(move || {
            // The parameters are those of the hash.
            Ok(hasher()?.verify_password(password.expose().as_bytes(), hash.expose()).is_ok())
        })
        .await
    }

    async fn hashing<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let _turn = self.password_tries.hashing.acquire().await.map_err(Error::internal)?;
        tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
    }
}

fn hasher() -> Result<Argon2<'static>, Error> {
    let params = Params::new(HASH_MEMORY_KIB, HASH_PASSES, HASH_LANES, None);
    let params = params.map_err(Error::internal)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn refusal(why: PasswordInsertion) -> Error {
    let conflict = |text: String| ErrorKind::Conflict(text).into();
    match why {
        PasswordInsertion::Closed => {
            conflict("SSH is switched off for this workspace; enable it first".to_owned())
        }
        PasswordInsertion::TooMany => {
            conflict(format!("passwords for {LOGINS_MAX} other logins are set already"))
        }
        PasswordInsertion::There => conflict("there is a password already".to_owned()),
        PasswordInsertion::NoWorkspace => Error::not_found("workspace"),
        PasswordInsertion::Done => Error::internal("a password that was recorded was refused"),
    }
}

/// As `useradd` takes them.
fn check_login(login: &str) -> Result<(), Error> {
    let is_first = |b: u8| b.is_ascii_lowercase() || b == b'_';
    let is_later = |b: u8| is_first(b) || b.is_ascii_digit() || b == b'-' || b == b'.';
    let fits = login.len() <= LOGIN_MAX_BYTES
        && login.bytes().next().is_some_and(is_first)
        && login.bytes().all(is_later);
    if fits {
        return Ok(());
    }
    let allowed = "a login of the guest: at most 32 of a-z, 0-9, _, - and .";
    Err(Error::invalid("user", "is no login", allowed))
}

fn check_password(password: &Secret) -> Result<(), Error> {
    let text = password.expose();
    let problem = if text.chars().count() < PASSWORD_MIN_CHARS {
        "is too short"
    } else if text.len() > PASSWORD_MAX_BYTES {
        "is too long"
    } else if text.chars().any(char::is_control) {
        "has control characters"
    } else {
        return Ok(());
    };
    let allowed = "at least 8 characters and at most 128 bytes, no control characters";
    Err(Error::invalid("password", problem, allowed))
}
