//! What a registry says an image is: index, manifest, configuration. All of it is input of strangers.

use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, Os};
use serde::{Deserialize, Serialize};

use super::{
    PullError,
    blob::BlobPromise,
    layer::Compression,
    policy::{PullLimits, is_sha256},
    registry::{Document, MAX_MANIFEST_BYTES},
};

/// More layers than any builder makes.
const MAX_LAYERS: usize = 256;
/// A configuration holds its history; the largest known are some hundred KiB.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
const MAX_ENV: usize = 1024;

/// What a tag leads to.
pub(super) enum Found {
    /// Go on with the manifest of this digest, which is for this machine.
    Index(String),
    Manifest(Contents),
}

/// A manifest, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    pub config: BlobPromise,
    /// The lowest first.
    pub layers: Vec<(BlobPromise, Compression)>,
}

impl Contents {
    pub(super) fn transfer_bytes(&self) -> u64 {
        self.layers.iter().map(|(blob, _)| blob.size_bytes).fold(0, u64::saturating_add)
    }
}

/// What the image says about the programs that run in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageDefaults {
    /// Environment, `NAME=value`. A workspace's own is stronger.
    #[serde(default)]
    pub env: Vec<String>,
    /// Where commands start that name no directory.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// As whom commands run that name no user: a login name or a number.
    #[serde(default)]
    pub user: Option<String>,
    /// The program of a container of this image. Recorded; workspaces do not run it.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Its arguments, or the program itself. Recorded; workspaces do not run it.
    #[serde(default)]
    pub command: Vec<String>,
}

/// The configuration's part that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Configuration {
    pub defaults: ImageDefaults,
    /// Digests of the unpacked layers, the lowest first.
    pub diff_ids: Vec<String>,
}

/// Reads an index or a manifest.
pub(super) fn read(document: &Document, limits: &PullLimits) -> Result<Found, PullError> {
    /// Both kinds are told by what they hold: the media type in the document is optional.
    #[derive(Deserialize)]
    struct Kind {
        manifests: Option<serde::de::IgnoredAny>,
    }

    let unreadable = |error: &dyn std::fmt::Display| {
        PullError::refused(format!("its manifest cannot be read: {error}"))
    };
    let kind: Kind = serde_json::from_slice(&document.content).map_err(|e| unreadable(&e))?;
    if kind.manifests.is_some() {
        let index: ImageIndex =
            serde_json::from_slice(&document.content).map_err(|e| unreadable(&e))?;
        return choose(&index).map(Found::Index);
    }
    let manifest: ImageManifest =
        serde_json::from_slice(&document.content).map_err(|e| unreadable(&e))?;
    check(&manifest, limits).map(Found::Manifest)
}

/// The manifest for machines like ours.
fn choose(index: &ImageIndex) -> Result<String, PullError> {
    let fits = |descriptor: &&Descriptor| {
        descriptor.platform().as_ref().is_some_and(|platform| {
            *platform.os() == Os::Linux
                && *platform.architecture() == Arch::Amd64
                && matches!(platform.variant().as_deref(), None | Some("" | "v1"))
        })
    };
    let Some(descriptor) = index.manifests().iter().find(fits) else {
        return Err(PullError::NotFound { what: "the image for linux/amd64".to_owned() });
    };
    promise(descriptor, MAX_MANIFEST_BYTES, "a manifest").map(|blob| blob.digest)
}

fn check(manifest: &ImageManifest, limits: &PullLimits) -> Result<Contents, PullError> {
    if manifest.layers().is_empty() || manifest.layers().len() > MAX_LAYERS {
        let count = manifest.layers().len();
        return Err(PullError::refused(format!("it has {count} layers, not 1 to {MAX_LAYERS}")));
    }
    let config = promise(manifest.config(), MAX_CONFIG_BYTES, "the configuration")?;
    let mut layers = Vec::new();
    for layer in manifest.layers() {
        let media_type = layer.media_type().to_string();
        let Some(compression) = Compression::of_media_type(&media_type) else {
            let shown: String =
                media_type.chars().take(100).flat_map(char::escape_default).collect();
            return Err(PullError::refused(format!("a layer is of the unknown type {shown}")));
        };
        layers.push((promise(layer, limits.transfer_bytes, "a layer")?, compression));
    }
    let contents = Contents { config, layers };
    if contents.transfer_bytes() > limits.transfer_bytes {
        return Err(too_large("the image", limits.transfer_bytes));
    }
    Ok(contents)
}

fn promise(descriptor: &Descriptor, limit: u64, what: &str) -> Result<BlobPromise, PullError> {
    let digest = descriptor.digest().to_string();
    if !is_sha256(&digest) {
        return Err(PullError::refused(format!("{what} has no sha256 digest")));
    }
    if descriptor.size() > limit {
        return Err(too_large(what, limit));
    }
    Ok(BlobPromise { digest, size_bytes: descriptor.size() })
}

pub(super) fn too_large(what: &str, limit_bytes: u64) -> PullError {
    PullError::TooLarge { what: what.to_owned(), limit: format!("{} MiB", limit_bytes >> 20) }
}

/// Reads the configuration of an image with this many layers. Docker writes `null` where other
/// builders leave a field out.
pub(super) fn configuration(content: &[u8], layers: usize) -> Result<Configuration, PullError> {
    #[derive(Deserialize)]
    struct Text {
        os: String,
        architecture: String,
        config: Option<Inner>,
        rootfs: RootFs,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inner {
        env: Option<Vec<String>>,
        working_dir: Option<String>,
        user: Option<String>,
        entrypoint: Option<Vec<String>>,
        cmd: Option<Vec<String>>,
    }
    #[derive(Deserialize)]
    struct RootFs {
        diff_ids: Vec<String>,
    }

    let text: Text = serde_json::from_slice(content).map_err(|error| {
        PullError::refused(format!("its configuration cannot be read: {error}"))
    })?;
    if text.os != "linux" || text.architecture != "amd64" {
        return Err(PullError::NotFound { what: "the image for linux/amd64".to_owned() });
    }
    if text.rootfs.diff_ids.len() != layers || !text.rootfs.diff_ids.iter().all(|id| is_sha256(id))
    {
        return Err(PullError::refused("its configuration does not name each layer's content"));
    }
    let inner = text.config.unwrap_or_default();
    let env = inner.env.unwrap_or_default();
    let good = |variable: &String| {
        variable.split_once('=').is_some_and(|(name, _)| !name.is_empty())
            && !variable.contains('\0')
    };
    if env.len() > MAX_ENV || !env.iter().all(good) {
        return Err(PullError::refused("its environment is not a list of NAME=value"));
    }
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    let working_dir = some(inner.working_dir);
    if let Some(directory) = &working_dir
        && (!directory.starts_with('/') || directory.len() > 4096 || directory.contains('\0'))
    {
        return Err(PullError::refused("its working directory is not an absolute path"));
    }
    let defaults = ImageDefaults {
        env,
        working_dir,
        user: some(inner.user),
        entrypoint: inner.entrypoint.unwrap_or_default(),
        command: inner.cmd.unwrap_or_default(),
    };
    Ok(Configuration { defaults, diff_ids: text.rootfs.diff_ids })
}
