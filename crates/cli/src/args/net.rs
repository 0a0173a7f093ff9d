//! The network of a workspace.

use clap::{Args, Subcommand, ValueEnum};

/// `skerry net`.
#[derive(Debug, Subcommand)]
pub enum NetCommand {
    /// Show addresses, what a workspace reaches and who reaches it
    Show {
        /// Name, slug, or id in any API's form
        #[arg(value_name = "NAME")]
        workspace: String,
    },
    /// Show what a workspace wanted of the network and was refused
    Refusals {
        /// Name, slug, or id in any API's form
        #[arg(value_name = "NAME")]
        workspace: String,
    },
    /// Change how much of the internet is open while nothing is allowed by name
    Set(NetSetArgs),
    /// Allow destinations; once there is one, nothing else is open
    Allow(DestinationArgs),
    /// Take allowed destinations back
    Disallow(DestinationArgs),
    /// Send everything that leaves for the world through a proxy, and nothing round it
    Proxy(NetProxyArgs),
    /// List the server's own proxies
    Proxies,
    /// Let one workspace connect to ports of another
    Link(LinkArgs),
    /// No longer let one workspace connect to another
    Unlink {
        /// Who connects
        #[arg(value_name = "CALLER")]
        caller: String,
        /// To which workspace
        #[arg(value_name = "NAME")]
        workspace: String,
    },
    /// Close ports to all callers
    Close {
        /// Name, slug, or id in any API's form
        #[arg(value_name = "NAME")]
        workspace: String,
        /// As `show` has them: 8080, 8000-8010, 53/udp
        #[arg(value_name = "PORTS", required = true)]
        ports: Vec<String>,
    },
}

/// How much of the internet is open.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Internet {
    /// Nothing
    Nothing,
    /// Port 80
    Http,
    /// Port 443
    Https,
    /// Ports 80 and 443
    Web,
    /// Everything
    Everything,
}

impl Internet {
    /// The word of the API.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Http => "http",
            Self::Https => "https",
            Self::Web => "web",
            Self::Everything => "everything",
        }
    }
}

/// `skerry net set`.
#[derive(Debug, Args)]
pub struct NetSetArgs {
    /// Name, slug, or id in any API's form
    #[arg(value_name = "NAME")]
    pub workspace: String,

    /// How much is open
    #[arg(long, value_name = "HOW_MUCH", required_unless_present_any = ["package_managers", "clear"])]
    pub internet: Option<Internet>,

    /// Whether the hosts of package managers are open in any case
    #[arg(long, value_name = "YES_OR_NO", value_parser = clap::builder::BoolishValueParser::new())]
    pub package_managers: Option<bool>,

    /// Forget every allowed destination
    #[arg(long)]
    pub clear: bool,
}

/// `skerry net allow` and `disallow`.
#[derive(Debug, Args)]
pub struct DestinationArgs {
    /// Name, slug, or id in any API's form
    #[arg(value_name = "NAME")]
    pub workspace: String,

    /// Host names, *.names, IPv4 addresses or networks
    #[arg(value_name = "DESTINATION", required = true)]
    pub destinations: Vec<String>,

    /// By these ports only: 443, 8000-8010, 53/udp
    #[arg(short, long = "port", value_name = "PORTS")]
    pub ports: Option<String>,
}

/// `skerry net proxy`.
#[derive(Debug, Args)]
#[group(id = "way", required = true, multiple = false, args = ["address", "server", "none"])]
pub struct NetProxyArgs {
    /// Name, slug, or id in any API's form
    #[arg(value_name = "NAME")]
    pub workspace: String,

    /// Where the proxy is: a public IPv4 address and a port; with socks5:// before if it is one of that
    /// kind and not of HTTP (CONNECT)
    #[arg(value_name = "ADDRESS:PORT")]
    pub address: Option<String>,

    /// Who it is told to be asked by; the password is asked for, or read from standard input
    #[arg(long, value_name = "USER", requires = "address")]
    pub user: Option<String>,

    /// One of the server's own, by its name
    #[arg(long, value_name = "PROXY")]
    pub server: Option<String>,

    /// No proxy any more
    #[arg(long)]
    pub none: bool,
}

/// `skerry net link`.
#[derive(Debug, Args)]
pub struct LinkArgs {
    /// Who connects
    #[arg(value_name = "CALLER")]
    pub caller: String,

    /// To which workspace
    #[arg(value_name = "NAME")]
    pub workspace: String,

    /// Open these ports, too: 8080, 8000-8010, 53/udp; may be given several times
    #[arg(short, long = "port", value_name = "PORTS")]
    pub ports: Vec<String>,
}
