//! Plain OpenSSH into real workspaces.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    process::{Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skerry_e2e::{Options, Server, server::READY_WITHIN};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::Command,
    time::timeout,
};

/// A client with a key and a configuration that knows the gateway as `gate` and as `jump`.
struct Client {
    dir: tempfile::TempDir,
}

impl Client {
    async fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "e2e", "-f"])
            .arg(dir.path().join("key"))
            .status()
            .await?;
        ensure!(made.success(), "ssh-keygen");
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn public_key(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.path("key.pub"))?)
    }

    fn configure(&self, server: &Server) -> Result<()> {
        let address = server.ready["ssh"].as_str().context("the ready line names no SSH port")?;
        let (host, port) = address.rsplit_once(':').context("an address and a port")?;
        let gate = format!("    HostName {host}\n    Port {port}\n");
        let text = format!(
            "Host gate\n{gate}Host jump\n    User root\n    IdentityFile none\n{gate}Host *\n    \
             IdentityFile {}\n    IdentitiesOnly yes\n    BatchMode yes\n    LogLevel ERROR\n    \
             UserKnownHostsFile {}\n    StrictHostKeyChecking accept-new\n",
            self.path("key"),
            self.path("known_hosts"),
        );
        Ok(std::fs::write(self.path("config"), text)?)
    }

    fn program(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.arg("-F").arg(self.path("config")).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        command
    }

    async fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut command = self.program(program, args);
        Ok(timeout(READY_WITHIN, command.output()).await.with_context(|| format!("{args:?}"))??)
    }

    /// As [`Client::run`], and it must succeed; answers what it printed.
    async fn succeeds(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.run(program, args).await?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {args:?}: {errors}");
        Ok(String::from_utf8(output.stdout)?)
    }
}

async fn post(server: &Server, path: &str, body: Value) -> Result<Value> {
    let answer = server.http.post(format!("{}{path}", server.url)).json(&body).send().await?;
    let status = answer.status();
    let text = answer.text().await?;
    ensure!(status.is_success(), "{path}: {status} {text}");
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

#[tokio::test]
async fn plain_openssh_works_in_a_workspace_without_an_ssh_server() -> Result<()> {
    let arguments = ["--ssh-listen", "127.0.0.1:0"].map(str::to_owned).into();
    let mut server = Server::start(Options { arguments, ..Options::default() }).await?;
    let (client, stranger) = (Client::new().await?, Client::new().await?);
    client.configure(&server)?;
    stranger.configure(&server)?;
    let body = json!({ "name": "blue", "slug": "blue", "image": "base", "auto_resume": true });
    let made = post(&server, "/skerry/v1/workspaces", body).await?;
    let id = made["id"].as_str().context("an id")?.to_owned();

    // A key that nobody has added, and then one that is.
    let refused = client.run("ssh", &["blue@gate", "true"]).await?;
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.contains("Permission denied (publickey)"), "{refused}");
    post(&server, "/skerry/v1/ssh-keys", json!({ "public_key": client.public_key()? })).await?;
    for name in ["blue", &id, &format!("blue-{}", base36(&id)?)] {
        let said = client.succeeds("ssh", &[&format!("{name}@gate"), "whoami; hostname"]).await?;
        ensure!(said == "root\nblue\n", "{name}: {said}");
    }
    let code = client.run("ssh", &["blue@gate", "exit 42"]).await?.status.code();
    ensure!(code == Some(42), "{code:?}");
    let terminal = client.succeeds("ssh", &["-tt", "blue@gate", "stty size; tty"]).await?;
    ensure!(terminal.starts_with("24 80\r\n/dev/pts/"), "{terminal}");

    // Files, by every way.
    let large: Vec<u8> = (0..2_000_000_u32).map(|n| (n ^ (n >> 9)) as u8).collect();
    std::fs::write(client.path("large"), &large)?;
    for (protocol, name) in [("-s", "by-sftp"), ("-O", "by-scp")] {
        let there = format!("blue@gate:{name}");
        client.succeeds("scp", &[protocol, &client.path("large"), &there]).await?;
        client.succeeds("scp", &[protocol, &there, &client.path(name)]).await?;
        ensure!(std::fs::read(client.path(name))? == large, "{name} came back changed");
    }
    std::fs::write(client.path("batch"), "mkdir d\nput large d/large\nls -l d\n")?;
    let mut sftp = client.program("sftp", &["-b", &client.path("batch"), "blue@gate"]);
    let listed = timeout(READY_WITHIN, sftp.current_dir(client.dir.path()).output()).await??;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    ensure!(listed.contains("2000000"), "{listed}");
    let shell = format!("ssh -F {}", client.path("config"));
    let mut rsync = Command::new("rsync");
    rsync.args(["-e", &shell, &client.path("large"), "blue@gate:by-rsync"]);
    ensure!(timeout(READY_WITHIN, rsync.status()).await??.success(), "rsync");
    let same = client.run("ssh", &["blue@gate", "cmp by-sftp by-rsync"]).await?;
    ensure!(same.status.success(), "{}", String::from_utf8_lossy(&same.stderr));

    through_the_jump_host(&client).await?;
    as_oblien_tells_it(&server, &client, &id).await?;
    a_port_is_forwarded(&client).await?;
    a_port_leads_to_the_client(&client).await?;
    an_rsa_key_opens_too(&server, &client).await?;
    a_password_opens_one_workspace(&server, &client, &id).await?;

    // Somebody else's key opens nothing, whatever the name.
    for to in ["blue@gate", "nobody@gate"] {
        let output = stranger.run("ssh", &[to, "true"]).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(said.contains("Permission denied (publickey)"), "{said}");
    }

    // A suspended workspace wakes; after a restart of the server its key is the same.
    post(&server, &format!("/skerry/v1/workspaces/{id}/suspend"), json!({})).await?;
    let said = client.succeeds("ssh", &["blue@gate", "cat by-scp | wc -c"]).await?;
    ensure!(said.trim() == "2000000", "{said}");
    let before = known_key(&client)?;
    server.terminate().await?;
    server.spawn().await?;
    client.configure(&server)?;
    let said = client.succeeds("ssh", &["blue@gate", "echo again"]).await?;
    ensure!(said == "again\n", "{said}");
    ensure!(known_key(&client)? == before, "the gateway has another key");
    server.finish().await
}

