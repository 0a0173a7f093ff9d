//! Building an image from its recipe, with the distribution's own tools and without mounting a guest
//! file system: `mmdebstrap` makes the tree, `mkfs.ext4 -d` writes it into a disk.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use skerry_model::{
    Timestamp,
    spec::{ImageDigest, ImageRef},
};

use super::{
    ImageError, ImageManifest, ImageStore, Origin, Progress, Recipe, StoredImage,
    host_program::HostProgram,
    manifest::{FORMAT, SealedFile, digest_bytes},
    progress::Steps,
    store::{BuildLock, DISK_FILE, Staging},
};

const TREE_LIMIT: Duration = Duration::from_secs(1800);
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(600);
const QUERY_LIMIT: Duration = Duration::from_secs(60);
const SPARSE_LIMIT: Duration = Duration::from_secs(120);
const MAX_QUERY_BYTES: u64 = 1 << 20;
/// Where a build's own files are in the tree while it is customised.
const BUILD_DIRECTORY: &str = "skerry-build";
/// Documentation is most of the files of a small system and nobody reads it in a workspace; the
/// copyright files stay, as the licences ask.
const LEFT_OUT: &[&str] = &[
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
];

/// Whether an image is built again although its recipe is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebuild {
    /// Only a changed recipe (or parent) makes a new image.
    WhenRecipeChanged,
    /// Always: takes up the distribution's newest packages.
    Always,
}

/// Where a build finds and keeps things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildContext {
    /// The directory with one directory per recipe.
    pub recipes_dir: PathBuf,
    /// Where trees are kept for the images that start from them.
    pub cache_dir: PathBuf,
    /// What becomes the build time.
    pub now: Timestamp,
    /// Whether to build although nothing changed.
    pub rebuild: Rebuild,
}

/// Builds the image `name` into `store`, first the one it starts from when that is needed. An image
/// whose recipe has not changed is returned as it is.
///
/// # Errors
/// When the recipe is not valid, a program is missing or fails, or the host refuses a file operation.
pub fn build_image(
    name: &ImageRef,
    context: &BuildContext,
    store: &ImageStore,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<StoredImage, ImageError> {
    let recipe = Recipe::read(&context.recipes_dir.join(&name.0))?;
    fs::create_dir_all(&context.cache_dir).map_err(ImageError::file("make", &context.cache_dir))?;
    let cache_dir =
        context.cache_dir.canonicalize().map_err(ImageError::file("find", &context.cache_dir))?;
    let mut steps = Steps::new(progress);
    let lock = store.lock(&mut || steps.waiting_for_lock())?;
    let mut builder = Builder { context, store, lock, trees: cache_dir.join("trees"), steps };
    match &recipe.origin {
        Origin::Debian { .. } => builder.ensure_debian(&recipe, Tree::NotNeeded),
        Origin::Image(parent) => {
            let parent_recipe = Recipe::read(&context.recipes_dir.join(&parent.0))?;
            builder.ensure_derived(&recipe, &parent_recipe)
        }
    }
}

/// Whether the caller needs the tree of an image, not only its disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tree {
    Needed,
    NotNeeded,
}

struct Builder<'a> {
    context: &'a BuildContext,
    store: &'a ImageStore,
    lock: BuildLock<'a>,
    /// Tar archives of images that others start from, named by their digest.
    trees: PathBuf,
    steps: Steps<'a>,
}

