//! A behaviour on libp2p's own [`libp2p_mdns`], one instance for each address family, with this crate's events and bounds: to
//! compare, or for those who want the stock engine.
//!
//! It has that engine's limits: tokio only, one fixed service name, no loopback, no goodbye, TXT records in the additional section only,
//! one IPv6 interface. Of [`Config`] it heeds the query interval, the TTL, the families and the bounds.

mod merge;

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    task::{Context, Poll},
};

use libp2p_core::{Endpoint, Multiaddr, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_mdns::tokio::Behaviour as Mdns;
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, dummy,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{Config, Event, Family};
use merge::Merge;

/// The port of multicast DNS (RFC 6762 §3).
const MDNS_PORT: u16 = 5353;

/// Finds the peers of the local network over IPv4 and IPv6 at once.
///
/// Like the [`libp2p_mdns`] behaviours inside it, it must be created **and polled inside a tokio
/// context** (its sockets live there): run the swarm on tokio, or wrap the future that drives it in
/// `async_compat::Compat`. Outside of one [`Behaviour::new`] returns an error.
pub struct Behaviour {
    families: Vec<(Family, Mdns)>,
    core: Merge,
    outbox: VecDeque<ToSwarm<Event, Infallible>>,
}

impl Behaviour {
    /// Starts on every enabled address family that the machine has. A family that it lacks is
    /// logged at WARN and left out; see [`Behaviour::families`].
    ///
    /// # Errors
    /// When no enabled family is usable (the error names each one's cause), or outside a tokio context.
    pub fn new(local: PeerId, config: Config) -> io::Result<Self> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(io::Error::other(
                "mDNS needs a tokio context: create and poll it inside a tokio runtime, or inside \
                 async_compat::Compat on another executor",
            ));
        }
        let mut families = Vec::new();
        let mut causes = Vec::new();
        for family in [Family::V4, Family::V6] {
            let enabled = match family {
                Family::V4 => config.enable_ipv4(),
                Family::V6 => config.enable_ipv6(),
            };
            if !enabled {
                continue;
            }
            match start(family, local, &config) {
                Ok(mdns) => families.push((family, mdns)),
                Err(error) => causes.push((family, error)),
            }
        }
        for (family, error) in &causes {
            tracing::warn!(?family, %error, "mDNS is not available over this address family");
        }
        if families.is_empty() {
            let causes: Vec<_> = causes
                .iter()
                .map(|(family, error)| format!("{family:?}: {error}"))
                .collect();
            return Err(io::Error::other(format!(
                "multicast DNS works over no address family ({}); disable mDNS on this machine",
                causes.join("; ")
            )));
        }
        Ok(Self {
            families,
            core: Merge::new(local, &config),
            outbox: VecDeque::new(),
        })
    }

    /// The address families in use: at least one, those that are enabled and that the machine has.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        self.families.iter().map(|(family, _)| *family)
    }

    /// The peers that are known now, in order of their ids.
    pub fn peers(&self) -> impl Iterator<Item = &PeerId> {
        self.core.peers()
    }

    /// The known addresses of `peer`, each ending in `/p2p/<peer>`; empty for an unknown peer.
    pub fn addresses(&self, peer: &PeerId) -> impl Iterator<Item = &Multiaddr> {
        self.core.addresses(peer)
    }

    fn drain_core(&mut self) {
        while let Some(event) = self.core.poll_output() {
            let addresses = match &event {
                Event::Discovered { peer, addresses } => {
                    tracing::debug!(%peer, ?addresses, "discovered on the local network");
                    addresses
                        .iter()
                        .map(|address| (*peer, address.clone()))
                        .collect()
                }
                Event::Expired { .. } => Vec::new(),
            };
            self.outbox.push_back(ToSwarm::GenerateEvent(event));
            self.outbox.extend(
                addresses
                    .into_iter()
                    .map(|(peer_id, address)| ToSwarm::NewExternalAddrOfPeer { peer_id, address }),
            );
        }
    }
}

/// Checks that the family can be bound on this machine, which [`libp2p_mdns`] only logs, then starts it.
/// Interfaces may come later, so the group is not joined here.
fn start(family: Family, local: PeerId, config: &Config) -> io::Result<Mdns> {
    let (domain, address) = match family {
        Family::V4 => (
            Domain::IPV4,
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, MDNS_PORT)),
        ),
        Family::V6 => (
            Domain::IPV6,
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, MDNS_PORT)),
        ),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    #[cfg(unix)]
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    drop(socket);

    let config = libp2p_mdns::Config {
        ttl: config.ttl(),
        query_interval: config.query_interval(),
        enable_ipv6: family == Family::V6,
    };
    Mdns::new(config, local)
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        Ok(peer
            .map(|peer| self.core.addresses(&peer).cloned().collect())
            .unwrap_or_default())
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        for (_, mdns) in &mut self.families {
            mdns.on_swarm_event(event);
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Some(action) = self.outbox.pop_front() {
                return Poll::Ready(action);
            }
            let mut progressed = false;
            for (family, mdns) in &mut self.families {
                while let Poll::Ready(action) = mdns.poll(cx) {
                    progressed = true;
                    match action {
                        ToSwarm::GenerateEvent(libp2p_mdns::Event::Discovered(records)) => {
                            self.core.on_discovered(*family, records);
                        }
                        ToSwarm::GenerateEvent(libp2p_mdns::Event::Expired(records)) => {
                            self.core.on_expired(*family, records);
                        }
                        // Addresses reach the swarm from the merged table, within its limits.
                        _ => {}
                    }
                }
            }
            self.drain_core();
            if !progressed {
                return Poll::Pending;
            }
        }
    }
}
