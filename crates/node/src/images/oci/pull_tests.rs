//! Pulls from a registry of our own over loopback, which lies and breaks off as it is told.

use std::{
    collections::HashMap,
    io::Write,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::{Path as UrlPath, State},
    http::{HeaderMap, Response, StatusCode, header},
    routing::get,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use skerry_internal_api::{ImageInfo, NodeError, PullFailure};
use skerry_model::Timestamp;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    PullLimits, PullPolicy, Puller,
    layer_tests::{Item, layer},
};
use crate::images::ImageStore;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn digest_of(content: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(content))
}

/// What the registry does wrong with one blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mischief {
    /// Ends after so many bytes.
    BreakOff(usize),
    /// Sends one byte more than the blob has.
    TooLong,
    /// Sends as many bytes, and others.
    OtherBytes,
    /// Knows no parts: answers with all of it.
    Whole,
}

#[derive(Default)]
struct Shelf {
    manifests: HashMap<String, (String, Vec<u8>)>,
    blobs: HashMap<String, Vec<u8>>,
    mischief: HashMap<String, Vec<Mischief>>,
    /// `user:password` in base64 that the token service wants.
    login: Option<String>,
    /// What was asked for, ranges with it.
    asked: Vec<String>,
}

struct Registry {
    address: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
    task: JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Shared = State<(SocketAddr, Arc<Mutex<Shelf>>)>;

fn answer(status: StatusCode, kind: &str, body: Body) -> Response<Body> {
    Response::builder().status(status).header(header::CONTENT_TYPE, kind).body(body).unwrap()
}

fn refusal(address: SocketAddr) -> Response<Body> {
    let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"ours\"");
    let mut refused = answer(StatusCode::UNAUTHORIZED, "text/plain", Body::empty());
    refused.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
    refused
}

