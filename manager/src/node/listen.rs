//! Where the node listens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use libp2p::{Multiaddr, multiaddr::Protocol};
use socket2::{Domain, Socket, Type};

use crate::{
    config::{Config, DEFAULT_P2P_PORT, P2P_PORT_SEARCH_LIMIT},
    error::StartError,
};

/// The addresses to listen on, with a port that is free for TCP and UDP.
pub(super) fn addresses(config: &Config) -> Result<Vec<Multiaddr>, StartError> {
    if !config.listen_addrs().is_empty() {
        return Ok(config.listen_addrs().to_vec());
    }
    let port = match config.p2p_port() {
        Some(port) if is_free(port) => port,
        Some(port) => return Err(StartError::PortInUse { port }),
        None => {
            let last = DEFAULT_P2P_PORT + P2P_PORT_SEARCH_LIMIT;
            (DEFAULT_P2P_PORT..=last)
                .find(|port| is_free(*port))
                .ok_or(StartError::NoFreePort {
                    first: DEFAULT_P2P_PORT,
                    last,
                })?
        }
    };
    Ok(everywhere(port))
}

/// UDP first: its ports cannot be shared, so of two nodes that start at the same time one fails there.
fn everywhere(port: u16) -> Vec<Multiaddr> {
    let ips = [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ];
    let ips = ips.into_iter().filter(|ip| ip.is_ipv4() || has_ipv6());
    let ips: Vec<_> = ips.collect();
    let udp = ips.iter().map(|ip| {
        Multiaddr::from(*ip)
            .with(Protocol::Udp(port))
            .with(Protocol::QuicV1)
    });
    let tcp = ips
        .iter()
        .map(|ip| Multiaddr::from(*ip).with(Protocol::Tcp(port)));
    udp.chain(tcp).collect()
}

/// Whether nobody uses the port. libp2p's TCP listener shares ports (SO_REUSEPORT, which hole punching
/// needs), so that a second node would not notice the first; this one does not share.
fn is_free(port: u16) -> bool {
    let free = |ip: IpAddr| {
        [Type::STREAM, Type::DGRAM]
            .iter()
            .all(|kind| can_bind(ip, port, *kind))
    };
    port == 0
        || (free(Ipv4Addr::UNSPECIFIED.into())
            && (!has_ipv6() || free(Ipv6Addr::UNSPECIFIED.into())))
}

fn has_ipv6() -> bool {
    can_bind(Ipv6Addr::UNSPECIFIED.into(), 0, Type::DGRAM)
}

fn can_bind(ip: IpAddr, port: u16, kind: Type) -> bool {
    let address = SocketAddr::new(ip, port);
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), kind, None)?;
        if ip.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Connections of a node that just stopped linger in TIME_WAIT; they do not count.
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&address.into())?;
        if kind == Type::STREAM {
            socket.listen(1)
        } else {
            Ok(())
        }
    };
    bind().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_either_protocol_uses_is_not_free() {
        let tcp = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        assert!(!is_free(tcp.local_addr().unwrap().port()));
        let udp = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        assert!(!is_free(udp.local_addr().unwrap().port()));
    }

    #[test]
    fn an_explicit_port_that_is_taken_is_an_error_that_names_it() {
        let tcp = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        let config = Config::builder().p2p_port(Some(port)).build().unwrap();
        assert!(
            addresses(&config)
                .unwrap_err()
                .to_string()
                .contains(&port.to_string())
        );
    }
}
