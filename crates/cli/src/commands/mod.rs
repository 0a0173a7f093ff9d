//! The commands, one file per resource.

pub(crate) mod account;
pub(crate) mod copy;
pub(crate) mod domains;
pub(crate) mod exec;
pub(crate) mod images;
pub(crate) mod inspect;
pub(crate) mod lifecycle;
pub(crate) mod login;
pub(crate) mod net;
pub(crate) mod ports;
pub(crate) mod snapshots;
pub(crate) mod ssh;
pub(crate) mod volume_files;
pub(crate) mod volumes;
pub(crate) mod workloads;
pub(crate) mod workspaces;