async fn document(
    State((address, shelf)): Shared,
    UrlPath((kind, which)): UrlPath<(String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    let mut shelf = shelf.lock().unwrap();
    if shelf.login.is_some() && headers.get(header::AUTHORIZATION).is_none() {
        return refusal(address);
    }
    let range = headers.get(header::RANGE).map(|range| range.to_str().unwrap().to_owned());
    let shown = which.get(..14).unwrap_or(&which).to_owned();
    shelf.asked.push(format!("{kind} {shown} {}", range.clone().unwrap_or_default()).trim().into());
    if kind == "manifests" {
        return match shelf.manifests.get(&which) {
            Some((kind, content)) => answer(StatusCode::OK, kind, Body::from(content.clone())),
            None => answer(StatusCode::NOT_FOUND, "text/plain", Body::empty()),
        };
    }
    let Some(mut content) = shelf.blobs.get(&which).cloned() else {
        return answer(StatusCode::NOT_FOUND, "text/plain", Body::empty());
    };
    let mischief = shelf
        .mischief
        .get_mut(&which)
        .and_then(|list| if list.is_empty() { None } else { Some(list.remove(0)) });
    let from =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let mut from: usize = from.unwrap_or(0);
    match mischief {
        Some(Mischief::BreakOff(after)) => {
            content.truncate(after);
        }
        Some(Mischief::TooLong) => content.push(0),
        Some(Mischief::OtherBytes) => content[from..].fill(7),
        Some(Mischief::Whole) => from = 0,
        None => {}
    }
    let total = content.len();
    let part = Body::from(content.split_off(from));
    if from == 0 {
        return answer(StatusCode::OK, "x/y", part);
    }
    let mut partial = answer(StatusCode::PARTIAL_CONTENT, "x/y", part);
    let range = format!("bytes {from}-{}/{total}", total - 1);
    partial.headers_mut().insert(header::CONTENT_RANGE, range.parse().unwrap());
    partial
}

async fn token(State((_, shelf)): Shared, headers: HeaderMap) -> Response<Body> {
    let shelf = shelf.lock().unwrap();
    let wanted = shelf.login.as_ref().map(|login| format!("Basic {login}"));
    let given = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    if given != wanted {
        return answer(StatusCode::UNAUTHORIZED, "text/plain", Body::empty());
    }
    answer(StatusCode::OK, "application/json", Body::from(r#"{"token": "of-the-day"}"#))
}

impl Registry {
    async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shelf = Arc::new(Mutex::new(Shelf::default()));
        let routes = Router::new()
            .route("/v2/box/{kind}/{which}", get(document))
            .route("/token", get(token))
            .with_state((address, shelf.clone()));
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { address, shelf, task }
    }

    fn reference(&self, which: &str) -> String {
        format!("{}/box{which}", self.address)
    }

    fn blob(&self, content: Vec<u8>) -> Value {
        let descriptor = json!({
            "mediaType": LAYER, "digest": digest_of(&content), "size": content.len(),
        });
        self.shelf.lock().unwrap().blobs.insert(digest_of(&content), content);
        descriptor
    }

    /// Puts a manifest under a tag and its digest, which is returned.
    fn manifest(&self, tag: &str, kind: &str, content: &Value) -> String {
        let content = content.to_string().into_bytes();
        let digest = digest_of(&content);
        let mut shelf = self.shelf.lock().unwrap();
        for which in [tag, &digest] {
            shelf.manifests.insert(which.to_owned(), (kind.to_owned(), content.clone()));
        }
        digest
    }

    /// Puts an image of these layers under a tag; its manifest's digest.
    fn image(&self, tag: &str, layers: &[Vec<u8>], config: Value) -> String {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest_of(layer)).collect();
        let config = json!({
            "os": "linux", "architecture": "amd64", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let mut config = self.blob(config.to_string().into_bytes());
        config["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
        let layers: Vec<Value> = layers.iter().map(|layer| self.blob(layer.clone())).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        self.manifest(tag, MANIFEST, &manifest)
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shelf.lock().unwrap().asked)
    }

    fn misbehave(&self, digest: &str, mischief: &[Mischief]) {
        self.shelf.lock().unwrap().mischief.insert(digest.to_owned(), mischief.to_vec());
    }
}

struct Ground {
    directory: tempfile::TempDir,
    registry: Registry,
    puller: Arc<Puller>,
    crash: CancellationToken,
    tasks: TaskTracker,
}

impl Ground {
    async fn open() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut PullPolicy)) -> Self {
        let registry = Registry::open().await;
        let directory = tempfile::tempdir().unwrap();
        let mut policy =
            PullPolicy { registries: vec![registry.address.to_string()], ..PullPolicy::default() };
        change(&mut policy);
        let (puller, crash, tasks) = puller(directory.path(), policy);
        Self { directory, registry, puller, crash, tasks }
    }

    async fn pull(&self, which: &str) -> Result<ImageInfo, (PullFailure, String)> {
        let pulled = self.puller.ensure(&self.registry.reference(which)).await;
        pulled.map_err(|error| match error {
            NodeError::Pull { why, message } => (why, message),
            other => panic!("{other}"),
        })
    }

    /// What lies in the directories of pulls.
    fn left(&self) -> Vec<String> {
        let pulls = self.directory.path().join("images/pulls");
        let mut left = Vec::new();
        for entry in std::fs::read_dir(pulls).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                for file in std::fs::read_dir(entry.path()).unwrap() {
                    left.push(file.unwrap().file_name().into_string().unwrap());
                }
            }
        }
        left
    }
}

fn puller(directory: &Path, policy: PullPolicy) -> (Arc<Puller>, CancellationToken, TaskTracker) {
    let store = ImageStore::open(&directory.join("images")).unwrap();
    let (crash, tasks) = (CancellationToken::new(), TaskTracker::new());
    let ends = [crash.clone(), CancellationToken::new()];
    let now = Arc::new(|| Timestamp::UNIX_EPOCH);
    let puller = Puller::new(store, policy, now, ends, tasks.clone());
    (Arc::new(puller), crash, tasks)
}

