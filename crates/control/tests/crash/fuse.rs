//! A store and a node that die together at the n-th thing control has them do.

mod blueprints;
mod domains;
mod runtime_access;
mod ssh_access;
mod vaults;
mod volumes;

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use skerry_control::{
    ApiKey, Error, ListSnapshots, ListWorkspaces, Page, Project, PublishedPort, SshKey,
    internal_api::{
        ByteStream, GuestApi, ImageInfo, InjectedRequest, Injections, KeyFingerprint, LogSource,
        NodeApi, NodeCapacity, NodeDoctor, NodeError, NodeEvent, NodeNetwork, SnapshotContents,
        SnapshotInfo, StartStatistics, StopMode, VmReport, VmSpec, VolumeInfo,
    },
    sim_node::SimNode,
    store::{
        Account, Admission, KeyOwner, KeyRemoval, PortInsertion, SecretHash, SnapshotDeletion,
        SshKeyInsertion, StateStore, Store, StoredKey, StoredPort, Tenant, Write,
    },
};
use skerry_model::{
    AccountId, ApiKeyId, CheckpointId, Incarnation, Neighbourhood, NetworkPolicy, NodeId,
    OutboundProxy, Plan, PrivateAddress, ProjectId, Slug, Snapshot, SnapshotId, SshKeyId,
    Timestamp, Usage, VolumeId, VolumeMount, Workspace, WorkspaceId,
};
use tokio::sync::{Notify, broadcast};

/// When, within the operation, everything ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The operation is not begun.
    Before,
    /// The operation is begun and its caller goes away.
    During,
    /// The operation is done and nobody hears of it.
    After,
}

/// Counts operations and ends everything at one of them: from then on nothing is answered.
pub struct Fuse {
    operation: u32,
    left: AtomicU32,
    when: When,
    blown: AtomicBool,
    bell: Notify,
}

impl Fuse {
    pub fn at(operation: u32, when: When) -> Arc<Self> {
        let left = AtomicU32::new(operation);
        Arc::new(Self { operation, left, when, blown: AtomicBool::new(false), bell: Notify::new() })
    }

    /// Returns once everything has ended.
    pub async fn blown(&self) {
        while !self.blown.load(Ordering::SeqCst) {
            self.bell.notified().await;
        }
    }

    /// Whether the operation was begun at which everything ends: its outcome may be seen, and the use
    /// case be over, in the moment before the end.
    pub fn was_reached(&self) -> bool {
        // Counted below zero.
        self.left.load(Ordering::SeqCst) > self.operation
    }

    pub fn is_blown(&self) -> bool {
        self.blown.load(Ordering::SeqCst)
    }

    /// An operation that changes something: may be the last.
    async fn counted<T>(&self, operation: impl Future<Output = T>) -> T {
        self.alive().await;
        if self.left.fetch_sub(1, Ordering::SeqCst) != 0 {
            return self.answered(operation.await).await;
        }
        match self.when {
            When::Before => self.end().await,
            When::During => {
                let mut operation = pin!(operation);
                let _begun = futures::poll!(operation.as_mut());
                self.end().await
            }
            When::After => {
                operation.await;
                self.end().await
            }
        }
    }

    /// An operation that only looks.
    async fn uncounted<T>(&self, operation: impl Future<Output = T>) -> T {
        self.alive().await;
        self.answered(operation.await).await
    }

    async fn alive(&self) {
        if self.is_blown() {
            std::future::pending::<()>().await;
        }
    }

    async fn answered<T>(&self, answer: T) -> T {
        self.alive().await;
        answer
    }

    async fn end<T>(&self) -> T {
        self.blown.store(true, Ordering::SeqCst);
        self.bell.notify_one();
        std::future::pending().await
    }
}

pub struct FusedStore(pub Store, pub Arc<Fuse>);

