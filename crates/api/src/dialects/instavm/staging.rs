//! `/v1/vms/{vm}/stage-env`: variables for the shells of a VM that runs. They are written into the guest's
//! memory alone: not on its disk, and nowhere on the server.

use std::time::Duration;

use axum::{Json, extract::State};
use bytes::Bytes;
use futures::stream;
use serde_json::Value;
use skerry_control::{
    Error,
    internal_api::{GuestApi, User, WriteMode},
};

use super::{
    Instavm, error_body::Problem, execute::inside, request::AuthenticatedBody, validation::Fields,
    wire::Staged,
};
use crate::{ApiState, extract::PathOf, ids};

const MAX_ENTRIES: usize = 100;
const MAX_VALUE_BYTES: usize = 32 * 1024;
/// In memory: `/run` is no part of the disk.
const STAGED_FILE: &str = "/run/skerry-staged-env.sh";
/// Read by every login shell; it has no secret.
const PROFILE_FILE: &str = "/etc/profile.d/skerry-staged-env.sh";
const PROFILE: &str = "[ -r /run/skerry-staged-env.sh ] && . /run/skerry-staged-env.sh\ntrue\n";
/// How long the VM may take to be brought up: below the 300 s that clients wait.
const START_TIMEOUT: Duration = Duration::from_secs(120);

struct Entry {
    name: String,
    value: String,
}

/// A value is not repeated in an error: it is a secret.
fn entries(mut fields: Fields) -> Result<Vec<Entry>, Problem> {
    let given = fields.list("entries").unwrap_or_default();
    if given.is_empty() || given.len() > MAX_ENTRIES {
        fields.refuse("entries", "Input should have 1 to 100 items");
    }
    let mut entries = Vec::new();
    for item in given {
        let text = |name| item.get(name).and_then(Value::as_str).map(str::to_owned);
        match (text("env_name"), text("value")) {
            (Some(name), Some(value))
                if is_name(&name) && value.len() <= MAX_VALUE_BYTES && !value.contains('\0') =>
            {
                entries.push(Entry { name, value });
            }
            _ => fields.refuse(
                "entries",
                "Input should be objects with env_name, the name of a variable, and value, a text of at \
                 most 32768 bytes without NUL",
            ),
        }
    }
    fields.finish()?;
    Ok(entries)
}

fn is_name(name: &str) -> bool {
    let begins = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.len() <= 256
        && name.starts_with(begins)
        && name.chars().all(|c| begins(c) || c.is_ascii_digit())
}

fn script(entries: &[Entry]) -> String {
    let line =
        |entry: &Entry| format!("export {}='{}'\n", entry.name, entry.value.replace('\'', "'\\''"));
    entries.iter().map(line).collect()
}

async fn write(
    guest: &dyn GuestApi,
    path: &str,
    how: WriteMode,
    text: String,
) -> Result<(), Problem> {
    let content = Box::pin(stream::iter([Ok(Bytes::from(text))]));
    guest.write_file(path, 0o644, how, User::Root, content).await.map_err(Error::from)?;
    Ok(())
}

pub(super) async fn stage(
    State(state): State<ApiState>,
    PathOf { value: vm, .. }: PathOf<String, Instavm>,
    AuthenticatedBody { caller, fields }: AuthenticatedBody,
) -> Result<Json<Staged>, Problem> {
    let entries = entries(fields)?;
    let which = ids::parse_workspace_ref(&vm);
    let (_, guest) = inside(&state, &caller, &which, START_TIMEOUT).await?;
    let guest = guest.as_ref();
    write(guest, PROFILE_FILE, WriteMode::Replace, PROFILE.to_owned()).await?;
    write(guest, STAGED_FILE, WriteMode::Append, script(&entries)).await?;
    let staged = entries.into_iter().map(|entry| entry.name).collect();
    Ok(Json(Staged { status: "ok", staged }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_one_word_for_the_shell_whatever_is_in_it() {
        let entry = |value: &str| Entry { name: "A".to_owned(), value: value.to_owned() };
        let text = script(&[entry("it's $HOME\n`x`"), entry("")]);
        assert_eq!(text, "export A='it'\\''s $HOME\n`x`'\nexport A=''\n");
    }

    #[test]
    fn names_are_those_of_variables() {
        assert!(is_name("_A1") && is_name("a"));
        assert!(!is_name("1A") && !is_name("") && !is_name("A-B") && !is_name("A;B"));
    }
}
