//! Building the boot artefacts: the kernel and the initial file system with the agent.

use std::{
    fs,
    path::{Path, PathBuf},
};

use skerry_model::{Timestamp, spec::ImageDigest};

use super::{
    BootArtefacts, BootManifest, GUEST_MODULES, ImageError, ImageStore, KernelModule, Progress,
    boot_files::{INITRAMFS_FILE, KERNEL_FILE},
    debian_package::{self, DebianPackage},
    kernel::{extract_vmlinux, modules_in_load_order},
    manifest::{FORMAT, SealedFile, digest_bytes, digest_file},
    progress::Steps,
    write_initramfs,
};

/// Debian's kernel for virtual machines; the package itself only points at the current version.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// Where the guests' kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelSource {
    /// Debian's cloud kernel, downloaded with the host's `apt-get` and unpacked, not installed.
    DebianCloud,
    /// An uncompressed kernel with everything a guest needs built in.
    Vmlinux(PathBuf),
}

/// What the boot artefacts are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootRecipe {
    /// The kernel.
    pub kernel: KernelSource,
    /// The agent: a statically linked x86-64 binary.
    pub agent: PathBuf,
    /// Where downloads are kept from one build to the next.
    pub cache_dir: PathBuf,
}

/// Builds the boot artefacts into `store` when the agent or the kernel's version has changed or what
/// is there is damaged; otherwise returns what is there. `now` becomes the build time.
///
/// # Errors
/// When the host lacks a program, the kernel cannot be had, or the agent is not a static binary.
pub fn build_boot(
    recipe: &BootRecipe,
    store: &ImageStore,
    now: Timestamp,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<BootArtefacts, ImageError> {
    let mut steps = Steps::new(progress);
    let lock = store.lock(&mut || steps.waiting_for_lock())?;
    let agent = read_agent(&recipe.agent)?;
    let agent_digest = digest_bytes(&agent);
    let kernel = CurrentKernel::of(&recipe.kernel)?;
    let kernel_source = kernel.description();
    let present = store.boot_artefacts().ok();
    if let Some(files) = &present
        && files.manifest.agent_digest == agent_digest
        && files.manifest.kernel_source == kernel_source
    {
        steps.up_to_date("boot artefacts");
        return Ok(files.clone());
    }
    let staging = lock.staging("boot")?;
    let (vmlinux, initramfs) = (staging.path.join(KERNEL_FILE), staging.path.join(INITRAMFS_FILE));
    let contents = match &kernel {
        CurrentKernel::File { path, .. } => {
            fs::copy(path, &vmlinux).map_err(ImageError::file("copy", *path))?;
            KernelContents { release: release_of(&vmlinux)?, modules: Vec::new() }
        }
        CurrentKernel::Package(package) => {
            fetch_debian_kernel(package, &recipe.cache_dir, &vmlinux, &mut steps)?
        }
    };
    steps.step("write the initial file system", |_| {
        let archive = write_initramfs(Vec::new(), &agent, &contents.modules)
            .map_err(ImageError::file("write", &initramfs))?;
        fs::write(&initramfs, archive).map_err(ImageError::file("write", &initramfs))
    })?;
    let manifest = BootManifest {
        format: FORMAT,
        kernel_release: contents.release,
        kernel_source,
        kernel: SealedFile::describe(&vmlinux)?,
        initramfs: SealedFile::describe(&initramfs)?,
        agent_digest,
        modules: contents.modules.into_iter().map(|module| module.file_name).collect(),
        built_at: now,
    };
    lock.publish_boot(staging, &manifest)
}

/// Reads the agent and makes sure that it can run where no library and no loader is.
fn read_agent(path: &Path) -> Result<Vec<u8>, ImageError> {
    let unusable =
        |reason: &str| ImageError::Agent { path: path.to_owned(), reason: reason.to_owned() };
    let agent = fs::read(path).map_err(|error| unusable(&error.to_string()))?;
    match needs_interpreter(&agent) {
        Some(false) => Ok(agent),
        Some(true) => Err(unusable("it is not statically linked")),
        None => Err(unusable("it is not an x86-64 ELF file")),
    }
}

/// Whether an x86-64 ELF file asks for a dynamic loader (System V ABI: `e_machine` at 18, `e_phoff` at
/// 32, `e_phentsize` at 54, `e_phnum` at 56; a `PT_INTERP` program header has type 3).
fn needs_interpreter(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    const EM_X86_64: u16 = 62;
    let u16_at =
        |at: usize| Some(u16::from_le_bytes(elf.get(at..at.checked_add(2)?)?.try_into().ok()?));
    if elf.get(..5)? != b"\x7fELF\x02" || u16_at(18)? != EM_X86_64 {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?)).ok()?;
    let (entry_size, entries) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    for index in 0..entries {
        let at = table.checked_add(index * entry_size)?;
        let kind = u32::from_le_bytes(elf.get(at..at.checked_add(4)?)?.try_into().ok()?);
        if kind == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

struct KernelContents {
    release: String,
    modules: Vec<KernelModule>,
}

/// The kernel a build would take now.
enum CurrentKernel<'a> {
    Package(DebianPackage),
    File { path: &'a Path, digest: ImageDigest },
}

impl<'a> CurrentKernel<'a> {
    fn of(source: &'a KernelSource) -> Result<Self, ImageError> {
        match source {
            KernelSource::Vmlinux(path) => Ok(Self::File { path, digest: digest_file(path)? }),
            KernelSource::DebianCloud => {
                DebianPackage::pointed_to_by(KERNEL_PACKAGE, "linux-image-").map(Self::Package)
            }
        }
    }

    /// Written to the manifest and compared with it.
    fn description(&self) -> String {
        match self {
            Self::Package(package) => package.to_string(),
            Self::File { digest, .. } => format!("vmlinux {digest}"),
        }
    }
}

/// Downloads the package unless it is in the cache, and takes the kernel and its modules out of it.
fn fetch_debian_kernel(
    package: &DebianPackage,
    cache_dir: &Path,
    vmlinux: &Path,
    steps: &mut Steps<'_>,
) -> Result<KernelContents, ImageError> {
    let downloads = cache_dir.join("kernel");
    let file = steps
        .step(&format!("download {package}"), |on_line| package.download(&downloads, on_line))?;
    let tree = tempfile::tempdir_in(&downloads).map_err(ImageError::file("make", &downloads))?;
    steps.step("unpack the kernel", |on_line| {
        debian_package::extract(&file, tree.path(), on_line)?;
        debian_package::remove_others(&downloads, &file)?;
        let modules_dir = tree.path().join("lib/modules");
        let release = only_entry(&modules_dir)?;
        let bzimage = tree.path().join(format!("boot/vmlinuz-{release}"));
        extract_vmlinux(&bzimage, vmlinux)?;
        let modules = modules_in_load_order(&modules_dir.join(&release), GUEST_MODULES)?;
        Ok(KernelContents { release, modules })
    })
}

fn only_entry(directory: &Path) -> Result<String, ImageError> {
    let mut entries = fs::read_dir(directory).map_err(ImageError::file("list", directory))?;
    match (entries.next(), entries.next()) {
        (Some(Ok(entry)), None) => Ok(entry.file_name().to_string_lossy().into_owned()),
        (None, _) | (Some(_), _) => Err(ImageError::Kernel {
            reason: "the package does not have exactly one tree of modules".into(),
        }),
    }
}

/// The release of a bare kernel, from its banner (`Linux version 6.1.0-... (`).
pub(super) fn release_of(vmlinux: &Path) -> Result<String, ImageError> {
    const BANNER: &[u8] = b"Linux version ";
    let kernel = fs::read(vmlinux).map_err(ImageError::file("read", vmlinux))?;
    let release = kernel.windows(BANNER.len()).enumerate().find_map(|(at, window)| {
        let rest = &kernel[at + BANNER.len()..];
        // The kernel also holds this text as a format, with `%s` in the place of the release.
        let end = rest.iter().take(65).position(|byte| *byte == b' ')?;
        (window == BANNER && rest.first().is_some_and(u8::is_ascii_digit))
            .then(|| String::from_utf8_lossy(&rest[..end]).into_owned())
    });
    release.ok_or_else(|| ImageError::Kernel {
        reason: format!("{} does not tell its version", vmlinux.display()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header with one program header of the given type.
    fn elf(program_header_type: u32) -> Vec<u8> {
        let mut elf = vec![0; 128];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[18] = 62;
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64..68].copy_from_slice(&program_header_type.to_le_bytes());
        elf
    }

    fn kernel(directory: &Path, content: &[u8]) -> KernelSource {
        let path = directory.join("given-vmlinux");
        fs::write(&path, [b"\x7fELF Linux version %s (x) ", content].concat()).unwrap();
        KernelSource::Vmlinux(path)
    }

    struct Bench {
        directory: tempfile::TempDir,
        store: ImageStore,
    }

    impl Bench {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let store = ImageStore::open(&directory.path().join("images")).unwrap();
            Self { directory, store }
        }

        fn build(
            &self,
            agent: &[u8],
            kernel_content: &[u8],
        ) -> Result<(BootArtefacts, bool), ImageError> {
            let agent_path = self.directory.path().join("agent");
            fs::write(&agent_path, agent).unwrap();
            let recipe = BootRecipe {
                kernel: kernel(self.directory.path(), kernel_content),
                agent: agent_path,
                cache_dir: self.directory.path().join("cache"),
            };
            let mut built = true;
            let files = build_boot(&recipe, &self.store, Timestamp::UNIX_EPOCH, &mut |progress| {
                if matches!(progress, Progress::UpToDate { .. }) {
                    built = false;
                }
            })?;
            Ok((files, built))
        }
    }

    #[test]
    fn boot_artefacts_are_built_once_and_again_when_an_input_changed() {
        let bench = Bench::new();
        let one = b"Linux version 6.1.0-1-small (who)";
        let (files, built) = bench.build(&elf(1), one).unwrap();
        assert!(built);
        assert_eq!(files.manifest.kernel_release, "6.1.0-1-small");
        assert_eq!(bench.store.boot_artefacts().unwrap(), files);
        assert!(!bench.build(&elf(1), one).unwrap().1);
        assert!(bench.build(&elf(2), one).unwrap().1);
        let (files, built) = bench.build(&elf(2), b"Linux version 6.9.9 (who)").unwrap();
        assert!(built);
        assert_eq!(files.manifest.kernel_release, "6.9.9");
        let boot_directories = fs::read_dir(bench.store.directory())
            .unwrap()
            .filter(|entry| {
                entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("boot@")
            })
            .count();
        assert_eq!(boot_directories, 2, "the one in use and the one before");
    }

    #[test]
    fn damaged_boot_artefacts_are_built_anew() {
        let bench = Bench::new();
        let kernel = b"Linux version 6.1.0 (who)";
        let (files, _) = bench.build(&elf(1), kernel).unwrap();
        fs::remove_file(&files.initramfs).unwrap();
        assert!(bench.store.boot_files().is_err());
        assert!(bench.build(&elf(1), kernel).unwrap().1);
        assert!(bench.store.boot_files().is_ok());
    }

    #[test]
    fn an_agent_that_needs_a_loader_is_refused() {
        let error = Bench::new().build(&elf(3), b"Linux version 1 (w)").unwrap_err().to_string();
        assert!(error.contains("not statically linked"), "{error}");
    }

    #[test]
    fn an_agent_that_is_no_program_is_refused() {
        for agent in [&b"#!/bin/sh"[..], b"", b"\x7fELF\x02"] {
            let error = Bench::new().build(agent, b"Linux version 1 (w)").unwrap_err();
            assert!(matches!(error, ImageError::Agent { .. }), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_the_elf_reader_panic(
            mut file in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..256),
        ) {
            if file.len() > 20 {
                file[..5].copy_from_slice(b"\x7fELF\x02");
                file[18..20].copy_from_slice(&[62, 0]);
            }
            let _ = needs_interpreter(&file);
        }
    }
}
