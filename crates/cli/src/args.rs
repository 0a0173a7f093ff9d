//! The surface: every command, argument and flag.

use std::{fmt, path::PathBuf, str::FromStr};

use clap::{Args, Subcommand, ValueEnum};

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
    Create(CreateArgs),
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
    /// Delete workspaces with their disks
    Rm(RmArgs),
    /// Show the end of a workspace's log
    Logs(LogsArgs),
    /// Show what a workspace uses
    Stats(WorkspaceArg),
    /// List the TCP ports a workspace listens on
    Ports(WorkspaceArg),
    /// Make, list and revoke API keys
    Key {
        /// What to do
        #[command(subcommand)]
        command: KeyCommand,
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

    /// Login name in the workspace
    #[arg(short, long, default_value = "root")]
    pub user: String,

    /// Working directory [default: the user's home]
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

/// `skerry start`, `stop`, `restart`.
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

/// A size in MiB, from a number with or without a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mebibytes(pub u64);

impl FromStr for Mebibytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor: u64 = match &lower[digits.len()..] {
            "" | "m" | "mb" | "mib" => 1,
            "g" | "gb" | "gib" => 1024,
            "t" | "tb" | "tib" => 1024 * 1024,
            unit => return Err(format!("unknown unit {unit:?}; known are M, G and T")),
        };
        whole_number(digits)?
            .checked_mul(factor)
            .map(Self)
            .ok_or_else(|| "the size is too large".to_owned())
    }
}

/// A size in bytes, from a number with or without a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor: u64 = match &lower[digits.len()..] {
            "" | "b" => 1,
            "k" | "kb" | "kib" => 1024,
            "m" | "mb" | "mib" => 1024 * 1024,
            unit => return Err(format!("unknown unit {unit:?}; known are K and M")),
        };
        whole_number(digits)?
            .checked_mul(factor)
            .map(Self)
            .ok_or_else(|| "the size is too large".to_owned())
    }
}

fn whole_number(digits: &str) -> Result<u64, String> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err("not a whole number with an optional unit, such as 512M or 2G".to_owned());
    }
    digits.parse().map_err(|_| "the size is too large".to_owned())
}

/// An environment variable to set.
#[derive(Clone, PartialEq, Eq)]
pub struct EnvArg {
    /// Its name.
    pub name: String,
    /// Its value; `None` means that of the client's own environment.
    pub value: Option<String>,
}

impl fmt::Debug for EnvArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=…", self.name)
    }
}

impl FromStr for EnvArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let good = !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !good {
            return Err("a name is letters, digits and _, not beginning with a digit".to_owned());
        }
        Ok(Self { name: name.to_owned(), value })
    }
}

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Standard input or output.
    Standard,
    /// On this machine.
    Local(PathBuf),
    /// In a workspace.
    Remote {
        /// Which one.
        workspace: String,
        /// Absolute path in it.
        path: String,
    },
}

impl FromStr for Place {
    type Err = String;

    /// `NAME:/path` is in a workspace; text with a slash before its first colon, or without a colon,
    /// is a local path (`./a:b`).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err("the path is empty".to_owned());
        }
        if text == "-" {
            return Ok(Self::Standard);
        }
        match text.split_once(':') {
            Some((workspace, path)) if !workspace.contains('/') => {
                if workspace.is_empty() {
                    return Err("the workspace's name before the colon is missing".to_owned());
                }
                if !path.starts_with('/') {
                    return Err(format!(
                        "the path in the workspace must be absolute: {workspace}:/…; a local file \
                         of this name is written ./{text}"
                    ));
                }
                Ok(Self::Remote { workspace: workspace.to_owned(), path: path.to_owned() })
            }
            Some(_) | None => Ok(Self::Local(PathBuf::from(text))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_unit() {
        let read = |text: &str| text.parse::<Mebibytes>().map(|size| size.0);
        assert_eq!(read("2048"), Ok(2048));
        assert_eq!(read("512M"), Ok(512));
        assert_eq!(read("2G"), Ok(2048));
        assert_eq!(read("2gib"), Ok(2048));
        assert_eq!(read("1T"), Ok(1_048_576));
        for bad in [
            "",
            "G",
            "1.5G",
            "-1",
            "1 G",
            "2K",
            "2x",
            "99999999999999999999",
            "18446744073709551615G",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let bytes = |text: &str| text.parse::<Bytes>().map(|size| size.0);
        assert_eq!(bytes("64K"), Ok(65_536));
        assert_eq!(bytes("10"), Ok(10));
        assert!(bytes("1G").is_err());
    }

    #[test]
    fn places_are_told_apart_by_their_first_colon() {
        let remote = |workspace: &str, path: &str| {
            Ok(Place::Remote { workspace: workspace.to_owned(), path: path.to_owned() })
        };
        let local = |path: &str| Ok(Place::Local(path.into()));
        assert_eq!("box:/a:b".parse(), remote("box", "/a:b"));
        assert_eq!("./a:b".parse(), local("./a:b"));
        assert_eq!("/a:/b".parse(), local("/a:/b"));
        assert_eq!("a".parse(), local("a"));
        assert_eq!("-".parse(), Ok(Place::Standard));
        for bad in ["", ":/a", "box:a", "box:"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_keep_everything_after_the_first_equals_sign() {
        let variable = |text: &str| text.parse::<EnvArg>().map(|v| (v.name, v.value));
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), Some("b=c".to_owned()))));
        assert_eq!(variable("A="), Ok(("A".to_owned(), Some(String::new()))));
        assert_eq!(variable("_a1"), Ok(("_a1".to_owned(), None)));
        for bad in ["", "=x", "1A=x", "A B=x"] {
            assert!(variable(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parsers(text in ".{0,40}") {
            let _ = text.parse::<Mebibytes>();
            let _ = text.parse::<Bytes>();
            let _ = text.parse::<Place>();
            let _ = text.parse::<EnvArg>();
        }

        #[test]
        fn a_size_in_g_is_1024_times_the_number(number in 0..1_000_000_u64) {
            prop_assert_eq!(format!("{number}G").parse(), Ok(Mebibytes(number * 1024)));
        }
    }
}
