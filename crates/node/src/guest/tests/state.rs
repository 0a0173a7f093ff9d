//! Giving a guest another identity, freezing it, making it a template.

use skerry_internal_api::GuestApi;

use super::*;

fn other_hello() -> GuestHello {
    GuestHello {
        hostname: String::from("other"),
        machine_id: "f".repeat(32),
        env: BTreeMap::from([(String::from("FROM_WORKSPACE"), String::from("other"))]),
        unsaid: Unsaid::default(),
        incarnation: 9,
        ..hello()
    }
}

fn nobody() -> GuestHello {
    GuestHello { machine_id: String::new(), ..hello() }
}

async fn whose(lab: &Lab) -> String {
    finish(lab.shell("printf %s $FROM_WORKSPACE").await).await.out()
}

#[tokio::test]
async fn a_new_identity_is_there_after_one_call_and_on_every_later_connection() {
    let lab = Lab::open().await;
    assert_eq!(whose(&lab).await, "yes");
    lab.link.reconfigure(other_hello(), TEST_WITHIN).await.unwrap();
    assert_eq!(whose(&lab).await, "other");
    assert_eq!(lab.line.dials(), 1);
    lab.line.cut();
    within(async { while lab.link.stats().await.is_err() {} }).await;
    assert_eq!(whose(&lab).await, "other");
}

#[tokio::test]
async fn what_runs_goes_on_under_a_new_identity() {
    let lab = Lab::open().await;
    let mut session = lab.shell("read line; echo got $line").await;
    lab.link.reconfigure(other_hello(), TEST_WITHIN).await.unwrap();
    session.control.send(stdin("it\n")).await.unwrap();
    let said = read_on(&mut session.output, Said::default(), |_| false).await;
    assert_eq!(said.out(), "got it\n");
}

#[tokio::test]
async fn a_new_identity_survives_a_line_that_breaks_under_it() {
    let lab = Lab::open().await;
    for round in 0..20 {
        let hello = if round % 2 == 0 { other_hello() } else { hello() };
        let wanted = hello.env["FROM_WORKSPACE"].clone();
        lab.line.cut();
        lab.link.reconfigure(hello, TEST_WITHIN).await.unwrap();
        assert_eq!(whose(&lab).await, wanted);
    }
}

#[tokio::test]
async fn an_identity_that_the_agent_refuses_is_the_callers_error() {
    let lab = Lab::open().await;
    let wrong = GuestHello { machine_id: String::from("not a machine id"), ..hello() };
    let refused = within(lab.link.reconfigure(wrong, TEST_WITHIN)).await;
    assert!(matches!(refused, Err(NodeError::Invalid { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_freeze_is_held_until_it_is_thawed() {
    let lab = Lab::open().await;
    lab.link.sync(TEST_WITHIN).await.unwrap();
    lab.link.freeze(TEST_WITHIN).await.unwrap();
    lab.link.freeze(TEST_WITHIN).await.unwrap();
    assert_eq!(lab.link.thaw(TEST_WITHIN).await, Ok(Frozen::UntilNow));
    assert_eq!(lab.link.thaw(TEST_WITHIN).await, Ok(Frozen::NoMore));
}

#[tokio::test]
async fn the_first_configure_of_a_connection_thaws() {
    let lab = Lab::open().await;
    lab.link.freeze(TEST_WITHIN).await.unwrap();
    lab.line.cut();
    within(async { while lab.link.stats().await.is_err() {} }).await;
    assert_eq!(lab.link.thaw(TEST_WITHIN).await, Ok(Frozen::NoMore));
}

#[tokio::test]
async fn a_new_identity_thaws() {
    let lab = Lab::open().await;
    lab.link.freeze(TEST_WITHIN).await.unwrap();
    lab.link.reconfigure(hello(), TEST_WITHIN).await.unwrap();
    assert_eq!(lab.link.thaw(TEST_WITHIN).await, Ok(Frozen::NoMore));
}

#[tokio::test]
async fn a_guest_can_be_thawed_however_much_is_asked_of_it() {
    let lab = Lab::open().await;
    let mut sessions = Vec::new();
    for _ in 0..112 {
        sessions.push(lab.shell("sleep 1000").await);
    }
    lab.link.freeze(TEST_WITHIN).await.unwrap();
    assert_eq!(lab.link.thaw(TEST_WITHIN).await, Ok(Frozen::UntilNow));
    drop(sessions);
}

#[tokio::test]
async fn only_a_guest_of_nobody_becomes_a_template() {
    let lab = Lab::open().await;
    let refused = within(lab.link.prepare_template()).await;
    assert!(
        matches!(refused, Err(NodeError::Guest { code: "permission_denied", .. })),
        "{refused:?}"
    );
    lab.link.reconfigure(nobody(), TEST_WITHIN).await.unwrap();
    let prepared = within(lab.link.prepare_template()).await.unwrap();
    assert!(prepared.memory_used_bytes > 0);
}

#[tokio::test]
async fn a_guest_without_a_disk_does_not_grow() {
    let lab = Lab::open().await;
    assert_eq!(lab.link.grow_root(1 << 40, TEST_WITHIN).await, Ok(0));
}
