//! `GET /workspaces/{id}/logs`: the console, or the commands that ran, as numbered lines.

use axum::{Json, extract::State};
use futures::StreamExt as _;
use serde::Deserialize;
use skerry_control::internal_api::{ByteStream, LogSource};

use super::{Rigbox, error_body::RigboxError, wire, workspaces::WorkspaceId};
use crate::{ApiState, auth::Authenticated, extract::QueryOf};

/// How much of the end of a log is looked at, in bytes.
const WINDOW_BYTES: u64 = 1024 * 1024;
/// Lines of an answer when the request does not say.
const DEFAULT_LINES: usize = 100;
/// The most lines of an answer.
const MAX_LINES: usize = 1000;
/// The most characters of a line; the rest is cut off.
const MAX_LINE_CHARS: usize = 4096;

#[derive(Debug, Default, Deserialize)]
pub(super) struct LogQuery {
    lines: Option<String>,
    direction: Option<String>,
    cursor: Option<String>,
    source: Option<String>,
}

/// From which end of the log the lines are counted out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// The last lines; the cursor leads backwards.
    Newest,
    /// The first lines; the cursor leads forwards.
    Oldest,
}

/// `GET /workspaces/{id}/logs?lines=&direction=&cursor=&source=`.
pub(super) async fn get(
    State(state): State<ApiState>,
    auth: Authenticated<Rigbox>,
    WorkspaceId(which): WorkspaceId,
    query: QueryOf<LogQuery, Rigbox>,
) -> Result<Json<wire::LogLines>, RigboxError> {
    let query = query.value;
    let source = match query.source.as_deref() {
        None | Some("console") => LogSource::Console,
        Some("commands") => LogSource::Commands,
        Some(_) => return Err(RigboxError::invalid("source", "is unknown", "console, commands")),
    };
    let direction = match query.direction.as_deref() {
        None | Some("newest") => Direction::Newest,
        Some("oldest") => Direction::Oldest,
        Some(_) => return Err(RigboxError::invalid("direction", "is unknown", "newest, oldest")),
    };
    let count = match query.lines.as_deref() {
        None => DEFAULT_LINES,
        Some(text) => match text.parse::<usize>() {
            Ok(count) if count > 0 => count.min(MAX_LINES),
            Ok(_) | Err(_) => {
                return Err(RigboxError::invalid("lines", "is not a count", "1 to 1000"));
            }
        },
    };
    let cursor = match query.cursor.as_deref().map(str::parse::<usize>) {
        None => None,
        Some(Ok(line)) => Some(line),
        Some(Err(_)) => {
            return Err(RigboxError::invalid(
                "cursor",
                "is not a cursor of this log",
                "the cursor of the answer before, unchanged",
            ));
        }
    };

    let log = state.control.workspace_log(&auth.caller, &which, source, WINDOW_BYTES).await?;
    let bytes = state.until_shutdown(read_bounded(log)).await?;
    Ok(Json(select(&String::from_utf8_lossy(&bytes), direction, count, cursor)))
}

async fn read_bounded(mut log: ByteStream) -> Result<Vec<u8>, skerry_control::Error> {
    let limit = usize::try_from(WINDOW_BYTES).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    while let Some(piece) = log.next().await {
        let piece = piece?;
        let room = limit - bytes.len();
        bytes.extend_from_slice(&piece[..piece.len().min(room)]);
        if bytes.len() == limit {
            break;
        }
    }
    Ok(bytes)
}

/// The lines asked for, in the log's order. A cursor is a number of lines from the beginning: the
/// end of the part before it (newest) or the beginning of the part after it (oldest).
fn select(text: &str, direction: Direction, count: usize, cursor: Option<usize>) -> wire::LogLines {
    let all: Vec<&str> = text.lines().collect();
    let (begin, end) = match direction {
        Direction::Newest => {
            let end = cursor.unwrap_or(all.len()).min(all.len());
            (end.saturating_sub(count), end)
        }
        Direction::Oldest => {
            let begin = cursor.unwrap_or(0).min(all.len());
            (begin, begin.saturating_add(count).min(all.len()))
        }
    };
    let lines = all[begin..end]
        .iter()
        .zip(begin as u64 + 1..)
        .map(|(line, line_number)| wire::LogLine {
            line_number,
            message: line.chars().take(MAX_LINE_CHARS).collect(),
        })
        .collect();
    let more_from = match direction {
        Direction::Newest => (begin > 0).then_some(begin),
        Direction::Oldest => (end < all.len()).then_some(end),
    };
    wire::LogLines {
        lines,
        has_more: more_from.is_some(),
        cursor: more_from.map(|line| line.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(lines: &wire::LogLines) -> Vec<u64> {
        lines.lines.iter().map(|line| line.line_number).collect()
    }

    #[test]
    fn the_newest_lines_come_first_and_the_cursor_leads_backwards() {
        let text = "one\ntwo\nthree\r\nfour\nfive\n";
        let last = select(text, Direction::Newest, 2, None);
        assert_eq!(numbers(&last), [4, 5]);
        assert_eq!((last.has_more, last.cursor.as_deref()), (true, Some("3")));
        let before = select(text, Direction::Newest, 2, Some(3));
        assert_eq!(numbers(&before), [2, 3]);
        assert_eq!(before.lines[1].message, "three");
        let first = select(text, Direction::Newest, 2, Some(1));
        assert_eq!((numbers(&first), first.has_more), (vec![1], false));
    }

    #[test]
    fn the_oldest_lines_come_first_when_asked_and_the_cursor_leads_forwards() {
        let text = "one\ntwo\nthree";
        let first = select(text, Direction::Oldest, 2, None);
        assert_eq!((numbers(&first), first.cursor.as_deref()), (vec![1, 2], Some("2")));
        let rest = select(text, Direction::Oldest, 2, Some(2));
        assert_eq!((numbers(&rest), rest.has_more), (vec![3], false));
    }

    #[test]
    fn an_empty_log_and_a_cursor_beyond_the_end_give_no_lines() {
        for direction in [Direction::Newest, Direction::Oldest] {
            assert_eq!(select("", direction, 10, None).lines, []);
        }
        assert_eq!(select("one", Direction::Oldest, 10, Some(99)).lines, []);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let lines = select(&"x".repeat(10_000), Direction::Newest, 1, None);
        assert_eq!(lines.lines[0].message.len(), MAX_LINE_CHARS);
    }
}
