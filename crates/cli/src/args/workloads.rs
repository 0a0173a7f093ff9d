//! Workloads.

use clap::{Args, Subcommand, ValueEnum};

use super::EnvArg;

/// `skerry workload`.
#[derive(Debug, Subcommand)]
pub enum WorkloadCommand {
    /// Have the guest run a program, and start it again as its policy says
    Run(WorkloadRunArgs),
    /// List the workloads of a workspace
    #[command(visible_alias = "list")]
    Ls {
        /// The workspace: name, slug, or id in any API's form
        #[arg(value_name = "NAME")]
        workspace: String,
    },
    /// Show one workload
    Get(WorkloadPlace),
    /// Start a workload; one that runs goes on
    Start(WorkloadPlace),
    /// Stop a workload; it stays stopped when the workspace is started again
    Stop(WorkloadPlace),
    /// Run a workload anew
    Restart(WorkloadPlace),
    /// Print what a workload has said
    Logs(WorkloadLogsArgs),
    /// Remove a workload: its process ends, its output goes
    Rm(WorkloadPlace),
}

/// Which workload.
#[derive(Debug, Args)]
pub struct WorkloadPlace {
    /// The workspace: name, slug, or id in any API's form
    #[arg(value_name = "NAME")]
    pub workspace: String,
    /// The workload: name or id
    #[arg(value_name = "WORKLOAD")]
    pub workload: String,
}

/// After which ends a workload is started again.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum WorkloadRestart {
    /// After none
    Never,
    /// After every end but code 0
    OnFailure,
    /// After each
    Always,
}

/// What a workload's end means for the workspace.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum WorkloadOnExit {
    /// Nothing
    Nothing,
    /// It is paused
    Pause,
    /// It is stopped
    Stop,
    /// Its VM ends as if by itself; the workspace's own rules decide what follows
    Exit,
}

/// `skerry workload run`.
#[derive(Debug, Args)]
pub struct WorkloadRunArgs {
    /// The workspace: name, slug, or id in any API's form
    #[arg(value_name = "NAME")]
    pub workspace: String,
    /// Its name; made from the program's if left out
    #[arg(long = "as", value_name = "WORKLOAD")]
    pub name: Option<String>,
    /// When it is started again
    #[arg(long, value_enum, default_value = "never")]
    pub restart: WorkloadRestart,
    /// How many restarts in a row at most; 0 is without limit
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub max_restarts: u32,
    /// What its end means for the workspace
    #[arg(long, value_enum, default_value = "nothing")]
    pub on_exit: WorkloadOnExit,
    /// Added to the environment; without a value, this client's own
    #[arg(long, short = 'e', value_name = "KEY[=VALUE]")]
    pub env: Vec<EnvArg>,
    /// As whom; the image's user, or root, if left out
    #[arg(long, short = 'u')]
    pub user: Option<String>,
    /// Where; an absolute path
    #[arg(long, short = 'w', value_name = "DIRECTORY")]
    pub workdir: Option<String>,
    /// Program and arguments
    #[arg(value_name = "COMMAND", required = true, last = true)]
    pub command: Vec<String>,
}

/// `skerry workload logs`.
#[derive(Debug, Args)]
pub struct WorkloadLogsArgs {
    /// Which workload
    #[command(flatten)]
    pub place: WorkloadPlace,
    /// At most so many lines
    #[arg(long, short = 'n', value_name = "LINES", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub tail: u32,
    /// Go on printing what it says, until interrupted or the workspace stops
    #[arg(long, short = 'f')]
    pub follow: bool,
}
