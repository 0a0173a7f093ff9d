//! What the client prints.

use std::io::{self, Write};

use serde_json::Value;

use crate::error::Error;

/// Standard output and standard error, for people or as JSON.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether the answer is to be one JSON document.
    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// Prints an answer: the document itself with `--json`, else the text made from it.
    pub(crate) fn answer(
        self,
        document: &Value,
        text: impl FnOnce() -> Result<String, Error>,
    ) -> Result<(), Error> {
        if self.json {
            return write_out(format!("{document:#}\n").as_bytes());
        }
        write_out(text()?.as_bytes())
    }

    /// Prints an error and what may help.
    pub(crate) fn error(self, error: &Error) {
        let text = if self.json {
            format!("{:#}\n", error.to_json())
        } else {
            match error.hint() {
                Some(hint) => {
                    format!("skerry: {}\n  {}\n", printable(&error.to_string()), printable(&hint))
                }
                None => format!("skerry: {}\n", printable(&error.to_string())),
            }
        };
        // Without standard error there is nobody to tell.
        let _ = io::stderr().write_all(text.as_bytes());
    }

    /// A remark for people, on standard error; not with `--json`.
    pub(crate) fn remark(self, text: &str) {
        if !self.json {
            let _ = writeln!(io::stderr(), "skerry: {}", printable(text));
        }
    }
}

/// Writes all of it, or says that nobody reads.
pub(crate) fn write_out(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(output_error)
}

/// A failed write to standard output.
pub(crate) fn output_error(cause: io::Error) -> Error {
    if cause.kind() == io::ErrorKind::BrokenPipe {
        Error::OutputClosed
    } else {
        Error::local("standard output", cause)
    }
}

/// Text from elsewhere without control characters, so that it cannot steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// A table with a heading, columns as wide as their widest cell, two spaces between them.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = std::iter::once(heading.map(str::to_owned))
        .chain(rows.iter().cloned())
        .map(|row| row.map(|cell| printable(&cell).replace('\n', " ")))
        .collect();
    let widths: Vec<usize> = (0..N)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let padding = width - cell.chars().count() + 2;
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', padding));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Lines of `label: value`, the values in one column.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(label, _)| label.len()).max().unwrap_or(0) + 2;
    let mut text = String::new();
    for (label, value) in fields {
        let value = printable(value);
        // Without a label it is a remark on the field above.
        let label = if label.is_empty() { String::new() } else { format!("{label}:") };
        text.push_str(format!("{label:width$}{value}").trim_end());
        text.push('\n');
    }
    text
}

/// MiB for people: `512M`, `2G`, `1.5G`.
pub(crate) fn mebibytes(mib: u64) -> String {
    if mib >= 1024 && mib.is_multiple_of(1024) {
        format!("{}G", mib / 1024)
    } else if mib >= 1024 && mib.is_multiple_of(512) {
        format!("{}.5G", mib / 1024)
    } else {
        format!("{mib}M")
    }
}

/// Bytes for people: `512 B`, `1.2 KiB`, `3.4 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// A server's time without its fraction of a second.
pub(crate) fn time(text: &str) -> String {
    match text.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => text.to_owned(),
    }
}
