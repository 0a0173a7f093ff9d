//! Taking a kernel apart: the uncompressed ELF image out of a `bzImage`, and the modules a guest needs
//! out of a module tree, in load order. Nothing is installed on the host and `depmod` is not needed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{ImageError, KernelModule, host_program::HostProgram};

/// What a guest on virtio-mmio needs before its root is mounted, and its network card.
/// Modules that a kernel has built in are left out by [`modules_in_load_order`].
pub const GUEST_MODULES: &[&str] =
    &["virtio_mmio", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng"];

const DECOMPRESSION_LIMIT: Duration = Duration::from_secs(120);
/// The largest kernel accepted, uncompressed.
const MAX_KERNEL_BYTES: u64 = 512 << 20;

/// How a kernel's payload is packed: magic bytes, the program that unpacks it, its Debian package.
/// The magic numbers are those of Linux `lib/decompress.c`; `lz4` is the legacy frame format.
const PACKINGS: &[(&[u8], &str, &str)] = &[
    (b"\x02\x21\x4c\x18", "lz4", "lz4"),
    (b"\x1f\x8b", "gzip", "gzip"),
    (b"\xfd7zXZ\x00", "xz", "xz-utils"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd"),
];

/// The payload of a `bzImage` as its header describes it (Linux `Documentation/arch/x86/boot.rst`:
/// `setup_sects` at 0x1f1, `HdrS` at 0x202, `payload_offset` at 0x248, `payload_length` at 0x24c).
fn bzimage_payload(image: &[u8]) -> Option<&[u8]> {
    let u32_at = |offset: usize| {
        let bytes = image.get(offset..offset + 4)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = match *image.get(0x1f1)? {
        0 => 4,
        count => usize::from(count),
    };
    let start = ((setup_sectors + 1) * 512).checked_add(u32_at(0x248)?)?;
    image.get(start..start.checked_add(u32_at(0x24c)?)?)
}

/// Writes the uncompressed kernel in `bzimage` to `vmlinux`.
///
/// # Errors
/// When the file is no `bzImage`, is packed in an unknown way, or does not unpack to an ELF file.
pub fn extract_vmlinux(bzimage: &Path, vmlinux: &Path) -> Result<(), ImageError> {
    let unusable =
        |reason: &str| ImageError::Kernel { reason: format!("{}: {reason}", bzimage.display()) };
    let image = fs::read(bzimage).map_err(ImageError::file("read", bzimage))?;
    let payload = bzimage_payload(&image).ok_or_else(|| unusable("it is not a bzImage"))?;
    let (_, program, package) = PACKINGS
        .iter()
        .find(|(magic, ..)| payload.starts_with(magic))
        .ok_or_else(|| unusable("it is packed in an unknown way"))?;
    // All packings but gzip are followed by the unpacked size as a 32-bit number, which a
    // decompressor would take for a damaged next frame.
    let packed = match *program {
        "gzip" => payload,
        _other => &payload[..payload.len().saturating_sub(4)],
    };
    let unpacked = HostProgram::new(program, package).args(["-dc"]).stdout_of_input(
        packed,
        MAX_KERNEL_BYTES,
        DECOMPRESSION_LIMIT,
    )?;
    if !unpacked.starts_with(b"\x7fELF") {
        return Err(unusable("it does not unpack to an ELF file"));
    }
    fs::write(vmlinux, unpacked).map_err(ImageError::file("write", vmlinux))
}

/// The modules `wanted` and everything they depend on, each after its dependencies, read from a tree
/// `lib/modules/<version>`. What the kernel has built in is left out.
///
/// # Errors
/// When a wanted module is neither there nor built in, or a module cannot be read.
pub fn modules_in_load_order(
    module_tree: &Path,
    wanted: &[&str],
) -> Result<Vec<KernelModule>, ImageError> {
    let files = module_files(module_tree)?;
    let built_in_list = module_tree.join("modules.builtin");
    let built_in: BTreeSet<String> = fs::read_to_string(&built_in_list)
        .map_err(ImageError::file("read", &built_in_list))?
        .lines()
        .filter_map(|line| module_name(Path::new(line)))
        .collect();
    let mut resolution = Resolution { files: &files, built_in: &built_in, loaded: Vec::new() };
    for name in wanted {
        resolution.add(&normalised(name), &mut Vec::new())?;
    }
    Ok(resolution.loaded.into_iter().map(|(_, module)| module).collect())
}

struct Resolution<'a> {
    files: &'a BTreeMap<String, PathBuf>,
    built_in: &'a BTreeSet<String>,
    loaded: Vec<(String, KernelModule)>,
}

impl Resolution<'_> {
    fn add(&mut self, name: &str, dependents: &mut Vec<String>) -> Result<(), ImageError> {
        if self.built_in.contains(name) || self.loaded.iter().any(|(loaded, _)| loaded == name) {
            return Ok(());
        }
        if dependents.iter().any(|dependent| dependent == name) {
            return Err(ImageError::Kernel {
                reason: format!("the module {name} depends on itself"),
            });
        }
        let path = self
            .files
            .get(name)
            .ok_or_else(|| ImageError::Kernel { reason: format!("it has no module {name}") })?;
        let content = read_module(path)?;
        dependents.push(name.to_owned());
        for dependency in module_dependencies(&content) {
            self.add(&dependency, dependents)?;
        }
        dependents.pop();
        let module = KernelModule { file_name: format!("{name}.ko"), content };
        self.loaded.push((name.to_owned(), module));
        Ok(())
    }
}

/// Every module file below `tree` by its normalised name.
fn module_files(tree: &Path) -> Result<BTreeMap<String, PathBuf>, ImageError> {
    let mut found = BTreeMap::new();
    let mut directories = vec![tree.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory).map_err(ImageError::file("list", &directory))?;
        for entry in entries {
            let entry = entry.map_err(ImageError::file("list", &directory))?;
            let path = entry.path();
            let kind = entry.file_type().map_err(ImageError::file("inspect", &path))?;
            if kind.is_dir() {
                directories.push(path);
            } else if let Some(name) = module_name(&path) {
                found.insert(name, path);
            }
        }
    }
    Ok(found)
}

