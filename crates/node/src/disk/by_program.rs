//! One overlay on the image's raw base, made and grown by `qemu-img`: what disks were before they had
//! chains.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Read,
    path::Path,
    process::Stdio,
    time::Duration,
};

use skerry_model::DiskMib;
use tokio::process::Command;

use crate::{
    Error,
    error::blocking,
    layout::{remove_file, sync_parent},
};

/// `qemu-img` takes about 15 ms; a host that needs this long is not usable.
const QEMU_IMG_BOUND: Duration = Duration::from_secs(60);
const QEMU_IMG: &str = "qemu-img";

/// The base below an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    /// The raw file.
    pub path: std::path::PathBuf,
    /// Its virtual size in bytes.
    pub size_bytes: u64,
}

/// Makes the overlay, or grows the one that is there to `base` + `writable`. Never shrinks.
pub(crate) async fn ensure_overlay(
    overlay: &Path,
    base: &Base,
    writable: DiskMib,
) -> Result<(), Error> {
    let wanted_bytes = base.size_bytes.saturating_add(writable.bytes());
    if !overlay.exists() {
        return create(overlay, base, wanted_bytes).await;
    }
    let path = overlay.to_owned();
    let found_bytes = blocking(move || read_virtual_size(&path)).await?;
    if found_bytes < wanted_bytes {
        grow(overlay, base, wanted_bytes).await?;
    }
    Ok(())
}

/// Under a temporary name first: a half-made overlay must never be taken for a disk.
async fn create(overlay: &Path, base: &Base, size_bytes: u64) -> Result<(), Error> {
    let temporary = temporary_name(overlay);
    remove_file(&temporary)?;
    let mut command = Command::new(QEMU_IMG);
    command
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .arg(&base.path)
        .arg(&temporary)
        .arg(size_bytes.to_string());
    run(command).await?;
    let overlay = overlay.to_owned();
    blocking(move || {
        let set = || -> std::io::Result<()> {
            fs::set_permissions(&temporary, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            File::open(&temporary)?.sync_all()?;
            fs::rename(&temporary, &overlay)
        };
        set().map_err(Error::path("sealing", &overlay))?;
        sync_parent(&overlay)
    })
    .await
}

/// The name under which an overlay is made.
pub(crate) fn temporary_name(overlay: &Path) -> std::path::PathBuf {
    overlay.with_extension("qcow2.new")
}

/// Every file the tool opens is named here: what the overlay's header says of its backing file was
/// written by a process that ran a guest and is not believed.
async fn grow(overlay: &Path, base: &Base, size_bytes: u64) -> Result<(), Error> {
    let mut options = OsString::from("driver=qcow2,file.driver=file,file.filename=");
    options.push(escape_commas(overlay)?);
    options.push(",backing.driver=raw,backing.file.driver=file,backing.file.filename=");
    options.push(escape_commas(&base.path)?);
    let mut command = Command::new(QEMU_IMG);
    command.args(["resize", "-q", "--image-opts"]).arg(options).arg(size_bytes.to_string());
    run(command).await?;
    let overlay = overlay.to_owned();
    blocking(move || {
        File::open(&overlay)
            .and_then(|file| file.sync_all())
            .map_err(Error::path("syncing", &overlay))
    })
    .await
}

/// In QEMU's option syntax a comma inside a value is doubled.
fn escape_commas(path: &Path) -> Result<String, Error> {
    let text = path.to_str().ok_or_else(|| Error::Config {
        setting: "data_dir",
        problem: format!("{} is not UTF-8", path.display()),
    })?;
    Ok(text.replace(',', ",,"))
}

async fn run(mut command: Command) -> Result<(), Error> {
    command
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = tokio::time::timeout(QEMU_IMG_BOUND, command.output())
        .await
        .map_err(|_| Error::Timeout { bound_seconds: QEMU_IMG_BOUND.as_secs() })?
        .map_err(Error::io("running qemu-img"))?;
    if output.status.success() {
        return Ok(());
    }
    let message: String = String::from_utf8_lossy(&output.stderr).chars().take(500).collect();
    Err(Error::Program {
        program: QEMU_IMG,
        problem: format!("{}: {}", output.status, message.trim()),
    })
}

/// The virtual size from the header, which is checked for features that would make a tool open other
/// files. Format: QEMU's `docs/interop/qcow2.txt`; all numbers are big-endian.
pub(crate) fn read_virtual_size(overlay: &Path) -> Result<u64, Error> {
    let mut header = [0_u8; 80];
    File::open(overlay)
        .and_then(|mut file| file.read_exact(&mut header))
        .map_err(Error::path("reading the header of", overlay))?;
    virtual_size(&header)
        .map_err(|problem| Error::Disk { path: overlay.to_owned(), problem: problem.to_owned() })
}

fn virtual_size(header: &[u8; 80]) -> Result<u64, &'static str> {
    let word = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let double = |at: usize| (u64::from(word(at)) << 32) | u64::from(word(at + 4));
    if header[..4] != *b"QFI\xfb" || word(4) != 3 {
        return Err("is not a qcow2 file of version 3");
    }
    if word(32) != 0 {
        return Err("claims to be encrypted");
    }
    // Bit 2 of the incompatible features: the data are in another file.
    if double(72) & 0b100 != 0 {
        return Err("names an external data file");
    }
    let size = double(24);
    // No plan permits more than 4 TiB; a forged size must not pass as a large disk.
    if size == 0 || size > 1 << 42 {
        return Err("has an impossible size");
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(size: u64, features: u64) -> [u8; 80] {
        let mut header = [0; 80];
        header[..4].copy_from_slice(b"QFI\xfb");
        header[7] = 3;
        header[24..32].copy_from_slice(&size.to_be_bytes());
        header[72..80].copy_from_slice(&features.to_be_bytes());
        header
    }

    #[test]
    fn a_header_that_names_other_files_or_is_damaged_is_refused() {
        assert_eq!(virtual_size(&header(1 << 30, 0)), Ok(1 << 30));
        assert!(virtual_size(&header(1 << 30, 0b100)).is_err());
        assert!(virtual_size(&header(0, 0)).is_err());
        assert!(virtual_size(&header(u64::MAX, 0)).is_err());
        assert!(virtual_size(&[0; 80]).is_err());
    }

    #[tokio::test]
    async fn an_overlay_is_made_once_grown_upwards_and_never_shrunk() {
        let dir = tempfile::tempdir().unwrap();
        // A comma in the path must survive QEMU's option syntax.
        let dir = dir.path().join("a,b");
        fs::create_dir(&dir).unwrap();
        let base = Base { path: dir.join("base.raw"), size_bytes: 4 << 20 };
        File::create(&base.path).unwrap().set_len(base.size_bytes).unwrap();
        let overlay = dir.join("disk.qcow2");
        for (writable_mib, expected_mib) in [(8, 12), (8, 12), (64, 68), (16, 68)] {
            ensure_overlay(&overlay, &base, DiskMib(writable_mib)).await.unwrap();
            assert_eq!(read_virtual_size(&overlay).unwrap(), expected_mib << 20);
        }
        assert!(!temporary_name(&overlay).exists());
    }

    #[tokio::test]
    async fn a_failed_creation_leaves_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base { path: dir.path().join("missing.raw"), size_bytes: 4 << 20 };
        let overlay = dir.path().join("disk.qcow2");
        let error = ensure_overlay(&overlay, &base, DiskMib(8)).await.unwrap_err();
        assert!(matches!(error, Error::Program { .. }), "{error}");
        assert!(!overlay.exists());
    }
}
