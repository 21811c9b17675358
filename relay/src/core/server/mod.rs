//! What a relay grants, to whom, and for how long. No clock, no stream, no swarm.
//!
//! Every request is decided in constant time: hash maps for who has what, a list in order of time for what ends when.

pub(crate) mod access;
pub(crate) mod bandwidth;
pub(crate) mod caps;
mod expiries;
pub(crate) mod network;
pub(crate) mod rate;
mod requests;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;
use smallvec::SmallVec;
use web_time::Instant;

use self::{
    access::Access,
    bandwidth::Class,
    caps::{Caps, Owner},
    expiries::{Expiries, Ticket},
    network::Place,
    requests::Requests,
};
use crate::{
    CircuitLimit, StatusCode,
    server::{CircuitEnd, CircuitId, CloseReason, Config},
};

/// The decisions of a relay.
///
/// Facts go in by `on_*`, requests by [`reserve`](Self::reserve) and [`connect`](Self::connect), which answer at once. Drain
/// [`poll_output`](Self::poll_output) after every call.
///
/// One entry for each connection of the swarm, which bounds those; reservations, circuits, rates and bans have the bounds of
/// their [`Config`].
#[derive(Debug)]
pub(crate) struct Server {
    local: PeerId,
    config: Arc<Config>,
    access: Access,
    enabled: bool,
    connections: HashMap<ConnectionId, Connection>,
    peers: HashMap<PeerId, Peer>,
    reservations: Caps,
    expiries: Expiries,
    circuits: HashMap<CircuitId, Circuit>,
    circuit_caps: Caps,
    next_circuit: u64,
    requests: Requests,
    drain: Option<Drain>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Connection {
    peer: PeerId,
    place: Option<Place>,
    relayed: bool,
    /// The end of the reservation that it carries.
    reserved: Option<Ticket>,
    circuits: SmallVec<[CircuitId; 1]>,
}

/// What is known of a peer that is connected.
#[derive(Debug, Default)]
struct Peer {
    connections: SmallVec<[ConnectionId; 1]>,
    /// Those of them that carry a reservation, the one that was asked for last at the end.
    reserved: SmallVec<[ConnectionId; 1]>,
}

#[derive(Debug)]
struct Circuit {
    ends: [Owner; 2],
    source: ConnectionId,
    destination: ConnectionId,
    opened: Option<Instant>,
    /// The source left while the destination was being asked. It counts until the destination has been asked: who comes and
    /// goes starts no more exchanges than who stays.
    orphaned: bool,
    /// The destination is asked for the second time, on another connection.
    moved: bool,
}

#[derive(Debug)]
struct Drain {
    deadline: Instant,
    done: bool,
}

/// What the adapter is to do, or to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// Whether the hop protocol is offered has changed.
    Offer(bool),
    /// A connection carries a reservation now, or no longer: it is to be kept, or need not be.
    Hold {
        connection: ConnectionId,
        peer: PeerId,
        held: bool,
    },
    /// A reservation is over.
    ReservationClosed {
        peer: PeerId,
        connection: ConnectionId,
        reason: CloseReason,
    },
    /// A circuit that was being set up cannot be any more: tell its source.
    CircuitFailed {
        circuit: CircuitId,
        source: ConnectionId,
        peer: PeerId,
        destination: PeerId,
        status: StatusCode,
    },
    /// A circuit that was being set up has lost its source: nobody is to be told, and the destination asked no longer.
    CircuitForgotten {
        circuit: CircuitId,
        /// The connection over which the destination is asked.
        through: ConnectionId,
        destination: PeerId,
    },
    /// The destination of a circuit that is being set up is to be asked over another connection of its, and no longer over the one
    /// before.
    CircuitMoved {
        circuit: CircuitId,
        source: PeerId,
        destination: PeerId,
        from: ConnectionId,
        through: ConnectionId,
    },
    /// An open circuit is over.
    CircuitClosed {
        circuit: CircuitId,
        source: PeerId,
        destination: PeerId,
        duration: Duration,
        end: CircuitEnd,
    },
    /// A peer floods: close its connections.
    Ban { peer: PeerId },
    /// Nothing is left to wait for.
    Drained { cut: usize },
}