fn small() -> Vec<u8> {
    layer(vec![
        Item::dir("etc"),
        Item::file(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n",
        ),
        Item::file("etc/motd", "hello\n").owned(1000, 0o640),
        Item::file("bin/tool", "#!/bin/sh\n").owned(0, 0o4755),
        Item::symlink("tool", "bin/tool"),
        Item::hard_link("etc/issue", "etc/motd"),
        Item::file("with-note", "1").xattr("user.note", b"a\nb"),
    ])
}

/// What `debugfs` says about the disk of the image.
fn look(ground: &Ground, image: &ImageInfo, request: &str) -> String {
    let store = ImageStore::open(&ground.directory.path().join("images")).unwrap();
    let disk = store.by_digest(&image.digest).unwrap().disk;
    let output = std::process::Command::new("debugfs")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(["-R", request])
        .arg(disk)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn an_image_becomes_a_disk_with_owners_modes_links_and_attributes() {
    let ground = Ground::open().await;
    let config = json!({
        "Env": ["PATH=/bin", "A=b=c"], "WorkingDir": "/srv/app", "User": "1000:1000",
        "Entrypoint": ["/bin/tool"], "Cmd": null, "Volumes": null,
    });
    let upper = layer(vec![Item::file("etc/.wh.issue", ""), Item::file("etc/new", "n")]);
    ground.registry.image("latest", &[small(), upper], config);
    let image = ground.pull("").await.unwrap();
    assert_eq!(image.name.0, ground.registry.reference(":latest"));
    assert_eq!(image.category, "pulled");
    let motd = look(&ground, &image, "stat /etc/motd");
    assert!(motd.contains("Mode:  0640") && motd.contains("User:  1000"), "{motd}");
    assert!(motd.contains("Links: 1") && motd.contains("Size: 6"), "{motd}");
    assert!(look(&ground, &image, "stat /bin/tool").contains("Mode:  04755"));
    assert!(look(&ground, &image, "stat /tool").contains("bin/tool"));
    assert!(look(&ground, &image, "ea_list /with-note").contains("user.note (3) = 61 0a 62"));
    let names = look(&ground, &image, "ls -p /etc");
    assert!(
        names.contains("/new/") && !names.contains("issue") && !names.contains(".wh"),
        "{names}"
    );
    assert!(look(&ground, &image, "stat /srv/app").contains("Type: directory"));
    let stored = ground.puller.find(&ground.registry.reference("")).unwrap();
    insta::assert_json_snapshot!(stored.defaults());
    assert_eq!(ground.left(), [""; 0]);
}

#[tokio::test]
async fn layers_come_plain_and_packed_and_an_index_leads_to_this_machines_image() {
    let ground = Ground::open().await;
    let plain = small();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(
        plain.as_slice(),
        ruzstd::encoding::CompressionLevel::Fastest,
    );
    // Frames one after the other, one of them for somebody else.
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], zstd.as_slice()].concat();
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": { "type": "layers", "diff_ids": vec![digest_of(&plain); 3] },
    });
    let config = ground.registry.blob(config.to_string().into_bytes());
    let mut layers = Vec::new();
    for (content, kind) in [
        (gzip.finish().unwrap(), "application/vnd.docker.image.rootfs.diff.tar.gzip"),
        (skipped, "application/vnd.oci.image.layer.v1.tar+zstd"),
        (plain, LAYER),
    ] {
        let mut layer = ground.registry.blob(content);
        layer["mediaType"] = json!(kind);
        layers.push(layer);
    }
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let digest = ground.registry.manifest("only-by-digest", MANIFEST, &manifest);
    let entry = |architecture: &str, digest: String| {
        json!({
            "mediaType": MANIFEST, "digest": digest, "size": 100,
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let other = format!("sha256:{}", "0".repeat(64));
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [entry("arm64", other.clone()), entry("amd64", digest)],
    });
    ground.registry.manifest("many", INDEX, &index);
    ground.pull(":many").await.unwrap();
    let index = json!({ "schemaVersion": 2, "manifests": [entry("arm64", other)] });
    ground.registry.manifest("none", INDEX, &index);
    let (why, message) = ground.pull(":none").await.unwrap_err();
    assert_eq!(
        (why, message.as_str()),
        (PullFailure::NotFound, "the image for linux/amd64 is not there")
    );
}

