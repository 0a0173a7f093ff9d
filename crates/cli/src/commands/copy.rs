//! Files and trees, both ways.

use std::{
    fs::{self, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use futures::{Stream, StreamExt};
use reqwest::Body;
use serde_json::json;
use tokio::io::AsyncRead;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::ReaderStream;

use crate::{
    args::{CpArgs, Place},
    client::{Client, read},
    error::Error,
    output::{Output, output_error},
    progress::{Progress, transfer},
    tree, wire,
};

pub(super) const SIGINT: u8 = 2;
pub(super) const PIECE_BYTES: usize = 64 * 1024;

pub(crate) async fn copy(client: &Client, args: CpArgs, output: Output) -> Result<ExitCode, Error> {
    // Ctrl-C lets go of everything under way, which removes what is half done.
    tokio::select! {
        result = carry(client, args, output) => result.map(|()| ExitCode::SUCCESS),
        _ = tokio::signal::ctrl_c() => Err(Error::Interrupted { signal: SIGINT }),
    }
}

async fn carry(client: &Client, args: CpArgs, output: Output) -> Result<(), Error> {
    let CpArgs { source, destination, user } = args;
    match (source, destination) {
        (Place::Standard, Place::Remote { workspace, path }) => {
            let there = Remote { client, workspace: &workspace, user: &user };
            there.upload_input(&path, output).await
        }
        (Place::Local(from), Place::Remote { workspace, path }) => {
            let there = Remote { client, workspace: &workspace, user: &user };
            there.upload(&from, &path, output).await
        }
        (Place::Remote { workspace, path }, Place::Standard) => {
            let there = Remote { client, workspace: &workspace, user: &user };
            let written = there.print(&path).await;
            // With --json, standard output is the file itself: one document would spoil it.
            written.map(drop)
        }
        (Place::Remote { workspace, path }, Place::Local(to)) => {
            let there = Remote { client, workspace: &workspace, user: &user };
            there.download(&path, &to, output).await
        }
        (Place::Remote { .. }, Place::Remote { .. }) => Err(Error::Usage(
            "from one workspace to another goes by way of this machine: copy twice".to_owned(),
        )),
        (Place::Standard | Place::Local(_), Place::Standard | Place::Local(_)) => {
            Err(Error::Usage("one of the two must be in a workspace: NAME:/path".to_owned()))
        }
    }
}

/// The workspace's side of a copy.
struct Remote<'a> {
    client: &'a Client,
    workspace: &'a str,
    user: &'a str,
}

impl Remote<'_> {
    /// What is at a path in the workspace; `None` when nothing is.
    async fn stat(&self, path: &str) -> Result<Option<wire::File>, Error> {
        let query = [("path", path.to_owned()), ("entries", "false".to_owned())];
        match self.client.get(&["workspaces", self.workspace, "files"], &query).await {
            Ok(answer) => Ok(Some(read::<wire::FileListing>(&answer)?.file)),
            Err(error) if is_missing_file(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a path in the workspace is a directory, or a link to one.
    async fn is_directory(&self, path: &str) -> Result<bool, Error> {
        let found = self.stat(path).await?;
        let Some(file) = found else { return Ok(false) };
        if file.kind != "symlink" {
            return Ok(file.kind == "directory");
        }
        // A link in the middle of a path is followed.
        let through = format!("{}/.", path.trim_end_matches('/'));
        match self.stat(&through).await {
            Ok(file) => Ok(file.is_some_and(|file| file.kind == "directory")),
            Err(Error::Api { code, .. }) if code == "not_directory" => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Where a copy of something called `name` goes: into a directory, or to the path itself.
    async fn target(&self, path: &str, name: &str) -> Result<String, Error> {
        let into = path.ends_with('/') || self.is_directory(path).await?;
        Ok(if into { format!("{}/{name}", path.trim_end_matches('/')) } else { path.to_owned() })
    }

    async fn upload_input(&self, path: &str, output: Output) -> Result<(), Error> {
        if path.ends_with('/') || self.is_directory(path).await? {
            return Err(Error::Usage(format!("{path} is a directory: name the file in it")));
        }
        let progress = transfer(output, path, None);
        self.send_file(tokio::io::stdin(), path, 0o644, progress, output).await
    }

    async fn upload(&self, from: &Path, to: &str, output: Output) -> Result<(), Error> {
        let shown = from.display().to_string();
        let failed = |cause| Error::local(&*shown, cause);
        let found = fs::metadata(from).map_err(failed)?;
        let name = local_name(from)?;
        let target = self.target(to, &name).await?;
        if found.is_dir() {
            return self.upload_tree(from, &target, output).await;
        }
        let file = tokio::fs::File::open(from).await.map_err(failed)?;
        let total = found.is_file().then_some(found.len());
        let progress = transfer(output, &shown, total);
        let mode = found.permissions().mode() & 0o777;
        self.send_file(file, &target, mode, progress, output).await
    }

    async fn send_file(
        &self,
        content: impl AsyncRead + Send + 'static,
        path: &str,
        mode: u32,
        progress: Progress,
        output: Output,
    ) -> Result<(), Error> {
        let count = progress.counter();
        let content = ReaderStream::with_capacity(content, PIECE_BYTES).inspect(move |piece| {
            if let Ok(piece) = piece {
                count(piece.len() as u64);
            }
        });
        let query = [
            ("path", path.to_owned()),
            ("mode", format!("{mode:o}")),
            ("user", self.user.to_owned()),
        ];
        let parts = ["workspaces", self.workspace, "files", "content"];
        let body = Body::wrap_stream(content);
        let answer = self.client.upload(&parts, &query, "application/octet-stream", body).await?;
        drop(progress);
        output.answer(&answer, || Ok(String::new()))
    }

    async fn upload_tree(&self, from: &Path, to: &str, output: Output) -> Result<(), Error> {
        let shown = from.display().to_string();
        let progress = transfer(output, &shown, None);
        let (pieces, packing) = tree::pack(from.to_owned());
        let count = progress.counter();
        let pieces = ReceiverStream::new(pieces).inspect(move |piece| {
            if let Ok(piece) = piece {
                count(piece.len() as u64);
            }
        });
        let query = [("path", to.to_owned()), ("user", self.user.to_owned())];
        let parts = ["workspaces", self.workspace, "files", "tree"];
        let body = Body::wrap_stream(pieces);
        let answer = self.client.upload(&parts, &query, "application/x-tar", body).await;
        let packed =
            packing.await.map_err(|error| Error::local(&*shown, io::Error::other(error)))?;
        drop(progress);
        match (answer, packed) {
            (Err(error @ Error::Api { .. }), _) => Err(error),
            // The upload broke off because the packing did: that is what to tell.
            (_, Err(cause)) if cause.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::local(&*shown, cause))
            }
            (Err(error), _) => Err(error),
            (Ok(answer), _) => output.answer(&answer, || Ok(String::new())),
        }
    }

    async fn content(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<bytes::Bytes, Error>> + Unpin + use<>, Error> {
        let query = [("path", path.to_owned())];
        self.client.download(&["workspaces", self.workspace, "files", "content"], &query).await
    }

    /// A file to standard output.
    async fn print(&self, path: &str) -> Result<u64, Error> {
        let mut content = self.content(path).await?;
        write_all(&mut content, &mut io::stdout(), None).await.map_err(|error| match error {
            Error::Local { cause, .. } => output_error(cause),
            error => error,
        })
    }

    async fn download(&self, from: &str, to: &Path, output: Output) -> Result<(), Error> {
        let name = remote_name(from)?;
        let Some(found) = self.stat(from).await? else {
            return Err(Error::Api {
                code: "not_found".to_owned(),
                message: format!("{from}: no such file or directory"),
                detail: json!({ "code": "not_found", "message": format!("{from}: no such file or directory") }),
            });
        };
        let target = local_target(to, name);
        let is_directory = match found.kind.as_str() {
            "directory" => true,
            "symlink" => self.is_directory(from).await?,
            _ => false,
        };
        let written = if is_directory {
            self.download_tree(from, name, &target, output).await?
        } else {
            self.download_file(from, &found, &target, output).await?
        };
        let document = json!({ "path": target.display().to_string(), "bytes": written });
        output.answer(&document, || Ok(String::new()))
    }

    async fn download_file(
        &self,
        from: &str,
        found: &wire::File,
        target: &Path,
        output: Output,
    ) -> Result<u64, Error> {
        let shown = target.display().to_string();
        let failed = |cause| Error::local(&*shown, cause);
        let mut content = self.content(from).await?;
        let total = (found.kind == "file").then_some(found.size_bytes);
        let progress = transfer(output, from, total);
        if fs::metadata(target).is_ok_and(|there| !there.is_file()) {
            // A device or pipe is written to; only a file can be replaced.
            let mut there = fs::OpenOptions::new().write(true).open(target).map_err(failed)?;
            return write_all(&mut content, &mut there, Some(&progress)).await;
        }
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        // A link's own bits say nothing about the file behind it.
        let mode = match found.kind.as_str() {
            "file" => u32::from_str_radix(&found.mode, 8).unwrap_or(0o644) & 0o777,
            _ => 0o644,
        };
        let mut draft = tempfile::Builder::new()
            .prefix(".skerry-cp.")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(parent)
            .map_err(failed)?;
        let written = write_all(&mut content, draft.as_file_mut(), Some(&progress)).await?;
        draft.persist(target).map_err(|error| failed(error.error))?;
        Ok(written)
    }

    async fn download_tree(
        &self,
        from: &str,
        name: &str,
        target: &Path,
        output: Output,
    ) -> Result<u64, Error> {
        let query = [("path", from.to_owned())];
        let parts = ["workspaces", self.workspace, "files", "tree"];
        let mut content = self.client.download(&parts, &query).await?;
        let progress = transfer(output, from, None);
        let (incoming, unpacking) = tree::unpack(name.to_owned(), target.to_owned());
        let mut written = 0;
        let mut broken = None;
        while let Some(piece) = content.next().await {
            match piece {
                Ok(piece) => {
                    let count = piece.len() as u64;
                    if !incoming.piece(piece).await {
                        break;
                    }
                    progress.advance(count);
                    written += count;
                }
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
        }
        if broken.is_none() {
            incoming.end().await;
        } else {
            drop(incoming);
        }
        let unpacked = unpacking.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        match (broken, unpacked) {
            (Some(error), _) => Err(error),
            (None, Err(cause)) => Err(Error::local(target.display().to_string(), cause)),
            (None, Ok(_)) => Ok(written),
        }
    }
}

fn is_missing_file(error: &Error) -> bool {
    match error {
        // The workspace itself may be missing too, and that is said in the message alone.
        Error::Api { code, message, .. } => {
            code == "not_found" && !message.starts_with("workspace")
        }
        Error::Usage(_)
        | Error::Unreachable { .. }
        | Error::BrokenOff(_)
        | Error::BadAnswer(_)
        | Error::Local { .. }
        | Error::NotReached(_)
        | Error::Refused(_)
        | Error::OutputClosed
        | Error::Interrupted { .. } => false,
    }
}

pub(super) async fn write_all(
    content: &mut (impl Stream<Item = Result<bytes::Bytes, Error>> + Unpin),
    to: &mut impl Write,
    progress: Option<&Progress>,
) -> Result<u64, Error> {
    let mut written = 0;
    let failed = |cause| Error::local("writing", cause);
    while let Some(piece) = content.next().await {
        let piece = piece?;
        to.write_all(&piece).map_err(failed)?;
        written += piece.len() as u64;
        if let Some(progress) = progress {
            progress.advance(piece.len() as u64);
        }
    }
    to.flush().map_err(failed)?;
    Ok(written)
}

/// The last component of a path in a workspace.
fn remote_name(path: &str) -> Result<&str, Error> {
    path.trim_end_matches('/')
        .rsplit('/')
        .next()
        .filter(|name| !matches!(*name, "" | "." | ".."))
        .ok_or_else(|| Error::Usage(format!("{path}: name a file or directory below /")))
}

/// The last component of a local path, which may be written `.` or `..`.
fn local_name(path: &Path) -> Result<String, Error> {
    let whole = match path.file_name() {
        Some(_) => path.to_owned(),
        None => {
            path.canonicalize().map_err(|cause| Error::local(path.display().to_string(), cause))?
        }
    };
    whole
        .file_name()
        .and_then(|name| name.to_str())
        .map(str::to_owned)
        .ok_or_else(|| Error::Usage(format!("{}: has no name in UTF-8", path.display())))
}

/// Where a copy of something called `name` goes on this machine.
fn local_target(to: &Path, name: &str) -> PathBuf {
    let slash = to.as_os_str().as_encoded_bytes().ends_with(b"/");
    if slash || to.is_dir() { to.join(name) } else { to.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_goes_into_a_directory_and_to_any_other_path() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let directory = scratch.path();
        assert_eq!(local_target(directory, "f"), directory.join("f"));
        assert_eq!(local_target(&directory.join("new"), "f"), directory.join("new"));
        assert_eq!(local_target(Path::new("new/"), "f"), Path::new("new/f"));
    }

    #[test]
    fn a_path_without_a_name_in_a_workspace_is_refused() {
        assert_eq!(remote_name("/a/b").expect("name"), "b");
        assert_eq!(remote_name("/a/b//").expect("name"), "b");
        for path in ["/", "//", "/a/..", "/."] {
            assert!(remote_name(path).is_err(), "{path}");
        }
    }
}
