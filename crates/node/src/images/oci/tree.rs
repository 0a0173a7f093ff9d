//! The tree that layers are merged into. It is in memory and knows nothing of this host's files, so
//! there is nothing that a path or link in a layer could escape to: `..` ends at the root, and links
//! are followed inside, as a process in the finished system would.
//!
//! What a file holds stays in the layer it came with; the tree knows where.

use std::collections::BTreeMap;

use super::PullError;

const MAX_PATH_BYTES: usize = 4096;
const MAX_NAME_BYTES: usize = 255;
/// As the kernel.
const MAX_LINKS_FOLLOWED: u32 = 40;
/// Deeper than any path of 4096 bytes that a program can name without changing directory.
const MAX_DEPTH: usize = 512;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a file is beside its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// Permission bits with set-user, set-group and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// In seconds since the epoch.
    pub mtime: u64,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// Where the bytes of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// In which unpacked layer.
    pub layer: u32,
    pub offset: u64,
    pub length: u64,
}

/// What a layer says about one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Directory(Attributes),
    File(Attributes, Content),
    Symlink(Attributes, Vec<u8>),
    /// Another name of what has this path already.
    HardLink(Vec<u8>),
    Fifo(Attributes),
}

/// A place in [`Tree::nodes`].
pub(super) type NodeId = usize;

/// A file of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub attributes: Attributes,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory(BTreeMap<Vec<u8>, Name>),
    File(Content),
    Symlink(Vec<u8>),
    Fifo,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub node: NodeId,
    /// The layer that put it there: whiteouts concern what is lower.
    layer: u32,
}

/// The merged system.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    layer: u32,
}

const ROOT: NodeId = 0;

impl Tree {
    pub(super) fn new() -> Self {
        let attributes = Attributes { mode: 0o755, ..Attributes::default() };
        Self { nodes: vec![Node { attributes, kind: Kind::Directory(BTreeMap::new()) }], layer: 0 }
    }

    /// What is added from now on is of this layer; numbers rise.
    pub(super) fn begin_layer(&mut self, layer: u32) {
        self.layer = layer;
    }

