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
};
use web_time::Instant;

use crate::{
    Config, Event, NatStatus, ObservedAddress, Outcome,
    address::{Scope, without_peer},
    core::{
        nat::{self, Direction, Gateway, Nat, report::NatReport},
        observations::Observations,
    },
    dcutr::Dcutr,
    probe,
};

type Action = ToSwarm<Event, THandlerInEvent<Behaviour>>;

/// Replaces relayed connections by direct ones and knows whether this node needs that.
///
/// It speaks [DCUtR](https://github.com/libp2p/specs/blob/master/relay/DCUtR.md) with whoever does,
/// starts by itself on every relayed connection to a peer without a direct one, and tells one
/// [`Outcome`] for each on both sides. Candidates are gathered at the moment of the exchange; where
/// none is known yet, the initiator waits for one ([`Config::candidate_wait`]).
///
/// A successful punch leaves the relayed connection open; closing it, once nothing is on it any
/// more, is the owner's part.
pub struct Behaviour {
    dcutr: Dcutr,
    observations: Observations,
    nat: Nat,
    probe: probe::Behaviour,
    /// External addresses that this behaviour confirmed and did not withdraw.
    confirmed: Vec<Multiaddr>,
    actions: VecDeque<Action>,
    alarm: Alarm,
    waker: Option<Waker>,
}

impl Behaviour {
    /// `local` is this node's own id.
    #[must_use]
    pub fn new(local: PeerId, config: Config) -> Self {
        Self {
            dcutr: Dcutr::new(local, config.clone()),
            observations: Observations::new(config.clone()),
            probe: probe::Behaviour::new(config.clone()),
            nat: Nat::new(config),
            confirmed: Vec::new(),
            actions: VecDeque::new(),
            alarm: Alarm::default(),
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
        self.inform();
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

    /// The last [`Config::max_history`] outcomes, the oldest first.
    #[must_use]
    pub fn history(&self) -> Vec<Outcome> {
        self.dcutr.history()
    }

    /// Whether a relayed connection that came up now could be punched from this side.
    #[must_use]
    pub fn has_candidates(&self) -> bool {
        self.dcutr.has_candidates()
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
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
                self.dcutr.on_nat(new);
                ToSwarm::GenerateEvent(Event::Reachability { old, new })
            }
            nat::Output::Reprobe => {
                self.probe.on_changed();
                return;
            }
        });
    }

    fn on_established(&mut self, connection: ConnectionId, peer: PeerId, at: &ConnectedPoint) {
        if at.is_relayed() {
            // Predicted ports are those of this very moment.
            self.inform();
            return;
        }
        let direction = match at {
            ConnectedPoint::Dialer { port_use, .. } => Direction::Outbound {
                own_port: *port_use == PortUse::Reuse,
            },
            ConnectedPoint::Listener { .. } => Direction::Inbound,
        };
        let remote = at.get_remote_address();
        self.nat
            .on_connected(connection, peer, remote, direction, now());
    }

    /// What punches hears what the classifier found out, and the ports that it predicts.
    fn inform(&mut self) {
        let mut candidates = self.observations.candidates();
        let predicted: Vec<Multiaddr> = candidates
            .iter()
            .flat_map(|observed| self.nat.predicted(observed))
            .collect();
        candidates.extend(predicted);
        self.dcutr.on_observed(candidates);
        self.dcutr.on_nat(*self.nat.report());
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = ConnectionHandlerSelect<THandler<Dcutr>, probe::Handler>;
    type ToSwarm = Event;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.dcutr
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
            .dcutr
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
        self.dcutr
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
            .dcutr
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
            FromSwarm::NewExternalAddrCandidate(candidate)
                if !self.observations.accepts(candidate.addr) =>
            {
                return;
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
        self.dcutr.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {
            Either::Left(event) => self
                .dcutr
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
            if let Some(output) = self.nat.poll_output() {
                self.on_nat_output(output);
                continue;
            }
            if let Poll::Ready(action) = self.dcutr.poll(cx) {
                return Poll::Ready(action.map_in(Either::Left));
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
            if self.alarm.rings(self.nat.poll_timeout(), cx) {
                self.nat.handle_timeout(now());
                continue;
            }
            self.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
    }
}

/// One timer for a core's next deadline.
#[derive(Default)]
pub(crate) struct Alarm(Option<(Instant, Delay)>);

impl Alarm {
    /// Arms itself for `deadline`. True if that has passed.
    pub(crate) fn rings(&mut self, deadline: Option<Instant>, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = deadline else {
            self.0 = None;
            return false;
        };
        let armed = self.0.take().filter(|(at, _)| *at == deadline);
        let (at, mut delay) = armed.unwrap_or_else(|| {
            let wait = deadline.saturating_duration_since(now());
            (deadline, Delay::new(wait))
        });
        if delay.poll_unpin(cx).is_ready() {
            return true;
        }
        self.0 = Some((at, delay));
        false
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the adapter reads the clock for the cores"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}
