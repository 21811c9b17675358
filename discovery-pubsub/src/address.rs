//! Which addresses are worth announcing and which announced ones may be believed.
//!
//! An announcement is a stranger's claim, and a dial is a packet to whom the stranger chose: so nobody
//! can make this node knock at its own machine, at its own network, or at another service's door.

use std::net::{Ipv4Addr, Ipv6Addr};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;

/// From where an address can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reach {
    /// This machine.
    Machine,
    /// A private network.
    Private,
    /// Everywhere.
    Public,
}

/// The machine that an address's first hop names, IPv6 by its /64: who has one address there has all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Host {
    V4(Ipv4Addr),
    V6([u16; 4]),
    Name(String),
}

/// Of which addresses a peer is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Trust {
    pub(crate) machine: bool,
    pub(crate) private: bool,
}

impl Trust {
    /// What a peer is believed that is connected by an address of this reach.
    pub(crate) fn of(reach: Reach) -> Self {
        Self {
            machine: reach == Reach::Machine,
            private: reach <= Reach::Private,
        }
    }

    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            machine: self.machine || other.machine,
            private: self.private || other.private,
        }
    }

    fn covers(self, reach: Reach) -> bool {
        match reach {
            Reach::Machine => self.machine,
            Reach::Private => self.private,
            Reach::Public => true,
        }
    }
}

/// From where the first hop of `address` can be reached; `None` if nobody can use it.
pub(crate) fn reach(address: &Multiaddr) -> Option<Reach> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => reach_v4(ip),
        Protocol::Ip6(ip) => reach_v6(ip),
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => {
            Some(reach_name(&name))
        }
        Protocol::Memory(_) | Protocol::Unix(_) => Some(Reach::Machine),
        // `/p2p/…` alone has no transport, `/dnsaddr` stands for any number of addresses, and what else begins
        // an address cannot be judged.
        _ => None,
    }
}

fn reach_v4(ip: Ipv4Addr) -> Option<Reach> {
    let [first, second, ..] = ip.octets();
    // "This network" (RFC 1122), multicast, reserved and broadcast.
    if first == 0 || first >= 224 {
        None
    } else if ip.is_loopback() {
        Some(Reach::Machine)
    } else if ip.is_private() || ip.is_link_local() || (first == 100 && second & 0xc0 == 64) {
        Some(Reach::Private)
    } else {
        Some(Reach::Public)
    }
}

fn reach_v6(ip: Ipv6Addr) -> Option<Reach> {
    let segments = ip.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        reach_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(Reach::Machine),
        // IPv4-mapped, -compatible and -translated (RFC 4291, 6052), 6to4 (RFC 3056).
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            embedded(high, low)
        }
        [0x2002, high, low, ..] => embedded(high, low),
        // RFC 8215: a NAT64 of the local network.
        [0x64, 0xff9b, 1, ..] => Some(Reach::Private),
        [first, ..] => match first {
            // Unique local addresses, RFC 4193.
            0xfc00..=0xfdff => Some(Reach::Private),
            // Link-local (means something on one link, and carries no zone), site-local, multicast.
            0xfe80.. => None,
            _ => Some(Reach::Public),
        },
    }
}

/// Names of RFC 6761, 6762, 8375 and of home routers; a name of one label is looked up in the local domain.
fn reach_name(name: &str) -> Reach {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let last = name.rsplit('.').next().unwrap_or_default();
    if last == "localhost" {
        Reach::Machine
    } else if !name.contains('.')
        || matches!(last, "local" | "internal" | "lan" | "home" | "corp" | "intranet" | "arpa")
        // An address that looks like a name.
        || last.bytes().all(|byte| byte.is_ascii_digit())
    {
        Reach::Private
    } else {
        Reach::Public
    }
}

pub(crate) fn host(address: &Multiaddr) -> Option<Host> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(Host::V4(ip)),
        Protocol::Ip6(ip) => match (ip.to_ipv4_mapped(), ip.segments()) {
            (Some(ip), _) => Some(Host::V4(ip)),
            (None, [a, b, c, d, ..]) => Some(Host::V6([a, b, c, d])),
        },
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => {
            Some(Host::Name(name.to_ascii_lowercase()))
        }
        _ => None,
    }
}

