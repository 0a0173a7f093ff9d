//! Visits of ports in workspaces of a simulated node, through the whole gateway: real sockets in
//! front, real HTTP on both sides.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "previews/ground.rs"]
mod ground;

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    extract::{Request, WebSocketUpgrade, ws},
    response::{IntoResponse as _, Response},
    routing::{any, get, post},
};
use futures::{SinkExt as _, StreamExt as _, stream};
use ground::{Ground, WITHIN, chunks, h1, h2, head_of, read_until};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use skerry_control::PortVisibility;
use skerry_gateway::http::Limits;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, tungstenite};

async fn echo(request: Request) -> Response {
    Body::from_stream(request.into_body().into_data_stream()).into_response()
}

async fn counted(request: Request) -> String {
    let mut body = request.into_body().into_data_stream();
    let mut count = 0;
    while let Some(piece) = body.next().await {
        count += piece.unwrap().len();
    }
    count.to_string()
}

async fn chat(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async |mut socket| {
        while let Some(Ok(message)) = socket.recv().await {
            if let ws::Message::Text(text) = message {
                let answer = ws::Message::Text(format!("you said {text}").into());
                if socket.send(answer).await.is_err() {
                    return;
                }
            }
        }
    })
}

fn site() -> Router {
    Router::new()
        .route("/hello", get(async || "hello"))
        .route("/echo", post(echo))
        .route("/count", post(counted))
        .route("/chat", any(chat))
}

#[tokio::test]
async fn a_server_inside_sees_the_visitor_and_none_of_the_gateways_secrets() {
    let ground = Ground::open().await;
    let mut seen = ground.raw(3000, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    ground.publish(3000, "front", PortVisibility::Public).await;
    let answer = h1(
        &ground,
        "GET /a//b?skerry_token=secret&x=%20 HTTP/1.1\r\nHost: front.localhost:7070\r\n\
         X-Forwarded-For: 1.2.3.4\r\nX-Skerry-Key: secret\r\nCookie: skerry_preview=secret; a=b\r\n\
         Authorization: Bearer the-apps-own\r\nConnection: close, x-hop\r\nX-Hop: 1\r\n\r\n",
    )
    .await;
    // The token of a first visit is turned into a cookie.
    assert!(answer.starts_with("HTTP/1.1 303 "), "{answer}");
    assert!(answer.contains("location: /a//b?x=%20\r\n"), "{answer}");
    let answer = h1(
        &ground,
        "GET /a//b?x=%20 HTTP/1.1\r\nHost: front.localhost:7070\r\n\
         X-Forwarded-For: 1.2.3.4\r\nX-Skerry-Key: secret\r\nCookie: skerry_preview=secret; a=b\r\n\
         Authorization: Bearer the-apps-own\r\nConnection: close, x-hop\r\nX-Hop: 1\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok"), "{answer}");
    let head = timeout(WITHIN, seen.recv()).await.unwrap().unwrap();
    insta::assert_snapshot!(head.replace('\r', ""), @r"
    GET /a//b?x=%20 HTTP/1.1
    host: localhost:3000
    authorization: Bearer the-apps-own
    cookie: a=b
    x-forwarded-for: 127.0.0.1
    x-forwarded-proto: http
    x-forwarded-host: front.localhost:7070
    ");
    ground.close().await;
}

#[tokio::test]
async fn both_versions_of_http_reach_a_server_inside() {
    let ground = Ground::serving(site()).await;
    let answer =
        h1(&ground, "GET /hello HTTP/1.1\r\nHost: front.localhost\r\nConnection: close\r\n\r\n")
            .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hello"), "{answer}");

    let mut client = h2(&ground).await;
    for _ in 0..3 {
        let request =
            http::Request::get("http://front.localhost/hello").body(Body::empty()).unwrap();
        let answer = client.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.collect().await.unwrap().to_bytes(), "hello");
    }
    ground.close().await;
}