impl Builder<'_> {
    fn ensure_debian(&mut self, recipe: &Recipe, tree: Tree) -> Result<StoredImage, ImageError> {
        let recipe_digest = recipe.digest(None);
        let present = self.present(recipe, &recipe_digest);
        // A parent is not rebuilt for its own sake: `Always` is for the image that was named.
        let rebuild = match tree {
            Tree::Needed => Rebuild::WhenRecipeChanged,
            Tree::NotNeeded => self.context.rebuild,
        };
        if let (Some(image), Rebuild::WhenRecipeChanged) = (present, rebuild)
            && (tree == Tree::NotNeeded || self.tree_of(image.digest()).is_file())
        {
            self.steps.up_to_date(&recipe.name.0);
            return Ok(image);
        }
        let Origin::Debian { suite, packages } = &recipe.origin else {
            return Err(self.too_deep(recipe));
        };
        let staging = self.lock.staging(&recipe.name.0)?;
        let tree_file = staging.path.join("tree.tar");
        let command = new_debian(suite, packages)?;
        let image = self.make_disk(recipe, command, &tree_file, &staging, recipe_digest)?;
        fs::create_dir_all(&self.trees).map_err(ImageError::file("make", &self.trees))?;
        self.remove_trees_of(&recipe.name)?;
        let kept = self.tree_of(&image.disk.digest);
        // The cache may be on another file system, where a rename would fail.
        fs::rename(&tree_file, &kept)
            .or_else(|_| fs::copy(&tree_file, &kept).and_then(|_| fs::remove_file(&tree_file)))
            .map_err(ImageError::file("keep", &kept))?;
        self.lock.publish_image(staging, &image)
    }

    fn ensure_derived(
        &mut self,
        recipe: &Recipe,
        parent_recipe: &Recipe,
    ) -> Result<StoredImage, ImageError> {
        // What is there is looked at with the parent that is there: only then is a missing tree
        // worth a build of the parent.
        if let Rebuild::WhenRecipeChanged = self.context.rebuild
            && let Some(parent) = self.present(parent_recipe, &parent_recipe.digest(None))
            && let Some(image) = self.present(recipe, &recipe.digest(Some(&parent.digest().0)))
        {
            self.steps.up_to_date(&recipe.name.0);
            return Ok(image);
        }
        let parent = self.ensure_debian(parent_recipe, Tree::Needed)?;
        let staging = self.lock.staging(&recipe.name.0)?;
        let command = existing_tree(&self.tree_of(parent.digest()));
        let recipe_digest = recipe.digest(Some(&parent.digest().0));
        let nowhere = Path::new("/dev/null");
        let image = self.make_disk(recipe, command, nowhere, &staging, recipe_digest)?;
        self.lock.publish_image(staging, &image)
    }

    fn present(&self, recipe: &Recipe, recipe_digest: &str) -> Option<StoredImage> {
        let image = self.store.by_name(&recipe.name).ok()?;
        (image.manifest.recipe_digest == recipe_digest).then_some(image)
    }

    fn too_deep(&self, recipe: &Recipe) -> ImageError {
        ImageError::Recipe {
            path: self.context.recipes_dir.join(&recipe.name.0),
            reason: "an image can only start from one that itself starts from Debian".into(),
        }
    }

    fn tree_of(&self, digest: &ImageDigest) -> PathBuf {
        self.trees.join(format!("{}.tar", digest.0.trim_start_matches("sha256:")))
    }

    /// Trees of older builds of this image; no other image is made from them any more.
    fn remove_trees_of(&self, name: &ImageRef) -> Result<(), ImageError> {
        for image in self.store.list().into_iter().filter(|image| image.manifest.name == *name) {
            let tree = self.tree_of(image.digest());
            if tree.exists() {
                fs::remove_file(&tree).map_err(ImageError::file("remove", &tree))?;
            }
        }
        Ok(())
    }

    /// Runs `mmdebstrap` with everything the recipe adds, and describes the disk that comes out.
    fn make_disk(
        &mut self,
        recipe: &Recipe,
        command: TreeCommand,
        tree_file: &Path,
        staging: &Staging,
        recipe_digest: String,
    ) -> Result<ImageManifest, ImageError> {
        let npm_dir = staging.path.join("npm");
        if !recipe.npm_packages.is_empty() {
            let step = format!("download {}", recipe.npm_packages.join(", "));
            self.steps
                .step(&step, |on_line| download_npm(&recipe.npm_packages, &npm_dir, on_line))?;
        }
        let additions = staging.path.join("additions.tar");
        write_additions(recipe, &npm_dir, &additions)?;
        let disk = staging.path.join(DISK_FILE);
        let packages = staging.path.join("packages");
        let hooks = Hooks { additions: &additions, disk: &disk, packages: &packages };
        self.steps.step(&format!("build the image {}", recipe.name), |on_line| {
            hooks.add_to(command, recipe, &staging.path, tree_file).run(TREE_LIMIT, on_line)
        })?;
        let manifest = self.steps.step(&format!("seal the image {}", recipe.name), |_| {
            make_sparse(&disk);
            let packages = fs::read_to_string(&packages)
                .map_err(ImageError::file("read", &packages))?
                .lines()
                .map(str::to_owned)
                .collect();
            let metadata = fs::metadata(&disk).map_err(ImageError::file("inspect", &disk))?;
            Ok(ImageManifest {
                format: FORMAT,
                name: recipe.name.clone(),
                description: recipe.description.clone(),
                category: recipe.category.clone(),
                min_memory_mib: recipe.min_memory_mib,
                disk: SealedFile::describe(&disk)?,
                // `st_blocks` counts units of 512 bytes whatever the file system's block size.
                allocated_bytes: metadata.blocks() * 512,
                built_at: self.context.now,
                recipe_digest,
                packages,
                oci: None,
            })
        })?;
        // Only the disk and, for a parent, its tree leave the staging directory.
        for leftover in [&additions, &packages] {
            fs::remove_file(leftover).map_err(ImageError::file("remove", leftover))?;
        }
        if npm_dir.exists() {
            fs::remove_dir_all(&npm_dir).map_err(ImageError::file("remove", &npm_dir))?;
        }
        Ok(manifest)
    }
}