/// `kernel/drivers/virtio/virtio-rng.ko.xz` is `virtio_rng`.
fn module_name(path: &Path) -> Option<String> {
    let file_name = path.file_name()?.to_str()?;
    let (name, ending) = file_name.split_once(".ko")?;
    matches!(ending, "" | ".xz" | ".gz" | ".zst").then(|| normalised(name))
}

/// The kernel treats `-` and `_` in module names as equal.
fn normalised(name: &str) -> String {
    name.replace('-', "_")
}

fn read_module(path: &Path) -> Result<Vec<u8>, ImageError> {
    let content = fs::read(path).map_err(ImageError::file("read", path))?;
    let packing = PACKINGS.iter().find(|(magic, ..)| content.starts_with(magic));
    match packing {
        None => Ok(content),
        Some((_, program, package)) => HostProgram::new(program, package)
            .args(["-dc"])
            .stdout_of_input(&content, MAX_KERNEL_BYTES, DECOMPRESSION_LIMIT),
    }
}

/// The `depends=` entry of a module's `.modinfo` section: NUL-terminated `key=value` strings. The
/// section is found by its content, which spares an ELF parser: no other part of a module holds a
/// NUL followed by this word.
fn module_dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &module[start + KEY.len()..];
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(normalised)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module_with(depends: &str) -> Vec<u8> {
        format!("\x7fELF junk\0license=GPL\0depends={depends}\0name=x\0").into_bytes()
    }

    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        let drivers = tree.path().join("kernel/drivers");
        fs::create_dir_all(&drivers).unwrap();
        fs::write(tree.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
        for (name, depends) in [
            ("virtio", ""),
            ("virtio_ring", "virtio"),
            ("failover", ""),
            ("net_failover", "failover"),
            ("virtio_net", "net_failover,virtio,virtio_ring,ext4"),
            ("virtio-rng", "virtio_ring,virtio"),
            ("circle-a", "circle-b"),
            ("circle-b", "circle-a"),
        ] {
            fs::write(drivers.join(format!("{name}.ko")), module_with(depends)).unwrap();
        }
        tree
    }

    fn order(wanted: &[&str]) -> Result<Vec<String>, String> {
        let tree = tree();
        modules_in_load_order(tree.path(), wanted)
            .map(|modules| modules.into_iter().map(|module| module.file_name).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_module_comes_after_everything_it_depends_on() {
        assert_eq!(
            order(&["virtio_net", "virtio-rng"]).unwrap(),
            [
                "failover.ko",
                "net_failover.ko",
                "virtio.ko",
                "virtio_ring.ko",
                "virtio_net.ko",
                "virtio_rng.ko"
            ]
        );
    }

    #[test]
    fn a_module_that_is_built_in_is_left_out() {
        assert_eq!(order(&["ext4"]).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_module_that_is_nowhere_is_named_in_the_error() {
        assert_eq!(order(&["zfs"]).unwrap_err(), "the kernel is not usable: it has no module zfs");
    }

    #[test]
    fn modules_that_need_each_other_are_refused() {
        assert!(order(&["circle-a"]).unwrap_err().contains("depends on itself"));
    }

    /// A bzImage as far as the header goes, around `payload`.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(b"what follows the payload");
        image
    }

    #[test]
    fn a_gzipped_kernel_is_unpacked() {
        let directory = tempfile::tempdir().unwrap();
        let packed = HostProgram::new("gzip", "gzip")
            .args(["-c"])
            .stdout_of_input(b"\x7fELF kernel", 1 << 20, Duration::from_secs(10))
            .unwrap();
        let (image, vmlinux) = (directory.path().join("vmlinuz"), directory.path().join("vmlinux"));
        fs::write(&image, bzimage(&packed)).unwrap();
        extract_vmlinux(&image, &vmlinux).unwrap();
        assert_eq!(fs::read(&vmlinux).unwrap(), b"\x7fELF kernel");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("vmlinuz");
        for content in [b"short".to_vec(), vec![0; 4096], bzimage(b"unknown packing")] {
            fs::write(&file, content).unwrap();
            let error = extract_vmlinux(&file, &directory.path().join("out")).unwrap_err();
            assert!(matches!(error, ImageError::Kernel { .. }), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_the_header_parser_panic(
            mut image in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2048),
            looks_right in proptest::prelude::any::<bool>(),
        ) {
            if looks_right && image.len() > 0x206 {
                image[0x202..0x206].copy_from_slice(b"HdrS");
            }
            let _ = bzimage_payload(&image);
        }
    }
}
