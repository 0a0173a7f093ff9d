//! Paths of a guest, and what their names say.

use super::problem::refusal;
use crate::dialects::oblien::error_body::Problem;

/// Longer ones no guest takes.
const PATH_MAX_BYTES: usize = 4096;
/// What a system needs: not deleted as a whole.
const PROTECTED: [&str; 12] = [
    "/", "/bin", "/sbin", "/usr", "/lib", "/lib64", "/etc", "/dev", "/proc", "/sys", "/boot",
    "/run",
];
/// Where the kernel shows itself: nobody's files.
const OF_THE_KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Extensions of source code and what belongs to it.
const CODE: [&str; 70] = [
    "astro", "bash", "bat", "c", "cc", "cfg", "clj", "cmake", "conf", "cpp", "cs", "css", "cxx",
    "dart", "diff", "elm", "env", "erl", "ex", "exs", "fish", "fs", "go", "gradle", "graphql",
    "groovy", "h", "hpp", "hs", "htm", "html", "ini", "java", "jl", "js", "json", "jsx", "kt",
    "less", "lua", "m", "md", "mjs", "ml", "mm", "nim", "php", "pl", "proto", "ps1", "py", "r",
    "rb", "rs", "sass", "scala", "scss", "sh", "sql", "svelte", "swift", "toml", "ts", "tsx",
    "txt", "vue", "xml", "yaml", "yml", "zig",
];

/// An absolute path without `.`, `..` and doubled slashes.
pub(super) fn absolute(field: &str, path: &str) -> Result<String, Problem> {
    let allowed = "an absolute path of at most 4096 bytes";
    if !path.starts_with('/') || path.len() > PATH_MAX_BYTES || path.contains('\0') {
        return Err(refusal(field, "is not an absolute path", allowed));
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

/// The directory a path is in, and its name there; `None` of the root.
pub(super) fn split(path: &str) -> Option<(&str, &str)> {
    match path.rsplit_once('/') {
        Some((_, "")) | None => None,
        Some(("", name)) => Some(("/", name)),
        Some((parent, name)) => Some((parent, name)),
    }
}

pub(super) fn is_protected(path: &str) -> bool {
    PROTECTED.contains(&path)
}

pub(super) fn is_of_the_kernel(path: &str) -> bool {
    OF_THE_KERNEL.contains(&path)
}

/// What follows the last dot of a name, lower case.
pub(super) fn extension(name: &str) -> Option<String> {
    let (stem, extension) = name.rsplit_once('.')?;
    (!stem.is_empty() && !extension.is_empty()).then(|| extension.to_ascii_lowercase())
}

pub(super) fn is_code(name: &str) -> bool {
    let named = ["Dockerfile", "Makefile", "Gemfile", "Rakefile", "Procfile"];
    named.contains(&name)
        || extension(name).is_some_and(|extension| CODE.binary_search(&extension.as_str()).is_ok())
}

/// The parts of a text with commas between them.
pub(super) fn listed(text: Option<&str>) -> Vec<&str> {
    let parts = text.unwrap_or_default().split(',').map(str::trim);
    parts.filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart_and_never_lead_out() {
        let path = |text: &str| absolute("path", text).map_err(|_| ());
        assert_eq!(path("/a//b/./../c/"), Ok("/a/c".to_owned()));
        assert_eq!(path("/../../etc/"), Ok("/etc".to_owned()));
        assert_eq!(path("/"), Ok("/".to_owned()));
        for bad in ["", "a", "./a", "/a\0"] {
            assert_eq!(path(bad), Err(()), "{bad:?}");
        }
        assert_eq!(split("/a/b"), Some(("/a", "b")));
        assert_eq!(split("/a"), Some(("/", "a")));
        assert_eq!(split("/"), None);
        assert!(is_protected("/etc") && !is_protected("/etc/hosts"));
    }

    #[test]
    fn names_say_what_files_are() {
        assert!(CODE.is_sorted());
        assert_eq!(extension("a.tar.GZ").as_deref(), Some("gz"));
        assert_eq!([extension(".bashrc"), extension("a."), extension("a")], [None, None, None]);
        assert!(is_code("main.rs") && is_code("Makefile") && !is_code("a.png"));
        assert_eq!(listed(Some(" a, ,b")), ["a", "b"]);
    }
}
