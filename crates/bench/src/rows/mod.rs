//! The rows of the table: each measures one thing on both sides.

mod blackout;
mod control;
mod exec;
mod fork;
mod kill;
mod memory;
mod network;
mod preview;
mod program;
mod rest;
mod sockets;
mod ssh;
mod start;
mod wake;

use anyhow::Result;
use clap::ValueEnum;

use crate::{bench::Bench, goal::Row, platform::Mode};

/// A default workspace's memory.
const MEMORY_MIB: u32 = 512;

/// What can be measured, in the table's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Subject {
    /// Create to first exec, from the pool.
    Pool,
    /// Create to first exec, by restore from a template.
    Restore,
    /// Create to first exec, by a boot.
    Cold,
    /// Resume of a paused workspace.
    Resume,
    /// Resume of a suspended workspace.
    Suspend,
    /// How long a guest stands still for a snapshot.
    Blackout,
    /// Clones per second.
    Fork,
    /// Memory per idle VM.
    Memory,
    /// Exec round trip.
    Exec,
    /// Exec by SSH against the API's.
    Ssh,
    /// Visits of a port, and bytes from it.
    Preview,
    /// A visit that wakes.
    Wake,
    /// Memory of idle WebSockets.
    Sockets,
    /// A VM's place on the network.
    Network,
    /// The control plane alone.
    Control,
    /// The server is killed.
    Kill,
}

/// How much of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Samples of a start from the pool.
    pub pool: usize,
    /// Of a restore.
    pub restore: usize,
    /// Of a boot.
    pub cold: usize,
    /// Of a resume from memory.
    pub resume: usize,
    /// Of a resume from disk.
    pub suspend: usize,
    /// Of a snapshot, for each size.
    pub blackout: usize,
    /// Times a workspace is forked.
    pub fork: usize,
    /// Forks each time.
    pub forks: usize,
    /// Times memory is weighed.
    pub memory: usize,
    /// VMs each time.
    pub idle_vms: usize,
    /// Commands.
    pub exec: usize,
    /// Commands by SSH.
    pub ssh: usize,
    /// Visits of a port.
    pub preview: usize,
    /// Long answers of one.
    pub streams: usize,
    /// Of so many MiB each.
    pub stream_mib: usize,
    /// Visits that wake.
    pub wake: usize,
    /// WebSockets that say nothing.
    pub sockets: usize,
    /// Places on a network.
    pub network: usize,
    /// Times the server is killed.
    pub kill: usize,
    /// VMs it has then.
    pub vms: usize,
    /// Seconds for each case of the control plane.
    pub control_seconds: u32,
}

impl Counts {
    /// For figures: ten minutes on two cores under emulation.
    pub const FULL: Self = Self {
        pool: 25,
        restore: 25,
        cold: 7,
        resume: 40,
        suspend: 10,
        blackout: 6,
        fork: 3,
        forks: 8,
        memory: 2,
        idle_vms: 6,
        exec: 200,
        ssh: 100,
        preview: 200,
        streams: 10,
        stream_mib: 16,
        wake: 10,
        sockets: 10_000,
        network: 50,
        kill: 3,
        vms: 10,
        control_seconds: 3,
    };
    /// To see that it works.
    pub const QUICK: Self = Self {
        pool: 2,
        restore: 2,
        cold: 1,
        resume: 2,
        suspend: 2,
        blackout: 1,
        fork: 1,
        forks: 2,
        memory: 1,
        idle_vms: 2,
        exec: 5,
        ssh: 3,
        preview: 5,
        streams: 1,
        stream_mib: 1,
        wake: 1,
        sockets: 200,
        network: 2,
        kill: 1,
        vms: 2,
        control_seconds: 1,
    };

    /// With so many samples of everything.
    #[must_use]
    pub fn with_samples(self, samples: usize) -> Self {
        Self {
            pool: samples,
            restore: samples,
            cold: samples,
            resume: samples,
            suspend: samples,
            blackout: samples,
            fork: samples,
            memory: samples,
            exec: samples,
            ssh: samples,
            preview: samples,
            streams: samples,
            wake: samples,
            network: samples,
            kill: samples,
            ..self
        }
    }
}

impl Subject {
    /// How the server is started for it; `None` without a server. Rows of one mode are measured one
    /// after the other.
    pub fn mode(self) -> Option<Mode> {
        match self {
            Self::Cold => Some(Mode::Boot),
            Self::Restore
            | Self::Resume
            | Self::Suspend
            | Self::Blackout
            | Self::Fork
            | Self::Memory
            | Self::Exec
            | Self::Ssh
            | Self::Preview
            | Self::Wake => Some(Mode::Restore),
            Self::Pool | Self::Kill => Some(Mode::Default),
            Self::Sockets | Self::Network | Self::Control => None,
        }
    }

    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Measures it.
    ///
    /// # Errors
    /// It could not be measured at all.
    pub async fn measure(self, bench: &mut Bench, counts: &Counts) -> Result<Vec<Row>> {
        match self {
            Self::Pool => start::from_pool(bench, counts.pool).await,
            Self::Restore => start::by_restore(bench, counts.restore).await,
            Self::Cold => start::by_boot(bench, counts.cold).await,
            Self::Resume => rest::from_memory(bench, counts.resume).await,
            Self::Suspend => rest::from_disk(bench, counts.suspend).await,
            Self::Blackout => blackout::measure(bench, counts.blackout).await,
            Self::Fork => fork::measure(bench, counts.fork, counts.forks).await,
            Self::Memory => memory::measure(bench, counts.memory, counts.idle_vms).await,
            Self::Exec => exec::measure(bench, counts.exec).await,
            Self::Ssh => ssh::measure(bench, counts.ssh).await,
            Self::Preview => {
                let Counts { preview, streams, stream_mib, .. } = *counts;
                preview::measure(bench, preview, streams, stream_mib).await
            }
            Self::Wake => wake::measure(bench, counts.wake).await,
            Self::Sockets => sockets::measure(bench, counts.sockets).await,
            Self::Network => network::measure(bench, counts.network).await,
            Self::Control => control::measure(bench, counts.control_seconds).await,
            Self::Kill => kill::measure(bench, counts.kill, counts.vms).await,
        }
    }
}
