use std::{
    collections::{BTreeMap, HashMap},
    future::IntoFuture as _,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{delete, get},
};
use skerry_model::Secret;
use tokio::{net::TcpListener, task::JoinSet};

use super::*;

const TOKEN: &str = "a-token";
const ZONE: &str = "023e105f4ecef8ad9ca31a8372d0c353";

/// What their API does with one zone, `example.com`.
#[derive(Clone, Default)]
struct Played(Arc<Mutex<BTreeMap<String, (String, String)>>>);

fn said(result: Value) -> Json<Value> {
    Json(json!({ "success": true, "errors": [], "messages": [], "result": result }))
}

fn refused(status: u16, code: u64, message: &str) -> Response {
    let errors = json!([{ "code": code, "message": message }]);
    let body = Json(json!({ "success": false, "errors": errors, "messages": [], "result": null }));
    (StatusCode::from_u16(status).unwrap(), body).into_response()
}

async fn known(request: Request, next: Next) -> Response {
    match request.headers().get("authorization").map(|value| value.to_str().unwrap()) {
        Some(value) if value == format!("Bearer {TOKEN}") => next.run(request).await,
        _ => refused(403, 9109, "Invalid access token"),
    }
}

async fn zones(Query(query): Query<HashMap<String, String>>) -> Json<Value> {
    let ours = query["name"] == "example.com";
    said(if ours { json!([{ "id": ZONE, "name": "example.com" }]) } else { json!([]) })
}

async fn list(
    State(played): State<Played>,
    Query(query): Query<HashMap<String, String>>,
) -> Json<Value> {
    assert_eq!(query["type"], "TXT");
    let records = played.0.lock().unwrap();
    let asked = (query["name"].clone(), query["content"].clone());
    let found = records.iter().filter(|(_, record)| **record == asked);
    said(found.map(|(id, _)| json!({ "id": id })).collect())
}

async fn add(State(played): State<Played>, Json(body): Json<Value>) -> Response {
    assert_eq!((body["type"].as_str(), body["ttl"].as_u64()), (Some("TXT"), Some(60)));
    let text = |field: &str| body[field].as_str().unwrap().to_owned();
    let record = (text("name"), text("content"));
    let mut records = played.0.lock().unwrap();
    if records.values().any(|there| *there == record) {
        return refused(400, 81_058, "An identical record already exists.");
    }
    let id = format!("record{}", records.len());
    records.insert(id.clone(), record);
    said(json!({ "id": id })).into_response()
}

async fn take(State(played): State<Played>, Path((_, id)): Path<(String, String)>) -> Json<Value> {
    assert!(played.0.lock().unwrap().remove(&id).is_some());
    said(json!({ "id": id }))
}

struct Ground {
    api: CloudflareApi,
    played: Played,
    _serving: JoinSet<std::io::Result<()>>,
}

impl Ground {
    async fn open() -> Self {
        let played = Played::default();
        let router = Router::new()
            .route("/zones", get(zones))
            .route(&format!("/zones/{ZONE}/dns_records"), get(list).post(add))
            .route("/zones/{zone}/dns_records/{record}", delete(take))
            .layer(middleware::from_fn(known))
            .with_state(played.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let mut serving = JoinSet::new();
        serving.spawn(axum::serve(listener, router).into_future());
        let client = Client::builder().no_proxy().build().unwrap();
        Self { api: CloudflareApi { client, base }, played, _serving: serving }
    }
}

fn access(token: &str) -> CloudflareAccess {
    CloudflareAccess { token: Secret::new(token), settle: Duration::ZERO }
}

fn name(text: &str) -> HostName {
    HostName::parse(text).unwrap()
}

#[tokio::test]
async fn a_text_is_put_beside_those_that_are_there_and_taken_away_alone() {
    let ground = Ground::open().await;
    let access = access(TOKEN);
    let records = Cloudflare::new(&ground.api, &access);
    let challenge = name("_acme-challenge.www.example.com");
    for text in ["one", "two", "one"] {
        records.put(&challenge, text).await.unwrap();
    }
    let texts = || {
        let records = ground.played.0.lock().unwrap();
        records.values().map(|(name, text)| format!("{name} {text}")).collect::<Vec<_>>()
    };
    assert_eq!(texts(), [format!("{challenge} \"one\""), format!("{challenge} \"two\"")]);
    for _ in 0..2 {
        records.remove(&challenge, "one").await.unwrap();
        assert_eq!(texts(), [format!("{challenge} \"two\"")]);
    }
}

#[tokio::test]
async fn a_zone_or_a_token_that_is_not_known_is_told_without_the_token() {
    let ground = Ground::open().await;
    let known = access(TOKEN);
    let elsewhere = name("_acme-challenge.www.example.org");
    let records = Cloudflare::new(&ground.api, &known);
    let EdgeError(why) = records.put(&elsewhere, "one").await.unwrap_err();
    assert!(why.contains("no zone of _acme-challenge.www.example.org"), "{why}");
    let unknown = access("hunter2");
    let records = Cloudflare::new(&ground.api, &unknown);
    let EdgeError(why) = records.put(&elsewhere, "one").await.unwrap_err();
    assert_eq!(why, "Cloudflare refuses: Invalid access token (9109)");
}

#[tokio::test]
async fn an_api_that_is_not_there_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let api = CloudflareApi { client: Client::builder().no_proxy().build().unwrap(), base };
    let access = access(TOKEN);
    let records = Cloudflare::new(&api, &access);
    let EdgeError(why) = records.put(&name("a.example.com"), "x").await.unwrap_err();
    assert_eq!(why, "Cloudflare cannot be reached");
}
