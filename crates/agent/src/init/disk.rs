//! The root disk: finding it, growing its file system.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
            socket,
        },
        statvfs::fstatvfs,
    },
};

use super::layout;

/// How long a machine may take to show that it has a disk at all.
const DEVICE_WITHIN: Duration = Duration::from_secs(1);
/// How long the disk of a machine that has one may take to be usable.
const DISK_WITHIN: Duration = Duration::from_secs(20);
/// How long the kernel may take to notice that a disk was made larger.
const GROWTH_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks at it.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The device type of disks on the virtio bus (virtio 1.2, section 5).
const VIRTIO_BLOCK: &str = "0x0002";

nix::ioctl_write_ptr!(
    /// `EXT4_IOC_RESIZE_FS`: grows a mounted ext4 to so many blocks.
    ext4_resize, b'f', 16, u64
);

/// The kernel's announcements of devices: what waiting for one is woken by.
pub(super) struct Uevents(Option<OwnedFd>);

impl Uevents {
    /// Listens from now on. A kernel without it is polled instead.
    pub(super) fn open() -> Self {
        let listening = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )
        .and_then(|socket| {
            // Group 1: the kernel itself.
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
            Ok(socket)
        });
        Self(listening.ok())
    }

    /// Looks with `look` until it finds something, again after every announcement, for at most
    /// `within`.
    pub(super) fn wait_for<T>(
        &self,
        within: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(found) = look() {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            self.wait_for_any(left);
        }
    }

    fn wait_for_any(&self, within: Duration) {
        // Announcements can get lost; looking again once a while costs nothing.
        let pause = within.min(Duration::from_millis(200));
        let Some(socket) = &self.0 else { return std::thread::sleep(pause) };
        let timeout = PollTimeout::try_from(pause).unwrap_or(PollTimeout::ZERO);
        let _ = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout);
        let mut buffer = [0; 4096];
        while recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
            .is_ok_and(|length| length > 0)
        {}
    }
}

/// The root disk's device file; `None` on a machine without disks.
///
/// # Errors
/// When the machine has a disk and it does not come up: it must not pass for one without.
pub(super) fn find_root(uevents: &Uevents) -> io::Result<Option<String>> {
    if uevents.wait_for(DEVICE_WITHIN, || has_disk().then_some(())).is_none() {
        return Ok(None);
    }
    if let Some(device) = uevents.wait_for(DISK_WITHIN, || by_serial(layout::ROOT_SERIAL)) {
        return Ok(Some(device));
    }
    if Path::new(layout::ROOT_FALLBACK).exists() {
        return Ok(Some(String::from(layout::ROOT_FALLBACK)));
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "the disk did not come up"))
}

fn has_disk() -> bool {
    fs::read_dir("/sys/bus/virtio/devices").is_ok_and(|mut devices| {
        devices.any(|device| {
            let kind = device.and_then(|device| fs::read_to_string(device.path().join("device")));
            kind.is_ok_and(|kind| kind.trim() == VIRTIO_BLOCK)
        })
    })
}

/// The device file of the disk with this serial number.
pub(crate) fn by_serial(wanted: &str) -> Option<String> {
    fs::read_dir("/sys/block").ok()?.flatten().find_map(|disk| {
        let serial = fs::read_to_string(disk.path().join("serial")).ok()?;
        let device = format!("/dev/{}", disk.file_name().to_string_lossy());
        (serial.trim() == wanted && Path::new(&device).exists()).then_some(device)
    })
}

/// The disks on the virtio bus that no driver serves, by their names there.
pub(crate) fn without_driver() -> Vec<String> {
    let devices = fs::read_dir("/sys/bus/virtio/devices").into_iter().flatten().flatten();
    let left = devices.filter(|device| {
        let kind = fs::read_to_string(device.path().join("device"));
        kind.is_ok_and(|kind| kind.trim() == VIRTIO_BLOCK) && !device.path().join("driver").exists()
    });
    left.map(|device| device.file_name().to_string_lossy().into_owned()).collect()
}