    pub(super) fn root(&self) -> &Node {
        &self.nodes[ROOT]
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// Makes the directory of this path if it is not there, links followed.
    pub(super) fn ensure_directory(&mut self, path: &[u8]) -> Result<(), PullError> {
        self.made_directory(&names_of(path)?, path).map(drop)
    }

    /// The content of the file with this path, links followed on the way and at the end.
    pub(super) fn file(&mut self, path: &[u8]) -> Option<Content> {
        let mut names: Vec<Vec<u8>> = path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        for _ in 0..MAX_LINKS_FOLLOWED {
            let (name, parents) = names.split_last()?;
            let parents: Vec<&[u8]> = parents.iter().map(Vec::as_slice).collect();
            let parent = self.directory(&parents, path, Missing::Told).ok()??;
            match &self.nodes[self.child(parent, name)?.node].kind {
                Kind::File(content) => return Some(*content),
                Kind::Symlink(target) => {
                    let steps = target.split(|b| *b == b'/');
                    let steps = steps.filter(|step| !step.is_empty() && *step != b".");
                    let steps: Vec<Vec<u8>> = steps.map(<[u8]>::to_vec).collect();
                    if target.starts_with(b"/") {
                        names.clear();
                    } else {
                        names.pop();
                    }
                    names.extend(steps);
                }
                Kind::Directory(_) | Kind::Fifo => return None,
            }
        }
        None
    }

    /// Puts an entry of the present layer where it belongs.
    pub(super) fn add(&mut self, (path, entry): (Vec<u8>, Entry)) -> Result<(), PullError> {
        let names = names_of(&path)?;
        let Some((name, parents)) = names.split_last() else {
            return match entry {
                Entry::Directory(attributes) => {
                    self.nodes[ROOT].attributes = attributes;
                    Ok(())
                }
                Entry::File(..) | Entry::Symlink(..) | Entry::HardLink(_) | Entry::Fifo(_) => {
                    Err(PullError::refused("it has a root that is no directory"))
                }
            };
        };
        if parents.iter().any(|parent| parent.starts_with(WHITEOUT)) {
            return Err(refused_path(&path, "is below a whiteout"));
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(PullError::refused("it has a whiteout of nothing"));
            }
            // In a directory that is not there, there is nothing to hide.
            if let Some(parent) = self.directory(parents, &path, Missing::Told)? {
                if *name == OPAQUE {
                    self.remove_lower_children(parent);
                } else if !hidden.starts_with(WHITEOUT) {
                    // Another `.wh..wh.` is the housekeeping of an old storage driver.
                    self.remove_lower(parent, hidden);
                }
            }
            return Ok(());
        }
        let parent = self.made_directory(parents, &path)?;
        let node = match entry {
            Entry::Directory(attributes) => {
                if let Some(Name { node, .. }) = self.child(parent, name)
                    && matches!(self.nodes[node].kind, Kind::Directory(_))
                {
                    // What a lower layer has in it stays.
                    self.nodes[node].attributes = attributes;
                    node
                } else {
                    self.new_node(attributes, Kind::Directory(BTreeMap::new()))
                }
            }
            Entry::File(attributes, content) => self.new_node(attributes, Kind::File(content)),
            Entry::Fifo(attributes) => self.new_node(attributes, Kind::Fifo),
            Entry::Symlink(attributes, target) => {
                let usable = (1..MAX_PATH_BYTES).contains(&target.len()) && !target.contains(&0);
                if !usable {
                    return Err(refused_path(&path, "points nowhere"));
                }
                self.new_node(attributes, Kind::Symlink(target))
            }
            Entry::HardLink(target) => self.target_of(&target, &path)?,
        };
        self.put(parent, name.to_vec(), node);
        Ok(())
    }

    fn new_node(&mut self, attributes: Attributes, kind: Kind) -> NodeId {
        self.nodes.push(Node { attributes, kind });
        self.nodes.len() - 1
    }

    fn child(&self, directory: NodeId, name: &[u8]) -> Option<Name> {
        match &self.nodes[directory].kind {
            Kind::Directory(children) => children.get(name).copied(),
            Kind::File(_) | Kind::Symlink(_) | Kind::Fifo => None,
        }
    }

    /// What a hard link names: by a path whose last part is not followed.
    fn target_of(&mut self, target: &[u8], link: &[u8]) -> Result<NodeId, PullError> {
        let dangling = || refused_path(link, "is a link to a file that is not there");
        let names = names_of(target)?;
        let (name, parents) = names.split_last().ok_or_else(dangling)?;
        let parent = self.directory(parents, link, Missing::Told)?.ok_or_else(dangling)?;
        let Name { node, .. } = self.child(parent, name).ok_or_else(dangling)?;
        match self.nodes[node].kind {
            Kind::Directory(_) => Err(refused_path(link, "is a link to a directory")),
            Kind::File(_) | Kind::Symlink(_) | Kind::Fifo => Ok(node),
        }
    }

    /// The directory of this path, made as far as it is missing; what is on the way is of this layer
    /// from now on.
    fn made_directory(&mut self, names: &[&[u8]], whose: &[u8]) -> Result<NodeId, PullError> {
        self.directory(names, whose, Missing::Made).map(|found| found.unwrap_or(ROOT))
    }

