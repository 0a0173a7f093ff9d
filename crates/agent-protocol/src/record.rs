//! The records of the handshake and the scanner that finds them in a dirty stream.
//!
//! A record is 64 bytes:
//!
//! | bytes | content |
//! | --- | --- |
//! | 0..8 | magic: four `0xFF`, then `SKRY` |
//! | 8 | kind |
//! | 9..10 | zero |
//! | 10..12 | oldest generation, big-endian |
//! | 12..14 | newest generation, big-endian |
//! | 14..16 | zero |
//! | 16..32 | nonce |
//! | 32..60 | zero, ignored by the reader |
//! | 60..64 | FNV-1a of bytes 0..60, big-endian |
//!
//! The magic begins with ones because an HTTP/2 peer reads the first three bytes as a frame length
//! of 16 MiB, which it must refuse: a peer that still believes in an older connection drops it.

/// Size of a record in bytes.
pub const RECORD_LEN: usize = 64;

const MAGIC: [u8; 8] = [0xFF, 0xFF, 0xFF, 0xFF, b'S', b'K', b'R', b'Y'];

/// A number that ties an answer to its question.
pub type Nonce = [u8; 16];

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// Host: here is somebody new, these generations are spoken.
    Hello,
    /// Guest: heard; both generation fields hold the one agreed, or zero if there is none.
    Ack,
    /// Host: nothing but this connection's bytes from here on.
    Start,
    /// Guest: HTTP/2 begins with the next byte.
    Ready,
}

impl RecordKind {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Ack => 2,
            Self::Start => 3,
            Self::Ready => 4,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Hello),
            2 => Some(Self::Ack),
            3 => Some(Self::Start),
            4 => Some(Self::Ready),
            _ => None,
        }
    }
}

/// One record of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it says.
    pub kind: RecordKind,
    /// Oldest generation.
    pub generation_min: u16,
    /// Newest generation.
    pub generation_max: u16,
    /// To which hello it belongs.
    pub nonce: Nonce,
}

impl Record {
    /// The bytes of the record.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_LEN] {
        let mut bytes = [0; RECORD_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8] = self.kind.to_byte();
        bytes[10..12].copy_from_slice(&self.generation_min.to_be_bytes());
        bytes[12..14].copy_from_slice(&self.generation_max.to_be_bytes());
        bytes[16..32].copy_from_slice(&self.nonce);
        let sum = checksum(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// The record in these bytes; `None` if they are not one.
    #[must_use]
    pub fn decode(bytes: &[u8; RECORD_LEN]) -> Option<Self> {
        let sum = u32::from_be_bytes([bytes[60], bytes[61], bytes[62], bytes[63]]);
        if bytes[..8] != MAGIC || sum != checksum(&bytes[..60]) {
            return None;
        }
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&bytes[16..32]);
        Some(Self {
            kind: RecordKind::from_byte(bytes[8])?,
            generation_min: u16::from_be_bytes([bytes[10], bytes[11]]),
            generation_max: u16::from_be_bytes([bytes[12], bytes[13]]),
            nonce,
        })
    }
}

/// FNV-1a, 32 bits. It tells a record from chance, not from malice.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Finds records in a stream that may hold anything before, between and after them. Needs no memory
/// beyond one record, whatever comes.
#[derive(Debug)]
pub struct Synchroniser {
    window: [u8; RECORD_LEN],
    filled: usize,
}

impl Default for Synchroniser {
    fn default() -> Self {
        Self::new()
    }
}

