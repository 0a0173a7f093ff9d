//! What every VM boots with: a kernel, and the initial file system with the agent. Which of two
//! kernels that is, the distribution's or the small one built by [`super::build_small_kernel`], is the
//! store's choice; the initial file system is the same for both.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use skerry_model::spec::ImageDigest;

use super::{
    BootManifest, ImageError, ImageStore, KernelManifest,
    manifest::{digest_bytes, read_manifest},
    store::{BuildLock, Staging, directory_ending, seal, synchronise, unavailable},
};

pub(super) const KERNEL_FILE: &str = "vmlinux";
pub(super) const INITRAMFS_FILE: &str = "initramfs.cpio";
pub(super) const BOOT_MANIFEST_FILE: &str = "boot.json";
pub(super) const KERNEL_CONFIG_FILE: &str = "config";
pub(super) const KERNEL_MANIFEST_FILE: &str = "kernel.json";
const BOOT: &str = "boot";
const SMALL_KERNEL: &str = "small-kernel";
/// In messages.
const SMALL_KERNEL_NAME: &str = "usable small kernel";
/// What of the store is not an image.
pub(super) const BOOT_PREFIXES: [&str; 2] = ["boot@", "small-kernel@"];

/// Which kernel guests are to boot with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelChoice {
    /// The small one if the store has it, else the distribution's.
    #[default]
    Auto,
    /// The distribution's.
    Distribution,
    /// The small one; a store that does not have it has no boot files.
    Small,
}

/// Which kernel it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelVariant {
    /// The distribution's: it loads modules from the initial file system.
    Distribution,
    /// The one built here: everything a guest needs is built in.
    Small,
}

impl KernelVariant {
    /// For people and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Distribution => "distribution",
            Self::Small => "small",
        }
    }
}

/// The kernel and the initial file system with which every VM boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFiles {
    /// The uncompressed kernel.
    pub kernel: PathBuf,
    /// Of the kernel's content.
    pub kernel_digest: ImageDigest,
    /// Which one it is.
    pub kernel_variant: KernelVariant,
    /// As `uname -r` prints it in the guest.
    pub kernel_release: String,
    /// The initial file system.
    pub initramfs: PathBuf,
    /// Of the initial file system's content, the agent included.
    pub initramfs_digest: ImageDigest,
}

impl BootFiles {
    /// One digest over both files: equal for two VMs exactly when they boot with the same bytes.
    #[must_use]
    pub fn digest(&self) -> ImageDigest {
        digest_of_both(&self.kernel_digest, &self.initramfs_digest)
    }

    fn new(boot: BootArtefacts, small: Option<SmallKernel>) -> Self {
        let (initramfs, initramfs_digest) = (boot.initramfs, boot.manifest.initramfs.digest);
        match small {
            Some(SmallKernel { manifest, kernel, .. }) => Self {
                kernel,
                kernel_digest: manifest.kernel.digest,
                kernel_variant: KernelVariant::Small,
                kernel_release: manifest.release,
                initramfs,
                initramfs_digest,
            },
            None => Self {
                kernel: boot.kernel,
                kernel_digest: boot.manifest.kernel.digest,
                kernel_variant: KernelVariant::Distribution,
                kernel_release: boot.manifest.kernel_release,
                initramfs,
                initramfs_digest,
            },
        }
    }
}

/// What `skerry image build` makes beside the images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootArtefacts {
    /// What they are.
    pub manifest: BootManifest,
    /// The distribution's kernel, uncompressed.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initramfs: PathBuf,
}

/// What `skerry kernel build` makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmallKernel {
    /// What it is.
    pub manifest: KernelManifest,
    /// The uncompressed kernel.
    pub kernel: PathBuf,
    /// Its configuration, as the kernel's own build writes it.
    pub config: PathBuf,
}

fn digest_of_both(kernel: &ImageDigest, initramfs: &ImageDigest) -> ImageDigest {
    digest_bytes(format!("{kernel} {initramfs}").as_bytes())
}

impl ImageStore {
    /// The kernel and the initial file system that a VM started now boots with, by the store's
    /// [`KernelChoice`]. A small kernel that is damaged is passed over and logged, unless it is asked
    /// for by name.
    ///
    /// # Errors
    /// [`ImageError::Unavailable`] when they have not been built or are damaged.
    pub fn boot_files(&self) -> Result<BootFiles, ImageError> {
        let boot = self.boot_artefacts()?;
        let small = match self.kernel_choice() {
            KernelChoice::Distribution => None,
            KernelChoice::Small => Some(self.small_kernel()?),
            KernelChoice::Auto => self.small_kernel_if_built().unwrap_or_else(|error| {
                tracing::warn!(%error, "the distribution's kernel is used instead");
                None
            }),
        };
        Ok(BootFiles::new(boot, small))
    }

