//! An image from a registry becomes a workspace.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use skerry_e2e::{Options, Server};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What the image's own programs are: enough to say who and where one is.
const PROGRAMS: [&str; 4] = ["/bin/sh", "/usr/bin/env", "/usr/bin/id", "/bin/pwd"];

/// A registry that has one image and answers plain GETs.
struct Registry {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Shelf = HashMap<String, (&'static str, Vec<u8>)>;

impl Registry {
    async fn open(shelf: Shelf) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shelf = Arc::new(shelf);
        let task = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                // One at a time is enough; a client that goes away is its own affair.
                let _ = answer(connection, &shelf).await;
            }
        });
        Ok(Self { address, task })
    }
}

async fn answer(connection: TcpStream, shelf: &Shelf) -> Result<()> {
    let mut connection = BufReader::new(connection);
    let mut request = String::new();
    connection.read_line(&mut request).await?;
    let mut line = String::new();
    while connection.read_line(&mut line).await? > 2 {
        line.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (status, (kind, content)) = match shelf.get(path) {
        Some(found) => ("200 OK", found.clone()),
        None => ("404 Not Found", ("text/plain", Vec::new())),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        content.len()
    );
    connection.write_all(head.as_bytes()).await?;
    connection.write_all(&content).await?;
    Ok(connection.shutdown().await?)
}

fn digest_of(content: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(content))
}

/// A tree with the host's shell and what it needs, and a user, as one layer.
fn layer(directory: &Path) -> Result<Vec<u8>> {
    let root = directory.join("root");
    for inner in ["etc", "bin", "usr/bin", "srv/app", "home/dev", "root", "tmp"] {
        std::fs::create_dir_all(root.join(inner))?;
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\ndev:x:1234:1234::/home/dev:/bin/sh\n",
    )?;
    std::fs::write(root.join("etc/group"), "root:x:0:\ndev:x:1234:\n")?;
    std::fs::write(root.join("srv/app/data"), "from the layer\n")?;
    for program in PROGRAMS {
        let mut needed = vec![PathBuf::from(program)];
        let libraries = Command::new("ldd").arg(program).output()?;
        let libraries = String::from_utf8(libraries.stdout)?;
        needed.extend(
            libraries.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from),
        );
        for file in needed {
            let to = root.join(file.strip_prefix("/")?);
            std::fs::create_dir_all(to.parent().context("no parent")?)?;
            std::fs::copy(&file, &to).with_context(|| format!("{}", file.display()))?;
        }
    }
    let archive = directory.join("layer.tar");
    let made = Command::new("tar")
        .args(["--create", "--owner=0", "--group=0", "--numeric-owner", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(&root)
        .arg(".")
        .status()?;
    ensure!(made.success(), "tar failed");
    Ok(std::fs::read(archive)?)
}

fn shelf_with(layer: Vec<u8>) -> Result<Shelf> {
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "config": {
            "Env": ["PATH=/usr/bin:/bin", "FLAVOUR=from the image", "BOTH=of the image"],
            "WorkingDir": "/srv/app", "User": "1234",
        },
        "rootfs": { "type": "layers", "diff_ids": [digest_of(&layer)] },
    });
    let config = serde_json::to_vec(&config)?;
    let descriptor = |kind: &str, content: &[u8]| json!({ "mediaType": kind, "digest": digest_of(content), "size": content.len() });
    let manifest_kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": manifest_kind,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))?;
    let blob = |content: Vec<u8>| {
        (format!("/v2/test/small/blobs/{}", digest_of(&content)), ("application/x-blob", content))
    };
    Ok(HashMap::from([
        blob(config),
        blob(layer),
        ("/v2/test/small/manifests/1".to_owned(), (manifest_kind, manifest)),
    ]))
}

/// An image directory of its own with the images that are there: what is pulled goes with the test.
fn own_images(directory: &Path) -> Result<PathBuf> {
    let images = directory.join("images");
    std::fs::create_dir(&images)?;
    for entry in std::fs::read_dir(skerry_e2e::image_dir())? {
        let entry = entry?;
        if entry.file_name() != "lock" {
            std::os::unix::fs::symlink(entry.path(), images.join(entry.file_name()))?;
        }
    }
    Ok(images)
}

#[tokio::test]
async fn a_workspace_of_a_pulled_image_has_its_files_environment_user_and_directory() -> Result<()>
{
    let scratch = tempfile::tempdir()?;
    let registry = Registry::open(shelf_with(layer(scratch.path())?)?).await?;
    let config = scratch.path().join("skerry.toml");
    std::fs::write(&config, format!("[image_pull]\nregistries = [\"{}\"]\n", registry.address))?;
    let mut options = Options::booting();
    options.arguments.extend(["--config".to_owned(), config.to_string_lossy().into_owned()]);
    options.image_dir = Some(own_images(scratch.path())?);
    let server = Server::start(options).await?;
    let reference = format!("{}/test/small:1", registry.address);

    let pull = server.cli().args(["--json", "image", "pull", &reference]).output().await?;
    ensure!(pull.status.success(), "{}", String::from_utf8_lossy(&pull.stderr));
    let pulled: Value = serde_json::from_slice(&pull.stdout)?;
    ensure!(
        pulled["state"] == "ready" && pulled["image"]["name"] == reference.as_str(),
        "{pulled}"
    );
    let missing = format!("{}/test/small:2", registry.address);
    let refused = server.cli().args(["image", "pull", &missing]).output().await?;
    ensure!(!refused.status.success(), "a tag that is not there was pulled");

    let create = ["create", "box", "--image", &reference, "--env", "BOTH=of the workspace"];
    let created = server.cli().args(create).output().await?;
    ensure!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    let script = "pwd; id -u; echo $FLAVOUR; echo $BOTH; read line < data; echo $line";
    let ran = server.cli().args(["exec", "box", "--", "sh", "-c", script]).output().await?;
    ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(
        String::from_utf8_lossy(&ran.stdout),
        "/srv/app\n1234\nfrom the image\nof the workspace\nfrom the layer\n"
    );
    let root = ["exec", "--user", "root", "box", "--", "id", "-u"];
    let ran = server.cli().args(root).output().await?;
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "0\n");
    server.finish().await
}
