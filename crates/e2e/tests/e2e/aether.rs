//! The inside of a workspace through Aether's API: connecting, and the socket with its channels.

use anyhow::{Context, Result, bail, ensure};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use skerry_e2e::{Options, Server, server::READY_WITHIN};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

/// A client as Aether's own: it follows `connect` until there is a socket.
struct Client {
    socket: WebSocketStream<TcpStream>,
    preview_token: String,
    /// What the terminal has printed and nobody has waited for.
    printed: String,
}

impl Client {
    async fn connect(server: &Server, id: &str) -> Result<Self> {
        let connecting = async {
            loop {
                let path = format!("/workspaces/{id}/connect?start=true");
                let answer = server.expect(200, "POST", &path, None).await?;
                match answer["state"].as_str() {
                    Some("running") => return Ok::<_, anyhow::Error>(answer["transport"].clone()),
                    Some("connecting") => {
                        let running = |shown: &Value| shown["status"] == "running";
                        server.until(&format!("/workspaces/{id}"), running).await?;
                    }
                    _ => bail!("{answer}"),
                }
            }
        };
        let transport = timeout(READY_WITHIN, connecting).await??;
        let path = transport["websocket_path"].as_str().context("a path")?;
        let token = transport["preview_token"].as_str().context("a token")?;
        let (_, address) = server.url.split_once("://").context("an address")?;
        let stream = TcpStream::connect(address).await?;
        let url = format!("ws://{address}{path}?token={}", skerry_e2e::server::KEY);
        let (socket, _) = client_async(url, stream).await?;
        Ok(Self { socket, preview_token: token.to_owned(), printed: String::new() })
    }

    async fn say(&mut self, message: Value) -> Result<()> {
        Ok(self.socket.send(Message::text(message.to_string())).await?)
    }

    /// The next message for which this answers something.
    async fn until<T>(&mut self, mut wanted: impl FnMut(&Value) -> Option<T>) -> Result<T> {
        let coming = async {
            loop {
                let message = self.socket.next().await.context("the socket ended")??;
                if let Message::Text(text) = message
                    && let Some(found) = wanted(&serde_json::from_str(&text)?)
                {
                    return Ok(found);
                }
            }
        };
        timeout(READY_WITHIN, coming).await?
    }

    async fn asked(&mut self, mut message: Value, channel: &str) -> Result<Value> {
        message["channel"] = channel.into();
        message["requestId"] = "r".into();
        self.say(message).await?;
        self.until(|told| (told["requestId"] == "r").then(|| told.clone())).await
    }

    async fn terminal(&mut self, kind: &str, more: Value) -> Result<()> {
        let mut message = json!({ "channel": "terminal", "type": kind, "sessionId": "main" });
        if let (Value::Object(message), Value::Object(more)) = (&mut message, more) {
            message.extend(more);
        }
        self.say(message).await
    }

    async fn types(&mut self, text: &str) -> Result<()> {
        self.terminal("input", json!({ "data": text })).await
    }

    /// Reads what the terminal prints until this is there.
    async fn prints(&mut self, text: &str) -> Result<()> {
        loop {
            if let Some(at) = self.printed.find(text) {
                self.printed.drain(..at + text.len());
                return Ok(());
            }
            let is_output =
                |told: &Value| told["channel"] == "terminal" && told["type"] == "output";
            let next = self.until(|told| is_output(told).then(|| told["data"].clone())).await;
            let printed = next.with_context(|| format!("{text:?} after {:?}", self.printed))?;
            self.printed.push_str(printed.as_str().context("a text")?);
        }
    }
}

#[tokio::test]
async fn a_terminal_files_and_ports_of_a_workspace_are_used_over_its_socket() -> Result<()> {
    let server = Server::start(Options::default()).await?;
    let projects = server.expect(200, "GET", "/projects", None).await?;
    let project = projects["projects"][0]["id"].as_str().context("a project")?.to_owned();
    let path = format!("/projects/{project}/workspaces");
    let made = server.expect(201, "POST", &path, Some(json!({}))).await?;
    let id = made["id"].as_str().context("an id")?.to_owned();

    let mut client = Client::connect(&server, &id).await?;
    client.terminal("create", json!({})).await?;
    client.terminal("resize", json!({ "cols": 132, "rows": 43 })).await?;
    // What is typed is echoed: only what is computed tells that it ran.
    client.types("stty size; echo $TERM-$((6*7))-$(whoami)\r").await?;
    client.prints("43 132").await?;
    client.prints("xterm-256color-42-developer").await?;

    let page = "<h1>from the socket</h1>";
    let write = json!({ "type": "write", "path": "site/index.html", "content": page });
    let wrote = client.asked(write, "files").await?;
    ensure!(wrote["success"] == true && wrote["size"] == page.len(), "{wrote}");
    client.types("stat -c '%U=%s' site/index.html\r").await?;
    client.prints(&format!("developer={}", page.len())).await?;
    let read = client.asked(json!({ "type": "read", "path": "site/index.html" }), "files").await?;
    ensure!(read["content"] == page && read["data"]["encoding"] == "utf-8", "{read}");
    let tree = client.asked(json!({ "type": "listTree", "path": "site" }), "files").await?;
    ensure!(tree["paths"] == json!(["index.html"]), "{tree}");

    // A server on the loopback is told of, and is visited under the workspace's token.
    client.types("(cd site && exec python3 -m http.server --bind 127.0.0.1 8000)\r").await?;
    let opened = |told: &Value| {
        let is_open = told["channel"] == "ports" && told["type"] == "open";
        (is_open && told["port"] == 8000).then(|| told.clone())
    };
    let opened = client.until(opened).await?;
    ensure!(opened["process"].as_str().is_some_and(|name| name.contains("python")), "{opened}");
    let host = format!("8000-{}-{}.localhost", &id[..8], client.preview_token);
    let (_, port) = server.url.rsplit_once(':').context("a port")?;
    let visit = server.http.get(format!("{}/index.html", server.url));
    let visit = visit.header("host", format!("{host}:{port}")).send().await?;
    let (status, body) = (visit.status(), visit.text().await?);
    ensure!(status.is_success() && body == page, "{status} {body}");

    // Whoever connects again finds the same shell, with what it has printed, and the server under it.
    drop(client);
    let mut client = Client::connect(&server, &id).await?;
    client.terminal("create", json!({})).await?;
    client.prints(&format!("developer={}", page.len())).await?;
    let killed = client.asked(json!({ "type": "kill", "port": 8000 }), "ports").await?;
    ensure!(killed["success"] == true, "{killed}");
    client.types("echo again-$((7*7))\r").await?;
    client.prints("again-49").await?;
    client.types("exit 5\r").await?;
    let closed = |told: &Value| {
        (told["type"] == "close" && told["sessionId"] == "main").then(|| told["exitCode"].clone())
    };
    let code = client.until(closed).await?;
    ensure!(code == 5, "{code}");

    // A workspace that stops ends its sockets, and connecting starts it again.
    server.expect(200, "POST", &format!("/workspaces/{id}/stop"), None).await?;
    while client.until(|_| Some(())).await.is_ok() {}
    let mut client = Client::connect(&server, &id).await?;
    let list = client.asked(json!({ "type": "list", "path": "site" }), "files").await?;
    ensure!(list["entries"][0]["name"] == "index.html", "{list}");
    drop(client);
    server.finish().await
}
