//! The client: which block to ask of which peer.
//!
//! A want-block goes to one peer at a time: the one of the session expected to deliver it first, as
//! long as its request window has room. DONT_HAVE, silence or a lost connection pass it on. When no
//! connected peer of the session is left, the want is *searched* for: want-have to a bounded
//! number of connected peers, and [`Output::ProvidersWanted`] at the same moment.

mod peer;
mod session;
mod stash;
mod window;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use cid::{Cid, multihash::Multihash};
use libp2p_identity::PeerId;
use rand::{RngExt as _, SeedableRng, rngs::StdRng};
use smallvec::SmallVec;
use web_time::Instant;

use self::{
    peer::{Change, Peer, PeerKey, Request},
    session::Session,
    window::Window,
};
use super::{ConnKey, Path, paths::Paths};
use crate::{
    Block, Config, SessionId, SessionOptions, Ticket, WantOptions, hash,
    message::{Entry, Message, Version},
};

/// Pending wants looked at for one assignment; those behind wait for the next one.
const SCAN: usize = 64;
/// Cancels to peers that delivered wait for so much company, or for so long.
const LAZY_CANCELS: usize = 64;
const LAZY_DELAY: Duration = Duration::from_millis(20);
/// Unwanted bytes that are reported, if they are also more than the wanted ones.
const UNWANTED_BYTES: u64 = 16 * 1024 * 1024;
/// Delivery rate a peer is credited with before anything is known, in bytes a second.
const UNKNOWN_RATE: f64 = 10e6;

/// A wanted block, numbered in the order of first wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct WantId(u64);

/// What the client wants done.
#[derive(Debug)]
#[expect(missing_docs, reason = "fields are named like those of `crate::Event`")]
pub enum Output {
    /// Send these entries; answer with `on_written`.
    Send {
        peer: PeerId,
        conn: ConnKey,
        entries: Vec<Entry>,
        full: bool,
    },
    /// Connect to a provider.
    Dial(PeerId),
    /// A wanted block has come.
    Block {
        ticket: Ticket,
        block: Block,
        from: Option<(PeerId, ConnKey)>,
    },
    /// Nobody connected is likely to have it.
    ProvidersWanted { ticket: Ticket, cid: Cid },
    /// It does not fit what a circuit may still carry.
    WaitingForDirect {
        ticket: Ticket,
        peer: PeerId,
        allowed: u64,
    },
    /// A peer sends mostly blocks that nobody wants.
    UnwantedBlocks { peer: PeerId, bytes: u64 },
}

/// What a peer delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `crate::Ledger`")]
pub struct Received {
    pub blocks: u64,
    pub bytes: u64,
    pub unwanted_bytes: u64,
}

#[derive(Debug)]
enum State {
    Pending,
    /// Asked of a peer; the number is the request's.
    InFlight(PeerKey, u64),
    /// Since, and whether its turn to be searched has come.
    Searching(Option<Instant>),
}

#[derive(Debug)]
struct Want {
    cid: Cid,
    priority: i32,
    descend: u32,
    tickets: SmallVec<[Ticket; 1]>,
    state: State,
    /// Peers said to have it.
    providers: SmallVec<[PeerKey; 1]>,
    /// Peers that do not have it, or were silent when asked.
    refused: SmallVec<[PeerKey; 2]>,
    /// Peers that were sent an entry, each to be sent a cancel in the end.
    holders: SmallVec<[PeerKey; 2]>,
}

impl Want {
    fn held_by(&mut self, key: PeerKey) {
        if !self.holders.contains(&key) {
            self.holders.push(key);
        }
    }
}

#[derive(Debug)]
struct Wish {
    session: SessionId,
    want: WantId,
    warned: bool,
}

/// Whether a peer can take a request now.
enum Room {
    Yes(f64),
    /// Its window is full, or there is no usable connection.
    No,
    /// Only a circuit leads there on which so many bytes are left.
    TooNarrow(u64),
}

