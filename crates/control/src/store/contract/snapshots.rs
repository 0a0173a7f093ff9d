//! Snapshots and forks.

use std::{collections::BTreeMap, time::Duration};

use skerry_model::{
    Demand, DisplayName, ErrorKind, Failure, FailureCode, Pool, Snapshot, SnapshotContents,
    SnapshotEvent, SnapshotFacts, SnapshotId, SnapshotPurpose, SnapshotState, StartFrom, Workspace,
    WorkspaceId,
};

use super::{Owner, at, insert, owner, plan, use_by_records, workspace};
use crate::{
    ListSnapshots, ListWorkspaces,
    store::{Admission, SnapshotDeletion, Store, Write},
};

fn snapshot(owner: &Owner, number: u128) -> Snapshot {
    let source = workspace(owner, number);
    Snapshot {
        id: SnapshotId::from_u128(number),
        account_id: owner.account.id,
        workspace_id: source.id,
        name: DisplayName::parse("a snapshot").unwrap(),
        purpose: SnapshotPurpose::User,
        contents: SnapshotContents::DiskAndMemory,
        state: SnapshotState::Creating,
        image: source.spec.image,
        image_digest: source.spec.image_digest,
        shape: source.spec.shape,
        size_bytes: 0,
        blackout: None,
        taken_at: None,
        metadata: BTreeMap::new(),
        created_at: at(5),
        updated_at: at(5),
        revision: 0,
    }
}

/// The same, complete.
fn ready(snapshot: &Snapshot) -> Snapshot {
    let mut ready = snapshot.clone();
    let facts = SnapshotFacts {
        contents: SnapshotContents::Disk,
        shape: snapshot.shape,
        size_bytes: 1000,
        blackout: Duration::from_nanos(7_654_321),
        taken_at: at(6),
    };
    assert!(ready.apply(&SnapshotEvent::Taken(facts)));
    ready
}

async fn record(store: &Store, snapshot: &Snapshot) -> Snapshot {
    let Write::Done(done) = store.insert_snapshot(snapshot, None).await.unwrap() else {
        panic!("{snapshot:?} was not recorded")
    };
    assert_eq!(done, Snapshot { revision: 1, ..snapshot.clone() });
    done
}

/// A workspace whose next start begins from this snapshot.
fn needing(owner: &Owner, number: u128, snapshot: &Snapshot) -> Workspace {
    let mut workspace = workspace(owner, number);
    workspace.lifecycle.start_from = StartFrom::Snapshot { snapshot_id: snapshot.id };
    assert_eq!(workspace.needed_snapshot(), Some(snapshot.id));
    workspace
}

async fn check_use(store: &Store, owner: &Owner) {
    let kept = store.usage(owner.account.id).await.unwrap();
    assert_eq!(kept, use_by_records(store, owner.account.id).await);
}

pub(crate) async fn a_snapshot_comes_back_as_it_was_written(store: &Store) {
    let owner = owner(store, 1).await;
    let mut creating = snapshot(&owner, 1);
    creating.metadata.insert("k".to_owned(), serde_json::json!({"deep": [1, null]}));
    let creating = record(store, &creating).await;
    assert_eq!(store.snapshot(creating.id).await.unwrap(), Some(creating.clone()));
    assert_eq!(store.insert_snapshot(&creating, None).await.unwrap(), Write::Taken);
    let mut complete = ready(&creating);
    complete.name = DisplayName::parse("another name").unwrap();
    complete.updated_at = at(9);
    let Write::Done(written) = store.update_snapshot(&complete).await.unwrap() else {
        panic!("not written")
    };
    assert_eq!(written, Snapshot { revision: 2, ..complete });
    assert_eq!(store.snapshot(written.id).await.unwrap(), Some(written.clone()));
    check_use(store, &owner).await;
    let failure = Failure::new(FailureCode::SavedStateUnusable, "gone", at(10));
    let mut lost = written;
    assert!(lost.apply(&SnapshotEvent::Lost(failure)));
    let Write::Done(lost) = store.update_snapshot(&lost).await.unwrap() else {
        panic!("not written")
    };
    assert_eq!(store.snapshot(lost.id).await.unwrap(), Some(lost.clone()));
    check_use(store, &owner).await;
    assert_eq!(store.remove_snapshot(lost.id, lost.revision).await.unwrap(), Write::Done(()));
    assert_eq!(store.snapshot(lost.id).await.unwrap(), None);
    check_use(store, &owner).await;
}

