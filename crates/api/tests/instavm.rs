//! Every route of the InstaVM dialect: success, bad input, another tenant, no credential. Each
//! snapshot is a transcript of requests and answers.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use std::time::Duration;

use front::{
    As, Front,
    instavm::{create, get},
};
use serde_json::{Value, json};
use skerry_control::{
    internal_api::NodeError,
    sim_node::{Point, SimCommand},
    testing::{self, KEY},
};
use skerry_model::{Pool, Range, State};

#[tokio::test]
async fn a_vm_is_created_shown_listed_and_deleted() {
    let mut front = Front::open().await;
    let (vm, session) = create(&mut front, json!({})).await;
    front.test.clock.advance(Duration::from_secs(30));
    get(&mut front, &format!("/v1/vms/{vm}")).await;
    get(&mut front, "/v1/vms").await;
    get(&mut front, "/v1/vms/").await;
    get(&mut front, &format!("/v1/sessions/session/{session}")).await;
    get(&mut front, &format!("/v1/sessions/status/{session}")).await;
    front.call(As::Admin, &format!("DELETE /v1/vms/{vm}"), None).await;
    front.call(As::Admin, &format!("DELETE /v1/vms/{vm}"), None).await;
    get(&mut front, "/v1/vms/").await;
    get(&mut front, &format!("/v1/sessions/session/{session}")).await;
    get(&mut front, &format!("/v1/sessions/status/{session}")).await;
    assert!(front.test.node.vms().is_empty());
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn ids_are_what_the_client_tells_apart() {
    let mut front = Front::open().await;
    let (vm, session) = create(&mut front, json!({})).await;
    assert!(uuid::Uuid::try_parse(&session).is_ok(), "{session}");
    assert!(uuid::Uuid::try_parse(&vm).is_err(), "{vm}");
}

#[tokio::test]
async fn every_field_that_can_be_honoured_is() {
    let mut front = Front::open().await;
    let body = json!({
        "session_id": null, "vm_lifetime_seconds": 120, "memory_mb": 1024, "vcpu_count": 1,
        "metadata": { "team": "red", "n": 1 }, "env": { "B": "2" }, "snapshot_id": null,
        "egress_policy": {
            "allow_http": false, "allow_https": false, "allow_package_managers": false,
            "allowed_domains": [], "allowed_cidrs": [],
        },
        "snapshot_on_terminate": true, "snapshot_name": "last", "share": null,
        "custom_domain": null, "image_variant": "standard", "volumes": [], "vault_ids": [],
        "auto_suspend": true, "auto_resume": true, "some_future_key": { "ignored": true },
    });
    let (vm, session) = create(&mut front, body).await;
    front.test.clock.advance(Duration::from_secs(20));
    get(&mut front, &format!("/v1/vms/{vm}")).await;
    get(&mut front, &format!("/v1/sessions/status/{session}")).await;
    let id = skerry_api::ids::parse_workspace_id(&vm).expect("an id");
    let spec = front.test.node.spec(id).expect("a VM");
    assert_eq!(spec.env.len(), 1);
    assert_eq!((spec.env[0].key.as_str(), spec.env[0].value.as_str()), ("B", "2"));
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_create_that_does_not_wait_shows_creating_until_the_machine_runs() {
    let mut front = Front::open().await;
    front.test.node.hang(Point::EnsureRunning);
    let body = Some(json!({ "env": { "A": "1" } }));
    let answer = front.call(As::Admin, "POST /v1/vms?wait=false", body).await.body;
    let (vm, session) = (answer["vm_id"].as_str(), answer["session_id"].as_str());
    let (vm, session) = (vm.expect("an id").to_owned(), session.expect("an id").to_owned());
    front.until(&vm, |workspace| workspace.state == State::Starting).await;
    get(&mut front, &format!("/v1/vms/{vm}")).await;
    get(&mut front, &format!("/v1/sessions/status/{session}")).await;
    front.test.node.release(Point::EnsureRunning);
    front.settled(&vm).await;
    get(&mut front, &format!("/v1/sessions/status/{session}")).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_vm_that_does_not_come_up_is_an_error_and_leaves_nothing() {
    let mut front = Front::open().await;
    front.test.node.fail_next(Point::EnsureRunning, NodeError::Step { step: "boot" });
    front.call(As::Admin, "POST /v1/vms", Some(json!({}))).await;
    let caller = front.test.caller().await;
    let all = skerry_control::ListWorkspaces::default();
    let gone = async {
        while front.test.control.list_workspaces(&caller, &all).await.expect("a list").total > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("gone in time");
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_create_whose_vm_is_deleted_meanwhile_is_a_conflict() {
    let mut front = Front::open().await;
    front.test.node.hang(Point::EnsureRunning);
    let creating = front.beside(As::Admin, "POST /v1/vms", Some(json!({})));
    let deleting = async {
        let vm = loop {
            let listed = front.beside(As::Admin, "GET /v1/vms", None).await.body;
            if let Some(vm) = listed[0]["vm_id"].as_str() {
                break vm.to_owned();
            }
            tokio::task::yield_now().await;
        };
        front.until(&vm, |workspace| workspace.state == State::Starting).await;
        front.beside(As::Admin, &format!("DELETE /v1/vms/{vm}"), None).await
    };
    let (created, deleted) = tokio::join!(creating, deleting);
    assert_eq!((created.status.as_u16(), deleted.status.as_u16()), (409, 200));
    assert_eq!(created.body, json!({ "detail": "VM was deleted while it was being created" }));
    assert_eq!(get(&mut front, "/v1/vms/").await, json!([]));
    assert!(front.test.node.vms().is_empty());
}

#[tokio::test]
async fn a_session_is_created_with_the_key_in_the_body() {
    let mut front = Front::open().await;
    let body = json!({
        "api_key": KEY, "vm_lifetime_seconds": 300, "memory_mb": 512, "vcpu_count": 2,
        "metadata": { "purpose": "test" }, "env": { "A": "1" }, "prewarm": true,
    });
    let answer = front.call(As::Nobody, "POST /v1/sessions/session", Some(body)).await;
    assert_eq!(answer.status, 200);
    let session = answer.body["session_id"].as_str().expect("an id").to_owned();
    front.settled(&session).await;
    get(&mut front, &format!("/v1/sessions/session/{session}")).await;
    get(&mut front, &format!("/v1/sessions/status/{session}")).await;
    let body = Some(json!({ "api_key": KEY, "session_id": session }));
    front.call(As::Nobody, "POST /kill", body.clone()).await;
    front.call(As::Nobody, "POST /kill", body).await;
    get(&mut front, &format!("/v1/sessions/status/{session}")).await;
    let wrong = json!({ "api_key": "sk_of_nobody" });
    front.call(As::Nobody, "POST /v1/sessions/session", Some(wrong)).await;
    front.call_on("localhost", As::Nobody, "POST /v1/sessions/session", Some("{nonsense")).await;
    let transcript = front.transcript().replace(KEY, "(the key)");
    insta::assert_snapshot!(transcript);
}

#[tokio::test]
async fn a_session_lives_five_minutes_unless_it_says_otherwise() {
    let mut front = Front::open().await;
    let path = "POST /v1/sessions/session";
    let plain = front.call(As::Admin, path, Some(json!({}))).await.body;
    assert_eq!(plain["vm_lifetime_seconds"], 300);
    let short = json!({ "vm_lifetime_seconds": 19 });
    assert_eq!(front.call(As::Admin, path, Some(short)).await.status, 422);
    let long = front.call(As::Admin, path, Some(json!({ "vm_lifetime_seconds": 86_401 }))).await;
    assert_eq!(long.status, 403);
    assert_eq!(long.body["detail"], "VM lifetime cannot exceed 86400s");
}

#[tokio::test]
async fn a_vm_is_attached_only_to_a_session_without_one() {
    let mut front = Front::open().await;
    let (vm, session) = create(&mut front, json!({})).await;
    let attach = |session: &str| Some(json!({ "session_id": session, "memory_mb": 1024 }));
    front.call(As::Admin, "POST /v1/vms", attach(&session)).await;
    front.call(As::Admin, "POST /v1/vms", attach("00000000-0000-4000-8000-000000000000")).await;
    front.call(As::Admin, "POST /v1/vms", attach("no-uuid")).await;
    front.call(As::Other, "POST /v1/vms", attach(&session)).await;
    let caller = front.test.caller().await;
    let which = skerry_api::ids::parse_workspace_ref(&vm);
    let wait = skerry_control::Wait::UpTo(Duration::from_secs(10));
    front.test.control.stop_workspace(&caller, &which, wait).await.expect("stopped");
    get(&mut front, &format!("/v1/sessions/status/{session}")).await;
    get(&mut front, "/v1/vms").await;
    front.call(As::Admin, "POST /v1/vms", attach(&session)).await;
    let record = get(&mut front, &format!("/v1/vms/{vm}")).await;
    assert_eq!((&record["memory_mb"], &record["status"]), (&json!(1024), &json!("active")));
    let other = json!({ "session_id": session, "image_variant": "nix-dev" });
    front.call(As::Admin, "POST /v1/vms", Some(other)).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn bad_values_are_reported_field_by_field_and_make_nothing() {
    let mut front = Front::open().await;
    let mut text = String::new();
    for (line, body) in [
        ("POST /v1/vms", "{"),
        ("POST /v1/vms", ""),
        ("POST /v1/vms", "[]"),
        ("POST /v1/vms", r#"{"memory_mb":"big","vcpu_count":0,"metadata":[],"env":{"A":1}}"#),
        ("POST /v1/vms", r#"{"memory_mb":8193,"vcpu_count":9,"vm_lifetime_seconds":0}"#),
        ("POST /v1/vms", r#"{"memory_mb":127.5}"#),
        ("POST /v1/vms", r#"{"session_id":5,"env":"A=1","snapshot_on_terminate":"maybe"}"#),
        ("POST /v1/vms", r#"{"share":1,"custom_domain":[],"volumes":{},"vault_ids":"v"}"#),
        ("POST /v1/vms", r#"{"env":{"1A":"x"}}"#),
        ("POST /v1/vms", r#"{"image_variant":"computer-use"}"#),
        ("POST /v1/vms", r#"{"vm_lifetime_seconds":99999999}"#),
        ("POST /v1/vms", r#"{"egress_policy":{"allow_https":true}}"#),
        ("POST /v1/vms", r#"{"egress_policy":{"allowed_domains":["a.example"]}}"#),
        ("POST /v1/vms", r#"{"custom_domain":{"domain":"a.example"}}"#),
        ("POST /v1/vms", r#"{"volumes":[{"name":"v","mount_path":"/data"}]}"#),
        ("POST /v1/vms", r#"{"vault_ids":["vlt_1"]}"#),
        ("POST /v1/vms?wait=perhaps", "{}"),
        ("POST /kill", "{}"),
        ("POST /kill", r#"{"session_id":"nonsense"}"#),
        ("POST /execute", "{}"),
        ("POST /execute", r#"{"command":"x","session_id":"s","timeout":601,"language":"perl"}"#),
        ("POST /execute", r#"{"command":"x","session_id":"s"}"#),
        ("POST /execute_async", r#"{"command":"x","session_id":"s","timeout":0}"#),
        ("POST /upload", r#"{"file":"x"}"#),
        ("POST /download", "filename=a%00b"),
        ("POST /execute", r#"{"command":"x","session_id":"s","language":"bash"}"#),
    ] {
        let answer = front.call_on("localhost", As::Admin, line, Some(body)).await;
        text.push_str(&format!("{line} {body}\n  {}", answer.status.as_u16()));
        match answer.body["detail"].as_array() {
            None => text.push_str(&format!(" {}\n", answer.body["detail"])),
            Some(errors) => {
                text.push('\n');
                for error in errors {
                    text.push_str(&format!("    {error}\n"));
                }
            }
        }
    }
    assert!(front.test.node.calls().is_empty(), "no machine was asked for");
    assert_eq!(get(&mut front, "/v1/vms/").await, json!([]));
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn limits_of_the_plan_are_403_with_words_the_deploy_tool_reads() {
    let mut config = testing::config();
    config.plan.max_workspaces = 3;
    config.plan.memory_mib = Range { min: 128, max: 4096, default: 512 };
    config.plan.owned_pool = Pool { vcpu_count: 6, memory_mib: 65_536, disk_mib: 65_536 };
    config.plan.running_pool = Pool { vcpu_count: 3, memory_mib: 65_536, disk_mib: 65_536 };
    let mut front = Front::open_with(config).await;
    let mut text = String::new();
    for body in [
        json!({ "memory_mb": 8192 }),
        json!({ "vcpu_count": 3 }),
        json!({ "vcpu_count": 4 }),
        json!({ "vcpu_count": 1 }),
    ] {
        let answer = front.call(As::Admin, "POST /v1/vms", Some(body.clone())).await;
        text.push_str(&format!("{body}\n  {} {}\n", answer.status.as_u16(), answer.body["detail"]));
    }
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn labels_can_be_changed_at_any_time_and_memory_of_a_stopped_vm() {
    let mut front = Front::open().await;
    let (vm, _) = create(&mut front, json!({})).await;
    let path = format!("PATCH /v1/vms/{vm}");
    let mut text = String::new();
    let bodies = [
        json!({ "metadata": { "a": 1 } }),
        json!({ "memory_mb": 1024 }),
        json!({ "memory_mb": 513 }),
        json!({ "memory_mb": 64 }),
        json!({ "metadata": 5 }),
        json!({ "vault_ids": ["v"] }),
        json!({ "unknown": true }),
    ];
    for body in bodies {
        let answer = front.call(As::Admin, &path, Some(body.clone())).await;
        text.push_str(&format!("{body}\n  {} {}\n", answer.status.as_u16(), answer.body));
    }
    let caller = front.test.caller().await;
    let which = skerry_api::ids::parse_workspace_ref(&vm);
    let wait = skerry_control::Wait::UpTo(Duration::from_secs(10));
    front.test.control.stop_workspace(&caller, &which, wait).await.expect("stopped");
    let answer = front.call(As::Admin, &path, Some(json!({ "memory_mb": 1024 }))).await;
    assert_eq!(answer.body["memory_mb"], 1024);
    insta::assert_snapshot!(text);
}

/// Runs a command and leaves out the time it took.
async fn execute(front: &mut Front, session: &str, command: &str, timeout: u64) -> Value {
    let body = json!({
        "command": command, "session_id": session, "language": "bash", "timeout": timeout,
    });
    let mut answer = front.call(As::Admin, "POST /execute", Some(body)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.body["execution_time"].as_f64().is_some_and(|seconds| seconds >= 0.0));
    answer.body["execution_time"] = json!("(seconds)");
    answer.body["session_id"] = json!("(session)");
    answer.body
}

#[tokio::test]
async fn bash_runs_with_output_exit_code_and_the_environment_of_the_session() {
    let mut front = Front::open().await;
    let (_, session) = create(&mut front, json!({ "env": { "A": "1" } })).await;
    let mut results = Vec::new();
    for command in ["echo hi; exit 3", "env", "echo bad >&2; false"] {
        results.push(execute(&mut front, &session, command, 60).await);
    }
    insta::assert_json_snapshot!(results);
}

#[tokio::test]
async fn a_session_whose_vm_was_stopped_gets_one_by_executing() {
    let mut front = Front::open().await;
    let (vm, session) = create(&mut front, json!({})).await;
    let caller = front.test.caller().await;
    let which = skerry_api::ids::parse_workspace_ref(&vm);
    let wait = skerry_control::Wait::UpTo(Duration::from_secs(10));
    front.test.control.stop_workspace(&caller, &which, wait).await.expect("stopped");
    let result = execute(&mut front, &session, "echo back", 60).await;
    assert_eq!((&result["stdout"], &result["exit_code"]), (&json!("back\n"), &json!(0)));
    let body = json!({ "command": "x", "session_id": session, "language": "bash" });
    assert_eq!(front.call(As::Other, "POST /execute", Some(body)).await.status, 404);
}

#[tokio::test]
async fn code_of_no_said_language_goes_to_the_sessions_kernel_and_is_given_all_of_its_time() {
    let mut front = Front::open().await;
    let (_, session) = create(&mut front, json!({})).await;
    let body = |language: Value| {
        Some(json!({ "code": "x = 41\nx + 1", "session_id": session, "language": language }))
    };
    // This guest has no Python.
    let answer = front.call(As::Admin, "POST /execute", body(json!("python"))).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["detail"]),
        (501, &json!("the VM's image has no python3; send language \"bash\""),)
    );
    let answered = SimCommand { stdout: b"42\n".to_vec(), stderr: b"!".to_vec(), code: 3 };
    front.guest(&session).program("python3", answered);
    for language in [json!("python"), json!(null)] {
        let answer = front.call(As::Admin, "POST /execute", body(language)).await.body;
        assert_eq!((&answer["stdout"], &answer["stderr"]), (&json!("42\n"), &json!("!")));
        assert_eq!(answer["exit_code"], 3);
    }
}

#[tokio::test]
async fn what_runs_without_its_caller_is_found_by_the_account_until_it_has_ended_and_after() {
    let mut front = Front::open().await;
    let (_, session) = create(&mut front, json!({})).await;
    let body = json!({ "command": "echo hi; exit 3", "session_id": session, "language": "bash" });
    let begun = front.call(As::Admin, "POST /execute_async", Some(body.clone())).await.body;
    assert_eq!((&begun["status"], &begun["session_id"]), (&json!("running"), &json!(session)));
    let task = begun["task_id"].as_str().expect("an id").to_owned();
    let line = format!("GET /v1/executions/{task}");
    let ended = async {
        loop {
            let record = front.beside(As::Admin, &line, None).await.body;
            if record["is_complete"] == json!(true) {
                return record;
            }
            tokio::task::yield_now().await;
        }
    };
    let record = tokio::time::timeout(Duration::from_secs(60), ended).await.expect("an end");
    assert_eq!(
        (&record["serialized_stdout"], &record["serialized_stderr"]),
        (&json!("hi\n"), &json!(""))
    );
    assert_eq!((&record["exit_code"], &record["status"]), (&json!(3), &json!("completed")));
    assert!(record["execution_time"].as_f64().is_some_and(|seconds| seconds >= 0.0));
    let listed = get(&mut front, "/v1/executions/").await;
    assert_eq!((&listed[0]["task_id"], listed.as_array().map(Vec::len)), (&json!(task), Some(1)));
    assert_eq!(listed[0]["serialized_stdout"], json!(null));
    assert_eq!(front.call(As::Other, &line, None).await.status, 404);
    assert_eq!(front.call(As::Other, "GET /v1/executions/", None).await.body, json!([]));
    assert_eq!(front.call(As::Other, "POST /execute_async", Some(body)).await.status, 404);
}

#[tokio::test]
async fn the_account_is_shown() {
    let mut front = Front::open().await;
    get(&mut front, "/v1/users/me").await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn keys_are_added_listed_and_removed_by_whole_numbers() {
    const KEY_LINE: &str = "ssh-ed25519 \
        AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAmwHBWfYXtYs4ZUu6kd2aXYuQxTJ2lzGWnNNPM ada@laptop";
    let mut front = Front::open().await;
    let body = Some(json!({ "public_key": KEY_LINE }));
    let added = front.call(As::Admin, "POST /v1/ssh-keys", body.clone()).await;
    assert_eq!(added.status, 200, "{}", added.body);
    let id = added.body["id"].as_u64().expect("a whole number");
    assert!(id < 1 << 53 && added.body["comment"] == "ada@laptop");
    assert!(added.body["fingerprint"].as_str().is_some_and(|text| text.starts_with("SHA256:")));
    assert_eq!(get(&mut front, "/v1/ssh-keys").await, json!({ "keys": [added.body] }));
    assert_eq!(front.call(As::Admin, "POST /v1/ssh-keys", body).await.status, 409);
    let wrong = Some(json!({ "public_key": "ssh-ed25519 AAAA" }));
    assert_eq!(front.call(As::Admin, "POST /v1/ssh-keys", wrong).await.status, 422);
    let line = format!("DELETE /v1/ssh-keys/{id}");
    assert_eq!(front.call(As::Other, &line, None).await.status, 404);
    assert_eq!(front.call(As::Admin, &line, None).await.body, json!({ "status": "deleted" }));
    assert_eq!(front.call(As::Admin, &line, None).await.status, 404);
    assert_eq!(get(&mut front, "/v1/ssh-keys").await, json!({ "keys": [] }));

    let body = Some(json!({ "description": "for ci" }));
    let made = front.call(As::Admin, "POST /v1/api-keys/", body).await.body;
    let (id, key) = (made["id"].as_u64().expect("a number"), made["key"].as_str().expect("a key"));
    assert!(
        made["description"] == "for ci"
            && key.ends_with(made["key_hint"].as_str().expect("a hint"))
    );
    let shown = get(&mut front, &format!("/v1/api-keys/{id}")).await;
    assert_eq!((&shown["description"], &shown["key"]), (&json!("for ci"), &json!(null)));
    assert_eq!(get(&mut front, "/v1/api-keys/").await.as_array().map(Vec::len), Some(2));
    let line = format!("DELETE /v1/api-keys/{id}");
    assert_eq!(front.call(As::Other, &line, None).await.status, 404);
    assert_eq!(front.call(As::Admin, &line, None).await.status, 200);
    assert_eq!(front.call(As::Admin, &line, None).await.status, 404);
}

#[tokio::test]
async fn sandboxes_are_found_by_what_their_metadata_contains() {
    let mut front = Front::open().await;
    let metadata = json!({ "team": "red", "tags": ["a", "b"], "at": { "x": 1, "y": 2 } });
    let (_, session) = create(&mut front, json!({ "metadata": metadata })).await;
    create(&mut front, json!({ "metadata": { "team": "blue" } })).await;
    for (query, found) in [
        ("", 2),
        ("?limit=1", 1),
        ("?metadata=%7B%22team%22%3A%22red%22%7D", 1),
        ("?metadata=%7B%22tags%22%3A%5B%22b%22%5D%2C%22at%22%3A%7B%22y%22%3A2%7D%7D", 1),
        ("?metadata=%7B%22team%22%3A%22green%22%7D", 0),
    ] {
        let listed = get(&mut front, &format!("/v1/sessions/sandboxes{query}")).await;
        assert_eq!(listed.as_array().map(Vec::len), Some(found), "{query}");
    }
    let listed =
        get(&mut front, "/v1/sessions/sandboxes?metadata=%7B%22team%22%3A%22red%22%7D").await;
    assert_eq!(
        (&listed[0]["sandbox_id"], &listed[0]["status"]),
        (&json!(session), &json!("active"))
    );
    for wrong in ["?limit=0", "?limit=x", "?metadata=5", "?metadata=%7B"] {
        let line = format!("GET /v1/sessions/sandboxes{wrong}");
        assert_eq!(front.call(As::Admin, &line, None).await.status, 422, "{wrong}");
    }
    assert_eq!(front.call(As::Other, "GET /v1/sessions/sandboxes", None).await.body, json!([]));
}

/// Every route, as method and path.
const ROUTES: [&str; 36] = [
    "POST /v1/vms",
    "GET /v1/vms",
    "GET /v1/vms/",
    "GET /v1/vms/{vm}",
    "PATCH /v1/vms/{vm}",
    "DELETE /v1/vms/{vm}",
    "POST /v1/vms/{vm}/suspend",
    "POST /v1/vms/{vm}/resume",
    "POST /v1/vms/{vm}/clone",
    "POST /v1/vms/{vm}/snapshot",
    "GET /v1/snapshots",
    "POST /v1/snapshots",
    "GET /v1/snapshots/{vm}",
    "DELETE /v1/snapshots/{vm}",
    "POST /v1/sessions/session",
    "GET /v1/sessions/session/{session}",
    "GET /v1/sessions/status/{session}",
    "POST /kill",
    "POST /execute",
    "POST /execute_async",
    "GET /v1/executions/",
    "GET /v1/executions/{vm}",
    "GET /v1/sessions/usage/{session}",
    "GET /v1/sessions/sandboxes",
    "POST /v1/vms/{vm}/stage-env",
    "GET /v1/vms/{vm}/pty/sessions",
    "POST /v1/sessions/{session}/pty/sessions",
    "GET /v1/sessions/{session}/pty/sessions/one",
    "DELETE /v1/sessions/{session}/pty/sessions/one",
    "POST /v1/sessions/{session}/pty/sessions/one/resize",
    "GET /v1/sessions/{session}/pty/one/connect",
    "DELETE /v1/ssh-keys/1",
    "GET /v1/api-keys/",
    "POST /v1/api-keys/",
    "GET /v1/api-keys/1",
    "DELETE /v1/api-keys/1",
];

#[tokio::test]
async fn without_a_good_credential_every_route_answers_401() {
    let mut front = Front::open().await;
    let (vm, session) = create(&mut front, json!({})).await;
    for caller in [As::Nobody, As::Stranger] {
        let account = ["GET /v1/users/me", "GET /v1/ssh-keys", "POST /v1/ssh-keys"];
        for route in ROUTES.iter().chain(&account).chain(&["GET /v1/volumes", "POST /upload"]) {
            let line = route.replace("{vm}", &vm).replace("{session}", &session);
            let body = line.starts_with("PO").then(|| json!({ "session_id": session }));
            let answer = front.call(caller, &line, body).await;
            assert_eq!(answer.status, 401, "{line}");
            assert_eq!(answer.body, json!({ "detail": "Invalid API key" }), "{line}");
        }
    }
}

#[tokio::test]
async fn another_account_finds_nothing_of_mine() {
    let mut front = Front::open().await;
    let (vm, session) = create(&mut front, json!({})).await;
    for route in ["GET /v1/vms/{vm}", "DELETE /v1/vms/{vm}", "GET /v1/sessions/session/{session}"] {
        let line = route.replace("{vm}", &vm).replace("{session}", &session);
        assert_eq!(front.call(As::Other, &line, None).await.status, 404, "{line}");
    }
    let body = Some(json!({ "metadata": {} }));
    let line = format!("PATCH /v1/vms/{vm}");
    assert_eq!(front.call(As::Other, &line, body).await.status, 404);
    let body = Some(json!({ "session_id": session }));
    assert_eq!(front.call(As::Other, "POST /kill", body).await.status, 404);
    let line = format!("GET /v1/sessions/status/{session}");
    assert_eq!(front.call(As::Other, &line, None).await.body["exists"], json!(false));
    for list in ["GET /v1/vms", "GET /v1/vms/"] {
        assert_eq!(front.call(As::Other, list, None).await.body, json!([]));
    }
    assert_eq!(get(&mut front, &format!("/v1/vms/{vm}")).await["status"], "active");
}

#[tokio::test]
async fn what_is_not_there_is_told_from_what_is_not_served() {
    let mut front = Front::open().await;
    for line in [
        "GET /v1/vms/vm_none",
        "PUT /v1/vms",
        "POST /v1/vms/",
        "POST /v1/vms/vm_none/suspend",
        "GET /v1/vms/vm_none/stage-env",
        "GET /v1/vms/vm_none/suspend",
        "GET /v1/volumes/1/files",
        "GET /v1/tapes",
        "GET /execute_async",
        "GET /v1/executions/exec_0_1",
        "GET /v1/nonsense",
        "GET /execute",
    ] {
        front.call(As::Admin, line, None).await;
    }
    insta::assert_snapshot!(front.transcript());
}
