#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;

use super::*;
use crate::test_ground::{at, shape};

fn facts() -> SnapshotFacts {
    SnapshotFacts {
        contents: SnapshotContents::DiskAndMemory,
        shape: shape(1, 512, 1024),
        size_bytes: 7,
        blackout: Duration::from_millis(3),
        taken_at: at(5),
    }
}

fn failure() -> Failure {
    Failure::new(FailureCode::HostStepFailed, "the disk is full", at(6))
}

fn snapshot(state: SnapshotState) -> Snapshot {
    Snapshot {
        id: SnapshotId::from_u128(1),
        account_id: AccountId::from_u128(2),
        workspace_id: WorkspaceId::from_u128(3),
        name: DisplayName::parse("before").unwrap(),
        purpose: SnapshotPurpose::User,
        contents: SnapshotContents::DiskAndMemory,
        state,
        image: ImageRef("base".to_owned()),
        image_digest: ImageDigest("sha256:00".to_owned()),
        shape: shape(1, 512, 1024),
        size_bytes: 0,
        blackout: None,
        taken_at: None,
        metadata: BTreeMap::new(),
        created_at: at(1),
        updated_at: at(1),
        revision: 1,
    }
}

fn states() -> [SnapshotState; 4] {
    [
        SnapshotState::Creating,
        SnapshotState::Ready,
        SnapshotState::Failed(failure()),
        SnapshotState::Deleting,
    ]
}

#[test]
fn the_whole_table_is_as_reviewed() {
    let events = [
        ("taken", SnapshotEvent::Taken(facts())),
        ("failed", SnapshotEvent::Failed(failure())),
        ("lost", SnapshotEvent::Lost(failure())),
        ("deletion begun", SnapshotEvent::DeletionBegun),
    ];
    let mut table = String::new();
    for state in states() {
        writeln!(table, "{}", state.name()).unwrap();
        for (name, event) in &events {
            let mut after = snapshot(state.clone());
            let changed = after.apply(event);
            let cell = if changed { after.state.name() } else { "no change" };
            writeln!(table, "    {name:<16}{cell}").unwrap();
        }
        for (name, observed) in [("node: nothing", None), ("node: complete", Some(&facts()))] {
            let step = match next_snapshot_step(&snapshot(state.clone()), observed, at(9)) {
                SnapshotStep::Record(SnapshotEvent::Taken(_)) => "Record(Taken)".to_owned(),
                SnapshotStep::Record(SnapshotEvent::Lost(_)) => "Record(Lost)".to_owned(),
                other => format!("{other:?}"),
            };
            writeln!(table, "    {name:<16}{step}").unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn what_the_node_says_of_a_snapshot_is_in_its_record() {
    let mut record = snapshot(SnapshotState::Creating);
    assert!(record.apply(&SnapshotEvent::Taken(facts())));
    assert_eq!(record.state, SnapshotState::Ready);
    assert_eq!((record.size_bytes, record.blackout), (7, Some(Duration::from_millis(3))));
    assert!(!record.apply(&SnapshotEvent::Taken(facts())), "twice changes nothing more");
}

#[test]
fn from_anywhere_record_and_node_come_to_agree() {
    for state in states() {
        for there in [false, true] {
            let mut record = snapshot(state.clone());
            let mut node = there.then(facts);
            for step in 0.. {
                assert!(step < 4, "{} does not settle", state.name());
                match next_snapshot_step(&record, node.as_ref(), at(9)) {
                    SnapshotStep::Nothing | SnapshotStep::Delete => break,
                    SnapshotStep::Take => node = Some(facts()),
                    SnapshotStep::Record(event) => assert!(record.apply(&event)),
                }
            }
            let agrees = match record.state {
                SnapshotState::Ready => node.is_some(),
                SnapshotState::Failed(_) => node.is_none(),
                SnapshotState::Deleting => true,
                SnapshotState::Creating => false,
            };
            assert!(agrees, "{record:?} with {node:?}");
        }
    }
}
