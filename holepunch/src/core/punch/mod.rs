//! Coordinates hole punches: when to talk to the peer, what to dial, when to give up. One punch a
//! peer, in a few attempts.
//!
//! ```text
//!  initiator (accepted the relayed connection)      responder (dialled it)
//!  ── CONNECT, candidates ──────────────────────────▶
//!  ◀──────────────────────────────── CONNECT ────────   Anypath nodes: also the other way round, at the same
//!  ── SYNC ─────────────────────────────────────────▶   time, over the early protocol. The first SYNC counts.
//!  waits RTT/2, dials                                    dials
//! ```

mod circuits;
mod dials;
mod duplicates;
mod exchanges;
mod ports;
mod state;
mod targets;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;
use web_time::Instant;

use duplicates::{JUST_REACHED, Reached};
pub(crate) use ports::{Opening, PortId};
use state::{Punch, Stage, punch_may_retry};
pub(crate) use targets::As;

use crate::{
    Config, Event, Outcome, PunchError, Role, Transport,
    core::nat::report::NatReport,
    message::{Extras, Kind, Message},
};

/// Names one exchange of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Exchange {
    /// The relayed connection that it runs on.
    pub(crate) relayed: ConnectionId,
    /// Who opened its stream.
    pub(crate) opener: Opener,
    /// Counts those of the same connection and opener.
    pub(crate) number: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Opener {
    Us,
    Peer,
}

/// Names one dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DialId(u64);

/// What the adapter is to do or to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// Open a stream and send a `CONNECT`.
    Connect {
        peer: PeerId,
        exchange: Exchange,
        message: Message,
    },
    /// Answer a `CONNECT` of the peer.
    Reply {
        peer: PeerId,
        exchange: Exchange,
        message: Message,
    },
    /// Send the `SYNC` that ends an exchange of ours.
    Sync {
        peer: PeerId,
        exchange: Exchange,
        message: Message,
    },
    /// Tell the peer on a new stream that nothing more comes.
    Farewell {
        peer: PeerId,
        relayed: ConnectionId,
        message: Message,
    },
    /// Reset the stream of an exchange.
    Abandon {
        peer: PeerId,
        exchange: Exchange,
    },
    /// The relayed connection need not be kept for us any longer.
    Release {
        peer: PeerId,
        relayed: ConnectionId,
    },
    /// It need, again.
    Hold {
        peer: PeerId,
        relayed: ConnectionId,
    },
    /// A peer to which there is a direct connection comes over a relay: tell with [`Punches::on_alive`] or
    /// [`Punches::on_lost`] whether it still answers on that.
    Doubt(PeerId),
    /// Dial; tell how it ended with [`Punches::on_direct`] or [`Punches::on_dial_failed`].
    Dial {
        dial: DialId,
        peer: PeerId,
        address: Multiaddr,
        how: As,
        /// Not from the port that we listen on, or from any.
        from: Option<PortId>,
    },
    /// Open a port that is nobody else's; tell with [`Punches::on_port`] what became of it.
    OpenPort(Opening),
    /// The port takes no more connections; those that are up stay.
    ClosePort(PortId),
    /// Close a direct connection: another one is there.
    Close {
        peer: PeerId,
        connection: ConnectionId,
    },
    Event(Event),
}

/// This node's own addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Own {
    /// Addresses to offer, best first.
    pub(crate) candidates: Vec<Multiaddr>,
    /// Addresses that we listen on, in our own network.
    pub(crate) local: Vec<Multiaddr>,
    /// What we stand behind.
    pub(crate) nat: NatReport,
    /// Transports that open a port when they are told to.
    pub(crate) can_open: Vec<Transport>,
}

