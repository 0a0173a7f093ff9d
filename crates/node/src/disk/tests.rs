use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

use proptest::prelude::*;

use super::*;
use crate::saved::test_ground::{Ground, Life, MIB, bare, image, mark, marks};

mod crash;
mod format;
mod model;

pub(crate) use crash::SCRIPTS as CRASH_SCRIPTS;

fn top(life: &Life, workspace: u128, chain: &DiskChain) -> PathBuf {
    life.vm_dir(workspace).join(chain.overlay.unwrap().file_name())
}

fn problem(error: &Error) -> String {
    match error {
        Error::Disk { problem, .. } => problem.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_disk_is_made_once_grown_upwards_and_never_shrunk() {
    let ground = Ground::new();
    let life = ground.open();
    let disk = life.disk(1);
    assert!(!disk.exists());
    let first = disk.ensure(&bare(), 12 * MIB).unwrap();
    for (wanted, expected) in [(12, 12), (64, 64), (16, 64), (3 * 1024 * 1024, 3 * 1024 * 1024)] {
        let chain = disk.ensure(&bare(), wanted * MIB).unwrap();
        assert_eq!(chain.size_bytes, expected * MIB);
        assert_eq!(chain.overlay, first.overlay);
        let header = qcow2::read_header(&top(&life, 1, &chain)).unwrap().unwrap();
        assert_eq!(header.size_bytes, expected * MIB);
    }
    assert!(disk.exists());
}

#[test]
fn a_disk_is_never_smaller_than_what_it_stands_on() {
    let ground = Ground::new();
    let life = ground.open();
    let chain = life.disk(1).ensure(&bare(), MIB).unwrap();
    assert_eq!(chain.size_bytes, 4 * MIB);
}

#[test]
fn a_push_makes_the_former_top_a_read_only_layer_of_ours() {
    let ground = Ground::new();
    let life = ground.open();
    let disk = life.disk(1);
    let before = disk.ensure(&bare(), 12 * MIB).unwrap();
    mark(&top(&life, 1, &before), 7);
    assert_eq!(disk.pending_overlay().unwrap(), None);
    let overlay = disk.begin_push().unwrap();
    assert!(disk.push_is_pending().unwrap());
    assert_eq!(disk.pending_overlay().unwrap().as_ref(), Some(&overlay));
    assert_eq!(
        problem(&disk.begin_push().unwrap_err()),
        "an overlay is being put on top of it already"
    );
    let after = disk.complete_push().unwrap();
    assert!(!disk.push_is_pending().unwrap());
    assert_eq!(top(&life, 1, &after), overlay);
    assert_eq!(after.layers, [before.overlay.unwrap()]);
    assert_eq!(disk.complete_push().unwrap(), after);

    let layer = life.storage.layers.path(before.overlay.unwrap());
    let found = fs::metadata(&layer).unwrap();
    assert_eq!(found.permissions().mode() & 0o777, 0o444);
    assert_eq!(found.uid(), geteuid().as_raw());
    assert_eq!(marks(&layer), [7]);
    let spec = disk.spec(&after, PathBuf::from("/images/root.ext4")).unwrap();
    assert_eq!((spec.overlay, spec.layers), (overlay, vec![layer]));
}

#[test]
fn an_aborted_push_leaves_the_disk_as_it_was() {
    let ground = Ground::new();
    let life = ground.open();
    let disk = life.disk(1);
    let before = disk.ensure(&bare(), 12 * MIB).unwrap();
    let overlay = disk.begin_push().unwrap();
    disk.abort_push().unwrap();
    disk.abort_push().unwrap();
    assert!(!overlay.exists());
    assert_eq!(disk.settled().unwrap(), Some(before));
}

#[test]
fn what_was_written_decides_whether_a_push_happened_that_nobody_saw_end() {
    for (written, layers) in [(true, 1), (false, 0)] {
        let ground = Ground::new();
        let life = ground.open();
        let disk = life.disk(1);
        let before = disk.ensure(&bare(), 12 * MIB).unwrap();
        mark(&top(&life, 1, &before), 1);
        let overlay = disk.begin_push().unwrap();
        if written {
            mark(&overlay, 2);
        }
        let after = disk.settled().unwrap().unwrap();
        assert_eq!(after.layers.len(), layers);
        assert_eq!(life.written(1, &after), if written { [1, 2].into() } else { [1].into() });
        assert!(!disk.push_is_pending().unwrap());
    }
}

#[test]
fn freezing_an_overlay_that_nothing_was_written_to_adds_no_layer() {
    let ground = Ground::new();
    let life = ground.open();
    let disk = life.disk(1);
    let chain = disk.ensure(&bare(), 12 * MIB).unwrap();
    assert_eq!(disk.freeze().unwrap(), chain);
    mark(&top(&life, 1, &chain), 1);
    let frozen = disk.freeze().unwrap();
    assert_eq!((frozen.overlay, frozen.layers.len()), (None, 1));
    assert_eq!(disk.freeze().unwrap(), frozen);
    let next = disk.ensure(&bare(), 12 * MIB).unwrap();
    assert_eq!(next.layers, frozen.layers);
    assert_eq!(disk.freeze().unwrap(), next);
}

#[test]
fn a_replaced_disk_is_kept_until_the_replacement_has_proved_itself() {
    let ground = Ground::new();
    let life = ground.open();
    let disk = life.disk(1);
    let old = disk.ensure(&bare(), 12 * MIB).unwrap();
    mark(&top(&life, 1, &old), 1);
    let frozen = disk.freeze().unwrap();
    let old = disk.ensure(&bare(), 12 * MIB).unwrap();
    mark(&top(&life, 1, &old), 2);
    let foundation =
        Foundation { image_digest: image(), layers: frozen.layers.clone(), size_bytes: 12 * MIB };

    let new = disk.replace(&foundation, 12 * MIB).unwrap();
    assert_eq!(life.written(1, &new), [1].into());
    mark(&top(&life, 1, &new), 3);
    disk.revert_replacement().unwrap();
    disk.revert_replacement().unwrap();
    assert_eq!(life.written(1, &disk.settled().unwrap().unwrap()), [1, 2].into());
    assert!(!top(&life, 1, &new).exists());

    // A second attempt gives up the first, not what was there before it.
    disk.replace(&foundation, 12 * MIB).unwrap();
    disk.replace(&foundation, 12 * MIB).unwrap();
    disk.revert_replacement().unwrap();
    assert_eq!(life.written(1, &disk.settled().unwrap().unwrap()), [1, 2].into());
    let new = disk.replace(&foundation, 12 * MIB).unwrap();
    mark(&top(&life, 1, &new), 4);
    disk.keep_replacement().unwrap();
    disk.revert_replacement().unwrap();
    assert_eq!(life.written(1, &disk.settled().unwrap().unwrap()), [1, 4].into());
    assert!(!top(&life, 1, &old).exists());
}

#[test]
fn flattening_lets_go_of_the_layers_and_only_of_the_chain_that_was_flattened() {
    let ground = Ground::new();
    let life = ground.open();
    let disk = life.disk(1);
    let mut chain = disk.ensure(&bare(), 12 * MIB).unwrap();
    for number in 0..=record::LAYERS_BEFORE_FLATTENING as u64 {
        assert!(!chain.wants_flattening());
        mark(&top(&life, 1, &chain), number);
        disk.freeze().unwrap();
        chain = disk.ensure(&bare(), 12 * MIB).unwrap();
    }
    assert!(chain.wants_flattening());
    let other = DiskChain { layers: Vec::new(), ..chain.clone() };
    assert!(disk.flattened(&other).is_err());
    let flat = disk.flattened(&chain).unwrap();
    assert_eq!((flat.overlay, flat.layers.len()), (chain.overlay, 0));
    assert_eq!(life.layer_files(), BTreeSet::new());
}

#[test]
fn no_layer_is_added_beyond_what_a_vmm_takes() {
    let ground = Ground::new();
    let life = ground.open();
    let disk = life.disk(1);
    for number in 0..DiskSpec::MAX_LAYERS as u64 {
        let chain = disk.ensure(&bare(), 12 * MIB).unwrap();
        mark(&top(&life, 1, &chain), number);
        disk.freeze().unwrap();
    }
    let chain = disk.ensure(&bare(), 12 * MIB).unwrap();
    assert_eq!(chain.layers.len(), DiskSpec::MAX_LAYERS);
    mark(&top(&life, 1, &chain), 99);
    for error in [disk.begin_push().unwrap_err(), disk.freeze().unwrap_err()] {
        assert!(problem(&error).contains("has to be flattened first"), "{error}");
    }
    assert_eq!(disk.settled().unwrap(), Some(chain));
}

#[test]
fn a_disk_whose_directory_was_renamed_holds_its_layers_as_before() {
    let ground = Ground::new();
    let life = ground.open();
    let slot = life.disk(1);
    let chain = slot.ensure(&bare(), 12 * MIB).unwrap();
    mark(&top(&life, 1, &chain), 1);
    slot.freeze().unwrap();
    let chain = slot.ensure(&bare(), 12 * MIB).unwrap();
    let (old, new) = (life.vm_dir(1), life.vm_dir(2));
    fs::rename(&old, &new).unwrap();
    life.storage.disks.moved(&old, &new);
    assert_eq!(life.disk(2).settled().unwrap(), Some(chain.clone()));
    assert_eq!(life.written(2, &chain), [1].into());
    assert_eq!(life.storage.layers.holders(chain.layers[0]), [Holder(new)]);
    life.disk(2).remove().unwrap();
    assert_eq!(life.layer_files(), BTreeSet::new());
}

#[test]
fn a_removed_disk_takes_the_layers_that_nobody_else_needs_with_it() {
    let ground = Ground::new();
    let life = ground.open();
    let disk = life.disk(1);
    let chain = disk.ensure(&bare(), 12 * MIB).unwrap();
    mark(&top(&life, 1, &chain), 1);
    let shared = disk.freeze().unwrap();
    let chain = disk.ensure(&bare(), 12 * MIB).unwrap();
    mark(&top(&life, 1, &chain), 2);
    disk.freeze().unwrap();
    let fork = life.disk(2);
    let foundation =
        Foundation { image_digest: image(), layers: shared.layers.clone(), size_bytes: 12 * MIB };
    fork.ensure(&foundation, 12 * MIB).unwrap();
    assert_eq!(life.layer_files().len(), 2);
    disk.remove().unwrap();
    disk.remove().unwrap();
    assert!(!disk.exists());
    assert_eq!(life.layer_files(), shared.layers.iter().copied().collect());
    fork.remove().unwrap();
    assert_eq!(life.layer_files(), BTreeSet::new());
}

#[test]
fn a_disk_is_not_made_on_a_layer_that_is_not_there() {
    let ground = Ground::new();
    let life = ground.open();
    let missing = LayerId::from_random([7; 16]);
    let foundation = Foundation { layers: vec![missing], ..bare() };
    let error = life.disk(1).ensure(&foundation, 12 * MIB).unwrap_err();
    assert_eq!(problem(&error), "the layer is missing");
    assert!(!life.disk(1).exists());
}

#[test]
fn a_disk_whose_overlay_is_gone_is_damaged_and_not_made_anew() {
    let ground = Ground::new();
    let life = ground.open();
    let disk = life.disk(1);
    let chain = disk.ensure(&bare(), 12 * MIB).unwrap();
    fs::remove_file(top(&life, 1, &chain)).unwrap();
    assert!(problem(&disk.ensure(&bare(), 12 * MIB).unwrap_err()).ends_with("is missing"));
}

#[test]
fn an_overlay_that_claims_a_size_it_was_never_given_is_refused() {
    let ground = Ground::new();
    let life = ground.open();
    let disk = life.disk(1);
    let chain = disk.ensure(&bare(), 12 * MIB).unwrap();
    qcow2::write_size(&top(&life, 1, &chain), 1 << 40).unwrap();
    let error = disk.ensure(&bare(), 12 * MIB).unwrap_err();
    assert_eq!(problem(&error), "claims a size it was never given");
}

#[test]
fn a_growth_that_was_recorded_and_not_made_is_made_by_the_next_start() {
    let ground = Ground::new();
    let life = ground.open();
    let disk = life.disk(1);
    disk.ensure(&bare(), 12 * MIB).unwrap();
    let mut record = DiskRecord::read(&disk.record_path()).unwrap().unwrap();
    record.chain.size_bytes = 64 * MIB;
    record.write(&disk.record_path()).unwrap();
    let chain = disk.ensure(&bare(), 12 * MIB).unwrap();
    assert_eq!(chain.size_bytes, 64 * MIB);
    let header = qcow2::read_header(&top(&life, 1, &chain)).unwrap().unwrap();
    assert_eq!(header.size_bytes, 64 * MIB);
}

#[test]
fn a_link_in_place_of_an_overlay_is_not_followed() {
    let ground = Ground::new();
    let life = ground.open();
    let disk = life.disk(1);
    let chain = disk.ensure(&bare(), 12 * MIB).unwrap();
    let overlay = top(&life, 1, &chain);
    let elsewhere = ground.path().join("elsewhere");
    fs::rename(&overlay, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &overlay).unwrap();
    assert!(disk.ensure(&bare(), 64 * MIB).is_err());
    assert!(disk.freeze().is_err());
    assert_eq!(fs::metadata(&elsewhere).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn overlays_that_nothing_names_are_swept_and_other_files_are_not() {
    let ground = Ground::new();
    let life = ground.open();
    let disk = life.disk(1);
    disk.ensure(&bare(), 12 * MIB).unwrap();
    let dir = life.vm_dir(1);
    let stray = dir.join(LayerId::from_random([9; 16]).file_name());
    let others = [dir.join("console.log"), dir.join("notes.qcow2")];
    for path in [&stray, &others[0], &others[1]] {
        File::create(path).unwrap();
    }
    disk.settled().unwrap();
    assert!(!stray.exists() && others.iter().all(|path| path.exists()));
}

#[test]
fn a_disk_from_before_records_is_taken_over_and_can_grow() {
    let ground = Ground::new();
    let life = ground.open();
    let disk = life.disk(1);
    let old = life.vm_dir(1).join(UNRECORDED);
    qemu_img(&["create", "-q", "-f", "qcow2", path(&old), "12M"]);
    assert!(disk.exists());
    let chain = disk.ensure(&bare(), 12 * MIB).unwrap();
    assert!(!old.exists());
    assert_eq!((chain.layers.len(), chain.size_bytes), (0, 12 * MIB));
    // Its own table of clusters has one entry, for 512 MiB: then it goes below a larger one.
    let chain = disk.ensure(&bare(), 600 * MIB).unwrap();
    assert_eq!((chain.layers.len(), chain.size_bytes), (1, 600 * MIB));
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn qemu_img(args: &[&str]) -> String {
    run("qemu-img", args)
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}
