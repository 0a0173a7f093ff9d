//! Snapshots, forks, and the rules of a life.

use clap::{Args, Subcommand, ValueEnum};

use super::{Seconds, WaitArgs};

/// What happens when a time to live is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExpiryAction {
    /// It is stopped
    Stop,
    /// It is deleted
    Delete,
    /// It is paused
    Pause,
    /// It is suspended
    Suspend,
}

/// What happens to a workspace nobody uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IdleAction {
    /// It is stopped
    Stop,
    /// It is paused
    Pause,
    /// It is suspended
    Suspend,
}

/// After which ends a VM is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RestartMode {
    /// After none
    Never,
    /// When it died
    OnFailure,
    /// Also when the guest powered off
    Always,
}

/// The rules of a life that `create` takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Life")]
pub struct LifeArgs {
    /// Time to live, from each start: 3600, 90m, 12h, 7d
    #[arg(long, value_name = "TIME")]
    pub ttl: Option<Seconds>,

    /// What happens when it is over
    #[arg(long, value_enum, value_name = "ACTION", requires = "ttl")]
    #[arg(default_value_t = ExpiryAction::Stop)]
    pub ttl_action: ExpiryAction,

    /// Act when nobody has used it for this long
    #[arg(long, value_name = "TIME")]
    pub idle: Option<Seconds>,

    /// What happens then
    #[arg(long, value_enum, value_name = "ACTION", requires = "idle")]
    #[arg(default_value_t = IdleAction::Suspend)]
    pub idle_action: IdleAction,

    /// Start it again when its VM ends by itself
    #[arg(long, value_enum, value_name = "MODE")]
    pub restart: Option<RestartMode>,

    /// How many restarts in a row at most; 0: without limit
    #[arg(long, value_name = "COUNT", requires = "restart", default_value_t = 0)]
    pub max_restarts: u32,

    /// Delete it when its VM ends by itself
    #[arg(long)]
    pub remove_on_exit: bool,

    /// Take a snapshot before it is deleted
    #[arg(long)]
    pub snapshot_on_delete: bool,

    /// Wake it when somebody uses it while it is paused or suspended
    #[arg(long)]
    pub auto_resume: bool,

    /// Exempt it from --idle
    #[arg(long)]
    pub keep_active: bool,
}

/// `skerry lifecycle`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct LifecycleArgs {
    /// Name, slug, or id in any API's form
    #[arg(value_name = "NAME")]
    pub workspace: String,

    /// Time to live, which begins now: 3600, 90m, 12h, 7d
    #[arg(long, value_name = "TIME", group = "change", conflicts_with = "no_ttl")]
    pub ttl: Option<Seconds>,

    /// What happens when it is over
    #[arg(long, value_enum, value_name = "ACTION", requires = "ttl")]
    #[arg(default_value_t = ExpiryAction::Stop)]
    pub ttl_action: ExpiryAction,

    /// No time to live
    #[arg(long, group = "change")]
    pub no_ttl: bool,

    /// Act when nobody has used it for this long
    #[arg(long, value_name = "TIME", group = "change", conflicts_with = "no_idle")]
    pub idle: Option<Seconds>,

    /// What happens then
    #[arg(long, value_enum, value_name = "ACTION", requires = "idle")]
    #[arg(default_value_t = IdleAction::Suspend)]
    pub idle_action: IdleAction,

    /// Do nothing when nobody uses it
    #[arg(long, group = "change")]
    pub no_idle: bool,

    /// Start it again when its VM ends by itself
    #[arg(long, value_enum, value_name = "MODE", group = "change")]
    pub restart: Option<RestartMode>,

    /// How many restarts in a row at most; 0: without limit
    #[arg(long, value_name = "COUNT", requires = "restart", default_value_t = 0)]
    pub max_restarts: u32,

    /// Whether to delete it when its VM ends by itself
    #[arg(long, value_name = "BOOL", group = "change")]
    pub remove_on_exit: Option<bool>,

    /// Whether to take a snapshot before it is deleted
    #[arg(long, value_name = "BOOL", group = "change")]
    pub snapshot_on_delete: Option<bool>,

    /// Whether to wake it when somebody uses it while it is paused or suspended
    #[arg(long, value_name = "BOOL", group = "change")]
    pub auto_resume: Option<bool>,

    /// Whether it is exempt from the idle rule
    #[arg(long, value_name = "BOOL", group = "change")]
    pub keep_active: Option<bool>,
}

/// `skerry renew`.
#[derive(Debug, Args)]
pub struct RenewArgs {
    /// Name, slug, or id in any API's form
    #[arg(value_name = "NAME")]
    pub workspace: String,

    /// It begins anew with this length, this once [default: with its own]
    #[arg(long = "for", value_name = "TIME", conflicts_with_all = ["by", "until"])]
    pub length: Option<Seconds>,

    /// It ends this much later
    #[arg(long, value_name = "TIME", conflicts_with = "until")]
    pub by: Option<Seconds>,

    /// It ends then: 2030-01-31T12:00:00Z
    #[arg(long, value_name = "INSTANT")]
    pub until: Option<String>,
}

/// `skerry snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot; the workspace goes on
    Create(SnapshotCreateArgs),
    /// List snapshots
    #[command(visible_alias = "list")]
    Ls {
        /// Only those of this workspace
        #[arg(value_name = "NAME")]
        workspace: Option<String>,
    },
    /// Show one snapshot
    Get {
        /// Name (the newest ready one of it) or id
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
    },
    /// Give a snapshot another name
    Rename {
        /// Name (the newest ready one of it) or id
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
        /// The new name
        #[arg(value_name = "NEW-NAME")]
        name: String,
    },
    /// Delete snapshots; workspaces made from them stay as they are
    Rm {
        /// Names (the newest ready one of each) or ids
        #[arg(value_name = "SNAPSHOT", required = true)]
        snapshots: Vec<String>,

        #[command(flatten)]
        #[allow(missing_docs)]
        wait: WaitArgs,
    },
}

/// `skerry snapshot create`.
#[derive(Debug, Args)]
pub struct SnapshotCreateArgs {
    /// The workspace: name, slug, or id in any API's form
    #[arg(value_name = "NAME")]
    pub workspace: String,

    /// A name for the snapshot [default: made from the workspace's]
    #[arg(long = "name", value_name = "SNAPSHOT")]
    pub name: Option<String>,

    /// The disk only, also of a workspace that runs
    #[arg(long)]
    pub disk_only: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: WaitArgs,
}

/// `skerry restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Name, slug, or id in any API's form
    #[arg(value_name = "NAME")]
    pub workspace: String,

    /// Name (the newest ready one of it) or id
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: String,

    /// Start it afterwards, also if it did not run
    #[arg(long)]
    pub start: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: WaitArgs,
}

/// `skerry fork`.
#[derive(Debug, Args)]
pub struct ForkArgs {
    /// The source: name, slug, or id in any API's form
    #[arg(value_name = "NAME")]
    pub workspace: String,

    /// The forks' name, numbered when there are several [default: made from the source's]
    #[arg(long = "name", value_name = "FORK")]
    pub name: Option<String>,

    /// How many
    #[arg(short, long, value_name = "COUNT", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=256))]
    pub count: u32,

    /// Keep the snapshot they are made from, under this name
    #[arg(long, value_name = "SNAPSHOT")]
    pub keep_snapshot: Option<String>,

    /// Make them, but do not start them
    #[arg(long, conflicts_with_all = ["wait", "no_wait"])]
    pub no_start: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: WaitArgs,
}
