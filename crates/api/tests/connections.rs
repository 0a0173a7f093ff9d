//! What a client that keeps its connection sees.
#![allow(clippy::expect_used, reason = "tests")]

use std::time::Duration;

use skerry_api::{ApiConfig, ApiState};
use skerry_control::testing;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

/// Reads one answer, whose length is announced, and returns its first line.
async fn answer(connection: &mut TcpStream) -> String {
    let mut read = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.expect("its length").parse().expect("a number");
            if body.len() >= length {
                return head.lines().next().expect("a first line").to_owned();
            }
        }
        let count = connection.read_buf(&mut read).await.expect("read");
        assert!(count > 0, "the connection was closed after {text:?}");
    }
}

#[tokio::test]
async fn who_is_refused_before_its_body_has_arrived_can_ask_again_on_the_same_connection() {
    let test = testing::open().await;
    let config = ApiConfig {
        public_url: "http://localhost:7070".to_owned(),
        base_domain: "localhost".to_owned(),
        preview_domain: "localhost".to_owned(),
        version: "0.0.0-test",
    };
    let stop = CancellationToken::new();
    let _stop_at_the_end = stop.clone().drop_guard();
    let state = ApiState::new(test.control.clone(), config, stop.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        axum::serve(listener, skerry_api::router(state))
            .with_graceful_shutdown(stop.cancelled_owned())
            .await
            .expect("serve");
    });
    let asked = async {
        let mut connection = TcpStream::connect(address).await.expect("connect");
        for (path, key, status) in [
            ("/v1/browser/interactions/click", testing::KEY, "501"),
            ("/skerry/v1/workspaces", "wrong", "401"),
            ("/v1/browser/interactions/click", testing::KEY, "501"),
        ] {
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\
                 content-type: application/json\r\ncontent-length: 2\r\n\r\n"
            );
            // In two pieces, as many clients send it.
            connection.write_all(head.as_bytes()).await.expect("write");
            tokio::task::yield_now().await;
            connection.write_all(b"{}").await.expect("write");
            let first_line = answer(&mut connection).await;
            assert!(first_line.contains(status), "{path}: {first_line}");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asked).await.expect("answers in time");
}
