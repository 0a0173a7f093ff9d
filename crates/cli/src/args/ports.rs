//! Published ports.

use clap::{Args, Subcommand, ValueEnum};

/// `skerry port`.
#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// Give a port an address of its own, or change the one it has
    Publish(PublishArgs),
    /// List what a workspace publishes
    #[command(visible_alias = "list")]
    Ls {
        /// Name, slug, or id in any API's form
        #[arg(value_name = "NAME")]
        workspace: String,
    },
    /// Take a port's address away; what is open through it is closed
    Revoke {
        /// Name, slug, or id in any API's form
        #[arg(value_name = "NAME")]
        workspace: String,
        /// The port inside
        #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
}

/// `skerry port publish`.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// Name, slug, or id in any API's form
    #[arg(value_name = "NAME")]
    pub workspace: String,
    /// The port inside; the server may listen on localhost alone
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// The first label of its address [default: random]
    #[arg(long, value_name = "SLUG")]
    pub slug: Option<String>,
    /// A word for it, shown in lists
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// Who may visit it [default: private]; private makes a new token, shown once
    #[arg(long, value_name = "WHO")]
    pub visibility: Option<Visibility>,
}

/// Who may visit a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Visibility {
    /// Everybody
    Public,
    /// Whoever has its token, or an API key of the account
    Private,
}
