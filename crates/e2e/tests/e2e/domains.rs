//! A name brought for a server in a real guest: proven in the zone of a real name server (knot), with a
//! certificate of a real issuer (pebble) that looks into that zone, and visited with curl by TLS.

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skerry_e2e::{Options, Server, server::READY_WITHIN};
use tempfile::TempDir;
use tokio::{
    net::{TcpStream, UnixStream},
    process::{Child, Command},
    time::timeout,
};

const NAME: &str = "www.zoned.test";
const SECRET: &str = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U=";
const ZONE: &str = "$ORIGIN zoned.test.\n@ 1 SOA ns ops 1 3600 600 86400 1\n@ 1 NS ns\n\
                    ns 1 A 127.0.0.1\nwww 1 A 127.0.0.1\n";

/// The name server and the issuer.
struct Outside {
    /// No other process has it: knot takes no port 0.
    address: Ipv4Addr,
    knot: Child,
    pebble: Child,
    dir: TempDir,
}

impl Outside {
    async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().display();
        // Process ids have 22 bits.
        let [_, high, middle, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 64 | high, middle, low);
        let config = format!(
            "server:\n    rundir: \"{path}\"\n    listen: {address}@5353\n\
             database:\n    storage: \"{path}\"\n\
             key:\n  - id: acme-key\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
             acl:\n  - id: acme\n    key: acme-key\n    action: update\n\
             zone:\n  - domain: zoned.test\n    storage: \"{path}\"\n    file: zone\n    \
             zonefile-sync: -1\n    journal-content: all\n    acl: acme\n"
        );
        fs::write(dir.path().join("knot.conf"), config)?;
        fs::write(dir.path().join("zone"), ZONE)?;
        let config = format!(
            "[req]\ndistinguished_name = dn\nx509_extensions = ext\n[dn]\n[ext]\n\
             subjectAltName = IP:{address}\nbasicConstraints = critical, CA:FALSE\n"
        );
        fs::write(dir.path().join("openssl.conf"), config)?;
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
            .args(["-config", "openssl.conf", "-subj", "/CN=issuer"])
            .args(["-keyout", "key.pem", "-out", "cert.pem"])
            .current_dir(&dir)
            .output()
            .await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let config = json!({"pebble": {
            "listenAddress": format!("{address}:14000"),
            "managementListenAddress": format!("{address}:15000"),
            "certificate": "cert.pem",
            "privateKey": "key.pem",
            // Nobody listens there.
            "httpPort": 1,
            "tlsPort": 1,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
        }});
        fs::write(dir.path().join("pebble.json"), config.to_string())?;
        let knot = spawned(dir.path(), "knotd", &["--config", "knot.conf"])?;
        let servers = format!("{address}:5353");
        let pebble =
            spawned(dir.path(), "pebble", &["-config", "pebble.json", "-dnsserver", &servers])?;
        let outside = Self { address, knot, pebble, dir };
        for port in [5353, 14000, 15000] {
            outside.is_there(async || TcpStream::connect((address, port)).await.is_ok()).await?;
        }
        // Where knotc speaks with it.
        let socket = outside.dir.path().join("knot.sock");
        outside.is_there(async || UnixStream::connect(&socket).await.is_ok()).await?;
        Ok(outside)
    }

    async fn is_there(&self, is_there: impl AsyncFn() -> bool) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        let mut look = tokio::time::interval(Duration::from_millis(20));
        while !is_there().await {
            ensure!(Instant::now() < deadline, "somebody does not listen: {}", self.log());
            look.tick().await;
        }
        Ok(())
    }

    fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        read("knotd.log") + &read("pebble.log")
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Puts a text into the zone.
    async fn put_text(&self, name: &str, text: &str) -> Result<()> {
        let name = name.strip_suffix(".zoned.test").context("a name of the zone")?;
        let text = format!("\"{text}\"");
        for words in [
            &["zone-begin", "zoned.test"][..],
            &["zone-set", "zoned.test", name, "1", "TXT", &text],
            &["zone-commit", "zoned.test"],
        ] {
            let output =
                command(self.dir.path(), "knotc", &["--config", "knot.conf", "--blocking"])
                    .args(words)
                    .output()
                    .await?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "knotc {words:?}: {said}\n{}", self.log());
        }
        Ok(())
    }

    async fn end(mut self) -> Result<()> {
        self.knot.kill().await?;
        self.pebble.kill().await?;
        Ok(())
    }
}

