//! Images and boot artefacts: the store that holds them and the builders that make them.
//!
//! An image is a raw ext4 disk named by the digest of its content; workspaces put overlays on it and
//! it is never written again. The boot artefacts are the kernel and the initial file system, with the
//! agent as `/init`, that every VM starts with. Nothing here mounts a guest file system.
//!
//! Builders block (they run the distribution's programs for minutes); call them off the async threads.

mod boot;
mod boot_files;
mod build;
mod debian_package;
mod error;
mod host_program;
mod initramfs;
mod kernel;
mod manifest;
mod oci;
mod progress;
mod recipe;
mod small_kernel;
mod store;

pub use boot::{BootRecipe, KernelSource, build_boot};
pub use boot_files::{BootArtefacts, BootFiles, KernelChoice, KernelVariant, SmallKernel};
pub use build::{BuildContext, Rebuild, build_image};
pub use error::ImageError;
pub(crate) use host_program::command as host_command;
pub use initramfs::{KernelModule, write_initramfs};
pub use kernel::{GUEST_MODULES, extract_vmlinux, modules_in_load_order};
pub use manifest::{BootManifest, ImageManifest, KernelManifest, OciOrigin, SealedFile};
pub use oci::{ImageDefaults, PullError, PullLimits, PullPolicy, Puller};
pub use progress::Progress;
pub use recipe::{Origin, Recipe};
pub use small_kernel::{KernelRecipe, build_small_kernel};
pub use store::{ImageStore, StoredImage};
