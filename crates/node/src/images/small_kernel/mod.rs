//! The small guest kernel: the distribution's source, our own options, everything built in.
//!
//! The same source, options and compiler make the same bytes: what the kernel's build would take from
//! the clock, the host and its user is fixed.

mod fragment;
mod toolchain;
mod workshop;

use std::{
    ffi::OsString,
    fs,
    num::NonZero,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use skerry_model::{Timestamp, spec::ImageDigest};

use self::{fragment::FRAGMENT, workshop::Workshop};
use super::{
    ImageError, ImageStore, KernelManifest, Progress, SmallKernel,
    boot::release_of,
    boot_files::{KERNEL_CONFIG_FILE, KERNEL_FILE},
    host_program::HostProgram,
    manifest::{FORMAT, SealedFile, digest_bytes},
    progress::Steps,
};

const CONFIGURE_LIMIT: Duration = Duration::from_secs(600);
/// About ten times what two slow CPUs need.
const COMPILE_LIMIT: Duration = Duration::from_secs(4 * 3600);
const STRIP_LIMIT: Duration = Duration::from_secs(120);
/// How many files version 6.1 compiles with our options; a later build knows it from the one before.
const ABOUT_FILES: u32 = 1500;

/// How a kernel is to be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRecipe {
    /// Where the source is kept from one build to the next, and where it is built: 3 GiB.
    pub cache_dir: PathBuf,
    /// How many compilers run at a time.
    pub jobs: NonZero<u32>,
}

