//! One socket for a link: port 5353, joined to the family's group on one interface.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    task::{Context, Poll, ready},
};

use async_io::Async;
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use crate::{
    Family,
    core::{Destination, LinkId, MDNS_PORT},
    dns::MAX_RECEIVED,
    interfaces::Interface,
};

const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
/// RFC 6762 §11: all packets leave with it.
const HOPS: u32 = 255;

/// Sends and receives on one link.
#[derive(Debug)]
pub(crate) struct LinkSocket {
    id: LinkId,
    socket: Async<UdpSocket>,
}

impl LinkSocket {
    pub(crate) fn open(interface: &Interface) -> io::Result<Self> {
        let id = interface.id;
        let socket = bind(id.family, Some(interface))?;
        match id.family {
            Family::V4 => {
                socket.set_multicast_loop_v4(true)?;
                socket.set_multicast_ttl_v4(HOPS)?;
                join_v4(&socket, interface)?;
            }
            Family::V6 => {
                socket.set_multicast_loop_v6(true)?;
                socket.set_multicast_hops_v6(HOPS)?;
                socket.set_unicast_hops_v6(HOPS)?;
                socket.set_multicast_if_v6(id.interface)?;
                socket.join_multicast_v6(&GROUP_V6, id.interface)?;
            }
        }
        socket.set_nonblocking(true)?;
        Ok(Self {
            id,
            socket: Async::new_nonblocking(socket.into())?,
        })
    }

    pub(crate) fn id(&self) -> LinkId {
        self.id
    }

    /// The next packet and its sender; `None`: a packet that is of no use, and there may be others.
    pub(crate) fn poll_receive(
        &self,
        buffer: &mut [u8; MAX_RECEIVED],
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<(usize, SocketAddr)>>> {
        loop {
            // Asked first, the reactor is only needed when the socket is empty.
            match self.socket.get_ref().recv_from(buffer) {
                Ok((len, source)) => {
                    return Poll::Ready(Ok(self.is_mine(source).then_some((len, source))));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket.poll_readable(cx))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_about_one_packet(&error) => return Poll::Ready(Ok(None)),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Where sockets cannot be bound to an interface, each hears what comes in by any.
    fn is_mine(&self, source: SocketAddr) -> bool {
        match source {
            SocketAddr::V6(source) if source.scope_id() != 0 => {
                source.scope_id() == self.id.interface
            }
            _ => true,
        }
    }

    /// Sends without waiting: what the kernel has no room for is lost, as any datagram may be.
    pub(crate) fn send(&self, packet: &[u8], to: Destination) -> io::Result<()> {
        let to = match (to, self.id.family) {
            // The engine knows addresses, the system wants to know the link of a link-local one.
            (Destination::Host(to), _) => on_interface(to, self.id.interface),
            (Destination::Group, Family::V4) => SocketAddr::from((GROUP_V4, MDNS_PORT)),
            (Destination::Group, Family::V6) => {
                SocketAddrV6::new(GROUP_V6, MDNS_PORT, 0, self.id.interface).into()
            }
        };
        self.socket.get_ref().send_to(packet, to).map(drop)
    }
}

/// The same address, as one on this interface.
fn on_interface(to: SocketAddr, interface: u32) -> SocketAddr {
    match to {
        SocketAddr::V6(to) if to.ip().is_unicast_link_local() => {
            SocketAddrV6::new(*to.ip(), to.port(), to.flowinfo(), interface).into()
        }
        to => to,
    }
}

/// Windows tells on the receiving side that a packet was longer than the buffer, or that one of ours met a closed
/// port. Anybody on the link can bring that about: the socket is as good as before.
fn is_about_one_packet(error: &io::Error) -> bool {
    const WSAEMSGSIZE: i32 = 10_040;
    error.kind() == io::ErrorKind::ConnectionReset
        || (cfg!(windows) && error.raw_os_error() == Some(WSAEMSGSIZE))
}

/// Whether this machine lets us have the port in this family at all.
pub(crate) fn probe(family: Family) -> io::Result<()> {
    bind(family, None).map(drop)
}

fn bind(family: Family, interface: Option<&Interface>) -> io::Result<Socket> {
    let (domain, any) = match family {
        Family::V4 => (Domain::IPV4, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        Family::V6 => (Domain::IPV6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    // The system's own responder has the port too.
    socket.set_reuse_address(true)?;
    #[cfg(unix)]
    socket.set_reuse_port(true)?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    if let Some(interface) = interface
        && let Err(error) = bind_to_device(&socket, interface)
    {
        // Linux before 5.7 wants a privilege for it. Without it the packets of other links are told by their sources.
        tracing::debug!(interface = %interface.name, %error, "the socket hears all interfaces");
    }
    socket.bind(&SocketAddr::new(any, MDNS_PORT).into())?;
    Ok(socket)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn bind_to_device(socket: &Socket, interface: &Interface) -> io::Result<()> {
    socket.bind_device(Some(interface.name.as_bytes()))
}

#[cfg(any(target_os = "macos", target_os = "ios"))]
fn bind_to_device(socket: &Socket, interface: &Interface) -> io::Result<()> {
    let index = std::num::NonZeroU32::new(interface.id.interface);
    match interface.id.family {
        Family::V4 => socket.bind_device_by_index_v4(index),
        Family::V6 => socket.bind_device_by_index_v6(index),
    }
}

#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_os = "macos",
    target_os = "ios"
)))]
fn bind_to_device(_: &Socket, _: &Interface) -> io::Result<()> {
    Ok(())
}

/// By the interface's index; where that is not possible, by its address.
fn join_v4(socket: &Socket, interface: &Interface) -> io::Result<()> {
    let address = interface
        .networks
        .iter()
        .find_map(|network| match network.address {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        })
        .ok_or(io::ErrorKind::AddrNotAvailable)?;
    socket.set_multicast_if_v4(&address)?;
    let index = InterfaceIndexOrAddress::Index(interface.id.interface);
    socket
        .join_multicast_v4_n(&GROUP_V4, &index)
        .or_else(|_| socket.join_multicast_v4(&GROUP_V4, &address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_is_answered_on_the_link_where_it_asked() {
        let on = |to: &str| match on_interface(to.parse().unwrap(), 7) {
            SocketAddr::V6(to) => to.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        assert_eq!(on("[fe80::1]:5353"), 7);
        assert_eq!(on("[fd00::1]:5353"), 0);
        assert_eq!(on("10.0.0.1:5353"), 0);
    }

    #[test]
    fn one_bad_packet_does_not_cost_the_socket() {
        assert!(is_about_one_packet(&io::ErrorKind::ConnectionReset.into()));
        assert!(!is_about_one_packet(&io::ErrorKind::NetworkDown.into()));
    }
}