/// The client core.
#[derive(Debug)]
pub struct Client {
    config: Config,
    rng: StdRng,
    now: Instant,
    next_id: u64,
    sessions: BTreeMap<SessionId, Session>,
    wishes: HashMap<Ticket, Wish>,
    wants: BTreeMap<WantId, Want>,
    by_hash: HashMap<Multihash<64>, SmallVec<[WantId; 1]>>,
    keys: HashMap<PeerId, PeerKey>,
    peers: BTreeMap<PeerKey, Peer>,
    /// Delivered, not acknowledged: by ticket, and in all.
    unacknowledged: HashMap<Ticket, u64>,
    unacknowledged_bytes: u64,
    in_flight_bytes: u64,
    search_at: Option<Instant>,
    dirty: bool,
    outputs: VecDeque<Output>,
}

impl Client {
    /// A client without peers. `seed` decides which peers a search asks first.
    pub fn new(config: Config, seed: [u8; 32], now: Instant) -> Self {
        Self {
            config,
            rng: StdRng::from_seed(seed),
            now,
            next_id: 0,
            sessions: BTreeMap::new(),
            wishes: HashMap::new(),
            wants: BTreeMap::new(),
            by_hash: HashMap::new(),
            keys: HashMap::new(),
            peers: BTreeMap::new(),
            unacknowledged: HashMap::new(),
            unacknowledged_bytes: 0,
            in_flight_bytes: 0,
            search_at: None,
            dirty: false,
            outputs: VecDeque::new(),
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    // ---- commands ----

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

    // ---- facts ----

    /// A connection is up.
    pub fn on_connected(&mut self, peer: PeerId, conn: ConnKey, path: Path, now: Instant) {
        self.now = now;
        self.dirty = true;
        if let Some(known) = self.keys.get(&peer).and_then(|key| self.peers.get_mut(key)) {
            known.paths.insert(conn, path);
            return;
        }
        let key = PeerKey(self.id());
        let mut state = Peer::new(peer, &self.config, now);
        state.paths.insert(conn, path);
        self.keys.insert(peer, key);
        self.peers.insert(key, state);
        let expecting: SmallVec<[SessionId; 4]> = self
            .sessions
            .iter_mut()
            .filter_map(|(id, session)| session.met(&peer).then_some(*id))
            .collect();
        for session in expecting {
            self.join(session, key);
            self.unpark(session);
        }
        self.ask_newcomer(key);
    }

    /// A connection is gone. What was on order over it is asked for again.
    pub fn on_disconnected(&mut self, peer: PeerId, conn: ConnKey, now: Instant) {
        self.now = now;
        self.dirty = true;
        let Some(key) = self.keys.get(&peer).copied() else {
            return;
        };
        self.lose_connection(key, conn, true);
        let Some(state) = self.peers.get_mut(&key) else {
            return;
        };
        state.paths.remove(conn);
        if !state.paths.is_empty() {
            return;
        }
        let sessions = std::mem::take(&mut state.sessions);
        for id in sessions {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.peers.remove(&key);
                session.expect(peer);
            }
        }
        self.peers.remove(&key);
        self.keys.remove(&peer);
    }

    /// What is sent over a connection may not have arrived: all of it is asked for again.
    fn lose_connection(&mut self, key: PeerKey, conn: ConnKey, closed: bool) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.writing = false;
        if closed {
            peer.forget_promises_on(conn);
        }
        let only = !closed || peer.paths.best().is_none_or(|(best, _)| best == conn);
        if only {
            peer.registered.clear();
            peer.drop_changes();
            for want in std::mem::take(&mut peer.asked) {
                // Another round of the search asks again.
                if let Some(Want {
                    state: State::Searching(since),
                    ..
                }) = self.wants.get_mut(&want)
                {
                    *since = None;
                }
            }
        }
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        let lost: Vec<(u64, WantId)> = peer
            .requests
            .iter()
            .filter(|(_, request)| request.conn == conn)
            .map(|(number, request)| (*number, request.want))
            .collect();
        for (number, want) in lost {
            self.drop_request(key, number);
            self.set_state(want, State::Pending);
        }
    }

