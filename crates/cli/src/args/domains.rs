//! Custom domains.

use clap::{Args, Subcommand};

/// `skerry domain`.
#[derive(Debug, Subcommand)]
pub enum DomainCommand {
    /// Add a domain for a published port, and show what its DNS has to say
    Add(AddDomainArgs),
    /// Look for a domain's TXT record; from then on it is served
    Verify(DomainArg),
    /// List the domains
    #[command(visible_alias = "list")]
    Ls,
    /// Give a domain up
    Rm(DomainArg),
}

/// `skerry domain add`.
#[derive(Debug, Args)]
pub struct AddDomainArgs {
    /// The name, such as www.example.com
    #[arg(value_name = "DOMAIN")]
    pub domain: String,
    /// Name, slug, or id in any API's form
    #[arg(value_name = "NAME")]
    pub workspace: String,
    /// A port that the workspace publishes
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
}

/// Which domain.
#[derive(Debug, Args)]
pub struct DomainArg {
    /// The name
    #[arg(value_name = "DOMAIN")]
    pub domain: String,
}
