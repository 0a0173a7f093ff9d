//! The channel `files`: paths are below the user's home, where shells begin.
//!
//! Answers have both forms that clients know: the fields by themselves, and the same in `data`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use skerry_control::internal_api::{FileKind, FileStat, NodeError, WriteMode};
use skerry_model::Timestamp;

use super::{
    Connection,
    frame::{Encoding, FileWork, FilesAsked, text},
    login::Login,
};

/// The largest file that is read into a message, in bytes.
const READ_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// A file with a NUL among so many of its first bytes is binary.
const TEXT_HEAD_BYTES: usize = 8000;
/// What one listing of a tree holds.
const TREE_MAX: usize = 20_000;
/// What trees are listed without.
const LEFT_OUT: [&str; 6] = ["node_modules", ".git", ".next", "dist", "build", "__pycache__"];
const FILE_MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o755;

/// Why a file's work was not done.
struct Problem {
    code: &'static str,
    message: String,
}

impl Problem {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<NodeError> for Problem {
    fn from(error: NodeError) -> Self {
        let code = match &error {
            NodeError::NoSuchFile(_) => "NOT_FOUND",
            NodeError::Guest { code, .. } => match *code {
                "exists" => "PATH_EXISTS",
                "is_directory" => "IS_DIRECTORY",
                "not_directory" => "IS_FILE",
                "permission_denied" => "PERMISSION_DENIED",
                "too_large" => "FILE_TOO_LARGE",
                _ => "INTERNAL_ERROR",
            },
            NodeError::Invalid { .. } => "INVALID_PATH",
            _ => "INTERNAL_ERROR",
        };
        Self::new(code, error.to_string())
    }
}

/// A path of a client below `root`.
fn below(root: &str, path: &str) -> Result<String, Problem> {
    let invalid = |why: &str| Err(Problem::new("INVALID_PATH", format!("{path:?} {why}")));
    let inside = path.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let inside = match (inside, path.starts_with('/')) {
        (Some(inside), _) => inside,
        (None, true) => return invalid("is outside of the project"),
        (None, false) => path,
    };
    if path.contains('\0') {
        return invalid("cannot be a path");
    }
    let mut whole = root.to_owned();
    for part in inside.split('/').filter(|part| !matches!(*part, "" | ".")) {
        if part == ".." {
            return invalid("is outside of the project");
        }
        whole.push('/');
        whole.push_str(part);
    }
    Ok(whole)
}

const fn word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Directory => "directory",
        FileKind::File | FileKind::Symlink | FileKind::Other => "file",
    }
}

fn modified(stat: &FileStat) -> Value {
    let time = Timestamp::from_millisecond(stat.modified_unix_ms);
    time.map_or(Value::Null, |time| time.to_string().into())
}

fn entry(stat: &FileStat) -> Value {
    json!({
        "name": stat.name,
        "type": word(stat.kind),
        "size": stat.size_bytes,
        "modified": modified(stat),
    })
}

/// Directories first, each by name.
fn sorted(mut stats: Vec<FileStat>) -> Vec<FileStat> {
    stats.sort_by(|a, b| {
        let key = |stat: &FileStat| (stat.kind != FileKind::Directory, stat.name.clone());
        key(a).cmp(&key(b))
    });
    stats
}

/// The fields of an answer, and the same of them in `data`.
fn with_data(mut fields: Value, data: Value) -> Value {
    fields["data"] = data;
    fields
}

impl Connection {
    /// Does what is asked of a file, and answers.
    pub(super) async fn file(&self, asked: FilesAsked) {
        let FilesAsked { request_id, what } = asked;
        let kind = what.word();
        let path = match &what {
            FileWork::List { path }
            | FileWork::ListTree { path }
            | FileWork::Read { path }
            | FileWork::Write { path, .. }
            | FileWork::MakeDir { path }
            | FileWork::Delete { path }
            | FileWork::Rename { from: path, .. }
            | FileWork::Stat { path } => path.clone(),
        };
        let mut answer = match self.work(what).await {
            Ok(fields) => {
                let mut answer = json!({ "type": kind, "success": true, "path": path });
                if let (Value::Object(answer), Value::Object(fields)) = (&mut answer, fields) {
                    answer.extend(fields);
                }
                answer
            }
            Err(problem) => json!({
                "type": "error",
                "success": false,
                "error": problem.message,
                "code": problem.code,
                "path": path,
            }),
        };
        answer["channel"] = "files".into();
        answer["requestId"] = request_id;
        self.answer(text(&answer)).await;
    }

