//! What the owner asks for: sessions, wants, peers that may have them, and what it has stored.

use cid::Cid;
use libp2p_identity::PeerId;
use web_time::Instant;

use super::{
    Client, Output,
    peer::PeerKey,
    session::Session,
    wantlist::Goal,
    wants::{NONE, Phase, Want, WantId, Wish, ticket},
};
use crate::{Block, SessionId, SessionOptions, Ticket, WantOptions, core::ConnKey, hash};

impl Client {
    /// Opens a session.
    pub fn new_session(&mut self, options: SessionOptions) -> SessionId {
        self.last_session += 1;
        let id = SessionId(self.last_session);
        self.sessions.insert(id, Session::new(options));
        id
    }

    /// Ends a session: cancels its wants and forgets what is not acknowledged.
    pub fn end_session(&mut self, session: SessionId, now: Instant) {
        self.now = now;
        while let Some(number) = self
            .sessions
            .get(&session)
            .map(|state| state.first)
            .filter(|first| *first != NONE)
        {
            self.withdraw(number);
        }
        if self.sessions.remove(&session).is_none() {
            return;
        }
        let mut forgotten = 0;
        self.unacknowledged.retain(|_, (bytes, owner)| {
            let stays = *owner != session;
            forgotten += if stays { 0 } else { *bytes };
            stays
        });
        self.unacknowledged_bytes -= forgotten;
        for peer in self.peers.values_mut() {
            peer.sessions.remove(&session);
            peer.credit.remove(&session);
        }
        self.dirty = true;
    }

    /// Asks for a block. A session that does not exist is opened.
    pub fn want(
        &mut self,
        session: SessionId,
        cid: Cid,
        options: WantOptions,
        now: Instant,
    ) -> Ticket {
        self.now = now;
        self.last_serial = self.last_serial.wrapping_add(1);
        let serial = self.last_serial;
        let state = self
            .sessions
            .entry(session)
            .or_insert_with(|| Session::new(SessionOptions::default()));
        let first = !std::mem::replace(&mut state.started, true);
        if cid.hash().code() == hash::IDENTITY {
            let block = Block::trusted(cid, cid.hash().digest().to_vec().into());
            let ticket = ticket(NONE, serial);
            self.deliver(ticket, session, block, None);
            return ticket;
        }
        if let Some((block, peer, conn)) = state.stash.take(&cid) {
            let ticket = ticket(NONE, serial);
            self.deliver(ticket, session, block, Some((peer, conn)));
            return ticket;
        }
        let inherited = if first { state.options.descend } else { 0 };
        let descend = options.descend.unwrap_or(inherited);
        let priority = options.priority.0;
        let wanted = self.wants_for(&cid);
        let known = wanted
            .into_iter()
            .find(|id| self.wants.get(id.0).is_some_and(|want| want.cid == cid));
        let id = match known {
            Some(id) => {
                self.dequeue_queued(id);
                id
            }
            None => self.add_want(cid, priority, descend),
        };
        let number = self.add_wish(serial, session, id);
        if known.is_some() {
            self.enqueue(id);
            self.raise(id, priority);
        } else if !self.adopt_promise(session, id, &cid) {
            self.enqueue(id);
        }
        self.dirty = true;
        ticket(number, serial)
    }

    fn add_want(&mut self, cid: Cid, priority: i32, descend: u32) -> WantId {
        let seq = self.seq();
        let id = WantId(self.wants.insert(Want::new(cid, priority, seq, descend)));
        let hash = self.hash(&cid);
        let (wants, hasher) = (&self.wants, &self.hasher);
        self.by_hash.insert_unique(hash, id, |id| {
            wants.get(id.0).map_or(0, |want| {
                std::hash::BuildHasher::hash_one(
                    hasher,
                    (want.cid.hash().code(), want.cid.hash().digest()),
                )
            })
        });
        id
    }

    fn add_wish(&mut self, serial: u32, session: SessionId, want: WantId) -> u32 {
        let after = self
            .sessions
            .get(&session)
            .map_or(NONE, |state| state.first);
        let next = self.wants.get(want.0).map_or(NONE, |want| want.first);
        let number = self.wishes.insert(Wish {
            serial,
            session,
            want,
            next,
            before: NONE,
            after,
            warned: false,
        });
        if let Some(neighbour) = self.wishes.get_mut(after) {
            neighbour.before = number;
        }
        if let Some(state) = self.sessions.get_mut(&session) {
            state.first = number;
        }
        if let Some(want) = self.wants.get_mut(want.0) {
            want.first = number;
        }
        number
    }

    /// Takes a wish out of the lists of its session and its want.
    pub(super) fn remove_wish(&mut self, number: u32) -> Option<Wish> {
        let wish = self.wishes.remove(number)?;
        match self.wishes.get_mut(wish.before) {
            Some(neighbour) => neighbour.after = wish.after,
            None => {
                if let Some(state) = self.sessions.get_mut(&wish.session) {
                    state.first = wish.after;
                }
            }
        }
        if let Some(neighbour) = self.wishes.get_mut(wish.after) {
            neighbour.before = wish.before;
        }
        let first = self.wants.get(wish.want.0).map_or(NONE, |want| want.first);
        if first == number {
            if let Some(want) = self.wants.get_mut(wish.want.0) {
                want.first = wish.next;
            }
        } else {
            let before = self
                .wishes_of(wish.want)
                .find(|other| self.wishes.get(*other).is_some_and(|o| o.next == number));
            if let Some(before) = before.and_then(|before| self.wishes.get_mut(before)) {
                before.next = wish.next;
            }
        }
        Some(wish)
    }