#[tokio::test]
async fn who_asks_for_the_same_waits_for_the_same_and_later_nothing_is_fetched_twice() {
    let ground = Ground::open().await;
    ground.registry.image("1", &[small()], json!({}));
    let ten = futures::future::join_all((0..10).map(|_| ground.pull(":1"))).await;
    let first = ten[0].clone().unwrap();
    assert!(ten.iter().all(|image| image.as_ref().unwrap() == &first));
    assert_eq!(ground.registry.asked().len(), 3, "a manifest, a configuration, a layer");
    assert_eq!(ground.pull(":1").await.unwrap(), first);
    assert_eq!(ground.registry.asked(), ["manifests 1"]);
    // The tag moves: its name means the new image, and the old one stays for those who have it.
    ground.registry.image("1", &[layer(vec![Item::file("other", "1")])], json!({}));
    let second = ground.pull(":1").await.unwrap();
    assert_ne!(second.digest, first.digest);
    let store = ImageStore::open(&ground.directory.path().join("images")).unwrap();
    assert!(store.by_digest(&first.digest).is_ok());
}

#[tokio::test]
async fn a_transfer_that_breaks_off_is_continued_and_a_torn_part_is_fetched_again() {
    let ground = Ground::open().await;
    let content = small();
    let digest = digest_of(&content);
    ground.registry.image("1", std::slice::from_ref(&content), json!({}));
    ground.registry.misbehave(&digest, &[Mischief::BreakOff(1000)]);
    let (why, message) = ground.pull(":1").await.unwrap_err();
    assert_eq!(why, PullFailure::Unreachable, "{message}");
    ground.registry.asked();
    // What another life of the server left is continued, too.
    let policy = PullPolicy {
        registries: vec![ground.registry.address.to_string()],
        ..PullPolicy::default()
    };
    let shown = &digest[..14];
    let part = ground.left().into_iter().find(|name| name.ends_with(".part")).unwrap();
    let (again, _, _) = puller(ground.directory.path(), policy);
    ground.registry.misbehave(&digest, &[Mischief::BreakOff(2000)]);
    again.ensure(&ground.registry.reference(":1")).await.unwrap_err();
    let asked = ground.registry.asked();
    assert!(
        asked.iter().any(|line| line.starts_with(&format!("blobs {shown} bytes="))),
        "{asked:?}"
    );
    // The part is torn, as after a power cut; the registry knows no parts the first time.
    for entry in std::fs::read_dir(ground.directory.path().join("images/pulls")).unwrap() {
        let torn = entry.unwrap().path().join(&part);
        if torn.exists() {
            std::fs::write(torn, vec![0; 1500]).unwrap();
        }
    }
    again.ensure(&ground.registry.reference(":1")).await.unwrap();
    let asked = ground.registry.asked();
    let blobs = asked.iter().filter(|line| line.contains(shown));
    assert_eq!(
        blobs.collect::<Vec<_>>(),
        [&format!("blobs {shown} bytes=1500-"), &format!("blobs {shown}"),]
    );
    assert_eq!(ground.left(), [""; 0]);
}

