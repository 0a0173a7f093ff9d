//! The channel `ports`: who listens in the workspace.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;
use skerry_control::internal_api::{
    ExecExit, ExecOutput, ExecRequest, ListeningPort, NodeError, User,
};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    Connection,
    frame::{PortAsked, text},
};

/// How often it is looked who listens: every look is work for the guest.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// SSH servers are no previews.
const IGNORED: [u16; 2] = [22, 2222];
/// How long a program that is told to end may take to be told.
const KILL_WITHIN: Duration = Duration::from_secs(10);

fn shown(ports: Vec<ListeningPort>) -> BTreeMap<u16, ListeningPort> {
    let shown = ports.into_iter().filter(|port| !IGNORED.contains(&port.port));
    // By IPv4 and IPv6 is once.
    shown.map(|port| (port.port, port)).collect()
}

/// Tells the client which ports are open, and what changes; ends when the guest is not there any more.
pub(super) async fn watch(connection: &Connection) {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known: Option<BTreeMap<u16, ListeningPort>> = None;
    loop {
        looks.tick().await;
        let now = match connection.guest.listening_ports().await {
            Ok(ports) => shown(ports),
            // A guest that is slow is there.
            Err(NodeError::Timeout { .. }) => continue,
            Err(_) => return,
        };
        match &known {
            None => {
                let ports: Vec<u16> = now.keys().copied().collect();
                let told = json!({ "channel": "ports", "type": "snapshot", "ports": ports });
                connection.answer(text(&told)).await;
            }
            Some(before) => tell_changes(connection, before, &now).await,
        }
        known = Some(now);
    }
}

/// Both as the documentation has it and as the newest client does.
async fn tell_changes(
    connection: &Connection,
    before: &BTreeMap<u16, ListeningPort>,
    now: &BTreeMap<u16, ListeningPort>,
) {
    let change = |action: &str, port: u16| {
        text(&json!({ "channel": "ports", "type": "change", "action": action, "port": port }))
    };
    for (port, listener) in now.iter().filter(|(port, _)| !before.contains_key(port)) {
        connection.answer(change("open", *port)).await;
        let opened = json!({
            "channel": "ports",
            "type": "open",
            "port": port,
            "pid": listener.pid,
            "process": listener.process,
        });
        connection.answer(text(&opened)).await;
    }
    for port in before.keys().filter(|port| !now.contains_key(port)) {
        connection.answer(change("close", *port)).await;
        let closed = json!({ "channel": "ports", "type": "close", "port": port });
        connection.answer(text(&closed)).await;
    }
}

impl Connection {
    /// Tells whoever listens on a port to end.
    pub(super) async fn end_port(&self, asked: PortAsked) {
        let problem = self.try_end_port(asked.port).await.err();
        let mut answer = json!({
            "channel": "ports",
            "type": "killResponse",
            "requestId": asked.request_id,
            "success": problem.is_none(),
            "port": asked.port,
        });
        if let Some(problem) = problem {
            answer["error"] = problem.into();
        }
        self.answer(text(&answer)).await;
    }

    async fn try_end_port(&self, port: u16) -> Result<(), String> {
        let words = |error: NodeError| error.to_string();
        let listening = self.guest.listening_ports().await.map_err(words)?;
        let listener = listening.into_iter().find(|one| one.port == port);
        let listener = listener.ok_or_else(|| format!("nobody listens on port {port}"))?;
        let pid = listener.pid.ok_or_else(|| format!("who listens on port {port} is not known"))?;
        let request = ExecRequest {
            argv: vec!["kill".to_owned(), pid.to_string()],
            env: BTreeMap::new(),
            working_dir: Some("/".to_owned()),
            user: User::Root,
            pty: None,
            timeout: Some(KILL_WITHIN),
        };
        let mut session = self.guest.exec(request).await.map_err(words)?;
        while let Some(said) = session.output.recv().await {
            match said.map_err(words)? {
                ExecOutput::Stdout(_) | ExecOutput::Stderr(_) => {}
                ExecOutput::Exit(ExecExit::Code(0)) => return Ok(()),
                ExecOutput::Exit(_) => break,
            }
        }
        Err(format!("process {pid} could not be told to end"))
    }
}
