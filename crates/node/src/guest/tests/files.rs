use std::os::unix::fs::{PermissionsExt, symlink};

use skerry_internal_api::{FileKind, GuestApi, WriteMode};

use super::*;

async fn write(lab: &Lab, path: &str, how: WriteMode, content: &str) -> Result<u64, NodeError> {
    let content = stream_of(vec![Bytes::copy_from_slice(content.as_bytes())]);
    lab.link.write_file(path, 0o640, how, User::Root, content).await
}

#[tokio::test]
async fn a_file_is_written_with_its_parents_read_in_part_and_described() {
    let lab = Lab::open().await;
    let path = lab.text_path("a/b/file");
    assert_eq!(write(&lab, &path, WriteMode::Replace, "0123456789").await, Ok(10));
    assert_eq!(write(&lab, &path, WriteMode::Append, "abc").await, Ok(13));
    let part = lab.link.read_file(&path, 8, Some(3)).await.unwrap();
    assert_eq!(collect(part).await.unwrap(), b"89a");
    let stat = lab.link.stat(&path).await.unwrap();
    assert_eq!(
        (stat.kind, stat.size_bytes, stat.mode, stat.name.as_str()),
        (FileKind::File, 13, 0o640, "file")
    );
    assert_eq!(stat.path, path);
    lab.link.rename(&path, &lab.text_path("moved")).await.unwrap();
    assert_eq!(std::fs::read(lab.path("moved")).unwrap(), b"0123456789abc");
}

#[tokio::test]
async fn a_write_that_breaks_off_leaves_the_old_file_and_nothing_else() {
    let lab = Lab::open().await;
    std::fs::write(lab.path("file"), "old").unwrap();
    let lost = NodeError::NoSuchFile(String::from("the source"));
    let content: ByteStream = Box::pin(futures::stream::iter([
        Ok(Bytes::from_static(b"half of the new")),
        Err(lost.clone()),
    ]));
    let path = lab.text_path("file");
    let outcome = lab.link.write_file(&path, 0o644, WriteMode::Replace, User::Root, content).await;
    assert_eq!(outcome, Err(lost));
    // The agent cleans up on its own time: the next call on the directory shows it.
    let names = within(async {
        loop {
            let names: Vec<String> = lab
                .link
                .list_dir(&lab.text_path(""))
                .await
                .unwrap()
                .into_iter()
                .map(|entry| entry.name)
                .collect();
            if names.len() == 1 {
                return names;
            }
        }
    })
    .await;
    assert_eq!(names, ["file"]);
    assert_eq!(std::fs::read(lab.path("file")).unwrap(), b"old");
}

#[tokio::test]
async fn files_that_cannot_be_had_say_why() {
    let lab = Lab::open().await;
    std::fs::write(lab.path("file"), "x").unwrap();
    std::fs::create_dir(lab.path("dir")).unwrap();
    let at = |name: &str| lab.text_path(name);
    let link = &lab.link;
    let read = |path: String| async move { link.read_file(&path, 0, None).await.err() };
    let errors = [
        lab.link.stat(&at("missing")).await.err(),
        lab.link.list_dir(&at("file")).await.err(),
        read(at("dir")).await,
        read("/dev/zero".into()).await,
        read("relative".into()).await,
        read(format!("/{}", "x".repeat(5000))).await,
        write(&lab, &at("file"), WriteMode::CreateNew, "").await.err(),
        write(&lab, &at("dir"), WriteMode::Replace, "").await.err(),
        write(&lab, &at("file/below"), WriteMode::Replace, "").await.err(),
        lab.link.make_dir(&at("file"), 0o755, User::Root).await.err(),
        lab.link.rename(&at("missing"), &at("new")).await.err(),
        lab.link.remove(&at("missing")).await.err(),
        lab.link.remove("/").await.err(),
    ];
    let shown = format!("{errors:#?}").replace(&lab.text_path(""), "HOME/");
    insta::assert_snapshot!(shown);
}

