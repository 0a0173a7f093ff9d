//! VMs that stand still. The agent is a scripted one without processes, so that time can be virtual.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicU32, Ordering},
};

use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use skerry_agent_protocol::{REVISION, call, frame::Output, handshake, message, message::ExecEnd};
use skerry_internal_api::GuestApi;
use tokio::{
    io::DuplexStream,
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// An agent whose machine can be stopped.
struct Machine {
    runs: watch::Sender<bool>,
    dials: AtomicU32,
    pings: AtomicU32,
    knows_ping: bool,
    /// What the one command says next.
    says: Mutex<Option<mpsc::Receiver<Output>>>,
    to_say: mpsc::Sender<Output>,
}

impl Machine {
    fn new(knows_ping: bool) -> Arc<Self> {
        let (to_say, says) = mpsc::channel(4);
        Arc::new(Self {
            runs: watch::Sender::new(true),
            dials: AtomicU32::new(0),
            pings: AtomicU32::new(0),
            knows_ping,
            says: Mutex::new(Some(says)),
            to_say,
        })
    }

    async fn link(self: &Arc<Self>) -> Arc<GuestLink> {
        GuestLink::open(Arc::new(MachineDial(Arc::clone(self))), hello(), TEST_WITHIN)
            .await
            .unwrap()
    }

    fn dials(&self) -> u32 {
        self.dials.load(Ordering::Relaxed)
    }

    fn answer(&self, path: &str) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        let json = |status: u16, json: String| {
            Response::builder().status(status).body(Full::from(json).boxed_unsync()).unwrap()
        };
        match path {
            call::CONFIGURE => {
                let configured = message::Configured {
                    agent_version: "scripted".into(),
                    boot_id: String::new(),
                    generation: 1,
                    revision: REVISION,
                    incarnation: 3,
                    clock_kept: false,
                };
                json(200, serde_json::to_string(&configured).unwrap())
            }
            call::PING => {
                self.pings.fetch_add(1, Ordering::Relaxed);
                if self.knows_ping {
                    return json(200, String::from("{}"));
                }
                json(422, String::from(r#"{"code":"invalid","message":"there is no call"}"#))
            }
            call::EXEC => {
                let says = self.says.lock().unwrap().take().expect("one command");
                let frames = futures::stream::unfold(says, |mut says| async {
                    let output = says.recv().await?;
                    Some((Ok(Frame::data(output.encode())), says))
                });
                Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)))
            }
            other => panic!("{other}"),
        }
    }

    async fn serve(self: Arc<Self>, mut io: DuplexStream) {
        if handshake::accept(&mut io).await.is_err() {
            return;
        }
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = self.answer(request.uri().path());
            async { Ok::<_, Infallible>(answer) }
        });
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(io), service)
            .await;
    }
}

struct MachineDial(Arc<Machine>);

#[async_trait]
impl Dial for MachineDial {
    async fn dial(&self) -> Result<Box<dyn Channel>, VmmError> {
        self.0.dials.fetch_add(1, Ordering::Relaxed);
        let (host, mut line) = tokio::io::duplex(64 * 1024);
        let (mut socket, agent) = tokio::io::duplex(64 * 1024);
        tokio::spawn(Arc::clone(&self.0).serve(agent));
        let mut runs = self.0.runs.subscribe();
        tokio::spawn(async move {
            let carry = tokio::io::copy_bidirectional(&mut line, &mut socket);
            tokio::pin!(carry);
            loop {
                let _ = runs.wait_for(|runs| *runs).await;
                tokio::select! {
                    biased;
                    _ = runs.wait_for(|runs| !runs) => {}
                    _ = &mut carry => return,
                }
            }
        });
        Ok(Box::new(host))
    }
}

async fn command(link: &GuestLink) -> ExecSession {
    link.exec(shell("whatever")).await.unwrap()
}