    /// A connection turned out better or worse than it seemed.
    pub fn on_path(&mut self, peer: PeerId, conn: ConnKey, path: Path, now: Instant) {
        self.now = now;
        self.dirty = true;
        if let Some(state) = self.keys.get(&peer).and_then(|key| self.peers.get_mut(key)) {
            state.paths.set_path(conn, path);
        }
    }

    /// The peer's version on a connection.
    pub fn on_version(&mut self, peer: PeerId, conn: ConnKey, version: Version, now: Instant) {
        self.now = now;
        self.dirty = true;
        if let Some(state) = self.keys.get(&peer).and_then(|key| self.peers.get_mut(key)) {
            state.presences = version.has_presences();
            state.paths.set_usable(conn, true);
        }
    }

    /// The peer speaks no bitswap on a connection.
    pub fn on_unsupported(&mut self, peer: PeerId, conn: ConnKey, now: Instant) {
        self.now = now;
        self.dirty = true;
        if let Some(key) = self.keys.get(&peer).copied() {
            self.lose_connection(key, conn, true);
            if let Some(state) = self.peers.get_mut(&key) {
                state.paths.set_usable(conn, false);
            }
        }
    }

    /// The outbound stream broke; the connection stands.
    pub fn on_stream_lost(&mut self, peer: PeerId, conn: ConnKey, now: Instant) {
        self.now = now;
        self.dirty = true;
        if let Some(key) = self.keys.get(&peer).copied() {
            self.lose_connection(key, conn, false);
        }
    }

    /// The entries of the last `Send` are written.
    pub fn on_written(&mut self, peer: PeerId, now: Instant) {
        self.now = now;
        if let Some(state) = self.keys.get(&peer).and_then(|key| self.peers.get_mut(key)) {
            state.writing = false;
        }
    }

    /// Blocks, presences and promises of a message; the rest of it is the server's business.
    pub fn on_message(&mut self, peer: PeerId, conn: ConnKey, message: &Message, now: Instant) {
        self.now = now;
        let Some(key) = self.keys.get(&peer).copied() else {
            return;
        };
        if let Some(state) = self.peers.get_mut(&key) {
            state.paths.spend(conn, message.frame_bytes as u64);
            self.dirty |= !message.blocks.is_empty() || !message.presences.is_empty();
        }
        let mut answers = false;
        for block in &message.blocks {
            answers |= self.on_block(key, conn, block, false);
        }
        for block in &message.legacy_blocks {
            answers |= self.on_block(key, conn, block, true);
        }
        for presence in &message.presences {
            answers |= self.on_presence(key, conn, &presence.cid, presence.have);
        }
        // A peer that talks about something else holds what it was asked for no longer than a silent one.
        if let Some(state) = self.peers.get_mut(&key)
            && (answers || state.requests.is_empty())
        {
            state.last_progress = now;
            state.stalls = 0;
        }
        if let Some(state) = self.peers.get_mut(&key)
            && state.credit.values().any(|credit| *credit > 0)
        {
            for cid in &message.promised {
                state.promise(*cid, conn);
            }
        }
    }

    /// Whether it was wanted, or may be pushed.
    fn on_block(&mut self, key: PeerKey, conn: ConnKey, block: &Block, any_version: bool) -> bool {
        let wants: SmallVec<[WantId; 1]> = self
            .by_hash
            .get(block.cid().hash())
            .into_iter()
            .flatten()
            .copied()
            .filter(|id| {
                any_version
                    || self
                        .wants
                        .get(id)
                        .is_some_and(|want| want.cid == *block.cid())
            })
            .collect();
        let bytes = block.data().len() as u64;
        let Some(peer) = self.peers.get_mut(&key) else {
            return false;
        };
        peer.take_promise(block.cid());
        let from = peer.id;
        if wants.is_empty() {
            return self.on_unwanted(key, conn, block);
        }
        peer.useful += 1;
        peer.useful_bytes += bytes;
        peer.miss_rate *= 0.9;
        for id in wants {
            let Some(want) = self.wants.get_mut(&id) else {
                continue;
            };
            let block = Block::trusted(want.cid, block.data().clone());
            let tickets = std::mem::take(&mut want.tickets);
            let sessions = self.sessions_by(&tickets);
            self.close(id, &sessions, Some((key, bytes)));
            for session in sessions {
                self.join(session, key);
                if let Some(state) = self.sessions.get_mut(&session) {
                    state.on_block(bytes);
                    state.peers.insert(key, 0);
                }
            }
            for ticket in tickets {
                self.wishes.remove(&ticket);
                self.deliver(ticket, block.clone(), Some((from, conn)));
            }
        }
        true
    }

