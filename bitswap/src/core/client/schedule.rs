//! Which pending want to ask of which peer: the one expected to deliver it first.

use std::{cmp::Reverse, ops::Bound};

use smallvec::SmallVec;

use super::{
    Client, Output,
    peer::{PeerKey, Request},
    session::Session,
    wantlist::Goal,
    wants::{Phase, WantId},
};
use crate::{
    SessionId,
    core::{ConnKey, Path, paths::Paths},
};

/// Pending wants looked at from the front of the queue, and as many from where the last look ended:
/// those in front may be waiting for peers whose windows are full.
const SCAN: usize = 64;
/// Wants that a session may ask for before the next one has its turn.
const QUANTUM: usize = 32;
/// Delivery rate a peer is credited with before anything is known, in bytes a second.
const UNKNOWN_RATE: f64 = 10e6;
/// Other members are asked for HAVE if the one that is asked for the block is less likely than this
/// to have it …
const CERTAIN: f64 = 0.9;
/// … and if there are so many members; of two, the answer of one says whom to ask next.
const MANY: usize = 3;
/// Servers answer want-have with the block up to this size (boxo): there would be a copy for each.
const SMALL_BLOCK: u64 = 1024;

/// Whether a peer can take a request now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Yes,
    /// Its window is full.
    No,
    /// Only a circuit leads there on which so many bytes are left.
    TooNarrow(u64),
}

/// A peer as one session sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat {
    pub(super) key: PeerKey,
    pub(super) room: Room,
    /// Seconds until it would deliver one more block.
    pub(super) eta: f64,
    pub(super) hit_rate: f64,
}

impl Seat {
    /// Expected seconds, with those for asking another one in vain.
    pub(super) fn cost(&self, has: bool) -> f64 {
        let misses = if has { 0.0 } else { 1.0 - self.hit_rate };
        self.eta * (1.0 + 4.0 * misses)
    }

    /// Seats are kept in this order: those with room first, then the cheapest.
    fn rank(&self) -> (bool, u64) {
        // Costs are not negative: their bits are in their order.
        (self.room != Room::Yes, self.cost(false).to_bits())
    }
}

/// What a session's requests are judged by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// Bytes a block is taken to weigh, and those on a circuit.
    pub(super) estimate: u64,
    cautious: u64,
    /// Rate of a peer about which nothing is known.
    fallback: f64,
    /// Members that share the initial window.
    pub(super) sharing: u64,
}

enum Pick {
    Ask(PeerKey, f64),
    Narrow(PeerKey, u64),
    /// Who may have it has no room now.
    Later,
    /// No connected peer is likely to have it.
    Nobody,
}

impl Client {
    /// Assigns wants to peers, sessions taking turns, until nobody has room; then searches for what
    /// nobody has and hedges what is late.
    pub(super) fn schedule(&mut self) {
        for background in [false, true] {
            let mut sessions: Vec<SessionId> = self
                .sessions
                .iter()
                .filter(|(_, session)| session.options.background == background)
                .filter(|(_, session)| !session.pending.is_empty())
                .map(|(id, _)| *id)
                .collect();
            if background && !sessions.is_empty() && self.is_in_demand() {
                break;
            }
            while !sessions.is_empty() {
                sessions.retain(|session| self.assign(*session));
            }
        }
        self.start_searches();
        self.hedge();
    }

    /// Whether a session that is not in the background waits for something.
    fn is_in_demand(&self) -> bool {
        let waits = |id: &SessionId| {
            let session = self.sessions.get(id);
            session.is_some_and(|session| !session.options.background)
        };
        let pending = |(_, session): (&SessionId, &Session)| {
            !session.options.background && !session.pending.is_empty()
        };
        let requests = self.busy.iter().filter_map(|key| self.peers.get(key));
        self.sessions.iter().any(pending)
            || requests
                .flat_map(|peer| &peer.requests)
                .any(|request| self.sessions_of(request.want).iter().any(waits))
    }

    pub(super) fn terms(&self, session: &Session) -> Terms {
        let (mut fallback, mut sharing) = (UNKNOWN_RATE, 0);
        for peer in session.members.keys().filter_map(|key| self.peers.get(key)) {
            fallback = peer.window.rate().max(fallback);
            sharing += u64::from(peer.paths.best().is_some());
        }
        Terms {
            estimate: session.estimate(self.config.assumed_block_bytes()),
            cautious: session.cautious_estimate(),
            fallback,
            sharing,
        }
    }

