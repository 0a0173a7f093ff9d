//! Workloads.

use http::Method;
use serde::Deserialize;
use serde_json::json;

use super::workspaces::env;
use crate::{
    args::{
        WorkloadCommand, WorkloadLogsArgs, WorkloadOnExit, WorkloadPlace, WorkloadRestart,
        WorkloadRunArgs,
    },
    client::{Client, read},
    error::Error,
    output::{self, Output, fields, table, write_out},
};

/// How long the server is asked to wait for more output at a time.
const MORE_SECONDS: u32 = 20;

#[derive(Deserialize)]
struct WorkloadList {
    workloads: Vec<Workload>,
}

#[derive(Deserialize)]
struct Workload {
    id: String,
    name: String,
    kind: String,
    command: Vec<String>,
    state: String,
    pid: Option<u32>,
    exit_code: Option<u8>,
    exit_signal: Option<u8>,
    start_error: Option<String>,
    starts: u64,
    restarts: u32,
    started_at: Option<String>,
    memory_bytes: u64,
}

#[derive(Deserialize)]
struct Log {
    lines: Vec<Line>,
    position: u64,
    has_more: bool,
}

#[derive(Deserialize)]
struct Line {
    stream: String,
    text: String,
}

impl Workload {
    /// How the last process ended.
    fn end(&self) -> String {
        match (self.exit_code, self.exit_signal, &self.start_error) {
            (_, _, Some(error)) => error.clone(),
            (Some(code), _, _) => format!("code {code}"),
            (_, Some(signal), _) => format!("signal {signal}"),
            (None, None, None) => "-".to_owned(),
        }
    }
}

pub(crate) async fn workload(
    client: &Client,
    command: WorkloadCommand,
    output: Output,
) -> Result<(), Error> {
    match command {
        WorkloadCommand::Run(args) => run(client, args, output).await,
        WorkloadCommand::Ls { workspace } => {
            let answer = client.get(&["workspaces", &workspace, "workloads"], &[]).await?;
            output.answer(&answer, || Ok(listed(&read(&answer)?)))
        }
        WorkloadCommand::Get(place) => {
            let answer = client.get(&path(&place), &[]).await?;
            output.answer(&answer, || Ok(shown(&read(&answer)?)))
        }
        WorkloadCommand::Start(place) => tell(client, &place, "start", output).await,
        WorkloadCommand::Stop(place) => tell(client, &place, "stop", output).await,
        WorkloadCommand::Restart(place) => tell(client, &place, "restart", output).await,
        WorkloadCommand::Logs(args) => logs(client, &args, output).await,
        WorkloadCommand::Rm(place) => {
            let answer = client.call(Method::DELETE, &path(&place), &[], None, 0).await?;
            output.answer(&answer, || Ok(format!("{} removed\n", place.workload)))
        }
    }
}

fn path(place: &WorkloadPlace) -> [&str; 4] {
    ["workspaces", &place.workspace, "workloads", &place.workload]
}

async fn run(client: &Client, args: WorkloadRunArgs, output: Output) -> Result<(), Error> {
    let mode = match args.restart {
        WorkloadRestart::Never => "never",
        WorkloadRestart::OnFailure => "on_failure",
        WorkloadRestart::Always => "always",
    };
    let on_exit = match args.on_exit {
        WorkloadOnExit::Nothing => "nothing",
        WorkloadOnExit::Pause => "pause",
        WorkloadOnExit::Stop => "stop",
        WorkloadOnExit::Exit => "exit",
    };
    let body = json!({
        "name": args.name,
        "command": args.command,
        "env": env(&args.env)?,
        "working_dir": args.workdir,
        "user": args.user,
        "restart": { "mode": mode, "max_restarts": args.max_restarts },
        "on_exit": on_exit,
    });
    let path = ["workspaces", &args.workspace, "workloads"];
    let answer = client.call(Method::POST, &path, &[], Some(&body), 0).await?;
    output.answer(&answer, || Ok(shown(&read(&answer)?)))
}

async fn tell(
    client: &Client,
    place: &WorkloadPlace,
    verb: &str,
    output: Output,
) -> Result<(), Error> {
    let path = ["workspaces", &place.workspace, "workloads", &place.workload, verb];
    let answer = client.call(Method::POST, &path, &[], None, 0).await?;
    output.answer(&answer, || Ok(shown(&read(&answer)?)))
}

async fn logs(client: &Client, args: &WorkloadLogsArgs, output: Output) -> Result<(), Error> {
    let place = &args.place;
    let path = ["workspaces", &place.workspace, "workloads", &place.workload, "log"];
    let tail = [("tail", args.tail.to_string())];
    let answer = client.get(&path, &tail).await?;
    let mut log: Log = read(&answer)?;
    output.answer(&answer, || Ok(said(&log)))?;
    if !args.follow {
        return Ok(());
    }
    loop {
        let wait = if log.has_more { 0 } else { MORE_SECONDS };
        let after = [("after", log.position.to_string()), ("wait_seconds", wait.to_string())];
        let answer = client.call(Method::GET, &path, &after, None, wait).await?;
        log = read(&answer)?;
        if output.is_json() {
            write_out(format!("{answer}\n").as_bytes())?;
        } else {
            write_out(said(&log).as_bytes())?;
        }
    }
}

/// Its lines; the supervisor's are marked.
fn said(log: &Log) -> String {
    let line = |line: &Line| {
        let mark = if line.stream == "supervisor" { "skerry: " } else { "" };
        format!("{mark}{}\n", output::printable(&line.text))
    };
    log.lines.iter().map(line).collect()
}

fn listed(list: &WorkloadList) -> String {
    let rows: Vec<[String; 6]> = list
        .workloads
        .iter()
        .map(|one| {
            [
                one.name.clone(),
                one.state.clone(),
                one.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                one.restarts.to_string(),
                one.end(),
                one.command.join(" "),
            ]
        })
        .collect();
    table(["NAME", "STATE", "PID", "RESTARTS", "LAST END", "COMMAND"], &rows)
}

fn shown(one: &Workload) -> String {
    fields(&[
        ("name", one.name.clone()),
        ("id", one.id.clone()),
        ("kind", one.kind.clone()),
        ("command", one.command.join(" ")),
        ("state", one.state.clone()),
        ("pid", one.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())),
        ("started", one.started_at.as_deref().map_or_else(|| "-".to_owned(), output::time)),
        ("starts", one.starts.to_string()),
        ("restarts", one.restarts.to_string()),
        ("last end", one.end()),
        ("memory", output::bytes(one.memory_bytes)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_says_how_workloads_are_and_ended() {
        let list: WorkloadList = serde_json::from_value(json!({ "workloads": [
            {
                "id": "a", "name": "app", "kind": "service", "command": ["node", "a.js"],
                "state": "running", "pid": 7, "exit_code": null, "exit_signal": 9,
                "start_error": null, "starts": 2, "restarts": 1,
                "started_at": "2026-01-01T00:00:00.000Z", "memory_bytes": 1024,
            },
            {
                "id": "b", "name": "bad", "kind": "service", "command": ["nope"],
                "state": "ended", "pid": null, "exit_code": null, "exit_signal": null,
                "start_error": "nope: command not found", "starts": 1, "restarts": 0,
                "started_at": null, "memory_bytes": 0,
            },
        ]}))
        .unwrap();
        insta::assert_snapshot!(format!("{}\n{}", listed(&list), shown(&list.workloads[0])));
    }
}
