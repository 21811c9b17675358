//! The client: which block to ask of which peer.
//!
//! A want-block goes to the peer of its session that is expected to deliver it first, as long as
//! that peer's request window has room (`schedule`, `window`). DONT_HAVE, silence or a lost
//! connection pass it on (`answers`, `stalls`, `connections`). When nothing is left to be asked for
//! and a peer is idle, it takes over what others are late with, or what they will not come to for
//! long (`hedge`). Where misses are usual, other peers of the session are asked for HAVE at the
//! same time. When no connected peer of the session is left, the want is searched for: want-have in
//! waves, to peers that had things before and to some at random, and [`Output::ProvidersWanted`]
//! (`search`).
//!
//! What stands at a peer's server is in its `wantlist`; a want ends with cancels to every server
//! that has an entry of it.

mod answers;
mod commands;
mod connections;
mod hedge;
mod peer;
mod schedule;
mod search;
mod session;
mod slab;
mod stalls;
mod stash;
mod wantlist;
mod wants;
mod window;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use cid::Cid;
use hashbrown::HashTable;
use libp2p_identity::PeerId;
use rand::{SeedableRng, rngs::StdRng};
use web_time::Instant;

use self::{
    peer::{Peer, PeerKey, entry},
    search::Search,
    session::Session,
    slab::Slab,
    wants::{Rank, Want, WantId, Wish},
};
use super::ConnKey;
use crate::{Block, Config, SessionId, Ticket, message::Entry};

/// Cancels to peers that delivered wait for company so long.
const LAZY_DELAY: Duration = Duration::from_millis(20);

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
    /// A peer does not answer what it was asked over this connection.
    Silent { peer: PeerId, conn: ConnKey },
}

/// What a peer delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `crate::Ledger`")]
pub struct Received {
    pub blocks: u64,
    pub bytes: u64,
    pub unwanted_bytes: u64,
}

