//! Which addresses the whole internet can dial.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libp2p_core::{Multiaddr, multiaddr::Protocol};

use crate::is_relayed;

/// Names that are looked up on this host or in this network: RFC 6761, 6762, 8375, `.internal`, and what home routers use.
const LOCAL_NAMES: [&str; 6] = ["localhost", "local", "internal", "lan", "home", "arpa"];

/// Whether any peer on the internet may dial `address`, as far as it tells: a relayed, private, local or unspecified one is
/// not meant for them. An IPv4 address in IPv6 clothes counts as IPv4.
///
/// What a name stands for is not known before somebody looks it up, and nobody does so here: a name counts as public unless it
/// means something in one host or network alone (`localhost`, `.local`, a single label, …). Whoever dials one gets to where its
/// owner wants, at most to say hello: no peer of that identity answers elsewhere. `/dnsaddr` stands for any number of addresses
/// of any kind and is never public.
pub(crate) fn is_public(address: &Multiaddr) -> bool {
    let mut hops = address.iter();
    let first = hops.next().as_ref().and_then(is_public_host);
    // What follows is no other host, or a public one, too.
    first == Some(true)
        && !is_relayed(address)
        && hops.all(|hop| is_public_host(&hop).unwrap_or(true))
}

/// `None` for what names no host.
fn is_public_host(protocol: &Protocol<'_>) -> Option<bool> {
    match protocol {
        Protocol::Ip4(ip) => Some(is_public_v4(*ip)),
        Protocol::Ip6(ip) => Some(match IpAddr::V6(*ip).to_canonical() {
            IpAddr::V4(ip) => is_public_v4(ip),
            IpAddr::V6(ip) => is_public_v6(ip),
        }),
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => {
            Some(is_public_name(name))
        }
        Protocol::Dnsaddr(_) | Protocol::Memory(_) | Protocol::Unix(_) => Some(false),
        _ => None,
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    // 0.0.0.0/8, "this network" (RFC 1122); multicast, reserved and broadcast.
    let nowhere = a == 0 || a >= 224;
    // 100.64.0.0/10: behind a carrier's NAT (RFC 6598).
    let carrier = a == 100 && b & 0xc0 == 64;
    !(nowhere || carrier || ip.is_private() || ip.is_loopback() || ip.is_link_local())
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match ip.segments() {
        // Unspecified, loopback, and IPv4-compatible ones, which nobody uses any more (RFC 4291).
        [0, 0, 0, 0, 0, 0, ..] => false,
        // NAT64 (RFC 6052; 8215: of the local network) and 6to4 (RFC 3056) lead to IPv4 addresses.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => embedded(high, low),
        [0x64, 0xff9b, 1, ..] => false,
        // Unique local (RFC 4193); link-local, site-local and multicast.
        [first, ..] => !matches!(first, 0xfc00..=0xfdff | 0xfe80..),
    }
}

fn is_public_name(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name.rsplit_once('.')
        .is_some_and(|(_, last)| !LOCAL_NAMES.contains(&last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_the_internet_can_dial_are_public() {
        let public = |address: &str| is_public(&address.parse().unwrap());
        for address in [
            "/ip4/203.0.113.1/tcp/1",
            "/ip4/100.63.255.255/tcp/1",
            "/ip4/100.128.0.0/tcp/1",
            "/ip6/2001:db8::1/udp/1/quic-v1",
            "/ip6/::ffff:203.0.113.1/tcp/1",
            "/ip6/64:ff9b::203.0.113.1/tcp/1",
            "/dns/relay.example/tcp/1",
            "/dns4/relay.example./tcp/443/tls/ws",
        ] {
            assert!(public(address), "{address}");
        }
        for address in [
            "/ip4/10.0.0.1/tcp/1",
            "/ip4/192.168.1.1/tcp/1",
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/100.64.0.0/tcp/1",
            "/ip4/100.127.255.255/tcp/1",
            "/ip4/169.254.1.1/tcp/1",
            "/ip4/0.0.0.0/tcp/1",
            "/ip4/224.0.0.1/udp/1",
            "/ip4/255.255.255.255/udp/1",
            "/ip6/::/tcp/1",
            "/ip6/::1/tcp/1",
            "/ip6/fe80::1/tcp/1",
            "/ip6/fd00::1/tcp/1",
            "/ip6/ff02::1/udp/1",
            "/ip6/::ffff:10.0.0.1/tcp/1",
            "/ip6/::ffff:100.64.0.1/tcp/1",
            "/ip6/::ffff:127.0.0.1/tcp/1",
            "/ip6/64:ff9b::10.0.0.1/tcp/1",
            "/ip6/2002:a00:1::1/tcp/1",
            "/dns/localhost/tcp/1",
            "/dns/router/tcp/1",
            "/dns4/Printer.LOCAL./tcp/1",
            "/dnsaddr/relay.example",
            "/tcp/1",
            "/memory/1",
            "/ip4/203.0.113.1/tcp/1/p2p/12D3KooWNSVf6KhmKRaVj8ttMWpVQ5jTbm6KQKGYxD6mYT4bv7fM/p2p-circuit",
        ] {
            assert!(!public(address), "{address}");
        }
    }
}
