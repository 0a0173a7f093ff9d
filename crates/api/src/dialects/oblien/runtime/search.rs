//! `/files/search`: by content and by name.
//!
//! Searching happens here, file by file as the guest hands them out: no image has to bring a program for
//! it, and what a query may do is bounded by this crate's own expressions, which take time in proportion to
//! what they look at.

use std::sync::Arc;
use std::time::Duration;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use ignore::types::{Types, TypesBuilder};
use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use skerry_control::internal_api::{FileKind, FileStat, GuestApi, NodeError};
use tokio::time::timeout;

use super::{
    files::{stopping, whole},
    paths,
    problem::{RuntimeProblem, refusal},
    visitor::Visitor,
    walk::{Rules, Walk},
};
use crate::{
    ApiState,
    dialects::oblien::{Oblien, error_body::Problem},
    extract::QueryOf,
};

const QUERY_MAX_CHARS: usize = 1000;
/// Larger files are not looked into.
const FILE_MAX_BYTES: u64 = 2 * 1024 * 1024;
/// Files that are read at a time.
const AT_A_TIME: usize = 4;
/// A file with a NUL in so many bytes is none of text.
const BINARY_LOOK_BYTES: usize = 8 * 1024;
const TEXT_MAX_CHARS: usize = 1000;
const RESULTS_MAX: usize = 10_000;
/// How long a search by name may take.
const NAMES_WITHIN: Duration = Duration::from_secs(60);
const DEPTH: usize = 64;

#[derive(Debug, Deserialize)]
pub(super) struct ContentQuery {
    q: Option<String>,
    path: Option<String>,
    #[serde(default)]
    case_sensitive: bool,
    #[serde(default)]
    regex: bool,
    #[serde(default)]
    whole_word: bool,
    max_results: Option<usize>,
    timeout: Option<u64>,
    context_lines: Option<usize>,
    file_types: Option<String>,
    #[serde(default)]
    include_hidden: bool,
    #[serde(default)]
    no_gitignore: bool,
    ignore_patterns: Option<String>,
}

fn query_of(q: Option<String>) -> Result<String, Problem> {
    let fits = |q: &String| (1..=QUERY_MAX_CHARS).contains(&q.chars().count());
    q.filter(fits).ok_or_else(|| refusal("q", "is not a query", "1 to 1000 characters"))
}

fn results_of(asked: Option<usize>, default: usize) -> Result<usize, Problem> {
    let wanted = asked.unwrap_or(default);
    if (1..=RESULTS_MAX).contains(&wanted) {
        return Ok(wanted);
    }
    Err(refusal("max_results", "is out of range", "1 to 10000"))
}

/// What ripgrep calls a type, or else an extension.
fn types_of(listed: Option<&str>) -> Result<Option<Types>, Problem> {
    let names = paths::listed(listed);
    if names.is_empty() {
        return Ok(None);
    }
    let bad = || refusal("file_types", "has one that is none", "types such as rust, or extensions");
    let mut builder = TypesBuilder::new();
    builder.add_defaults();
    let known: Vec<String> =
        builder.definitions().iter().map(|one| one.name().to_owned()).collect();
    for name in names {
        let name = name.trim_start_matches('.');
        if !known.iter().any(|known| known == name) {
            builder.add(name, &format!("*.{name}")).map_err(|_| bad())?;
        }
        builder.select(name);
    }
    builder.build().map(Some).map_err(|_| bad())
}

/// What is looked for, and how much of it.
struct Wanted {
    expression: Regex,
    context_lines: usize,
    most: usize,
}

impl Wanted {
    fn of(query: &ContentQuery, text: &str) -> Result<Self, Problem> {
        let context_lines = query.context_lines.unwrap_or(0);
        if context_lines > 10 {
            return Err(refusal("context_lines", "is out of range", "0 to 10"));
        }
        let pattern = if query.regex { text.to_owned() } else { regex::escape(text) };
        let pattern = if query.whole_word { format!(r"\b(?:{pattern})\b") } else { pattern };
        let mut builder = RegexBuilder::new(&pattern);
        builder.case_insensitive(!query.case_sensitive).size_limit(1024 * 1024);
        let expression = builder.build().map_err(|error| {
            let problem = format!("is no regular expression: {error}");
            refusal("q", &problem, "a regular expression as of ripgrep")
        })?;
        let most = results_of(query.max_results, 100)?;
        Ok(Self { expression, context_lines, most })
    }