    /// Gives a want at least this priority, at the peers too.
    fn raise(&mut self, id: WantId, priority: i32) {
        let Some(want) = self.wants.get(id.0).filter(|want| want.priority < priority) else {
            return;
        };
        let asked = want.asked;
        self.dequeue_queued(id);
        if let Some(want) = self.wants.get_mut(id.0) {
            want.priority = priority;
        }
        self.enqueue(id);
        for key in asked.into_iter().flatten() {
            self.set_line(key, id, Goal::Block);
        }
    }

    /// A block that a peer has promised to push counts as asked for.
    fn adopt_promise(&mut self, session: SessionId, want: WantId, cid: &Cid) -> bool {
        let Some(state) = self.sessions.get(&session) else {
            return false;
        };
        let estimate = state.estimate(self.config.assumed_block_bytes());
        let promisers = self.promisers.iter().copied();
        let members: Vec<PeerKey> = promisers
            .filter(|key| state.members.contains_key(key))
            .collect();
        let holder = members.into_iter().find_map(|key| {
            let conn = self.take_promise(key, cid)?;
            Some((key, conn))
        });
        match holder {
            Some((key, conn)) => {
                self.expect_from(want, key, conn, estimate, 1);
                true
            }
            None => false,
        }
    }

    pub(super) fn take_promise(&mut self, key: PeerKey, cid: &Cid) -> Option<ConnKey> {
        let peer = self.peers.get_mut(&key)?;
        let promise = peer.take_promise(cid);
        if !peer.has_promises() {
            self.promisers.remove(&key);
        }
        promise
    }

    /// Withdraws a want. Without effect once its block was delivered.
    pub fn cancel(&mut self, ticket: Ticket, now: Instant) {
        self.now = now;
        if let Some((number, _)) = self.wish(ticket) {
            self.withdraw(number);
        }
    }

    fn withdraw(&mut self, number: u32) {
        let Some(id) = self.wishes.get(number).map(|wish| wish.want) else {
            return;
        };
        self.dirty = true;
        let last = self.wishes_of(id).count() == 1;
        if last {
            self.dequeue(id);
            self.remove_wish(number);
            self.close(id, None);
        } else {
            self.dequeue_queued(id);
            self.remove_wish(number);
            self.enqueue(id);
        }
    }

    /// Providers of a ticket's block. Those not connected are dialled.
    pub fn add_providers(
        &mut self,
        ticket: Ticket,
        peers: impl IntoIterator<Item = PeerId>,
        now: Instant,
    ) {
        self.now = now;
        let Some((_, wish)) = self.wish(ticket) else {
            return;
        };
        let (session, id) = (wish.session, wish.want);
        for peer in peers.into_iter().take(self.config.search_peers()) {
            match self.keys.get(&peer).copied() {
                Some(key) => {
                    if let Some(want) = self.wants.get_mut(id.0) {
                        want.set_has(key);
                    }
                    self.join(session, key);
                    self.unpark(session, key);
                }
                None => {
                    if let Some(state) = self.sessions.get_mut(&session) {
                        state.expect(peer);
                    }
                    self.outputs.push_back(Output::Dial(peer));
                }
            }
        }
    }

    /// A peer that probably has the blocks of a session, connected or not.
    pub fn add_session_peer(&mut self, session: SessionId, peer: PeerId, now: Instant) {
        self.now = now;
        match self.keys.get(&peer).copied() {
            Some(key) => {
                self.join(session, key);
                self.unpark(session, key);
            }
            None => {
                if let Some(state) = self.sessions.get_mut(&session) {
                    state.expect(peer);
                }
            }
        }
    }

    /// The owner has stored `bytes` of a delivered block.
    pub fn taken(&mut self, ticket: Ticket, bytes: usize, now: Instant) {
        self.now = now;
        if let Some((open, _)) = self.unacknowledged.get_mut(&ticket) {
            let done = (bytes as u64).min(*open);
            *open -= done;
            self.unacknowledged_bytes -= done;
            if *open == 0 {
                self.unacknowledged.remove(&ticket);
            }
        }
        self.dirty = true;
    }

    /// Leaves the queues of all sessions, to enter them again at once: a search goes on.
    fn dequeue_queued(&mut self, id: WantId) {
        let Some(want) = self.wants.get(id.0) else {
            return;
        };
        let (rank, phase, rounds) = (want.rank(id), want.phase, want.rounds);
        debug_assert_ne!(phase, Phase::Closed);
        for session in self.sessions_of(id) {
            if let Some(state) = self.sessions.get_mut(&session) {
                state.leave(phase, rounds, rank);
            }
        }
    }
}
