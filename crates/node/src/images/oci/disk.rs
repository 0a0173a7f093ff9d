//! The merged tree as an ext4 disk. `mkfs.ext4` of Debian's release reads directories and no archives,
//! so the harmless archive is unpacked for it once, by `tar`, in a directory nobody else can enter: as
//! root, or as root of a user name space, for only that may give files away.

use std::{
    fs::{self, File},
    io::BufWriter,
    path::Path,
    time::Duration,
};

use super::{
    super::{
        ImageError,
        build::{EPOCH_SECONDS, JOURNAL_MIB, TABLES_MIB},
        host_program::HostProgram,
    },
    archive::{self, Totals},
    tree::Tree,
};

/// For unpacking and writing 16 GiB on a slow disk.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);
const REMOVE_LIMIT: Duration = Duration::from_secs(600);
/// Free space and inodes that a system has before its disk is grown.
const SLACK_MIB: u64 = 64;
const SLACK_INODES: u64 = 4096;
/// `mkfs.ext4`'s own choice is one inode for so many bytes.
const BYTES_PER_INODE: u64 = 16384;
const INODE_BYTES: u64 = 256;
const TREE: &str = "tree";
const ARCHIVE: &str = "merged.tar";

/// Unpacks `$1` as `$2` and writes that into the disk `$3` with the UUID `$4`, `$5` inodes and `$6` MiB.
const SCRIPT: &str = r#"
rm -rf "$2"
trap 'rm -rf "$2"' EXIT
mkdir -m 0700 "$2"
tar --extract --file="$1" --directory="$2" --numeric-owner --same-owner --same-permissions \
    --xattrs --xattrs-include='*' --delay-directory-restore --warning=no-timestamp
rm -f "$3"
mkfs.ext4 -q -F -L root -m 0 -U "$4" -N "$5" -J size="$7" \
    -E lazy_itable_init=1,root_owner=0:0,hash_seed="$4" -d "$2" "$3" "$6M"
"#;

/// Makes `disk` of the tree. `directory` is ours alone and on the same file system; `layers` are the
/// unpacked layers by number.
pub(super) fn make(
    tree: &Tree,
    layers: &mut [File],
    uuid: &str,
    directory: &Path,
    disk: &Path,
) -> Result<(), ImageError> {
    let merged = directory.join(ARCHIVE);
    let file = File::create(&merged).map_err(ImageError::file("make", &merged))?;
    let totals = archive::write(tree, layers, BufWriter::with_capacity(256 << 10, file))
        .map_err(ImageError::file("write", &merged))?;
    let size = Size::of(totals);
    as_owner_of_all(&["sh", "-eu", "-c", SCRIPT, "sh"])
        .arg(&merged)
        .arg(directory.join(TREE))
        .arg(disk)
        .args([uuid, &size.inodes.to_string(), &size.mib.to_string(), &JOURNAL_MIB.to_string()])
        .env("E2FSPROGS_FAKE_TIME", EPOCH_SECONDS)
        .run(BUILD_LIMIT, &mut |line| tracing::debug!(line, "making the disk of a pulled image"))?;
    fs::remove_file(&merged).map_err(ImageError::file("remove", &merged))
}

/// Removes a directory that an earlier build may have left, with an unpacked tree in it whose owners
/// are not ours.
pub(super) fn remove(directory: &Path) -> Result<(), ImageError> {
    if directory.join(TREE).exists() {
        as_owner_of_all(&["rm", "-rf", "--"])
            .arg(directory.join(TREE))
            .run(REMOVE_LIMIT, &mut |_| {})?;
    }
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ImageError::file("remove", directory)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn as_owner_of_all(words: &[&str]) -> HostProgram {
    if nix::unistd::geteuid().is_root() {
        return HostProgram::contained(words[0], "coreutils").args(&words[1..]);
    }
    // The caller's range of sub-uids; what is missing for it, `unshare` says.
    HostProgram::new("unshare", "util-linux")
        .args(["--user", "--map-root-user", "--map-auto", "--"])
        .args(words)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    mib: u64,
    inodes: u64,
}

impl Size {
    fn of(totals: Totals) -> Self {
        let content = totals.block_bytes + totals.block_bytes / 25;
        let inodes = totals.inodes + totals.inodes / 4 + SLACK_INODES;
        let tables = inodes * INODE_BYTES;
        let mib =
            ((content + tables) >> 20) + u64::from(JOURNAL_MIB) + u64::from(TABLES_MIB) + SLACK_MIB;
        Self { mib, inodes: inodes.max((mib << 20) / BYTES_PER_INODE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_room_for_many_small_files_and_for_a_few_large_ones() {
        let small = Size::of(Totals { inodes: 200_000, block_bytes: 200_000 * 4096 });
        assert!(small.inodes >= 250_000 && small.mib >= 782 + 62, "{small:?}");
        let large = Size::of(Totals { inodes: 10, block_bytes: 1 << 30 });
        assert!(large.mib >= 1024 + 40 + 112, "{large:?}");
        assert!(large.inodes >= 64 << 10, "{large:?}");
    }
}