#[tokio::test]
async fn both_directions_stream_at_the_same_time() {
    let ground = Ground::serving(site()).await;
    let mut client = h2(&ground).await;
    let (send, pieces) = mpsc::channel::<Result<bytes::Bytes, std::io::Error>>(1);
    let body = Body::from_stream(tokio_stream(pieces));
    let request = http::Request::post("http://front.localhost/echo").body(body).unwrap();
    send.send(Ok("first".into())).await.unwrap();
    let mut answer = client.send_request(request).await.unwrap().into_body();
    // The second piece is sent when the first has come back.
    for piece in ["first", "second", "third"] {
        let back = timeout(WITHIN, answer.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(back.into_data().unwrap(), piece);
        let next = match piece {
            "first" => "second",
            "second" => "third",
            _ => break,
        };
        send.send(Ok(next.into())).await.unwrap();
    }
    drop(send);
    let rest = timeout(WITHIN, answer.collect()).await.unwrap().unwrap();
    assert!(rest.to_bytes().is_empty());
    ground.close().await;
}

fn tokio_stream<T: Send + 'static>(
    pieces: mpsc::Receiver<T>,
) -> impl futures::Stream<Item = T> + Send + 'static {
    stream::unfold(pieces, async |mut pieces| Some((pieces.recv().await?, pieces)))
}

#[tokio::test]
async fn events_are_passed_on_one_by_one() {
    let ground = Ground::open().await;
    let (send, events) = mpsc::channel::<Result<bytes::Bytes, std::io::Error>>(1);
    let events = std::sync::Arc::new(tokio::sync::Mutex::new(Some(events)));
    let route = get(async move || {
        let events = events.lock().await.take().unwrap();
        ([("content-type", "text/event-stream")], Body::from_stream(tokio_stream(events)))
    });
    ground.serve(3000, Router::new().route("/events", route));
    ground.publish(3000, "front", PortVisibility::Public).await;
    let mut visitor = TcpStream::connect(ground.front).await.unwrap();
    visitor.write_all(b"GET /events HTTP/1.1\r\nHost: front.localhost\r\n\r\n").await.unwrap();
    let head = read_until(&mut visitor, "\r\n\r\n").await;
    assert!(head.contains("text/event-stream"), "{head}");
    for number in 0..3 {
        send.send(Ok(format!("data: {number}\n\n").into())).await.unwrap();
        let event = read_until(&mut visitor, &format!("data: {number}\n\n")).await;
        assert!(!event.contains(&format!("data: {}", number + 1)));
    }
    ground.close().await;
}

#[tokio::test]
async fn a_large_upload_arrives_whole() {
    let ground = Ground::serving(site()).await;
    let pieces = (0..1024).map(|_| Ok::<_, std::io::Error>(bytes::Bytes::from(vec![7; 64 * 1024])));
    let body = Body::from_stream(stream::iter(pieces));
    let request = http::Request::post("http://front.localhost/count").body(body).unwrap();
    let answer = h2(&ground).await.send_request(request).await.unwrap();
    let counted = answer.collect().await.unwrap().to_bytes();
    assert_eq!(counted, (64 * 1024 * 1024).to_string());
    ground.close().await;
}

async fn says_back<S>(socket: &mut WebSocketStream<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    socket.send(tungstenite::Message::text("hello")).await.unwrap();
    let answer = timeout(WITHIN, socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.into_text().unwrap(), "you said hello");
}

#[tokio::test]
async fn a_websocket_is_open_until_its_port_is_revoked() {
    let ground = Ground::serving(site()).await;
    let (mut socket, answer) = ground.chat().await;
    assert_eq!(answer.status(), 101);
    says_back(&mut socket).await;
    ground.revoke(3000).await;
    let ended = timeout(WITHIN, socket.next()).await.unwrap();
    assert!(matches!(ended, None | Some(Err(_))), "{ended:?}");
    let answer = h1(&ground, "GET /hello HTTP/1.0\r\nHost: front.localhost\r\n\r\n").await;
    assert!(answer.contains("x-skerry-error: unknown"), "{answer}");
    ground.close().await;
}

