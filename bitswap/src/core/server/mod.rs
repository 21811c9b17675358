//! The server: what to send to which peer, and when.
//!
//! Peers share the upload by byte-deficit round robin (Shreedhar and Varghese 1995), with peers that
//! have just become active served first (as in RFC 8290, FQ-CoDel): a peer that wants one block
//! does not queue behind those that want thousands. Inside a peer, priority and then age decide.
//! Blocks are read a few megabytes ahead of the socket, never more, and no faster than the limit of
//! the peer's [`Class`].
//!
//! What others want is also counted as demand, see [`core::demand`](super::demand).

mod connections;
mod ledgers;
mod peer;
mod pipeline;
mod popularity;
mod shaper;
mod turns;
mod wantlists;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt,
};

use cid::Cid;
use hashlink::LinkedHashMap;
use libp2p_identity::PeerId;
use web_time::Instant;

pub use self::shaper::{Class, UploadLimits};
use self::{
    peer::{Handed, Peer, PeerKey, WantKey},
    shaper::Shaper,
    turns::Rings,
    wantlists::{Hash, Requesters},
};
use super::{ConnKey, demand::Demand};
use crate::{Block, Config, Ledger, message::Presence};

/// Answers in one batch.
const ANSWER_BATCH: usize = 1024;

/// Tells the size of a block if we have it.
pub type Lookup<'a> = &'a dyn Fn(&Cid) -> Option<u32>;

/// Tells whether a peer may have a block.
pub type RequestFilter = Box<dyn Fn(&PeerId, &Cid) -> bool + Send + Sync>;

/// A read of the block source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(u64);

/// What the server wants done.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields say who, over what, and what")]
pub enum Output {
    /// Read a block and call `on_read`, with its links if `links` is set.
    Read { id: ReadId, cid: Cid, links: bool },
    /// Send a block; answer with `on_written`.
    Block {
        peer: PeerId,
        conn: ConnKey,
        block: Block,
        promised: Option<Box<Cid>>,
        pending_bytes: u64,
    },
    /// Send answers without data; answer with `on_answers_written`.
    Presences {
        peer: PeerId,
        conn: ConnKey,
        presences: Vec<Presence>,
    },
    /// Take back what is not written on a connection, and call `on_returned`.
    Withdraw { peer: PeerId, conn: ConnKey },
    /// Take back those of these that are not written on a connection, if any, and call `on_taken_back`.
    TakeBack {
        peer: PeerId,
        conn: ConnKey,
        cids: Vec<Cid>,
    },
    /// Fetch a block that others want, when nobody here wants anything; call `on_prefetched` when it
    /// has come and the next one may be fetched.
    Prefetch(Cid),
    /// Stop fetching it.
    EndPrefetch(Cid),
}

#[derive(Debug)]
struct Read {
    peer: PeerKey,
    want: WantKey,
    size: u64,
}

/// How the user ranks a peer.
#[derive(Debug, Clone, Copy)]
struct Standing {
    weight: f64,
    class: Class,
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            weight: 1.0,
            class: Class::default(),
        }
    }
}

/// The server core.
pub struct Server {
    config: Config,
    start: Instant,
    now: Instant,
    next_id: u64,
    keys: HashMap<PeerId, PeerKey>,
    peers: BTreeMap<PeerKey, Peer>,
    /// Who wants a hash, under whatever CID.
    by_hash: HashMap<Hash, Requesters>,
    reads: HashMap<ReadId, Read>,
    /// Peers with something to be sent.
    rings: Rings,
    shaper: Shaper,
    in_pipe: u64,
    stuck_check: Option<Instant>,
    /// Peers with answers to be sent.
    talking: BTreeSet<PeerKey>,
    sweep_at: Instant,
    dirty: bool,
    outputs: VecDeque<Output>,
    /// Of peers that are gone, the longest gone first.
    ledgers: LinkedHashMap<PeerId, Ledger>,
    standings: LinkedHashMap<PeerId, Standing>,
    filter: Option<RequestFilter>,
    denied: u64,
    demand: Demand,
}