async fn through_the_jump_host(client: &Client) -> Result<()> {
    let said = client.succeeds("ssh", &["-J", "jump", "root@blue", "whoami"]).await?;
    ensure!(said == "root\n", "{said}");
    client.succeeds("scp", &["-J", "jump", &client.path("large"), "root@blue:/tmp/jumped"]).await?;
    let size = client.succeeds("ssh", &["-J", "jump", "root@blue", "wc -c < /tmp/jumped"]).await?;
    ensure!(size.trim() == "2000000", "{size}");
    let output = client.run("ssh", &["-J", "jump", "root@nobody", "true"]).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("Permission denied (publickey,password)"), "{said}");
    Ok(())
}

/// The words of Oblien's command, taken apart as its clients do.
async fn as_oblien_tells_it(server: &Server, client: &Client, id: &str) -> Result<()> {
    let told = server.expect(200, "GET", &format!("/workspace/{id}/ssh"), None).await?;
    ensure!(told["ssh_key_set"] == true, "{told}");
    let command = told["connection"]["command"].as_str().context("a command")?;
    let words: Vec<&str> = command.split_whitespace().chain(["hostname"]).collect();
    let (program, words) = words.split_first().context("a program")?;
    let said = client.succeeds(program, words).await?;
    ensure!(said == "blue\n", "{command}: {said}");
    Ok(())
}

