//! The surface: every command, argument and flag.

mod domains;
mod net;
mod ports;
mod saved;
mod ssh;
mod values;
mod volume_files;
mod volumes;
mod workloads;

use std::{fmt, path::PathBuf, str::FromStr};

use clap::{Args, Subcommand, ValueEnum};

pub use domains::{AddDomainArgs, DomainArg, DomainCommand};
pub use net::{DestinationArgs, Internet, LinkArgs, NetCommand, NetProxyArgs, NetSetArgs};
pub use ports::{PortCommand, PublishArgs, Visibility};
pub use saved::{
    ForkArgs, LifeArgs, LifecycleArgs, RenewArgs, RestoreArgs, SnapshotCommand, SnapshotCreateArgs,
};
pub use ssh::{SshAccessCommand, SshArgs, SshKeyCommand};
pub use values::{Bytes, EnvArg, Mebibytes, Place, Seconds};
pub use volume_files::{VolumeFileCommand, VolumePlace};
pub use volumes::{CheckpointCommand, MountArg, VolumeCommand, VolumeCreateArgs};
pub use workloads::{
    WorkloadCommand, WorkloadLogsArgs, WorkloadOnExit, WorkloadPlace, WorkloadRestart,
    WorkloadRunArgs,
};

/// Flags that every command takes.
#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// Address of the server [default: the login file's, else http://127.0.0.1:7070]
    #[arg(long, global = true, env = "SKERRY_URL", hide_env_values = true)]
    #[arg(value_name = "URL", help_heading = "Connection")]
    pub url: Option<String>,

    /// API key [default: the login file's]
    #[arg(long, global = true, env = "SKERRY_KEY", hide_env_values = true)]
    #[arg(value_name = "KEY", help_heading = "Connection")]
    pub key: Option<Key>,

    /// Print one JSON document on standard output, and errors as JSON on standard error
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
}

/// An API key, which is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Key {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.trim().to_owned()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// What the client can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a workspace and start it
    Create(Box<CreateArgs>),
    /// List workspaces
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show one workspace
    Get(WorkspaceArg),
    /// Run a command in a workspace; its streams and exit code come through
    Exec(ExecArgs),
    /// Open a terminal in a workspace
    Shell(ShellArgs),
    /// Copy files and directories to or from a workspace
    Cp(CpArgs),
    /// Start workspaces
    Start(PowerArgs),
    /// Stop workspaces; their disks are kept
    Stop(PowerArgs),
    /// Stop workspaces and start them again
    Restart(PowerArgs),
    /// Stop workspaces' CPUs; their memory stays where it is
    Pause(PowerArgs),
    /// Write workspaces' memory to disk and end their VMs
    Suspend(PowerArgs),
    /// Let paused or suspended workspaces go on where they were
    Resume(PowerArgs),
    /// Take, list, rename and delete snapshots
    Snapshot {
        /// What to do
        #[command(subcommand)]
        command: SnapshotCommand,
    },
    /// Make volumes, give them to workspaces and take them away
    Volume {
        /// What to do
        #[command(subcommand)]
        command: VolumeCommand,
    },
    /// Have a workspace's guest run programs and start them again
    Workload {
        /// What to do
        #[command(subcommand)]
        command: WorkloadCommand,
    },
    /// Replace a workspace's disk and memory by a snapshot's
    Restore(RestoreArgs),
    /// Make workspaces that go on where this one is
    Fork(ForkArgs),
    /// Change the rules of a workspace's life: time to live, idling, restarts
    Lifecycle(Box<LifecycleArgs>),
    /// Renew a workspace's time to live
    Renew(RenewArgs),
    /// Delete workspaces with their disks
    Rm(RmArgs),
    /// Show the end of a workspace's log
    Logs(LogsArgs),
    /// Show what a workspace uses
    Stats(WorkspaceArg),
    /// List the TCP ports a workspace listens on
    Ports(WorkspaceArg),
    /// Publish ports of workspaces under addresses of their own, list and revoke them
    Port {
        /// What to do
        #[command(subcommand)]
        command: PortCommand,
    },
    /// Lead names of your own to published ports
    Domain {
        /// What to do
        #[command(subcommand)]
        command: DomainCommand,
    },
    /// Show and change what a workspace reaches and who reaches it
    Net {
        /// What to do
        #[command(subcommand)]
        command: NetCommand,
    },
    /// Make, list and revoke API keys
    Key {
        /// What to do
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Open a shell or run a command with the system's `ssh`
    Ssh(SshArgs),
    /// Print what ~/.ssh/config needs to reach the workspaces as NAME.skerry
    SshConfig,
    /// Open a workspace to SSH, close it, set its passwords
    SshAccess {
        /// What to do
        #[command(subcommand)]
        command: SshAccessCommand,
    },
    /// Add, list and remove SSH keys
    SshKey {
        /// What to do
        #[command(subcommand)]
        command: SshKeyCommand,
    },
    /// List and build images
    Image {
        /// What to do
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Build the small kernel guests may boot with
    Kernel {
        /// What to do
        #[command(subcommand)]
        command: KernelCommand,
    },
    /// Show the account's limits and what is used of them
    Quota,
    /// Say what the host can do, and what to install
    Doctor(DoctorArgs),
    /// Check an address and a key, and remember them
    Login(LoginArgs),
    /// Forget what login remembered
    Logout,
}

/// Names one workspace.
#[derive(Debug, Args)]
pub struct WorkspaceArg {
    /// Name, slug, or id in any API's form
    #[arg(value_name = "NAME")]
    pub workspace: String,
}

/// How long to wait.
#[derive(Clone, Copy, Debug, Args)]
pub struct WaitArgs {
    /// Wait at most this long for it to be done
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=600))]
    pub wait: u32,

    /// Do not wait: the same as --wait 0
    #[arg(long, conflicts_with = "wait")]
    pub no_wait: bool,
}

