//! Custom domains.

use std::path::PathBuf;

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
    /// By whose interface the server puts records into the name's zone, to get its certificates
    /// [default: by none; certificates are got as the server is configured to]
    #[arg(long, value_name = "cloudflare|rfc2136", requires = "dns_credentials")]
    pub dns_provider: Option<String>,
    /// A JSON object with what that needs, such as {"CLOUDFLARE_API_TOKEN": "..."}; - for standard input
    #[arg(long, value_name = "FILE", requires = "dns_provider")]
    pub dns_credentials: Option<PathBuf>,
}

/// Which domain.
#[derive(Debug, Args)]
pub struct DomainArg {
    /// The name
    #[arg(value_name = "DOMAIN")]
    pub domain: String,
}
