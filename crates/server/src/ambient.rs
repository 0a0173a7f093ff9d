//! The one module that reads the clock and the operating system's randomness.
#![allow(clippy::disallowed_methods, reason = "this is where the ambient things come in")]

use std::sync::Arc;

use rand::TryRngCore;
use skerry_control::{Environment, Rng};
use skerry_model::Timestamp;

/// Randomness from the operating system.
struct OsRandom;

impl Rng for OsRandom {
    fn fill(&self, bytes: &mut [u8]) {
        // Without randomness no id and no key may be made: ending is the only safe answer.
        if let Err(error) = rand::rngs::OsRng.try_fill_bytes(bytes) {
            panic!("the operating system gave no random bytes: {error}");
        }
    }
}

/// The real clock and the operating system's randomness.
#[must_use]
pub fn environment() -> Environment {
    Environment { now: Arc::new(Timestamp::now), rng: Arc::new(OsRandom) }
}

/// A fresh key: `sk_` and 43 characters of base64url, 256 random bits.
#[must_use]
pub fn fresh_key(rng: &dyn Rng) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = [0_u8; 43];
    rng.fill(&mut bytes);
    let mut key = String::from("sk_");
    key.extend(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 64)])));
    key
}
