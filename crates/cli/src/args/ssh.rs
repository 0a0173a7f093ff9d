//! SSH.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `skerry ssh`.
#[derive(Debug, Args)]
pub struct SshArgs {
    /// Name, slug, or id in any API's form
    #[arg(value_name = "NAME")]
    pub workspace: String,

    /// What `ssh` is given after the host: a command, or with `--` its own options
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// `skerry ssh-key`.
#[derive(Debug, Subcommand)]
pub enum SshKeyCommand {
    /// Add a public key: its owner enters all workspaces of the account
    Add {
        /// A `.pub` file, or - for standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// A name to tell keys apart [default: the key's comment]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// List keys
    #[command(visible_alias = "list")]
    Ls,
    /// Remove a key
    Rm {
        /// The key's id
        #[arg(value_name = "ID")]
        id: String,
    },
}
