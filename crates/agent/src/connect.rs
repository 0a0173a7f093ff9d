//! TCP connections made from inside the guest for somebody outside.

use std::{
    fs::File,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use nix::errno::Errno;
use skerry_agent_protocol::{
    limits::{CONNECT_WITHIN_MS, HOST_MAX},
    message::{Connect, FailureCode},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{
    AgentError, Guest,
    body::{self, Answer, RequestBody},
    session::Session,
};

const CONNECT_WITHIN: Duration = Duration::from_millis(CONNECT_WITHIN_MS);
const HOSTS: &str = "/etc/hosts";
/// More than this of it is not read.
const HOSTS_LEN_MAX: u64 = 256 * 1024;
/// Of a name so many addresses are tried.
const ADDRESSES_MAX: usize = 4;
/// What is read from a connection at a time, in bytes.
const PIECE: usize = 32 * 1024;
/// Pieces that wait for a slow reader before the connection itself is held back.
const PIECES_WAITING: usize = 4;

/// A connection that was made.
pub(crate) struct Connection {
    socket: TcpStream,
}

impl From<TcpStream> for Connection {
    fn from(socket: TcpStream) -> Self {
        // Whoever is at the other end knows what it wants to send at once.
        let _ = socket.set_nodelay(true);
        Self { socket }
    }
}

/// The host has given the connection up.
struct HungUp;

/// Connects as `request` says.
pub(crate) async fn open(guest: &Arc<Guest>, request: Connect) -> Result<Connection, AgentError> {
    let Connect { host, port } = request;
    if host.is_empty() || host.len() > HOST_MAX || port == 0 {
        return Err(AgentError::invalid(format!(
            "a host of 1 to {HOST_MAX} bytes and a port of 1 to 65535"
        )));
    }
    let addresses = addresses(guest, &host).await?;
    let mut outcome = Err(AgentError::refused(
        FailureCode::NoSuchHost,
        format!("{}: no such host in the guest; give an address", printable(&host)),
    ));
    for address in addresses.into_iter().take(ADDRESSES_MAX) {
        outcome = connect(address, port).await;
        if outcome.is_ok() {
            break;
        }
    }
    outcome.map(Connection::from)
}

async fn connect(address: IpAddr, port: u16) -> Result<TcpStream, AgentError> {
    match timeout(CONNECT_WITHIN, TcpStream::connect((address, port))).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(error)) => Err(refusal(address, port, &error)),
        Err(_) => Err(AgentError::refused(
            FailureCode::ConnectTimeout,
            format!("{address} port {port}: no answer within {} s", CONNECT_WITHIN.as_secs()),
        )),
    }
}

fn refusal(address: IpAddr, port: u16, error: &io::Error) -> AgentError {
    let subject = format!("{address} port {port}");
    let code = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED) => FailureCode::ConnectionRefused,
        Some(Errno::ETIMEDOUT) => FailureCode::ConnectTimeout,
        // A firewall in the guest says no with EPERM or EACCES.
        Some(
            Errno::ENETUNREACH
            | Errno::EHOSTUNREACH
            | Errno::EADDRNOTAVAIL
            | Errno::ENETDOWN
            | Errno::EAFNOSUPPORT
            | Errno::EPERM
            | Errno::EACCES
            | Errno::EINVAL,
        ) => FailureCode::Unreachable,
        _ => return AgentError::from_io(&subject, error),
    };
    match AgentError::from_io(&subject, error) {
        AgentError::Refused { message, .. } => AgentError::refused(code, message),
        other @ AgentError::Boot { .. } => other,
    }
}

/// What `host` stands for. A static program has no name service, and what a name of the network means
/// is for programs in the guest to ask.
async fn addresses(guest: &Arc<Guest>, host: &str) -> Result<Vec<IpAddr>, AgentError> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let name = host.to_owned();
    guest
        .blocking(move || {
            let mut text = Vec::new();
            let read =
                File::open(HOSTS).and_then(|file| file.take(HOSTS_LEN_MAX).read_to_end(&mut text));
            // A guest without the file knows no names.
            Ok(read.map(|_| named(&String::from_utf8_lossy(&text), &name)).unwrap_or_default())
        })
        .await
}

/// The addresses of `name` in the text of a hosts file (`hosts(5)`).
fn named(hosts: &str, name: &str) -> Vec<IpAddr> {
    hosts
        .lines()
        .filter_map(|line| {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
        })
        .collect()
}

fn printable(host: &str) -> String {
    host.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}

impl Connection {
    /// Answers with what the connection says; `input` is what the host sends it.
    pub(crate) fn run(self, session: &Arc<Session>, input: RequestBody) -> Answer {
        let (output, received) = mpsc::channel(PIECES_WAITING);
        let ended = session.ended.clone();
        session.tasks.spawn(self.carry(input, output, ended));
        body::stream(ReceiverStream::new(received))
    }

    async fn carry(
        self,
        mut input: RequestBody,
        output: mpsc::Sender<io::Result<Bytes>>,
        connection_ended: CancellationToken,
    ) {
        let mut socket = self.socket;
        let in_order = {
            let (reader, writer) = socket.split();
            let both = async {
                tokio::try_join!(send(&mut input, writer), receive(reader, output)).is_ok()
            };
            tokio::select! {
                in_order = both => in_order,
                () = connection_ended.cancelled() => false,
            }
        };
        if !in_order {
            // Nobody must take the end of a broken connection for the end of what it had to say.
            let _ = socket.set_zero_linger();
        }
        drop(socket);
        input.discard().await;
    }
}

/// Carries the host's bytes to the connection, and their end.
async fn send(input: &mut RequestBody, mut writer: WriteHalf<'_>) -> Result<(), HungUp> {
    while let Some(bytes) = input.chunk().await.map_err(|_| HungUp)? {
        if writer.write_all(&bytes).await.is_err() {
            // What it had said before it stopped listening is still to be read.
            return Ok(());
        }
    }
    let _ = writer.shutdown().await;
    Ok(())
}

/// Carries the connection's bytes to the host, and their end.
async fn receive(
    mut reader: ReadHalf<'_>,
    output: mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), HungUp> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE);
        let read = tokio::select! {
            read = reader.read_buf(&mut buffer) => read,
            () = output.closed() => return Err(HungUp),
        };
        match read {
            Ok(0) => return Ok(()),
            Ok(_) => {
                let bytes = buffer.split().freeze();
                output.send(Ok(bytes)).await.map_err(|_| HungUp)?;
            }
            Err(error) => {
                let _ = output.send(Err(error)).await;
                return Err(HungUp);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_the_hosts_file_says_it_is() {
        let hosts = "# names\n127.0.0.1 localhost\n127.0.1.1\tbox box.local # mine\nbad line\n\
                     10.1.2.3 db\n::1 box\n";
        assert_eq!(
            named(hosts, "Box"),
            ["127.0.1.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]
        );
        assert_eq!(named(hosts, "mine"), Vec::<IpAddr>::new());
        assert_eq!(named(hosts, "10.1.2.3"), Vec::<IpAddr>::new());
    }
}
