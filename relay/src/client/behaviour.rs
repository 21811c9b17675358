use std::{
    collections::{HashMap, VecDeque},
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use futures::{FutureExt as _, StreamExt as _, channel::mpsc};
use futures_timer::Delay;
use libp2p_core::{ConnectedPoint, Endpoint, Multiaddr, multiaddr::Protocol, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    derive_prelude::Either,
    dial_opts::{DialOpts, PeerCondition},
    dummy,
};
use web_time::Instant;

use super::{
    Config, Event, Reservation, Transport,
    handler::{Command, Handler, Report},
    transport::{CircuitError, CircuitReply, Notice, Request},
};
use crate::{
    Announcement, CircuitLimit, InvalidRelayAddress,
    address::{RelayAddress, is_relayed, without_peer},
    core::{
        auto_relay::{AutoRelay, Link, Output},
        limits::{Circuit, Limits},
    },
};

type Action = ToSwarm<Event, THandlerInEvent<Behaviour>>;

/// The host slept if the time of day went ahead of the monotonic clock by this much: more than the clock of a
/// host is set by at once (NTP's panic threshold aside), less than any sleep that cuts connections.
const SLEPT: Duration = Duration::from_secs(2);

/// How often both clocks are compared while relays are in use: a host that slept finds out within this time of waking.
const CLOCK_CHECK: Duration = Duration::from_secs(1);

/// Makes the transport and the behaviour of a relay client. Both go into the same swarm.
///
/// `local` is this node's own id.
#[must_use]
pub fn new(local: PeerId, config: Config) -> (Transport, Behaviour) {
    let (transport, requests, notify) = Transport::new();
    let now = now();
    let behaviour = Behaviour {
        local,
        timeouts: (config.request_timeout(), config.probe_timeout()),
        allow_private: config.allow_private(),
        auto_relay: AutoRelay::new(config, rand::random(), now),
        limits: Limits::default(),
        direct: HashMap::new(),
        circuits: HashMap::new(),
        dials: HashMap::new(),
        waiting: HashMap::new(),
        requests,
        notify,
        notices: VecDeque::new(),
        actions: VecDeque::new(),
        timer: None,
        clocks: (now, wall_clock()),
        waker: None,
    };
    (transport, behaviour)
}

/// Finds relays, keeps reservations at the best of them, and tells what each circuit may carry.
///
/// A relayed address is confirmed to the swarm as an external address while its reservation
/// lives, because that is how identify and kad spread it. It says nothing about reachability: see
/// [`is_relayed`](crate::is_relayed).
pub struct Behaviour {
    local: PeerId,
    /// Of a request and of a ping.
    timeouts: (Duration, Duration),
    allow_private: bool,
    pub(super) auto_relay: AutoRelay,
    pub(super) limits: Limits,
    /// Direct connections, the newest last.
    pub(super) direct: HashMap<PeerId, Vec<Link>>,
    /// The limit of each relayed connection.
    pub(super) circuits: HashMap<ConnectionId, Option<CircuitLimit>>,
    /// Dials of relays that are on their way.
    dials: HashMap<ConnectionId, PeerId>,
    /// Circuits to open as soon as their relay is connected.
    pub(super) waiting: HashMap<PeerId, Vec<(PeerId, CircuitReply)>>,
    requests: mpsc::Receiver<Request>,
    notify: mpsc::Sender<Notice>,
    pub(super) notices: VecDeque<Notice>,
    pub(super) actions: VecDeque<Action>,
    timer: Option<(Instant, Delay)>,
    /// Both clocks, read at the same moment: where they part, this host slept.
    clocks: (Instant, SystemTime),
    waker: Option<Waker>,
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
    /// The address names no relay or this node itself, or there are `max_relays` already.
    pub fn add_relay(&mut self, address: Multiaddr) -> Result<PeerId, InvalidRelayAddress> {
        let address = RelayAddress::parse(&address)?;
        let relay = address.relay;
        self.name_relay(address)?;
        self.wake();
        Ok(relay)
    }

    pub(super) fn name_relay(&mut self, address: RelayAddress) -> Result<(), InvalidRelayAddress> {
        if address.relay == self.local {
            return Err(InvalidRelayAddress::Itself {
                address: address.dial(),
            });
        }
        let links = self.links(&address.relay);
        self.auto_relay.add_relay(address, links, now())
    }

    /// Gives up a relay that [`add_relay`](Self::add_relay) named, and the reservation there.
    /// False if it is none.
    pub fn remove_relay(&mut self, relay: &PeerId) -> bool {
        self.wake();
        self.auto_relay.remove_relay(relay, now())
    }

    /// Offers a peer that relays (its protocols contain
    /// [`HOP_PROTOCOL_NAME`](crate::HOP_PROTOCOL_NAME)), to be used while reservations are
    /// missing. Relayed addresses are ignored; without any other address, so is the peer.
    ///
    /// Peers that this node dialled and that identify as relays offer themselves.
    pub fn add_candidate(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let addresses = addresses
            .into_iter()
            .filter(|address| !is_relayed(address))
            .map(|address| without_peer(&address))
            .filter(|address| !address.is_empty());
        let links = self.links(&peer);
        if peer != self.local {
            self.auto_relay.add_candidate(peer, addresses, links, now());
            self.wake();
        }
    }

    /// The same with what the relay says about itself; it is forgotten when the announcement ends. Private addresses are left
    /// out unless [`Config`] allows them.
    pub fn add_announcement(&mut self, mut announcement: Announcement) {
        if !self.allow_private {
            announcement.retain_public_addresses();
        }
        let left = announcement.expires.duration_since(wall_clock());
        let (Ok(left), now) = (left, now()) else {
            return;
        };
        if announcement.relay == self.local {
            return;
        }
        let links = self.links(&announcement.relay);
        let about = (announcement.load, announcement.issued, now + left);
        self.auto_relay.on_announcement(
            announcement.relay,
            announcement.addresses,
            links,
            about,
            now,
        );
        self.wake();
    }

    /// Withdraws a candidate: it no longer relays. A reservation held there stays until it ends.
    pub fn remove_candidate(&mut self, peer: &PeerId) {
        self.auto_relay.remove_candidate(peer);
    }

    /// Tells whether this node can be reached without relays, as its NAT classification says.
    /// Reservations are given up `release_after` it became so, and made again when it stops being.
    pub fn on_reachability(&mut self, public: bool) {
        self.auto_relay.on_reachability(public, now());
        self.wake();
    }

    /// Tells that this host's network changed. Every relay in use is pinged, and whichever does not
    /// answer within 1 s (three of its round trips, if that is longer) is dialled anew and reserved at
    /// again, all at the same time.
    ///
    /// Changes of the swarm's listen addresses and sleep are noticed without this call.
    pub fn on_network_change(&mut self) {
        self.auto_relay.on_network_change(now());
        self.wake();
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
                expires: held.expires,
                rtt: held.rtt,
            })
            .collect()
    }

    /// Relays that are known, in use or not.
    #[must_use]
    pub fn known_relays(&self) -> usize {
        self.auto_relay.candidates()
    }

    /// Reservations to hold at the same time, as [`Config`] says.
    #[must_use]
    pub fn target_reservations(&self) -> usize {
        self.auto_relay.target()
    }

    /// What the circuit below a relayed connection may carry. `None`: any amount, or no relayed
    /// connection has this id.
    #[must_use]
    pub fn circuit_limit(&self, connection: ConnectionId) -> Option<CircuitLimit> {
        self.circuits.get(&connection).copied().flatten()
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn links(&self, peer: &PeerId) -> Vec<Link> {
        self.direct.get(peer).cloned().unwrap_or_default()
    }

    pub(super) fn command(&mut self, peer_id: PeerId, connection: ConnectionId, command: Command) {
        self.actions.push_back(ToSwarm::NotifyHandler {
            peer_id,
            handler: NotifyHandler::One(connection),
            event: Either::Left(command),
        });
    }

    pub(super) fn dial(&mut self, relay: PeerId, addresses: Vec<Multiaddr>) {
        let opts = DialOpts::peer_id(relay)
            .condition(PeerCondition::Always)
            .addresses(addresses)
            .extend_addresses_through_behaviour()
            .build();
        self.dials.insert(opts.connection_id(), relay);
        self.actions.push_back(ToSwarm::Dial { opts });
    }

    fn on_direct(&mut self, peer: PeerId, link: Link) {
        self.dials.remove(&link.id);
        for (destination, reply) in self.waiting.remove(&peer).unwrap_or_default() {
            if !reply.is_canceled() {
                self.command(peer, link.id, Command::Connect { destination, reply });
            }
        }
        self.direct.entry(peer).or_default().push(link.clone());
        self.auto_relay.on_connected(peer, link, now());
    }

    pub(super) fn is_dialling(&self, relay: &PeerId) -> bool {
        self.dials.values().any(|dialled| dialled == relay)
    }

    pub(super) fn on_dial_failed(&mut self, connection: ConnectionId) {
        let Some(relay) = self.dials.remove(&connection) else {
            return;
        };
        // The one that is still running decides.
        if self.is_dialling(&relay) {
            return;
        }
        for (_, reply) in self.waiting.remove(&relay).unwrap_or_default() {
            let _ = reply.send(Err(CircuitError::Unreachable));
        }
        self.auto_relay.on_dial_failed(relay, now());
    }

    fn on_report(&mut self, relay: PeerId, connection: ConnectionId, report: Report) {
        let now = now();
        match report {
            Report::Relays(true) => {
                let addresses: Vec<_> = self
                    .direct
                    .get(&relay)
                    .into_iter()
                    .flatten()
                    .filter_map(|link| link.address.clone())
                    .collect();
                self.add_candidate(relay, addresses);
            }
            Report::Relays(false) => self.auto_relay.on_withdrawn(relay, now),
            Report::Granted(grant) => self.auto_relay.on_granted(relay, connection, grant, now),
            Report::Refused(why) => self.auto_relay.on_refused(relay, connection, why, now),
            Report::Pong(rtt) => self.auto_relay.on_pong(relay, connection, rtt, now),
            Report::Opened {
                destination,
                limit,
                circuit,
                reply,
            } => {
                self.limits.on_circuit(
                    Circuit {
                        relay,
                        peer: destination,
                        inbound: false,
                    },
                    limit,
                    now,
                );
                // Whoever dialled may have given up.
                let _ = reply.send(Ok(circuit));
            }
            Report::Incoming {
                source,
                limit,
                circuit,
            } => self.on_incoming(relay, connection, source, limit, circuit, now),
        }
    }

    fn on_output(&mut self, output: Output) {
        let event = match output {
            Output::Dial { relay, addresses } => return self.dial(relay, addresses),
            Output::Reserve { relay, link } => return self.command(relay, link, Command::Reserve),
            Output::Probe { relay, link } => return self.command(relay, link, Command::Probe),
            Output::Release { relay, link } => {
                return self.command(relay, link, Command::Release);
            }
            Output::Close { relay, link } => {
                self.actions.push_back(ToSwarm::CloseConnection {
                    peer_id: relay,
                    connection: CloseConnection::One(link),
                });
                return;
            }
            Output::Announce { address } => {
                let relay = address.relay;
                let address = address.of(self.local);
                return self.notices.push_back(Notice::Announce { relay, address });
            }
            Output::Withdraw { address } => {
                let address = address.of(self.local);
                return self.notices.push_back(Notice::Withdraw { address });
            }
            Output::Confirm { address } => {
                let address = address.of(self.local);
                return self
                    .actions
                    .push_back(ToSwarm::ExternalAddrConfirmed(address));
            }
            Output::Expire { address } => {
                let address = address.of(self.local);
                return self
                    .actions
                    .push_back(ToSwarm::ExternalAddrExpired(address));
            }
            Output::Reserved {
                address,
                renewal,
                limit,
            } => Event::Reserved {
                relay: address.relay,
                address: address.of(self.local),
                renewal,
                limit,
            },
            Output::Lost { relay, why } => Event::Lost { relay, why },
            Output::Failed { relay, why } => Event::Failed { relay, why },
            Output::CandidatesWanted { missing } => Event::CandidatesWanted { missing },
            Output::Status(status) => Event::Status {
                held: status.held,
                target: status.target,
            },
        };
        self.actions.push_back(ToSwarm::GenerateEvent(event));
    }

    /// Hands notices over while the transport takes them.
    fn poll_notices(&mut self, cx: &mut Context<'_>) {
        while !self.notices.is_empty() {
            match self.notify.poll_ready(cx) {
                Poll::Ready(Ok(())) => {
                    if let Some(notice) = self.notices.pop_front() {
                        // It was ready.
                        let _ = self.notify.start_send(notice);
                    }
                }
                // The transport is gone, and everything with it.
                Poll::Ready(Err(_)) => self.notices.clear(),
                Poll::Pending => return,
            }
        }
    }

    /// Arms the timer for the core's next deadline, or the next look at the clocks. True if that has passed.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let look = self
            .auto_relay
            .is_active()
            .then(|| self.clocks.0 + CLOCK_CHECK);
        let due = self.auto_relay.poll_timeout();
        let Some(deadline) = due.into_iter().chain(look).min() else {
            self.timer = None;
            return false;
        };
        let armed = self.timer.take().filter(|(at, _)| *at == deadline);
        let wait = deadline.saturating_duration_since(now());
        if wait.is_zero() {
            // A delay of nothing would be ready only after a turn of the timer's thread.
            return true;
        }
        let (at, mut delay) = armed.unwrap_or_else(|| (deadline, Delay::new(wait)));
        if delay.poll_unpin(cx).is_ready() {
            return true;
        }
        self.timer = Some((at, delay));
        false
    }

    fn check_sleep(&mut self) {
        let (was, wall_was) = self.clocks;
        let (is, wall_is) = (now(), wall_clock());
        self.clocks = (is, wall_is);
        let slept = wall_is
            .duration_since(wall_was)
            .unwrap_or_default()
            .saturating_sub(is.saturating_duration_since(was));
        if slept >= SLEPT {
            tracing::debug!(?slept, "this host slept");
            self.auto_relay.on_sleep(is);
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Either<Handler, dummy::ConnectionHandler>;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        local: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(is_relayed(local)))
    }

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let relay = peer.iter();
        Ok(relay
            .flat_map(|relay| self.auto_relay.addresses(relay).cloned())
            .collect())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(is_relayed(address)))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) if event.endpoint.is_relayed() => {
                // A dial of a relay that found a way through another one: a circuit is no way to a relay.
                self.on_dial_failed(event.connection_id);
                self.on_circuit(event.connection_id, event.peer_id, event.endpoint);
            }
            FromSwarm::ConnectionEstablished(event) => {
                let address = match event.endpoint {
                    ConnectedPoint::Dialer { address, .. } => Some(without_peer(address)),
                    ConnectedPoint::Listener { .. } => None,
                };
                let id = event.connection_id;
                self.on_direct(event.peer_id, Link { id, address });
            }
            FromSwarm::ConnectionClosed(event) => {
                let (peer, id) = (event.peer_id, event.connection_id);
                self.circuits.remove(&id);
                if let Some(links) = self.direct.get_mut(&peer) {
                    links.retain(|link| link.id != id);
                    if links.is_empty() {
                        self.direct.remove(&peer);
                    }
                }
                if !event.endpoint.is_relayed() {
                    let reset = event.cause.is_some();
                    self.auto_relay.on_disconnected(peer, id, reset, now());
                }
            }
            FromSwarm::DialFailure(event) => self.on_dial_failed(event.connection_id),
            FromSwarm::NewListenAddr(event) if is_of_an_interface(event.addr) => {
                self.auto_relay.on_network_change(now());
            }
            FromSwarm::ExpiredListenAddr(event) if is_of_an_interface(event.addr) => {
                self.auto_relay.on_network_change(now());
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
        match event {
            Either::Left(report) => self.on_report(peer, connection, report),
            Either::Right(never) => match never {},
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Action> {
        loop {
            self.poll_notices(cx);
            if let Some(action) = self.actions.pop_front() {
                return Poll::Ready(action);
            }
            if let Some(output) = self.auto_relay.poll_output() {
                self.on_output(output);
                continue;
            }
            if let Poll::Ready(Some(request)) = self.requests.poll_next_unpin(cx) {
                self.on_request(request);
                continue;
            }
            if self.poll_timer(cx) {
                self.check_sleep();
                self.auto_relay.handle_timeout(now());
                continue;
            }
            self.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
    }
}

impl Behaviour {
    fn handler(&self, relayed: bool) -> Either<Handler, dummy::ConnectionHandler> {
        if relayed {
            return Either::Right(dummy::ConnectionHandler);
        }
        let (request, probe) = self.timeouts;
        Either::Left(Handler::new(request, probe))
    }
}

/// Whether an address comes and goes with an interface of this host.
fn is_of_an_interface(address: &Multiaddr) -> bool {
    !is_relayed(address)
        && address.iter().any(|protocol| match protocol {
            Protocol::Ip4(ip) => !ip.is_loopback() && !ip.is_unspecified(),
            Protocol::Ip6(ip) => !ip.is_loopback() && !ip.is_unspecified(),
            _ => false,
        })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the adapter reads the clock for the core"
)]
pub(super) fn now() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "announcements end by the time of day, and a host's sleep shows there only"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
#[path = "behaviour_tests.rs"]
mod tests;
