use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll, Waker},
};

use either::Either;
use futures::FutureExt;
use futures_timer::Delay;
use libp2p_core::{ConnectedPoint, Endpoint, Multiaddr, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerSelect, ConnectionId, DialError,
    FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    behaviour::toggle::Toggle,
};
use web_time::Instant;

use crate::{
    Config, Event, NatStatus, ObservedAddress, PunchError, Role, Transport,
    address::{Scope, without_peer},
    core::{
        nat::{self, Direction, Gateway, Nat, report::NatReport},
        observations::Observations,
        punches::Punches,
    },
    probe,
};

type Stock = Toggle<libp2p_dcutr::Behaviour>;
type Action = ToSwarm<Event, THandlerInEvent<Behaviour>>;

/// Replaces relayed connections by direct ones and knows whether this node needs that.
///
/// It wraps `libp2p_dcutr::Behaviour`, which runs the exchange and dials, and adds what that
/// leaves out: candidates with the port that the NAT really gave, one outcome for each attempt on
/// both sides, and reachability that only counts what a server has proven.
///
/// Candidates are read at the moment when a relayed connection comes up. A node that knows none
/// by then cannot be punched on that connection: wait for
/// [`has_candidates`](Self::has_candidates) before dialling through a relay.
///
/// A successful punch leaves the relayed connection open; closing it, once nothing is on it any
/// more, is the owner's part.
pub struct Behaviour {
    stock: Stock,
    observations: Observations,
    punches: Punches,
    nat: Nat,
    probe: probe::Behaviour,
    /// Candidates given to the stock behaviour, up to as many as it keeps.
    candidates: VecDeque<Multiaddr>,
    /// External addresses that this behaviour confirmed and did not withdraw.
    confirmed: Vec<Multiaddr>,
    actions: VecDeque<Action>,
    timer: Option<(Instant, Delay)>,
    waker: Option<Waker>,
}

/// How many candidates libp2p-dcutr 0.15 keeps.
const STOCK_CANDIDATES: usize = 20;

impl Behaviour {
    /// `local` is this node's own id.
    #[must_use]
    pub fn new(local: PeerId, config: Config) -> Self {
        let stock = config
            .enabled()
            .then(|| libp2p_dcutr::Behaviour::new(local));
        Self {
            stock: Toggle::from(stock),
            observations: Observations::new(config.clone()),
            punches: Punches::new(config.clone()),
            probe: probe::Behaviour::new(config.clone()),
            nat: Nat::new(config),
            candidates: VecDeque::new(),
            confirmed: Vec::new(),
            actions: VecDeque::new(),
            timer: None,
            waker: None,
        }
    }

    /// A peer told, through identify, at which address it sees this node. Give it the raw
    /// `observed_addr`: identify's own candidates carry the listen port instead of the one that
    /// the NAT gave (libp2p-identify 0.48).
    ///
    /// `local` is the address of this node's end of that connection, where known.
    pub fn on_observation(
        &mut self,
        observer: PeerId,
        local: Option<Multiaddr>,
        observed: Multiaddr,
    ) {
        // Through a relay the observer sees the relay, whatever address it reports.
        if local.is_some_and(|local| Scope::of(&local) == Scope::Useless) {
            return;
        }
        self.observations.on_observation(observer, &observed);
        for candidate in self.observations.new_candidates() {
            self.actions
                .push_back(ToSwarm::NewExternalAddrCandidate(candidate));
        }
        self.wake();
    }

    /// As [`on_observation`](Self::on_observation), with the connection that identify spoke over.
    /// What different peers see on connections that this node dialled from its listen port tells how
    /// the NAT maps ports.
    pub fn on_observed(
        &mut self,
        connection: ConnectionId,
        observer: PeerId,
        local: Option<Multiaddr>,
        observed: Multiaddr,
    ) {
        self.nat.on_observed(connection, &observed, now());
        self.on_observation(observer, local, observed);
    }

    /// An AutoNAT server tried to dial one of this node's addresses, with or without success.
    pub fn on_autonat(&mut self, server: PeerId, address: Multiaddr, reachable: bool) {
        self.nat.on_verdict(server, &address, reachable, now());
        self.wake();
    }

    /// Whether other nodes can reach this one without help.
    #[must_use]
    pub fn nat_status(&self) -> NatStatus {
        self.nat.status()
    }

    /// What is known of the NATs that this node stands behind.
    #[must_use]
    pub fn nat_report(&self) -> NatReport {
        *self.nat.report()
    }

    /// A STUN server told where it saw what a socket of this host had sent it. `local_port`: that
    /// socket's; it must not be the node's own. Several servers that saw one socket tell the mapping
    /// for certain.
    pub fn on_stun(&mut self, local_port: u16, server: SocketAddr, observed: SocketAddr) {
        self.nat.on_stun(local_port, server, observed, now());
        self.wake();
    }

