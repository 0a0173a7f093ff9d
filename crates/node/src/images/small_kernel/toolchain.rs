//! What the kernel's own build runs on the host, and the compiler it is done with.

use std::time::Duration;

use crate::images::{
    ImageError,
    host_program::{HostProgram, program_is_there},
};

const QUERY_LIMIT: Duration = Duration::from_secs(30);

/// Programs and the Debian packages that have them. No libssl: nothing in this kernel is signed.
const PROGRAMS: &[(&str, &str)] = &[
    ("gcc", "gcc"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("ld", "binutils"),
    ("strip", "binutils"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
];

/// Headers that the build's own programs include.
const HEADERS: &[(&str, &str)] = &[("stdlib.h", "libc6-dev"), ("gelf.h", "libelf-dev")];

/// Makes sure that everything is installed.
///
/// # Errors
/// [`ImageError::PackagesMissing`] names every package at once.
pub(super) fn check() -> Result<(), ImageError> {
    let absent = PROGRAMS.iter().filter(|(program, _)| !program_is_there(program));
    let mut packages: Vec<&'static str> = absent.map(|(_, package)| *package).collect();
    match packages.contains(&"gcc") {
        // Without a compiler a header cannot be asked for: better named once too often.
        true => packages.extend(HEADERS.iter().map(|(_, package)| *package)),
        false => {
            for (header, package) in HEADERS {
                if !header_is_there(header)? {
                    packages.push(package);
                }
            }
        }
    }
    packages.dedup();
    match packages.is_empty() {
        true => Ok(()),
        false => Err(ImageError::PackagesMissing { purpose: "build a kernel", packages }),
    }
}

fn header_is_there(header: &str) -> Result<bool, ImageError> {
    let tried = HostProgram::new("gcc", "gcc")
        .args(["-x", "c", "-fsyntax-only", "-"])
        .stdout_of_input(format!("#include <{header}>\n").as_bytes(), 1 << 16, QUERY_LIMIT);
    match tried {
        Ok(_) => Ok(true),
        Err(ImageError::ProgramFailed { .. }) => Ok(false),
        Err(other) => Err(other),
    }
}

/// The first line of `gcc --version`: another compiler makes another kernel.
pub(super) fn compiler() -> Result<String, ImageError> {
    let version =
        HostProgram::new("gcc", "gcc").args(["--version"]).stdout(1 << 16, QUERY_LIMIT)?;
    let version = String::from_utf8_lossy(&version);
    Ok(version.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_looked_for_as_the_compiler_looks_for_it() {
        assert!(header_is_there("stddef.h").unwrap());
        assert!(!header_is_there("skerry/no/such/header.h").unwrap());
    }

    #[test]
    fn the_compiler_tells_its_version() {
        assert!(compiler().unwrap().contains("gcc"));
    }
}
