//! The tap device of a VM: Ethernet frames of the guest, read and written by its VMM through a file.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, fd::OwnedFd, unix::fs::OpenOptionsExt},
};

use nix::libc;

/// Why no taps can be made; checked without making one.
pub(super) fn unavailable() -> Option<String> {
    let error = open().err()?;
    Some(format!("/dev/net/tun: {error}"))
}

/// A tap in the calling thread's namespace. It ends with the last copy of the file. Frames carry a
/// `virtio_net_hdr`, so that checksums and segmentation can be left to whoever receives them.
pub(super) fn make(name: &str) -> io::Result<OwnedFd> {
    // Linux, include/uapi/linux/if_tun.h.
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    let file = open()?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        },
    };
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the request lives for the call, is initialised and of the type that it reads and writes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file.into())
}

fn open() -> io::Result<File> {
    // Without O_NONBLOCK the VMM would wait in a read for ever.
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
}
