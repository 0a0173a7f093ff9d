//! The inside of a guest as the rest of the house sees it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use skerry_agent_protocol::{
    call as path,
    limits::{LISTING_ENTRIES_MAX, PORTS_MAX},
    message,
};
use skerry_internal_api::{
    ByteStream, ExecRequest, ExecSession, FileStat, GuestApi, GuestListener, GuestStats,
    GuestStream, ListeningPort, NodeError, SupervisorApi, User, WriteMode,
};

use super::{GuestLink, SHORT_CALL, convert, failure::lost, workloads::SupervisorLink};

/// Calls whose duration grows with the tree.
const TREE_CALL: Duration = Duration::from_secs(120);

#[async_trait]
impl GuestApi for GuestLink {
    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, NodeError> {
        self.start_command(request).await
    }

    async fn stat(&self, path: &str) -> Result<FileStat, NodeError> {
        let stat: message::Stat = self.shared.ask(path::STAT, &path_of(path), SHORT_CALL).await?;
        Ok(convert::stat(path.to_owned(), stat))
    }

    async fn list_dir(&self, path: &str) -> Result<Vec<FileStat>, NodeError> {
        let listing: message::Listing =
            self.shared.ask_for_listing(path::LIST, &path_of(path), TREE_CALL).await?;
        if listing.entries.len() > LISTING_ENTRIES_MAX {
            return Err(lost("its listing has too many entries"));
        }
        let parent = path.trim_end_matches('/');
        let mut entries: Vec<FileStat> = listing
            .entries
            .into_iter()
            .map(|entry| convert::stat(format!("{parent}/{}", entry.name), entry))
            .collect();
        // Its word for the order is not taken.
        entries.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(entries)
    }

    async fn read_file(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<ByteStream, NodeError> {
        let question = message::Read { path: path.to_owned(), offset, length };
        self.shared.download(path::READ, &question).await
    }

    async fn write_file(
        &self,
        path: &str,
        mode: u32,
        how: WriteMode,
        user: User,
        content: ByteStream,
    ) -> Result<u64, NodeError> {
        let question = message::Write {
            path: path.to_owned(),
            mode,
            how: convert::write_mode(how),
            user: convert::user(user),
        };
        let written: message::Written = self.shared.upload(path::WRITE, &question, content).await?;
        Ok(written.size_bytes)
    }

    async fn make_dir(&self, path: &str, mode: u32, user: User) -> Result<(), NodeError> {
        let question = message::MakeDir { path: path.to_owned(), mode, user: convert::user(user) };
        let message::Empty {} = self.shared.ask(path::MAKE_DIR, &question, SHORT_CALL).await?;
        Ok(())
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), NodeError> {
        let question = message::Rename { from: from.to_owned(), to: to.to_owned() };
        let message::Empty {} = self.shared.ask(path::RENAME, &question, SHORT_CALL).await?;
        Ok(())
    }

    async fn remove(&self, path: &str) -> Result<(), NodeError> {
        let message::Empty {} = self.shared.ask(path::REMOVE, &path_of(path), TREE_CALL).await?;
        Ok(())
    }

    async fn upload_tree(&self, path: &str, user: User, tar: ByteStream) -> Result<u64, NodeError> {
        let question = message::Upload { path: path.to_owned(), user: convert::user(user) };
        let unpacked: message::Unpacked = self.shared.upload(path::UPLOAD, &question, tar).await?;
        Ok(unpacked.entries)
    }

    async fn download_tree(&self, path: &str) -> Result<ByteStream, NodeError> {
        self.shared.download(path::DOWNLOAD, &path_of(path)).await
    }

    async fn stats(&self) -> Result<GuestStats, NodeError> {
        let stats: message::Stats =
            self.shared.ask(path::STATS, &message::Empty {}, SHORT_CALL).await?;
        Ok(convert::stats(stats))
    }

    async fn connect(&self, host: &str, port: u16) -> Result<GuestStream, NodeError> {
        self.open_connection(host, port).await
    }

    async fn listen(&self, port: u16, user: User) -> Result<Box<dyn GuestListener>, NodeError> {
        self.open_listener(port, user).await
    }

    async fn listening_ports(&self) -> Result<Vec<ListeningPort>, NodeError> {
        let ports: message::Ports =
            self.shared.ask(path::PORTS, &message::Empty {}, SHORT_CALL).await?;
        let mut ports: Vec<ListeningPort> =
            ports.ports.into_iter().take(PORTS_MAX).map(convert::port).collect();
        ports.sort_by(|left, right| (left.port, &left.address).cmp(&(right.port, &right.address)));
        Ok(ports)
    }

    fn supervisor(&self) -> Arc<dyn SupervisorApi> {
        Arc::new(SupervisorLink { shared: Arc::clone(&self.shared) })
    }
}

fn path_of(path: &str) -> message::Path {
    message::Path { path: path.to_owned() }
}
