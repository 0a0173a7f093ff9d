use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, symlink},
};

use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use crate::saved::{ContentDigest, KnownDigests};

fn digest(file: &File) -> ContentDigest {
    ContentDigest::of_file(file, &CancellationToken::new()).unwrap().unwrap()
}

proptest! {
    #[test]
    fn a_hole_and_written_zeros_are_the_same_content(
        length in 0_u64..700_000,
        written in proptest::collection::vec((0_u64..700_000, 1_usize..70_000, any::<u8>()), 0..6),
    ) {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let sparse = OpenOptions::new()
            .read(true).write(true).create(true).truncate(true)
            .open(dir.path().join("sparse")).unwrap();
        sparse.set_len(length).unwrap();
        for (at, count, byte) in written {
            let count = count.min(usize::try_from(length.saturating_sub(at)).unwrap());
            sparse.write_all_at(&vec![byte; count], at).unwrap();
        }
        let mut content = vec![0; usize::try_from(length).unwrap()];
        sparse.read_exact_at(&mut content, 0).unwrap();
        fs::write(dir.path().join("dense"), &content).unwrap();
        let dense = File::open(dir.path().join("dense")).unwrap();
        prop_assert_eq!(digest(&sparse), digest(&dense));
        prop_assert_eq!(digest(&sparse), ContentDigest::of_bytes(&content));
    }

    #[test]
    fn one_changed_byte_or_another_length_is_another_content(
        length in 1_usize..300_000,
        at in 0_usize..300_000,
        flip in 1_u8..,
    ) {
        let mut content = vec![0; length];
        let before = ContentDigest::of_bytes(&content);
        content[at % length] ^= flip;
        prop_assert_ne!(ContentDigest::of_bytes(&content), before);
        content[at % length] ^= flip;
        content.push(0);
        prop_assert_ne!(ContentDigest::of_bytes(&content), before);
    }

    #[test]
    fn a_digest_is_read_as_it_is_printed_and_garbage_is_refused(
        content in proptest::collection::vec(any::<u8>(), 0..100),
        garbage in ".{0,90}",
    ) {
        let digest = ContentDigest::of_bytes(&content);
        prop_assert_eq!(digest.to_string().parse(), Ok(digest));
        prop_assert!(digest.to_string().to_uppercase().parse::<ContentDigest>().is_err());
        prop_assert!(garbage.parse::<ContentDigest>().is_err());
    }
}

/// The digest is part of a format on the disk: it must not change unnoticed.
#[test]
fn the_digest_of_known_content_is_known() {
    let content: Vec<u8> = (0..200_000_u32).map(|number| (number % 251) as u8).collect();
    insta::assert_snapshot!(ContentDigest::of_bytes(&content));
}

#[test]
fn a_file_is_read_again_only_when_it_has_changed() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("file");
    fs::write(&path, b"one").unwrap();
    let known = KnownDigests::default();
    let (length, one) = known.of(&path).unwrap();
    assert_eq!((length, one), (3, ContentDigest::of_bytes(b"one")));
    assert_eq!(known.of(&path).unwrap().1, one);
    fs::write(&path, b"two").unwrap();
    assert_eq!(known.of(&path).unwrap().1, ContentDigest::of_bytes(b"two"));
    // Another file under the same name, and the same file under another name.
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    fs::create_dir(&old).unwrap();
    fs::rename(&path, old.join("file")).unwrap();
    known.of(&old.join("file")).unwrap();
    fs::rename(&old, &new).unwrap();
    known.moved(&old, &new);
    assert_eq!(known.of(&new.join("file")).unwrap().1, ContentDigest::of_bytes(b"two"));
    fs::write(&path, b"three").unwrap();
    fs::rename(&path, new.join("file")).unwrap();
    assert_eq!(known.of(&new.join("file")).unwrap().1, ContentDigest::of_bytes(b"three"));
    known.forget(&new);
    fs::remove_dir_all(&new).unwrap();
    assert!(known.of(&new.join("file")).is_err());
}

#[test]
fn links_directories_and_pipes_are_not_read() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let known = KnownDigests::default();
    let (file, link, pipe) =
        (dir.path().join("file"), dir.path().join("link"), dir.path().join("pipe"));
    fs::write(&file, b"one").unwrap();
    symlink(&file, &link).unwrap();
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [link.as_path(), pipe.as_path(), dir.path()] {
        assert!(known.of(path).is_err(), "{}", path.display());
    }
}
