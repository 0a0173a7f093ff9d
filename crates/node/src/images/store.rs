//! The directory where images and boot artefacts live.
//!
//! ```text
//! <store>/lock                      held while something is built
//! <store>/base@3f2a.../image.json   what it is; the directory is named by image and digest
//! <store>/base@3f2a.../root.ext4    the raw disk, 0444, never written again
//! <store>/boot -> boot@91c0...      the kernel and initial file system in use
//! <store>/boot@91c0.../boot.json, vmlinux, initramfs.cpio
//! <store>/small-kernel -> small-kernel@77e2...        if one was built
//! <store>/small-kernel@77e2.../kernel.json, vmlinux, config
//! <store>/pulled-61b0...@3f2a...    an image from a registry, named by digests of reference and disk
//! <store>/pulls/...                 what is being pulled, or was broken off and can be continued
//! <store>/.staging-*                a build under way; without a lock holder it is rubbish
//! ```
//!
//! A directory appears whole, by a rename, after everything in it was written and synchronised. The
//! store keeps nothing in memory: another process may build while this one serves.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Serialize;
use skerry_internal_api::ImageInfo;
use skerry_model::spec::{ImageDigest, ImageRef};

use super::{
    ImageDefaults, ImageError, ImageManifest, KernelChoice,
    boot_files::BOOT_PREFIXES,
    manifest::{digest_bytes, digest_file, read_manifest},
};

pub(super) const DISK_FILE: &str = "root.ext4";
pub(super) const IMAGE_MANIFEST_FILE: &str = "image.json";
const STAGING_PREFIX: &str = ".staging-";
/// Hexadecimal digits of the digest in a directory's name.
const DIGEST_DIGITS_IN_NAME: usize = 16;
/// Long enough for the slowest build that may be in front.
const LOCK_LIMIT: Duration = Duration::from_secs(3600);

/// An image that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// What it is.
    pub manifest: ImageManifest,
    /// The raw disk. Read-only: overlays refer to it.
    pub disk: PathBuf,
}

impl StoredImage {
    /// The part of the manifest that control knows.
    #[must_use]
    pub fn info(&self) -> ImageInfo {
        let ImageManifest { name, description, category, disk, allocated_bytes, built_at, .. } =
            self.manifest.clone();
        ImageInfo {
            name,
            digest: disk.digest,
            description,
            category,
            size_bytes: allocated_bytes,
            built_at,
        }
    }

    /// What the image says about the programs in it; nothing for one that was built here.
    #[must_use]
    pub fn defaults(&self) -> ImageDefaults {
        self.manifest.oci.as_ref().map(|oci| oci.defaults.clone()).unwrap_or_default()
    }

    /// The content digest, which is the image's identity.
    #[must_use]
    pub fn digest(&self) -> &ImageDigest {
        &self.manifest.disk.digest
    }

    /// The length of the disk in bytes, of which an overlay's size is counted.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.manifest.disk.length_bytes
    }
}

/// The images of a node. Cheap to clone; safe to use from many processes at once.
#[derive(Clone, Debug)]
pub struct ImageStore {
    directory: PathBuf,
    kernel_choice: KernelChoice,
}

