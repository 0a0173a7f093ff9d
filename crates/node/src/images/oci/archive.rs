//! The merged tree as one archive that is harmless to unpack: every directory before what is in it,
//! every path once, no path through a link, a hard link only to what came before.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
};

use tar::{EntryType, Header};

use super::tree::{Attributes, Content, Kind, NodeId, Tree};

/// The longest name that fits a header without an extension.
const HEADER_NAME_BYTES: usize = 100;

/// What the archive holds, for the size of the file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub inodes: u64,
    /// Of files, in whole blocks of 4 KiB.
    pub block_bytes: u64,
}

/// Writes the tree to `target`. `layers` are the unpacked layers, by number.
pub(super) fn write(tree: &Tree, layers: &mut [File], target: impl Write) -> io::Result<Totals> {
    let mut writer = Writer {
        archive: tar::Builder::new(target),
        layers,
        written: HashMap::new(),
        totals: Totals::default(),
    };
    writer.directory(b".", &tree.root().attributes)?;
    // Children of a directory are taken from the end: reversed, they come in the order of their names.
    let mut waiting: Vec<(Vec<u8>, NodeId)> = Vec::new();
    add_children(&mut waiting, b"", &tree.root().kind);
    while let Some((path, id)) = waiting.pop() {
        let node = tree.node(id);
        match &node.kind {
            Kind::Directory(_) => {
                writer.directory(&path, &node.attributes)?;
                add_children(&mut waiting, &path, &node.kind);
            }
            Kind::File(_) | Kind::Symlink(_) | Kind::Fifo => {
                writer.file(path, id, &node.attributes, &node.kind)?;
            }
        }
    }
    let Writer { archive, totals, .. } = writer;
    archive.into_inner()?.flush()?;
    Ok(totals)
}

fn add_children(waiting: &mut Vec<(Vec<u8>, NodeId)>, path: &[u8], kind: &Kind) {
    if let Kind::Directory(children) = kind {
        waiting.extend(children.iter().rev().map(|(name, child)| {
            let path = if path.is_empty() { name.clone() } else { [path, name].join(&b'/') };
            (path, child.node)
        }));
    }
}

struct Writer<'a, W: Write> {
    archive: tar::Builder<W>,
    layers: &'a mut [File],
    /// Under which path a node is in the archive already.
    written: HashMap<NodeId, Vec<u8>>,
    totals: Totals,
}

impl<W: Write> Writer<'_, W> {
    fn directory(&mut self, path: &[u8], attributes: &Attributes) -> io::Result<()> {
        // A directory takes a block, and a few more if it is large.
        self.count(4096);
        self.entry(path, b"", EntryType::Directory, attributes, None)
    }

    fn file(
        &mut self,
        path: Vec<u8>,
        id: NodeId,
        attributes: &Attributes,
        kind: &Kind,
    ) -> io::Result<()> {
        if let Some(first) = self.written.get(&id) {
            let first = first.clone();
            let bare = Attributes { xattrs: Default::default(), ..attributes.clone() };
            return self.entry(&path, &first, EntryType::Link, &bare, None);
        }
        match kind {
            Kind::File(content) => {
                self.count(content.length);
                self.entry(&path, b"", EntryType::Regular, attributes, Some(*content))?;
            }
            Kind::Symlink(target) => {
                self.count(target.len() as u64);
                self.entry(&path, target, EntryType::Symlink, attributes, None)?;
            }
            Kind::Fifo => {
                self.count(0);
                self.entry(&path, b"", EntryType::Fifo, attributes, None)?;
            }
            Kind::Directory(_) => return Ok(()),
        }
        self.written.insert(id, path);
        Ok(())
    }

    fn count(&mut self, bytes: u64) {
        self.totals.inodes += 1;
        self.totals.block_bytes += bytes.next_multiple_of(4096);
    }

    fn entry(
        &mut self,
        path: &[u8],
        link: &[u8],
        kind: EntryType,
        attributes: &Attributes,
        content: Option<Content>,
    ) -> io::Result<()> {
        let mut header = Header::new_ustar();
        let mut extensions: Vec<(String, &[u8])> = Vec::new();
        if !put(&mut header.as_old_mut().name, path) {
            extensions.push(("path".to_owned(), path));
        }
        if !put(&mut header.as_old_mut().linkname, link) {
            extensions.push(("linkpath".to_owned(), link));
        }
        let xattrs = attributes.xattrs.iter();
        extensions
            .extend(xattrs.map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_slice())));
        if !extensions.is_empty() {
            self.archive.append_pax_extensions(extensions.iter().map(|(k, v)| (k.as_str(), *v)))?;
        }
        header.set_entry_type(kind);
        header.set_mode(attributes.mode);
        header.set_uid(attributes.uid.into());
        header.set_gid(attributes.gid.into());
        header.set_mtime(attributes.mtime);
        header.set_size(content.map_or(0, |content| content.length));
        header.set_cksum();
        match content {
            None => self.archive.append(&header, io::empty()),
            Some(Content { layer, offset, length }) => {
                let layer = self
                    .layers
                    .get_mut(layer as usize)
                    .ok_or_else(|| io::Error::other("a file is in a layer that is not there"))?;
                layer.seek(SeekFrom::Start(offset))?;
                self.archive.append(&header, layer.take(length))
            }
        }
    }
}

/// Puts a name into its field, as far as it goes; whether all of it did.
fn put(field: &mut [u8; HEADER_NAME_BYTES], name: &[u8]) -> bool {
    let fitting = name.len().min(field.len());
    field[..fitting].copy_from_slice(&name[..fitting]);
    fitting == name.len()
}
