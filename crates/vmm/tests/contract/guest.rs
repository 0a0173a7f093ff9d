//! A host's side of the agent's protocol, just enough to run commands in a real guest.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use skerry_agent_protocol::{
    call, frame, handshake, head,
    message::{Configure, Exec, ExecEnd, User},
};
use skerry_vmm::Vm;
use tokio::task::JoinSet;

/// Under emulation and beside other tests the first command of a guest takes seconds.
const WITHIN: Duration = Duration::from_secs(60);

/// A connection to a guest's agent, whose guest has its clock and is nobody's.
pub(crate) struct Guest {
    requests: http2::SendRequest<Full<Bytes>>,
    _connection: JoinSet<()>,
}

impl Guest {
    pub(crate) async fn meet(vm: &Arc<dyn Vm>, nonce: u8) -> Self {
        tokio::time::timeout(WITHIN, Self::connect(vm, nonce)).await.expect("it answers in time")
    }

    async fn connect(vm: &Arc<dyn Vm>, nonce: u8) -> Self {
        let mut channel = vm.connect_guest().await.unwrap();
        handshake::connect(&mut channel, [nonce; 16], WITHIN).await.unwrap();
        let (requests, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(channel)).await.unwrap();
        let mut running = JoinSet::new();
        running.spawn(async move {
            let _ = connection.await;
        });
        let mut guest = Self { requests, _connection: running };
        guest.configure(nonce).await;
        guest
    }

    /// Sent first on every connection, and once more to a guest that was paused.
    pub(crate) async fn configure(&mut self, nonce: u8) {
        let configure = Configure {
            hostname: "contract".into(),
            machine_id: "0123456789abcdef".repeat(2),
            entropy: vec![nonce; 64],
            unix_time_ns: 1_900_000_000_000_000_000,
            env: BTreeMap::new(),
            incarnation: 1,
        };
        self.ask(call::CONFIGURE, &configure, &[]).await;
    }

    /// Runs a script as root, which has to succeed, and returns what it says.
    pub(crate) async fn run(&mut self, script: &str) -> String {
        let exec = Exec {
            argv: ["sh", "-ec", script].map(String::from).into(),
            env: BTreeMap::new(),
            working_dir: None,
            user: User::Root,
            terminal: None,
            timeout_ms: None,
        };
        let no_input = frame::Input::CloseStdin.encode();
        let asked = self.ask(call::EXEC, &exec, &no_input);
        let answer = tokio::time::timeout(WITHIN, asked).await;
        let answer = answer.unwrap_or_else(|_| panic!("it does not end in time: {script}"));
        let mut frames = BytesMut::from(&answer[..]);
        let mut said = Vec::new();
        loop {
            match frame::Output::take(&mut frames).unwrap().expect("an exit is said") {
                frame::Output::Stdout(bytes) | frame::Output::Stderr(bytes) => said.extend(bytes),
                frame::Output::Exit(end) => {
                    let said = String::from_utf8(said).unwrap();
                    assert_eq!(end, ExecEnd::Code(0), "{script}: {said}");
                    return said.trim_end().to_owned();
                }
            }
        }
    }

    async fn ask(&mut self, path: &str, message: &impl Serialize, after: &[u8]) -> Bytes {
        let body = [&head::encode(message).unwrap()[..], after].concat();
        let request = Request::post(format!("http://guest{path}")).body(Full::from(body)).unwrap();
        self.requests.ready().await.unwrap();
        let response = self.requests.send_request(request).await.unwrap();
        let status = response.status();
        let answer = response.into_body().collect().await.unwrap().to_bytes();
        assert!(status.is_success(), "{path}: {status}: {}", String::from_utf8_lossy(&answer));
        answer
    }
}