impl Synchroniser {
    /// A scanner that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { window: [0; RECORD_LEN], filled: 0 }
    }

    /// How many more bytes the record under way needs, 1 to 64. A reader that never reads more than
    /// this at a time never takes a byte that belongs to what follows the record.
    #[must_use]
    pub const fn wanted(&self) -> usize {
        RECORD_LEN - self.filled
    }

    /// Looks at `input` until a record is complete. Returns how many bytes were used and the record,
    /// if one was found; without a record all of `input` was used.
    pub fn feed(&mut self, input: &[u8]) -> (usize, Option<Record>) {
        for (index, byte) in input.iter().enumerate() {
            self.window[self.filled] = *byte;
            self.filled += 1;
            if self.filled <= MAGIC.len() {
                self.slide_to_magic();
            } else if self.filled == RECORD_LEN {
                if let Some(record) = Record::decode(&self.window) {
                    self.filled = 0;
                    return (index + 1, Some(record));
                }
                // A false start: a true one may begin inside it.
                self.slide(1);
                self.slide_to_magic();
            }
        }
        (input.len(), None)
    }

    /// Drops bytes from the front until what is left could be the beginning of a record.
    fn slide_to_magic(&mut self) {
        while self.filled > 0 {
            let compared = self.filled.min(MAGIC.len());
            if self.window[..compared] == MAGIC[..compared] {
                return;
            }
            self.slide(1);
        }
    }

    fn slide(&mut self, by: usize) {
        self.window.copy_within(by..self.filled, 0);
        self.filled -= by;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kinds() -> impl Strategy<Value = RecordKind> {
        prop_oneof![
            Just(RecordKind::Hello),
            Just(RecordKind::Ack),
            Just(RecordKind::Start),
            Just(RecordKind::Ready)
        ]
    }

    fn records() -> impl Strategy<Value = Record> {
        (kinds(), any::<u16>(), any::<u16>(), any::<[u8; 16]>()).prop_map(
            |(kind, generation_min, generation_max, nonce)| Record {
                kind,
                generation_min,
                generation_max,
                nonce,
            },
        )
    }

    /// Garbage that is likely to look like the beginning of a record.
    fn garbage() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(
            prop_oneof![
                4 => Just(vec![0xFF]),
                1 => Just(MAGIC.to_vec()),
                1 => Just(MAGIC[..6].to_vec()),
                2 => prop::collection::vec(any::<u8>(), 0..80),
            ],
            0..12,
        )
        .prop_map(|pieces| pieces.concat())
    }

    fn found(bytes: &[u8], piece_len: usize) -> Vec<Record> {
        let mut synchroniser = Synchroniser::new();
        let mut records = Vec::new();
        for mut piece in bytes.chunks(piece_len.max(1)) {
            while !piece.is_empty() {
                let (used, record) = synchroniser.feed(piece);
                records.extend(record);
                piece = &piece[used..];
            }
        }
        records
    }

    proptest! {
        #[test]
        fn a_record_survives_its_own_encoding(record in records()) {
            prop_assert_eq!(Record::decode(&record.encode()), Some(record));
        }

        #[test]
        fn a_record_is_found_after_any_garbage_in_any_pieces(
            before in garbage(), record in records(), piece_len in 1usize..200,
        ) {
            let bytes = [before, record.encode().to_vec()].concat();
            let seen = found(&bytes, piece_len);
            prop_assert_eq!(seen.last(), Some(&record));
        }

        #[test]
        fn the_scanner_wants_no_byte_beyond_the_record(
            before in garbage(), record in records(), after in prop::collection::vec(any::<u8>(), 1..50),
        ) {
            let bytes = [before, record.encode().to_vec(), after.clone()].concat();
            let end = bytes.len() - after.len();
            let mut synchroniser = Synchroniser::new();
            let mut at = 0;
            loop {
                let piece = &bytes[at..(at + synchroniser.wanted()).min(bytes.len())];
                let (used, hit) = synchroniser.feed(piece);
                prop_assert_eq!(used, piece.len());
                at += used;
                if hit == Some(record) { break; }
            }
            prop_assert_eq!(at, end);
        }

        #[test]
        fn a_damaged_record_is_not_a_record(record in records(), at in 0usize..64, bit in 0u8..8) {
            let mut bytes = record.encode();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Record::decode(&bytes), None);
        }
    }
}