    pub(super) fn seats(&self, session: &Session, terms: &Terms) -> Vec<Seat> {
        let members = session.members.iter();
        let mut seats: Vec<Seat> = members
            .filter_map(|(key, member)| self.seat(*key, member.hit_rate, terms))
            .collect();
        seats.sort_by_key(Seat::rank);
        seats
    }

    /// `None`: the peer is not reachable.
    pub(super) fn seat(&self, key: PeerKey, hit_rate: f64, terms: &Terms) -> Option<Seat> {
        let peer = self.peers.get(&key)?;
        let (_, path) = peer.paths.best()?;
        let penalty = 1.0 + 10.0 * f64::from(peer.stalls);
        Some(Seat {
            key,
            room: self.room(key, path, terms),
            eta: peer.window.eta(terms.estimate, terms.fallback) * penalty,
            hit_rate,
        })
    }

    fn room(&self, key: PeerKey, path: Path, terms: &Terms) -> Room {
        let Some(peer) = self.peers.get(&key) else {
            return Room::No;
        };
        if let Path::Limited(left) = path {
            let ordered = peer.requests.len() as u64 * terms.cautious;
            if !Paths::fits(path, ordered + terms.cautious) {
                return match peer.requests.is_empty() {
                    true => Room::TooNarrow(left),
                    false => Room::No,
                };
            }
            // One at a time until something is known about sizes.
            if terms.cautious == 0 && !peer.requests.is_empty() {
                return Room::No;
            }
        }
        let window = &peer.window;
        let limit = window.limit(terms.estimate, terms.sharing);
        let fits = peer.requests.is_empty()
            || (peer.stalls == 0 && window.in_flight() + terms.estimate <= limit);
        if fits && peer.list.len() < self.config.max_outstanding_per_peer() {
            Room::Yes
        } else {
            Room::No
        }
    }

    /// Whether so many bytes more may be on their way to the owner.
    pub(super) fn is_affordable(&self, bytes: u64) -> bool {
        let outstanding = self.in_flight_bytes + self.unacknowledged_bytes;
        outstanding == 0 || outstanding + bytes <= self.config.max_unacknowledged_bytes()
    }

    /// Asks for some wants of a session, and parks those nobody can be asked for. False: nothing
    /// more can be done for this session now.
    fn assign(&mut self, id: SessionId) -> bool {
        let Some(session) = self.sessions.get(&id) else {
            return false;
        };
        let terms = self.terms(session);
        let mut seats = self.seats(session, &terms);
        let can_take = |seats: &[Seat]| seats.iter().any(|seat| seat.room != Room::No);
        let mut left = SCAN;
        // Where there is nobody to ask, no more than can be searched for leave the queue.
        let parked = session.searching.len() + session.waiting.len();
        let mut parking = match seats.is_empty() {
            true => self.config.search_wants().saturating_sub(parked),
            false => usize::MAX,
        };
        let full = !seats.is_empty() && !can_take(&seats);
        if full || !self.is_affordable(terms.estimate) {
            return false;
        }
        let mut asked = 0;
        let mut from = None;
        let mut from_front = true;
        while asked < QUANTUM && self.is_affordable(terms.estimate) {
            let next = (left > 0).then(|| self.next_pending(id, from)).flatten();
            let Some(rank) = next else {
                if asked > 0 || !from_front {
                    break;
                }
                // The second look.
                from_front = false;
                left = SCAN;
                from = self.sessions.get(&id).and_then(|session| session.scanned);
                from = from.filter(|_| self.next_pending(id, from).is_some());
                if from.is_none() {
                    break;
                }
                continue;
            };
            from = Some(rank);
            left -= 1;
            let want = rank.2;
            match self.pick(want, &seats, &terms) {
                Pick::Ask(key, hit_rate) => {
                    self.ask(want, key, &terms);
                    self.probe(want, key, hit_rate, &seats, &terms);
                    asked += 1;
                    self.reseat(&mut seats, key, &terms);
                    if !seats.is_empty() && !can_take(&seats) {
                        break;
                    }
                }
                Pick::Narrow(key, bytes) => self.warn(want, key, bytes),
                Pick::Later => {}
                Pick::Nobody if parking > 0 => {
                    parking -= 1;
                    self.set_phase(want, Phase::Waiting);
                }
                Pick::Nobody => {}
            }
        }
        if let Some(session) = self.sessions.get_mut(&id)
            && (!from_front || asked == 0)
        {
            session.scanned = from;
        }
        asked > 0
    }

