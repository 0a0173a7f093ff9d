//! Oblien's runtimes: tokens, commands and files. Snapshots are transcripts of requests and answers.
#![allow(clippy::expect_used, reason = "tests")]

#[allow(dead_code, reason = "each dialect's tests use what they need")]
mod front;

use std::{io::Write as _, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use front::{As, Front};
use serde_json::{Value, json};
use skerry_control::sim_node::SimCommand;

/// A workspace that runs, by its identity, and a token for it.
async fn enabled(front: &mut Front) -> (String, String) {
    let body = json!({ "name": "host", "image": "base" });
    let made = front.beside(As::Admin, "POST /workspace", Some(body)).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let id = made.body["workspace"]["id"].as_str().expect("an id").to_owned();
    let token = token(front, &format!("POST /workspace/{id}/runtime-api-access/enable")).await;
    (id, token)
}

async fn token(front: &Front, line: &str) -> String {
    let answer = front.beside(As::Admin, line, None).await;
    assert_eq!((answer.status.as_u16(), &answer.body["enabled"]), (200, &json!(true)), "{line}");
    answer.body["token"].as_str().expect("a token").to_owned()
}

/// The events of an answer: their names and data.
fn events(bytes: &Bytes) -> Vec<(String, Value)> {
    let text = std::str::from_utf8(bytes).expect("text");
    let mut events = Vec::new();
    for event in text.split("\n\n").filter(|event| event.starts_with("event: ")) {
        let (name, data) = event.split_once('\n').expect("two lines");
        let name = name.strip_prefix("event: ").expect("a name");
        let data = data.strip_prefix("data: ").expect("data");
        events.push((name.to_owned(), serde_json::from_str(data).expect("JSON")));
    }
    events
}

/// What the events of one name carried, joined.
fn said(events: &[(String, Value)], name: &str) -> String {
    let of_it = events.iter().filter(|(one, _)| one == name);
    let bytes: Vec<u8> = of_it
        .flat_map(|(_, data)| {
            STANDARD.decode(data["data"].as_str().expect("a text")).expect("base64")
        })
        .collect();
    String::from_utf8(bytes).expect("text")
}

#[tokio::test]
async fn access_is_enabled_shown_renewed_and_disabled() {
    let mut front = Front::open().await;
    let body = json!({ "name": "host", "image": "base" });
    let made = front.beside(As::Admin, "POST /workspace", Some(body)).await.body;
    let id = made["workspace"]["id"].as_str().expect("an id").to_owned();
    let access = format!("/workspace/{id}/runtime-api-access");
    front.call(As::Admin, &format!("GET {access}"), None).await;
    front.call(As::Admin, &format!("GET {access}/token"), None).await;
    front.call(As::Admin, &format!("POST {access}/token"), None).await;
    let first = token(&front, &format!("POST {access}/enable")).await;
    let second = token(&front, &format!("GET {access}/token")).await;
    assert_ne!(first, second, "each fetch is good for a new hour");
    front.call(As::Admin, &format!("GET {access}"), None).await;
    for token in [&first, &second] {
        assert_eq!(front.bytes(token, "GET /runtime", Vec::new()).await.0, 200);
    }
    let third = token(&front, &format!("POST /workspace/{id}/internal-api-access/token")).await;
    for token in [&first, &second] {
        assert_eq!(front.bytes(token, "GET /runtime", Vec::new()).await.0, 401);
    }
    front.runtime(&third, "GET /runtimes", None).await;
    front.runtime(&third, "GET /runtimes/default/runtime", None).await;
    front.runtime(&third, "GET /runtimes/windows/runtime", None).await;
    front.runtime(&third, "GET /desktop/status", None).await;
    front.runtime(&third, "POST /watchers", Some(json!({ "path": "/" }))).await;
    front.call(As::Other, &format!("GET {access}"), None).await;
    front.call(As::Other, &format!("POST {access}/enable"), None).await;
    front.call(As::Admin, &format!("GET {access}/token/raw"), None).await;
    front.call(As::Admin, &format!("POST {access}/disable"), None).await;
    front.runtime(&third, "GET /runtime", None).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_token_opens_one_workspace_for_an_hour_and_a_key_opens_no_runtime() {
    let mut front = Front::open().await;
    let (_, token) = enabled(&mut front).await;
    let (other, _) = enabled(&mut front).await;
    front.guest(&other).put_file("/root/mine", b"other");
    front.runtime(&token, "GET /files/read?path=/root/mine", None).await;
    front.runtime(skerry_control::testing::KEY, "GET /runtime", None).await;
    front.call(As::Nobody, "GET /exec", None).await;

    front.test.advance(Duration::from_secs(3600));
    front.runtime(&token, "GET /exec", None).await;
    // What a token opens is the runtime alone.
    let mine = front.bytes(&token, "GET /workspace", Vec::new()).await;
    assert_eq!(mine.0, 401);
}

#[tokio::test]
async fn a_command_is_awaited_with_its_output_and_its_code() {
    let mut front = Front::open().await;
    let (id, token) = enabled(&mut front).await;
    for body in [
        json!({ "cmd": ["sh", "-c", "echo hi; echo no >&2; exit 3"] }),
        json!({ "cmd": ["echo hi && pwd"], "ttl_seconds": 60 }),
        json!({ "cmd": ["pwd"], "cwd": "/home/developer", "exec_mode": "direct" }),
        json!({ "cmd": "whoami", "user": "developer" }),
        json!({ "cmd": ["cat"] }),
        json!({ "cmd": ["sleep", "9"], "timeout_seconds": 1, "ttl_seconds": -1, "keep_logs": true }),
        json!({ "cmd": ["no-such-program"] }),
        json!({ "cmd": ["true"], "cwd": "/nowhere" }),
        json!({ "cmd": [] }),
        json!({ "timeout_seconds": 5 }),
        json!({ "cmd": ["true"], "timeout_seconds": 604_801 }),
        json!({ "cmd": ["true"], "ttl_seconds": -2 }),
        json!({ "cmd": 7 }),
    ] {
        front.runtime(&token, "POST /exec", Some(body)).await;
    }
    front.runtime(&token, "GET /exec", None).await;
    front.runtime(&token, "GET /exec/1", None).await;
    front.runtime(&token, "DELETE /exec/2", None).await;
    front.runtime(&token, "GET /exec/2", None).await;
    // What has ended is forgotten when its time is over.
    front.test.advance(Duration::from_secs(300));
    front.runtime(&token, "GET /exec", None).await;
    front.runtime(&token, "DELETE /exec", None).await;
    front.beside(As::Admin, &format!("POST /workspace/{id}/stop"), None).await;
    front.runtime(&token, "POST /exec", Some(json!({ "cmd": ["true"] }))).await;
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn a_command_is_streamed_and_told_again_to_whoever_comes_later() {
    let mut front = Front::open().await;
    let (_, token) = enabled(&mut front).await;
    let body = json!({ "cmd": ["sh", "-c", "echo out; echo err >&2; exit 4"], "stream": true });
    let (status, bytes) = front.bytes(&token, "POST /exec", body.to_string().into()).await;
    let told = events(&bytes);
    assert_eq!(status, 200);
    assert_eq!(told.first(), Some(&("task_id".to_owned(), json!({ "task_id": "1" }))));
    assert_eq!((said(&told, "stdout"), said(&told, "stderr")), ("out\n".into(), "err\n".into()));
    let exit = ("exit".to_owned(), json!({ "exit_code": 4, "status": "exited" }));
    assert_eq!(told.last(), Some(&exit));
    let (_, bytes) = front.bytes(&token, "GET /exec/stream?task_id=1", Vec::new()).await;
    let output = ("output".to_owned(), json!({ "stdout": "out\n", "stderr": "err\n" }));
    assert_eq!(events(&bytes)[1..], [output, exit]);
    let none = front.bytes(&token, "GET /exec/stream?task_id=7", Vec::new()).await;
    assert_eq!(none.0, 404);
}

#[tokio::test]
async fn a_command_takes_input_until_it_is_killed_and_its_readers_are_told() {
    let mut front = Front::open().await;
    let (_, token) = enabled(&mut front).await;
    let body = json!({ "cmd": ["cat"] }).to_string();
    let streaming = front.bytes(&token, "POST /exec/stream", body.into());
    let talking = async {
        // It is there once its first event is.
        let list = async || {
            let (_, bytes) = front.bytes(&token, "GET /exec", Vec::new()).await;
            serde_json::from_slice::<Value>(&bytes).expect("JSON")
        };
        while list().await["tasks"][0]["status"] != "running" {
            tokio::task::yield_now().await;
        }
        let (status, bytes) = front.bytes(&token, "POST /exec/1/input", b"one\n".to_vec()).await;
        let told: Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!((status.as_u16(), told), (200, json!({ "success": true, "bytes_written": 4 })));
        let shown = async || {
            let (_, bytes) = front.bytes(&token, "GET /exec/1", Vec::new()).await;
            serde_json::from_slice::<Value>(&bytes).expect("JSON")
        };
        while shown().await["stdout"] != "one\n" {
            tokio::task::yield_now().await;
        }
        assert_eq!(front.bytes(&token, "DELETE /exec/1", Vec::new()).await.0, 200);
    };
    let ((_, bytes), ()) = tokio::join!(streaming, talking);
    let told = events(&bytes);
    assert_eq!(said(&told, "stdout"), "one\n");
    let (name, exit) = told.last().expect("events");
    assert_eq!((name.as_str(), &exit["exit_code"]), ("exit", &json!(137)));
    let gone = front.bytes(&token, "POST /exec/1/input", b"x".to_vec()).await;
    assert_eq!(gone.0, 404);
}

#[tokio::test]
async fn fifty_commands_run_at_a_time_and_all_end_when_access_is_disabled() {
    let mut front = Front::open().await;
    let (id, token) = enabled(&mut front).await;
    let address = front.listen().await;
    let mut streams = Vec::new();
    for _ in 0..50 {
        let body = json!({ "cmd": ["sleep", "9"] }).to_string();
        streams.push(streaming(address, &token, &body).await);
    }
    let one_more = front.runtime(&token, "POST /exec", Some(json!({ "cmd": ["true"] }))).await;
    assert_eq!((one_more.status.as_u16(), &one_more.body["code"]), (429, &json!("rate_limited")));
    let disable = format!("POST /workspace/{id}/runtime-api-access/disable");
    assert_eq!(front.beside(As::Admin, &disable, None).await.status, 200);
    for mut stream in streams {
        let ended = read_until(&mut stream, "event: exit").await;
        assert!(ended.contains("\"exit_code\":137"), "{ended}");
    }
}

/// A stream over a socket, whose first event has come.
async fn streaming(
    address: std::net::SocketAddr,
    token: &str,
    body: &str,
) -> tokio::net::TcpStream {
    use tokio::io::AsyncWriteExt as _;
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let head = format!(
        "POST /exec/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    read_until(&mut stream, "event: task_id").await;
    stream
}

/// What comes, until this and the line behind it have.
async fn read_until(stream: &mut tokio::net::TcpStream, wanted: &str) -> String {
    use tokio::io::AsyncReadExt as _;
    let mut text = String::new();
    let reading = async {
        while !text.split_once(wanted).is_some_and(|(_, rest)| rest.contains("\n\n")) {
            let mut piece = [0; 4096];
            let length = stream.read(&mut piece).await.expect("bytes");
            assert_ne!(length, 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&piece[..length]));
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reading).await.expect("in time");
    text
}

#[tokio::test]
async fn files_are_written_read_described_and_deleted() {
    let mut front = Front::open().await;
    let (_, token) = enabled(&mut front).await;
    for (line, body) in [
        ("POST /files/write", json!({ "path": "/app/a.txt", "content": "1\n" })),
        ("POST /files/mkdir", json!({ "path": "/app/deep/er" })),
        ("POST /files/write", json!({ "path": "/app/a.rs", "content": "one\ntwo\nthree" })),
        ("PUT /files/write", json!({ "path": "/app/a.rs", "content": "\nfour\n", "append": true })),
        (
            "POST /files/write",
            json!({ "path": "/app/new/b.sh", "content": "#!", "create_dirs": true, "mode": "0755" }),
        ),
        ("POST /files/write", json!({ "path": "/app/new/b.sh", "content": "#!/bin/sh" })),
        ("POST /files/write", json!({ "path": "relative", "content": "" })),
        ("POST /files/write", json!({ "path": "/app/a.txt" })),
        ("POST /files/write", json!({ "path": "/app/x", "content": "", "mode": "9" })),
        ("POST /files/write", json!({ "path": "/app", "content": "" })),
        ("POST /files/delete", json!({ "path": "/etc/" })),
        ("POST /files/delete", json!({ "path": "/app/../usr" })),
        ("POST /files/delete", json!({ "path": "/app/deep" })),
        ("POST /files/delete", json!({ "path": "/app/deep" })),
    ] {
        front.runtime(&token, line, Some(body)).await;
    }
    for line in [
        "GET /files/read?path=/app/a.rs",
        "GET /files/read?path=/app/a.rs&start_line=2&end_line=3&with_line_numbers=true",
        "GET /files/read?path=/app/a.rs&start_line=9",
        "GET /files/read?path=/app/a.rs&start_line=0",
        "GET /files/read?path=/app/none",
        "GET /files/read?path=/app",
        "GET /files/read",
        "GET /files/stat?path=/app/new/b.sh",
        "GET /files/stat?path=/app/a.rs",
        "GET /files/stat?path=/",
        "GET /files/stat?path=/none",
        "DELETE /files/delete?path=/app/a.rs",
        "GET /files?path=/app",
        "GET /files/none",
        "PATCH /files/write",
    ] {
        front.runtime(&token, line, None).await;
    }
    insta::assert_snapshot!(front.transcript());
}

/// A small project.
async fn project(front: &mut Front) -> String {
    let (id, token) = enabled(front).await;
    let guest = front.guest(&id);
    for (path, content) in [
        ("/app/.gitignore", "target/\n*.log\n!kept.log\n"),
        ("/app/README.md", "A handleRequest for everybody\n"),
        ("/app/debug.log", "handleRequest\n"),
        ("/app/kept.log", "handleRequest\n"),
        ("/app/src/main.rs", "fn main() {\n    handle_request();\n    HANDLEREQUEST\n}\n"),
        ("/app/src/lib.ts", "const x = 1;\nhandleRequest(x);\nhandleRequests(x);\n"),
        ("/app/src/.hidden", "handleRequest\n"),
        ("/app/src/blob", "handleRequest\0\n"),
        ("/app/target/out.rs", "handleRequest\n"),
    ] {
        guest.put_file(path, content.as_bytes());
    }
    token
}

#[tokio::test]
async fn directories_are_listed_with_what_is_in_them_or_without() {
    let mut front = Front::open().await;
    let token = project(&mut front).await;
    for line in [
        "GET /files?path=/app",
        "GET /files?path=/app&nested=true&light=true",
        "GET /files?path=/app&nested=true&flatten=true&light=true&use_gitignore=false",
        "GET /files?path=/app&nested=true&flatten=true&include_ext=rs&include_hash=true&include_content=true",
        "GET /files?path=/app&nested=true&flatten=true&light=true&code_files_only=true&max_depth=1",
        "GET /files?path=/app&nested=true&flatten=true&light=true&ignore_patterns=*.md,src",
        "GET /files?path=/app/README.md",
        "GET /files?path=/none",
        "GET /files?path=/app&nested=perhaps",
        "GET /files?path=/app&nested=true&max_depth=0",
    ] {
        front.runtime(&token, line, None).await;
    }
    let (status, lines) =
        front.bytes(&token, "GET /files/stream?path=/app/src&light=true", Vec::new()).await;
    assert_eq!(status, 200);
    insta::assert_snapshot!("a_stream_of_entries", String::from_utf8_lossy(&lines));
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn files_are_found_by_content_and_by_name() {
    let mut front = Front::open().await;
    let token = project(&mut front).await;
    for line in [
        "GET /files/search?q=handleRequest&path=/app",
        "GET /files/search?q=handleRequest&path=/app&case_sensitive=true&whole_word=true&context_lines=1",
        "GET /files/search?q=handle_%3FRequest&path=/app&regex=true&file_types=rust",
        "GET /files/search?q=handleRequest&path=/app&include_hidden=true&no_gitignore=true&max_results=2",
        "GET /files/search?q=(&path=/app&regex=true",
        "GET /files/search?path=/app",
        "GET /files/search?q=x&timeout=61",
        "GET /files/search?q=x&path=/none",
        "GET /files/search/files?q=LIB&path=/app",
        "GET /files/search/files?q=*.rs&path=/app&max_results=1",
        "GET /files/search/init",
        "POST /files/search/init",
    ] {
        front.runtime(&token, line, None).await;
    }
    insta::assert_snapshot!(front.transcript());
}

fn tar_gz(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o640);
        archive.append_data(&mut header, name, *content).expect("an entry");
    }
    let mut gz = archive.into_inner().expect("an archive");
    gz.flush().expect("flushed");
    gz.finish().expect("a gz")
}

#[tokio::test]
async fn archives_are_unpacked_where_they_are_told_and_broken_ones_are_refused() {
    let mut front = Front::open().await;
    let (id, token) = enabled(&mut front).await;
    let large = vec![b'x'; 3_000_000];
    let archive = tar_gz(&[("a/b.txt", b"hello"), ("large", &large)]);
    let line = "POST /files/transfer/upload?dest=/app";
    let (status, bytes) = front.bytes(&token, line, archive.clone()).await;
    let told: Value = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!(
        (status.as_u16(), told),
        (200, json!({ "success": true, "dest": "/app", "files_extracted": 2 }))
    );
    let guest = front.guest(&id);
    assert_eq!(guest.file("/app/a/b.txt").as_deref(), Some(&b"hello"[..]));
    assert_eq!(guest.file("/app/large").map(|content| content.len()), Some(large.len()));
    for broken in [b"not compressed".to_vec(), archive[..archive.len() / 2].to_vec()] {
        let (status, bytes) = front.bytes(&token, line, broken).await;
        let told: Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!((status.as_u16(), &told["success"]), (400, &json!(false)), "{told}");
    }
}

#[tokio::test]
async fn a_download_is_what_the_guests_tar_packs() {
    let mut front = Front::open().await;
    let (id, token) = enabled(&mut front).await;
    let guest = front.guest(&id);
    guest.put_file("/app/src/a", b"1");
    let packed = SimCommand { stdout: vec![7; 200_000], ..SimCommand::default() };
    guest.program("tar -czf - --exclude=.git -C /app ./src -C / ./etc", packed);
    let line = "POST /files/transfer/download";
    let body = json!({ "paths": ["/app/src/", "/etc"], "exclude_patterns": [".git"] });
    let (status, bytes) = front.bytes(&token, line, body.to_string().into()).await;
    assert_eq!((status.as_u16(), bytes.len()), (200, 200_000));
    let failing =
        SimCommand { stderr: b"tar: it broke\n".to_vec(), code: 2, ..SimCommand::default() };
    guest.program("tar -czf - -C /app ./src", failing);
    for body in [
        json!({ "paths": ["/app/src"] }),
        json!({ "paths": ["/none"] }),
        json!({ "paths": [] }),
        json!({ "paths": ["etc"] }),
        json!({ "paths": ["/etc"] }),
    ] {
        front.runtime(&token, line, Some(body)).await;
    }
    insta::assert_snapshot!(front.transcript());
}

#[tokio::test]
async fn requests_are_carried_to_ports_without_what_says_who_sends_them() {
    let mut front = Front::open().await;
    let (id, token) = enabled(&mut front).await;
    for line in [
        "GET /proxy/3000/api/users?limit=10&token=mine",
        "POST /proxy/api?x_oblien_target=127.0.0.1%3A8080&a=%20b",
        "DELETE /proxy?x_oblien_target=80",
        "GET /runtimes/local/proxy/3000/x",
        "GET /proxy/api",
        "GET /proxy/api?x_oblien_target=10.0.0.1%3A80",
        "GET /proxy/api?token=a&token=b",
    ] {
        front.runtime(&token, line, None).await;
    }
    let by_query = format!("GET /proxy/3000/?token={token}");
    let line = front.beside(As::Nobody, &by_query, None).await;
    assert_eq!((line.status.as_u16(), &line.body["line"]), (200, &json!("GET /")));
    front.call(As::Nobody, "GET /proxy/3000/", None).await;
    front.beside(As::Admin, &format!("POST /workspace/{id}/stop"), None).await;
    front.runtime(&token, "GET /proxy/3000/", None).await;
    insta::assert_snapshot!(front.transcript());
}
