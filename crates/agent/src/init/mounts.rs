//! Mounts, and the move into the root disk.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, symlink},
    path::Path,
};

use nix::mount::{MsFlags, mount};

use super::{console::log, disk::RootDisk, layout};
use crate::AgentError;

/// `/proc`, `/sys` and `/dev`: without them nothing can be found.
pub(super) fn mount_kernel_views() -> io::Result<()> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    attach("proc", "/proc", plain | MsFlags::MS_NODEV, None)?;
    attach("sysfs", "/sys", plain | MsFlags::MS_NODEV, None)?;
    attach("devtmpfs", "/dev", MsFlags::MS_NOSUID, Some("mode=0755"))
}

/// Mounts the root disk, grows its file system, and makes it `/`.
pub(super) fn enter_root(device: String) -> Result<RootDisk, AgentError> {
    make_dir(layout::NEW_ROOT);
    mount(
        Some(device.as_str()),
        layout::NEW_ROOT,
        Some("ext4"),
        MsFlags::MS_RELATIME,
        Some("discard,errors=remount-ro"),
    )
    .map_err(|errno| AgentError::boot("mount the root disk")(errno.into()))?;
    let disk = RootDisk::new(device);
    match disk.grow(layout::NEW_ROOT) {
        Ok(0) => {}
        Ok(gained) => log(&format!("root file system grown by {} MiB", gained / 1024 / 1024)),
        // Smaller than asked for is better than no workspace.
        Err(error) => log(&format!("root file system not grown: {error}")),
    }
    // The initial file system lives in memory; nothing of it is needed any more.
    let _ = fs::remove_dir_all(layout::MODULES);
    let _ = fs::remove_file("/init");
    for view in ["/dev", "/sys", "/proc"] {
        carry_over(view);
    }
    move_root().map_err(AgentError::boot("move into the root disk"))?;
    Ok(disk)
}

/// Takes a mount along into the new root, or mounts it there anew.
fn carry_over(view: &str) {
    let to = format!("{}{view}", layout::NEW_ROOT);
    make_dir(&to);
    if let Err(errno) = mount(Some(view), to.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
    {
        log(&format!("move {view}: {errno}"));
    }
}

fn move_root() -> io::Result<()> {
    std::env::set_current_dir(layout::NEW_ROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    nix::unistd::chroot(".")?;
    std::env::set_current_dir("/")
}

/// What programs expect. A mount that fails is reported; the rest goes on.
pub(super) fn mount_the_rest() {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let mounts = [
        (
            "devpts",
            "/dev/pts",
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            "mode=0620,ptmxmode=0666,gid=5",
        ),
        ("tmpfs", "/dev/shm", quiet, "mode=1777"),
        ("tmpfs", "/run", quiet, "mode=0755"),
        ("cgroup2", layout::CGROUPS, quiet | MsFlags::MS_NOEXEC, ""),
    ];
    for (kind, at, flags, options) in mounts {
        let options = Some(options).filter(|options| !options.is_empty());
        if let Err(error) = attach(kind, at, flags, options) {
            log(&format!("mount {at}: {error}"));
        }
    }
    make_sticky_dir("/tmp");
    make_sticky_dir("/run/lock");
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        if let Err(error) = symlink(target, link)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            log(&format!("link {link}: {error}"));
        }
    }
}

fn attach(kind: &str, at: &str, flags: MsFlags, options: Option<&str>) -> io::Result<()> {
    make_dir(at);
    mount(Some(kind), at, Some(kind), flags, options)?;
    Ok(())
}

/// A mount point that cannot be made shows as a mount that fails.
fn make_dir(path: &str) {
    let _ = fs::create_dir_all(path);
}

fn make_sticky_dir(path: &str) {
    // The mode given to mkdir is cut by the umask.
    if !Path::new(path).exists() && fs::DirBuilder::new().mode(0o1777).create(path).is_ok() {
        use std::os::unix::fs::PermissionsExt;
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o1777));
    }
}
