//! What the rows ask of the native HTTP API. An answer that is not the expected one is an error that
//! says what came instead.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use reqwest::{
    Client, Method,
    header::{AUTHORIZATION, HOST, HeaderMap, HeaderValue},
};
use serde_json::{Value, json};

use crate::{ARGV, SAYS};

/// No request takes longer.
const REQUEST_WITHIN: Duration = Duration::from_secs(300);
/// How long the server itself waits for a state before it answers.
const WAIT_SECONDS: u32 = 240;
/// How long something in the background may take.
const SETTLED_WITHIN: Duration = Duration::from_secs(240);
/// Between two looks at it.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// So many looks without a change show that the pool is not being filled: a VM takes less than this.
const LOOKS_WITHOUT_CHANGE: u32 = 3;
const WORKSPACES: &str = "/skerry/v1/workspaces";
/// The most that are listed at once; a run has no more.
const PAGE: u32 = 1000;
const SNAPSHOTS: &str = "/skerry/v1/snapshots";

/// The API of one server, with a key. Connections are kept.
#[derive(Clone, Debug)]
pub struct Api {
    url: String,
    http: Client,
    /// Without the key, which is nobody else's business.
    visitor: Client,
}

/// A workspace as it was answered.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// Its identity.
    pub id: String,
    /// Its state's name.
    pub state: String,
    /// How its VM came to run.
    pub start_path: Option<String>,
}

impl Workspace {
    fn read(answer: &Value) -> Result<Self> {
        let text = |name: &str| answer[name].as_str().map(str::to_owned);
        Ok(Self {
            id: text("id").with_context(|| format!("no workspace: {answer}"))?,
            state: text("state").with_context(|| format!("no state: {answer}"))?,
            start_path: text("start_path"),
        })
    }

    /// Fails unless it runs and came to run in this way.
    ///
    /// # Errors
    /// It did not: what was measured is not what the row is about.
    pub fn came_by(&self, path: &str) -> Result<()> {
        ensure!(self.state == "running", "workspace {} is {}", self.id, self.state);
        let came_by = self.start_path.as_deref().unwrap_or("nothing known");
        ensure!(came_by == path, "it was to start by {path} and started by {came_by}");
        Ok(())
    }
}

