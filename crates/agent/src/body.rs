//! Request bodies in, answers out.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use serde::{Serialize, de::DeserializeOwned};
use skerry_agent_protocol::{
    head,
    limits::{ANSWER_MAX, LISTING_MAX},
    message::{Failure, FailureCode},
};
use tokio::time::timeout;

use crate::AgentError;

/// The body of every answer.
pub(crate) type AnswerBody = UnsyncBoxBody<Bytes, io::Error>;
/// Every answer.
pub(crate) type Answer = Response<AnswerBody>;

/// A host sends the head in one go.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// How long the rest of a body is thrown away after its call was answered.
const DISCARD_WITHIN: Duration = Duration::from_secs(5);

/// A request's body: its head, then its bytes.
pub(crate) struct RequestBody {
    incoming: Incoming,
    buffer: BytesMut,
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming) -> Self {
        Self { incoming, buffer: BytesMut::new() }
    }

    /// The JSON at the front.
    pub(crate) async fn head<T: DeserializeOwned>(&mut self) -> Result<T, AgentError> {
        let json = timeout(HEAD_WITHIN, self.head_bytes())
            .await
            .map_err(|_| AgentError::invalid("the request's head did not arrive"))??;
        serde_json::from_slice(&json).map_err(|error| AgentError::invalid(error.to_string()))
    }

    async fn head_bytes(&mut self) -> Result<Bytes, AgentError> {
        loop {
            match head::take(&mut self.buffer) {
                Ok(Some(json)) => return Ok(json),
                Ok(None) => {}
                Err(error) => return Err(AgentError::invalid(error.to_string())),
            }
            match self.receive().await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Err(AgentError::invalid("the request has no head")),
            }
        }
    }

    /// The next bytes after the head; `None` at the end.
    ///
    /// # Errors
    /// When the host gave the call up.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, AgentError> {
        if self.buffer.is_empty() {
            self.receive().await
        } else {
            Ok(Some(self.buffer.split().freeze()))
        }
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, AgentError> {
        while let Some(frame) = self.incoming.frame().await {
            let frame =
                frame.map_err(|_| AgentError::refused(FailureCode::Other, "the host hung up"))?;
            if let Ok(bytes) = frame.into_data()
                && !bytes.is_empty()
            {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// Throws the rest away, for a bounded time: a stream that is reset while the answer is on its
    /// way may cost the host the answer.
    pub(crate) async fn discard(mut self) {
        let rest = async { while let Ok(Some(_)) = self.receive().await {} };
        let _ = timeout(DISCARD_WITHIN, rest).await;
    }
}

/// An answer in JSON of at most [`ANSWER_MAX`] bytes.
pub(crate) fn json<T: Serialize>(message: &T) -> Result<Answer, AgentError> {
    json_within(message, ANSWER_MAX)
}

/// An answer in JSON of at most [`LISTING_MAX`] bytes.
pub(crate) fn listing_json<T: Serialize>(message: &T) -> Result<Answer, AgentError> {
    json_within(message, LISTING_MAX)
}

fn json_within<T: Serialize>(message: &T, bound: usize) -> Result<Answer, AgentError> {
    let json = serde_json::to_vec(message)
        .map_err(|error| AgentError::refused(FailureCode::Other, error.to_string()))?;
    if json.len() > bound {
        return Err(AgentError::refused(
            FailureCode::TooLarge,
            format!("the answer would have {} bytes, more than {bound}", json.len()),
        ));
    }
    Ok(Response::new(full(json)))
}

/// An answer in raw bytes.
pub(crate) fn stream(
    stream: impl Stream<Item = Result<Bytes, io::Error>> + Send + 'static,
) -> Answer {
    let body = StreamBody::new(stream.map(|item| item.map(Frame::data)));
    Response::new(BodyExt::boxed_unsync(body))
}

/// The answer to a call that failed.
pub(crate) fn failure(error: &AgentError) -> Answer {
    let (code, message) = match error {
        AgentError::Refused { code, message } => (*code, message.clone()),
        AgentError::Boot { .. } => (FailureCode::Other, error.to_string()),
    };
    // A failure is two plain strings; it always has a JSON form.
    let json = serde_json::to_vec(&Failure { code, message }).unwrap_or_default();
    let mut answer = Response::new(full(json));
    *answer.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    answer
}

fn full(bytes: Vec<u8>) -> AnswerBody {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
}
