//! Every decoder of bytes that come from the other side. Run with
//! `cargo +nightly fuzz run decoders` in `crates/agent-protocol`.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use skerry_agent_protocol::{
    frame::{Input, Output},
    head, message,
    record::{RECORD_LEN, Synchroniser},
};

fuzz_target!(|data: &[u8]| {
    let mut synchroniser = Synchroniser::new();
    let mut rest = data;
    while !rest.is_empty() {
        assert!((1..=RECORD_LEN).contains(&synchroniser.wanted()));
        let (used, record) = synchroniser.feed(rest);
        assert!(used > 0 && (record.is_some() || used == rest.len()));
        rest = &rest[used..];
    }

    let mut buffer = BytesMut::from(data);
    while let Ok(Some(frame)) = Output::take(&mut buffer) {
        assert_eq!(Output::take(&mut BytesMut::from(&frame.encode()[..])), Ok(Some(frame)));
    }
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(frame)) = Input::take(&mut buffer) {
        assert_eq!(Input::take(&mut BytesMut::from(&frame.encode()[..])), Ok(Some(frame)));
    }
    let mut buffer = BytesMut::from(data);
    if let Ok(Some(json)) = head::take(&mut buffer) {
        let _ = serde_json::from_slice::<message::Exec>(&json);
        let _ = serde_json::from_slice::<message::Configure>(&json);
        let _ = serde_json::from_slice::<message::Configured>(&json);
        let _ = serde_json::from_slice::<message::Freeze>(&json);
        let _ = serde_json::from_slice::<message::Thawed>(&json);
        let _ = serde_json::from_slice::<message::Grow>(&json);
        let _ = serde_json::from_slice::<message::Prepare>(&json);
        let _ = serde_json::from_slice::<message::Listing>(&json);
    }
});