#[tokio::test]
async fn a_directory_is_listed_in_order_with_its_links() {
    let lab = Lab::open().await;
    for name in ["b", "a", "c"] {
        std::fs::write(lab.path(name), name).unwrap();
    }
    symlink("/nowhere", lab.path("link")).unwrap();
    lab.link.make_dir(&lab.text_path("dir/deep"), 0o700, User::Root).await.unwrap();
    let entries = lab.link.list_dir(&lab.text_path("")).await.unwrap();
    let names: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), entry.kind)).collect();
    assert_eq!(
        names,
        [
            ("a", FileKind::File),
            ("b", FileKind::File),
            ("c", FileKind::File),
            ("dir", FileKind::Directory),
            ("link", FileKind::Symlink)
        ]
    );
    assert_eq!(entries[4].link_target.as_deref(), Some("/nowhere"));
    assert_eq!(lab.link.stat(&lab.text_path("dir/deep")).await.unwrap().mode, 0o700);
}

#[tokio::test]
async fn removing_a_tree_does_not_follow_its_links() {
    let lab = Lab::open().await;
    std::fs::create_dir_all(lab.path("keep")).unwrap();
    std::fs::write(lab.path("keep/precious"), "x").unwrap();
    std::fs::create_dir_all(lab.path("tree/sub")).unwrap();
    symlink(lab.path("keep"), lab.path("tree/sub/link")).unwrap();
    lab.link.remove(&lab.text_path("tree")).await.unwrap();
    assert!(lab.path("keep/precious").exists() && !lab.path("tree").exists());
}

