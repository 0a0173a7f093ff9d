//! What of the world outside a workspace may reach.

use serde::{Deserialize, Serialize};

use super::{HostName, Ipv4Network, NamePattern, NetworkPolicy, PortRange, Transport, reserved};
use crate::Invalid;

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// The internet: every address that is not reserved for something else
    /// ([`reserved::is_internet`]).
    Anywhere,
    /// These addresses. Those of the internet, unless the network as a whole is a private one
    /// ([`reserved::is_private`]): then those, as far as the operator has opened them. A name that
    /// leads there is not resolved by it.
    Network(Ipv4Network),
    /// Whatever addresses of the internet these names have, and the names themselves in the
    /// workspace's resolver. Ports 80 and 443 of TCP are served only to who asks for such a name
    /// there (`Host`, server name indication).
    Name(NamePattern),
}

/// The workspace may open connections to some ports of some destination.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EgressRule {
    /// To where.
    pub to: Destination,
    /// By which protocol. `None`: by both, and when all ports are meant by every other one (ICMP)
    /// too; but to a name, by TCP alone: what is inspected there cannot be over UDP.
    pub transport: Option<Transport>,
    /// To which ports.
    pub ports: PortRange,
}

impl EgressRule {
    /// Everything that can be meant by `to`.
    #[must_use]
    pub const fn all(to: Destination) -> Self {
        Self { to, transport: None, ports: PortRange::ALL }
    }

    /// TCP to one port.
    ///
    /// # Errors
    /// When `port` is 0.
    pub fn tcp(to: Destination, port: u16) -> Result<Self, Invalid> {
        Ok(Self { to, transport: Some(Transport::Tcp), ports: PortRange::one(port)? })
    }

    /// The protocols with ports that it is about.
    #[must_use]
    pub const fn transports(&self) -> &'static [Transport] {
        match (&self.to, self.transport) {
            (_, Some(Transport::Tcp)) | (Destination::Name(_), None) => &[Transport::Tcp],
            (_, Some(Transport::Udp)) => &[Transport::Udp],
            (Destination::Anywhere | Destination::Network(_), None) => {
                &[Transport::Tcp, Transport::Udp]
            }
        }
    }

    /// Whether it is also about protocols that have no ports.
    #[must_use]
    pub fn is_about_every_protocol(&self) -> bool {
        let by_address = match self.to {
            Destination::Anywhere | Destination::Network(_) => true,
            Destination::Name(_) => false,
        };
        by_address && self.transport.is_none() && self.ports == PortRange::ALL
    }

    pub(super) fn check(&self) -> Result<(), Invalid> {
        match &self.to {
            Destination::Network(network) if reserved::is_never_reachable(network) => {
                Err(Invalid {
                    field: "egress",
                    problem: format!("{network} is not reachable from any workspace"),
                    allowed:
                        "no addresses of a link (169.254.0.0/16), a loopback interface, a group or \
                          a metadata service"
                            .to_owned(),
                })
            }
            Destination::Anywhere | Destination::Network(_) | Destination::Name(_) => Ok(()),
        }
    }
}

impl NetworkPolicy {
    /// Whether the workspace may know the addresses of `name`.
    #[must_use]
    pub fn resolves(&self, name: &HostName) -> bool {
        self.resolves_everything() || self.rules_for(name).next().is_some()
    }

    /// Whether it may know the addresses of every name there is.
    #[must_use]
    pub fn resolves_everything(&self) -> bool {
        self.egress.iter().any(|rule| match rule.to {
            Destination::Anywhere => true,
            Destination::Network(_) | Destination::Name(_) => false,
        })
    }

    /// Whether a rule for names permits a connection to `name` at this port.
    #[must_use]
    pub fn permits_by_name(&self, name: &HostName, transport: Transport, port: u16) -> bool {
        self.rules_for(name).any(|rule| {
            rule.transports().contains(&transport)
                && (rule.ports.first()..=rule.ports.last()).contains(&port)
        })
    }

    /// Whether a rule for the whole internet permits connections to this port.
    #[must_use]
    pub fn permits_anywhere(&self, transport: Transport, port: u16) -> bool {
        self.egress.iter().any(|rule| match rule.to {
            Destination::Anywhere => {
                rule.transports().contains(&transport)
                    && (rule.ports.first()..=rule.ports.last()).contains(&port)
            }
            Destination::Network(_) | Destination::Name(_) => false,
        })
    }