/// Coordinates the punches of one node.
#[derive(Debug)]
pub(crate) struct Punches {
    config: Config,
    local: PeerId,
    own: Own,
    /// At most [`Config::max_pending`].
    punches: BTreeMap<PeerId, Punch>,
    /// As many as the swarm has.
    relayed: BTreeMap<ConnectionId, Relayed>,
    /// As many as the swarm has.
    direct: BTreeMap<PeerId, BTreeSet<ConnectionId>>,
    /// Dials under way, at most [`Config::max_dials_per_peer`] a peer, those included that outlive
    /// their attempt.
    dials: BTreeMap<DialId, Dial>,
    /// Peers that were reached a moment ago, at most [`Config::max_pending`].
    reached: VecDeque<Reached>,
    /// Peers whose last direct connection ended, the latest last, at most [`Config::max_pending`].
    ended: VecDeque<(PeerId, Instant)>,
    /// At most [`Config::max_history`].
    history: VecDeque<Outcome>,
    next_dial: u64,
    next_exchange: u32,
    next_port: u64,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Relayed {
    peer: PeerId,
    role: Role,
    /// Whether it is kept for our sake.
    held: bool,
    /// Exchanges that the peer has opened.
    opened_by_peer: u32,
    /// Dials made for it, at most [`Config::max_dials_per_peer`] for each of
    /// [`Config::attempts`], however quickly they fail.
    dials: usize,
}

#[derive(Debug)]
struct Dial {
    peer: PeerId,
    address: Multiaddr,
    how: As,
    from: Option<PortId>,
    attempt: u8,
}

impl Punches {
    pub(crate) fn new(local: PeerId, config: Config) -> Self {
        Self {
            config,
            local,
            own: Own::default(),
            punches: BTreeMap::new(),
            relayed: BTreeMap::new(),
            direct: BTreeMap::new(),
            dials: BTreeMap::new(),
            reached: VecDeque::new(),
            ended: VecDeque::new(),
            history: VecDeque::new(),
            next_dial: 0,
            next_exchange: 0,
            next_port: 0,
            outputs: VecDeque::new(),
        }
    }

    /// This node's addresses or NATs are known better.
    pub(crate) fn on_own(&mut self, own: Own, now: Instant) {
        self.own = own;
        if self.own.candidates.is_empty() {
            return;
        }
        let waiting = self
            .punches
            .iter()
            .filter(|(_, punch)| matches!(punch.stage, Stage::WithoutCandidates { .. }));
        for peer in waiting.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.talk(peer, now);
        }
    }

    pub(crate) fn own(&self) -> &Own {
        &self.own
    }

    /// A direct connection is up, by one of our dials or otherwise.
    pub(crate) fn on_direct(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        transport: Transport,
        dial: Option<DialId>,
        now: Instant,
    ) {
        if let Some(dial) = dial {
            self.dials.remove(&dial);
        }
        let connections = self.direct.entry(peer).or_default();
        let is_first = connections.is_empty();
        connections.insert(connection);
        if let Some(punch) = self.punches.get(&peer) {
            // Of two Anypath nodes it is on the one with the greater id; others close nothing.
            let is_ours_to_close = self.local > peer || (punch.heard && punch.peers.is_none());
            if self.reached.len() >= self.config.max_pending() {
                self.reached.pop_front();
            }
            self.reached.push_back(Reached {
                peer,
                at: now,
                is_ours_to_close,
                superfluous: Vec::new(),
            });
            self.end(peer, Ok((connection, transport)), now);
        } else if !is_first {
            self.collapse(peer, connection, now);
        }
    }

    /// A connection closed, relayed or direct.
    pub(crate) fn on_closed(&mut self, connection: ConnectionId, peer: PeerId, now: Instant) {
        if self.relayed.remove(&connection).is_some()
            && self
                .punches
                .get(&peer)
                .is_some_and(|punch| punch.relayed == connection)
        {
            self.end(peer, Err(PunchError::RelayedConnectionClosed), now);
            // Another circuit to the same peer carries on.
            let mut others = self.relayed.iter();
            let other = others.find(|(_, relayed)| relayed.peer == peer);
            if let Some((other, role)) = other.map(|(id, relayed)| (*id, relayed.role))
                && !self.direct.contains_key(&peer)
            {
                self.begin(other, peer, role, now);
            }
        }
        if self.remove_direct(connection, peer, now) {
            // Unless it is one that was in doubt, whoever closed it wanted no other.
            self.begin_on_a_circuit(peer, |relayed| relayed.held, now);
        }
    }

