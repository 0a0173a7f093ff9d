//! What nearly every test does with workspaces.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{Server, server::READY_WITHIN};

/// Where workspaces are in the native API.
pub const WORKSPACES: &str = "/skerry/v1/workspaces";

impl Server {
    /// Makes a workspace and waits until it runs; returns its id.
    ///
    /// # Errors
    /// It does not run.
    pub async fn create(&self, body: Value) -> Result<String> {
        let made = self.expect(201, "POST", &format!("{WORKSPACES}?wait=240"), Some(body)).await?;
        ensure!(made["state"] == "running", "{made}\n{}", self.log());
        Ok(made["id"].as_str().context("no id")?.to_owned())
    }

    /// Asks for a change and waits for it.
    ///
    /// # Errors
    /// It was refused.
    pub async fn ask(&self, id: &str, verb: &str, body: Option<Value>) -> Result<Value> {
        let path = format!("{WORKSPACES}/{id}/{verb}?wait=240");
        let (status, answer) = self.request("POST", &path, body).await?;
        ensure!((200..300).contains(&status), "{verb}: {status} {answer}\n{}", self.log());
        Ok(answer)
    }

    /// Removes a workspace and waits until nothing is left of it.
    ///
    /// # Errors
    /// It was refused.
    pub async fn delete(&self, id: &str) -> Result<()> {
        self.expect(200, "DELETE", &format!("{WORKSPACES}/{id}?wait=240"), None).await?;
        Ok(())
    }

    /// Makes a workspace and deletes it again, and returns once a template of its kind is there, so
    /// that the next one of the same starts from it.
    ///
    /// # Errors
    /// No template is made.
    pub async fn with_template(&self, memory_mib: u32) -> Result<()> {
        let templates = self.data_dir().join("templates");
        let body = json!({"name": "first of its kind", "memory_mib": memory_mib});
        let first = self.create(body).await?;
        let deadline = Instant::now() + READY_WITHIN;
        let mut look = tokio::time::interval(Duration::from_millis(200));
        let is_there = || {
            let names = std::fs::read_dir(&templates).into_iter().flatten().flatten();
            names.map(|name| name.file_name()).any(|name| !name.to_string_lossy().starts_with('.'))
        };
        while !is_there() {
            ensure!(Instant::now() < deadline, "no template:\n{}", self.log());
            look.tick().await;
        }
        self.delete(&first).await
    }
    /// Returns once a VM waits in the pool, restored and paused.
    ///
    /// # Errors
    /// None comes.
    pub async fn pool_filled(&self) -> Result<()> {
        let reached = |doctor: &Value| {
            let checks = doctor["checks"].as_array().into_iter().flatten();
            let mut pool = checks.filter(|check| check["name"] == "pool");
            pool.any(|check| check["found"].as_str().is_some_and(|found| !found.starts_with("0 ")))
        };
        self.until("/skerry/v1/doctor", reached).await?;
        Ok(())
    }
}
