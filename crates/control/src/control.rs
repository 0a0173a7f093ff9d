//! The control plane's handle: opening, authentication, and the two ways a record is written.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use skerry_internal_api::NodeApi;
use skerry_model::{
    AccountId, ApiKeyId, CheckpointId, Demand, ErrorKind, Plan, ProjectId, Secret, SnapshotId,
    Timestamp, VolumeId, Workspace, WorkspaceId,
};
use tokio::sync::{Mutex, Notify, Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    ApiKey, Caller, ControlConfig, Credential, Environment, Error, NewApiKey, Project,
    activity::Activity,
    domains::Edge,
    network::{Policed, Policies},
    preview::Visited,
    reconciler::{KeyUses, Watchers, Workers},
    ssh_access::PasswordTries,
    store::{Account, Admission, SecretHash, Store, StoredKey, Write},
    vaults::Issuers,
    volumes::{MountTurns, Mounted},
    workloads::{Attended, EndedMains},
};

/// The account of whoever installed the server.
pub(crate) const ADMIN: &str = "admin";
/// A secret longer than this is refused without being hashed.
const MAX_SECRET_BYTES: usize = 1024;

/// The control plane. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Control {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: ControlConfig,
    pub(crate) environment: Environment,
    pub(crate) store: Store,
    pub(crate) node: Arc<dyn NodeApi>,
    /// One entry for each workspace somebody works on now.
    pub(crate) workers: Workers<WorkspaceId>,
    /// One entry for each snapshot somebody works on now.
    pub(crate) snapshot_workers: Workers<SnapshotId>,
    /// One entry for each volume somebody works on now.
    pub(crate) volume_workers: Workers<VolumeId>,
    /// One entry for each checkpoint somebody works on now.
    pub(crate) checkpoint_workers: Workers<CheckpointId>,
    /// One entry for each workspace whose VM's volumes somebody works on now.
    pub(crate) mount_workers: Workers<Mounted>,
    /// Whose turn it is to change a workspace's volumes.
    pub(crate) mount_turns: MountTurns,
    /// One entry for each VM whose network policy somebody works on now.
    pub(crate) policy_workers: Workers<Policed>,
    /// What the node was told of networks.
    pub(crate) policies: Policies,
    /// Who certifies names to the guests of workspaces with vaults.
    pub(crate) issuers: Issuers,
    /// One entry for each workspace whose workloads somebody attends.
    pub(crate) attended: Workers<Attended>,
    /// VMs that are ended because a workload has.
    pub(crate) ended_mains: EndedMains,
    /// Uses of keys that are being recorded.
    pub(crate) key_uses: KeyUses,
    /// Requests that wait for a workspace to change.
    pub(crate) watchers: Watchers<WorkspaceId>,
    /// Requests that wait for a snapshot to change.
    pub(crate) snapshot_watchers: Watchers<SnapshotId>,
    /// Requests that wait for a volume to change.
    pub(crate) volume_watchers: Watchers<VolumeId>,
    /// Requests that wait for a checkpoint to change.
    pub(crate) checkpoint_watchers: Watchers<CheckpointId>,
    /// Who is being used.
    pub(crate) activity: Activity,
    /// Published ports that are being visited.
    pub(crate) visited: Visited,
    /// Tries of SSH passwords.
    pub(crate) password_tries: PasswordTries,
    /// What serves custom domains, if anything does.
    pub(crate) edge: OnceLock<Edge>,
    /// Rings when a domain was verified, or is to be tried again: a certificate may be due.
    pub(crate) domains_changed: Notify,
    /// Turns for writing memory to disk.
    pub(crate) saves: Semaphore,
    /// Held while timers ring: from asking which are due until those they concern are woken.
    pub(crate) ringing: Mutex<()>,
    /// How often records and VMs were compared.
    pub(crate) comparisons: watch::Sender<u64>,
    /// Rings when a record with a timer was written: the next one may have to ring earlier.
    pub(crate) timers_changed: Notify,
    /// Every task control starts.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when control ends; every task ends at its next await.
    pub(crate) ending: CancellationToken,
}

