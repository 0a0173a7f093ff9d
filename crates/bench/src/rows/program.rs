//! Benchmarks of single parts, which are programs of their own: cargo builds them, they are run, and
//! their figures are taken.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

/// One of them, as cargo calls it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    pub package: &'static str,
    pub name: &'static str,
}

impl Program {
    /// Runs it with these arguments and answers the JSON that it has written. It may say by its exit
    /// that it misses a target of its own: that is for the table to say.
    pub async fn figures(self, directory: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
        let json = tempfile::NamedTempFile::new_in(directory)?;
        let output = Command::new(self.built().await?)
            .arg("--bench")
            .args(arguments)
            .arg("--json")
            .arg(json.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("running {}", self.name))?;
        let text = std::fs::read(json.path()).context("reading what the benchmark has written")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!text.is_empty(), "{}: {}: {said}", self.name, output.status);
        Ok(text)
    }

    /// Has cargo build it, and say where it is: run by us and not by cargo, it ends with us.
    async fn built(self) -> Result<PathBuf> {
        let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["bench", "--locked", "--no-run", "--message-format=json"])
            .args(["-p", self.package, "--bench", self.name])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("running cargo bench")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cargo bench: {said}");
        executable(&output.stdout, self.name)
            .with_context(|| format!("cargo bench has built nothing: {said}"))
    }
}

/// The executable of this name among cargo's messages.
fn executable(messages: &[u8], name: &str) -> Option<PathBuf> {
    let messages = serde_json::Deserializer::from_slice(messages).into_iter::<Value>();
    messages.map_while(Result::ok).find_map(|message| {
        let is_it = message["target"]["name"] == name;
        is_it.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_benchmark_is_found_among_what_cargo_says() {
        let messages = br#"{"reason":"compiler-artifact","target":{"name":"nix"},"executable":null}
            {"reason":"compiler-artifact","target":{"name":"control_plane"},"executable":"/x/y-1"}
            {"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "control_plane"), Some(PathBuf::from("/x/y-1")));
        assert_eq!(executable(br#"{"reason":"build-finished","success":true}"#, "x"), None);
    }
}
