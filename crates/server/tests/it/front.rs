//! The listener: health, host labels, keys.

use serde_json::json;

use crate::world::{KEY, WORKSPACES, World, bounded};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_told_to_everybody_and_nothing_else_is() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        for path in ["/healthz", "/health"] {
            let answer = server.http.get(format!("{}{path}", server.url)).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            let body: serde_json::Value = answer.json().await.unwrap();
            let expected = json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")});
            assert_eq!(body, expected);
        }
        for path in [WORKSPACES, "/api/v1/workspaces", "/workspaces", "/v1/vms", "/workspace"] {
            let answer = server.http.get(format!("{}{path}", server.url)).send().await.unwrap();
            assert_eq!(answer.status(), 401, "{path}");
        }
        server.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_label_selects_one_api_alone() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        // `/v1/...` is InstaVM's on the shared origin and Rigbox's and Aether's on theirs.
        for (host, path, status) in [
            ("localhost", "/v1/vms", 200),
            ("localhost", "/v1/workspaces", 404),
            ("rigbox.localhost", "/v1/workspaces", 200),
            ("rigbox.localhost:7070", "/api/v1/workspaces", 200),
            ("rigbox.localhost", "/workspace", 404),
            ("aether.localhost", "/v1/workspaces", 200),
            ("aether.localhost", WORKSPACES, 404),
            ("instavm.localhost", "/v1/vms", 200),
            ("instavm.localhost", "/workspace", 404),
            ("oblien.localhost", "/workspace", 200),
            ("oblien.localhost", "/v1/vms", 404),
            ("elsewhere.test", WORKSPACES, 200),
        ] {
            let (answered, body) = server.on_host(host).ask("GET", path, None).await.unwrap();
            assert_eq!(answered, status, "{host}{path}: {body}");
        }
        server.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bootstrap_key_and_keys_made_with_it_work_across_restarts_until_revoked() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        let made = server.expect(201, "POST", "/skerry/v1/keys", Some(json!({"name": "ci"}))).await;
        let secret = made["secret"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
        assert_ne!(secret, KEY);
        server.die().await;

        let server = world.start().await;
        let url = format!("{}{WORKSPACES}", server.url);
        let with = async |key: &str| {
            server.http.get(&url).header("x-api-key", key).send().await.unwrap().status().as_u16()
        };
        assert_eq!((with(&secret).await, with(KEY).await, with("sk_wrong").await), (200, 200, 401));
        let keys = server.get("/skerry/v1/keys").await;
        assert!(!keys.to_string().contains(&secret) && !keys.to_string().contains(KEY), "{keys}");
        let key_id = made.pointer("/key/id").or(made.pointer("/id")).unwrap().as_str().unwrap();
        let path = format!("/skerry/v1/keys/{key_id}");
        let (status, body) = server.ask("DELETE", &path, None).await.unwrap();
        assert!(status < 300, "{status} {body}");
        assert_eq!(with(&secret).await, 401);
        server.end().await;
    })
    .await;
}