#[tokio::test]
async fn a_tree_goes_down_and_up_again_unchanged() {
    let lab = Lab::open().await;
    std::fs::create_dir_all(lab.path("tree/empty")).unwrap();
    std::fs::create_dir_all(lab.path("tree/sub")).unwrap();
    std::fs::write(lab.path("tree/sub/big"), vec![9; 3_000_000]).unwrap();
    std::fs::write(lab.path("tree/run"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(lab.path("tree/run"), std::fs::Permissions::from_mode(0o755)).unwrap();
    symlink("sub/big", lab.path("tree/link")).unwrap();
    let tar = lab.link.download_tree(&lab.text_path("tree")).await.unwrap();
    let bytes = collect(tar).await.unwrap();
    let pieces = bytes.chunks(100_000).map(Bytes::copy_from_slice).collect();
    let up = lab.text_path("made/copy");
    let count = lab.link.upload_tree(&up, User::Root, stream_of(pieces)).await.unwrap();
    assert_eq!(count, 6);
    let copy = lab.path("made/copy/tree");
    assert_eq!(std::fs::read(copy.join("sub/big")).unwrap(), vec![9; 3_000_000]);
    assert_eq!(std::fs::metadata(copy.join("run")).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(std::fs::read_link(copy.join("link")).unwrap(), Path::new("sub/big"));
    assert!(copy.join("empty").is_dir());
}

/// A tar stream with one file of this name, which need not be a decent one.
fn tar_of(name: &[u8], kind: tar::EntryType, link: &str) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    if !link.is_empty() {
        header.set_link_name_literal(link).unwrap();
    }
    header.set_size(if kind.is_file() { 4 } else { 0 });
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    if kind.is_file() {
        bytes.extend_from_slice(b"evil");
        bytes.resize(1024, 0);
    }
    bytes
}

#[tokio::test]
async fn an_archive_cannot_leave_its_directory() {
    use tar::EntryType;
    let lab = Lab::open().await;
    std::fs::create_dir(lab.path("outside")).unwrap();
    std::fs::write(lab.path("outside/precious"), "kept").unwrap();
    std::fs::set_permissions(lab.path("outside"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let root = lab.text_path("root");
    let file = |name: &[u8]| tar_of(name, EntryType::Regular, "");
    let outside = lab.text_path("outside");
    // A link planted by an earlier archive, or by the tenant.
    std::fs::create_dir(lab.path("root")).unwrap();
    symlink(&outside, lab.path("root/planted")).unwrap();
    let archives = [
        file(b"../escaped"),
        file(b"a/../../escaped"),
        file(b"/escaped"),
        file(b"planted/escaped"),
        tar_of(b"planted", EntryType::Directory, ""),
        tar_of(b"planted/made", EntryType::Directory, ""),
        tar_of(b"planted/link", EntryType::Symlink, "x"),
        tar_of(b"hard", EntryType::Link, "planted/precious"),
        tar_of(b"hard", EntryType::Link, "../outside/precious"),
        [tar_of(b"new", EntryType::Symlink, &outside), file(b"new/escaped")].concat(),
        [
            tar_of(b"one", EntryType::Symlink, &outside),
            tar_of(b"two", EntryType::Symlink, "one"),
            file(b"two/escaped"),
        ]
        .concat(),
        tar_of(b"device", EntryType::Char, ""),
        tar_of(b"pipe", EntryType::Fifo, ""),
    ];
    let mut shown = String::new();
    for archive in archives {
        let outcome =
            lab.link.upload_tree(&root, User::Root, stream_of(vec![Bytes::from(archive)])).await;
        shown += &format!("{:?}\n", outcome.unwrap_err());
    }
    insta::assert_snapshot!(shown.replace(&lab.text_path(""), "HOME/"));
    assert_eq!(std::fs::read_dir(lab.path("outside")).unwrap().count(), 1);
    assert_eq!(std::fs::read(lab.path("outside/precious")).unwrap(), b"kept");
    let mode = std::fs::metadata(lab.path("outside")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    assert!(!lab.path("escaped").exists() && !lab.path("root/hard").exists());
}

#[tokio::test]
async fn a_link_to_anywhere_is_made_as_it_is_and_replaced_rather_than_followed() {
    use tar::EntryType;
    let lab = Lab::open().await;
    std::fs::write(lab.path("precious"), "kept").unwrap();
    let precious = lab.text_path("precious");
    let targets = [
        ("python", "/usr/bin/python3"),
        ("up", "../../x"),
        ("gone", "/no/where"),
        ("p", &precious),
    ];
    let links = targets.map(|(name, to)| tar_of(name.as_bytes(), EntryType::Symlink, to)).concat();
    let root = lab.text_path("root");
    let upload = async |archive: Vec<u8>| {
        lab.link.upload_tree(&root, User::Root, stream_of(vec![Bytes::from(archive)])).await
    };
    // The second time each link is there already.
    for _ in 0..2 {
        assert_eq!(upload(links.clone()).await, Ok(4));
        for (name, to) in targets {
            let made = std::fs::read_link(lab.path("root").join(name)).unwrap();
            assert_eq!(made, Path::new(to));
        }
    }
    assert_eq!(upload(tar_of(b"p", EntryType::Regular, "")).await, Ok(1));
    assert!(!lab.path("root/p").is_symlink());
    assert_eq!(std::fs::read(lab.path("root/p")).unwrap(), b"evil");
    assert_eq!(std::fs::read(lab.path("precious")).unwrap(), b"kept");
}

#[tokio::test]
async fn a_damaged_archive_is_refused() {
    let lab = Lab::open().await;
    let bytes = Bytes::from(vec![0x55; 4096]);
    let outcome =
        lab.link.upload_tree(&lab.text_path("x"), User::Root, stream_of(vec![bytes])).await;
    assert!(matches!(outcome, Err(NodeError::Invalid { .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_listening_port_is_found_with_its_owner() {
    let lab = Lab::open().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let ports = lab.link.listening_ports().await.unwrap();
    let found = ports.iter().find(|found| found.port == port).unwrap();
    assert_eq!((found.address.as_str(), found.pid), ("127.0.0.1", Some(std::process::id())));
}
