//! What can be asked of a VM beside running and stopping: pausing it, saving it, and keeping what it
//! is.

use skerry_internal_api::{NodeError, VmReport};
use skerry_model::{Incarnation, WorkspaceId};

use crate::{node::Node, vm::Request};

impl Node {
    pub(crate) async fn pause(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
    ) -> Result<VmReport, NodeError> {
        self.ask_owner(workspace_id, |_, answer| Request::Pause { incarnation, answer }).await
    }

    pub(crate) async fn resume(
        &self,
        workspace_id: WorkspaceId,
        incarnation: Incarnation,
    ) -> Result<VmReport, NodeError> {
        self.ask_owner(workspace_id, |_, answer| Request::Resume { incarnation, answer }).await
    }
}
