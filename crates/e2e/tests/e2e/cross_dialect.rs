//! One account's workspaces are one set: made through any dialect, each is listed, read, used and
//! deleted through every other one, under ids in that dialect's form.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skerry_e2e::{Options, Server};

/// Memory that every dialect's rules allow for two CPUs.
const MEMORY_MIB: u32 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Native,
    Rigbox,
    Aether,
    Instavm,
    Oblien,
}

use Dialect::{Aether, Instavm, Native, Oblien, Rigbox};

const ALL: [Dialect; 5] = [Native, Rigbox, Aether, Instavm, Oblien];

/// Whether a new workspace has its VM before the test goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Recorded,
    Running,
}

impl Dialect {
    /// Where all workspaces are listed, and where the array is in the answer.
    const fn list(self) -> (&'static str, &'static str) {
        match self {
            Native => ("/skerry/v1/workspaces", "/workspaces"),
            Rigbox => ("/api/v1/workspaces", "/vms"),
            Aether => ("/workspaces", "/workspaces"),
            // Without the slash only those with a VM are listed.
            Instavm => ("/v1/vms/", ""),
            Oblien => ("/workspace", "/workspaces"),
        }
    }

    fn item(self, id: &str) -> String {
        let root = match self {
            Native => "/skerry/v1/workspaces",
            Rigbox => "/api/v1/workspaces",
            Aether => "/workspaces",
            Instavm => "/v1/vms",
            Oblien => "/workspace",
        };
        format!("{root}/{id}")
    }