/// A reservation that was made or renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) renewed: bool,
    /// The connection had no reservation before.
    pub(crate) is_new_here: bool,
    pub(crate) limit: Option<CircuitLimit>,
}

/// A circuit that may be set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) circuit: CircuitId,
    /// The connection of the destination's reservation.
    pub(crate) through: ConnectionId,
    pub(crate) limit: Option<CircuitLimit>,
    pub(crate) class: Class,
}

/// Why a request is not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The peer is told.
    Told(StatusCode),
    /// The peer floods and is being disconnected: no answer.
    Ignored,
}

impl From<StatusCode> for Refusal {
    fn from(status: StatusCode) -> Self {
        Self::Told(status)
    }
}

impl Server {
    /// A relay that is off.
    pub(crate) fn new(local: PeerId, config: Arc<Config>) -> Self {
        Self {
            local,
            access: Access::default(),
            enabled: false,
            connections: HashMap::new(),
            peers: HashMap::new(),
            reservations: Caps::new(config.reservation_limits()),
            expiries: Expiries::default(),
            circuits: HashMap::new(),
            circuit_caps: Caps::new(config.circuit_limits()),
            next_circuit: 0,
            requests: Requests::new(&config),
            drain: None,
            outputs: VecDeque::new(),
            config,
        }
    }

    pub(crate) fn set_access(&mut self, access: Access) {
        self.access = access;
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        let offered = self.is_offering();
        self.enabled = enabled;
        self.tell_offer(offered);
        if !enabled {
            // They could not be used any more, and would keep their connections open.
            self.end_reservations(CloseReason::Disabled);
        }
    }

    /// Whether requests may be granted: on, and not draining.
    pub(crate) fn is_offering(&self) -> bool {
        self.enabled && self.drain.is_none()
    }

    fn tell_offer(&mut self, before: bool) {
        let offered = self.is_offering();
        if offered != before {
            self.outputs.push_back(Output::Offer(offered));
        }
    }

    /// Grants nothing any more. Circuits run on until they end or `deadline` comes; then everything ends. Again: moves the
    /// deadline, as long as there is something to wait for.
    pub(crate) fn drain(&mut self, deadline: Instant) {
        if self.drain.as_ref().is_some_and(|drain| drain.done) {
            return;
        }
        let offered = self.is_offering();
        self.drain = Some(Drain {
            deadline,
            done: false,
        });
        self.tell_offer(offered);
        self.finish_drain(false);
    }

    pub(crate) fn reservations(&self) -> usize {
        self.reservations.len()
    }

    /// Open ones and those that are being set up.
    pub(crate) fn circuits(&self) -> usize {
        self.circuits.len()
    }

    /// Whether a peer that has connected from `remote` is banned.
    pub(crate) fn is_banned(&mut self, peer: PeerId, remote: &Multiaddr, now: Instant) -> bool {
        let host = self.place(remote).map(|place| place.host);
        self.requests.is_banned(peer, host, now)
    }

    /// Whether a connection from `remote` may begin: where banned peers keep coming back, few may.
    pub(crate) fn may_begin(&mut self, remote: &Multiaddr, now: Instant) -> bool {
        self.place(remote)
            .is_none_or(|place| self.requests.may_begin(place.host, now))
    }

    fn place(&self, remote: &Multiaddr) -> Option<Place> {
        Place::of(remote, self.config.ipv4_prefix(), self.config.ipv6_prefix())
    }

    /// A connection is up. Whether it is `relayed` its remote address alone does not tell: a circuit to us has none.
    pub(crate) fn on_connected(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        relayed: bool,
    ) {
        let place = self.place(remote).filter(|_| !relayed);
        self.connections.insert(
            connection,
            Connection {
                peer,
                place,
                relayed,
                reserved: None,
                circuits: SmallVec::new(),
            },
        );
        let known = self.peers.entry(peer).or_default();
        known.connections.push(connection);
    }

    pub(crate) fn on_disconnected(&mut self, connection: ConnectionId, now: Instant) {
        let Some(closed) = self.connections.get_mut(&connection) else {
            return;
        };
        for circuit in std::mem::take(&mut closed.circuits) {
            self.on_end_lost(circuit, connection, now);
        }
        self.pass_on(connection);
        let Some(closed) = self.connections.remove(&connection) else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(&closed.peer) {
            peer.connections.retain(|other| *other != connection);
            if peer.connections.is_empty() {
                self.peers.remove(&closed.peer);
            }
        }
        self.finish_drain(false);
    }