    /// The distribution's kernel and the initial file system.
    ///
    /// # Errors
    /// [`ImageError::Unavailable`] when they have not been built or are damaged.
    pub fn boot_artefacts(&self) -> Result<BootArtefacts, ImageError> {
        self.read_boot().map_err(|reason| unavailable("boot artefacts", reason))
    }

    /// The kernel that was built here.
    ///
    /// # Errors
    /// [`ImageError::Unavailable`] when it has not been built or is damaged.
    pub fn small_kernel(&self) -> Result<SmallKernel, ImageError> {
        self.small_kernel_if_built()?
            .ok_or_else(|| unavailable(SMALL_KERNEL_NAME, "it has not been built"))
    }

    /// The kernel that was built here; `None` when none was.
    ///
    /// # Errors
    /// [`ImageError::Unavailable`] when it is damaged.
    pub fn small_kernel_if_built(&self) -> Result<Option<SmallKernel>, ImageError> {
        self.read_small_kernel().map_err(|reason| unavailable(SMALL_KERNEL_NAME, reason))
    }

    fn read_boot(&self) -> Result<BootArtefacts, String> {
        // The link is resolved once, so that a rebuild meanwhile does not mix two builds.
        let directory = self
            .directory()
            .join(BOOT)
            .canonicalize()
            .map_err(|_| "they have not been built".to_owned())?;
        let manifest: BootManifest = read_manifest(&directory.join(BOOT_MANIFEST_FILE))?;
        let (kernel, initramfs) = (directory.join(KERNEL_FILE), directory.join(INITRAMFS_FILE));
        manifest.kernel.looks_untouched(&kernel)?;
        manifest.initramfs.looks_untouched(&initramfs)?;
        Ok(BootArtefacts { manifest, kernel, initramfs })
    }

    fn read_small_kernel(&self) -> Result<Option<SmallKernel>, String> {
        let link = self.directory().join(SMALL_KERNEL);
        if fs::symlink_metadata(&link).is_err() {
            return Ok(None);
        }
        let directory =
            link.canonicalize().map_err(|error| format!("{}: {error}", link.display()))?;
        let manifest: KernelManifest = read_manifest(&directory.join(KERNEL_MANIFEST_FILE))?;
        let (kernel, config) = (directory.join(KERNEL_FILE), directory.join(KERNEL_CONFIG_FILE));
        manifest.kernel.looks_untouched(&kernel)?;
        manifest.config.looks_untouched(&config)?;
        Ok(Some(SmallKernel { manifest, kernel, config }))
    }
}

impl BuildLock<'_> {
    /// Makes staged boot artefacts the ones in use. The ones before stay until the next time, for a
    /// VM that is just being started with them.
    pub(super) fn publish_boot(
        &self,
        staging: Staging,
        manifest: &BootManifest,
    ) -> Result<BootArtefacts, ImageError> {
        seal(&staging.path, &[KERNEL_FILE, INITRAMFS_FILE], BOOT_MANIFEST_FILE, manifest)?;
        let digest = digest_of_both(&manifest.kernel.digest, &manifest.initramfs.digest);
        self.publish_under_link(staging, BOOT, &digest)?;
        self.store().boot_artefacts()
    }

    /// Makes a staged kernel the small kernel in use; the one before stays as with
    /// [`Self::publish_boot`].
    pub(super) fn publish_small_kernel(
        &self,
        staging: Staging,
        manifest: &KernelManifest,
    ) -> Result<SmallKernel, ImageError> {
        seal(&staging.path, &[KERNEL_FILE, KERNEL_CONFIG_FILE], KERNEL_MANIFEST_FILE, manifest)?;
        self.publish_under_link(staging, SMALL_KERNEL, &manifest.kernel.digest)?;
        self.store().small_kernel()
    }

    /// Renames the staged directory to `<name>@<digest>`, turns the link `<name>` to it, and removes
    /// what the link has not shown before it.
    fn publish_under_link(
        &self,
        staging: Staging,
        name: &str,
        digest: &ImageDigest,
    ) -> Result<(), ImageError> {
        let ending = directory_ending(digest).map_err(|reason| unavailable(name, reason))?;
        let directory_name = format!("{name}{ending}");
        let store_directory = self.store().directory();
        let link = store_directory.join(name);
        let before = fs::read_link(&link).ok();
        self.put_in_place(staging, &directory_name)?;
        let new_link = self.staged_link_path();
        symlink(&directory_name, &new_link)
            .and_then(|()| fs::rename(&new_link, &link))
            .and_then(|()| synchronise(store_directory))
            .map_err(ImageError::file("replace", &link))?;
        for entry in self.store().entries() {
            let in_use = entry == directory_name || before.as_deref() == Some(Path::new(&entry));
            if entry.starts_with(&format!("{name}@")) && !in_use {
                self.remove(&entry);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "boot_files_tests.rs"]
mod tests;
