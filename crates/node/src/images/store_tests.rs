//! Tests of the store, with images that are a few bytes long.

use std::{fs::OpenOptions, os::unix::fs::symlink};

use super::*;
use crate::images::manifest::{FORMAT, SealedFile, digest_bytes};

struct Bench {
    _directory: tempfile::TempDir,
    store: ImageStore,
}

fn bench() -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&directory.path().join("images")).unwrap();
    Bench { _directory: directory, store }
}

/// Puts an image of this content into the store, built `second` seconds after the epoch.
fn publish(store: &ImageStore, name: &str, content: &[u8], second: i64) -> StoredImage {
    // A child that another test has just forked holds a copy of the lock for a moment.
    let lock = store.lock(&mut || {}).unwrap();
    let staging = lock.staging(name).unwrap();
    let disk = staging.path.join(DISK_FILE);
    fs::write(&disk, content).unwrap();
    let manifest = ImageManifest {
        format: FORMAT,
        name: ImageRef(name.into()),
        description: "a test".into(),
        category: "os".into(),
        min_memory_mib: 128,
        disk: SealedFile::describe(&disk).unwrap(),
        allocated_bytes: 4096,
        built_at: skerry_model::Timestamp::from_second(second).unwrap(),
        recipe_digest: "sha256:recipe".into(),
        packages: vec!["bash=5".into()],
        oci: None,
    };
    lock.publish_image(staging, &manifest).unwrap()
}

fn digests(store: &ImageStore) -> Vec<String> {
    let images = store.list().into_iter();
    images.map(|image| format!("{} {}", image.manifest.name, image.manifest.built_at)).collect()
}

#[test]
fn a_published_image_is_found_by_name_and_by_digest_and_is_read_only() {
    let Bench { store, .. } = &bench();
    let image = publish(store, "base", b"disk", 1);
    assert_eq!(*image.digest(), digest_bytes(b"disk"));
    assert_eq!(store.by_name(&ImageRef("base".into())).unwrap(), image);
    assert_eq!(store.by_digest(image.digest()).unwrap(), image);
    assert_eq!(fs::metadata(&image.disk).unwrap().permissions().mode() & 0o777, 0o444);
    store.verify(image.digest()).unwrap();
}

#[test]
fn a_name_means_its_newest_image_and_older_ones_stay_reachable() {
    let Bench { store, .. } = &bench();
    let old = publish(store, "base", b"old", 1);
    let new = publish(store, "base", b"new", 2);
    publish(store, "another", b"x", 3);
    assert_eq!(store.by_name(&ImageRef("base".into())).unwrap(), new);
    assert_eq!(store.by_digest(old.digest()).unwrap(), old);
    assert_eq!(
        digests(store),
        ["another 1970-01-01T00:00:03Z", "base 1970-01-01T00:00:02Z", "base 1970-01-01T00:00:01Z"]
    );
}

#[test]
fn publishing_the_same_content_again_leaves_the_first_as_it_is() {
    let Bench { store, .. } = &bench();
    let first = publish(store, "base", b"same", 1);
    assert_eq!(publish(store, "base", b"same", 2), first);
}

#[test]
fn a_missing_shortened_or_changed_disk_makes_only_its_image_unavailable() {
    let Bench { store, .. } = &bench();
    let sound = publish(store, "sound", b"sound", 1);
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("gone", |disk| fs::remove_file(disk).unwrap()),
        ("short", |disk| OpenOptions::new().write(true).open(disk).unwrap().set_len(1).unwrap()),
        ("changed", |disk| {
            let file = OpenOptions::new().write(true).open(disk).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        }),
        ("linked", |disk| {
            fs::remove_file(disk).unwrap();
            symlink("/etc/passwd", disk).unwrap();
        }),
    ];
    for (name, damage) in damages {
        let image = publish(store, name, name.as_bytes(), 1);
        fs::set_permissions(&image.disk, Permissions::from_mode(0o644)).unwrap();
        damage(&image.disk);
        assert!(store.by_digest(image.digest()).is_err(), "{name}");
        assert!(store.by_name(&image.manifest.name).is_err(), "{name}");
    }
    assert_eq!(store.list(), [sound]);
}

