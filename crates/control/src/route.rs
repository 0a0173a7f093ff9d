//! The way from the gateways to workspaces.

use std::sync::Arc;

use async_trait::async_trait;
use skerry_internal_api::{
    GuestApi, OpenPreview, PreviewAddress, PreviewCredential, PreviewRefusal, RouteApi,
    RouteCredential, RouteError,
};
use skerry_model::{ErrorKind, Secret, WorkspaceId};

use crate::{Caller, Control, Error, WorkspaceRef};

/// How a name at the door is read: the printed forms of identifiers are no matter of control's.
pub type ReadName = fn(&str) -> WorkspaceRef;

struct Routes {
    control: Control,
    read_name: ReadName,
}

impl Control {
    /// What gateways ask.
    #[must_use]
    pub fn routes(&self, read_name: ReadName) -> Arc<dyn RouteApi> {
        Arc::new(Routes { control: self.clone(), read_name })
    }

    /// Whose credential this is, and which workspace it is for, if not for all of theirs.
    async fn bearer(
        &self,
        credential: &RouteCredential,
    ) -> Result<(Caller, Option<WorkspaceId>), Error> {
        let store = &self.inner.store;
        match credential {
            RouteCredential::SshKey(fingerprint) => {
                let owner = store.ssh_key_owner(fingerprint).await?;
                let owner = owner.ok_or_else(|| Error::not_found("ssh key"))?;
                Ok((Caller::of(owner), None))
            }
            RouteCredential::SshPassword(password) => {
                let workspace = store.ssh_password_owner(*password).await?;
                let workspace = workspace.ok_or_else(|| Error::not_found("password"))?;
                let record = store.workspace(workspace).await?;
                let record = record.ok_or_else(|| Error::not_found("workspace"))?;
                let owner = store.tenant(record.account_id).await?;
                let owner = owner.ok_or_else(|| Error::not_found("account"))?;
                Ok((Caller::of(owner), Some(workspace)))
            }
        }
    }

    /// Whether whoever has shown this may enter the workspace by SSH now.
    async fn let_in(
        &self,
        credential: &RouteCredential,
        which: &WorkspaceRef,
    ) -> Result<(Caller, WorkspaceId), Error> {
        let (caller, only) = self.bearer(credential).await?;
        let workspace = self.get_workspace(&caller, which).await?.id;
        if only.is_some_and(|only| only != workspace) {
            return Err(Error::not_found("workspace"));
        }
        if !self.inner.is_open_to_ssh(workspace).await? {
            let why = "SSH is switched off for this workspace".to_owned();
            return Err(ErrorKind::Forbidden(why).into());
        }
        Ok((caller, workspace))
    }
}

#[async_trait]
impl RouteApi for Routes {
    async fn find(
        &self,
        credential: &RouteCredential,
        name: &str,
    ) -> Result<WorkspaceId, RouteError> {
        let found = self.control.let_in(credential, &(self.read_name)(name)).await;
        found.map(|(_, workspace)| workspace).map_err(|error| at_the_door(&error))
    }

    async fn log_in(
        &self,
        name: &str,
        login: &str,
        password: &Secret,
    ) -> Result<(RouteCredential, WorkspaceId), RouteError> {
        let logged_in = self.control.log_in(&(self.read_name)(name), login, password).await;
        logged_in.map_err(|error| at_the_door(&error))
    }

    async fn enter(
        &self,
        credential: &RouteCredential,
        workspace: WorkspaceId,
    ) -> Result<Arc<dyn GuestApi>, RouteError> {
        let entered = async {
            let which = WorkspaceRef::Id(workspace);
            let (caller, _) = self.control.let_in(credential, &which).await?;
            self.control.guest(&caller, &which).await
        };
        entered.await.map_err(|error| refusal(&error))
    }

    async fn open_preview(
        &self,
        address: &PreviewAddress,
        shown: &[PreviewCredential],
    ) -> Result<OpenPreview, PreviewRefusal> {
        self.control.visit(address, shown).await
    }
}

/// At the door nobody is told more than that.
fn at_the_door(error: &Error) -> RouteError {
    match refusal(error) {
        RouteError::NotFound | RouteError::Refused(_) => RouteError::NotFound,
        RouteError::Internal => RouteError::Internal,
    }
}

fn refusal(error: &Error) -> RouteError {
    match error.kind() {
        ErrorKind::NotFound { .. } => RouteError::NotFound,
        ErrorKind::Internal => {
            tracing::error!(%error, cause = ?std::error::Error::source(error), "a gateway's question failed");
            RouteError::Internal
        }
        ErrorKind::Conflict(_)
        | ErrorKind::RefusedByState { .. }
        | ErrorKind::Invalid(_)
        | ErrorKind::Unauthenticated
        | ErrorKind::Forbidden(_)
        | ErrorKind::Quota { .. }
        | ErrorKind::NoCapacity(_)
        | ErrorKind::Unavailable(_)
        | ErrorKind::Timeout(_) => RouteError::Refused(error.to_string()),
    }
}
