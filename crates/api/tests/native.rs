//! Every route of the native API: success, bad input, another tenant, no credential. Most snapshots are
//! transcripts of requests and answers.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use axum::{Router, body::Body};
use front::{As, Front};
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use skerry_api::{ApiConfig, ApiState};
use skerry_control::{
    internal_api::{ListeningPort, NodeError},
    sim_node::Point,
    testing::{self, KEY, TestControl},
};
use skerry_model::Pool;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

const BASE: &str = "/skerry/v1";

/// A workspace that runs.
async fn running(front: &mut Front, name: &str) -> String {
    let body = json!({ "name": name, "slug": format!("{name}-slug") });
    let answer =
        front.call(As::Admin, &format!("POST {BASE}/workspaces?wait=60"), Some(body)).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(answer.body["state"], "running");
    answer.body["id"].as_str().expect("an id").to_owned()
}

/// The same routes on the same control plane, for bodies that are not JSON.
fn routes(test: &TestControl) -> Router {
    let config = ApiConfig {
        public_url: "http://localhost:7070".to_owned(),
        base_domain: "localhost".to_owned(),
        preview_domain: "localhost".to_owned(),
        version: "0.0.0-test",
    };
    skerry_api::router(ApiState::new(test.control.clone(), config, CancellationToken::new()))
}

async fn raw(front: &Front, method: &str, path: &str, body: impl Into<Body>) -> Response<Body> {
    let request = Request::builder()
        .method(method)
        .uri(format!("{BASE}{path}"))
        .header(header::HOST, "localhost")
        .header("x-api-key", KEY)
        .body(body.into())
        .expect("a request");
    routes(&front.test).oneshot(request).await.expect("infallible")
}

async fn bytes(response: Response<Body>) -> Vec<u8> {
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body().collect().await.expect("a body").to_bytes().to_vec()
}

async fn error(response: Response<Body>) -> (StatusCode, Value) {
    let status = response.status();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (status, serde_json::from_slice(&body).expect("JSON"))
}

#[test]
fn the_openapi_document_describes_every_route() {
    let mut document = skerry_api::dialects::native::openapi();
    document.info.version = "[version]".to_owned();
    insta::assert_json_snapshot!(document);
}