/// A port at which other services listen for certain: below 1024, but HTTP's and HTTPS's, where browsers' relays
/// are. Nor has anybody port 0.
fn is_foreign_port(address: &Multiaddr) -> bool {
    address.iter().any(|protocol| match protocol {
        Protocol::Tcp(port) | Protocol::Udp(port) => port < 1024 && !matches!(port, 80 | 443),
        _ => false,
    })
}

pub(crate) fn is_relayed(address: &Multiaddr) -> bool {
    address
        .iter()
        .any(|protocol| protocol == Protocol::P2pCircuit)
}

/// The relay of an address with exactly one; `Err` for what no relay can do.
fn relay(address: &Multiaddr) -> Result<Option<PeerId>, ()> {
    let mut circuits = address
        .iter()
        .enumerate()
        .filter(|(_, protocol)| *protocol == Protocol::P2pCircuit);
    let Some((at, _)) = circuits.next() else {
        return Ok(None);
    };
    if circuits.next().is_some() {
        return Err(());
    }
    match at
        .checked_sub(1)
        .and_then(|before| address.iter().nth(before))
    {
        Some(Protocol::P2p(relay)) => Ok(Some(relay)),
        _ => Err(()),
    }
}

/// `address` as one of our own, ending in `/p2p/<local>`; `None` if it is no use to others. A relay's address on this
/// machine is of use to those who are connected to the relay.
pub(crate) fn own(address: Multiaddr, local: PeerId, allow_machine: bool) -> Option<Multiaddr> {
    let reach = reach(&address)?;
    if reach == Reach::Machine && !allow_machine && !is_relayed(&address) {
        return None;
    }
    address.with_p2p(local).ok()
}

