//! Random lives of disks, compared with the set of things that were written.

use super::*;

/// What happens to a push.
#[derive(Clone, Copy, Debug)]
enum Push {
    Completed,
    Aborted,
    /// The VMM had it on top and wrote to it, and then everything died.
    LostOnTop,
    /// It was on top, and nothing was written.
    LostUnused,
    /// The VMM never got it.
    LostBelow,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Ensure {
        mib: u64,
    },
    Write,
    Push(Push),
    Freeze,
    Replace,
    Keep,
    Revert,
    Flatten,
    /// A second workspace on this one's layers.
    Fork,
    /// Into another directory.
    Move,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let push = prop_oneof![
        Just(Push::Completed),
        Just(Push::Aborted),
        Just(Push::LostOnTop),
        Just(Push::LostUnused),
        Just(Push::LostBelow),
    ];
    prop_oneof![
        2 => (8_u64..40).prop_map(|mib| Op::Ensure { mib }),
        4 => Just(Op::Write),
        4 => push.prop_map(Op::Push),
        2 => Just(Op::Freeze),
        1 => Just(Op::Replace),
        1 => Just(Op::Keep),
        1 => Just(Op::Revert),
        1 => Just(Op::Flatten),
        1 => Just(Op::Fork),
        1 => Just(Op::Move),
        2 => Just(Op::Reopen),
    ]
}

/// One disk as it should be.
#[derive(Clone, Debug, Default)]
struct Expected {
    written: BTreeSet<u64>,
    /// What it was before it was replaced.
    previous: Option<BTreeSet<u64>>,
    size_mib: u64,
}

struct World {
    ground: Ground,
    life: Option<Life>,
    /// By the number of the workspace.
    disks: Vec<(u128, Expected)>,
    next: u64,
}

impl World {
    fn new() -> Self {
        let ground = Ground::new();
        let life = Some(ground.open());
        let mut world = Self { ground, life, disks: vec![(1, Expected::default())], next: 1 };
        world.apply(Op::Ensure { mib: 12 });
        world
    }

