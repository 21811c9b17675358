use std::{
    collections::{BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use futures::task::AtomicWaker;
use libp2p_core::{Multiaddr, multiaddr::Protocol, transport::PortUse};

use crate::{Transport, core::punch::PortId};

/// What the behaviour and the transports of fresh ports share: which dial leaves from which port, and
/// which ports are open. Clones are the same one. One [`Tcp`](super::Tcp) and one
/// [`Quic`](super::Quic) at most for each.
#[derive(Debug, Clone, Default)]
pub struct Ports(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// The QUIC transport, which has sockets to poll.
    poller: AtomicWaker,
}

#[derive(Debug, Default)]
struct State {
    /// Those that stand before the swarm's.
    transports: Vec<Transport>,
    /// As many as the behaviour opens.
    open: BTreeSet<PortId>,
    /// Announced and not begun, at most [`MAX_ANNOUNCED`].
    announced: VecDeque<(Transport, SocketAddr, Departure)>,
}

/// Where a dial leaves from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Departure {
    pub(crate) port: PortId,
    pub(crate) purpose: Purpose,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The first dial of a port, to a server. QUIC opens the NAT for these before: packets that live for
    /// `ttl` hops. TCP does so with each dial that follows.
    Open { towards: Vec<SocketAddr>, ttl: u32 },
    /// To the peer.
    Punch,
}

impl Ports {
    pub(super) fn serves(&self, transport: Transport) {
        let mut state = self.state();
        if !state.transports.contains(&transport) {
            state.transports.push(transport);
        }
    }

    /// Transports that dials can be announced to.
    pub(crate) fn transports(&self) -> Vec<Transport> {
        self.state().transports.clone()
    }

    /// The next dial to `address` that asks for a new port leaves from there.
    pub(crate) fn announce(&self, address: &Multiaddr, departure: Departure) {
        let Some((transport, to)) = end_of(address) else {
            return;
        };
        let mut state = self.state();
        if let Purpose::Open { .. } = departure.purpose {
            state.open.insert(departure.port);
        } else if !state.open.contains(&departure.port) {
            return;
        }
        if state.announced.len() >= MAX_ANNOUNCED {
            state.announced.pop_front();
        }
        state.announced.push_back((transport, to, departure));
    }

    /// The port takes no more connections.
    pub(crate) fn close(&self, port: PortId) {
        let mut state = self.state();
        state.open.remove(&port);
        state
            .announced
            .retain(|(_, _, departure)| departure.port != port);
        drop(state);
        self.wake();
    }

    pub(super) fn is_open(&self, port: PortId) -> bool {
        self.state().open.contains(&port)
    }

    /// What is announced of a dial that begins.
    pub(super) fn take(
        &self,
        transport: Transport,
        address: &Multiaddr,
        port_use: PortUse,
    ) -> Option<(SocketAddr, Departure)> {
        let (of, to) = end_of(address)?;
        if of != transport || port_use != PortUse::New {
            return None;
        }
        let announced = &mut self.state().announced;
        let mut found = announced.iter();
        let at = found.position(|(of, end, _)| *of == transport && *end == to)?;
        announced
            .remove(at)
            .map(|(_, _, departure)| (to, departure))
    }

    /// Who is woken when a port is opened or closed.
    pub(super) fn register(&self, waker: &Waker) {
        self.0.poller.register(waker);
    }

    pub(super) fn wake(&self) {
        self.0.poller.wake();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let locked = self.0.state.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The transport and the socket address of a numeric TCP or QUIC address.
pub(crate) fn end_of(address: &Multiaddr) -> Option<(Transport, SocketAddr)> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let (transport, port) = match parts.next()? {
        Protocol::Tcp(port) => (Transport::Tcp, port),
        Protocol::Udp(port) if parts.next() == Some(Protocol::QuicV1) => (Transport::Quic, port),
        _ => return None,
    };
    parts
        .all(|part| matches!(part, Protocol::P2p(_)))
        .then_some((transport, SocketAddr::new(ip, port)))
}

/// All interfaces, of the IP version of `other`.
pub(super) fn anywhere(other: SocketAddr, port: u16) -> SocketAddr {
    let ip: IpAddr = match other {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, port)
}

/// Dials begin as soon as they are announced; what is left over was denied.
const MAX_ANNOUNCED: usize = 64;