#[tokio::test]
async fn a_registry_that_knows_no_parts_sends_all_of_it_again() {
    let ground = Ground::open().await;
    let content = small();
    ground.registry.image("1", std::slice::from_ref(&content), json!({}));
    ground.registry.misbehave(&digest_of(&content), &[Mischief::BreakOff(1000), Mischief::Whole]);
    assert!(ground.pull(":1").await.is_err());
    ground.pull(":1").await.unwrap();
}

#[tokio::test]
async fn what_is_not_what_was_promised_is_refused_and_leaves_nothing() {
    let ground = Ground::open().await;
    let content = small();
    let digest = digest_of(&content);
    ground.registry.image("1", std::slice::from_ref(&content), json!({}));
    for (mischief, expected) in
        [(Mischief::OtherBytes, PullFailure::BadDigest), (Mischief::TooLong, PullFailure::TooLarge)]
    {
        ground.registry.misbehave(&digest, &[mischief]);
        let (why, message) = ground.pull(":1").await.unwrap_err();
        assert_eq!(why, expected, "{message}");
        assert!(!ground.left().iter().any(|name| name.contains(&digest[7..])), "{mischief:?}");
    }
    // A configuration that names other content than the layer has.
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": { "type": "layers", "diff_ids": [digest_of(b"other")] },
    });
    let config = ground.registry.blob(config.to_string().into_bytes());
    let layer = ground.registry.blob(content);
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
    ground.registry.manifest("2", MANIFEST, &manifest);
    assert_eq!(ground.pull(":2").await.unwrap_err().0, PullFailure::BadDigest);
    // A digest that was asked for and is not that of what comes.
    let pinned = format!("@{}", digest_of(b"pinned"));
    assert_eq!(ground.pull(&pinned).await.unwrap_err().0, PullFailure::NotFound);
    let lie = (MANIFEST.to_owned(), b"{}".to_vec());
    ground.registry.shelf.lock().unwrap().manifests.insert(pinned[1..].to_owned(), lie);
    assert_eq!(ground.pull(&pinned).await.unwrap_err().0, PullFailure::BadDigest);
}

#[tokio::test]
async fn limits_hold_for_what_is_transferred_and_for_what_it_unpacks_to() {
    let limits = PullLimits { transfer_bytes: 1 << 20, unpacked_bytes: 4 << 20, entries: 100 };
    let ground = Ground::with(|policy| policy.limits = limits).await;
    ground.registry.image("long", &[vec![0; 2 << 20]], json!({}));
    let (why, _) = ground.pull(":long").await.unwrap_err();
    assert_eq!(why, PullFailure::TooLarge);
    assert!(!ground.registry.asked().iter().any(|line| line.starts_with("blobs")));
    // Some KiB that unpack to 8 MiB.
    let bomb = vec![0; 8 << 20];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&bomb).unwrap();
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": { "type": "layers", "diff_ids": [digest_of(&bomb)] },
    });
    let config = ground.registry.blob(config.to_string().into_bytes());
    let mut layer = ground.registry.blob(gzip.finish().unwrap());
    layer["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip");
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
    ground.registry.manifest("bomb", MANIFEST, &manifest);
    assert_eq!(ground.pull(":bomb").await.unwrap_err().0, PullFailure::TooLarge);
    assert_eq!(ground.left(), [""; 0]);
}

