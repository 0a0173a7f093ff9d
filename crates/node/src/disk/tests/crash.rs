//! Every operation on disks, failed and killed after every point it passes.

use super::*;
use crate::saved::test_ground::{Script, die, survive_everywhere};

pub(crate) const SCRIPTS: [Script; 8] = [
    Script {
        name: "make",
        prepare: |life| drop(life.disk(1)),
        act: |life| life.disk(1).ensure(&bare(), 12 * MIB).map(drop),
        always: |_| {},
        done: |life| assert_eq!(chain(life).size_bytes, 12 * MIB),
    },
    Script {
        name: "grow",
        prepare: one_write,
        act: |life| life.disk(1).ensure(&bare(), 64 * MIB).map(drop),
        always: reads_one,
        done: |life| {
            let chain = chain(life);
            let header = qcow2::read_header(&top(life, 1, &chain)).unwrap().unwrap();
            assert_eq!((chain.size_bytes, header.size_bytes), (64 * MIB, 64 * MIB));
        },
    },
    Script {
        name: "push",
        prepare: one_write,
        act: |life| {
            let disk = life.disk(1);
            disk.settled()?;
            if chain(life).layers.is_empty() {
                disk.begin_push()?;
                disk.complete_push()?;
            }
            Ok(())
        },
        always: reads_one,
        done: |life| assert_eq!(chain(life).layers.len(), 1),
    },
    Script {
        name: "abort_push",
        prepare: one_write,
        act: |life| {
            let disk = life.disk(1);
            disk.settled()?;
            disk.begin_push()?;
            disk.abort_push()
        },
        always: reads_one,
        done: |life| assert_eq!(chain(life).layers.len(), 0),
    },
    Script {
        name: "freeze",
        prepare: one_write,
        act: |life| life.disk(1).freeze().map(drop),
        always: reads_one,
        done: |life| assert_eq!((chain(life).layers.len(), chain(life).overlay), (1, None)),
    },
    Script {
        name: "replace",
        prepare: one_write,
        act: |life| {
            let disk = life.disk(1);
            disk.replace(&bare(), 12 * MIB)?;
            disk.revert_replacement()
        },
        always: |life| {
            life.disk(1).revert_replacement().unwrap();
            reads_one(life);
        },
        done: reads_one,
    },
    Script {
        name: "keep_replacement",
        prepare: |life| {
            one_write(life);
            let chain = life.disk(1).replace(&bare(), 12 * MIB).unwrap();
            mark(&top(life, 1, &chain), 1);
        },
        act: |life| life.disk(1).keep_replacement(),
        always: reads_one,
        done: |life| {
            let record = DiskRecord::read(&life.disk(1).record_path()).unwrap().unwrap();
            assert_eq!(record.previous, None);
        },
    },
    Script {
        name: "remove",
        prepare: |life| {
            one_write(life);
            life.disk(1).freeze().unwrap();
        },
        act: |life| life.disk(1).remove(),
        always: |_| {},
        done: |life| assert_eq!((life.disk(1).exists(), life.layer_files().len()), (false, 0)),
    },
];

fn chain(life: &Life) -> DiskChain {
    life.disk(1).settled().unwrap().unwrap()
}

fn one_write(life: &Life) {
    let chain = life.disk(1).ensure(&bare(), 12 * MIB).unwrap();
    mark(&top(life, 1, &chain), 1);
}

fn reads_one(life: &Life) {
    assert_eq!(life.written(1, &chain(life)), [1].into());
}

#[test]
fn a_disk_survives_a_failure_and_a_crash_after_every_step_of_every_operation() {
    survive_everywhere("disk::tests::crash::an_operation_dies", &SCRIPTS);
}

#[test]
#[ignore = "runs in a process of its own, started by the test above"]
fn an_operation_dies() {
    die(&SCRIPTS);
}
