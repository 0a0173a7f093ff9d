use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use skerry_model::Timestamp;

use crate::saved::{
    About, Manifest, Sealed, evict,
    test_ground::{Ground, Life, MIB, manifest},
};

fn template(life: &Life, name: &str, bytes: u64, used_at: i64) {
    let states = &life.storage.states;
    let draft =
        states.begin(&life.layout.template(name), life.storage.room.reserve(bytes).unwrap());
    let draft = draft.unwrap();
    std::fs::write(draft.path("ram"), vec![1; usize::try_from(bytes).unwrap()]).unwrap();
    let sealed = draft.seal(Manifest { about: About::Template, ..manifest() }).unwrap();
    states.used(&sealed, Timestamp::new(used_at, 500).unwrap()).unwrap();
}

fn all(life: &Life, parent: &Path) -> Vec<Sealed> {
    life.storage.states.usable(parent).unwrap()
}

fn name(place: &Path) -> String {
    place.file_name().unwrap().to_str().unwrap().to_owned()
}

fn names(life: &Life, parent: &Path) -> Vec<String> {
    let found = life.storage.states.by_last_use(all(life, parent));
    found.iter().map(|one| name(one.sealed.place())).collect()
}

fn evicted(life: &Life, parent: &Path, budget: u64, kept: &BTreeSet<PathBuf>) -> Vec<String> {
    let gone = evict(&life.storage.states, all(life, parent), budget, kept).unwrap();
    gone.iter().map(|place| name(place)).collect()
}

#[test]
fn the_least_recently_used_go_first_until_the_rest_fits() {
    let ground = Ground::new();
    let life = ground.open();
    let parent = life.layout.templates_dir();
    for (name, used_at) in [("new", 300), ("old", 100), ("middle", 200), ("older", 50)] {
        template(&life, name, MIB, used_at);
    }
    assert_eq!(names(&life, &parent), ["older", "old", "middle", "new"]);
    let found = life.storage.states.by_last_use(all(&life, &parent));
    assert_eq!(found[0].last_used_at, Timestamp::new(50, 500).unwrap());
    assert!(found.iter().all(|one| one.allocated_bytes >= MIB && one.allocated_bytes < 2 * MIB));

    let states = &life.storage.states;
    let none = BTreeSet::new();
    assert_eq!(evicted(&life, &parent, 100 * MIB, &none), Vec::<String>::new());
    let kept = BTreeSet::from([parent.join("older")]);
    assert_eq!(evicted(&life, &parent, 2 * MIB + MIB / 2, &kept), ["old", "middle"]);
    assert_eq!(names(&life, &parent), ["older", "new"]);
    // A use is remembered by the next life, and changes the order.
    let older = states.open(&parent.join("older")).unwrap().unwrap();
    states.used(&older, Timestamp::new(400, 0).unwrap()).unwrap();
    drop(life);
    let life = ground.open();
    assert_eq!(names(&life, &parent), ["new", "older"]);
    assert_eq!(evicted(&life, &parent, 0, &none), ["new", "older"]);
    assert_eq!(names(&life, &parent), Vec::<String>::new());
}
