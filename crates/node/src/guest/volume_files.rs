//! The files of a volume that a guest has mounted, and its growth.

use std::{sync::Arc, time::Duration};

use skerry_agent_protocol::{
    REVISION,
    limits::PATH_MAX,
    message,
    volume_files::{self as call, LISTING_ENTRIES_MAX},
};
use skerry_internal_api::{
    ByteStream, ListDepth, NodeError, RemoveDepth, VolumeEntry, VolumeListing, WriteMode,
};
use skerry_model::VolumeMount;

use super::{GuestLink, SHORT_CALL, convert, failure::lost};

/// Since when the agent serves files of volumes.
const SINCE_REVISION: u16 = 4;
const _: () = assert!(SINCE_REVISION <= REVISION);

/// Calls whose duration grows with the tree.
const TREE_CALL: Duration = Duration::from_secs(120);

/// The files of one volume in one guest.
#[derive(Clone, Debug)]
pub(crate) struct GuestVolume {
    link: Arc<GuestLink>,
    volume: call::Volume,
}

impl GuestVolume {
    pub fn new(link: Arc<GuestLink>, mount: &VolumeMount) -> Self {
        let volume = call::Volume {
            serial: mount.slot.device_serial(),
            mount_path: mount.path.as_str().to_owned(),
        };
        Self { link, volume }
    }

    async fn must_know(&self) -> Result<(), NodeError> {
        if self.link.shared.connected().await?.revision < SINCE_REVISION {
            let what = "files of volumes: the agent in the guest is older than this node";
            return Err(NodeError::Unsupported(what.to_owned()));
        }
        Ok(())
    }

    fn path(&self, path: &str) -> call::Path {
        call::Path { volume: self.volume.clone(), path: path.to_owned() }
    }

    pub async fn stat(&self, path: &str) -> Result<VolumeEntry, NodeError> {
        self.must_know().await?;
        let found = self.link.shared.ask(call::STAT, &self.path(path), SHORT_CALL).await?;
        // The guest's word is not taken for where we asked.
        Ok(VolumeEntry { path: path.to_owned(), ..entry(found) })
    }

    pub async fn list(
        &self,
        path: &str,
        depth: ListDepth,
        limit: u32,
    ) -> Result<VolumeListing, NodeError> {
        self.must_know().await?;
        let limit = limit.clamp(1, LISTING_ENTRIES_MAX);
        let question = call::List {
            volume: self.volume.clone(),
            path: path.to_owned(),
            depth: match depth {
                ListDepth::One => call::Depth::One,
                ListDepth::All => call::Depth::All,
            },
            limit,
        };
        let found: call::Listing =
            self.link.shared.ask_for_listing(call::LIST, &question, TREE_CALL).await?;
        let is_too_long = |entry: &call::Entry| entry.path.len() > 3 * PATH_MAX;
        if found.entries.len() > limit as usize || found.entries.iter().any(is_too_long) {
            return Err(lost("its listing is larger than it may be"));
        }
        let mut entries: Vec<VolumeEntry> = found.entries.into_iter().map(entry).collect();
        // Its word for the order is not taken.
        entries.sort_by(|left, right| left.path.cmp(&right.path));
        Ok(VolumeListing { entries, truncated: found.truncated })
    }

    pub async fn read(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<ByteStream, NodeError> {
        self.must_know().await?;
        let question =
            call::Read { volume: self.volume.clone(), path: path.to_owned(), offset, length };
        self.link.shared.download(call::READ, &question).await
    }

    pub async fn write(
        &self,
        path: &str,
        mode: u32,
        how: WriteMode,
        content: ByteStream,
    ) -> Result<u64, NodeError> {
        self.must_know().await?;
        let question = call::Write {
            volume: self.volume.clone(),
            path: path.to_owned(),
            mode,
            how: convert::write_mode(how),
        };
        let written: message::Written =
            self.link.shared.upload(call::WRITE, &question, content).await?;
        Ok(written.size_bytes)
    }

    pub async fn remove(&self, path: &str, depth: RemoveDepth) -> Result<(), NodeError> {
        self.must_know().await?;
        let recursive = match depth {
            RemoveDepth::One => false,
            RemoveDepth::All => true,
        };
        let question =
            call::Remove { volume: self.volume.clone(), path: path.to_owned(), recursive };
        let message::Empty {} = self.link.shared.ask(call::REMOVE, &question, TREE_CALL).await?;
        Ok(())
    }

    /// Has the guest grow the file system to its disk, which was made `disk_size_bytes` large under it.
    pub async fn grow(&self, disk_size_bytes: u64) -> Result<(), NodeError> {
        self.must_know().await?;
        let question = call::Grow { volume: self.volume.clone(), disk_size_bytes };
        let message::Grown { gained_bytes: _ } =
            self.link.shared.command(call::GROW, &question, TREE_CALL).await?;
        Ok(())
    }
}

fn entry(entry: call::Entry) -> VolumeEntry {
    let call::Entry { path, kind, size_bytes, mode, uid, gid, modified_unix_ms } = entry;
    let kind = convert::file_kind(kind);
    VolumeEntry { path, kind, size_bytes, mode: mode & 0o7777, uid, gid, modified_unix_ms }
}
