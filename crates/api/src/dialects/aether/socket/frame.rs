//! What is said over a workspace's socket.

use axum::extract::ws::Message;
use serde::Deserialize;
use serde_json::{Value, json};
use skerry_control::internal_api::Pty;

/// Terminals have at most so many columns and rows.
const MAX_SIDE: u16 = 1000;
/// The size of a terminal for which none is said.
const DEFAULT_SIZE: Pty = Pty { columns: 80, rows: 24 };
const MAX_SESSION_ID_CHARS: usize = 128;

/// Why a message has no effect.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal(String);

impl Refusal {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// The answer to a message that belongs to no request. The socket stays open.
pub(super) fn failure(Refusal(why): &Refusal) -> Message {
    text(&json!({ "channel": "error", "type": "error", "error": why }))
}

/// A message of this content.
pub(super) fn text(content: &Value) -> Message {
    Message::Text(content.to_string().into())
}

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Something of a terminal.
    Terminal(TerminalAsked),
    /// Something of a file.
    Files(FilesAsked),
    /// That whoever listens on a port ends.
    Ports(PortAsked),
    /// That a person is at work.
    Activity,
}

/// What is asked of terminals, each by a name that the client has chosen.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TerminalAsked {
    /// A shell, or the one of this name that is there.
    Create { session_id: String, size: Option<Pty> },
    /// Input.
    Input { session_id: String, data: String },
    /// Another size.
    Resize { session_id: String, size: Pty },
    /// Its end.
    Close { session_id: String },
}

impl TerminalAsked {
    pub(super) const DEFAULT_SIZE: Pty = DEFAULT_SIZE;
}

/// What is asked of files.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FilesAsked {
    /// As the client has numbered it; told back as it came.
    pub(super) request_id: Value,
    pub(super) what: FileWork,
}

/// The work itself. Paths are as the client has them.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FileWork {
    List { path: String },
    ListTree { path: String },
    Read { path: String },
    Write { path: String, content: String, encoding: Encoding },
    MakeDir { path: String },
    Delete { path: String },
    Rename { from: String, to: String },
    Stat { path: String },
}

impl FileWork {
    /// The `type` of question and answer.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::List { .. } => "list",
            Self::ListTree { .. } => "listTree",
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::MakeDir { .. } => "mkdir",
            Self::Delete { .. } => "delete",
            Self::Rename { .. } => "rename",
            Self::Stat { .. } => "stat",
        }
    }
}

/// How a file's content is written in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// As it is.
    Utf8,
    /// RFC 4648, section 4.
    Base64,
}

/// What is asked of ports.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PortAsked {
    pub(super) request_id: Value,
    pub(super) port: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object with channel and type")]
struct Raw {
    channel: String,
    #[serde(rename = "type")]
    kind: String,
    session_id: Option<String>,
    #[serde(default)]
    request_id: Value,
    cols: Option<u16>,
    rows: Option<u16>,
    data: Option<String>,
    path: Option<String>,
    old_path: Option<String>,
    new_path: Option<String>,
    content: Option<String>,
    encoding: Option<String>,
    port: Option<u16>,
}

fn required<T>(name: &str, value: Option<T>) -> Result<T, Refusal> {
    value.ok_or_else(|| Refusal(format!("{name} is required")))
}

impl Asked {
    /// Reads a message.
    ///
    /// # Errors
    /// What is wrong with it, in words for whoever sent it.
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        let raw: Raw = serde_json::from_str(text)
            .map_err(|error| Refusal(format!("this is not a message: {error}")))?;
        match raw.channel.as_str() {
            "terminal" => raw.terminal().map(Self::Terminal),
            "files" => raw.files().map(Self::Files),
            "ports" => raw.ports().map(Self::Ports),
            "activity" if raw.kind == "user_activity" => Ok(Self::Activity),
            "agent" | "git" | "config" | "activity" => {
                Err(raw.unknown("is not supported by this server"))
            }
            _ => Err(raw.unknown("is not known")),
        }
    }
}

impl Raw {
    fn unknown(&self, how: &str) -> Refusal {
        Refusal(format!("{:?} on channel {:?} {how}", self.kind, self.channel))
    }

    fn terminal(self) -> Result<TerminalAsked, Refusal> {
        let session_id = required("sessionId", self.session_id.clone())?;
        if !(1..=MAX_SESSION_ID_CHARS).contains(&session_id.chars().count()) {
            return Err(Refusal(format!("sessionId has 1 to {MAX_SESSION_ID_CHARS} characters")));
        }
        match self.kind.as_str() {
            "create" => Ok(TerminalAsked::Create { session_id, size: self.size_if_said()? }),
            "input" => Ok(TerminalAsked::Input { session_id, data: required("data", self.data)? }),
            "resize" => {
                let size = required("cols and rows", self.size_if_said()?)?;
                Ok(TerminalAsked::Resize { session_id, size })
            }
            "close" => Ok(TerminalAsked::Close { session_id }),
            _ => Err(self.unknown("is not known")),
        }
    }