/// `address` as one of `peer`'s, ending in `/p2p/<peer>`; `None` if it is not to be believed. A relay to
/// which this node is connected already (`is_connected`) needs no dial.
pub(crate) fn believed(
    address: Multiaddr,
    peer: PeerId,
    trust: Trust,
    is_connected: impl Fn(&PeerId) -> bool,
) -> Option<Multiaddr> {
    let relay = relay(&address).ok()?;
    if relay == Some(peer) || is_foreign_port(&address) {
        return None;
    }
    let harmless = relay.is_some_and(|relay| is_connected(&relay));
    if !reach(&address).is_some_and(|reach| harmless || trust.covers(reach)) {
        return None;
    }
    address.with_p2p(peer).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach_of(text: &str) -> Option<Reach> {
        reach(&text.parse().unwrap())
    }

    #[test]
    fn addresses_are_told_apart_by_who_can_reach_them() {
        let public = Some(Reach::Public);
        let private = Some(Reach::Private);
        let machine = Some(Reach::Machine);
        for (text, expected) in [
            ("/ip4/1.2.3.4/tcp/1", public),
            ("/ip4/100.63.0.1/tcp/1", public),
            ("/ip4/100.64.0.1/tcp/1", private),
            ("/ip4/100.127.0.1/tcp/1", private),
            ("/ip4/10.0.0.1/tcp/1", private),
            ("/ip4/172.16.0.1/tcp/1", private),
            ("/ip4/172.32.0.1/tcp/1", public),
            ("/ip4/192.168.1.1/tcp/1", private),
            ("/ip4/169.254.169.254/tcp/80", private),
            ("/ip4/127.1.2.3/tcp/1", machine),
            ("/ip4/0.0.0.0/tcp/1", None),
            ("/ip4/0.1.2.3/tcp/1", None),
            ("/ip4/224.0.0.251/udp/5353", None),
            ("/ip4/240.0.0.1/tcp/1", None),
            ("/ip4/255.255.255.255/udp/1", None),
            ("/ip6/2001:db8::1/tcp/1", public),
            ("/ip6/::1/tcp/1", machine),
            ("/ip6/::/tcp/1", None),
            ("/ip6/::ffff:127.0.0.1/tcp/1", machine),
            ("/ip6/::ffff:10.0.0.1/tcp/1", private),
            ("/ip6/::ffff:1.2.3.4/tcp/1", public),
            ("/ip6/::127.0.0.1/tcp/1", machine),
            ("/ip6/64:ff9b::a00:1/tcp/1", private),
            ("/ip6/64:ff9b:1::1/tcp/1", private),
            ("/ip6/2002:7f00:1::1/tcp/1", machine),
            ("/ip6/2002:c0a8:101::1/tcp/1", private),
            ("/ip6/fd00::1/tcp/1", private),
            ("/ip6/fe80::1/tcp/1", None),
            ("/ip6/ff02::fb/udp/5353", None),
            ("/dns4/example.org/tcp/443", public),
            ("/dns/localhost/tcp/1", machine),
            ("/dns/a.localhost./tcp/1", machine),
            ("/dns/router/tcp/1", private),
            ("/dns/printer.LOCAL/tcp/1", private),
            ("/dns4/192.168.1.1/tcp/1", private),
            ("/dnsaddr/example.org", None),
            ("/memory/7", machine),
            ("/unix/%2Fvar%2Frun%2Fdocker.sock", machine),
            (
                "/p2p/12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB",
                None,
            ),
        ] {
            assert_eq!(reach_of(text), expected, "{text}");
        }
    }

    #[test]
    fn what_leads_nowhere_is_not_announced() {
        let (local, relay) = (PeerId::random(), PeerId::random());
        let announced = |text: &str, allow| own(text.parse().unwrap(), local, allow).is_some();
        assert!(announced("/ip4/10.0.0.1/tcp/1", false));
        assert!(!announced("/ip4/127.0.0.1/tcp/1", false));
        assert!(announced("/ip4/127.0.0.1/tcp/1", true));
        assert!(!announced("/ip4/0.0.0.0/tcp/1", true));
        assert!(
            !announced(&format!("/ip4/1.2.3.4/tcp/1/p2p/{relay}"), false),
            "another's"
        );
        // Those who are connected to the relay get here.
        assert!(announced(
            &format!("/memory/1/p2p/{relay}/p2p-circuit"),
            false
        ));
    }

    #[test]
    fn a_stranger_is_believed_public_addresses_and_relays_that_we_are_connected_to() {
        let (peer, relay, unknown) = (PeerId::random(), PeerId::random(), PeerId::random());
        let believed_of = |text: String, trust| {
            let address: Multiaddr = text.parse().unwrap();
            believed(address, peer, trust, |peer| *peer == relay).is_some()
        };
        let stranger = Trust::default();
        let neighbour = Trust::of(Reach::Private);
        let housemate = Trust::of(Reach::Machine);
        for (text, by_stranger, by_neighbour, by_housemate) in [
            ("/ip4/1.2.3.4/tcp/4001".to_owned(), true, true, true),
            ("/ip4/1.2.3.4/tcp/443/tls/ws".to_owned(), true, true, true),
            ("/ip4/1.2.3.4/tcp/22".to_owned(), false, false, false),
            (
                "/ip4/1.2.3.4/udp/53/quic-v1".to_owned(),
                false,
                false,
                false,
            ),
            ("/ip4/1.2.3.4/tcp/0".to_owned(), false, false, false),
            ("/ip4/10.0.0.1/tcp/4001".to_owned(), false, true, true),
            ("/ip4/127.0.0.1/tcp/4001".to_owned(), false, false, true),
            (
                format!("/ip4/10.0.0.1/tcp/4001/p2p/{relay}/p2p-circuit"),
                true,
                true,
                true,
            ),
            (
                format!("/ip4/10.0.0.1/tcp/4001/p2p/{unknown}/p2p-circuit"),
                false,
                true,
                true,
            ),
            (
                format!("/ip4/1.2.3.4/tcp/4001/p2p/{unknown}/p2p-circuit"),
                true,
                true,
                true,
            ),
            (
                "/ip4/1.2.3.4/tcp/4001/p2p-circuit".to_owned(),
                false,
                false,
                false,
            ),
            (
                format!("/ip4/1.2.3.4/tcp/1/p2p/{relay}/p2p-circuit/p2p/{unknown}/p2p-circuit"),
                false,
                false,
                false,
            ),
            (
                format!("/ip4/1.2.3.4/tcp/4001/p2p/{peer}/p2p-circuit"),
                false,
                false,
                false,
            ),
            (
                format!("/ip4/1.2.3.4/tcp/4001/p2p/{unknown}"),
                false,
                false,
                false,
            ),
        ] {
            assert_eq!(
                believed_of(text.clone(), stranger),
                by_stranger,
                "stranger: {text}"
            );
            assert_eq!(
                believed_of(text.clone(), neighbour),
                by_neighbour,
                "neighbour: {text}"
            );
            assert_eq!(
                believed_of(text.clone(), housemate),
                by_housemate,
                "housemate: {text}"
            );
        }
    }
}
