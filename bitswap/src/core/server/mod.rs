//! The server: what to send to which peer, and when.
//!
//! Peers share the upload by byte-deficit round robin (Shreedhar and Varghese 1995), with peers that
//! have just become active served first (as in RFC 8290, FQ-CoDel): a peer that wants one block
//! does not queue behind those that want thousands. Inside a peer, priority and then age decide.
//! Blocks are read a few megabytes ahead of the socket, never more.

mod connections;
mod ledgers;
mod peer;
mod pipeline;
mod turns;
mod wantlists;

use std::collections::{BTreeMap, HashMap, VecDeque};

use cid::{Cid, multihash::Multihash};
use hashlink::LinkedHashMap;
use libp2p_identity::PeerId;
use smallvec::SmallVec;
use web_time::Instant;

use self::peer::{Peer, PeerKey, Status};
use super::ConnKey;
use crate::{Block, Config, Ledger, message::Presence};

/// Answers in one batch.
const ANSWER_BATCH: usize = 1024;

/// Tells the size of a block if we have it.
pub type Lookup<'a> = &'a dyn Fn(&Cid) -> Option<u32>;

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
}

#[derive(Debug)]
struct Read {
    peer: PeerKey,
    cid: Cid,
    size: u64,
}

/// The server core.
#[derive(Debug)]
pub struct Server {
    config: Config,
    now: Instant,
    next_id: u64,
    keys: HashMap<PeerId, PeerKey>,
    peers: BTreeMap<PeerKey, Peer>,
    /// Who wants a hash: the peer, and the number of its want.
    by_hash: HashMap<Multihash<64>, SmallVec<[(PeerKey, u64); 1]>>,
    reads: HashMap<ReadId, Read>,
    /// Peers with something to be sent: those that just became so, and the others.
    fresh: VecDeque<PeerKey>,
    old: VecDeque<PeerKey>,
    in_pipe: u64,
    sweep_at: Instant,
    dirty: bool,
    outputs: VecDeque<Output>,
    /// Of peers that are gone, the longest gone first.
    ledgers: LinkedHashMap<PeerId, Ledger>,
    weights: LinkedHashMap<PeerId, f64>,
}

impl Server {
    /// A server without peers.
    pub fn new(config: Config, now: Instant) -> Self {
        Self {
            sweep_at: now + config.want_ttl() / 4,
            config,
            now,
            next_id: 0,
            keys: HashMap::new(),
            peers: BTreeMap::new(),
            by_hash: HashMap::new(),
            reads: HashMap::new(),
            fresh: VecDeque::new(),
            old: VecDeque::new(),
            in_pipe: 0,
            dirty: false,
            outputs: VecDeque::new(),
            ledgers: LinkedHashMap::new(),
            weights: LinkedHashMap::new(),
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    // ---- time and outputs ----

    /// When old wants are looked for next, or room is to be taken from a stuck peer.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sweep = (!self.by_hash.is_empty()).then_some(self.sweep_at);
        sweep.into_iter().chain(self.reclaim_at()).min()
    }

    /// Time has passed: wants nobody renewed or cancelled for `want_ttl` are forgotten.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        self.dirty |= self.reclaim_at().is_some_and(|at| at <= now);
        if now < self.sweep_at {
            return;
        }
        let ttl = self.config.want_ttl();
        self.sweep_at = now + ttl / 4;
        let mut expired: Vec<(PeerKey, Cid)> = Vec::new();
        for (key, peer) in &self.peers {
            let old = peer.order.values().filter(|cid| {
                peer.wants.get(*cid).is_some_and(|want| {
                    want.status != Status::Reading && want.refreshed + ttl <= now
                })
            });
            expired.extend(old.map(|cid| (*key, *cid)));
        }
        for (key, cid) in expired {
            self.forget(key, &cid);
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
        for peer in self.peers.values_mut() {
            if peer.answering || peer.answers.is_empty() {
                continue;
            }
            if let Some((conn, _)) = peer.paths.best() {
                let batch = peer.answers.len().min(ANSWER_BATCH);
                peer.answering = true;
                self.outputs.push_back(Output::Presences {
                    peer: peer.id,
                    conn,
                    presences: peer.answers.drain(..batch).collect(),
                });
            }
        }
        self.outputs.pop_front()
    }

    /// Bytes handed to a connection and not written.
    pub fn serving_on(&self, peer: &PeerId, conn: ConnKey) -> u64 {
        let peer = self.keys.get(peer).and_then(|key| self.peers.get(key));
        peer.and_then(|peer| peer.handed.get(&conn))
            .copied()
            .unwrap_or(0)
    }

    /// Whether a peer wants anything.
    pub fn is_busy(&self, peer: &PeerId) -> bool {
        let peer = self.keys.get(peer).and_then(|key| self.peers.get(key));
        peer.is_some_and(|peer| {
            !peer.wants.is_empty() || peer.in_pipe > 0 || !peer.answers.is_empty()
        })
    }

    /// Sizes of all collections: `[peers, wanted hashes, reads, bytes in pipelines]`. All zero
    /// when nobody is connected.
    pub fn counters(&self) -> [u64; 4] {
        [
            self.peers.len() as u64,
            self.by_hash.len() as u64,
            self.reads.len() as u64,
            self.in_pipe,
        ]
    }
}
