//! Rigbox's apps and SSH keys: success, bad input, another tenant, wrong state.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use front::{Answer, As, Front};
use http::StatusCode;
use serde_json::{Value, json};
use skerry_control::internal_api::ListeningPort;

const BASE: &str = "/api/v1";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAmwHBWfYXtYs4ZUu6kd2aXYuQxTJ2lzGWnNNPM ada@laptop";

async fn say(front: &mut Front, caller: As, line: &str, body: Option<Value>) -> Answer {
    front.call(caller, &line.replacen(' ', &format!(" {BASE}"), 1), body).await
}

async fn admin(front: &mut Front, line: &str, body: Option<Value>) -> Answer {
    say(front, As::Admin, line, body).await
}

async fn workspace(front: &mut Front, name: &str) -> String {
    let made = admin(front, "POST /workspaces", Some(json!({ "name": name }))).await;
    made.body["vm"]["id"].as_str().expect("an id").to_owned()
}

async fn app(front: &mut Front, body: Value) -> String {
    let made = admin(front, "POST /apps", Some(body)).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    made.body["app"]["id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn an_app_is_made_shown_opened_and_deleted() {
    let mut front = Front::open().await;
    let id = workspace(&mut front, "box").await;
    let page = app(&mut front, json!({ "workspace_id": id, "name": "Front", "port": 8000 })).await;
    front.test.clock.advance(std::time::Duration::from_secs(1));
    app(&mut front, json!({ "workspace_id": id, "name": "backend", "protocol": "http" })).await;
    admin(&mut front, "GET /apps", None).await;
    admin(&mut front, &format!("GET /apps?workspace_id={id}&max_results=1"), None).await;
    let public = json!({ "visibility": "public" });
    admin(&mut front, &format!("PUT /apps/{page}/visibility"), Some(public)).await;
    let change =
        json!({ "name": "Home", "port": 8000, "status": "active", "visibility": "private" });
    admin(&mut front, &format!("PATCH /apps/{page}"), Some(change)).await;
    admin(&mut front, &format!("GET /apps/{page}"), None).await;
    admin(&mut front, &format!("DELETE /apps/{page}"), None).await;
    admin(&mut front, &format!("GET /apps/{page}"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn an_app_is_well_while_something_listens_at_its_port() {
    let mut front = Front::open().await;
    let id = workspace(&mut front, "box").await;
    let (page, other) = (
        app(&mut front, json!({ "workspace_id": id, "name": "page", "port": 8080 })).await,
        app(&mut front, json!({ "workspace_id": id, "name": "other", "port": 9 })).await,
    );
    let stopped = admin(&mut front, &format!("GET /apps/{page}/health"), None).await;
    assert_eq!(
        stopped.body,
        json!({ "live": false, "service_status": "unmanaged", "port_open": false })
    );
    admin(&mut front, &format!("POST /workspaces/{id}/start"), None).await;
    let running = front.settled(&id).await;
    let guest = front.test.node.sim_guest(running.id).expect("a guest");
    let address = "127.0.0.1".to_owned();
    guest.listen(vec![ListeningPort { port: 8080, address, pid: None, process: None }]);
    let of_page = admin(&mut front, &format!("GET /apps/{page}/health"), None).await;
    let of_other = admin(&mut front, &format!("GET /apps/{other}/health"), None).await;
    assert_eq!((&of_page.body["live"], &of_other.body["live"]), (&json!(true), &json!(false)));
}

#[tokio::test]
async fn what_an_app_cannot_be_is_refused_with_its_field() {
    let mut front = Front::open().await;
    let id = workspace(&mut front, "box").await;
    let page = app(&mut front, json!({ "workspace_id": id, "name": "page" })).await;
    for body in [
        json!({ "name": "x" }),
        json!({ "workspace_id": id }),
        json!({ "workspace_id": "ws-1", "name": "x" }),
        json!({ "workspace_id": id, "name": "other" }),
        json!({ "workspace_id": id, "name": "page", "port": 8080 }),
        json!({ "workspace_id": id, "name": "no name", "port": 8080 }),
        json!({ "workspace_id": id, "name": "x", "port": 0 }),
        json!({ "workspace_id": id, "name": "x", "port": 70_000 }),
        json!({ "workspace_id": id, "name": "x", "port": 1, "protocol": "tcp" }),
        json!({ "workspace_id": id, "name": "x", "port": 1, "app_kind": "cli" }),
        json!({ "workspace_id": id, "name": "x", "port": 1, "description": "text" }),
        json!({ "workspace_id": id, "name": "x", "port": 1, "metadata": { "a": 1 } }),
    ] {
        let answer = admin(&mut front, "POST /apps", Some(body)).await;
        assert!(answer.status.is_client_error(), "{}", answer.body);
    }
    for body in [
        json!({ "port": 1 }),
        json!({ "status": "inactive" }),
        json!({ "visibility": "privileged", "allowed_emails": ["ada@example.org"] }),
        json!({ "allowed_emails": ["ada@example.org"] }),
        json!({ "visibility": "secret" }),
        json!({ "custom_domain": "example.org" }),
        json!({ "swap_subdomain_with": "app-1" }),
    ] {
        let answer = admin(&mut front, &format!("PATCH /apps/{page}"), Some(body)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    }
    let answer = admin(&mut front, &format!("PUT /apps/{page}/visibility"), Some(json!({}))).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn another_tenants_app_and_key_are_not_found() {
    let mut front = Front::open().await;
    let id = workspace(&mut front, "box").await;
    let page = app(&mut front, json!({ "workspace_id": id, "name": "page" })).await;
    let body = json!({ "name": "laptop", "public_key": KEY });
    let key = admin(&mut front, "POST /ssh-keys", Some(body.clone())).await.body;
    let key = key["id"].as_str().expect("an id").to_owned();
    for line in [
        format!("GET /apps/{page}"),
        format!("DELETE /apps/{page}"),
        format!("PATCH /apps/{page}"),
        format!("GET /apps/{page}/health"),
        format!("GET /apps?workspace_id={id}"),
        format!("DELETE /ssh-keys/{key}"),
        format!("GET /workspaces/{id}/ssh-keys"),
        format!("POST /workspaces/{id}/ssh-keys/sync"),
    ] {
        let body = line.starts_with("PATCH").then(|| json!({}));
        let answer = say(&mut front, As::Other, &line, body).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{line}");
    }
    let others = say(&mut front, As::Other, "GET /apps", None).await;
    assert_eq!(others.body["apps"], json!([]));
    let taken = say(&mut front, As::Other, "POST /ssh-keys", Some(body)).await;
    assert_eq!(taken.status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn a_key_of_the_account_is_in_every_workspace_at_once() {
    let mut front = Front::open().await;
    let id = workspace(&mut front, "box").await;
    let body = json!({ "name": "laptop", "public_key": KEY });
    let key = admin(&mut front, "POST /ssh-keys", Some(body)).await.body;
    let key = key["id"].as_str().expect("an id").to_owned();
    admin(&mut front, "GET /ssh-keys", None).await;
    admin(&mut front, &format!("GET /workspaces/{id}/ssh-keys"), None).await;
    admin(&mut front, &format!("POST /workspaces/{id}/ssh-keys/sync"), None).await;
    for body in [
        json!({ "public_key": KEY }),
        json!({ "name": "x" }),
        json!({ "name": "x", "public_key": "y" }),
    ] {
        admin(&mut front, "POST /ssh-keys", Some(body)).await;
    }
    admin(&mut front, &format!("DELETE /ssh-keys/{key}"), None).await;
    admin(&mut front, &format!("DELETE /ssh-keys/{key}"), None).await;
    admin(&mut front, &format!("POST /workspaces/{id}/ssh-keys/sync"), None).await;
    insta::assert_snapshot!(front.transcript());
}
