//! Workspaces: make, list, show, start, stop, delete.

use std::process::ExitCode;

use http::Method;
use serde_json::{Map, Value, json};

use super::{lifecycle, volumes};
use crate::{
    args::{CreateArgs, EnvArg, LsArgs, PowerArgs, RmArgs},
    client::{Client, read},
    error::Error,
    output::{self, Output, fields, table},
    progress::spinner,
    wire,
};

const PAGE: u64 = 1000;

pub(crate) async fn create(
    client: &Client,
    args: CreateArgs,
    output: Output,
) -> Result<ExitCode, Error> {
    let mut body = Map::new();
    body.insert("name".to_owned(), json!(args.name));
    let mut optional = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    };
    optional("image", args.image.map(Value::from));
    optional("from_snapshot", args.from_snapshot.map(Value::from));
    optional("vcpu_count", args.vcpu.map(Value::from));
    optional("memory_mib", args.memory.map(|size| size.0.into()));
    optional("disk_mib", args.disk.map(|size| size.0.into()));
    optional("slug", args.slug.map(Value::from));
    optional("namespace", args.namespace.map(Value::from));
    if !args.volumes.is_empty() {
        let mounts = args.volumes.iter().map(volumes::asked).collect();
        body.insert("volumes".to_owned(), Value::Array(mounts));
    }
    body.insert("env".to_owned(), env(&args.env)?);
    lifecycle::rules(&args.life, &mut body);
    body.insert("start".to_owned(), json!(!args.no_start));
    let seconds = if args.no_start { 0 } else { args.wait.seconds() };
    let waiting = spinner(output, format!("creating {}", args.name));
    let answer = client
        .call(
            Method::POST,
            &["workspaces"],
            &[("wait", seconds.to_string())],
            Some(&Value::Object(body)),
            seconds,
        )
        .await?;
    drop(waiting);
    let workspace: wire::Workspace = read(&answer)?;
    output.answer(&answer, || Ok(created(&workspace)))?;
    settled(&workspace, if args.no_start { "provisioned" } else { "running" }, seconds)
}

/// Variables of the request; one without a value takes this process's own.
pub(crate) fn env(variables: &[EnvArg]) -> Result<Value, Error> {
    let mut map = Map::new();
    for EnvArg { name, value } in variables {
        let value = match value {
            Some(value) => value.clone(),
            None => std::env::var(name).map_err(|_| {
                Error::Usage(format!("--env {name}: this client's environment has no {name}"))
            })?,
        };
        map.insert(name.clone(), value.into());
    }
    Ok(Value::Object(map))
}

/// The exit code for a workspace that should be in `wanted` after waiting `seconds` for it. Not having
/// waited is no failure.
pub(super) fn settled(
    workspace: &wire::Workspace,
    wanted: &str,
    seconds: u32,
) -> Result<ExitCode, Error> {
    if workspace.state == wanted {
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(failure) = &workspace.failure {
        let again = if failure.retryable { "; starting it again may help" } else { "" };
        return Err(Error::NotReached(format!(
            "{} failed: {} ({}){again}",
            workspace.name, failure.message, failure.code
        )));
    }
    if seconds == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Error::NotReached(format!(
        "{} is {} and not {wanted} after {seconds} s; it goes on",
        workspace.name, workspace.state
    )))
}

pub(crate) async fn list(client: &Client, args: LsArgs, output: Output) -> Result<(), Error> {
    let mut query = vec![("limit", PAGE.to_string())];
    if !args.state.is_empty() {
        query.push(("state", args.state.join(",")));
    }
    if let Some(namespace) = args.namespace {
        query.push(("namespace", namespace));
    }
    let mut all = Vec::new();
    loop {
        let mut page_query = query.clone();
        page_query.push(("offset", all.len().to_string()));
        let page: wire::WorkspaceList = read(&client.get(&["workspaces"], &page_query).await?)?;
        let count = page.workspaces.len();
        all.extend(page.workspaces);
        let total = usize::try_from(page.total).unwrap_or(usize::MAX);
        if count == 0 || all.len() >= total {
            break;
        }
    }
    let document = json!({ "workspaces": all });
    output.answer(&document, || {
        let workspaces: Vec<wire::Workspace> = all.iter().map(read).collect::<Result<_, _>>()?;
        Ok(if args.quiet { names(&workspaces) } else { listed(&workspaces) })
    })
}

