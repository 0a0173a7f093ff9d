//! Networks in every dialect. Each snapshot is a transcript of requests and answers.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each suite uses what it needs")]
mod front;

use std::time::Duration;

use front::{As, Front};
use serde_json::{Value, json};
use skerry_control::{
    RefusedEgress,
    internal_api::{EgressRefusal, EgressRefusals},
    sim_node::SimNode,
};
use skerry_model::{
    Destination, EgressRule, NetworkPolicy, WorkspaceId, network_wish::PACKAGE_HOSTS,
};

async fn networked() -> Front {
    let front = Front::open().await;
    front.test.node.set_network(Some(SimNode::NETWORK));
    front
}

/// Makes something; the transcript does not have it.
async fn made(front: &Front, line: &str, body: Value, id: &str) -> String {
    let answer = front.beside(As::Admin, line, Some(body)).await;
    assert!(answer.status.is_success(), "{line}: {}", answer.body);
    answer.body.pointer(id).and_then(Value::as_str).expect("an id").to_owned()
}

async fn oblien(front: &Front, config: Value) -> String {
    let body = json!({ "image": "base", "config": config });
    made(front, "POST /workspace", body, "/workspace/id").await
}

async fn instavm(front: &Front, body: Value) -> String {
    made(front, "POST /v1/vms?wait=true", body, "/vm_id").await
}

fn id(text: &str) -> WorkspaceId {
    skerry_api::ids::parse_workspace_id(text).expect("an id")
}

fn policy(front: &Front, of: &str) -> NetworkPolicy {
    front.test.node.policy(id(of)).expect("a VM")
}

fn everywhere() -> NetworkPolicy {
    let egress = [EgressRule::all(Destination::Anywhere)].into();
    NetworkPolicy { egress, ..NetworkPolicy::default() }
}

