//! Commands.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ErrorDetail;

/// A terminal's size in character cells.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Pty {
    /// Columns.
    #[schema(minimum = 1, maximum = 1000)]
    pub columns: u16,
    /// Rows.
    #[schema(minimum = 1, maximum = 1000)]
    pub rows: u16,
}

/// A command to run to its end.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Program and arguments. The program is looked up in the guest's `PATH`; there is no shell
    /// unless it is named.
    #[schema(min_items = 1, max_items = 4096, example = json!(["uname", "-a"]))]
    pub argv: Vec<String>,
    /// Added to the workspace's own environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Absent: the image's, else the user's home.
    pub working_dir: Option<String>,
    /// Login name; absent: the image's user, else `root`.
    pub user: Option<String>,
    /// Standard input as text. At most one of the two.
    pub stdin: Option<String>,
    /// Standard input in base64.
    pub stdin_base64: Option<String>,
    /// Time after which the command and its children are killed, 1 to 3600; absent: 60.
    #[schema(minimum = 1, maximum = 3600)]
    pub timeout_seconds: Option<u32>,
    /// How much of each output is kept, up to 16 MiB; absent: 1 MiB.
    #[schema(maximum = 16_777_216)]
    pub max_output_bytes: Option<u32>,
}

/// How a command ended and what it said.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExecResult {
    /// Its exit code; `null` when a signal or the timeout ended it.
    pub exit_code: Option<i32>,
    /// The number of the signal that killed it.
    pub signal: Option<i32>,
    /// Whether it was killed because its time was over.
    pub timed_out: bool,
    /// Standard output.
    pub stdout: String,
    /// How `stdout` is written.
    pub stdout_encoding: Encoding,
    /// Whether `stdout` lacks its end.
    pub stdout_truncated: bool,
    /// Standard error.
    pub stderr: String,
    /// How `stderr` is written.
    pub stderr_encoding: Encoding,
    /// Whether `stderr` lacks its end.
    pub stderr_truncated: bool,
    /// From the request to the command's end, in milliseconds.
    pub duration_ms: u64,
}

/// How bytes are written in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// As text.
    Utf8,
    /// In base64, because they are not UTF-8.
    Base64,
}

/// The first message of a client on the exec stream.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecStart {
    /// Program and arguments.
    #[schema(min_items = 1, max_items = 4096)]
    pub argv: Vec<String>,
    /// Added to the workspace's own environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Absent: the image's, else the user's home.
    pub working_dir: Option<String>,
    /// Login name; absent: the image's user, else `root`.
    pub user: Option<String>,
    /// A terminal of this size; absent: three pipes.
    pub pty: Option<Pty>,
    /// Seconds, 1 to 86400; absent: no limit.
    #[schema(minimum = 1, maximum = 86_400)]
    pub timeout_seconds: Option<u32>,
}

/// A later text message of a client on the exec stream.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ExecClientMessage {
    /// The terminal's new size.
    Resize {
        /// Columns.
        #[schema(minimum = 1, maximum = 1000)]
        columns: u16,
        /// Rows.
        #[schema(minimum = 1, maximum = 1000)]
        rows: u16,
    },
    /// A signal for the command's process group.
    Signal {
        /// Its number.
        #[schema(minimum = 1, maximum = 64)]
        signal: i32,
    },
    /// End of standard input.
    CloseStdin,
}

/// A text message of the server on the exec stream.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecServerMessage {
    /// The command runs.
    Started,
    /// It ended: the last message.
    Exit {
        /// Its exit code.
        exit_code: Option<i32>,
        /// The number of the signal that killed it.
        signal: Option<i32>,
        /// Whether it was killed because its time was over.
        timed_out: bool,
    },
    /// It could not be started or was lost: the last message.
    Error {
        /// As in any other answer.
        error: ErrorDetail,
    },
}