    /// The rules whose pattern means `name`.
    pub fn rules_for(&self, name: &HostName) -> impl Iterator<Item = &EgressRule> {
        self.egress.iter().filter(|rule| match &rule.to {
            Destination::Name(pattern) => pattern.matches(name),
            Destination::Anywhere | Destination::Network(_) => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    fn policy(rules: &[EgressRule]) -> NetworkPolicy {
        NetworkPolicy { egress: rules.iter().cloned().collect(), ..NetworkPolicy::default() }
    }

    fn by_name(text: &str) -> Destination {
        Destination::Name(text.parse().unwrap())
    }

    #[test]
    fn rules_read_as_they_are_written() {
        let rules = policy(&[
            EgressRule::all(Destination::Anywhere),
            EgressRule::tcp(by_name("*.example.org"), 443).unwrap(),
            EgressRule {
                to: Destination::Network("198.51.100.0/24".parse().unwrap()),
                transport: Some(Transport::Udp),
                ports: PortRange::new(5000, 5009).unwrap(),
            },
        ]);
        let text = serde_json::to_string(&rules.egress).unwrap();
        assert_eq!(
            text,
            r#"[{"to":"anywhere","transport":null,"ports":[1,65535]},{"to":{"network":"198.51.100.0/24"},"transport":"udp","ports":[5000,5009]},{"to":{"name":"*.example.org"},"transport":"tcp","ports":[443,443]}]"#
        );
        assert_eq!(policy(&[]).egress.len(), 0);
        assert_eq!(
            serde_json::from_str::<std::collections::BTreeSet<_>>(&text).unwrap(),
            rules.egress
        );
    }

    #[test]
    fn a_name_is_resolved_by_rules_for_it_and_by_the_whole_internet_but_not_by_networks() {
        let named = policy(&[EgressRule::all(by_name("example.org"))]);
        assert!(named.resolves(&name("example.org")) && !named.resolves(&name("a.example.org")));
        let everywhere = policy(&[EgressRule::tcp(Destination::Anywhere, 443).unwrap()]);
        assert!(everywhere.resolves(&name("a.example.org")));
        let network = Destination::Network(Ipv4Network::ALL);
        assert!(!policy(&[EgressRule::all(network)]).resolves(&name("example.org")));
        assert!(!NetworkPolicy::default().resolves(&name("example.org")));
    }

    #[test]
    fn a_rule_for_a_name_is_about_tcp_unless_it_says_otherwise() {
        let all = policy(&[EgressRule::all(by_name("example.org"))]);
        assert!(all.permits_by_name(&name("example.org"), Transport::Tcp, 22));
        assert!(!all.permits_by_name(&name("example.org"), Transport::Udp, 443));
        let quic = EgressRule {
            to: by_name("example.org"),
            transport: Some(Transport::Udp),
            ports: PortRange::one(443).unwrap(),
        };
        assert!(!quic.is_about_every_protocol());
        let quic = policy(&[quic]);
        assert!(quic.permits_by_name(&name("example.org"), Transport::Udp, 443));
        assert!(!quic.permits_by_name(&name("example.org"), Transport::Tcp, 443));
        assert!(!quic.permits_by_name(&name("example.org"), Transport::Udp, 444));
    }

    #[test]
    fn only_a_rule_about_everything_is_about_protocols_without_ports() {
        assert!(EgressRule::all(Destination::Anywhere).is_about_every_protocol());
        assert!(!EgressRule::tcp(Destination::Anywhere, 80).unwrap().is_about_every_protocol());
    }

    #[test]
    fn a_rule_about_what_nobody_may_reach_is_refused() {
        for never in
            ["169.254.169.254", "169.254.0.0/16", "127.0.0.1", "224.0.0.0/4", "168.63.129.16"]
        {
            let network = Destination::Network(never.parse().unwrap());
            let error = policy(&[EgressRule::all(network)]).check().unwrap_err();
            assert_eq!(error.field, "egress", "{never}");
        }
        for fine in ["0.0.0.0/0", "10.0.0.0/8", "198.51.100.7"] {
            let network = Destination::Network(fine.parse().unwrap());
            policy(&[EgressRule::all(network)]).check().unwrap();
        }
    }
}
