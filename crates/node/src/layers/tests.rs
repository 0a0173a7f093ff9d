use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    sync::Arc,
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{store::LayerGuard, *};
use tokio_util::sync::CancellationToken;

use crate::{Error, Faults, saved::KnownDigests};

/// A store and a directory beside it where overlays are made.
struct Ground {
    dir: TempDir,
    drawn: u8,
}

impl Ground {
    fn new() -> Self {
        Self { dir: tempfile::tempdir_in("/dev/shm").unwrap(), drawn: 0 }
    }

    fn open(&self, named: Named) -> Arc<LayerStore> {
        let dir = self.dir.path().join("layers");
        LayerStore::open(&dir, named, KnownDigests::default(), Faults::default()).unwrap()
    }

    /// An overlay that is to be frozen.
    fn overlay(&mut self, content: &[u8]) -> (LayerId, PathBuf) {
        self.drawn += 1;
        let id = LayerId::from_random([self.drawn; 16]);
        let path = self.dir.path().join(id.file_name());
        fs::write(&path, content).unwrap();
        (id, path)
    }

    fn files(&self) -> BTreeSet<LayerId> {
        let entries = fs::read_dir(self.dir.path().join("layers")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter_map(|name| LayerId::of_file_name(&name)).collect()
    }
}

fn holder(name: &str) -> Holder {
    Holder(PathBuf::from(name))
}

fn frozen(ground: &mut Ground, store: &LayerStore, content: &[u8]) -> LayerId {
    let (id, path) = ground.overlay(content);
    store.hold_also(&holder("a"), &[id].into());
    store.freeze(&path, id).unwrap();
    id
}

#[test]
fn freezing_twice_is_freezing_once() {
    let mut ground = Ground::new();
    let store = ground.open(Named::default());
    let (id, path) = ground.overlay(b"data");
    store.hold(&holder("a"), [id].into());
    store.freeze(&path, id).unwrap();
    store.freeze(&path, id).unwrap();
    assert!(!path.exists() && store.is_present(id));
    assert_eq!(fs::read(store.path(id)).unwrap(), b"data");
    assert_eq!(fs::metadata(store.path(id)).unwrap().permissions().mode() & 0o777, 0o444);
    assert_eq!(store.holders(id), [holder("a")]);
}

#[test]
fn what_is_not_a_file_of_one_name_does_not_become_a_layer() {
    let mut ground = Ground::new();
    let store = ground.open(Named::default());
    let (linked, path) = ground.overlay(b"data");
    fs::hard_link(&path, ground.dir.path().join("second name")).unwrap();
    assert!(store.freeze(&path, linked).is_err());
    let (symbolic, link) = ground.overlay(b"data");
    fs::remove_file(&link).unwrap();
    symlink(&path, &link).unwrap();
    assert!(store.freeze(&link, symbolic).is_err());
    let (missing, path) = ground.overlay(b"data");
    fs::remove_file(&path).unwrap();
    assert!(store.freeze(&path, missing).is_err());
    assert_eq!(ground.files(), BTreeSet::new());
}

#[test]
fn nothing_is_removed_while_something_that_may_name_layers_cannot_be_read() {
    let mut ground = Ground::new();
    let store = ground.open(Named::default());
    let id = frozen(&mut ground, &store, b"data");
    let unreadable = vec![PathBuf::from("damaged")];
    let store = ground.open(Named { unreadable, ..Named::default() });
    store.hold(&holder("a"), [id].into());
    store.release(&holder("a"));
    assert_eq!(ground.files(), [id].into());
    ground.open(Named::default());
    assert_eq!(ground.files(), BTreeSet::new());
}

#[test]
fn a_layer_is_described_once_and_its_description_goes_with_it() {
    let mut ground = Ground::new();
    let store = ground.open(Named::default());
    let id = frozen(&mut ground, &store, b"data");
    let seal = store.describe(id, &CancellationToken::new()).unwrap();
    assert_eq!((seal.id, seal.length_bytes), (id, 4));
    // What was described is not read again, so that damage does not become the truth.
    let file = store.path(id);
    fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    fs::write(&file, b"date").unwrap();
    assert_eq!(store.describe(id, &CancellationToken::new()).unwrap(), seal);
    assert!(
        matches!(store.verify(&seal), Err(Error::SavedState { problem, .. }) if problem == "is damaged")
    );
    fs::write(&file, b"data").unwrap();
    store.verify(&seal).unwrap();
    fs::write(&file, b"dat").unwrap();
    assert!(matches!(store.check_length(&seal), Err(Error::SavedState { .. })));
    store.release(&holder("a"));
    assert!(
        matches!(store.verify(&seal), Err(Error::SavedState { problem, .. }) if problem == "is missing")
    );
    assert_eq!(fs::read_dir(ground.dir.path().join("layers")).unwrap().count(), 0);
}

#[test]
fn descriptions_without_a_layer_are_removed_and_strangers_are_not() {
    let ground = Ground::new();
    drop(ground.open(Named::default()));
    let dir = ground.dir.path().join("layers");
    let id = LayerId::from_random([1; 16]);
    let rubbish = [format!("{id}.json"), format!("{id}.new")];
    for name in rubbish.iter().map(String::as_str).chain(["notes.txt"]) {
        fs::write(dir.join(name), b"x").unwrap();
    }
    ground.open(Named::default());
    assert!(rubbish.iter().all(|name| !dir.join(name).exists()));
    assert!(dir.join("notes.txt").exists());
}

#[test]
fn an_id_has_one_spelling() {
    let id = LayerId::from_random([0xab; 16]);
    assert_eq!(LayerId::of_file_name(&id.file_name()), Some(id));
    for other in [id.to_string().to_uppercase(), id.to_string().replace('-', "")] {
        assert!(other.parse::<LayerId>().is_err(), "{other}");
    }
    assert_eq!(LayerId::of_file_name("../x.qcow2"), None);
}

#[derive(Clone, Debug)]
enum Op {
    Freeze(usize),
    /// A holder needs exactly those layers whose bits are set, as far as they are there.
    Hold(usize, u8),
    HoldAlso(usize, u8),
    Release(usize),
    Moved(usize, usize),
    Guard(u8),
    DropGuard(usize),
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0_usize..4).prop_map(Op::Freeze),
        3 => (0_usize..4, any::<u8>()).prop_map(|(holder, bits)| Op::Hold(holder, bits)),
        1 => (0_usize..4, any::<u8>()).prop_map(|(holder, bits)| Op::HoldAlso(holder, bits)),
        2 => (0_usize..4).prop_map(Op::Release),
        1 => (0_usize..4, 0_usize..4).prop_map(|(old, new)| Op::Moved(old, new)),
        1 => any::<u8>().prop_map(Op::Guard),
        1 => (0_usize..4).prop_map(Op::DropGuard),
        1 => Just(Op::Reopen),
    ]
}

