//! Volumes.

use std::process::ExitCode;

use http::Method;
use serde_json::{Value, json};

use super::{
    volume_files,
    workspaces::{finish, keep_first},
};
use crate::{
    args::{CheckpointCommand, MountArg, VolumeCommand, VolumeCreateArgs},
    client::{Client, read},
    error::Error,
    output::{self, Output, fields, table},
    progress::spinner,
    wire,
};

/// How long attaching and detaching may take, seconds: a guest replays a journal first, and writes
/// everything back at the end.
const ATTACH_SECONDS: u32 = 300;

pub(crate) async fn volume(
    client: &Client,
    command: VolumeCommand,
    output: Output,
) -> Result<ExitCode, Error> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        VolumeCommand::Create(args) => create(client, args, output).await,
        VolumeCommand::Ls => {
            let answer = client.get(&["volumes"], &[]).await?;
            output.answer(&answer, || Ok(listed(&read(&answer)?))).map(done)
        }
        VolumeCommand::Get { volume } => {
            let answer = client.get(&["volumes", &volume], &[]).await?;
            output.answer(&answer, || Ok(shown(&read(&answer)?))).map(done)
        }
        VolumeCommand::Rename { volume, name } => {
            let body = json!({ "name": name });
            let path = ["volumes", &volume];
            let answer = client.call(Method::PATCH, &path, &[], Some(&body), 0).await?;
            output.answer(&answer, || Ok(shown(&read(&answer)?))).map(done)
        }
        VolumeCommand::Grow { volume, size } => {
            let waiting = spinner(output, format!("growing {volume}"));
            let (path, body) = (["volumes", &*volume], json!({ "size_mib": size.0 }));
            let answer =
                client.call(Method::PATCH, &path, &[], Some(&body), ATTACH_SECONDS).await?;
            drop(waiting);
            output.answer(&answer, || Ok(shown(&read(&answer)?))).map(done)
        }
        VolumeCommand::File { command } => {
            volume_files::file(client, command, output).await.map(done)
        }
        VolumeCommand::Rm { volumes, wait } => {
            remove(client, &["volumes"], &volumes, wait.seconds(), output).await.map(done)
        }
        VolumeCommand::Attach { workspace, mount } => {
            let waiting = spinner(output, format!("attaching {} to {workspace}", mount.volume));
            let path = ["workspaces", &workspace, "volumes"];
            let body = asked(&mount);
            let answer = client.call(Method::POST, &path, &[], Some(&body), ATTACH_SECONDS).await?;
            drop(waiting);
            let text = format!("{} {} {}\n", mount.volume, mount.path, mount.mode);
            output.answer(&answer, || Ok(output::printable(&text))).map(done)
        }
        VolumeCommand::Checkpoint { command } => checkpoint(client, command, output).await,
        VolumeCommand::Detach { workspace, volumes } => {
            detach(client, &workspace, &volumes, output).await.map(done)
        }
    }
}

/// A mount as the API is asked for it.
pub(super) fn asked(mount: &MountArg) -> Value {
    let mut asked = json!({ "volume": mount.volume, "mount_path": mount.path, "mode": mount.mode });
    if let Some(checkpoint) = &mount.checkpoint {
        asked["checkpoint"] = checkpoint.as_str().into();
    }
    asked
}

async fn checkpoint(
    client: &Client,
    command: CheckpointCommand,
    output: Output,
) -> Result<ExitCode, Error> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        CheckpointCommand::Create { volume, name, wait } => {
            freeze(client, &volume, name, wait.seconds(), output).await
        }
        CheckpointCommand::Ls { volume } => {
            let answer = client.get(&["volumes", &volume, "checkpoints"], &[]).await?;
            output.answer(&answer, || Ok(checkpoints(&read(&answer)?))).map(done)
        }
        CheckpointCommand::Rm { volume, checkpoints, wait } => {
            let parent = ["volumes", &volume, "checkpoints"];
            remove(client, &parent, &checkpoints, wait.seconds(), output).await.map(done)
        }
    }
}

async fn freeze(
    client: &Client,
    volume: &str,
    name: Option<String>,
    seconds: u32,
    output: Output,
) -> Result<ExitCode, Error> {
    let waiting = spinner(output, format!("making a checkpoint of {volume}"));
    let body = name.map_or_else(|| json!({}), |name| json!({ "name": name }));
    let wait = [("wait", seconds.to_string())];
    let path = ["volumes", volume, "checkpoints"];
    let answer = client.call(Method::POST, &path, &wait, Some(&body), seconds).await?;
    drop(waiting);
    let made: wire::Checkpoint = read(&answer)?;
    output.answer(&answer, || {
        Ok(fields(&[
            ("name", made.name.clone()),
            ("id", made.id.clone()),
            ("state", made.state.clone()),
        ]))
    })?;
    came_about("checkpoint", &made.name, &made.state, made.failure.as_ref(), seconds)
}

