//! A run: its directories, the server and the floor, and clearing all of it away.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use skerry_node::images::KernelChoice;
use tempfile::TempDir;

use crate::{
    census::Places,
    floor::Floor,
    platform::{Api, Mode, Server, ServerPlan},
    report::Host,
};

/// Directories in memory are made here, as the server makes its own.
const TMPFS: &str = "/dev/shm";

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Ingredients {
    /// The server's binary.
    pub binary: PathBuf,
    /// The images.
    pub image_dir: PathBuf,
    /// Where the run's directory is made.
    pub directory: PathBuf,
    /// The guests' kernel.
    pub kernel: Kernel,
}

/// Which kernel guests boot with, on both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Kernel {
    /// The small one if it was built, else the distribution's.
    #[default]
    Auto,
    /// The distribution's.
    Distribution,
    /// The small one.
    Small,
}

impl Kernel {
    fn choice(self) -> KernelChoice {
        match self {
            Self::Auto => KernelChoice::Auto,
            Self::Distribution => KernelChoice::Distribution,
            Self::Small => KernelChoice::Small,
        }
    }

    fn argument(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Distribution => "distribution",
            Self::Small => "small",
        }
    }
}

/// A run under way.
pub struct Bench {
    ingredients: Ingredients,
    places: Places,
    plan: ServerPlan,
    server: Option<Server>,
    floor: Option<Floor>,
    accelerator: String,
    version: String,
    load_before: f64,
    // The last to be dropped.
    dir: TempDir,
    _memory_dir: TempDir,
}

impl Bench {
    /// Makes the directories.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn new(ingredients: Ingredients) -> Result<Self> {
        let within = |parent: &Path| {
            tempfile::Builder::new()
                .prefix("skerry-bench-")
                .tempdir_in(parent)
                .with_context(|| format!("making a directory in {}", parent.display()))
        };
        let dir = within(&ingredients.directory)?;
        let memory_dir = within(Path::new(TMPFS))?;
        let places = Places {
            data: dir.path().join("data"),
            floor: dir.path().join("floor"),
            memory: memory_dir.path().join("platform"),
            floor_memory: memory_dir.path().join("floor"),
        };
        let plan = ServerPlan {
            binary: ingredients.binary.clone(),
            image_dir: ingredients.image_dir.clone(),
            data_dir: places.data.clone(),
            memory_dir: places.memory.clone(),
            log: dir.path().join("server.log"),
            kernel: ingredients.kernel.argument(),
        };
        Ok(Self {
            ingredients,
            places,
            plan,
            server: None,
            floor: None,
            accelerator: String::new(),
            version: String::new(),
            load_before: load_average(),
            dir,
            _memory_dir: memory_dir,
        })
    }

    /// The server in this mode; one in another mode, or one that has died, is replaced.
    ///
    /// # Errors
    /// It does not start, or the other does not end.
    pub async fn server(&mut self, mode: Mode) -> Result<&mut Server> {
        if let Some(mut server) = self.server.take()
            && server.is_running()
        {
            if server.mode() == mode {
                return Ok(self.server.insert(server));
            }
            server.api.delete_everything().await?;
            server.stop().await?;
        }
        let server = Server::start(&self.plan, mode).await?;
        (self.accelerator, self.version) = (server.accelerator.clone(), server.version.clone());
        Ok(self.server.insert(server))
    }

    /// The API of the server in this mode, and the floor beside it.
    ///
    /// # Errors
    /// One of them does not start.
    pub async fn both(&mut self, mode: Mode) -> Result<(Api, &mut Floor)> {
        let server = self.server(mode).await?;
        let (api, accelerator) = (server.api.clone(), server.accelerator.clone());
        if self.floor.is_none() {
            let dirs = (self.places.floor.clone(), self.places.floor_memory.clone());
            let Ingredients { image_dir, kernel, .. } = &self.ingredients;
            let opened = Floor::open(image_dir, kernel.choice(), &accelerator, dirs).await;
            self.floor = Some(opened.context("opening the floor")?);
        }
        Ok((api, self.floor.as_mut().context("no floor")?))
    }

    /// The directories.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// A directory for what a row needs besides; it goes with the run.
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }

    /// Removes what a row may have left.
    ///
    /// # Errors
    /// It cannot be removed.
    pub async fn clear(&mut self) -> Result<()> {
        match &mut self.server {
            Some(server) => server.api.delete_everything().await,
            None => Ok(()),
        }
    }

    /// The host as it was found.
    pub fn host(&self) -> Host {
        let floor = self.floor.as_ref();
        let unknown = || "-".to_owned();
        Host {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            accelerator: Some(self.accelerator.clone())
                .filter(|found| !found.is_empty())
                .unwrap_or_else(unknown),
            hypervisor: floor.map_or_else(unknown, Floor::hypervisor),
            guest_kernel: floor.map_or_else(unknown, Floor::guest_kernel),
            load_before: self.load_before,
        }
    }

    /// The version of the server that was measured.
    pub fn version(&self) -> String {
        self.version.clone()
    }

    /// Ends everything, and says what did not go by itself; that is then swept.
    pub async fn close(&mut self) -> Vec<String> {
        let mut leaks = Vec::new();
        if let Err(error) = self.end_server().await {
            leaks.push(format!("the server could not be ended: {error:#}"));
        }
        if let Some(floor) = self.floor.take() {
            floor.close().await;
        }
        leaks.extend(self.places.leaks());
        self.places.sweep();
        leaks
    }

    /// A server that has died, or was being replaced when the run was interrupted, is started again:
    /// what it had is its own to clear away.
    async fn end_server(&mut self) -> Result<()> {
        let server = match self.server.take() {
            Some(mut server) => match server.is_running() {
                true => server,
                false => Server::start(&self.plan, server.mode()).await?,
            },
            None if self.places.leaks().is_empty() => return Ok(()),
            None => Server::start(&self.plan, Mode::Restore).await?,
        };
        server.api.until_it_answers().await?;
        server.api.delete_everything().await?;
        server.stop().await
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // A run that was given up in the middle: after `close` there is nothing to do any more.
        self.server = None;
        self.places.sweep();
    }
}

/// How many processes wanted to run in the last minute; 0 when the host does not say.
fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}
