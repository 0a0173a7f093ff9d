//! What programs of the guest do for a client.

use std::collections::BTreeMap;

use russh_sftp::{
    protocol::{FileAttributes, StatusCode},
    server::StatusReply,
};
use skerry_internal_api::{ExecControl, ExecExit, ExecOutput, ExecRequest, GuestApi, User};

use super::names::status;

/// Of what a program complains so much is told.
const COMPLAINT_BYTES: usize = 500;
/// Of what it prints so much is kept: a path.
const OUTPUT_BYTES: usize = 4096 + 1;
/// A program that takes longer is killed.
const WITHIN: std::time::Duration = std::time::Duration::from_secs(30);

/// Runs a program to its good end.
pub(super) async fn run(
    guest: &dyn GuestApi,
    user: &User,
    argv: &[&str],
) -> Result<(), StatusReply> {
    let asked = Asked { argv, working_dir: Some("/") };
    output_of(guest, user, asked).await.map(drop)
}

/// Where the user is at home: where programs begin that are told no other directory.
pub(super) async fn home(guest: &dyn GuestApi, user: &User) -> Option<String> {
    let asked = Asked { argv: &["pwd"], working_dir: None };
    let said = output_of(guest, user, asked).await.ok()?;
    let path = String::from_utf8(said).ok()?;
    let path = path.strip_suffix('\n')?;
    path.starts_with('/').then(|| path.to_owned())
}

struct Asked<'a> {
    argv: &'a [&'a str],
    working_dir: Option<&'a str>,
}

/// What a program prints until its good end, cut.
async fn output_of(
    guest: &dyn GuestApi,
    user: &User,
    asked: Asked<'_>,
) -> Result<Vec<u8>, StatusReply> {
    let request = ExecRequest {
        argv: asked.argv.iter().map(|word| (*word).to_owned()).collect(),
        env: BTreeMap::from([("LC_ALL".to_owned(), "C".to_owned())]),
        working_dir: asked.working_dir.map(str::to_owned),
        user: user.clone(),
        pty: None,
        timeout: Some(WITHIN),
    };
    let mut session = guest.exec(request).await.map_err(|error| status(&error))?;
    // One that has ended already needs no end of its input.
    let _ = session.control.send(ExecControl::CloseStdin).await;
    let (mut said, mut complaint) = (Vec::new(), Vec::new());
    let keep = |kept: &mut Vec<u8>, bytes: &[u8], most: usize| {
        let room = most.saturating_sub(kept.len());
        kept.extend(bytes.iter().take(room));
    };
    while let Some(next) = session.output.recv().await {
        match next.map_err(|error| status(&error))? {
            ExecOutput::Stdout(bytes) => keep(&mut said, &bytes, OUTPUT_BYTES),
            ExecOutput::Stderr(bytes) => keep(&mut complaint, &bytes, COMPLAINT_BYTES),
            ExecOutput::Exit(ExecExit::Code(0)) => return Ok(said),
            ExecOutput::Exit(_) => break,
        }
    }
    Err(refused(&String::from_utf8_lossy(&complaint)))
}

/// Programs tell the system's reason at the end of their line.
fn refused(complaint: &str) -> StatusReply {
    let complaint = complaint.trim();
    let code = if complaint.ends_with("No such file or directory") {
        StatusCode::NoSuchFile
    } else if complaint.ends_with("Operation not permitted")
        || complaint.ends_with("Permission denied")
    {
        StatusCode::PermissionDenied
    } else {
        StatusCode::Failure
    };
    code.with_message(complaint)
}

/// Makes of a file what `attributes` say of it.
pub(super) async fn set_attributes(
    guest: &dyn GuestApi,
    user: &User,
    path: &str,
    attributes: &FileAttributes,
) -> Result<(), StatusReply> {
    if let Some(size) = attributes.size {
        run(guest, user, &["truncate", "-c", "-s", &size.to_string(), "--", path]).await?;
    }
    if let (Some(uid), Some(gid)) = (attributes.uid, attributes.gid) {
        run(guest, user, &["chown", "--", &format!("{uid}:{gid}"), path]).await?;
    }
    if let Some(mode) = attributes.permissions {
        run(guest, user, &["chmod", &format!("{:04o}", mode & 0o7777), "--", path]).await?;
    }
    // Last: everything else changes them.
    for (flag, time) in [("-a", attributes.atime), ("-m", attributes.mtime)] {
        if let Some(seconds) = time {
            run(guest, user, &["touch", "-c", flag, "-d", &format!("@{seconds}"), "--", path])
                .await?;
        }
    }
    Ok(())
}