#[test]
fn no_two_operations_of_the_openapi_document_share_a_name() {
    let document = serde_json::to_value(skerry_api::dialects::native::openapi()).expect("JSON");
    let paths = document["paths"].as_object().expect("paths").values();
    let operations = paths.flat_map(|path| path.as_object().expect("a path").values());
    let mut names: Vec<&str> = operations.filter_map(|op| op["operationId"].as_str()).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[tokio::test]
async fn the_openapi_document_is_served_to_everybody() {
    let mut front = Front::open().await;
    let answer = front.call(As::Nobody, &format!("GET {BASE}/openapi.json"), None).await;
    assert_eq!(answer.status, StatusCode::OK);
    let document = serde_json::to_value(skerry_api::dialects::native::openapi()).expect("JSON");
    assert_eq!(answer.body, document);
}

#[tokio::test]
async fn a_workspace_is_made_shown_changed_stopped_started_and_deleted() {
    let mut front = Front::open().await;
    let id = running(&mut front, "first").await;
    let one = format!("{BASE}/workspaces/{id}");
    front.call(As::Admin, &format!("POST {one}/stop?wait=60"), None).await;
    let change = json!({ "name": "renamed", "memory_mib": 1024, "env": { "A": "secret value" } });
    front.call(As::Admin, &format!("PATCH {one}"), Some(change)).await;
    front.call(As::Admin, &format!("POST {one}/start?wait=60"), None).await;
    front.call(As::Admin, &format!("POST {one}/restart?wait=60"), None).await;
    front.call(As::Admin, &format!("GET {one}"), None).await;
    front.call(As::Admin, &format!("DELETE {one}?wait=60"), None).await;
    front.call(As::Admin, &format!("GET {one}"), None).await;
    let mut answers = front.transcript().lines().filter(|line| !line.starts_with('>'));
    assert!(!answers.any(|line| line.contains("secret value")), "env values are write-only");
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn create_takes_every_field() {
    let mut front = Front::open().await;
    let projects = front.call(As::Admin, &format!("GET {BASE}/projects"), None).await;
    let project = projects.body["projects"][0]["id"].clone();
    let body = json!({
        "name": "Everything!", "slug": "every-thing", "project_id": project,
        "namespace": "team-a", "image": "node-20", "vcpu_count": 2, "memory_mib": 768,
        "disk_mib": 2048, "cpu_kind": "performance", "env": { "B": "2", "A": "1" },
        "lifetime": "temporary", "expiry": { "after_seconds": 3600, "action": "stop" },
        "keep_active": true, "log_retention": "this_start", "metadata": { "k": [1, null] },
        "start": false,
    });
    front.call(As::Admin, &format!("POST {BASE}/workspaces"), Some(body)).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn bad_fields_are_named_with_what_is_allowed_and_change_nothing() {
    let mut front = Front::open().await;
    let create = format!("POST {BASE}/workspaces");
    for body in [
        json!({ "name": "" }),
        json!({ "name": "a", "slug": "-" }),
        json!({ "name": "a", "image": "plan9" }),
        json!({ "name": "a", "vcpu_count": 0 }),
        json!({ "name": "a", "memory_mib": 1 }),
        json!({ "name": "a", "env": { "1": "x" } }),
        json!({ "name": "a", "expiry": { "after_seconds": 0, "action": "stop" } }),
        json!({ "name": "a", "project_id": "x" }),
        json!({ "name": "a", "memory": 512 }),
        json!({ "name": "a", "vcpu_count": "two" }),
        json!({ "name": "a", "expiry": { "after_seconds": 5, "action": "explode" } }),
    ] {
        front.call(As::Admin, &create, Some(body)).await;
    }
    front.call_on("localhost", As::Admin, &create, Some("{")).await;
    front.call(As::Admin, &format!("{create}?wait=601"), Some(json!({ "name": "a" }))).await;
    front.call(As::Admin, &format!("{create}?wait=x"), Some(json!({ "name": "a" }))).await;
    front.call(As::Admin, &format!("GET {BASE}/workspaces?state=flying"), None).await;
    front.call(As::Admin, &format!("GET {BASE}/workspaces?limit=0"), None).await;
    front.call(As::Admin, &format!("GET {BASE}/workspaces?page=2"), None).await;
    let list = front.call(As::Admin, &format!("GET {BASE}/workspaces"), None).await;
    assert_eq!(list.body["total"], 0);
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn limits_of_the_plan_are_refused_with_their_numbers() {
    let mut config = testing::config();
    let pool = Pool { vcpu_count: 2, memory_mib: 1024, disk_mib: 4096 };
    config.plan = skerry_model::Plan::self_hosted(2, pool, pool);
    let mut front = Front::open_with(config).await;
    let create = format!("POST {BASE}/workspaces");
    let small = json!({ "name": "small", "start": false });
    front.call(As::Admin, &create, Some(json!({ "name": "big", "vcpu_count": 64 }))).await;
    front.call(As::Admin, &create, Some(json!({ "name": "big", "memory_mib": 2048 }))).await;
    front.call(As::Admin, &create, Some(small.clone())).await;
    front.call(As::Admin, &create, Some(small.clone())).await;
    front.call(As::Admin, &create, Some(small)).await;
    front.call(As::Admin, &format!("GET {BASE}/quota"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_start_that_fails_shows_in_the_workspace() {
    let mut front = Front::open().await;
    front.test.node.fail_next(Point::EnsureRunning, NodeError::NoCapacity("memory".to_owned()));
    let body = json!({ "name": "unlucky" });
    front.call(As::Admin, &format!("POST {BASE}/workspaces?wait=60"), Some(body)).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_workspace_is_found_by_slug_name_and_every_form_of_its_id() {
    let mut front = Front::open().await;
    let id = running(&mut front, "found").await;
    let path = |reference: &str| format!("GET {BASE}/workspaces/{reference}");
    let shown = front.call(As::Admin, &path(&id), None).await;
    let ids = shown.body["ids"].as_object().expect("ids").values();
    let mut references: Vec<String> = ids.map(|id| id.as_str().expect("text").to_owned()).collect();
    references.extend(["found-slug".to_owned(), "found".to_owned()]);
    for reference in references {
        let answer = front.call(As::Admin, &path(&reference), None).await;
        assert_eq!(answer.body["id"], *id, "{reference}");
    }
    let twin = json!({ "name": "found", "start": false });
    front.call(As::Admin, &format!("POST {BASE}/workspaces"), Some(twin)).await;
    let answer = front.call(As::Admin, &path("found"), None).await;
    assert_eq!(
        (answer.status, &answer.body["error"]["code"]),
        (StatusCode::CONFLICT, &json!("conflict"))
    );
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let mut front = Front::open().await;
    for (name, start) in [("one", true), ("two", false), ("three", false)] {
        let body = json!({ "name": name, "namespace": name, "start": start });
        front.call(As::Admin, &format!("POST {BASE}/workspaces?wait=60"), Some(body)).await;
    }
    let mut names = async |query: &str| {
        let answer = front.call(As::Admin, &format!("GET {BASE}/workspaces{query}"), None).await;
        let list = answer.body["workspaces"].as_array().expect("a list").clone();
        let names: Vec<_> =
            list.iter().map(|item| item["name"].as_str().expect("a name").to_owned()).collect();
        (names.join(" "), answer.body["total"].as_u64().expect("a number"))
    };
    assert_eq!(names("").await, ("three two one".to_owned(), 3));
    assert_eq!(names("?limit=1&offset=1").await, ("two".to_owned(), 3));
    assert_eq!(names("?state=running").await, ("one".to_owned(), 1));
    assert_eq!(names("?state=running,provisioned&limit=1").await, ("three".to_owned(), 3));
    assert_eq!(names("?namespace=two").await, ("two".to_owned(), 1));
    assert_eq!(names("?lifetime=temporary").await, (String::new(), 0));
}

#[tokio::test]
async fn no_route_answers_without_a_credential_or_to_another_tenant() {
    let mut front = Front::open().await;
    let id = running(&mut front, "mine").await;
    let document = serde_json::to_value(skerry_api::dialects::native::openapi()).expect("JSON");
    let mut checked = 0;
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in ["get", "post", "put", "patch", "delete"] {
            if methods.get(method).is_none() {
                continue;
            }
            let path = path.replace("{workspace}", &id).replace("{port}", "3000");
            let line = format!("{} {path}", method.to_uppercase());
            for caller in [As::Nobody, As::Stranger] {
                let answer = front.call(caller, &line, None).await;
                assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{line}");
                assert_eq!(answer.body["error"]["code"], "unauthenticated", "{line}");
            }
            checked += 1;
            if !path.contains(&id) || path.ends_with("/exec/stream") {
                continue;
            }
            let query = "?path=/tmp/x";
            let line = if path.contains("/files") { format!("{line}{query}") } else { line };
            let body = json!({
                "argv": ["true"], "path": "/tmp/x", "from": "/tmp/x", "to": "/tmp/y",
            });
            let body = match (method, path.rsplit('/').next()) {
                ("post", Some("exec")) => Some(json!({ "argv": body["argv"] })),
                ("post", Some("mkdir")) => Some(json!({ "path": body["path"] })),
                ("post", Some("rename")) => Some(json!({ "from": "/a", "to": "/b" })),
                ("post", Some("restore")) => Some(json!({ "snapshot": "x" })),
                ("put", Some("network")) => Some(json!({})),
                ("put", Some("password")) => Some(json!({ "password": "long enough" })),
                ("post", Some("workloads")) => Some(json!({ "command": ["x"] })),
                ("post", Some("published-ports")) => Some(json!({ "port": 3000 })),
                ("post", Some("volumes")) => Some(json!({ "volume": "x", "mount_path": "/x" })),
                ("patch", _) | ("post", Some("snapshots" | "fork" | "renew")) => Some(json!({})),
                _ => None,
            };
            let answer = front.call(As::Other, &line, body).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{line}: {}", answer.body);
            let missing = if path.ends_with("/restore") { "snapshot" } else { "workspace" };
            assert_eq!(answer.body["error"]["message"], format!("{missing} not found"), "{line}");
        }
    }
    assert!(checked > 25, "only {checked} routes");
}

#[tokio::test]
async fn a_command_runs_to_its_end() {
    let mut front = Front::open().await;
    let id = running(&mut front, "run").await;
    let exec = format!("POST {BASE}/workspaces/{id}/exec");
    let mut transcript = String::new();
    for body in [
        json!({ "argv": ["sh", "-c", "echo out; echo err >&2; exit 3"] }),
        json!({ "argv": ["env"], "env": { "A": "1" } }),
        json!({ "argv": ["pwd"], "working_dir": "/tmp" }),
        json!({ "argv": ["whoami"] }),
        json!({ "argv": ["whoami"], "user": "developer" }),
        json!({ "argv": ["cat"], "stdin": "text in" }),
        json!({ "argv": ["cat"], "stdin_base64": "AP8=" }),
        json!({ "argv": ["cat"], "stdin": "too much", "max_output_bytes": 3 }),
        json!({ "argv": ["sleep", "60"], "timeout_seconds": 1 }),
        json!({ "argv": ["no-such-thing"] }),
        json!({ "argv": ["true"], "user": "nobody-here" }),
        json!({ "argv": ["true"], "working_dir": "/no/such" }),
        json!({ "argv": [] }),
        json!({ "argv": ["true"], "timeout_seconds": 0 }),
        json!({ "argv": ["true"], "env": { "A=B": "x" } }),
        json!({ "argv": ["true"], "working_dir": "relative" }),
        json!({ "argv": ["true"], "stdin": "a", "stdin_base64": "Yg==" }),
        json!({ "argv": ["true"], "tty": true }),
    ] {
        let mut answer = front.call(As::Admin, &exec, Some(body.clone())).await;
        if let Some(duration) = answer.body.get_mut("duration_ms") {
            assert!(duration.as_u64().is_some_and(|ms| ms < 20_000), "{duration}");
            *duration = json!("[duration]");
        }
        transcript.push_str(&format!("> {body}\n< {} {:#}\n\n", answer.status, answer.body));
    }
    insta::assert_snapshot!(transcript);
}

#[tokio::test]
async fn a_workspace_that_does_not_run_refuses_what_needs_its_inside() {
    let mut front = Front::open().await;
    let body = json!({ "name": "asleep", "slug": "asleep", "start": false });
    front.call(As::Admin, &format!("POST {BASE}/workspaces"), Some(body)).await;
    let one = format!("{BASE}/workspaces/asleep");
    let argv = json!({ "argv": ["true"] });
    front.call(As::Admin, &format!("POST {one}/exec"), Some(argv)).await;
    front.call(As::Admin, &format!("GET {one}/files?path=/"), None).await;
    front.call(As::Admin, &format!("GET {one}/stats"), None).await;
    front.call(As::Admin, &format!("GET {one}/ports"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn files_are_written_read_listed_renamed_and_removed() {
    let mut front = Front::open().await;
    let id = running(&mut front, "files").await;
    let files = format!("/workspaces/{id}/files");
    let content: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    let put = format!("{files}/content?path=/data/a.bin&mode=600&user=developer");
    let (status, written) = error(raw(&front, "PUT", &put, content.clone()).await).await;
    assert_eq!((status, &written["size_bytes"]), (StatusCode::OK, &json!(200_000)));

    let get = |query: &str| format!("{files}/content?path=/data/a.bin{query}");
    let response = raw(&front, "GET", &get(""), Body::empty()).await;
    assert_eq!(response.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    assert_eq!(bytes(response).await, content);
    let part = raw(&front, "GET", &get("&offset=1000&length=7"), Body::empty()).await;
    assert_eq!(bytes(part).await, content[1000..1007]);

    let again = format!("{files}/content?path=/data/a.bin&how=create_new");
    let (status, refused) = error(raw(&front, "PUT", &again, "x").await).await;
    assert_eq!((status, &refused["error"]["code"]), (StatusCode::CONFLICT, &json!("exists")));
    let append = format!("{files}/content?path=/data/b&how=append");
    raw(&front, "PUT", &append, "one").await;
    raw(&front, "PUT", &append, "two").await;
    let both = raw(&front, "GET", &format!("{files}/content?path=/data/b"), Body::empty()).await;
    assert_eq!(bytes(both).await, b"onetwo");

    let path = format!("{BASE}{files}");
    let rename = json!({ "from": "/data/b", "to": "/data/c" });
    front.call(As::Admin, &format!("POST {path}/rename"), Some(rename)).await;
    let directory = json!({ "path": "/data/new", "mode": "700" });
    front.call(As::Admin, &format!("POST {path}/mkdir"), Some(directory)).await;
    front.call(As::Admin, &format!("GET {path}?path=/data"), None).await;
    front.call(As::Admin, &format!("GET {path}?path=/data&entries=false"), None).await;
    front.call(As::Admin, &format!("DELETE {path}?path=/data"), None).await;
    front.call(As::Admin, &format!("GET {path}?path=/data"), None).await;
    front.call(As::Admin, &format!("GET {path}?path=relative"), None).await;
    front.call(As::Admin, &format!("GET {path}"), None).await;
    let bad_mode = json!({ "path": "/x", "mode": "rwx" });
    front.call(As::Admin, &format!("POST {path}/mkdir"), Some(bad_mode)).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn an_upload_that_breaks_off_changes_nothing() {
    let mut front = Front::open().await;
    let id = running(&mut front, "broken").await;
    let pieces = futures::stream::iter([
        Ok(bytes::Bytes::from_static(b"half")),
        Err(std::io::Error::other("the client went away")),
    ]);
    let path = format!("/workspaces/{id}/files/content?path=/tmp/half");
    let response = raw(&front, "PUT", &path, Body::from_stream(pieces)).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let path = format!("GET {BASE}/workspaces/{id}/files?path=/tmp/half");
    assert_eq!(front.call(As::Admin, &path, None).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn trees_travel_as_tar_streams() {
    let mut front = Front::open().await;
    let id = running(&mut front, "trees").await;
    let tree = |path: &str| format!("/workspaces/{id}/files/tree?path={path}");
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o755);
    archive.append_data(&mut header, "bin/tool", &b"hello"[..]).expect("append");
    let archive = archive.into_inner().expect("archive");
    let (status, written) = error(raw(&front, "PUT", &tree("/opt/app"), archive).await).await;
    assert_eq!((status, &written["entries"]), (StatusCode::OK, &json!(1)));

    let response = raw(&front, "GET", &tree("/opt/app"), Body::empty()).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/x-tar");
    let archive = bytes(response).await;
    let mut archive = tar::Archive::new(&archive[..]);
    let names: Vec<String> = archive
        .entries()
        .expect("entries")
        .map(|entry| entry.expect("entry").path().expect("path").display().to_string())
        .collect();
    assert_eq!(names, ["app", "app/bin", "app/bin/tool"]);
}

#[tokio::test]
async fn logs_stats_and_ports_are_shown() {
    let mut front = Front::open().await;
    let id = running(&mut front, "look").await;
    let one = format!("{BASE}/workspaces/{id}");
    let argv = json!({ "argv": ["echo", "logged"] });
    raw(&front, "POST", &format!("/workspaces/{id}/exec"), argv.to_string()).await;
    let log = |query: &str| format!("/workspaces/{id}/logs{query}");
    let commands = bytes(raw(&front, "GET", &log("?source=commands"), Body::empty()).await).await;
    assert_eq!(String::from_utf8_lossy(&commands), "$ echo logged\nlogged\n");
    let tail = raw(&front, "GET", &log("?source=commands&tail_bytes=4"), Body::empty()).await;
    assert_eq!(bytes(tail).await, b"ged\n");
    assert!(!bytes(raw(&front, "GET", &log(""), Body::empty()).await).await.is_empty());

    let workspace = skerry_api::ids::parse_workspace_id(&id).expect("an id");
    let guest = front.test.node.sim_guest(workspace).expect("a guest");
    let port = |port, address: &str| ListeningPort {
        port,
        address: address.to_owned(),
        pid: Some(7),
        process: None,
    };
    guest.listen(vec![port(22, "::"), port(8080, "127.0.0.1")]);
    front.call(As::Admin, &format!("GET {one}/ports"), None).await;
    front.call(As::Admin, &format!("GET {one}/stats"), None).await;
    front.call(As::Admin, &format!("GET {one}/logs?source=kernel"), None).await;
    front.call(As::Admin, &format!("GET {one}/logs?tail_bytes=99999999"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked() {
    let mut front = Front::open().await;
    let keys = format!("{BASE}/keys");
    let made = front.call(As::Admin, &format!("POST {keys}"), Some(json!({ "name": "ci" }))).await;
    let id = made.body["key"]["id"].as_str().expect("an id").to_owned();
    front.call(As::Admin, &format!("GET {keys}"), None).await;
    front.call(As::Other, &format!("DELETE {keys}/{id}"), None).await;
    front.call(As::Admin, &format!("DELETE {keys}/{id}"), None).await;
    front.call(As::Admin, &format!("DELETE {keys}/{id}"), None).await;
    front.call(As::Admin, &format!("DELETE {keys}/nonsense"), None).await;
    front.call(As::Admin, &format!("POST {keys}"), Some(json!({ "name": "" }))).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn projects_images_and_the_host_are_shown() {
    let mut front = Front::open().await;
    let projects = format!("{BASE}/projects");
    let body = json!({ "name": "second", "description": "for tests" });
    let made = front.call(As::Admin, &format!("POST {projects}"), Some(body.clone())).await;
    let id = made.body["id"].as_str().expect("an id").to_owned();
    front.call(As::Admin, &format!("POST {projects}"), Some(body)).await;
    front.call(As::Admin, &format!("GET {projects}"), None).await;
    front.call(As::Admin, &format!("GET {projects}/{id}"), None).await;
    front.call(As::Other, &format!("GET {projects}/{id}"), None).await;
    front.call(As::Admin, &format!("GET {projects}/nonsense"), None).await;
    front.call(As::Admin, &format!("GET {BASE}/images"), None).await;
    front.call(As::Admin, &format!("GET {BASE}/doctor"), None).await;
    front.call(As::Other, &format!("GET {BASE}/doctor"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn how_starts_went_is_told_to_the_administrator_alone() {
    let mut front = Front::open().await;
    running(&mut front, "box").await;
    for verb in ["suspend", "resume", "restart"] {
        front.call(As::Admin, &format!("POST {BASE}/workspaces/box/{verb}?wait=60"), None).await;
    }
    let starts = format!("GET {BASE}/starts");
    let told = front.call(As::Admin, &starts, None).await;
    assert_eq!((&told.body["boots"], &told.body["memory_restores"]), (&json!(2), &json!(1)));
    assert_eq!(front.call(As::Other, &starts, None).await.status, StatusCode::FORBIDDEN);
    assert_eq!(front.call(As::Nobody, &starts, None).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn paths_and_methods_that_are_not_there_are_refused_in_the_native_shape() {
    let mut front = Front::open().await;
    front.call(As::Admin, &format!("GET {BASE}/nothing"), None).await;
    front.call(As::Admin, &format!("PUT {BASE}/workspaces"), None).await;
    front.call(As::Admin, &format!("GET {BASE}/workspaces/x/exec/stream"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_workspace_is_opened_to_ssh_given_a_password_and_closed() {
    let mut front = Front::open_with_ssh(2222).await;
    let body = json!({ "name": "box" });
    front.beside(As::Admin, "POST /skerry/v1/workspaces?wait=60", Some(body)).await;
    let path = "/skerry/v1/workspaces/box/ssh";
    front.call(As::Admin, &format!("GET {path}"), None).await;
    // What is shown once is not written into a transcript.
    let opened = front.beside(As::Admin, &format!("POST {path}/open"), None).await;
    assert_eq!(opened.body["password"].as_str().map(str::len), Some(24));
    front.call(As::Admin, &format!("POST {path}/open"), None).await;
    for body in [
        json!({ "password": "short" }),
        json!({ "password": "long enough", "user": "A B" }),
        json!({ "password": "long enough" }),
    ] {
        front.call(As::Admin, &format!("PUT {path}/password"), Some(body)).await;
    }
    front.call(As::Admin, &format!("GET {path}"), None).await;
    front.call(As::Other, &format!("GET {path}"), None).await;
    front.call(As::Admin, &format!("POST {path}/close"), None).await;
    let body = json!({ "password": "long enough" });
    front.call(As::Admin, &format!("PUT {path}/password"), Some(body)).await;
    front.call(As::Admin, &format!("GET {path}"), None).await;
    insta::assert_snapshot!(front.transcript());
}