#[tokio::test]
async fn documents_of_strangers_are_refused_with_a_reason() {
    let ground = Ground::open().await;
    let good = ground.registry.blob(small());
    let with = |change: &dyn Fn(&mut Value)| {
        let mut manifest = json!({ "schemaVersion": 2, "config": good, "layers": [good] });
        change(&mut manifest);
        ground.registry.manifest("x", MANIFEST, &manifest);
    };
    type Change = fn(&mut Value);
    let changes: [(Change, PullFailure, &str); 5] = [
        (|m| m["layers"] = json!([]), PullFailure::Refused, "0 layers"),
        (
            |m| m["layers"][0]["mediaType"] = json!("application/x-\u{1b}[31m"),
            PullFailure::Refused,
            "unknown type",
        ),
        (|m| m["layers"][0]["digest"] = json!("sha256:../../x"), PullFailure::Refused, "manifest"),
        (|m| m["config"]["size"] = json!(1_u64 << 40), PullFailure::TooLarge, "configuration"),
        (|m| m["layers"][0]["size"] = json!(u64::MAX), PullFailure::TooLarge, "layer"),
    ];
    for (change, expected, word) in changes {
        with(&change);
        let (why, message) = ground.pull(":x").await.unwrap_err();
        assert_eq!(why, expected, "{message}");
        assert!(message.contains(word) && !message.contains('\u{1b}'), "{message}");
    }
    let huge = json!({ "schemaVersion": 2, "padding": "x".repeat(5 << 20) });
    ground.registry.manifest("huge", MANIFEST, &huge);
    assert_eq!(ground.pull(":huge").await.unwrap_err().0, PullFailure::TooLarge);
    assert_eq!(ground.pull(":missing").await.unwrap_err().0, PullFailure::NotFound);
}

#[tokio::test]
async fn credentials_are_presented_where_they_belong() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    let ground = Ground::with(|policy| policy.auth_file = Some(file.clone())).await;
    ground.registry.image("1", &[small()], json!({}));
    ground.registry.shelf.lock().unwrap().login = Some("bWU6c2VjcmV0".to_owned());
    let write = |host: &str| {
        std::fs::write(&file, json!({ "auths": { host: { "auth": "bWU6c2VjcmV0" } } }).to_string())
    };
    write("ghcr.io").unwrap();
    assert_eq!(ground.pull(":1").await.unwrap_err().0, PullFailure::Unauthorized);
    write(&ground.registry.address.to_string()).unwrap();
    ground.pull(":1").await.unwrap();
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_the_registry_when_it_fails() {
    let mirror = Registry::open().await;
    let address = mirror.address.to_string();
    let ground = Ground::with(|policy| {
        policy.mirrors.insert(policy.registries[0].clone(), vec![address]);
    })
    .await;
    mirror.image("1", &[small()], json!({}));
    ground.pull(":1").await.unwrap();
    assert_eq!(ground.registry.asked(), [""; 0]);
    ground.registry.image("2", &[small()], json!({}));
    ground.pull(":2").await.unwrap();
    assert_eq!(mirror.asked().last().unwrap(), "manifests 2");
}

#[tokio::test]
async fn a_server_that_ends_drops_its_pulls_and_the_next_one_continues() {
    let ground = Ground::open().await;
    ground.registry.image("1", &[small()], json!({}));
    ground.crash.cancel();
    let ended = ground.puller.ensure(&ground.registry.reference(":1")).await;
    assert_eq!(ended.unwrap_err(), NodeError::Cancelled);
    ground.tasks.close();
    ground.tasks.wait().await;
    let pulls = ground.puller.list();
    assert_eq!(pulls.len(), 1);
    assert_eq!(pulls[0].outcome, Some(Err(NodeError::Cancelled)));
}

#[tokio::test]
async fn how_far_a_pull_is_can_be_seen_and_how_it_ended() {
    let ground = Ground::open().await;
    ground.registry.image("1", &[small()], json!({}));
    let begun = ground.puller.begin(&ground.registry.reference(":1")).unwrap();
    assert_eq!(begun.outcome, None);
    let image = ground.pull(":1").await.unwrap();
    let pulls = ground.puller.list();
    assert_eq!(pulls.len(), 1);
    assert_eq!(pulls[0].outcome, Some(Ok(image)));
    assert_eq!(pulls[0].done_bytes, pulls[0].total_bytes);
    for wrong in ["", "UPPER", "quay.io/x"] {
        assert!(ground.puller.begin(wrong).is_err(), "{wrong}");
    }
    assert_eq!(ground.puller.list().len(), 1, "what is refused at once is not remembered");
}
