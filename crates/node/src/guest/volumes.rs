//! Having the guest mount a disk and let it go.

use std::time::Duration;

use skerry_agent_protocol::{REVISION, call as path, message};
use skerry_internal_api::NodeError;
use skerry_model::{MountMode, VolumeMount};

use super::GuestLink;

/// Since when the agent can mount disks.
const SINCE_REVISION: u16 = 3;
const _: () = assert!(SINCE_REVISION <= REVISION);

impl GuestLink {
    /// Has the guest mount the disk in the mount's slot.
    ///
    /// # Errors
    /// [`NodeError::Timeout`] after `within`; [`NodeError::GuestUnreachable`]; the agent's refusal;
    /// [`NodeError::Unsupported`] by a guest whose agent is too old.
    pub async fn mount(&self, mount: &VolumeMount, within: Duration) -> Result<(), NodeError> {
        let question = message::Mount {
            serial: mount.slot.device_serial(),
            path: mount.path.as_str().to_owned(),
            read_only: match mount.mode {
                MountMode::ReadWrite => false,
                MountMode::ReadOnly => true,
            },
        };
        self.ask_about_disks(path::MOUNT, &question, within).await
    }

    /// Has the guest write the disk's file system back and let it go. One that is not mounted is a
    /// success.
    ///
    /// # Errors
    /// As for [`GuestLink::mount`]; the word `busy` while something in the guest uses it.
    pub async fn unmount(&self, mount: &VolumeMount, within: Duration) -> Result<(), NodeError> {
        let question = message::Unmount {
            serial: mount.slot.device_serial(),
            path: mount.path.as_str().to_owned(),
        };
        self.ask_about_disks(path::UNMOUNT, &question, within).await
    }

    async fn ask_about_disks<Q: serde::Serialize>(
        &self,
        path: &'static str,
        question: &Q,
        within: Duration,
    ) -> Result<(), NodeError> {
        if self.shared.connected().await?.revision < SINCE_REVISION {
            let what = "volumes: the agent in the guest is older than this node";
            return Err(NodeError::Unsupported(String::from(what)));
        }
        let message::Empty {} = self.shared.command(path, question, within).await?;
        Ok(())
    }
}
