//! Tests of the choice between kernels, with kernels that are a few bytes long.

use skerry_model::Timestamp;

use super::*;
use crate::images::manifest::{FORMAT, SealedFile};

fn store() -> (tempfile::TempDir, ImageStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&directory.path().join("images")).unwrap();
    (directory, store)
}

fn publish_boot(store: &ImageStore) -> BootArtefacts {
    let lock = store.lock(&mut || {}).unwrap();
    let staging = lock.staging("boot").unwrap();
    let (kernel, initramfs) = (staging.path.join(KERNEL_FILE), staging.path.join(INITRAMFS_FILE));
    fs::write(&kernel, "distribution's").unwrap();
    fs::write(&initramfs, "agent").unwrap();
    let manifest = BootManifest {
        format: FORMAT,
        kernel_release: "6.1.0-cloud".into(),
        kernel_source: "a package".into(),
        kernel: SealedFile::describe(&kernel).unwrap(),
        initramfs: SealedFile::describe(&initramfs).unwrap(),
        agent_digest: digest_bytes(b"agent"),
        modules: Vec::new(),
        built_at: Timestamp::UNIX_EPOCH,
    };
    lock.publish_boot(staging, &manifest).unwrap()
}

fn publish_kernel(store: &ImageStore, content: &str) -> SmallKernel {
    let lock = store.lock(&mut || {}).unwrap();
    let staging = lock.staging("kernel").unwrap();
    let (kernel, config) = (staging.path.join(KERNEL_FILE), staging.path.join(KERNEL_CONFIG_FILE));
    fs::write(&kernel, content).unwrap();
    fs::write(&config, "CONFIG_SMP=y\n").unwrap();
    let manifest = KernelManifest {
        format: FORMAT,
        release: "6.1.9-skerry".into(),
        source: "linux-source-6.1 6.1.9-1".into(),
        fragment_digest: digest_bytes(b"fragment"),
        compiler: "gcc 12".into(),
        kernel: SealedFile::describe(&kernel).unwrap(),
        config: SealedFile::describe(&config).unwrap(),
        compiled_files: 1,
        built_at: Timestamp::UNIX_EPOCH,
    };
    lock.publish_small_kernel(staging, &manifest).unwrap()
}

fn chosen(store: &ImageStore, choice: KernelChoice) -> Result<(KernelVariant, String), String> {
    let boot = store.clone().with_kernel_choice(choice).boot_files();
    boot.map(|boot| (boot.kernel_variant, fs::read_to_string(boot.kernel).unwrap()))
        .map_err(|error| error.to_string())
}

fn distributions() -> Result<(KernelVariant, String), String> {
    Ok((KernelVariant::Distribution, "distribution's".to_owned()))
}

#[test]
fn the_small_kernel_is_used_once_it_is_there_unless_the_distributions_is_asked_for() {
    let (_directory, store) = store();
    publish_boot(&store);
    assert_eq!(chosen(&store, KernelChoice::Auto), distributions());
    let refusal = chosen(&store, KernelChoice::Small).unwrap_err();
    assert_eq!(refusal, "no usable small kernel: it has not been built");
    publish_kernel(&store, "small");
    let small = Ok((KernelVariant::Small, "small".to_owned()));
    assert_eq!(chosen(&store, KernelChoice::Auto), small);
    assert_eq!(chosen(&store, KernelChoice::Small), small);
    assert_eq!(chosen(&store, KernelChoice::Distribution), distributions());
    assert!(store.list().is_empty(), "it is not an image");
}

#[test]
fn a_small_kernel_alone_is_not_enough_to_boot() {
    let (_directory, store) = store();
    publish_kernel(&store, "small");
    let error = chosen(&store, KernelChoice::Auto).unwrap_err();
    assert_eq!(error, "no boot artefacts: they have not been built");
}

#[test]
fn a_damaged_small_kernel_is_passed_over_unless_it_is_asked_for() {
    let (_directory, store) = store();
    publish_boot(&store);
    let small = publish_kernel(&store, "small");
    fs::remove_file(&small.kernel).unwrap();
    fs::write(&small.kernel, "SMALL").unwrap();
    assert_eq!(chosen(&store, KernelChoice::Auto), distributions());
    let refusal = chosen(&store, KernelChoice::Small).unwrap_err();
    assert!(refusal.contains("was changed after it was built"), "{refusal}");
    fs::remove_dir_all(small.kernel.parent().unwrap()).unwrap();
    assert_eq!(chosen(&store, KernelChoice::Auto), distributions());
    assert!(chosen(&store, KernelChoice::Small).is_err());
}

#[test]
fn the_digest_of_the_boot_files_changes_with_the_kernel() {
    let (_directory, store) = store();
    publish_boot(&store);
    let digest = || store.boot_files().unwrap().digest();
    let distributions = digest();
    publish_kernel(&store, "small");
    let small = digest();
    publish_kernel(&store, "another");
    assert!(distributions != small && small != digest() && digest() != distributions);
    publish_kernel(&store, "small");
    assert_eq!(digest(), small);
}

#[test]
fn the_small_kernel_in_use_and_the_one_before_are_kept() {
    let (_directory, store) = store();
    let first = publish_kernel(&store, "first");
    let second = publish_kernel(&store, "second");
    assert!(first.kernel.exists() && second.kernel.exists());
    let third = publish_kernel(&store, "third");
    assert!(!first.kernel.exists() && second.kernel.exists() && third.kernel.exists());
    assert_eq!(store.small_kernel().unwrap(), third);
    // Building the same again must not take it away from under a VM that boots with it.
    assert_eq!(publish_kernel(&store, "third").kernel, third.kernel);
    assert!(third.kernel.exists());
}
