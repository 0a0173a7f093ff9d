//! Agents that do not keep to the protocol. Whatever they do, calls fail and end.

use bytes::BytesMut;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use skerry_agent_protocol::{call, handshake, message};
use skerry_internal_api::GuestApi;

use super::*;

/// An agent that configures like a decent one and answers everything else with `answer`.
struct Liar {
    status: u16,
    answer: Bytes,
}

#[async_trait]
impl Dial for Liar {
    async fn dial(&self) -> Result<Box<dyn Channel>, VmmError> {
        let (host, mut guest) = tokio::io::duplex(64 * 1024);
        let (status, answer) = (self.status, self.answer.clone());
        tokio::spawn(async move {
            handshake::accept(&mut guest).await.unwrap();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer.clone();
                async move {
                    let configured = message::Configured {
                        agent_version: "\u{1b}[31mliar".into(),
                        boot_id: String::new(),
                        generation: 1,
                        revision: 0,
                        incarnation: 3,
                        clock_kept: false,
                    };
                    let is_configure = request.uri().path() == call::CONFIGURE;
                    let (status, body) = if is_configure {
                        (200, Bytes::from(serde_json::to_vec(&configured).unwrap()))
                    } else {
                        (status, answer)
                    };
                    Response::builder().status(status).body(Full::new(body))
                }
            });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(guest), service)
                .await;
        });
        Ok(Box::new(host))
    }
}

async fn liar(status: u16, answer: impl Into<Bytes>) -> Arc<GuestLink> {
    let dial = Arc::new(Liar { status, answer: answer.into() });
    within(GuestLink::open(dial, hello(), TEST_WITHIN)).await.unwrap()
}

#[tokio::test]
async fn answers_without_sense_fail_their_call_alone() {
    let failure = br#"{"code":"word_of_the_future","message":"a\u001b[2Jb"}"#;
    let cases: Vec<(u16, Vec<u8>)> = vec![
        (200, b"not json".to_vec()),
        (200, b"{}".to_vec()),
        (200, vec![b' '; 3 * 1024 * 1024]),
        (500, b"oops".to_vec()),
        (422, failure.to_vec()),
        (422, br#"{"code":"no_such_file","message":"/x: no such file or directory"}"#.to_vec()),
    ];
    let mut seen = Vec::new();
    for (status, answer) in cases {
        let link = liar(status, answer).await;
        seen.push(within(link.stats()).await.unwrap_err());
        link.close().await;
    }
    insta::assert_debug_snapshot!(seen);
}

#[tokio::test]
async fn a_command_whose_frames_make_no_sense_ends_with_an_error() {
    let mut too_long = BytesMut::new();
    too_long.extend_from_slice(&[16, 0x7F, 0xFF, 0xFF, 0xFF]);
    for answer in [&too_long[..], b"\x63\0\0\0\0", b"\x12\0\0\0\x01\x09", b"", b"\x10\0\0"] {
        let link = liar(200, Bytes::copy_from_slice(answer)).await;
        let session = within(link.exec(shell("true"))).await.unwrap();
        let said = finish(session).await;
        assert!(matches!(said.error, Some(NodeError::GuestUnreachable(_))), "{said:?}");
        link.close().await;
    }
}

#[tokio::test]
async fn an_agent_that_never_answers_is_a_timeout_and_leaves_nothing() {
    struct Silent(Mutex<Vec<tokio::io::DuplexStream>>);
    #[async_trait]
    impl Dial for Silent {
        async fn dial(&self) -> Result<Box<dyn Channel>, VmmError> {
            let (host, guest) = tokio::io::duplex(1024);
            self.0.lock().unwrap().push(guest);
            Ok(Box::new(host))
        }
    }
    let dial = Arc::new(Silent(Mutex::default()));
    let outcome = within(GuestLink::open(dial, hello(), Duration::from_millis(700))).await;
    assert!(matches!(outcome, Err(NodeError::Timeout { step: "guest_ready", .. })));
}

#[tokio::test]
async fn noise_instead_of_http_is_no_connection() {
    struct Noise;
    #[async_trait]
    impl Dial for Noise {
        async fn dial(&self) -> Result<Box<dyn Channel>, VmmError> {
            let (host, mut guest) = tokio::io::duplex(64 * 1024);
            tokio::spawn(async move {
                handshake::accept(&mut guest).await.unwrap();
                while guest.write_all(&[0x5A; 4096]).await.is_ok() {}
            });
            Ok(Box::new(host))
        }
    }
    let outcome = within(GuestLink::open(Arc::new(Noise), hello(), Duration::from_secs(1))).await;
    assert!(matches!(outcome, Err(NodeError::Timeout { .. })));
}

#[tokio::test]
async fn the_agent_refuses_everything_before_configure() {
    let (mut host, guest_end) = tokio::io::duplex(64 * 1024);
    let home = tempfile::tempdir().unwrap();
    let guest = Arc::new(Guest::hosted(home.path().to_owned()));
    let serving = tokio::spawn(async move { skerry_agent::serve(guest_end, &guest).await });
    handshake::connect(&mut host, [1; 16], TEST_WITHIN).await.unwrap();
    let (mut requests, connection) = hyper::client::conn::http2::handshake::<
        _,
        _,
        super::super::call::RequestBody,
    >(TokioExecutor::new(), TokioIo::new(host))
    .await
    .unwrap();
    let refused = tokio::select! {
        ended = connection => panic!("{ended:?}"),
        refused = within(super::super::call::ask::<_, message::Stats>(
            &mut requests, call::STATS, &message::Empty {},
        )) => refused,
    };
    assert!(matches!(refused, Err(NodeError::GuestUnreachable(_))), "{refused:?}");
    drop(requests);
    let _ = within(serving).await;
}

#[tokio::test]
async fn an_agent_of_an_older_node_is_told_apart() {
    let link = liar(422, br#"{"code":"invalid","message":"there is no call"}"#.to_vec()).await;
    let bound = TEST_WITHIN;
    let refusals = [
        within(link.sync(bound)).await.err(),
        within(link.freeze(bound)).await.err(),
        within(link.thaw(bound)).await.err(),
        within(link.grow_root(1, bound)).await.err(),
        within(link.prepare_template()).await.err(),
    ];
    for refusal in refusals {
        assert!(matches!(refusal, Some(NodeError::Unsupported(_))), "{refusal:?}");
    }
    // What was there from the start is enough for this.
    within(link.reconfigure(hello(), bound)).await.unwrap();
}
