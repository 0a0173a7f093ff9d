//! A walk through a guest's directories, from above, by name: what `.gitignore` files and patterns of the
//! caller leave out is not walked into.

use std::sync::Arc;

use futures::StreamExt as _;
use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};
use skerry_control::internal_api::{FileKind, FileStat, GuestApi, NodeError};

use super::{paths, problem::refusal};
use crate::dialects::oblien::error_body::Problem;

/// What is looked at at most.
pub(super) const ENTRIES_MAX: usize = 50_000;
/// Of a `.gitignore`, in bytes.
const IGNORE_FILE_BYTES: u64 = 256 * 1024;
/// Patterns of a caller.
const PATTERNS_MAX: usize = 200;
/// Directories in directories.
const DEPTH_MAX: usize = 256;

/// What is walked over.
#[derive(Clone)]
pub(super) struct Rules {
    /// Whether `.gitignore` files in the directories that are walked over say what is left out.
    pub(super) gitignore: bool,
    /// Whether names with a dot in front are walked over.
    pub(super) hidden: bool,
    /// So many directories deep; 1 is the entries of the first alone.
    pub(super) depth: usize,
    /// Left out in any case.
    patterns: Arc<Gitignore>,
}

impl Rules {
    /// `patterns`: as in a `.gitignore` at `root`, with commas between them.
    pub(super) fn new(
        root: &str,
        patterns: Option<&str>,
        gitignore: bool,
        hidden: bool,
        depth: usize,
    ) -> Result<Self, Problem> {
        let allowed = "at most 200 patterns of a .gitignore, with commas between them";
        let bad = |problem: &str| refusal("ignore_patterns", problem, allowed);
        let listed = paths::listed(patterns);
        if listed.len() > PATTERNS_MAX {
            return Err(bad("are too many"));
        }
        let mut builder = GitignoreBuilder::new(root);
        for pattern in listed {
            builder.add_line(None, pattern).map_err(|_| bad("has one that is none"))?;
        }
        let patterns = Arc::new(builder.build().map_err(|_| bad("cannot be used"))?);
        Ok(Self { gitignore, hidden, depth: depth.min(DEPTH_MAX), patterns })
    }
}

/// A directory that is still to be walked over.
struct Directory {
    path: String,
    depth: usize,
    /// Those of the directories above it, the highest first.
    ignored: Vec<Arc<Gitignore>>,
}

/// The entries of one directory.
pub(super) struct Entries {
    /// The directory.
    pub(super) path: String,
    /// By name.
    pub(super) entries: Vec<FileStat>,
}

/// The walk.
pub(super) struct Walk {
    guest: Arc<dyn GuestApi>,
    rules: Rules,
    /// The next one last.
    waiting: Vec<Directory>,
    seen: usize,
    is_first: bool,
    /// Whether there was more than is looked at.
    pub(super) is_cut: bool,
}

impl Walk {
    pub(super) fn new(guest: Arc<dyn GuestApi>, root: String, rules: Rules) -> Self {
        let first = Directory { path: root, depth: 1, ignored: Vec::new() };
        Self { guest, rules, waiting: vec![first], seen: 0, is_first: true, is_cut: false }
    }

    /// The entries of the next directory: those of a directory come before those of the ones in it.
    pub(super) async fn next(&mut self) -> Result<Option<Entries>, NodeError> {
        while let Some(directory) = self.waiting.pop() {
            if self.seen >= ENTRIES_MAX {
                self.is_cut = true;
                return Ok(None);
            }
            let is_first = std::mem::take(&mut self.is_first);
            let listed = match self.guest.list_dir(&directory.path).await {
                Ok(listed) => listed,
                // It may go away, or be nobody's to read, while others are walked over.
                Err(NodeError::NoSuchFile(_) | NodeError::Guest { .. }) if !is_first => continue,
                Err(error) => return Err(error),
            };
            return Ok(Some(self.taken(directory, listed).await));
        }
        Ok(None)
    }

    async fn taken(&mut self, directory: Directory, listed: Vec<FileStat>) -> Entries {
        let Directory { path, depth, mut ignored } = directory;
        if self.rules.gitignore
            && let Some(file) = listed.iter().find(|entry| entry.name == ".gitignore")
        {
            ignored.extend(read_ignored(self.guest.as_ref(), &path, file).await.map(Arc::new));
        }
        let mut entries: Vec<FileStat> =
            listed.into_iter().filter(|entry| !self.is_left_out(entry, &ignored)).collect();
        let room = ENTRIES_MAX - self.seen;
        self.is_cut |= entries.len() > room;
        entries.truncate(room);
        self.seen += entries.len();
        if depth < self.rules.depth {
            // The last one is taken first.
            for entry in entries.iter().rev() {
                if entry.kind == FileKind::Directory && !paths::is_of_the_kernel(&entry.path) {
                    let path = entry.path.clone();
                    let ignored = ignored.clone();
                    self.waiting.push(Directory { path, depth: depth + 1, ignored });
                }
            }
        }
        Entries { path, entries }
    }

    fn is_left_out(&self, entry: &FileStat, ignored: &[Arc<Gitignore>]) -> bool {
        let is_dir = entry.kind == FileKind::Directory;
        if !self.rules.hidden && entry.name.starts_with('.') {
            return true;
        }
        if self.rules.patterns.matched(&entry.path, is_dir).is_ignore() {
            return true;
        }
        if self.rules.gitignore && entry.name == ".git" && is_dir {
            return true;
        }
        // The one nearest to it says.
        for one in ignored.iter().rev() {
            match one.matched(&entry.path, is_dir) {
                Match::Ignore(_) => return true,
                Match::Whitelist(_) => return false,
                Match::None => {}
            }
        }
        false
    }
}

/// What a `.gitignore` says; nothing if it cannot be read. Lines that are none are skipped, as git does.
async fn read_ignored(guest: &dyn GuestApi, root: &str, file: &FileStat) -> Option<Gitignore> {
    if file.kind != FileKind::File {
        return None;
    }
    let mut content = guest.read_file(&file.path, 0, Some(IGNORE_FILE_BYTES)).await.ok()?;
    let mut bytes = Vec::new();
    while let Some(piece) = content.next().await {
        bytes.extend_from_slice(&piece.ok()?);
    }
    let mut builder = GitignoreBuilder::new(root);
    for line in String::from_utf8_lossy(&bytes).lines() {
        let _skipped = builder.add_line(None, line);
    }
    builder.build().ok()
}
