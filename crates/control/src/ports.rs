//! Published ports: a port of a workspace gets an address of its own outside.

use std::sync::Arc;

use skerry_internal_api::{PREVIEW_TOKEN_CHARS, PreviewAddress};
use skerry_model::{ErrorKind, PublishedPortId, Secret, Slug, Timestamp, Workspace, WorkspaceId};

use crate::{
    Caller, Control, Error, WorkspaceRef,
    control::hash,
    store::{PortInsertion, SecretHash, StoredPort, Write},
};

/// Ports that one workspace publishes.
pub const PUBLISHED_PORTS_MAX: u32 = 20;
/// Characters of a slug that is made here: 82 random bits.
const SLUG_CHARS: usize = 16;
const LABEL_MAX_CHARS: usize = 100;
/// How often a publication is computed anew because the record changed meanwhile.
const MAX_REDOS: u32 = 32;

/// Who may visit a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortVisibility {
    /// Everybody.
    Public,
    /// Whoever has its token, or an API key of the account.
    Private,
}

/// A port of a workspace with an address of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedPort {
    /// Its identity.
    pub id: PublishedPortId,
    /// Whose port.
    pub workspace_id: WorkspaceId,
    /// The port inside, not 0.
    pub port: u16,
    /// The label of its host, unique in the whole installation.
    pub slug: Slug,
    /// The owner's word for it.
    pub label: Option<String>,
    /// Who may visit it.
    pub visibility: PortVisibility,
    /// When it was published.
    pub created_at: Timestamp,
}

/// What is to be published; `None` leaves what is there, or else is the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishPort {
    /// 1 to 65535.
    pub port: u16,
    /// The label of its host; made at random by default.
    pub slug: Option<String>,
    /// 1 to 100 characters; none by default.
    pub label: Option<String>,
    /// Private by default. A port that is private for the first time, or made private once more, gets
    /// a new token, and the one before opens nothing any more.
    pub visibility: Option<PortVisibility>,
}

/// A port that was published or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The record.
    pub port: PublishedPort,
    /// Its token if that was made just now: it is not kept in a form that could be shown again.
    pub token: Option<Secret>,
}

impl Control {
    /// Publishes a port of a workspace, in whatever state that is; of one that is published already,
    /// what is given is changed.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` (`port`, `slug`, `label`); `Conflict` when the slug is taken or the
    /// workspace publishes [`PUBLISHED_PORTS_MAX`].
    pub async fn publish_port(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        request: PublishPort,
    ) -> Result<Publication, Error> {
        let workspace = self.inner.find(caller, which).await?;
        self.put_port(&workspace, &request, IfMissing::Publish).await
    }

    /// Changes what is given of a published port.
    ///
    /// # Errors
    /// As [`Control::publish_port`]; `NotFound` (`port`) when it is not published.
    pub async fn update_port(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        request: PublishPort,
    ) -> Result<Publication, Error> {
        let workspace = self.inner.find(caller, which).await?;
        self.put_port(&workspace, &request, IfMissing::Refuse).await
    }