    /// "The reservation remains valid until its expiration, as long as there is an active connection from the peer to the
    /// relay. If the peer disconnects, the reservation is no longer valid."
    /// <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#reservation>
    fn pass_on(&mut self, connection: ConnectionId) {
        let Some((peer, end)) = self.let_go(connection) else {
            return;
        };
        let heir = self.peers.get(&peer).and_then(|known| {
            let mut others = known.connections.iter().rev();
            others
                .find(|other| {
                    **other != connection
                        && self
                            .connections
                            .get(other)
                            .is_some_and(|other| !other.relayed && other.reserved.is_none())
                })
                .copied()
        });
        if let Some(heir) = heir
            && let Some(owner) = self.owner(heir)
            && self.reservations.room(&[owner]).is_ok()
        {
            self.expiries.pass_on(end, heir);
            self.hold(heir, end);
            // Others were asked for later.
            if let Some(known) = self.peers.get_mut(&peer) {
                known.reserved.rotate_right(1);
            }
            return;
        }
        self.expiries.remove(end);
        self.outputs.push_back(Output::ReservationClosed {
            peer,
            connection,
            reason: CloseReason::ConnectionClosed,
        });
    }

    /// A peer sent something that is no request. True if it may go on.
    pub(crate) fn on_violation(&mut self, connection: ConnectionId, now: Instant) -> bool {
        self.count(connection, now).is_ok()
    }

    /// A peer asks for a reservation, or for more time.
    pub(crate) fn reserve(
        &mut self,
        connection: ConnectionId,
        now: Instant,
    ) -> Result<Grant, Refusal> {
        self.count(connection, now)?;
        let Some(asking) = self.connections.get(&connection) else {
            return Err(Refusal::Ignored);
        };
        let from = asking.place.map(|place| place.address);
        let (peer, held) = (asking.peer, asking.reserved.is_some());
        // "`PERMISSION_DENIED` if the reservation is rejected because of peer filtering using ACLs."
        // <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#reservation>
        // A reservation over a relayed connection would be a circuit over a circuit.
        if asking.relayed || !self.access.may_reserve(peer, from) {
            return Err(StatusCode::PermissionDenied.into());
        }
        // "`RESERVATION_REFUSED` if the reservation is rejected for some other reason, eg because there are too many
        // reservations." (same section)
        let refused = || Refusal::Told(StatusCode::ReservationRefused);
        if !self.is_offering() {
            return Err(refused());
        }
        let owner = Owner {
            peer,
            place: asking.place,
        };
        if !self.requests.reservation(&owner, held, now) {
            return Err(refused());
        }
        let until = now + self.config.reservation_duration();
        let renewed = if held {
            self.prolong(connection, until);
            true
        } else {
            let room = self.reservations.room(&[owner]);
            if room.is_err() {
                self.take_over(owner).ok_or_else(refused)?;
            }
            let end = self.expiries.push(until, connection);
            self.hold(connection, end);
            room.is_err()
        };
        let limit = self.limit_for(&[owner]);
        Ok(Grant {
            renewed,
            is_new_here: !held,
            limit,
        })
    }

    /// Frees the place of a reservation of this peer for a new one on another connection: whoever has a reservation is never
    /// refused for lack of room. The old connection may be dead and nobody know it yet. It is the oldest whose end makes room:
    /// where a host or network is full, one that counts there, so that none moves in.
    fn take_over(&mut self, new: Owner) -> Option<()> {
        // As many as a peer may have.
        let reserved = self.peers.get(&new.peer)?.reserved.clone();
        let moves = reserved.into_iter().find(|held| {
            let Some(owner) = self.owner(*held) else {
                return false;
            };
            self.reservations.release(&[owner]);
            let fits = self.reservations.room(&[new]).is_ok();
            self.reservations.take(&[owner]);
            fits
        })?;
        self.release(moves);
        Some(())
    }

