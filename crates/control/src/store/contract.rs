//! What every implementation of the store promises. The suite is written against [`Store`] alone;
//! an implementation runs it with `store_contract!(a function that opens an empty store)`.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, sync::Arc};

use skerry_model::{
    AccountId, ApiKeyId, Demand, Desired, DisplayName, ErrorKind, Event, Expiry, ExpiryAction,
    ImageRef, Incarnation, Lifetime, NodeId, Plan, Pool, ProjectId, Secret, Slug, State, Timestamp,
    Workspace, WorkspaceId, WorkspaceSpec,
    limits::{RequestedShape, check_shape},
    spec::{CpuKind, ImageDigest, LogRetention},
};

use super::{Account, Admission, KeyRemoval, SecretHash, Store, StoredKey, Write};
use crate::{ApiKey, ListWorkspaces, Project};

/// A named set of tests, one for each promise.
macro_rules! store_contract {
    ($open:path) => {
        store_contract! { $open;
            an_account_is_made_once_with_its_default_project
            a_configured_key_replaces_the_one_before
            a_revoked_key_opens_nothing_from_then_on
            the_last_key_of_an_account_stays
            a_use_is_recorded_at_most_once_a_minute
            a_project_name_is_unique_within_its_account
            a_record_comes_back_as_it_was_written
            a_write_with_a_stale_revision_changes_nothing
            a_slug_is_unique_in_the_whole_installation
            a_name_need_not_be_unique
            lists_are_newest_first_filtered_and_counted
            a_walk_over_everything_meets_each_record_once
            use_is_summed_by_account
            fifty_creates_at_once_never_pass_a_limit
            a_start_is_admitted_without_counting_itself
            ends_of_time_to_live_come_in_order
            accounts_do_not_see_each_others_records
        }
    };
    ($open:path; $($name:ident)*) => {$(
        #[tokio::test]
        async fn $name() {
            let ground = $open().await;
            let bound = std::time::Duration::from_secs(60);
            tokio::time::timeout(bound, crate::store::contract::$name(&ground.0)).await.unwrap();
        }
    )*};
}
pub(super) use store_contract;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn plan() -> Plan {
    let pool = Pool { vcpu_count: 1000, memory_mib: 1_000_000, disk_mib: 1_000_000 };
    Plan::self_hosted(1000, pool, pool)
}

struct Owner {
    account: Account,
    project: Project,
}

async fn owner(store: &Store, number: u128) -> Owner {
    let account = Account {
        id: AccountId::from_u128(number),
        handle: format!("owner-{number}"),
        created_at: at(1),
    };
    let project = Project {
        id: ProjectId::from_u128(number),
        name: "default".to_owned(),
        description: None,
        is_default: true,
        created_at: at(1),
        updated_at: at(1),
    };
    assert_eq!(store.ensure_account(&account, &project).await.unwrap(), (account.clone(), true));
    Owner { account, project }
}

fn key(owner: &Owner, number: u8) -> StoredKey {
    StoredKey {
        key: ApiKey {
            id: ApiKeyId::from_u128(u128::from(number)),
            name: format!("key {number}"),
            secret_tail: "abcd".to_owned(),
            created_at: at(2),
            last_used_at: None,
        },
        account_id: owner.account.id,
        hash: SecretHash([number; 32]),
    }
}

fn workspace(owner: &Owner, number: u128) -> Workspace {
    let asked = RequestedShape {
        vcpu_count: Some(2),
        memory_mib: Some(1024),
        disk_mib: Some(2048),
        cpu_kind: CpuKind::Performance,
    };
    Workspace {
        id: WorkspaceId::from_u128(number),
        account_id: owner.account.id,
        project_id: owner.project.id,
        namespace: None,
        name: DisplayName::parse("a name").unwrap(),
        slug: Slug::parse(&format!("slug-{number}")).unwrap(),
        spec: WorkspaceSpec {
            image: ImageRef("base".to_owned()),
            image_digest: ImageDigest(format!("sha256:{}", "0".repeat(64))),
            shape: check_shape(&plan(), &asked).unwrap(),
            env: Vec::new(),
            lifetime: Lifetime::Permanent,
            expiry: None,
            keep_active: false,
            log_retention: LogRetention::AcrossStarts,
            metadata: BTreeMap::new(),
        },
        desired: Desired::Stopped,
        state: State::Provisioned,
        incarnation: Incarnation(0),
        replace_through: Incarnation(0),
        failed_starts: 0,
        start_began_at: None,
        node_id: None,
        expires_at: None,
        preview_token: Secret::new("t".repeat(32)),
        created_at: at(3),
        updated_at: at(3),
        revision: 0,
    }
}