#[test]
fn a_manifest_that_is_damaged_or_of_another_layout_makes_its_image_unavailable() {
    let Bench { store, .. } = &bench();
    for text in ["", "{", "{\"format\": 2}", "[]", "{\"format\": 1}"] {
        let image = publish(store, "base", b"disk", 1);
        let manifest = image.disk.with_file_name(IMAGE_MANIFEST_FILE);
        fs::remove_file(&manifest).unwrap();
        fs::write(&manifest, text).unwrap();
        assert_eq!(store.list(), [], "{text}");
        // The next build of the same content repairs it.
        assert_eq!(publish(store, "base", b"disk", 1).digest(), image.digest());
    }
}

#[test]
fn a_manifest_cannot_speak_for_another_image() {
    let Bench { store, .. } = &bench();
    let one = publish(store, "one", b"one", 1);
    let other = publish(store, "other", b"other", 1);
    let manifest = |image: &StoredImage| image.disk.with_file_name(IMAGE_MANIFEST_FILE);
    fs::remove_file(manifest(&one)).unwrap();
    fs::copy(manifest(&other), manifest(&one)).unwrap();
    assert_eq!(store.list(), [other]);
}

#[test]
fn a_changed_content_of_the_same_length_and_time_is_found_by_verifying() {
    let Bench { store, .. } = &bench();
    let image = publish(store, "base", b"disk", 1);
    let modified = fs::metadata(&image.disk).unwrap().modified().unwrap();
    fs::set_permissions(&image.disk, Permissions::from_mode(0o644)).unwrap();
    fs::write(&image.disk, b"risk").unwrap();
    OpenOptions::new().write(true).open(&image.disk).unwrap().set_modified(modified).unwrap();
    store.by_digest(image.digest()).unwrap();
    assert!(matches!(store.verify(image.digest()), Err(ImageError::Unavailable { .. })));
}

#[test]
fn a_digest_that_is_not_one_finds_nothing() {
    let Bench { store, .. } = &bench();
    publish(store, "base", b"disk", 1);
    for digest in ["", "sha256:", "sha256:../../etc", "md5:00", "@"] {
        assert!(store.by_digest(&ImageDigest(digest.into())).is_err(), "{digest}");
    }
}

#[test]
fn what_an_interrupted_build_left_is_removed_by_the_next() {
    let Bench { store, .. } = &bench();
    let rubbish = store.directory().join(".staging-base");
    fs::create_dir(&rubbish).unwrap();
    fs::write(rubbish.join(DISK_FILE), "half").unwrap();
    assert_eq!(store.list(), []);
    publish(store, "base", b"disk", 1);
    assert!(!rubbish.exists());
}

#[test]
fn a_build_that_gives_up_leaves_nothing() {
    let Bench { store, .. } = &bench();
    let lock = store.lock(&mut || {}).unwrap();
    let staging = lock.staging("base").unwrap();
    let path = staging.path.clone();
    fs::write(path.join(DISK_FILE), "half").unwrap();
    drop(staging);
    assert!(!path.exists());
}

#[test]
fn builds_wait_for_each_other_and_say_so() {
    let Bench { store, .. } = &bench();
    let lock = store.lock(&mut || {}).unwrap();
    let (told, waiting) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let second = scope.spawn(move || {
            drop(store.lock(&mut || told.send(()).unwrap()).unwrap());
        });
        waiting.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(!second.is_finished());
        drop(lock);
        second.join().unwrap();
    });
}

#[test]
fn a_store_without_boot_artefacts_says_so() {
    let error = bench().store.boot_files().unwrap_err().to_string();
    assert_eq!(error, "no boot artefacts: they have not been built");
}