/// An `mmdebstrap` call but for its hooks and its target.
struct TreeCommand {
    options: Vec<String>,
    /// Before the target; empty when the tree is there already.
    suite: String,
    /// After the target: lines of `sources.list`.
    sources: Vec<String>,
}

fn new_debian(suite: &str, packages: &[String]) -> Result<TreeCommand, ImageError> {
    let mut options =
        vec!["--variant=minbase".to_owned(), format!("--include={}", packages.join(","))];
    options.push(r#"--aptopt=Acquire::Retries "3""#.to_owned());
    options.extend(LEFT_OUT.iter().map(|rule| format!("--dpkgopt={rule}")));
    Ok(TreeCommand { options, suite: suite.to_owned(), sources: host_sources(suite)? })
}

fn existing_tree(tree: &Path) -> TreeCommand {
    let options = vec![
        "--variant=custom".to_owned(),
        "--skip=setup,update,cleanup".to_owned(),
        format!("--setup-hook=tar-in {} /", shell_quoted(tree)),
    ];
    TreeCommand { options, suite: String::new(), sources: Vec::new() }
}

/// The host's own sources for this release, so that a mirror configured once is used for images too.
/// Empty on a host that has none: `mmdebstrap` then takes its built-in ones.
fn host_sources(suite: &str) -> Result<Vec<String>, ImageError> {
    let format = "$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)";
    let targets = HostProgram::new("apt-get", "apt")
        .args(["indextargets", "--format", format, "Created-By: Packages"])
        .stdout(MAX_QUERY_BYTES, QUERY_LIMIT)?;
    Ok(sources_from(&String::from_utf8_lossy(&targets), suite))
}

fn sources_from(index_targets: &str, suite: &str) -> Vec<String> {
    let mut sources = Vec::new();
    for target in index_targets.lines() {
        let fields: Vec<&str> = target.split('|').collect();
        let ["Debian", codename, uri, release, component] = fields[..] else { continue };
        let wanted = codename
            .strip_prefix(suite)
            .is_some_and(|rest| matches!(rest, "" | "-updates" | "-security"));
        let line = format!("deb {uri} {release} {component}");
        if wanted && !sources.contains(&line) {
            sources.push(line);
        }
    }
    // Without the release itself the rest is of no use.
    let complete = sources.iter().any(|line| line.split(' ').nth(2) == Some(suite));
    if complete { sources } else { Vec::new() }
}

struct Hooks<'a> {
    additions: &'a Path,
    disk: &'a Path,
    packages: &'a Path,
}

impl Hooks<'_> {
    /// `mmdebstrap` calls hooks with the tree as `$1`, as root or as root of a user name space; it
    /// carries `tar-in` and `download` across that border itself.
    fn add_to(
        &self,
        command: TreeCommand,
        recipe: &Recipe,
        staging: &Path,
        target: &Path,
    ) -> HostProgram {
        let customize = format!(
            "chroot \"$1\" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
             LC_ALL=C.UTF-8 HOME=/root SKERRY_BUILD=/{BUILD_DIRECTORY} \
             /bin/sh -eu /{BUILD_DIRECTORY}/customize"
        );
        let list_packages = format!(
            "dpkg-query --admindir=\"$1/var/lib/dpkg\" --show \
             --showformat='${{Package}}=${{Version}}\\n' > \"$1/{BUILD_DIRECTORY}-packages\""
        );
        let mut hooks = vec![format!("tar-in {} /", shell_quoted(self.additions)), customize];
        hooks.extend([
            list_packages,
            format!("download /{BUILD_DIRECTORY}-packages {}", shell_quoted(self.packages)),
            CLEAN_SCRIPT.to_owned(),
            disk_script(recipe),
            format!("download /{BUILD_DIRECTORY}-disk {}", shell_quoted(self.disk)),
            format!("rm \"$1/{BUILD_DIRECTORY}-disk\""),
        ]);
        let mut program = HostProgram::contained("mmdebstrap", "mmdebstrap")
            .args(["--mode=auto", "--format=tar"])
            .args(command.options)
            .args(hooks.iter().map(|hook| format!("--customize-hook={hook}")))
            // Times of files made during the build; the same for everybody.
            .env("SOURCE_DATE_EPOCH", EPOCH_SECONDS);
        if nix::unistd::geteuid().is_root() {
            // The store's disk has room; /tmp may be small or refuse device nodes. An ordinary
            // user's name space cannot reach below a private home directory and keeps /tmp.
            program = program.env("TMPDIR", staging);
        }
        program.arg(command.suite).arg(target).args(command.sources)
    }
}

