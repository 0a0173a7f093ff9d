//! Custom domains in every dialect that has them.
#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use std::sync::Arc;

use front::{As, Front};
use serde_json::{Value, json};
use skerry_control::testing::edge::PlayedEdge;
use skerry_model::Issuance;

async fn edge(front: &Front, issuance: Issuance) -> Arc<PlayedEdge> {
    let edge = PlayedEdge::new(&front.test, issuance);
    let ours = vec!["localhost".to_owned()];
    front.test.control.attach_edge(edge.clone(), ours).await.unwrap();
    edge
}

fn put(edge: &PlayedEdge, record: &Value) {
    edge.put_text(record["name"].as_str().unwrap(), record["value"].as_str().unwrap());
}

#[tokio::test]
async fn native_domains_are_added_verified_listed_and_given_up() {
    let mut front = Front::open().await;
    let edge = edge(&front, Issuance::None).await;
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
    put(&edge, &added.body["txt_record"]);
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
async fn an_oblien_domain_is_checked_connected_and_disconnected() {
    let mut front = Front::open().await;
    let edge = edge(&front, Issuance::None).await;
    let made = json!({ "name": "box", "image": "base" });
    let made = front.beside(As::Admin, "POST /workspace", Some(made)).await.body;
    front.settled("box").await;
    let id = made["workspace"]["id"].as_str().unwrap();
    let domain = format!("/workspace/{id}/domain");
    let (connect, check) = (format!("POST {domain}"), format!("POST {domain}/check"));
    let name = json!({ "domain": "app.example.com" });
    front.call(As::Admin, &format!("GET {domain}"), None).await;
    front.call(As::Admin, &format!("DELETE {domain}"), None).await;
    let checked = front.call(As::Admin, &check, Some(name.clone())).await.body;
    for body in [
        json!({}),
        json!({ "domain": "not a name" }),
        json!({ "domain": "x.localhost" }),
        json!({ "domain": "app.example.com", "port": 0 }),
        json!({ "domain": "app.example.com", "include_www": true }),
    ] {
        front.call(As::Admin, &connect, Some(body)).await;
    }
    front.call(As::Admin, &connect, Some(name.clone())).await;
    front.call(As::Admin, &connect, Some(json!({ "domain": "other.example.com" }))).await;
    let txt = &checked["required_records"]["txt"];
    put(&edge, &json!({ "name": txt["host"], "value": txt["value"] }));
    for name in ["app.example.com", "localhost"] {
        edge.put_address(name, [192, 0, 2, 1]);
    }
    front.call(As::Admin, &check, Some(name.clone())).await;
    front.call(As::Admin, &connect, Some(name.clone())).await;
    front.call(As::Admin, &format!("POST {domain}/ssl/renew"), None).await;
    front.call(As::Admin, &format!("GET {domain}"), None).await;
    front.call(As::Admin, &format!("GET /workspace/{id}/public-access"), None).await;
    for call in [format!("GET {domain}"), check, format!("DELETE {domain}")] {
        let body = call.starts_with("POST").then(|| name.clone());
        front.call(As::Other, &call, body).await;
    }
    front.call(As::Admin, &format!("DELETE {domain}"), None).await;
    front.call(As::Admin, &format!("GET {domain}"), None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn oblien_accounts_see_their_routes_and_ask_for_slugs_and_names() {
    let mut front = Front::open().await;
    edge(&front, Issuance::None).await;
    let body = serde_json::json!({ "image": "base", "name": "site", "namespace": "team" });
    let made = front.beside(As::Admin, "POST /workspace", Some(body)).await;
    let id = made.body["workspace"]["id"].as_str().unwrap().to_owned();
    let domain = format!("/workspace/{id}/domain");
    let ask = serde_json::json!({ "slug": "my-site" });
    front.call(As::Admin, "POST /domain/check-slug", Some(ask.clone())).await;
    let expose = serde_json::json!({ "port": 8080, "slug": "my-site" });
    front.call(As::Admin, &format!("POST /workspace/{id}/public-access"), Some(expose)).await;
    front.call(As::Other, "POST /domain/check-slug", Some(ask)).await;
    for body in [
        serde_json::json!({}),
        serde_json::json!({ "slug": "A B" }),
        serde_json::json!({ "slug": "fine", "domain": "preview.example.org" }),
    ] {
        let answer = front.call(As::Admin, "POST /domain/check-slug", Some(body)).await;
        assert_eq!(answer.status, 400);
    }
    let connect = serde_json::json!({ "domain": "app.example.com", "port": 8080 });
    front.call(As::Admin, &format!("POST {domain}"), Some(connect)).await;
    // There is nobody to get a certificate from.
    let renewed = front.call(As::Admin, &format!("POST {domain}/ssl/renew"), None).await;
    assert_eq!(renewed.status, 409);
    front.call(As::Admin, "GET /domain/routes", None).await;
    front.call(As::Admin, "GET /domain/routes?namespace=other", None).await;
    front.call(As::Other, "GET /domain/routes", None).await;
    for body in [
        serde_json::json!({ "domain": "app.example.com", "resource_id": id }),
        serde_json::json!({ "domain": "app.example.com", "resource_id": "ws_none" }),
        serde_json::json!({}),
    ] {
        front.call(As::Admin, "POST /domain/verify", Some(body)).await;
    }
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_provider_of_dns_is_taken_with_its_credentials_which_nobody_sees_again() {
    let mut front = Front::open().await;
    edge(&front, Issuance::Automatic).await;
    let made = json!({ "share": { "port": 8000 } });
    let made = front.beside(As::Admin, "POST /v1/vms", Some(made)).await.body;
    let (vm, share) = (&made["vm_id"], &made["share"]["share_id"]);
    let token = json!({ "CLOUDFLARE_API_TOKEN": "hunter2" });
    let updates = json!({
        "RFC2136_NAMESERVER": "ns.example.com",
        "RFC2136_TSIG_KEY": "acme",
        "RFC2136_TSIG_SECRET": "aHVudGVyMg==",
    });
    let bad = json!({ "hunter2": "CLOUDFLARE_API_TOKEN", "CLOUDFLARE_API_TOKEN": "hunter2" });
    for (provider, credentials) in [
        (json!("route53"), json!(null)),
        (json!("cloudflare"), json!(null)),
        (json!("cloudflare"), bad),
        (json!("none"), token.clone()),
        (json!(7), json!({ "a": 7 })),
        (json!("rfc2136"), updates.clone()),
    ] {
        let body = json!({
            "domain": "a.example.com", "share_id": share, "dns_provider": provider,
            "dns_credentials": credentials,
        });
        front.call(As::Admin, "POST /v1/custom-domains", Some(body)).await;
    }
    for provider in ["route53", "cloudflare"] {
        let domain = json!({
            "domain": "b.example.com", "dns_provider": provider, "dns_credentials": token,
        });
        let body = json!({ "share": { "port": 1 }, "custom_domain": domain });
        front.call(As::Admin, "POST /v1/vms", Some(body)).await;
    }
    front.call(As::Admin, "GET /v1/custom-domains", None).await;
    let native = |provider: &str, credentials: &Value| {
        Some(json!({
            "domain": "c.example.com", "workspace": vm, "port": 8000,
            "dns_provider": provider, "dns_credentials": credentials,
        }))
    };
    for (provider, credentials) in [("route53", &token), ("rfc2136", &token), ("rfc2136", &updates)]
    {
        let body = native(provider, credentials);
        front.call(As::Admin, "POST /skerry/v1/domains", body).await;
    }
    front.call(As::Admin, "GET /skerry/v1/domains/c.example.com", None).await;
    let transcript = front.transcript();
    let answers = transcript.lines().filter(|line| !line.starts_with('>'));
    assert!(answers.clone().all(|line| !line.contains("hunter2") && !line.contains("aHVudG")));
    insta::assert_snapshot!(transcript);
}

#[tokio::test]
async fn an_instavm_domain_is_made_with_its_vm_or_for_a_share_and_polled_until_it_is_verified() {
    let mut front = Front::open().await;
    let edge = edge(&front, Issuance::None).await;
    let domain = json!({ "domain": "www.example.com", "dns_provider": "none" });
    let made = json!({ "share": { "port": 8000, "is_public": true }, "custom_domain": domain });
    let made = front.call(As::Admin, "POST /v1/vms", Some(made)).await.body;
    let (share, domain) = (&made["share"]["share_id"], &made["custom_domain"]);
    let domains = "/v1/custom-domains";
    for body in [
        json!({ "domain": "example.com", "share_id": share, "dns_credentials": {} }),
        json!({ "domain": "www.example.com", "share_id": share, "dns_provider": "none" }),
        json!({ "domain": "a.test", "share_id": "nobodys", "dns_provider": "none" }),
        json!({ "domain": "not a name", "share_id": share }),
        json!({ "domain": "a.test", "share_id": share, "dns_credentials": { "TOKEN": "hunter2" } }),
        json!({ "domain": 1 }),
    ] {
        front.call(As::Admin, &format!("POST {domains}"), Some(body)).await;
    }
    let one = format!("{domains}/{}", domain["id"]);
    front.call(As::Admin, &format!("POST {one}/verify"), None).await;
    front.call(As::Admin, &format!("GET {one}/health"), None).await;
    put(&edge, &domain["setup"]["txt_record"]);
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