    fn life(&self) -> &Life {
        self.life.as_ref().unwrap()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Everything happens to the disk made last.
    fn apply(&mut self, op: Op) {
        let (workspace, mut expected) = self.disks.pop().unwrap();
        let disk = self.life().disk(workspace);
        let number = self.number();
        match op {
            Op::Ensure { mib } => {
                disk.ensure(&bare(), mib * MIB).unwrap();
                expected.size_mib = expected.size_mib.max(mib).max(4);
            }
            Op::Write => {
                let chain = disk.ensure(&bare(), MIB).unwrap();
                mark(&top(self.life(), workspace, &chain), number);
                expected.written.insert(number);
            }
            Op::Push(push) => {
                let chain = disk.ensure(&bare(), MIB).unwrap();
                let former = top(self.life(), workspace, &chain);
                let overlay = disk.begin_push().unwrap();
                match push {
                    Push::Completed => assert_eq!(
                        disk.complete_push().unwrap().overlay.map(|id| id.file_name()),
                        overlay.file_name().map(|name| name.to_string_lossy().into_owned())
                    ),
                    Push::Aborted => disk.abort_push().unwrap(),
                    Push::LostUnused => {}
                    Push::LostOnTop | Push::LostBelow => {
                        let written =
                            if matches!(push, Push::LostOnTop) { overlay } else { former };
                        mark(&written, number);
                        expected.written.insert(number);
                    }
                }
            }
            Op::Freeze => drop(disk.freeze().unwrap()),
            Op::Replace => {
                let chain = disk.freeze().unwrap();
                // Back to the lowest layer, or to the bare image.
                let layers: Vec<_> = chain.layers.last().copied().into_iter().collect();
                let written =
                    layers.iter().flat_map(|id| marks(&self.life().storage.layers.path(*id)));
                let written = written.collect();
                let size_bytes = chain.size_bytes;
                disk.replace(&Foundation { layers, size_bytes, ..bare() }, MIB).unwrap();
                let before = std::mem::replace(&mut expected.written, written);
                expected.previous.get_or_insert(before);
            }
            Op::Keep => {
                disk.keep_replacement().unwrap();
                expected.previous = None;
            }
            Op::Revert => {
                disk.revert_replacement().unwrap();
                if let Some(previous) = expected.previous.take() {
                    expected.written = previous;
                    expected.size_mib = disk.chain().unwrap().unwrap().size_bytes / MIB;
                }
            }
            Op::Flatten => {
                let chain = disk.ensure(&bare(), MIB).unwrap();
                let overlay = top(self.life(), workspace, &chain);
                let own: BTreeSet<u64> = marks(&overlay).into_iter().collect();
                let all = self.life().written(workspace, &chain);
                all.difference(&own).for_each(|number| mark(&overlay, *number));
                disk.flattened(&chain).unwrap();
            }
            Op::Fork => {
                let chain = disk.freeze().unwrap();
                let below: BTreeSet<u64> = chain
                    .layers
                    .iter()
                    .flat_map(|id| marks(&self.life().storage.layers.path(*id)))
                    .collect();
                let size_mib = chain.size_bytes / MIB;
                let foundation =
                    Foundation { layers: chain.layers, size_bytes: chain.size_bytes, ..bare() };
                let fork = u128::from(number) * 1000;
                self.life().disk(fork).ensure(&foundation, MIB).unwrap();
                self.disks.push((workspace, expected));
                self.disks.push((fork, Expected { written: below, previous: None, size_mib }));
                return self.check();
            }
            Op::Move => {
                let moved = u128::from(number) * 1000;
                let (old, new) = (self.life().vm_dir(workspace), self.life().vm_dir(moved));
                fs::rename(&old, &new).unwrap();
                self.life().storage.disks.moved(&old, &new);
                self.disks.push((moved, expected));
                return self.check();
            }
            Op::Reopen => {
                self.life = None;
                self.life = Some(self.ground.open());
            }
        }
        self.disks.push((workspace, expected));
        self.check();
    }

    /// Every disk reads as what was written to it, and nothing else lies about.
    fn check(&self) {
        let life = self.life();
        let mut needed = BTreeSet::new();
        for (workspace, expected) in &self.disks {
            let disk = life.disk(*workspace);
            let chain = disk.settled().unwrap().unwrap();
            assert_eq!(life.written(*workspace, &chain), expected.written, "workspace {workspace}");
            assert!(chain.size_bytes >= expected.size_mib * MIB);
            let record = DiskRecord::read(&disk.record_path()).unwrap().unwrap();
            let names = names_in(&life.vm_dir(*workspace)).unwrap();
            let overlays: BTreeSet<LayerId> =
                names.iter().filter_map(|name| LayerId::of_file_name(name)).collect();
            assert_eq!(overlays, record.overlays());
            needed.extend(record.ids().difference(&overlays).copied());
        }
        assert_eq!(life.layer_files(), needed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn whatever_happens_to_a_disk_nothing_written_is_lost_and_nothing_lies_about(
        ops in proptest::collection::vec(op(), 1..24),
    ) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written(
        ids in proptest::collection::hash_set(any::<[u8; 16]>(), 3..40),
        split in 0_usize..40,
        sectors in 1_u64..=(1 << 42) / 512,
        pushing in any::<bool>(),
    ) {
        let mut ids: Vec<LayerId> = ids.into_iter().map(LayerId::from_random).collect();
        ids.sort_unstable();
        ids.dedup();
        prop_assume!(ids.len() >= 3);
        let pushed = ids.pop();
        let overlay = ids.pop();
        let split = split.min(ids.len());
        let chain = |layers: &[LayerId], overlay| DiskChain {
            overlay,
            layers: layers.iter().copied().take(DiskSpec::MAX_LAYERS).collect(),
            image_digest: image(),
            size_bytes: sectors * 512,
        };
        let mut record = DiskRecord::new(chain(&ids[..split], overlay));
        record.pushing = pushed.filter(|_| pushing);
        record.previous = Some(chain(&ids[split..], None));
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join(RECORD);
        record.write(&path).unwrap();
        prop_assert_eq!(DiskRecord::read(&path).unwrap(), Some(record));
    }

    #[test]
    fn a_damaged_record_is_refused_and_never_panics(at in 0_usize..2000, cut in any::<bool>(), byte in any::<u8>()) {
        let chain = DiskChain {
            overlay: Some(LayerId::from_random([1; 16])),
            layers: vec![LayerId::from_random([2; 16]), LayerId::from_random([3; 16])],
            image_digest: image(),
            size_bytes: 12 * MIB,
        };
        let record = DiskRecord { pushing: Some(LayerId::from_random([4; 16])), ..DiskRecord::new(chain) };
        let mut text = serde_json::to_vec(&record).unwrap();
        let at = at % text.len();
        if cut { text.truncate(at) } else { text[at] = byte }
        match DiskRecord::parse(&text) {
            // Another digit may be another honest record; it is never one that breaks the rules.
            Ok(other) => prop_assert_eq!(other.check(), Ok(())),
            Err(problem) => prop_assert!(!problem.is_empty()),
        }
    }
}
