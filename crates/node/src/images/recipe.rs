//! Recipes: `images/<name>/recipe.toml`, the files of `overlay/`, and the script `customize`.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use skerry_model::spec::ImageRef;

use super::ImageError;

const RECIPE_FILE: &str = "recipe.toml";
const OVERLAY_DIRECTORY: &str = "overlay";
const CUSTOMIZE_FILE: &str = "customize";
/// Raised when the builder itself starts to make something else of the same recipe.
const BUILDER_GENERATION: u32 = 1;
/// A recipe is configuration; larger things are packages.
const MAX_OVERLAY_BYTES: u64 = 16 << 20;

/// How an image is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The name of the image: also that of the recipe's directory.
    pub name: ImageRef,
    /// One line for people.
    pub description: String,
    /// `os`, `runtime`...
    pub category: String,
    /// Guest memory below which the image is of no use, in MiB.
    pub min_memory_mib: u32,
    /// Free space that the disk has before it is grown, in MiB.
    pub slack_mib: u32,
    /// What it starts from.
    pub origin: Origin,
    /// Packages from npm, `name@range`, put as tarballs before the script.
    pub npm_packages: Vec<String>,
    /// Files put into the tree, owned by root, by their path in it.
    pub(super) overlay: BTreeMap<String, OverlayFile>,
    /// Run in the tree as root by `sh -eu`, after packages and overlay.
    pub(super) customize: Option<String>,
}

/// What an image starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A new Debian system.
    Debian {
        /// The release's code name.
        suite: String,
        /// Packages beyond the minimal system.
        packages: Vec<String>,
    },
    /// Another image, which itself starts from Debian.
    Image(ImageRef),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OverlayFile {
    pub(super) content: Vec<u8>,
    pub(super) executable: bool,
}

/// `recipe.toml` as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeText {
    description: String,
    category: String,
    min_memory_mib: u32,
    #[serde(default = "default_slack_mib")]
    slack_mib: u32,
    from: Option<String>,
    debian: Option<DebianText>,
    #[serde(default)]
    npm: NpmText,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DebianText {
    suite: String,
    #[serde(default)]
    packages: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NpmText {
    packages: Vec<String>,
}

fn default_slack_mib() -> u32 {
    64
}

impl Recipe {
    /// Reads the recipe in `directory`.
    ///
    /// # Errors
    /// When it is not there, has a field that is not known, or a value that is not allowed.
    pub fn read(directory: &Path) -> Result<Self, ImageError> {
        let path = directory.join(RECIPE_FILE);
        let wrong = |reason: String| ImageError::Recipe { path: path.clone(), reason };
        let text = fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
        let text: RecipeText = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let name = directory.canonicalize().ok().as_deref().and_then(Path::file_name).map_or_else(
            || Err(wrong("its directory has no name".into())),
            |name| image_name(&name.to_string_lossy()).map_err(wrong),
        )?;
        let origin = match (text.from, text.debian) {
            (Some(parent), None) => Origin::Image(image_name(&parent).map_err(wrong)?),
            (None, Some(debian)) => {
                let words = debian.packages.iter().chain([&debian.suite]);
                all_words("packages", words, "+-.").map_err(wrong)?;
                Origin::Debian { suite: debian.suite, packages: debian.packages }
            }
            (Some(_), Some(_)) | (None, None) => {
                return Err(wrong("it needs either `from` or `[debian]`".into()));
            }
        };
        all_words("npm packages", &text.npm.packages, "@/-._^~").map_err(wrong)?;
        let customize = directory.join(CUSTOMIZE_FILE);
        let customize = match fs::read_to_string(&customize) {
            Ok(script) => Some(script),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(ImageError::file("read", customize)(error)),
        };
        Ok(Self {
            name,
            description: text.description,
            category: text.category,
            min_memory_mib: text.min_memory_mib,
            slack_mib: text.slack_mib,
            origin,
            npm_packages: text.npm.packages,
            overlay: read_overlay(&directory.join(OVERLAY_DIRECTORY))?,
            customize,
        })
    }

    /// A digest over everything that decides what is built. `parent_digest` is that of the image it
    /// starts from: a new parent makes a new image.
    pub(super) fn digest(&self, parent_digest: Option<&str>) -> String {
        let mut hasher = Sha256::new();
        let mut add = |field: &str, value: &[u8]| {
            // Lengths keep neighbouring values apart.
            hasher.update(format!("{field} {} ", value.len()));
            hasher.update(value);
        };
        add("generation", &BUILDER_GENERATION.to_le_bytes());
        add("name", self.name.0.as_bytes());
        add("description", self.description.as_bytes());
        add("category", self.category.as_bytes());
        add("min_memory_mib", &self.min_memory_mib.to_le_bytes());
        add("slack_mib", &self.slack_mib.to_le_bytes());
        match &self.origin {
            Origin::Debian { suite, packages } => {
                add("suite", suite.as_bytes());
                add("packages", packages.join(" ").as_bytes());
            }
            Origin::Image(parent) => add("from", parent.0.as_bytes()),
        }
        add("parent", parent_digest.unwrap_or_default().as_bytes());
        add("npm", self.npm_packages.join(" ").as_bytes());
        for (path, file) in &self.overlay {
            add("path", path.as_bytes());
            add("executable", &[u8::from(file.executable)]);
            add("content", &file.content);
        }
        add("customize", self.customize.as_deref().unwrap_or_default().as_bytes());
        format!("sha256:{:x}", hasher.finalize())
    }
}

/// The catalogue's rule for names, see [`ImageRef`]. `boot` is taken by the boot artefacts.
fn image_name(name: &str) -> Result<ImageRef, String> {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !first || name.len() > 128 || !name.bytes().all(allowed) || name == "boot" {
        return Err(format!(
            "the image name `{name}` is not 1 to 128 characters of [a-z0-9._-], the first a letter \
             or digit, or it is `boot`"
        ));
    }
    Ok(ImageRef(name.to_owned()))
}

/// Words become arguments of programs: none may look like an option or hold anything unusual.
fn all_words<'a>(
    field: &str,
    words: impl IntoIterator<Item = &'a String>,
    punctuation: &str,
) -> Result<(), String> {
    for word in words {
        let fine = !word.is_empty()
            && !word.starts_with('-')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || punctuation.contains(c));
        if !fine {
            return Err(format!(
                "`{word}` in {field} is not a word of letters, digits and {punctuation}"
            ));
        }
    }
    Ok(())
}

