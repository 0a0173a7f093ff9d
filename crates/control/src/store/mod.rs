//! The store.

/// The embedded database.
#[derive(Clone)]
pub struct Store;
