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

/// `skerry ssh-access`.
#[derive(Debug, Subcommand)]
pub enum SshAccessCommand {
    /// Show whether a workspace is entered by SSH, and whether it has passwords
    Show {
        /// Name, slug, or id in any API's form
        #[arg(value_name = "NAME")]
        workspace: String,
    },
    /// Open a workspace to SSH; one without a password for root gets one, which is shown this once
    Open {
        /// Name, slug, or id in any API's form
        #[arg(value_name = "NAME")]
        workspace: String,
    },
    /// Close a workspace to SSH, whatever key somebody has, and forget its passwords
    Close {
        /// Name, slug, or id in any API's form
        #[arg(value_name = "NAME")]
        workspace: String,
    },
    /// Set a password, which is asked for, or read from standard input
    Password {
        /// Name, slug, or id in any API's form
        #[arg(value_name = "NAME")]
        workspace: String,
        /// Whose, inside
        #[arg(long, value_name = "USER", default_value = "root")]
        user: String,
    },
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