    /// Where the workspace is in the answer about one.
    const fn one(self) -> &'static str {
        match self {
            Native | Aether | Instavm => "",
            Rigbox => "/vm",
            Oblien => "/workspace",
        }
    }

    const fn id_field(self) -> &'static str {
        match self {
            Native | Rigbox | Aether | Oblien => "id",
            Instavm => "vm_id",
        }
    }

    /// The field of the memory, if the dialect shows it at the workspace itself.
    const fn memory(self) -> &'static str {
        match self {
            Native => "/memory_mib",
            Rigbox => "/ram_mb",
            Aether => "/hardware/memory_mb",
            Instavm => "/memory_mb",
            Oblien => "/resources/memory_mb",
        }
    }

    fn is_own_form(self, id: &str) -> bool {
        let base36 = |prefix| {
            id.strip_prefix(prefix).is_some_and(|digits| {
                digits.len() == 25
                    && digits.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
            })
        };
        match self {
            Native | Aether => id.len() == 36 && id.bytes().filter(|b| *b == b'-').count() == 4,
            Rigbox => base36("ws-"),
            Instavm => base36("vm_"),
            Oblien => base36("ws_"),
        }
    }

    const fn deleted(self) -> u16 {
        match self {
            Native | Rigbox | Instavm | Oblien => 200,
            Aether => 204,
        }
    }

    /// Makes a workspace of two CPUs and little memory; answers the id in this dialect's form.
    async fn make(self, server: &Server, until: Until) -> Result<String> {
        let post = async |expected, path: &str, body| {
            server.expect(expected, "POST", path, Some(body)).await
        };
        let wait = until == Until::Running;
        let id = match self {
            Native => {
                let query = if wait { "?wait=240" } else { "" };
                let path = format!("/skerry/v1/workspaces{query}");
                let body = json!({"name": "shared", "vcpu_count": 2, "memory_mib": MEMORY_MIB});
                text(&post(201, &path, body).await?["id"])?
            }
            Rigbox => {
                let body = json!({"name": "shared", "vcpu_count": 2, "ram_mb": MEMORY_MIB});
                let id = text(&post(201, "/api/v1/workspaces", body).await?["vm"]["id"])?;
                if wait {
                    let start = format!("{}/start", self.item(&id));
                    server.expect(200, "POST", &start, None).await?;
                }
                id
            }
            Aether => {
                let projects = server.expect(200, "GET", "/projects", None).await?;
                let project = text(&projects["projects"][0]["id"])?;
                let hardware = json!({"cpus": 2, "memory_mb": MEMORY_MIB, "volume_size_gb": 1});
                let path = format!("/projects/{project}/workspaces");
                text(&post(201, &path, json!({"hardware": hardware})).await?["id"])?
            }
            Instavm => {
                let body = json!({"vcpu_count": 2, "memory_mb": MEMORY_MIB});
                text(&post(200, &format!("/v1/vms?wait={wait}"), body).await?["vm_id"])?
            }
            Oblien => {
                let config = json!({"cpus": 2, "memory_mb": MEMORY_MIB});
                let body = json!({"name": "shared", "config": config});
                text(&post(201, "/workspace", body).await?["workspace"]["id"])?
            }
        };
        ensure!(self.is_own_form(&id), "{self:?} named its workspace {id}");
        if wait {
            let path = format!("/skerry/v1/workspaces/{id}");
            server.until(&path, |answer| answer["state"] == "running").await?;
        }
        Ok(id)
    }

    /// Finds the only workspace in this dialect's list and reads it; answers its id here.
    async fn find(self, server: &Server) -> Result<String> {
        let (path, pointer) = self.list();
        let answer = server.expect(200, "GET", path, None).await?;
        let listed = answer.pointer(pointer).and_then(Value::as_array).context("no list")?;
        ensure!(listed.len() == 1, "{path} lists {answer}");
        let id = text(&listed[0][self.id_field()])?;
        ensure!(self.is_own_form(&id), "{self:?} lists {id}");
        let read = server.expect(200, "GET", &self.item(&id), None).await?;
        let read = read.pointer(self.one()).context("no workspace")?;
        ensure!(read[self.id_field()] == id.as_str(), "{self:?} reads {read}");
        ensure!(read.pointer(self.memory()) == Some(&json!(MEMORY_MIB)), "{self:?} reads {read}");
        Ok(id)
    }

    /// Runs a command by the id of this dialect, through this dialect's own call if it has one.
    async fn run(self, server: &Server, id: &str, command: &str) -> Result<String> {
        if self != Instavm {
            return server.run(id, command).await;
        }
        let session = text(&server.expect(200, "GET", &self.item(id), None).await?["session_id"])?;
        let body = json!({"session_id": session, "command": command, "language": "bash"});
        let answer = server.expect(200, "POST", "/execute", Some(body)).await?;
        text(&answer["stdout"])
    }

    async fn delete(self, server: &Server, id: &str) -> Result<()> {
        let item = self.item(id);
        let wait = if self == Native { "?wait=240" } else { "" };
        server.expect(self.deleted(), "DELETE", &format!("{item}{wait}"), None).await?;
        for dialect in ALL {
            let (path, pointer) = dialect.list();
            let is_empty = |answer: &Value| {
                answer.pointer(pointer).and_then(Value::as_array).is_some_and(Vec::is_empty)
            };
            server.until(path, is_empty).await.with_context(|| format!("{dialect:?}"))?;
        }
        server.until_gone(&item).await
    }
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("not a string: {value}"))
}

#[tokio::test]
async fn a_workspace_of_any_dialect_is_listed_read_used_and_deleted_through_every_other()
-> Result<()> {
    let server = Server::start(Options::default()).await?;
    for maker in ALL {
        let others: Vec<Dialect> = ALL.into_iter().filter(|other| *other != maker).collect();

        // One VM is used through all the others in turn; each finds what the one before left.
        let id = maker.make(&server, Until::Running).await?;
        maker.run(&server, &id, "echo made by you > /root/trail; nproc").await?;
        for other in &others {
            let seen =
                other.find(&server).await.with_context(|| format!("{maker:?}, {other:?}"))?;
            let left = other.run(&server, &seen, "cat /root/trail; echo seen >> /root/trail").await;
            let left = left.with_context(|| format!("{maker:?}, {other:?}"))?;
            ensure!(left.starts_with("made by you\n"), "{maker:?}, {other:?}: {left}");
        }
        let trail = maker.run(&server, &id, "grep -c seen /root/trail; nproc").await?;
        ensure!(trail == "4\n2\n", "{maker:?}: {trail}");

        // It is deleted through one of the others, and through each of the rest another one that
        // is new or may be starting.
        for (index, other) in others.iter().enumerate() {
            if index > 0 {
                maker.make(&server, Until::Recorded).await?;
            }
            let seen = other.find(&server).await?;
            other.delete(&server, &seen).await.with_context(|| format!("{maker:?}, {other:?}"))?;
        }
    }
    server.finish().await
}