async fn insert(store: &Store, workspace: &Workspace) -> Workspace {
    let plan = plan();
    let admission = Admission { plan: &plan, demand: Demand::Create };
    let Write::Done(done) = store.insert_workspace(workspace, admission).await.unwrap() else {
        panic!("{workspace:?} was not inserted")
    };
    done
}

pub(super) async fn an_account_is_made_once_with_its_default_project(store: &Store) {
    let owner = owner(store, 1).await;
    let again = Account { id: AccountId::from_u128(99), ..owner.account.clone() };
    let other = Project { id: ProjectId::from_u128(99), ..owner.project.clone() };
    let found = store.ensure_account(&again, &other).await.unwrap();
    assert_eq!(found, (owner.account.clone(), false));
    assert_eq!(store.list_projects(owner.account.id).await.unwrap(), vec![owner.project]);
}

pub(super) async fn a_configured_key_replaces_the_one_before(store: &Store) {
    let owner = owner(store, 1).await;
    let (first, second, own) = (key(&owner, 1), key(&owner, 2), key(&owner, 3));
    store.insert_key(&own).await.unwrap();
    store.ensure_bootstrap_key(&first).await.unwrap();
    // The same secret again keeps its record.
    let same = StoredKey {
        key: ApiKey { id: ApiKeyId::from_u128(77), ..first.key.clone() },
        ..first.clone()
    };
    store.ensure_bootstrap_key(&same).await.unwrap();
    let found = store.key_owner(&first.hash).await.unwrap().unwrap();
    assert_eq!((found.key_id, found.account), (first.key.id, owner.account.clone()));
    store.ensure_bootstrap_key(&second).await.unwrap();
    assert_eq!(store.key_owner(&first.hash).await.unwrap(), None);
    assert!(store.key_owner(&second.hash).await.unwrap().is_some());
    assert!(store.key_owner(&own.hash).await.unwrap().is_some());
    // A key the tenant made and then configured is one key, not two.
    store.ensure_bootstrap_key(&own).await.unwrap();
    assert_eq!(store.list_keys(owner.account.id).await.unwrap(), vec![own.key]);
}

pub(super) async fn a_revoked_key_opens_nothing_from_then_on(store: &Store) {
    let owner = owner(store, 1).await;
    let other = self::owner(store, 2).await;
    let (first, second) = (key(&owner, 1), key(&owner, 2));
    store.insert_key(&first).await.unwrap();
    store.insert_key(&second).await.unwrap();
    let foreign = store.remove_key(other.account.id, first.key.id).await.unwrap();
    assert_eq!(foreign, KeyRemoval::NotFound);
    let removed = store.remove_key(owner.account.id, first.key.id).await.unwrap();
    assert_eq!(removed, KeyRemoval::Removed);
    assert_eq!(store.key_owner(&first.hash).await.unwrap(), None);
    assert_eq!(store.list_keys(owner.account.id).await.unwrap(), vec![second.key]);
}

pub(super) async fn the_last_key_of_an_account_stays(store: &Store) {
    let owner = owner(store, 1).await;
    let only = key(&owner, 1);
    store.insert_key(&only).await.unwrap();
    let kept = store.remove_key(owner.account.id, only.key.id).await.unwrap();
    assert_eq!(kept, KeyRemoval::LastOne);
    assert!(store.key_owner(&only.hash).await.unwrap().is_some());
}

