//! Disks that come into the machine while it runs, and their file systems.
//!
//! The machine has a device for each from its boot; what is behind one changes without a word to the
//! kernel, which learns of it when its driver looks at the device anew. So before a mount the driver is
//! made to do that. What is mounted is asked of the kernel each time: the tenant may have changed it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::{ffi::OsStringExt, fs::OpenOptionsExt},
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use skerry_agent_protocol::message::{FailureCode, Mount, Unmount};

use crate::{
    AgentError, Guest,
    files::{about, checked},
    freeze,
    init::{disk, log},
};

/// How long a disk may take to show itself after its driver was told to look.
const DISK_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(2);
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_blk";

/// Mounts what [`skerry_agent_protocol::call::MOUNT`] asks for.
pub(crate) async fn mount_disk(guest: &Guest, request: Mount) -> Result<(), AgentError> {
    let path = mount_point(&request.path)?;
    check_serial(&request.serial)?;
    if guest.as_machine().is_none() {
        return Ok(());
    }
    // One at a time: the driver's devices come and go meanwhile.
    let _turn = guest.volumes().lock().await;
    let held = guest.blocking(move || mount_blocking(&request, &path)).await?;
    if let Some(file_system) = held {
        guest.freezer().hold_also(file_system);
    }
    Ok(())
}

/// Unmounts what [`skerry_agent_protocol::call::UNMOUNT`] asks for.
pub(crate) async fn unmount_disk(guest: &Guest, request: Unmount) -> Result<(), AgentError> {
    let path = mount_point(&request.path)?;
    check_serial(&request.serial)?;
    if guest.as_machine().is_none() {
        return Ok(());
    }
    let _turn = guest.volumes().lock().await;
    let freezer = guest.freezer();
    let let_go = freezer.let_go(&path);
    let outcome = {
        let path = path.clone();
        guest.blocking(move || {
            // Its end may write to the file system.
            drop(let_go);
            unmount_blocking(&request.serial, &path)
        })
    };
    let outcome = outcome.await;
    if outcome.is_err()
        && let Ok(still_there) = freeze::hold(&path)
    {
        freezer.hold_also(still_there);
    }
    outcome
}

/// Unmounts every disk but the root's, or makes it consistent where that is not possible: for the end
/// of the machine.
pub(crate) fn unmount_all() {
    let mounts = mounts().unwrap_or_default();
    for Mounted { path, .. } in mounts.iter().rev().filter(|mounted| mounted.path != Path::new("/"))
    {
        if umount2(path, MntFlags::empty()).is_ok() {
            continue;
        }
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        if let Err(errno) = mount(None::<&str>, path, None::<&str>, read_only, None::<&str>) {
            log(&format!("{} stays writable: {errno}", path.display()));
        }
    }
}

fn mount_point(path: &str) -> Result<PathBuf, AgentError> {
    let path = checked(path)?;
    let mut parts = path.components();
    let plain = parts.next() == Some(Component::RootDir)
        && parts.clone().next().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_)));
    match plain {
        true => Ok(path),
        false => Err(AgentError::invalid(format!("{}: not a mount point", path.display()))),
    }
}

fn check_serial(serial: &str) -> Result<(), AgentError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if serial.is_empty() || serial.len() > 20 || !serial.bytes().all(allowed) {
        return Err(AgentError::invalid("serial: 1 to 20 of a-z, 0-9 and -"));
    }
    Ok(())
}

/// Answers the mounted file system, if it can be written and so can be frozen.
fn mount_blocking(request: &Mount, path: &Path) -> Result<Option<freeze::FileSystem>, AgentError> {
    let device = disk::by_serial(&request.serial);
    if let Some(there) = device.as_deref().and_then(mounted_as) {
        if there.path == path && there.read_only == request.read_only {
            return Ok(None);
        }
        let place = there.path.display();
        return Err(busy(&format!("the disk is mounted already, in {place}")));
    }
    let device = look_anew(&request.serial)?;
    fs::create_dir_all(path).map_err(about(path))?;
    let mut flags = MsFlags::MS_RELATIME | MsFlags::MS_NODEV;
    flags.set(MsFlags::MS_RDONLY, request.read_only);
    let options = if request.read_only { "errors=continue" } else { "discard,errors=remount-ro" };
    mount(Some(device.as_str()), path, Some("ext4"), flags, Some(options))
        .map_err(|errno| about(path)(errno.into()))?;
    match request.read_only {
        true => Ok(None),
        false => {
            let held = freeze::hold(path).map_err(about(path))?;
            // The disk may have been made larger since the file system was last mounted. What cannot be
            // grown can still be used.
            if let Err(error) = disk::grow_file_system(&device, &held.directory) {
                log(&format!("{}: the file system does not grow: {error}", path.display()));
            }
            Ok(Some(held))
        }
    }
}

