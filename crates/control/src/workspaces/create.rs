//! Making a workspace.

use skerry_model::{
    Demand, Desired, DisplayName, EnvVar, ErrorKind, Floor, ImageRef, Incarnation, Lifecycle,
    Origin, ProjectId, RequestedShape, Secret, Shape, Slug, StartFrom, State, Workspace,
    WorkspaceId, WorkspaceSpec,
    limits::check_shape,
    name::check_namespace,
    spec::{ImageDigest, check_metadata},
};

use super::{CreateWorkspace, StartPolicy, Wait, lifecycle::check_snapshot_on_terminate};
use crate::{
    Caller, Control, Error,
    control::Inner,
    store::{Admission, Write},
};

/// How often a generated slug is drawn again when it is taken.
pub(super) const SLUG_DRAWS: u32 = 8;
const SUFFIX_LEN: usize = 5;

impl Control {
    /// Makes a workspace and, as asked, starts it.
    ///
    /// # Errors
    /// `Invalid` (`name`, `slug`, `namespace`, `image`, `vcpu_count`, `memory_mib`, `disk_mib`,
    /// `env`, `metadata`, `expiry`, `idle`, `restart`, `snapshot_name`), `Quota`, `NotFound`
    /// (`project`, `snapshot`), `Conflict` (slug taken, snapshot not ready). Nothing is recorded on an
    /// error. A start that fails is not an error of create: the answer's state says it.
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
                let control = Self { inner };
                if let Err(error) = control.publish_apps(&made).await {
                    // It is made; its apps get their addresses when they are next asked for.
                    tracing::warn!(workspace.id = %made.id, %error, "an app has no address yet");
                }
                if made.desired == Desired::Running {
                    control.inner.wake(made.id);
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

/// What a new workspace is made from.
struct Base {
    origin: Origin,
    start_from: StartFrom,
    image: ImageRef,
    image_digest: ImageDigest,
    /// A snapshot's.
    shape: Option<Shape>,
}

/// What an image is called among people: of `docker.io/library/alpine:3.20`, `alpine`.
fn short_name(image: &ImageRef) -> &str {
    let last = image.0.rsplit('/').next().unwrap_or_default();
    last.split([':', '@']).next().unwrap_or_default()
}

/// A request with a template has the template's image.
fn with_image(
    request: CreateWorkspace,
    of_template: Option<String>,
) -> Result<CreateWorkspace, Error> {
    let Some(image) = of_template else { return Ok(request) };
    if request.image.as_ref().is_some_and(|asked| *asked != image) {
        let problem = "is not the template's image";
        return Err(Error::invalid("image", problem, format!("{image}, or none")));
    }
    Ok(CreateWorkspace { image: Some(image), ..request })
}

/// What is asked for, with a template's sizes where nothing is.
fn asked_of(template: &Floor, asked: &RequestedShape) -> RequestedShape {
    let or = |asked: Option<u64>, size: u32| asked.or((size > 0).then_some(size.into()));
    RequestedShape {
        vcpu_count: or(asked.vcpu_count, template.vcpu_count),
        memory_mib: or(asked.memory_mib, template.memory_mib),
        disk_mib: or(asked.disk_mib, template.disk_mib),
        cpu_kind: asked.cpu_kind,
    }
}

/// Checks the rules of the workspace's life.
fn check_rules(request: &CreateWorkspace) -> Result<(), Error> {
    if let Some(expiry) = request.expiry {
        expiry.check()?;
    }
    if let Some(idle) = request.idle {
        idle.check()?;
    }
    request.restart.check()?;
    if let Some(last) = &request.snapshot_on_terminate {
        check_snapshot_on_terminate(last)?;
    }
    Ok(())
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
        check_rules(&request)?;
        let parts = self.parts_of_new(caller, &request).await?;
        let request = with_image(request, parts.image)?;
        let base = self.base_of(caller, &request).await?;
        let asked = RequestedShape {
            vcpu_count: request.vcpu_count.or(base.shape.map(|s| s.vcpu_count.get().into())),
            memory_mib: request.memory_mib.or(base.shape.map(|s| s.memory_mib.get().into())),
            disk_mib: request.disk_mib.or(base.shape.map(|s| s.disk_mib.get().into())),
            cpu_kind: request.cpu_kind,
        };
        let asked = asked_of(&parts.defaults, &asked);
        let asked = parts.made_from.floor.raise_new(&self.config.plan, &asked);
        let shape = check_shape(&self.config.plan, &asked)?;
        if let Some(least) = base.shape.map(|of_snapshot| of_snapshot.disk_mib)
            && shape.disk_mib < least
        {
            let problem = format!("{} is less than the snapshot's disk has", shape.disk_mib.get());
            let allowed = format!("{} to {} MiB", least.get(), self.config.plan.disk_mib.max);
            return Err(Error::invalid("disk_mib", problem, allowed));
        }
        let network = self.wish_of_new(caller, request.network).await?;
        let project_id = self.project_or_default(caller, request.project_id).await?;
        let volumes = self.wanted(caller, &request.volumes).await?;
        let vaults = self.vaults_of_new(caller, &request.vaults).await?;
        let asked = parts.workloads.into_iter().chain(request.workloads).collect();
        let workloads = self.workloads_of_new(asked)?;
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
            None => DisplayName::parse(&format!("{}-{suffix}", short_name(&base.image)))?,
        };
        let stem = request.name.as_deref().unwrap_or(short_name(&base.image));
        let mut workspace = Workspace {
            id: WorkspaceId::from_random(self.random()),
            account_id: caller.account_id,
            project_id,
            namespace: request.namespace,
            slug: given_slug.clone().unwrap_or_else(|| Slug::from_name(stem, &suffix)),
            name,
            spec: WorkspaceSpec {
                origin: base.origin,
                image: base.image.clone(),
                image_digest: base.image_digest,
                shape,
                env: request.env,
                lifetime: request.lifetime,
                expiry: request.expiry,
                keep_active: request.keep_active,
                idle: request.idle,
                restart: request.restart,
                remove_on_exit: request.remove_on_exit,
                snapshot_on_terminate: request.snapshot_on_terminate,
                auto_resume: request.auto_resume,
                log_retention: request.log_retention,
                network,
                workloads,
                vaults,
                made_from: parts.made_from,
                metadata: request.metadata,
            },
            desired,
            state: State::Provisioned,
            incarnation: Incarnation::default(),
            replace_through: Incarnation::default(),
            failed_starts: 0,
            start_began_at: None,
            node_id: None,
            private_address: None,
            expires_at: None,
            last_active_at: None,
            lifecycle: Lifecycle { start_from: base.start_from, ..Lifecycle::default() },
            preview_token: Secret::new(self.random_word(32)),
            created_at: now,
            updated_at: now,
            revision: 0,
        };
        if !volumes.is_empty() {
            self.reserve_volumes(caller, workspace.id, &volumes).await?;
        }
        let made = self.insert_new(&mut workspace, given_slug.as_ref(), stem, demand).await;
        if made.is_err() {
            for wanted in &volumes {
                self.store.detach_volume(workspace.id, wanted.volume_id).await?;
            }
        }
        made
    }