#[tokio::test]
async fn a_websocket_is_opened_over_http_2_too() {
    let ground = Ground::serving(site()).await;
    let mut client = h2(&ground).await;
    let request = http::Request::connect("http://front.localhost/chat")
        .extension(hyper::ext::Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(Body::empty())
        .unwrap();
    let mut answer = client.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.headers().get("sec-websocket-accept").is_none());
    let stream = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
    let role = tungstenite::protocol::Role::Client;
    let mut socket = WebSocketStream::from_raw_socket(stream, role, None).await;
    says_back(&mut socket).await;
    ground.close().await;
}

#[tokio::test]
async fn a_private_port_opens_to_its_token_in_every_form_and_to_nobody_else() {
    let ground = Ground::open().await;
    ground.serve(3000, site());
    let token = ground.publish(3000, "front", PortVisibility::Private).await.unwrap();
    let visit = async |path: &str, line: &str| {
        let line = if line.is_empty() { String::new() } else { format!("{line}\r\n") };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: front.localhost\r\nConnection: close\r\n{line}\r\n"
        );
        h1(&ground, &request).await
    };
    for refused in [
        visit("/hello", "").await,
        visit("/hello", "X-Skerry-Token: wrong").await,
        visit("/hello", "X-Skerry-Key: wrong").await,
        visit("/hello", "Cookie: skerry_preview=wrong").await,
        visit("/hello?skerry_token=wrong", "").await,
        visit("/hello", &format!("Authorization: Bearer {token}")).await,
    ] {
        assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
        assert!(!refused.to_lowercase().contains("set-cookie"), "{refused}");
    }
    let key = skerry_control::testing::KEY;
    for line in [
        format!("X-Skerry-Token: {token}"),
        format!("X-Skerry-Key: {key}"),
        format!("X-Rigbox-Key: {key}"),
        format!("Cookie: skerry_preview=wrong; skerry_preview={token}"),
    ] {
        let answer = visit("/hello", &line).await;
        assert!(answer.ends_with("hello"), "{line}: {answer}");
    }
    let first = visit(&format!("/hello?skerry_token={token}"), "").await;
    assert!(first.starts_with("HTTP/1.1 303 "), "{first}");
    assert!(first.contains("location: /hello\r\n"), "{first}");
    assert!(first.contains(&format!("set-cookie: skerry_preview={token}; ")), "{first}");
    ground.close().await;
}

#[tokio::test]
async fn another_accounts_key_and_a_token_in_a_host_open_what_is_theirs_alone() {
    let ground = Ground::open().await;
    ground.serve(3000, site());
    ground.publish(3000, "front", PortVisibility::Private).await;
    let (_, other) = ground.test.other_caller("other").await;
    let visit = async |host: &str, line: &str| {
        let request =
            format!("GET /hello HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{line}\r\n");
        h1(&ground, &request).await
    };
    let answer = visit("front.localhost", &format!("X-Skerry-Key: {}\r\n", other.expose())).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");

    let id = format!("{}", ground.workspace.id);
    let prefix = id.split('-').next().unwrap();
    let token = ground.workspace.preview_token.expose();
    let answer = visit(&format!("3000-{prefix}-{token}.preview.localhost"), "").await;
    assert!(answer.ends_with("hello"), "{answer}");
    assert!(answer.contains("access-control-allow-origin: *"), "{answer}");
    let wrong = "x".repeat(32);
    let answer = visit(&format!("3000-{prefix}-{wrong}.localhost"), "").await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let answer = visit(&format!("3000-00000000-{token}.localhost"), "").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    ground.close().await;
}

