//! Rules about files that no compiler knows: how long they may get, and which names say nothing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A file that is longer is two files.
const MAX_LINES: usize = 600;

/// Files that were longer when the rule came, with the length they may have. A ratchet: when a file
/// gets shorter its number here must follow, and no file is added.
const LONGER: &[(&str, usize)] = &[];

/// Module names under which anything could be put.
const NAMES_THAT_SAY_NOTHING: &[&str] = &["common", "helpers", "manager", "misc", "util", "utils"];

/// Every rule that a source file breaks.
pub(crate) fn problems(root: &Path) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for path in rust_files(&root.join("crates"))? {
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        problems.extend(length_problem(&name, text.lines().count(), LONGER));
        problems.extend(name_problem(&name));
    }
    Ok(problems)
}

fn length_problem(name: &str, lines: usize, longer: &[(&str, usize)]) -> Option<String> {
    let exception = longer.iter().find(|(path, _)| *path == name).map(|(_, limit)| *limit);
    match exception {
        None if lines > MAX_LINES => {
            Some(format!("{name} has {lines} lines; {MAX_LINES} are allowed"))
        }
        Some(limit) if lines > limit => {
            Some(format!("{name} has {lines} lines; it had {limit} and may only get shorter"))
        }
        Some(limit) if lines < limit => {
            Some(format!("{name} got shorter: write {lines} into the list of longer files"))
        }
        None | Some(_) => None,
    }
}

fn name_problem(name: &str) -> Option<String> {
    let mut parts = Path::new(name).components().rev();
    let file = parts.next()?.as_os_str().to_string_lossy().into_owned();
    let module = match file.strip_suffix(".rs")? {
        "mod" => parts.next()?.as_os_str().to_string_lossy().into_owned(),
        stem => stem.to_owned(),
    };
    NAMES_THAT_SAY_NOTHING
        .contains(&module.as_str())
        .then(|| format!("{name}: the name `{module}` does not say what is in it"))
}

fn rust_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                // A crate may have a target directory of its own (fuzzing).
                if path.file_name().is_none_or(|name| name != "target") {
                    waiting.push(path);
                }
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_is_too_long_or_has_a_name_that_says_nothing() {
        assert_eq!(problems(&crate::repository()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_long_file_is_told_unless_it_is_listed_with_its_length() {
        let listed = [("old.rs", 900)];
        assert_eq!(length_problem("new.rs", 600, &listed), None);
        assert!(length_problem("new.rs", 601, &listed).is_some());
        assert_eq!(length_problem("old.rs", 900, &listed), None);
        assert!(length_problem("old.rs", 901, &listed).unwrap().contains("only get shorter"));
        assert!(length_problem("old.rs", 899, &listed).unwrap().contains("got shorter"));
    }

    #[test]
    fn a_module_is_named_by_its_file_or_its_directory() {
        assert!(name_problem("crates/x/src/utils.rs").is_some());
        assert!(name_problem("crates/x/src/common/mod.rs").is_some());
        assert_eq!(name_problem("crates/x/src/vm/mod.rs"), None);
        assert_eq!(name_problem("crates/x/src/common/files.rs"), None);
    }
}
