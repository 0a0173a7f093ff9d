//! Which of our crates may name which other: the table in `ARCHITECTURE.md` against `cargo metadata`.
//! Dependencies of tests are free.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, MetadataCommand};

const PREFIX: &str = "skerry-";

/// Crate to the crates it names (or may name), without the common prefix.
type Edges = BTreeMap<String, BTreeSet<String>>;

/// What is in the tree and not in the table, or the other way round.
pub(crate) fn problems(root: &Path) -> Result<Vec<String>> {
    let path = root.join("ARCHITECTURE.md");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(compare(&allowed(&text)?, &actual(root)?))
}

fn compare(allowed: &Edges, actual: &Edges) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, dependencies) in actual {
        let Some(allowed) = allowed.get(name) else {
            problems.push(format!("the table in ARCHITECTURE.md has no row for the crate {name}"));
            continue;
        };
        for dependency in dependencies.difference(allowed) {
            problems.push(format!("{name} depends on {dependency}; ARCHITECTURE.md forbids it"));
        }
    }
    for name in allowed.keys().filter(|name| !actual.contains_key(*name)) {
        problems.push(format!("the table in ARCHITECTURE.md names {name}, which is no crate"));
    }
    problems
}

/// The table under the heading row `| crate | may depend on |`.
fn allowed(text: &str) -> Result<Edges> {
    let mut rows = text
        .lines()
        .skip_while(|line| *line != "| crate | may depend on |")
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .peekable();
    rows.peek().context("ARCHITECTURE.md has no table `| crate | may depend on |`")?;
    let mut edges = Edges::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [crates, dependencies] = cells[..] else {
            anyhow::bail!("a row of the table does not have two cells: {row}");
        };
        let dependencies = if dependencies.starts_with("nothing of ours") {
            BTreeSet::new()
        } else if dependencies == "all of the above" {
            edges.keys().cloned().collect()
        } else {
            words(dependencies)
        };
        for name in words(crates) {
            edges.insert(name, dependencies.clone());
        }
    }
    Ok(edges)
}

fn words(cell: &str) -> BTreeSet<String> {
    cell.split(',').map(|word| word.trim().to_owned()).collect()
}

fn actual(root: &Path) -> Result<Edges> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .other_options(vec!["--offline".to_owned()])
        .exec()
        .context("cargo metadata")?;
    let mut edges = Edges::new();
    for package in metadata.workspace_packages() {
        let Some(name) = package.name.strip_prefix(PREFIX) else { continue };
        let dependencies = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind != DependencyKind::Development)
            .filter_map(|dependency| dependency.name.strip_prefix(PREFIX))
            .map(str::to_owned)
            .collect();
        edges.insert(name.to_owned(), dependencies);
    }
    Ok(edges)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "# Title\n\n| crate | may depend on |\n| --- | --- |\n\
                         | model, wire | nothing of ours |\n| node | model, wire |\n\
                         | server | all of the above |\n\nText.\n";

    fn edges(of: &[(&str, &[&str])]) -> Edges {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        of.iter().map(|(name, dependencies)| ((*name).to_owned(), set(dependencies))).collect()
    }

    #[test]
    fn no_crate_names_another_that_the_table_forbids() {
        assert_eq!(problems(&crate::repository()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn the_table_is_read_as_it_is_written() {
        let expected = edges(&[
            ("model", &[]),
            ("wire", &[]),
            ("node", &["model", "wire"]),
            ("server", &["model", "wire", "node"]),
        ]);
        assert_eq!(allowed(TABLE).unwrap(), expected);
    }

    #[test]
    fn an_edge_beyond_the_table_a_crate_without_a_row_and_a_row_without_a_crate_are_told() {
        let actual = edges(&[("model", &["node"]), ("node", &["model"]), ("new", &[])]);
        assert_eq!(
            compare(&allowed(TABLE).unwrap(), &actual),
            [
                "model depends on node; ARCHITECTURE.md forbids it",
                "the table in ARCHITECTURE.md has no row for the crate new",
                "the table in ARCHITECTURE.md names server, which is no crate",
                "the table in ARCHITECTURE.md names wire, which is no crate",
            ]
        );
    }
}