fn command(dir: &Path, program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir(dir)
        .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()))
        // It looks at once, and refuses no nonce by chance.
        .envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_WFE_NONCEREJECT", "0")])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

fn spawned(dir: &Path, program: &str, args: &[&str]) -> Result<Child> {
    let log = fs::File::create(dir.join(format!("{program}.log")))?;
    let mut command = command(dir, program, args);
    command.stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("{program}, which scripts/packages installs"))
}

async fn curl(args: &[&str]) -> Result<String> {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "240"])
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(READY_WITHIN, command.output()).await??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "curl {args:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// What the command line answers as JSON.
async fn cli(server: &Server, args: &[&str]) -> Result<Value> {
    let output = server.cli().args(args).arg("--json").output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "skerry {args:?}: {said}\n{}", server.log());
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[tokio::test]
async fn a_name_is_brought_for_a_server_in_a_guest_and_visited_by_tls() -> Result<()> {
    let outside = Outside::start().await?;
    let address = outside.address;
    let (name_server, issuer) = (format!("{address}:5353"), format!("https://{address}:14000/dir"));
    let root = outside.file("cert.pem");
    let arguments = [
        ["--tls-listen", "127.0.0.1:0"],
        ["--acme-directory", &issuer],
        ["--acme-root", &root],
        ["--dns-update-networks", "127.0.0.0/8"],
        ["--domain-name-server", &name_server],
    ];
    let arguments = arguments.iter().flatten().map(ToString::to_string).collect();
    let server = Server::start(Options { arguments, ..Options::default() }).await?;
    let id = server.create(json!({ "name": "site", "slug": "site" })).await?;
    let start = "mkdir /root/site && cd /root/site && echo 'page of the guest' > index.html && \
                 (setsid python3 -u -m http.server 3000 --bind 127.0.0.1 > /root/log 2>&1 \
                 < /dev/null &) && until grep -q Serving /root/log; do sleep 0.1; done";
    server.run(&id, start).await?;

    cli(&server, &["port", "publish", "site", "3000", "--visibility", "public"]).await?;
    let credentials = json!({
        "RFC2136_NAMESERVER": name_server,
        "RFC2136_TSIG_KEY": "acme-key",
        "RFC2136_TSIG_SECRET": SECRET,
        "RFC2136_PROPAGATION_SECONDS": "0",
    });
    let file = outside.file("credentials.json");
    fs::write(&file, credentials.to_string())?;
    let by = ["--dns-provider", "rfc2136", "--dns-credentials", &file];
    let added = cli(&server, &[&["domain", "add", NAME, "site", "3000"][..], &by].concat()).await?;
    let record = |field: &str| added["txt_record"][field].as_str().context("a TXT record");
    let pending = cli(&server, &["domain", "verify", NAME]).await?;
    ensure!(pending["state"] == "pending", "{pending}");
    outside.put_text(record("name")?, record("value")?).await?;
    let verified = cli(&server, &["domain", "verify", NAME]).await?;
    ensure!(verified["state"] != "pending", "{verified}");
    let domain = format!("/skerry/v1/domains/{NAME}");
    let seen = |domain: &Value| domain["state"] == "issued" || domain["state"] == "failed";
    let issued = server.until(&domain, seen).await?;
    ensure!(issued["state"] == "issued", "{issued}\n{}\n{}", outside.log(), server.log());

    let roots = format!("https://{address}:15000/roots/0");
    let trusted = outside.file("root.pem");
    curl(&["--cacert", &root, "--output", &trusted, &roots]).await?;
    let listens = server.ready["tls"].as_str().context("where TLS is spoken")?;
    let (_, port) = listens.rsplit_once(':').context("a port")?;
    let to_us = format!("{NAME}:{port}:127.0.0.1");
    let url = format!("https://{NAME}:{port}/");
    // Nothing of the host's own trust counts: the certificate has to be the issuer's, and the name's.
    let page = curl(&["--cacert", &trusted, "--resolve", &to_us, &url]).await?;
    ensure!(page == "page of the guest\n", "{page}");
    cli(&server, &["domain", "rm", NAME]).await?;
    curl(&["--cacert", &trusted, "--resolve", &to_us, &url]).await.expect_err("no certificate");
    server.finish().await?;
    outside.end().await
}