#[async_trait]
impl StateStore for FusedStore {
    async fn ensure_account(
        &self,
        account: &Account,
        project: &Project,
    ) -> Result<(Account, bool), Error> {
        self.1.uncounted(self.0.ensure_account(account, project)).await
    }

    async fn ensure_bootstrap_key(&self, key: &StoredKey) -> Result<(), Error> {
        self.1.uncounted(self.0.ensure_bootstrap_key(key)).await
    }

    async fn key_owner(&self, hash: &SecretHash) -> Result<Option<KeyOwner>, Error> {
        self.1.uncounted(self.0.key_owner(hash)).await
    }

    async fn insert_key(&self, key: &StoredKey) -> Result<(), Error> {
        self.1.uncounted(self.0.insert_key(key)).await
    }

    async fn list_keys(&self, account: AccountId) -> Result<Vec<ApiKey>, Error> {
        self.1.uncounted(self.0.list_keys(account)).await
    }

    async fn remove_key(&self, account: AccountId, id: ApiKeyId) -> Result<KeyRemoval, Error> {
        self.1.uncounted(self.0.remove_key(account, id)).await
    }

    async fn touch_key(&self, id: ApiKeyId, at: Timestamp) -> Result<(), Error> {
        self.1.uncounted(self.0.touch_key(id, at)).await
    }

    async fn insert_ssh_key(
        &self,
        account: AccountId,
        key: &SshKey,
        max: u32,
    ) -> Result<SshKeyInsertion, Error> {
        self.1.uncounted(self.0.insert_ssh_key(account, key, max)).await
    }

    async fn list_ssh_keys(&self, account: AccountId) -> Result<Vec<SshKey>, Error> {
        self.1.uncounted(self.0.list_ssh_keys(account)).await
    }

    async fn ssh_key_owner(&self, fingerprint: &KeyFingerprint) -> Result<Option<Tenant>, Error> {
        self.1.uncounted(self.0.ssh_key_owner(fingerprint)).await
    }

    async fn remove_ssh_key(&self, account: AccountId, id: SshKeyId) -> Result<bool, Error> {
        self.1.uncounted(self.0.remove_ssh_key(account, id)).await
    }

    async fn tenant(&self, id: AccountId) -> Result<Option<Tenant>, Error> {
        self.1.uncounted(self.0.tenant(id)).await
    }

    async fn insert_port(&self, port: &StoredPort, max: u32) -> Result<PortInsertion, Error> {
        self.1.uncounted(self.0.insert_port(port, max)).await
    }

    async fn update_port(&self, port: &StoredPort) -> Result<Write<()>, Error> {
        self.1.uncounted(self.0.update_port(port)).await
    }

    async fn list_ports(&self, workspaces: &[WorkspaceId]) -> Result<Vec<StoredPort>, Error> {
        self.1.uncounted(self.0.list_ports(workspaces)).await
    }

    async fn port_by_slug(&self, slug: &Slug) -> Result<Option<StoredPort>, Error> {
        self.1.uncounted(self.0.port_by_slug(slug)).await
    }

    async fn remove_port(
        &self,
        workspace: WorkspaceId,
        port: u16,
    ) -> Result<Option<PublishedPort>, Error> {
        self.1.uncounted(self.0.remove_port(workspace, port)).await
    }

    async fn workspaces_by_prefix(&self, prefix: u32, limit: u32) -> Result<Vec<Workspace>, Error> {
        self.1.uncounted(self.0.workspaces_by_prefix(prefix, limit)).await
    }

    async fn insert_project(
        &self,
        account: AccountId,
        project: &Project,
    ) -> Result<Write<Project>, Error> {
        self.1.uncounted(self.0.insert_project(account, project)).await
    }

    async fn list_projects(&self, account: AccountId) -> Result<Vec<Project>, Error> {
        self.1.uncounted(self.0.list_projects(account)).await
    }