impl ImageStore {
    /// The store in `directory`, which is made when it is not there.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(directory: &Path) -> Result<Self, ImageError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .and_then(|()| directory.canonicalize())
            .map(|directory| Self { directory, kernel_choice: KernelChoice::default() })
            .map_err(ImageError::file("make", directory))
    }

    /// The same store with this choice of the kernel in [`ImageStore::boot_files`].
    #[must_use]
    pub fn with_kernel_choice(self, kernel_choice: KernelChoice) -> Self {
        Self { kernel_choice, ..self }
    }

    /// The choice that [`ImageStore::boot_files`] follows.
    #[must_use]
    pub fn kernel_choice(&self) -> KernelChoice {
        self.kernel_choice
    }

    /// Where the store is, as an absolute path.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Every image that can be used: by name, the newest of a name first. A damaged one is left out
    /// and logged.
    #[must_use]
    pub fn list(&self) -> Vec<StoredImage> {
        let mut images: Vec<StoredImage> = self
            .entries()
            .into_iter()
            .filter(|name| {
                name.contains('@') && !BOOT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            })
            .filter_map(|name| match self.read_image(&name) {
                Ok(image) => Some(image),
                Err(reason) => {
                    tracing::warn!(image = name, reason, "an image in the store is not usable");
                    None
                }
            })
            .collect();
        images.sort_by(|one, other| {
            let (one, other) = (&one.manifest, &other.manifest);
            one.name.cmp(&other.name).then(other.built_at.cmp(&one.built_at))
        });
        images
    }

    /// The newest usable image of this name.
    ///
    /// # Errors
    /// [`ImageError::Unavailable`] when there is none.
    pub fn by_name(&self, name: &ImageRef) -> Result<StoredImage, ImageError> {
        self.list().into_iter().find(|image| image.manifest.name == *name).ok_or_else(|| {
            unavailable(&format!("image `{name}`"), "it has not been built on this node")
        })
    }

    /// The usable image with this content.
    ///
    /// # Errors
    /// [`ImageError::Unavailable`] when it is not there or damaged.
    pub fn by_digest(&self, digest: &ImageDigest) -> Result<StoredImage, ImageError> {
        let what = format!("image {digest}");
        let ending = directory_ending(digest).map_err(|reason| unavailable(&what, reason))?;
        let mut reason = "it is not on this node".to_owned();
        let candidates = self.entries().into_iter();
        for name in candidates.filter(|name| name.ends_with(&ending)) {
            match self.read_image(&name) {
                Ok(image) if image.digest() == digest => return Ok(image),
                Ok(_namesake) => {}
                Err(damage) => reason = damage,
            }
        }
        Err(unavailable(&what, reason))
    }

    /// Reads the whole disk and compares it with the digest.
    ///
    /// # Errors
    /// [`ImageError::Unavailable`] when it is missing or differs.
    pub fn verify(&self, digest: &ImageDigest) -> Result<(), ImageError> {
        let image = self.by_digest(digest)?;
        let found = digest_file(&image.disk)?;
        if found == *digest {
            return Ok(());
        }
        Err(unavailable(&format!("image {digest}"), format!("its content is {found}")))
    }

    fn read_image(&self, directory_name: &str) -> Result<StoredImage, String> {
        let directory = self.directory.join(directory_name);
        let manifest: ImageManifest = read_manifest(&directory.join(IMAGE_MANIFEST_FILE))?;
        let ending = directory_ending(&manifest.disk.digest)?;
        if directory_name != format!("{}{ending}", directory_stem(&manifest.name)) {
            return Err(format!("its manifest is that of {}{ending}", manifest.name));
        }
        let disk = directory.join(DISK_FILE);
        manifest.disk.looks_untouched(&disk)?;
        Ok(StoredImage { manifest, disk })
    }

    pub(super) fn entries(&self) -> Vec<String> {
        let names = fs::read_dir(&self.directory).map(|entries| {
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
        });
        names.unwrap_or_else(|error| {
            tracing::error!(directory = %self.directory.display(), %error, "the image store cannot be read");
            Vec::new()
        })
    }

    /// Waits for every other build and keeps new ones out until the guard is dropped. `on_wait` is
    /// called once when there is somebody to wait for.
    pub(super) fn lock(&self, on_wait: &mut dyn FnMut()) -> Result<BuildLock<'_>, ImageError> {
        let file = FileLock::wait(&self.directory.join("lock"), on_wait)?;
        let lock = BuildLock { store: self, _file: file };
        lock.remove_leftovers();
        Ok(lock)
    }
}

/// A file that one process at a time has locked.
pub(super) struct FileLock {
    /// Closing it releases the lock, also when the process dies.
    _file: File,
}

impl FileLock {
    /// Makes the file if need be and waits for whoever has it. `on_wait` is called once when there is
    /// somebody to wait for.
    pub(super) fn wait(path: &Path, on_wait: &mut dyn FnMut()) -> Result<Self, ImageError> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o644)
            .open(path)
            .map_err(ImageError::file("open", path))?;
        let deadline = Instant::now() + LOCK_LIMIT;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::Error(source)) => {
                    return Err(ImageError::file("lock", path)(source));
                }
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(ImageError::Locked { path: path.to_owned(), limit: LOCK_LIMIT });
                }
                Err(TryLockError::WouldBlock) => {
                    if !told {
                        told = true;
                        on_wait();
                    }
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        }
    }
}

/// `@` and the first digits of the digest.
pub(super) fn directory_ending(digest: &ImageDigest) -> Result<String, String> {
    let digits = digest.0.strip_prefix("sha256:").unwrap_or_default();
    if digits.len() != 64 || !digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("its digest is not `sha256:` and 64 hexadecimal digits".into());
    }
    Ok(format!("@{}", &digits[..DIGEST_DIGITS_IN_NAME]))
}

