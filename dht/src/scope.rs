//! Which addresses may be kept and passed on.

use std::net::{Ipv4Addr, Ipv6Addr};

use libp2p_core::{Multiaddr, multiaddr::Protocol};

use crate::{AddressScope, Mode};

/// What is kept of the addresses that strangers name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filter {
    /// What [`is_public_only`] said last.
    pub(crate) public_only: bool,
    /// Of one peer.
    pub(crate) max_addresses: usize,
}

impl Filter {
    pub(crate) fn keeps(&self, address: &Multiaddr) -> bool {
        !self.public_only || is_public(address)
    }

    pub(crate) fn select(&self, addresses: impl IntoIterator<Item = Multiaddr>) -> Vec<Multiaddr> {
        addresses
            .into_iter()
            .filter(|address| self.keeps(address))
            .take(self.max_addresses)
            .collect()
    }
}

/// Whether only public addresses are kept now; see [`AddressScope`].
pub(crate) fn is_public_only<'a>(
    scope: AddressScope,
    mode: Mode,
    mut external: impl Iterator<Item = &'a Multiaddr>,
) -> bool {
    match scope {
        AddressScope::Any => false,
        AddressScope::Public => true,
        AddressScope::Auto => {
            mode == Mode::Server
                && external.any(|address| is_public(address) && !is_relayed(address))
        }
    }
}

/// Whether an address means the same host to everybody on the internet. A relayed one counts by its
/// relay; a DNS name counts unless it is local by definition.
pub(crate) fn is_public(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => is_public_v4(ip),
        Some(Protocol::Ip6(ip)) => is_public_v6(ip),
        Some(
            Protocol::Dns(name)
            | Protocol::Dns4(name)
            | Protocol::Dns6(name)
            | Protocol::Dnsaddr(name),
        ) => is_public_name(&name),
        _ => false,
    }
}

fn is_relayed(address: &Multiaddr) -> bool {
    address
        .iter()
        .any(|protocol| protocol == Protocol::P2pCircuit)
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    // RFC 6598: shared by the customers of one carrier.
    let carrier_grade = a == 100 && (64..128).contains(&b);
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_broadcast()
        || carrier_grade
        || a == 0)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    if let Some(ip) = ip.to_ipv4_mapped() {
        return is_public_v4(ip);
    }
    !(ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_multicast()
        || ip.is_unique_local()
        || ip.is_unicast_link_local())
}

/// RFC 6761, 6762, 8375: names that no public resolver knows.
fn is_public_name(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let local = ["localhost", "local", "home.arpa", "internal"];
    !local.iter().any(|suffix| {
        name.strip_suffix(suffix)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(address: &str) -> bool {
        is_public(&address.parse().unwrap())
    }

    #[test]
    fn only_addresses_that_everybody_can_dial_are_public() {
        for address in [
            "/ip4/1.2.3.4/tcp/4001",
            "/ip4/100.128.0.1/tcp/1",
            "/ip4/100.63.0.1/tcp/1",
            "/ip4/172.32.0.1/tcp/1",
            "/ip6/2001:db8::1/udp/1/quic-v1",
            "/dns/example.org/tcp/443/tls/ws",
            "/dnsaddr/bootstrap.libp2p.io",
            "/dns/notlocal/tcp/1",
            "/ip4/1.2.3.4/tcp/1/p2p/12D3KooWFhXabKDwALpzqMbto94sB7rvmZ6M28hs9Y9xSopDKwQr/p2p-circuit",
        ] {
            assert!(public(address), "{address}");
        }
        for address in [
            "/ip4/10.1.2.3/tcp/1",
            "/ip4/172.16.0.1/tcp/1",
            "/ip4/192.168.1.1/udp/1/quic-v1",
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/169.254.1.1/tcp/1",
            "/ip4/100.64.0.1/tcp/1",
            "/ip4/0.0.0.0/tcp/1",
            "/ip4/224.0.0.1/udp/1",
            "/ip6/::1/tcp/1",
            "/ip6/fd00::1/tcp/1",
            "/ip6/fe80::1/tcp/1",
            "/ip6/::ffff:10.0.0.1/tcp/1",
            "/dns/localhost/tcp/1",
            "/dns4/printer.LOCAL./tcp/1",
            "/dns/nas.home.arpa/tcp/1",
            "/memory/1",
            "/p2p-circuit",
            "/ip4/10.0.0.1/tcp/1/p2p/12D3KooWFhXabKDwALpzqMbto94sB7rvmZ6M28hs9Y9xSopDKwQr/p2p-circuit",
        ] {
            assert!(!public(address), "{address}");
        }
    }

    #[test]
    fn auto_is_public_only_for_servers_that_the_internet_can_reach() {
        let public: Multiaddr = "/ip4/1.2.3.4/tcp/1".parse().unwrap();
        let private: Multiaddr = "/ip4/10.0.0.1/tcp/1".parse().unwrap();
        let relayed = public.clone().with(Protocol::P2pCircuit);
        let auto = |mode, external: &[Multiaddr]| {
            is_public_only(AddressScope::Auto, mode, external.iter())
        };
        assert!(auto(Mode::Server, &[private.clone(), public.clone()]));
        assert!(!auto(Mode::Client, std::slice::from_ref(&public)));
        assert!(!auto(Mode::Server, &[private, relayed]));
        assert!(is_public_only(
            AddressScope::Public,
            Mode::Client,
            [].iter()
        ));
        assert!(!is_public_only(
            AddressScope::Any,
            Mode::Server,
            [public].iter()
        ));
    }
}