/// The exit code for something that should be ready after waiting `seconds` for it. Not having waited is
/// no failure.
fn came_about(
    what: &str,
    name: &str,
    state: &str,
    failure: Option<&wire::VolumeFailure>,
    seconds: u32,
) -> Result<ExitCode, Error> {
    match (state, failure) {
        ("ready", _) => Ok(ExitCode::SUCCESS),
        (_, Some(failure)) => Err(Error::NotReached(format!(
            "the {what} {name} failed: {} ({})",
            failure.message, failure.code
        ))),
        (_, None) if seconds == 0 => Ok(ExitCode::SUCCESS),
        (state, None) => Err(Error::NotReached(format!(
            "the {what} {name} is {state} and not ready after {seconds} s; it goes on"
        ))),
    }
}

fn checkpoints(list: &wire::CheckpointList) -> String {
    let row = |one: &wire::Checkpoint| {
        [one.name.clone(), one.id.clone(), one.state.clone(), output::time(&one.created_at)]
    };
    let rows: Vec<_> = list.checkpoints.iter().map(row).collect();
    table(["NAME", "ID", "STATE", "CREATED"], &rows)
}

async fn create(
    client: &Client,
    args: VolumeCreateArgs,
    output: Output,
) -> Result<ExitCode, Error> {
    let seconds = args.wait.seconds();
    let waiting = spinner(output, format!("making {}", args.name));
    let body = json!({ "name": args.name, "size_mib": args.size.0 });
    let wait = [("wait", seconds.to_string())];
    let answer = client.call(Method::POST, &["volumes"], &wait, Some(&body), seconds).await?;
    drop(waiting);
    let volume: wire::Volume = read(&answer)?;
    output.answer(&answer, || Ok(shown(&volume)))?;
    came_about("volume", &volume.name, &volume.state, volume.failure.as_ref(), seconds)
}

/// Deletes what has these names below `parent`.
async fn remove(
    client: &Client,
    parent: &[&str],
    names: &[String],
    seconds: u32,
    output: Output,
) -> Result<(), Error> {
    let mut documents = Vec::new();
    let mut first_failure = None;
    for name in names {
        let waiting = spinner(output, format!("deleting {name}"));
        let wait = [("wait", seconds.to_string())];
        let path: Vec<&str> = parent.iter().copied().chain([name.as_str()]).collect();
        let answer = client.call(Method::DELETE, &path, &wait, None, seconds).await;
        drop(waiting);
        let result = match answer {
            Ok(answer) => {
                let complete = answer.get("complete").and_then(Value::as_bool) == Some(true);
                documents.push(json!({ "deleted": name, "complete": complete }));
                say(name, output)?;
                if complete || seconds == 0 {
                    Ok(())
                } else {
                    let why = format!("{name} is not gone after {seconds} s; it goes on");
                    Err(Error::NotReached(why))
                }
            }
            Err(error) => Err(error),
        };
        keep_first(&mut first_failure, result, names.len() > 1, name, output);
    }
    finish(documents, first_failure, output)
}

async fn detach(
    client: &Client,
    workspace: &str,
    volumes: &[String],
    output: Output,
) -> Result<(), Error> {
    let mut documents = Vec::new();
    let mut first_failure = None;
    for name in volumes {
        let waiting = spinner(output, format!("detaching {name} from {workspace}"));
        let path = ["workspaces", workspace, "volumes", name];
        let answer = client.call(Method::DELETE, &path, &[], None, ATTACH_SECONDS).await;
        drop(waiting);
        let result = match answer {
            Ok(_) => {
                documents.push(json!({ "detached": name }));
                say(name, output)
            }
            Err(error) => Err(error),
        };
        keep_first(&mut first_failure, result, volumes.len() > 1, name, output);
    }
    finish(documents, first_failure, output)
}

/// One line for people.
fn say(name: &str, output: Output) -> Result<(), Error> {
    if output.is_json() {
        return Ok(());
    }
    output::write_out(output::printable(&format!("{name}\n")).as_bytes())
}

/// Who has it, where and for what.
fn held(volume: &wire::Volume) -> Vec<String> {
    let one = |held: &wire::VolumeAttachment| {
        let of = held.checkpoint_id.as_ref().map(|id| format!(" @{id}")).unwrap_or_default();
        format!("{}:{} ({}{of})", held.workspace_id, held.mount_path, held.mode)
    };
    volume.attachments.iter().map(one).collect()
}

fn used(volume: &wire::Volume) -> String {
    volume.used_bytes.map_or_else(|| "unknown".to_owned(), output::bytes)
}

fn listed(list: &wire::VolumeList) -> String {
    let row = |volume: &wire::Volume| {
        [
            volume.name.clone(),
            volume.id.clone(),
            volume.state.clone(),
            output::mebibytes(volume.size_mib),
            used(volume),
            held(volume).join(", "),
        ]
    };
    let rows: Vec<_> = list.volumes.iter().map(row).collect();
    table(["NAME", "ID", "STATE", "SIZE", "USED", "ATTACHED TO"], &rows)
}

fn shown(volume: &wire::Volume) -> String {
    let mut lines = vec![
        ("name", volume.name.clone()),
        ("id", volume.id.clone()),
        ("state", volume.state.clone()),
        ("size", output::mebibytes(volume.size_mib)),
        ("used", used(volume)),
    ];
    if let Some(failure) = &volume.failure {
        lines.push(("failure", format!("{} ({})", failure.message, failure.code)));
    }
    lines.extend(held(volume).into_iter().map(|held| ("attached to", held)));
    lines.push(("created", output::time(&volume.created_at)));
    fields(&lines)
}
