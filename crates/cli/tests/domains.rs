//! `skerry domain` against the real API, on an edge whose DNS is a table.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each file's tests use what they need")]
mod ground;

use std::{fs, sync::Arc};

use ground::Server;
use skerry_control::testing::edge::PlayedEdge;
use skerry_model::{DnsProvider, Issuance};

/// A server with the running workspace `box`, whose port 3000 is published.
async fn with_port(issuance: Issuance) -> (Server, Arc<PlayedEdge>) {
    let (server, _guest) = Server::with_box().await;
    let edge = PlayedEdge::new(&server.test, issuance);
    server.test.control.attach_edge(edge.clone(), Vec::new()).await.expect("attached");
    let publish = ["port", "publish", "box", "3000", "--visibility", "public", "--slug", "front"];
    assert_eq!(server.run(&publish).await.code, 0);
    (server, edge)
}

#[tokio::test]
async fn a_domain_is_added_verified_listed_and_given_up() {
    let (server, edge) = with_port(Issuance::None).await;
    let mut transcript = server
        .transcript(&[
            "domain add www.example.com box 3000",
            "domain add www.example.com box 3000",
            "domain add example.com box 80",
            "domain verify www.example.com",
        ])
        .await;
    let listed = server.run(&["domain", "ls", "--json"]).await.json();
    let record = &listed["domains"][0]["txt_record"];
    let [name, value] = ["name", "value"].map(|field| record[field].as_str().expect("a text"));
    edge.put_text(name, value);
    let rest = [
        "domain verify www.example.com",
        "domain ls",
        "domain rm www.example.com",
        "domain verify www.example.com",
        "domain ls",
    ];
    transcript.push_str(&server.transcript(&rest).await);
    insta::assert_snapshot!(transcript);
}

#[tokio::test]
async fn credentials_of_a_provider_come_from_a_file_or_standard_input_and_are_not_shown() {
    let (server, edge) = with_port(Issuance::Automatic).await;
    let token = "hunter2";
    let text = format!("{{\"CLOUDFLARE_API_TOKEN\": \"{token}\"}}");
    fs::write(server.scratch.path().join("good.json"), &text).expect("written");
    fs::write(server.scratch.path().join("bad.json"), token).expect("written");
    let add = "domain add www.example.com box 3000";
    let transcript = server
        .transcript(&[
            &format!("{add} --dns-provider cloudflare"),
            &format!("{add} --dns-credentials good.json"),
            &format!("{add} --dns-provider cloudflare --dns-credentials none.json"),
            &format!("{add} --dns-provider cloudflare --dns-credentials bad.json"),
            &format!("{add} --dns-provider route53 --dns-credentials good.json"),
            &format!("{add} --dns-provider rfc2136 --dns-credentials good.json"),
            &format!("{add} --dns-provider cloudflare --dns-credentials good.json"),
        ])
        .await;
    assert!(!transcript.contains(token), "{transcript}");
    insta::assert_snapshot!(transcript);
    let other = ["domain", "add", "example.com", "box", "3000", "--json"];
    let from_input = ["--dns-provider", "cloudflare", "--dns-credentials", "-"];
    let done = server.run_with_input(&[&other[..], &from_input].concat(), text.as_bytes()).await;
    let added = done.json();
    assert_eq!(added["dns_provider"], "cloudflare", "{}", done.stderr);
    let record = |field: &str| added["txt_record"][field].as_str().expect("a text").to_owned();
    edge.put_text(&record("name"), &record("value"));
    assert_eq!(server.run(&["domain", "verify", "example.com"]).await.code, 0);
    let mut shown = edge.shown.subscribe();
    let issued = shown.wait_for(|shown| !shown.is_empty());
    tokio::time::timeout(ground::BOUND, issued).await.expect("in time").expect("issued");
    let Some(DnsProvider::Cloudflare(access)) = edge.provider() else { panic!("another provider") };
    assert_eq!(access.token.expose(), token);
}
