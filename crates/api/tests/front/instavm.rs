//! What every test of the InstaVM dialect begins with.

use serde_json::Value;

use super::{As, Front};

/// A VM in a session of its own; answers the ids of both.
pub async fn create(front: &mut Front, body: Value) -> (String, String) {
    let answer = front.call(As::Admin, "POST /v1/vms", Some(body)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let text = |field: &str| answer.body[field].as_str().expect("an id").to_owned();
    (text("vm_id"), text("session_id"))
}

/// What is answered to a GET.
pub async fn get(front: &mut Front, path: &str) -> Value {
    front.call(As::Admin, &format!("GET {path}"), None).await.body
}
