//! `ssh -R`: ports of a workspace that lead to the client.

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStderr},
    time::timeout,
};

use super::{
    ground::{Ground, WITHIN, done, ended, err},
    logins::logged_in,
};

/// A service of the client's, which answers with what it is told.
async fn service() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = client.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    port
}

/// A client with a free port of the workspace that leads to `service`; and which that is.
async fn forwarding(ground: &Ground, service: u16) -> (Child, BufReader<ChildStderr>, u16) {
    let forward = format!("0:127.0.0.1:{service}");
    let options = ["-N", "-o", "LogLevel=INFO", "-o", "ExitOnForwardFailure=yes", "-R", &forward];
    let mut ssh = ground.ssh(&[&options[..], &["gate"]].concat()).spawn().unwrap();
    let mut said = BufReader::new(ssh.stderr.take().unwrap());
    let mut line = String::new();
    let port = loop {
        line.clear();
        let read = timeout(WITHIN, said.read_line(&mut line)).await.unwrap().unwrap();
        assert!(read > 0, "it ended without a port");
        if let Some(rest) = line.strip_prefix("Allocated port ") {
            break rest.split(' ').next().unwrap().parse().unwrap();
        }
    };
    (ssh, said, port)
}

/// Completes once nobody in the guest, which is this machine, listens there any more.
async fn closed(port: u16) {
    let closed = async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(WITHIN, closed).await.expect("the port is still there");
}

async fn echoed(port: u16, sent: &[u8]) -> Vec<u8> {
    let connection = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut read, mut write) = connection.into_split();
    let to_send = sent.to_vec();
    let writing = tokio::spawn(async move {
        write.write_all(&to_send).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut came = Vec::new();
    timeout(WITHIN, read.read_to_end(&mut came)).await.expect("it stands still").unwrap();
    writing.await.unwrap();
    came
}

#[tokio::test]
async fn a_port_of_the_workspace_leads_to_the_client_until_it_goes() {
    let ground = Ground::open().await;
    let service = service().await;
    let (mut ssh, _said, port) = forwarding(&ground, service).await;
    let large: Vec<u8> = (0..4 * 1024 * 1024_u32).map(|n| (n ^ (n >> 9)) as u8).collect();
    let both = async { tokio::join!(echoed(port, b"hello"), echoed(port, &large)) };
    let (small, back) = both.await;
    assert_eq!(small, b"hello");
    assert!(back == large, "{} bytes came back", back.len());
    ssh.kill().await.unwrap();
    closed(port).await;
    ground.close().await;
}

#[tokio::test]
async fn connections_are_refused_where_the_client_refuses_them_and_the_port_stays() {
    let ground = Ground::open().await;
    // Nobody listens at the client.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (mut ssh, _said, port) = forwarding(&ground, nobody).await;
    for _ in 0..3 {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let end = timeout(WITHIN, connection.read(&mut [0; 1])).await.unwrap();
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    ssh.kill().await.unwrap();
    closed(port).await;
    ground.close().await;
}

#[tokio::test]
async fn what_cannot_be_listened_on_is_refused() {
    let ground = Ground::open().await;
    let service = service().await;
    let taken = format!("{service}:127.0.0.1:{service}");
    let elsewhere = format!("192.0.2.1:0:127.0.0.1:{service}");
    let any = format!("0:127.0.0.1:{service}");
    for (forward, to) in [(&taken, "gate"), (&elsewhere, "gate"), (&any, "jump")] {
        let options = ["-N", "-o", "ExitOnForwardFailure=yes", "-R", forward, to];
        let output = done(ground.ssh(&options)).await;
        assert_eq!(output.status.code(), Some(255), "{forward} {to}");
        assert!(err(&output).contains("remote port forwarding failed"), "{}", err(&output));
    }
    ground.close().await;
}

#[tokio::test]
async fn a_connection_has_so_many_ports_and_no_more() {
    let ground = Ground::open().await;
    // OpenSSH asks once for those that are alike.
    let forwards: Vec<String> = (1..=9).map(|host| format!("0:127.0.0.{host}:80")).collect();
    let mut options = vec!["-N", "-o", "ExitOnForwardFailure=yes"];
    options.extend(forwards.iter().flat_map(|forward| ["-R", forward]));
    options.push("gate");
    let output = done(ground.ssh(&options)).await;
    assert!(err(&output).contains("remote port forwarding failed"), "{}", err(&output));
    ground.close().await;
}

#[tokio::test]
async fn a_client_whose_port_is_lost_is_told() {
    let ground = Ground::open().await;
    let (ssh, mut said, port) = forwarding(&ground, service().await).await;
    ground.link.close().await;
    assert_eq!(ended(ssh).await.status.code(), Some(255));
    let mut rest = String::new();
    timeout(WITHIN, said.read_to_string(&mut rest)).await.unwrap().unwrap();
    assert!(rest.contains(&format!("port {port} of the workspace is lost")), "{rest}");
    closed(port).await;
    ground.close().await;
}

/// OpenSSH gives up no port that it was told the number of.
#[tokio::test]
async fn a_port_that_the_client_gives_up_is_closed_and_its_connection_goes_on() {
    let ground = Ground::open().await;
    let session = logged_in(&ground, "key", None).await.unwrap();
    let port = timeout(WITHIN, session.tcpip_forward("localhost", 0)).await.unwrap().unwrap();
    drop(TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap())).await.unwrap());
    timeout(WITHIN, session.cancel_tcpip_forward("localhost", port)).await.unwrap().unwrap();
    closed(u16::try_from(port).unwrap()).await;
    timeout(WITHIN, session.channel_open_session()).await.unwrap().unwrap();
    let again = timeout(WITHIN, session.cancel_tcpip_forward("localhost", port)).await.unwrap();
    assert!(again.is_err(), "it is gone");
    ground.close().await;
}
