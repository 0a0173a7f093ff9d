//! How often a guest that is slow to answer is told the time.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use skerry_agent_protocol::{REVISION, call, handshake, message};
use skerry_vmm::{Channel, VmmError};
use tokio::time::sleep;

use super::{Dial, GuestLink, TEST_WITHIN, hello};

/// What becomes of the guest's clock when it is configured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clock {
    Set,
    Kept,
}

/// A guest on a host that is too busy to let it answer at once.
struct Slow {
    clock: Clock,
    told: Arc<AtomicU32>,
}

#[async_trait]
impl Dial for Slow {
    async fn dial(&self) -> Result<Box<dyn Channel>, VmmError> {
        let (host, mut guest) = tokio::io::duplex(64 * 1024);
        let (clock, told) = (self.clock, Arc::clone(&self.told));
        tokio::spawn(async move {
            handshake::accept(&mut guest).await.unwrap();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = match request.uri().path() {
                    call::CONFIGURE => serde_json::to_string(&message::Configured {
                        agent_version: "slow".into(),
                        boot_id: String::new(),
                        generation: 1,
                        revision: REVISION,
                        incarnation: 3,
                        clock_kept: clock == Clock::Kept,
                    })
                    .unwrap(),
                    call::CLOCK => {
                        told.fetch_add(1, Ordering::Relaxed);
                        String::from("{}")
                    }
                    other => panic!("{other}"),
                };
                async move {
                    sleep(Duration::from_millis(200)).await;
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(answer)))
                }
            });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(guest), service)
                .await;
        });
        Ok(Box::new(host))
    }
}

async fn told(clock: Clock) -> u32 {
    let told = Arc::new(AtomicU32::new(0));
    let slow = Slow { clock, told: Arc::clone(&told) };
    GuestLink::open(Arc::new(slow), hello(), TEST_WITHIN).await.unwrap().close().await;
    told.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn a_slow_guest_is_told_the_time_again_unless_its_own_goes_on() {
    assert_eq!((told(Clock::Set).await, told(Clock::Kept).await), (8, 0));
}
