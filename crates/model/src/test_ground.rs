//! What the tests of this crate start from.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use crate::{
    AccountId, Desired, DiskMib, DisplayName, ImageRef, Incarnation, Lifetime, MemMib, ProjectId,
    Secret, Shape, Slug, State, Timestamp, VcpuCount, Workspace, WorkspaceId, WorkspaceSpec,
    spec::{CpuKind, ImageDigest, LogRetention},
};

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(crate) fn shape(vcpu_count: u32, memory_mib: u32, disk_mib: u32) -> Shape {
    Shape {
        vcpu_count: VcpuCount(vcpu_count),
        memory_mib: MemMib(memory_mib),
        disk_mib: DiskMib(disk_mib),
        cpu_kind: CpuKind::Shared,
    }
}

pub(crate) fn workspace() -> Workspace {
    Workspace {
        id: WorkspaceId::from_u128(1),
        account_id: AccountId::from_u128(2),
        project_id: ProjectId::from_u128(3),
        namespace: None,
        name: DisplayName::parse("one").unwrap(),
        slug: Slug::parse("one-abc").unwrap(),
        spec: WorkspaceSpec {
            origin: crate::Origin::Image,
            image: ImageRef("base".to_owned()),
            image_digest: ImageDigest("sha256:00".to_owned()),
            shape: shape(1, 512, 1024),
            env: Vec::new(),
            lifetime: Lifetime::Permanent,
            expiry: None,
            keep_active: false,
            idle: None,
            restart: crate::RestartPolicy::default(),
            remove_on_exit: false,
            snapshot_on_terminate: None,
            auto_resume: false,
            log_retention: LogRetention::AcrossStarts,
            workloads: crate::Workloads::default(),
            vaults: Vec::new(),
            made_from: crate::MadeFrom::default(),
            network: crate::NetworkWish::default(),
            metadata: BTreeMap::new(),
        },
        desired: Desired::Stopped,
        state: State::Provisioned,
        incarnation: Incarnation(0),
        replace_through: Incarnation(0),
        failed_starts: 0,
        start_began_at: None,
        node_id: None,
        private_address: None,
        expires_at: None,
        last_active_at: None,
        lifecycle: crate::Lifecycle::default(),
        preview_token: Secret::new("preview-secret"),
        created_at: at(0),
        updated_at: at(0),
        revision: 1,
    }
}
