use std::{
    collections::{HashMap, VecDeque},
    task::{Context, Poll, Waker},
};

use futures::FutureExt;
use futures_timer::Delay;
use libp2p_core::{
    ConnectedPoint, Endpoint, Multiaddr,
    transport::{ListenerId, PortUse},
};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, ListenOpts, NetworkBehaviour, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use web_time::Instant;

use super::{Config, Event, LossReason, Reservation, Transport, loss};
use crate::{
    CircuitLimit, InvalidRelayAddress,
    address::{RelayAddress, split_relayed, without_peer},
    core::{
        auto_relay::{AutoRelay, Output},
        limits::{Limits, Matched},
    },
};

type Stock = libp2p_relay::client::Behaviour;
type Action = ToSwarm<Event, THandlerInEvent<Behaviour>>;

/// Makes the transport and the behaviour of a relay client. Both go into the same swarm.
///
/// `local` is this node's own id.
#[must_use]
pub fn new(local: PeerId, config: Config) -> (Transport, Behaviour) {
    let (transport, stock) = libp2p_relay::client::new(local);
    let behaviour = Behaviour {
        local,
        stock,
        auto_relay: AutoRelay::new(config, rand::random()),
        limits: Limits::default(),
        direct: HashMap::new(),
        circuits: HashMap::new(),
        sources: VecDeque::new(),
        established: VecDeque::new(),
        actions: VecDeque::new(),
        timer: None,
        waker: None,
    };
    (transport, behaviour)
}

/// Keeps reservations at relays and tells what each circuit may carry.
///
/// It wraps `libp2p_relay::client::Behaviour`, which dials, reserves and renews (at three
/// quarters of a reservation's life), and adds what that leaves out: trying again after a loss,
/// candidates, and the limit of each relayed connection.
///
/// A relayed address is confirmed to the swarm as an external address while its reservation
/// lives, because that is how identify and kad spread it. It says nothing about reachability: see
/// [`is_relayed`](crate::is_relayed).
pub struct Behaviour {
    local: PeerId,
    stock: Stock,
    auto_relay: AutoRelay,
    limits: Limits,
    /// Where the other end of each direct connection is, without `/p2p`.
    direct: HashMap<ConnectionId, (PeerId, Multiaddr)>,
    /// The limit of each relayed connection.
    circuits: HashMap<ConnectionId, Option<CircuitLimit>>,
    /// Which connection each event of the stock behaviour comes from, in order: it makes exactly
    /// one of each handler event.
    sources: VecDeque<(PeerId, ConnectionId)>,
    /// Relayed connections whose `Circuit` event is due once the stock behaviour has told all
    /// that happened before.
    established: VecDeque<Established>,
    actions: VecDeque<Action>,
    timer: Option<(Instant, Delay)>,
    waker: Option<Waker>,
}

struct Established {
    connection: ConnectionId,
    peer: PeerId,
    endpoint: ConnectedPoint,
}

impl Behaviour {
    /// Reserves at this relay for as long as the node runs; a lost reservation is made again
    /// after 1 s, then less and less often up to every 5 min (see [`Config`]).
    ///
    /// `address` is `<transport>/p2p/<relay>`, with or without `/p2p-circuit` at its end. Call it
    /// once for each address of a relay that has several.
    ///
    /// # Errors
    ///
    /// The address names no relay, or there are `max_relays` already.
    pub fn add_relay(&mut self, address: Multiaddr) -> Result<PeerId, InvalidRelayAddress> {
        let address = RelayAddress::parse(&address)?;
        let relay = address.relay;
        self.auto_relay.add_relay(address, now())?;
        self.wake();
        Ok(relay)
    }

    /// Offers a peer that relays (its protocols contain
    /// [`HOP_PROTOCOL_NAME`](crate::HOP_PROTOCOL_NAME)), to be used while reservations are
    /// missing. Relayed addresses are ignored; without any other address, so is the peer.
    pub fn add_candidate(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let addresses = addresses
            .into_iter()
            .filter(|address| !crate::is_relayed(address))
            .map(|address| without_peer(&address))
            .filter(|address| !address.is_empty());
        self.auto_relay.add_candidate(peer, addresses, now());
        self.wake();
    }