impl Control {
    /// Opens the control plane on a store and a node: makes the `admin` account and its bootstrap
    /// key. Requests are served from now on; the background work (reports of the node, periodic
    /// comparison, times to live) begins with [`Control::run`].
    ///
    /// # Errors
    /// Faults of the store; `Invalid` for an empty bootstrap key (`bootstrap_key`) or a plan that
    /// contradicts itself (`plan`).
    pub async fn open(
        config: ControlConfig,
        environment: Environment,
        store: Store,
        node: Arc<dyn NodeApi>,
    ) -> Result<Self, Error> {
        config.plan.check().map_err(|problem| {
            Error::invalid("plan", problem, "1 <= min <= default <= max for each resource")
        })?;
        let bootstrap = config.bootstrap_key.clone();
        if bootstrap.expose().is_empty() || bootstrap.expose().len() > MAX_SECRET_BYTES {
            return Err(Error::invalid("bootstrap_key", "is empty or too long", "1 to 1024 bytes"));
        }
        let saves = Semaphore::new(config.save_concurrency.max(1));
        let control = Self {
            inner: Arc::new(Inner {
                config,
                environment,
                store,
                node,
                workers: Workers::default(),
                snapshot_workers: Workers::default(),
                volume_workers: Workers::default(),
                checkpoint_workers: Workers::default(),
                mount_workers: Workers::default(),
                mount_turns: MountTurns::default(),
                policy_workers: Workers::default(),
                policies: Policies::default(),
                issuers: Issuers::default(),
                attended: Workers::default(),
                ended_mains: EndedMains::default(),
                key_uses: KeyUses::default(),
                watchers: Watchers::default(),
                snapshot_watchers: Watchers::default(),
                volume_watchers: Watchers::default(),
                checkpoint_watchers: Watchers::default(),
                activity: Activity::default(),
                visited: Visited::default(),
                password_tries: PasswordTries::default(),
                edge: OnceLock::new(),
                domains_changed: Notify::new(),
                saves,
                ringing: Mutex::default(),
                comparisons: watch::Sender::new(0),
                timers_changed: Notify::new(),
                tasks: TaskTracker::new(),
                ending: CancellationToken::new(),
            }),
        };
        let inner = &control.inner;
        let (admin, _) = inner.ensure_account(ADMIN).await?;
        let key = inner.stored_key(admin.id, "bootstrap", &bootstrap);
        inner.store.ensure_bootstrap_key(&key).await?;
        Ok(control)
    }

    /// Who presents this credential.
    ///
    /// # Errors
    /// `Unauthenticated`.
    pub async fn authenticate(&self, credential: &Credential) -> Result<Caller, Error> {
        let refused = || Error::new(ErrorKind::Unauthenticated);
        let secret = credential.secret.expose();
        if secret.is_empty() || secret.len() > MAX_SECRET_BYTES {
            return Err(refused());
        }
        // The lookup compares hashes, not secrets: how long it takes says nothing of a secret.
        let owner = self.inner.store.key_owner(&hash(secret)).await?.ok_or_else(refused)?;
        if let Some(claimed) = &credential.account {
            let by_id = claimed.parse::<AccountId>().is_ok_and(|id| id == owner.account.id);
            if !by_id && *claimed != owner.account.handle {
                return Err(refused());
            }
        }
        self.inner.note_use(owner.key_id, owner.last_used_at);
        Ok(Caller {
            account_id: owner.account.id,
            account_handle: owner.account.handle,
            default_project_id: owner.default_project_id,
            key_id: Some(owner.key_id),
        })
    }

    /// Makes an account with its default project and a first key.
    ///
    /// # Errors
    /// `Invalid` (`handle`), `Conflict` when the handle is taken.
    pub async fn create_account(&self, handle: &str) -> Result<(Account, NewApiKey), Error> {
        let inner = b"abcdefghijklmnopqrstuvwxyz0123456789-";
        if !(1..=63).contains(&handle.len()) || !handle.bytes().all(|b| inner.contains(&b)) {
            let rule = "1 to 63 characters of a-z, 0-9 and -";
            return Err(Error::invalid("handle", "is not a handle", rule));
        }
        let (account, made) = self.inner.ensure_account(handle).await?;
        if !made {
            return Err(ErrorKind::Conflict(format!("the handle {handle} is taken")).into());
        }
        let key = self.inner.make_key(account.id, "first").await?;
        Ok((account, key))
    }

    /// The plan in force.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.inner.config.plan
    }

    /// The time now, by the clock control was opened with.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.inner.now()
    }
}

pub(crate) fn hash(secret: &str) -> SecretHash {
    SecretHash(Sha256::digest(secret.as_bytes()).into())
}

