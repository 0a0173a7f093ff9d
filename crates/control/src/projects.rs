//! Projects: groups of workspaces (Aether's). Every account has one called `default`, under which
//! workspaces made through the other dialects appear.

use skerry_model::{ErrorKind, ProjectId, Timestamp, name::check_project_name};

use crate::{Caller, Control, Error, store::Write};

/// A project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// Its identity.
    pub id: ProjectId,
    /// Unique within the account.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Whether it is the account's default project.
    pub is_default: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// What a new project is.
#[derive(Clone, Debug)]
pub struct CreateProject {
    /// 1 to 100 characters; first alphanumeric, then alphanumeric, `-`, `_`, `.` or space.
    pub name: String,
    /// At most 500 characters.
    pub description: Option<String>,
}

impl Control {
    /// Makes a project.
    ///
    /// # Errors
    /// `Invalid` (`name`, `description`), `Conflict` when the account has one of that name.
    pub async fn create_project(
        &self,
        caller: &Caller,
        request: CreateProject,
    ) -> Result<Project, Error> {
        check_project_name(&request.name)?;
        let description = request.description.filter(|text| !text.is_empty());
        if description.as_ref().is_some_and(|text| text.chars().count() > 500) {
            return Err(Error::invalid("description", "is too long", "at most 500 characters"));
        }
        let now = self.inner.now();
        let project = Project {
            id: ProjectId::from_random(self.inner.random()),
            name: request.name,
            description,
            is_default: false,
            created_at: now,
            updated_at: now,
        };
        match self.inner.store.insert_project(caller.account_id, &project).await? {
            Write::Done(project) => Ok(project),
            Write::Taken | Write::Stale => {
                let name = &project.name;
                Err(ErrorKind::Conflict(format!("a project named {name} already exists")).into())
            }
        }
    }

    /// The account's projects, the default one first, then oldest first.
    ///
    /// # Errors
    /// Only faults of the store.
    pub async fn list_projects(&self, caller: &Caller) -> Result<Vec<Project>, Error> {
        self.inner.store.list_projects(caller.account_id).await
    }

    /// One project.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get_project(&self, caller: &Caller, id: ProjectId) -> Result<Project, Error> {
        let project = self.inner.store.project(caller.account_id, id).await?;
        project.ok_or_else(|| Error::not_found("project"))
    }
}
