//! Snapshots, restoring and forking.

use std::process::ExitCode;

use http::Method;
use serde_json::{Map, Value, json};

use super::workspaces::{created, finish, keep_first, listed, settled};
use crate::{
    args::{ForkArgs, RestoreArgs, SnapshotCommand, SnapshotCreateArgs},
    client::{Client, read},
    error::Error,
    output::{self, Output, fields, table},
    progress::spinner,
    wire,
};

const PAGE: u64 = 1000;

pub(crate) async fn snapshot(
    client: &Client,
    command: SnapshotCommand,
    output: Output,
) -> Result<ExitCode, Error> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        SnapshotCommand::Create(args) => create(client, args, output).await,
        SnapshotCommand::Ls { workspace } => list(client, workspace, output).await.map(done),
        SnapshotCommand::Get { snapshot } => {
            let answer = client.get(&["snapshots", &snapshot], &[]).await?;
            output.answer(&answer, || Ok(shown(&read(&answer)?))).map(done)
        }
        SnapshotCommand::Rename { snapshot, name } => {
            let body = json!({ "name": name });
            let path = ["snapshots", &snapshot];
            let answer = client.call(Method::PATCH, &path, &[], Some(&body), 0).await?;
            output.answer(&answer, || Ok(shown(&read(&answer)?))).map(done)
        }
        SnapshotCommand::Rm { snapshots, wait } => {
            remove(client, &snapshots, wait.seconds(), output).await.map(done)
        }
    }
}

async fn create(
    client: &Client,
    args: SnapshotCreateArgs,
    output: Output,
) -> Result<ExitCode, Error> {
    let mut body = Map::new();
    if let Some(name) = args.name {
        body.insert("name".to_owned(), name.into());
    }
    if args.disk_only {
        body.insert("contents".to_owned(), "disk".into());
    }
    let seconds = args.wait.seconds();
    let waiting = spinner(output, format!("taking a snapshot of {}", args.workspace));
    let path = ["workspaces", &args.workspace, "snapshots"];
    let wait = [("wait", seconds.to_string())];
    let answer =
        client.call(Method::POST, &path, &wait, Some(&Value::Object(body)), seconds).await?;
    drop(waiting);
    let snapshot: wire::Snapshot = read(&answer)?;
    output.answer(&answer, || Ok(shown(&snapshot)))?;
    match (snapshot.state.as_str(), &snapshot.failure) {
        ("ready", _) => Ok(ExitCode::SUCCESS),
        (_, Some(failure)) => Err(Error::NotReached(format!(
            "the snapshot {} failed: {} ({})",
            snapshot.name, failure.message, failure.code
        ))),
        (_, None) if seconds == 0 => Ok(ExitCode::SUCCESS),
        (state, None) => Err(Error::NotReached(format!(
            "the snapshot {} is {state} and not ready after {seconds} s; it goes on",
            snapshot.name
        ))),
    }
}

async fn list(client: &Client, workspace: Option<String>, output: Output) -> Result<(), Error> {
    let mut query = vec![("limit", PAGE.to_string())];
    query.extend(workspace.map(|workspace| ("workspace", workspace)));
    let mut all = Vec::new();
    loop {
        let mut page_query = query.clone();
        page_query.push(("offset", all.len().to_string()));
        let page: wire::SnapshotList = read(&client.get(&["snapshots"], &page_query).await?)?;
        let count = page.snapshots.len();
        all.extend(page.snapshots);
        let total = usize::try_from(page.total).unwrap_or(usize::MAX);
        if count == 0 || all.len() >= total {
            break;
        }
    }
    output.answer(&json!({ "snapshots": all }), || {
        let snapshots: Vec<wire::Snapshot> = all.iter().map(read).collect::<Result<_, _>>()?;
        let rows: Vec<_> = snapshots
            .iter()
            .map(|snapshot| {
                [
                    snapshot.name.clone(),
                    snapshot.id.clone(),
                    snapshot.state.clone(),
                    snapshot.contents.clone(),
                    snapshot.image.clone(),
                    output::bytes(snapshot.size_bytes),
                    output::time(&snapshot.created_at),
                ]
            })
            .collect();
        Ok(table(["NAME", "ID", "STATE", "CONTENTS", "IMAGE", "SIZE", "CREATED"], &rows))
    })
}