pub(super) async fn a_use_is_recorded_at_most_once_a_minute(store: &Store) {
    let owner = owner(store, 1).await;
    let key = key(&owner, 1);
    store.insert_key(&key).await.unwrap();
    for (now, recorded) in [(100, 100), (159, 100), (160, 160)] {
        store.touch_key(key.key.id, at(now)).await.unwrap();
        let listed = store.list_keys(owner.account.id).await.unwrap();
        assert_eq!(listed[0].last_used_at, Some(at(recorded)));
    }
}

pub(super) async fn a_project_name_is_unique_within_its_account(store: &Store) {
    let owner = owner(store, 1).await;
    let other = self::owner(store, 2).await;
    let project = |number| Project {
        id: ProjectId::from_u128(number),
        name: "same".to_owned(),
        description: Some("words".to_owned()),
        is_default: false,
        created_at: at(5),
        updated_at: at(5),
    };
    let made = store.insert_project(owner.account.id, &project(10)).await.unwrap();
    assert_eq!(made, Write::Done(project(10)));
    let twice = store.insert_project(owner.account.id, &project(11)).await.unwrap();
    assert_eq!(twice, Write::Taken);
    let elsewhere = store.insert_project(other.account.id, &project(12)).await.unwrap();
    assert_eq!(elsewhere, Write::Done(project(12)));
    let listed = store.list_projects(owner.account.id).await.unwrap();
    assert_eq!(listed, vec![owner.project, project(10)]);
    assert_eq!(store.project(owner.account.id, project(12).id).await.unwrap(), None);
}

pub(super) async fn a_record_comes_back_as_it_was_written(store: &Store) {
    let owner = owner(store, 1).await;
    let mut record = insert(store, &workspace(&owner, 1)).await;
    assert_eq!(record.revision, 1);
    assert_eq!(store.workspace(record.id).await.unwrap(), Some(record.clone()));
    record.namespace = Some("team-a".to_owned());
    record.spec.lifetime = Lifetime::Temporary;
    record.spec.expiry = Some(Expiry { after_seconds: 60, action: ExpiryAction::Delete });
    record.spec.metadata.insert("k".to_owned(), serde_json::json!({"deep": [1, null]}));
    record.node_id = Some(NodeId::from_u128(8));
    record.desired = Desired::Running;
    record.replace_through = Incarnation(3);
    record.failed_starts = 2;
    record.apply(&Event::StartBegun(Incarnation(4)), at(10));
    let precise = Timestamp::from_nanosecond(1_767_225_600_123_456_789).unwrap();
    record.apply(&Event::GuestReady(Incarnation(4), precise), at(11));
    record.updated_at = precise;
    let Write::Done(written) = store.update_workspace(&record, None).await.unwrap() else {
        panic!("not written")
    };
    assert_eq!(written, Workspace { revision: 2, ..record });
    assert_eq!(store.workspace(written.id).await.unwrap(), Some(written.clone()));
    let by_slug = store.workspace_by_slug(owner.account.id, written.slug.as_str()).await.unwrap();
    assert_eq!(by_slug, Some(written.clone()));
    assert_eq!(store.remove_workspace(written.id, 2).await.unwrap(), Write::Done(()));
    assert_eq!(store.workspace(written.id).await.unwrap(), None);
}

pub(super) async fn a_write_with_a_stale_revision_changes_nothing(store: &Store) {
    let owner = owner(store, 1).await;
    let read = insert(store, &workspace(&owner, 1)).await;
    let first = Workspace { desired: Desired::Running, ..read.clone() };
    let second = Workspace { desired: Desired::Deleted, ..read.clone() };
    assert!(matches!(store.update_workspace(&first, None).await.unwrap(), Write::Done(_)));
    assert_eq!(store.update_workspace(&second, None).await.unwrap(), Write::Stale);
    assert_eq!(store.remove_workspace(read.id, read.revision).await.unwrap(), Write::Stale);
    let now = store.workspace(read.id).await.unwrap().unwrap();
    assert_eq!(now, Workspace { revision: 2, ..first });
}

