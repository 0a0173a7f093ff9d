//! The way from the gateways to workspaces.

use std::sync::Arc;

use async_trait::async_trait;
use skerry_internal_api::{
    GuestApi, OpenPreview, PreviewAddress, PreviewCredential, PreviewRefusal, RouteApi,
    RouteCredential, RouteError,
};
use skerry_model::{ErrorKind, WorkspaceId};

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

    /// Whose credential this is.
    async fn bearer(&self, credential: &RouteCredential) -> Result<Caller, Error> {
        let RouteCredential::SshKey(fingerprint) = credential;
        let owner = self.inner.store.ssh_key_owner(fingerprint).await?;
        let owner = owner.ok_or_else(|| Error::not_found("ssh key"))?;
        Ok(Caller::of(owner))
    }
}

#[async_trait]
impl RouteApi for Routes {
    async fn find(
        &self,
        credential: &RouteCredential,
        name: &str,
    ) -> Result<WorkspaceId, RouteError> {
        let found = async {
            let caller = self.control.bearer(credential).await?;
            self.control.get_workspace(&caller, &(self.read_name)(name)).await
        };
        match found.await {
            Ok(workspace) => Ok(workspace.id),
            Err(error) => Err(match refusal(&error) {
                // At the door nobody is told more than that.
                RouteError::NotFound | RouteError::Refused(_) => RouteError::NotFound,
                RouteError::Internal => RouteError::Internal,
            }),
        }
    }

    async fn enter(
        &self,
        credential: &RouteCredential,
        workspace: WorkspaceId,
    ) -> Result<Arc<dyn GuestApi>, RouteError> {
        let entered = async {
            let caller = self.control.bearer(credential).await?;
            self.control.guest(&caller, &WorkspaceRef::Id(workspace)).await
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
