//! Rigbox's catalogue of apps: installing at create, later and again, jobs, addresses, quick-deploy. That
//! no route answers without a credential is in `rigbox.rs`.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use std::time::Duration;

use front::{As, Front};
use http::StatusCode;
use serde_json::{Value, json};
use skerry_control::{
    AppCatalogue, CatalogApp, ControlConfig, WorkspaceRef, internal_api::ListeningPort, testing,
};

const BASE: &str = "/api/v1";
const BOUND: Duration = Duration::from_secs(60);

async fn call(front: &mut Front, caller: As, line: &str, body: Option<Value>) -> front::Answer {
    front.call(caller, &line.replacen(' ', &format!(" {BASE}"), 1), body).await
}

async fn admin(front: &mut Front, line: &str, body: Option<Value>) -> front::Answer {
    call(front, As::Admin, line, body).await
}

/// A workspace outside the transcript.
async fn make(front: &Front, body: Value) -> String {
    let line = format!("POST {BASE}/workspaces");
    let made = front.beside(As::Admin, &line, Some(body)).await;
    assert_eq!(made.status, StatusCode::CREATED, "{:?}", made.body);
    made.body["vm"]["id"].as_str().expect("an id").to_owned()
}

async fn start(front: &Front, id: &str) {
    let line = format!("POST {BASE}/workspaces/{id}/start");
    let started = front.beside(As::Admin, &line, None).await;
    assert_eq!(started.status, StatusCode::OK, "{:?}", started.body);
    front.settled(id).await;
}

