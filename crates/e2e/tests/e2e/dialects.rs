//! The four seed calls with a real VM, and one workspace seen through all dialects.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skerry_e2e::{Options, Server};

/// A workspace made through one dialect: its id there, and how it is read, listed and deleted there.
struct Made {
    id: String,
    item: String,
}

async fn rigbox(server: &Server, name: &str) -> Result<Made> {
    let made =
        server.expect(201, "POST", "/api/v1/workspaces", Some(json!({"name": name}))).await?;
    ensure!(made["vm"]["status"] == "provisioned", "{made}");
    let id = text(&made["vm"]["id"])?;
    let item = format!("/api/v1/workspaces/{id}");
    server.expect(200, "POST", &format!("{item}/start"), None).await?;
    server.until(&item, |answer| answer["vm"]["status"] == "running").await?;
    Ok(Made { id, item })
}

async fn aether(server: &Server, project: &str) -> Result<Made> {
    let project = server.expect(201, "POST", "/projects", Some(json!({"name": project}))).await?;
    let hardware = json!({"cpu_kind": "shared", "cpus": 2, "memory_mb": 2048,
                          "volume_size_gb": 10, "gpu_kind": null});
    let path = format!("/projects/{}/workspaces", text(&project["id"])?);
    let body = json!({"hardware": hardware, "keep_active": false});
    let made = server.expect(201, "POST", &path, Some(body)).await?;
    ensure!(made["status"] == "creating", "{made}");
    ensure!(made["hardware"] == hardware, "{made}");
    let id = text(&made["id"])?;
    let item = format!("/workspaces/{id}");
    server.until(&item, |answer| answer["status"] == "running").await?;
    Ok(Made { id, item })
}

async fn instavm(server: &Server) -> Result<Made> {
    let made = server.expect(200, "POST", "/v1/vms?wait=true", Some(json!({}))).await?;
    ensure!(made["status"] == "active", "{made}");
    let id = text(&made["vm_id"])?;
    Ok(Made { item: format!("/v1/vms/{id}"), id })
}

async fn oblien(server: &Server) -> Result<Made> {
    let body =
        json!({"name": "my-app", "image": "node-20", "config": {"cpus": 2, "memory_mb": 2048}});
    let made = server.expect(201, "POST", "/workspace", Some(body)).await?;
    ensure!(made["workspace"]["info"]["is_running"] == true, "{made}");
    let id = text(&made["workspace"]["id"])?;
    Ok(Made { item: format!("/workspace/{id}"), id })
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("not a string: {value}"))
}

#[tokio::test]
async fn each_seed_call_gives_a_workspace_that_runs_a_command_in_a_vm_of_its_own() -> Result<()> {
    let server = Server::start(Options::default()).await?;
    let host_boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let made = [
        rigbox(&server, "one").await?,
        aether(&server, "two").await?,
        instavm(&server).await?,
        oblien(&server).await?,
    ];
    let mut boots = vec![host_boot];
    for workspace in &made {
        let release = server.run(&workspace.id, "uname -a && cat /etc/os-release").await?;
        ensure!(release.contains("Linux") && release.contains("bookworm"), "{release}");
        let boot = server.run(&workspace.id, "cat /proc/sys/kernel/random/boot_id").await?;
        ensure!(!boots.contains(&boot), "two kernels have one boot id {boot}");
        boots.push(boot);
    }
    ensure!(server.run(&made[3].id, "node --version").await?.starts_with("v20."), "node 20");
    ensure!(server.run(&made[3].id, "nproc").await?.trim() == "2", "two virtual CPUs");

    // Every dialect lists all four, whoever made them.
    let lists = [
        ("/api/v1/workspaces", "/vms"),
        ("/workspaces", "/workspaces"),
        ("/v1/vms", ""),
        ("/workspace", "/workspaces"),
        ("/skerry/v1/workspaces", "/workspaces"),
    ];
    for (path, pointer) in lists {
        let listed = server.expect(200, "GET", path, None).await?;
        let count = listed.pointer(pointer).and_then(Value::as_array).map(Vec::len);
        ensure!(count == Some(4), "{path}: {listed}");
    }

    // Each is read by its own id and deleted through the next dialect by that dialect's own form,
    // found by what is common to all: the UUID that Aether shows.
    let prefixes = ["/workspaces/", "/v1/vms/", "/workspace/", "/api/v1/workspaces/"];
    for (workspace, prefix) in made.iter().zip(prefixes) {
        server.expect(200, "GET", &workspace.item, None).await?;
        let path = format!("{prefix}{}", workspace.id);
        let (status, body) = server.request("DELETE", &path, None).await?;
        ensure!(status == 200 || status == 204, "DELETE {path}: {status} {body}");
    }
    for workspace in &made {
        let gone = format!("/skerry/v1/workspaces/{}", workspace.id);
        server.until_gone(&gone).await?;
    }
    server.finish().await
}

