//! Images from registries: pulled, verified, merged into one tree and written into a disk.
//!
//! ```text
//! registry -> blobs on disk (verified) -> unpacked layers (verified) -> tree in memory
//!          -> one harmless archive -> ext4 -> the store
//! ```
//!
//! Everything from a registry is input of strangers: it is bounded before it is read, and nothing in
//! it becomes a path of this host before it has been through [`tree`].

mod archive;
mod blob;
mod credentials;
mod disk;
mod documents;
mod error;
mod layer;
mod pax;
mod policy;
mod puller;
mod registry;
mod tree;
mod users;

#[cfg(test)]
mod layer_tests;
#[cfg(test)]
mod pull_tests;

pub use documents::ImageDefaults;
pub use error::PullError;
pub use policy::{PullLimits, PullPolicy};
pub use puller::Puller;