pub(crate) async fn get(client: &Client, workspace: &str, output: Output) -> Result<(), Error> {
    let answer = client.get(&["workspaces", workspace], &[]).await?;
    output.answer(&answer, || Ok(shown(&read(&answer)?)))
}

pub(crate) async fn power(
    client: &Client,
    action: &str,
    args: PowerArgs,
    output: Output,
) -> Result<ExitCode, Error> {
    let seconds = args.wait.seconds();
    let wanted = match action {
        "stop" => "stopped",
        "pause" => "paused",
        "suspend" => "suspended",
        _ => "running",
    };
    let mut documents = Vec::new();
    let mut first_failure = None;
    for name in &args.workspaces {
        let waiting = spinner(output, format!("{action} {name}"));
        let answer = client
            .call(
                Method::POST,
                &["workspaces", name, action],
                &[("wait", seconds.to_string())],
                None,
                seconds,
            )
            .await;
        drop(waiting);
        let result = match answer {
            Ok(answer) => {
                let workspace: wire::Workspace = read(&answer)?;
                if !output.is_json() {
                    output::write_out(
                        output::printable(&format!("{}: {}\n", workspace.name, workspace.state))
                            .as_bytes(),
                    )?;
                }
                documents.push(answer);
                // What was never started counts as stopped.
                let never_started = action == "stop" && workspace.state == "provisioned";
                if never_started { Ok(()) } else { settled(&workspace, wanted, seconds).map(drop) }
            }
            Err(error) => Err(error),
        };
        keep_first(&mut first_failure, result, args.workspaces.len() > 1, name, output);
    }
    finish(documents, first_failure, output)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn remove(client: &Client, args: RmArgs, output: Output) -> Result<(), Error> {
    let seconds = args.wait.seconds();
    let mut documents = Vec::new();
    let mut first_failure = None;
    for name in &args.workspaces {
        let waiting = spinner(output, format!("deleting {name}"));
        let result = remove_one(client, name, args.force, seconds).await;
        drop(waiting);
        let result = match result {
            Ok(Some(answer)) => {
                let complete = answer.get("complete").and_then(Value::as_bool) == Some(true);
                documents.push(answer);
                if !output.is_json() {
                    output::write_out(output::printable(&format!("{name}\n")).as_bytes())?;
                }
                if complete || seconds == 0 {
                    Ok(())
                } else {
                    Err(Error::NotReached(format!(
                        "{name} is not gone after {seconds} s; it goes on"
                    )))
                }
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        keep_first(&mut first_failure, result, args.workspaces.len() > 1, name, output);
    }
    finish(documents, first_failure, output)
}

/// `None` when it was not there and that is as good.
async fn remove_one(
    client: &Client,
    name: &str,
    force: bool,
    seconds: u32,
) -> Result<Option<Value>, Error> {
    if !force {
        let workspace: wire::Workspace = read(&client.get(&["workspaces", name], &[]).await?)?;
        let at_rest = ["provisioned", "stopped", "suspended", "failed", "deleting"];
        if !at_rest.contains(&workspace.state.as_str()) {
            return Err(Error::Refused(format!(
                "{name} is {}; stop it first, or use --force",
                workspace.state
            )));
        }
    }
    let wait = [("wait", seconds.to_string())];
    match client.call(Method::DELETE, &["workspaces", name], &wait, None, seconds).await {
        Ok(answer) => Ok(Some(answer)),
        Err(Error::Api { code, .. }) if force && code == "not_found" => Ok(None),
        Err(error) => Err(error),
    }
}

/// One failure does not keep the others from their turn; the first decides the exit code, the later
/// ones are printed as they come.
pub(super) fn keep_first(
    first: &mut Option<Error>,
    result: Result<(), Error>,
    several: bool,
    name: &str,
    output: Output,
) {
    let Err(error) = result else { return };
    if first.is_none() {
        *first = Some(error);
    } else if several {
        output.remark(&format!("{name}: {error}"));
    }
}

pub(super) fn finish(
    documents: Vec<Value>,
    failure: Option<Error>,
    output: Output,
) -> Result<(), Error> {
    if output.is_json() {
        output.answer(&json!({ "results": documents }), || Ok(String::new()))?;
    }
    failure.map_or(Ok(()), Err)
}

pub(super) fn created(workspace: &wire::Workspace) -> String {
    fields(&[
        ("name", workspace.name.clone()),
        ("slug", workspace.slug.clone()),
        ("id", workspace.id.clone()),
        ("state", workspace.state.clone()),
    ])
}

fn names(workspaces: &[wire::Workspace]) -> String {
    workspaces.iter().map(|workspace| output::printable(&workspace.name) + "\n").collect()
}

pub(super) fn listed(workspaces: &[wire::Workspace]) -> String {
    let rows: Vec<_> = workspaces
        .iter()
        .map(|workspace| {
            [
                workspace.name.clone(),
                workspace.slug.clone(),
                workspace.state.clone(),
                workspace.image.clone(),
                workspace.vcpu_count.to_string(),
                output::mebibytes(workspace.memory_mib),
                output::mebibytes(workspace.disk_mib),
                output::time(&workspace.created_at),
            ]
        })
        .collect();
    table(["NAME", "SLUG", "STATE", "IMAGE", "VCPU", "MEMORY", "DISK", "CREATED"], &rows)
}

pub(super) fn shown(workspace: &wire::Workspace) -> String {
    let mut lines = vec![
        ("name", workspace.name.clone()),
        ("slug", workspace.slug.clone()),
        ("id", workspace.id.clone()),
    ];
    let ids: Vec<(&str, String)> = workspace
        .ids
        .iter()
        .filter(|(_, id)| **id != workspace.id)
        .map(|(dialect, id)| (dialect.as_str(), id.clone()))
        .collect();
    let labels: Vec<String> = ids.iter().map(|(dialect, _)| format!("{dialect} id")).collect();
    for (label, (_, id)) in labels.iter().zip(ids) {
        lines.push((label, id));
    }
    lines.push(("state", workspace.state.clone()));
    let mut optional = |label, value: Option<String>| {
        if let Some(value) = value {
            lines.push((label, value));
        }
    };
    optional("running since", workspace.running_since.as_deref().map(output::time));
    optional("start path", workspace.start_path.clone());
    optional(
        "failure",
        workspace.failure.as_ref().map(|failure| format!("{} ({})", failure.message, failure.code)),
    );
    optional("expires", workspace.expires_at.as_deref().map(output::time));
    let life = &workspace.lifecycle;
    optional("idle at", life.idle_at.as_deref().map(output::time));
    optional("restart at", life.restart_at.as_deref().map(output::time));
    optional("resting since", life.resting_since.as_deref().map(output::time));
    optional(
        "last end",
        life.last_end.as_ref().map(|end| format!("{} ({})", output::time(&end.at), end.cause)),
    );
    optional("from snapshot", workspace.origin.snapshot_id.clone());
    optional("namespace", workspace.namespace.clone());
    lines.extend([
        ("image", workspace.image.clone()),
        ("vcpu", workspace.vcpu_count.to_string()),
        ("memory", output::mebibytes(workspace.memory_mib)),
        ("disk", output::mebibytes(workspace.disk_mib)),
        ("env", workspace.env_names.join(", ")),
        ("starts", workspace.incarnation.to_string()),
        ("created", output::time(&workspace.created_at)),
    ]);
    fields(&lines)
}