#[tokio::test]
async fn wait_false_answers_before_the_vm_is_ready_and_the_work_goes_on() -> Result<()> {
    let server = Server::start(Options::default()).await?;
    let made = server.expect(200, "POST", "/v1/vms?wait=false", Some(json!({}))).await?;
    ensure!(made["status"] == "creating", "{made}");
    let path = format!("/v1/vms/{}", text(&made["vm_id"])?);
    server.until(&path, |answer| answer["status"] == "active").await?;
    server.finish().await
}

#[tokio::test]
async fn the_environment_and_the_disk_asked_for_are_inside_and_the_disk_survives_a_stop()
-> Result<()> {
    let server = Server::start(Options::default()).await?;
    let body = json!({"name": "kept", "image": "base", "config": {
        "writable_size_mb": 2048, "memory_mb": 512,
        "env": [{"key": "GREETING", "value": "hello, world"}]}});
    let made = server.expect(201, "POST", "/workspace", Some(body)).await?;
    let id = text(&made["workspace"]["id"])?;
    ensure!(server.run(&id, "echo \"$GREETING\"").await? == "hello, world\n", "env");
    let free = server.run(&id, "df --output=avail -BM / | tail -1 | tr -dc 0-9").await?;
    ensure!((1850..=2400).contains(&free.trim().parse::<u32>()?), "{free} MiB free");
    ensure!(server.run(&id, "hostname").await?.starts_with("kept"), "hostname");
    server.run(&id, "echo persistent > /root/file && sync").await?;
    let item = format!("/skerry/v1/workspaces/{id}");
    server.expect(200, "POST", &format!("{item}/stop?wait=240"), None).await?;
    let (status, _) =
        server.request("POST", &format!("{item}/exec"), Some(json!({"argv": ["true"]}))).await?;
    ensure!(status == 409, "exec on a stopped workspace answered {status}");
    server.expect(200, "POST", &format!("{item}/start?wait=240"), None).await?;
    ensure!(server.run(&id, "cat /root/file").await? == "persistent\n", "the disk was kept");
    server.finish().await
}

#[tokio::test]
async fn a_rigbox_snapshot_brings_the_old_disk_back() -> Result<()> {
    let server = Server::start(Options::default()).await?;
    let Made { id, item } = rigbox(&server, "saved").await?;
    let power = async |verb: &str, status: &str| {
        server.expect(200, "POST", &format!("{item}/{verb}"), None).await?;
        server.until(&item, |answer| answer["vm"]["status"] == status).await
    };
    server.run(&id, "echo first > /root/file").await?;
    power("stop", "stopped").await?;
    let snapshots = format!("{item}/snapshots");
    let taken = server.expect(201, "POST", &snapshots, Some(json!({"name": "before"}))).await?;
    let snapshot = format!("{snapshots}/{}", text(&taken["snapshot"]["id"])?);
    ensure!(taken["snapshot"]["size_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{taken}");

    power("start", "running").await?;
    server.run(&id, "echo later > /root/file; touch /root/new").await?;
    let (status, body) = server.request("POST", &format!("{snapshot}/restore"), None).await?;
    ensure!(status == 409, "a restore under a running VM: {status} {body}");
    power("stop", "stopped").await?;
    server.expect(200, "POST", &format!("{snapshot}/restore"), None).await?;
    power("start", "running").await?;
    let found = server.run(&id, "cat /root/file; ls /root/new 2>&1 || true").await?;
    ensure!(found.starts_with("first\n") && found.contains("No such file"), "{found}");

    server.expect(200, "DELETE", &snapshot, None).await?;
    let left = server.expect(200, "GET", "/api/v1/snapshots", None).await?;
    ensure!(left["snapshots"] == json!([]), "{left}");
    server.finish().await
}
