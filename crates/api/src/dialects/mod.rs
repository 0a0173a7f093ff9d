//! One folder per dialect, all of one shape: `mod.rs` (routes), `wire.rs` (its types), `convert.rs`
//! (total, pure), `error_body.rs` (the one place where an error becomes a status and a body), and one
//! handler file per resource. No dialect imports another.

pub mod aether;
pub mod instavm;
pub mod native;
pub mod oblien;
pub mod rigbox;

mod network_text;
