//! Making a workspace.

use skerry_model::{
    Demand, Desired, DisplayName, EnvVar, ErrorKind, Incarnation, ProjectId, RequestedShape,
    Secret, Slug, State, Workspace, WorkspaceId, WorkspaceSpec, limits::check_shape,
    name::check_namespace, spec::check_metadata,
};

use super::{CreateWorkspace, StartPolicy, Wait};
use crate::{
    Caller, Control, Error,
    control::Inner,
    store::{Admission, Write},
};

/// How often a generated slug is drawn again when it is taken.
const SLUG_DRAWS: u32 = 8;
const SUFFIX_LEN: usize = 5;

impl Control {
    /// Makes a workspace and, as asked, starts it.
    ///
    /// # Errors
    /// `Invalid` (`name`, `slug`, `namespace`, `image`, `vcpu_count`, `memory_mib`, `disk_mib`,
    /// `env`, `metadata`, `expiry`), `Quota`, `NotFound` (`project`), `Conflict` (slug taken). Nothing is
    /// recorded on an error. A start that fails is not an error of create: the answer's state says
    /// it.
    pub async fn create_workspace(
        &self,
        caller: &Caller,
        request: CreateWorkspace,
    ) -> Result<Workspace, Error> {
        let start = request.start;
        let inner = self.inner.clone();
        let caller = caller.clone();
        let made = self
            .inner
            .to_the_end(async move {
                let made = inner.record_new(&caller, request).await?;
                if made.desired == Desired::Running {
                    inner.wake(made.id);
                }
                Ok(made)
            })
            .await?;
        match start {
            StartPolicy::Later => Ok(made),
            StartPolicy::Now(wait) => self.inner.until_settled(made, wait).await,
        }
    }
}

impl Inner {
    /// Checks everything in the order a caller would fix it: words, sizes, what they refer to, and
    /// the plan last, in the transaction that records it.
    async fn record_new(
        &self,
        caller: &Caller,
        request: CreateWorkspace,
    ) -> Result<Workspace, Error> {
        let given_name = request.name.as_deref().map(DisplayName::parse).transpose()?;
        let given_slug = request.slug.as_deref().map(Slug::parse).transpose()?;
        if let Some(namespace) = &request.namespace {
            check_namespace(namespace)?;
        }
        EnvVar::check_all(&request.env)?;
        check_metadata(&request.metadata)?;
        let expiry = request.expiry.map(skerry_model::Expiry::check).transpose()?;
        let shape = check_shape(
            &self.config.plan,
            &RequestedShape {
                vcpu_count: request.vcpu_count,
                memory_mib: request.memory_mib,
                disk_mib: request.disk_mib,
                cpu_kind: request.cpu_kind,
            },
        )?;
        let project_id = self.project_or_default(caller, request.project_id).await?;
        let image = self.resolve_image(request.image.as_deref()).await?;
        let (desired, demand) = match request.start {
            StartPolicy::Later => (Desired::Stopped, Demand::Create),
            StartPolicy::Now(Wait::No | Wait::UpTo(_)) => {
                (Desired::Running, Demand::CreateAndStart)
            }
        };
        let now = self.now();
        let suffix = self.random_word(SUFFIX_LEN);
        let name = match given_name {
            Some(name) => name,
            None => DisplayName::parse(&format!("{}-{suffix}", image.name))?,
        };
        let stem = request.name.as_deref().unwrap_or(image.name.0.as_str());
        let mut workspace = Workspace {
            id: WorkspaceId::from_random(self.random()),
            account_id: caller.account_id,
            project_id,
            namespace: request.namespace,
            slug: given_slug.clone().unwrap_or_else(|| Slug::from_name(stem, &suffix)),
            name,
            spec: WorkspaceSpec {
                image: image.name.clone(),
                image_digest: image.digest,
                shape,
                env: request.env,
                lifetime: request.lifetime,
                expiry,
                keep_active: request.keep_active,
                log_retention: request.log_retention,
                metadata: request.metadata,
            },
            desired,
            state: State::Provisioned,
            incarnation: Incarnation::default(),
            replace_through: Incarnation::default(),
            failed_starts: 0,
            start_began_at: None,
            node_id: None,
            expires_at: None,
            preview_token: Secret::new(self.random_word(32)),
            created_at: now,
            updated_at: now,
            revision: 0,
        };
        let admission = Admission { plan: &self.config.plan, demand };
        for _ in 0..SLUG_DRAWS {
            match self.store.insert_workspace(&workspace, admission).await? {
                Write::Done(made) => return Ok(made),
                Write::Taken | Write::Stale => {
                    if let Some(slug) = &given_slug {
                        let taken = format!("the slug {slug} is already in use");
                        return Err(ErrorKind::Conflict(taken).into());
                    }
                    workspace.slug = Slug::from_name(stem, &self.random_word(SUFFIX_LEN));
                }
            }
        }
        Err(Error::internal("no free slug was found"))
    }

    async fn project_or_default(
        &self,
        caller: &Caller,
        asked: Option<ProjectId>,
    ) -> Result<ProjectId, Error> {
        if let Some(id) = asked {
            let project = self.store.project(caller.account_id, id).await?;
            return project.map(|found| found.id).ok_or_else(|| Error::not_found("project"));
        }
        let projects = self.store.list_projects(caller.account_id).await?;
        let default = projects.into_iter().find(|project| project.is_default);
        default.map(|project| project.id).ok_or_else(|| Error::internal("no default project"))
    }
}
