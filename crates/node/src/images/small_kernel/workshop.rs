//! The directory in which a kernel is built: one at a time for a cache directory, gone afterwards. It
//! is not in the image store, whose lock must not be held as long as a kernel takes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    capacity::disk_free_mib,
    images::{
        ImageError,
        debian_package::{self, DebianPackage},
        host_program::HostProgram,
        progress::Steps,
        store::{FileLock, remove_tree},
    },
};

/// The package that points at the source of the distribution's kernel.
const SOURCE_POINTER: &str = "linux-source";
const SOURCE_PREFIX: &str = "linux-source-";
const UNPACK_LIMIT: Duration = Duration::from_secs(1800);
/// The unpacked source and what the compiler makes of it, with some room.
const NEEDED_DISK_MIB: u64 = 3072;

/// The source package whose kernel a build would make now.
pub(super) fn current_source() -> Result<DebianPackage, ImageError> {
    DebianPackage::pointed_to_by(SOURCE_POINTER, SOURCE_PREFIX)
}

/// Where a kernel is being built. Removed when dropped, and by the next one when this process is
/// killed before that.
pub(super) struct Workshop {
    path: PathBuf,
    downloads: PathBuf,
    /// Closing it releases the lock, also when the process dies.
    _lock: FileLock,
}

impl Workshop {
    /// Waits until nobody else builds a kernel with this cache, and removes what they left.
    pub(super) fn open(cache_dir: &Path, steps: &mut Steps<'_>) -> Result<Self, ImageError> {
        let (downloads, path) = (cache_dir.join("kernel-source"), cache_dir.join("kernel-build"));
        fs::create_dir_all(&downloads).map_err(ImageError::file("make", &downloads))?;
        let lock = FileLock::wait(&downloads.join("lock"), &mut || steps.waiting_for_lock())?;
        remove_tree(&path);
        Ok(Self { path, downloads, _lock: lock })
    }

    /// Fetches and unpacks the source, and returns its directory.
    pub(super) fn unpack(
        &self,
        source: &DebianPackage,
        steps: &mut Steps<'_>,
    ) -> Result<PathBuf, ImageError> {
        let free_mib = disk_free_mib(&self.downloads);
        if free_mib < NEEDED_DISK_MIB {
            let place = self.downloads.display();
            return Err(ImageError::Kernel {
                reason: format!(
                    "{free_mib} MiB are free at {place}; building it needs {NEEDED_DISK_MIB}"
                ),
            });
        }
        let tree = self.path.join("source");
        fs::create_dir_all(&tree).map_err(ImageError::file("make", &tree))?;
        let tarball = match installed_tarball(source) {
            Some(tarball) => tarball,
            None => {
                steps.step(&format!("download {source}"), |on_line| self.fetch(source, on_line))?
            }
        };
        steps.step("unpack the source", |on_line| {
            HostProgram::new("tar", "tar")
                .args(["--extract", "--no-same-owner", "--strip-components=1", "--file"])
                .arg(tarball)
                .arg("--directory")
                .arg(&tree)
                .run(UNPACK_LIMIT, on_line)
        })?;
        Ok(tree)
    }

    /// Downloads the package and takes the packed source out of it.
    fn fetch(
        &self,
        source: &DebianPackage,
        on_line: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, ImageError> {
        let package = source.download(&self.downloads, on_line)?;
        let files = self.path.join("package");
        fs::create_dir_all(&files).map_err(ImageError::file("make", &files))?;
        debian_package::extract(&package, &files, on_line)?;
        debian_package::remove_others(&self.downloads, &package)?;
        Ok(files.join(tarball_of(source)))
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        remove_tree(&self.path);
    }
}

/// Where the package has the source, relative to the root of the file system.
fn tarball_of(source: &DebianPackage) -> String {
    format!("usr/src/{}.tar.xz", source.name)
}

fn installed_tarball(source: &DebianPackage) -> Option<PathBuf> {
    let tarball = Path::new("/").join(tarball_of(source));
    (tarball.is_file() && source.is_installed()).then_some(tarball)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_build_left_is_removed_by_the_next_and_its_own_at_its_end() {
        let cache = tempfile::tempdir().unwrap();
        let left = cache.path().join("kernel-build/source/half");
        fs::create_dir_all(&left).unwrap();
        let mut ignore = |_: crate::images::Progress<'_>| {};
        let workshop = Workshop::open(cache.path(), &mut Steps::new(&mut ignore)).unwrap();
        assert!(!left.exists());
        fs::create_dir_all(&left).unwrap();
        drop(workshop);
        assert!(!cache.path().join("kernel-build").exists());
    }
}
