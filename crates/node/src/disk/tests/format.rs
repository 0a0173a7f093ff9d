//! What we write is what QEMU's own tools take for an empty, sound image.

use super::*;

const CLUSTER: u64 = 65536;

fn empty(path: &Path, size_bytes: u64) {
    let file = qcow2::create(path).unwrap();
    qcow2::write_empty(&file, size_bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn an_empty_image_of_any_size_is_sound_to_qemu_and_grows(
        sectors in 1_u64..=(1 << 42) / 512,
        grown in 1_u64..=(1 << 42) / 512,
        shift in 0_u32..32,
    ) {
        let (one, other) = ((sectors >> shift).max(1) * 512, (grown >> shift).max(1) * 512);
        let (small, large) = (one.min(other), one.max(other));
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = dir.path().join("disk.qcow2");
        empty(&file, small);
        prop_assert!(qcow2::is_empty(&file, small).unwrap());
        for size in [small, large] {
            qcow2::write_size(&file, size).unwrap();
            prop_assert_eq!(qcow2::read_header(&file).unwrap().unwrap().size_bytes, size);
            let info: serde_json::Value =
                serde_json::from_str(&qemu_img(&["info", "--output=json", path(&file)])).unwrap();
            prop_assert_eq!(&info["format"], "qcow2");
            prop_assert_eq!(info["virtual-size"].as_u64(), Some(size));
            prop_assert_eq!(&info["backing-filename"], &serde_json::Value::Null);
            let check: serde_json::Value =
                serde_json::from_str(&qemu_img(&["check", "--output=json", path(&file)])).unwrap();
            for kind in ["check-errors", "leaks", "corruptions"] {
                prop_assert!(check[kind].as_u64().unwrap_or(0) == 0, "{kind}: {check}");
            }
        }
        prop_assert_eq!(fs::metadata(&file).unwrap().len(), 4 * CLUSTER);
    }

    #[test]
    fn garbage_for_a_header_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..200)) {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = dir.path().join("disk.qcow2");
        fs::write(&file, &garbage).unwrap();
        prop_assert!(qcow2::read_header(&file).unwrap().is_err());
    }
}

/// The largest disk is written to at both ends, through two of our overlays on a raw base, and grown
/// in between: what QEMU reads back is what it wrote, and its check finds nothing.
#[test]
fn qemu_writes_and_reads_through_our_overlays() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = |name: &str| dir.path().join(name);
    let (base, layer, overlay) = (file("base.raw"), file("layer.qcow2"), file("top.qcow2"));
    fs::write(&base, vec![0x11; 1 << 20]).unwrap();
    empty(&layer, 2 << 20);
    let on_base = options(&layer, &[("", "raw", &base)]);
    run("qemu-io", &["--image-opts", &on_base, "-c", "write -P 0x22 64k 64k"]);

    empty(&overlay, 2 << 20);
    let on_layer = options(&overlay, &[("backing.", "raw", &base), ("", "qcow2", &layer)]);
    run("qemu-io", &["--image-opts", &on_layer, "-c", "write -P 0x33 128k 64k"]);
    qcow2::write_size(&overlay, 1 << 42).unwrap();
    run(
        "qemu-io",
        &[
            "--image-opts",
            &on_layer,
            "-c",
            "write -P 0x44 4398046445568 64k",
            "-c",
            "discard 0 64k",
        ],
    );
    let read = run(
        "qemu-io",
        &[
            "--image-opts",
            &on_layer,
            "-c",
            "read -P 0 0 64k",
            "-c",
            "read -P 0x22 64k 64k",
            "-c",
            "read -P 0x33 128k 64k",
            "-c",
            "read -P 0x11 192k 832k",
            "-c",
            "read -P 0 1M 10M",
            "-c",
            "read -P 0x44 4398046445568 64k",
        ],
    );
    assert!(!read.contains("failed"), "{read}");
    qemu_img(&["check", path(&overlay)]);
    assert!(!qcow2::is_empty(&overlay, 1 << 42).unwrap());
}

/// The overlay and what is below it, the lowest first, as explicit nodes.
fn options(overlay: &Path, below: &[(&str, &str, &Path)]) -> String {
    let mut text =
        format!("driver=qcow2,discard=unmap,file.driver=file,file.filename={}", overlay.display());
    for (deeper, driver, file) in below {
        let file = file.display();
        text += &format!(
            ",backing.{deeper}driver={driver},backing.{deeper}file.driver=file,backing.{deeper}file.filename={file}"
        );
    }
    text
}

#[test]
fn a_header_that_names_other_files_or_is_damaged_is_refused() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = dir.path().join("disk.qcow2");
    let damaged = |at: usize, bytes: &[u8]| {
        let _ = fs::remove_file(&file);
        empty(&file, 1 << 30);
        let mut content = fs::read(&file).unwrap();
        content[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&file, content).unwrap();
        qcow2::read_header(&file).unwrap()
    };
    assert_eq!(damaged(0, b"QFI\xfb").map(|header| header.size_bytes), Ok(1 << 30));
    assert_eq!(damaged(0, b"RAW!"), Err("is not a qcow2 file of version 3"));
    assert_eq!(damaged(4, &2_u32.to_be_bytes()), Err("is not a qcow2 file of version 3"));
    assert_eq!(damaged(20, &12_u32.to_be_bytes()), Err("has clusters of another size"));
    assert_eq!(damaged(24, &0_u64.to_be_bytes()), Err("has an impossible size"));
    assert_eq!(damaged(24, &u64::MAX.to_be_bytes()), Err("has an impossible size"));
    assert_eq!(damaged(32, &1_u32.to_be_bytes()), Err("claims to be encrypted"));
    assert_eq!(damaged(36, &1_u32.to_be_bytes()), Err("has a table too small for its size"));
    assert_eq!(damaged(60, &1_u32.to_be_bytes()), Err("claims to hold internal snapshots"));
    assert_eq!(damaged(72, &4_u64.to_be_bytes()), Err("names an external data file"));
    fs::write(&file, b"QFI\xfb").unwrap();
    assert_eq!(qcow2::read_header(&file).unwrap(), Err("is cut off"));
}

#[test]
fn impossible_sizes_are_not_written() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    for (number, size) in [0, 511, 513, (1 << 42) + 512].into_iter().enumerate() {
        let file = qcow2::create(&dir.path().join(number.to_string())).unwrap();
        assert!(qcow2::write_empty(&file, size).is_err(), "{size}");
    }
}

#[test]
fn the_limit_of_a_file_leaves_room_for_every_cluster_and_its_tables() {
    for size in [1_u64 << 20, 1 << 30, 10 << 30, 1 << 42] {
        let clusters = size.div_ceil(CLUSTER);
        let tables = clusters.div_ceil(CLUSTER / 8) + 4;
        let counts = (clusters + tables).div_ceil(CLUSTER / 2) + 1;
        let honest = (clusters + tables + counts + 4) * CLUSTER;
        assert!(most_file_bytes(size) > honest, "{size}");
        assert!(most_file_bytes(size) < honest + honest / 500 + (65 << 20), "{size}");
    }
}
