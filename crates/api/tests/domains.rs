//! Custom domains in every dialect that has them.
#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use front::{As, Front};
use serde_json::{Value, json};
use skerry_control::internal_api::{EdgeApi, EdgeError};
use skerry_model::{HostName, KeyedCertificate, Secret};

/// An edge whose DNS is a table, and that gets no certificates.
#[derive(Default)]
struct PlayedEdge {
    texts: Mutex<BTreeMap<String, String>>,
}

impl PlayedEdge {
    async fn at(front: &Front) -> Arc<Self> {
        let edge = Arc::new(Self::default());
        let ours = vec!["localhost".to_owned()];
        front.test.control.attach_edge(edge.clone(), ours).await.unwrap();
        edge
    }

    fn put(&self, record: &Value) {
        let text = |name: &str| record[name].as_str().unwrap().to_owned();
        self.texts.lock().unwrap().insert(text("name"), text("value"));
    }
}

#[async_trait]
impl EdgeApi for PlayedEdge {
    async fn texts(&self, name: &HostName) -> Result<Vec<String>, EdgeError> {
        Ok(self.texts.lock().unwrap().get(name.as_str()).cloned().into_iter().collect())
    }

    fn serve(&self, _: HashSet<HostName>) {}

    fn show(&self, _: &HostName, _: &KeyedCertificate) -> Result<(), EdgeError> {
        Ok(())
    }

    fn issuer(&self) -> Option<&str> {
        None
    }

    async fn register(&self) -> Result<Secret, EdgeError> {
        Err(EdgeError("there is no issuer".to_owned()))
    }

    async fn obtain(&self, _: &Secret, _: &HostName) -> Result<KeyedCertificate, EdgeError> {
        Err(EdgeError("there is no issuer".to_owned()))
    }
}

#[tokio::test]
async fn native_domains_are_added_verified_listed_and_given_up() {
    let mut front = Front::open().await;
    let edge = PlayedEdge::at(&front).await;
    let made = json!({ "name": "box" });
    front.beside(As::Admin, "POST /skerry/v1/workspaces", Some(made)).await;
    front.settled("box").await;
    let port = json!({ "port": 3000, "slug": "front", "visibility": "public" });
    front.beside(As::Admin, "POST /skerry/v1/workspaces/box/published-ports", Some(port)).await;
    let domains = "/skerry/v1/domains";
    let body = |domain: &str, port: u16| {
        Some(json!({ "domain": domain, "workspace": "box", "port": port }))
    };
    let add = format!("POST {domains}");
    let added = front.call(As::Admin, &add, body("WWW.Example.com", 3000)).await;
    for (domain, port) in
        [("www.example.com", 3000), ("example.com", 80), ("x.localhost", 3000), ("127.0.0.1", 3000)]
    {
        front.call(As::Admin, &add, body(domain, port)).await;
    }
    front.call(As::Other, &add, body("example.com", 3000)).await;
    let one = format!("{domains}/www.example.com");
    front.call(As::Admin, &format!("POST {one}/verify"), None).await;
    edge.put(&added.body["txt_record"]);
    front.call(As::Other, &format!("POST {one}/verify"), None).await;
    front.call(As::Admin, &format!("POST {one}/verify"), None).await;
    front.call(As::Admin, &format!("GET {one}"), None).await;
    front.call(As::Other, &format!("GET {one}"), None).await;
    front.call(As::Admin, &format!("GET {domains}"), None).await;
    front.call(As::Other, &format!("GET {domains}"), None).await;
    front.call(As::Nobody, &format!("GET {domains}"), None).await;
    front.call(As::Other, &format!("DELETE {one}"), None).await;
    front.call(As::Admin, &format!("DELETE {one}"), None).await;
    front.call(As::Admin, &format!("DELETE {one}"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn an_instavm_domain_is_made_with_its_vm_or_for_a_share_and_polled_until_it_is_verified() {
    let mut front = Front::open().await;
    let edge = PlayedEdge::at(&front).await;
    let domain = json!({ "domain": "www.example.com", "dns_provider": "cloudflare" });
    let made = json!({ "share": { "port": 8000, "is_public": true }, "custom_domain": domain });
    let made = front.call(As::Admin, "POST /v1/vms", Some(made)).await.body;
    let (share, domain) = (&made["share"]["share_id"], &made["custom_domain"]);
    let domains = "/v1/custom-domains";
    for body in [
        json!({ "domain": "example.com", "share_id": share, "dns_provider": "x", "dns_credentials": {} }),
        json!({ "domain": "www.example.com", "share_id": share, "dns_provider": "x" }),
        json!({ "domain": "a.test", "share_id": "nobodys", "dns_provider": "x" }),
        json!({ "domain": "not a name", "share_id": share }),
        json!({ "domain": "a.test", "share_id": share, "dns_credentials": { "TOKEN": "hunter2" } }),
        json!({ "domain": 1 }),
    ] {
        front.call(As::Admin, &format!("POST {domains}"), Some(body)).await;
    }
    let one = format!("{domains}/{}", domain["id"]);
    front.call(As::Admin, &format!("POST {one}/verify"), None).await;
    front.call(As::Admin, &format!("GET {one}/health"), None).await;
    edge.put(&domain["setup"]["txt_record"]);
    front.call(As::Admin, &format!("POST {one}/verify"), None).await;
    front.call(As::Admin, &format!("GET {one}/health"), None).await;
    front.call(As::Admin, &format!("GET {domains}"), None).await;
    front.call(As::Admin, &format!("DELETE {one}"), None).await;
    for (who, call) in [
        (As::Admin, format!("GET {one}")),
        (As::Admin, format!("GET {domains}/x")),
        (As::Other, format!("POST {domains}/2/verify")),
        (As::Other, format!("DELETE {domains}/2")),
        (As::Nobody, format!("GET {domains}")),
    ] {
        front.call(who, &call, None).await;
    }
    let homeless = json!({ "custom_domain": { "domain": "b.test" } });
    front.call(As::Admin, "POST /v1/vms", Some(homeless)).await;
    let taken = json!({ "share": { "port": 1 }, "custom_domain": { "domain": "example.com" } });
    front.call(As::Admin, "POST /v1/vms", Some(taken)).await;
    let listed = front.beside(As::Admin, "GET /v1/vms", None).await;
    assert_eq!(listed.body.as_array().unwrap().len(), 1, "none is left of those that were refused");
    insta::assert_snapshot!(front.transcript());
}