fn read_overlay(directory: &Path) -> Result<BTreeMap<String, OverlayFile>, ImageError> {
    let mut files = BTreeMap::new();
    let mut total = 0;
    let mut waiting: Vec<(PathBuf, String)> = vec![(directory.to_owned(), String::new())];
    while let Some((directory, prefix)) = waiting.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound && prefix.is_empty() => break,
            Err(error) => return Err(ImageError::file("list", directory)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(ImageError::file("list", &directory))?;
            let path = entry.path();
            let wrong =
                |reason: &str| ImageError::Recipe { path: path.clone(), reason: reason.to_owned() };
            let name =
                entry.file_name().into_string().map_err(|_| wrong("its name is not UTF-8"))?;
            let inner = format!("{prefix}{name}");
            let metadata = entry.metadata().map_err(ImageError::file("inspect", &path))?;
            if metadata.is_dir() {
                waiting.push((path, format!("{inner}/")));
            } else if metadata.is_file() {
                total += metadata.len();
                if total > MAX_OVERLAY_BYTES {
                    return Err(wrong("the overlay is too large"));
                }
                let content = fs::read(&path).map_err(ImageError::file("read", &path))?;
                let executable = metadata.permissions().mode() & 0o100 != 0;
                files.insert(inner, OverlayFile { content, executable });
            } else {
                return Err(wrong("an overlay holds directories and regular files only"));
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "description = 'd'\ncategory = 'os'\nmin_memory_mib = 128\n\
                          [debian]\nsuite = 'bookworm'\npackages = ['git', 'g++']\n";

    fn recipe_in(directory: &Path, text: &str) -> Result<Recipe, String> {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join(RECIPE_FILE), text).unwrap();
        Recipe::read(directory).map_err(|error| error.to_string())
    }

    fn recipe(text: &str) -> Result<Recipe, String> {
        recipe_in(&tempfile::tempdir().unwrap().path().join("sample"), text)
    }

    #[test]
    fn the_name_is_that_of_the_directory() {
        assert_eq!(recipe(DEBIAN).unwrap().name, ImageRef("sample".into()));
    }

    #[test]
    fn a_field_that_is_not_known_is_refused() {
        let error = recipe(&format!("colour = 'red'\n{DEBIAN}")).unwrap_err();
        assert!(error.contains("colour"), "{error}");
    }

    #[test]
    fn two_origins_or_none_are_refused() {
        assert!(recipe(&format!("from = 'base'\n{DEBIAN}")).is_err());
        assert!(recipe("description = 'd'\ncategory = 'os'\nmin_memory_mib = 1\n").is_err());
    }

    #[test]
    fn a_word_that_could_be_an_option_is_refused() {
        for word in ["--hook", "a b", "a;b", "", "$(x)"] {
            let text = DEBIAN.replace("'git'", &format!("'{word}'"));
            assert!(recipe(&text).is_err(), "{word}");
        }
    }

    #[test]
    fn a_name_that_could_leave_the_store_is_refused() {
        for name in ["../x", "a@b", "Base", "", ".hidden", "boot"] {
            let text = DEBIAN.split("[debian]").next().unwrap();
            assert!(recipe(&format!("from = '{name}'\n{text}")).is_err(), "{name}");
        }
    }

    #[test]
    fn the_digest_changes_with_everything_that_decides_the_image() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("sample");
        let first = recipe_in(&directory, DEBIAN).unwrap().digest(None);
        assert_eq!(recipe_in(&directory, DEBIAN).unwrap().digest(None), first);
        assert_ne!(recipe_in(&directory, DEBIAN).unwrap().digest(Some("sha256:1")), first);
        assert_ne!(
            recipe_in(&directory, &DEBIAN.replace("git", "jq")).unwrap().digest(None),
            first
        );
        fs::write(directory.join(CUSTOMIZE_FILE), "true").unwrap();
        let with_script = recipe_in(&directory, DEBIAN).unwrap().digest(None);
        assert_ne!(with_script, first);
        fs::create_dir_all(directory.join("overlay/etc")).unwrap();
        fs::write(directory.join("overlay/etc/motd"), "hello").unwrap();
        let with_overlay = recipe_in(&directory, DEBIAN).unwrap();
        assert_ne!(with_overlay.digest(None), with_script);
        assert_eq!(with_overlay.overlay.keys().collect::<Vec<_>>(), ["etc/motd"]);
    }

    #[test]
    fn an_overlay_with_a_link_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("sample");
        fs::create_dir_all(directory.join("overlay")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", directory.join("overlay/link")).unwrap();
        assert!(recipe_in(&directory, DEBIAN).unwrap_err().contains("regular files only"));
    }

    #[test]
    fn the_recipes_of_this_tree_are_valid() {
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images");
        let mut names = Vec::new();
        for entry in fs::read_dir(recipes).unwrap() {
            names.push(Recipe::read(&entry.unwrap().path()).unwrap().name.0);
        }
        names.sort();
        assert_eq!(names, ["base", "node-20"]);
    }
}
