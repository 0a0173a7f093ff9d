//! What every driver demands of a [`BootSpec`] before it makes anything.

use std::{os::unix::ffi::OsStrExt, path::Path};

use crate::{BootSpec, Cable, DiskSpec, RestoreSpec, RestoredMemory, VmmError};

/// The most virtual CPUs of one VM: the machine's interrupt controllers have 8-bit ids, and this
/// stays far from where that matters.
pub(crate) const MAX_VCPU_COUNT: u32 = 64;

/// The least memory a Linux guest reaches its first process with.
const MIN_MEMORY_MIB: u32 = 64;

/// A socket's path has 107 usable bytes; the rest is for the file's name.
const MAX_RUN_DIR_BYTES: usize = 80;

const MAX_LABEL_BYTES: usize = 40;

/// Less could not hold one message and would be cut at every line.
const MIN_CONSOLE_LIMIT_BYTES: u64 = 4096;

/// The kernel's own limit on x86 is 2048, of which the driver's words take some 300.
const MAX_KERNEL_ARGS_BYTES: usize = 1024;

/// Refuses what no driver boots.
///
/// # Errors
/// [`VmmError::InvalidSpec`] naming the first field that is wrong.
pub(crate) fn check(spec: &BootSpec) -> Result<(), VmmError> {
    check_machine(spec)?;
    file("kernel", &spec.kernel)?;
    file("initramfs", &spec.initramfs)
}

/// Refuses what no driver restores. What the state file holds is not looked at.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_restore(spec: &RestoreSpec) -> Result<(), VmmError> {
    check_machine(&spec.machine)?;
    file("state", &spec.state)?;
    match &spec.memory {
        RestoredMemory::InState => Ok(()),
        RestoredMemory::InStateToFile if spec.machine.memory_file.is_some() => Ok(()),
        RestoredMemory::InStateToFile => {
            Err(invalid("memory_file", "is missing: the memory is to go there".into()))
        }
        RestoredMemory::CloneOf { file: memory } => {
            file("memory.file", memory)?;
            let expected = spec.machine.memory_mib.bytes();
            match std::fs::metadata(memory) {
                Ok(found) if found.len() == expected => Ok(()),
                Ok(found) => {
                    let reason = format!("has {} bytes, the machine {expected}", found.len());
                    Err(invalid("memory.file", reason))
                }
                Err(error) => Err(invalid("memory.file", error.to_string())),
            }
        }
    }
}

fn check_machine(spec: &BootSpec) -> Result<(), VmmError> {
    check_label(&spec.label)?;
    check_kernel_args(&spec.kernel_args)?;

    if spec.run_dir.as_os_str().as_bytes().len() > MAX_RUN_DIR_BYTES {
        return Err(invalid("run_dir", format!("longer than {MAX_RUN_DIR_BYTES} bytes")));
    }
    let vcpu_count = spec.vcpu_count.get();
    if vcpu_count == 0 || vcpu_count > MAX_VCPU_COUNT {
        return Err(invalid("vcpu_count", format!("must be 1 to {MAX_VCPU_COUNT}")));
    }
    if spec.memory_mib.get() < MIN_MEMORY_MIB {
        return Err(invalid("memory_mib", format!("must be at least {MIN_MEMORY_MIB}")));
    }
    if spec.console_limit_bytes < MIN_CONSOLE_LIMIT_BYTES {
        let reason = format!("must be at least {MIN_CONSOLE_LIMIT_BYTES}");
        return Err(invalid("console_limit_bytes", reason));
    }
    // A multicast address is no station's address; the guest's driver would refuse it later.
    if spec.mac[0] & 1 == 1 || spec.mac == [0; 6] {
        return Err(invalid("mac", "must be the address of one station".into()));
    }

    match &spec.cable {
        Cable::Loose | Cable::Tap { tap: Some(_) } => {}
        Cable::Tap { tap: None } => return Err(invalid("cable", "names no tap".into())),
    }

    directory("run_dir", &spec.run_dir)?;
    if let Some(memory_file) = &spec.memory_file {
        absolute("memory_file", memory_file)?;
    }
    absolute("console_log", &spec.console_log)?;
    spec.disk.as_ref().map_or(Ok(()), check_disk)
}

/// Refuses what no driver takes for a disk.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_disk(disk: &DiskSpec) -> Result<(), VmmError> {
    file("disk.overlay", &disk.overlay)?;
    for layer in &disk.layers {
        file("disk.layers", layer)?;
    }
    if disk.layers.len() > DiskSpec::MAX_LAYERS {
        let reason = format!("more than {}", DiskSpec::MAX_LAYERS);
        return Err(invalid("disk.layers", reason));
    }
    file("disk.base", &disk.base)
}

/// Refuses what no driver puts above a VM's overlay.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_overlay(overlay: &Path) -> Result<(), VmmError> {
    file("overlay", overlay)
}

/// Refuses sizes that are no disk's.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_disk_size(size_bytes: u64) -> Result<(), VmmError> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(512) {
        return Err(invalid("size_bytes", "must be a multiple of 512, not 0".into()));
    }
    Ok(())
}

fn check_label(label: &str) -> Result<(), VmmError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if label.is_empty() || label.len() > MAX_LABEL_BYTES || !label.bytes().all(allowed) {
        let reason = format!("must be 1 to {MAX_LABEL_BYTES} characters of [a-z0-9-]");
        return Err(invalid("label", reason));
    }
    Ok(())
}

fn check_kernel_args(args: &[String]) -> Result<(), VmmError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.=,:/-".contains(&b);
    for arg in args {
        if arg.is_empty() || !arg.bytes().all(allowed) {
            return Err(invalid("kernel_args", "each must match [A-Za-z0-9_.=,:/-]+".into()));
        }
    }
    if args.iter().map(|arg| arg.len() + 1).sum::<usize>() > MAX_KERNEL_ARGS_BYTES {
        let reason = format!("longer than {MAX_KERNEL_ARGS_BYTES} bytes together");
        return Err(invalid("kernel_args", reason));
    }
    Ok(())
}

fn absolute(field: &'static str, path: &Path) -> Result<(), VmmError> {
    if path.is_absolute() {
        Ok(())
    } else {
        Err(invalid(field, format!("not an absolute path: {}", path.display())))
    }
}

fn directory(field: &'static str, path: &Path) -> Result<(), VmmError> {
    absolute(field, path)?;
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(invalid(field, format!("not a directory: {}", path.display()))),
        Err(error) => Err(invalid(field, format!("{}: {error}", path.display()))),
    }
}

fn file(field: &'static str, path: &Path) -> Result<(), VmmError> {
    absolute(field, path)?;
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(invalid(field, format!("not a regular file: {}", path.display()))),
        Err(error) => Err(invalid(field, format!("{}: {error}", path.display()))),
    }
}

fn invalid(field: &'static str, reason: String) -> VmmError {
    VmmError::InvalidSpec { field, reason }
}
