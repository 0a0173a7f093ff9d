//! Vaults in InstaVM's dialect.
#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use front::{As, Front};
use serde_json::{Value, json};
use skerry_control::{internal_api::InjectedRequest, sim_node::SimNode};
use skerry_model::{VaultId, WorkspaceId};

const SECRET: &str = "sk-hunter2";

async fn vault(front: &mut Front, name: &str) -> String {
    let made = front.call(As::Admin, "POST /v1/vaults", Some(json!({ "name": name }))).await;
    made.body["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn vaults_are_made_filled_changed_and_deleted_and_no_value_is_ever_shown() {
    let mut front = Front::open().await;
    let id = vault(&mut front, "keys").await;
    let one = format!("/v1/vaults/{id}");
    let update = json!({ "name": "my keys", "description": "of tests" });
    front.call(As::Admin, &format!("PATCH {one}"), Some(update)).await;
    front.call(As::Admin, &format!("GET {one}"), None).await;
    front.call(As::Admin, "GET /v1/vaults", None).await;
    front.call(As::Other, "GET /v1/vaults", None).await;
    front.call(As::Other, &format!("GET {one}"), None).await;
    front.call(As::Nobody, "GET /v1/vaults", None).await;

    let credentials = format!("POST {one}/credentials");
    let body = json!({
        "name": "API_KEY", "value": SECRET, "credential_type": "api_key", "description": "a key",
    });
    let added = front.call(As::Admin, &credentials, Some(body.clone())).await;
    let credential = added.body["id"].as_str().unwrap().to_owned();
    for body in [
        body,
        json!({ "name": "A B", "value": "x" }),
        json!({ "name": "A", "value": "x\ny" }),
        json!({ "value": 1 }),
    ] {
        front.call(As::Admin, &credentials, Some(body)).await;
    }
    let rotate = format!("POST {one}/credentials/{credential}/rotate");
    front.call(As::Admin, &rotate, Some(json!({ "value": "sk-hunter3" }))).await;
    front.call(As::Other, &rotate, Some(json!({ "value": "x" }))).await;
    front.call(As::Admin, &format!("GET {one}/credentials"), None).await;

    let services = format!("POST {one}/services");
    let mut made = Vec::new();
    for (host, auth) in [
        ("api.example", json!({ "type": "bearer", "token": "API_KEY" })),
        ("*.below.example", json!({ "type": "header", "header": "X-Key", "key": "API_KEY" })),
        ("b.example", json!({ "type": "basic", "username": "USER", "password": "API_KEY" })),
        ("c.example", json!({ "type": "custom", "headers": { "X-A": "a {{ API_KEY }}" } })),
        ("t.example", json!({ "type": "url-path", "token": "API_KEY" })),
        ("p.example", json!({ "type": "passthrough" })),
        ("127.0.0.1", json!({ "type": "passthrough" })),
        ("x.example", json!({ "type": "bearer" })),
        ("x.example", json!({ "type": "query", "key": "API_KEY" })),
        ("x.example", json!({ "type": "api-key", "header": "Host", "key": "API_KEY" })),
        ("x.example", json!("bearer")),
    ] {
        let body = json!({ "host": host, "auth_config": auth, "enabled": true });
        let answer = front.call(As::Admin, &services, Some(body)).await;
        made.extend(answer.body["id"].as_str().map(str::to_owned));
    }
    front.call(As::Admin, &services, Some(json!({}))).await;
    let templates = format!("POST {one}/services:from_template");
    for ids in [json!(["openai", "telegram"]), json!(["openai", "nonsense"]), json!([])] {
        let body = Some(json!({ "template_ids": ids }));
        front.call(As::Admin, &templates, body).await;
    }
    front.call(As::Admin, &format!("GET {one}/services"), None).await;
    front.call(As::Admin, &format!("GET {one}/discover"), None).await;
    let service = format!("DELETE {one}/services/{}", made[0]);
    front.call(As::Admin, &service, None).await;
    front.call(As::Admin, &service, None).await;
    let credential = format!("DELETE {one}/credentials/{credential}");
    front.call(As::Admin, &credential, None).await;
    front.call(As::Admin, &credential, None).await;
    front.call(As::Admin, &format!("DELETE {one}"), None).await;
    front.call(As::Admin, &format!("GET {one}"), None).await;
    let transcript = front.transcript();
    let answers = transcript.lines().filter(|line| !line.starts_with('>'));
    assert!(answers.clone().count() > 20 && !answers.clone().any(|line| line.contains("hunter")));
    insta::assert_snapshot!(transcript);
}

#[tokio::test]
async fn the_catalog_names_what_many_people_use() {
    let mut front = Front::open().await;
    let answer = front.call(As::Admin, "GET /v1/vaults/catalog", None).await;
    let templates = answer.body["templates"].as_array().unwrap();
    assert_eq!(templates.len(), 25);
    let of = |id: &str| templates.iter().find(|one| one["id"] == id).unwrap().clone();
    insta::assert_snapshot!(format!(
        "{:#}",
        json!([of("openai"), of("anthropic"), of("jira"), of("pagerduty"), of("telegram")])
    ));
}

async fn create(front: &mut Front, body: Value) -> Value {
    let made = front.call(As::Admin, "POST /v1/vms", Some(body)).await;
    assert_eq!(made.status, 200, "{}", made.body);
    made.body
}

fn workspace(vm: &Value) -> WorkspaceId {
    vm["session_id"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_vm_uses_the_vaults_that_are_named_when_it_is_made_changed_or_used() {
    let mut front = Front::open().await;
    front.test.node.set_network(Some(SimNode::NETWORK));
    let (first, second) = (vault(&mut front, "one").await, vault(&mut front, "two").await);
    for (id, host) in [(&first, "a.example"), (&second, "b.example")] {
        let body = json!({ "host": host, "auth_config": { "type": "passthrough" } });
        front.call(As::Admin, &format!("POST /v1/vaults/{id}/services"), Some(body)).await;
    }
    let node = front.test.node.clone();
    let hosts = |vm: &Value| -> Vec<String> {
        let injections = node.injections(workspace(vm));
        injections.services.iter().map(|service| service.host.to_string()).collect()
    };
    let vm = create(&mut front, json!({ "vault_ids": [first] })).await;
    assert_eq!(hosts(&vm), ["a.example"]);
    let patch = format!("PATCH /v1/vms/{}", vm["vm_id"].as_str().unwrap());
    let patched = front.call(As::Admin, &patch, Some(json!({ "vault_ids": [] }))).await;
    assert_eq!((patched.status.as_u16(), hosts(&vm).len()), (200, 0));
    front.call(As::Admin, &patch, Some(json!({ "vault_ids": [second] }))).await;
    front.call(As::Admin, &patch, Some(json!({ "metadata": { "a": 1 } }))).await;
    assert_eq!(hosts(&vm), ["b.example"]);
    let execute = json!({
        "session_id": vm["session_id"], "command": "true", "language": "bash", "vault_ids": [first],
    });
    let ran = front.call(As::Admin, "POST /execute", Some(execute.clone())).await;
    assert_eq!(
        (ran.status.as_u16(), hosts(&vm)),
        (200, vec!["b.example".to_owned(), "a.example".to_owned()])
    );
    let session = json!({ "vault_ids": [first] });
    let made = front.call(As::Admin, "POST /v1/sessions/session", Some(session)).await;
    assert_eq!(made.status, 200, "{}", made.body);

    // Of somebody else, of nobody, and no ids at all.
    let none = "vlt_0000000000000000000000001";
    for (line, body) in [
        ("POST /v1/vms".to_owned(), json!({ "vault_ids": [none] })),
        ("POST /v1/vms".to_owned(), json!({ "vault_ids": ["keys"] })),
        ("POST /v1/vms".to_owned(), json!({ "vault_ids": [1] })),
        (patch.clone(), json!({ "metadata": { "a": 2 }, "vault_ids": [none] })),
        (
            "POST /execute".to_owned(),
            json!({ "session_id": vm["session_id"], "command": "true", "vault_ids": [none] }),
        ),
    ] {
        let answer = front.call(As::Admin, &line, Some(body)).await;
        let expected = if answer.body["detail"].is_array() { 422 } else { 404 };
        assert_eq!(answer.status.as_u16(), expected, "{line}: {}", answer.body);
    }
    let answer = front.call(As::Other, "POST /v1/vms", Some(json!({ "vault_ids": [first] }))).await;
    assert_eq!(answer.status, 404, "{}", answer.body);
}

#[tokio::test]
async fn requests_by_a_vault_are_told_newest_first() {
    let mut front = Front::open().await;
    let id = vault(&mut front, "keys").await;
    let number = skerry_api::ids::parse_base36(id.strip_prefix("vlt_").unwrap()).unwrap();
    for (status, host) in [(200, "a.example"), (502, "b.example")] {
        front.test.node.report_injected(InjectedRequest {
            vault_id: VaultId::from_u128(number),
            workspace_id: WorkspaceId::from_u128(7),
            host: host.to_owned(),
            method: "POST".to_owned(),
            status,
            credentials: vec!["API_KEY".to_owned()],
        });
    }
    let line = format!("GET /v1/vaults/{id}/request-logs");
    let logs = async {
        loop {
            let answer = front.call(As::Admin, &line, None).await;
            if answer.body["logs"].as_array().unwrap().len() == 2 {
                return answer.body;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    let logs = tokio::time::timeout(std::time::Duration::from_secs(60), logs).await.unwrap();
    insta::assert_snapshot!(format!("{logs:#}"));
    let newest = front.call(As::Admin, &format!("{line}?limit=1"), None).await;
    assert_eq!(newest.body["logs"][0]["host"], "b.example");
}
