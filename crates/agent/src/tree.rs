//! Trees as tar streams, both ways.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
    thread,
};

use bytes::{Buf, Bytes};
use skerry_agent_protocol::message::{self, FailureCode, Unpacked};
use tar::{Archive, Builder, EntryType, Header, HeaderMode};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    AgentError, Guest,
    body::{self, Answer, RequestBody},
    files::{about, checked, give_to, make_dirs},
    users::Account,
};

/// Pieces between the connection and the thread that packs or unpacks.
const PIECES_WAITING: usize = 4;
/// A piece of a packed tree, in bytes.
const PIECE: usize = 64 * 1024;
/// Directories within directories.
const DEPTH_MAX: usize = 1000;

type Piece = io::Result<Bytes>;

pub(crate) async fn upload(
    guest: &Arc<Guest>,
    request: message::Upload,
    content: &mut RequestBody,
) -> Result<Answer, AgentError> {
    let root = checked(&request.path)?;
    let permit = guest.tree_transfer()?;
    let shared = Arc::clone(guest);
    let (pieces, received) = mpsc::channel::<Piece>(PIECES_WAITING);
    let (report, outcome) = oneshot::channel();
    thread::Builder::new()
        .name(String::from("unpack"))
        .spawn(move || {
            let _permit = permit;
            let unpacked = shared
                .account(&request.user)
                .and_then(|account| unpack(&root, &account, PieceReader::new(received)));
            // Nobody listens when the host hung up.
            let _ = report.send(unpacked);
        })
        .map_err(|error| AgentError::from_io("unpacking", &error))?;
    loop {
        match content.chunk().await {
            // The thread ends early when it refuses an entry.
            Ok(Some(bytes)) => {
                if pieces.send(Ok(bytes)).await.is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                // The thread must not take this for the end of the archive.
                let _ = pieces.send(Err(io::ErrorKind::ConnectionAborted.into())).await;
                return Err(error);
            }
        }
    }
    drop(pieces);
    let entries = outcome
        .await
        .map_err(|_| AgentError::refused(FailureCode::Other, "unpacking was given up"))??;
    body::json(&Unpacked { entries })
}

fn unpack(root: &Path, account: &Account, from: PieceReader) -> Result<u64, AgentError> {
    make_dirs(root, account)?;
    let root = fs::canonicalize(root).map_err(about(root))?;
    let mut archive = Archive::new(from);
    archive.set_preserve_mtime(true);
    archive.set_overwrite(true);
    let mut count = 0;
    for entry in archive.entries().map_err(|error| damaged(&error))? {
        let mut entry = entry.map_err(|error| damaged(&error))?;
        let path = entry.path().map_err(|error| damaged(&error))?.into_owned();
        let inside = inside(&path)?;
        refuse_kind(entry.header().entry_type(), &path)?;
        if entry.header().entry_type().is_hard_link()
            && let Some(target) = entry.link_name().map_err(|error| damaged(&error))?
        {
            refuse_escape(&inside, &target)?;
        }
        count += 1;
        if inside.as_os_str().is_empty() {
            continue;
        }
        if let Some(parent) = inside.parent() {
            make_parents(&root, parent, account)?;
        }
        let unpacked = entry.unpack_in(&root).map_err(|error| refused(&path, &error))?;
        if !unpacked {
            return Err(escapes(&path));
        }
        give_to(&root.join(&inside), account)?;
    }
    Ok(count)
}

/// The path an entry has below the root.
fn inside(path: &Path) -> Result<PathBuf, AgentError> {
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => inside.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(escapes(path));
            }
        }
    }
    Ok(inside)
}

fn refuse_kind(kind: EntryType, path: &Path) -> Result<(), AgentError> {
    let taken = kind.is_file()
        || kind.is_dir()
        || kind.is_symlink()
        || kind.is_hard_link()
        || kind.is_gnu_sparse();
    if taken {
        return Ok(());
    }
    Err(AgentError::invalid(format!(
        "{}: only files, directories and links are unpacked",
        path.display()
    )))
}

/// A hard link is another name of its target, which must be below the root (its path counts from
/// there). A symbolic link is only text: it may say anything, because no later entry is written
/// through it.
fn refuse_escape(path: &Path, target: &Path) -> Result<(), AgentError> {
    inside(target).map(drop).map_err(|_| {
        AgentError::invalid(format!(
            "{}: links to {}, outside of the tree",
            path.display(),
            target.display()
        ))
    })
}