    async fn project(&self, account: AccountId, id: ProjectId) -> Result<Option<Project>, Error> {
        self.1.uncounted(self.0.project(account, id)).await
    }

    async fn insert_workspace(
        &self,
        workspace: &Workspace,
        admission: Admission<'_>,
    ) -> Result<Write<Workspace>, Error> {
        self.1.counted(self.0.insert_workspace(workspace, admission)).await
    }

    async fn update_workspace(
        &self,
        workspace: &Workspace,
        admission: Option<Admission<'_>>,
    ) -> Result<Write<Workspace>, Error> {
        self.1.counted(self.0.update_workspace(workspace, admission)).await
    }

    async fn remove_workspace(&self, id: WorkspaceId, revision: u64) -> Result<Write<()>, Error> {
        self.1.counted(self.0.remove_workspace(id, revision)).await
    }

    async fn workspace(&self, id: WorkspaceId) -> Result<Option<Workspace>, Error> {
        self.1.uncounted(self.0.workspace(id)).await
    }

    async fn workspace_by_slug(
        &self,
        account: AccountId,
        slug: &str,
    ) -> Result<Option<Workspace>, Error> {
        self.1.uncounted(self.0.workspace_by_slug(account, slug)).await
    }

    async fn workspaces_by_name(
        &self,
        account: AccountId,
        name: &str,
        limit: u32,
    ) -> Result<Vec<Workspace>, Error> {
        self.1.uncounted(self.0.workspaces_by_name(account, name, limit)).await
    }

    async fn list_workspaces(
        &self,
        account: AccountId,
        filter: &ListWorkspaces,
    ) -> Result<Page<Workspace>, Error> {
        self.1.uncounted(self.0.list_workspaces(account, filter)).await
    }

    async fn workspaces_after(
        &self,
        after: Option<WorkspaceId>,
        limit: u32,
    ) -> Result<Vec<Workspace>, Error> {
        self.1.uncounted(self.0.workspaces_after(after, limit)).await
    }

    async fn insert_fork(
        &self,
        snapshot: &Snapshot,
        workspaces: &[Workspace],
        admission: Admission<'_>,
    ) -> Result<Write<Vec<Workspace>>, Error> {
        self.1.counted(self.0.insert_fork(snapshot, workspaces, admission)).await
    }

    async fn admits_anybody(&self, account: AccountId) -> Result<bool, Error> {
        self.1.uncounted(self.0.admits_anybody(account)).await
    }

    async fn neighbourhood(&self, account: AccountId) -> Result<Neighbourhood, Error> {
        self.1.uncounted(self.0.neighbourhood(account)).await
    }

    async fn workspaces_at(&self, address: PrivateAddress) -> Result<Vec<WorkspaceId>, Error> {
        self.1.uncounted(self.0.workspaces_at(address)).await
    }

    async fn workspaces_needing(
        &self,
        snapshot: SnapshotId,
        limit: u32,
    ) -> Result<Vec<Workspace>, Error> {
        self.1.uncounted(self.0.workspaces_needing(snapshot, limit)).await
    }

    async fn note_activity(
        &self,
        id: WorkspaceId,
        revision: u64,
        at: Timestamp,
        due_at: Option<Timestamp>,
    ) -> Result<Write<()>, Error> {
        self.1.counted(self.0.note_activity(id, revision, at, due_at)).await
    }

    async fn insert_snapshot(
        &self,
        snapshot: &Snapshot,
        plan: Option<&Plan>,
    ) -> Result<Write<Snapshot>, Error> {
        self.1.counted(self.0.insert_snapshot(snapshot, plan)).await
    }

    async fn update_snapshot(&self, snapshot: &Snapshot) -> Result<Write<Snapshot>, Error> {
        self.1.counted(self.0.update_snapshot(snapshot)).await
    }

    async fn begin_snapshot_deletion(
        &self,
        snapshot: &Snapshot,
    ) -> Result<SnapshotDeletion, Error> {
        self.1.counted(self.0.begin_snapshot_deletion(snapshot)).await
    }