pub(crate) async fn a_snapshot_is_changed_only_by_who_read_it_last(store: &Store) {
    let owner = owner(store, 1).await;
    let read = record(store, &snapshot(&owner, 1)).await;
    assert!(matches!(store.update_snapshot(&ready(&read)).await.unwrap(), Write::Done(_)));
    assert_eq!(store.update_snapshot(&read).await.unwrap(), Write::Stale);
    assert_eq!(store.remove_snapshot(read.id, read.revision).await.unwrap(), Write::Stale);
    let mut deleting = read.clone();
    assert!(deleting.apply(&SnapshotEvent::DeletionBegun));
    let stale = store.begin_snapshot_deletion(&deleting).await.unwrap();
    assert_eq!(stale, SnapshotDeletion::Stale);
    let now = store.snapshot(read.id).await.unwrap().unwrap();
    assert_eq!((now.state, now.revision), (SnapshotState::Ready, 2));
    let nobody = SnapshotId::from_u128(99);
    assert_eq!(store.remove_snapshot(nobody, 1).await.unwrap(), Write::Stale);
    assert_eq!(store.snapshot(nobody).await.unwrap(), None);
}

pub(crate) async fn snapshots_are_admitted_by_the_plan(store: &Store) {
    let owner = owner(store, 1).await;
    let mut plan = plan();
    plan.max_snapshots = 2;
    let fork = Snapshot { purpose: SnapshotPurpose::Fork, ..snapshot(&owner, 10) };
    record(store, &fork).await;
    for number in [1, 2] {
        let made = store.insert_snapshot(&snapshot(&owner, number), Some(&plan)).await.unwrap();
        assert!(matches!(made, Write::Done(_)));
    }
    let third = snapshot(&owner, 3);
    let refused = store.insert_snapshot(&third, Some(&plan)).await.unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::Quota { .. }), "{refused}");
    assert_eq!(store.snapshot(third.id).await.unwrap(), None);
    // What has to be kept is kept whatever the plan says.
    record(store, &Snapshot { purpose: SnapshotPurpose::Terminate, ..third }).await;
    check_use(store, &owner).await;
}

pub(crate) async fn lists_of_snapshots_are_filtered_and_counted(store: &Store) {
    let owner = owner(store, 1).await;
    let other = self::owner(store, 2).await;
    record(store, &snapshot(&other, 100)).await;
    for number in 1..=6 {
        let mut one = snapshot(&owner, number);
        one.workspace_id = WorkspaceId::from_u128(number % 2);
        if number > 4 {
            one.purpose = SnapshotPurpose::Fork;
        }
        if number % 3 == 0 {
            one.name = DisplayName::parse("third").unwrap();
        }
        let one = record(store, &one).await;
        if number < 3 {
            store.update_snapshot(&ready(&one)).await.unwrap();
        }
    }
    let all = ListSnapshots::default();
    let even = Some(WorkspaceId::from_u128(0));
    let cases = [
        (all.clone(), vec![6, 5, 4, 3, 2, 1], 6),
        (ListSnapshots { offset: 1, limit: Some(2), ..all.clone() }, vec![5, 4], 6),
        (ListSnapshots { workspace_id: even, ..all.clone() }, vec![6, 4, 2], 3),
        (ListSnapshots { name: Some("third".to_owned()), ..all.clone() }, vec![6, 3], 2),
        (
            ListSnapshots {
                purposes: vec![SnapshotPurpose::User, SnapshotPurpose::Terminate],
                ..all.clone()
            },
            vec![4, 3, 2, 1],
            4,
        ),
        (ListSnapshots { states: vec!["ready", "failed"], ..all }, vec![2, 1], 2),
    ];
    for (filter, ids, total) in cases {
        let page = store.list_snapshots(owner.account.id, &filter).await.unwrap();
        let found: Vec<u128> = page.items.iter().map(|one| one.id.as_u128()).collect();
        assert_eq!((found, page.total), (ids, total), "{filter:?}");
    }
}

