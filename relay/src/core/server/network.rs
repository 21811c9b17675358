//! Where a peer is, as far as caps and access lists care.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use libp2p_core::{Multiaddr, multiaddr::Protocol};

/// Bits of an IPv6 address that are one host's: providers give every host a /64 at least.
const IPV6_HOST_BITS: u8 = 64;

/// A range of IP addresses in CIDR notation: `203.0.113.0/24`, `2001:db8::/48`, or a single address.
///
/// Bits behind the prefix are zero: `203.0.113.7/24` is `203.0.113.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// Not a network in CIDR notation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no network; write an address, a slash and the bits of its prefix, as in 203.0.113.0/24"
)]
pub struct InvalidNetwork(String);

impl Network {
    /// The first `bits` of `address`; more bits than the address has are all of it.
    #[must_use]
    pub fn new(address: IpAddr, bits: u8) -> Self {
        match canonical(address) {
            IpAddr::V4(address) => {
                let bits = bits.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
                Self {
                    address: Ipv4Addr::from_bits(address.to_bits() & mask).into(),
                    bits,
                }
            }
            IpAddr::V6(address) => {
                let bits = bits.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
                Self {
                    address: Ipv6Addr::from_bits(address.to_bits() & mask).into(),
                    bits,
                }
            }
        }
    }

    /// Whether `address` lies in it. An IPv4 address in IPv6 clothes counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = canonical(address);
        address.is_ipv4() == self.address.is_ipv4() && Self::new(address, self.bits) == *self
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let invalid = || InvalidNetwork(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().map_err(|_| invalid())?,
            None => longest,
        };
        if bits > longest {
            return Err(invalid());
        }
        Ok(Self::new(address, bits))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl<'de> serde::Deserialize<'de> for Network {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The address and the neighbourhood that a connection counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) address: IpAddr,
    /// The host: an IPv4 address, an IPv6 /64.
    pub(crate) host: Network,
    /// The network around it: IPv4 /24 and IPv6 /48 by default.
    pub(crate) prefix: Network,
}

impl Place {
    /// `None` for a connection that has no IP address: memory transport, relayed, name.
    pub(crate) fn of(remote: &Multiaddr, ipv4_bits: u8, ipv6_bits: u8) -> Option<Self> {
        let address = match remote.iter().next()? {
            Protocol::Ip4(address) => IpAddr::V4(address),
            Protocol::Ip6(address) => IpAddr::V6(address),
            _ => return None,
        };
        let address = canonical(address);
        let (host_bits, bits) = match address {
            IpAddr::V4(_) => (32, ipv4_bits),
            IpAddr::V6(_) => (IPV6_HOST_BITS, ipv6_bits),
        };
        Some(Self {
            address,
            host: Network::new(address, host_bits),
            prefix: Network::new(address, bits),
        })
    }
}

fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_holds_its_addresses_and_no_others() {
        let lan = network("203.0.113.77/24");
        assert_eq!(lan.to_string(), "203.0.113.0/24");
        assert!(lan.contains("203.0.113.255".parse().unwrap()));
        assert!(lan.contains("::ffff:203.0.113.1".parse().unwrap()));
        assert!(!lan.contains("203.0.114.0".parse().unwrap()));
        assert!(!lan.contains("2001:db8::1".parse().unwrap()));
        assert!(network("0.0.0.0/0").contains("9.9.9.9".parse().unwrap()));
        assert!(!network("0.0.0.0/0").contains("2001:db8::1".parse().unwrap()));
        let site = network("2001:db8:1::/48");
        assert!(site.contains("2001:db8:1:ffff::1".parse().unwrap()));
        assert!(!site.contains("2001:db8:2::1".parse().unwrap()));
        assert!(network("::/0").contains("2001:db8::1".parse().unwrap()));
        assert_eq!(network("192.0.2.1").to_string(), "192.0.2.1/32");
    }

    #[test]
    fn what_is_no_network_is_named() {
        for text in [
            "",
            "203.0.113.0/33",
            "::/129",
            "203.0.113/24",
            "x/8",
            "1.2.3.4/",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_host_with_a_whole_ipv6_network_is_one_host() {
        let place = |address: &str| Place::of(&address.parse().unwrap(), 24, 48).unwrap();
        let a = place("/ip6/2001:db8::1/tcp/1");
        let b = place("/ip6/2001:db8::ffff:1/udp/1/quic-v1");
        assert_eq!(a.host, b.host);
        let c = place("/ip6/2001:db8:0:1::1/tcp/1");
        assert_ne!(a.host, c.host);
        assert_eq!(a.prefix, c.prefix);
        let d = place("/ip4/203.0.113.1/tcp/1");
        let e = place("/ip4/203.0.113.2/tcp/1");
        assert_ne!(d.host, e.host);
        assert_eq!(d.prefix, e.prefix);
        assert_eq!(Place::of(&"/memory/1".parse().unwrap(), 24, 48), None);
    }
}
