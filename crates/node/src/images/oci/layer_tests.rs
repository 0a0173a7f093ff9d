//! Layers of every kind of builder and of none: what they become, and what is refused.

use std::io::Cursor;

use proptest::prelude::*;
use tar::{EntryType, Header};

use super::{
    PullError, PullLimits,
    layer::{Budget, apply_stream},
    tree::{Kind, NodeId, Tree},
};

/// One entry of a layer, its header written byte by byte so that nothing is made harmless on the way.
#[derive(Clone, Debug)]
pub(super) struct Item {
    kind: EntryType,
    path: Vec<u8>,
    link: Vec<u8>,
    content: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u64,
    /// What the header says; `None` is the truth.
    size: Option<u64>,
    pax: Vec<(String, Vec<u8>)>,
}

impl Item {
    pub(super) fn new(kind: EntryType, path: impl AsRef<[u8]>) -> Self {
        Self {
            kind,
            path: path.as_ref().to_vec(),
            link: Vec::new(),
            content: Vec::new(),
            mode: 0o644,
            uid: 0,
            size: None,
            pax: Vec::new(),
        }
    }

    pub(super) fn file(path: impl AsRef<[u8]>, content: &str) -> Self {
        Self { content: content.as_bytes().to_vec(), ..Self::new(EntryType::Regular, path) }
    }

    pub(super) fn dir(path: impl AsRef<[u8]>) -> Self {
        Self { mode: 0o755, ..Self::new(EntryType::Directory, path) }
    }

    pub(super) fn symlink(path: impl AsRef<[u8]>, target: &str) -> Self {
        Self { link: target.into(), ..Self::new(EntryType::Symlink, path) }
    }

    pub(super) fn hard_link(path: impl AsRef<[u8]>, target: &str) -> Self {
        Self { link: target.into(), ..Self::new(EntryType::Link, path) }
    }

    pub(super) fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.pax.push((format!("SCHILY.xattr.{name}"), value.to_vec()));
        self
    }

    pub(super) fn owned(self, uid: u64, mode: u32) -> Self {
        Self { uid, mode, ..self }
    }
}

pub(super) fn layer(items: Vec<Item>) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for item in items {
        let mut pax = item.pax;
        let mut header = Header::new_ustar();
        if item.path.len() > 100 {
            pax.push(("path".to_owned(), item.path.clone()));
        }
        let name = &item.path[..item.path.len().min(100)];
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..item.link.len()].copy_from_slice(&item.link);
        if !pax.is_empty() {
            let pax = pax.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
            archive.append_pax_extensions(pax).unwrap();
        }
        header.set_entry_type(item.kind);
        header.set_mode(item.mode);
        header.set_uid(item.uid);
        header.set_gid(item.uid);
        header.set_mtime(1);
        header.set_size(item.size.unwrap_or(item.content.len() as u64));
        header.set_cksum();
        archive.append(&header, item.content.as_slice()).unwrap();
    }
    archive.into_inner().unwrap()
}

fn merged_within(layers: &[Vec<u8>], limits: PullLimits) -> Result<Tree, PullError> {
    let (mut tree, mut budget) = (Tree::new(), Budget::new(limits));
    for (number, layer) in (0..).zip(layers) {
        let stream = Cursor::new(layer);
        apply_stream(stream, layer.len() as u64, number, &mut tree, &mut budget)?;
    }
    Ok(tree)
}

fn merged(layers: Vec<Vec<Item>>) -> Result<Tree, PullError> {
    let layers: Vec<Vec<u8>> = layers.into_iter().map(layer).collect();
    merged_within(&layers, PullLimits::default())
}

