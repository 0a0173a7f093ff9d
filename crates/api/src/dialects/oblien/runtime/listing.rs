//! `GET /files` and `GET /files/stream`: directories, with everything in them or without.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    body::Body as HttpBody,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::header;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use skerry_control::internal_api::{FileKind, FileStat, GuestApi, NodeError};

use super::{
    files::{kind, modified, stopping, whole},
    paths,
    problem::refusal,
    visitor::Visitor,
    walk::{Rules, Walk},
};
use crate::{
    ApiState,
    dialects::oblien::{Oblien, error_body::Problem},
    extract::QueryOf,
};

const DEFAULT_DEPTH: usize = 20;
const DEFAULT_CONTENT_BYTES: u64 = 50 * 1024 * 1024;

/// `include_extensions` asks for what is always shown.
#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    path: Option<String>,
    #[serde(default)]
    nested: bool,
    #[serde(default)]
    flatten: bool,
    #[serde(default)]
    light: bool,
    #[serde(default)]
    include_hash: bool,
    #[serde(default)]
    include_content: bool,
    #[serde(default)]
    code_files_only: bool,
    use_gitignore: Option<bool>,
    max_depth: Option<usize>,
    path_filter: Option<String>,
    include_ext: Option<String>,
    ignore_patterns: Option<String>,
    max_content_budget: Option<u64>,
}

/// What is shown of which entries.
struct Shown {
    light: bool,
    hash: bool,
    content: bool,
    code_only: bool,
    filter: Option<String>,
    extensions: Vec<String>,
    /// What contents may still take.
    content_bytes: u64,
}

impl Shown {
    /// Directories are always there: files in them may be wanted.
    fn wants(&self, entry: &FileStat) -> bool {
        if entry.kind == FileKind::Directory {
            return true;
        }
        let extension = paths::extension(&entry.name);
        (!self.code_only || paths::is_code(&entry.name))
            && self.filter.as_ref().is_none_or(|part| entry.path.contains(part.as_str()))
            && (self.extensions.is_empty()
                || extension.is_some_and(|extension| self.extensions.contains(&extension)))
    }

    async fn entry(&mut self, guest: &dyn GuestApi, entry: &FileStat) -> Result<Value, NodeError> {
        let mut shown = json!({ "name": entry.name, "path": entry.path, "type": kind(entry.kind) });
        if self.light {
            return Ok(shown);
        }
        shown["modified"] = json!(modified(entry));
        if entry.kind != FileKind::File {
            return Ok(shown);
        }
        shown["size"] = json!(entry.size_bytes);
        if let Some(extension) = paths::extension(&entry.name) {
            shown["extension"] = json!(extension);
        }
        if self.hash
            && let Some(hash) = gone_is_none(hash(guest, &entry.path).await)?
        {
            shown["hash"] = json!(hash);
        }
        if self.content && entry.size_bytes <= self.content_bytes {
            let read = whole(guest, &entry.path, self.content_bytes).await;
            let text = gone_is_none(read)?.flatten().and_then(|b| String::from_utf8(b.into()).ok());
            if let Some(text) = text {
                self.content_bytes -= text.len() as u64;
                shown["content"] = json!(text);
            }
        }
        Ok(shown)
    }
}

