//! The contract of a hypervisor driver ([`Vmm`], [`Vm`]) and its drivers: `qemu` and `fake`.
//!
//! A driver turns a [`BootSpec`] (files and sizes, all made by the caller) into a process and gives
//! back a handle that survives our own death: the [`VmmRecord`] is enough to adopt the process again.
//! This crate refuses to know workspaces, accounts, images and the protocol spoken over the guest
//! channel: to it the channel is a stream of bytes.

mod console_log;
pub mod contract;
pub mod fake;
mod procfs;
pub mod qemu;
mod spec_check;
mod state_file;

pub use contract::{
    Accelerator, BootSpec, Cable, Capabilities, Capability, Channel, Commit, CpuModel, DiskSpec,
    Exit, GuestMemory, RestoreSpec, RestoredMemory, Sandbox, SaveProgress, SavedMemory, Tap, Vm,
    Vmm, VmmError, VmmRecord,
};
