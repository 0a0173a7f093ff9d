//! What all dialects share: hosts, paths, credentials, health, request ids, shutdown.
#![allow(clippy::expect_used, reason = "tests")]

use std::time::Duration;

use axum::{Router, body::Body};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use skerry_api::{ApiConfig, ApiState};
use skerry_control::{
    sim_node::Point,
    testing::{self, KEY, TestControl},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

struct Listener {
    test: TestControl,
    router: Router,
    shutdown: CancellationToken,
}

impl Listener {
    async fn open() -> Self {
        let test = testing::open().await;
        let shutdown = CancellationToken::new();
        let config = ApiConfig {
            public_url: "http://skerry.example:7070".to_owned(),
            base_domain: "Skerry.example".to_owned(),
            preview_domain: "localhost".to_owned(),
            version: "0.0.0-test",
        };
        let state = ApiState::new(test.control.clone(), config, shutdown.clone());
        Self { test, router: skerry_api::router(state), shutdown }
    }

    async fn send(&self, request: Request<Body>) -> Response<Body> {
        let answer = self.router.clone().oneshot(request);
        let bound = Duration::from_secs(20);
        tokio::time::timeout(bound, answer).await.expect("in time").expect("infallible")
    }

    async fn get(&self, host: &str, path: &str) -> (StatusCode, Value) {
        let request = Request::get(path).header("host", host).header("x-api-key", KEY);
        read(self.send(request.body(Body::empty()).expect("a request")).await).await
    }
}

async fn read(response: Response<Body>) -> (StatusCode, Value) {
    let status = response.status();
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

#[tokio::test]
async fn on_the_shared_origin_every_path_answers_in_its_dialects_shape() {
    let listener = Listener::open().await;
    let mut text = String::new();
    for path in [
        "/workspace/none",
        "/v1/vms/none",
        "/v1/nonsense",
        "/api/v1/workspaces/ws-none",
        "/api/nonsense",
        "/workspaces/none",
        "/projects/nonsense/more/parts",
        "/skerry/v1/workspaces/none",
        "/skerry/nonsense",
        "/nonsense",
        "/",
    ] {
        let (status, body) = listener.get("127.0.0.1:7070", path).await;
        text.push_str(&format!("GET {path}\n  {} {body}\n", status.as_u16()));
    }
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn a_host_label_serves_its_dialect_alone() {
    let listener = Listener::open().await;
    let paths = [
        "/workspace/none",
        "/v1/vms/none",
        "/v1/workspaces/ws-none",
        "/api/v1/workspaces/ws-none",
        "/v1/workspaces/9f1c2d3e-4b5a-4c6d-8e7f-001122334455",
        "/workspaces/9f1c2d3e-4b5a-4c6d-8e7f-001122334455",
        "/skerry/v1/workspaces/none",
    ];
    let mut text = String::new();
    for label in ["rigbox", "aether", "instavm", "oblien"] {
        for path in paths {
            let host = format!("{label}.skerry.example:7070");
            let (status, body) = listener.get(&host, path).await;
            text.push_str(&format!("{label} GET {path}\n  {} {body}\n", status.as_u16()));
        }
    }
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn health_needs_no_credential_on_any_host() {
    let listener = Listener::open().await;
    for host in ["localhost", "rigbox.skerry.example", "aether.skerry.example"] {
        for path in ["/healthz", "/health"] {
            let request = Request::get(path).header("host", host).body(Body::empty());
            let (status, body) = read(listener.send(request.expect("a request")).await).await;
            assert_eq!(status, 200, "{host}{path}");
            assert_eq!(body, json!({ "status": "ok", "version": "0.0.0-test" }), "{host}{path}");
        }
    }
}

#[tokio::test]
async fn a_key_works_in_every_dialects_way_on_every_dialects_routes() {
    let listener = Listener::open().await;
    let bearer = format!("Bearer {KEY}");
    let ways: [&[(&str, &str)]; 3] = [
        &[("authorization", &bearer)],
        &[("x-api-key", KEY)],
        &[("x-client-id", "admin"), ("x-client-secret", KEY)],
    ];
    for path in
        ["/workspace", "/v1/vms", "/api/v1/workspaces", "/workspaces", "/skerry/v1/workspaces"]
    {
        for way in ways {
            let mut request = Request::get(path).header("host", "localhost");
            for (name, value) in way {
                request = request.header(*name, *value);
            }
            let response = listener.send(request.body(Body::empty()).expect("a request")).await;
            assert_eq!(response.status(), 200, "{path} {way:?}");
        }
        let request = Request::get(path)
            .header("x-client-id", "somebody-else")
            .header("x-client-secret", KEY)
            .body(Body::empty())
            .expect("a request");
        assert_eq!(listener.send(request).await.status(), 401, "{path}: not the key's account");
    }
}

#[tokio::test]
async fn answers_carry_a_request_id_and_keep_a_plain_one_of_the_caller() {
    let listener = Listener::open().await;
    let id_of = async |given: Option<&str>| {
        let mut request = Request::get("/healthz");
        if let Some(id) = given {
            request = request.header("x-request-id", id);
        }
        let response = listener.send(request.body(Body::empty()).expect("a request")).await;
        response.headers()["x-request-id"].to_str().expect("text").to_owned()
    };
    assert_eq!(id_of(None).await, "req-00000000");
    assert_eq!(id_of(Some("mine-1")).await, "mine-1");
    assert_eq!(id_of(Some("not plain \"quoted\"")).await, "req-00000001");
    assert_eq!(id_of(Some(&"x".repeat(65))).await, "req-00000002");
}

#[tokio::test]
async fn browsers_of_any_origin_may_call_aether_and_nobody_else() {
    let listener = Listener::open().await;
    let preflight = async |path: &str| {
        let request = Request::options(path)
            .header("origin", "https://app.example")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .body(Body::empty());
        let response = listener.send(request.expect("a request")).await;
        response.headers().contains_key("access-control-allow-origin")
    };
    assert!(preflight("/projects").await);
    assert!(!preflight("/workspace").await);
    assert!(!preflight("/v1/vms").await);
    assert!(!preflight("/skerry/v1/workspaces").await);
}

#[tokio::test]
async fn a_call_that_waits_ends_when_the_server_does_and_its_work_goes_on() {
    let listener = Listener::open().await;
    listener.test.node.hang(Point::EnsureRunning);
    let request = Request::post("/workspace")
        .header("x-api-key", KEY)
        .body(Body::from(r#"{"name":"waits","image":"base"}"#))
        .expect("a request");
    let create = listener.send(request);
    let caller = listener.test.caller().await;
    let stop = async {
        let all = skerry_control::ListWorkspaces::default();
        while listener.test.control.list_workspaces(&caller, &all).await.expect("list").total == 0 {
            tokio::task::yield_now().await;
        }
        listener.shutdown.cancel();
    };
    let (response, ()) = tokio::join!(create, stop);
    let (status, body) = read(response).await;
    assert_eq!((status.as_u16(), &body["code"]), (503, &json!("VM_UNAVAILABLE")));
    listener.test.node.release(Point::EnsureRunning);
    let which = skerry_control::WorkspaceRef::SlugOrName("waits".to_owned());
    let running = async {
        loop {
            let found = listener.test.control.get_workspace(&caller, &which).await.expect("found");
            if found.is_settled() {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(10), running).await.expect("in time");
    assert_eq!(found.state.name(), "running");
}
