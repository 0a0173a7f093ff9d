//! The life of a workspace through each API, with the others looking on.

use serde_json::{Value, json};

use crate::world::{Client, KEY, WORKSPACES, World, bounded, until};

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}")).to_owned()
}

async fn rigbox(server: &Client) -> String {
    let body = Some(json!({"name": "one"}));
    let made = server.expect(201, "POST", "/api/v1/workspaces", body).await;
    assert_eq!(made["vm"]["status"], "provisioned", "{made}");
    let id = text(&made["vm"]["id"]);
    let item = format!("/api/v1/workspaces/{id}");
    server.expect(200, "POST", &format!("{item}/start"), None).await;
    until("running", async || server.get(&item).await["vm"]["status"] == "running").await;
    id
}

async fn aether(server: &Client) -> String {
    let project = server.expect(201, "POST", "/projects", Some(json!({"name": "two"}))).await;
    let hardware = json!({"cpu_kind": "shared", "cpus": 2, "memory_mb": 2048,
                          "volume_size_gb": 10, "gpu_kind": null});
    let path = format!("/projects/{}/workspaces", text(&project["id"]));
    let body = json!({"hardware": hardware, "keep_active": false});
    let made = server.expect(201, "POST", &path, Some(body)).await;
    assert_eq!(made["status"], "creating", "{made}");
    let id = text(&made["id"]);
    let item = format!("/workspaces/{id}");
    until("running", async || server.get(&item).await["status"] == "running").await;
    id
}

async fn instavm(server: &Client) -> String {
    let made = server.expect(200, "POST", "/v1/vms?wait=true", Some(json!({}))).await;
    assert_eq!(made["status"], "active", "{made}");
    text(&made["vm_id"])
}

async fn oblien(server: &Client) -> String {
    let body =
        json!({"name": "my-app", "image": "node-20", "config": {"cpus": 2, "memory_mb": 2048}});
    let made = server.expect(201, "POST", "/workspace", Some(body)).await;
    assert_eq!(made["workspace"]["info"]["is_running"], true, "{made}");
    text(&made["workspace"]["id"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_of_any_api_is_used_listed_and_deleted_through_every_other() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        let made = [
            rigbox(&server).await,
            aether(&server).await,
            instavm(&server).await,
            oblien(&server).await,
        ];
        for id in &made {
            assert_eq!(server.run(id, "echo $((6 * 7))").await, "42\n");
        }
        for (path, list) in [
            ("/api/v1/workspaces", "/vms"),
            ("/workspaces", "/workspaces"),
            ("/v1/vms", ""),
            ("/workspace", "/workspaces"),
            (WORKSPACES, "/workspaces"),
        ] {
            let listed = server.get(path).await;
            let count = listed.pointer(list).and_then(Value::as_array).map(Vec::len);
            assert_eq!(count, Some(4), "{path}: {listed}");
        }
        assert_eq!(world.host.running().len(), 4);
        let natives: Vec<String> = {
            let listed = server.get(WORKSPACES).await;
            listed["workspaces"].as_array().unwrap().iter().map(|w| text(&w["id"])).collect()
        };
        let prefixes = ["/workspaces/", "/v1/vms/", "/workspace/", "/api/v1/workspaces/"];
        for (id, prefix) in made.iter().zip(prefixes) {
            let path = format!("{prefix}{id}");
            let (status, body) = server.ask("DELETE", &path, None).await.unwrap();
            assert!(status == 200 || status == 204, "DELETE {path}: {status} {body}");
        }
        for native in &natives {
            server.is_gone(native).await;
            assert_eq!(world.left_of(native), Vec::<String>::new());
        }
        server.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_does_not_wait_answers_at_once_and_the_work_goes_on() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        let made = server.expect(200, "POST", "/v1/vms?wait=false", Some(json!({}))).await;
        assert_eq!(made["status"], "creating", "{made}");
        let instavm = format!("/v1/vms/{}", text(&made["vm_id"]));
        until("active", async || server.get(&instavm).await["status"] == "active").await;

        let made = server.expect(201, "POST", WORKSPACES, Some(json!({"name": "later"}))).await;
        assert_ne!(made["state"], "running", "{made}");
        server.reaches(&text(&made["id"]), "running").await;
        let body = Some(json!({"name": "kept for later", "start": false}));
        let path = format!("{WORKSPACES}?wait=60");
        let made = server.expect(201, "POST", &path, body).await;
        assert_eq!(made["state"], "provisioned", "{made}");
        assert_eq!(world.host.running().len(), 2);
        server.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_files_and_logs_of_a_workspace_are_there_in_every_api_that_has_them() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        let id = server.create("box").await;
        let item = format!("{WORKSPACES}/{id}");
        assert_eq!(server.run(&id, "echo said-natively").await, "said-natively\n");
        let failed = Some(json!({"argv": ["sh", "-c", "cat >&2; exit 7"], "stdin": "in"}));
        let failed = server.expect(200, "POST", &format!("{item}/exec"), failed).await;
        assert_eq!((&failed["exit_code"], &failed["stderr"]), (&json!(7), &json!("in")));

        let session = text(&server.workspace(&id).await["ids"]["aether"]);
        let body = json!({"api_key": KEY, "session_id": session, "language": "bash",
                          "command": "echo said-through-instavm"});
        let executed = server.expect(200, "POST", "/execute", Some(body)).await;
        assert_eq!(executed["stdout"], "said-through-instavm\n", "{executed}");

        let file = world.dir.path().join("home/deep/file");
        let path = format!("{item}/files/content?path={}", file.display());
        let content: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let written =
            server.request(reqwest::Method::PUT, &path).body(content.clone()).send().await.unwrap();
        assert_eq!(written.status(), 200, "{}", written.text().await.unwrap());
        let read = server.request(reqwest::Method::GET, &path).send().await.unwrap();
        assert_eq!(read.bytes().await.unwrap(), content);
        let listed =
            server.get(&format!("{item}/files?path={}", file.parent().unwrap().display())).await;
        assert_eq!(listed["entries"][0]["name"], "file", "{listed}");

        let log = async |source: &str| {
            let path = format!("{item}/logs?source={source}");
            let answer = server.request(reqwest::Method::GET, &path).send().await.unwrap();
            answer.text().await.unwrap()
        };
        assert!(log("console").await.contains("the guest boots"));
        until("logged", async || log("commands").await.contains("said-through-instavm")).await;
        assert!(log("commands").await.contains("said-natively"));
        let rigbox = text(&server.workspace(&id).await["ids"]["rigbox"]);
        let lines = server.get(&format!("/api/v1/workspaces/{rigbox}/logs?source=commands")).await;
        assert!(lines.to_string().contains("said-natively"), "{lines}");
        server.delete(&id).await;
        assert_eq!(world.left_of(&id), Vec::<String>::new());
        server.end().await;
    })
    .await;
}