    /// What the workspace publishes, by port.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn list_published_ports(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<Vec<PublishedPort>, Error> {
        let workspace = self.inner.find(caller, which).await?;
        let ports = self.inner.store.list_ports(&[workspace.id]).await?;
        Ok(ports.into_iter().map(|stored| stored.port).collect())
    }

    /// What these workspaces publish, by workspace and port. Those that are not the caller's publish
    /// nothing.
    ///
    /// # Errors
    /// Only faults of the store.
    pub async fn published_ports_of(
        &self,
        caller: &Caller,
        workspaces: &[Workspace],
    ) -> Result<Vec<PublishedPort>, Error> {
        let own = workspaces.iter().filter(|workspace| workspace.account_id == caller.account_id);
        let own: Vec<WorkspaceId> = own.map(|workspace| workspace.id).collect();
        let ports = self.inner.store.list_ports(&own).await?;
        Ok(ports.into_iter().map(|stored| stored.port).collect())
    }

    /// Whether a port could be published under this slug now.
    ///
    /// # Errors
    /// `Invalid` (`slug`).
    pub async fn is_slug_free(&self, slug: &str) -> Result<bool, Error> {
        let request =
            PublishPort { port: 1, slug: Some(slug.to_owned()), label: None, visibility: None };
        match check(&request)? {
            Some(slug) => Ok(self.inner.store.port_by_slug(&slug).await?.is_none()),
            None => Ok(false),
        }
    }

    /// The caller's published port with this slug.
    ///
    /// # Errors
    /// `NotFound`, also for another account's.
    pub async fn published_port(
        &self,
        caller: &Caller,
        slug: &str,
    ) -> Result<PublishedPort, Error> {
        let missing = || Error::not_found("port");
        let slug = Slug::parse(slug).map_err(|_| missing())?;
        let found = self.inner.store.port_by_slug(&slug).await?.ok_or_else(missing)?.port;
        let owned = self.inner.store.workspace(found.workspace_id).await?;
        match owned {
            Some(workspace) if workspace.account_id == caller.account_id => Ok(found),
            Some(_) | None => Err(missing()),
        }
    }

    /// Takes a port's address away. What is open through it is closed.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn revoke_port(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        port: u16,
    ) -> Result<PublishedPort, Error> {
        let workspace = self.inner.find(caller, which).await?;
        let inner = Arc::clone(&self.inner);
        // Whoever asked may be gone before it is removed; its visits end all the same.
        let removing = async move {
            let removed = inner.store.remove_port(workspace.id, port).await?;
            let removed = removed.ok_or_else(|| Error::not_found("port"))?;
            inner.visited.close(&removed.slug);
            Ok(removed)
        };
        self.inner.to_the_end(removing).await
    }

    /// The same of a workspace that was found.
    pub(crate) async fn publish_port_of(
        &self,
        workspace: &Workspace,
        request: &PublishPort,
    ) -> Result<Publication, Error> {
        self.put_port(workspace, request, IfMissing::Publish).await
    }

    async fn put_port(
        &self,
        workspace: &Workspace,
        request: &PublishPort,
        if_missing: IfMissing,
    ) -> Result<Publication, Error> {
        let slug = check(request)?;
        let taken = || Error::new(ErrorKind::Conflict("this slug is taken".to_owned()));
        for _ in 0..MAX_REDOS {
            let there = self.inner.store.list_ports(&[workspace.id]).await?;
            let there = there.into_iter().find(|stored| stored.port.port == request.port);
            match there {
                Some(before) => {
                    let (stored, token) = self.changed(before.clone(), slug.clone(), request);
                    match self.write_port(before.port.slug, before.token, stored.clone()).await? {
                        Write::Done(()) => return Ok(Publication { port: stored.port, token }),
                        Write::Taken => return Err(taken()),
                        Write::Stale => {}
                    }
                }
                None if if_missing == IfMissing::Refuse => return Err(Error::not_found("port")),
                None => {
                    let (stored, token) = self.fresh(workspace.id, slug.clone(), request)?;
                    match self.inner.store.insert_port(&stored, PUBLISHED_PORTS_MAX).await? {
                        PortInsertion::Done => return Ok(Publication { port: stored.port, token }),
                        PortInsertion::Published => {}
                        PortInsertion::SlugTaken => return Err(taken()),
                        PortInsertion::NoWorkspace => return Err(Error::not_found("workspace")),
                        PortInsertion::TooMany => {
                            let why = format!(
                                "a workspace publishes at most {PUBLISHED_PORTS_MAX} ports"
                            );
                            return Err(ErrorKind::Conflict(why).into());
                        }
                    }
                }
            }
        }
        Err(ErrorKind::Unavailable("the port is being changed by others".to_owned()).into())
    }

    /// Writes a changed port, and ends the visits that it does not permit any more: also when whoever
    /// asked for it goes away in between.
    async fn write_port(
        &self,
        slug: Slug,
        token: Option<SecretHash>,
        stored: StoredPort,
    ) -> Result<Write<()>, Error> {
        let inner = Arc::clone(&self.inner);
        let writing = async move {
            let written = inner.store.update_port(&stored).await?;
            match &written {
                Write::Done(()) if slug != stored.port.slug || token != stored.token => {
                    inner.visited.close(&slug);
                }
                Write::Done(()) | Write::Taken | Write::Stale => {}
            }
            Ok(written)
        };
        self.inner.to_the_end(writing).await
    }

    fn fresh(
        &self,
        workspace_id: WorkspaceId,
        slug: Option<Slug>,
        request: &PublishPort,
    ) -> Result<(StoredPort, Option<Secret>), Error> {
        let slug = match slug {
            Some(slug) => slug,
            None => Slug::parse(&self.inner.random_word(SLUG_CHARS)).map_err(Error::internal)?,
        };
        let visibility = request.visibility.unwrap_or(PortVisibility::Private);
        let port = PublishedPort {
            id: PublishedPortId::from_random(self.inner.random()),
            workspace_id,
            port: request.port,
            slug,
            label: request.label.clone(),
            visibility,
            created_at: self.now(),
        };
        let token = self.token_for(visibility);
        let stored = StoredPort { port, token: token.as_ref().map(|token| hash(token.expose())) };
        Ok((stored, token))
    }

    fn changed(
        &self,
        mut stored: StoredPort,
        slug: Option<Slug>,
        request: &PublishPort,
    ) -> (StoredPort, Option<Secret>) {
        if let Some(slug) = slug {
            stored.port.slug = slug;
        }
        if let Some(label) = &request.label {
            stored.port.label = Some(label.clone());
        }
        let Some(visibility) = request.visibility else { return (stored, None) };
        let token = self.token_for(visibility);
        stored.port.visibility = visibility;
        stored.token = token.as_ref().map(|token| hash(token.expose()));
        (stored, token)
    }

    fn token_for(&self, visibility: PortVisibility) -> Option<Secret> {
        match visibility {
            PortVisibility::Public => None,
            PortVisibility::Private => {
                Some(Secret::new(self.inner.random_word(PREVIEW_TOKEN_CHARS)))
            }
        }
    }
}

/// What happens to a port that is not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IfMissing {
    Publish,
    Refuse,
}

fn check(request: &PublishPort) -> Result<Option<Slug>, Error> {
    if request.port == 0 {
        return Err(Error::invalid("port", "is 0", "1 to 65535"));
    }
    if let Some(label) = &request.label {
        let fits = !label.trim().is_empty() && label.chars().count() <= LABEL_MAX_CHARS;
        if !fits || label.chars().any(char::is_control) {
            let allowed = "1 to 100 characters, no control characters";
            return Err(Error::invalid("label", "is not a label", allowed));
        }
    }
    let Some(text) = &request.slug else { return Ok(None) };
    let slug = Slug::parse(text)?;
    match PreviewAddress::parse(text) {
        Some(PreviewAddress::Published(_)) => Ok(Some(slug)),
        Some(PreviewAddress::Token(_) | PreviewAddress::Domain(_)) | None => {
            let allowed =
                "a word that is not the server's own, and not of the form of a token's host";
            Err(Error::invalid("slug", "is reserved", allowed))
        }
    }
}