async fn says(machine: &Machine, session: &mut ExecSession) {
    machine.to_say.send(Output::Stdout(Bytes::from_static(b"still here"))).await.unwrap();
    machine.to_say.send(Output::Exit(ExecEnd::Code(5))).await.unwrap();
    let said = session.output.recv().await.unwrap().unwrap();
    assert!(matches!(said, ExecOutput::Stdout(bytes) if bytes == "still here"));
    let said = session.output.recv().await.unwrap().unwrap();
    assert!(matches!(said, ExecOutput::Exit(ExecExit::Code(5))));
}

#[tokio::test(start_paused = true)]
async fn a_command_survives_a_pause_of_any_length() {
    let machine = Machine::new(true);
    let link = machine.link().await;
    let mut session = command(&link).await;
    for _ in 0..3 {
        sleep(Duration::from_secs(25)).await;
        link.hold();
        machine.runs.send_replace(false);
        sleep(DAY).await;
        machine.runs.send_replace(true);
        link.release();
    }
    sleep(Duration::from_secs(100)).await;
    says(&machine, &mut session).await;
    assert_eq!(machine.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_falls_silent_under_a_command_is_dialled_again() {
    let machine = Machine::new(true);
    let link = machine.link().await;
    let mut session = command(&link).await;
    machine.runs.send_replace(false);
    let began = Instant::now();
    let said = session.output.recv().await.unwrap();
    assert!(matches!(said, Err(NodeError::GuestUnreachable(_))), "{said:?}");
    assert!(began.elapsed() <= Duration::from_secs(42), "{:?}", began.elapsed());
    machine.runs.send_replace(true);
    link.reconfigure(hello(), TEST_WITHIN).await.unwrap();
    assert!(machine.dials() > 1);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_answer_after_a_pause_is_dialled_again() {
    let machine = Machine::new(true);
    let link = machine.link().await;
    link.hold();
    machine.runs.send_replace(false);
    sleep(DAY).await;
    assert!(link.is_connected());
    link.release();
    sleep(Duration::from_secs(60)).await;
    assert!(!link.is_connected());
    machine.runs.send_replace(true);
    link.reconfigure(hello(), TEST_WITHIN).await.unwrap();
    assert!(machine.dials() > 1);
}

#[tokio::test(start_paused = true)]
async fn an_idle_guest_is_asked_nothing() {
    let machine = Machine::new(true);
    let _link = machine.link().await;
    sleep(DAY).await;
    assert_eq!(machine.pings.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn an_older_agent_shows_that_it_is_there_by_refusing() {
    let machine = Machine::new(false);
    let link = machine.link().await;
    let mut session = command(&link).await;
    sleep(DAY).await;
    says(&machine, &mut session).await;
    assert!(machine.pings.load(Ordering::Relaxed) > 1000);
    assert_eq!(machine.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_made_during_a_pause_waits_for_its_end_but_not_for_ever() {
    let machine = Machine::new(true);
    let link = machine.link().await;
    link.hold();
    machine.runs.send_replace(false);
    let refused = link.reconfigure(hello(), DAY).await;
    let paused = NodeError::GuestUnreachable(String::from("its VM is paused"));
    assert_eq!(refused, Err(paused));
    let (made, ()) = tokio::join!(link.exec(shell("whatever")), async {
        sleep(Duration::from_secs(9)).await;
        machine.runs.send_replace(true);
        link.release();
    });
    says(&machine, &mut made.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_machine_is_not_dialled() {
    let machine = Machine::new(true);
    let link = machine.link().await;
    let _session = command(&link).await;
    // Lost just before the pause.
    machine.runs.send_replace(false);
    sleep(Duration::from_secs(45)).await;
    link.hold();
    // What was being dialled is given up.
    sleep(Duration::from_secs(20)).await;
    let dials = machine.dials();
    sleep(DAY).await;
    assert_eq!(machine.dials(), dials);
    within(link.close()).await;
}