/// What a directory's name begins with: the catalogue name, or for a reference to a registry, which has
/// slashes and colons in it, some digits of its digest.
fn directory_stem(name: &ImageRef) -> String {
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    if name.0.bytes().all(plain) {
        return name.0.clone();
    }
    let digest = digest_bytes(name.0.as_bytes()).0;
    let digits = digest.trim_start_matches("sha256:").chars().take(DIGEST_DIGITS_IN_NAME);
    format!("pulled-{}", digits.collect::<String>())
}

pub(super) fn unavailable(what: &str, reason: impl Into<String>) -> ImageError {
    ImageError::Unavailable { what: what.to_owned(), reason: reason.into() }
}

/// The right to change the store; one holder on the whole host.
pub(super) struct BuildLock<'a> {
    store: &'a ImageStore,
    _file: FileLock,
}

impl BuildLock<'_> {
    pub(super) fn store(&self) -> &ImageStore {
        self.store
    }

    /// Where a link is made before it takes the place of another.
    pub(super) fn staged_link_path(&self) -> PathBuf {
        self.store.directory.join(format!("{STAGING_PREFIX}link"))
    }

    /// A new empty directory in the store, removed when the guard is dropped unpublished.
    pub(super) fn staging(&self, name: &str) -> Result<Staging, ImageError> {
        let path = self.store.directory.join(format!("{STAGING_PREFIX}{name}"));
        DirBuilder::new().mode(0o755).create(&path).map_err(ImageError::file("make", &path))?;
        Ok(Staging { path })
    }

    /// Makes a staged image visible. An image of the same content that is there stays as it is.
    pub(super) fn publish_image(
        &self,
        staging: Staging,
        manifest: &ImageManifest,
    ) -> Result<StoredImage, ImageError> {
        seal(&staging.path, &[DISK_FILE], IMAGE_MANIFEST_FILE, manifest)?;
        let digest = &manifest.disk.digest;
        let ending = directory_ending(digest).map_err(|reason| unavailable("new image", reason))?;
        let name = format!("{}{ending}", directory_stem(&manifest.name));
        if self.store.read_image(&name).is_err() {
            self.put_in_place(staging, &name)?;
        }
        self.store.by_digest(digest)
    }

    /// Renames the staged directory to `name`, whatever is there now being damaged or the same.
    pub(super) fn put_in_place(&self, staging: Staging, name: &str) -> Result<(), ImageError> {
        self.remove(name);
        let target = self.store.directory.join(name);
        fs::rename(&staging.path, &target)
            .and_then(|()| synchronise(&self.store.directory))
            .map_err(ImageError::file("rename a finished build to", &target))
    }

    fn remove_leftovers(&self) {
        for entry in self.store.entries() {
            if entry.starts_with(STAGING_PREFIX) {
                self.remove(&entry);
            }
        }
    }

    pub(super) fn remove(&self, entry: &str) {
        remove_tree(&self.store.directory.join(entry));
    }
}

/// A build's own directory.
pub(super) struct Staging {
    pub(super) path: PathBuf,
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a publication there is nothing at this path any more.
        remove_tree(&self.path);
    }
}

pub(super) fn remove_tree(path: &Path) {
    let outcome = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_file) => fs::remove_file(path),
        Err(_gone) => Ok(()),
    };
    if let Err(error) = outcome {
        tracing::warn!(path = %path.display(), %error, "something a build left cannot be removed");
    }
}

/// Writes the manifest, makes every file read-only and brings all of it to the disk.
pub(super) fn seal(
    directory: &Path,
    files: &[&str],
    manifest_file: &str,
    manifest: &impl Serialize,
) -> Result<(), ImageError> {
    let path = directory.join(manifest_file);
    let write = || {
        let mut file = File::create(&path)?;
        serde_json::to_writer_pretty(&mut file, manifest)?;
        file.write_all(b"\n")
    };
    write().map_err(ImageError::file("write", &path))?;
    for name in files.iter().chain([&manifest_file]) {
        let path = directory.join(name);
        fs::set_permissions(&path, Permissions::from_mode(0o444))
            .and_then(|()| synchronise(&path))
            .map_err(ImageError::file("seal", &path))?;
    }
    synchronise(directory).map_err(ImageError::file("synchronise", directory))
}

pub(super) fn synchronise(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
