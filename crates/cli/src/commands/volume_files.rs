//! Files of volumes, both ways.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use futures::StreamExt;
use http::Method;
use reqwest::Body;
use serde_json::json;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use super::copy::{PIECE_BYTES, SIGINT, write_all};
use crate::{
    args::{VolumeFileCommand, VolumePlace},
    client::{Client, read},
    error::Error,
    output::{self, Output, output_error, table},
    progress::{Progress, transfer},
    wire,
};

/// A helper may have to be started first.
const ANSWER_SECONDS: u32 = 300;

pub(super) async fn file(
    client: &Client,
    command: VolumeFileCommand,
    output: Output,
) -> Result<(), Error> {
    // Ctrl-C lets go of everything under way, which changes nothing then.
    tokio::select! {
        done = carry_out(client, command, output) => done,
        _ = tokio::signal::ctrl_c() => Err(Error::Interrupted { signal: SIGINT }),
    }
}

async fn carry_out(
    client: &Client,
    command: VolumeFileCommand,
    output: Output,
) -> Result<(), Error> {
    match command {
        VolumeFileCommand::Put { from, to, new } => put(client, &from, &to, new, output).await,
        VolumeFileCommand::Get { from, to } => get(client, &from, &to, output).await,
        VolumeFileCommand::Ls { place, recursive } => {
            let query = [("path", place.path), ("recursive", recursive.to_string())];
            let path = ["volumes", &place.volume, "files"];
            let answer = client.call(Method::GET, &path, &query, None, ANSWER_SECONDS).await?;
            output.answer(&answer, || Ok(listed(&read(&answer)?)))
        }
        VolumeFileCommand::Rm { places, recursive } => {
            for place in &places {
                let query = [("path", place.path.clone()), ("recursive", recursive.to_string())];
                let path = ["volumes", &place.volume, "files"];
                client.call(Method::DELETE, &path, &query, None, ANSWER_SECONDS).await?;
            }
            let removed: Vec<&str> = places.iter().map(|place| place.path.as_str()).collect();
            output.answer(&json!({ "removed": removed }), || Ok(String::new()))
        }
    }
}

fn listed(list: &wire::VolumeFileList) -> String {
    let row = |file: &wire::VolumeFile| {
        let slash = if file.kind == "directory" { "/" } else { "" };
        let (size, changed) = (output::bytes(file.size_bytes), output::time(&file.modified_at));
        [file.mode.clone(), size, changed, format!("{}{slash}", file.path)]
    };
    let rows: Vec<_> = list.entries.iter().map(row).collect();
    let mut text = table(["MODE", "SIZE", "CHANGED", "PATH"], &rows);
    if list.truncated {
        text.push_str("there are more than can be listed\n");
    }
    text
}

async fn put(
    client: &Client,
    from: &Path,
    to: &VolumePlace,
    new: bool,
    output: Output,
) -> Result<(), Error> {
    if to.path.is_empty() {
        return Err(Error::Usage(format!("{} is a volume: name the file in it", to.volume)));
    }
    if from == Path::new("-") {
        let progress = transfer(output, &*to.path, None);
        return send(client, tokio::io::stdin(), to, 0o644, new, progress, output).await;
    }
    let shown = from.display().to_string();
    let failed = |cause| Error::local(&*shown, cause);
    let found = fs::metadata(from).map_err(failed)?;
    if found.is_dir() {
        return Err(Error::Usage(format!("{shown} is a directory: files are written one by one")));
    }
    let file = tokio::fs::File::open(from).await.map_err(failed)?;
    let progress = transfer(output, &*shown, found.is_file().then_some(found.len()));
    let mode = found.permissions().mode() & 0o777;
    send(client, file, to, mode, new, progress, output).await
}

async fn send(
    client: &Client,
    content: impl AsyncRead + Send + 'static,
    to: &VolumePlace,
    mode: u32,
    new: bool,
    progress: Progress,
    output: Output,
) -> Result<(), Error> {
    let count = progress.counter();
    let content = ReaderStream::with_capacity(content, PIECE_BYTES).inspect(move |piece| {
        if let Ok(piece) = piece {
            count(piece.len() as u64);
        }
    });
    let how = if new { "create_new" } else { "replace" };
    let query = [("path", to.path.clone()), ("mode", format!("{mode:o}")), ("how", how.to_owned())];
    let path = ["volumes", &to.volume, "files", "content"];
    let body = Body::wrap_stream(content);
    let answer = client.upload(&path, &query, "application/octet-stream", body).await?;
    drop(progress);
    output.answer(&answer, || Ok(String::new()))
}

async fn get(client: &Client, from: &VolumePlace, to: &Path, output: Output) -> Result<(), Error> {
    let query = [("path", from.path.clone())];
    let path = ["volumes", &from.volume, "files", "content"];
    let mut content = client.download(&path, &query).await?;
    if to == Path::new("-") {
        // With --json, standard output is the file itself: one document would spoil it.
        let written = write_all(&mut content, &mut io::stdout(), None).await;
        return written.map(drop).map_err(|error| match error {
            Error::Local { cause, .. } => output_error(cause),
            error => error,
        });
    }
    let name = from.path.rsplit('/').next().unwrap_or_default();
    let target: PathBuf = if to.is_dir() { to.join(name) } else { to.to_owned() };
    let shown = target.display().to_string();
    let failed = |cause| Error::local(&*shown, cause);
    let progress = transfer(output, &*from.path, None);
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let mut draft = tempfile::Builder::new()
        .prefix(".skerry-get.")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(parent)
        .map_err(failed)?;
    let written = write_all(&mut content, draft.as_file_mut(), Some(&progress)).await?;
    draft.persist(&target).map_err(|error| failed(error.error))?;
    drop(progress);
    output.answer(&json!({ "path": shown, "bytes": written }), || Ok(String::new()))
}
