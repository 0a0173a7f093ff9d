//! Many life cycles, counted before and after.

use anyhow::{Result, ensure};
use serde_json::json;
use skerry_e2e::{Options, Server};

const CYCLES: usize = 50;

/// Templates and waiting VMs are kept on purpose, so what is counted is what is left once the server
/// has ended, and that the disk holds no layer beside the templates' own.
#[tokio::test]
async fn fifty_cycles_with_templates_and_a_pool_leave_nothing_but_templates() -> Result<()> {
    let mut server = Server::start(Options::default()).await?;
    for pair in 0..CYCLES / 2 {
        futures::future::try_join(cycle(&server, 2 * pair), cycle(&server, 2 * pair + 1)).await?;
    }
    server.terminate().await?;
    let left = server.census();
    for (kind, count) in left.counts() {
        ensure!(count == 0, "left behind, {kind}:\n{left}");
    }
    let entries = |name: &str, ending: &str| {
        let dir = std::fs::read_dir(server.data_dir().join(name)).into_iter().flatten().flatten();
        dir.filter(|entry| entry.file_name().to_string_lossy().ends_with(ending)).count()
    };
    let (templates, layers) = (entries("templates", ""), entries("layers", ".qcow2"));
    println!("after {CYCLES} cycles: {templates} templates, {layers} layers");
    ensure!(templates >= 1 && layers == templates, "{templates} templates, {layers} layers");
    ensure!(entries("pool", "") == 0 && entries("snapshots", "") == 0, "slots or snapshots left");
    server.spawn().await?;
    server.finish().await
}

async fn cycle(server: &Server, number: usize) -> Result<()> {
    let body = json!({"name": format!("cycle {number}"), "memory_mib": 256});
    let path = "/skerry/v1/workspaces";
    let made = server.expect(201, "POST", &format!("{path}?wait=240"), Some(body)).await?;
    let id = made["id"].as_str().unwrap().to_owned();
    ensure!(server.run(&id, "echo $((6*7))").await? == "42\n", "{made}");
    server.expect(200, "DELETE", &format!("{path}/{id}?wait=240"), None).await?;
    Ok(())
}

#[tokio::test]
async fn fifty_cycles_of_create_exec_delete_leave_nothing_behind() -> Result<()> {
    let server = Server::start(Options::booting()).await?;
    let before = server.census();
    let files_before = open_files(server.pid());
    println!("before: {:?}, server has {files_before} open files", before.counts());
    for pair in 0..CYCLES / 2 {
        futures::future::try_join(cycle(&server, 2 * pair), cycle(&server, 2 * pair + 1)).await?;
    }
    let after = server.census();
    let files_after = open_files(server.pid());
    println!("after {CYCLES} cycles: {:?}, server has {files_after} open files", after.counts());
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    // The database's readers and the client's connections are opened as they are first needed; one
    // descriptor lost in each cycle would be fifty.
    ensure!(
        files_after < files_before + CYCLES / 2,
        "{files_before} open files became {files_after}"
    );
    server.finish().await
}

fn open_files(pid: Option<u32>) -> usize {
    let pid = pid.expect("the server runs");
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
