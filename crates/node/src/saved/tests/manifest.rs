use std::fs;

use proptest::prelude::*;
use skerry_internal_api::SnapshotContents;
use skerry_model::{Incarnation, SnapshotId, WorkspaceId};

use crate::{
    layers::{LayerId, LayerSeal},
    saved::{
        About, ContentDigest, Manifest,
        manifest::{FileSeal, is_file_name},
        test_ground::manifest,
    },
};

fn about() -> impl Strategy<Value = About> {
    let workspace = || any::<u128>().prop_map(WorkspaceId::from_u128);
    prop_oneof![
        Just(About::Template),
        any::<u128>()
            .prop_map(|id| About::PromotedMemory { snapshot_id: SnapshotId::from_u128(id) }),
        (workspace(), any::<u64>()).prop_map(|(workspace_id, number)| About::SuspendedMemory {
            workspace_id,
            incarnation: Incarnation(number),
        }),
        (workspace(), any::<bool>(), any::<u32>()).prop_map(|(workspace_id, memory, ms)| {
            let contents =
                if memory { SnapshotContents::DiskAndMemory } else { SnapshotContents::Disk };
            let blackout = std::time::Duration::from_millis(ms.into());
            About::Snapshot { workspace_id, contents, blackout }
        }),
    ]
}

fn manifests() -> impl Strategy<Value = Manifest> {
    let file =
        ("[a-z0-9-]{1,32}", any::<u64>(), any::<u8>()).prop_map(|(name, length_bytes, seed)| {
            (name, FileSeal { length_bytes, digest: ContentDigest::of_bytes(&[seed]) })
        });
    let layer = (any::<[u8; 16]>(), any::<u64>()).prop_map(|(id, length_bytes)| LayerSeal {
        id: LayerId::from_random(id),
        length_bytes,
        digest: ContentDigest::of_bytes(&id),
    });
    (
        about(),
        proptest::collection::vec(file, 0..8),
        proptest::collection::vec(layer, 0..32),
        proptest::option::of("[a-z0-9.-]{0,40}"),
        any::<u64>(),
    )
        .prop_map(|(about, files, layers, fingerprint, disk_size_bytes)| Manifest {
            about,
            files: files.into_iter().collect(),
            layers,
            fingerprint,
            disk_size_bytes,
            ..manifest()
        })
        .prop_filter("ids are drawn once", |manifest| manifest.check().is_ok())
}

proptest! {
    #[test]
    fn a_manifest_is_read_as_it_was_written_and_only_in_its_own_place(manifest in manifests()) {
        let text = manifest.to_text("place").unwrap();
        prop_assert_eq!(Manifest::parse(&text, "place"), Ok(manifest));
        prop_assert!(Manifest::parse(&text, "elsewhere").is_err());
    }

    #[test]
    fn a_manifest_with_any_byte_changed_is_refused_unless_it_says_the_same(
        manifest in manifests(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut text = manifest.to_text("place").unwrap();
        let at = at.index(text.len());
        text[at] = byte;
        // White space may differ; nothing that is said may.
        if let Ok(read) = Manifest::parse(&text, "place") {
            prop_assert_eq!(read, manifest);
        }
    }

    #[test]
    fn a_manifest_cut_anywhere_is_refused(manifest in manifests(), at in any::<prop::sample::Index>()) {
        let text = manifest.to_text("place").unwrap();
        // Without the last line break it is still whole.
        let at = at.index(text.len() - 1);
        prop_assert!(Manifest::parse(&text[..at], "place").is_err());
    }

    #[test]
    fn garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Manifest::parse(&garbage, "place").is_err());
    }
}

#[test]
fn a_manifest_says_everything_that_is_known() {
    let mut manifest = manifest();
    let digest = ContentDigest::of_bytes(b"state");
    manifest.files.insert("state".to_owned(), FileSeal { length_bytes: 5, digest });
    let id = LayerId::from_random([3; 16]);
    manifest.layers.push(LayerSeal { id, length_bytes: 262_144, digest });
    let text = String::from_utf8(manifest.to_text("place").unwrap()).unwrap();
    insta::assert_snapshot!(text);
}

#[test]
fn another_layout_an_unknown_field_and_forbidden_names_are_refused() {
    let text = String::from_utf8(manifest().to_text("place").unwrap()).unwrap();
    let refused = |text: &str| Manifest::parse(text.as_bytes(), "place").unwrap_err();
    assert_eq!(refused(&text.replace("\"format\": 1", "\"format\": 2")), "has layout 2, not 1");
    assert!(refused(&text.replace("\"format\": 1", "\"format\": 1, \"more\": 1")).contains("more"));
    assert_eq!(
        refused(&text.replace("268", "269").replace("\"memory_mib\": 256", "\"memory_mib\": 512")),
        "is damaged"
    );
    for name in ["", ".", "..", "a/b", "manifest.json", ".new-x", "Ram", &"a".repeat(33)] {
        assert!(!is_file_name(name), "{name:?}");
    }
    assert!(is_file_name("state") && is_file_name("ram"));
}

#[test]
fn only_the_beginning_of_a_huge_manifest_is_read() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("manifest.json");
    let mut text = manifest().to_text("place").unwrap();
    text.extend(std::iter::repeat_n(b' ', 1 << 20));
    fs::write(&path, &text).unwrap();
    // White space is the one thing that could follow; what comes after the bound is never seen.
    text.extend(b"garbage");
    fs::write(&path, &text).unwrap();
    assert!(Manifest::read(&path, "place").unwrap().is_some());
}