/// The client core.
#[derive(Debug)]
pub struct Client {
    config: Config,
    rng: StdRng,
    now: Instant,
    /// Last number given to a session.
    last_session: u64,
    /// Last serial given to a wish, and age given to a want.
    last_serial: u32,
    last_seq: u32,
    next_peer: PeerKey,
    sessions: BTreeMap<SessionId, Session>,
    wishes: Slab<Wish>,
    wants: Slab<Want>,
    /// Open wants by multihash.
    by_hash: HashTable<WantId>,
    hasher: RandomState,
    keys: HashMap<PeerId, PeerKey>,
    peers: BTreeMap<PeerKey, Peer>,
    /// Peers with changes to be sent, and with requests to be answered.
    changed: BTreeSet<PeerKey>,
    busy: BTreeSet<PeerKey>,
    /// Peers that promised to push something.
    promisers: BTreeSet<PeerKey>,
    /// Delivered, not acknowledged: by ticket, and in all.
    unacknowledged: HashMap<Ticket, (u64, SessionId)>,
    unacknowledged_bytes: u64,
    in_flight_bytes: u64,
    searches: BTreeMap<WantId, Search>,
    search_timers: BTreeSet<(Instant, WantId)>,
    /// When hedging was considered last, and is to be considered next.
    hedged_at: Option<Instant>,
    hedge_at: Option<Instant>,
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
            last_session: 0,
            last_serial: 0,
            last_seq: 0,
            next_peer: PeerKey::FIRST,
            sessions: BTreeMap::new(),
            wishes: Slab::new(),
            wants: Slab::new(),
            by_hash: HashTable::new(),
            hasher: RandomState::new(),
            keys: HashMap::new(),
            peers: BTreeMap::new(),
            changed: BTreeSet::new(),
            busy: BTreeSet::new(),
            promisers: BTreeSet::new(),
            unacknowledged: HashMap::new(),
            unacknowledged_bytes: 0,
            in_flight_bytes: 0,
            searches: BTreeMap::new(),
            search_timers: BTreeSet::new(),
            hedged_at: None,
            hedge_at: None,
            dirty: false,
            outputs: VecDeque::new(),
        }
    }

    fn hash(&self, cid: &Cid) -> u64 {
        self.hasher
            .hash_one((cid.hash().code(), cid.hash().digest()))
    }

    fn seq(&mut self) -> u32 {
        self.last_seq = self.last_seq.wrapping_add(1);
        self.last_seq
    }

    // ---- time ----

    /// The earliest instant at which `handle_timeout` has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let flush = self.changed.iter().filter_map(|key| {
            let peer = self.peers.get(key).filter(|peer| !peer.writing)?;
            peer.list.flush_at()
        });
        let stall = self
            .busy
            .iter()
            .filter_map(|key| self.peers.get(key))
            .flat_map(|peer| [self.stall_at(peer), self.silent_at(peer)])
            .flatten();
        let search = self.search_timers.first().map(|(at, _)| *at);
        flush.chain(stall).chain(search).chain(self.hedge_at).min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        while let Some((at, id)) = self.search_timers.first().copied()
            && at <= now
        {
            self.on_search_timer(id);
        }
        for key in self.busy.iter().copied().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get(&key) else {
                continue;
            };
            let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            let is_stalled = is_due(self.stall_at(peer));
            if is_due(self.silent_at(peer)) || is_stalled {
                self.tell_silent(key);
            }
            if is_stalled {
                self.on_stall(key);
            } else {
                self.check_oldest(key);
            }
        }
        self.dirty = true;
    }

    // ---- outputs ----

    /// What is to be done; call after every other `&mut` call until it gives `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
            if std::mem::take(&mut self.dirty) {
                self.schedule();
                continue;
            }
            let key = self.changed.iter().copied().find(|key| {
                self.peers.get(key).is_some_and(|peer| {
                    !peer.writing
                        && peer
                            .list
                            .is_due(self.now, peer.requests.len(), self.has_more(peer))
                        && peer.paths.best().is_some()
                })
            })?;
            if let Some(output) = self.send(key) {
                return Some(output);
            }
        }
    }

    /// Whether a session of the peer has more to ask for.
    fn has_more(&self, peer: &Peer) -> bool {
        let sessions = peer.sessions.iter().filter_map(|id| self.sessions.get(id));
        sessions
            .into_iter()
            .any(|session| !session.pending.is_empty())
    }

    /// The changes of a peer's wantlist, as one message.
    fn send(&mut self, key: PeerKey) -> Option<Output> {
        let peer = self.peers.get_mut(&key)?;
        let (conn, _) = peer.paths.best()?;
        let (changes, full, removed) = peer.list.take();
        self.changed.remove(&key);
        if changes.is_empty() && !full {
            return None;
        }
        peer.writing = true;
        let (id, presences) = (peer.id, peer.presences);
        let entries = changes.into_iter().filter_map(|(want, goal)| {
            // A full list is what it says: what is not in it is withdrawn.
            let stays = !full || !goal.is_cancel();
            let want = self.wants.get(want.0).filter(|_| stays)?;
            Some(entry(want, goal, presences))
        });
        let entries = entries.collect();
        for want in removed {
            self.on_line_gone(key, want);
            // There is room for another one.
            self.dirty = true;
        }
        Some(Output::Send {
            peer: id,
            conn,
            entries,
            full,
        })
    }

    // ---- what is known ----

    /// Blocks on order over a connection.
    pub fn wants_on(&self, peer: &PeerId, conn: ConnKey) -> usize {
        let peer = self.keys.get(peer).and_then(|key| self.peers.get(key));
        peer.map_or(0, |peer| {
            peer.requests
                .iter()
                .filter(|request| request.conn == conn)
                .count()
        })
    }

    /// Whether anything is wanted from a peer.
    pub fn is_busy(&self, peer: &PeerId) -> bool {
        let peer = self.keys.get(peer).and_then(|key| self.peers.get(key));
        peer.is_some_and(|peer| {
            !peer.requests.is_empty() || !peer.list.is_empty() || peer.list.has_changes()
        })
    }

    /// Whether a peer's server may hold a want of ours, or may push what we asked it to: blocks
    /// that come while this is false are unwanted.
    pub fn expects_blocks(&self, peer: &PeerId) -> bool {
        let peer = self.keys.get(peer).and_then(|key| self.peers.get(key));
        peer.is_some_and(Peer::may_send)
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
            self.wants.len() + self.by_hash.len() + self.searches.len() + self.search_timers.len(),
            self.peers.len()
                + self.keys.len()
                + self.changed.len()
                + self.busy.len()
                + self.promisers.len(),
            self.unacknowledged.len(),
        ]
    }

    /// Bytes that wants occupy: themselves with their tickets, indexes and queues, and what is kept
    /// for each pair of a want and a peer. Counted from the capacities of the collections, those of
    /// B-trees at six entries a node of eleven (what ascending insertion leaves).
    pub fn allocated_bytes(&self) -> Allocated {
        const NODES_FILLED: usize = 6;
        let tree = |len: usize, entry: usize| {
            len.div_ceil(NODES_FILLED) * (11 * entry + 16) * NODES_FILLED / (NODES_FILLED - 1)
        };
        let mut queues = tree(self.searches.len(), size_of::<(WantId, Search)>())
            + tree(self.search_timers.len(), size_of::<(Instant, WantId)>());
        for session in self.sessions.values() {
            queues += tree(session.pending.len(), size_of::<Rank>())
                + tree(session.waiting.len(), size_of::<(u8, Rank)>())
                + tree(session.parked().count(), size_of::<WantId>());
        }
        let links: usize = (0..)
            .map_while(|number| (number < self.wants.bound()).then(|| self.wants.get(number)))
            .flatten()
            .map(Want::allocated)
            .sum();
        let lists: usize = self.peers.values().map(|peer| peer.list.allocated()).sum();
        let requests: usize = self
            .peers
            .values()
            .map(|peer| peer.requests.capacity() * size_of::<peer::Request>())
            .sum();
        Allocated {
            wants: self.wants.allocated()
                + self.wishes.allocated()
                + self.by_hash.allocation_size()
                + queues
                + requests,
            pairs: links + lists,
            pair_count: self.peers.values().map(|peer| peer.list.len()).sum(),
        }
    }
}

/// See [`Client::allocated_bytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Allocated {
    /// Bytes of wants.
    pub wants: usize,
    /// Bytes of pairs of a want and a peer.
    pub pairs: usize,
    /// How many pairs there are: entries on peers' wantlists.
    pub pair_count: usize,
}