/// Asks, outside the transcript, until the answer is as wanted.
async fn until(front: &Front, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let line = format!("GET {BASE}{path}");
    let asked = async {
        loop {
            let answer = front.beside(As::Admin, &line, None).await;
            if wanted(&answer.body) {
                return answer.body;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, asked).await.expect("as wanted in time")
}

fn program(id: &str, install: &str) -> CatalogApp {
    CatalogApp {
        id: id.to_owned(),
        name: id.to_owned(),
        description: String::new(),
        icon: String::new(),
        category: String::new(),
        min_memory_mib: 2048,
        min_disk_mib: 5000,
        install: install.to_owned(),
        service: None,
        params: Vec::new(),
        incompatible_templates: vec!["node-20".to_owned()],
    }
}

fn config() -> ControlConfig {
    let more = vec![program("tool", "echo made"), program("broken", "echo trying\nexit 7")];
    let apps = AppCatalogue::built_in().with(more).expect("good entries");
    ControlConfig { apps, ..testing::config() }
}

#[tokio::test]
async fn the_catalogue_is_public() {
    let mut front = Front::open().await;
    let listed = call(&mut front, As::Nobody, "GET /app-catalog", None).await;
    assert_eq!(listed.status, StatusCode::OK);
    insta::assert_json_snapshot!(listed.body);
}

#[tokio::test]
async fn apps_of_a_new_workspace_raise_it_and_are_installed_by_its_first_start() {
    let mut front = Front::open_with(config()).await;
    let body = json!({ "name": "My Box", "catalog_ids": ["tool", "static-files"], "ram_mb": 1,
                       "disk_size_mb": 1 });
    let made = admin(&mut front, "POST /workspaces", Some(body)).await;
    let id = made.body["vm"]["id"].as_str().expect("an id").to_owned();
    let apps = format!("/apps?workspace_id={id}");
    admin(&mut front, &format!("GET {apps}"), None).await;
    start(&front, &id).await;
    let all_active = |list: &Value| {
        list["apps"].as_array().is_some_and(|all| all.iter().all(|app| app["status"] == "active"))
    };
    until(&front, &apps, all_active).await;
    admin(&mut front, &format!("GET {apps}"), None).await;
    admin(&mut front, &format!("GET /workspaces/{id}/jobs"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn an_app_is_installed_where_nothing_runs_and_taken_away() {
    let mut front = Front::open_with(config()).await;
    let id = make(&front, json!({ "name": "box" })).await;
    let install = format!("POST /workspaces/{id}/install-app");
    let body = json!({ "catalog_id": "static-files", "params": { "directory": "/srv" } });
    let installed = admin(&mut front, &install, Some(body.clone())).await;
    admin(&mut front, &install, Some(body)).await;
    let app = installed.body["app"]["id"].as_str().expect("an id").to_owned();
    start(&front, &id).await;
    let path = format!("/apps/{app}");
    until(&front, &path, |answer| answer["app"]["status"] == "active").await;
    admin(&mut front, &format!("GET {path}/health"), None).await;
    admin(&mut front, &format!("PUT {path}/visibility"), Some(json!({ "visibility": "public" })))
        .await;
    call(&mut front, As::Other, &format!("DELETE {path}?force=true"), None).await;
    admin(&mut front, &format!("DELETE {path}"), None).await;
    admin(&mut front, &format!("DELETE {path}?force=true"), None).await;
    admin(&mut front, &format!("GET {path}"), None).await;
    admin(&mut front, &format!("GET /workspaces/{id}/services"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn an_installation_that_fails_is_an_error_and_can_be_begun_again() {
    let mut front = Front::open_with(config()).await;
    let id = make(&front, json!({ "name": "box" })).await;
    start(&front, &id).await;
    let install = format!("POST /workspaces/{id}/install-app");
    let body = json!({ "catalog_id": "broken" });
    let installed = admin(&mut front, &install, Some(body.clone())).await;
    assert_eq!(installed.body["live_installed"], true);
    let job = installed.body["job_id"].as_str().expect("an id").to_owned();
    let job = format!("/workspaces/{id}/jobs/{job}");
    let failed = until(&front, &job, |job| job["status"] == "failed").await;
    assert_eq!((&failed["exit_code"], &failed["stdout"]), (&json!(7), &json!("trying\n")));
    let listed = until(&front, &format!("/apps?workspace_id={id}"), |_| true).await;
    let app = &listed["apps"][0];
    assert_eq!((&app["status"], &app["app_kind"]), (&json!("error"), &json!("cli")));
    let again = admin(&mut front, &install, Some(body)).await;
    assert_eq!((again.status, &again.body["job_id"]), (StatusCode::OK, &installed.body["job_id"]));
    let failed = until(&front, &job, |job| job["stdout"] == "trying\ntrying\n").await;
    assert_eq!(failed["status"], "failed");
    // A program is nowhere to be visited.
    let path = format!("/apps/{}", app["id"].as_str().expect("an id"));
    let refused = json!({ "visibility": "public" });
    let refused = admin(&mut front, &format!("PUT {path}/visibility"), Some(refused)).await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn what_cannot_be_installed_is_refused_by_its_field() {
    let mut front = Front::open_with(config()).await;
    let id = make(&front, json!({ "name": "box" })).await;
    let install = format!("POST /workspaces/{id}/install-app");
    for body in [
        json!({}),
        json!({ "catalog_id": "nothing" }),
        json!({ "catalog_id": "static-files", "params": { "colour": "red" } }),
        json!({ "catalog_id": "static-files", "params": { "directory": 7 } }),
    ] {
        admin(&mut front, &install, Some(body)).await;
    }
    call(&mut front, As::Other, &install, Some(json!({ "catalog_id": "tool" }))).await;
    for body in [
        json!({ "name": "x", "catalog_ids": ["nothing"] }),
        json!({ "name": "x", "catalog_ids": ["tool", "tool"] }),
        json!({ "name": "x", "catalog_ids": ["tool"], "template_id": "node-20" }),
    ] {
        admin(&mut front, "POST /workspaces", Some(body)).await;
    }
    let body = json!({ "name": "x", "catalog_ids": ["nothing"] });
    admin(&mut front, "POST /templates", Some(body)).await;
    let on_node = make(&front, json!({ "name": "y", "template_id": "node-20" })).await;
    let install = format!("POST /workspaces/{on_node}/install-app");
    admin(&mut front, &install, Some(json!({ "catalog_id": "tool" }))).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn an_app_without_an_address_gets_one() {
    let mut front = Front::open_with(config()).await;
    let id = make(&front, json!({ "name": "box", "catalog_ids": ["static-files"] })).await;
    let workspace = front.settled(&id).await;
    let caller = front.test.caller().await;
    // As a server leaves it that dies between both records.
    let which = WorkspaceRef::Id(workspace.id);
    front.test.control.revoke_port(&caller, &which, 8080).await.expect("its address");
    let reconcile = format!("POST /workspaces/{id}/reconcile-apps");
    let first = admin(&mut front, &reconcile, None).await;
    assert_eq!(first.body["created"][0]["subdomain"], "box-static-files");
    assert_eq!(first.body["existing"], json!([]));
    let second = admin(&mut front, &reconcile, None).await;
    assert_eq!(second.body["created"], json!([]));
    assert_eq!(second.body["existing"][0]["id"], first.body["created"][0]["id"]);
    // Another workspace of this name has an address too, under another name.
    let other = make(&front, json!({ "name": "box", "catalog_ids": ["static-files"] })).await;
    let listed = until(&front, &format!("/apps?workspace_id={other}"), |_| true).await;
    let subdomain = listed["apps"][0]["subdomain"].as_str().expect("an address");
    assert!(subdomain.starts_with("box-") && subdomain != "box-static-files", "{subdomain}");
}

#[tokio::test]
async fn quick_deploy_makes_a_workspace_with_everything_and_starts_it() {
    let mut front = Front::open_with(config()).await;
    let script = json!({ "name": "x", "content": "true" });
    let script = admin(&mut front, "POST /setup-scripts", Some(script)).await;
    let body = json!({
        "template_id": "base", "name": "deployed", "ram_mb": 4096, "env_vars": { "A": "b" },
        "catalog_ids": ["static-files"], "app_params": { "static-files": { "directory": "/srv" } },
        "setup_script_ids": [script.body["id"]],
    });
    let made = admin(&mut front, "POST /quick-deploy", Some(body)).await;
    let id = made.body["workspace"]["id"].as_str().expect("an id").to_owned();
    front.settled(&id).await;
    let running = until(&front, &format!("/workspaces/{id}"), |_| true).await;
    assert_eq!(running["vm"]["status"], "running");
    for body in [
        json!({}),
        json!({ "template_id": "nothing" }),
        json!({ "template_id": "base", "app_params": { "tool": {} } }),
        json!({ "template_id": "base", "catalog_ids": ["nothing"] }),
    ] {
        admin(&mut front, "POST /quick-deploy", Some(body)).await;
    }
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn an_app_from_the_catalogue_is_stopped_started_and_heard() {
    let mut front = Front::open_with(config()).await;
    let id = make(&front, json!({ "name": "box", "catalog_ids": ["static-files", "tool"] })).await;
    start(&front, &id).await;
    let path = format!("/apps?workspace_id={id}");
    let listed = until(&front, &path, |list| list["apps"][1]["status"] == "active").await;
    let of = |name: &str| {
        let apps = listed["apps"].as_array().expect("apps");
        let app = apps.iter().find(|app| app["name"] == name).expect("the app");
        app["id"].as_str().expect("an id").to_owned()
    };
    let (served, tool) = (of("static-files"), of("tool"));
    let app = format!("/apps/{served}");
    until(&front, &app, |answer| answer["app"]["status"] == "active").await;
    let stopped = admin(&mut front, &format!("POST {app}/stop"), None).await;
    assert_eq!(
        (stopped.status, &stopped.body["service_name"]),
        (StatusCode::OK, &json!("app.static-files"))
    );
    until(&front, &app, |answer| answer["app"]["status"] == "inactive").await;
    admin(&mut front, &format!("POST {app}/start"), None).await;
    until(&front, &app, |answer| answer["app"]["status"] == "active").await;
    let restarted = admin(&mut front, &format!("POST {app}/restart"), None).await;
    assert_eq!(restarted.body["message"], "the app is being restarted");
    until(&front, &app, |answer| answer["app"]["status"] == "active").await;
    let log = admin(&mut front, &format!("GET {app}/logs"), None).await;
    assert_eq!((&log.body["source"], &log.body["lines"]), (&json!("service"), &json!([])));

    // A program has only its installation to speak of, and nothing to start.
    let log = until(&front, &format!("/apps/{tool}/logs"), |log| log["lines"] != json!([])).await;
    assert_eq!((&log["source"], &log["lines"][0]["message"]), (&json!("install"), &json!("made")));
    let refused = admin(&mut front, &format!("POST /apps/{tool}/start"), None).await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    // Nor has an app that is a port and nothing more.
    let body = json!({ "workspace_id": id, "name": "my-port", "port": 3000 });
    let made = admin(&mut front, "POST /apps", Some(body)).await;
    let plain = made.body["app"]["id"].as_str().expect("an id").to_owned();
    let refused = admin(&mut front, &format!("GET /apps/{plain}/logs"), None).await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn ports_that_listen_say_whether_they_are_an_apps() {
    let mut front = Front::open_with(config()).await;
    let id = make(&front, json!({ "name": "box", "catalog_ids": ["static-files"] })).await;
    let line = format!("GET /workspaces/{id}/listening-ports");
    let resting = admin(&mut front, &line, None).await;
    assert_eq!(resting.status, StatusCode::CONFLICT);
    start(&front, &id).await;
    let workspace = front.settled(&id).await;
    let guest = front.test.node.sim_guest(workspace.id).expect("a guest");
    let listening = |port| ListeningPort {
        port,
        address: "0.0.0.0".to_owned(),
        pid: Some(7),
        process: Some("python3".to_owned()),
    };
    guest.listen(vec![listening(8080), listening(22)]);
    let listed = admin(&mut front, &line, None).await;
    let ports = listed.body["ports"].as_array().expect("ports").iter();
    let ports: Vec<_> = ports.map(|one| (&one["port"], &one["already_exposed"])).collect();
    assert_eq!(ports, [(&json!(22), &json!(false)), (&json!(8080), &json!(true))]);
}