fn unmount_blocking(serial: &str, path: &Path) -> Result<(), AgentError> {
    let Some(device) = disk::by_serial(serial) else { return Ok(()) };
    let Some(there) = mounted_as(&device) else { return unused(&device, path) };
    if there.path != path {
        return Err(busy(&format!("the disk is mounted in {}", there.path.display())));
    }
    match umount2(path, MntFlags::empty()) {
        Ok(()) => {}
        Err(Errno::EBUSY) => {
            return Err(busy(&format!("{}: something in the workspace uses it", path.display())));
        }
        Err(errno) => return Err(about(path)(errno.into())),
    }
    unused(&device, path)
}

/// Whether nobody has the disk any more: a container in the guest may have taken the mount along.
fn unused(device: &str, path: &Path) -> Result<(), AgentError> {
    let options = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device);
    match options {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            let place = path.display();
            Err(busy(&format!("{place}: something in the workspace still has it mounted")))
        }
        Err(error) => Err(about(Path::new(device))(error)),
    }
}

/// Has the driver look at the disk of this serial number as if it had just come.
fn look_anew(serial: &str) -> Result<String, AgentError> {
    let failed = |error: io::Error| AgentError::from_io(&format!("the disk {serial}"), &error);
    if let Some(device) = disk::by_serial(serial) {
        let name = device.trim_start_matches("/dev/");
        let bus = fs::read_link(format!("/sys/block/{name}/device")).map_err(failed)?;
        let bus = bus.file_name().unwrap_or_default().to_string_lossy().into_owned();
        tell_driver("unbind", &bus).map_err(failed)?;
    }
    // Also one that was left without a driver by an attempt that was broken off.
    for bus in disk::without_driver() {
        tell_driver("bind", &bus).map_err(failed)?;
    }
    let deadline = Instant::now() + DISK_WITHIN;
    loop {
        if let Some(device) = disk::by_serial(serial)
            && disk::size_bytes(&device).is_ok_and(|size| size > 0)
        {
            return Ok(device);
        }
        if Instant::now() >= deadline {
            let message = format!("the disk {serial} has not come");
            return Err(AgentError::refused(FailureCode::Other, message));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn tell_driver(what: &str, bus: &str) -> io::Result<()> {
    fs::write(format!("{DRIVER}/{what}"), bus)
}

fn busy(message: &str) -> AgentError {
    AgentError::refused(FailureCode::Busy, message)
}

/// A disk that is mounted.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    device: String,
    path: PathBuf,
    read_only: bool,
}

fn mounted_as(device: &str) -> Option<Mounted> {
    mounts().ok()?.into_iter().find(|mounted| mounted.device == device)
}

/// Every mounted disk, in the order in which they were mounted.
fn mounts() -> io::Result<Vec<Mounted>> {
    let text = io::read_to_string(File::open("/proc/self/mountinfo")?)?;
    Ok(text.lines().filter_map(mounted_in).collect())
}

/// A line of `/proc/self/mountinfo` (proc(5)), if it is of a disk.
fn mounted_in(line: &str) -> Option<Mounted> {
    let (mount, source) = line.split_once(" - ")?;
    let device = source.split(' ').nth(1).filter(|device| device.starts_with("/dev/"))?;
    let mut fields = mount.split(' ').skip(4);
    let (path, options) = (fields.next()?, fields.next()?);
    let read_only = options.split(',').any(|option| option == "ro");
    Some(Mounted { device: device.to_owned(), path: unescaped(path), read_only })
}

/// Spaces and the like are written as `\` and three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = match (first, after) {
            (b'\\', [a, b, c, ..]) => std::str::from_utf8(&[*a, *b, *c])
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 8).ok()),
            _ => None,
        };
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounted_disk_is_read_from_the_kernels_table() {
        let line =
            r"36 35 254:32 / /my\040data rw,nodev,relatime shared:1 - ext4 /dev/vdc rw,discard";
        let expected = Mounted {
            device: "/dev/vdc".to_owned(),
            path: PathBuf::from("/my data"),
            read_only: false,
        };
        assert_eq!(mounted_in(line), Some(expected));
        assert_eq!(mounted_in("22 1 0:21 / /proc rw - proc proc rw"), None);
        let read_only = mounted_in("36 35 254:32 / /a ro,nodev - ext4 /dev/vdc ro").unwrap();
        assert!(read_only.read_only);
    }

    #[test]
    fn a_mount_point_leads_nowhere_else() {
        assert!(mount_point("/data/in").is_ok());
        for path in ["/", "/data/../etc", "data", "/data\0"] {
            assert!(mount_point(path).is_err(), "{path}");
        }
    }
}
