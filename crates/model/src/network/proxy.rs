//! Proxies through which what a workspace sends to the world goes.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::reserved;
use crate::{Invalid, Secret};

/// The longest name or password that a proxy is told, in bytes (RFC 1929 has one byte for lengths).
pub const MAX_CREDENTIAL_BYTES: usize = 255;

/// How a proxy is asked for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyProtocol {
    /// `CONNECT` of HTTP (RFC 9110, 9.3.6).
    Http,
    /// RFC 1928.
    Socks5,
}

impl ProxyProtocol {
    /// As it is written.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Socks5 => "socks5",
        }
    }
}

impl FromStr for ProxyProtocol {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "http" => Ok(Self::Http),
            "socks5" => Ok(Self::Socks5),
            _ => Err(invalid("has a protocol that is not known", "http (CONNECT) or socks5")),
        }
    }
}

/// Who a proxy is told to be asked by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyCredentials {
    /// Whose.
    pub username: String,
    /// What proves it.
    pub password: Secret,
}

/// A proxy of the internet that makes connections for others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboundProxy {
    /// Where it is.
    pub address: Ipv4Addr,
    /// At which port of TCP.
    pub port: u16,
    /// How it is asked.
    pub protocol: ProxyProtocol,
    /// Who asks. Written nowhere with the rest: whoever stores a proxy seals these apart.
    #[serde(skip)]
    pub credentials: Option<ProxyCredentials>,
}

impl OutboundProxy {
    /// Checks that it can be asked at all.
    ///
    /// # Errors
    /// [`Invalid`] with field `proxy` when its address is not one of the internet
    /// ([`reserved::is_internet`]), its port is 0, or its credentials cannot be said.
    pub fn check(&self) -> Result<(), Invalid> {
        if !reserved::is_internet(self.address) {
            let problem = format!("is at {}, which is not of the internet", self.address);
            return Err(invalid(problem, "a public IPv4 address"));
        }
        if self.port == 0 {
            return Err(invalid("has port 0", "1 to 65535"));
        }
        let Some(ProxyCredentials { username, password }) = &self.credentials else {
            return Ok(());
        };
        let password = password.expose();
        let fits = |text: &str| text.len() <= MAX_CREDENTIAL_BYTES;
        if username.is_empty() || !fits(username) || !fits(password) {
            let allowed = format!(
                "a user name of 1 to {MAX_CREDENTIAL_BYTES} bytes and a password of at most as many"
            );
            return Err(invalid(
                "has credentials that are too long, or without a user name",
                allowed,
            ));
        }
        // RFC 7617, 2: what is before the first colon is the user's name.
        if username.contains(':') || [username.as_str(), password].iter().any(|t| has_control(t)) {
            let allowed = "no control characters, and no colon in the user name";
            return Err(invalid("has credentials that cannot be sent", allowed));
        }
        Ok(())
    }
}

impl fmt::Display for OutboundProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.protocol.word(), self.address, self.port)
    }
}

fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

fn invalid(problem: impl Into<String>, allowed: impl Into<String>) -> Invalid {
    Invalid { field: "proxy", problem: problem.into(), allowed: allowed.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy() -> OutboundProxy {
        OutboundProxy {
            address: Ipv4Addr::new(198, 18, 0, 1),
            port: 3128,
            protocol: ProxyProtocol::Http,
            credentials: Some(ProxyCredentials {
                username: "me".to_owned(),
                password: Secret::new("hunter2"),
            }),
        }
    }

    #[test]
    fn a_proxy_is_of_the_internet_and_has_a_port() {
        proxy().check().unwrap();
        for address in [[10, 0, 0, 1], [127, 0, 0, 1], [169, 254, 169, 254], [192, 168, 7, 1]] {
            let inside = OutboundProxy { address: address.into(), ..proxy() };
            assert_eq!(inside.check().unwrap_err().field, "proxy");
        }
        assert!(OutboundProxy { port: 0, ..proxy() }.check().is_err());
    }

    #[test]
    fn credentials_are_such_that_they_can_be_sent() {
        let with = |username: &str, password: &str| {
            let credentials =
                ProxyCredentials { username: username.to_owned(), password: Secret::new(password) };
            OutboundProxy { credentials: Some(credentials), ..proxy() }.check()
        };
        with("me", "").unwrap();
        with(&"a".repeat(255), &"b".repeat(255)).unwrap();
        let long = format!("hunter2{}", "b".repeat(249));
        for (username, password) in [
            ("", "hunter2"),
            ("a:b", "hunter2"),
            ("a\r\n", "hunter2"),
            ("a", "hunter2\n"),
            ("a", long.as_str()),
        ] {
            let refused = with(username, password).unwrap_err().to_string();
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }

    #[test]
    fn neither_what_is_printed_nor_what_is_written_has_the_credentials() {
        let text = format!("{:?} {}", proxy(), serde_json::to_string(&proxy()).unwrap());
        assert!(!text.contains("hunter2"), "{text}");
        assert_eq!(proxy().to_string(), "http://198.18.0.1:3128");
        let read: OutboundProxy =
            serde_json::from_str(&serde_json::to_string(&proxy()).unwrap()).unwrap();
        assert_eq!(read, OutboundProxy { credentials: None, ..proxy() });
    }

    #[test]
    fn protocols_read_as_they_are_written() {
        for protocol in [ProxyProtocol::Http, ProxyProtocol::Socks5] {
            assert_eq!(protocol.word().parse::<ProxyProtocol>().unwrap(), protocol);
        }
        assert!("https".parse::<ProxyProtocol>().is_err());
    }
}
