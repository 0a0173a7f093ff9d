//! Connections through a proxy: `CONNECT` of HTTP (RFC 9110, 9.3.6), and SOCKS5 (RFC 1928, 1929).

use std::{fmt, io, net::SocketAddrV4, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use skerry_model::{OutboundProxy, ProxyCredentials, ProxyProtocol};
use tokio::{net::TcpStream, time::timeout};
use tokio_socks::tcp::Socks5Stream;

use super::{
    outside::{self, Far},
    uplink::Outer,
};

/// How long a proxy may take to make a connection, once it is spoken to.
const MADE_WITHIN: Duration = Duration::from_secs(20);
/// The most that a proxy says before a connection is made.
const MAX_ANSWER_BYTES: usize = 16 * 1024;

/// To where a proxy connects.
#[derive(Clone, Debug)]
pub(super) enum To {
    Address(SocketAddrV4),
    /// It resolves the name itself.
    Name(String, u16),
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// A connection that a proxy makes, which is reached from inside a namespace.
///
/// # Errors
/// In words for whoever named the proxy: nothing of the credentials, nothing that the proxy wrote.
pub(super) async fn connect(from: &Arc<Outer>, proxy: &OutboundProxy, to: &To) -> io::Result<Far> {
    let at = (proxy.address, proxy.port).into();
    let stream = outside::connect(from, at).await.map_err(|error| {
        said(error.kind(), format!("{proxy} cannot be reached: {}", reason(&error)))
    })?;
    stream.set_nodelay(true)?;
    let asking = async {
        match proxy.protocol {
            ProxyProtocol::Http => by_http(stream, proxy, to).await,
            ProxyProtocol::Socks5 => by_socks(stream, proxy, to).await,
        }
    };
    let late = |_| said(io::ErrorKind::TimedOut, format!("{proxy} makes no connection to {to}"));
    timeout(MADE_WITHIN, asking).await.map_err(late)?
}

async fn by_http(stream: TcpStream, proxy: &OutboundProxy, to: &To) -> io::Result<Far> {
    let other = |kind, what: &str| said(kind, format!("{proxy} {what}"));
    let no_http = |_: hyper::Error| {
        other(io::ErrorKind::InvalidData, "does not answer as a proxy of HTTP does")
    };
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(to.to_string())
        .header(header::HOST, to.to_string());
    if let Some(own) = &proxy.credentials {
        request = request.header(header::PROXY_AUTHORIZATION, basic(own)?);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    let mut client = hyper::client::conn::http1::Builder::new();
    client.max_buf_size(MAX_ANSWER_BYTES);
    let (mut sender, connection) = client.handshake(TokioIo::new(stream)).await.map_err(no_http)?;
    let asking = async move {
        let answer = sender.send_request(request).await.map_err(no_http)?;
        match answer.status() {
            status if status.is_success() => hyper::upgrade::on(answer).await.map_err(no_http),
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                Err(other(io::ErrorKind::PermissionDenied, "asks for other credentials"))
            }
            status => {
                let what = format!("answers {} to CONNECT {to}", status.as_u16());
                Err(other(io::ErrorKind::ConnectionRefused, &what))
            }
        }
    };
    // The connection is carried on until it is given up, or was asked for; whichever it was is said by
    // who asked.
    let (_, asked) = tokio::join!(connection.with_upgrades(), asking);
    Ok(Box::new(TokioIo::new(asked?)))
}

/// RFC 7617.
fn basic(own: &ProxyCredentials) -> io::Result<HeaderValue> {
    let pair = STANDARD.encode(format!("{}:{}", own.username, own.password.expose()));
    let mut value =
        HeaderValue::from_str(&format!("Basic {pair}")).map_err(|_| io::ErrorKind::InvalidInput)?;
    value.set_sensitive(true);
    Ok(value)
}

async fn by_socks(stream: TcpStream, proxy: &OutboundProxy, to: &To) -> io::Result<Far> {
    use tokio_socks::TargetAddr;
    let target = match to {
        To::Address(address) => TargetAddr::Ip((*address).into()),
        To::Name(name, port) => TargetAddr::Domain(name.clone().into(), *port),
    };
    let made = match &proxy.credentials {
        None => Socks5Stream::connect_with_socket(stream, target).await,
        Some(ProxyCredentials { username, password }) => {
            let password = password.expose();
            Socks5Stream::connect_with_password_and_socket(stream, target, username, password).await
        }
    };
    use tokio_socks::Error;
    match made {
        Ok(stream) => Ok(Box::new(stream.into_inner())),
        Err(
            Error::PasswordAuthFailure(_)
            | Error::NoAcceptableAuthMethods
            | Error::UnknownAuthMethod,
        ) => Err(said(
            io::ErrorKind::PermissionDenied,
            format!("{proxy} asks for other credentials"),
        )),
        // Which of many, in the library's words.
        Err(error) => {
            let what = format!("{proxy} makes no connection to {to}: {error}");
            Err(said(io::ErrorKind::ConnectionRefused, what))
        }
    }
}

fn said(kind: io::ErrorKind, what: String) -> io::Error {
    io::Error::new(kind, what)
}

fn reason(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "it refuses connections",
        io::ErrorKind::TimedOut => "it does not answer",
        // There are more kinds than reasons that help.
        _ => "there is no way to it",
    }
}