/// The size the kernel knows of a disk.
pub(crate) fn size_bytes(device: &str) -> io::Result<u64> {
    let name = device.trim_start_matches("/dev/");
    let sectors = fs::read_to_string(format!("/sys/block/{name}/size"))?;
    let sectors: u64 = sectors.trim().parse().map_err(io::Error::other)?;
    // The unit is 512 bytes whatever the disk's own sectors are.
    Ok(sectors * 512)
}

/// The number of a disk's device: major and minor.
pub(crate) fn number(device: &str) -> io::Result<(u64, u64)> {
    let name = device.trim_start_matches("/dev/");
    let text = fs::read_to_string(format!("/sys/block/{name}/dev"))?;
    let parts = text.trim().split_once(':').map(|(major, minor)| (major.parse(), minor.parse()));
    match parts {
        Some((Ok(major), Ok(minor))) => Ok((major, minor)),
        Some(_) | None => Err(io::Error::other(format!("{device} has the number {text:?}"))),
    }
}

/// The root disk and the file system on it.
#[derive(Debug)]
pub(crate) struct RootDisk {
    /// Its device file.
    device: String,
    /// How large the disk was when its file system was last made to fill it, in bytes; 0 before.
    filled_bytes: AtomicU64,
}

impl RootDisk {
    pub(super) fn new(device: String) -> Self {
        Self { device, filled_bytes: AtomicU64::new(0) }
    }

    /// Whether the disk is larger than when [`RootDisk::grow`] was last called.
    pub(crate) fn has_grown(&self) -> bool {
        self.size_bytes().is_ok_and(|size| size > self.filled_bytes.load(Ordering::Relaxed))
    }

    /// The size the kernel knows.
    fn size_bytes(&self) -> io::Result<u64> {
        size_bytes(&self.device)
    }

    /// Waits until the kernel sees a disk of at least so many bytes, which was announced to it. Blocks.
    pub(crate) fn wait_for(&self, size_bytes: u64) -> io::Result<()> {
        wait_for_size(&self.device, size_bytes)
    }

    /// Grows the file system, mounted at `mount_point`, to the size of the disk. Returns the number of
    /// bytes gained; an up-to-date file system is left alone. Blocks.
    pub(crate) fn grow(&self, mount_point: &str) -> io::Result<u64> {
        let disk_bytes = self.size_bytes()?;
        let gained_bytes = grow_file_system(&self.device, &File::open(mount_point)?)?;
        self.filled_bytes.store(disk_bytes, Ordering::Relaxed);
        Ok(gained_bytes)
    }
}

/// Waits until the kernel sees a disk of at least so many bytes, which was announced to it. Blocks.
pub(crate) fn wait_for_size(device: &str, wanted_bytes: u64) -> io::Result<()> {
    let deadline = Instant::now() + GROWTH_WITHIN;
    loop {
        let seen = size_bytes(device)?;
        if seen >= wanted_bytes {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(io::Error::other(format!(
                "the disk still has {seen} bytes instead of {wanted_bytes}"
            )));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Grows the ext4 of which `directory` is one to the size of its disk, `device`. Returns the number of
/// bytes gained; an up-to-date file system is left alone. Blocks.
pub(crate) fn grow_file_system(device: &str, directory: &File) -> io::Result<u64> {
    let disk_bytes = size_bytes(device)?;
    let before = fstatvfs(directory)?;
    let block_size = before.fragment_size();
    let blocks = disk_bytes / block_size;
    // `blocks()` leaves out the file system's own tables: an equal size looks a little smaller. The
    // kernel knows better and does nothing when nothing is to be done.
    if blocks > before.blocks() {
        // SAFETY: the descriptor is open and the kernel reads one 64-bit number.
        unsafe { ext4_resize(directory.as_raw_fd(), &raw const blocks) }?;
    }
    let after = fstatvfs(directory)?;
    Ok(after.blocks().saturating_sub(before.blocks()).saturating_mul(block_size))
}