/// 2024-01-01: a fixed time, so that two builds of the same packages differ in as little as possible.
pub(super) const EPOCH_SECONDS: &str = "1704067200";

/// Removes what belongs to the build or must differ between workspaces. Not `/tmp`: `mmdebstrap`
/// keeps the configuration there that makes its last `apt-get` work on the tree and not on the host.
const CLEAN_SCRIPT: &str = r#"set -eu
rm -rf "$1/skerry-build" "$1/skerry-build-packages"
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/cache/debconf/*-old
rm -rf "$1"/var/log/apt "$1"/var/log/*.log "$1"/root/.npm
rm -f "$1"/etc/ssh/ssh_host_* "$1/etc/hostname" "$1/etc/apt/apt.conf.d/99mmdebstrap"
: > "$1/etc/machine-id"
: > "$1/etc/resolv.conf"
"#;

/// Writes the tree into an ext4 file beside it and moves that into the tree, where `download` finds
/// it. `/proc` and others may be mounted in the tree: a bind mount shows it without them. Where
/// nothing can be mounted, nothing was. What is in `/tmp` is put aside meanwhile and comes back.
fn disk_script(recipe: &Recipe) -> String {
    let uuid = uuid_for(&recipe.name);
    format!(
        r#"set -eu
tree="$1"
mounted=""
if mountpoint -q "$1/proc" || mountpoint -q "$1/sys" || mountpoint -q "$1/dev/pts"; then
    tree="$1.bare"
    mkdir "$tree"
    mount --bind "$1" "$tree"
    mounted=yes
fi
mv "$1/tmp" "$1.tmp"
mkdir -m 1777 "$1/tmp"
release() {{
    if [ -n "$mounted" ]; then umount "$tree"; rmdir "$tree"; mounted=""; fi
    if [ -e "$1.tmp" ]; then rmdir "$1/tmp"; mv "$1.tmp" "$1/tmp"; fi
}}
trap 'release "$1"; rm -f "$1.ext4"' EXIT
content_kib=$(du -sk --one-file-system "$tree" | cut -f 1)
size_mib=$(((content_kib + content_kib / 25) / 1024 + {JOURNAL_MIB} + {TABLES_MIB} + {slack}))
E2FSPROGS_FAKE_TIME={EPOCH_SECONDS} mkfs.ext4 -q -F -L root -m 0 -U {uuid} -J size={JOURNAL_MIB} \
    -E lazy_itable_init=1,root_owner=0:0,hash_seed={uuid} -d "$tree" "$1.ext4" "${{size_mib}}M"
release "$1"
mv "$1.ext4" "$1/{BUILD_DIRECTORY}-disk"
"#,
        slack = recipe.slack_mib,
    )
}

/// Enough for a disk that is grown to some tens of gigabytes.
pub(super) const JOURNAL_MIB: u32 = 32;
/// Group descriptors, and room for them to grow.
pub(super) const TABLES_MIB: u32 = 16;

/// The file system's UUID: the same for every build of an image. Guests never see two at once.
pub(super) fn uuid_for(name: &ImageRef) -> String {
    let digest = digest_bytes(format!("skerry image {name}").as_bytes()).0;
    let digits = digest.trim_start_matches("sha256:");
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    // Version 8 of RFC 9562: made from anything, here from the name.
    format!("{}-{}-8{}-8{}-{}", part(0, 8), part(8, 12), part(12, 15), part(15, 18), part(18, 30))
}

/// Gives blocks of zeros back to the host. Without it the disk works and takes more space.
pub(super) fn make_sparse(disk: &Path) {
    let outcome = HostProgram::new("fallocate", "util-linux")
        .arg("--dig-holes")
        .arg(disk)
        .run(SPARSE_LIMIT, &mut |_| {});
    if let Err(error) = outcome {
        tracing::debug!(%error, "the disk of a new image stays dense");
    }
}

fn download_npm(
    packages: &[String],
    directory: &Path,
    on_line: &mut dyn FnMut(&str),
) -> Result<(), ImageError> {
    fs::create_dir_all(directory).map_err(ImageError::file("make", directory))?;
    HostProgram::new("npm", "npm")
        .args(["pack", "--loglevel=error"])
        .args(packages)
        .current_dir(directory)
        .run(DOWNLOAD_LIMIT, on_line)
}

/// One archive with the overlay, the script and the downloads, all owned by root.
fn write_additions(recipe: &Recipe, npm_dir: &Path, archive: &Path) -> Result<(), ImageError> {
    let failed = |source| ImageError::file("write", archive)(source);
    let file = File::create(archive).map_err(failed)?;
    let mut additions = tar::Builder::new(file);
    let mut add = |path: &str, content: &[u8], mode: u32| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(EPOCH_SECONDS.parse().unwrap_or_default());
        header.set_size(content.len() as u64);
        additions.append_data(&mut header, path, content).map_err(failed)
    };
    for (path, file) in &recipe.overlay {
        add(path, &file.content, if file.executable { 0o755 } else { 0o644 })?;
    }
    let script = recipe.customize.as_deref().unwrap_or_default();
    add(&format!("{BUILD_DIRECTORY}/customize"), script.as_bytes(), 0o755)?;
    if npm_dir.is_dir() {
        for entry in fs::read_dir(npm_dir).map_err(ImageError::file("list", npm_dir))? {
            let entry = entry.map_err(ImageError::file("list", npm_dir))?;
            let path = entry.path();
            let content = fs::read(&path).map_err(ImageError::file("read", &path))?;
            let name = entry.file_name();
            let inner = format!("{BUILD_DIRECTORY}/npm/{}", name.to_string_lossy());
            add(&inner, &content, 0o644)?;
        }
    }
    additions.into_inner().and_then(|mut file| file.flush()).map_err(failed)
}

/// For `mmdebstrap`, which splits its special hooks into words as a shell does.
fn shell_quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hosts_debian_sources_of_the_release_are_used() {
        let targets = "Debian|bookworm|http://mirror/debian/|bookworm|main\n\
                       Debian|bookworm|http://mirror/debian/|bookworm|main\n\
                       Debian|bookworm-security|http://mirror/security/|bookworm-security|main\n\
                       Debian|bookworm-backports|http://mirror/debian/|bookworm-backports|main\n\
                       Elsewhere|bookworm|http://other/|bookworm|main\n";
        assert_eq!(
            sources_from(targets, "bookworm"),
            [
                "deb http://mirror/debian/ bookworm main",
                "deb http://mirror/security/ bookworm-security main"
            ]
        );
        assert_eq!(sources_from(targets, "trixie"), Vec::<String>::new());
    }

    #[test]
    fn an_images_uuid_is_a_uuid_and_its_own() {
        let uuid = uuid_for(&ImageRef("base".into()));
        let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_ne!(uuid, uuid_for(&ImageRef("node-20".into())));
    }

    #[test]
    fn a_path_with_quotes_stays_one_word() {
        assert_eq!(shell_quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }

    #[test]
    fn additions_are_owned_by_root_and_carry_the_script() {
        let directory = tempfile::tempdir().unwrap();
        let recipe_dir = directory.path().join("sample");
        fs::create_dir_all(recipe_dir.join("overlay/etc")).unwrap();
        fs::write(recipe_dir.join("overlay/etc/motd"), "hello").unwrap();
        fs::write(recipe_dir.join("customize"), "true\n").unwrap();
        fs::write(
            recipe_dir.join("recipe.toml"),
            "description = 'd'\ncategory = 'os'\nmin_memory_mib = 1\nfrom = 'base'\n",
        )
        .unwrap();
        let npm_dir = directory.path().join("npm");
        fs::create_dir(&npm_dir).unwrap();
        fs::write(npm_dir.join("x-1.tgz"), "packed").unwrap();
        let archive = directory.path().join("additions.tar");
        write_additions(&Recipe::read(&recipe_dir).unwrap(), &npm_dir, &archive).unwrap();
        let mut archive = tar::Archive::new(File::open(archive).unwrap());
        let listing: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                let (uid, mode) = (header.uid().unwrap(), header.mode().unwrap());
                format!("{uid} {mode:o} {}", entry.path().unwrap().display())
            })
            .collect();
        assert_eq!(
            listing,
            ["0 644 etc/motd", "0 755 skerry-build/customize", "0 644 skerry-build/npm/x-1.tgz"]
        );
    }
}
