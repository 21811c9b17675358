use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    task::{Context, Poll},
};

use futures::FutureExt as _;
use futures_timer::Delay;
use libp2p_core::{Endpoint, Multiaddr, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, dummy,
};
use web_time::Instant;

use crate::{
    Config, Event, Family,
    core::{Core, Counters, LinkId, Output},
    dns::MAX_RECEIVED,
    interfaces::{self, Interface, Watcher},
    socket::{self, LinkSocket},
};

/// Packets that one `poll` takes from each socket before it lets others run.
const PACKETS_PER_POLL: usize = 32;

/// Finds the peers of the local network over IPv4 and IPv6 at once, on every interface.
///
/// Runs on any executor: its sockets live in async-io. Dropping it says goodbye, so that the others
/// forget this node at once.
pub struct Behaviour {
    core: Core,
    config: Config,
    families: Vec<Family>,
    links: BTreeMap<LinkId, Link>,
    watcher: Watcher,
    timer: Delay,
    timer_at: Option<Instant>,
    buffer: Box<[u8; MAX_RECEIVED]>,
    outbox: VecDeque<ToSwarm<Event, Infallible>>,
    #[cfg(feature = "metrics")]
    metrics: Option<crate::metrics::Metrics>,
}

struct Link {
    interface: Interface,
    socket: LinkSocket,
}

impl Behaviour {
    /// Starts on the interfaces that are up, in every enabled address family that the machine has. A family that it lacks is logged at
    /// WARN and left out; see [`Behaviour::families`]. Interfaces that come later are used as they come.
    ///
    /// # Errors
    /// When no enabled family is usable (the error names each one's cause).
    pub fn new(local: PeerId, config: Config) -> io::Result<Self> {
        let mut families = Vec::new();
        let mut causes = Vec::new();
        for (family, enabled) in [
            (Family::V4, config.enable_ipv4()),
            (Family::V6, config.enable_ipv6()),
        ] {
            if !enabled {
                continue;
            }
            match socket::probe(family) {
                Ok(()) => families.push(family),
                Err(error) => {
                    tracing::warn!(?family, %error, "mDNS is not available over this address family");
                    causes.push(format!("{family:?}: {error}"));
                }
            }
        }
        if families.is_empty() {
            return Err(io::Error::other(format!(
                "multicast DNS works over no address family ({}); disable mDNS on this machine",
                causes.join("; ")
            )));
        }
        let mut behaviour = Self {
            core: Core::new(local, config.clone(), rand::random()),
            config,
            families,
            links: BTreeMap::new(),
            watcher: Watcher::new(),
            timer: Delay::new(std::time::Duration::ZERO),
            timer_at: None,
            buffer: Box::new([0; MAX_RECEIVED]),
            outbox: VecDeque::new(),
            #[cfg(feature = "metrics")]
            metrics: None,
        };
        behaviour.look_at_interfaces(now());
        Ok(behaviour)
    }