pub(crate) async fn a_start_needs_a_ready_snapshot_of_its_own_account(store: &Store) {
    let owner = owner(store, 1).await;
    let other = self::owner(store, 2).await;
    let plan = plan();
    let admission = Admission { plan: &plan, demand: Demand::Create };
    let creating = record(store, &snapshot(&owner, 1)).await;
    let foreign = record(store, &snapshot(&other, 2)).await;
    store.update_snapshot(&ready(&foreign)).await.unwrap();
    let nobodys = snapshot(&owner, 3);
    let plain = insert(store, &workspace(&owner, 9)).await;
    for unusable in [&creating, &foreign, &nobodys] {
        let new = needing(&owner, 4, unusable);
        let refused = store.insert_workspace(&new, admission).await.unwrap_err();
        assert_eq!(*refused.kind(), ErrorKind::NotFound { what: "snapshot" });
        let mut restored = plain.clone();
        restored.lifecycle.start_from = new.lifecycle.start_from;
        let refused = store.update_workspace(&restored, None).await.unwrap_err();
        assert_eq!(*refused.kind(), ErrorKind::NotFound { what: "snapshot" });
    }
    assert_eq!(store.workspace(plain.id).await.unwrap(), Some(plain));
    store.update_snapshot(&ready(&creating)).await.unwrap();
    let made = insert(store, &needing(&owner, 4, &creating)).await;
    let found = store.workspaces_needing(creating.id, 10).await.unwrap();
    assert_eq!(found, vec![made.clone()]);
    // What it needs already it may go on needing, whatever became of it meanwhile.
    let ready = store.snapshot(creating.id).await.unwrap().unwrap();
    let mut lost = ready.clone();
    let failure = Failure::new(FailureCode::SavedStateUnusable, "gone", at(10));
    assert!(lost.apply(&SnapshotEvent::Lost(failure)));
    store.update_snapshot(&lost).await.unwrap();
    assert!(matches!(store.update_workspace(&made, None).await.unwrap(), Write::Done(_)));
}

pub(crate) async fn a_snapshot_that_is_needed_is_not_deleted(store: &Store) {
    let owner = owner(store, 1).await;
    let made = record(store, &ready(&snapshot(&owner, 1))).await;
    let user = insert(store, &needing(&owner, 2, &made)).await;
    let mut deleting = made.clone();
    assert!(deleting.apply(&SnapshotEvent::DeletionBegun));
    let refused = store.begin_snapshot_deletion(&deleting).await.unwrap();
    assert_eq!(refused, SnapshotDeletion::NeededBy(Box::new(user.clone())));
    assert_eq!(store.snapshot(made.id).await.unwrap(), Some(made.clone()));
    let mut started = user;
    started.lifecycle.start_from = StartFrom::Disk;
    store.update_workspace(&started, None).await.unwrap();
    let begun = store.begin_snapshot_deletion(&deleting).await.unwrap();
    let expected = Snapshot { revision: 2, ..deleting };
    assert_eq!(begun, SnapshotDeletion::Begun(Box::new(expected.clone())));
    assert_eq!(store.snapshot(made.id).await.unwrap(), Some(expected));
    // From now on nobody can come to need it.
    let plan = plan();
    let admission = Admission { plan: &plan, demand: Demand::Create };
    let late = store.insert_workspace(&needing(&owner, 3, &made), admission).await.unwrap_err();
    assert_eq!(*late.kind(), ErrorKind::NotFound { what: "snapshot" });
}

