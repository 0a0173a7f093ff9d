//! What a tenant wants to reach of the world.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    Invalid,
    network::{Destination, EgressRule, NamePattern, NetworkPolicy},
};

/// The most entries of a wish's list.
pub const MAX_ALLOWED: usize = 100;

/// Where the package managers that are opened by one switch get their packages, and by which ports of
/// TCP. `docs/network.md` has the same table.
pub const PACKAGE_HOSTS: [(&str, &[u16]); 32] = [
    // Debian, Ubuntu, Alpine.
    ("deb.debian.org", &[80, 443]),
    ("security.debian.org", &[80, 443]),
    ("ftp.debian.org", &[80, 443]),
    ("archive.ubuntu.com", &[80, 443]),
    ("security.ubuntu.com", &[80, 443]),
    ("ports.ubuntu.com", &[80, 443]),
    ("dl-cdn.alpinelinux.org", &[80, 443]),
    // Python.
    ("pypi.org", &[443]),
    ("files.pythonhosted.org", &[443]),
    ("pypi.python.org", &[443]),
    ("conda.anaconda.org", &[443]),
    ("repo.anaconda.com", &[443]),
    // JavaScript.
    ("registry.npmjs.org", &[443]),
    ("registry.yarnpkg.com", &[443]),
    ("npm.jsr.io", &[443]),
    ("jsr.io", &[443]),
    // Rust.
    ("crates.io", &[443]),
    ("index.crates.io", &[443]),
    ("static.crates.io", &[443]),
    ("static.rust-lang.org", &[443]),
    // Go.
    ("proxy.golang.org", &[443]),
    ("sum.golang.org", &[443]),
    // Ruby.
    ("rubygems.org", &[443]),
    ("index.rubygems.org", &[443]),
    // Java.
    ("repo.maven.apache.org", &[443]),
    ("repo1.maven.org", &[443]),
    ("plugins.gradle.org", &[443]),
    // PHP, .NET, Perl, Haskell.
    ("packagist.org", &[443]),
    ("repo.packagist.org", &[443]),
    ("api.nuget.org", &[443]),
    ("cpan.metacpan.org", &[443]),
    ("hackage.haskell.org", &[443]),
];

/// How much of the internet is open while nothing is listed.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum InternetScope {
    /// Nothing.
    #[default]
    Nothing,
    /// Port 80 of TCP.
    Http,
    /// Port 443 of TCP.
    Https,
    /// Both.
    Web,
    /// Every address and port.
    Everything,
}

impl InternetScope {
    /// By which of the two ports something may be reached.
    #[must_use]
    pub const fn of_ports(http: bool, https: bool) -> Self {
        match (http, https) {
            (false, false) => Self::Nothing,
            (true, false) => Self::Http,
            (false, true) => Self::Https,
            (true, true) => Self::Web,
        }
    }

    /// Whether port 80 is open.
    #[must_use]
    pub const fn has_http(self) -> bool {
        match self {
            Self::Http | Self::Web | Self::Everything => true,
            Self::Nothing | Self::Https => false,
        }
    }

    /// Whether port 443 is open.
    #[must_use]
    pub const fn has_https(self) -> bool {
        match self {
            Self::Https | Self::Web | Self::Everything => true,
            Self::Nothing | Self::Http => false,
        }
    }
}

/// What a tenant wants to reach of the world. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressWish {
    /// How much is open while `allowed` is empty. With a list it means nothing: then what is listed is
    /// open, and nothing else.
    #[serde(default)]
    pub internet: InternetScope,
    /// [`PACKAGE_HOSTS`] are open, with a list and without.
    #[serde(default)]
    pub package_managers: bool,
    /// The list.
    #[serde(default)]
    pub allowed: BTreeSet<EgressRule>,
}

impl EgressWish {
    /// All of the internet.
    #[must_use]
    pub fn everything() -> Self {
        Self { internet: InternetScope::Everything, ..Self::default() }
    }