    /// The peer has a reservation on `new`: what it does not answer on its other connections is asked there, once. They may be dead, and
    /// nobody know it yet. A circuit keeps the terms that it began with.
    pub(crate) fn ask_again(&mut self, new: ConnectionId) {
        let Some(owner) = self.owner(new) else {
            return;
        };
        let others = self.peers.get(&owner.peer).into_iter();
        let others = others.flat_map(|peer| &peer.connections);
        let others = others.filter(|other| **other != new);
        let circuits: Vec<CircuitId> = others
            .filter_map(|other| self.connections.get(other))
            .flat_map(|other| other.circuits.iter().copied())
            .collect();
        for id in circuits {
            let Some(circuit) = self.circuits.get_mut(&id) else {
                continue;
            };
            let [source, destination] = circuit.ends;
            let is_set = circuit.opened.is_some() || circuit.orphaned || circuit.moved;
            if is_set || destination.peer != owner.peer {
                continue;
            }
            self.circuit_caps.release(&circuit.ends);
            let ends = [source, owner];
            if self.circuit_caps.room(&ends).is_err() {
                self.circuit_caps.take(&circuit.ends);
                continue;
            }
            self.circuit_caps.take(&ends);
            circuit.ends = ends;
            circuit.moved = true;
            let from = std::mem::replace(&mut circuit.destination, new);
            if let Some(from) = self.connections.get_mut(&from) {
                from.circuits.retain(|other| *other != id);
            }
            if let Some(new) = self.connections.get_mut(&new) {
                new.circuits.push(id);
            }
            self.outputs.push_back(Output::CircuitMoved {
                circuit: id,
                source: source.peer,
                destination: owner.peer,
                from,
                through: new,
            });
        }
    }

    /// Whether the destination of a circuit is asked over this connection.
    pub(crate) fn is_asked(&self, circuit: CircuitId, connection: ConnectionId) -> bool {
        let circuit = self.circuits.get(&circuit);
        circuit.is_some_and(|circuit| circuit.destination == connection)
    }

    fn prolong(&mut self, connection: ConnectionId, until: Instant) {
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        if let Some(before) = known.reserved.take() {
            self.expiries.remove(before);
        }
        known.reserved = Some(self.expiries.push(until, connection));
        if let Some(peer) = self.peers.get_mut(&known.peer) {
            peer.reserved.retain(|other| *other != connection);
            peer.reserved.push(connection);
        }
    }

    /// Gives `connection` a reservation. It is the peer's newest.
    fn hold(&mut self, connection: ConnectionId, end: Ticket) {
        let Some(owner) = self.owner(connection) else {
            return;
        };
        self.reservations.take(&[owner]);
        if let Some(known) = self.connections.get_mut(&connection) {
            known.reserved = Some(end);
        }
        if let Some(known) = self.peers.get_mut(&owner.peer) {
            known.reserved.push(connection);
        }
        self.outputs.push_back(Output::Hold {
            connection,
            peer: owner.peer,
            held: true,
        });
    }

    /// Takes the reservation of `connection` away; the peer, if there was one.
    fn release(&mut self, connection: ConnectionId) -> Option<PeerId> {
        let (peer, end) = self.let_go(connection)?;
        self.expiries.remove(end);
        Some(peer)
    }

    /// The same, but for its end, which is another connection's or to be removed.
    fn let_go(&mut self, connection: ConnectionId) -> Option<(PeerId, Ticket)> {
        let owner = self.owner(connection)?;
        let end = self.connections.get_mut(&connection)?.reserved.take()?;
        self.reservations.release(&[owner]);
        if let Some(known) = self.peers.get_mut(&owner.peer) {
            known.reserved.retain(|other| *other != connection);
        }
        self.outputs.push_back(Output::Hold {
            connection,
            peer: owner.peer,
            held: false,
        });
        Some((owner.peer, end))
    }

    fn owner(&self, connection: ConnectionId) -> Option<Owner> {
        let connection = self.connections.get(&connection)?;
        Some(Owner {
            peer: connection.peer,
            place: connection.place,
        })
    }