impl Server {
    /// A server without peers. `seed` makes what is counted about peers unpredictable to them.
    pub fn new(config: Config, seed: [u8; 32], now: Instant) -> Self {
        Self {
            demand: Demand::new(&config, seed, now),
            shaper: Shaper::new(&config.upload_limits(), now),
            sweep_at: now + config.want_ttl() / 4,
            config,
            start: now,
            now,
            next_id: 0,
            keys: HashMap::new(),
            peers: BTreeMap::new(),
            by_hash: HashMap::new(),
            reads: HashMap::new(),
            rings: Rings::default(),
            in_pipe: 0,
            stuck_check: None,
            talking: BTreeSet::new(),
            dirty: false,
            outputs: VecDeque::new(),
            ledgers: LinkedHashMap::new(),
            standings: LinkedHashMap::new(),
            filter: None,
            denied: 0,
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Seconds since the start.
    fn seconds(&self) -> u32 {
        let life = self.now.saturating_duration_since(self.start);
        u32::try_from(life.as_secs()).unwrap_or(u32::MAX)
    }

    /// From now on, blocks the filter refuses to a peer do not exist for it: its wants are answered
    /// with DONT_HAVE and forgotten, and count as nobody's demand. What it waits for already is
    /// served. `None`: everybody may have everything, as at the start.
    pub fn set_filter(&mut self, filter: Option<RequestFilter>) {
        self.filter = filter;
    }

    /// Wants refused by the filter.
    pub fn denied(&self) -> u64 {
        self.denied
    }

    /// Changes the limits given by the configuration.
    pub fn set_upload_limits(&mut self, limits: &UploadLimits, now: Instant) {
        self.now = now;
        self.dirty = true;
        self.shaper.set(limits, now);
    }

    // ---- time and outputs ----

    /// When old wants are looked for next, room is to be taken from a stuck peer, a limit lets the
    /// next block go, or a prefetch has taken too long.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sweep = (!self.by_hash.is_empty()).then_some(self.sweep_at);
        [
            sweep,
            self.stuck_check,
            self.unthrottled_at(),
            self.demand.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        self.dirty = true;
        self.reclaim();
        self.demand.handle_timeout(now);
        if self.sweep_at <= now {
            self.sweep_at = now + self.config.want_ttl() / 4;
            self.forget_old();
        }
    }

    /// What is to be done; call after every other `&mut` call until it gives `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        self.pump();
        self.send_answers();
        self.poll_demand();
        self.outputs.pop_front()
    }

    fn send_answers(&mut self) {
        let Self {
            talking,
            peers,
            outputs,
            ..
        } = self;
        talking.retain(|key| {
            let Some(peer) = peers.get_mut(key) else {
                return false;
            };
            if !peer.answering
                && let Some((conn, _)) = peer.paths.best()
            {
                let batch = peer.answers.len().min(ANSWER_BATCH);
                let batch = peer.answers.drain(..batch);
                peer.answering = true;
                outputs.push_back(Output::Presences {
                    peer: peer.id,
                    conn,
                    presences: batch
                        .map(|(cid, have)| Presence { cid: *cid, have })
                        .collect(),
                });
            }
            if peer.answers.is_empty() {
                // An idle peer keeps no memory.
                peer.answers = VecDeque::new();
            }
            !peer.answers.is_empty()
        });
    }

    fn peer(&self, peer: &PeerId) -> Option<&Peer> {
        self.keys.get(peer).and_then(|key| self.peers.get(key))
    }

    /// Bytes handed to a connection and not written.
    pub fn serving_on(&self, peer: &PeerId, conn: ConnKey) -> u64 {
        let handed = self.peer(peer).and_then(|peer| peer.handed.get(&conn));
        handed.map_or(0, Handed::bytes)
    }

    /// Whether a peer wants anything.
    pub fn is_busy(&self, peer: &PeerId) -> bool {
        self.peer(peer).is_some_and(|peer| {
            !peer.wants.is_empty() || peer.in_pipe > 0 || !peer.answers.is_empty()
        })
    }

    /// Sizes of all collections about peers: `[peers, wanted hashes, reads, bytes in pipelines]`; a block
    /// in a pipeline counts half a kilobyte beside its data.
    /// All zero when nobody is connected.
    pub fn counters(&self) -> [u64; 4] {
        [
            self.peers.len() as u64,
            self.by_hash.len() as u64,
            self.reads.len() as u64,
            self.in_pipe,
        ]
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("peers", &self.peers)
            .field("in_pipe", &self.in_pipe)
            .finish_non_exhaustive()
    }
}
