//! The initial file system: an uncompressed `newc` cpio archive, written without root and without
//! touching the host's file system, so the same input gives the same bytes everywhere.
//!
//! Layout, read by the agent when it starts as PID 1: `/init` (the agent itself), `/modules/*.ko`
//! with `/modules/order` (file names in load order, one a line), the device node `/dev/console`, and
//! the empty directories `/dev`, `/newroot`, `/proc`, `/sys`.

use std::io::{self, Write};

use cpio::newc;

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const READABLE: u32 = 0o100_444;
const CHARACTER_DEVICE: u32 = 0o020_600;
/// Character device 5:1, the kernel's console (Linux `Documentation/admin-guide/devices.txt`).
const CONSOLE_DEVICE: (u32, u32) = (5, 1);

/// A kernel module to be loaded by the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelModule {
    /// The file's name, `virtio_blk.ko`.
    pub file_name: String,
    /// The ELF object, uncompressed.
    pub content: Vec<u8>,
}

/// Writes the archive for `agent` and `modules` (already in load order).
///
/// # Errors
/// What `out` reports; also when a file is 4 GiB or larger, which the format cannot express.
pub fn write_initramfs<W: Write>(out: W, agent: &[u8], modules: &[KernelModule]) -> io::Result<W> {
    let mut archive = Archive { out, inode: 0 };
    for name in ["dev", "modules", "newroot", "proc", "sys"] {
        archive = archive.entry(newc::Builder::new(name).mode(DIRECTORY).nlink(2), &[])?;
    }
    let (major, minor) = CONSOLE_DEVICE;
    let console = newc::Builder::new("dev/console")
        .mode(CHARACTER_DEVICE)
        .rdev_major(major)
        .rdev_minor(minor);
    archive = archive.entry(console, &[])?;
    archive = archive.entry(newc::Builder::new("init").mode(EXECUTABLE), agent)?;
    let mut order = String::new();
    for module in modules {
        let path = format!("modules/{}", module.file_name);
        archive = archive.entry(newc::Builder::new(&path).mode(READABLE), &module.content)?;
        order.push_str(&module.file_name);
        order.push('\n');
    }
    archive =
        archive.entry(newc::Builder::new("modules/order").mode(READABLE), order.as_bytes())?;
    newc::trailer(archive.out)
}

struct Archive<W> {
    out: W,
    /// Hard links are told by equal inode numbers, so every entry has its own.
    inode: u32,
}

impl<W: Write> Archive<W> {
    fn entry(self, header: newc::Builder, content: &[u8]) -> io::Result<Self> {
        let inode = self.inode + 1;
        let size = u32::try_from(content.len()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "a file in the archive is 4 GiB or larger")
        })?;
        let mut writer = header.ino(inode).write(self.out, size);
        writer.write_all(content)?;
        Ok(Self { out: writer.finish()?, inode })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn sample() -> Vec<u8> {
        let modules = [
            KernelModule { file_name: "virtio_mmio.ko".into(), content: b"first".to_vec() },
            KernelModule { file_name: "virtio_blk.ko".into(), content: b"second".to_vec() },
        ];
        write_initramfs(Vec::new(), b"agent", &modules).unwrap()
    }

    #[test]
    fn the_archive_holds_what_the_agent_expects_to_find() {
        let archive = sample();
        let mut rest: &[u8] = &archive;
        let mut listing = String::new();
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut content = String::new();
            reader.read_to_string(&mut content).unwrap();
            let entry = reader.entry();
            listing.push_str(&format!(
                "{:06o} {},{} {} {:?}\n",
                entry.mode(),
                entry.rdev_major(),
                entry.rdev_minor(),
                entry.name(),
                content
            ));
            rest = reader.finish().unwrap();
        }
        insta::assert_snapshot!(listing);
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        assert_eq!(sample(), sample());
    }
}