    /// A peer asks for a circuit.
    pub(crate) fn connect(
        &mut self,
        connection: ConnectionId,
        destination: PeerId,
        now: Instant,
    ) -> Result<Opening, Refusal> {
        self.count(connection, now)?;
        let Some(asking) = self.connections.get(&connection) else {
            return Err(Refusal::Ignored);
        };
        let source = Owner {
            peer: asking.peer,
            place: asking.place,
        };
        let from = source.place.map(|place| place.address);
        // "`PERMISSION_DENIED` if the connection is rejected because of peer filtering using ACLs."
        // <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#connection-initiation>
        // Nobody may add a circuit to a circuit, or make one to itself.
        if asking.relayed
            || source.peer == destination
            || !self.access.may_connect(source.peer, from)
        {
            return Err(StatusCode::PermissionDenied.into());
        }
        // "`RESOURCE_LIMIT_EXCEEDED` if there are too many relayed connections from the initiator or to the target peer."
        // (same section)
        if !self.is_offering() || !self.requests.circuit(&source, now) {
            return Err(StatusCode::ResourceLimitExceeded.into());
        }
        // "`NO_RESERVATION` if there is no active reservation for the target peer." (same section)
        // So a hop to the relay itself ends here: it holds none at itself.
        let through = Some(destination)
            .filter(|destination| *destination != self.local)
            .and_then(|destination| self.peers.get(&destination)?.reserved.last().copied())
            .ok_or(StatusCode::NoReservation)?;
        let target = self.owner(through).ok_or(StatusCode::NoReservation)?;
        let ends = [source, target];
        self.circuit_caps
            .room(&ends)
            .map_err(|_| StatusCode::ResourceLimitExceeded)?;
        self.circuit_caps.take(&ends);
        let circuit = CircuitId(self.next_circuit);
        self.next_circuit += 1;
        self.circuits.insert(
            circuit,
            Circuit {
                ends,
                source: connection,
                destination: through,
                opened: None,
                orphaned: false,
                moved: false,
            },
        );
        for end in [connection, through] {
            if let Some(end) = self.connections.get_mut(&end) {
                end.circuits.push(circuit);
            }
        }
        let class = ends.iter().map(|end| {
            let from = end.place.map(|place| place.address);
            self.access.class_of(end.peer, from)
        });
        Ok(Opening {
            circuit,
            through,
            limit: self.limit_for(&ends),
            class: class.min().unwrap_or_default(),
        })
    }

    /// `None` if one of these is allowed to go on for ever.
    fn limit_for(&self, ends: &[Owner]) -> Option<CircuitLimit> {
        let allowed = ends.iter().any(|end| {
            let from = end.place.map(|place| place.address);
            self.access.is_allowed(end.peer, from)
        });
        self.config.circuit_limit().filter(|_| !allowed)
    }

    /// The destination takes the circuit. The source's connection and both peers, unless the circuit is gone by now.
    pub(crate) fn on_circuit_open(
        &mut self,
        circuit: CircuitId,
        now: Instant,
    ) -> Option<(ConnectionId, [PeerId; 2])> {
        let open = self.circuits.get_mut(&circuit)?;
        if open.orphaned {
            self.remove_circuit(circuit);
            self.finish_drain(false);
            return None;
        }
        open.opened = Some(now);
        Some((open.source, open.ends.map(|end| end.peer)))
    }

    /// The destination does not take the circuit, or could not be asked.
    pub(crate) fn on_circuit_refused(&mut self, circuit: CircuitId, status: StatusCode) {
        let Some(failed) = self.remove_circuit(circuit) else {
            return;
        };
        let [source, destination] = failed.ends;
        if !failed.orphaned {
            self.outputs.push_back(Output::CircuitFailed {
                circuit,
                source: failed.source,
                peer: source.peer,
                destination: destination.peer,
                status,
            });
        }
        self.finish_drain(false);
    }

    /// An open circuit ended by itself.
    pub(crate) fn on_circuit_ended(&mut self, circuit: CircuitId, end: CircuitEnd, now: Instant) {
        let Some(ended) = self.remove_circuit(circuit) else {
            return;
        };
        self.tell_closed(circuit, &ended, end, now);
        self.finish_drain(false);
    }

