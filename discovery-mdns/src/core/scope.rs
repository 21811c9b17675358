//! Which addresses belong on a link.

use std::net::{IpAddr, Ipv4Addr};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;

use super::{LinkId, Network, link::LinkState};
use crate::{Family, Scope, dns::ATTRIBUTE};

impl Network {
    /// Whether `ip` has the prefix of this network.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (ours, other, width) = match (self.address, ip) {
            (IpAddr::V4(ours), IpAddr::V4(other)) => {
                (u128::from(ours.to_bits()), u128::from(other.to_bits()), 32)
            }
            (IpAddr::V6(ours), IpAddr::V6(other)) => (ours.to_bits(), other.to_bits(), 128),
            _ => return false,
        };
        let rest = u32::saturating_sub(width, self.prefix.into());
        // A shift by the whole width is the prefix 0: everything.
        (ours ^ other).checked_shr(rest).unwrap_or(0) == 0
    }
}

/// RFC 6762 §11: whether a sender is on the link.
pub(super) fn is_on_link(source: IpAddr, link: &LinkState) -> bool {
    let link_local = matches!(source, IpAddr::V6(ip) if ip.is_unicast_link_local());
    link_local || link.networks.iter().any(|network| network.contains(source))
}

/// `dnsaddr=<address>/p2p/<peer>`.
pub(super) fn parse_attribute(string: &[u8]) -> Option<(PeerId, Multiaddr)> {
    let (key, value) = string.split_at_checked(ATTRIBUTE.len())?;
    // RFC 6763 §6.4: case does not matter in keys.
    if !key.eq_ignore_ascii_case(ATTRIBUTE) {
        return None;
    }
    let address: Multiaddr = std::str::from_utf8(value).ok()?.parse().ok()?;
    match address.iter().last()? {
        Protocol::P2p(peer) => Some((peer, address)),
        _ => None,
    }
}

fn is_relayed(address: &Multiaddr) -> bool {
    address
        .iter()
        .any(|protocol| protocol == Protocol::P2pCircuit)
}

/// Whether a listen address is told on this link.
pub(super) fn is_told(address: &Multiaddr, id: LinkId, link: &LinkState, scope: Scope) -> bool {
    let relayed = is_relayed(address);
    let ip = match address.iter().next() {
        // A relay's address is not on this link, whoever listens through it.
        _ if relayed => return scope == Scope::Any,
        Some(Protocol::Ip4(ip)) => IpAddr::V4(ip),
        Some(Protocol::Ip6(ip)) => IpAddr::V6(ip),
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)) => {
            return scope == Scope::Any;
        }
        _ => return false,
    };
    // libp2p-mdns replaces the IP of what it hears by the sender's, whatever its family; so each family tells its own.
    let same_family = ip.is_ipv4() == (id.family == Family::V4);
    let ours = link.networks.iter().any(|network| network.address == ip);
    same_family && ours && is_dialable(ip) && (link.loopback || !ip.is_loopback())
}

/// Not those that mean something else on each machine. IPv6 link-local ones need a zone, which a record cannot carry and libp2p's
/// transports do not take.
fn is_dialable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [first, ..] = ip.octets();
            first != 0 && !ip.is_multicast() && !ip.is_broadcast()
        }
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local(),
    }
}

/// Addresses that only mean something inside a site.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            // RFC 6598, shared address space: between a carrier and its customers.
            let shared = Ipv4Addr::new(100, 64, 0, 0).to_bits() >> 22 == ip.to_bits() >> 22;
            ip.is_private() || ip.is_link_local() || shared
        }
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

/// Whether an address that `source` told us on this link is worth keeping.
pub(super) fn is_believed(
    address: &Multiaddr,
    source: IpAddr,
    link: &LinkState,
    scope: Scope,
) -> bool {
    if is_relayed(address) && scope != Scope::Any {
        return false;
    }
    let ip = match address.iter().next() {
        Some(Protocol::Ip4(ip)) => IpAddr::V4(ip),
        Some(Protocol::Ip6(ip)) => match ip.to_ipv4_mapped() {
            Some(ip) => IpAddr::V4(ip),
            None => IpAddr::V6(ip),
        },
        Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)) => {
            let local = name.trim_end_matches('.').to_ascii_lowercase();
            return scope == Scope::Any || local.ends_with(".local");
        }
        _ => return false,
    };
    if !is_dialable(ip) {
        return false;
    }
    if ip.is_loopback() {
        // Only from ourselves: another program on this machine.
        return link.loopback
            || link
                .networks
                .iter()
                .any(|network| network.address == source);
    }
    let on_link = link.networks.iter().any(|network| network.contains(ip));
    on_link || is_private(ip) || scope == Scope::Any
}
