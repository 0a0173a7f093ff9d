//! A disk that is full at every write: the operation says so, nothing is lost, and once there is room
//! it succeeds.

use std::{fs, path::Path, process::Command};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    mount::{MsFlags, mount},
    sys::statvfs::statvfs,
    unistd::geteuid,
};

use crate::{
    Error,
    saved::{
        DiskRoom,
        test_ground::{Ground, MIB, Script},
    },
};

const PAGE: u64 = 4096;
/// Names the directory that the process of its own may mount upon.
const MOUNT_POINT: &str = "SKERRY_TEST_MOUNT_POINT";

#[test]
fn a_disk_that_is_full_at_any_write_is_an_error_that_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut own_mounts = Command::new("unshare");
    if !geteuid().is_root() {
        own_mounts.args(["--user", "--map-root-user"]);
    }
    let output = own_mounts
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "saved::tests::full_disk::every_write_meets_a_full_disk", "--ignored"])
        .env(MOUNT_POINT, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "mounts a small disk: runs in a process with mounts of its own, started by the test above"]
fn every_write_meets_a_full_disk() {
    let mount_point = std::env::var_os(MOUNT_POINT).expect("run by the test above");
    let mount_point = Path::new(&mount_point);
    mount(Some("none"), mount_point, Some("tmpfs"), MsFlags::empty(), Some("size=4m")).unwrap();
    for script in crate::disk::CRASH_SCRIPTS.iter().chain(&super::crash::SCRIPTS) {
        let mut refusals = 0;
        for pages in 0.. {
            assert!(pages < 200, "{} never succeeds", script.name);
            if succeeds_with(script, mount_point, pages) {
                break;
            }
            refusals += 1;
        }
        println!("{}: refused {refusals} times", script.name);
    }
}

/// False when that much room was too little.
fn succeeds_with(script: &Script, mount_point: &Path, pages: u64) -> bool {
    let ground = Ground::at(tempfile::tempdir_in(mount_point).unwrap());
    let life = ground.open();
    (script.prepare)(&life);
    let filler = mount_point.join("filler");
    let file = fs::File::create(&filler).unwrap();
    let found = statvfs(mount_point).unwrap();
    let free = found.blocks_available() * found.fragment_size();
    let length = i64::try_from(free.saturating_sub(pages * PAGE)).unwrap();
    if length > 0 {
        fallocate(&file, FallocateFlags::empty(), 0, length).unwrap();
    }
    let result = (script.act)(&life);
    fs::remove_file(&filler).unwrap();
    drop(file);
    match &result {
        Ok(()) => {}
        Err(error) => {
            let told = error.public("save");
            assert!(
                matches!(told, skerry_internal_api::NodeError::NoCapacity(_)),
                "{} with {pages} pages: {error:?}",
                script.name
            );
        }
    }
    (script.always)(&life);
    (script.act)(&life).unwrap();
    (script.done)(&life);
    drop(life);
    let life = ground.open();
    (script.always)(&life);
    (script.done)(&life);
    life.assert_tidy();
    result.is_ok()
}

#[test]
fn room_is_promised_once_and_given_back() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let found = statvfs(dir.path()).unwrap();
    let free = found.blocks_available() * found.fragment_size();
    // Other tests use the same file system meanwhile: the figures are far apart.
    let room = DiskRoom::new(dir.path(), 0);
    let half = room.reserve(free / 2).unwrap();
    let error = room.reserve(free - free / 4).unwrap_err();
    assert!(matches!(error, Error::NoCapacity(_)));
    drop(half);
    drop(room.reserve(free - free / 4).unwrap());
    let keeping = DiskRoom::new(dir.path(), free);
    assert!(matches!(keeping.reserve(MIB * 1024), Err(Error::NoCapacity(_))));
}
