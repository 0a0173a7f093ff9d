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
/// needs it will fail with a better reason. A kernel that has everything built in loads none.
pub(super) fn load_all() {
    let order = fs::read_to_string(layout::MODULE_ORDER).unwrap_or_default();
    for name in order.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let path = Path::new(layout::MODULES).join(name);
        let loaded =
            File::open(&path).map(|file| finit_module(&file, c"", ModuleInitFlags::empty()));
        match loaded {
            Ok(Ok(()) | Err(Errno::EEXIST)) => {}
            // The initial file system is the same for both kernels; see `finit_module(2)`.
            Ok(Err(Errno::ENOSYS)) => return,
            Ok(Err(errno)) => log(&format!("module {name}: {errno}")),
            Err(error) => log(&format!("module {name}: {error}")),
        }
    }
}