/// The tree as lines: path, and what it is.
fn lines(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut first = std::collections::HashMap::<NodeId, String>::new();
    let mut waiting: Vec<(String, NodeId)> = Vec::new();
    let children = |kind: &Kind, path: &str| match kind {
        Kind::Directory(children) => children
            .iter()
            .rev()
            .map(|(name, child)| (format!("{path}/{}", name.escape_ascii()), child.node))
            .collect(),
        Kind::File(_) | Kind::Symlink(_) | Kind::Fifo => Vec::new(),
    };
    waiting.extend(children(&tree.root().kind, ""));
    while let Some((path, id)) = waiting.pop() {
        let node = tree.node(id);
        let what = match (&node.kind, first.get(&id)) {
            (Kind::Directory(_), _) => "directory".to_owned(),
            (_, Some(first)) => format!("as {first}"),
            (Kind::File(content), None) => format!("file {} {}", content.layer, content.length),
            (Kind::Symlink(target), None) => format!("-> {}", target.escape_ascii()),
            (Kind::Fifo, None) => "fifo".to_owned(),
        };
        waiting.extend(children(&node.kind, &path));
        let line = format!("{path} {what} {:o} {}", node.attributes.mode, node.attributes.uid);
        lines.push(line.trim_start_matches('/').to_owned());
        first.entry(id).or_insert(path);
    }
    lines
}

fn of(layers: Vec<Vec<Item>>) -> Vec<String> {
    lines(&merged(layers).unwrap())
}

fn refusal(items: Vec<Item>) -> String {
    match merged(vec![items]) {
        Err(error @ (PullError::Refused { .. } | PullError::TooLarge { .. })) => error.to_string(),
        other => panic!("not refused: {:?}", other.map(|tree| lines(&tree))),
    }
}

#[test]
fn later_layers_replace_files_and_keep_what_is_in_directories() {
    assert_eq!(
        of(vec![
            vec![Item::dir("etc"), Item::file("etc/a", "1"), Item::file("etc/b", "22")],
            vec![Item::dir("./etc/").owned(7, 0o700), Item::file("/etc/a", "333").owned(5, 0o4755)],
        ]),
        ["etc directory 700 7", "etc/a file 1 3 4755 5", "etc/b file 0 2 644 0"]
    );
}

#[test]
fn a_whiteout_hides_what_is_lower_and_nothing_of_its_own_layer() {
    assert_eq!(
        of(vec![
            vec![Item::file("a/gone", "1"), Item::file("a/kept", "1"), Item::file("d/low", "1")],
            vec![
                Item::file("a/.wh.gone", ""),
                Item::file("a/gone/instead", "4444"),
                Item::file("d/new", "1"),
                Item::file(".wh.d", ""),
                Item::file("a/.wh.never-was", ""),
                Item::file("a/.wh..wh.plnk", ""),
            ],
        ]),
        [
            "a directory 755 0",
            "a/gone directory 755 0",
            "a/gone/instead file 1 4 644 0",
            "a/kept file 0 1 644 0",
            "d directory 755 0",
            "d/new file 1 1 644 0"
        ]
    );
}

#[test]
fn an_opaque_directory_shows_only_what_its_own_layer_has_whatever_the_order() {
    let low = || vec![Item::file("d/low", "1"), Item::file("d/sub/low", "1"), Item::file("x", "")];
    let opaque = || Item::file("d/.wh..wh..opq", "");
    let new = || Item::file("d/sub/new", "22");
    let expected = [
        "d directory 755 0",
        "d/sub directory 755 0",
        "d/sub/new file 1 2 644 0",
        "x file 0 0 644 0",
    ];
    assert_eq!(of(vec![low(), vec![opaque(), new()]]), expected);
    // A directory of the lower layer that this one enters is not hidden with its other content.
    let entered = of(vec![low(), vec![Item::dir("d/sub"), new(), opaque()]]);
    assert_eq!(entered, expected);
}

#[test]
fn hard_links_are_one_file_until_a_layer_replaces_one_of_the_names() {
    assert_eq!(
        of(vec![
            vec![Item::file("a", "1"), Item::hard_link("b", "a"), Item::hard_link("c", "/b")],
            vec![Item::file("b", "22")],
        ]),
        ["a file 0 1 644 0", "b file 1 2 644 0", "c as /a 644 0"]
    );
}

