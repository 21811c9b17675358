//! The client: which block to ask of which peer.
//!
//! A want-block goes to one peer at a time: the one of the session expected to deliver it first, as
//! long as its request window has room. DONT_HAVE, silence or a lost connection pass it on. When no
//! connected peer of the session is left, the want is *searched* for: want-have to a bounded
//! number of connected peers, and [`Output::ProvidersWanted`] at the same moment.

mod answers;
mod asking;
mod commands;
mod connections;
mod peer;
mod search;
mod session;
mod stalls;
mod stash;
mod wants;
mod window;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use cid::{Cid, multihash::Multihash};
use libp2p_identity::PeerId;
use rand::{SeedableRng, rngs::StdRng};
use smallvec::SmallVec;
use web_time::Instant;

use self::{
    peer::{Peer, PeerKey},
    session::Session,
};
use super::ConnKey;
use crate::{Block, Config, SessionId, Ticket, message::Entry};

/// Cancels to peers that delivered wait for so much company, or for so long.
const LAZY_CANCELS: usize = 64;
const LAZY_DELAY: Duration = Duration::from_millis(20);

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
