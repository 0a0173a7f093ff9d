//! Records of workspaces, one at a time.

use skerry_model::{
    Demand, Desired, ErrorKind, Event, Expiry, ExpiryAction, Incarnation, Lifetime, NodeId, Pool,
    ProjectId, Slug, StartPath, Timestamp, Workspace,
};

use super::{at, insert, owner, plan, use_by_records, workspace};
use crate::{
    ListWorkspaces, Project,
    store::{Admission, Store, Write},
};

pub(crate) async fn a_record_comes_back_as_it_was_written(store: &Store) {
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
    record.lifecycle.restart_count = 4;
    record.lifecycle.restart_at = Some(at(90));
    record.spec.env[0].value = "another".to_owned();
    record.apply(&Event::StartBegun(Incarnation(4)), at(10));
    let precise = Timestamp::from_nanosecond(1_767_225_600_123_456_789).unwrap();
    record.apply(&Event::GuestReady(Incarnation(4), precise, Some(StartPath::Template)), at(11));
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

pub(crate) async fn a_write_with_a_stale_revision_changes_nothing(store: &Store) {
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

pub(crate) async fn a_slug_is_unique_in_the_whole_installation(store: &Store) {
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

pub(crate) async fn a_slug_that_was_given_up_is_free(store: &Store) {
    let owner = owner(store, 1).await;
    let first = insert(store, &workspace(&owner, 1)).await;
    let second = insert(store, &workspace(&owner, 2)).await;
    let renamed = Workspace { slug: Slug::parse("elsewhere").unwrap(), ..first.clone() };
    let Write::Done(renamed) = store.update_workspace(&renamed, None).await.unwrap() else {
        panic!("not renamed")
    };
    let heir = Workspace { slug: first.slug.clone(), ..second.clone() };
    assert!(matches!(store.update_workspace(&heir, None).await.unwrap(), Write::Done(_)));
    let by_slug = store.workspace_by_slug(owner.account.id, first.slug.as_str()).await.unwrap();
    assert_eq!(by_slug.map(|found| found.id), Some(second.id));
    let removed = store.remove_workspace(renamed.id, renamed.revision).await.unwrap();
    assert_eq!(removed, Write::Done(()));
    insert(store, &Workspace { slug: renamed.slug, ..workspace(&owner, 3) }).await;
}

pub(crate) async fn a_name_need_not_be_unique(store: &Store) {
    let owner = owner(store, 1).await;
    for number in 1..=3 {
        insert(store, &workspace(&owner, number)).await;
    }
    let named = store.workspaces_by_name(owner.account.id, "a name", 2).await.unwrap();
    assert_eq!(named.iter().map(|w| w.id.as_u128()).collect::<Vec<_>>(), vec![3, 2]);
}

pub(crate) async fn lists_are_newest_first_filtered_and_counted(store: &Store) {
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

pub(crate) async fn a_changed_identity_shows_in_lists(store: &Store) {
    let owner = owner(store, 1).await;
    insert(store, &workspace(&owner, 1)).await;
    let record = insert(store, &workspace(&owner, 2)).await;
    let namespace = Some("team-b".to_owned());
    let name = skerry_model::DisplayName::parse("renamed").unwrap();
    let moved = Workspace { namespace: namespace.clone(), name, ..record };
    assert!(matches!(store.update_workspace(&moved, None).await.unwrap(), Write::Done(_)));
    let filter = ListWorkspaces { namespace, ..ListWorkspaces::default() };
    let page = store.list_workspaces(owner.account.id, &filter).await.unwrap();
    assert_eq!((page.total, page.items[0].id), (1, moved.id));
    let named = store.workspaces_by_name(owner.account.id, "renamed", 9).await.unwrap();
    assert_eq!(named.iter().map(|w| w.id).collect::<Vec<_>>(), vec![moved.id]);
    assert_eq!(store.workspaces_by_name(owner.account.id, "a name", 9).await.unwrap().len(), 1);
}

pub(crate) async fn a_walk_over_everything_meets_each_record_once(store: &Store) {
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

pub(crate) async fn use_is_summed_by_account(store: &Store) {
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
    assert_eq!(usage, use_by_records(store, owner.account.id).await);
}

pub(crate) async fn a_start_is_admitted_without_counting_itself(store: &Store) {
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

pub(crate) async fn accounts_do_not_see_each_others_records(store: &Store) {
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

/// Whoever was answered sees what it wrote, whichever way it asks.
pub(crate) async fn what_was_written_is_read_from_then_on(store: &Store) {
    let owner = owner(store, 1).await;
    let mut record = insert(store, &workspace(&owner, 1)).await;
    for second in 10..40 {
        record.updated_at = at(second);
        if second % 10 == 0 {
            // A record of any size.
            let label = "x".repeat(usize::try_from(second).unwrap() * 1000);
            record.spec.metadata.insert("label".to_owned(), label.into());
        }
        let (stale, written) = tokio::join!(
            store.remove_workspace(record.id, record.revision + 7),
            store.update_workspace(&record, None)
        );
        assert_eq!(stale.unwrap(), Write::Stale);
        let Write::Done(written) = written.unwrap() else { panic!("not written") };
        record = written;
        assert_eq!(store.workspace(record.id).await.unwrap(), Some(record.clone()));
        let by_slug = store.workspace_by_slug(owner.account.id, "slug-1").await.unwrap();
        assert_eq!(by_slug, Some(record.clone()));
        let page = store.list_workspaces(owner.account.id, &ListWorkspaces::default()).await;
        assert_eq!(page.unwrap().items, vec![record.clone()]);
    }
    assert!(matches!(
        store.remove_workspace(record.id, record.revision).await,
        Ok(Write::Done(()))
    ));
    assert_eq!(store.workspace(record.id).await.unwrap(), None);
}