impl Api {
    /// Speaks to `url` with `key`.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn new(url: &str, key: &str) -> Result<Self> {
        let mut key = HeaderValue::from_str(&format!("Bearer {key}"))?;
        key.set_sensitive(true);
        let http = Client::builder()
            .default_headers(HeaderMap::from_iter([(AUTHORIZATION, key)]))
            .no_proxy()
            .timeout(REQUEST_WITHIN)
            .build()?;
        let visitor = Client::builder().no_proxy().timeout(REQUEST_WITHIN).build()?;
        Ok(Self { url: url.to_owned(), http, visitor })
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let what = format!("{method} {path}");
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.with_context(|| what.clone())?;
        let status = answer.status();
        let text = answer.text().await.with_context(|| what.clone())?;
        ensure!(status.is_success(), "{what}: {status}: {text}");
        serde_json::from_str(&text).with_context(|| format!("{what}: {text}"))
    }

    /// Makes a workspace and answers when it runs.
    ///
    /// # Errors
    /// No answer, or another one.
    pub async fn create(&self, memory_mib: u32) -> Result<Workspace> {
        let path = format!("{WORKSPACES}?wait={WAIT_SECONDS}");
        let body = json!({"memory_mib": memory_mib, "vcpu_count": 1});
        Workspace::read(&self.ask(Method::POST, &path, Some(body)).await?)
    }

    /// As [`Api::create`], and it is woken by use.
    ///
    /// # Errors
    /// No answer, or another one.
    pub async fn create_waking(&self, memory_mib: u32) -> Result<Workspace> {
        let path = format!("{WORKSPACES}?wait={WAIT_SECONDS}");
        let body = json!({"memory_mib": memory_mib, "vcpu_count": 1, "auto_resume": true});
        Workspace::read(&self.ask(Method::POST, &path, Some(body)).await?)
    }

    /// Runs a script, which has to succeed.
    ///
    /// # Errors
    /// It did not.
    pub async fn run(&self, id: &str, script: &str) -> Result<()> {
        let path = format!("{WORKSPACES}/{id}/exec");
        let body = json!({"argv": ["/bin/sh", "-c", script]});
        let answer = self.ask(Method::POST, &path, Some(body)).await?;
        ensure!(answer["exit_code"] == 0, "{answer}");
        Ok(())
    }

    /// The command every sample ends with by root's shell, as SSH runs it.
    ///
    /// # Errors
    /// It did not run, or said something else.
    pub async fn exec_by_shell(&self, id: &str) -> Result<()> {
        let path = format!("{WORKSPACES}/{id}/exec");
        let body = json!({"argv": ["/bin/bash", "-c", "echo ready"]});
        let answer = self.ask(Method::POST, &path, Some(body)).await?;
        ensure!(answer["exit_code"] == 0 && answer["stdout"] == SAYS, "{answer}");
        Ok(())
    }

    /// Adds an SSH key to the account.
    ///
    /// # Errors
    /// It is not accepted.
    pub async fn add_ssh_key(&self, public_key: &str) -> Result<()> {
        let body = json!({"public_key": public_key});
        self.ask(Method::POST, "/skerry/v1/ssh-keys", Some(body)).await.map(drop)
    }

    /// Publishes a port for everybody.
    ///
    /// # Errors
    /// It cannot be.
    pub async fn publish(&self, id: &str, port: u16, slug: &str) -> Result<()> {
        let path = format!("{WORKSPACES}/{id}/published-ports");
        let body = json!({"port": port, "slug": slug, "visibility": "public"});
        self.ask(Method::POST, &path, Some(body)).await.map(drop)
    }

    /// What a published port answers. Names below `localhost` are this machine (RFC 6761): the server is
    /// asked under its address with the host's name in the header.
    ///
    /// # Errors
    /// No answer, or one that is no success.
    pub async fn visit(&self, slug: &str, path: &str) -> Result<Vec<u8>> {
        let visit = self.visitor.get(format!("{}{path}", self.url));
        let answer = visit.header(HOST, format!("{slug}.localhost")).send().await?;
        let status = answer.status();
        let body = answer.bytes().await?;
        ensure!(status.is_success(), "{slug}: {status}: {}", String::from_utf8_lossy(&body));
        Ok(body.into())
    }

    /// Runs the command every sample ends with, and reads what it says.
    ///
    /// # Errors
    /// It did not run, or said something else.
    pub async fn exec(&self, id: &str) -> Result<()> {
        let path = format!("{WORKSPACES}/{id}/exec");
        let answer = self.ask(Method::POST, &path, Some(json!({"argv": ARGV}))).await?;
        ensure!(answer["exit_code"] == 0 && answer["stdout"] == SAYS, "{ARGV:?}: {answer}");
        Ok(())
    }

    /// Asks for a state by its verb (`pause`, `resume`, `suspend`) and waits for it.
    ///
    /// # Errors
    /// No answer, or another state.
    pub async fn change(&self, id: &str, verb: &str, state: &str) -> Result<Workspace> {
        let path = format!("{WORKSPACES}/{id}/{verb}?wait={WAIT_SECONDS}");
        let reached = Workspace::read(&self.ask(Method::POST, &path, None).await?)?;
        ensure!(reached.state == state, "{verb}: the workspace is {}", reached.state);
        Ok(reached)
    }

    /// Deletes a workspace and waits until nothing of it is left.
    ///
    /// # Errors
    /// No answer, or another one.
    pub async fn delete(&self, id: &str) -> Result<()> {
        let path = format!("{WORKSPACES}/{id}?wait={WAIT_SECONDS}");
        self.ask(Method::DELETE, &path, None).await.map(drop)
    }

    /// Takes a snapshot of disk and memory; returns its identity and for how long the guest stood
    /// still, in milliseconds.
    ///
    /// # Errors
    /// No answer, or one that says that it failed.
    pub async fn snapshot(&self, id: &str) -> Result<(String, f64)> {
        let path = format!("{WORKSPACES}/{id}/snapshots?wait={WAIT_SECONDS}");
        let body = json!({"contents": "disk_and_memory"});
        let taken = self.ask(Method::POST, &path, Some(body)).await?;
        ensure!(taken["state"] == "ready", "the snapshot: {taken}");
        let stood_still = taken["blackout_ms"].as_f64().context("no blackout_ms")?;
        Ok((taken["id"].as_str().context("no snapshot")?.to_owned(), stood_still))
    }

    /// Deletes a snapshot and waits until it is gone.
    ///
    /// # Errors
    /// No answer, or another one.
    pub async fn delete_snapshot(&self, id: &str) -> Result<()> {
        let path = format!("{SNAPSHOTS}/{id}?wait={WAIT_SECONDS}");
        self.ask(Method::DELETE, &path, None).await.map(drop)
    }

    /// Forks a workspace and answers when all forks have started.
    ///
    /// # Errors
    /// No answer, or another number of forks.
    pub async fn fork(&self, id: &str, count: usize) -> Result<Vec<Workspace>> {
        let path = format!("{WORKSPACES}/{id}/fork?wait={WAIT_SECONDS}");
        let forked = self.ask(Method::POST, &path, Some(json!({"count": count}))).await?;
        let forks = forked["workspaces"].as_array().context("no forks")?;
        ensure!(forks.len() == count, "{} forks instead of {count}", forks.len());
        forks.iter().map(Workspace::read).collect()
    }

    /// Every workspace.
    ///
    /// # Errors
    /// No answer.
    pub async fn workspaces(&self) -> Result<Vec<Workspace>> {
        let path = format!("{WORKSPACES}?limit={PAGE}");
        let listed = self.ask(Method::GET, &path, None).await?;
        listed["workspaces"].as_array().context("no list")?.iter().map(Workspace::read).collect()
    }

    /// Deletes every workspace and every snapshot, and waits until they are gone.
    ///
    /// # Errors
    /// Something cannot be deleted.
    pub async fn delete_everything(&self) -> Result<()> {
        let all = self.workspaces().await?;
        try_join_all(all.iter().map(|workspace| self.delete(&workspace.id))).await?;
        let deadline = Instant::now() + SETTLED_WITHIN;
        loop {
            let listed = self.ask(Method::GET, SNAPSHOTS, None).await?;
            let snapshots = listed["snapshots"].as_array().context("no list")?;
            if snapshots.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "snapshots that do not go away: {listed}");
            for snapshot in snapshots {
                // What a fork has left goes away by itself, perhaps just now.
                if snapshot["purpose"] != "fork" {
                    self.delete_snapshot(snapshot["id"].as_str().context("no snapshot")?).await?;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// How many templates are ready.
    async fn templates(&self) -> Result<u64> {
        first_number(&self.check("templates").await?)
    }

    async fn check(&self, name: &str) -> Result<String> {
        let doctor = self.ask(Method::GET, "/skerry/v1/doctor", None).await?;
        let mut checks = doctor["checks"].as_array().into_iter().flatten();
        let found = checks.find(|check| check["name"] == name);
        let found = found.and_then(|check| check["found"].as_str());
        Ok(found.with_context(|| format!("the doctor says nothing of {name}"))?.to_owned())
    }

    /// Sees to it that workspaces of this size start from a template: the first one boots, and a
    /// template is made after it.
    ///
    /// # Errors
    /// None is made in time.
    pub async fn ensure_template(&self, memory_mib: u32) -> Result<()> {
        let before = self.templates().await?;
        let first = self.create(memory_mib).await?;
        self.delete(&first.id).await?;
        if first.came_by("boot").is_err() {
            return Ok(());
        }
        let deadline = Instant::now() + SETTLED_WITHIN;
        while self.templates().await? == before {
            ensure!(Instant::now() < deadline, "no template of {memory_mib} MiB is made");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Waits until VMs wait in the pool and none is being made.
    ///
    /// # Errors
    /// None waits in time.
    pub async fn pool_is_full(&self) -> Result<()> {
        let deadline = Instant::now() + SETTLED_WITHIN;
        let (mut last, mut unchanged) = (String::new(), 0);
        loop {
            let found = self.check("pool").await?;
            unchanged = if found == last { unchanged + 1 } else { 0 };
            if unchanged >= LOOKS_WITHOUT_CHANGE && first_number(&found)? > 0 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the pool is not filled: {found}");
            last = found;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Asks until the server answers.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn until_it_answers(&self) -> Result<()> {
        let deadline = Instant::now() + SETTLED_WITHIN;
        while let Err(error) = self.workspaces().await {
            ensure!(Instant::now() < deadline, "the server does not answer: {error:#}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Asks until the server answers and says that so many workspaces are there.
    ///
    /// # Errors
    /// It does not within the time, or answers something else.
    pub async fn answers(&self, workspaces: usize, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            match self.workspaces().await {
                Ok(found) if found.len() == workspaces => return Ok(()),
                Ok(found) => bail!("{} workspaces instead of {workspaces}", found.len()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context("the server does not answer"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// Asks the agent of a workspace what its root directory holds, until it says so. That starts no
    /// program in the guest.
    ///
    /// # Errors
    /// It does not within the time.
    pub async fn guest_answers(&self, id: &str, within: Duration) -> Result<()> {
        let path = format!("{WORKSPACES}/{id}/files?path=/");
        let deadline = Instant::now() + within;
        loop {
            match self.ask(Method::GET, &path, None).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }
}

/// The number a sentence of the doctor begins with.
fn first_number(text: &str) -> Result<u64> {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("no number: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_doctor_counts_is_what_its_sentence_begins_with() {
        assert_eq!(first_number("3 VMs wait, 1 parked, at most 8").unwrap(), 3);
        assert_eq!(first_number("0, 0 of 4096 MiB").unwrap(), 0);
        assert!(first_number("switched off").is_err());
    }

    #[test]
    fn a_workspace_that_came_to_run_in_another_way_is_no_sample() {
        let answer = json!({"id": "1", "state": "running", "start_path": "template"});
        let workspace = Workspace::read(&answer).unwrap();
        assert!(workspace.came_by("template").is_ok());
        let error = workspace.came_by("pool").unwrap_err().to_string();
        assert_eq!(error, "it was to start by pool and started by template");
        let stopped = Workspace { state: "failed".to_owned(), ..workspace };
        assert!(stopped.came_by("template").is_err());
    }
}
