//! The head of a request body: a big-endian 32-bit length and that many bytes of JSON.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use thiserror::Error;

use crate::limits::HEAD_MAX;

/// Why a head could not be written or read.
#[derive(Debug, Error)]
pub enum HeadError {
    /// Longer than [`HEAD_MAX`].
    #[error("the head has {0} bytes, more than {HEAD_MAX}")]
    TooLong(usize),
    /// Not the JSON that was expected.
    #[error("the head is not valid: {0}")]
    Json(#[from] serde_json::Error),
}

/// The bytes of a head.
///
/// # Errors
/// [`HeadError::TooLong`] when `message` is too large to be sent.
pub fn encode<T: Serialize>(message: &T) -> Result<Bytes, HeadError> {
    let json = serde_json::to_vec(message)?;
    if json.len() > HEAD_MAX {
        return Err(HeadError::TooLong(json.len()));
    }
    let mut bytes = BytesMut::with_capacity(4 + json.len());
    // The check above keeps the length far below 2^32.
    #[allow(clippy::cast_possible_truncation)]
    bytes.put_u32(json.len() as u32);
    bytes.put_slice(&json);
    Ok(bytes.freeze())
}

/// Takes the head from the front of `buffer`: its JSON bytes, or `None` while it is incomplete. What
/// follows the head stays in `buffer`.
///
/// # Errors
/// [`HeadError::TooLong`] as soon as the length is known to be too large.
pub fn take(buffer: &mut BytesMut) -> Result<Option<Bytes>, HeadError> {
    let Some(length) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length > HEAD_MAX {
        return Err(HeadError::TooLong(length));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_head_is_taken_whole_and_leaves_the_rest(text in ".{0,200}", rest in prop::collection::vec(any::<u8>(), 0..50)) {
            let head = encode(&text).unwrap();
            let mut buffer = BytesMut::new();
            for byte in &head[..head.len() - 1] {
                buffer.put_u8(*byte);
                prop_assert!(take(&mut buffer).unwrap().is_none());
            }
            buffer.put_u8(head[head.len() - 1]);
            buffer.put_slice(&rest);
            let json = take(&mut buffer).unwrap().unwrap();
            prop_assert_eq!(serde_json::from_slice::<String>(&json).unwrap(), text);
            prop_assert_eq!(&buffer[..], &rest[..]);
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_its_bytes_arrive() {
        let mut buffer = BytesMut::from(&[0xFF, 0xFF, 0xFF, 0xFF][..]);
        assert!(matches!(take(&mut buffer), Err(HeadError::TooLong(_))));
    }
}
