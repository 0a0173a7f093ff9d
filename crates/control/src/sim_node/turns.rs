//! Starts that wait for their turn, starts that need none, and waiting for what control asks of the node.

use skerry_internal_api::VmReport;
use skerry_model::WorkspaceId;

use super::SimNode;

impl SimNode {
    /// So many VMs wait in the pool: the next starts from an image are served by them, at once.
    pub fn fill_pool(&self, count: u32) {
        self.state().pool = count;
    }

    /// Boots that hang wait for their turn behind others.
    pub fn queue_boots(&self) {
        self.state().boots_wait = true;
    }

    /// Completes when it was asked so often, since it was made, whether a start waits for its turn.
    pub async fn was_asked_for_turns(&self, times: u32) {
        let mut asked = self.turn_questions.subscribe();
        // The sender lives in `self`.
        let _closed = asked.wait_for(|asked| *asked >= times).await;
    }

    /// Boots that waited for their turn have it, and later ones do not wait.
    pub fn admit_boots(&self) {
        self.state().boots_wait = false;
    }

    /// Completes when so many calls that changed something and begin with `name` (such as
    /// `ensure_running`) were made.
    pub async fn was_called(&self, name: &str, times: usize) {
        let mut calls = self.state().calls.subscribe();
        let enough = |calls: &Vec<String>| {
            calls.iter().filter(|call| call.starts_with(name)).count() >= times
        };
        // The sender lives in `self`.
        let _closed = calls.wait_for(enough).await;
    }

    /// What the node has of a workspace.
    #[must_use]
    pub fn vm(&self, id: WorkspaceId) -> Option<VmReport> {
        self.state().vms.get(&id).map(|vm| vm.report.clone())
    }
}