    fn on_end_lost(&mut self, circuit: CircuitId, closed: ConnectionId, now: Instant) {
        let Some(lost) = self.circuits.get_mut(&circuit) else {
            return;
        };
        if lost.opened.is_some() {
            self.on_circuit_ended(circuit, CircuitEnd::ConnectionClosed, now);
        } else if lost.source == closed {
            lost.orphaned = true;
            let [_, destination] = lost.ends;
            self.outputs.push_back(Output::CircuitForgotten {
                circuit,
                through: lost.destination,
                destination: destination.peer,
            });
        } else {
            // "`CONNECTION_FAILED` if the relay failed to terminate the connection to the target peer."
            // <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#connection-initiation>
            self.on_circuit_refused(circuit, StatusCode::ConnectionFailed);
        }
    }

    fn tell_closed(&mut self, circuit: CircuitId, ended: &Circuit, end: CircuitEnd, now: Instant) {
        let [source, destination] = ended.ends;
        let opened = ended.opened.unwrap_or(now);
        self.outputs.push_back(Output::CircuitClosed {
            circuit,
            source: source.peer,
            destination: destination.peer,
            duration: now.saturating_duration_since(opened),
            end,
        });
    }

    fn remove_circuit(&mut self, circuit: CircuitId) -> Option<Circuit> {
        let removed = self.circuits.remove(&circuit)?;
        self.circuit_caps.release(&removed.ends);
        for end in [removed.source, removed.destination] {
            if let Some(end) = self.connections.get_mut(&end) {
                end.circuits.retain(|other| *other != circuit);
            }
        }
        Some(removed)
    }

    /// Counts a request of whatever kind; a peer with too many is banned.
    fn count(&mut self, connection: ConnectionId, now: Instant) -> Result<(), Refusal> {
        let Some(asking) = self.connections.get(&connection) else {
            return Err(Refusal::Ignored);
        };
        let peer = asking.peer;
        if self.requests.any(peer, now) {
            return Ok(());
        }
        if self.requests.ban(peer, now) {
            self.outputs.push_back(Output::Ban { peer });
        }
        Err(Refusal::Ignored)
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some((until, end, connection)) = self.expiries.first()
            && until <= now
        {
            // "The reservation becomes invalid after this time and it's the responsibility of the client to refresh."
            // <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md#reservation>
            self.end_reservation(connection, end, CloseReason::Expired);
        }
        let overdue = |drain: &Drain| !drain.done && drain.deadline <= now;
        if self.drain.as_ref().is_some_and(overdue) {
            self.finish_drain(true);
            let wanted = self.circuits.values().filter(|it| !it.orphaned);
            let cut = wanted.count();
            let mut open: Vec<CircuitId> = self.circuits.keys().copied().collect();
            open.sort_unstable();
            for circuit in open {
                if self
                    .circuits
                    .get(&circuit)
                    .is_some_and(|it| it.opened.is_some())
                {
                    self.on_circuit_ended(circuit, CircuitEnd::Drained, now);
                } else {
                    self.on_circuit_refused(circuit, StatusCode::ConnectionFailed);
                }
            }
            self.tell_drained(cut);
        }
    }

    fn end_reservations(&mut self, reason: CloseReason) {
        while let Some((_, end, connection)) = self.expiries.first() {
            self.end_reservation(connection, end, reason);
        }
    }

    fn end_reservation(&mut self, connection: ConnectionId, end: Ticket, reason: CloseReason) {
        self.expiries.remove(end);
        let Some((peer, _)) = self.let_go(connection) else {
            return;
        };
        self.outputs.push_back(Output::ReservationClosed {
            peer,
            connection,
            reason,
        });
    }

    /// Ends the reservations, which are of no use any more, once no circuit is left or the deadline has come.
    fn finish_drain(&mut self, overdue: bool) {
        let Some(drain) = &mut self.drain else { return };
        if drain.done || !(overdue || self.circuits.is_empty()) {
            return;
        }
        drain.done = true;
        self.end_reservations(CloseReason::Drained);
        if !overdue {
            self.tell_drained(0);
        }
    }

    fn tell_drained(&mut self, cut: usize) {
        self.outputs.push_back(Output::Drained { cut });
    }

    /// What is to be done. Drain it after every call.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The next moment at which [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let expiry = self.expiries.first().map(|(until, ..)| until);
        let drain = self.drain.as_ref().filter(|drain| !drain.done);
        let deadline = drain.map(|drain| drain.deadline);
        [expiry, deadline].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests;