impl Inner {
    pub(crate) fn now(&self) -> Timestamp {
        (self.environment.now)()
    }

    pub(crate) fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.environment.rng.fill(&mut bytes);
        bytes
    }

    /// `length` random characters of `[a-z0-9]`, each equally likely.
    pub(crate) fn random_word(&self, length: usize) -> String {
        const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        // Bytes from 252 on would make the first letters likelier than the others.
        const FAIR: u8 = 252;
        let mut word = String::with_capacity(length);
        while word.len() < length {
            let bytes: [u8; 32] = self.random();
            let fair = bytes.iter().filter(|byte| **byte < FAIR);
            let letters = fair.map(|byte| char::from(ALPHABET[usize::from(byte % 36)]));
            word.extend(letters.take(length - word.len()));
        }
        word
    }

    async fn ensure_account(&self, handle: &str) -> Result<(Account, bool), Error> {
        let now = self.now();
        let account = Account {
            id: AccountId::from_random(self.random()),
            handle: handle.to_owned(),
            created_at: now,
        };
        let default_project = Project {
            id: ProjectId::from_random(self.random()),
            name: "default".to_owned(),
            description: None,
            is_default: true,
            created_at: now,
            updated_at: now,
        };
        self.store.ensure_account(&account, &default_project).await
    }

    fn stored_key(&self, account_id: AccountId, name: &str, secret: &Secret) -> StoredKey {
        let text = secret.expose();
        let tail_start = text.char_indices().rev().nth(3).map_or(0, |(index, _)| index);
        StoredKey {
            key: ApiKey {
                id: ApiKeyId::from_random(self.random()),
                name: name.to_owned(),
                secret_tail: text.get(tail_start..).unwrap_or_default().to_owned(),
                created_at: self.now(),
                last_used_at: None,
            },
            account_id,
            hash: hash(text),
        }
    }

    /// Makes and records a key of 256 random bits.
    pub(crate) async fn make_key(
        &self,
        account_id: AccountId,
        name: &str,
    ) -> Result<NewApiKey, Error> {
        let bytes: [u8; 32] = self.random();
        let secret = Secret::new(format!("sk_{}", URL_SAFE_NO_PAD.encode(bytes)));
        let stored = self.stored_key(account_id, name, &secret);
        self.store.insert_key(&stored).await?;
        Ok(NewApiKey { key: stored.key, secret })
    }

    /// Records the use of a key to the minute, off the request's path. A list of keys shows it from
    /// now on.
    fn note_use(self: &Arc<Self>, key: ApiKeyId, recorded: Option<Timestamp>) {
        let now = self.now();
        let fresh = recorded.is_some_and(|at| now.duration_since(at).as_secs() < 60);
        if fresh || !self.key_uses.begin_touch(key, now) {
            return;
        }
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            let touch = inner.store.touch_key(key, now);
            if let Some(Err(error)) = inner.ending.run_until_cancelled(touch).await {
                tracing::warn!(key.id = %key, %error, "the use of a key could not be recorded");
            }
            inner.key_uses.end_touch(key);
        });
    }

    /// Runs a change of the tenant's to its end even if the caller goes away: a client that hangs
    /// up must not leave a wish recorded that nobody works on. Only the end of control ends it: a
    /// change that was recorded by then is worked on after the next start.
    pub(crate) async fn to_the_end<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let ending = self.ending.clone();
        let outcome = self.tasks.spawn(async move { ending.run_until_cancelled(change).await });
        outcome.await.map_err(Error::internal)?.unwrap_or_else(|| {
            Err(ErrorKind::Unavailable("the server is shutting down".to_owned()).into())
        })
    }

    /// Writes a record that was read before and changed since, and tells who waits for it.
    pub(crate) async fn write(
        &self,
        workspace: &Workspace,
        demand: Option<Demand>,
    ) -> Result<Write<Workspace>, Error> {
        let admission = demand.map(|demand| Admission { plan: &self.config.plan, demand });
        let stamped = Workspace { updated_at: self.now(), ..workspace.clone() };
        let outcome = self.store.update_workspace(&stamped, admission).await?;
        if let Write::Done(written) = &outcome {
            self.announce(written.id);
            if written.due_at().is_some() {
                self.timers_changed.notify_one();
            }
        }
        Ok(outcome)
    }

    /// Wakes the requests that wait for this workspace.
    pub(crate) fn announce(&self, id: WorkspaceId) {
        self.watchers.announce(id);
    }
}
