//! Destinations, networks and proxies as dialects write them.

use skerry_model::{
    Destination, Invalid, Ipv4Network, NamePattern, OutboundProxy, ProxyCredentials, ProxyProtocol,
    Secret,
};

/// `anywhere`, `*`, an IPv4 network or address, a host name, or `*.` and a host name.
pub(super) fn destination(field: &'static str, text: &str) -> Result<Destination, Invalid> {
    if text == "anywhere" || text == "*" {
        return Ok(Destination::Anywhere);
    }
    if let Ok(network) = Ipv4Network::parse(text) {
        return Ok(Destination::Network(network));
    }
    NamePattern::parse(text).map(Destination::Name).map_err(|_| invalid(
        field,
        text,
        "a host name such as api.example.org, *.example.org for all below it, an IPv4 address or an \
         IPv4 network such as 198.51.100.0/24",
    ))
}

/// An IPv4 network or address.
pub(super) fn block(field: &'static str, text: &str) -> Result<Ipv4Network, Invalid> {
    let rule = "an IPv4 network such as 10.201.0.0/24, or an IPv4 address";
    Ipv4Network::parse(text).map_err(|_| invalid(field, text, rule))
}

fn invalid(field: &'static str, text: &str, allowed: &str) -> Invalid {
    let shown: String = text.chars().take(64).collect();
    Invalid {
        field,
        problem: format!("{shown:?} is none of what it may be"),
        allowed: allowed.to_owned(),
    }
}

/// A proxy of a tenant's own, as the parts of it are written.
pub(super) fn outbound_proxy(
    address: &str,
    port: u16,
    protocol: Option<&str>,
    username: Option<String>,
    password: Option<String>,
) -> Result<OutboundProxy, Invalid> {
    let other = |problem: &str, allowed: &str| Invalid {
        field: "proxy",
        problem: problem.to_owned(),
        allowed: allowed.to_owned(),
    };
    let address = address
        .parse()
        .map_err(|_| other("has an address that is not one of IPv4", "a public IPv4 address"))?;
    let credentials = match (username, password) {
        (None, None) => None,
        (Some(username), password) => {
            Some(ProxyCredentials { username, password: Secret::new(password.unwrap_or_default()) })
        }
        (None, Some(_)) => {
            return Err(other("has a password without a user name", "both, or a user name"));
        }
    };
    let protocol = protocol.map_or(Ok(ProxyProtocol::Http), str::parse)?;
    let proxy = OutboundProxy { address, port, protocol, credentials };
    proxy.check()?;
    Ok(proxy)
}
