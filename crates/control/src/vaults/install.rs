//! Has guests trust who certifies names to them.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use skerry_internal_api::{ExecControl, ExecExit, ExecOutput, ExecRequest, User};
use skerry_model::{State, Workspace, WorkspaceId};

use super::follow::{BUNDLE, OWN};
use crate::{Error, control::Inner};

/// How long the guest may take for it.
const WITHIN: Duration = Duration::from_secs(60);

/// Puts the certificate on standard input where programs look for it. What is there already is left; a
/// second run changes nothing and is quick.
const SCRIPT: &str = include_str!("install.sh");

impl Inner {
    /// Has the guest of a VM that runs trust the account's authority, if the workspace uses vaults. A guest
    /// in which that cannot be done is one whose programs say so when they connect.
    pub(crate) async fn install_trust(&self, workspace: &Workspace) {
        if workspace.spec.vaults.is_empty() || !matches!(workspace.state, State::Running { .. }) {
            return;
        }
        self.install_trust_in(workspace).await;
    }

    /// The same for one that is about to be recorded as running.
    pub(crate) async fn install_trust_at_start(&self, id: WorkspaceId) -> Result<(), Error> {
        let workspace = self.store.workspace(id).await?;
        if let Some(workspace) = workspace.filter(|found| !found.spec.vaults.is_empty()) {
            self.install_trust_in(&workspace).await;
        }
        Ok(())
    }

    async fn install_trust_in(&self, workspace: &Workspace) {
        let outcome = tokio::time::timeout(WITHIN, self.try_install(workspace)).await;
        let problem = match outcome {
            Ok(Ok(None)) => return,
            Ok(Ok(Some(exit))) => format!("the guest's shell ended with {exit:?}"),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it took too long".to_owned(),
        };
        tracing::warn!(workspace.id = %workspace.id, problem,
            "a guest could not be made to trust the authority of its vaults");
    }

    async fn try_install(&self, workspace: &Workspace) -> Result<Option<ExecExit>, Error> {
        let authority = self.account_authority(workspace.account_id).await?;
        let guest = self.node.guest(workspace.id).await?;
        let request = ExecRequest {
            argv: ["/bin/sh", "-c", SCRIPT, "skerry-vaults", OWN, BUNDLE].map(str::to_owned).into(),
            env: BTreeMap::new(),
            working_dir: Some("/".to_owned()),
            user: User::Root,
            pty: None,
            timeout: Some(WITHIN),
        };
        let mut session = guest.exec(request).await?;
        let certificate = Bytes::from(authority.certificate);
        // One that has ended says how below.
        let _ = session.control.send(ExecControl::Stdin(certificate)).await;
        let _ = session.control.send(ExecControl::CloseStdin).await;
        while let Some(said) = session.output.recv().await {
            match said? {
                ExecOutput::Exit(ExecExit::Code(0)) => return Ok(None),
                ExecOutput::Exit(exit) => return Ok(Some(exit)),
                ExecOutput::Stdout(_) | ExecOutput::Stderr(_) => {}
            }
        }
        Err(Error::internal("a command ended without saying how"))
    }
}