#[test]
fn a_path_through_a_link_lands_where_a_process_inside_would_see_it() {
    assert_eq!(
        of(vec![
            vec![Item::dir("usr/lib"), Item::symlink("lib", "usr/lib")],
            vec![Item::file("lib/libc", "1"), Item::hard_link("lib/libd", "lib/libc")],
        ]),
        [
            "lib -> usr/lib 644 0",
            "usr directory 755 0",
            "usr/lib directory 755 0",
            "usr/lib/libc file 1 1 644 0",
            "usr/lib/libd as /usr/lib/libc 644 0"
        ]
    );
}

#[test]
fn no_link_leads_out_of_the_tree() {
    for target in ["../../../../..", "/", "/..", "x/../../../.."] {
        let tree = of(vec![vec![
            Item::dir("x"),
            Item::symlink("x/out", target),
            Item::file("x/out/etc/passwd", "mine"),
        ]]);
        assert!(tree.contains(&"etc/passwd file 0 4 644 0".to_owned()), "{target}: {tree:?}");
    }
}

#[test]
fn a_symlink_at_the_end_of_a_path_is_replaced_and_never_written_through() {
    assert_eq!(
        of(vec![vec![
            Item::symlink("a", "/etc/passwd"),
            Item::file("a", "1"),
            Item::file("etc/passwd", "22"),
        ]]),
        ["a file 0 1 644 0", "etc directory 755 0", "etc/passwd file 0 2 644 0"]
    );
}

#[test]
fn what_no_layer_has_is_refused() {
    let of_size = |size| Item { size: Some(size), ..Item::file("f", "12") };
    let with = |key: &str, value: &str| Item {
        pax: vec![(key.to_owned(), value.into())],
        ..Item::file("f", "12")
    };
    for (what, items) in [
        ("leads out", vec![Item::file("../x", "")]),
        ("leads out", vec![Item::file("a/../../x", "")]),
        ("leads out", vec![Item::hard_link("x", "../../etc/shadow")]),
        ("not there", vec![Item::hard_link("x", "/etc/shadow")]),
        ("not there", vec![Item::hard_link("x", "x")]),
        ("to a directory", vec![Item::dir("d"), Item::hard_link("x", "d")]),
        ("circle", vec![Item::symlink("a", "b"), Item::symlink("b", "a"), Item::file("a/x", "")]),
        ("no directory", vec![Item::file("a", ""), Item::file("a/x", "")]),
        ("is a device", vec![Item::new(EntryType::Block, "dev/sda")]),
        ("is a device", vec![Item::new(EntryType::Char, "dev/mem")]),
        ("of a kind", vec![Item::new(EntryType::GNUSparse, "sparse")]),
        ("of a kind", vec![Item::new(EntryType::new(b'?'), "what")]),
        ("no directory", vec![Item::symlink(".", "/etc")]),
        ("points nowhere", vec![Item::symlink("a", "")]),
        ("whiteout of nothing", vec![Item::file("a/.wh.", "")]),
        ("whiteout of nothing", vec![Item::file("a/.wh...", "")]),
        ("name that is too long", vec![Item::file(vec![b'n'; 256], "")]),
        ("too long", vec![Item::file(b"d/".repeat(2100), "")]),
        ("too deep", vec![Item::file(b"d/".repeat(600), "")]),
        ("longer than the layer", vec![of_size(5_000_000)]),
        ("two sizes", vec![with("size", "1")]),
        ("owner", vec![with("uid", "4294967295")]),
        ("sparse", vec![with("GNU.sparse.major", "1")]),
    ] {
        let refusal = refusal(items);
        assert!(refusal.contains(what), "{what}: {refusal}");
    }
}

#[test]
fn an_extended_header_of_any_length_is_not_read_into_memory() {
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::XHeader);
    header.set_size(1 << 40);
    header.set_cksum();
    layer.append(&header, std::io::empty()).unwrap();
    let refused = merged_within(&[layer.into_inner().unwrap()], PullLimits::default());
    assert!(refused.unwrap_err().to_string().contains("too long"));
}