/// Builds the small kernel into `store` when the distribution's source, our options or the compiler
/// have changed or what is there is damaged; otherwise returns what is there. `now` becomes the time
/// in the manifest.
///
/// # Errors
/// When the host lacks a program or a header, the source cannot be had, an option does not take, or
/// the kernel's own build fails.
pub fn build_small_kernel(
    recipe: &KernelRecipe,
    store: &ImageStore,
    now: Timestamp,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<SmallKernel, ImageError> {
    let mut steps = Steps::new(progress);
    toolchain::check()?;
    let source = workshop::current_source()?;
    let inputs = Inputs {
        source: source.to_string(),
        fragment_digest: digest_bytes(FRAGMENT.as_bytes()),
        compiler: toolchain::compiler()?,
    };
    let workshop = Workshop::open(&recipe.cache_dir, &mut steps)?;
    let before = store.small_kernel().ok();
    if let Some(kernel) = &before
        && inputs.are_those_of(&kernel.manifest)
    {
        steps.up_to_date("small kernel");
        return Ok(kernel.clone());
    }
    let tree = KernelTree { path: workshop.unpack(&source, &mut steps)?, jobs: recipe.jobs };
    steps.step("configure the kernel", |on_line| tree.configure(on_line))?;
    let about = before.map_or(ABOUT_FILES, |kernel| kernel.manifest.compiled_files);
    let compiled_files = steps.counting_step(
        "compile the kernel",
        (about, "files"),
        |line| line.trim_start().starts_with("CC "),
        |on_line| tree.compile(on_line),
    )?;
    let lock = store.lock(&mut || steps.waiting_for_lock())?;
    let staging = lock.staging("small-kernel")?;
    let kernel = staging.path.join(KERNEL_FILE);
    let config = staging.path.join(KERNEL_CONFIG_FILE);
    steps.step("strip the kernel", |on_line| tree.strip_into(&kernel, on_line))?;
    fs::copy(tree.config(), &config).map_err(ImageError::file("copy", tree.config()))?;
    let manifest = KernelManifest {
        format: FORMAT,
        release: release_of(&kernel)?,
        source: inputs.source,
        fragment_digest: inputs.fragment_digest,
        compiler: inputs.compiler,
        kernel: SealedFile::describe(&kernel)?,
        config: SealedFile::describe(&config)?,
        compiled_files,
        built_at: now,
    };
    lock.publish_small_kernel(staging, &manifest)
}

/// Everything a kernel is made of.
struct Inputs {
    source: String,
    fragment_digest: ImageDigest,
    compiler: String,
}

impl Inputs {
    fn are_those_of(&self, manifest: &KernelManifest) -> bool {
        self.source == manifest.source
            && self.fragment_digest == manifest.fragment_digest
            && self.compiler == manifest.compiler
    }
}

/// An unpacked source.
struct KernelTree {
    path: PathBuf,
    jobs: NonZero<u32>,
}

impl KernelTree {
    fn config(&self) -> PathBuf {
        self.path.join(".config")
    }

    /// Everything off that is not in the fragment and not needed by what is.
    fn configure(&self, on_line: &mut dyn FnMut(&str)) -> Result<(), ImageError> {
        let wishes = self.path.join("guest.config");
        fs::write(&wishes, FRAGMENT).map_err(ImageError::file("write", &wishes))?;
        self.make()?
            .env("KCONFIG_ALLCONFIG", &wishes)
            .arg("allnoconfig")
            .run(CONFIGURE_LIMIT, on_line)?;
        let config = self.config();
        let outcome = fs::read_to_string(&config).map_err(ImageError::file("read", &config))?;
        fragment::check(FRAGMENT, &outcome)
    }

    fn compile(&self, on_line: &mut dyn FnMut(&str)) -> Result<(), ImageError> {
        self.make()?.arg(format!("--jobs={}", self.jobs)).arg("vmlinux").run(COMPILE_LIMIT, on_line)
    }

    /// The symbols are of use to a debugger only.
    fn strip_into(&self, kernel: &Path, on_line: &mut dyn FnMut(&str)) -> Result<(), ImageError> {
        HostProgram::new("strip", "binutils")
            .arg("--strip-all")
            .arg("-o")
            .arg(kernel)
            .arg(self.path.join("vmlinux"))
            .run(STRIP_LIMIT, on_line)
    }

    /// The names are those of Linux `Documentation/kbuild/kbuild.rst`.
    fn make(&self) -> Result<HostProgram, ImageError> {
        let makefile = self.path.join("Makefile");
        let released = fs::metadata(&makefile).map_err(ImageError::file("inspect", &makefile))?;
        let released = Timestamp::from_second(released.mtime()).unwrap_or(Timestamp::UNIX_EPOCH);
        let mut directory = OsString::from("--directory=");
        directory.push(&self.path);
        Ok(HostProgram::contained_at_low_priority("make", "make")
            .without_environment()
            .env("KBUILD_BUILD_TIMESTAMP", released.to_string())
            .env("KBUILD_BUILD_VERSION", "1")
            .env("KBUILD_BUILD_USER", "skerry")
            .env("KBUILD_BUILD_HOST", "skerry")
            .arg(directory)
            .args(["--no-print-directory", "ARCH=x86_64"]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(makefile: &str) -> (tempfile::TempDir, KernelTree) {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("Makefile"), makefile).unwrap();
        let path = directory.path().to_owned();
        (directory, KernelTree { path, jobs: NonZero::new(2).unwrap() })
    }

    #[test]
    fn a_source_that_does_not_know_an_option_is_refused_with_its_name() {
        // A source whose configuration has everything but one option.
        let (_directory, tree) =
            tree("allnoconfig:\n\tgrep -v '^CONFIG_OVERLAY_FS=' $(KCONFIG_ALLCONFIG) > .config\n");
        let error = tree.configure(&mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("CONFIG_OVERLAY_FS is n instead of y"), "{error}");
        assert_eq!(error.matches("instead of").count(), 1, "{error}");
    }

    #[test]
    fn the_kernels_build_sees_nothing_of_the_clock_the_host_and_our_environment() {
        let (_directory, tree) = tree(
            "vmlinux:\n\t@echo $$KBUILD_BUILD_TIMESTAMP $$KBUILD_BUILD_USER@$$KBUILD_BUILD_HOST\n\
             \t@echo home=$$HOME cargo=$$CARGO_MANIFEST_DIR\n",
        );
        let makefile = fs::File::options().write(true).open(tree.path.join("Makefile")).unwrap();
        makefile.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(86_400)).unwrap();
        let mut lines = Vec::new();
        tree.compile(&mut |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines, ["1970-01-02T00:00:00Z skerry@skerry", "home= cargo="]);
    }

    #[test]
    fn other_source_options_or_compiler_make_another_kernel() {
        let inputs = |source: &str, fragment: &[u8], compiler: &str| Inputs {
            source: source.into(),
            fragment_digest: digest_bytes(fragment),
            compiler: compiler.into(),
        };
        let sealed = SealedFile { digest: digest_bytes(b""), length_bytes: 0, modified_ns: 0 };
        let manifest = KernelManifest {
            format: FORMAT,
            release: "6.1".into(),
            source: "one".into(),
            fragment_digest: digest_bytes(b"options"),
            compiler: "gcc".into(),
            kernel: sealed.clone(),
            config: sealed,
            compiled_files: 1,
            built_at: Timestamp::UNIX_EPOCH,
        };
        assert!(inputs("one", b"options", "gcc").are_those_of(&manifest));
        assert!(!inputs("two", b"options", "gcc").are_those_of(&manifest));
        assert!(!inputs("one", b"others", "gcc").are_those_of(&manifest));
        assert!(!inputs("one", b"options", "clang").are_those_of(&manifest));
    }
}