    /// Records it, under another slug if one that was made up is taken.
    async fn insert_new(
        &self,
        workspace: &mut Workspace,
        given_slug: Option<&Slug>,
        stem: &str,
        demand: Demand,
    ) -> Result<Workspace, Error> {
        let admission = Admission { plan: &self.config.plan, demand };
        for _ in 0..SLUG_DRAWS {
            match self.store.insert_workspace(workspace, admission).await? {
                Write::Done(made) => return Ok(made),
                Write::Taken | Write::Stale => {
                    if let Some(slug) = given_slug {
                        let taken = format!("the slug {slug} is already in use");
                        return Err(ErrorKind::Conflict(taken).into());
                    }
                    workspace.slug = Slug::from_name(stem, &self.random_word(SUFFIX_LEN));
                }
            }
        }
        Err(Error::internal("no free slug was found"))
    }

    /// What the workspace is made from, as it is now.
    async fn base_of(&self, caller: &Caller, request: &CreateWorkspace) -> Result<Base, Error> {
        let Some(which) = &request.from_snapshot else {
            let image = self.resolve_image(request.image.as_deref()).await?;
            return Ok(Base {
                origin: Origin::Image,
                start_from: StartFrom::Disk,
                image: image.name,
                image_digest: image.digest,
                shape: None,
            });
        };
        if request.image.is_some() {
            let problem = "is given together with a snapshot";
            return Err(Error::invalid("image", problem, "no image: the snapshot has its own"));
        }
        let snapshot = self.find_ready_snapshot(caller, which).await?;
        Ok(Base {
            origin: Origin::Snapshot { snapshot_id: snapshot.id },
            start_from: StartFrom::Snapshot { snapshot_id: snapshot.id },
            image: snapshot.image,
            image_digest: snapshot.image_digest,
            shape: Some(snapshot.shape),
        })
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
        Ok(caller.default_project_id)
    }
}
