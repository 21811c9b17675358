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

#[cfg(feature = "stun")]
use crate::stun::{self, Stun};
use crate::{
    Config, Event, NatStatus, ObservedAddress, Outcome, Transport,
    address::{Scope, without_peer},
    core::{
        nat::{self, Direction, Gateway, Nat, report::NatReport},
        observations::Observations,
    },
    dcutr::Dcutr,
    liveness, probe,
    transport::Ports,
};
#[cfg(feature = "portmap")]
use crate::{
    core::portmap::PortMapping,
    portmap::{self, Portmap},
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
    liveness: liveness::Behaviour,
    /// Where the configuration wants it.
    #[cfg(feature = "portmap")]
    portmap: Option<Portmap>,
    /// Where servers are configured.
    #[cfg(feature = "stun")]
    stun: Option<Stun>,
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
            liveness: liveness::Behaviour::new(config.clone()),
            #[cfg(feature = "portmap")]
            portmap: config.map_ports().then(|| Portmap::new(config.clone())),
            #[cfg(feature = "stun")]
            stun: (!config.stun_servers().is_empty()).then(|| Stun::new(config.clone())),
            nat: Nat::new(config),
            confirmed: Vec::new(),
            actions: VecDeque::new(),
            alarm: Alarm::default(),
            waker: None,
        }
    }

    /// Lets attempts after the first leave from local ports of their own, through the transports that
    /// share these `ports`. Also tell [`on_observed`](Self::on_observed) what identify says: that is how
    /// the public ports become known.
    #[must_use]
    pub fn with_fresh_ports(mut self, ports: Ports) -> Self {
        self.dcutr.set_ports(ports);
        self
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
        if self.dcutr.is_about_fresh_port(None, observer, &observed) {
            return;
        }
        self.note_observation(observer, None, local, &observed);
    }

    fn note_observation(
        &mut self,
        observer: PeerId,
        connection: Option<ConnectionId>,
        local: Option<Multiaddr>,
        observed: &Multiaddr,
    ) {
        // Through a relay the observer sees the relay, whatever address it reports.
        if local.is_some_and(|local| Scope::of(&local) == Scope::Useless) {
            return;
        }
        self.observations
            .on_observation(observer, connection, observed);
        self.announce();
        let has_moved = self.observations.has_moved();
        if let Some(connection) = connection.filter(|_| has_moved) {
            // What came through the NAT's old address comes no more.
            self.liveness.on_new_address(connection, observer);
        }
    }

    /// What has become known of our addresses is told to the swarm and to punches.
    fn announce(&mut self) {
        for address in self.observations.withdrawn() {
            tracing::debug!(%address, "an address of old");
            self.dcutr.on_withdrawn(&address);
        }
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
        let connection_id = Some(connection);
        if self
            .dcutr
            .is_about_fresh_port(connection_id, observer, &observed)
        {
            self.wake();
            return;
        }
        self.nat.on_observed(connection, &observed, now());
        self.note_observation(observer, connection_id, local, &observed);
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

    #[cfg(feature = "stun")]
    fn on_stun_found(&mut self, found: &stun::Found) {
        for (server, observed) in &found.seen {
            self.on_stun(found.local_port, *server, *observed);
        }
        if let Some(filtering) = found.filtering {
            self.nat.on_stun_filtering(found.server, filtering, now());
        }
        if let Some(works) = found.hairpin {
            self.on_hairpin(works);
        }
    }

    /// The gateway answers, or no longer does. `maps_ports`: it has mapped this node's ports by UPnP, NAT-PMP
    /// or PCP, so that peers that cannot be punched dial there. `outer` is its address on the far side, if it
    /// tells. A private one means that there is another NAT behind it.
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
        } else {
            self.dcutr.on_withdrawn(&without_peer(address));
        }
        self.wake();
    }

    /// What the gateway has mapped for this node ([`Config::map_ports`]), confirmed or not.
    #[cfg(feature = "portmap")]
    #[must_use]
    pub fn port_mappings(&self) -> &[PortMapping] {
        self.portmap.as_ref().map_or(&[], Portmap::mappings)
    }

    /// Has the gateway forget all mappings, and asks for none any more. Poll the behaviour until
    /// [`port_mappings`](Self::port_mappings) is empty: after a round trip, or 2 s if the gateway is
    /// silent.
    #[cfg(feature = "portmap")]
    pub fn unmap_ports(&mut self) {
        if let Some(portmap) = &mut self.portmap {
            portmap.close();
        }
        self.wake();
    }

    #[cfg(feature = "portmap")]
    fn on_portmap(&mut self, fact: portmap::Fact) {
        let event = match fact {
            portmap::Fact::Gateway(Gateway { maps_ports, outer }) => {
                return self.on_gateway(maps_ports, outer);
            }
            portmap::Fact::Mapped(mapping) => {
                self.on_port_mapped(&mapping.address, true);
                Event::PortMapped(mapping)
            }
            portmap::Fact::Lost(mapping) => {
                self.on_port_mapped(&mapping.address, false);
                Event::PortMappingLost(mapping)
            }
        };
        self.actions.push_back(ToSwarm::GenerateEvent(event));
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

    /// Something speaks against a connection, direct or relayed: its peer owes an answer. The peer is asked for a sign of
    /// life there; if it gives none, the connection is closed, with an [`Event::ConnectionLost`].
    ///
    /// Over TCP and circuits all streams have one order: a question waits behind what this node sends, and its answer
    /// behind what the peer does, which may be megabytes. So doubt such a connection only where nothing is on it.
    pub fn doubt(&mut self, peer: PeerId, connection: ConnectionId) {
        self.liveness.doubt(connection, peer);
        self.wake();
    }

    fn on_verdict(&mut self, verdict: liveness::Verdict) -> Option<Event> {
        match verdict {
            liveness::Verdict::Alive { peer, connection } => {
                self.dcutr.on_alive(connection, peer);
                None
            }
            liveness::Verdict::Late { peer, connection } => {
                Some(Event::AnswerLate { peer, connection })
            }
            liveness::Verdict::Lost { peer, connection } => {
                self.dcutr.on_lost(connection, peer);
                Some(Event::ConnectionLost { peer, connection })
            }
        }
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
                #[cfg(feature = "stun")]
                if let Some(stun) = &mut self.stun {
                    stun.on_changed();
                }
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
        let remote = at.get_remote_address();
        let direction = match at {
            ConnectedPoint::Dialer { port_use, .. } => Direction::Outbound {
                // WebRTC's port is not QUIC's, and one NAT gives the two different ones.
                own_port: *port_use == PortUse::Reuse && Transport::of(remote) != Transport::WebRtc,
            },
            ConnectedPoint::Listener { .. } => Direction::Inbound,
        };
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
    type ConnectionHandler = ConnectionHandlerSelect<
        ConnectionHandlerSelect<THandler<Dcutr>, probe::Handler>,
        liveness::Handler,
    >;
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
        let liveness = self
            .liveness
            .handle_established_inbound_connection(connection, peer, local, remote)?;
        Ok(punching.select(probe).select(liveness))
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
        let liveness = self
            .liveness
            .handle_established_outbound_connection(connection, peer, address, role, port_use)?;
        Ok(punching.select(probe).select(liveness))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            // Comes from identify, from us, or from a port mapping. What no peer can use would
            // push out what it can.
            FromSwarm::NewExternalAddrCandidate(candidate)
                if !self.observations.accepts(candidate.addr)
                    || self.dcutr.is_fresh_port(candidate.addr) =>
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
                self.observations
                    .on_closed(event.peer_id, event.connection_id);
                self.announce();
            }
            FromSwarm::NewListenAddr(event) => {
                self.nat.on_listening(event.addr, now());
                #[cfg(feature = "portmap")]
                if let Some(portmap) = &mut self.portmap {
                    portmap.on_listening(event.addr);
                }
                #[cfg(feature = "stun")]
                if let Some(stun) = &mut self.stun {
                    stun.on_listening();
                }
            }
            FromSwarm::ExpiredListenAddr(event) => {
                self.nat.on_not_listening(event.addr, now());
                #[cfg(feature = "portmap")]
                if let Some(portmap) = &mut self.portmap {
                    portmap.on_not_listening(event.addr);
                }
            }
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
        self.liveness.on_swarm_event(event);
        self.dcutr.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {
            Either::Left(Either::Left(event)) => self
                .dcutr
                .on_connection_handler_event(peer, connection, event),
            Either::Left(Either::Right(event)) => self
                .probe
                .on_connection_handler_event(peer, connection, event),
            Either::Right(event) => self
                .liveness
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
            let dcutr = self.dcutr.poll(cx);
            for contact in self.dcutr.take_contacts() {
                self.nat.on_contact(&contact, now());
            }
            for peer in self.dcutr.take_doubted() {
                self.liveness.doubt_direct(peer);
            }
            if let Poll::Ready(action) = dcutr {
                return Poll::Ready(action.map_in(|event| Either::Left(Either::Left(event))));
            }
            match self.liveness.poll(cx) {
                Poll::Ready(ToSwarm::GenerateEvent(verdict)) => {
                    if let Some(event) = self.on_verdict(verdict) {
                        return Poll::Ready(ToSwarm::GenerateEvent(event));
                    }
                    continue;
                }
                Poll::Ready(action) => {
                    let action = action.map_out(|_| unreachable!("matched above"));
                    return Poll::Ready(action.map_in(Either::Right));
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
                    return Poll::Ready(action.map_in(|event| Either::Left(Either::Right(event))));
                }
                Poll::Pending => {}
            }
            #[cfg(feature = "portmap")]
            if let Some(Poll::Ready(fact)) = self.portmap.as_mut().map(|portmap| portmap.poll(cx)) {
                self.on_portmap(fact);
                continue;
            }
            #[cfg(feature = "stun")]
            if let Some(Poll::Ready(found)) = self.stun.as_mut().map(|stun| stun.poll(cx)) {
                self.on_stun_found(&found);
                continue;
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
