//! A range of IPv4 addresses in CIDR notation (RFC 4632).

use std::{fmt, net::Ipv4Addr, str::FromStr};

use skerry_model::Ipv4Network;

/// The range from which workspaces get their private addresses: 8 to 29 bits long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressPrefix {
    network: Ipv4Addr,
    bits: u8,
}

impl AddressPrefix {
    /// What is used unless configured: 10.201.0.0/16.
    pub const DEFAULT: Self = Self { network: Ipv4Addr::new(10, 201, 0, 0), bits: 16 };

    /// How many addresses.
    pub(crate) fn size(self) -> u32 {
        1 << (32 - u32::from(self.bits))
    }

    /// The address with this number.
    pub(crate) fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | offset)
    }

    /// The number of an address; `None` when it is not of this range.
    pub(crate) fn offset_of(self, address: Ipv4Addr) -> Option<u32> {
        let offset = address.to_bits().wrapping_sub(self.network.to_bits());
        (offset < self.size()).then_some(offset)
    }

    /// The same as the model has it.
    pub(crate) fn network(self) -> Ipv4Network {
        Ipv4Network::around(self.network, self.bits)
    }

    fn overlaps(self, other: Self) -> bool {
        self.offset_of(other.network).is_some() || other.offset_of(self.network).is_some()
    }
}

impl fmt::Display for AddressPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.bits)
    }
}

impl FromStr for AddressPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("{text} is not an IPv4 prefix such as {}", Self::DEFAULT);
        let (network, bits) = text.split_once('/').ok_or_else(malformed)?;
        let network: Ipv4Addr = network.parse().map_err(|_| malformed())?;
        let bits: u8 = bits.parse().map_err(|_| malformed())?;
        if !(8..=29).contains(&bits) {
            return Err(format!("{text}: between 8 and 29 bits are possible"));
        }
        let prefix = Self { network, bits };
        if network.to_bits() & (prefix.size() - 1) != 0 {
            return Err(format!("{text} has bits set beyond its length"));
        }
        if prefix.overlaps(Self { network: Ipv4Addr::new(10, 0, 2, 0), bits: 24 }) {
            return Err(format!("{text} overlaps 10.0.2.0/24, which every guest uses itself"));
        }
        let unusable = network.is_loopback() || network.is_link_local() || network.octets()[0] == 0;
        if unusable || network.octets()[0] >= 224 {
            return Err(format!("{text} cannot be addresses of workspaces"));
        }
        Ok(prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_reads_as_it_is_written() {
        for good in ["10.201.0.0/16", "172.20.0.0/24", "192.168.128.0/29", "11.0.0.0/8"] {
            assert_eq!(good.parse::<AddressPrefix>().unwrap().to_string(), good);
        }
        assert_eq!("10.201.0.0/16".parse(), Ok(AddressPrefix::DEFAULT));
    }

    #[test]
    fn what_cannot_be_addresses_of_workspaces_is_refused() {
        for bad in [
            "10.201.0.0",
            "10.201.0.0/30",
            "10.201.0.0/7",
            "10.201.0.1/16",
            "10.0.0.0/8",
            "10.0.2.0/24",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "224.0.0.0/8",
            "x/16",
            "fd00::/16",
        ] {
            assert!(bad.parse::<AddressPrefix>().is_err(), "{bad}");
        }
    }
}
