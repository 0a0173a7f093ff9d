//! The record of a workspace.

use crate::{
    AccountId, Desired, DisplayName, Incarnation, NodeId, ProjectId, Secret, Slug, State,
    Timestamp, WorkspaceId, WorkspaceSpec,
};

/// Everything known of a workspace. `control::store` is the only writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    /// Its identity; dialects render it in their own form.
    pub id: WorkspaceId,
    /// Who owns it.
    pub account_id: AccountId,
    /// The project it belongs to; every account has a default one.
    pub project_id: ProjectId,
    /// A tenant's own grouping word (Oblien's namespace): `[A-Za-z0-9-]`, 1 to 63 characters.
    pub namespace: Option<String>,
    /// The name for people. Not unique.
    pub name: DisplayName,
    /// The name for addresses: unique within the installation.
    pub slug: Slug,
    /// What was asked for.
    pub spec: WorkspaceSpec,
    /// What it should be.
    pub desired: Desired,
    /// What it is.
    pub state: State,
    /// Which start the state speaks of.
    pub incarnation: Incarnation,
    /// A running VM of this incarnation or an older one does not satisfy `Desired::Running`:
    /// set by a restart to the incarnation it must replace.
    pub replace_through: Incarnation,
    /// How many starts in a row have failed.
    pub failed_starts: u32,
    /// When the current or last start began.
    pub start_began_at: Option<Timestamp>,
    /// The node it is placed on, once it was started.
    pub node_id: Option<NodeId>,
    /// When the workspace expires, by `spec.expiry`; set each time it becomes running.
    pub expires_at: Option<Timestamp>,
    /// Grants access to previews of the workspace's ports: 32 characters of `[a-z0-9]`.
    pub preview_token: Secret,
    /// When the record was made.
    pub created_at: Timestamp,
    /// When the record last changed.
    pub updated_at: Timestamp,
    /// Counts the writes of this record; a write with a stale number is refused.
    pub revision: u64,
}
