//! The harness of the end-to-end tests: a real `skerry serve` with real VMs, driven from outside.
//!
//! It knows the built binary, its command line and its HTTP surface; it refuses to know any of our
//! crates. Every server gets a directory of its own and is torn down with everything it started, also
//! when a test fails.

pub mod census;
pub mod guest_clock;
pub mod server;
pub mod workspaces;
pub mod world;

pub use census::Census;
pub use server::{Options, Server};
pub use workspaces::WORKSPACES;
pub use world::World;

use std::path::PathBuf;

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

/// The binary under test: `SKERRY_BIN`, or the release build.
///
/// # Panics
/// When it is not there, naming the command that makes it.
#[must_use]
pub fn skerry_binary() -> PathBuf {
    let path = std::env::var_os("SKERRY_BIN")
        .map_or_else(|| repository().join("target/release/skerry"), PathBuf::from);
    assert!(path.is_file(), "{} is missing: run `make setup`", path.display());
    path
}

/// Where the images are: `SKERRY_IMAGE_DIR`, or `var/images`.
///
/// # Panics
/// When they are not there, naming the command that makes them.
#[must_use]
pub fn image_dir() -> PathBuf {
    let path = std::env::var_os("SKERRY_IMAGE_DIR")
        .map_or_else(|| repository().join("var/images"), PathBuf::from);
    assert!(path.join("boot").is_dir(), "{} has no images: run `make setup`", path.display());
    path
}

/// Which kernel the guests of every test server boot with, as `--kernel` takes it:
/// `SKERRY_TEST_KERNEL`, or the distribution's, whatever else the image directory has.
///
/// # Panics
/// When the variable names no kernel.
#[must_use]
pub fn kernel() -> &'static str {
    match std::env::var("SKERRY_TEST_KERNEL").as_deref() {
        Err(std::env::VarError::NotPresent) | Ok("distribution") => "distribution",
        Ok("small") => "small",
        other => panic!("SKERRY_TEST_KERNEL must be `distribution` or `small`, not {other:?}"),
    }
}

/// How many of something a test goes through: the number in the environment variable `name`, or
/// `usual`, which fits into every run.
///
/// # Panics
/// When the variable holds no positive number.
#[must_use]
pub fn size(name: &str, usual: usize) -> usize {
    let Some(text) = std::env::var_os(name) else { return usual };
    let number = text.to_str().and_then(|text| text.parse().ok()).filter(|number| *number > 0);
    number.unwrap_or_else(|| panic!("{name} must be a positive number, not {text:?}"))
}

/// The steps of bringing a VM up after which the server can be told to die, in their order. The
/// server refuses a name it does not know, so this list cannot name what is gone.
pub const BRING_UP_STEPS: &[&str] = &[
    "reserve",
    "vm_directory",
    "ledger_intent",
    "run_directory",
    "cgroup",
    "disk",
    "memory_file",
    "console_log",
    "boot_commit",
    "boot",
    "guest_ready",
    "ready",
];

/// The steps of deleting a running VM, in their order.
pub const DELETION_STEPS: &[&str] = &[
    "release_process",
    "release_memory_file",
    "release_cgroup",
    "release_run_directory",
    "release_uid",
    "released",
    "tombstone",
    "release_disk",
    "release_logs",
    "release_ledger",
    "deleted",
];
