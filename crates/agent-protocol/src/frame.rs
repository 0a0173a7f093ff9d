//! Frames of a command's streams: one byte kind, four bytes big-endian length, payload.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::{limits::FRAME_PAYLOAD_MAX, message::ExecEnd};

const PREFIX_LEN: usize = 5;

/// What the host tells a running command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes for standard input.
    Stdin(Bytes),
    /// End of standard input.
    CloseStdin,
    /// The terminal's new size.
    Resize {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// A signal by number.
    Signal(u32),
}

/// What a running command says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output, or everything from a terminal.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// The end; nothing follows.
    Exit(ExecEnd),
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The payload is longer than [`FRAME_PAYLOAD_MAX`].
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    /// No such kind in this direction.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// The payload does not fit the kind.
    #[error("malformed payload of frame kind {0}")]
    Malformed(u8),
}

mod kind {
    pub(super) const STDIN: u8 = 1;
    pub(super) const CLOSE_STDIN: u8 = 2;
    pub(super) const RESIZE: u8 = 3;
    pub(super) const SIGNAL: u8 = 4;
    pub(super) const STDOUT: u8 = 16;
    pub(super) const STDERR: u8 = 17;
    pub(super) const EXIT: u8 = 18;
}

impl Input {
    /// The bytes of the frame. Stdin must already be cut to [`FRAME_PAYLOAD_MAX`].
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Stdin(bytes) => raw(kind::STDIN, bytes),
            Self::CloseStdin => raw(kind::CLOSE_STDIN, &[]),
            Self::Resize { columns, rows } => {
                let [a, b] = columns.to_be_bytes();
                let [c, d] = rows.to_be_bytes();
                raw(kind::RESIZE, &[a, b, c, d])
            }
            Self::Signal(number) => raw(kind::SIGNAL, &number.to_be_bytes()),
        }
    }

    /// Takes one frame from the front of `buffer`; `None` while it is incomplete.
    ///
    /// # Errors
    /// [`FrameError`]; the stream is of no use after it.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        let Some((kind, payload)) = take_raw(buffer)? else { return Ok(None) };
        let input = match kind {
            kind::STDIN => Self::Stdin(payload),
            kind::CLOSE_STDIN if payload.is_empty() => Self::CloseStdin,
            kind::RESIZE => match payload[..] {
                [a, b, c, d] => Self::Resize {
                    columns: u16::from_be_bytes([a, b]),
                    rows: u16::from_be_bytes([c, d]),
                },
                _ => return Err(FrameError::Malformed(kind)),
            },
            kind::SIGNAL => match payload[..] {
                [a, b, c, d] => Self::Signal(u32::from_be_bytes([a, b, c, d])),
                _ => return Err(FrameError::Malformed(kind)),
            },
            kind::CLOSE_STDIN => return Err(FrameError::Malformed(kind)),
            unknown => return Err(FrameError::UnknownKind(unknown)),
        };
        Ok(Some(input))
    }
}

impl Output {
    /// The bytes of the frame. Output must already be cut to [`FRAME_PAYLOAD_MAX`].
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Stdout(bytes) => raw(kind::STDOUT, bytes),
            Self::Stderr(bytes) => raw(kind::STDERR, bytes),
            Self::Exit(end) => {
                let (how, number) = match *end {
                    ExecEnd::Code(code) => (0, code),
                    ExecEnd::Signal(signal) => (1, signal),
                    ExecEnd::TimedOut => (2, 0),
                };
                raw(kind::EXIT, &[how, number])
            }
        }
    }

    /// Takes one frame from the front of `buffer`; `None` while it is incomplete.
    ///
    /// # Errors
    /// [`FrameError`]; the stream is of no use after it.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        let Some((kind, payload)) = take_raw(buffer)? else { return Ok(None) };
        let output = match kind {
            kind::STDOUT => Self::Stdout(payload),
            kind::STDERR => Self::Stderr(payload),
            kind::EXIT => Self::Exit(match payload[..] {
                [0, code] => ExecEnd::Code(code),
                [1, signal] => ExecEnd::Signal(signal),
                [2, 0] => ExecEnd::TimedOut,
                _ => return Err(FrameError::Malformed(kind)),
            }),
            unknown => return Err(FrameError::UnknownKind(unknown)),
        };
        Ok(Some(output))
    }
}

fn raw(kind: u8, payload: &[u8]) -> Bytes {
    debug_assert!(payload.len() <= FRAME_PAYLOAD_MAX, "callers cut their payload");
    let mut bytes = BytesMut::with_capacity(PREFIX_LEN + payload.len());
    bytes.put_u8(kind);
    // Payloads are at most 64 KiB.
    #[allow(clippy::cast_possible_truncation)]
    bytes.put_u32(payload.len() as u32);
    bytes.put_slice(payload);
    bytes.freeze()
}

fn take_raw(buffer: &mut BytesMut) -> Result<Option<(u8, Bytes)>, FrameError> {
    let Some([kind, a, b, c, d]) = buffer.first_chunk::<PREFIX_LEN>().copied() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > FRAME_PAYLOAD_MAX {
        return Err(FrameError::TooLong(length));
    }
    if buffer.len() < PREFIX_LEN + length {
        return Ok(None);
    }
    buffer.advance(PREFIX_LEN);
    Ok(Some((kind, buffer.split_to(length).freeze())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn payloads() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from)
    }

    fn inputs() -> impl Strategy<Value = Input> {
        prop_oneof![
            payloads().prop_map(Input::Stdin),
            Just(Input::CloseStdin),
            any::<(u16, u16)>().prop_map(|(columns, rows)| Input::Resize { columns, rows }),
            any::<u32>().prop_map(Input::Signal),
        ]
    }

    fn outputs() -> impl Strategy<Value = Output> {
        prop_oneof![
            payloads().prop_map(Output::Stdout),
            payloads().prop_map(Output::Stderr),
            any::<u8>().prop_map(|code| Output::Exit(ExecEnd::Code(code))),
            any::<u8>().prop_map(|signal| Output::Exit(ExecEnd::Signal(signal))),
            Just(Output::Exit(ExecEnd::TimedOut)),
        ]
    }

    proptest! {
        #[test]
        fn input_frames_survive_any_split(frames in prop::collection::vec(inputs(), 0..8), piece_len in 1usize..64) {
            let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().to_vec()).collect();
            let mut buffer = BytesMut::new();
            let mut seen = Vec::new();
            for piece in bytes.chunks(piece_len) {
                buffer.put_slice(piece);
                while let Some(frame) = Input::take(&mut buffer).unwrap() { seen.push(frame); }
            }
            prop_assert_eq!(seen, frames);
        }

        #[test]
        fn output_frames_survive_any_split(frames in prop::collection::vec(outputs(), 0..8), piece_len in 1usize..64) {
            let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().to_vec()).collect();
            let mut buffer = BytesMut::new();
            let mut seen = Vec::new();
            for piece in bytes.chunks(piece_len) {
                buffer.put_slice(piece);
                while let Some(frame) = Output::take(&mut buffer).unwrap() { seen.push(frame); }
            }
            prop_assert_eq!(seen, frames);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Output::take(&mut buffer) {}
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Input::take(&mut buffer) {}
        }
    }

    #[test]
    fn a_frame_beyond_the_limit_is_refused_before_its_bytes_arrive() {
        let mut buffer = BytesMut::from(&[kind::STDOUT, 0, 1, 0, 1][..]);
        assert_eq!(Output::take(&mut buffer), Err(FrameError::TooLong(65_537)));
    }
}