    /// The gateway answers, or no longer does: `maps_ports` on request, by UPnP, NAT-PMP or PCP, and
    /// `outer` is its address on the far side, if it tells. A private one means that there is another
    /// NAT behind it.
    pub fn on_gateway(&mut self, maps_ports: bool, outer: Option<IpAddr>) {
        self.nat.on_gateway(Gateway { maps_ports, outer }, now());
        self.wake();
    }

    /// The gateway sends what arrives at this public address to this node, or no longer does. AutoNAT
    /// must find it reachable before it is confirmed to the swarm.
    pub fn on_port_mapped(&mut self, address: &Multiaddr, mapped: bool) {
        self.nat.on_port_mapped(address, mapped, now());
        if mapped {
            let candidate = ToSwarm::NewExternalAddrCandidate(address.clone());
            self.actions.push_back(candidate);
        }
        self.wake();
    }

    /// A packet that this host sent to its own public address came back, or did not.
    pub fn on_hairpin(&mut self, works: bool) {
        self.nat.on_hairpin(works, now());
        self.wake();
    }

    /// Where the node's next flows will be seen, behind a NAT that counts its ports up: up to
    /// `predicted_ports` for each observed address of such a transport, the likeliest first. Peers
    /// that are to punch should try them, in this order, at once: every flow uses one up.
    #[must_use]
    pub fn predicted_addresses(&self) -> Vec<Multiaddr> {
        let observed = self.observations.addresses();
        let mut predicted: Vec<Multiaddr> = Vec::new();
        for seen in observed {
            for address in self.nat.predicted(&seen.address) {
                if !predicted.contains(&address) {
                    predicted.push(address);
                }
            }
        }
        predicted
    }

    /// The addresses at which other peers saw this node, those with most observers first.
    #[must_use]
    pub fn observed_addresses(&self) -> Vec<ObservedAddress> {
        self.observations.addresses()
    }

