//! What the owner asks for: sessions, wants, peers that may have them, and what it has stored.

use cid::Cid;
use libp2p_identity::PeerId;
use smallvec::SmallVec;
use web_time::Instant;

use super::{Client, Output, State, Want, WantId, Wish, session::Session};
use crate::{Block, SessionId, SessionOptions, Ticket, WantOptions, hash};

impl Client {
    /// Opens a session.
    pub fn new_session(&mut self, options: SessionOptions) -> SessionId {
        let id = SessionId(self.id());
        self.sessions.insert(id, Session::new(options));
        id
    }

    /// Ends a session: cancels its wants and forgets what is not acknowledged.
    pub fn end_session(&mut self, session: SessionId, now: Instant) {
        self.now = now;
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        for ticket in std::mem::take(&mut state.tickets) {
            self.cancel(ticket, now);
            self.acknowledge(ticket, u64::MAX);
        }
        self.sessions.remove(&session);
        for peer in self.peers.values_mut() {
            peer.sessions.remove(&session);
            peer.credit.remove(&session);
        }
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
        let ticket = Ticket(self.id());
        let state = self
            .sessions
            .entry(session)
            .or_insert_with(|| Session::new(SessionOptions::default()));
        state.tickets.insert(ticket);
        let first = !std::mem::replace(&mut state.started, true);
        if cid.hash().code() == hash::IDENTITY {
            let block = Block::trusted(cid, cid.hash().digest().to_vec().into());
            self.deliver(ticket, block, None);
            return ticket;
        }
        if let Some((block, peer, conn)) = state.stash.take(&cid) {
            self.deliver(ticket, block, Some((peer, conn)));
            return ticket;
        }
        let inherited = if first { state.options.descend } else { 0 };
        let descend = options.descend.unwrap_or(inherited);
        self.add_wish(ticket, session, cid, options.priority.0, descend);
        self.dirty = true;
        ticket
    }

    fn add_wish(
        &mut self,
        ticket: Ticket,
        session: SessionId,
        cid: Cid,
        priority: i32,
        descend: u32,
    ) {
        let known = self.by_hash.get(cid.hash()).and_then(|ids| {
            ids.iter()
                .copied()
                .find(|id| self.wants.get(id).is_some_and(|want| want.cid == cid))
        });
        let id = match known {
            Some(id) => id,
            None => {
                let id = WantId(self.id());
                self.by_hash.entry(*cid.hash()).or_default().push(id);
                let want = Want {
                    cid,
                    priority,
                    descend,
                    tickets: SmallVec::new(),
                    state: State::Pending,
                    providers: SmallVec::new(),
                    refused: SmallVec::new(),
                    holders: SmallVec::new(),
                };
                self.wants.insert(id, want);
                id
            }
        };
        let wish = Wish {
            session,
            want: id,
            warned: false,
        };
        self.wishes.insert(ticket, wish);
        if let Some(want) = self.wants.get_mut(&id) {
            want.tickets.push(ticket);
            let raised = priority.max(want.priority);
            let old = std::mem::replace(&mut want.priority, raised);
            if raised != old {
                self.rerank(id, old);
            }
        }
        if known.is_none() && self.adopt_promise(session, id, &cid) {
            return;
        }
        self.enqueue(id);
    }

    /// A block that a peer has promised to push counts as asked for.
    fn adopt_promise(&mut self, session: SessionId, want: WantId, cid: &Cid) -> bool {
        let Some(state) = self.sessions.get(&session) else {
            return false;
        };
        let estimate = state.estimate(self.config.assumed_block_bytes());
        let holder = state.peers.keys().copied().find_map(|key| {
            self.peers
                .get_mut(&key)?
                .take_promise(cid)
                .map(|conn| (key, conn))
        });
        match holder {
            Some((key, conn)) => {
                self.expect_from(want, key, conn, estimate);
                true
            }
            None => false,
        }
    }

    /// Withdraws a want. Without effect once its block was delivered.
    pub fn cancel(&mut self, ticket: Ticket, now: Instant) {
        self.now = now;
        let Some(wish) = self.wishes.remove(&ticket) else {
            return;
        };
        if let Some(session) = self.sessions.get_mut(&wish.session) {
            session.tickets.remove(&ticket);
        }
        self.dirty = true;
        let Some(want) = self.wants.get_mut(&wish.want) else {
            return;
        };
        want.tickets.retain(|t| *t != ticket);
        if want.tickets.is_empty() {
            self.close(wish.want, &[wish.session], None);
        } else if !self.sessions_of(wish.want).contains(&wish.session) {
            self.dequeue(wish.want, &[wish.session]);
        }
    }

    /// Providers of a ticket's block. Returns nothing; those not connected are dialled.
    pub fn add_providers(
        &mut self,
        ticket: Ticket,
        peers: impl IntoIterator<Item = PeerId>,
        now: Instant,
    ) {
        self.now = now;
        let Some(wish) = self.wishes.get(&ticket) else {
            return;
        };
        let (session, want) = (wish.session, wish.want);
        for peer in peers.into_iter().take(self.config.search_peers()) {
            match self.keys.get(&peer).copied() {
                Some(key) => {
                    if let Some(want) = self.wants.get_mut(&want) {
                        want.refused.retain(|k| *k != key);
                        if !want.providers.contains(&key) {
                            want.providers.push(key);
                        }
                    }
                    self.join(session, key);
                }
                None => {
                    if let Some(state) = self.sessions.get_mut(&session) {
                        state.expect(peer);
                    }
                    self.outputs.push_back(Output::Dial(peer));
                }
            }
        }
        self.unpark(session);
    }

    /// A peer that probably has the blocks of a session, connected or not.
    pub fn add_session_peer(&mut self, session: SessionId, peer: PeerId, now: Instant) {
        self.now = now;
        match self.keys.get(&peer).copied() {
            Some(key) => self.join(session, key),
            None => {
                if let Some(state) = self.sessions.get_mut(&session) {
                    state.expect(peer);
                }
            }
        }
        self.unpark(session);
    }

    /// The owner has stored `bytes` of a delivered block.
    pub fn taken(&mut self, ticket: Ticket, bytes: usize, now: Instant) {
        self.now = now;
        self.acknowledge(ticket, bytes as u64);
        self.dirty = true;
    }

    fn acknowledge(&mut self, ticket: Ticket, bytes: u64) {
        if let Some(open) = self.unacknowledged.get_mut(&ticket) {
            let done = bytes.min(*open);
            *open -= done;
            self.unacknowledged_bytes -= done;
            if *open == 0 {
                self.unacknowledged.remove(&ticket);
            }
        }
    }
}