#[tokio::test]
async fn what_a_workspace_was_refused_is_shown_to_its_owner() {
    let mut front = networked().await;
    let line = "POST /skerry/v1/workspaces?wait=60";
    let box_id = made(&front, line, json!({ "name": "box" }), "/id").await;
    let path = "GET /skerry/v1/workspaces/box/network/refusals";
    front.call(As::Admin, path, None).await;
    let refusal = |what, name: Option<&str>, times| EgressRefusal {
        what,
        name: name.map(|name| name.parse().expect("a name")),
        times,
        ago: Duration::from_secs(times),
    };
    let last = vec![
        refusal(RefusedEgress::Resolution, Some("other.example.org"), 90),
        refusal(RefusedEgress::PrivateAnswer, Some("inside.example.org"), 10),
        refusal(RefusedEgress::Connection(443), None, 3),
    ];
    let refusals = EgressRefusals { total: 103, last, refused_packets: 7, dropped_frames: 2 };
    front.test.node.set_refusals(id(&box_id), refusals);
    front.call(As::Admin, path, None).await;
    front.call(As::Admin, "GET /skerry/v1/workspaces/nobody/network/refusals", None).await;
    made(&front, "POST /skerry/v1/workspaces/box/stop?wait=60", json!({}), "/id").await;
    let answer = front.call(As::Admin, path, None).await;
    assert_eq!(answer.body["total"], 0, "without a VM nothing is counted");
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn native_networks_are_shown_replaced_and_in_force() {
    let mut front = networked().await;
    let body = json!({ "name": "client", "network": { "egress": { "internet": "nothing" } } });
    made(&front, "POST /skerry/v1/workspaces?wait=60", body, "/id").await;
    let body = json!({ "name": "server", "network": {
        "egress": { "internet": "web", "package_managers": true },
        "callers": ["client"],
        "open_ports": [{ "ports": "8080" }],
    } });
    let server = made(&front, "POST /skerry/v1/workspaces?wait=60", body, "/id").await;
    for name in ["client", "server"] {
        let line = format!("GET /skerry/v1/workspaces/{name}/network");
        front.call(As::Admin, &line, None).await;
    }
    let line = "PUT /skerry/v1/workspaces/server/network";
    let wish = json!({
        "egress": { "internet": "everything", "allow": [
            { "to": "*.example.org", "transport": "tcp", "ports": "443" },
            { "to": "198.51.100.0/24" },
        ] },
        "caller_networks": ["10.201.0.0/24"],
        "open_ports": [
            { "ports": "53", "transport": "udp" }, { "ports": "8000-8010" }
        ],
    });
    let answer = front.call(As::Admin, line, Some(wish)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(policy(&front, &server).egress.len(), 2);
    assert_eq!(policy(&front, &server).ingress.len(), 2);
    for bad in [
        json!({ "callers": ["nobody"] }),
        json!({ "callers": ["server"] }),
        json!({ "open_ports": [{ "ports": "0" }] }),
        json!({ "open_ports": [{ "ports": "9-8" }] }),
        json!({ "caller_networks": ["10.201.0.1/24"] }),
        json!({ "egress": { "internet": "nothing", "allow": [{ "to": "http://example.org" }] } }),
        json!({ "egress": { "internet": "nothing", "allow": [{ "to": "169.254.169.254" }] } }),
        json!({ "egress": { "internet": "some" } }),
        json!({ "ingress": [] }),
    ] {
        let answer = front.call(As::Admin, line, Some(bad)).await;
        assert!(answer.status.is_client_error(), "{}", answer.body);
    }
    let answer = front.call(As::Other, line, Some(json!({}))).await;
    assert_eq!(answer.status, 404);
    front.call(As::Admin, line, Some(json!({}))).await;
    assert_eq!(policy(&front, &server), everywhere());
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn oblien_networks_are_changed_field_by_field() {
    let mut front = networked().await;
    let caller = oblien(&front, json!({ "allow_internet": false, "static_network": true })).await;
    let id = oblien(&front, json!({ "network_config": { "ingress_ports": [80] } })).await;
    assert_eq!(policy(&front, &caller), NetworkPolicy::default());
    assert_eq!(policy(&front, &id), everywhere());
    let line = format!("PATCH /workspace/{id}/network");
    front.call(As::Admin, &format!("GET /workspace/{id}/network"), None).await;
    for body in [
        json!({ "private_link_ids": [caller] }),
        json!({ "egress": ["api.example.org", "198.51.100.0/24"], "ingress": ["10.201.0.8/29"] }),
        json!({ "ingress_ports": [8080, 8081], "outbound_mode": "managed" }),
        json!({ "allow_internet": false }),
        json!({ "allow_internet": true, "private_link_ids": [], "ingress": [] }),
    ] {
        let answer = front.call(As::Admin, &line, Some(body)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        front.test.quiet().await;
    }
    assert_eq!(policy(&front, &id), everywhere());
    assert_eq!(policy(&front, &caller), NetworkPolicy::default());
    for bad in [
        json!({ "egress": ["a b"] }),
        json!({ "egress": ["x.example.org"], "allow_internet": false }),
        json!({ "ingress": ["host"] }),
        json!({ "ingress_ports": [0] }),
        json!({ "ingress_ports": (1..=51).collect::<Vec<_>>() }),
        json!({ "private_link_ids": ["nobody"] }),
        json!({ "public_access": true }),
        json!({ "outbound_mode": "custom" }),
        json!({ "custom_proxy": { "host": "10.0.0.1", "port": 3128 } }),
        json!({ "firewall": true }),
        json!({ "allow_internet": "yes" }),
    ] {
        let answer = front.call(As::Admin, &line, Some(bad)).await;
        assert!(answer.status.is_client_error(), "{}", answer.body);
    }
    assert_eq!(policy(&front, &id), everywhere());
    let answer = front.call(As::Other, &line, Some(json!({ "allow_internet": true }))).await;
    assert_eq!(answer.status, 404);
    insta::assert_snapshot!(front.transcript());
}

fn proxied(front: &Front, of: &str) -> Option<String> {
    policy(front, of).proxy.map(|proxy| {
        let told = proxy.credentials.as_ref();
        let told = told.map(|own| format!(" {}:{}", own.username, own.password.expose()));
        format!("{proxy}{}", told.unwrap_or_default())
    })
}

#[tokio::test]
async fn oblien_proxies_are_asked_first_used_then_and_their_passwords_never_shown() {
    let mut front = networked().await;
    let id = oblien(&front, json!({})).await;
    let (line, own) = (format!("PATCH /workspace/{id}/network"), "198.51.100.1");
    front.test.node.break_proxy("198.51.100.9".parse().expect("one"), 3128, "cannot be reached");
    let proxy = json!({ "host": own, "port": 3128, "username": "me", "password": "hunter2" });
    for body in [
        json!({ "outbound_mode": "custom" }),
        json!({ "outbound_mode": "custom", "custom_proxy": { "host": "198.51.100.9", "port": 3128 } }),
        json!({ "outbound_mode": "managed", "custom_proxy": proxy }),
        json!({ "custom_proxy": { "host": own, "port": 0 } }),
        json!({ "custom_proxy": { "host": "10.0.0.1", "port": 3128 } }),
        json!({ "custom_proxy": { "host": own, "port": 3128, "protocol": "ftp" } }),
        json!({ "custom_proxy": { "host": own, "port": 3128, "password": "x" } }),
        json!({ "custom_proxy": { "host": own, "port": 3128, "country": "de" } }),
        json!({ "custom_proxy": "198.51.100.1:3128" }),
    ] {
        let answer = front.call(As::Admin, &line, Some(body)).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert_eq!(proxied(&front, &id), None);
    }
    let body = json!({ "outbound_mode": "custom", "custom_proxy": proxy });
    front.call(As::Admin, &line, Some(body)).await;
    assert_eq!(proxied(&front, &id).as_deref(), Some("http://198.51.100.1:3128 me:hunter2"));
    // The same again keeps what it is told; another is told nothing.
    front.call(As::Admin, &line, Some(json!({ "egress": ["api.example.org"] }))).await;
    let same = json!({ "custom_proxy": { "host": own, "port": 3128 }, "outbound_mode": "custom" });
    front.call(As::Admin, &line, Some(same)).await;
    assert_eq!(proxied(&front, &id).as_deref(), Some("http://198.51.100.1:3128 me:hunter2"));
    let other = json!({ "custom_proxy": { "host": own, "port": 1080, "protocol": "socks5" } });
    front.call(As::Admin, &line, Some(other)).await;
    assert_eq!(proxied(&front, &id).as_deref(), Some("socks5://198.51.100.1:1080"));
    front.call(As::Admin, &line, Some(json!({ "outbound_mode": "managed" }))).await;
    assert_eq!(proxied(&front, &id), None);
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn oblien_addresses_outside_are_those_of_the_servers_proxies() {
    let mut front = Front::with_proxies().await;
    front.test.node.set_network(Some(SimNode::NETWORK));
    let config = json!({ "proxy_assignment_id": "exit-a" });
    let id = oblien(&front, config).await;
    assert_eq!(proxied(&front, &id).as_deref(), Some("http://198.51.100.1:3128 server:secret"));
    let (show, line) =
        (format!("GET /workspace/{id}/network"), format!("POST /workspace/{id}/network/ip"));
    front.call(As::Admin, &show, None).await;
    for ip in [json!("203.0.113.8"), json!("203.0.113.9"), json!("anything"), json!(null)] {
        front.call(As::Admin, &line, Some(json!({ "ip": ip }))).await;
    }
    assert_eq!(proxied(&front, &id).as_deref(), Some("socks5://198.51.100.2:1080"));
    for name in [json!("exit-z"), json!(7), json!("a b")] {
        let body = json!({ "image": "base", "config": { "proxy_assignment_id": name } });
        let answer = front.call(As::Admin, "POST /workspace", Some(body)).await;
        assert_eq!(answer.status, 400);
    }
    let managed = json!({ "outbound_mode": "managed" });
    front.call(As::Admin, &format!("PATCH /workspace/{id}/network"), Some(managed)).await;
    assert_eq!(proxied(&front, &id), None);
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn native_proxies_are_shown_without_what_they_are_told() {
    let mut front = Front::with_proxies().await;
    front.test.node.set_network(Some(SimNode::NETWORK));
    let line = "POST /skerry/v1/workspaces?wait=60";
    let network = json!({ "outbound": { "server_proxy": "exit-b" } });
    let id = made(&front, line, json!({ "name": "box", "network": network }), "/id").await;
    assert_eq!(proxied(&front, &id).as_deref(), Some("socks5://198.51.100.2:1080"));
    front.call(As::Admin, "GET /skerry/v1/network/proxies", None).await;
    let put = "PUT /skerry/v1/workspaces/box/network";
    let proxy =
        json!({ "address": "198.51.100.7", "port": 3128, "username": "me", "password": "pw" });
    for outbound in [
        json!({ "proxy": proxy }),
        json!({ "proxy": { "address": "198.51.100.7", "port": 3128, "protocol": "http" } }),
        json!({ "proxy": { "address": "198.51.100.7", "port": 70000 } }),
        json!({ "proxy": { "address": "proxy.example.org", "port": 3128 } }),
        json!({ "proxy": proxy, "server_proxy": "exit-a" }),
        json!({ "server_proxy": "exit-z" }),
    ] {
        front.call(As::Admin, put, Some(json!({ "outbound": outbound }))).await;
    }
    assert_eq!(proxied(&front, &id).as_deref(), Some("http://198.51.100.7:3128 me:pw"));
    front.call(As::Admin, "GET /skerry/v1/workspaces/box/network", None).await;
    front.call(As::Admin, put, Some(json!({}))).await;
    assert_eq!(proxied(&front, &id), None);
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn oblien_links_open_exactly_one_peer_and_the_object_shows_the_network() {
    let front = networked().await;
    let caller = oblien(&front, json!({ "allow_internet": false })).await;
    let other = oblien(&front, json!({ "allow_internet": false })).await;
    let links = json!({ "ingress_ports": [80], "private_link_ids": [caller] });
    let server = oblien(&front, json!({ "network_config": links })).await;
    front.test.quiet().await;
    let connects = |from: &str, port| front.test.node.connects(id(from), id(&server), port);
    assert!(connects(&caller, 80) && !connects(&caller, 81) && !connects(&other, 80));
    let shown = front.beside(As::Admin, &format!("GET /workspace/{server}"), None).await.body;
    assert_eq!(shown["workspace"]["ip"], "10.201.0.4");
    assert_eq!(
        shown["workspace"]["network"],
        json!({
            "allow_internet": true, "ingress_ports": [80], "egress_ports": [], "egress": [],
            "public_access": false, "ingress": [],
        })
    );
    // What is shown can be sent back as it is, the field that asks for nothing included.
    let line = format!("PATCH /workspace/{server}/network");
    let network = shown["workspace"]["network"].clone();
    let same = front.beside(As::Admin, &line, Some(network)).await;
    assert_eq!(same.status, 200, "{}", same.body);
    let ports = json!({ "egress_ports": [443] });
    assert_eq!(front.beside(As::Admin, &line, Some(ports)).await.status, 400);
    let update = json!({ "config": { "network_config": { "allow_internet": true } } });
    let refused = front.beside(As::Admin, &format!("PUT /workspace/{server}"), Some(update)).await;
    assert_eq!(refused.body["details"]["field"], "config.network_config");
}

#[tokio::test]
async fn instavm_policies_are_read_as_they_were_set_and_in_force() {
    let mut front = networked().await;
    let free = instavm(&front, json!({})).await;
    assert_eq!(policy(&front, &free), everywhere());
    let closed = json!({
        "allow_public_repos": false, "allow_http": false, "allow_https": false,
        "allowed_domains": ["api.openai.com"], "allowed_cidrs": [],
    });
    let vm = instavm(&front, json!({ "egress_policy": closed })).await;
    assert_eq!(policy(&front, &vm).egress.len(), 1);
    front.call(As::Admin, &format!("GET /v1/egress/vm/{free}"), None).await;
    front.call(As::Admin, &format!("GET /v1/egress/vm/{vm}"), None).await;
    let session = skerry_api::ids::uuid_text(id(&vm));
    let line = format!("POST /v1/egress/session/{session}");
    for body in [
        json!({ "allow_package_managers": true, "allow_http": false, "allow_https": false }),
        json!({
            "allow_package_managers": false, "allow_http": false, "allow_https": true,
            "allowed_domains": [], "allowed_cidrs": [],
        }),
        json!({ "allowed_domains": ["*.example.org"], "allowed_cidrs": ["198.51.100.0/24"] }),
        json!({ "allow_public_repos": false, "allow_http": false, "allow_https": false }),
        json!({}),
    ] {
        let set = front.call(As::Admin, &line, Some(body)).await;
        assert_eq!(set.status, 200, "{}", set.body);
        let read = front.beside(As::Admin, &format!("GET /v1/egress/vm/{vm}"), None).await;
        assert_eq!(read.body, set.body);
    }
    assert_eq!(policy(&front, &vm), everywhere());
    for bad in [
        json!({ "allowed_domains": ["https://example.org"] }),
        json!({ "allowed_cidrs": ["fe80::/10"] }),
        json!({ "allow_http": 3 }),
    ] {
        let answer = front.call(As::Admin, &line, Some(bad)).await;
        assert_eq!(answer.status, 422, "{}", answer.body);
    }
    let answer = front.call(As::Other, &line, Some(json!({}))).await;
    assert_eq!(answer.status, 404);
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn instavm_package_managers_reach_the_table_and_nothing_else() {
    let front = networked().await;
    let only = json!({ "allow_package_managers": true, "allow_http": false, "allow_https": false });
    let vm = instavm(&front, json!({ "egress_policy": only })).await;
    let rules = policy(&front, &vm).egress;
    assert_eq!(rules.len(), PACKAGE_HOSTS.iter().map(|(_, ports)| ports.len()).sum::<usize>());
    assert!(rules.iter().all(|rule| matches!(rule.to, Destination::Name(_))));
}

#[tokio::test]
async fn every_dialect_shows_the_private_address() {
    let front = networked().await;
    let vm = instavm(&front, json!({})).await;
    let shown = front.beside(As::Admin, &format!("GET /v1/vms/{vm}"), None).await.body;
    assert_eq!(shown["private_ip"], "10.201.0.2");
    let of = id(&vm);
    let line = format!("GET /workspaces/{}", skerry_api::ids::uuid_text(of));
    let shown = front.beside(As::Admin, &line, None).await.body;
    let aether = shown.pointer("/private_ip").or_else(|| shown.pointer("/workspace/private_ip"));
    assert_eq!(aether, Some(&json!("10.201.0.2")), "{shown}");
    let line = format!("GET /api/v1/workspaces/{}", skerry_api::ids::rigbox_workspace_id(of));
    let shown = front.beside(As::Admin, &line, None).await.body;
    let rigbox = shown.pointer("/ip_address").or_else(|| shown.pointer("/vm/ip_address"));
    assert_eq!(rigbox, Some(&json!("10.201.0.2")), "{shown}");
    let line = format!("GET /skerry/v1/workspaces/{of}");
    let shown = front.beside(As::Admin, &line, None).await.body;
    assert_eq!(shown["private_address"], "10.201.0.2");
}

#[tokio::test]
async fn without_a_network_or_a_way_out_what_asks_for_it_is_refused_in_each_dialects_words() {
    let mut front = Front::open().await;
    let everything = json!({ "network": { "egress": { "internet": "everything" } } });
    front.call(As::Admin, "POST /skerry/v1/workspaces", Some(everything)).await;
    for config in [
        json!({ "allow_internet": true }),
        json!({ "static_network": true }),
        json!({ "network_config": { "allow_internet": true } }),
        json!({ "network_config": { "ingress_ports": [80] } }),
    ] {
        let body = json!({ "image": "base", "config": config });
        let answer = front.call(As::Admin, "POST /workspace", Some(body)).await;
        assert_eq!(answer.status, 400);
    }
    let body = json!({ "egress_policy": { "allow_https": true } });
    let answer = front.call(As::Admin, "POST /v1/vms", Some(body)).await;
    assert_eq!(answer.status, 400);
    let id = oblien(&front, json!({})).await;
    front.call(As::Admin, &format!("GET /workspace/{id}/network"), None).await;
    let body = json!({ "ingress_ports": [80] });
    front.call(As::Admin, &format!("PATCH /workspace/{id}/network"), Some(body)).await;
    front.test.node.set_network(Some(SimNode::NETWORK_WITHOUT_UPLINK));
    let body = json!({ "allow_internet": true });
    front.call(As::Admin, &format!("PATCH /workspace/{id}/network"), Some(body)).await;
    let body =
        json!({ "image": "base", "config": { "network_config": { "ingress_ports": [80] } } });
    let answer = front.call(As::Admin, "POST /workspace", Some(body)).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    insta::assert_snapshot!(front.transcript());
}
