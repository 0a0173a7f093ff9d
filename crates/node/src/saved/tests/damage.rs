//! Every way in which a file can be wrong is noticed and named, and touches nothing else.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions, Permissions},
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use skerry_model::{SnapshotId, WorkspaceId};

use tokio_util::sync::CancellationToken;

use crate::{
    Error, FaultKind,
    layers::{Holder, LayerSeal},
    layout::names_in,
    saved::{
        About, Manifest, Sealed,
        test_ground::{Ground, Life, MIB, bare, manifest, mark},
    },
};

const STATE_BYTES: usize = 300_000;

/// Seals a snapshot with a state, a sparse memory file of the same length and one layer.
pub(super) fn snapshot(life: &Life, number: u128) -> Sealed {
    let workspace = number;
    let disk = life.disk(workspace);
    let chain = disk.ensure(&bare(), 12 * MIB).unwrap();
    mark(&life.vm_dir(workspace).join(chain.overlay.unwrap().file_name()), 1);
    let chain = disk.freeze().unwrap();
    let layers: Vec<LayerSeal> = chain
        .layers
        .iter()
        .map(|id| life.storage.layers.describe(*id, &CancellationToken::new()).unwrap())
        .collect();
    let place = life.layout.snapshot(SnapshotId::from_u128(number));
    let draft = life.storage.states.begin(&place, life.storage.room.reserve(0).unwrap()).unwrap();
    let state = draft.create("state", STATE_BYTES as u64).unwrap();
    state.write_all_at(&vec![7; STATE_BYTES], 0).unwrap();
    let ram = draft.create("ram", 0).unwrap();
    ram.set_len(STATE_BYTES as u64).unwrap();
    ram.write_all_at(b"in the middle", 150_000).unwrap();
    draft.seal(Manifest { layers, ..manifest() }).unwrap()
}

fn verdict(life: &Life, place: &Path) -> Result<(), (PathBuf, String)> {
    let found = life.storage.states.open(place);
    let verified = found.and_then(|sealed| life.storage.states.verify(&sealed.unwrap()));
    verified.map_err(|error| match error {
        Error::SavedState { path, problem } => (path, problem),
        other => panic!("{other:?}"),
    })
}

