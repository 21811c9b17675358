//! Which pending want to ask of which peer: the one expected to deliver it first.

use smallvec::SmallVec;

use super::{
    Client, Output, State, WantId,
    peer::{Change, PeerKey, Request},
};
use crate::{
    SessionId,
    core::{ConnKey, Path, paths::Paths},
};

/// Pending wants looked at for one assignment; those behind wait for the next one.
const SCAN: usize = 64;
/// Delivery rate a peer is credited with before anything is known, in bytes a second.
const UNKNOWN_RATE: f64 = 10e6;

/// Whether a peer can take a request now.
enum Room {
    Yes(f64),
    /// Its window is full, or there is no usable connection.
    No,
    /// Only a circuit leads there on which so many bytes are left.
    TooNarrow(u64),
}

impl Client {
    /// Assigns wants to peers, sessions taking turns, until nobody has room.
    pub(super) fn schedule(&mut self) {
        let pending = self
            .sessions
            .iter()
            .filter(|(_, session)| !session.pending.is_empty());
        let (mut background, mut sessions): (Vec<SessionId>, Vec<SessionId>) = pending
            .map(|(id, _)| *id)
            .partition(|id| self.is_background(*id));
        while !sessions.is_empty() {
            sessions.retain(|session| self.assign_one(*session));
        }
        if !background.is_empty() && !self.is_in_demand() {
            while !background.is_empty() {
                background.retain(|session| self.assign_one(*session));
            }
        }
        self.start_searches();
    }

    fn is_background(&self, id: SessionId) -> bool {
        let session = self.sessions.get(&id);
        session.is_some_and(|session| session.options.background)
    }

    /// Whether somebody waits for a block that is on order, or that could be.
    fn is_in_demand(&self) -> bool {
        let foreground = |id: &SessionId| !self.is_background(*id);
        let mut pending = self.sessions.values();
        let mut requests = self.peers.values().flat_map(|peer| peer.requests.values());
        pending.any(|session| !session.options.background && !session.pending.is_empty())
            || requests.any(|request| self.sessions_of(request.want).iter().any(foreground))
    }

    /// Asks for one want of a session, or parks those nobody can be asked for. False: nothing
    /// more can be done for this session now.
    fn assign_one(&mut self, id: SessionId) -> bool {
        let Some(session) = self.sessions.get(&id) else {
            return false;
        };
        let estimate = session.estimate(self.config.assumed_block_bytes());
        let cautious = session.cautious_estimate();
        let fallback = self
            .peers
            .values()
            .map(|peer| peer.window.rate())
            .fold(UNKNOWN_RATE, f64::max);
        let room: SmallVec<[(PeerKey, Room); 8]> = session
            .peers
            .keys()
            .map(|key| (*key, self.room(*key, estimate, cautious, fallback)))
            .collect();
        let any = room.iter().any(|(_, room)| matches!(room, Room::Yes(_)));

        let mut chosen = None;
        let mut orphans: SmallVec<[WantId; 8]> = SmallVec::new();
        let mut narrow: SmallVec<[(WantId, PeerKey, u64); 8]> = SmallVec::new();
        for (_, want_id) in session.pending.iter().take(if any { SCAN } else { 8 }) {
            let Some(want) = self.wants.get(want_id) else {
                continue;
            };
            let others: SmallVec<[(PeerKey, Room); 2]> = want
                .providers
                .iter()
                .filter(|key| !session.peers.contains_key(*key))
                .map(|key| (*key, self.room(*key, estimate, cautious, fallback)))
                .collect();
            let mut reachable = false;
            let mut too_narrow = None;
            let mut best: Option<(f64, PeerKey)> = None;
            for (key, room) in room.iter().chain(&others) {
                if want.refused.contains(key) {
                    continue;
                }
                match room {
                    Room::Yes(eta) if best.is_none_or(|(least, _)| *eta < least) => {
                        best = Some((*eta, *key));
                    }
                    Room::Yes(_) => {}
                    Room::TooNarrow(left) => too_narrow = Some((*key, *left)),
                    Room::No => {
                        reachable |= self
                            .peers
                            .get(key)
                            .is_some_and(|p| p.paths.best().is_some());
                    }
                }
            }
            match (best, too_narrow) {
                (Some((_, key)), _) => {
                    chosen = Some((*want_id, key));
                    break;
                }
                (None, Some((key, left))) => narrow.push((*want_id, key, left)),
                (None, None) if !reachable => orphans.push(*want_id),
                (None, None) => {}
            }
        }
        for (want, key, left) in narrow {
            self.warn(want, key, left);
        }
        let parked = !orphans.is_empty();
        for want in orphans {
            self.set_state(want, State::Searching(None));
        }
        match chosen {
            Some((want, key)) => {
                self.ask(want, key, estimate);
                true
            }
            None => parked,
        }
    }