    /// The lines of a file that match, at most `most`.
    fn matches(&self, content: &Bytes, most: usize) -> Vec<Value> {
        if content.iter().take(BINARY_LOOK_BYTES).any(|byte| *byte == 0) {
            return Vec::new();
        }
        let lines: Vec<&[u8]> = content
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| line.strip_suffix(b"\n").unwrap_or(line))
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
            .collect();
        let mut found = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            let Some(first) = self.expression.find(line) else { continue };
            let mut shown =
                json!({ "line": index + 1, "column": first.start() + 1, "text": text_of(line) });
            if self.context_lines > 0 {
                let (from, to) = (
                    index.saturating_sub(self.context_lines),
                    (index + 1 + self.context_lines).min(lines.len()),
                );
                let texts =
                    |lines: &[&[u8]]| lines.iter().map(|line| text_of(line)).collect::<Vec<_>>();
                shown["before"] = json!(texts(&lines[from..index]));
                shown["after"] = json!(texts(&lines[index + 1..to]));
            }
            found.push(shown);
            if found.len() == most {
                break;
            }
        }
        found
    }
}

fn text_of(line: &[u8]) -> String {
    String::from_utf8_lossy(line).chars().take(TEXT_MAX_CHARS).collect()
}

/// What was found.
#[derive(Default)]
struct Found {
    results: Map<String, Value>,
    matches: usize,
    is_cut: bool,
}

async fn searched(
    guest: Arc<dyn GuestApi>,
    mut walk: Walk,
    wanted: Arc<Wanted>,
    types: Option<Types>,
) -> Result<Found, Problem> {
    let mut found = Found::default();
    while let Some(directory) = walk.next().await? {
        let is_wanted = |entry: &FileStat| {
            entry.kind == FileKind::File
                && (1..=FILE_MAX_BYTES).contains(&entry.size_bytes)
                && types
                    .as_ref()
                    .is_none_or(|types| types.matched(&entry.path, false).is_whitelist())
        };
        let files = directory.entries.into_iter().filter(is_wanted);
        let mut looks = stream::iter(files)
            .map(|file| look(Arc::clone(&guest), Arc::clone(&wanted), file.path))
            .buffered(AT_A_TIME);
        while let Some(looked) = looks.next().await {
            let (path, mut lines) = looked?;
            let room = wanted.most - found.matches;
            found.is_cut |= lines.len() > room;
            lines.truncate(room);
            found.matches += lines.len();
            if !lines.is_empty() {
                found.results.insert(path, json!(lines));
            }
            if found.is_cut {
                return Ok(found);
            }
        }
    }
    found.is_cut |= walk.is_cut;
    Ok(found)
}

async fn look(
    guest: Arc<dyn GuestApi>,
    wanted: Arc<Wanted>,
    path: String,
) -> Result<(String, Vec<Value>), Problem> {
    let content = match whole(guest.as_ref(), &path, FILE_MAX_BYTES).await {
        Ok(Some(content)) => content,
        // It has grown, or gone, or is nobody's to read.
        Ok(None) | Err(NodeError::NoSuchFile(_) | NodeError::Guest { .. }) => {
            return Ok((path, Vec::new()));
        }
        Err(error) => return Err(error.into()),
    };
    // One more than is shown says that there are more.
    let looking = move || wanted.matches(&content, wanted.most + 1);
    let lines = tokio::task::spawn_blocking(looking).await;
    Ok((path, lines.map_err(|error| Problem::Control(skerry_control::Error::internal(error)))?))
}

pub(super) async fn content(
    State(state): State<ApiState>,
    visitor: Visitor,
    QueryOf { value: query, .. }: QueryOf<ContentQuery, Oblien>,
) -> Result<Response, Problem> {
    let text = query_of(query.q.clone())?;
    let path = paths::absolute("path", query.path.as_deref().unwrap_or("/"))?;
    let seconds = query.timeout.unwrap_or(10);
    if !(1..=60).contains(&seconds) {
        return Err(refusal("timeout", "is out of range", "1 to 60"));
    }
    let wanted = Arc::new(Wanted::of(&query, &text)?);
    let types = types_of(query.file_types.as_deref())?;
    let rules = Rules::new(
        &path,
        query.ignore_patterns.as_deref(),
        !query.no_gitignore,
        query.include_hidden,
        DEPTH,
    )?;
    let guest = visitor.guest(&state).await?;
    let walk = Walk::new(Arc::clone(&guest), path.clone(), rules);
    let searching = timeout(Duration::from_secs(seconds), searched(guest, walk, wanted, types));
    let found = tokio::select! {
        found = searching => found.map_err(|_| too_slow(seconds))??,
        () = state.shutdown_begun() => return Err(stopping()),
    };
    Ok(Json(json!({
        "success": true,
        "query": text,
        "path": path,
        "total_matches": found.matches,
        "total_files": found.results.len(),
        "capped": found.is_cut,
        "results": found.results,
    }))
    .into_response())
}

