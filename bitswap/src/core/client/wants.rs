//! A want between its first wish and its end: what is known about it, and the queues it is in.

use std::cmp::Reverse;

use cid::Cid;
use smallvec::SmallVec;

use super::{
    Client, LAZY_DELAY,
    peer::PeerKey,
    wantlist::{Goal, Outcome},
};
use crate::{SessionId, Ticket};

/// No wish.
pub(super) const NONE: u32 = u32::MAX;

/// A wanted block. The number is used again when no peer's wantlist mentions it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct WantId(pub(super) u32);

/// Position in a queue: priority, then age.
pub(super) type Rank = (Reverse<i32>, u32, WantId);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// To be asked of a peer of its sessions.
    Pending,
    /// Asked of the peers in `asked`.
    Asked,
    /// No connected peer is likely to have it; waits for its turn to be searched.
    Waiting,
    Searching,
    /// Searched for in vain, while others wait; searched for again later.
    Resting,
    /// Answered or withdrawn; cancels are still to be sent.
    Closed,
}

/// What is known about a peer with regard to a want. Four bytes, because there is one for every
/// pair that ever had to do with each other. Of peers that are gone it may stay; nobody else gets
/// their key before 2^28 others have come.
#[derive(Debug, Clone, Copy)]
struct Link(u32);

impl Link {
    const HAS: u32 = 1;
    const LACKS: u32 = 2;
    /// The peer's wantlist has a line.
    const LINE: u32 = 4;
    /// May have it, though it is in none of the sessions.
    const MAYBE: u32 = 8;

    fn key(self) -> u32 {
        self.0 >> 4
    }
}

#[derive(Debug)]
pub(super) struct Want {
    pub(super) cid: Cid,
    pub(super) priority: i32,
    /// Age; also renewed when a search ends without success.
    pub(super) seq: u32,
    pub(super) descend: u32,
    /// First of the wishes for it; they are chained.
    pub(super) first: u32,
    /// Wantlists of peers that have a line for it.
    pub(super) lines: u32,
    pub(super) phase: Phase,
    /// Searches without success.
    pub(super) rounds: u8,
    /// Who was asked for the block; the second one is a hedge.
    pub(super) asked: [Option<PeerKey>; 2],
    links: SmallVec<[Link; 4]>,
}

impl Want {
    pub(super) fn new(cid: Cid, priority: i32, seq: u32, descend: u32) -> Self {
        Self {
            cid,
            priority,
            seq,
            descend,
            first: NONE,
            lines: 0,
            phase: Phase::Pending,
            rounds: 0,
            asked: [None; 2],
            links: SmallVec::new(),
        }
    }

    pub(super) fn rank(&self, id: WantId) -> Rank {
        (Reverse(self.priority), self.seq, id)
    }

    fn flag(&self, key: PeerKey, flag: u32) -> bool {
        self.links
            .iter()
            .any(|link| link.key() == key.number() && link.0 & flag != 0)
    }

    pub(super) fn has(&self, key: PeerKey) -> bool {
        self.flag(key, Link::HAS)
    }

    pub(super) fn lacks(&self, key: PeerKey) -> bool {
        self.flag(key, Link::LACKS)
    }

    /// Nothing is known about any peer.
    pub(super) fn is_blank(&self) -> bool {
        self.links.is_empty()
    }

    /// Anyone is known to have it.
    pub(super) fn is_located(&self) -> bool {
        self.links.iter().any(|link| link.0 & Link::HAS != 0)
    }

    fn mark(&mut self, key: PeerKey, add: u32, remove: u32) {
        let found = self
            .links
            .iter_mut()
            .find(|link| link.key() == key.number());
        match found {
            Some(link) => link.0 = (link.0 | add) & !remove,
            None if add == 0 => {}
            None => {
                if self.links.spilled() && self.links.len() == self.links.capacity() {
                    self.links.reserve_exact((self.links.len() / 4).max(4));
                }
                self.links.push(Link(key.number() << 4 | add));
            }
        }
    }

    pub(super) fn set_has(&mut self, key: PeerKey) {
        self.mark(key, Link::HAS, Link::LACKS | Link::MAYBE);
    }

    pub(super) fn set_maybe(&mut self, key: PeerKey) {
        self.mark(key, Link::MAYBE, Link::LACKS);
    }

    pub(super) fn set_lacks(&mut self, key: PeerKey) {
        self.mark(key, Link::LACKS, Link::HAS | Link::MAYBE);
    }

    /// Who lacked it may have it now.
    pub(super) fn forgive(&mut self) {
        for link in &mut self.links {
            link.0 &= !Link::LACKS;
        }
        self.links.retain(|link| link.0 & 15 != 0);
    }

