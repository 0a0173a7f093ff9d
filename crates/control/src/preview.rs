//! Visits of published ports, and of ports by a workspace's preview token.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use skerry_internal_api::{
    OpenPreview, PreviewAddress, PreviewCredential, PreviewRefusal, TokenAddress,
};
use skerry_model::{ErrorKind, HostName, Slug, Workspace};
use tokio_util::sync::CancellationToken;

use crate::{Control, Credential, Error, control::hash, store::StoredPort};

/// Workspaces whose tokens are compared for one address: those of one prefix, which for a project's
/// are all of its.
const CANDIDATES_MAX: u32 = 64;

/// The published ports somebody visits, so that a revocation ends their visits.
#[derive(Default)]
pub(crate) struct Visited {
    by_slug: Mutex<HashMap<Slug, Weak<CancellationToken>>>,
}

impl Visited {
    /// Cancelled when the port is closed. Taken before the record is read: a revocation in between is
    /// not missed.
    fn visit(&self, slug: &Slug) -> Arc<CancellationToken> {
        let mut by_slug = self.by_slug.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = by_slug.get(slug).and_then(Weak::upgrade) {
            return there;
        }
        if by_slug.len() == by_slug.capacity() {
            by_slug.retain(|_, visit| visit.strong_count() > 0);
        }
        let fresh = Arc::new(CancellationToken::new());
        by_slug.insert(slug.clone(), Arc::downgrade(&fresh));
        fresh
    }

    /// Ends the visits of this port.
    pub(crate) fn close(&self, slug: &Slug) {
        let mut by_slug = self.by_slug.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(visit) = by_slug.remove(slug).and_then(|visit| visit.upgrade()) {
            visit.cancel();
        }
    }
}

/// A port that may be visited.
struct Admitted {
    workspace: Workspace,
    port: u16,
    closed: Arc<CancellationToken>,
}

impl Control {
    pub(crate) async fn visit(
        &self,
        address: &PreviewAddress,
        shown: &[PreviewCredential],
    ) -> Result<OpenPreview, PreviewRefusal> {
        let admitted = match address {
            PreviewAddress::Published(slug) => self.admit_to_published(slug, shown).await?,
            PreviewAddress::Token(address) => self.admit_by_token(address).await?,
            PreviewAddress::Domain(name) => self.admit_to_domain(name, shown).await?,
        };
        let Admitted { workspace, port, closed } = admitted;
        let id = workspace.id;
        let entered = self.inner.entered_by_visitor(workspace).await;
        let (guest, was_woken) = entered.map_err(|error| refusal(&error))?;
        Ok(OpenPreview { workspace: id, port, guest, was_woken, closed })
    }

    async fn admit_to_published(
        &self,
        slug: &Slug,
        shown: &[PreviewCredential],
    ) -> Result<Admitted, PreviewRefusal> {
        let closed = self.inner.visited.visit(slug);
        let found = self.inner.store.port_by_slug(slug).await.map_err(|error| refusal(&error))?;
        let StoredPort { port, token } = found.ok_or(PreviewRefusal::NotFound)?;
        let workspace = self.inner.store.workspace(port.workspace_id).await;
        let workspace = workspace.map_err(|error| refusal(&error))?;
        let workspace = workspace.ok_or(PreviewRefusal::NotFound)?;
        let Some(wanted) = token else {
            return Ok(Admitted { workspace, port: port.port, closed });
        };
        for credential in shown {
            let opens = match credential {
                // Hashes are compared: how long it takes says nothing of the token.
                PreviewCredential::PortToken(token) => hash(token.expose()) == wanted,
                PreviewCredential::ApiKey(key) => self.is_key_of(key.clone(), &workspace).await?,
            };
            if opens {
                return Ok(Admitted { workspace, port: port.port, closed });
            }
        }
        Err(PreviewRefusal::Forbidden)
    }

    async fn admit_to_domain(
        &self,
        name: &HostName,
        shown: &[PreviewCredential],
    ) -> Result<Admitted, PreviewRefusal> {
        let found = self.inner.store.port_by_domain(name).await.map_err(|error| refusal(&error))?;
        let StoredPort { port, .. } = found.ok_or(PreviewRefusal::NotFound)?;
        self.admit_to_published(&port.slug, shown).await
    }

    async fn is_key_of(
        &self,
        secret: skerry_model::Secret,
        workspace: &Workspace,
    ) -> Result<bool, PreviewRefusal> {
        match self.authenticate(&Credential { secret, account: None }).await {
            Ok(caller) => Ok(caller.account_id == workspace.account_id),
            Err(error) if *error.kind() == ErrorKind::Unauthenticated => Ok(false),
            Err(error) => Err(refusal(&error)),
        }
    }

    /// The workspace of this prefix with this token; whoever has the token needs nothing else.
    async fn admit_by_token(&self, address: &TokenAddress) -> Result<Admitted, PreviewRefusal> {
        let candidates =
            self.inner.store.workspaces_by_prefix(address.id_prefix, CANDIDATES_MAX).await;
        let candidates = candidates.map_err(|error| refusal(&error))?;
        if candidates.is_empty() {
            return Err(PreviewRefusal::NotFound);
        }
        let wanted = hash(address.token.expose());
        let opens = |workspace: &Workspace| hash(workspace.preview_token.expose()) == wanted;
        let workspace = candidates.into_iter().find(opens).ok_or(PreviewRefusal::Forbidden)?;
        let closed = Arc::new(CancellationToken::new());
        Ok(Admitted { workspace, port: address.port, closed })
    }
}

fn refusal(error: &Error) -> PreviewRefusal {
    match error.kind() {
        ErrorKind::NotFound { .. } => PreviewRefusal::NotFound,
        ErrorKind::RefusedByState { .. } => PreviewRefusal::NotRunning,
        ErrorKind::Internal => {
            tracing::error!(%error, cause = ?std::error::Error::source(error), "a visit failed");
            PreviewRefusal::Internal
        }
        ErrorKind::Conflict(_)
        | ErrorKind::Invalid(_)
        | ErrorKind::Unauthenticated
        | ErrorKind::Forbidden(_)
        | ErrorKind::Quota { .. }
        | ErrorKind::NoCapacity(_)
        | ErrorKind::Unavailable(_)
        | ErrorKind::Timeout(_) => PreviewRefusal::Unavailable,
    }
}
