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

mod targets;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;
use web_time::Instant;

pub(crate) use targets::As;
use targets::{Situation, Target};

use crate::{
    Config, Event, NoPunch, Outcome, PunchError, Role, Transport,
    address::{Scope, without_peer},
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
    /// Dial; tell how it ended with [`Punches::on_direct`] or [`Punches::on_dial_failed`].
    Dial {
        dial: DialId,
        peer: PeerId,
        address: Multiaddr,
        how: As,
    },
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
    /// At most [`Config::max_history`].
    history: VecDeque<Outcome>,
    next_dial: u64,
    next_exchange: u32,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Relayed {
    peer: PeerId,
    role: Role,
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
    attempt: u8,
}

#[derive(Debug)]
struct Reached {
    peer: PeerId,
    at: Instant,
    /// Whether it is on us to close what is too much.
    is_ours_to_close: bool,
    /// What came second, and when it is closed.
    superfluous: Vec<(Instant, ConnectionId)>,
}

#[derive(Debug)]
struct Punch {
    relayed: ConnectionId,
    role: Role,
    since: Instant,
    deadline: Instant,
    stage: Stage,
    /// The present one, from 1; 0 before the first.
    attempt: u8,
    /// The last one that came to dials.
    synchronised: u8,
    /// Under way: one of ours and one of the peer's.
    exchanges: Vec<(Exchange, Step)>,
    /// The last one measured.
    round_trip: Option<Duration>,
    /// Whether the peer has said anything.
    heard: bool,
    /// What we told the peer of our NATs.
    told: NatReport,
    /// What the peer told of its own.
    peers: Option<NatReport>,
    peers_failure: Option<PunchError>,
    /// Addresses dialled, at most [`Config::max_dials_per_peer`] an attempt.
    tried: Vec<Multiaddr>,
    no_punch: Option<NoPunch>,
}

#[derive(Debug)]
enum Stage {
    /// Too many others are under way.
    Queued,
    /// No address of our own is known yet.
    WithoutCandidates { until: Instant },
    /// Waits for a message.
    Talking,
    /// Waits for half a round trip.
    Synchronised { at: Instant, targets: Vec<Target> },
    /// Waits for a connection.
    Dialling { since: Instant, until: Instant },
    /// Waits before it talks again.
    Pausing { until: Instant },
}

#[derive(Debug)]
enum Step {
    /// Our `CONNECT` for this attempt is out.
    Sent(u8),
    /// The peer's `CONNECT` is answered; its `SYNC` begins the dials.
    Answered(Vec<Target>),
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
            history: VecDeque::new(),
            next_dial: 0,
            next_exchange: 0,
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

    /// A relayed connection is up.
    pub(crate) fn on_relayed(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        role: Role,
        now: Instant,
    ) {
        if !self.config.enabled() {
            return;
        }
        let relayed = Relayed {
            peer,
            role,
            opened_by_peer: 0,
            dials: 0,
        };
        self.relayed.insert(connection, relayed);
        if self.direct.contains_key(&peer) {
            self.release(peer, connection);
        } else if self.punches.contains_key(&peer) {
            if !self.settle_on_one_circuit(peer, now) {
                self.release(peer, connection);
            }
        } else {
            self.begin(connection, peer, role, now);
        }
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
        if let Some(connections) = self.direct.get_mut(&peer) {
            connections.remove(&connection);
            if connections.is_empty() {
                self.direct.remove(&peer);
            }
        }
    }

    /// An address of the peer became known by other means. A public one is dialled while the
    /// exchange runs.
    pub(crate) fn on_peer_address(&mut self, peer: PeerId, address: &Multiaddr) {
        let address = without_peer(address);
        let Some(punch) = self.punches.get(&peer) else {
            return;
        };
        // The responder's own side has dialled what it knew before it took to the relay.
        if punch.role == Role::Responder
            || matches!(punch.stage, Stage::Queued)
            || punch.tried.len() >= self.config.max_direct_dials()
            || Scope::of(&address) != Scope::Public
            || punch.tried.contains(&address)
            || self.own.candidates.contains(&address)
        {
            return;
        }
        let how = match Transport::of(&address) {
            Transport::Quic => As::Client,
            Transport::Tcp => As::Stranger,
            _ => return,
        };
        self.dial(peer, &address, how);
    }

    /// The peer's first message of an exchange.
    pub(crate) fn on_connect(&mut self, exchange: Exchange, message: &Message, now: Instant) {
        let max = self.config.max_exchanges();
        let Some(relayed) = self.relayed.get_mut(&exchange.relayed) else {
            return;
        };
        let (peer, role) = (relayed.peer, relayed.role);
        relayed.opened_by_peer = relayed.opened_by_peer.saturating_add(1);
        let too_many = relayed.opened_by_peer > max;
        // Where the peer does not count, its exchanges do.
        let attempt = match &message.extras {
            Some(extras) => extras.attempt.max(1),
            None => u8::try_from(relayed.opened_by_peer).unwrap_or(u8::MAX),
        };
        tracing::debug!(%peer, attempt, ?role, "the peer's CONNECT");
        if message.kind == Kind::Sync {
            self.on_farewell(peer, message, now);
            self.abandon(peer, exchange);
            return;
        }
        if too_many || self.direct.contains_key(&peer) {
            tracing::debug!(%peer, too_many, "an exchange is refused");
            self.abandon(peer, exchange);
            return;
        }
        match self.punches.get(&peer).map(|punch| punch.role) {
            // The peer tries again after we gave up.
            None => self.begin_waiting(exchange.relayed, peer, role, now),
            Some(ours) if ours == role => {}
            Some(_) if self.is_preferred(peer, role) => {
                self.change_circuit(exchange.relayed, peer, role);
            }
            // The peer changes to the other circuit as well.
            Some(_) => {
                tracing::debug!(%peer, "an exchange on the circuit that is given up is refused");
                self.abandon(peer, exchange);
                return;
            }
        }
        let is_idle = self
            .punches
            .get(&peer)
            .is_some_and(|punch| !punch.is_active());
        if is_idle && self.active() >= self.config.max_concurrent() {
            let mut busy = self.connect_message(attempt);
            busy.addresses.clear();
            if let Some(extras) = busy.extras.as_mut() {
                extras.failure = Some(PunchError::Busy);
            }
            self.outputs.push_back(Output::Reply {
                peer,
                exchange,
                message: busy,
            });
            return;
        }
        let answer = self.connect_message(attempt);
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        // A peer has one exchange at a time.
        let old = punch.take_exchange_of(Opener::Peer);
        punch.told = self.own.nat;
        punch.heard = true;
        punch.peers = message.extras.as_ref().map(|extras| extras.nat);
        punch.attempt = punch.attempt.max(attempt);
        let (peers, targets) = self.targets(peer, message);
        if let Some(old) = old {
            self.abandon(peer, old);
        }
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        if matches!(punch.stage, Stage::Queued | Stage::WithoutCandidates { .. }) {
            punch.stage = Stage::Talking;
        }
        punch.no_punch = peers;
        let (at_once, later): (Vec<_>, Vec<_>) =
            targets.into_iter().partition(|target| target.at_once);
        punch.exchanges.push((exchange, Step::Answered(later)));
        self.outputs.push_back(Output::Reply {
            peer,
            exchange,
            message: answer,
        });
        self.dial_all(peer, at_once);
    }

    /// The answer to our `CONNECT`.
    pub(crate) fn on_connected(
        &mut self,
        exchange: Exchange,
        message: &Message,
        round_trip: Duration,
        now: Instant,
    ) {
        let Some((peer, Step::Sent(attempt))) = self.take_exchange(exchange) else {
            return;
        };
        tracing::debug!(%peer, attempt, ?round_trip, "our CONNECT is answered");
        let attempts = self.config.attempts();
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        punch.round_trip = Some(round_trip);
        punch.heard = true;
        punch.peers = message.extras.as_ref().map(|extras| extras.nat);
        if attempt <= punch.synchronised {
            // The peer's own exchange was quicker.
            self.abandon(peer, exchange);
            return;
        }
        if let Some(failure) = message.failure() {
            punch.peers_failure = Some(failure);
            let goes_on = failure == PunchError::Busy && punch_may_retry(punch, attempts);
            if goes_on {
                let until = now + self.config.attempt_timeout() / 2;
                punch.stage = Stage::Pausing { until };
            }
            self.abandon(peer, exchange);
            if !goes_on {
                self.end(peer, Err(failure), now);
            }
            return;
        }
        let (no_punch, targets) = self.targets(peer, message);
        let failure = match no_punch {
            Some(_) => Some(PunchError::Impossible),
            // Nobody can dial anybody.
            None if targets.is_empty() && self.own.candidates.is_empty() => {
                Some(PunchError::NoAddresses)
            }
            None => None,
        };
        let mut sync = Message {
            kind: Kind::Sync,
            addresses: Vec::new(),
            extras: Some(Extras::default()),
        };
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        if message.extras.is_none() {
            // As small as the specification has it.
            sync.extras = None;
        } else if let Some(extras) = sync.extras.as_mut() {
            extras.attempt = attempt;
            extras.failure = failure;
        }
        self.outputs.push_back(Output::Sync {
            peer,
            exchange,
            message: sync,
        });
        punch.no_punch = no_punch;
        if let Some(failure) = failure {
            self.end(peer, Err(failure), now);
            return;
        }
        let (at_once, later): (Vec<_>, Vec<_>) =
            targets.into_iter().partition(|target| target.at_once);
        punch.synchronised = attempt;
        punch.stage = Stage::Synchronised {
            at: now + round_trip / 2,
            targets: later,
        };
        self.dial_all(peer, at_once);
    }

    /// The peer's `SYNC`.
    pub(crate) fn on_sync(&mut self, exchange: Exchange, message: &Message, now: Instant) {
        let Some((peer, Step::Answered(targets))) = self.take_exchange(exchange) else {
            return;
        };
        tracing::debug!(%peer, attempt = message.attempt(), "the peer's SYNC");
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        if let Some(failure) = message.failure() {
            punch.peers_failure = Some(failure);
            self.end(peer, Err(failure), now);
            return;
        }
        if message.extras.is_some() && message.attempt() <= punch.synchronised {
            // Both exchanges came through. The peer dials now: so do we, if we were still waiting.
            if let Stage::Synchronised { targets, .. } = &mut punch.stage {
                let targets = std::mem::take(targets);
                self.start_dialling(peer, targets, now);
            }
            return;
        }
        punch.attempt = punch.attempt.max(message.attempt());
        punch.synchronised = punch.attempt;
        if let Some(ours) = punch.take_exchange_of(Opener::Us) {
            self.abandon(peer, ours);
        }
        self.start_dialling(peer, targets, now);
    }

    /// An exchange broke off, whoever opened it.
    pub(crate) fn on_exchange_failed(&mut self, exchange: Exchange, now: Instant) {
        let Some((peer, _)) = self.take_exchange(exchange) else {
            return;
        };
        if self.settle_on_one_circuit(peer, now) {
            return;
        }
        let attempts = self.config.attempts();
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        let nothing_left = punch.exchanges.is_empty() && matches!(punch.stage, Stage::Talking);
        // Whoever accepted the relayed connection goes on; the other side waits for it.
        if !nothing_left || punch.role == Role::Responder {
            return;
        }
        if punch_may_retry(punch, attempts) {
            punch.stage = Stage::Pausing {
                until: now + RETRY_PAUSE,
            };
        } else {
            self.end(peer, Err(PunchError::ExchangeFailed), now);
        }
    }

    /// A dial of ours led nowhere.
    pub(crate) fn on_dial_failed(&mut self, dial: DialId, now: Instant) {
        let Some(Dial { peer, .. }) = self.dials.remove(&dial) else {
            return;
        };
        let any = self.dials.values().any(|dial| dial.peer == peer);
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        if let Stage::Dialling { since, until } = &mut punch.stage
            && !any
        {
            // The peer's dials may still get through for a moment.
            *until = (*until).min((*since + MIN_ATTEMPT).max(now));
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

    fn begin(&mut self, relayed: ConnectionId, peer: PeerId, role: Role, now: Instant) {
        self.begin_waiting(relayed, peer, role, now);
        self.begin_talking(peer, role, now);
    }

    fn begin_talking(&mut self, peer: PeerId, role: Role, now: Instant) {
        if role == Role::Initiator || self.config.early() {
            self.talk(peer, now);
        } else if let Some(punch) = self.punches.get_mut(&peer) {
            punch.stage = Stage::Talking;
        }
    }

    /// Whether a circuit on which we have this role is the one to talk on, where both nodes dialled
    /// each other over a relay: the one that the node with the smaller id dialled. On one circuit
    /// exactly one node is the initiator; each talking on its own, both would dial as the TLS client.
    fn is_preferred(&self, peer: PeerId, role: Role) -> bool {
        (role == Role::Responder) == (self.local < peer)
    }

    /// Goes over to the preferred circuit, if there is one and no exchange has come further on the
    /// present one. Tells whether it did.
    fn settle_on_one_circuit(&mut self, peer: PeerId, now: Instant) -> bool {
        let Some(punch) = self.punches.get(&peer) else {
            return false;
        };
        let is_answered = |(_, step): &(_, Step)| matches!(step, Step::Answered(_));
        let has_come_further = punch.exchanges.iter().any(is_answered)
            || (punch.synchronised > 0 && punch.synchronised == punch.attempt);
        if has_come_further || self.is_preferred(peer, punch.role) {
            return false;
        }
        let mut relayed = self.relayed.iter();
        let other = relayed.find(|(_, other)| other.peer == peer && other.role != punch.role);
        let Some((other, role)) = other.map(|(id, other)| (*id, other.role)) else {
            return false;
        };
        self.change_circuit(other, peer, role);
        self.begin_talking(peer, role, now);
        true
    }

    fn change_circuit(&mut self, relayed: ConnectionId, peer: PeerId, role: Role) {
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        tracing::debug!(%peer, old = %punch.relayed, new = %relayed, "two circuits crossed");
        let old = std::mem::replace(&mut punch.relayed, relayed);
        punch.role = role;
        punch.stage = Stage::Talking;
        // What was said there counts for nothing.
        punch.attempt = punch.synchronised;
        for (exchange, _) in std::mem::take(&mut punch.exchanges) {
            self.abandon(peer, exchange);
        }
        self.release(peer, old);
    }

    /// A punch that waits for its place.
    fn begin_waiting(&mut self, relayed: ConnectionId, peer: PeerId, role: Role, now: Instant) {
        if self.punches.len() >= self.config.max_pending()
            && let Some(oldest) = self.punches.iter().min_by_key(|(_, punch)| punch.since)
        {
            let oldest = *oldest.0;
            self.end(oldest, Err(PunchError::Busy), now);
        }
        let punch = Punch {
            relayed,
            role,
            since: now,
            deadline: now + self.config.punch_timeout(),
            stage: Stage::Queued,
            attempt: 0,
            synchronised: 0,
            exchanges: Vec::new(),
            round_trip: None,
            heard: false,
            told: NatReport::default(),
            peers: None,
            peers_failure: None,
            tried: Vec::new(),
            no_punch: None,
        };
        self.punches.insert(peer, punch);
        self.outputs.push_back(Output::Event(Event::PunchStarted {
            peer,
            relayed,
            role,
        }));
    }

    /// Opens the next exchange, as soon as there is a place and something to say.
    fn talk(&mut self, peer: PeerId, now: Instant) {
        let is_full = self.active() >= self.config.max_concurrent();
        let has_candidates = !self.own.candidates.is_empty();
        let wait = self.config.candidate_wait();
        let nat = self.own.nat;
        let number = self.next_exchange;
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        if is_full && !punch.is_active() {
            punch.stage = match punch.role {
                Role::Initiator => Stage::Queued,
                // Its early exchange is a help, not a must.
                Role::Responder => Stage::Talking,
            };
            return;
        }
        let waited = matches!(punch.stage, Stage::WithoutCandidates { until } if until <= now);
        if !has_candidates && !waited {
            let until = match punch.stage {
                Stage::WithoutCandidates { until } => until,
                _ => now + wait,
            };
            punch.stage = Stage::WithoutCandidates { until };
            return;
        }
        let old = punch.take_exchange_of(Opener::Us);
        punch.attempt = punch.attempt.saturating_add(1);
        punch.stage = Stage::Talking;
        punch.told = nat;
        let exchange = Exchange {
            relayed: punch.relayed,
            opener: Opener::Us,
            number,
        };
        let attempt = punch.attempt;
        punch.exchanges.push((exchange, Step::Sent(attempt)));
        self.next_exchange = self.next_exchange.wrapping_add(1);
        if let Some(old) = old {
            self.abandon(peer, old);
        }
        let message = self.connect_message(attempt);
        self.outputs.push_back(Output::Connect {
            peer,
            exchange,
            message,
        });
    }

    fn connect_message(&self, attempt: u8) -> Message {
        let own = &self.own;
        let candidates = own.candidates.iter().take(self.config.max_candidates());
        let private = own.local.iter().filter(|a| Scope::of(a) == Scope::Private);
        Message {
            kind: Kind::Connect,
            addresses: candidates.cloned().collect(),
            extras: Some(Extras {
                attempt,
                nat: own.nat,
                local: private.take(MAX_LOCAL).cloned().collect(),
                failure: None,
            }),
        }
    }

    fn targets(&self, peer: PeerId, message: &Message) -> (Option<NoPunch>, Vec<Target>) {
        let Some(punch) = self.punches.get(&peer) else {
            return (None, Vec::new());
        };
        let situation = Situation {
            config: &self.config,
            peer,
            role: punch.role,
            attempt: punch.attempt,
            nat: &punch.told,
            candidates: &self.own.candidates,
            local: &self.own.local,
        };
        match targets::targets(&situation, message) {
            Ok(targets) => (None, targets),
            Err(no_punch) => (Some(no_punch), Vec::new()),
        }
    }

    fn start_dialling(&mut self, peer: PeerId, targets: Vec<Target>, now: Instant) {
        let until = now + self.config.attempt_timeout();
        if let Some(punch) = self.punches.get_mut(&peer) {
            punch.stage = Stage::Dialling { since: now, until };
        }
        self.dial_all(peer, targets);
    }

    fn dial_all(&mut self, peer: PeerId, targets: Vec<Target>) {
        for target in targets {
            self.dial(peer, &target.address, target.how);
        }
    }

    fn dial(&mut self, peer: PeerId, address: &Multiaddr, how: As) {
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        let attempt = punch.attempt;
        let under_way = || self.dials.values().filter(|dial| dial.peer == peer);
        // Two sockets cannot connect the same two addresses, and TCP repeats its SYN by itself. A
        // QUIC handshake that lost its first packet repeats it only after a second.
        let repeats = under_way().any(|dial| {
            dial.address == *address
                && match (Transport::of(address), how) {
                    (Transport::Quic, As::Client) => dial.how == how && dial.attempt == attempt,
                    (Transport::Quic, _) | (_, As::Stranger) => dial.how == how,
                    (Transport::Tcp, _) => dial.how != As::Stranger,
                    _ => true,
                }
        });
        let max = self.config.max_dials_per_peer();
        let Some(relayed) = self.relayed.get_mut(&punch.relayed) else {
            return;
        };
        let spent = relayed.dials >= max * usize::from(self.config.attempts());
        if repeats || spent || under_way().count() >= max {
            return;
        }
        relayed.dials += 1;
        if !punch.tried.contains(address) && punch.tried.len() < MAX_TRIED {
            punch.tried.push(address.clone());
        }
        let dial = DialId(self.next_dial);
        self.next_dial += 1;
        self.dials.insert(
            dial,
            Dial {
                peer,
                address: address.clone(),
                how,
                attempt,
            },
        );
        self.outputs.push_back(Output::Dial {
            dial,
            peer,
            address: address.clone(),
            how,
        });
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
        match &mut punch.stage {
            Stage::Synchronised { targets, .. } => {
                let targets = std::mem::take(targets);
                self.start_dialling(peer, targets, now);
            }
            Stage::Dialling { .. } => {
                let may_retry = punch_may_retry(punch, attempts);
                match punch.role {
                    Role::Initiator if may_retry => self.talk(peer, now),
                    // It waits for the next exchange, if there can be one.
                    Role::Responder if may_retry => punch.stage = Stage::Talking,
                    _ => {
                        let error = punch.verdict();
                        self.end(peer, Err(error), now);
                    }
                }
            }
            Stage::Pausing { .. } | Stage::WithoutCandidates { .. } => self.talk(peer, now),
            Stage::Queued | Stage::Talking => {}
        }
    }

    /// The peer says that nothing more comes.
    fn on_farewell(&mut self, peer: PeerId, message: &Message, now: Instant) {
        let failure = message.failure().unwrap_or(PunchError::ExchangeFailed);
        if let Some(punch) = self.punches.get_mut(&peer) {
            punch.peers_failure = Some(failure);
            self.end(peer, Err(failure), now);
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

    /// Both sides' dials got through: one of the two nodes closes what came second.
    ///
    /// A moment later: closed at once, it could look like a failed dial to the other side.
    fn collapse(&mut self, peer: PeerId, connection: ConnectionId, now: Instant) {
        let max = self.config.max_dials_per_peer();
        let mut reached = self.reached.iter_mut();
        if let Some(reached) = reached.find(|reached| reached.peer == peer)
            && reached.is_ours_to_close
            && now.saturating_duration_since(reached.at) < JUST_REACHED
            && self.config.close_duplicates()
            && reached.superfluous.len() < 2 * max
        {
            reached
                .superfluous
                .push((now + DUPLICATE_GRACE, connection));
        }
    }

    /// Closes what is superfluous by now, unless it is all that is left.
    fn close_superfluous(&mut self, now: Instant) {
        for reached in &mut self.reached {
            let peer = reached.peer;
            let Some(direct) = self.direct.get(&peer) else {
                reached.superfluous.clear();
                continue;
            };
            let mut left = direct.len();
            for (_, connection) in reached.superfluous.extract_if(.., |(at, _)| *at <= now) {
                if left > 1 && direct.contains(&connection) {
                    left -= 1;
                    self.outputs.push_back(Output::Close { peer, connection });
                }
            }
        }
    }

    fn abandon(&mut self, peer: PeerId, exchange: Exchange) {
        self.outputs.push_back(Output::Abandon { peer, exchange });
    }

    fn release(&mut self, peer: PeerId, relayed: ConnectionId) {
        self.outputs.push_back(Output::Release { peer, relayed });
    }

    fn take_exchange(&mut self, exchange: Exchange) -> Option<(PeerId, Step)> {
        let peer = self.relayed.get(&exchange.relayed)?.peer;
        let exchanges = &mut self.punches.get_mut(&peer)?.exchanges;
        let at = exchanges.iter().position(|(other, _)| *other == exchange)?;
        Some((peer, exchanges.remove(at).1))
    }

    fn active(&self) -> usize {
        self.punches
            .values()
            .filter(|punch| punch.is_active())
            .count()
    }
}

impl Punch {
    /// Whether it counts towards [`Config::max_concurrent`].
    fn is_active(&self) -> bool {
        match self.stage {
            Stage::Queued | Stage::WithoutCandidates { .. } => false,
            Stage::Talking => !self.exchanges.is_empty(),
            Stage::Synchronised { .. } | Stage::Dialling { .. } | Stage::Pausing { .. } => true,
        }
    }

    fn take_exchange_of(&mut self, opener: Opener) -> Option<Exchange> {
        let mut exchanges = self.exchanges.iter();
        let at = exchanges.position(|(exchange, _)| exchange.opener == opener)?;
        Some(self.exchanges.remove(at).0)
    }

    fn due(&self) -> Instant {
        match &self.stage {
            Stage::Queued | Stage::Talking => self.deadline,
            Stage::WithoutCandidates { until }
            | Stage::Synchronised { at: until, .. }
            | Stage::Dialling { until, .. }
            | Stage::Pausing { until } => self.deadline.min(*until),
        }
    }

    /// Why it failed, if it fails now.
    fn verdict(&self) -> PunchError {
        match self.stage {
            Stage::Queued => PunchError::Busy,
            _ if !self.tried.is_empty() => PunchError::DialsFailed,
            Stage::WithoutCandidates { .. } => PunchError::NoAddresses,
            Stage::Dialling { .. } => PunchError::NoAddresses,
            _ => PunchError::TimedOut,
        }
    }
}

fn punch_may_retry(punch: &Punch, attempts: u8) -> bool {
    punch.attempt < attempts
}

/// How long after a broken exchange the next one begins: what broke it may have to be noticed.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// An attempt whose own dials failed at once waits this long for the peer's: ten round trips of a
/// usual path.
const MIN_ATTEMPT: Duration = Duration::from_millis(500);

/// How long a second connection lives: both sides have it by then.
const DUPLICATE_GRACE: Duration = Duration::from_millis(500);

/// Connections that come up so long after the first one belong to the same punch: libp2p's dials
/// end after 10 s.
const JUST_REACHED: Duration = Duration::from_secs(10);

/// Addresses of our own network in a message: two transports, two families.
const MAX_LOCAL: usize = 4;

/// Addresses that an outcome names: three attempts at eight.
const MAX_TRIED: usize = 24;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
