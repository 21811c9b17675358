//! Sockets, as addresses name them.

use std::net::{IpAddr, SocketAddr};

use libp2p_core::{Multiaddr, multiaddr::Protocol};

/// What NATs tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Proto {
    Udp,
    Tcp,
}

/// One end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    pub(crate) proto: Proto,
    pub(crate) socket: SocketAddr,
}

impl Endpoint {
    /// Reads it off an address; `None` for relayed ones and those without IP address.
    pub(crate) fn of(address: &Multiaddr) -> Option<Self> {
        let mut ip = None;
        let mut port = None;
        for protocol in address {
            match protocol {
                Protocol::P2pCircuit => return None,
                Protocol::Ip4(found) if ip.is_none() => ip = Some(IpAddr::V4(found)),
                // `::ffff:a.b.c.d` is the IPv4 address in disguise.
                Protocol::Ip6(found) if ip.is_none() => ip = Some(IpAddr::V6(found).to_canonical()),
                Protocol::Udp(found) if port.is_none() => port = Some((Proto::Udp, found)),
                Protocol::Tcp(found) if port.is_none() => port = Some((Proto::Tcp, found)),
                _ => {}
            }
        }
        let ((proto, port), ip) = (port?, ip?);
        Some(Self {
            proto,
            socket: SocketAddr::new(ip, port),
        })
    }

    pub(crate) fn ip(&self) -> IpAddr {
        self.socket.ip()
    }
}

/// The network that an address belongs to: whoever controls one address of it likely controls the
/// others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Prefix(IpAddr);

impl Prefix {
    /// `v4` and `v6`: how many leading bits count, at most 32 and 128.
    pub(crate) fn of(ip: IpAddr, v4: u8, v6: u8) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(v4.min(32)))
                    .unwrap_or(0);
                IpAddr::V4((u32::from(ip) & mask).into())
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(v6.min(128)))
                    .unwrap_or(0);
                IpAddr::V6((u128::from(ip) & mask).into())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_the_socket_below_all_other_protocols() {
        let of = |address: &str| Endpoint::of(&address.parse().unwrap());
        let quic = of("/ip4/203.0.113.7/udp/4001/quic-v1").unwrap();
        assert_eq!(quic.proto, Proto::Udp);
        assert_eq!(quic.socket, "203.0.113.7:4001".parse().unwrap());
        let mapped = of("/ip6/::ffff:203.0.113.7/tcp/1/ws").unwrap();
        assert_eq!(mapped.socket, "203.0.113.7:1".parse().unwrap());
        assert_eq!(of("/ip4/203.0.113.7/tcp/1/p2p-circuit"), None);
        assert_eq!(of("/memory/7"), None);
        assert_eq!(of("/dns4/example.com/tcp/1"), None);
    }

    #[test]
    fn a_prefix_forgets_the_host() {
        let of = |ip: &str, v4| Prefix::of(ip.parse().unwrap(), v4, 56);
        assert_eq!(of("203.0.113.7", 24), of("203.0.113.200", 24));
        assert_ne!(of("203.0.113.7", 32), of("203.0.113.200", 32));
        assert_eq!(of("203.0.113.7", 0), of("8.8.8.8", 0));
        assert_eq!(of("2001:db8::1", 32), of("2001:db8:0:ff::2", 32));
        assert_ne!(of("2001:db8::1", 32), of("2001:db8:0:100::2", 32));
    }
}
