//! Tokens that open the inside of one workspace, for whoever should not have a key of the account.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::SignedDuration;
use skerry_model::{ErrorKind, Secret, Timestamp, WorkspaceId};

use crate::{
    Caller, Control, Error, WorkspaceRef,
    control::hash,
    store::{EarlierTokens, StoredRuntimeToken},
};

/// How long a token opens its workspace, in seconds.
const TOKEN_SECONDS: i64 = 3600;
/// Tokens of one workspace; the oldest ends when there are more.
const TOKENS_MAX: u32 = 512;
/// How tokens begin, so that one that was leaked is recognised.
const PREFIX: &str = "rt_";
/// No token is longer.
const TOKEN_MAX_BYTES: usize = 64;

/// A token just made.
#[derive(Debug)]
pub struct RuntimeToken {
    /// `rt_` and 43 characters, 256 random bits. Shown this once, stored as a hash.
    pub secret: Secret,
    /// When it ends: an hour after it was made.
    pub expires_at: Timestamp,
}

/// Who has shown a token.
#[derive(Clone, Debug)]
pub struct RuntimeVisit {
    /// The workspace's account.
    pub caller: Caller,
    /// What it opens; nothing else of the account.
    pub workspace: WorkspaceId,
}

impl Control {
    /// Whether the workspace lets tokens in.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn is_runtime_open(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<bool, Error> {
        let workspace = self.inner.find(caller, which).await?;
        self.inner.store.is_runtime_open(workspace.id).await
    }

    /// Lets tokens in, in any state of the workspace, and makes one.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn open_runtime(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<RuntimeToken, Error> {
        let workspace = self.inner.find(caller, which).await?;
        if !self.inner.store.open_runtime(workspace.id).await? {
            return Err(Error::not_found("workspace"));
        }
        self.made(workspace.id, EarlierTokens::Stay).await
    }

    /// Lets no token in any more; those there are open nothing from now on.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn close_runtime(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<WorkspaceId, Error> {
        let workspace = self.inner.find(caller, which).await?;
        self.inner.store.close_runtime(workspace.id).await?;
        Ok(workspace.id)
    }

    /// Makes a token. Those before it stay, up to 512 of one workspace.
    ///
    /// # Errors
    /// `NotFound`; `Forbidden` when the workspace lets none in.
    pub async fn make_runtime_token(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<RuntimeToken, Error> {
        let workspace = self.inner.find(caller, which).await?;
        self.made(workspace.id, EarlierTokens::Stay).await
    }

    /// Makes a token and ends all that were made before it.
    ///
    /// # Errors
    /// `NotFound`; `Forbidden` when the workspace lets none in.
    pub async fn replace_runtime_tokens(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<(WorkspaceId, RuntimeToken), Error> {
        let workspace = self.inner.find(caller, which).await?;
        Ok((workspace.id, self.made(workspace.id, EarlierTokens::Go).await?))
    }

    /// What this token opens.
    ///
    /// # Errors
    /// `Unauthenticated`.
    pub async fn runtime_visit(&self, token: &Secret) -> Result<RuntimeVisit, Error> {
        let refused = || Error::new(ErrorKind::Unauthenticated);
        let text = token.expose();
        if text.len() > TOKEN_MAX_BYTES || !text.starts_with(PREFIX) {
            return Err(refused());
        }
        let store = &self.inner.store;
        let id = store.runtime_token_workspace(&hash(text), self.now()).await?;
        let workspace = store.workspace(id.ok_or_else(refused)?).await?.ok_or_else(refused)?;
        let tenant = store.tenant(workspace.account_id).await?.ok_or_else(refused)?;
        Ok(RuntimeVisit { caller: Caller::of(tenant), workspace: workspace.id })
    }

    async fn made(
        &self,
        workspace: WorkspaceId,
        earlier: EarlierTokens,
    ) -> Result<RuntimeToken, Error> {
        let bytes: [u8; 32] = self.inner.random();
        let secret = Secret::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)));
        let now = self.now();
        let expires_at =
            now.checked_add(SignedDuration::from_secs(TOKEN_SECONDS)).map_err(Error::internal)?;
        let token =
            StoredRuntimeToken { hash: hash(secret.expose()), workspace_id: workspace, expires_at };
        let store = &self.inner.store;
        if !store.insert_runtime_token(&token, earlier, now, TOKENS_MAX).await? {
            let why = "runtime access is not enabled for this workspace";
            return Err(ErrorKind::Forbidden(why.to_owned()).into());
        }
        Ok(RuntimeToken { secret, expires_at })
    }
}
