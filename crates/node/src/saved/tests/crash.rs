//! Saved states, failed and killed after every step.

use std::os::unix::fs::FileExt;

use skerry_model::{SnapshotId, WorkspaceId};

use super::damage::snapshot;
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    saved::{
        About, Manifest,
        test_ground::{Life, MIB, Script, bare, die, manifest, mark, survive_everywhere},
    },
};

pub(super) const SCRIPTS: [Script; 3] = [
    Script {
        name: "seal",
        prepare: |life| {
            snapshot(life, 2);
            let chain = life.disk(1).ensure(&bare(), 12 * MIB).unwrap();
            mark(&life.vm_dir(1).join(chain.overlay.unwrap().file_name()), 1);
        },
        act: |life| {
            let chain = life.disk(1).freeze()?;
            let states = &life.storage.states;
            let place = life.layout.snapshot(SnapshotId::from_u128(1));
            if states.open(&place)?.is_some() {
                return Ok(());
            }
            let layers = chain
                .layers
                .iter()
                .map(|id| life.storage.layers.describe(*id, &CancellationToken::new()));
            let layers = layers.collect::<Result<_, Error>>()?;
            let draft = states.begin(&place, life.storage.room.reserve(20_000)?)?;
            write(&draft.create("state", 20_000)?)?;
            write(&draft.create("ram", 0)?)?;
            draft.seal(Manifest { layers, ..manifest() }).map(drop)
        },
        always: |life| {
            verifies(life, 2);
            let chain = life.disk(1).settled().unwrap().unwrap();
            assert_eq!(life.written(1, &chain), [1].into());
            if life.layout.snapshot(SnapshotId::from_u128(1)).exists() {
                verifies(life, 1);
            }
        },
        done: |life| verifies(life, 1),
    },
    Script {
        name: "suspend",
        prepare: |life| drop(life.disk(1).ensure(&bare(), 12 * MIB).unwrap()),
        act: |life| {
            let place = life.layout.vm(WorkspaceId::from_u128(1)).suspended;
            if life.storage.states.open(&place)?.is_some() {
                return Ok(());
            }
            let draft = life.storage.states.begin(&place, life.storage.room.reserve(20_000)?)?;
            write(&draft.create("state", 0)?)?;
            let about = About::SuspendedMemory {
                workspace_id: WorkspaceId::from_u128(1),
                incarnation: skerry_model::Incarnation(1),
            };
            draft.seal(Manifest { about, ..manifest() }).map(drop)
        },
        always: |life| drop(life.disk(1).settled().unwrap().unwrap()),
        done: |life| {
            let place = life.layout.vm(WorkspaceId::from_u128(1)).suspended;
            let sealed = life.storage.states.open(&place).unwrap().unwrap();
            life.storage.states.verify(&sealed).unwrap();
        },
    },
    Script {
        name: "delete",
        prepare: |life| {
            snapshot(life, 1);
            snapshot(life, 2);
            life.disk(1).remove().unwrap();
        },
        act: |life| life.storage.states.delete(&life.layout.snapshot(SnapshotId::from_u128(1))),
        always: |life| {
            verifies(life, 2);
            if life.layout.snapshot(SnapshotId::from_u128(1)).exists() {
                verifies(life, 1);
            }
        },
        done: |life| {
            assert!(!life.layout.snapshot(SnapshotId::from_u128(1)).exists());
            assert_eq!(life.layer_files().len(), 1);
        },
    },
];

fn write(file: &std::fs::File) -> Result<(), Error> {
    for at in 0..5 {
        file.write_all_at(&[3; 4096], at * 4096).map_err(Error::io("writing the state"))?;
    }
    Ok(())
}

pub(super) fn verifies(life: &Life, number: u128) {
    let place = life.layout.snapshot(SnapshotId::from_u128(number));
    let sealed = life.storage.states.open(&place).unwrap().unwrap();
    life.storage.states.verify(&sealed).unwrap();
}

#[test]
fn a_saved_state_survives_a_failure_and_a_crash_after_every_step() {
    survive_everywhere("saved::tests::crash::an_operation_dies", &SCRIPTS);
}

#[test]
#[ignore = "runs in a process of its own, started by the test above"]
fn an_operation_dies() {
    die(&SCRIPTS);
}