/// `ssh -L` to a service in the guest that is bound to its loopback.
async fn a_port_is_forwarded(client: &Client) -> Result<()> {
    let free = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let forward = format!("{free}:127.0.0.1:8000");
    let serve = "echo served > /tmp/page; cd /tmp; \
                 exec python3 -u -m http.server 8000 --bind 127.0.0.1";
    let options = ["-o", "ExitOnForwardFailure=yes", "-L", &forward, "blue@gate", serve];
    let mut tunnel = client.program("ssh", &options).spawn()?;
    let mut stdout = BufReader::new(tunnel.stdout.take().context("no stdout")?);
    // The forward was set up before the command began.
    let mut ready = String::new();
    timeout(READY_WITHIN, stdout.read_line(&mut ready)).await??;
    ensure!(ready.starts_with("Serving HTTP"), "{ready}");
    let mut connection = TcpStream::connect(("127.0.0.1", free)).await?;
    connection.write_all(b"GET /page HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    timeout(READY_WITHIN, connection.read_to_string(&mut answer)).await??;
    ensure!(answer.ends_with("served\n"), "{answer}");
    tunnel.kill().await?;
    Ok(())
}

/// `ssh -R`: who connects to a free port of the guest's loopback talks with a service of the client's.
async fn a_port_leads_to_the_client(client: &Client) -> Result<()> {
    let service = TcpListener::bind("127.0.0.1:0").await?;
    let forward = format!("0:127.0.0.1:{}", service.local_addr()?.port());
    let serving = tokio::spawn(async move {
        let (mut caller, _) = service.accept().await?;
        let mut asked = String::new();
        caller.read_to_string(&mut asked).await?;
        caller.write_all(format!("the client heard {asked}").as_bytes()).await
    });
    let options = ["-N", "-o", "LogLevel=INFO", "-o", "ExitOnForwardFailure=yes", "-R", &forward];
    let mut tunnel = client.program("ssh", &[&options[..], &["blue@gate"]].concat()).spawn()?;
    let mut said = BufReader::new(tunnel.stderr.take().context("no stderr")?).lines();
    let port = async {
        while let Some(line) = said.next_line().await? {
            if let Some(rest) = line.strip_prefix("Allocated port ") {
                return Ok(rest.split(' ').next().unwrap_or_default().to_owned());
            }
        }
        anyhow::bail!("it ended without a port")
    };
    let port = timeout(READY_WITHIN, port).await??;
    let ask = format!(
        "python3 -c 'import socket; s = socket.create_connection((\"localhost\", {port})); \
         s.sendall(b\"a guest\"); s.shutdown(1); print(s.recv(100).decode())'"
    );
    let heard = client.succeeds("ssh", &["blue@gate", &ask]).await?;
    ensure!(heard == "the client heard a guest\n", "{heard}");
    timeout(READY_WITHIN, serving).await???;
    tunnel.kill().await?;
    Ok(())
}

async fn an_rsa_key_opens_too(server: &Server, client: &Client) -> Result<()> {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "rsa", "-b", "3072", "-N", "", "-f", &client.path("rsa")])
        .status();
    ensure!(made.await?.success(), "ssh-keygen");
    let public_key = std::fs::read_to_string(client.path("rsa.pub"))?;
    post(server, "/skerry/v1/ssh-keys", json!({ "public_key": public_key })).await?;
    let key = format!("IdentityFile={}", client.path("rsa"));
    // Before the key of the configuration, which opens as well: what is signed with is said.
    let ssh = ["-v", "-o", &key, "blue@gate", "hostname"];
    let output = client.run("ssh", &ssh).await?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(errors.contains("Server accepts key: ") && errors.contains(" RSA "), "{errors}");
    let said = String::from_utf8(output.stdout)?;
    ensure!(said == "blue\n", "{said}");
    Ok(())
}

/// As Oblien has it: told once, and gone when SSH is switched off.
async fn a_password_opens_one_workspace(server: &Server, client: &Client, id: &str) -> Result<()> {
    let ssh = format!("/workspace/{id}/ssh");
    let told = post(server, &format!("{ssh}/enable"), json!({})).await?;
    let password = told["ssh_password"].as_str().context("no password")?.to_owned();
    let words = told["connection"]["command"].as_str().context("a command")?;
    let words: Vec<&str> = words.split_whitespace().skip(1).chain(["hostname"]).collect();
    let asked = client.dir.path().join("askpass");
    std::fs::write(&asked, format!("#!/bin/sh\necho '{password}'\n"))?;
    std::fs::set_permissions(&asked, Permissions::from_mode(0o700))?;
    let by_password = async || {
        let options = ["-o", "BatchMode=no", "-o", "PubkeyAuthentication=no"];
        let options = [&options[..], &["-o", "NumberOfPasswordPrompts=1"], &words].concat();
        let mut command = client.program("ssh", &options);
        command.env("SSH_ASKPASS", &asked).env("SSH_ASKPASS_REQUIRE", "force");
        anyhow::Ok(timeout(READY_WITHIN, command.output()).await??)
    };
    let entered = by_password().await?;
    let errors = String::from_utf8_lossy(&entered.stderr).into_owned();
    ensure!(entered.stdout == b"blue\n", "{errors}");
    post(server, &format!("{ssh}/disable"), json!({})).await?;
    for refused in [by_password().await?, client.run("ssh", &["blue@gate", "hostname"]).await?] {
        let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(errors.contains("Permission denied"), "{errors}");
    }
    post(server, &format!("{ssh}/enable"), json!({})).await?;
    let said = client.succeeds("ssh", &["blue@gate", "hostname"]).await?;
    ensure!(said == "blue\n", "{said}");
    Ok(())
}

/// The gateway's key in the client's list; its port is another after each start.
fn known_key(client: &Client) -> Result<String> {
    let known = std::fs::read_to_string(client.path("known_hosts"))?;
    let last = known.lines().rfind(|line| line.starts_with("[127.0.0.1]"));
    let key = last.and_then(|line| line.split(' ').nth(2)).context("no key is known")?;
    Ok(key.to_owned())
}

/// Rigbox's way of writing an id.
fn base36(uuid: &str) -> Result<String> {
    let mut number = u128::from_str_radix(&uuid.replace('-', ""), 16)?;
    let mut digits = Vec::new();
    for _ in 0..25 {
        digits.push(char::from_digit((number % 36) as u32, 36).unwrap_or('0'));
        number /= 36;
    }
    Ok(digits.iter().rev().collect())
}
