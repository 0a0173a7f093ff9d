use std::{io, net::Ipv4Addr};

use skerry_internal_api::{ConnectFailure, GuestApi, GuestStream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

/// Somebody listens on a port of this machine, which the hosted guest takes for its own.
async fn service() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

async fn connected(lab: &Lab) -> (GuestStream, TcpStream) {
    let (listener, port) = service().await;
    let (near, far) =
        tokio::join!(within(lab.link.connect("127.0.0.1", port)), within(listener.accept()));
    (near.unwrap(), far.unwrap().0)
}

fn numbers(length: u32) -> Vec<u8> {
    (0..length).map(|n| (n ^ (n >> 8)) as u8).collect()
}

#[tokio::test]
async fn either_side_may_stop_talking_and_go_on_listening() {
    let lab = Lab::open().await;
    let (mut near, mut far) = connected(&lab).await;
    within(async {
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        let mut asked = String::new();
        far.read_to_string(&mut asked).await.unwrap();
        far.write_all(b"answer").await.unwrap();
        far.shutdown().await.unwrap();
        let mut answered = String::new();
        near.read_to_string(&mut answered).await.unwrap();
        assert_eq!((asked.as_str(), answered.as_str()), ("question", "answer"));
    })
    .await;

    let (mut near, mut far) = connected(&lab).await;
    within(async {
        far.write_all(b"greeting").await.unwrap();
        far.shutdown().await.unwrap();
        let mut greeting = String::new();
        near.read_to_string(&mut greeting).await.unwrap();
        near.write_all(&numbers(1_000_000)).await.unwrap();
        near.shutdown().await.unwrap();
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert_eq!(greeting, "greeting");
        assert!(heard == numbers(1_000_000), "{} bytes", heard.len());
    })
    .await;
    lab.link.close().await;
}

#[tokio::test]
async fn eight_mebibytes_go_both_ways_at_once_unchanged() {
    let lab = Lab::open().await;
    let (near, far) = connected(&lab).await;
    let sent = numbers(8 * 1024 * 1024);
    let (mut near_in, mut near_out) = tokio::io::split(near);
    let (mut far_in, mut far_out) = far.into_split();
    let talk = async |out: &mut (dyn tokio::io::AsyncWrite + Unpin + Send)| {
        out.write_all(&sent).await.unwrap();
        out.shutdown().await.unwrap();
    };
    let (mut at_near, mut at_far) = (Vec::new(), Vec::new());
    within(async {
        tokio::join!(
            talk(&mut near_out),
            talk(&mut far_out),
            async { near_in.read_to_end(&mut at_near).await.unwrap() },
            async { far_in.read_to_end(&mut at_far).await.unwrap() },
        )
    })
    .await;
    assert!(at_near == sent && at_far == sent, "{} and {} bytes", at_near.len(), at_far.len());
}

#[tokio::test]
async fn localhost_is_whichever_loopback_somebody_listens_on() {
    let lab = Lab::open().await;
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(within(lab.link.connect("localhost", port)).await.unwrap());
    drop(within(lab.link.connect("::1", port)).await.unwrap());
}

#[tokio::test]
async fn what_cannot_be_connected_to_says_why() {
    let lab = Lab::open().await;
    let (listener, port) = service().await;
    drop(listener);
    let why = async |host: &str, port: u16| match within(lab.link.connect(host, port)).await {
        Err(NodeError::NotConnected { why, .. }) => Ok(why),
        Err(other) => Err(other),
        Ok(_) => panic!("there is nobody"),
    };
    assert_eq!(why("127.0.0.1", port).await, Ok(ConnectFailure::Refused));
    assert_eq!(why("localhost", port).await, Ok(ConnectFailure::Refused));
    assert_eq!(why("no-such-name.invalid", port).await, Ok(ConnectFailure::NoSuchHost));
    // An address that no interface may be asked for: the kernel refuses without a packet.
    assert_eq!(why("255.255.255.255", port).await, Ok(ConnectFailure::Unreachable));
    for (host, port) in [("", 1), ("127.0.0.1", 0), (&*"a".repeat(254), 1)] {
        let refused = why(host, port).await;
        assert!(matches!(refused, Err(NodeError::Invalid { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_on_either_side_breaks_on_the_other() {
    let lab = Lab::open().await;
    let (near, mut far) = connected(&lab).await;
    drop(near);
    let broken = within(far.read(&mut [0; 8])).await.unwrap_err();
    assert_eq!(broken.kind(), io::ErrorKind::ConnectionReset);

    let (mut near, far) = connected(&lab).await;
    far.set_zero_linger().unwrap();
    drop(far);
    let broken = within(near.read(&mut [0; 8])).await.unwrap_err();
    assert_eq!(broken.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_connection_is_reset_when_the_line_to_the_guest_breaks() {
    let lab = Lab::open().await;
    let (mut near, mut far) = connected(&lab).await;
    lab.line.cut();
    assert!(within(near.read(&mut [0; 8])).await.is_err());
    let broken = within(far.read(&mut [0; 8])).await.unwrap_err();
    assert_eq!(broken.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn readers_that_stop_hold_back_their_own_connections_alone() {
    let lab = Lab::open().await;
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let (mut near, mut far) = connected(&lab).await;
        let stuck = numbers(32 * 1024 * 1024);
        // Neither side reads; both write until they are held back.
        let filling = tokio::spawn(async move { far.write_all(&stuck).await });
        let more = numbers(32 * 1024 * 1024);
        let writing = timeout(Duration::from_millis(200), near.write_all(&more));
        assert!(writing.await.is_err(), "a writer nobody reads is held back");
        assert!(!filling.is_finished(), "a writer nobody reads is held back");
        stalled.push((near, filling));
    }
    let (mut near, mut far) = connected(&lab).await;
    within(async {
        near.write_all(b"through").await.unwrap();
        far.read_exact(&mut [0; 7]).await.unwrap();
        far.write_all(b"back").await.unwrap();
        near.read_exact(&mut [0; 4]).await.unwrap();
    })
    .await;
    assert_eq!(finish(lab.shell("echo here").await).await.out(), "here\n");
    lab.link.close().await;
    for (_near, filling) in stalled {
        within(filling).await.unwrap().unwrap_err();
    }
}

#[tokio::test]
async fn however_many_connections_are_open_commands_can_still_be_run() {
    let lab = Lab::open().await;
    let (listener, port) = service().await;
    let mut open = Vec::new();
    for _ in 0..crate::guest::CONNECTIONS {
        let near = within(lab.link.connect("127.0.0.1", port)).await.unwrap();
        open.push((near, listener.accept().await.unwrap()));
    }
    assert_eq!(finish(lab.shell("echo here").await).await.out(), "here\n");
    // One more waits for one that ends.
    let next = lab.link.connect("127.0.0.1", port);
    tokio::pin!(next);
    assert!(timeout(Duration::from_millis(100), &mut next).await.is_err());
    open.pop();
    within(next).await.unwrap();
}
