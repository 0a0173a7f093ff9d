//! Logs, resource use, ports.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use futures::StreamExt;
use serde_json::json;

use crate::{
    args::{LogSource, LogsArgs},
    client::{Client, read},
    error::Error,
    output::{self, Output, fields, table},
    wire,
};

pub(crate) async fn logs(client: &Client, args: LogsArgs, output: Output) -> Result<(), Error> {
    let source = match args.source {
        LogSource::Console => "console",
        LogSource::Commands => "commands",
    };
    let query = [("source", source.to_owned()), ("tail_bytes", args.tail.0.to_string())];
    let mut log = client.download(&["workspaces", &args.workspace, "logs"], &query).await?;
    if !output.is_json() && !io::stdout().is_terminal() {
        while let Some(piece) = log.next().await {
            output::write_out(&piece?)?;
        }
        return Ok(());
    }
    // At most what --tail allows, which the server bounds.
    let mut bytes = Vec::new();
    while let Some(piece) = log.next().await {
        bytes.extend_from_slice(&piece?);
    }
    let text = String::from_utf8_lossy(&bytes);
    if output.is_json() {
        let document = json!({ "source": source, "text": text });
        return output.answer(&document, || Ok(String::new()));
    }
    output::write_out(for_terminal(&text).as_bytes())
}

/// The guest's text without what would steer the user's terminal.
fn for_terminal(text: &str) -> String {
    text.chars()
        .filter(|c| *c != '\r')
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c })
        .collect()
}

pub(crate) async fn stats(client: &Client, workspace: &str, output: Output) -> Result<(), Error> {
    let answer = client.get(&["workspaces", workspace, "stats"], &[]).await?;
    output.answer(&answer, || Ok(usage(&read(&answer)?)))
}

fn usage(stats: &wire::Stats) -> String {
    let of = |used, total| format!("{} of {}", output::bytes(used), output::bytes(total));
    let seconds = |ms| format!("{}", indicatif::HumanDuration(Duration::from_millis(ms)));
    fields(&[
        ("uptime", seconds(stats.uptime_ms)),
        (
            "cpu time",
            format!("{:.1} s on {} CPU", stats.cpu_used_ms as f64 / 1000.0, stats.cpus_online),
        ),
        (
            "memory",
            of(
                stats.memory_total_bytes.saturating_sub(stats.memory_available_bytes),
                stats.memory_total_bytes,
            ),
        ),
        ("disk", of(stats.disk_used_bytes, stats.disk_total_bytes)),
        ("processes", stats.processes.to_string()),
    ])
}

pub(crate) async fn ports(client: &Client, workspace: &str, output: Output) -> Result<(), Error> {
    let answer = client.get(&["workspaces", workspace, "ports"], &[]).await?;
    output.answer(&answer, || {
        let list: wire::PortList = read(&answer)?;
        let rows: Vec<_> = list
            .ports
            .iter()
            .map(|port| {
                [
                    port.port.to_string(),
                    port.address.clone(),
                    port.pid.map(|pid| pid.to_string()).unwrap_or_default(),
                    port.process.clone().unwrap_or_default(),
                ]
            })
            .collect();
        Ok(table(["PORT", "ADDRESS", "PID", "PROCESS"], &rows))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_cannot_steer_the_terminal() {
        assert_eq!(for_terminal("a\r\n\tb\u{1b}[2Jc\u{9b}1m"), "a\n\tb\u{fffd}[2Jc\u{fffd}1m");
    }

    #[test]
    fn usage_is_shown_in_units_people_know() {
        insta::assert_snapshot!(usage(&wire::Stats {
            uptime_ms: 3_723_000,
            cpu_used_ms: 12_345,
            cpus_online: 2,
            memory_total_bytes: 512 << 20,
            memory_available_bytes: 400 << 20,
            disk_total_bytes: 1_500_000_000,
            disk_used_bytes: 700,
            processes: 12,
        }));
    }
}
