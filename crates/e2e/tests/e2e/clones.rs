//! Clones of one saved machine have nothing of their own in common.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skerry_e2e::{Options, Server, guest_clock::start_path, size};

/// Clones that are there at the same time.
const AT_ONCE: usize = 4;

/// The first that a clone does with randomness, one name and value in a line.
const FIRST_OUTPUTS: &str = r#"
echo kernel $(od -An -v -tx1 -N16 /dev/urandom)
echo boot $(cat /proc/sys/kernel/random/boot_id)
echo uuid $(cat /proc/sys/kernel/random/uuid)
echo machine $(cat /etc/machine-id)
exec python3 -c '
import random, secrets, uuid
print("random", random.random())
print("uuid4", uuid.uuid4())
print("secret", secrets.token_hex(16))
'"#;

/// The host key that a guest with an SSH server makes first.
const HOST_KEY: &str = r"
key=/etc/ssh/ssh_host_ed25519_key.pub
until [ -s $key ]; do sleep 0.05; done
echo hostkey $(cut -d' ' -f2 $key)
";

/// Every value seen, with the clone that had it first.
#[derive(Default)]
struct Seen(BTreeMap<String, usize>);

impl Seen {
    fn note(&mut self, clone: usize, output: &str, lines: usize) -> Result<()> {
        ensure!(output.lines().count() == lines, "clone {clone}: {output}");
        for line in output.lines() {
            let (name, value) = line.split_once(' ').context("no value")?;
            ensure!(value.len() >= 8, "clone {clone}: {line}");
            if let Some(first) = self.0.insert(format!("{name} {value}"), clone) {
                anyhow::bail!("clones {first} and {clone} have the same {line}");
            }
        }
        Ok(())
    }
}

async fn first_outputs(server: &Server, body: Value, path: &str, script: &str) -> Result<String> {
    let id = server.create(body).await?;
    let said = server.run(&id, script).await?;
    let made = server.expect(200, "GET", &format!("/skerry/v1/workspaces/{id}"), None).await?;
    ensure!(start_path(&made) == path, "{made}");
    server.delete(&id).await?;
    Ok(said)
}

/// Makes `count` clones, a few at a time, and compares what they say.
async fn compare(
    server: &Server,
    count: usize,
    (path, script, lines): (&str, &str, usize),
    body: impl Fn(usize) -> Value,
) -> Result<()> {
    let mut seen = Seen::default();
    let began = std::time::Instant::now();
    for first in (0..count).step_by(AT_ONCE) {
        let batch = first..(first + AT_ONCE).min(count);
        let clones = batch.clone().map(|clone| first_outputs(server, body(clone), path, script));
        let said = futures::future::try_join_all(clones).await?;
        for (clone, said) in batch.clone().zip(said) {
            seen.note(clone, &said, lines)?;
        }
        if batch.end % 100 < AT_ONCE {
            println!("{} clones after {:?}", batch.end, began.elapsed());
        }
    }
    println!("{count} clones by {path}: {} values, none twice", seen.0.len());
    Ok(())
}

#[tokio::test]
async fn clones_of_a_template_have_no_first_output_and_no_identity_in_common() -> Result<()> {
    let arguments = ["--pool-max-warm", "0"].map(str::to_owned).into();
    let server = Server::start(Options { arguments, ..Options::default() }).await?;
    server.with_template(256).await?;
    let body = |clone| json!({"name": format!("clone {clone}"), "memory_mib": 256});
    let count = size("SKERRY_TEST_CLONES", 12);
    compare(&server, count, ("template", FIRST_OUTPUTS, 7), body).await?;
    server.finish().await
}

#[tokio::test]
async fn clones_of_a_running_machine_have_no_first_output_and_no_host_key_in_common() -> Result<()>
{
    let arguments = ["--pool-max-warm", "0"].map(str::to_owned).into();
    let server = Server::start(Options { arguments, ..Options::default() }).await?;
    let source = server.create(json!({"name": "source", "memory_mib": 256})).await?;
    // The agent makes host keys where there is an SSH server.
    server.run(&source, "cp /bin/true /usr/sbin/sshd").await?;
    server.ask(&source, "snapshots", Some(json!({"name": "point"}))).await?;
    server.delete(&source).await?;
    let body = |clone| json!({"name": format!("clone {clone}"), "from_snapshot": "point"});
    let count = size("SKERRY_TEST_CLONES", 12);
    let script = format!("{HOST_KEY}{FIRST_OUTPUTS}");
    compare(&server, count, ("snapshot_memory", &script, 8), body).await?;
    server.finish().await
}
