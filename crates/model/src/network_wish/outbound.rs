//! Through what a tenant wants to reach the world.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::EgressWish;
use crate::{
    Invalid,
    network::{NetworkPolicy, OutboundProxy, ProxyCredentials},
};

/// What a server calls a proxy of its own: 1 to 64 of `a-z`, `A-Z`, `0-9`, `-`, `_` and `.`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProxyName(String);

impl ProxyName {
    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ProxyName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if (1..=64).contains(&text.len()) && text.bytes().all(fits) {
            return Ok(Self(text.to_owned()));
        }
        Err(Invalid {
            field: "proxy",
            problem: "is not the name of a proxy".to_owned(),
            allowed: "1 to 64 letters, digits, hyphens, underscores and dots".to_owned(),
        })
    }
}

impl TryFrom<String> for ProxyName {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<ProxyName> for String {
    fn from(name: ProxyName) -> Self {
        name.0
    }
}

impl fmt::Display for ProxyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Through what a tenant wants to reach the world.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outbound {
    /// By the server's own way.
    #[default]
    Direct,
    /// Through a proxy that the tenant names.
    Own(OutboundProxy),
    /// Through one that the server has.
    OfServer(ProxyName),
}

/// What a workspace's packets take, as far as its own wish says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way<'a> {
    /// Nothing: the world is not reached.
    Closed,
    /// The server's uplink.
    Open,
    /// This proxy, and nothing round it.
    Through(&'a OutboundProxy),
}

impl Outbound {
    /// Checks the tenant's own proxy.
    ///
    /// # Errors
    /// [`Invalid`] with field `proxy`.
    pub fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::Own(proxy) => proxy.check(),
            Self::Direct | Self::OfServer(_) => Ok(()),
        }
    }

    /// What is known without the server's list: whoever is not in it reaches nothing.
    #[must_use]
    pub const fn own_way(&self) -> Way<'_> {
        match self {
            Self::Direct => Way::Open,
            Self::Own(proxy) => Way::Through(proxy),
            Self::OfServer(_) => Way::Closed,
        }
    }

    /// What the tenant's own proxy is told.
    #[must_use]
    pub const fn credentials(&self) -> Option<&ProxyCredentials> {
        match self {
            Self::Own(proxy) => proxy.credentials.as_ref(),
            Self::Direct | Self::OfServer(_) => None,
        }
    }

    /// This, told what it was told before: if it is the same proxy and comes without credentials.
    #[must_use]
    pub fn keeping_credentials_of(mut self, before: &Self) -> Self {
        if let (Self::Own(now), Self::Own(before)) = (&mut self, before) {
            let known = (before.address, before.port, before.protocol);
            if now.credentials.is_none() && (now.address, now.port, now.protocol) == known {
                now.credentials.clone_from(&before.credentials);
            }
        }
        self
    }

    /// Puts back what was written apart.
    pub fn restore(&mut self, credentials: Option<ProxyCredentials>) {
        match self {
            Self::Own(proxy) => proxy.credentials = credentials,
            Self::Direct | Self::OfServer(_) => {}
        }
    }
}

impl NetworkPolicy {
    /// What a workspace may reach of the world by this way.
    #[must_use]
    pub fn through(way: Way<'_>, wish: &EgressWish) -> Self {
        let (egress, proxy) = match way {
            Way::Closed => (BTreeSet::new(), None),
            Way::Open => (wish.rules(), None),
            Way::Through(proxy) => (wish.rules(), Some(proxy.clone())),
        };
        Self { egress, proxy, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::ProxyProtocol;

    #[test]
    fn a_proxy_of_the_servers_that_nobody_put_in_leads_nowhere() {
        let wish = EgressWish::everything();
        let of_server = Outbound::OfServer("px-1".parse().unwrap());
        let policy = NetworkPolicy::through(of_server.own_way(), &wish);
        assert_eq!(policy, NetworkPolicy::default());
        let direct = NetworkPolicy::through(Outbound::Direct.own_way(), &wish);
        assert_eq!((direct.egress, direct.proxy), (wish.rules(), None));
    }

    #[test]
    fn an_own_proxy_holds_the_same_rules() {
        let proxy = OutboundProxy {
            address: std::net::Ipv4Addr::new(198, 18, 0, 1),
            port: 8080,
            protocol: ProxyProtocol::Http,
            credentials: None,
        };
        let own = Outbound::Own(proxy.clone());
        let wish = EgressWish::everything();
        let policy = NetworkPolicy::through(own.own_way(), &wish);
        assert_eq!((policy.egress, policy.proxy), (wish.rules(), Some(proxy)));
    }

    #[test]
    fn credentials_are_kept_for_the_same_proxy_and_never_told_to_another() {
        let with = |port, password: Option<&str>| {
            Outbound::Own(OutboundProxy {
                address: std::net::Ipv4Addr::new(198, 18, 0, 1),
                port,
                protocol: ProxyProtocol::Http,
                credentials: password.map(|password| ProxyCredentials {
                    username: "me".to_owned(),
                    password: crate::Secret::new(password),
                }),
            })
        };
        let before = with(8080, Some("old"));
        assert_eq!(with(8080, None).keeping_credentials_of(&before), before);
        assert_eq!(with(8081, None).keeping_credentials_of(&before), with(8081, None));
        let new = with(8080, Some("new"));
        assert_eq!(new.clone().keeping_credentials_of(&before), new);
        assert_eq!(Outbound::Direct.keeping_credentials_of(&before), Outbound::Direct);
        assert_eq!(with(8080, None).keeping_credentials_of(&Outbound::Direct), with(8080, None));
    }

    #[test]
    fn names_of_proxies_are_short_words() {
        for good in ["a", "px_1", "eu-west.2"] {
            assert_eq!(good.parse::<ProxyName>().unwrap().to_string(), good);
        }
        for bad in ["", "a b", "ü", "a/b", &"a".repeat(65)] {
            assert!(bad.parse::<ProxyName>().is_err(), "{bad}");
        }
    }
}
