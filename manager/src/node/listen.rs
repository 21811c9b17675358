//! Where the node listens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use libp2p::{Multiaddr, multiaddr::Protocol};
use socket2::{Domain, Socket, Type};

use crate::{
    config::{Config, DEFAULT_P2P_PORT, P2P_PORT_SEARCH_LIMIT},
    error::StartError,
};

/// The addresses to listen on, with ports that are free.
pub(super) fn addresses(config: &Config) -> Result<Vec<Multiaddr>, StartError> {
    if !config.listen_addrs().is_empty() {
        return Ok(config.listen_addrs().to_vec());
    }
    let (ws_port, webrtc_port) = (config.ws_port(), config.webrtc_port());
    let port = match config.p2p_port() {
        Some(port) if is_free(port, &BOTH) => port,
        Some(port) => {
            return Err(StartError::PortInUse {
                port,
                key: "p2p_port",
            });
        }
        None => {
            let last = DEFAULT_P2P_PORT + P2P_PORT_SEARCH_LIMIT;
            (DEFAULT_P2P_PORT..=last)
                .find(|port| {
                    ![ws_port, webrtc_port].contains(&Some(*port)) && is_free(*port, &BOTH)
                })
                .ok_or(StartError::NoFreePort {
                    first: DEFAULT_P2P_PORT,
                    last,
                })?
        }
    };
    // UDP first: its ports cannot be shared, so of two nodes that start at the same time one fails there.
    let mut addresses = Vec::new();
    if !config.has_swarm_key() {
        addresses.extend(everywhere(&[Protocol::Udp(port), Protocol::QuicV1]));
    }
    addresses.extend(everywhere(&[Protocol::Tcp(port)]));
    if let Some(port) = ws_port {
        if !is_free(port, &[Type::STREAM]) {
            return Err(StartError::PortInUse {
                port,
                key: "ws_port",
            });
        }
        addresses.extend(everywhere(&[Protocol::Tcp(port), Protocol::Ws("/".into())]));
    }
    if let Some(port) = webrtc_port {
        if !is_free(port, &[Type::DGRAM]) {
            return Err(StartError::PortInUse {
                port,
                key: "webrtc_port",
            });
        }
        addresses.extend(everywhere(&[Protocol::Udp(port), Protocol::WebRTCDirect]));
    }
    Ok(addresses)
}

/// These protocols on all interfaces.
fn everywhere(protocols: &[Protocol<'static>]) -> Vec<Multiaddr> {
    let ips = [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ];
    let ips = ips.into_iter().filter(|ip| ip.is_ipv4() || has_ipv6());
    ips.map(|ip| Multiaddr::from_iter([ip.into()].iter().chain(protocols).cloned()))
        .collect()
}

/// TCP and UDP.
const BOTH: [Type; 2] = [Type::STREAM, Type::DGRAM];

/// Whether nobody uses the port. libp2p's TCP listener shares ports (SO_REUSEPORT, which hole punching
/// needs), so that a second node would not notice the first; this one does not share.
fn is_free(port: u16, kinds: &[Type]) -> bool {
    let free = |ip: IpAddr| kinds.iter().all(|kind| can_bind(ip, port, *kind));
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
    use crate::config::ConfigBuilder;

    #[test]
    fn a_port_that_either_protocol_uses_is_not_free() {
        let tcp = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        assert!(!is_free(tcp.local_addr().unwrap().port(), &BOTH));
        let udp = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        assert!(!is_free(port, &BOTH) && is_free(port, &[Type::STREAM]));
    }

    #[test]
    fn an_explicit_port_that_is_taken_is_an_error_that_names_it() {
        let tcp = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        for (config, key) in [
            (Config::builder().p2p_port(Some(port)), "p2p_port"),
            (Config::builder().ws_port(Some(port)), "ws_port"),
        ] {
            let error = addresses(&config.build().unwrap()).unwrap_err().to_string();
            assert!(
                error.contains(&port.to_string()) && error.contains(key),
                "{error}"
            );
        }
    }

    #[test]
    fn a_private_network_listens_on_tcp_and_websocket_only() {
        let config = Config::builder().p2p_port(Some(0)).ws_port(Some(0));
        let has_udp = |config: ConfigBuilder| {
            let addresses = addresses(&config.build().unwrap()).unwrap();
            let has = |wanted: &str| {
                addresses
                    .iter()
                    .any(|address| address.to_string().ends_with(wanted))
            };
            assert!(has("/tcp/0") && has("/tcp/0/ws"), "{addresses:?}");
            has("/quic-v1")
        };
        assert!(has_udp(config.clone()));
        assert!(!has_udp(
            config.swarm_key(Some(crate::swarm_key::generate()))
        ));
    }
}