    /// A peer was asked for something.
    pub(super) fn reseat(&self, seats: &mut Vec<Seat>, key: PeerKey, terms: &Terms) {
        if let Some(index) = seats.iter().position(|seat| seat.key == key) {
            let old = seats.remove(index);
            if let Some(fresh) = self.seat(key, old.hit_rate, terms) {
                let index = seats.partition_point(|seat| seat.rank() <= fresh.rank());
                seats.insert(index, fresh);
            }
        }
    }

    fn next_pending(&self, id: SessionId, after: Option<super::Rank>) -> Option<super::Rank> {
        let session = self.sessions.get(&id)?;
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        session
            .pending
            .range((after, Bound::Unbounded))
            .next()
            .copied()
    }

    fn pick(&self, id: WantId, seats: &[Seat], terms: &Terms) -> Pick {
        let Some(want) = self.wants.get(id.0) else {
            return Pick::Later;
        };
        if let Some(seat) = seats.first().filter(|seat| seat.room == Room::Yes)
            && want.is_blank()
        {
            return Pick::Ask(seat.key, seat.hit_rate);
        }
        let others: SmallVec<[Seat; 2]> = want
            .holders()
            .filter(|key| !seats.iter().any(|seat| seat.key == *key))
            .filter_map(|key| self.seat(key, 1.0, terms))
            .collect();
        let mut best: Option<(f64, &Seat)> = None;
        let mut narrow = None;
        let mut reachable = false;
        for seat in seats.iter().chain(&others) {
            if want.lacks(seat.key) {
                continue;
            }
            match seat.room {
                Room::Yes => {
                    let cost = seat.cost(want.has(seat.key));
                    if best.is_none_or(|(least, _)| cost < least) {
                        best = Some((cost, seat));
                    }
                }
                Room::TooNarrow(left) => narrow = Some((seat.key, left)),
                Room::No => reachable = true,
            }
        }
        match (best, narrow) {
            (Some((_, seat)), _) => Pick::Ask(seat.key, seat.hit_rate),
            (None, Some((key, left))) => Pick::Narrow(key, left),
            (None, None) if reachable || self.candidates(id, want).next().is_some() => Pick::Later,
            (None, None) => Pick::Nobody,
        }
    }

    pub(super) fn ask(&mut self, id: WantId, key: PeerKey, terms: &Terms) {
        let session = self.sessions_of(id).first().copied();
        let (Some(want), Some(peer)) = (self.wants.get(id.0), self.peers.get_mut(&key)) else {
            return;
        };
        let Some((conn, _)) = peer.paths.best() else {
            return;
        };
        if peer.asked_over.replace(conn).is_some_and(|old| old != conn) {
            peer.window.forget_path();
        }
        peer.on_question();
        if want.descend > 0
            && let Some(session) = session
        {
            *peer.credit.entry(session).or_insert(0) += want.descend;
        }
        // More urgent than what was asked before: it does not wait for company.
        let urgent = want.priority > peer.last_priority;
        peer.last_priority = want.priority;
        let goal = if urgent { Goal::BlockNow } else { Goal::Block };
        self.set_line(key, id, goal);
        self.expect_from(id, key, conn, terms.estimate, terms.sharing);
    }

    /// From now on the want is (also) that peer's.
    pub(super) fn expect_from(
        &mut self,
        id: WantId,
        key: PeerKey,
        conn: ConnKey,
        estimate: u64,
        sharing: u64,
    ) {
        let now = self.now;
        let (Some(want), Some(peer)) = (self.wants.get_mut(id.0), self.peers.get_mut(&key)) else {
            return;
        };
        let Some(slot) = want.asked.iter_mut().find(|slot| slot.is_none()) else {
            return;
        };
        *slot = Some(key);
        let was_asked = want.phase == Phase::Asked;
        let limit = peer.window.limit(estimate, sharing);
        let mark = peer.window.on_request(estimate, limit, now);
        peer.requests.push_back(Request {
            want: id,
            estimate: u32::try_from(estimate).unwrap_or(u32::MAX),
            conn,
            mark,
        });
        self.busy.insert(key);
        self.in_flight_bytes += estimate;
        if !was_asked {
            self.set_phase(id, Phase::Asked);
        }
    }