/// Makes missing parents one by one and refuses to go through a link: an archive may first plant one
/// and then write through it.
fn make_parents(root: &Path, parent: &Path, account: &Account) -> Result<(), AgentError> {
    let mut so_far = root.to_owned();
    for component in parent.components() {
        so_far.push(component);
        match fs::symlink_metadata(&so_far) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => {
                return Err(AgentError::refused(
                    FailureCode::NotDirectory,
                    format!("{}: not a directory", so_far.display()),
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir(&so_far).map_err(about(&so_far))?;
                give_to(&so_far, account)?;
            }
            Err(error) => return Err(about(&so_far)(error)),
        }
    }
    Ok(())
}

fn damaged(error: &io::Error) -> AgentError {
    AgentError::invalid(format!("the tar stream is damaged: {error}"))
}

fn escapes(path: &Path) -> AgentError {
    AgentError::invalid(format!("{}: leaves the directory it is unpacked into", path.display()))
}

/// The tar crate wraps the system's error in a sentence of its own.
fn refused(path: &Path, error: &io::Error) -> AgentError {
    let mut cause: &(dyn std::error::Error + 'static) = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let system = cause.downcast_ref::<io::Error>().unwrap_or(error);
    match system.raw_os_error() {
        Some(_) => about(path)(io::Error::from_raw_os_error(system.raw_os_error().unwrap_or(0))),
        None => AgentError::invalid(format!("{}: {error}", path.display())),
    }
}

pub(crate) async fn download(guest: &Guest, request: message::Path) -> Result<Answer, AgentError> {
    let path = checked(&request.path)?;
    let permit = guest.tree_transfer()?;
    let root = path.clone();
    guest.blocking(move || fs::symlink_metadata(&root).map(drop).map_err(about(&root))).await?;
    let (pieces, received) = mpsc::channel::<Piece>(PIECES_WAITING);
    thread::Builder::new()
        .name(String::from("pack"))
        .spawn(move || {
            let _permit = permit;
            if let Err(error) = pack(&path, PieceWriter::new(pieces.clone())) {
                // The host sees its stream reset; nobody listens when it hung up.
                let _ = pieces.blocking_send(Err(error));
            }
        })
        .map_err(|error| AgentError::from_io("packing", &error))?;
    Ok(body::stream(ReceiverStream::new(received)))
}

/// Packs `root` and everything below it, sorted, links as links; devices, sockets and pipes are left
/// out, and so is what vanishes meanwhile.
fn pack(root: &Path, to: PieceWriter) -> io::Result<()> {
    let mut builder = Builder::new(to);
    let name = root.file_name().map_or_else(PathBuf::new, PathBuf::from);
    let mut waiting = vec![(root.to_owned(), name)];
    while let Some((path, name)) = waiting.pop() {
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if metadata.is_dir() {
            if name.components().count() > DEPTH_MAX {
                return Err(io::Error::other("the tree is too deep"));
            }
            // The root of the file system has no name of its own.
            if !name.as_os_str().is_empty() {
                builder.append_data(
                    &mut header(&metadata, EntryType::Directory),
                    &name,
                    io::empty(),
                )?;
            }
            let mut below = fs::read_dir(&path)?
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<io::Result<Vec<_>>>()?;
            below.sort_unstable_by(|left, right| right.cmp(left));
            waiting.extend(below.iter().map(|entry| (path.join(entry), name.join(entry))));
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path)?;
            builder.append_link(&mut header(&metadata, EntryType::Symlink), &name, target)?;
        } else if metadata.is_file() {
            pack_file(&mut builder, &path, &name)?;
        }
    }
    builder.into_inner()?.finish()
}

fn pack_file(builder: &mut Builder<PieceWriter>, path: &Path, name: &Path) -> io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    // The header has promised this size: a file that grows is cut, one that shrinks is padded.
    let size = metadata.len();
    let content = file.chain(io::repeat(0)).take(size);
    builder.append_data(&mut header(&metadata, EntryType::Regular), name, content)
}

fn header(metadata: &Metadata, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata_in_mode(metadata, HeaderMode::Complete);
    header.set_entry_type(kind);
    header.set_mode(metadata.mode() & 0o7777);
    if kind != EntryType::Regular {
        header.set_size(0);
    }
    header
}

/// The connection's bytes for code that blocks.
struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
}

impl PieceReader {
    fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self { pieces, current: Bytes::new() }
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece?,
                None => return Ok(0),
            }
        }
        let length = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// Bytes for the connection from code that blocks.
struct PieceWriter {
    pieces: mpsc::Sender<Piece>,
    current: Vec<u8>,
}

impl PieceWriter {
    fn new(pieces: mpsc::Sender<Piece>) -> Self {
        Self { pieces, current: Vec::with_capacity(PIECE) }
    }

    fn finish(mut self) -> io::Result<()> {
        self.send()
    }

    fn send(&mut self) -> io::Result<()> {
        if self.current.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.current, Vec::with_capacity(PIECE));
        self.pieces
            .blocking_send(Ok(Bytes::from(piece)))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE - self.current.len();
        let length = room.min(bytes.len());
        self.current.extend_from_slice(&bytes[..length]);
        if self.current.len() == PIECE {
            self.send()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