    /// Checks the list.
    ///
    /// # Errors
    /// [`Invalid`] with field `egress`.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.allowed.len() > MAX_ALLOWED {
            return Err(Invalid {
                field: "egress",
                problem: format!("{} entries", self.allowed.len()),
                allowed: format!("at most {MAX_ALLOWED}"),
            });
        }
        NetworkPolicy { egress: self.allowed.clone(), ..NetworkPolicy::default() }.check()
    }

    /// Whether it asks for anything.
    #[must_use]
    pub fn asks_for_something(&self) -> bool {
        self.internet != InternetScope::Nothing || self.package_managers || !self.allowed.is_empty()
    }

    /// Whether nothing of the internet is closed.
    #[must_use]
    pub fn is_unrestricted(&self) -> bool {
        self.internet == InternetScope::Everything && self.allowed.is_empty()
    }

    /// The rules that follow.
    #[must_use]
    pub fn rules(&self) -> BTreeSet<EgressRule> {
        if self.is_unrestricted() {
            return [EgressRule::all(Destination::Anywhere)].into();
        }
        let mut rules = self.allowed.clone();
        if rules.is_empty() {
            let ports = [(self.internet.has_http(), 80), (self.internet.has_https(), 443)];
            let open = ports.into_iter().filter(|(open, _)| *open);
            rules.extend(
                open.filter_map(|(_, port)| EgressRule::tcp(Destination::Anywhere, port).ok()),
            );
        }
        if self.package_managers {
            rules.extend(package_rules());
        }
        rules
    }
}

fn package_rules() -> impl Iterator<Item = EgressRule> {
    PACKAGE_HOSTS.iter().flat_map(|(host, ports)| {
        ports.iter().filter_map(|port| {
            let host = NamePattern::parse(host).ok()?;
            EgressRule::tcp(Destination::Name(host), *port).ok()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(names: &[&str]) -> EgressWish {
        let rule =
            |name: &&str| EgressRule::all(Destination::Name(NamePattern::parse(name).unwrap()));
        EgressWish { allowed: names.iter().map(rule).collect(), ..EgressWish::default() }
    }

    #[test]
    fn every_package_host_becomes_a_rule_for_each_of_its_ports() {
        let ports: usize = PACKAGE_HOSTS.iter().map(|(_, ports)| ports.len()).sum();
        assert_eq!(package_rules().collect::<BTreeSet<_>>().len(), ports);
    }

    #[test]
    fn the_table_in_the_docs_is_the_one_in_force() {
        let docs = include_str!("../../../../docs/network.md");
        let told: BTreeSet<(String, String)> = docs
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
            .filter(|(host, _)| NamePattern::parse(host).is_ok())
            .map(|(host, ports)| (host.to_owned(), ports.trim_end_matches([' ', '|']).to_owned()))
            .collect();
        let in_force: BTreeSet<(String, String)> = PACKAGE_HOSTS
            .iter()
            .map(|(host, ports)| {
                let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
                ((*host).to_owned(), ports.join(", "))
            })
            .collect();
        assert_eq!(told, in_force);
    }

    #[test]
    fn without_a_list_the_reach_decides() {
        let of = |internet| EgressWish { internet, ..EgressWish::default() }.rules();
        assert!(of(InternetScope::Nothing).is_empty());
        assert_eq!(of(InternetScope::Everything), [EgressRule::all(Destination::Anywhere)].into());
        let http = EgressRule::tcp(Destination::Anywhere, 80).unwrap();
        let https = EgressRule::tcp(Destination::Anywhere, 443).unwrap();
        assert_eq!(of(InternetScope::Http), [http.clone()].into());
        assert_eq!(of(InternetScope::Https), [https.clone()].into());
        assert_eq!(of(InternetScope::Web), [http, https].into());
    }

    #[test]
    fn with_a_list_nothing_else_is_open_whatever_the_reach_says() {
        let list = listed(&["api.example.org"]);
        for internet in [InternetScope::Nothing, InternetScope::Web, InternetScope::Everything] {
            assert_eq!(EgressWish { internet, ..list.clone() }.rules(), list.allowed);
        }
    }

    #[test]
    fn package_managers_are_open_with_a_list_and_without() {
        let with = |wish: EgressWish| EgressWish { package_managers: true, ..wish }.rules();
        let packages: BTreeSet<EgressRule> = package_rules().collect();
        assert_eq!(with(EgressWish::default()), packages);
        let list = listed(&["api.example.org"]);
        assert_eq!(with(list.clone()), packages.union(&list.allowed).cloned().collect());
        assert_eq!(with(EgressWish::everything()), EgressWish::everything().rules());
    }

    #[test]
    fn what_nobody_may_reach_and_lists_that_are_too_long_are_refused() {
        let metadata = Destination::Network("169.254.169.254".parse().unwrap());
        let wish =
            EgressWish { allowed: [EgressRule::all(metadata)].into(), ..EgressWish::default() };
        assert_eq!(wish.check().unwrap_err().field, "egress");
        let names: Vec<String> = (0..=MAX_ALLOWED).map(|n| format!("n{n}.example.org")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(listed(&names).check().unwrap_err().field, "egress");
        assert!(listed(&names[1..]).check().is_ok());
    }
}