    fn deliver(&mut self, ticket: Ticket, block: Block, from: Option<(PeerId, ConnKey)>) {
        let bytes = block.data().len() as u64;
        if bytes > 0 {
            self.unacknowledged.insert(ticket, bytes);
            self.unacknowledged_bytes += bytes;
        }
        self.outputs.push_back(Output::Block {
            ticket,
            block,
            from,
        });
    }

    /// A block that is pushed as asked goes to the stash: true. Anything else is counted.
    fn on_unwanted(&mut self, key: PeerKey, conn: ConnKey, block: &Block) -> bool {
        let Some(peer) = self.peers.get_mut(&key) else {
            return false;
        };
        let creditor = peer.credit.iter_mut().find(|(_, credit)| **credit > 0);
        if let Some((session, credit)) = creditor {
            *credit -= 1;
            if let Some(session) = self.sessions.get_mut(session) {
                let max = self.config.max_stash_bytes();
                session.stash.insert(block.clone(), peer.id, conn, max);
                return true;
            }
        }
        peer.unwanted_bytes += block.data().len() as u64;
        if !peer.reported_unwanted && peer.unwanted_bytes > UNWANTED_BYTES.max(peer.useful_bytes) {
            peer.reported_unwanted = true;
            self.outputs.push_back(Output::UnwantedBlocks {
                peer: peer.id,
                bytes: peer.unwanted_bytes,
            });
        }
        false
    }

    /// Whether it ends an open request.
    fn on_presence(&mut self, key: PeerKey, conn: ConnKey, cid: &Cid, have: bool) -> bool {
        let Some(ids) = self.by_hash.get(cid.hash()).cloned() else {
            return false;
        };
        let mut answers = false;
        for id in ids {
            let Some(want) = self.wants.get_mut(&id).filter(|want| want.cid == *cid) else {
                continue;
            };
            let Some(peer) = self.peers.get_mut(&key) else {
                return false;
            };
            let asked = peer.asked.contains(&id) || peer.registered.contains(&id);
            let current = match want.state {
                State::InFlight(holder, number) if holder == key => Some(number),
                _ => None,
            };
            match (have, current) {
                (true, Some(number)) => self.on_withheld(key, conn, id, number),
                (true, None) if asked => {
                    want.refused.retain(|k| *k != key);
                    if !want.providers.contains(&key) {
                        want.providers.push(key);
                    }
                    let sessions = self.sessions_of(id);
                    for session in sessions {
                        self.join(session, key);
                        self.unpark(session);
                    }
                }
                (false, Some(number)) => {
                    answers = true;
                    self.drop_request(key, number);
                    self.refuse(key, id);
                    self.set_state(id, State::Pending);
                }
                (false, None) if asked => self.refuse(key, id),
                (_, None) => {}
            }
        }
        answers
    }