pub(crate) async fn a_fork_is_recorded_wholly_or_not_at_all(store: &Store) {
    let owner = owner(store, 1).await;
    let plan = plan();
    let mut narrow = plan.clone();
    narrow.owned_pool = Pool { vcpu_count: 5, ..narrow.owned_pool };
    let fork = Snapshot { purpose: SnapshotPurpose::Fork, ..snapshot(&owner, 1) };
    let copies: Vec<Workspace> = (1..=3).map(|number| needing(&owner, number, &fork)).collect();
    let admission = |plan| Admission { plan, demand: Demand::Create };
    // Two of them would be admitted: each has two CPUs.
    let refused = store.insert_fork(&fork, &copies, admission(&narrow)).await.unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::Quota { .. }), "{refused}");
    let mut clashing = copies.clone();
    clashing[2].slug = clashing[0].slug.clone();
    let taken = store.insert_fork(&fork, &clashing, admission(&plan)).await.unwrap();
    assert_eq!(taken, Write::Taken);
    assert_eq!(store.snapshot(fork.id).await.unwrap(), None);
    let all = ListWorkspaces::default();
    assert_eq!(store.list_workspaces(owner.account.id, &all).await.unwrap().total, 0);
    check_use(store, &owner).await;

    let made = store.insert_fork(&fork, &copies, admission(&plan)).await.unwrap();
    let expected: Vec<Workspace> =
        copies.into_iter().map(|copy| Workspace { revision: 1, ..copy }).collect();
    assert_eq!(made, Write::Done(expected.clone()));
    assert_eq!(store.workspaces_needing(fork.id, 10).await.unwrap(), expected);
    assert_eq!(store.workspaces_needing(fork.id, 2).await.unwrap().len(), 2);
    check_use(store, &owner).await;
    let again = store.insert_fork(&fork, &[], admission(&plan)).await.unwrap();
    assert_eq!(again, Write::Taken);
}

pub(crate) async fn snapshots_of_forks_go_when_nobody_needs_them(store: &Store) {
    let owner = owner(store, 1).await;
    record(store, &ready(&snapshot(&owner, 9))).await;
    let fork = Snapshot { purpose: SnapshotPurpose::Fork, ..snapshot(&owner, 1) };
    let plan = plan();
    let admission = Admission { plan: &plan, demand: Demand::Create };
    let copies = [needing(&owner, 1, &fork)];
    store.insert_fork(&fork, &copies, admission).await.unwrap();
    let creating = store.snapshot(fork.id).await.unwrap().unwrap();
    store.update_snapshot(&ready(&creating)).await.unwrap();
    assert_eq!(store.unneeded_fork_snapshots(10).await.unwrap(), vec![]);
    store.remove_workspace(copies[0].id, 1).await.unwrap();
    assert_eq!(store.unneeded_fork_snapshots(10).await.unwrap(), vec![fork.id]);
    // One that is being taken is not yet to be judged.
    record(store, &Snapshot { purpose: SnapshotPurpose::Fork, ..snapshot(&owner, 2) }).await;
    assert_eq!(store.unneeded_fork_snapshots(10).await.unwrap(), vec![fork.id]);
    let mut deleting = store.snapshot(fork.id).await.unwrap().unwrap();
    assert!(deleting.apply(&SnapshotEvent::DeletionBegun));
    store.begin_snapshot_deletion(&deleting).await.unwrap();
    assert_eq!(store.unneeded_fork_snapshots(10).await.unwrap(), vec![]);
}

pub(crate) async fn a_walk_over_all_snapshots_meets_each_once(store: &Store) {
    let owner = owner(store, 1).await;
    for number in [5, 1, 4, 2, 3] {
        record(store, &snapshot(&owner, number)).await;
    }
    let mut met = Vec::new();
    let mut after = None;
    loop {
        let batch = store.snapshots_after(after, 2).await.unwrap();
        let Some(last) = batch.last() else { break };
        after = Some(last.id);
        met.extend(batch.iter().map(|one| one.id.as_u128()));
    }
    assert_eq!(met, vec![1, 2, 3, 4, 5]);
}
