use std::{collections::BTreeMap, fmt::Write as _};

use skerry_model::{
    AccountId, DiskMib, DisplayName, FailureCode, ImageRef, Incarnation, MemMib, ProjectId, Secret,
    Shape, Slug, VcpuCount, WorkspaceId, WorkspaceSpec,
    spec::{CpuKind, ImageDigest},
};

use super::*;

fn workspace(state: State, desired: Desired, incarnation: u64, failed_starts: u32) -> Workspace {
    let at = Timestamp::UNIX_EPOCH;
    Workspace {
        id: WorkspaceId::from_u128(7),
        account_id: AccountId::from_u128(1),
        project_id: ProjectId::from_u128(2),
        namespace: None,
        name: DisplayName::parse("a").expect("a name"),
        slug: Slug::parse("abc").expect("a slug"),
        spec: WorkspaceSpec {
            origin: skerry_model::Origin::Image,
            image: ImageRef("base".to_owned()),
            image_digest: ImageDigest("sha256:0".to_owned()),
            shape: Shape {
                vcpu_count: VcpuCount(1),
                memory_mib: MemMib(512),
                disk_mib: DiskMib(512),
                cpu_kind: CpuKind::Shared,
            },
            env: Vec::new(),
            lifetime: Lifetime::Temporary,
            expiry: None,
            keep_active: false,
            idle: None,
            restart: skerry_model::RestartPolicy::default(),
            remove_on_exit: false,
            snapshot_on_terminate: None,
            auto_resume: false,
            log_retention: LogRetention::AcrossStarts,
            workloads: skerry_model::Workloads::default(),
            vaults: Vec::new(),
            made_from: skerry_model::MadeFrom::default(),
            network: skerry_model::NetworkWish::default(),
            metadata: BTreeMap::new(),
        },
        desired,
        state,
        incarnation: Incarnation(incarnation),
        replace_through: Incarnation(0),
        failed_starts,
        start_began_at: None,
        node_id: None,
        private_address: None,
        expires_at: None,
        last_active_at: None,
        lifecycle: skerry_model::Lifecycle::default(),
        preview_token: Secret::new("t"),
        created_at: at,
        updated_at: at,
        revision: 1,
    }
}

/// What the client does with each object while it waits for a workspace to be ready.
fn client_says(object: &WorkspaceObject) -> &'static str {
    if object.provisioning.phase == "deleting" {
        "cancelled"
    } else if object.provisioning.state == "failed" {
        "failed"
    } else if object.ready {
        "done"
    } else if object.provisioning.state == "ready" {
        "stopped"
    } else {
        "waits"
    }
}

#[test]
fn every_state_under_every_wish_has_a_status_and_a_provisioning_the_client_understands() {
    let at = Timestamp::UNIX_EPOCH;
    let failed = || State::Failed(Failure::new(FailureCode::BootTimeout, "it did not answer", at));
    let cases = [
        ("never started", State::Provisioned, 0, 0),
        ("first start", State::Starting, 1, 0),
        ("second try", State::Starting, 2, 1),
        ("later start", State::Starting, 2, 0),
        ("running", State::Running { since: at }, 1, 0),
        ("paused", State::Paused { since: at }, 1, 0),
        ("suspending", State::Suspending, 1, 0),
        ("suspended", State::Suspended, 1, 0),
        ("stopping", State::Stopping, 1, 0),
        ("stopped", State::Stopped, 1, 0),
        ("first start failed", failed(), 1, 1),
        ("later start failed", failed(), 3, 1),
        ("crashed", failed(), 1, 0),
        ("deleting", State::Deleting, 1, 0),
    ];
    let mut table = String::new();
    for (case, state, incarnation, failed_starts) in cases {
        for desired in [Desired::Running, Desired::Stopped, Desired::Deleted] {
            let workspace = workspace(state.clone(), desired, incarnation, failed_starts);
            let object = workspace_object(&workspace, Vec::new(), None, at);
            let _ = writeln!(
                table,
                "{case:<19} {:<8} {:<11} provisioning={:<8} phase={:<9} stop_requested={:<5} client: {}",
                format!("{desired:?}"),
                object.status,
                object.provisioning.state,
                object.provisioning.phase,
                object.info.user_requested_stop,
                client_says(&object),
            );
        }
    }
    insta::assert_snapshot!(table);
}