    /// Whether a relayed connection that came up now could be punched from this side.
    #[must_use]
    pub fn has_candidates(&self) -> bool {
        !self.candidates.is_empty()
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn on_stock_event(&mut self, event: libp2p_dcutr::Event) {
        // A success shows as a connection, on both sides alike.
        if let Err(error) = event.result {
            tracing::debug!(peer = %event.remote_peer_id, %error, "punch failed");
            self.punches
                .on_failed(event.remote_peer_id, classify(&error), now());
        }
    }

    fn on_nat_output(&mut self, output: nat::Output) {
        self.actions.push_back(match output {
            nat::Output::Confirm(address) => {
                self.confirmed.push(address.clone());
                ToSwarm::ExternalAddrConfirmed(address)
            }
            nat::Output::Expire(address) => {
                self.confirmed.retain(|confirmed| *confirmed != address);
                ToSwarm::ExternalAddrExpired(address)
            }
            nat::Output::StatusChanged { old, new } => {
                ToSwarm::GenerateEvent(Event::NatStatusChanged { old, new })
            }
            nat::Output::ReportChanged { old, new } => {
                ToSwarm::GenerateEvent(Event::Reachability { old, new })
            }
            nat::Output::Reprobe => {
                self.probe.on_changed();
                return;
            }
        });
    }

    fn on_candidate(&mut self, address: &Multiaddr) {
        if self.candidates.contains(address) {
            return;
        }
        if self.candidates.len() >= STOCK_CANDIDATES {
            self.candidates.pop_front();
        }
        self.candidates.push_back(address.clone());
    }

    fn on_established(&mut self, connection: ConnectionId, peer: PeerId, at: &ConnectedPoint) {
        if at.is_relayed() {
            let role = if at.is_listener() {
                Role::Initiator
            } else {
                Role::Responder
            };
            self.punches.on_relayed(connection, peer, role, now());
        } else {
            let direction = match at {
                ConnectedPoint::Dialer { port_use, .. } => Direction::Outbound {
                    own_port: *port_use == PortUse::Reuse,
                },
                ConnectedPoint::Listener { .. } => Direction::Inbound,
            };
            let remote = at.get_remote_address();
            self.nat
                .on_connected(connection, peer, remote, direction, now());
            let transport = Transport::of(remote);
            self.punches.on_direct(connection, peer, transport, now());
        }
    }

    /// Arms the timer for the next deadline of either core. True if that has passed.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let deadlines = [self.punches.poll_timeout(), self.nat.poll_timeout()];
        let Some(deadline) = deadlines.into_iter().flatten().min() else {
            self.timer = None;
            return false;
        };
        let armed = self.timer.take().filter(|(at, _)| *at == deadline);
        let (at, mut delay) = armed.unwrap_or_else(|| {
            let wait = deadline.saturating_duration_since(now());
            (deadline, Delay::new(wait))
        });
        if delay.poll_unpin(cx).is_ready() {
            return true;
        }
        self.timer = Some((at, delay));
        false
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = ConnectionHandlerSelect<THandler<Stock>, probe::Handler>;
    type ToSwarm = Event;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.stock
            .handle_pending_inbound_connection(connection, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let punching = self
            .stock
            .handle_established_inbound_connection(connection, peer, local, remote)?;
        let probe = self
            .probe
            .handle_established_inbound_connection(connection, peer, local, remote)?;
        Ok(punching.select(probe))
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.nat.on_dial(connection, peer, addresses, now());
        self.stock
            .handle_pending_outbound_connection(connection, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let punching = self
            .stock
            .handle_established_outbound_connection(connection, peer, address, role, port_use)?;
        let probe = self
            .probe
            .handle_established_outbound_connection(connection, peer, address, role, port_use)?;
        Ok(punching.select(probe))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            // Comes from identify, from us, or from a port mapping. What no peer can use would
            // push out what it can.
            FromSwarm::NewExternalAddrCandidate(candidate) => {
                if !self.observations.accepts(candidate.addr) {
                    return;
                }
                self.on_candidate(candidate.addr);
            }
            FromSwarm::DialFailure(event) => {
                let failed = match event.error {
                    DialError::Transport(errors) => errors.as_slice(),
                    _ => &[],
                };
                let failed = failed.iter().map(|(address, _)| address);
                self.nat.on_dial_failed(event.connection_id, failed, now());
            }
            FromSwarm::ConnectionEstablished(event) => {
                let failed = event.failed_addresses;
                self.nat.on_dial_failed(event.connection_id, failed, now());
                self.on_established(event.connection_id, event.peer_id, event.endpoint);
            }
            FromSwarm::ConnectionClosed(event) => {
                self.nat.on_closed(event.connection_id, now());
                self.punches
                    .on_closed(event.connection_id, event.peer_id, now());
            }
            FromSwarm::NewListenAddr(event) => self.nat.on_listening(event.addr, now()),
            FromSwarm::ExpiredListenAddr(event) => self.nat.on_not_listening(event.addr, now()),
            FromSwarm::ExternalAddrConfirmed(event) => {
                let address = without_peer(event.addr);
                if !self.confirmed.contains(&address) {
                    self.nat.on_configured(&address, now());
                }
            }
            FromSwarm::ExternalAddrExpired(event) => {
                let address = without_peer(event.addr);
                self.confirmed.retain(|confirmed| *confirmed != address);
                self.nat.on_withdrawn(&address, now());
            }
            _ => {}
        }
        self.probe.on_swarm_event(event);
        self.stock.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {
            Either::Left(event) => self
                .stock
                .on_connection_handler_event(peer, connection, event),
            Either::Right(event) => self
                .probe
                .on_connection_handler_event(peer, connection, event),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Poll::Ready(action);
            }
            if let Some(event) = self.punches.poll_output() {
                return Poll::Ready(ToSwarm::GenerateEvent(event));
            }
            if let Some(output) = self.nat.poll_output() {
                self.on_nat_output(output);
                continue;
            }
            match self.stock.poll(cx) {
                Poll::Ready(ToSwarm::GenerateEvent(event)) => {
                    self.on_stock_event(event);
                    continue;
                }
                Poll::Ready(action) => {
                    let action = action.map_out(|_| unreachable!("matched above"));
                    return Poll::Ready(action.map_in(Either::Left));
                }
                Poll::Pending => {}
            }
            match self.probe.poll(cx) {
                Poll::Ready(ToSwarm::GenerateEvent(probed)) => {
                    let observed = probed.observed.as_ref();
                    self.nat
                        .on_probed(probed.connection, observed, &probed.answer, now());
                    continue;
                }
                Poll::Ready(action) => {
                    let action = action.map_out(|_| unreachable!("matched above"));
                    return Poll::Ready(action.map_in(Either::Right));
                }
                Poll::Pending => {}
            }
            if self.poll_timer(cx) {
                let now = now();
                self.punches.handle_timeout(now);
                self.nat.handle_timeout(now);
                continue;
            }
            self.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
    }
}

/// libp2p-dcutr 0.15 keeps the kind of its errors private; their text is all that tells.
fn classify(error: &libp2p_dcutr::Error) -> PunchError {
    if error.to_string().contains("Giving up after") {
        PunchError::DialsFailed
    } else {
        PunchError::ExchangeFailed
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the adapter reads the clock for the cores"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}