    async fn remove_snapshot(&self, id: SnapshotId, revision: u64) -> Result<Write<()>, Error> {
        self.1.counted(self.0.remove_snapshot(id, revision)).await
    }

    async fn snapshot(&self, id: SnapshotId) -> Result<Option<Snapshot>, Error> {
        self.1.uncounted(self.0.snapshot(id)).await
    }

    async fn list_snapshots(
        &self,
        account: AccountId,
        filter: &ListSnapshots,
    ) -> Result<Page<Snapshot>, Error> {
        self.1.uncounted(self.0.list_snapshots(account, filter)).await
    }

    async fn snapshots_after(
        &self,
        after: Option<SnapshotId>,
        limit: u32,
    ) -> Result<Vec<Snapshot>, Error> {
        self.1.uncounted(self.0.snapshots_after(after, limit)).await
    }

    async fn unneeded_fork_snapshots(&self, limit: u32) -> Result<Vec<SnapshotId>, Error> {
        self.1.uncounted(self.0.unneeded_fork_snapshots(limit)).await
    }

    async fn usage(&self, account: AccountId) -> Result<Usage, Error> {
        self.1.uncounted(self.0.usage(account)).await
    }

    async fn next_due(&self) -> Result<Option<Timestamp>, Error> {
        self.1.uncounted(self.0.next_due()).await
    }

    async fn due_workspaces(&self, now: Timestamp, limit: u32) -> Result<Vec<WorkspaceId>, Error> {
        self.1.uncounted(self.0.due_workspaces(now, limit)).await
    }
}

pub struct FusedNode(pub Arc<SimNode>, pub Arc<Fuse>);

#[async_trait]
impl NodeApi for FusedNode {
    fn id(&self) -> NodeId {
        self.0.id()
    }

    async fn ensure_running(&self, spec: VmSpec) -> Result<VmReport, NodeError> {
        self.1.counted(self.0.ensure_running(spec)).await
    }

    async fn ensure_stopped(
        &self,
        id: WorkspaceId,
        incarnation: Incarnation,
        mode: StopMode,
    ) -> Result<(), NodeError> {
        self.1.counted(self.0.ensure_stopped(id, incarnation, mode)).await
    }

    async fn ensure_paused(
        &self,
        id: WorkspaceId,
        incarnation: Incarnation,
    ) -> Result<VmReport, NodeError> {
        self.1.counted(self.0.ensure_paused(id, incarnation)).await
    }

    async fn ensure_resumed(
        &self,
        id: WorkspaceId,
        incarnation: Incarnation,
    ) -> Result<VmReport, NodeError> {
        self.1.counted(self.0.ensure_resumed(id, incarnation)).await
    }

    async fn ensure_suspended(
        &self,
        id: WorkspaceId,
        incarnation: Incarnation,
    ) -> Result<VmReport, NodeError> {
        self.1.counted(self.0.ensure_suspended(id, incarnation)).await
    }

    async fn take_snapshot(
        &self,
        id: WorkspaceId,
        snapshot: SnapshotId,
        contents: SnapshotContents,
    ) -> Result<SnapshotInfo, NodeError> {
        self.1.counted(self.0.take_snapshot(id, snapshot, contents)).await
    }

    async fn ensure_snapshot_deleted(&self, id: SnapshotId) -> Result<(), NodeError> {
        self.1.counted(self.0.ensure_snapshot_deleted(id)).await
    }

    async fn snapshots(&self) -> Vec<SnapshotInfo> {
        self.1.uncounted(self.0.snapshots()).await
    }

    async fn start_statistics(&self) -> StartStatistics {
        self.0.start_statistics().await
    }

    async fn ensure_volume(&self, id: VolumeId, size_bytes: u64) -> Result<(), NodeError> {
        self.1.counted(self.0.ensure_volume(id, size_bytes)).await
    }

