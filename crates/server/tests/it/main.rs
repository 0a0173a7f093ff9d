//! The whole product in one process: every part as it is installed, over HTTP, on the fake hypervisor
//! with the real agent as the guest. A server lives on a runtime of its own, so that it can die at any
//! point without a single further instruction of its; the machine with its VMs outlives it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail where it likes")]

#[allow(dead_code, reason = "shared with the node's tests, which use more of it")]
#[path = "../../../node/tests/support/machine.rs"]
mod machine;
mod world;

mod acme;
mod busy;
mod crash;
mod dialects;
mod dns01;
mod endings;
mod front;
mod saved_crash;
mod secrets;
mod shutdown;
mod tls;
mod volume_crash;