    /// Withdraws a candidate: it no longer relays. A reservation held there stays until it ends.
    pub fn remove_candidate(&mut self, peer: &PeerId) {
        self.auto_relay.remove_candidate(peer);
    }

    /// The reservations held at this moment, by relay.
    #[must_use]
    pub fn reservations(&self) -> Vec<Reservation> {
        self.auto_relay
            .held()
            .map(|held| Reservation {
                relay: held.address.relay,
                address: held.address.of(self.local),
                configured: held.configured,
                limit: held.limit,
                since: held.since,
            })
            .collect()
    }

    /// What the circuit below a relayed connection may carry. `None`: any amount, or no relayed
    /// connection has this id. Until [`Event::Circuit`] came it is [`CircuitLimit::REFERENCE`].
    #[must_use]
    pub fn circuit_limit(&self, connection: ConnectionId) -> Option<CircuitLimit> {
        self.circuits.get(&connection).copied().flatten()
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn is_connected(&self, peer: PeerId) -> bool {
        self.direct
            .values()
            .any(|(connected, _)| *connected == peer)
    }

    fn on_listener_ended(&mut self, listener: ListenerId, reason: Option<LossReason>) {
        let Some((relay, held)) = self.auto_relay.owner(listener) else {
            return;
        };
        let reason = reason.unwrap_or_else(|| match (self.is_connected(relay), held) {
            (true, _) => LossReason::Dropped,
            (false, true) => LossReason::ConnectionClosed,
            (false, false) => LossReason::Unreachable,
        });
        self.auto_relay.on_listener_closed(listener, reason, now());
    }

    fn on_stock_event(&mut self, event: libp2p_relay::client::Event) {
        use libp2p_relay::client::Event as Stock;
        let now = now();
        let Some((relay, connection)) = self.sources.pop_front() else {
            debug_assert!(
                false,
                "the stock client made an event of its own: {event:?}"
            );
            return;
        };
        let (Stock::ReservationReqAccepted { limit, .. }
        | Stock::OutboundCircuitEstablished { limit, .. }
        | Stock::InboundCircuitEstablished { limit, .. }) = &event;
        let limit = limit
            .and_then(|limit| CircuitLimit::announced(limit.duration(), limit.data_in_bytes()));
        match event {
            Stock::ReservationReqAccepted { .. } => {
                self.auto_relay.on_accepted(relay, limit, now);
            }
            Stock::OutboundCircuitEstablished { .. } => {
                self.limits.on_outbound_circuit(relay, limit, now);
            }
            Stock::InboundCircuitEstablished { src_peer_id, .. } => {
                if let Some((_, address)) = self.direct.get(&connection) {
                    let address = address.clone();
                    self.limits
                        .on_inbound_circuit(src_peer_id, relay, address, limit, now);
                }
            }
        }
    }

    fn on_established(&mut self, established: Established) {
        let Established {
            connection,
            peer,
            endpoint,
        } = established;
        let Some((relay, limit)) = self.match_limit(peer, &endpoint) else {
            tracing::debug!(%peer, ?endpoint, "relayed connection through an unknown relay");
            return;
        };
        // It may have closed since.
        let Some(known) = self.circuits.get_mut(&connection) else {
            return;
        };
        *known = limit;
        self.actions
            .push_back(ToSwarm::GenerateEvent(Event::Circuit {
                connection,
                peer,
                relay,
                limit,
            }));
    }

    fn match_limit(
        &mut self,
        peer: PeerId,
        endpoint: &ConnectedPoint,
    ) -> Option<(PeerId, Option<CircuitLimit>)> {
        let Matched { relay, limit } = match endpoint {
            ConnectedPoint::Dialer { address, .. } => {
                let (_, relay) = split_relayed(address)?;
                self.limits.on_outbound_connection(relay?, now())
            }
            ConnectedPoint::Listener { local_addr, .. } => {
                let (transport, relay) = split_relayed(local_addr)?;
                self.limits
                    .on_inbound_connection(peer, relay, &transport, now())
            }
        };
        Some((relay?, limit))
    }

    fn on_output(&mut self, output: Output) {
        let event = match output {
            Output::Reserve(address) => {
                let opts = ListenOpts::new(address.listen());
                self.auto_relay
                    .on_listening(address.relay, opts.listener_id());
                self.actions.push_back(ToSwarm::ListenOn { opts });
                return;
            }
            Output::Accepted {
                address,
                renewal,
                limit,
            } => Event::ReservationAccepted {
                relay: address.relay,
                address: address.of(self.local),
                renewal,
                limit,
            },
            Output::Lost { relay, reason } => {
                tracing::debug!(%relay, %reason, "reservation lost");
                Event::ReservationLost { relay, reason }
            }
            Output::Failed { relay, reason } => {
                tracing::debug!(%relay, %reason, "no reservation");
                Event::ReservationFailed { relay, reason }
            }
            Output::CandidatesWanted { missing } => Event::CandidatesWanted { missing },
        };
        self.actions.push_back(ToSwarm::GenerateEvent(event));
    }

    /// Arms the timer for the core's next deadline. True if that has passed.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = self.auto_relay.poll_timeout() else {
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
    type ConnectionHandler = <Stock as NetworkBehaviour>::ConnectionHandler;
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
        self.stock
            .handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let mut found = self
            .stock
            .handle_pending_outbound_connection(connection, peer, addresses, role)?;
        if let Some(relay) = peer {
            // As the stock client writes it, without `/p2p`: the swarm drops what is the same to the
            // letter, and would dial the relay twice otherwise.
            found.extend(self.auto_relay.addresses(&relay).cloned());
        }
        Ok(found)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.stock
            .handle_established_outbound_connection(connection, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.stock.on_swarm_event(event);
        match event {
            FromSwarm::ConnectionEstablished(event) if event.endpoint.is_relayed() => {
                self.circuits
                    .insert(event.connection_id, Some(CircuitLimit::REFERENCE));
                self.established.push_back(Established {
                    connection: event.connection_id,
                    peer: event.peer_id,
                    endpoint: event.endpoint.clone(),
                });
            }
            FromSwarm::ConnectionEstablished(event) => {
                let address = without_peer(event.endpoint.get_remote_address());
                self.direct
                    .insert(event.connection_id, (event.peer_id, address));
            }
            FromSwarm::ConnectionClosed(event) => {
                self.direct.remove(&event.connection_id);
                self.circuits.remove(&event.connection_id);
            }
            FromSwarm::ListenerClosed(event) => {
                let reason = event.reason.err().and_then(loss::from_listener_error);
                self.on_listener_ended(event.listener_id, reason);
            }
            FromSwarm::ListenerError(event) => {
                self.on_listener_ended(event.listener_id, Some(LossReason::AddressNotSupported));
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.sources.push_back((peer, connection));
        self.stock
            .on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Poll::Ready(action);
            }
            if let Some(output) = self.auto_relay.poll_output() {
                self.on_output(output);
                continue;
            }
            match self.stock.poll(cx) {
                Poll::Ready(ToSwarm::GenerateEvent(event)) => {
                    self.on_stock_event(event);
                    continue;
                }
                Poll::Ready(action) => {
                    return Poll::Ready(action.map_out(|_| unreachable!("matched above")));
                }
                Poll::Pending => {}
            }
            if let Some(established) = self.established.pop_front() {
                self.on_established(established);
                continue;
            }
            if self.poll_timer(cx) {
                self.auto_relay.handle_timeout(now());
                continue;
            }
            self.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the adapter reads the clock for the core"
)]
fn now() -> Instant {
    Instant::now()
}