    async fn ensure_checkpoint(
        &self,
        volume_id: VolumeId,
        checkpoint_id: CheckpointId,
    ) -> Result<(), NodeError> {
        self.1.counted(self.0.ensure_checkpoint(volume_id, checkpoint_id)).await
    }

    async fn ensure_checkpoint_deleted(
        &self,
        volume_id: VolumeId,
        checkpoint_id: CheckpointId,
    ) -> Result<(), NodeError> {
        self.1.counted(self.0.ensure_checkpoint_deleted(volume_id, checkpoint_id)).await
    }

    async fn ensure_volume_deleted(&self, id: VolumeId) -> Result<(), NodeError> {
        self.1.counted(self.0.ensure_volume_deleted(id)).await
    }

    async fn volumes(&self) -> Result<Vec<VolumeInfo>, NodeError> {
        self.1.uncounted(self.0.volumes()).await
    }

    async fn ensure_volume_attached(
        &self,
        id: WorkspaceId,
        incarnation: Incarnation,
        mount: VolumeMount,
    ) -> Result<(), NodeError> {
        self.1.counted(self.0.ensure_volume_attached(id, incarnation, mount)).await
    }

    async fn ensure_volume_detached(
        &self,
        id: WorkspaceId,
        incarnation: Incarnation,
        volume_id: VolumeId,
    ) -> Result<(), NodeError> {
        self.1.counted(self.0.ensure_volume_detached(id, incarnation, volume_id)).await
    }

    async fn ensure_deleted(&self, id: WorkspaceId) -> Result<(), NodeError> {
        self.1.counted(self.0.ensure_deleted(id)).await
    }

    async fn inspect(&self, id: WorkspaceId) -> Option<VmReport> {
        self.1.uncounted(self.0.inspect(id)).await
    }

    fn network(&self) -> Option<NodeNetwork> {
        self.0.network()
    }

    async fn set_network_policy(
        &self,
        id: WorkspaceId,
        incarnation: Incarnation,
        policy: NetworkPolicy,
    ) -> Result<(), NodeError> {
        self.1.counted(self.0.set_network_policy(id, incarnation, policy)).await
    }

    async fn set_injections(
        &self,
        id: WorkspaceId,
        incarnation: Incarnation,
        injections: Injections,
    ) -> Result<(), NodeError> {
        self.1.counted(self.0.set_injections(id, incarnation, injections)).await
    }

    fn injected_requests(&self) -> broadcast::Receiver<InjectedRequest> {
        self.0.injected_requests()
    }

    async fn check_proxy(&self, proxy: OutboundProxy) -> Result<(), NodeError> {
        self.1.uncounted(self.0.check_proxy(proxy)).await
    }

    async fn awaits_turn(&self, id: WorkspaceId) -> bool {
        self.1.uncounted(self.0.awaits_turn(id)).await
    }

    async fn list(&self) -> Vec<VmReport> {
        self.1.uncounted(self.0.list()).await
    }

    fn subscribe(&self) -> broadcast::Receiver<NodeEvent> {
        self.0.subscribe()
    }

    async fn guest(&self, id: WorkspaceId) -> Result<Arc<dyn GuestApi>, NodeError> {
        self.0.guest(id).await
    }

    async fn log(
        &self,
        id: WorkspaceId,
        source: LogSource,
        tail_bytes: u64,
    ) -> Result<ByteStream, NodeError> {
        self.0.log(id, source, tail_bytes).await
    }

    async fn images(&self) -> Vec<ImageInfo> {
        self.0.images().await
    }

    async fn image_named(&self, name: &str) -> Option<ImageInfo> {
        self.0.image_named(name).await
    }

    async fn capacity(&self) -> NodeCapacity {
        self.0.capacity().await
    }

    async fn doctor(&self) -> NodeDoctor {
        self.0.doctor().await
    }
}