fn writable(path: &Path) -> fs::File {
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn flip(path: &Path, at: u64) {
    let file = writable(path);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn damage_anywhere_in_any_file_is_refused_by_name_also_after_a_restart() {
    let lengths = [("state", STATE_BYTES as u64), ("ram", STATE_BYTES as u64), ("layer", 262_152)];
    for (name, length) in lengths {
        let offsets = [0, 8, 4096, 65_535, 65_536, length / 2, length - 1];
        let flips = offsets.map(|at| (format!("flipped at {at}"), Some(at)));
        let others =
            ["cut by one", "cut to nothing", "longer by one", "gone", "a link", "a directory"];
        for (what, at) in flips.into_iter().chain(others.map(|what| (what.to_owned(), None))) {
            let ground = Ground::new();
            let life = ground.open();
            let sealed = snapshot(&life, 1);
            let other = snapshot(&life, 2);
            verdict(&life, sealed.place()).unwrap();
            let file = match sealed.file(name) {
                Some(file) => file,
                None => life.storage.layers.path(sealed.manifest.layers[0].id),
            };
            match (at, what.as_str()) {
                (Some(at), _) => flip(&file, at),
                (None, "cut by one") => writable(&file).set_len(length - 1).unwrap(),
                (None, "cut to nothing") => writable(&file).set_len(0).unwrap(),
                (None, "longer by one") => writable(&file).set_len(length + 1).unwrap(),
                (None, "gone") => fs::remove_file(&file).unwrap(),
                (None, "a link") => {
                    fs::rename(&file, ground.path().join("elsewhere")).unwrap();
                    symlink(ground.path().join("elsewhere"), &file).unwrap();
                }
                (None, _) => {
                    fs::remove_file(&file).unwrap();
                    fs::create_dir(&file).unwrap();
                }
            }
            let expected = match what.as_str() {
                "cut by one" => format!("has {} bytes instead of {length}", length - 1),
                "cut to nothing" => format!("has 0 bytes instead of {length}"),
                "longer by one" => format!("has {} bytes instead of {length}", length + 1),
                "gone" => "is missing".to_owned(),
                "a link" | "a directory" => "is not a regular file".to_owned(),
                _ => "is damaged".to_owned(),
            };
            let refused = Err((file.clone(), expected));
            assert_eq!(verdict(&life, sealed.place()), refused, "{name} {what}");
            verdict(&life, other.place()).unwrap();
            drop(life);
            let life = ground.open();
            assert_eq!(verdict(&life, sealed.place()), refused, "{name} {what}");
            verdict(&life, other.place()).unwrap();
            life.storage.states.delete(sealed.place()).unwrap();
            assert!(life.storage.states.open(sealed.place()).unwrap().is_none());
        }
    }
}

#[test]
fn files_of_equal_length_in_each_others_place_are_refused() {
    let ground = Ground::new();
    let life = ground.open();
    let sealed = snapshot(&life, 1);
    let (state, ram, aside) =
        (sealed.file("state").unwrap(), sealed.file("ram").unwrap(), ground.path().join("aside"));
    for (old, new) in [(&state, &aside), (&ram, &state), (&aside, &ram)] {
        fs::rename(old, new).unwrap();
    }
    let (_, problem) = verdict(&life, sealed.place()).unwrap_err();
    assert_eq!(problem, "is damaged");
}

#[test]
fn a_state_in_anothers_place_or_without_a_manifest_is_refused() {
    let ground = Ground::new();
    let life = ground.open();
    let sealed = snapshot(&life, 1);
    let elsewhere = life.layout.snapshot(SnapshotId::from_u128(9));
    fs::rename(sealed.place(), &elsewhere).unwrap();
    let (_, problem) = verdict(&life, &elsewhere).unwrap_err();
    assert!(problem.starts_with("is that of"), "{problem}");
    assert!(life.storage.states.open(sealed.place()).unwrap().is_none());
    fs::remove_file(elsewhere.join("manifest.json")).unwrap();
    let (path, problem) = verdict(&life, &elsewhere).unwrap_err();
    assert_eq!((path, problem.as_str()), (elsewhere.join("manifest.json"), "is missing"));
}

#[test]
fn a_sealed_state_is_read_only_and_holds_its_layers() {
    let ground = Ground::new();
    let life = ground.open();
    let sealed = snapshot(&life, 1);
    for name in ["state", "ram", "manifest.json"] {
        let mode = fs::metadata(sealed.place().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o444, "{name}");
    }
    let layer = sealed.manifest.layers[0].id;
    life.disk(1).remove().unwrap();
    assert_eq!(life.storage.layers.holders(layer), [Holder(sealed.place().to_owned())]);
    drop(life);
    let life = ground.open();
    assert_eq!(life.layer_files(), [layer].into());
    assert_eq!(life.storage.states.open(sealed.place()).unwrap(), Some(sealed.clone()));
    verdict(&life, sealed.place()).unwrap();
    life.storage.states.delete(sealed.place()).unwrap();
    assert_eq!(life.layer_files(), BTreeSet::new());
}

#[test]
fn a_place_is_taken_once() {
    let ground = Ground::new();
    let life = ground.open();
    let sealed = snapshot(&life, 1);
    let room = life.storage.room.reserve(0).unwrap();
    let error = life.storage.states.begin(sealed.place(), room).unwrap_err();
    assert!(matches!(error, Error::SavedState { problem, .. } if problem == "is there already"));
    verdict(&life, sealed.place()).unwrap();
}

#[test]
fn a_draft_that_is_given_up_leaves_nothing() {
    let ground = Ground::new();
    let life = ground.open();
    let place = life.layout.snapshot(SnapshotId::from_u128(1));
    let states = &life.storage.states;
    let draft = states.begin(&place, life.storage.room.reserve(MIB).unwrap()).unwrap();
    drop(draft.create("state", 4096).unwrap());
    drop(draft);
    assert_eq!(fs::read_dir(life.layout.snapshots_dir()).unwrap().count(), 0);
    // Neither does one with something in it that does not belong there.
    let draft = states.begin(&place, life.storage.room.reserve(MIB).unwrap()).unwrap();
    fs::write(draft.path("state").with_file_name("Not Ours"), b"x").unwrap();
    assert!(draft.seal(manifest()).is_err());
    assert_eq!(fs::read_dir(life.layout.snapshots_dir()).unwrap().count(), 0);
}

#[test]
fn what_an_interrupted_draft_left_is_no_obstacle_and_does_not_get_into_the_next() {
    let ground = Ground::new();
    let life = ground.open();
    let place = life.layout.snapshot(SnapshotId::from_u128(1));
    let begin = || {
        let room = life.storage.room.reserve(MIB).unwrap();
        life.storage.states.begin(&place, room).unwrap()
    };
    let interrupted = begin();
    drop(interrupted.create("ram", 4096).unwrap());
    std::mem::forget(interrupted);
    let draft = begin();
    drop(draft.create("state", 4096).unwrap());
    let sealed = draft.seal(manifest()).unwrap();
    assert_eq!(sealed.manifest.files.keys().collect::<Vec<_>>(), ["state"]);
}

#[test]
fn a_sealing_that_is_cancelled_leaves_nothing_and_the_next_draft_need_not_wait_for_its_end() {
    let ground = Ground::new();
    let life = ground.open();
    let place = life.layout.snapshot(SnapshotId::from_u128(1));
    let begin = || {
        let room = life.storage.room.reserve(MIB).unwrap();
        let draft = life.storage.states.begin(&place, room).unwrap();
        draft.create("state", 4096).unwrap().write_all_at(b"state", 0).unwrap();
        draft
    };
    let stop = CancellationToken::new();
    let (given_up, next) = (begin(), begin());
    stop.cancel();
    assert!(matches!(given_up.close(&stop), Err(Error::Cancelled)));
    // Nor does the end of one take anything from the other.
    let sealed = next.close(&CancellationToken::new()).unwrap().seal(manifest()).unwrap();
    verdict(&life, sealed.place()).unwrap();
    assert_eq!(fs::read_dir(life.layout.snapshots_dir()).unwrap().count(), 1);
}

#[test]
fn a_sealing_that_fails_at_any_step_leaves_nothing_and_holds_nothing() {
    let points = ["state_sealed", "state_described", "state_in_place", "place taken meanwhile"];
    for point in points {
        let ground = Ground::new();
        let life = ground.open();
        let layer = snapshot(&life, 2).manifest.layers[0];
        let place = life.layout.snapshot(SnapshotId::from_u128(1));
        let room = life.storage.room.reserve(MIB).unwrap();
        let draft = life.storage.states.begin(&place, room).unwrap();
        drop(draft.create("state", 4096).unwrap());
        if !ground.faults.plan(point, FaultKind::Fail) {
            fs::create_dir(&place).unwrap();
            fs::write(place.join("other"), b"x").unwrap();
        }
        assert!(draft.seal(Manifest { layers: vec![layer], ..manifest() }).is_err(), "{point}");
        let holders = life.storage.layers.holders(layer.id);
        assert!(!holders.contains(&Holder(place.clone())), "{point}");
        let left = names_in(&life.layout.snapshots_dir()).unwrap();
        assert_eq!(left.len(), if place.exists() { 2 } else { 1 }, "{point}: {left:?}");
        assert_eq!(place.exists(), point == "place taken meanwhile");
    }
}

#[test]
fn whoever_has_a_deleted_state_open_keeps_it() {
    let ground = Ground::new();
    let life = ground.open();
    let sealed = snapshot(&life, 1);
    let ram = fs::File::open(sealed.file("ram").unwrap()).unwrap();
    // One of the same name whose removal was interrupted is no obstacle.
    let gone = life.layout.snapshots_dir().join(format!(".gone-{}", SnapshotId::from_u128(1)));
    fs::create_dir(&gone).unwrap();
    fs::write(gone.join("ram"), b"x").unwrap();
    life.storage.states.delete(sealed.place()).unwrap();
    life.storage.states.delete(sealed.place()).unwrap();
    assert!(!gone.exists());
    let mut found = [0; 13];
    ram.read_exact_at(&mut found, 150_000).unwrap();
    assert_eq!(&found, b"in the middle");
}

#[test]
fn damaged_states_that_can_be_made_again_are_removed_and_the_others_stay() {
    let ground = Ground::new();
    let life = ground.open();
    let (good, bad) = (snapshot(&life, 1), snapshot(&life, 2));
    flip(&bad.file("ram").unwrap(), 10);
    let unreadable = life.layout.snapshots_dir().join("unreadable");
    fs::create_dir(&unreadable).unwrap();
    drop(life);
    let life = ground.open();
    let parent = life.layout.snapshots_dir();
    let removed = life.storage.states.remove_damaged(&parent).unwrap();
    assert_eq!(removed, [SnapshotId::from_u128(2).to_string(), "unreadable".to_owned()]);
    verdict(&life, good.place()).unwrap();
    assert!(!bad.place().exists() && !unreadable.exists());
}

#[test]
fn leftovers_are_swept_at_the_start_at_every_depth() {
    let ground = Ground::new();
    let life = ground.open();
    let sealed = snapshot(&life, 1);
    let vm = life.layout.vm(WorkspaceId::from_u128(1));
    let suspended = life.layout.vm(WorkspaceId::from_u128(1)).suspended;
    assert_eq!(suspended.parent(), Some(vm.dir.as_path()));
    let leftovers = [
        life.layout.snapshots_dir().join(".new-x"),
        life.layout.templates_dir().join(".gone-x"),
        sealed.place().join(".new-promoted"),
        vm.dir.join(".new-suspended"),
        vm.dir.join(".gone-suspended"),
    ];
    for leftover in &leftovers {
        fs::create_dir(leftover).unwrap();
        fs::write(leftover.join("ram"), b"x").unwrap();
    }
    drop(life);
    let life = ground.open();
    assert!(leftovers.iter().all(|leftover| !leftover.exists()));
    verdict(&life, sealed.place()).unwrap();
}

#[test]
fn the_memory_of_a_suspended_vm_and_a_promoted_snapshot_are_states_like_any_other() {
    let ground = Ground::new();
    let life = ground.open();
    let sealed = snapshot(&life, 1);
    life.disk(1);
    let suspended = life.layout.vm(WorkspaceId::from_u128(1)).suspended;
    let promoted = life.layout.promoted(SnapshotId::from_u128(1));
    let abouts = [
        About::SuspendedMemory {
            workspace_id: WorkspaceId::from_u128(1),
            incarnation: skerry_model::Incarnation(3),
        },
        About::PromotedMemory { snapshot_id: SnapshotId::from_u128(1) },
    ];
    for (place, about) in [&suspended, &promoted].into_iter().zip(abouts) {
        let room = life.storage.room.reserve(100).unwrap();
        let draft = life.storage.states.begin(place, room).unwrap();
        draft.create("state", 100).unwrap().write_all_at(b"state", 0).unwrap();
        let sealed = draft.seal(Manifest { about, ..manifest() }).unwrap();
        assert_eq!(sealed.manifest.files["state"].length_bytes, 5);
        verdict(&life, place).unwrap();
    }
    life.storage.states.delete(sealed.place()).unwrap();
    assert!(!promoted.exists());
    verdict(&life, &suspended).unwrap();
}