    /// HAVE in answer to a want-block: the peer has it but cannot send it over this circuit. It is
    /// asked again on a better connection.
    fn on_withheld(&mut self, key: PeerKey, conn: ConnKey, id: WantId, number: u64) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if !matches!(peer.paths.best(), Some((best, Path::Limited(_))) if best == conn) {
            return;
        }
        if let Some(want) = self.wants.get(&id) {
            peer.push(id, want.cid, Change::Cancel { lazy: false });
        }
        let allowed = match peer.paths.best() {
            Some((_, Path::Limited(left))) => left,
            _ => return,
        };
        peer.paths.set_path(conn, Path::Limited(0));
        self.drop_request(key, number);
        self.set_state(id, State::Pending);
        self.warn(id, key, allowed);
    }

    fn refuse(&mut self, key: PeerKey, id: WantId) {
        let Some(want) = self.wants.get_mut(&id) else {
            return;
        };
        want.providers.retain(|k| *k != key);
        if !want.refused.contains(&key) {
            want.refused.push(key);
        }
        let searching = matches!(want.state, State::Searching(_));
        let cid = want.cid;
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.miss_rate = peer.miss_rate * 0.9 + 0.1;
            // A want-have that is searched for stays: the peer tells us when it has the block.
            if !(searching && peer.asked.contains(&id)) {
                peer.asked.remove(&id);
                peer.push(id, cid, Change::Cancel { lazy: true });
            }
        }
        for session in self.sessions_of(id) {
            if let Some(state) = self.sessions.get_mut(&session)
                && state.on_miss(key)
            {
                state.peers.remove(&key);
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.sessions.remove(&session);
                }
            }
        }
    }

    // ---- time ----

    /// The earliest instant at which `handle_timeout` has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let search = self.search_at;
        let peers = self.peers.values().filter_map(|peer| {
            let flush = peer
                .flush_at
                .filter(|_| !peer.writing && peer.has_changes());
            flush.into_iter().chain(self.stall_at(peer)).min()
        });
        peers.chain(search).min()
    }

    /// When a peer with open requests counts as stalled.
    fn stall_at(&self, peer: &Peer) -> Option<Instant> {
        let (_, oldest) = peer.requests.first_key_value()?;
        let since = oldest.mark.sent.max(peer.last_progress);
        let patience = peer.window.patience(self.config.answer_timeout());
        Some(since + patience * (1 << peer.stalls.min(4)))
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        if self.search_at.is_some_and(|at| at <= now) {
            self.repeat_searches();
        }
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys {
            let Some(peer) = self.peers.get(&key) else {
                continue;
            };
            if self.stall_at(peer).is_some_and(|at| at <= now) {
                self.on_stall(key);
            } else {
                self.check_oldest(key);
            }
        }
        self.dirty = true;
    }

    /// A silent peer: others get its requests; if there are no others it is asked again.
    fn on_stall(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.stalls += 1;
        peer.last_progress = self.now;
        let requests: Vec<(u64, WantId)> = peer
            .requests
            .iter()
            .map(|(number, request)| (*number, request.want))
            .collect();
        let mut announced = 0;
        for (number, id) in requests {
            if self.has_alternative(id, key) {
                self.drop_request(key, number);
                self.withdraw(key, id, false);
                self.set_state(id, State::Pending);
                continue;
            }
            let Some(want) = self.wants.get_mut(&id) else {
                continue;
            };
            want.held_by(key);
            let change = Change::Block {
                priority: want.priority,
                descend: want.descend,
            };
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.push(id, want.cid, change);
            }
            if announced < self.config.search_wants() {
                announced += 1;
                let (cid, tickets) = (want.cid, want.tickets.clone());
                for ticket in tickets {
                    self.outputs
                        .push_back(Output::ProvidersWanted { ticket, cid });
                }
            }
        }
    }

    /// A request that was overtaken by far will not be answered (peers before 1.2.0 say nothing
    /// when they lack a block).
    fn check_oldest(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        let Some((number, oldest)) = peer.requests.first_key_value() else {
            return;
        };
        let patience = peer.window.patience(self.config.answer_timeout());
        let overtaken = peer.window.delivered_since(&oldest.mark)
            > 2 * Window::queued_before(&oldest.mark) + 4 * oldest.estimate;
        if overtaken && self.now.duration_since(oldest.mark.sent) > patience {
            let (number, id) = (*number, oldest.want);
            self.drop_request(key, number);
            self.refuse(key, id);
            self.set_state(id, State::Pending);
        }
    }

    fn has_alternative(&self, id: WantId, than: PeerKey) -> bool {
        let Some(want) = self.wants.get(&id) else {
            return false;
        };
        self.candidates(want).any(|key| {
            key != than
                && self
                    .peers
                    .get(&key)
                    .is_some_and(|peer| peer.stalls == 0 && peer.paths.best().is_some())
        })
    }

    /// Peers that may have a want: those of its sessions and its providers, without those that
    /// refused.
    fn candidates<'a>(&'a self, want: &'a Want) -> impl Iterator<Item = PeerKey> + 'a {
        let sessions = want
            .tickets
            .iter()
            .filter_map(|ticket| self.wishes.get(ticket))
            .filter_map(|wish| self.sessions.get(&wish.session));
        sessions
            .flat_map(|session| session.peers.keys())
            .chain(&want.providers)
            .copied()
            .filter(|key| !want.refused.contains(key))
    }

    // ---- queues ----

    fn sessions_by(&self, tickets: &[Ticket]) -> SmallVec<[SessionId; 1]> {
        let mut sessions: SmallVec<[SessionId; 1]> = tickets
            .iter()
            .filter_map(|ticket| self.wishes.get(ticket))
            .map(|wish| wish.session)
            .collect();
        sessions.sort_unstable();
        sessions.dedup();
        sessions
    }

    fn sessions_of(&self, id: WantId) -> SmallVec<[SessionId; 1]> {
        self.wants
            .get(&id)
            .map(|want| self.sessions_by(&want.tickets))
            .unwrap_or_default()
    }

    /// Puts a want into the queues that fit its state.
    fn enqueue(&mut self, id: WantId) {
        let Some(want) = self.wants.get(&id) else {
            return;
        };
        let rank = (Reverse(want.priority), id);
        let searching = match want.state {
            State::Pending => false,
            State::Searching(_) => true,
            State::InFlight(..) => return,
        };
        for session in self.sessions_of(id) {
            if let Some(state) = self.sessions.get_mut(&session) {
                if searching {
                    state.searching.insert(id);
                } else {
                    state.pending.insert(rank);
                }
            }
        }
        self.dirty = true;
    }

    fn dequeue(&mut self, id: WantId, sessions: &[SessionId]) {
        let Some(want) = self.wants.get(&id) else {
            return;
        };
        let rank = (Reverse(want.priority), id);
        for session in sessions {
            if let Some(state) = self.sessions.get_mut(session) {
                state.pending.remove(&rank);
                state.searching.remove(&id);
            }
        }
    }

    fn rerank(&mut self, id: WantId, old: i32) {
        for session in self.sessions_of(id) {
            if let Some(state) = self.sessions.get_mut(&session) {
                state.pending.remove(&(Reverse(old), id));
            }
        }
    }

    fn set_state(&mut self, id: WantId, state: State) {
        let sessions = self.sessions_of(id);
        self.dequeue(id, &sessions);
        if let Some(want) = self.wants.get_mut(&id) {
            want.state = state;
        }
        self.enqueue(id);
    }

    /// Removes a want that is answered or withdrawn; its `tickets` may be empty already, so the
    /// `sessions` are given. `by`: who delivered how much.
    fn close(&mut self, id: WantId, sessions: &[SessionId], by: Option<(PeerKey, u64)>) {
        self.dequeue(id, sessions);
        let Some(want) = self.wants.remove(&id) else {
            return;
        };
        if let Some(ids) = self.by_hash.get_mut(want.cid.hash()) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_hash.remove(want.cid.hash());
            }
        }
        if let State::InFlight(key, number) = want.state
            && let Some(peer) = self.peers.get_mut(&key)
            && let Some(request) = peer.requests.remove(&number)
        {
            self.in_flight_bytes = self.in_flight_bytes.saturating_sub(request.estimate);
            match by {
                Some((deliverer, bytes)) if deliverer == key => {
                    peer.window
                        .on_delivered(&request.mark, request.estimate, bytes, self.now);
                }
                _ => peer.window.on_dropped(request.estimate),
            }
        }
        // To every peer that holds an entry of ours, the deliverer included: some servers keep a
        // served want until it is cancelled.
        let flush_at = self.now + LAZY_DELAY;
        for key in want.holders {
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            peer.asked.remove(&id);
            let lazy = by.is_some_and(|(deliverer, _)| deliverer == key);
            peer.push(id, want.cid, Change::Cancel { lazy });
            if lazy && peer.has_changes() {
                peer.flush_at.get_or_insert(flush_at);
            }
        }
    }

    fn drop_request(&mut self, key: PeerKey, number: u64) {
        if let Some(peer) = self.peers.get_mut(&key)
            && let Some(request) = peer.requests.remove(&number)
        {
            peer.window.on_dropped(request.estimate);
            self.in_flight_bytes = self.in_flight_bytes.saturating_sub(request.estimate);
        }
    }

    fn withdraw(&mut self, key: PeerKey, id: WantId, lazy: bool) {
        let Some(want) = self.wants.get(&id) else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.push(id, want.cid, Change::Cancel { lazy });
        }
    }

    fn join(&mut self, session: SessionId, key: PeerKey) {
        if let Some(state) = self.sessions.get_mut(&session)
            && let Some(peer) = self.peers.get_mut(&key)
        {
            state.peers.entry(key).or_insert(0);
            peer.sessions.insert(session);
            self.dirty = true;
        }
    }

    /// A session has a new peer: what was searched for may be asked of it.
    fn unpark(&mut self, session: SessionId) {
        let Some(state) = self.sessions.get(&session) else {
            return;
        };
        let parked: Vec<WantId> = state.searching.iter().copied().collect();
        for id in parked {
            let possible = self.wants.get(&id).is_some_and(|want| {
                self.candidates(want).any(|key| {
                    self.peers
                        .get(&key)
                        .is_some_and(|peer| peer.paths.best().is_some())
                })
            });
            if possible {
                self.set_state(id, State::Pending);
            }
        }
    }

    // ---- scheduling ----

    /// Assigns wants to peers, sessions taking turns, until nobody has room.
    fn schedule(&mut self) {
        let mut sessions: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| !session.pending.is_empty())
            .map(|(id, _)| *id)
            .collect();
        while !sessions.is_empty() {
            sessions.retain(|session| self.assign_one(*session));
        }
        self.start_searches();
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
    fn expect_from(&mut self, id: WantId, key: PeerKey, conn: ConnKey, estimate: u64) {
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

    /// Tells each ticket once that its block waits for a better path.
    fn warn(&mut self, id: WantId, key: PeerKey, allowed: u64) {
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

    // ---- searching ----

    /// Gives searched-for wants their turn.
    fn start_searches(&mut self) {
        let mut due: Vec<WantId> = Vec::new();
        for session in self.sessions.values() {
            let turn = session.searching.iter().take(self.config.search_wants());
            due.extend(turn.filter(|id| {
                matches!(
                    self.wants.get(id),
                    Some(Want {
                        state: State::Searching(None),
                        ..
                    })
                )
            }));
        }
        due.sort_unstable();
        due.dedup();
        if due.is_empty() {
            return;
        }
        let targets = self.search_targets();
        for id in due {
            self.search(id, &targets);
        }
    }

    fn search(&mut self, id: WantId, targets: &[PeerKey]) {
        let Some(want) = self.wants.get_mut(&id) else {
            return;
        };
        want.state = State::Searching(Some(self.now));
        let (cid, priority, tickets) = (want.cid, want.priority, want.tickets.clone());
        for ticket in tickets {
            self.outputs
                .push_back(Output::ProvidersWanted { ticket, cid });
        }
        let mut legacy = false;
        for key in targets {
            let Some(peer) = self.peers.get_mut(key) else {
                continue;
            };
            if !peer.presences {
                // Knows no want-have: it may be asked for the block itself.
                legacy = true;
                if let Some(want) = self.wants.get_mut(&id)
                    && !want.providers.contains(key)
                {
                    want.providers.push(*key);
                }
            } else if peer.outstanding() < self.config.max_outstanding_per_peer() {
                peer.asked.insert(id);
                peer.push(
                    id,
                    cid,
                    Change::Have {
                        priority,
                        dont_have: false,
                    },
                );
                if let Some(want) = self.wants.get_mut(&id) {
                    want.held_by(*key);
                }
            }
        }
        if legacy {
            self.set_state(id, State::Pending);
        }
        self.search_at
            .get_or_insert(self.now + self.config.search_interval());
    }

    /// Connected peers to search: the useful ones first, among equals at random.
    fn search_targets(&mut self) -> Vec<PeerKey> {
        let mut targets: Vec<(Reverse<u64>, u32, PeerKey)> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.paths.best().is_some() && peer.stalls == 0)
            .map(|(key, peer)| (Reverse(peer.useful), self.rng.random(), *key))
            .collect();
        targets.sort_unstable();
        targets.truncate(self.config.search_peers());
        targets.into_iter().map(|(.., key)| key).collect()
    }

    fn repeat_searches(&mut self) {
        self.search_at = None;
        let all: BTreeSet<WantId> = self
            .sessions
            .values()
            .flat_map(|session| &session.searching)
            .copied()
            .collect();
        for id in all {
            if let Some(want) = self.wants.get_mut(&id) {
                // Who did not have it then may have it now.
                want.refused.clear();
                want.state = State::Searching(None);
            }
        }
    }

    /// A peer has just connected: it is asked what is being searched for.
    fn ask_newcomer(&mut self, key: PeerKey) {
        let running: BTreeSet<WantId> = self
            .sessions
            .values()
            .flat_map(|session| session.searching.iter().take(self.config.search_wants()))
            .copied()
            .collect();
        for id in running {
            let Some(want) = self.wants.get_mut(&id) else {
                continue;
            };
            if !matches!(want.state, State::Searching(Some(_))) {
                continue;
            }
            want.held_by(key);
            let change = Change::Have {
                priority: want.priority,
                dont_have: false,
            };
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.asked.insert(id);
                peer.push(id, want.cid, change);
            }
        }
    }

    // ---- outputs ----

    /// What is to be done; call after every other `&mut` call until it gives `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        if std::mem::take(&mut self.dirty) {
            self.schedule();
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
        }
        let now = self.now;
        let (peer, conn) = self
            .peers
            .values_mut()
            .filter(|peer| peer.is_due(now))
            .find_map(|peer| peer.paths.best().map(|(conn, _)| (peer, conn)))?;
        peer.writing = true;
        let full = false;
        Some(Output::Send {
            peer: peer.id,
            conn,
            entries: peer.take_entries(),
            full,
        })
    }

    /// Blocks on order over a connection.
    pub fn wants_on(&self, peer: &PeerId, conn: ConnKey) -> usize {
        let peer = self.keys.get(peer).and_then(|key| self.peers.get(key));
        peer.map_or(0, |peer| {
            peer.requests
                .values()
                .filter(|request| request.conn == conn)
                .count()
        })
    }

    /// Whether anything is wanted from a peer.
    pub fn is_busy(&self, peer: &PeerId) -> bool {
        let peer = self.keys.get(peer).and_then(|key| self.peers.get(key));
        peer.is_some_and(|peer| {
            !peer.requests.is_empty() || !peer.asked.is_empty() || peer.has_changes()
        })
    }

    /// What a connected peer delivered.
    pub fn received(&self, peer: &PeerId) -> Option<Received> {
        let peer = self.keys.get(peer).and_then(|key| self.peers.get(key))?;
        Some(Received {
            blocks: peer.useful,
            bytes: peer.useful_bytes,
            unwanted_bytes: peer.unwanted_bytes,
        })
    }

    /// Sizes of all collections: `[sessions, tickets, wants, peers, unacknowledged]`. All zero
    /// when nothing is wanted and nobody is connected.
    pub fn counters(&self) -> [usize; 5] {
        [
            self.sessions.len(),
            self.wishes.len(),
            self.wants.len(),
            self.peers.len(),
            self.unacknowledged.len(),
        ]
    }
}