    async fn work(&self, what: FileWork) -> Result<Value, Problem> {
        let Login { user, home: root } = self.login().await?;
        let at = |path: &str| below(root, path);
        match what {
            FileWork::List { path } => {
                let stats = sorted(self.guest.list_dir(&at(&path)?).await?);
                let entries: Vec<Value> = stats.iter().map(entry).collect();
                Ok(with_data(json!({ "entries": entries.clone() }), entries.into()))
            }
            FileWork::ListTree { path } => self.tree(&at(&path)?).await,
            FileWork::Read { path } => self.read(&at(&path)?).await,
            FileWork::Write { path, content, encoding } => {
                let content = match encoding {
                    Encoding::Utf8 => content.into_bytes(),
                    Encoding::Base64 => STANDARD
                        .decode(content)
                        .map_err(|_| Problem::new("INVALID_PATH", "content is not base64"))?,
                };
                let path = at(&path)?;
                let content = stream::iter([Ok(Bytes::from(content))]).boxed();
                let how = WriteMode::Replace;
                self.guest.write_file(&path, FILE_MODE, how, user.clone(), content).await?;
                self.described(&path).await
            }
            FileWork::MakeDir { path } => {
                self.guest.make_dir(&at(&path)?, DIR_MODE, user.clone()).await?;
                Ok(json!({}))
            }
            FileWork::Delete { path } => {
                let path = at(&path)?;
                if path == *root {
                    return Err(Problem::new("INVALID_PATH", "the project itself stays"));
                }
                self.guest.remove(&path).await?;
                Ok(json!({}))
            }
            FileWork::Rename { from, to } => {
                self.guest.rename(&at(&from)?, &at(&to)?).await?;
                Ok(json!({ "oldPath": from, "newPath": to }))
            }
            FileWork::Stat { path } => self.described(&at(&path)?).await,
        }
    }

    async fn described(&self, path: &str) -> Result<Value, Problem> {
        let stat = self.guest.stat(path).await?;
        let mut fields = entry(&stat);
        let data = fields.clone();
        // `type` is the answer's own.
        if let Value::Object(fields) = &mut fields {
            fields.remove("type");
        }
        fields["fileType"] = word(stat.kind).into();
        Ok(with_data(fields, data))
    }

    async fn read(&self, path: &str) -> Result<Value, Problem> {
        let stat = self.guest.stat(path).await?;
        if stat.kind == FileKind::Directory {
            return Err(Problem::new("IS_DIRECTORY", format!("{path}: is a directory")));
        }
        let too_large = || {
            let most = READ_MAX_BYTES / (1024 * 1024);
            Problem::new("FILE_TOO_LARGE", format!("{path}: is larger than {most} MiB"))
        };
        // One more than may be: a file can grow, and a link's own size is not its target's.
        let mut pieces = self.guest.read_file(path, 0, Some(READ_MAX_BYTES + 1)).await?;
        let mut content = Vec::new();
        while let Some(piece) = pieces.try_next().await? {
            content.extend_from_slice(&piece);
            if content.len() as u64 > READ_MAX_BYTES {
                return Err(too_large());
            }
        }
        let size = content.len();
        let has_nul = content.iter().take(TEXT_HEAD_BYTES).any(|byte| *byte == 0);
        let (content, words, is_binary) = match String::from_utf8(content) {
            Ok(content) if !has_nul => (content, ["utf8", "utf-8"], false),
            Ok(content) => (STANDARD.encode(content), ["base64"; 2], true),
            Err(other) => (STANDARD.encode(other.into_bytes()), ["base64"; 2], true),
        };
        let [encoding, documented] = words;
        let data = json!({ "content": content.clone(), "encoding": documented });
        let fields = json!({
            "content": content,
            "encoding": encoding,
            "size": size,
            "modified": modified(&stat),
            "isBinary": is_binary,
        });
        Ok(with_data(fields, data))
    }

    /// Everything below a directory, by paths from there.
    async fn tree(&self, top: &str) -> Result<Value, Problem> {
        let (mut paths, mut directories) = (Vec::new(), Vec::new());
        let mut to_list = vec![top.to_owned()];
        while let Some(next) = to_list.pop() {
            let stats = match self.guest.list_dir(&next).await {
                Ok(stats) => sorted(stats),
                // It may be gone by now, or its owner's alone.
                Err(NodeError::NoSuchFile(_) | NodeError::Guest { .. }) if next != top => continue,
                Err(error) => return Err(error.into()),
            };
            for stat in stats.iter().filter(|stat| !LEFT_OUT.contains(&stat.name.as_str())) {
                let path = stat.path.strip_prefix(top).unwrap_or(&stat.path);
                let path = path.trim_start_matches('/').to_owned();
                match stat.kind {
                    FileKind::Directory => {
                        directories.push(path);
                        to_list.push(stat.path.clone());
                    }
                    FileKind::File | FileKind::Symlink | FileKind::Other => paths.push(path),
                }
                if paths.len() + directories.len() >= TREE_MAX {
                    let why = format!("it has more than {TREE_MAX} entries");
                    return Err(Problem::new("FILE_TOO_LARGE", why));
                }
            }
        }
        paths.sort();
        directories.sort();
        let data = json!({ "paths": paths.clone(), "directories": directories.clone() });
        Ok(with_data(json!({ "paths": paths, "directories": directories }), data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        let at = |path| below("/home/dev", path).map_err(|problem| problem.code);
        for (path, whole) in [
            ("", "/home/dev"),
            (".", "/home/dev"),
            ("a/./b//c/", "/home/dev/a/b/c"),
            ("/home/dev", "/home/dev"),
            ("/home/dev/x", "/home/dev/x"),
            ("..a", "/home/dev/..a"),
        ] {
            assert_eq!(at(path).as_deref(), Ok(whole), "{path}");
        }
        for path in ["..", "a/../../b", "/etc/passwd", "/home/developer", "a\0b", "/home/dev/.."] {
            assert_eq!(at(path), Err("INVALID_PATH"), "{path}");
        }
        assert_eq!(below("", "a").map_err(|problem| problem.code).as_deref(), Ok("/a"));
    }
}