pub(super) async fn a_slug_is_unique_in_the_whole_installation(store: &Store) {
    let owner = owner(store, 1).await;
    let other = self::owner(store, 2).await;
    let first = insert(store, &workspace(&owner, 1)).await;
    let second = insert(store, &workspace(&other, 2)).await;
    let plan = plan();
    let admission = Admission { plan: &plan, demand: Demand::Create };
    let clash = Workspace { slug: first.slug.clone(), ..workspace(&other, 3) };
    assert_eq!(store.insert_workspace(&clash, admission).await.unwrap(), Write::Taken);
    assert_eq!(store.workspace(clash.id).await.unwrap(), None);
    let renamed = Workspace { slug: first.slug, ..second };
    assert_eq!(store.update_workspace(&renamed, None).await.unwrap(), Write::Taken);
}

pub(super) async fn a_name_need_not_be_unique(store: &Store) {
    let owner = owner(store, 1).await;
    for number in 1..=3 {
        insert(store, &workspace(&owner, number)).await;
    }
    let named = store.workspaces_by_name(owner.account.id, "a name", 2).await.unwrap();
    assert_eq!(named.iter().map(|w| w.id.as_u128()).collect::<Vec<_>>(), vec![3, 2]);
}

pub(super) async fn lists_are_newest_first_filtered_and_counted(store: &Store) {
    let owner = owner(store, 1).await;
    let project = Project {
        id: ProjectId::from_u128(50),
        name: "other".to_owned(),
        is_default: false,
        ..owner.project.clone()
    };
    store.insert_project(owner.account.id, &project).await.unwrap();
    for number in 1..=6 {
        let mut record = workspace(&owner, number);
        if number % 2 == 0 {
            record.project_id = project.id;
        }
        if number % 3 == 0 {
            record.namespace = Some("ns".to_owned());
            record.spec.lifetime = Lifetime::Temporary;
        }
        let mut record = insert(store, &record).await;
        if number > 4 {
            record.apply(&Event::StartBegun(Incarnation(1)), at(9));
            store.update_workspace(&record, None).await.unwrap();
        }
    }
    let all = ListWorkspaces::default();
    let cases = [
        (all.clone(), vec![6, 5, 4, 3, 2, 1], 6),
        (ListWorkspaces { offset: 1, limit: Some(2), ..all.clone() }, vec![5, 4], 6),
        (ListWorkspaces { offset: 5, ..all.clone() }, vec![1], 6),
        (ListWorkspaces { limit: Some(0), ..all.clone() }, vec![], 6),
        (ListWorkspaces { project_id: Some(project.id), ..all.clone() }, vec![6, 4, 2], 3),
        (ListWorkspaces { namespace: Some("ns".to_owned()), ..all.clone() }, vec![6, 3], 2),
        (
            ListWorkspaces { lifetime: Some(Lifetime::Permanent), ..all.clone() },
            vec![5, 4, 2, 1],
            4,
        ),
        (ListWorkspaces { states: vec!["starting", "running"], ..all.clone() }, vec![6, 5], 2),
        (ListWorkspaces { states: vec!["failed"], ..all }, vec![], 0),
    ];
    for (filter, ids, total) in cases {
        let page = store.list_workspaces(owner.account.id, &filter).await.unwrap();
        let found: Vec<u128> = page.items.iter().map(|w| w.id.as_u128()).collect();
        assert_eq!((found, page.total), (ids, total), "{filter:?}");
    }
}

pub(super) async fn a_walk_over_everything_meets_each_record_once(store: &Store) {
    let owner = owner(store, 1).await;
    for number in [5, 1, 4, 2, 3] {
        insert(store, &workspace(&owner, number)).await;
    }
    let mut met = Vec::new();
    let mut after = None;
    loop {
        let batch = store.workspaces_after(after, 2).await.unwrap();
        let Some(last) = batch.last() else { break };
        after = Some(last.id);
        met.extend(batch.iter().map(|w| w.id.as_u128()));
    }
    assert_eq!(met, vec![1, 2, 3, 4, 5]);
}

