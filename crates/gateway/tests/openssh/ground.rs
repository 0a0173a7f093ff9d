//! A gateway with one workspace behind it, whose guest is the real agent hosted in this process, and
//! OpenSSH in front of it.

use std::{
    collections::BTreeMap,
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use skerry_agent::Guest;
use skerry_gateway::ssh::{HostKeys, serve};
use skerry_internal_api::{
    GuestApi, KeyFingerprint, OpenPreview, PreviewAddress, PreviewCredential, PreviewRefusal,
    RouteApi, RouteCredential, RouteError, SshPasswordId,
};
use skerry_model::{Secret, WorkspaceId};
use skerry_node::guest::{Dial, Fresh, GuestHello, GuestLink, Unsaid};
use skerry_vmm::{Channel, VmmError};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt,
    net::TcpListener,
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Every test ends within this.
pub const WITHIN: Duration = Duration::from_secs(120);
/// The workspace's name.
pub const NAME: &str = "blue";
const ID: WorkspaceId = WorkspaceId::from_u128(1);

pub struct Ground {
    pub dir: TempDir,
    /// The guest's home directory.
    pub home: PathBuf,
    pub port: u16,
    pub link: Arc<GuestLink>,
    pub routes: Arc<Routes>,
    pub ending: CancellationToken,
    serving: JoinHandle<()>,
}

/// The password of the workspace's `root`.
pub const PASSWORD: &str = "correct horse";
const BY_PASSWORD: RouteCredential = RouteCredential::SshPassword(SshPasswordId(9));

/// One workspace, its keys and its password.
pub struct Routes {
    keys: Vec<KeyFingerprint>,
    guest: Arc<GuestLink>,
    pub entered: AtomicU32,
    /// Set while it cannot be entered.
    pub refusal: std::sync::Mutex<Option<String>>,
}

#[async_trait]
impl RouteApi for Routes {
    async fn find(
        &self,
        credential: &RouteCredential,
        name: &str,
    ) -> Result<WorkspaceId, RouteError> {
        match credential {
            RouteCredential::SshKey(key) if self.keys.contains(key) && name == NAME => Ok(ID),
            RouteCredential::SshKey(_) | RouteCredential::SshPassword(_) => {
                Err(RouteError::NotFound)
            }
        }
    }

    async fn log_in(
        &self,
        name: &str,
        login: &str,
        password: &Secret,
    ) -> Result<(RouteCredential, WorkspaceId), RouteError> {
        if (name, login, password.expose()) == (NAME, "root", PASSWORD) {
            Ok((BY_PASSWORD, ID))
        } else {
            Err(RouteError::NotFound)
        }
    }

    async fn enter(
        &self,
        credential: &RouteCredential,
        workspace: WorkspaceId,
    ) -> Result<Arc<dyn GuestApi>, RouteError> {
        assert_eq!(workspace, ID);
        match credential {
            RouteCredential::SshKey(key) => assert!(self.keys.contains(key)),
            password @ RouteCredential::SshPassword(_) => assert_eq!(*password, BY_PASSWORD),
        }
        self.entered.fetch_add(1, Ordering::Relaxed);
        match &*self.refusal.lock().unwrap() {
            Some(why) => Err(RouteError::Refused(why.clone())),
            None => Ok(Arc::clone(&self.guest) as _),
        }
    }

    async fn open_preview(
        &self,
        _: &PreviewAddress,
        _: &[PreviewCredential],
    ) -> Result<OpenPreview, PreviewRefusal> {
        Err(PreviewRefusal::NotFound)
    }
}

struct Line(Arc<Guest>);

#[async_trait]
impl Dial for Line {
    async fn dial(&self) -> Result<Box<dyn Channel>, VmmError> {
        let (host, guest_end) = tokio::io::duplex(64 * 1024);
        let guest = Arc::clone(&self.0);
        tokio::spawn(async move {
            let _ = skerry_agent::serve(guest_end, &guest).await;
        });
        Ok(Box::new(host))
    }
}

fn hello() -> GuestHello {
    GuestHello {
        hostname: NAME.to_owned(),
        machine_id: "0123456789abcdef".repeat(2),
        env: BTreeMap::from([("FROM_WORKSPACE".to_owned(), "yes".to_owned())]),
        unsaid: Unsaid::default(),
        incarnation: 1,
        fresh: Arc::new(|| Fresh {
            entropy: vec![7; 64],
            now: skerry_model::Timestamp::from_second(1_700_000_000).unwrap(),
        }),
    }
}

async fn make_key(path: &Path, kind: &[&str]) -> KeyFingerprint {
    let made = Command::new("ssh-keygen")
        .args(kind)
        .args(["-q", "-N", "", "-C", "test", "-f"])
        .arg(path)
        .status()
        .await
        .unwrap();
    assert!(made.success());
    let line = std::fs::read_to_string(path.with_extension("pub")).unwrap();
    let key = russh::keys::PublicKey::from_openssh(&line).unwrap();
    let fingerprint = key.fingerprint(russh::keys::HashAlg::Sha256);
    KeyFingerprint(fingerprint.as_bytes().try_into().unwrap())
}

impl Ground {
    pub async fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        std::fs::create_dir(&home).unwrap();
        let mut keys = vec![make_key(&dir.path().join("key"), &["-t", "ed25519"]).await];
        keys.push(make_key(&dir.path().join("rsa"), &["-t", "rsa", "-b", "2048"]).await);
        make_key(&dir.path().join("other"), &["-t", "ed25519"]).await;

        let guest = Arc::new(Guest::hosted(home.clone()));
        let link = GuestLink::open(Arc::new(Line(guest)), hello(), WITHIN).await.unwrap();
        let routes = Arc::new(Routes {
            keys,
            guest: Arc::clone(&link),
            entered: AtomicU32::new(0),
            refusal: std::sync::Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let keys = HostKeys::open(dir.path(), |seed| seed.fill(5)).unwrap();
        let ending = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, routes.clone(), keys, ending.clone()));
        let ground = Self { dir, home, port, link, routes, ending, serving };
        ground.configure();
        ground
    }

    fn configure(&self) {
        let known = self.path("known_hosts");
        let common = format!(
            "    IdentityFile {}\n    IdentitiesOnly yes\n    BatchMode yes\n    \
             UserKnownHostsFile {known}\n    StrictHostKeyChecking accept-new\n    LogLevel ERROR\n",
            self.path("key"),
        );
        let gate = format!("    HostName 127.0.0.1\n    Port {}\n", self.port);
        let text = format!(
            "Host gate\n    User {NAME}\n{gate}Host jump\n    User root\n{gate}    IdentityFile none\n\
             Host *\n{common}",
        );
        std::fs::write(self.dir.path().join("config"), text).unwrap();
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// One of OpenSSH's programs, configured to find the gateway as `gate` and as `jump`.
    pub fn program(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("-F")
            .arg(self.path("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub fn ssh(&self, args: &[&str]) -> Command {
        let mut command = self.program("ssh");
        command.args(args);
        command
    }

    /// The same without a key, for whom a program that is asked for a password says this one.
    pub fn ssh_with_password(&self, password: &str, args: &[&str]) -> Command {
        let asked = self.dir.path().join("askpass");
        std::fs::write(&asked, format!("#!/bin/sh\necho '{password}'\n")).unwrap();
        std::fs::set_permissions(&asked, Permissions::from_mode(0o700)).unwrap();
        let mut command = self.program("ssh");
        command.env("SSH_ASKPASS", asked).env("SSH_ASKPASS_REQUIRE", "force");
        command.args(["-o", "BatchMode=no", "-o", "PubkeyAuthentication=no"]);
        command.args(["-o", "NumberOfPasswordPrompts=1"]).args(args);
        command
    }

    /// Closes everything.
    pub async fn close(self) {
        self.ending.cancel();
        timeout(WITHIN, self.serving).await.unwrap().unwrap();
        self.link.close().await;
    }
}

/// What it said until its end.
pub async fn done(mut command: Command) -> Output {
    timeout(WITHIN, command.output()).await.expect("it takes too long").unwrap()
}

pub async fn done_with_input(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = tokio::spawn(async move {
        let _ = stdin.write_all(&input).await;
    });
    let output = ended(child).await;
    writing.await.unwrap();
    output
}

pub async fn ended(child: Child) -> Output {
    timeout(WITHIN, child.wait_with_output()).await.expect("it takes too long").unwrap()
}

pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
