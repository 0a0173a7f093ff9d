//! Losing and finding the agent.

use skerry_internal_api::GuestApi;

use super::*;

#[tokio::test]
async fn stale_bytes_before_the_handshake_do_no_harm() {
    let mut stale = vec![0xFF; 700];
    stale.extend_from_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xFF\xFF\xFF\xFFSKR");
    let lab = Lab::open_with(Bytes::from(stale)).await;
    let said = finish(lab.shell("echo hello").await).await;
    assert_eq!(said.out(), "hello\n");
}

#[tokio::test]
async fn a_cut_line_fails_what_runs_kills_it_and_serves_the_next_call() {
    let lab = Lab::open().await;
    let mut session = lab.shell("echo $$; exec sleep 1000").await;
    let said =
        read_on(&mut session.output, Said::default(), |said| said.out().ends_with('\n')).await;
    let pid = said.out().trim().to_owned();
    lab.line.cut();
    let said = read_on(&mut session.output, said, |_| false).await;
    assert!(matches!(said.error, Some(NodeError::GuestUnreachable(_))), "{said:?}");
    // This one waits for the next connection.
    let next = finish(lab.shell(&format!("while [ -e /proc/{pid} ]; do sleep 0.05; done")).await);
    assert_eq!(next.await.exit, Some(ExecExit::Code(0)));
    assert_eq!(lab.line.dials(), 2);
    lab.link.close().await;
}

#[tokio::test]
async fn a_host_that_leaves_is_gone_when_the_agent_has_noticed() {
    let lab = Lab::open().await;
    let mut session = lab.shell("sleep 1000").await;
    within(lab.link.leave(TEST_WITHIN)).await;
    let said = read_on(&mut session.output, Said::default(), |_| false).await;
    assert_eq!(said.exit, None);
    assert_eq!(lab.line.dials(), 2);
    assert!(within(lab.link.stats()).await.is_err());
}

#[tokio::test]
async fn a_guest_that_does_not_answer_is_left_all_the_same() {
    struct Silent(Mutex<Vec<tokio::io::DuplexStream>>);
    #[async_trait]
    impl Dial for Silent {
        async fn dial(&self) -> Result<Box<dyn Channel>, VmmError> {
            let (host, guest) = tokio::io::duplex(1024);
            self.0.lock().unwrap().push(guest);
            Ok(Box::new(host))
        }
    }
    let silent = Silent(Mutex::default());
    let bound = Duration::from_millis(50);
    within(super::super::connection::only_greet(&silent, &hello(), bound)).await;
    assert_eq!(silent.0.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn many_cuts_in_a_row_are_survived() {
    let lab = Lab::open().await;
    for round in 0..10 {
        lab.line.cut();
        within(async {
            // A call may be cut in the middle of it; one of the next gets through.
            while lab.link.stats().await.is_err() {}
        })
        .await;
        assert!(lab.line.dials() > round);
    }
}

#[tokio::test]
async fn power_off_is_agreed_to() {
    let lab = Lab::open().await;
    within(lab.link.power_off()).await.unwrap();
    within(lab.guest.powering_off()).await;
    lab.link.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agreement_to_power_off_is_heard_though_the_guest_hangs_up_right_after_it() {
    for _ in 0..100 {
        let lab = Lab::open().await;
        within(lab.link.power_off()).await.unwrap();
        lab.link.close().await;
    }
}

#[tokio::test]
async fn a_closed_link_refuses_at_once_and_ends_what_ran() {
    let lab = Lab::open().await;
    let mut session = lab.shell("sleep 1000").await;
    within(lab.link.close()).await;
    let said = read_on(&mut session.output, Said::default(), |_| false).await;
    assert_eq!(said.exit, None);
    let refused = within(lab.link.stats()).await;
    assert!(matches!(refused, Err(NodeError::GuestUnreachable(_))), "{refused:?}");
}

#[tokio::test]
async fn the_hosted_form_serves_one_connection_and_reports_power_off() {
    struct Once(Mutex<Option<tokio::io::DuplexStream>>);
    #[async_trait]
    impl Dial for Once {
        async fn dial(&self) -> Result<Box<dyn Channel>, VmmError> {
            match self.0.lock().unwrap().take() {
                Some(channel) => Ok(Box::new(channel)),
                None => Err(VmmError::Gone),
            }
        }
    }
    let (host, guest) = tokio::io::duplex(64 * 1024);
    let home = tempfile::tempdir().unwrap();
    let mut off = false;
    let serving = skerry_agent::serve_hosted(guest, home.path().to_owned(), || off = true);
    let asking = async {
        let dial = Arc::new(Once(Mutex::new(Some(host))));
        let link = GuestLink::open(dial, hello(), TEST_WITHIN).await.unwrap();
        link.power_off().await.unwrap();
        link.close().await;
    };
    within(async { tokio::join!(serving, asking) }).await;
    assert!(off);
}
