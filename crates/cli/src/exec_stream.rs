//! The client's end of the exec stream.

use bytes::{BufMut, Bytes, BytesMut};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use http::{Method, StatusCode, header};
use reqwest::Upgraded;
use serde_json::{Value, json};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

use crate::{
    client::{Client, api_error, error_from_detail},
    error::Error,
    wire::ExecMessage,
};

/// First byte of a binary message.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
/// The largest message taken from the server.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// What is told to a running command.
#[derive(Debug)]
pub(crate) enum Say {
    Stdin(Bytes),
    CloseStdin,
    Resize { columns: u16, rows: u16 },
    Signal(i32),
}

/// What a running command says.
#[derive(Debug)]
pub(crate) enum Heard {
    Stdout(Bytes),
    Stderr(Bytes),
    Exit(Exit),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) timed_out: bool,
}

impl Exit {
    /// The exit code a shell would show: the command's own, 128 and the signal's number, or 124 when
    /// its time was over (as `timeout` of coreutils does).
    pub(crate) fn shell_code(self) -> u8 {
        let code = match (self.timed_out, self.exit_code, self.signal) {
            (true, _, _) => 124,
            (false, Some(code), _) => code,
            (false, None, Some(signal)) => 128 + signal,
            (false, None, None) => 125,
        };
        // Codes are 0 to 255; anything else is a server's mistake, and still a failure.
        u8::try_from(code).unwrap_or(125)
    }
}

/// Speaks to the command.
pub(crate) struct Speaker(SplitSink<WebSocketStream<Upgraded>, Message>);

/// Listens to the command.
pub(crate) struct Listener(SplitStream<WebSocketStream<Upgraded>>);

/// Starts a command; returns once it runs.
pub(crate) async fn open(
    client: &Client,
    workspace: &str,
    start: &Value,
) -> Result<(Speaker, Listener), Error> {
    let socket = connect(client, workspace).await?;
    let (sink, source) = socket.split();
    let (mut speaker, mut listener) = (Speaker(sink), Listener(source));
    speaker.send(Message::Text(start.to_string().into())).await?;
    match listener.next_message().await? {
        Next::Text(ExecMessage::Started) => Ok((speaker, listener)),
        Next::Text(ExecMessage::Error { error }) => Err(error_from_detail(error)),
        Next::Text(ExecMessage::Exit { .. }) | Next::Binary(_) => {
            Err(Error::BadAnswer("the command spoke before it was started".to_owned()))
        }
    }
}

async fn connect(client: &Client, workspace: &str) -> Result<WebSocketStream<Upgraded>, Error> {
    let nonce = generate_key();
    let request = client
        .request(Method::GET, &["workspaces", workspace, "exec", "stream"], &[])?
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &nonce);
    let response = client.send(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(api_error(response).await);
    }
    let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
    if accepted.is_none_or(|value| value != derive_accept_key(nonce.as_bytes()).as_str()) {
        return Err(Error::BadAnswer("not a WebSocket server".to_owned()));
    }
    let upgraded = response.upgrade().await.map_err(|error| Error::BrokenOff(error.to_string()))?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await)
}

impl Speaker {
    async fn send(&mut self, message: Message) -> Result<(), Error> {
        self.0.send(message).await.map_err(|error| Error::BrokenOff(error.to_string()))
    }

    pub(crate) async fn say(&mut self, say: Say) -> Result<(), Error> {
        let message = match say {
            Say::Stdin(bytes) => {
                let mut message = BytesMut::with_capacity(bytes.len() + 1);
                message.put_u8(STDIN);
                message.put_slice(&bytes);
                Message::Binary(message.freeze())
            }
            Say::CloseStdin => text(&json!({ "type": "close_stdin" })),
            Say::Resize { columns, rows } => {
                text(&json!({ "type": "resize", "columns": columns, "rows": rows }))
            }
            Say::Signal(signal) => text(&json!({ "type": "signal", "signal": signal })),
        };
        self.send(message).await
    }
}

fn text(message: &Value) -> Message {
    Message::Text(message.to_string().into())
}

enum Next {
    Binary(Bytes),
    Text(ExecMessage),
}

impl Listener {
    async fn next_message(&mut self) -> Result<Next, Error> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Binary(bytes))) => return Ok(Next::Binary(bytes)),
                Some(Ok(Message::Text(text))) => {
                    let message = serde_json::from_str(&text)
                        .map_err(|error| Error::BadAnswer(error.to_string()))?;
                    return Ok(Next::Text(message));
                }
                // Pings are answered by the library.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => {
                    return Err(Error::BrokenOff("the server closed the stream".to_owned()));
                }
                Some(Err(error)) => return Err(Error::BrokenOff(error.to_string())),
            }
        }
    }

    /// The next thing the command says; after [`Heard::Exit`] there is nothing more.
    pub(crate) async fn hear(&mut self) -> Result<Heard, Error> {
        match self.next_message().await? {
            Next::Binary(mut bytes) => {
                let stream = bytes.first().copied();
                let _ = bytes.split_to(bytes.len().min(1));
                match stream {
                    Some(STDOUT) => Ok(Heard::Stdout(bytes)),
                    Some(STDERR) => Ok(Heard::Stderr(bytes)),
                    Some(_) | None => {
                        Err(Error::BadAnswer("bytes of an unknown stream".to_owned()))
                    }
                }
            }
            Next::Text(ExecMessage::Exit { exit_code, signal, timed_out }) => {
                Ok(Heard::Exit(Exit { exit_code, signal, timed_out }))
            }
            Next::Text(ExecMessage::Error { error }) => Err(error_from_detail(error)),
            Next::Text(ExecMessage::Started) => {
                Err(Error::BadAnswer("the command was started twice".to_owned()))
            }
        }
    }
}
