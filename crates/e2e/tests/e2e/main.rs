//! End to end: a real server, real VMs, and clients from outside. Run one after the other
//! (`--test-threads=1`): the machine is small and the census looks at the whole host.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod aether;
mod clean_slate;
mod clock;
mod clones;
mod command_line;
mod crash;
mod cross_dialect;
mod cycles;
mod dialects;
mod domains;
mod egress;
mod images;
mod instant_start;
mod isolation;
mod kernel;
mod many;
mod networks;
mod official_clients;
mod previews;
mod rigbox;
mod saved_crash;
mod server;
mod ssh;
mod vaults;
