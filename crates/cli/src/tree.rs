//! Trees of files as tar streams: packed and unpacked on a thread, so that the disk never holds up the
//! network, with a bounded channel in between.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::mpsc;

const PIECE_BYTES: usize = 64 * 1024;
/// Pieces that may be under way between the thread and the network.
const PIECES: usize = 8;

/// A channel of bytes in which the end is said, so that breaking off is not mistaken for it.
pub(crate) type Pieces = mpsc::Receiver<io::Result<Bytes>>;

/// Where an unpacking thread gets its bytes.
#[derive(Debug)]
pub(crate) struct Incoming(mpsc::Sender<Option<Bytes>>);

impl Incoming {
    /// Hands on a piece; `false` when the thread takes no more.
    pub(crate) async fn piece(&self, bytes: Bytes) -> bool {
        self.0.send(Some(bytes)).await.is_ok()
    }

    /// Says that this was everything.
    pub(crate) async fn end(self) {
        // A thread that has ended already does not need it.
        let _ = self.0.send(None).await;
    }
}

/// Packs what is in `directory` (without `directory` itself in the names) on a thread. Returns the
/// bytes as they come and the thread's result.
pub(crate) fn pack(directory: PathBuf) -> (Pieces, tokio::task::JoinHandle<io::Result<()>>) {
    let (sender, receiver) = mpsc::channel(PIECES);
    let thread = tokio::task::spawn_blocking(move || {
        let result =
            pack_into(&directory, Writer { sender: sender.clone(), buffer: BytesMut::new() });
        if let Err(cause) = &result {
            // Breaks the upload off, so that half a tree is not taken for a whole one. A receiver
            // that is gone has its own reason.
            let _ = sender.blocking_send(Err(io::Error::new(cause.kind(), cause.to_string())));
        }
        result
    });
    (receiver, thread)
}

fn pack_into(directory: &Path, writer: Writer) -> io::Result<()> {
    let mut tar = tar::Builder::new(writer);
    tar.follow_symlinks(false);
    // The other end reads plain tar; a hole becomes zeros.
    tar.sparse(false);
    tar.append_dir_all("", directory)?;
    tar.into_inner()?.flush()
}

/// Unpacks the tree named `name` into `parent` on a thread. Everything is unpacked into a hidden
/// directory first; only a whole tree gets its name. Returns where to put the bytes and the thread's
/// result, the number of entries.
///
/// The stream comes from a guest: an entry outside `name`, a device, and permission bits beyond the
/// usual nine are not taken over, and nothing is written through a link. Symbolic links themselves are
/// made as they are, wherever they point.
pub(crate) fn unpack(
    name: String,
    target: PathBuf,
) -> (Incoming, tokio::task::JoinHandle<io::Result<u64>>) {
    let (sender, receiver) = mpsc::channel(PIECES);
    let thread = tokio::task::spawn_blocking(move || {
        unpack_from(Reader { receiver, rest: Bytes::new(), ended: false }, &name, &target)
    });
    (Incoming(sender), thread)
}

fn unpack_from(mut reader: Reader, name: &str, target: &Path) -> io::Result<u64> {
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let draft = tempfile::Builder::new().prefix(".skerry-cp.").tempdir_in(parent)?;
    let mut archive = tar::Archive::new(&mut reader);
    archive.set_preserve_permissions(false);
    archive.set_preserve_ownerships(false);
    archive.set_unpack_xattrs(false);
    let mut count = 0;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let first = path.components().find(|part| *part != Component::CurDir);
        if !matches!(first, Some(Component::Normal(first)) if first.as_bytes() == name.as_bytes()) {
            return Err(refused(&path, "is not part of what was asked for"));
        }
        let kind = entry.header().entry_type();
        let wanted = kind.is_file()
            || kind.is_contiguous()
            || kind.is_gnu_sparse()
            || kind.is_dir()
            || kind.is_symlink()
            || kind.is_hard_link();
        if !wanted {
            continue;
        }
        if !entry.unpack_in(draft.path())? {
            return Err(refused(&path, "leads out of the tree"));
        }
        count += 1;
    }
    // The end of the archive may come before the end of the stream; a stream that broke off is only
    // noticed there.
    io::copy(&mut reader, &mut io::sink())?;
    let unpacked = draft.path().join(name);
    match fs::symlink_metadata(target) {
        Ok(_) => merge(&unpacked, target)?,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => fs::rename(&unpacked, target)?,
        Err(cause) => return Err(cause),
    }
    Ok(count)
}

fn refused(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} {why}", path.display()))
}

