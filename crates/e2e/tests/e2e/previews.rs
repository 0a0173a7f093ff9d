//! A server on the loopback of a real guest, visited with curl, a WebSocket client and a browser.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, path::Path, process::Stdio};

use anyhow::{Context, Result, ensure};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use skerry_e2e::{Options, Server, WORKSPACES, server::READY_WITHIN};
use tokio::{
    io::copy_bidirectional,
    net::{TcpStream, UnixListener},
    process::Command,
    task::JoinSet,
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;

const SERVER: &str = include_str!("preview_server.py");
const BROWSER: &str = include_str!("browser.py");
/// Some megabytes: emulated guests are slow.
const UPLOAD_BYTES: usize = 4 * 1024 * 1024;

/// What curl prints for this; the names below `localhost` are ours to resolve.
async fn curl(server: &Server, host: &str, path: &str, args: &[&str]) -> Result<String> {
    let (_, port) = server.url.rsplit_once(':').context("a port")?;
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "240"])
        .args(["--resolve", &format!("{host}:{port}:127.0.0.1")])
        .args(args)
        .arg(format!("http://{host}:{port}{path}"))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(READY_WITHIN, command.output()).await??;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "curl {host}{path}: {errors}\n{}", server.log());
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test]
async fn a_server_on_the_guests_loopback_is_visited_from_outside() -> Result<()> {
    let server = Server::start(Options::default()).await?;
    let body = json!({ "name": "blue", "slug": "blue", "auto_resume": true });
    let id = server.create(body).await?;
    let ports = format!("{WORKSPACES}/{id}/published-ports");
    let public = json!({ "port": 3000, "slug": "front", "visibility": "public" });
    server.expect(201, "POST", &ports, Some(public)).await?;

    let said = curl(&server, "front.localhost", "/", &["-H", "Accept: application/json"]).await?;
    ensure!(said.contains("nothing_listens"), "{said}");
    let start = format!(
        "cat > /root/server.py <<'END'\n{SERVER}\nEND\n\
         setsid python3 -u /root/server.py > /root/server.log 2>&1 < /dev/null &\n\
         until grep -q ready /root/server.log; do sleep 0.1; done"
    );
    server.run(&id, &start).await?;
    let said = curl(&server, "front.localhost", "/", &[]).await?;
    ensure!(said == "page of the guest\n", "{said}");
    let http2 = curl(&server, "front.localhost", "/", &["--http2-prior-knowledge"]).await?;
    ensure!(http2 == said, "{http2}");
    let headers =
        curl(&server, "front.localhost", "/headers", &["-H", "X-Real-IP: 1.2.3.4"]).await?;
    ensure!(headers.contains("host: localhost:3000"), "{headers}");
    ensure!(headers.contains("x-forwarded-for: 127.0.0.1"), "{headers}");
    ensure!(!headers.contains("1.2.3.4"), "{headers}");

    // An upload in one piece and one whose length is not known before.
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("upload");
    let content: Vec<u8> = (0..UPLOAD_BYTES).map(|n| (n ^ (n >> 9)) as u8).collect();
    std::fs::write(&file, &content)?;
    let digest: String = Sha256::digest(&content).iter().map(|b| format!("{b:02x}")).collect();
    let data = format!("@{}", file.display());
    for kind in ["Expect: 100-continue", "Transfer-Encoding: chunked"] {
        let args = ["--data-binary", &data, "-H", kind];
        let said = curl(&server, "front.localhost", "/", &args).await?;
        ensure!(said == digest, "{kind}: {said}");
    }

    a_websocket_talks_to_the_guest(&server).await?;
    a_browser_talks_to_the_guest(&server).await?;

    // Asleep with its server, woken by a visit, and its server goes on.
    server.ask(&id, "suspend", None).await?;
    let said = curl(&server, "front.localhost", "/", &[]).await?;
    ensure!(said == "page of the guest\n", "{said}");

    // Private, and revoked.
    let private = json!({ "visibility": "private" });
    let changed = server.expect(200, "PATCH", &format!("{ports}/3000"), Some(private)).await?;
    let token = changed["token"].as_str().context("a token")?;
    let said = curl(&server, "front.localhost", "/", &["-H", "Accept: application/json"]).await?;
    ensure!(said.contains("forbidden"), "{said}");
    let path = format!("/?skerry_token={token}");
    let said = curl(&server, "front.localhost", &path, &["-L", "-b", ""]).await?;
    ensure!(said == "page of the guest\n", "{said}");
    server.expect(204, "DELETE", &format!("{ports}/3000"), None).await?;
    let said =
        curl(&server, "front.localhost", "/", &["-o", "/dev/null", "-w", "%{http_code}"]).await?;
    ensure!(said == "404", "{said}");
    server.finish().await
}

/// Chromium, as somebody who is not root, in a network namespace that holds nothing but its loopback: a
/// socket file is its one way to the server. The page is printed once all of it has loaded, which is when
/// its conversation by WebSocket is over.
async fn a_browser_talks_to_the_guest(server: &Server) -> Result<()> {
    let dir = tempfile::tempdir()?;
    // The browser's user passes through.
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o711))?;
    let (profile, gate) = (dir.path().join("profile"), dir.path().join("gate"));
    std::fs::create_dir(&profile)?;
    let script = dir.path().join("browser.py");
    std::fs::write(&script, BROWSER)?;
    let (_, address) = server.url.split_once("://").context("an address")?;
    let (_, port) = address.rsplit_once(':').context("a port")?;
    let relaying = tokio::spawn(relay(UnixListener::bind(&gate)?, address.to_owned()));
    let mut browser = Command::new("unshare");
    browser
        .args(["--net", "--kill-child", "--fork", "--", "python3"])
        .args([script.as_path(), Path::new(port), &gate, Path::new("nobody"), &profile])
        .arg(format!("http://front.localhost:{port}/talk"))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(READY_WITHIN, browser.output()).await;
    relaying.abort();
    let output = output.context("the browser does not end")??;
    let (page, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let told = "<li>opened by front.localhost</li><li>guest: one</li><li>guest: two</li>\
                <li>guest: three</li>";
    ensure!(output.status.success() && page.contains(told), "{page}\n{errors}\n{}", server.log());
    Ok(())
}

/// What comes to `gate` goes to the server.
async fn relay(gate: UnixListener, server: String) -> std::io::Result<()> {
    let mut open = JoinSet::new();
    loop {
        let (mut near, _) = gate.accept().await?;
        let mut far = TcpStream::connect(&server).await?;
        open.spawn(async move {
            // Whoever goes away in the middle has what it wanted.
            let _ = copy_bidirectional(&mut near, &mut far).await;
        });
    }
}

async fn a_websocket_talks_to_the_guest(server: &Server) -> Result<()> {
    let (_, address) = server.url.split_once("://").context("an address")?;
    let stream = TcpStream::connect(address).await?;
    let talk = async {
        let url = "ws://front.localhost/chat";
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await?;
        for word in ["one", "two"] {
            socket.send(Message::text(word)).await?;
            let said = socket.next().await.context("an answer")??;
            ensure!(said.to_text()? == format!("guest: {word}"), "{said}");
        }
        socket.close(None).await?;
        Ok(())
    };
    timeout(READY_WITHIN, talk).await?
}