    /// A want with a peer has ended: its block was delivered with so many bytes, or it is no longer
    /// expected.
    pub(super) fn end_request(&mut self, key: PeerKey, id: WantId, delivered: Option<u64>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(request) = peer.take_request(id) else {
            return;
        };
        let estimate = u64::from(request.estimate);
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(estimate);
        match delivered {
            Some(bytes) => {
                peer.window
                    .on_delivered(&request.mark, estimate, bytes, self.now);
            }
            None => peer.window.on_dropped(estimate),
        }
        if peer.requests.is_empty() {
            self.busy.remove(&key);
        }
    }

    /// The blocks of a session weigh something else than they were taken to: what is on order is
    /// charged anew.
    pub(super) fn reprice(&mut self, id: SessionId) {
        let assumed = self.config.assumed_block_bytes();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let price = session.estimate(assumed);
        let old = session.priced.unwrap_or(assumed.into());
        if price < 2 * old && old < 2 * price {
            return;
        }
        session.priced = Some(price);
        for key in self.busy.iter().copied().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get(&key) else {
                continue;
            };
            let ours: Vec<bool> = peer
                .requests
                .iter()
                .map(|request| self.sessions_of(request.want).first() == Some(&id))
                .collect();
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            let mut ahead = 0;
            for (request, ours) in peer.requests.iter_mut().zip(ours) {
                let before = u64::from(request.estimate);
                if ours {
                    request.estimate = u32::try_from(price).unwrap_or(u32::MAX);
                    self.in_flight_bytes = self.in_flight_bytes.saturating_sub(before) + price;
                    peer.window.on_dropped(before);
                    peer.window.on_repriced(&mut request.mark, price, ahead);
                }
                ahead += u64::from(request.estimate);
            }
        }
    }

    /// The peer is not expected to deliver the want any more; `settle` follows when all is said.
    pub(super) fn drop_request(&mut self, key: PeerKey, id: WantId) {
        self.end_request(key, id, None);
        if let Some(want) = self.wants.get_mut(id.0) {
            let [first, second] = want.asked;
            want.asked = match (first == Some(key), second == Some(key)) {
                (true, _) => [second, None],
                (_, true) => [first, None],
                _ => want.asked,
            };
        }
    }

    /// Where misses are usual, members that may have the want are asked for HAVE at the same time,
    /// so that a DONT_HAVE costs one round trip and not one for each of them.
    fn probe(&mut self, id: WantId, asked: PeerKey, hit_rate: f64, seats: &[Seat], terms: &Terms) {
        let located = self.wants.get(id.0).is_none_or(|want| want.is_located());
        if located || hit_rate >= CERTAIN || seats.len() < MANY || terms.estimate <= SMALL_BLOCK {
            return;
        }
        let most = self.config.max_outstanding_per_peer() / 2;
        let mut others: Vec<(Reverse<u64>, PeerKey)> = seats
            .iter()
            .filter(|seat| {
                let unknown = |want: &super::Want| !want.lacks(seat.key);
                seat.key != asked
                    && self.wants.get(id.0).is_some_and(unknown)
                    && self.peers.get(&seat.key).is_some_and(|peer| {
                        peer.presences && peer.list.len() < most && !peer.list.asks(id)
                    })
            })
            .map(|seat| (Reverse(seat.hit_rate.to_bits()), seat.key))
            .collect();
        others.sort_unstable();
        for (_, key) in others.into_iter().take(self.config.search_peers()) {
            self.ask_have(id, key, Goal::HaveOrNot);
        }
    }

    /// Asks a peer whether it has a block.
    pub(super) fn ask_have(&mut self, id: WantId, key: PeerKey, goal: Goal) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.on_question();
            // One that is not answered makes room for the next.
            let (now, timeout) = (self.now, self.config.answer_timeout());
            if peer
                .probe
                .is_none_or(|(_, sent)| now.duration_since(sent) > timeout)
            {
                peer.probe = Some((id, now));
            }
            self.set_line(key, id, goal);
        }
    }

    /// Tells each ticket once that its block waits for a better path.
    pub(super) fn warn(&mut self, id: WantId, key: PeerKey, allowed: u64) {
        let Some(peer) = self.peers.get(&key).map(|peer| peer.id) else {
            return;
        };
        for number in self.wishes_of(id).collect::<SmallVec<[u32; 2]>>() {
            if let Some(wish) = self.wishes.get_mut(number)
                && !std::mem::replace(&mut wish.warned, true)
            {
                let ticket = super::wants::ticket(number, wish.serial);
                self.outputs.push_back(Output::WaitingForDirect {
                    ticket,
                    peer,
                    allowed,
                });
            }
        }
    }
}