    /// The address families in use: at least one, those that are enabled and that the machine has.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        self.families.iter().copied()
    }

    /// The peers that are known now, in order of their ids.
    pub fn peers(&self) -> impl Iterator<Item = &PeerId> {
        self.core.peers()
    }

    /// The known addresses of `peer`, each ending in `/p2p/<peer>`; empty for an unknown peer.
    pub fn addresses(&self, peer: &PeerId) -> impl Iterator<Item = &Multiaddr> {
        self.core.addresses(peer)
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.core.counters()
    }

    /// Registers the metrics of this behaviour, with the prefix `discovery_mdns_`.
    #[cfg(feature = "metrics")]
    pub fn register_metrics(&mut self, registry: &mut prometheus_client::registry::Registry) {
        self.metrics = Some(crate::metrics::Metrics::register(registry));
    }

    /// Opens and closes sockets so that there is one for each link.
    fn look_at_interfaces(&mut self, now: Instant) {
        let interfaces = match interfaces::list(&self.config, &self.families) {
            Ok(interfaces) => interfaces,
            Err(error) => {
                tracing::warn!(%error, "cannot list the network interfaces");
                return;
            }
        };
        let gone: Vec<LinkId> = self
            .links
            .keys()
            .filter(|id| !interfaces.contains_key(id))
            .copied()
            .collect();
        for id in gone {
            self.close(id, now);
        }
        for (id, interface) in interfaces {
            // The group is joined by address in some systems: a new address wants a new socket.
            let unchanged = self
                .links
                .get(&id)
                .is_some_and(|link| link.interface == interface);
            if unchanged {
                continue;
            }
            match LinkSocket::open(&interface) {
                Ok(socket) => {
                    tracing::debug!(interface = %interface.name, family = ?id.family, "searching peers");
                    let (networks, loopback) = (interface.networks.clone(), interface.loopback);
                    self.links.insert(id, Link { interface, socket });
                    self.core.on_link_up(id, networks, loopback, now);
                }
                Err(error) => {
                    // Tried again at the next look.
                    tracing::debug!(interface = %interface.name, family = ?id.family, %error, "no multicast");
                    self.close(id, now);
                }
            }
        }
    }

    fn close(&mut self, id: LinkId, now: Instant) {
        self.links.remove(&id);
        self.core.on_link_down(id, now);
    }

    fn drain_core(&mut self) {
        let mut any = false;
        while let Some(output) = self.core.poll_output() {
            any = true;
            match output {
                Output::Send { link, to, packet } => {
                    let Some(link) = self.links.get(&link) else {
                        continue;
                    };
                    if let Err(error) = link.socket.send(&packet, to) {
                        tracing::debug!(interface = %link.interface.name, %error, "cannot send");
                    }
                }
                Output::Event(event) => self.on_event(event),
            }
        }
        #[cfg(feature = "metrics")]
        if any && let Some(metrics) = &self.metrics {
            metrics.on_core(&self.core);
        }
        let _ = any;
    }

    fn on_event(&mut self, event: Event) {
        #[cfg(feature = "metrics")]
        if let Some(metrics) = &self.metrics {
            metrics.on_event(&event);
        }
        let mut news = Vec::new();
        if let Event::Discovered { peer, addresses } = &event {
            tracing::debug!(%peer, ?addresses, "discovered on the local network");
            news.extend(
                addresses
                    .iter()
                    .map(|address| ToSwarm::NewExternalAddrOfPeer {
                        peer_id: *peer,
                        address: address.clone(),
                    }),
            );
        }
        // The address book first: whoever acts on the event finds the addresses there.
        self.outbox.extend(news);
        self.outbox.push_back(ToSwarm::GenerateEvent(event));
    }

    /// Takes packets from the sockets. Returns whether there may be more.
    fn receive(&mut self, now: Instant, cx: &mut Context<'_>) -> bool {
        let mut broken = Vec::new();
        let mut more = false;
        for link in self.links.values() {
            let mut left = PACKETS_PER_POLL;
            while left > 0 {
                match link.socket.poll_receive(&mut self.buffer, cx) {
                    Poll::Ready(Ok(None)) => left -= 1,
                    Poll::Ready(Ok(Some((len, source)))) => {
                        left -= 1;
                        let packet = self.buffer.get(..len).unwrap_or_default();
                        let source = unmapped(source);
                        self.core.on_packet(link.socket.id(), source, packet, now);
                    }
                    Poll::Ready(Err(error)) => {
                        tracing::debug!(interface = %link.interface.name, %error, "cannot receive");
                        broken.push(link.socket.id());
                        break;
                    }
                    Poll::Pending => break,
                }
            }
            more |= left == 0;
        }
        for id in broken {
            // Opened anew at the next look, if the interface is still there.
            self.close(id, now);
        }
        more
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.core.poll_timeout() else {
            return Poll::Pending;
        };
        if self.timer_at != Some(at) {
            self.timer_at = Some(at);
            self.timer.reset(at.saturating_duration_since(now()));
        }
        self.timer.poll_unpin(cx)
    }
}

#[expect(clippy::disallowed_methods, reason = "the adapter's clock")]
fn now() -> Instant {
    Instant::now()
}

fn unmapped(source: SocketAddr) -> SocketAddr {
    SocketAddr::new(source.ip().to_canonical(), source.port())
}

impl Drop for Behaviour {
    fn drop(&mut self) {
        self.core.shut_down();
        self.drain_core();
    }
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behaviour")
            .field("families", &self.families)
            .field("links", &self.links.keys())
            .finish_non_exhaustive()
    }
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
        match event {
            FromSwarm::NewListenAddr(new) => self.core.on_listening(new.addr, now()),
            FromSwarm::ExpiredListenAddr(gone) => {
                self.core.on_not_listening(gone.addr, now());
            }
            FromSwarm::ConnectionEstablished(connection) => {
                self.core.on_connected(&connection.peer_id);
            }
            FromSwarm::ConnectionClosed(connection) if connection.remaining_established == 0 => {
                self.core.on_disconnected(&connection.peer_id);
            }
            _ => {}
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            self.drain_core();
            if let Some(action) = self.outbox.pop_front() {
                return Poll::Ready(action);
            }
            let now = now();
            if self.watcher.poll_changed(cx).is_ready() {
                self.look_at_interfaces(now);
                continue;
            }
            if self.poll_timer(cx).is_ready() {
                self.timer_at = None;
                self.core.handle_timeout(now);
                continue;
            }
            if self.receive(now, cx) {
                // Others want to run too.
                cx.waker().wake_by_ref();
            }
            self.drain_core();
            if self.outbox.is_empty() && self.poll_timer(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