async fn remove(
    client: &Client,
    snapshots: &[String],
    seconds: u32,
    output: Output,
) -> Result<(), Error> {
    let mut documents = Vec::new();
    let mut first_failure = None;
    for name in snapshots {
        let waiting = spinner(output, format!("deleting {name}"));
        let wait = [("wait", seconds.to_string())];
        let answer = client.call(Method::DELETE, &["snapshots", name], &wait, None, seconds).await;
        drop(waiting);
        let result = match answer {
            Ok(answer) => {
                let complete = answer.get("complete").and_then(Value::as_bool) == Some(true);
                documents.push(answer);
                if !output.is_json() {
                    output::write_out(output::printable(&format!("{name}\n")).as_bytes())?;
                }
                if complete || seconds == 0 {
                    Ok(())
                } else {
                    let why = format!("{name} is not gone after {seconds} s; it goes on");
                    Err(Error::NotReached(why))
                }
            }
            Err(error) => Err(error),
        };
        keep_first(&mut first_failure, result, snapshots.len() > 1, name, output);
    }
    finish(documents, first_failure, output)
}

pub(crate) async fn restore(
    client: &Client,
    args: RestoreArgs,
    output: Output,
) -> Result<ExitCode, Error> {
    let seconds = args.wait.seconds();
    let waiting = spinner(output, format!("restoring {}", args.workspace));
    let body = json!({ "snapshot": args.snapshot, "start": args.start });
    let path = ["workspaces", &args.workspace, "restore"];
    let wait = [("wait", seconds.to_string())];
    let answer = client.call(Method::POST, &path, &wait, Some(&body), seconds).await?;
    drop(waiting);
    let workspace: wire::Workspace = read(&answer)?;
    output.answer(&answer, || Ok(created(&workspace)))?;
    // One that was at rest and stays there is restored by its next start.
    let at_rest = !args.start && ["stopped", "provisioned"].contains(&workspace.state.as_str());
    if at_rest { Ok(ExitCode::SUCCESS) } else { settled(&workspace, "running", seconds) }
}

pub(crate) async fn fork(
    client: &Client,
    args: ForkArgs,
    output: Output,
) -> Result<ExitCode, Error> {
    let seconds = if args.no_start { 0 } else { args.wait.seconds() };
    let mut body = Map::new();
    body.insert("count".to_owned(), args.count.into());
    body.insert("start".to_owned(), (!args.no_start).into());
    if let Some(name) = args.name {
        body.insert("name".to_owned(), name.into());
    }
    if let Some(name) = args.keep_snapshot {
        body.insert("snapshot_name".to_owned(), name.into());
    }
    let waiting = spinner(output, format!("forking {}", args.workspace));
    let path = ["workspaces", &args.workspace, "fork"];
    let wait = [("wait", seconds.to_string())];
    let answer =
        client.call(Method::POST, &path, &wait, Some(&Value::Object(body)), seconds).await?;
    drop(waiting);
    let forked: wire::Forked = read(&answer)?;
    output.answer(&answer, || Ok(listed(&forked.workspaces)))?;
    let wanted = if args.no_start { "provisioned" } else { "running" };
    let mut first_failure = None;
    for workspace in &forked.workspaces {
        let result = settled(workspace, wanted, seconds).map(drop);
        let several = forked.workspaces.len() > 1;
        keep_first(&mut first_failure, result, several, &workspace.name, output);
    }
    first_failure.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn shown(snapshot: &wire::Snapshot) -> String {
    let mut lines = vec![
        ("name", snapshot.name.clone()),
        ("id", snapshot.id.clone()),
        ("state", snapshot.state.clone()),
        ("contents", snapshot.contents.clone()),
        ("workspace id", snapshot.workspace_id.clone()),
        ("image", snapshot.image.clone()),
        ("vcpu", snapshot.vcpu_count.to_string()),
        ("memory", output::mebibytes(snapshot.memory_mib)),
        ("disk", output::mebibytes(snapshot.disk_mib)),
        ("size", output::bytes(snapshot.size_bytes)),
    ];
    if let Some(blackout_ms) = snapshot.blackout_ms {
        lines.push(("guest stood still", format!("{blackout_ms:.1} ms")));
    }
    if let Some(failure) = &snapshot.failure {
        lines.push(("failure", format!("{} ({})", failure.message, failure.code)));
    }
    lines.push(("created", output::time(&snapshot.created_at)));
    fields(&lines)
}