#[test]
fn more_entries_than_permitted_are_refused() {
    let limits = PullLimits { entries: 3, ..PullLimits::default() };
    let many = |count: usize| layer((0..count).map(|n| Item::file(n.to_string(), "")).collect());
    assert!(merged_within(&[many(3)], limits).is_ok());
    let refused = merged_within(&[many(2), many(2)], limits).unwrap_err();
    assert!(matches!(refused, PullError::TooLarge { .. }), "{refused}");
}

#[test]
fn attributes_are_kept_as_they_are() {
    let tree = merged(vec![vec![
        Item::file("ping", "1").owned(0, 0o755).xattr("security.capability", b"\x01\n\0=\x02"),
        Item::file("plain", "1").xattr("security.selinux", b"label").xattr("user.note", b"n"),
    ]])
    .unwrap();
    let Kind::Directory(root) = &tree.root().kind else { panic!("no root") };
    let xattrs = |name: &[u8]| &tree.node(root[name].node).attributes.xattrs;
    assert_eq!(xattrs(b"ping")["security.capability"], b"\x01\n\0=\x02");
    assert_eq!(xattrs(b"plain").keys().collect::<Vec<_>>(), ["user.note"]);
}

/// Few names, so that entries meet each other.
fn any_item() -> impl Strategy<Value = Item> {
    let name =
        prop::sample::select(vec!["a", "b", "c", ".wh.a", ".wh.b", ".wh..wh..opq", ".", ".."]);
    let path = prop::collection::vec(name, 1..5).prop_map(|names| names.join("/"));
    (0..6_u8, path.clone(), path).prop_map(|(kind, path, target)| match kind {
        0 => Item::dir(path),
        1 => Item::symlink(path, &target),
        2 => Item::hard_link(path, &target),
        3 => Item::new(EntryType::Fifo, path),
        _ => Item::file(path, "content"),
    })
}

proptest! {
    /// Whatever layers say, the archive that is unpacked on the host is harmless: each path once and
    /// after its directory, none through a link, hard links only to files before them.
    #[test]
    fn the_merged_archive_is_harmless(
        layers in prop::collection::vec(prop::collection::vec(any_item(), 0..12), 1..4),
    ) {
        let layers: Vec<Vec<u8>> = layers.into_iter().map(layer).collect();
        let Ok(tree) = merged_within(&layers, PullLimits::default()) else { return Ok(()) };
        let mut files: Vec<std::fs::File> = layers.iter().map(|layer| {
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, layer).unwrap();
            file
        }).collect();
        let mut merged = Vec::new();
        super::archive::write(&tree, &mut files, &mut merged).unwrap();
        let mut seen = std::collections::HashMap::<Vec<u8>, EntryType>::new();
        for entry in tar::Archive::new(merged.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path_bytes().into_owned();
            let kind = entry.header().entry_type();
            if path != b"." {
                let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
                let bad = |name: &&[u8]| matches!(*name, b"" | b"." | b"..") || name.starts_with(b".wh.");
                prop_assert!(!names.iter().any(bad));
                let parent = names[..names.len() - 1].join(&b'/');
                if !parent.is_empty() {
                    prop_assert_eq!(seen.get(&parent), Some(&EntryType::Directory));
                }
            }
            if kind == EntryType::Link {
                let target = entry.link_name_bytes().unwrap().into_owned();
                let target = seen.get(&target);
                prop_assert!(target.is_some_and(|kind| *kind != EntryType::Directory));
            }
            if kind == EntryType::Regular {
                let mut content = String::new();
                std::io::Read::read_to_string(&mut entry, &mut content).unwrap();
                prop_assert_eq!(content, "content");
            }
            prop_assert!(seen.insert(path, kind).is_none());
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let _ = merged_within(&[bytes], PullLimits::default());
    }
}