const HOLDERS: [&str; 4] = ["a", "b", "c", "d"];

proptest! {
    #[test]
    fn a_layer_is_there_exactly_as_long_as_somebody_needs_it(
        ops in proptest::collection::vec(op(), 1..40),
    ) {
        let mut ground = Ground::new();
        let mut store = ground.open(Named::default());
        let mut held: BTreeMap<usize, BTreeSet<LayerId>> = BTreeMap::new();
        let mut guards: Vec<(LayerGuard, BTreeSet<LayerId>)> = Vec::new();
        let mut present: BTreeSet<LayerId> = BTreeSet::new();
        for op in ops {
            let chosen = |bits: u8| -> BTreeSet<LayerId> {
                let chosen = present.iter().enumerate().filter(|(at, _)| bits & (1 << (at % 8)) != 0);
                chosen.map(|(_, id)| *id).collect()
            };
            match op {
                Op::Freeze(at) => {
                    let (id, path) = ground.overlay(b"x");
                    store.hold_also(&holder(HOLDERS[at]), &[id].into());
                    store.freeze(&path, id).unwrap();
                    held.entry(at).or_default().insert(id);
                    present.insert(id);
                }
                Op::Hold(at, bits) => {
                    let layers = chosen(bits);
                    store.hold(&holder(HOLDERS[at]), layers.clone());
                    held.insert(at, layers);
                }
                Op::HoldAlso(at, bits) => {
                    let layers = chosen(bits);
                    store.hold_also(&holder(HOLDERS[at]), &layers);
                    held.entry(at).or_default().extend(layers);
                }
                Op::Release(at) => {
                    store.release(&holder(HOLDERS[at]));
                    held.remove(&at);
                }
                Op::Moved(old, new) if old != new => {
                    store.moved(&holder(HOLDERS[old]), &holder(HOLDERS[new]));
                    let layers = held.remove(&old).unwrap_or_default();
                    held.insert(new, layers);
                }
                Op::Moved(..) => {}
                Op::Guard(bits) => {
                    let layers = chosen(bits);
                    let list: Vec<LayerId> = layers.iter().copied().collect();
                    guards.push((store.guard(&list).unwrap(), layers));
                }
                Op::DropGuard(at) => {
                    if at < guards.len() {
                        guards.remove(at);
                    }
                }
                Op::Reopen => {
                    guards.clear();
                    let named = held.iter().map(|(at, layers)| (holder(HOLDERS[*at]), layers.clone()));
                    let held = named.filter(|(_, layers)| !layers.is_empty()).collect();
                    store = ground.open(Named { held, ..Named::default() });
                }
            }
            let guarded = guards.iter().map(|(_, layers)| layers);
            let needed: BTreeSet<LayerId> = held.values().chain(guarded).flatten().copied().collect();
            present.retain(|id| needed.contains(id));
            prop_assert_eq!(&ground.files(), &present);
            for id in &present {
                prop_assert!(store.is_present(*id));
                prop_assert_eq!(
                    store.holders(*id).len(),
                    held.values().filter(|layers| layers.contains(id)).count()
                );
            }
        }
    }
}
