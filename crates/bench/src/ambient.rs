//! The one module that reads the clock and the operating system's randomness.
#![allow(clippy::disallowed_methods, reason = "this is where the ambient things come in")]

use rand::TryRngCore;
use skerry_model::Timestamp;
use skerry_node::guest::Fresh;

/// What a guest is told at every meeting.
pub fn fresh() -> Fresh {
    let mut entropy = vec![0; 64];
    // Without randomness no guest may be told that it has some.
    if let Err(error) = rand::rngs::OsRng.try_fill_bytes(&mut entropy) {
        panic!("the operating system gave no random bytes: {error}");
    }
    Fresh { entropy, now: Timestamp::now() }
}