    /// The peer answers on this connection.
    pub(crate) fn on_alive(&mut self, connection: ConnectionId, peer: PeerId) {
        let direct = self.direct.get(&peer);
        if direct.is_some_and(|direct| direct.contains(&connection)) {
            let held = self.relayed.iter();
            let held = held.filter(|(_, relayed)| relayed.peer == peer && relayed.held);
            for relayed in held.map(|(id, _)| *id).collect::<Vec<_>>() {
                self.release(peer, relayed);
            }
        }
    }

    /// The peer does not answer on this connection any more; it is as good as closed.
    pub(crate) fn on_lost(&mut self, connection: ConnectionId, peer: PeerId, now: Instant) {
        if self.relayed.contains_key(&connection) {
            self.on_closed(connection, peer, now);
        } else if self.remove_direct(connection, peer, now) {
            self.begin_on_a_circuit(peer, |_| true, now);
        }
    }

    /// Tells whether it was the last one.
    fn remove_direct(&mut self, connection: ConnectionId, peer: PeerId, now: Instant) -> bool {
        let Some(connections) = self.direct.get_mut(&peer) else {
            return false;
        };
        connections.remove(&connection);
        if !connections.is_empty() {
            return false;
        }
        self.direct.remove(&peer);
        if self.ended.len() >= self.config.max_pending() {
            self.ended.pop_front();
        }
        self.ended.push_back((peer, now));
        true
    }

    fn begin_on_a_circuit(
        &mut self,
        peer: PeerId,
        is_wanted: impl Fn(&Relayed) -> bool,
        now: Instant,
    ) {
        if self.punches.contains_key(&peer) {
            return;
        }
        let circuits = self.relayed.iter();
        let circuits = circuits.filter(|(_, relayed)| relayed.peer == peer && is_wanted(relayed));
        // Of two, the one that the peer takes as well.
        let best = circuits.max_by_key(|(_, relayed)| self.is_preferred(peer, relayed.role));
        if let Some((relayed, role)) = best.map(|(id, relayed)| (*id, relayed.role)) {
            self.begin(relayed, peer, role, now);
        }
    }

    /// How long the present attempt has. Where a direct connection has just ended, what was left of it may
    /// have spoiled the usual ports at the other side's NAT: then the next attempt, from fresh ones, comes
    /// sooner.
    fn patience(&self, peer: PeerId, now: Instant) -> Duration {
        let mut ended = self.ended.iter().rev();
        let at = ended.find_map(|(other, at)| (*other == peer).then_some(*at));
        let is_recent = at.is_some_and(|at| now.saturating_duration_since(at) < JUST_ENDED);
        let attempt = self.punches.get(&peer).map(|punch| punch.attempt);
        if is_recent && attempt == Some(1) {
            self.config.attempt_timeout() / 2
        } else {
            self.config.attempt_timeout()
        }
    }