/// A file may go away, or be nobody's to read, between its listing and its reading.
fn gone_is_none<T>(read: Result<T, NodeError>) -> Result<Option<T>, NodeError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(NodeError::NoSuchFile(_) | NodeError::Guest { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn hash(guest: &dyn GuestApi, path: &str) -> Result<String, NodeError> {
    let mut content = guest.read_file(path, 0, None).await?;
    let mut digest = Sha256::new();
    while let Some(piece) = content.next().await {
        digest.update(&piece?);
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn asked(query: &ListQuery, nested: bool) -> Result<(String, Rules, Shown), Problem> {
    let path = paths::absolute("path", query.path.as_deref().unwrap_or("/"))?;
    let depth = match (nested, query.max_depth) {
        (false, _) => 1,
        (true, None) => DEFAULT_DEPTH,
        (true, Some(0)) => return Err(refusal("max_depth", "is out of range", "1 and up")),
        (true, Some(depth)) => depth,
    };
    let gitignore = query.use_gitignore.unwrap_or(true);
    let hidden = true;
    let rules = Rules::new(&path, query.ignore_patterns.as_deref(), gitignore, hidden, depth)?;
    let extensions = paths::listed(query.include_ext.as_deref()).into_iter();
    let shown = Shown {
        light: query.light,
        hash: query.include_hash,
        content: query.include_content,
        code_only: query.code_files_only,
        filter: query.path_filter.clone().filter(|part| !part.is_empty()),
        extensions: extensions
            .map(|one| one.trim_start_matches('.').to_ascii_lowercase())
            .collect(),
        content_bytes: query
            .max_content_budget
            .unwrap_or(DEFAULT_CONTENT_BYTES)
            .min(DEFAULT_CONTENT_BYTES),
    };
    Ok((path, rules, shown))
}

pub(super) async fn list(
    State(state): State<ApiState>,
    visitor: Visitor,
    QueryOf { value: query, .. }: QueryOf<ListQuery, Oblien>,
) -> Result<Response, Problem> {
    let (path, rules, mut shown) = asked(&query, query.nested)?;
    let guest = visitor.guest(&state).await?;
    let mut walk = Walk::new(Arc::clone(&guest), path.clone(), rules);
    let mut share = state.output_budget.begin();
    // By directory, in the order of the walk.
    let mut found: Vec<(String, Vec<Value>)> = Vec::new();
    let (mut count, mut bytes) = (0, 0);
    let walking = async {
        while let Some(directory) = walk.next().await? {
            let mut entries = Vec::new();
            for entry in &directory.entries {
                if !shown.wants(entry) {
                    continue;
                }
                let entry = shown.entry(guest.as_ref(), entry).await?;
                bytes += entry.to_string().len();
                share.cover(bytes)?;
                entries.push(entry);
            }
            count += entries.len();
            found.push((directory.path, entries));
        }
        Ok::<(), Problem>(())
    };
    tokio::select! {
        walked = walking => walked?,
        () = state.shutdown_begun() => return Err(stopping()),
    }
    let entries = if query.flatten {
        found.into_iter().flat_map(|(_, entries)| entries).collect()
    } else {
        tree(&path, found)
    };
    let mut answer = json!({ "success": true, "path": path, "entries": entries, "count": count });
    if walk.is_cut {
        answer["truncated"] = json!(true);
    }
    Ok(share.carried_by(Json(answer).into_response()))
}

/// Directories with what is in them, those furthest from the root first.
fn tree(root: &str, found: Vec<(String, Vec<Value>)>) -> Vec<Value> {
    let mut by_path: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (path, mut entries) in found.into_iter().rev() {
        for entry in &mut entries {
            let below = entry["path"].as_str().and_then(|path| by_path.remove(path));
            if let Some(children) = below {
                entry["children"] = json!(children);
            }
        }
        by_path.insert(path, entries);
    }
    by_path.remove(root).unwrap_or_default()
}

/// What a stream is at.
struct Lines {
    guest: Arc<dyn GuestApi>,
    walk: Walk,
    shown: Shown,
    count: usize,
}

impl Lines {
    /// The lines of the next directory; `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<Value>>, NodeError> {
        let Some(directory) = self.walk.next().await? else { return Ok(None) };
        let mut lines = Vec::new();
        for entry in &directory.entries {
            if self.shown.wants(entry) {
                lines.push(self.shown.entry(self.guest.as_ref(), entry).await?);
            }
        }
        self.count += lines.len();
        Ok(Some(lines))
    }
}

fn text(lines: &[Value]) -> Bytes {
    lines.iter().map(|line| format!("{line}\n")).collect::<String>().into()
}

/// Always nested and flat; a line for each entry, as they are found.
pub(super) async fn stream(
    State(state): State<ApiState>,
    visitor: Visitor,
    QueryOf { value: query, .. }: QueryOf<ListQuery, Oblien>,
) -> Result<Response, Problem> {
    let (path, rules, shown) = asked(&query, true)?;
    let guest = visitor.guest(&state).await?;
    let mut walk = Lines {
        guest: Arc::clone(&guest),
        walk: Walk::new(guest, path.clone(), rules),
        shown,
        count: 0,
    };
    // Before the answer begins: what is not there is an error of its own.
    let first = walk.next().await?.unwrap_or_default();
    let head = text(&[json!({ "event": "start", "path": path })]);
    let begun = stream::iter([Ok(head), Ok(text(&first))]);
    let rest = stream::try_unfold(Some(walk), |walk| async {
        let Some(mut walk) = walk else { return Ok::<_, NodeError>(None) };
        Ok(Some(match walk.next().await? {
            Some(lines) => (text(&lines), Some(walk)),
            None => {
                let mut done = json!({ "event": "done", "count": walk.count });
                if walk.walk.is_cut {
                    done["truncated"] = json!(true);
                }
                (text(&[done]), None)
            }
        }))
    });
    let server = state.clone();
    let lines = begun.chain(rest).take_until(async move { server.shutdown_begun().await });
    let head = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((head, HttpBody::from_stream(lines)).into_response())
}