impl WaitArgs {
    /// Seconds; 0 means not at all.
    #[must_use]
    pub const fn seconds(self) -> u32 {
        if self.no_wait { 0 } else { self.wait }
    }
}

/// `skerry create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// A name for the workspace
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Image to start from [default: the server's]
    #[arg(long)]
    pub image: Option<String>,

    /// Snapshot to start from, by name or id, instead of an image
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "image")]
    pub from_snapshot: Option<String>,

    /// Number of virtual CPUs [default: the plan's]
    #[arg(long, value_name = "COUNT")]
    pub vcpu: Option<u64>,

    /// Memory: 2048 or 2048M, 2G [default: the plan's]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Mebibytes>,

    /// Writable disk space: 10240 or 10240M, 10G [default: the plan's]
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<Mebibytes>,

    /// Environment of every process; without a value, this client's own
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<EnvArg>,

    /// A volume and where to mount it; may be given several times
    #[arg(short, long = "volume", value_name = "VOLUME[@CHECKPOINT]:PATH[:ro]")]
    pub volumes: Vec<MountArg>,

    /// A slug, for addresses [default: made from the name]
    #[arg(long)]
    pub slug: Option<String>,

    /// A word to group workspaces by
    #[arg(long)]
    pub namespace: Option<String>,

    /// Make it, but do not start it
    #[arg(long, conflicts_with_all = ["wait", "no_wait"])]
    pub no_start: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: WaitArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub life: LifeArgs,
}

/// `skerry ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Only those in this state; may be given several times
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    pub state: Vec<String>,

    /// Only those of this namespace
    #[arg(long)]
    pub namespace: Option<String>,

    /// Print names only, one a line
    #[arg(short, long)]
    pub quiet: bool,
}

/// What `exec` and `shell` share.
#[derive(Debug, Args)]
pub struct ProcessArgs {
    /// Name, slug, or id in any API's form
    #[arg(value_name = "NAME")]
    pub workspace: String,

    /// Login name in the workspace [default: the image's user, else root]
    #[arg(short, long)]
    pub user: Option<String>,

    /// Working directory [default: the image's, else the user's home]
    #[arg(short, long, value_name = "PATH")]
    pub workdir: Option<String>,

    /// Added to the environment; without a value, this client's own
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<EnvArg>,
}

/// `skerry exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub process: ProcessArgs,

    /// Kill the command after this long; the exit code is then 124
    #[arg(long, value_name = "SECONDS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub timeout: Option<u32>,

    /// Give the command a terminal
    #[arg(short, long, conflicts_with = "json")]
    pub tty: bool,

    /// Give the command no input
    #[arg(short, long, conflicts_with = "tty")]
    pub no_stdin: bool,

    /// Program and arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `skerry shell`.
#[derive(Debug, Args)]
pub struct ShellArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub process: ProcessArgs,

    /// Run this in the terminal instead of a login shell
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `skerry cp`.
#[derive(Debug, Args)]
pub struct CpArgs {
    /// A local path or NAME:/path; - is standard input
    #[arg(value_name = "SOURCE")]
    pub source: Place,

    /// A local path or NAME:/path; - is standard output
    #[arg(value_name = "DESTINATION")]
    pub destination: Place,