fn too_slow(seconds: u64) -> Problem {
    let why = format!("the search did not end within {seconds} s: search fewer directories");
    RuntimeProblem::TimedOut(why).into()
}

#[derive(Debug, Deserialize)]
pub(super) struct NamesQuery {
    q: Option<String>,
    path: Option<String>,
    #[serde(default)]
    case_sensitive: bool,
    #[serde(default)]
    include_hidden: bool,
    max_results: Option<usize>,
    ignore_patterns: Option<String>,
}

/// Part of a path; with `*` or `?` in it, the whole of a path's end.
fn name_expression(text: &str, case_sensitive: bool) -> Result<Regex, Problem> {
    let escaped = regex::escape(text);
    let pattern = if text.contains(['*', '?']) {
        format!("(?:^|/){}$", escaped.replace(r"\*", "[^/]*").replace(r"\?", "[^/]"))
    } else {
        escaped
    };
    let mut builder = RegexBuilder::new(&pattern);
    let built = builder.case_insensitive(!case_sensitive).build();
    built.map_err(|_| refusal("q", "is not a query", "1 to 1000 characters"))
}

pub(super) async fn names(
    State(state): State<ApiState>,
    visitor: Visitor,
    QueryOf { value: query, .. }: QueryOf<NamesQuery, Oblien>,
) -> Result<Response, Problem> {
    let text = query_of(query.q)?;
    let path = paths::absolute("path", query.path.as_deref().unwrap_or("/"))?;
    let most = results_of(query.max_results, 200)?;
    let expression = name_expression(&text, query.case_sensitive)?;
    let patterns = query.ignore_patterns.as_deref();
    let gitignore = true;
    let rules = Rules::new(&path, patterns, gitignore, query.include_hidden, DEPTH)?;
    let guest = visitor.guest(&state).await?;
    let mut walk = Walk::new(guest, path.clone(), rules);
    let top = path.trim_end_matches('/').len();
    let mut files = Vec::new();
    let walking = async {
        while let Some(directory) = walk.next().await? {
            for entry in &directory.entries {
                let below = entry.path.get(top..).unwrap_or_default().trim_start_matches('/');
                if entry.kind != FileKind::Directory && expression.is_match(below.as_bytes()) {
                    files.push(entry.path.clone());
                    if files.len() == most {
                        return Ok(());
                    }
                }
            }
        }
        Ok::<(), Problem>(())
    };
    tokio::select! {
        walked = timeout(NAMES_WITHIN, walking) => {
            walked.map_err(|_| too_slow(NAMES_WITHIN.as_secs()))??;
        }
        () = state.shutdown_begun() => return Err(stopping()),
    }
    Ok(Json(json!({
        "success": true,
        "query": text,
        "path": path,
        "total_files": files.len(),
        "files": files,
    }))
    .into_response())
}

/// Nothing has to be installed.
pub(super) async fn status(State(state): State<ApiState>, _: Visitor) -> Json<Value> {
    Json(json!({
        "success": true,
        "installed": true,
        "version": state.config.version,
        "message": "searching is built in",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(query: &str, path: &str) -> bool {
        let expression = name_expression(query, false);
        expression.is_ok_and(|expression| expression.is_match(path.as_bytes()))
    }

    #[test]
    fn a_name_is_found_by_a_part_of_it_or_by_a_pattern_of_its_end() {
        assert!(names("CONTROL", "src/user_controller.ts") && names("c/u", "src/user.ts"));
        assert!(names("*.ts", "src/a.ts") && !names("*.ts", "src/a.tsx"));
        assert!(names("src/?.ts", "src/a.ts") && !names("src/?.ts", "src/ab.ts"));
        assert!(!names("a.s", "abs"));
    }

    #[test]
    fn types_are_ripgreps_or_extensions() {
        let matches = |listed, path: &str| match types_of(Some(listed)) {
            Ok(Some(types)) => types.matched(path, false).is_whitelist(),
            Ok(None) | Err(_) => false,
        };
        assert!(matches("rust", "a.rs") && matches(".foo, ts", "x.foo") && matches("ts", "a.ts"));
        assert!(!matches("rust", "a.ts"));
        assert!(matches!(types_of(Some(" , ")), Ok(None)));
    }
}
