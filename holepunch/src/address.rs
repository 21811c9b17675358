//! What an address says about how it can be used.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use libp2p_core::{Multiaddr, multiaddr::Protocol};

/// The transport of a direct connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Transport {
    /// TCP, secured and multiplexed by libp2p.
    Tcp,
    /// QUIC.
    Quic,
    /// WebSocket, secure or not.
    WebSocket,
    /// WebRTC, of any flavour.
    WebRtc,
    /// Another one, for example memory in tests.
    Other,
}

impl Transport {
    /// Reads it off an address.
    #[must_use]
    pub fn of(address: &Multiaddr) -> Self {
        let mut transport = Self::Other;
        for protocol in address {
            transport = match protocol {
                Protocol::Quic | Protocol::QuicV1 => Self::Quic,
                Protocol::Ws(_) | Protocol::Wss(_) => Self::WebSocket,
                Protocol::WebRTC | Protocol::WebRTCDirect => Self::WebRtc,
                Protocol::Tcp(_) => Self::Tcp,
                _ => transport,
            };
        }
        transport
    }

    /// A short name for labels and logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Quic => "quic",
            Self::WebSocket => "websocket",
            Self::WebRtc => "webrtc",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// From where an address can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// Through a relay, or not at all.
    Useless,
    /// From the same machine.
    Loopback,
    /// From the same network.
    Private,
    /// From anywhere; also what has no IP address, such as names and memory addresses.
    Public,
}

impl Scope {
    pub(crate) fn of(address: &Multiaddr) -> Self {
        let mut scope = None;
        for protocol in address {
            let ip = match protocol {
                Protocol::P2pCircuit => return Self::Useless,
                Protocol::Ip4(ip) => of_ip(IpAddr::V4(ip)),
                Protocol::Ip6(ip) => of_ip(IpAddr::V6(ip)),
                Protocol::P2p(_) => continue,
                _ => Self::Public,
            };
            scope = scope.or(Some(ip));
        }
        scope.unwrap_or(Self::Useless)
    }
}

fn of_ip(ip: IpAddr) -> Scope {
    // `::ffff:a.b.c.d` is the IPv4 address in disguise.
    match ip.to_canonical() {
        ip if ip.is_unspecified() || ip.is_multicast() => Scope::Useless,
        // RFC 6890: "this network", and what is reserved or reaches everybody.
        IpAddr::V4(ip) if matches!(ip.octets(), [0 | 240.., ..]) => Scope::Useless,
        ip if ip.is_loopback() => Scope::Loopback,
        IpAddr::V4(ip) if is_private_v4(ip) => Scope::Private,
        IpAddr::V6(ip) if is_private_v6(ip) => Scope::Private,
        _ => Scope::Public,
    }
}

/// Whether the address lies beyond every NAT, so that the NATs have a say in what comes from it.
/// Loopback counts where it is allowed, for several nodes on one machine.
pub(crate) fn is_beyond_nats(ip: IpAddr, allow_loopback: bool) -> bool {
    match of_ip(ip) {
        Scope::Public => true,
        Scope::Loopback => allow_loopback,
        Scope::Useless | Scope::Private => false,
    }
}

/// RFC 1918, RFC 3927 (link local) and RFC 6598 (shared with a carrier's NAT).
fn is_private_v4(ip: Ipv4Addr) -> bool {
    let [first, second, ..] = ip.octets();
    ip.is_private() || ip.is_link_local() || (first == 100 && (64..128).contains(&second))
}

/// RFC 4193 (unique local) and RFC 4291 (link local).
fn is_private_v6(ip: Ipv6Addr) -> bool {
    ip.is_unique_local() || ip.is_unicast_link_local()
}

/// The IP address in it, if it has one.
pub(crate) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    address.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip)),
        _ => None,
    })
}

/// The address without `/p2p/…`, so that one address is not remembered twice.
pub(crate) fn without_peer(address: &Multiaddr) -> Multiaddr {
    address
        .iter()
        .filter(|protocol| !matches!(protocol, Protocol::P2p(_)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(address: &str) -> Scope {
        Scope::of(&address.parse().unwrap())
    }

    #[test]
    fn the_scope_of_an_address_is_that_of_its_ip() {
        assert_eq!(
            scope("/ip4/203.0.113.10/tcp/9100"),
            Scope::Public,
            "the lab's"
        );
        assert_eq!(scope("/ip6/2001:db8::1/udp/1/quic-v1"), Scope::Public);
        assert_eq!(scope("/ip4/10.1.0.10/tcp/9100"), Scope::Private);
        assert_eq!(scope("/ip4/100.64.1.2/udp/1/quic-v1"), Scope::Private);
        assert_eq!(scope("/ip6/fd00::1/tcp/1"), Scope::Private);
        assert_eq!(scope("/ip4/127.0.0.1/tcp/1"), Scope::Loopback);
        assert_eq!(scope("/ip4/0.0.0.0/tcp/1"), Scope::Useless);
        assert_eq!(scope("/ip6/::ffff:10.0.0.1/tcp/1"), Scope::Private);
        assert_eq!(scope("/memory/7"), Scope::Public);
        assert_eq!(scope("/ip4/203.0.113.10/tcp/1/p2p-circuit"), Scope::Useless);
        assert_eq!(Scope::of(&Multiaddr::empty()), Scope::Useless);
    }

    #[test]
    fn the_transport_is_the_outermost_one() {
        let of = |address: &str| Transport::of(&address.parse().unwrap());
        assert_eq!(of("/ip4/1.2.3.4/tcp/1"), Transport::Tcp);
        assert_eq!(of("/ip4/1.2.3.4/tcp/1/ws"), Transport::WebSocket);
        assert_eq!(of("/ip4/1.2.3.4/udp/1/quic-v1"), Transport::Quic);
        assert_eq!(of("/ip4/1.2.3.4/udp/1/webrtc-direct"), Transport::WebRtc);
        assert_eq!(of("/memory/1"), Transport::Other);
    }
}
