//! Kernel modules from the initial file system.

use std::{
    fs::{self, File},
    path::Path,
};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
};

use super::{console::log, layout};

/// Loads what the order file names. A module that cannot be loaded is reported and passed over: what
/// needs it will fail with a better reason.
pub(super) fn load_all() {
    let order = fs::read_to_string(layout::MODULE_ORDER).unwrap_or_default();
    for name in order.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let path = Path::new(layout::MODULES).join(name);
        let loaded =
            File::open(&path).map_err(|error| error.to_string()).and_then(
                |file| match finit_module(&file, c"", ModuleInitFlags::empty()) {
                    Ok(()) | Err(Errno::EEXIST) => Ok(()),
                    Err(errno) => Err(errno.to_string()),
                },
            );
        if let Err(error) = loaded {
            log(&format!("module {name}: {error}"));
        }
    }
}