    /// Something may be due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<PeerId> = self
            .punches
            .iter()
            .filter(|(_, punch)| punch.due() <= now)
            .map(|(peer, _)| *peer)
            .collect();
        for peer in due {
            self.handle_due(peer, now);
        }
        self.close_superfluous(now);
        self.reached.retain(|reached| {
            !reached.superfluous.is_empty()
                || now.saturating_duration_since(reached.at) < JUST_REACHED
        });
    }

    /// Drain after every call that changes something.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let closing = self.reached.iter().flat_map(|reached| &reached.superfluous);
        let closing = closing.map(|(at, _)| *at);
        self.punches.values().map(Punch::due).chain(closing).min()
    }

    /// The last outcomes, the oldest first.
    pub(crate) fn history(&self) -> impl Iterator<Item = &Outcome> {
        self.history.iter()
    }

    fn handle_due(&mut self, peer: PeerId, now: Instant) {
        let attempts = self.config.attempts();
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        if punch.deadline <= now {
            let error = punch.verdict();
            self.end(peer, Err(error), now);
            return;
        }
        let may_retry = punch_may_retry(punch, attempts);
        match &mut punch.stage {
            Stage::Synchronised { targets, .. } => {
                let targets = std::mem::take(targets);
                self.start_dialling(peer, targets, now);
            }
            Stage::Dialling {
                until,
                prepares,
                held,
                ..
            } if *until > now => {
                let prepares = prepares.take_if(|at| *at <= now).is_some();
                if held.take_if(|at| *at <= now).is_some() {
                    self.dial_from_quic_ports(peer);
                }
                if prepares {
                    self.open_ports(peer);
                }
            }
            Stage::Dialling { .. } if may_retry => self.retry(peer, now),
            Stage::Dialling { .. } => {
                let error = punch.verdict();
                self.end(peer, Err(error), now);
            }
            Stage::Preparing { .. } | Stage::Pausing { .. } | Stage::WithoutCandidates { .. } => {
                self.talk(peer, now);
            }
            Stage::Queued | Stage::Talking => {}
        }
    }

    fn end(
        &mut self,
        peer: PeerId,
        result: Result<(ConnectionId, Transport), PunchError>,
        now: Instant,
    ) {
        let Some(punch) = self.punches.remove(&peer) else {
            return;
        };
        for (exchange, _) in &punch.exchanges {
            self.abandon(peer, *exchange);
        }
        let peer_knows = punch.peers_failure.is_some()
            || matches!(
                result,
                Ok(_)
                    | Err(PunchError::Impossible
                        | PunchError::NoAddresses
                        | PunchError::RelayedConnectionClosed)
            );
        if let Err(failure) = result
            && !peer_knows
            && punch.peers.is_some()
            && punch.role == Role::Initiator
        {
            self.outputs.push_back(Output::Farewell {
                peer,
                relayed: punch.relayed,
                message: Message {
                    kind: Kind::Sync,
                    addresses: Vec::new(),
                    extras: Some(Extras {
                        attempt: punch.attempt,
                        failure: Some(failure),
                        ..Extras::default()
                    }),
                },
            });
        }
        self.close_ports(punch.ports);
        self.release(peer, punch.relayed);
        let outcome = Outcome {
            peer,
            relayed: Some(punch.relayed),
            role: punch.role,
            result: result.map(|(connection, _)| connection),
            transport: result.ok().map(|(_, transport)| transport),
            elapsed: now.saturating_duration_since(punch.since),
            attempts: punch.attempt,
            round_trip: punch.round_trip,
            tried: punch.tried,
            peer_failure: punch.peers_failure,
            no_punch: punch.no_punch,
            our_nat: punch.told.nat_type(),
            peer_nat: punch.peers.unwrap_or_default().nat_type(),
        };
        if self.history.len() >= self.config.max_history() {
            self.history.pop_front();
        }
        self.history.push_back(outcome.clone());
        self.outputs
            .push_back(Output::Event(Event::Outcome(outcome)));
        self.next_in_queue(now);
    }

    fn next_in_queue(&mut self, now: Instant) {
        let queued = self
            .punches
            .iter()
            .filter(|(_, punch)| matches!(punch.stage, Stage::Queued));
        let next = queued.min_by_key(|(_, punch)| punch.since);
        if let Some(next) = next.map(|(peer, _)| *peer) {
            self.talk(next, now);
        }
    }

    fn active(&self) -> usize {
        self.punches
            .values()
            .filter(|punch| punch.is_active())
            .count()
    }
}

/// A side sends for 10 s into a connection that is dead, and the other one may end its own as much later.
const JUST_ENDED: Duration = Duration::from_secs(20);

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
