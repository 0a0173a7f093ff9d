//! Images from registries: pulled by name, and by the first workspace that asks for one.
#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use front::{As, Front};
use serde_json::json;
use skerry_control::internal_api::ImageInfo;
use skerry_model::{
    Timestamp,
    spec::{ImageDigest, ImageRef},
};

const ALPINE: &str = "docker.io/library/alpine:3.20";

async fn front_with_a_registry() -> Front {
    let front = Front::open().await;
    front.test.node.set_registry(vec![ImageInfo {
        name: ImageRef(ALPINE.to_owned()),
        digest: ImageDigest(format!("sha256:{}", "c".repeat(64))),
        description: "Pulled from docker.io".to_owned(),
        category: "pulled".to_owned(),
        size_bytes: 1 << 20,
        built_at: Timestamp::UNIX_EPOCH,
    }]);
    front
}

#[tokio::test]
async fn a_pull_says_how_it_ended_and_its_image_is_listed() {
    let mut front = front_with_a_registry().await;
    let pull = "POST /skerry/v1/images";
    front.call(As::Admin, pull, Some(json!({ "reference": ALPINE }))).await;
    front.call(As::Admin, pull, Some(json!({ "reference": "docker.io/library/none:1" }))).await;
    front.call(As::Admin, "GET /skerry/v1/image-pulls", None).await;
    front.call(As::Nobody, pull, Some(json!({ "reference": ALPINE }))).await;
    front.call(As::Admin, pull, Some(json!({ "image": ALPINE }))).await;
    let images = front.beside(As::Admin, "GET /skerry/v1/images", None).await;
    assert!(images.body.to_string().contains(ALPINE), "{}", images.body);
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_server_that_pulls_nothing_refuses_in_words() {
    let front = Front::open().await;
    let body = json!({ "reference": ALPINE });
    let answer = front.beside(As::Admin, "POST /skerry/v1/images", Some(body)).await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert_eq!(answer.body["error"]["field"], "image");
}

#[tokio::test]
async fn a_workspace_of_a_reference_that_is_not_here_has_it_pulled_in_every_dialect() {
    for (line, body) in [
        ("POST /skerry/v1/workspaces?wait=60", json!({ "name": "one", "image": ALPINE })),
        ("POST /api/v1/workspaces", json!({ "name": "one", "image": ALPINE })),
        ("POST /workspace", json!({ "name": "one", "image": ALPINE, "mode": "permanent" })),
    ] {
        let front = front_with_a_registry().await;
        let made = front.beside(As::Admin, line, Some(body)).await;
        assert!(made.status.is_success(), "{line}: {} {}", made.status, made.body);
        assert!(made.body.to_string().contains(ALPINE), "{line}: {}", made.body);
    }
}

#[tokio::test]
async fn a_workspace_of_a_reference_that_no_registry_has_is_refused_and_not_made() {
    let front = front_with_a_registry().await;
    let body = json!({ "name": "one", "image": "docker.io/library/none:1" });
    let refused = front.beside(As::Admin, "POST /skerry/v1/workspaces", Some(body)).await;
    assert_eq!(refused.status, 400, "{}", refused.body);
    assert_eq!(refused.body["error"]["field"], "image");
    let list = front.beside(As::Admin, "GET /skerry/v1/workspaces", None).await;
    assert_eq!(list.body["workspaces"], json!([]));
}
