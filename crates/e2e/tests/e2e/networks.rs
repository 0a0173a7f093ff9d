//! The private network of workspaces, through the API.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skerry_e2e::{Options, Server};

/// Greets whoever connects by the address it sees; says on its output when it listens.
const GREETER: &str = r#"import socket
server = socket.create_server(("0.0.0.0", 8080))
print("listens", flush=True)
while True:
    connection, caller = server.accept()
    connection.sendall(caller[0].encode() + b"\n")
    connection.close()
"#;

/// Makes a workspace through Oblien; answers its id and its private address.
async fn create(server: &Server, config: Value) -> Result<(String, String)> {
    let body = json!({ "image": "base", "config": config, "memory_mb": 256 });
    let made = server.expect(201, "POST", "/workspace", Some(body)).await?;
    let text = |pointer: &str| made.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let id = text("/workspace/id").context("no id")?;
    let address = text("/workspace/ip").filter(|ip| !ip.is_empty()).context("no address")?;
    Ok((id, address))
}

/// What is answered at the address, or that nobody is reached.
async fn greeted(server: &Server, from: &str, at: &str) -> Result<String> {
    let ask = format!("exec 3<>/dev/tcp/{at}/8080 && read line <&3 && echo $line");
    let script = format!("timeout 20 bash -c '{ask}' 2>/dev/null || echo nobody");
    Ok(server.run(from, &script).await?.trim().to_owned())
}

#[tokio::test]
async fn a_private_link_lets_exactly_one_workspace_in_until_it_is_taken_back() -> Result<()> {
    let mut options = Options::booting();
    // Nothing of it leads to the world.
    options.arguments.extend(["--network", "on", "--uplink", "none"].map(str::to_owned));
    let mut server = Server::start(options).await?;
    let (caller, here) = create(&server, json!({})).await?;
    let (greeter, there) =
        create(&server, json!({ "network_config": { "ingress_ports": [8080] } })).await?;
    let greet = format!("setsid python3 -c '{GREETER}' </dev/null >/tmp/said 2>&1 &");
    let start = format!("mkfifo /tmp/said\n{greet}\nread line </tmp/said && echo $line");
    ensure!(server.run(&greeter, &start).await?.trim() == "listens");
    ensure!(greeted(&server, &caller, &there).await? == "nobody", "reached without a link");

    let network = format!("/workspace/{greeter}/network");
    let link = json!({ "private_link_ids": [caller] });
    let shown = server.expect(200, "PATCH", &network, Some(link)).await?;
    ensure!(shown["private_links"][0]["ip"] == json!(here), "{shown}");
    ensure!(greeted(&server, &caller, &there).await? == here, "not reached with a link");

    // The VMs outlive the server, and so does what they may do.
    server.kill_9().await?;
    server.spawn().await?;
    ensure!(greeted(&server, &caller, &there).await? == here, "not reached after a crash");
    let shown = server.expect(200, "GET", &network, None).await?;
    ensure!(shown["ip"] == json!(there), "{shown}");

    let unlink = json!({ "private_link_ids": [] });
    server.expect(200, "PATCH", &network, Some(unlink)).await?;
    ensure!(greeted(&server, &caller, &there).await? == "nobody", "reached without a link again");
    server.finish().await
}