    /// Peers that have it or may have it, of whatever session.
    pub(super) fn holders(&self) -> impl Iterator<Item = PeerKey> + '_ {
        let holders = self.links.iter();
        holders
            .filter(|link| link.0 & (Link::HAS | Link::MAYBE) != 0)
            .filter_map(|link| PeerKey::from_number(link.key()))
    }

    /// Peers whose wantlist has a line for it.
    pub(super) fn listed(&self) -> Vec<PeerKey> {
        let lines = self.links.iter().filter(|link| link.0 & Link::LINE != 0);
        lines
            .filter_map(|link| PeerKey::from_number(link.key()))
            .collect()
    }

    pub(super) fn is_asked_of(&self, key: PeerKey) -> bool {
        self.asked.contains(&Some(key))
    }

    /// Forgets links of peers for which `gone` is true.
    fn purge(&mut self, gone: impl Fn(PeerKey) -> bool) {
        self.links
            .retain(|link| PeerKey::from_number(link.key()).is_some_and(|key| !gone(key)));
        self.links.retain(|link| link.0 & 15 != 0);
    }

    pub(super) fn allocated(&self) -> usize {
        match self.links.spilled() {
            true => self.links.capacity() * size_of::<Link>(),
            false => 0,
        }
    }
}

/// One `want` of the user.
#[derive(Debug)]
pub(super) struct Wish {
    /// The upper half of its ticket: numbers of wishes are used again, tickets are not.
    pub(super) serial: u32,
    pub(super) session: SessionId,
    pub(super) want: WantId,
    /// Next wish for the same want.
    pub(super) next: u32,
    /// Neighbours in the session's list.
    pub(super) before: u32,
    pub(super) after: u32,
    /// The user was told that it waits for a better connection.
    pub(super) warned: bool,
}

pub(super) fn ticket(number: u32, serial: u32) -> Ticket {
    Ticket(u64::from(serial) << 32 | u64::from(number))
}

impl Client {
    /// The wish behind a ticket that is still open.
    pub(super) fn wish(&self, ticket: Ticket) -> Option<(u32, &Wish)> {
        let (number, serial) = (ticket.0 as u32, (ticket.0 >> 32) as u32);
        let wish = self.wishes.get(number)?;
        (wish.serial == serial).then_some((number, wish))
    }

