//! `spec.json`: what a workspace's VM was last asked to be, for taking it over after a restart. The
//! environment, which holds the tenant's secrets, is sealed.
//!
//! ```text
//! {"format": 2, "spec": {..., "env": []}, "sealed_env": "base64"}
//! ```
//! Files of format 1 are the specification itself, its environment in plain text. They are read, and
//! written anew at the next start of the server.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use nix::libc;
use serde::{Deserialize, Serialize};
use skerry_internal_api::VmSpec;
use skerry_model::WorkspaceId;

use crate::{
    Error,
    error::chain,
    layout::{Layout, write_durably},
    seal::{Seal, SealError},
};

const FORMAT: u32 = 2;

#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    /// Without the environment.
    spec: VmSpec,
    /// `None` when there is none.
    sealed_env: Option<String>,
}

/// What a file holds.
enum Found {
    Sealed(Box<Record>),
    /// Of an earlier version.
    Plain(Box<VmSpec>),
}

/// The file's text.
///
/// # Errors
/// When the environment cannot be sealed.
pub(crate) fn text(spec: &VmSpec, seal: &dyn Seal) -> Result<Vec<u8>, Error> {
    let failed = |error: serde_json::Error| Error::io("writing the specification")(error.into());
    let sealed_env = if spec.env.is_empty() {
        None
    } else {
        let env = serde_json::to_vec(&spec.env).map_err(failed)?;
        Some(STANDARD.encode(seal.seal(&owner(spec.workspace_id), &env)?))
    };
    let spec = VmSpec { env: Vec::new(), ..spec.clone() };
    serde_json::to_vec(&Record { format: FORMAT, spec, sealed_env }).map_err(failed)
}

/// The specification of the last start.
///
/// # Errors
/// When it is missing, cannot be understood or cannot be opened.
pub(crate) fn read(path: &Path, seal: &dyn Seal) -> Result<VmSpec, Error> {
    match find(path)? {
        Found::Plain(spec) => Ok(*spec),
        Found::Sealed(record) => {
            let Record { format: _, spec, sealed_env } = *record;
            let Some(sealed) = sealed_env else { return Ok(spec) };
            let damaged = |_| Error::from(SealError::Damaged);
            let sealed = STANDARD.decode(sealed).map_err(damaged)?;
            let env = seal.open(&owner(spec.workspace_id), &sealed)?;
            let env = serde_json::from_slice(&env).map_err(|_| SealError::Damaged)?;
            Ok(VmSpec { env, ..spec })
        }
    }
}

/// The same without its environment.
///
/// # Errors
/// When it is missing or cannot be understood.
pub(crate) fn read_unopened(path: &Path) -> Result<VmSpec, Error> {
    Ok(match find(path)? {
        Found::Plain(spec) => VmSpec { env: Vec::new(), ..*spec },
        Found::Sealed(record) => record.spec,
    })
}

/// Seals every file below the data directory that is in plain text or sealed with an older key, before
/// anything else is done with them. Blocks.
///
/// # Errors
/// The key of one is not there: then nothing is touched, or VMs would be given up whose tenants lose
/// nothing but patience if the key is put back. A file that is damaged is an error of its VM alone.
pub(crate) fn seal_all(layout: &Layout, seal: &dyn Seal) -> Result<(), Error> {
    let (ids, _) = layout.scan()?;
    let paths: Vec<_> = ids.into_iter().map(|id| layout.vm(id).spec).collect();
    let paths = paths.into_iter().filter(|path| path.exists());
    let mut stale = Vec::new();
    for path in paths {
        match read(&path, seal) {
            Ok(spec) if is_current(&path, seal) => drop(spec),
            Ok(spec) => stale.push((path, spec)),
            Err(error @ Error::Seal(SealError::NoSuchKey(_))) => return Err(error),
            Err(error) => {
                tracing::error!(file = %path.display(), error = chain(&error), "not understood");
            }
        }
    }
    for (path, spec) in stale {
        rewrite(&path, &text(&spec, seal)?)?;
        tracing::info!(file = %path.display(), "the environment in it is sealed now");
    }
    Ok(())
}

fn is_current(path: &Path, seal: &dyn Seal) -> bool {
    match find(path) {
        Ok(Found::Sealed(record)) => record.sealed_env.is_none_or(|sealed| {
            STANDARD.decode(sealed).is_ok_and(|sealed| seal.is_current(&sealed))
        }),
        Ok(Found::Plain(_)) | Err(_) => false,
    }
}

/// Replaces the file, and overwrites what the old one held.
fn rewrite(path: &Path, text: &[u8]) -> Result<(), Error> {
    let old = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(path);
    let old = old.map_err(Error::path("opening", path))?;
    write_durably(path, text)?;
    blank(old).map_err(Error::path("overwriting", path))
}

fn blank(mut old: File) -> io::Result<()> {
    let length = usize::try_from(old.metadata()?.len()).map_err(io::Error::other)?;
    old.write_all(&vec![b' '; length])?;
    old.sync_all()
}

fn find(path: &Path) -> Result<Found, Error> {
    #[derive(Deserialize)]
    struct Format {
        format: Option<u32>,
    }
    let not_understood =
        |error: serde_json::Error| Error::path("understanding", path)(error.into());
    let text = fs::read(path).map_err(Error::path("reading", path))?;
    let Format { format } = serde_json::from_slice(&text).map_err(not_understood)?;
    match format {
        None => Ok(Found::Plain(Box::new(serde_json::from_slice(&text).map_err(not_understood)?))),
        Some(FORMAT) => {
            Ok(Found::Sealed(Box::new(serde_json::from_slice(&text).map_err(not_understood)?)))
        }
        Some(other) => {
            let problem = format!("it has layout {other}, not {FORMAT}");
            let source = io::Error::new(io::ErrorKind::InvalidData, problem);
            Err(Error::path("understanding", path)(source))
        }
    }
}

/// A sealed environment opens for its own workspace only, and is nothing of the database's.
fn owner(workspace_id: WorkspaceId) -> String {
    format!("node: environment of {workspace_id}")
}