    /// The directory of this path, links followed.
    fn directory(
        &mut self,
        names: &[&[u8]],
        whose: &[u8],
        missing: Missing,
    ) -> Result<Option<NodeId>, PullError> {
        // Where we are, from the root; what is still to be walked, the next last.
        let mut here = vec![ROOT];
        let mut ahead: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        let mut followed = 0;
        while let Some(name) = ahead.pop() {
            if name == b".." {
                // Only links have it. The root's parent is the root.
                if here.len() > 1 {
                    here.pop();
                }
                continue;
            }
            if here.len() >= MAX_DEPTH || ahead.len() > MAX_PATH_BYTES {
                return Err(refused_path(whose, "is too deep"));
            }
            let parent = here.last().copied().unwrap_or(ROOT);
            let node = match (self.child(parent, &name), missing) {
                (Some(found), Missing::Told) => found.node,
                (Some(found), Missing::Made) => self.put(parent, name, found.node),
                (None, Missing::Made) => {
                    let attributes = Attributes { mode: 0o755, ..Attributes::default() };
                    let made = self.new_node(attributes, Kind::Directory(BTreeMap::new()));
                    self.put(parent, name, made)
                }
                (None, Missing::Told) => return Ok(None),
            };
            match &self.nodes[node].kind {
                Kind::Directory(_) => here.push(node),
                Kind::Symlink(target) => {
                    followed += 1;
                    if followed > MAX_LINKS_FOLLOWED {
                        return Err(refused_path(whose, "is behind a circle of links"));
                    }
                    if target.starts_with(b"/") {
                        here.truncate(1);
                    }
                    let steps = target.split(|byte| *byte == b'/').rev();
                    let steps = steps.filter(|step| !step.is_empty() && *step != b".");
                    ahead.extend(steps.map(<[u8]>::to_vec));
                }
                Kind::File(_) | Kind::Fifo => {
                    return Err(refused_path(whose, "is below a file that is no directory"));
                }
            }
        }
        Ok(here.last().copied())
    }

    /// Gives a node a name that is of this layer.
    fn put(&mut self, directory: NodeId, name: Vec<u8>, node: NodeId) -> NodeId {
        let layer = self.layer;
        if let Kind::Directory(children) = &mut self.nodes[directory].kind {
            children.insert(name, Name { node, layer });
        }
        node
    }

    /// Hides what lower layers have under this name. What this layer put there itself, before or
    /// after, stays.
    fn remove_lower(&mut self, directory: NodeId, name: &[u8]) {
        let Some(found) = self.child(directory, name) else { return };
        if found.layer == self.layer {
            self.remove_lower_children(found.node);
        } else if let Kind::Directory(children) = &mut self.nodes[directory].kind {
            children.remove(name);
        }
    }

    fn remove_lower_children(&mut self, directory: NodeId) {
        // Not by recursion: depth is the image's choice.
        let mut waiting = vec![directory];
        while let Some(id) = waiting.pop() {
            let layer = self.layer;
            if let Kind::Directory(children) = &mut self.nodes[id].kind {
                children.retain(|_, name| name.layer == layer);
                waiting.extend(children.values().map(|name| name.node));
            }
        }
    }
}

/// What is done about a directory on the way that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Made,
    Told,
}

/// The parts of a path in a layer. An absolute one means the same below the image's root.
fn names_of(path: &[u8]) -> Result<Vec<&[u8]>, PullError> {
    if path.len() > MAX_PATH_BYTES || path.contains(&0) {
        return Err(refused_path(path, "is too long or has a byte that no name has"));
    }
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    let names: Vec<&[u8]> = names.collect();
    if names.contains(&b"..".as_slice()) {
        return Err(refused_path(path, "leads out of the image"));
    }
    if names.iter().any(|name| name.len() > MAX_NAME_BYTES) {
        return Err(refused_path(path, "has a name that is too long"));
    }
    Ok(names)
}

fn refused_path(path: &[u8], problem: &str) -> PullError {
    PullError::refused(format!("{} {problem}", shown(path)))
}

/// A path of strangers, fit for messages.
pub(super) fn shown(path: &[u8]) -> String {
    let shown: String =
        path.iter().take(120).flat_map(|b| b.escape_ascii()).map(char::from).collect();
    if path.len() > 120 { format!("{shown}...") } else { shown }
}
