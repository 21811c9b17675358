//! TCP openers: SYNs that leave our NAT and do not reach the peer's.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use socket2::{Domain, Socket, Type};

/// Hops that an opener lives: our own NAT is the first, and the peer's further than the second. A
/// SYN that reached a NAT which answers what it does not know would make that NAT give the peer's
/// flow another port (<https://github.com/libp2p/specs/issues/512>).
const HOPS: u32 = 2;

/// Opens our NAT for `peer`, from the port that we listen on. Nothing is waited for: the SYN is out
/// when the call returns, and the socket goes, so that the dial can use the port.
pub(super) fn open(listening: &[Multiaddr], peer: &Multiaddr) -> io::Result<()> {
    let Some(peer) = tcp_address(peer) else {
        return Ok(());
    };
    let mut ours = listening.iter().filter_map(tcp_address);
    let ours = ours.find(|own| own.is_ipv4() == peer.is_ipv4() && !own.ip().is_loopback());
    let Some(port) = ours.map(|own| own.port()) else {
        return Ok(());
    };
    let socket = Socket::new(Domain::for_address(peer), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    #[cfg(all(unix, not(any(target_os = "solaris", target_os = "illumos"))))]
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    let any: IpAddr = if peer.is_ipv4() {
        socket.set_ttl_v4(HOPS)?;
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        socket.set_only_v6(true)?;
        socket.set_unicast_hops_v6(HOPS)?;
        Ipv6Addr::UNSPECIFIED.into()
    };
    socket.bind(&SocketAddr::new(any, port).into())?;
    // In progress, or refused: the packet is out either way.
    let _ = socket.connect(&peer.into());
    Ok(())
}

fn tcp_address(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    match (parts.next()?, parts.next()) {
        (Protocol::Tcp(port), None) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}