    /// Login name of the owner in the workspace
    #[arg(short, long, default_value = "root")]
    pub user: String,
}

/// `skerry start`, `stop`, `restart`, `pause`, `suspend`, `resume`.
#[derive(Debug, Args)]
pub struct PowerArgs {
    /// Names, slugs, or ids in any API's form
    #[arg(value_name = "NAME", required = true)]
    pub workspaces: Vec<String>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: WaitArgs,
}

/// `skerry rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Names, slugs, or ids in any API's form
    #[arg(value_name = "NAME", required = true)]
    pub workspaces: Vec<String>,

    /// Delete even what runs, and take what is not there for deleted
    #[arg(short, long)]
    pub force: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: WaitArgs,
}

/// `skerry logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Name, slug, or id in any API's form
    #[arg(value_name = "NAME")]
    pub workspace: String,

    /// Which log
    #[arg(long, value_enum, default_value_t = LogSource::Console)]
    pub source: LogSource,

    /// How much of its end: bytes, or with K or M
    #[arg(long, value_name = "SIZE", default_value = "64K")]
    pub tail: Bytes,
}

/// Which log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogSource {
    /// The guest's serial console
    Console,
    /// Commands run without a terminal, with their output
    Commands,
}

/// `skerry key`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key; its secret is shown this once
    Create {
        /// A name to tell keys apart
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// List keys
    #[command(visible_alias = "list")]
    Ls,
    /// Revoke a key
    Rm {
        /// The key's id
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// `skerry image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List the images the server has
    #[command(visible_alias = "list")]
    Ls,
    /// Pull an image from a registry, for workspaces of every account
    ///
    /// Shows how far it is and returns when workspaces can be made of it. What the reference means is
    /// looked up anew also if an image of this name is there. Interrupting this command does not end the
    /// pull.
    Pull {
        /// The image in its registry, such as docker.io/library/debian:12
        #[arg(value_name = "REFERENCE")]
        reference: String,
    },
    /// Build images on this machine, with the kernel and the agent they boot with
    ///
    /// Builds what is missing or whose recipe changed; a server that runs uses new images at once,
    /// for new workspaces. Needs Debian's mmdebstrap and e2fsprogs (`skerry doctor --local` says what
    /// is missing), and npm for node-20. As root or, with a range of sub-uids, as an ordinary user.
    Build(ImageBuildArgs),
}

/// `skerry image build`.
#[derive(Debug, Args)]
pub struct ImageBuildArgs {
    /// Which images [default: every recipe]
    #[arg(value_name = "IMAGE")]
    pub names: Vec<String>,

    /// Build the named images although their recipes have not changed: takes up the distribution's
    /// newest packages
    #[arg(long)]
    pub always: bool,

    /// Where the recipes are, a directory for each [default: ./images]
    #[arg(long, value_name = "DIRECTORY")]
    pub recipes: Option<PathBuf>,

    /// Where built images are kept [default: that of the server: <data-dir>/images]
    #[arg(long, value_name = "DIRECTORY", env = "SKERRY_IMAGE_DIR", hide_env_values = true)]
    pub image_dir: Option<PathBuf>,
}

/// `skerry kernel`.
#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    /// Build the small kernel on this machine, from the distribution's kernel source
    ///
    /// It boots in less than half the time and takes less memory than the distribution's kernel, which
    /// servers use as long as it is not there (see `skerry serve --kernel`). Takes about ten minutes
    /// on two CPUs and 3 GiB of disk while it works. A server that runs uses it at once, for workspaces
    /// that start. Says which Debian packages it needs.
    Build(KernelBuildArgs),
}

/// `skerry kernel build`.
#[derive(Debug, Args)]
pub struct KernelBuildArgs {
    /// How many compilers run at a time [default: one per CPU]
    #[arg(long, short, value_name = "N")]
    pub jobs: Option<std::num::NonZero<u32>>,

    /// Where built images are kept [default: that of the server: <data-dir>/images]
    #[arg(long, value_name = "DIRECTORY", env = "SKERRY_IMAGE_DIR", hide_env_values = true)]
    pub image_dir: Option<PathBuf>,
}

/// `skerry doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Look at this machine, even if a server answers
    #[arg(long)]
    pub local: bool,
}

/// `skerry login`.
#[derive(Debug, Args)]
pub struct LoginArgs {
    /// Address of the server [default: --url]
    #[arg(value_name = "SERVER")]
    pub server: Option<String>,

    /// API key [default: --key, else asked for, else read from standard input]
    #[arg(value_name = "SECRET")]
    pub secret: Option<Key>,
}
