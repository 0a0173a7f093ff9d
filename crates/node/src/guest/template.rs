//! Making a guest the one that others are cloned from.

use std::{collections::BTreeMap, time::Duration};

use skerry_agent_protocol::{call as path, message};
use skerry_internal_api::{ExecControl, ExecOutput, ExecRequest, GuestApi, NodeError, Pty, User};

use super::GuestLink;

/// Cleaning up writes a whole disk back.
const PREPARED_WITHIN: Duration = Duration::from_secs(120);
/// One warm-up command; python takes seconds from a cold disk under emulation.
const COMMAND_WITHIN: Duration = Duration::from_secs(120);

/// What a first command is likely to need. A program that the image does not have is passed over.
const WARM_UP: &[&[&str]] = &[
    &["sh", "-c", ":"],
    &["bash", "-lc", ":"],
    &["git", "--version"],
    &["python3", "-c", "pass"],
    &["node", "--version"],
];

/// A guest that can be cloned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Memory in use in it, caches included: what a template's memory file is going to hold.
    pub memory_used_bytes: u64,
}

impl GuestLink {
    /// Prepares a guest that belongs to nobody (its hello has an empty machine id) for being cloned:
    /// removes what clones must not share, leaves in memory what a first command needs and nothing
    /// else that was read from the disk, and has everything written back.
    ///
    /// The memory of a clone is the template's until it is written: a page that is in the template's
    /// cache costs a clone nothing, one that it has to read costs it the time and the page.
    ///
    /// # Errors
    /// [`NodeError::GuestUnreachable`], [`NodeError::Timeout`], and the refusal of a guest that belongs
    /// to somebody.
    pub async fn prepare_template(&self) -> Result<Prepared, NodeError> {
        self.clean(message::Prepare { drop_caches: true }).await?;
        self.warm_up().await?;
        // Again: what the warm-up may have left. What it has read stays.
        self.clean(message::Prepare { drop_caches: false }).await
    }

    async fn clean(&self, question: message::Prepare) -> Result<Prepared, NodeError> {
        let message::Prepared { memory_used_bytes } = self
            .ask_newer(path::PREPARE, &question, PREPARED_WITHIN, "becoming a template")
            .await?;
        Ok(Prepared { memory_used_bytes })
    }

    /// Goes once through what a first caller is likely to go through.
    async fn warm_up(&self) -> Result<(), NodeError> {
        for argv in WARM_UP {
            self.run_to_its_end(argv, None).await?;
        }
        self.run_to_its_end(&["sh", "-c", ":"], Some(Pty { columns: 80, rows: 24 })).await?;
        self.stats().await?;
        self.listening_ports().await?;
        self.list_dir("/root").await.or_else(unless_lost)?;
        Ok(())
    }

    async fn run_to_its_end(&self, argv: &[&str], pty: Option<Pty>) -> Result<(), NodeError> {
        let request = ExecRequest {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: BTreeMap::new(),
            working_dir: None,
            user: User::Root,
            pty,
            timeout: Some(COMMAND_WITHIN),
        };
        let mut session = match self.exec(request).await {
            Ok(session) => session,
            Err(error) => return unless_lost(error),
        };
        // A command that has ended already takes no input.
        let _ = session.control.send(ExecControl::CloseStdin).await;
        while let Some(output) = session.output.recv().await {
            match output? {
                ExecOutput::Stdout(_) | ExecOutput::Stderr(_) => {}
                ExecOutput::Exit(_) => break,
            }
        }
        Ok(())
    }
}

/// What the guest refuses is no reason to give up; a guest that is lost is.
fn unless_lost<T: Default>(error: NodeError) -> Result<T, NodeError> {
    match error {
        NodeError::Guest { .. } | NodeError::NoSuchFile(_) => Ok(T::default()),
        error => Err(error),
    }
}
