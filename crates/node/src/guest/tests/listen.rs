use std::{io, net::SocketAddr};

use skerry_agent_protocol::limits::LISTENERS_MAX;
use skerry_internal_api::{GuestApi, GuestListener, GuestVisitor};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;

async fn listening(lab: &Lab) -> Box<dyn GuestListener> {
    within(lab.link.listen(0, User::Root)).await.unwrap()
}

/// Somebody in the guest, and the same seen from outside.
async fn visited(listener: &mut dyn GuestListener) -> (TcpStream, GuestVisitor) {
    let there = TcpStream::connect(("127.0.0.1", listener.port()));
    let (there, here) = tokio::join!(within(there), within(listener.accept()));
    (there.unwrap(), here.unwrap())
}

#[tokio::test]
async fn who_connects_inside_talks_with_us_outside() {
    let lab = Lab::open().await;
    let mut listener = listening(&lab).await;
    for address in ["127.0.0.1", "::1"] {
        let port = listener.port();
        let inside = async {
            let mut there = TcpStream::connect((address, port)).await.unwrap();
            let local = there.local_addr().unwrap();
            there.write_all(b"question").await.unwrap();
            there.shutdown().await.unwrap();
            let mut answer = String::new();
            there.read_to_string(&mut answer).await.unwrap();
            (local, answer)
        };
        let outside = async {
            let GuestVisitor { mut stream, peer } = listener.accept().await.unwrap();
            let mut question = String::new();
            stream.read_to_string(&mut question).await.unwrap();
            stream.write_all(format!("you said {question}").as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            peer
        };
        let (there, peer): ((SocketAddr, String), _) =
            within(async { tokio::join!(inside, outside) }).await;
        assert_eq!((there.0, there.1.as_str()), (peer, "you said question"), "port {port}");
    }
}

#[tokio::test]
async fn a_port_that_somebody_has_is_busy_and_free_again_once_it_is_given_up() {
    let lab = Lab::open().await;
    let listener = listening(&lab).await;
    let port = listener.port();
    let again = within(lab.link.listen(port, User::Root)).await.map(|_| ()).unwrap_err();
    assert!(matches!(again, NodeError::Guest { code: "busy", .. }), "{again:?}");
    let mut waiting = within(TcpStream::connect(("127.0.0.1", port))).await.unwrap();
    drop(listener);
    // Who was never taken is turned away, and the port is there for the next.
    let end = within(waiting.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
    let next = within(lab.link.listen(port, User::Root)).await.unwrap();
    assert_eq!(next.port(), port);
}

#[tokio::test]
async fn connections_outlive_their_listener_and_end_with_the_line() {
    let lab = Lab::open().await;
    let mut listener = listening(&lab).await;
    let (mut inside, mut outside) = visited(&mut *listener).await;
    drop(listener);
    within(inside.write_all(b"still")).await.unwrap();
    let mut said = [0; 5];
    within(outside.stream.read_exact(&mut said)).await.unwrap();
    assert_eq!(&said, b"still");

    let mut listener = listening(&lab).await;
    lab.line.cut();
    within(listener.accept()).await.map(|_| ()).unwrap_err();
    within(outside.stream.read(&mut said)).await.unwrap_err();
    let broken = within(inside.read(&mut said)).await.unwrap_err();
    assert_eq!(broken.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_guest_listens_on_a_bounded_number_of_ports() {
    let lab = Lab::open().await;
    let mut open = Vec::new();
    for _ in 0..LISTENERS_MAX {
        open.push(listening(&lab).await);
    }
    let more = within(lab.link.listen(0, User::Root)).await.map(|_| ()).unwrap_err();
    assert!(matches!(more, NodeError::Guest { code: "too_large", .. }), "{more:?}");
    assert_eq!(finish(lab.shell("echo here").await).await.out(), "here\n");
}