    /// Numbers of the wishes for a want.
    pub(super) fn wishes_of(&self, id: WantId) -> impl Iterator<Item = u32> + '_ {
        let first = self.wants.get(id.0).map_or(NONE, |want| want.first);
        std::iter::successors(Some(first).filter(|first| *first != NONE), |number| {
            let next = self.wishes.get(*number)?.next;
            (next != NONE).then_some(next)
        })
    }

    pub(super) fn tickets_of(&self, id: WantId) -> SmallVec<[Ticket; 1]> {
        self.wishes_of(id)
            .filter_map(|number| Some(ticket(number, self.wishes.get(number)?.serial)))
            .collect()
    }

    pub(super) fn sessions_of(&self, id: WantId) -> SmallVec<[SessionId; 1]> {
        let mut sessions: SmallVec<[SessionId; 1]> = self
            .wishes_of(id)
            .filter_map(|number| Some(self.wishes.get(number)?.session))
            .collect();
        sessions.sort_unstable();
        sessions.dedup();
        sessions
    }

    /// Wants for a multihash, the oldest first.
    pub(super) fn wants_for(&self, cid: &Cid) -> SmallVec<[WantId; 1]> {
        let mut found: SmallVec<[WantId; 1]> = self
            .by_hash
            .iter_hash(self.hash(cid))
            .copied()
            .filter(|id| {
                self.wants
                    .get(id.0)
                    .is_some_and(|want| want.cid.hash() == cid.hash())
            })
            .collect();
        found.sort_unstable_by_key(|id| self.wants.get(id.0).map(|want| want.seq));
        found
    }

    /// Leaves the queues that fit its phase.
    pub(super) fn dequeue(&mut self, id: WantId) {
        let Some(want) = self.wants.get(id.0) else {
            return;
        };
        let (rank, phase, rounds) = (want.rank(id), want.phase, want.rounds);
        for session in self.sessions_of(id) {
            if let Some(state) = self.sessions.get_mut(&session) {
                state.leave(phase, rounds, rank);
            }
        }
        if matches!(phase, Phase::Searching | Phase::Resting) {
            self.end_search(id);
        }
    }

    /// Joins the queues that fit its phase.
    pub(super) fn enqueue(&mut self, id: WantId) {
        let Some(want) = self.wants.get(id.0) else {
            return;
        };
        let (rank, phase, rounds) = (want.rank(id), want.phase, want.rounds);
        for session in self.sessions_of(id) {
            if let Some(state) = self.sessions.get_mut(&session) {
                state.enter(phase, rounds, rank);
            }
        }
        self.dirty = true;
    }

    pub(super) fn set_phase(&mut self, id: WantId, phase: Phase) {
        self.dequeue(id);
        if let Some(want) = self.wants.get_mut(id.0) {
            want.phase = phase;
        }
        self.enqueue(id);
    }

    /// Nobody is asked for it any more: it is pending again.
    pub(super) fn settle(&mut self, id: WantId) {
        if let Some(want) = self.wants.get(id.0)
            && want.phase == Phase::Asked
            && want.asked == [None; 2]
        {
            self.set_phase(id, Phase::Pending);
        }
    }

    /// Changes what a peer's wantlist says about a want.
    pub(super) fn set_line(&mut self, key: PeerKey, id: WantId, goal: Goal) {
        let flush_at = self.now + LAZY_DELAY;
        let (Some(peer), Some(want)) = (self.peers.get_mut(&key), self.wants.get_mut(id.0)) else {
            return;
        };
        match peer.list.set(id, goal, flush_at) {
            Outcome::Added => {
                want.lines += 1;
                if want.links.len() == want.links.capacity() {
                    let peers = &self.peers;
                    want.purge(|key| !peers.contains_key(&key));
                }
                want.mark(key, Link::LINE, 0);
            }
            Outcome::Removed => self.on_line_gone(key, id),
            Outcome::Unchanged => {}
        }
        if self
            .peers
            .get(&key)
            .is_some_and(|peer| peer.list.has_changes())
        {
            self.changed.insert(key);
        }
    }

    /// A peer's wantlist has no line for the want any more.
    pub(super) fn on_line_gone(&mut self, key: PeerKey, id: WantId) {
        if let Some(want) = self.wants.get_mut(id.0) {
            want.lines = want.lines.saturating_sub(1);
            want.mark(key, 0, Link::LINE);
            if want.phase == Phase::Closed && want.lines == 0 {
                self.wants.remove(id.0);
            }
        }
    }

    /// Ends a want that is answered or withdrawn. `by`: who delivered how much. Its wishes are
    /// removed before.
    pub(super) fn close(&mut self, id: WantId, by: Option<(PeerKey, u64)>) {
        let Some(want) = self.wants.get_mut(id.0) else {
            return;
        };
        want.phase = Phase::Closed;
        want.first = NONE;
        let (cid, asked, lines) = (want.cid, std::mem::take(&mut want.asked), want.listed());
        let hash = self.hash(&cid);
        if let Ok(entry) = self.by_hash.find_entry(hash, |other| *other == id) {
            entry.remove();
        }
        for key in asked.into_iter().flatten() {
            let delivered = by.filter(|(deliverer, _)| *deliverer == key);
            self.end_request(key, id, delivered.map(|(_, bytes)| bytes));
        }
        // To every peer that holds an entry of ours, the deliverer included: some servers keep a
        // served want until it is cancelled.
        for key in lines {
            let lazy = by.is_some_and(|(deliverer, _)| deliverer == key);
            let goal = if lazy { Goal::LazyCancel } else { Goal::Cancel };
            self.set_line(key, id, goal);
        }
        if self.wants.get(id.0).is_some_and(|want| want.lines == 0) {
            self.wants.remove(id.0);
        }
        if self.by_hash.is_empty() {
            self.by_hash = hashbrown::HashTable::new();
        }
    }

    pub(super) fn join(&mut self, session: SessionId, key: PeerKey) -> bool {
        if let Some(state) = self.sessions.get_mut(&session)
            && let Some(peer) = self.peers.get_mut(&key)
        {
            self.dirty = true;
            peer.sessions.insert(session);
            return state.join(key);
        }
        false
    }

    /// A session has a new peer: what waits or is searched for may be asked of it.
    pub(super) fn unpark(&mut self, session: SessionId, key: PeerKey) {
        let Some(state) = self.sessions.get(&session) else {
            return;
        };
        let usable = |key| {
            self.peers
                .get(&key)
                .is_some_and(|peer| peer.paths.best().is_some())
        };
        if !usable(key) {
            return;
        }
        let parked: Vec<WantId> = state
            .parked()
            .filter(|id| self.wants.get(id.0).is_some_and(|want| !want.lacks(key)))
            .collect();
        for id in parked {
            self.set_phase(id, Phase::Pending);
        }
    }

    /// Connected peers that may have a want: those of its sessions and those that said so, without
    /// those that lack it. A peer may come twice.
    pub(super) fn candidates<'a>(
        &'a self,
        id: WantId,
        want: &'a Want,
    ) -> impl Iterator<Item = PeerKey> + 'a {
        let sessions = self.wishes_of(id).filter_map(|number| {
            let session = self.wishes.get(number)?.session;
            self.sessions.get(&session)
        });
        sessions
            .flat_map(|session| session.members.keys().copied())
            .chain(want.holders())
            .filter(|key| !want.lacks(*key))
            .filter(|key| {
                self.peers
                    .get(key)
                    .is_some_and(|peer| peer.paths.best().is_some())
            })
    }
}