    fn room(&self, key: PeerKey, estimate: u64, cautious: u64, fallback: f64) -> Room {
        let Some(peer) = self.peers.get(&key) else {
            return Room::No;
        };
        let Some((_, path)) = peer.paths.best() else {
            return Room::No;
        };
        let window = &peer.window;
        if let Path::Limited(left) = path {
            let ordered = peer.requests.len() as u64 * cautious;
            if !Paths::fits(path, ordered + cautious) {
                return match peer.requests.is_empty() {
                    true => Room::TooNarrow(left),
                    false => Room::No,
                };
            }
            // One at a time until something is known about sizes.
            if cautious == 0 && !peer.requests.is_empty() {
                return Room::No;
            }
        }
        let outstanding = self.in_flight_bytes + self.unacknowledged_bytes;
        let affordable =
            outstanding == 0 || outstanding + estimate <= self.config.max_unacknowledged_bytes();
        let fits = peer.requests.is_empty()
            || (peer.stalls == 0 && window.in_flight() + estimate <= window.limit(estimate));
        if !affordable || !fits || peer.outstanding() >= self.config.max_outstanding_per_peer() {
            return Room::No;
        }
        let penalty = 1.0 + 4.0 * peer.miss_rate + 10.0 * f64::from(peer.stalls);
        Room::Yes(window.eta(estimate, fallback) * penalty)
    }

    fn ask(&mut self, id: WantId, key: PeerKey, estimate: u64) {
        let sessions = self.sessions_of(id);
        let Some(want) = self.wants.get_mut(&id) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some((conn, _)) = peer.paths.best() else {
            return;
        };
        if peer.asked_over.replace(conn).is_some_and(|old| old != conn) {
            peer.window.forget_path();
        }
        want.held_by(key);
        peer.asked.remove(&id);
        let change = Change::Block {
            priority: want.priority,
            descend: want.descend,
        };
        peer.push(id, want.cid, change);
        if want.descend > 0
            && let Some(session) = sessions.first()
        {
            *peer.credit.entry(*session).or_insert(0) += want.descend;
        }
        self.expect_from(id, key, conn, estimate);
    }

    /// From now on the want is that peer's.
    pub(super) fn expect_from(&mut self, id: WantId, key: PeerKey, conn: ConnKey, estimate: u64) {
        let number = self.id();
        let block = estimate;
        let now = self.now;
        if let Some(peer) = self.peers.get_mut(&key) {
            let mark = peer.window.on_request(estimate, block, now);
            let request = Request {
                want: id,
                conn,
                estimate,
                mark,
            };
            peer.requests.insert(number, request);
            self.in_flight_bytes += estimate;
            self.set_state(id, State::InFlight(key, number));
        }
    }

    pub(super) fn drop_request(&mut self, key: PeerKey, number: u64) {
        if let Some(peer) = self.peers.get_mut(&key)
            && let Some(request) = peer.requests.remove(&number)
        {
            peer.window.on_dropped(request.estimate);
            self.in_flight_bytes = self.in_flight_bytes.saturating_sub(request.estimate);
        }
    }

    /// Tells each ticket once that its block waits for a better path.
    pub(super) fn warn(&mut self, id: WantId, key: PeerKey, allowed: u64) {
        let (Some(want), Some(peer)) = (self.wants.get(&id), self.peers.get(&key)) else {
            return;
        };
        for ticket in &want.tickets {
            if let Some(wish) = self.wishes.get_mut(ticket)
                && !std::mem::replace(&mut wish.warned, true)
            {
                self.outputs.push_back(Output::WaitingForDirect {
                    ticket: *ticket,
                    peer: peer.id,
                    allowed,
                });
            }
        }
    }
}
