//! Packages of the host's distribution, downloaded by its own `apt-get` and not installed.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{ImageError, host_program::HostProgram};

const QUERY_LIMIT: Duration = Duration::from_secs(60);
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(600);
const UNPACK_LIMIT: Duration = Duration::from_secs(300);
const MAX_QUERY_BYTES: u64 = 16 << 20;

/// One version of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DebianPackage {
    pub(super) name: String,
    pub(super) version: String,
}

impl DebianPackage {
    /// The package, whose name begins with `prefix`, that the empty package `pointer` depends on: so
    /// Debian names the current version of a kernel.
    pub(super) fn pointed_to_by(pointer: &str, prefix: &str) -> Result<Self, ImageError> {
        let record = HostProgram::new("apt-cache", "apt")
            .args(["show", "--no-all-versions", pointer])
            .stdout(MAX_QUERY_BYTES, QUERY_LIMIT);
        let record = match record {
            // That is how it says that it knows no such package.
            Err(ImageError::ProgramFailed { .. }) => Vec::new(),
            other => other?,
        };
        Self::from_record(&String::from_utf8_lossy(&record), prefix).ok_or_else(|| {
            ImageError::Kernel {
                reason: format!(
                    "the package lists of this host do not have {pointer}; \
                     `apt-get update` brings them up to date"
                ),
            }
        })
    }

    /// The only dependency of the pointing package has the same version as it.
    fn from_record(record: &str, prefix: &str) -> Option<Self> {
        let field = |name: &str| {
            record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let name = field("Depends")?
            .split([' ', ',', '('])
            .next()
            .filter(|package| package.starts_with(prefix))?;
        Some(Self { name: name.to_owned(), version: field("Version")?.to_owned() })
    }

    /// Whether exactly this version is installed on the host.
    pub(super) fn is_installed(&self) -> bool {
        HostProgram::new("dpkg-query", "dpkg")
            .args(["--show", "--showformat=${db:Status-Status} ${Version}", &self.name])
            .stdout(MAX_QUERY_BYTES, QUERY_LIMIT)
            .is_ok_and(|found| found == format!("installed {}", self.version).into_bytes())
    }

    /// The package's file in `directory`, downloaded unless it is there.
    pub(super) fn download(
        &self,
        directory: &Path,
        on_line: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, ImageError> {
        fs::create_dir_all(directory).map_err(ImageError::file("make", directory))?;
        // As root, apt would drop to a user who cannot write here.
        HostProgram::new("apt-get", "apt")
            .args(["--quiet", "-o", "APT::Sandbox::User=root", "download"])
            .arg(format!("{}={}", self.name, self.version))
            .current_dir(directory)
            .run(DOWNLOAD_LIMIT, on_line)?;
        // In a file's name the colon of an epoch is `%3a`.
        let beginning = format!("{}_{}", self.name, self.version.replace(':', "%3a"));
        packages_in(directory)?
            .into_iter()
            .find(|path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&beginning))
            })
            .ok_or_else(|| ImageError::Kernel {
                reason: format!("apt-get left no file {beginning}*.deb in {}", directory.display()),
            })
    }
}

impl fmt::Display for DebianPackage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// Unpacks the package's files into the empty directory `tree`.
pub(super) fn extract(
    package: &Path,
    tree: &Path,
    on_line: &mut dyn FnMut(&str),
) -> Result<(), ImageError> {
    HostProgram::new("dpkg-deb", "dpkg")
        .arg("--extract")
        .arg(package)
        .arg(tree)
        .run(UNPACK_LIMIT, on_line)
}

/// Older packages are of no use once the newest was unpacked.
pub(super) fn remove_others(directory: &Path, keep: &Path) -> Result<(), ImageError> {
    for path in packages_in(directory)? {
        if path != keep {
            fs::remove_file(&path).map_err(ImageError::file("remove", &path))?;
        }
    }
    Ok(())
}

fn packages_in(directory: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let entries = fs::read_dir(directory).map_err(ImageError::file("list", directory))?;
    Ok(entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "deb"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_is_read_from_the_pointing_packages_record() {
        let record = "Package: linux-image-cloud-amd64\nVersion: 6.1.7-2\n\
                      Depends: linux-image-6.1.0-9-cloud-amd64 (= 6.1.7-2)\n";
        let package = DebianPackage::from_record(record, "linux-image-").unwrap();
        assert_eq!(package.name, "linux-image-6.1.0-9-cloud-amd64");
        assert_eq!(package.version, "6.1.7-2");
        assert_eq!(DebianPackage::from_record(record, "linux-source-"), None);
        assert_eq!(DebianPackage::from_record("", "linux-image-"), None);
    }

    #[test]
    fn only_the_newest_package_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["old.deb", "new.deb", "lock"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        remove_others(directory.path(), &directory.path().join("new.deb")).unwrap();
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["lock", "new.deb"]);
    }
}
