//! Projects: groups of workspaces (Aether's). Every account has one called `default`, under which
//! workspaces made through the other dialects appear.

use skerry_model::{ProjectId, Timestamp};

use crate::{Caller, Control, Error};

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
        unimplemented!("{caller:?} {request:?}")
    }

    /// The account's projects, the default one first, then oldest first.
    ///
    /// # Errors
    /// Only faults of the store.
    pub async fn list_projects(&self, caller: &Caller) -> Result<Vec<Project>, Error> {
        unimplemented!("{caller:?}")
    }

    /// One project.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get_project(&self, caller: &Caller, id: ProjectId) -> Result<Project, Error> {
        unimplemented!("{caller:?} {id}")
    }
}
