//! What the store writes beside its files, and how a file is shown to be the one that was sealed.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use skerry_model::{
    Timestamp,
    spec::{ImageDigest, ImageRef},
};

use super::{ImageDefaults, ImageError};

/// The layout of the manifests below. A store written by another version is rebuilt, not guessed at.
pub(super) const FORMAT: u32 = 1;
/// A manifest is small; anything larger is not one.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// A file as it was when it was sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedFile {
    /// `sha256:` and 64 hexadecimal digits over the whole content.
    pub digest: ImageDigest,
    /// Length in bytes.
    pub length_bytes: u64,
    /// Modification time in nanoseconds since the epoch: a changed file shows without reading it.
    pub modified_ns: i64,
}

impl SealedFile {
    /// Reads and describes the file as it is now.
    pub(super) fn describe(path: &Path) -> Result<Self, ImageError> {
        let digest = digest_file(path)?;
        let metadata = fs::metadata(path).map_err(ImageError::file("inspect", path))?;
        Ok(Self { digest, length_bytes: metadata.len(), modified_ns: modified_ns(&metadata) })
    }

    /// Whether the file at `path` looks untouched: a regular file of the same length and time.
    pub(super) fn looks_untouched(&self, path: &Path) -> Result<(), String> {
        let metadata = fs::symlink_metadata(path).map_err(|error| error.to_string())?;
        if !metadata.is_file() {
            return Err(format!("{} is not a regular file", path.display()));
        }
        if metadata.len() != self.length_bytes {
            let length = metadata.len();
            return Err(format!(
                "{} has {length} bytes instead of {}",
                path.display(),
                self.length_bytes
            ));
        }
        if modified_ns(&metadata) != self.modified_ns {
            return Err(format!("{} was changed after it was built", path.display()));
        }
        Ok(())
    }
}

fn modified_ns(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

/// `image.json` beside a root disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageManifest {
    /// The layout version.
    pub format: u32,
    /// Catalogue name.
    pub name: ImageRef,
    /// One line for people.
    pub description: String,
    /// `os`, `runtime`...
    pub category: String,
    /// Guest memory below which the image is of no use, in MiB.
    pub min_memory_mib: u32,
    /// The raw ext4 disk; its digest is the image's.
    pub disk: SealedFile,
    /// Space the disk file takes on the host, in bytes (it is sparse).
    pub allocated_bytes: u64,
    /// When it was built.
    pub built_at: Timestamp,
    /// Digest over everything the build took from the recipe; an unchanged one is not built again.
    pub recipe_digest: String,
    /// The installed Debian packages, `name=version`, sorted.
    pub packages: Vec<String>,
    /// For an image from a registry; its `recipe_digest` is that of its manifest there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciOrigin>,
}

/// What an image from a registry brings along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OciOrigin {
    /// What its configuration says about programs.
    pub defaults: ImageDefaults,
}

/// `boot.json` beside a kernel and its initial file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootManifest {
    /// The layout version.
    pub format: u32,
    /// The kernel release, as `uname -r` prints it in the guest.
    pub kernel_release: String,
    /// Where the kernel came from: package and version, or the digest of a given file.
    pub kernel_source: String,
    /// The uncompressed kernel.
    pub kernel: SealedFile,
    /// The initial file system.
    pub initramfs: SealedFile,
    /// Digest of the agent inside it.
    pub agent_digest: ImageDigest,
    /// The modules inside it, in load order.
    pub modules: Vec<String>,
    /// When it was built.
    pub built_at: Timestamp,
}

/// `kernel.json` beside the small kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelManifest {
    /// The layout version.
    pub format: u32,
    /// The kernel release, as `uname -r` prints it in the guest.
    pub release: String,
    /// The package with the source and its version.
    pub source: String,
    /// Digest of our options, of which [`KernelManifest::config`] came.
    pub fragment_digest: ImageDigest,
    /// The compiler's version line.
    pub compiler: String,
    /// The uncompressed kernel, without symbols.
    pub kernel: SealedFile,
    /// The whole configuration.
    pub config: SealedFile,
    /// How many files were compiled, with which the next build tells how far it is.
    pub compiled_files: u32,
    /// When it was built.
    pub built_at: Timestamp,
}

/// Reads a manifest and checks its layout version.
pub(super) fn read_manifest<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_MANIFEST_BYTES).read_to_end(&mut text))
        .map_err(|error| format!("{}: {error}", path.display()))?;
    let unreadable = |error: serde_json::Error| format!("{}: {error}", path.display());
    let Format { format } = serde_json::from_slice(&text).map_err(unreadable)?;
    if format != FORMAT {
        return Err(format!("{} has layout {format}, not {FORMAT}", path.display()));
    }
    serde_json::from_slice(&text).map_err(unreadable)
}

/// The digest of a file's content.
pub(super) fn digest_file(path: &Path) -> Result<ImageDigest, ImageError> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).map_err(ImageError::file("open", path))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(rendered(hasher)),
            Ok(length) => hasher.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ImageError::file("read", path)(error)),
        }
    }
}

/// The digest of bytes in memory.
pub(super) fn digest_bytes(content: &[u8]) -> ImageDigest {
    rendered(Sha256::new_with_prefix(content))
}

fn rendered(hasher: Sha256) -> ImageDigest {
    ImageDigest(format!("sha256:{:x}", hasher.finalize()))
}
