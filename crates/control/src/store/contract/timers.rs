//! What is due, and use that is noted.

use skerry_model::{Desired, Event, IdleAction, IdlePolicy, Incarnation, Transition, Workspace};

use super::{Owner, at, insert, owner, workspace};
use crate::store::{Store, Write};

pub(crate) async fn timers_come_due_in_order(store: &Store) {
    let owner = owner(store, 1).await;
    assert_eq!(store.next_due().await.unwrap(), None);
    for (number, end) in [(1, Some(300)), (2, Some(100)), (3, None), (4, Some(200))] {
        let record = Workspace {
            desired: Desired::Running,
            expires_at: end.map(at),
            ..workspace(&owner, number)
        };
        assert_eq!(record.due_at(), end.map(at));
        insert(store, &record).await;
    }
    let mut restarting = Workspace { desired: Desired::Running, ..workspace(&owner, 5) };
    restarting.lifecycle.restart_at = Some(at(150));
    let restarting = insert(store, &restarting).await;
    assert_eq!(store.next_due().await.unwrap(), Some(at(100)));
    assert_eq!(store.due_workspaces(at(99), 10).await.unwrap(), vec![]);
    let due = store.due_workspaces(at(200), 10).await.unwrap();
    assert_eq!(due.iter().map(|id| id.as_u128()).collect::<Vec<_>>(), vec![2, 5, 4]);
    assert_eq!(store.due_workspaces(at(999), 1).await.unwrap().len(), 1);
    // A timer that is no longer set, and a workspace that is gone, are due no more.
    let mut quiet = restarting;
    quiet.lifecycle.restart_at = None;
    store.update_workspace(&quiet, None).await.unwrap();
    let second = store.workspace(due[0]).await.unwrap().unwrap();
    store.remove_workspace(second.id, second.revision).await.unwrap();
    let due = store.due_workspaces(at(999), 10).await.unwrap();
    assert_eq!(due.iter().map(|id| id.as_u128()).collect::<Vec<_>>(), vec![4, 1]);
    assert_eq!(store.next_due().await.unwrap(), Some(at(200)));
}

/// A workspace that runs since second 10 and is idle after 60 seconds without use.
async fn running(store: &Store, owner: &Owner) -> Workspace {
    let mut record = workspace(owner, 1);
    record.desired = Desired::Running;
    record.spec.idle = Some(IdlePolicy {
        after_seconds: 60,
        action: IdleAction::Stop,
        discard_memory_after_seconds: None,
    });
    let first = Incarnation(1);
    let events = [Event::StartBegun(first), Event::GuestReady(first, at(10), None)];
    for event in events {
        assert!(matches!(record.apply(&event, at(10)), Transition::Moved(_)));
    }
    insert(store, &record).await
}

/// The same record, used at that second.
fn used(record: &Workspace, second: i64) -> Workspace {
    Workspace { last_active_at: Some(at(second)), ..record.clone() }
}

async fn note(store: &Store, record: &Workspace) -> Write<()> {
    let at = record.last_active_at.unwrap();
    store.note_activity(record.id, record.revision, at, record.due_at()).await.unwrap()
}

pub(crate) async fn use_is_noted_without_a_new_revision(store: &Store) {
    let owner = owner(store, 1).await;
    let record = running(store, &owner).await;
    assert_eq!(store.next_due().await.unwrap(), Some(at(70)));
    let later = used(&record, 30);
    assert_eq!(note(store, &later).await, Write::Done(()));
    assert_eq!(store.workspace(record.id).await.unwrap(), Some(later.clone()));
    assert_eq!(store.next_due().await.unwrap(), Some(at(90)));
    // An earlier use that is told later changes nothing.
    assert_eq!(note(store, &used(&record, 20)).await, Write::Done(()));
    assert_eq!(store.next_due().await.unwrap(), Some(at(90)));
    let stale = Workspace { revision: record.revision + 1, ..used(&record, 40) };
    assert_eq!(note(store, &stale).await, Write::Stale);
    assert_eq!(store.workspace(record.id).await.unwrap(), Some(later));
}

pub(crate) async fn a_use_that_was_noted_is_not_forgotten(store: &Store) {
    let owner = owner(store, 1).await;
    let read = running(store, &owner).await;
    assert_eq!(note(store, &used(&read, 50)).await, Write::Done(()));
    // Written over by somebody who had read the record before.
    let renamed = Workspace { namespace: Some("n".to_owned()), ..read.clone() };
    let Write::Done(written) = store.update_workspace(&renamed, None).await.unwrap() else {
        panic!("not written")
    };
    assert_eq!(written.last_active_at, Some(at(50)));
    assert_eq!(store.workspace(read.id).await.unwrap(), Some(written.clone()));
    assert_eq!(store.next_due().await.unwrap(), Some(at(110)));
    // Another start begins a new count.
    let restarted = Workspace { incarnation: Incarnation(2), ..used(&written, 15) };
    let Write::Done(written) = store.update_workspace(&restarted, None).await.unwrap() else {
        panic!("not written")
    };
    assert_eq!(written.last_active_at, Some(at(15)));
}
