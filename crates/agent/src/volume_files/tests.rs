use std::os::unix::fs::symlink;

use skerry_agent_protocol::{message::FileKind, volume_files::Depth};

use super::*;

struct Ground {
    dir: tempfile::TempDir,
    root: Root,
}

impl Ground {
    /// A volume at `inside`, and a secret beside it.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("inside")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        let root = Root::new(File::open(dir.path().join("inside")).unwrap());
        Self { dir, root }
    }

    fn inside(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join("inside").join(path)
    }

    fn paths(&self, path: &str, depth: Depth, limit: u32) -> (Vec<String>, bool) {
        let below = Below::parse(path).unwrap();
        let listing = listing::collect(&self.root, &below, depth, limit).unwrap();
        (listing.entries.into_iter().map(|entry| entry.path).collect(), listing.truncated)
    }
}

#[test]
fn a_path_that_leads_out_is_none() {
    for path in ["/etc/passwd", "..", "a/../../secret", "./a", "a\0b"] {
        assert!(Below::parse(path).is_err(), "{path}");
    }
    assert!(Below::parse(&"a/".repeat(4096)).is_err());
    assert_eq!(Below::parse("").unwrap().split(), None);
}

#[test]
fn no_link_leads_out_of_a_volume() {
    let ground = Ground::new();
    let secret = ground.dir.path().join("secret");
    symlink(&secret, ground.inside("absolute")).unwrap();
    symlink("../secret", ground.inside("upwards")).unwrap();
    symlink("..", ground.inside("out")).unwrap();
    symlink("/proc/self/root", ground.inside("magic")).unwrap();
    for path in ["absolute", "upwards", "out/secret", "magic/etc/passwd"] {
        let opened = ground.root.open(&Below::parse(path).unwrap(), OFlag::O_RDONLY);
        assert!(opened.is_err(), "{path}");
        let made = ground.root.make_dirs(&Below::parse(&format!("{path}/x")).unwrap());
        assert!(made.is_err(), "{path}");
    }
    assert_eq!(fs::read_dir(ground.dir.path()).unwrap().count(), 2);
    // One that stays inside is as good as what it names.
    fs::create_dir(ground.inside("real")).unwrap();
    fs::write(ground.inside("real/file"), "x").unwrap();
    symlink("real", ground.inside("near")).unwrap();
    assert!(ground.root.open(&Below::parse("near/file").unwrap(), OFlag::O_RDONLY).is_ok());
}

#[test]
fn a_listing_goes_down_follows_no_link_and_has_an_end() {
    let ground = Ground::new();
    fs::create_dir_all(ground.inside("a/b")).unwrap();
    fs::create_dir(ground.inside("lost+found")).unwrap();
    for file in ["a/b/c", "a/d", "e"] {
        fs::write(ground.inside(file), "12345").unwrap();
    }
    symlink("..", ground.inside("a/up")).unwrap();
    assert_eq!(ground.paths("", Depth::One, 10), (vec!["a".into(), "e".into()], false));
    let all = ["a", "a/b", "a/b/c", "a/d", "a/up", "e"].map(String::from).to_vec();
    assert_eq!(ground.paths("", Depth::All, 10), (all, false));
    assert_eq!(ground.paths("a/b", Depth::All, 10), (vec!["a/b/c".into()], false));
    assert_eq!(ground.paths("e", Depth::All, 10), (vec!["e".into()], false));
    let (some, truncated) = ground.paths("", Depth::All, 3);
    assert!(some.len() == 3 && truncated, "{some:?}");

    let listing = listing::collect(&ground.root, &Below::parse("a").unwrap(), Depth::One, 9);
    let kinds: Vec<_> = listing.unwrap().entries.into_iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [FileKind::Directory, FileKind::File, FileKind::Symlink]);
}

#[test]
fn what_has_a_newline_or_no_encoding_in_its_name_is_listed_all_the_same() {
    use std::os::unix::ffi::OsStrExt;
    let ground = Ground::new();
    let odd = std::ffi::OsStr::from_bytes(b"a\n\xff");
    fs::write(ground.dir.path().join("inside").join(odd), "").unwrap();
    assert_eq!(ground.paths("", Depth::One, 9).0, ["a\n\u{FFFD}"]);
}
