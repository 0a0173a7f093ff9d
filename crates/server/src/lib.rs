//! The installed binary: one subcommand per role, and the only place where parts are wired together.
//!
//! Everything ambient (the clock, randomness, the environment, signals, files of configuration) enters
//! here and is handed down as values. This crate decides nothing: policy lives in `model`, use cases in
//! `control`, the host in `node`.

pub mod ambient;
pub mod assemble;
pub mod config;
pub mod encrypted;
pub mod hypervisor;
pub mod listener;
pub mod local;
pub mod progress_lines;
pub mod run;
pub mod serving;
pub mod signals;