#[tokio::test]
async fn a_visitor_is_told_what_is_wrong_in_the_form_they_read() {
    let ground = Ground::open().await;
    ground.publish(3000, "front", PortVisibility::Public).await;
    let visit = async |host: &str, accept: &str| {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {host}.localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        );
        let answer = h1(&ground, &request).await;
        answer.lines().filter(|line| !line.starts_with("date: ")).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!("nothing_listens", visit("front", "text/html").await);
    insta::assert_snapshot!("nothing_listens_json", visit("front", "application/json").await);
    insta::assert_snapshot!("unknown_json", visit("nobody", "application/json").await);
    ground.stop().await;
    insta::assert_snapshot!("not_running_json", visit("front", "application/json").await);
    assert!(visit("api", "*/*").await.contains("the front"), "what is the server's own stays so");
    ground.close().await;
}

#[tokio::test]
async fn a_visit_wakes_a_workspace_and_waits_for_its_server() {
    let ground = Ground::sleepy().await;
    ground.publish(3000, "front", PortVisibility::Public).await;
    ground.suspend().await;
    let mut visits: Vec<_> = Vec::new();
    for _ in 0..4 {
        let mut visitor = TcpStream::connect(ground.front).await.unwrap();
        visitor
            .write_all(b"GET /hello HTTP/1.1\r\nHost: front.localhost\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        visits.push(visitor);
    }
    ground.until_running().await;
    ground.serve(3000, site());
    for mut visitor in visits {
        let mut answer = String::new();
        timeout(WITHIN, visitor.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.ends_with("hello"), "{answer}");
    }
    ground.close().await;
}

#[tokio::test]
async fn a_workspace_with_as_many_visitors_as_it_can_have_says_so() {
    let limits = Limits { connections: 1, waiting: 0, ..Limits::default() };
    let ground = Ground::with(limits).await;
    ground.serve(3000, site());
    ground.publish(3000, "front", PortVisibility::Public).await;
    let (mut socket, _) = ground.chat().await;
    says_back(&mut socket).await;
    let answer = h1(&ground, "GET /hello HTTP/1.0\r\nHost: front.localhost\r\n\r\n").await;
    assert!(answer.contains(" 503 ") && answer.contains("retry-after: 1\r\n"), "{answer}");
    assert!(answer.contains("x-skerry-error: busy"), "{answer}");
    ground.close().await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up() {
    let limits = Limits { answer_within: Duration::from_millis(200), ..Limits::default() };
    let ground = Ground::with(limits).await;
    let never = get(async || std::future::pending::<String>().await);
    ground.serve(3000, Router::new().route("/hello", never));
    ground.publish(3000, "front", PortVisibility::Public).await;
    let answer = h1(&ground, "GET /hello HTTP/1.0\r\nHost: front.localhost\r\n\r\n").await;
    assert!(answer.contains(" 504 ") && answer.contains("x-skerry-error: too_slow"), "{answer}");
    ground.close().await;
}

#[tokio::test]
async fn an_answer_that_is_no_http_or_was_not_asked_for_is_not_passed_on() {
    let ground = Ground::open().await;
    for (port, said) in [
        (3001, "SSH-2.0-OpenSSH\r\n\r\n"),
        (3002, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"),
        (3003, ""),
        (3004, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok"),
    ] {
        let _seen = ground.raw(port, said).await;
        let slug = format!("front-{port}");
        ground.publish(port, &slug, PortVisibility::Public).await;
        let request = format!("GET / HTTP/1.0\r\nHost: {slug}.localhost\r\n\r\n");
        let answer = h1(&ground, &request).await;
        assert!(answer.contains("x-skerry-error: no_answer"), "{said}: {answer}");
    }
    ground.close().await;
}

#[tokio::test]
async fn no_request_is_smuggled_past_another() {
    let ground = Ground::open().await;
    let mut paths = ground.paths(3000);
    ground.publish(3000, "front", PortVisibility::Public).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: front.localhost\r\n\r\n";
    let length = smuggled.len();
    let chunked = format!("{length:x}\r\n{smuggled}\r\n0\r\n\r\n");
    let attempts = [
        // Two lengths.
        format!("Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{smuggled}"),
        format!("Content-Length: 0, {length}\r\n\r\n{smuggled}"),
        format!("Content-Length: +{length}\r\n\r\n{smuggled}"),
        format!("Content-Length: 0x{length:x}\r\n\r\n{smuggled}"),
        // A length and chunks, whichever is first.
        format!("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{chunked}"),
        // Chunks that not everybody takes for such.
        format!("Transfer-Encoding: xchunked\r\n\r\n{chunked}"),
        format!("Transfer-Encoding: chunked, identity\r\n\r\n{chunked}"),
        format!("Transfer-Encoding : chunked\r\nContent-Length: {length}\r\n\r\n{smuggled}"),
        format!(
            "X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n{smuggled}"
        ),
        format!("Transfer-Encoding: \x0bchunked\r\nContent-Length: {length}\r\n\r\n{smuggled}"),
        // Headers that one side keeps to itself.
        format!("Connection: content-length\r\nContent-Length: {length}\r\n\r\n{smuggled}"),
        format!("Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"),
        // Another protocol on the same connection.
        format!(
            "Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\
             \r\nContent-Length: {length}\r\n\r\n{smuggled}"
        ),
        // Lines inside a line.
        format!("X: a\rGET /smuggled HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{smuggled}"),
        format!("X: a\0b\r\nContent-Length: {length}\r\n\r\n{smuggled}"),
        // Another host.
        format!("Host: localhost\r\nContent-Length: {length}\r\n\r\n{smuggled}"),
    ];
    for attempt in attempts {
        let request = format!(
            "POST /seen HTTP/1.1\r\nHost: front.localhost\r\nConnection: close\r\n{attempt}"
        );
        let answer = h1(&ground, &request).await;
        let status = head_of(&answer);
        let passed = std::iter::from_fn(|| paths.try_recv().ok()).collect::<Vec<_>>();
        match passed.as_slice() {
            [] => assert!(status.contains(" 400 "), "{attempt:?}: {answer}"),
            [only] => assert_eq!(only, "/seen", "{attempt:?}"),
            many => panic!("{attempt:?}: {many:?}"),
        }
        assert_eq!(chunks(&answer), 1, "{attempt:?}: {answer}");
    }
    ground.close().await;
}

#[tokio::test]
async fn what_is_open_ends_with_the_gateway() {
    let ground = Ground::serving(site()).await;
    let (mut socket, _) = ground.chat().await;
    says_back(&mut socket).await;
    ground.close().await;
    let ended = timeout(WITHIN, socket.next()).await.unwrap();
    assert!(matches!(ended, None | Some(Err(_))), "{ended:?}");
}

#[tokio::test]
async fn what_was_opened_elsewhere_is_carried_with_its_websockets_until_it_is_closed() {
    let ground = Ground::open().await;
    ground.serve(3000, site());
    let (address, closed) = ground.carrying(3000).await;
    let mut visitor = TcpStream::connect(address).await.unwrap();
    visitor.write_all(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(read_until(&mut visitor, "hello").await.starts_with("HTTP/1.1 200 "));
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async("ws://x/chat", stream).await.unwrap();
    socket.send(tungstenite::Message::text("hi")).await.unwrap();
    let said = timeout(WITHIN, socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(said.into_text().unwrap(), "you said hi");
    closed.cancel();
    let ended = timeout(WITHIN, socket.next()).await.unwrap();
    assert!(!matches!(ended, Some(Ok(tungstenite::Message::Text(_)))), "{ended:?}");
    let (nobody, _) = ground.carrying(4000).await;
    let mut visitor = TcpStream::connect(nobody).await.unwrap();
    visitor.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let answer = read_until(&mut visitor, "}}").await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("application/json"), "{answer}");
    ground.close().await;
}