    fn size_if_said(&self) -> Result<Option<Pty>, Refusal> {
        if self.cols.is_none() && self.rows.is_none() {
            return Ok(None);
        }
        let size = Pty {
            columns: self.cols.unwrap_or(DEFAULT_SIZE.columns),
            rows: self.rows.unwrap_or(DEFAULT_SIZE.rows),
        };
        let side = 1..=MAX_SIDE;
        match side.contains(&size.columns) && side.contains(&size.rows) {
            true => Ok(Some(size)),
            false => Err(Refusal(format!("cols and rows are 1 to {MAX_SIDE}"))),
        }
    }

    fn files(self) -> Result<FilesAsked, Refusal> {
        // What is listed or searched is the project itself where nothing is said.
        let path_or_root = self.path.clone().unwrap_or_default();
        let path = || required("path", self.path.clone());
        let what = match self.kind.as_str() {
            "list" => FileWork::List { path: path_or_root },
            "listTree" => FileWork::ListTree { path: path_or_root },
            "read" => FileWork::Read { path: path()? },
            "write" => FileWork::Write {
                path: path()?,
                encoding: self.encoding()?,
                content: required("content", self.content.clone())?,
            },
            "mkdir" => FileWork::MakeDir { path: path()? },
            "delete" => FileWork::Delete { path: path()? },
            "rename" => FileWork::Rename {
                from: required("oldPath", self.old_path.clone())?,
                to: required("newPath", self.new_path.clone())?,
            },
            "stat" => FileWork::Stat { path: path()? },
            _ => return Err(self.unknown("is not known")),
        };
        Ok(FilesAsked { request_id: self.request_id, what })
    }

    fn encoding(&self) -> Result<Encoding, Refusal> {
        match self.encoding.as_deref() {
            None | Some("utf8" | "utf-8") => Ok(Encoding::Utf8),
            Some("base64") => Ok(Encoding::Base64),
            Some(_) => Err(Refusal("encoding is utf8 or base64".to_owned())),
        }
    }

    fn ports(self) -> Result<PortAsked, Refusal> {
        match self.kind.as_str() {
            "kill" => {
                let port = required("port", self.port)?;
                Ok(PortAsked { request_id: self.request_id, port })
            }
            _ => Err(self.unknown("is not known")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_documented() {
        let read: Vec<_> = [
            r#"{"channel":"terminal","type":"create","sessionId":"a"}"#,
            r#"{"channel":"terminal","type":"create","sessionId":"a","cols":100}"#,
            r#"{"channel":"terminal","type":"input","sessionId":"a","data":"ls\r"}"#,
            r#"{"channel":"terminal","type":"resize","sessionId":"a","cols":100,"rows":30}"#,
            r#"{"channel":"terminal","type":"close","sessionId":"a"}"#,
            r#"{"channel":"files","type":"list","requestId":"1"}"#,
            r#"{"channel":"files","type":"read","requestId":2,"path":"a"}"#,
            r#"{"channel":"files","type":"write","path":"a","content":"eA==","encoding":"base64"}"#,
            r#"{"channel":"files","type":"rename","requestId":"3","oldPath":"a","newPath":"b"}"#,
            r#"{"channel":"ports","type":"kill","requestId":"4","port":3000}"#,
            r#"{"channel":"activity","type":"user_activity"}"#,
        ]
        .into_iter()
        .map(Asked::parse)
        .collect();
        insta::assert_debug_snapshot!(read);
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let long =
            format!(r#"{{"channel":"terminal","type":"close","sessionId":"{}"}}"#, "x".repeat(129));
        let refused: Vec<_> = [
            "{",
            "[]",
            r#"{"channel":"files"}"#,
            r#"{"channel":"chat","type":"say"}"#,
            r#"{"channel":"agent","type":"subscribe","taskId":"t"}"#,
            r#"{"channel":"git","type":"diff","mode":"main"}"#,
            r#"{"channel":"terminal","type":"create"}"#,
            r#"{"channel":"terminal","type":"create","sessionId":"a","cols":0}"#,
            r#"{"channel":"terminal","type":"resize","sessionId":"a"}"#,
            r#"{"channel":"terminal","type":"dance","sessionId":"a"}"#,
            r#"{"channel":"files","type":"read","requestId":"1"}"#,
            r#"{"channel":"files","type":"write","path":"a","content":"","encoding":"rot13"}"#,
            r#"{"channel":"ports","type":"kill","port":70000}"#,
            &long,
        ]
        .into_iter()
        .map(|text| Asked::parse(text).unwrap_err().0)
        .collect();
        insta::assert_debug_snapshot!(refused);
    }
}