pub(super) async fn use_is_summed_by_account(store: &Store) {
    let owner = owner(store, 1).await;
    let other = self::owner(store, 2).await;
    let mut running = insert(store, &workspace(&owner, 1)).await;
    insert(store, &workspace(&owner, 2)).await;
    insert(store, &workspace(&other, 3)).await;
    running.desired = Desired::Running;
    store.update_workspace(&running, None).await.unwrap();
    let usage = store.usage(owner.account.id).await.unwrap();
    let one = Pool { vcpu_count: 2, memory_mib: 1024, disk_mib: 2048 };
    let two = Pool { vcpu_count: 4, memory_mib: 2048, disk_mib: 4096 };
    assert_eq!((usage.workspaces, usage.owned, usage.running), (2, two, one));
}

pub(super) async fn fifty_creates_at_once_never_pass_a_limit(store: &Store) {
    let owner = Arc::new(owner(store, 1).await);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 1..=50 {
        let (store, owner) = (store.clone(), Arc::clone(&owner));
        tasks.spawn(async move {
            let mut plan = plan();
            plan.max_workspaces = 7;
            let admission = Admission { plan: &plan, demand: Demand::Create };
            store.insert_workspace(&workspace(&owner, number), admission).await
        });
    }
    let mut made = 0;
    while let Some(outcome) = tasks.join_next().await {
        match outcome.unwrap() {
            Ok(Write::Done(_)) => made += 1,
            Ok(other) => panic!("{other:?}"),
            Err(error) => assert!(matches!(error.kind(), ErrorKind::Quota { .. }), "{error}"),
        }
    }
    assert_eq!(made, 7);
    assert_eq!(store.usage(owner.account.id).await.unwrap().workspaces, 7);
}

pub(super) async fn a_start_is_admitted_without_counting_itself(store: &Store) {
    let owner = owner(store, 1).await;
    let mut first = insert(store, &workspace(&owner, 1)).await;
    let mut second = insert(store, &workspace(&owner, 2)).await;
    let mut plan = plan();
    plan.running_pool.vcpu_count = 3;
    let admission = Some(Admission { plan: &plan, demand: Demand::Start });
    first.desired = Desired::Running;
    let Write::Done(first) = store.update_workspace(&first, admission).await.unwrap() else {
        panic!("not started")
    };
    // What runs already does not count against itself.
    assert!(matches!(store.update_workspace(&first, admission).await.unwrap(), Write::Done(_)));
    second.desired = Desired::Running;
    let refused = store.update_workspace(&second, admission).await.unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::Quota { .. }), "{refused}");
    let unchanged = store.workspace(second.id).await.unwrap().unwrap();
    assert_eq!(unchanged.desired, Desired::Stopped);
}

pub(super) async fn ends_of_time_to_live_come_in_order(store: &Store) {
    let owner = owner(store, 1).await;
    assert_eq!(store.next_expiry().await.unwrap(), None);
    for (number, end) in [(1, Some(300)), (2, Some(100)), (3, None), (4, Some(200))] {
        let record = Workspace { expires_at: end.map(at), ..workspace(&owner, number) };
        insert(store, &record).await;
    }
    assert_eq!(store.next_expiry().await.unwrap(), Some(at(100)));
    assert_eq!(store.expired_workspaces(at(99), 10).await.unwrap(), vec![]);
    let due = store.expired_workspaces(at(200), 10).await.unwrap();
    assert_eq!(due.iter().map(|id| id.as_u128()).collect::<Vec<_>>(), vec![2, 4]);
    assert_eq!(store.expired_workspaces(at(999), 1).await.unwrap().len(), 1);
}

pub(super) async fn accounts_do_not_see_each_others_records(store: &Store) {
    let owner = owner(store, 1).await;
    let other = self::owner(store, 2).await;
    let record = insert(store, &workspace(&owner, 1)).await;
    let stranger = other.account.id;
    let slug = record.slug.as_str();
    assert_eq!(store.workspace_by_slug(stranger, slug).await.unwrap(), None);
    assert_eq!(store.workspaces_by_name(stranger, "a name", 9).await.unwrap(), vec![]);
    let page = store.list_workspaces(stranger, &ListWorkspaces::default()).await.unwrap();
    assert_eq!((page.items, page.total), (vec![], 0));
    assert_eq!(store.project(stranger, owner.project.id).await.unwrap(), None);
}
