use std::fmt::Write as _;

use serde_json::json;
use skerry_model::{
    AccountId, DiskMib, DisplayName, ExpiryAction, FailureCode, ImageRef, Lifetime, MemMib,
    ProjectId, Secret, Shape, Slug, VcpuCount, WorkspaceId, WorkspaceSpec,
    spec::{CpuKind, ImageDigest, LogRetention},
};

use super::*;

pub(in super::super) fn workspace(state: State, desired: Desired) -> Workspace {
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
                vcpu_count: VcpuCount(2),
                memory_mib: MemMib(512),
                disk_mib: DiskMib(1024),
                cpu_kind: CpuKind::Shared,
            },
            env: vec![EnvVar { key: "A".to_owned(), value: "1".to_owned() }],
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
        incarnation: Incarnation(1),
        replace_through: Incarnation(0),
        failed_starts: 0,
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

#[test]
fn every_state_under_every_wish_has_a_word() {
    let at = Timestamp::UNIX_EPOCH;
    let states = [
        State::Provisioned,
        State::Starting,
        State::Running { since: at },
        State::Paused { since: at },
        State::Suspending,
        State::Suspended,
        State::Stopping,
        State::Stopped,
        State::Failed(Failure::new(FailureCode::BootTimeout, "it did not answer", at)),
        State::Deleting,
    ];
    let mut table = String::new();
    for state in states {
        for desired in [
            Desired::Running,
            Desired::Paused,
            Desired::Suspended,
            Desired::Stopped,
            Desired::Deleted,
        ] {
            let workspace = workspace(state.clone(), desired);
            let vm_id = vm_id(&workspace);
            let start = vm_id.split('_').nth(2).unwrap_or("1");
            let session = session_status(&workspace, at);
            let _ = writeln!(
                table,
                "{:<12} {:<9} {:<11} start={} live={:<5} env={:<10} assigned={:<5} alive={:<5} vm_status={}",
                state.name(),
                format!("{desired:?}"),
                status(&workspace),
                start,
                is_live(&workspace),
                env_status(&workspace),
                session.vm_assigned,
                session.vm_alive,
                session.vm_status.unwrap_or("-"),
            );
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn what_goes_on_from_saved_memory_is_resuming_as_another_vm() {
    let mut suspended = workspace(State::Suspended, Desired::Suspended);
    suspended.lifecycle.start_from = StartFrom::SavedMemory;
    let before = vm_id(&suspended);
    assert_eq!((status(&suspended), is_resting(&suspended)), ("suspended", true));
    suspended.desired = Desired::Running;
    let asked = vm_id(&suspended);
    assert_eq!((status(&suspended), is_resting(&suspended)), ("resuming", false));
    assert_eq!(asked, format!("{before}_2"));
    suspended.state = State::Starting;
    suspended.incarnation = Incarnation(2);
    assert_eq!((status(&suspended), vm_id(&suspended)), ("resuming", asked));
}

#[test]
fn the_first_vm_has_one_id_from_the_record_on() {
    let mut new = workspace(State::Provisioned, Desired::Running);
    new.incarnation = Incarnation(0);
    let first = vm_id(&new);
    assert_eq!(first, ids::instavm_vm_id(new.id));
    new.state = State::Starting;
    new.incarnation = Incarnation(1);
    assert_eq!(vm_id(&new), first);
    new.state = State::Provisioned;
    new.desired = Desired::Stopped;
    new.incarnation = Incarnation(0);
    assert_eq!(vm_id(&new), first);
}

#[test]
fn a_silent_request_gets_two_cpus_and_half_a_gibibyte_for_good() {
    let fields = Fields::new(serde_json::Map::new());
    let VmRequest::New(request) = vm_request(fields, Wait::No).expect("accepted") else {
        panic!("no session was named")
    };
    let mut expected = CreateWorkspace::new(StartPolicy::Now(Wait::No));
    expected.vcpu_count = Some(2);
    expected.memory_mib = Some(512);
    assert_eq!(*request, expected);
}

#[test]
fn a_lifetime_ends_in_deletion() {
    let fields = json!({ "vm_lifetime_seconds": 20 });
    let fields = Fields::new(fields.as_object().expect("an object").clone());
    let VmRequest::New(request) = vm_request(fields, Wait::No).expect("accepted") else {
        panic!("no session was named")
    };
    assert_eq!(request.lifetime, Lifetime::Temporary);
    let deletion = Expiry { after_seconds: 20, action: ExpiryAction::Delete };
    assert_eq!(request.expiry, Some(deletion));
}

#[test]
fn where_ssh_is_spoken_is_said_when_clients_find_it_there() {
    let workspace = workspace(State::Stopped, Desired::Stopped);
    let shown = |port| {
        let (host, host_key) = ("vms.example.org".to_owned(), String::new());
        vm_record(&workspace, Some(&crate::SshEndpoint { host, port, host_key })).ssh_host
    };
    assert_eq!((shown(22).as_deref(), shown(2222)), (Some("vms.example.org"), None));
    assert_eq!(vm_record(&workspace, None).ssh_host, None);
}
