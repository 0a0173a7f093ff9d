//! Destinations and networks as dialects write them.

use skerry_model::{Destination, Invalid, Ipv4Network, NamePattern};

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