/// Moves what is in `from` into the existing directory `to`, replacing files of the same name.
fn merge(from: &Path, to: &Path) -> io::Result<()> {
    let to_is_directory = fs::symlink_metadata(to).is_ok_and(|there| there.is_dir());
    if !fs::symlink_metadata(from)?.is_dir() || !to_is_directory {
        return fs::rename(from, to);
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        merge(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Writes into the channel.
struct Writer {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE_BYTES);
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.sender
            .blocking_send(Ok(piece))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the upload has ended"))
    }
}

/// Reads from the channel.
struct Reader {
    receiver: mpsc::Receiver<Option<Bytes>>,
    rest: Bytes,
    ended: bool,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Some(piece)) => self.rest = piece,
                Some(None) => self.ended = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the stream broke off",
                    ));
                }
            }
        }
        let count = self.rest.len().min(buffer.len());
        self.rest.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries as a guest could send them: the tar library would refuse to write some of them.
    fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Bytes {
        let mut bytes = Vec::new();
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o4755);
            let is_link = kind.is_symlink() || kind.is_hard_link();
            if is_link {
                header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content.as_bytes());
            }
            let data = if is_link { "" } else { content };
            header.set_size(data.len() as u64);
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(data.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.resize(bytes.len() + 1024, 0);
        bytes.into()
    }

    async fn unpacked(bytes: Bytes, target: &Path) -> io::Result<u64> {
        let (incoming, thread) = unpack("tree".to_owned(), target.to_owned());
        if incoming.piece(bytes).await {
            incoming.end().await;
        }
        thread.await.expect("thread")
    }

    const FILE: tar::EntryType = tar::EntryType::Regular;
    const DIR: tar::EntryType = tar::EntryType::Directory;

    #[tokio::test]
    async fn a_tree_comes_out_as_it_went_in() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let source = scratch.path().join("source");
        fs::create_dir_all(source.join("a/empty")).expect("mkdir");
        fs::write(source.join("a/file"), vec![7; 300_000]).expect("write");
        std::os::unix::fs::symlink("file", source.join("a/link")).expect("symlink");
        let (mut pieces, packing) = pack(source);
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.recv().await {
            bytes.extend_from_slice(&piece.expect("piece"));
        }
        packing.await.expect("thread").expect("packed");

        let mut archive = tar::Archive::new(&bytes[..]);
        let mut names: Vec<_> = archive
            .entries()
            .expect("entries")
            .map(|entry| entry.expect("entry").path().expect("path").display().to_string())
            .collect();
        names.sort();
        assert_eq!(names, ["a", "a/empty", "a/file", "a/link"]);
    }

    #[tokio::test]
    async fn a_whole_tree_gets_its_new_name() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let target = scratch.path().join("copy");
        let bytes = archive(&[("tree/", DIR, ""), ("tree/f", FILE, "x")]);
        assert_eq!(unpacked(bytes, &target).await.expect("unpacked"), 2);
        assert_eq!(fs::read_to_string(target.join("f")).expect("read"), "x");
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(target.join("f")).expect("stat").permissions().mode();
        assert_eq!(mode & 0o7000, 0, "set-user-id is not taken over");
        assert_eq!(fs::read_dir(scratch.path()).expect("list").count(), 1, "no draft is left");
    }

    #[tokio::test]
    async fn a_tree_into_an_existing_one_replaces_files_of_the_same_name() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let target = scratch.path().join("tree");
        fs::create_dir_all(target.join("d")).expect("mkdir");
        fs::write(target.join("d/old"), "old").expect("write");
        fs::write(target.join("d/kept"), "kept").expect("write");
        let bytes =
            archive(&[("tree/", DIR, ""), ("tree/d/", DIR, ""), ("tree/d/old", FILE, "new")]);
        unpacked(bytes, &target).await.expect("unpacked");
        assert_eq!(fs::read_to_string(target.join("d/old")).expect("read"), "new");
        assert_eq!(fs::read_to_string(target.join("d/kept")).expect("read"), "kept");
    }

    #[tokio::test]
    async fn nothing_is_written_outside_the_tree() {
        let outside = tempfile::tempdir().expect("tempdir");
        let link_out = outside.path().display().to_string();
        let hostile: [&[(&str, tar::EntryType, &str)]; 5] = [
            &[("tree/", DIR, ""), ("other", FILE, "x")],
            &[("/tree/f", FILE, "x"), ("/etc/f", FILE, "x")],
            &[("tree/../f", FILE, "x")],
            &[
                ("tree/", DIR, ""),
                ("tree/out", tar::EntryType::Symlink, &link_out),
                ("tree/out/f", FILE, "x"),
            ],
            &[("tree/", DIR, ""), ("tree/h", tar::EntryType::Link, "/etc/passwd")],
        ];
        for entries in hostile {
            let scratch = tempfile::tempdir().expect("tempdir");
            let target = scratch.path().join("copy");
            let result = unpacked(archive(entries), &target).await;
            assert!(result.is_err(), "{entries:?}");
            assert!(!target.exists(), "{entries:?}");
            assert_eq!(fs::read_dir(scratch.path()).expect("list").count(), 0, "{entries:?}");
            assert_eq!(fs::read_dir(outside.path()).expect("list").count(), 0, "{entries:?}");
        }
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_leaves_nothing() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let target = scratch.path().join("copy");
        let (incoming, thread) = unpack("tree".to_owned(), target.clone());
        incoming.piece(archive(&[("tree/", DIR, ""), ("tree/f", FILE, "x")])).await;
        drop(incoming);
        let error = thread.await.expect("thread").expect_err("broken off");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(fs::read_dir(scratch.path()).expect("list").count(), 0);
    }
}
