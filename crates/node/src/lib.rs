//! The node: runs the VMs of one machine.
//!
//! [`Node`] implements [`skerry_internal_api::NodeApi`]. It acquires what a VM needs from the host
//! (directories, memory, uids, cgroups, disks), has a driver of `skerry-vmm` boot it, speaks with the
//! agent inside ([`guest`]), and gives everything back. Each VM has one owner task; everything it
//! acquires is named in a durable ledger first, so that a crash at any moment can be repaired.
//!
//! This crate refuses to know accounts, projects, quotas, dialects, HTTP and the database, and which
//! hypervisor runs: it decides nothing about *what* should run.

pub mod guest;
pub mod images;

mod capacity;
mod cgroups;
mod command_log;
mod config;
mod disk;
mod doctor;
mod error;
mod faults;
mod host;
mod identity;
mod layers;
mod layout;
mod ledger;
mod logged_guest;
mod logs;
mod network;
mod node;
mod pool;
mod promotion;
mod recovery;
mod release;
mod saved;
mod saving;
mod seal;
mod snapshots;
mod spec_file;
mod templates;
mod turns;
mod uids;
mod vm;
mod volumes;

pub use config::{
    CgroupPolicy, FillRandom, NetworkChoice, NodeConfig, NodeEnvironment, TemplatePreset, UidRange,
};
pub use disk::write_empty_overlay;
pub use doctor::doctor;
pub use error::Error;
pub use faults::{
    CHECKPOINT_POINTS as CHECKPOINT_FAULT_POINTS, FaultKind, Faults,
    GROWTH_POINTS as GROWTH_FAULT_POINTS, INSTANT_POINTS as INSTANT_FAULT_POINTS,
    POINTS as FAULT_POINTS, SAVED_POINTS as SAVED_FAULT_POINTS,
    VOLUME_POINTS as VOLUME_FAULT_POINTS,
};
pub use network::{AddressPrefix, ProxyTarget, UplinkChoice, UplinkSettings, places};
pub use node::Node;
pub use seal::{Seal, SealError};
