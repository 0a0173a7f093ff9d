//! What the VMM process may do, seen from the host.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use skerry_e2e::{Options, Server};

/// A field of `/proc/<pid>/status`.
fn status_field(pid: i32, field: &str) -> Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find(|line| line.starts_with(&format!("{field}:")));
    Ok(line.with_context(|| format!("no {field}"))?.split_once(':').unwrap().1.trim().to_owned())
}

#[tokio::test]
async fn each_vmm_is_sandboxed_and_as_root_has_a_uid_of_its_own() -> Result<()> {
    let server = Server::start(Options::booting()).await?;
    for name in ["one", "two"] {
        let body = json!({"name": name, "memory_mib": 256});
        server.expect(201, "POST", "/skerry/v1/workspaces?wait=240", Some(body)).await?;
    }
    let pids = server.census().process_ids();
    ensure!(pids.len() == 2, "{}", server.census());
    let mut uids = Vec::new();
    for pid in &pids {
        ensure!(status_field(*pid, "Seccomp")? == "2", "no seccomp filter");
        ensure!(status_field(*pid, "NoNewPrivs")? == "1", "it may gain privileges");
        ensure!(status_field(*pid, "CapEff")?.trim_matches('0').is_empty(), "it has capabilities");
        uids.push(status_field(*pid, "Uid")?);
        for fd in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
            let target = std::fs::read_link(fd?.path())?.to_string_lossy().into_owned();
            ensure!(!target.contains("skerry.db"), "it inherited the database: {target}");
        }
        // Nothing secret is on the command line, where every user of the host can read it.
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        ensure!(!command.contains(skerry_e2e::server::KEY), "the key is on the command line");
    }
    if nix::unistd::geteuid().is_root() {
        ensure!(uids[0] != uids[1], "two VMs share a uid: {uids:?}");
        ensure!(!uids.iter().any(|uid| uid.split_whitespace().any(|id| id == "0")), "{uids:?}");
    } else {
        println!("not root: no uid per VM to check");
    }
    ensure!(!server.log().contains(skerry_e2e::server::KEY), "the key is in the log");
    server.finish().await
}
