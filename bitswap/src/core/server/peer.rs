//! What the server knows about one connected peer: its wantlist, and what is on its way to it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use cid::Cid;
use libp2p_identity::PeerId;
use web_time::Instant;

use super::{Standing, shaper::Class};
use crate::{
    Ledger,
    core::{ConnKey, paths::Paths},
    message::WantType,
};

/// A peer, by a number that is never used again. Nothing is ordered by `PeerId`: ids can be mined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PeerKey(pub(super) u64);

/// A want of one peer; a later one has a greater number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct WantKey(pub(super) u64);

/// Descendants still to be pushed after a block.
#[derive(Debug, Default)]
pub(super) struct Descent {
    pub(super) left: u32,
    /// Links not followed yet, the next one last.
    pub(super) stack: Vec<Cid>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// We lack the block.
    Absent,
    /// Answered with HAVE.
    Told,
    /// We have it, but it does not fit the circuit that is the only way to the peer.
    Withheld,
    /// Waits for its turn; so many bytes.
    Ready(u32),
    /// Being read from the source.
    Reading,
}

/// There may be a thousand of these for every peer: kept small.
#[derive(Debug)]
pub(super) struct Want {
    /// One CID is kept once, whoever wants it.
    pub(super) cid: Arc<Cid>,
    pub(super) priority: i32,
    pub(super) kind: WantType,
    pub(super) send_dont_have: bool,
    pub(super) status: Status,
    /// In seconds of the server's life.
    pub(super) since: u32,
    pub(super) refreshed: u32,
    pub(super) descent: Option<Box<Descent>>,
}

/// Where a peer stands in the round robin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Had nothing to be sent for a whole round.
    Idle,
    /// In the ring of its class.
    Queued,
    /// Has something to be sent, but its pipeline is full.
    Blocked,
}

/// What a block in a pipeline counts beside its data, so that empty ones are bounded too: what we
/// keep of it here and at the connection, roughly.
const BLOCK_BYTES: u64 = 512;

/// What so many blocks of together so many bytes count in a pipeline.
pub(super) fn weight(blocks: u64, bytes: u64) -> u64 {
    bytes + blocks * BLOCK_BYTES
}

/// Blocks handed to one connection and not written, in the order in which they will be.
#[derive(Debug, Default)]
pub(super) struct Handed {
    bytes: u64,
    hasher: RandomState,
    /// Hashes of their CIDs, which take less.
    order: VecDeque<u64>,
    /// The same, to be found.
    known: HashSet<u64>,
}

impl Handed {
    pub(super) fn push(&mut self, cid: &Cid, bytes: u64) {
        self.bytes += bytes;
        let hash = self.hasher.hash_one(cid);
        self.known.insert(hash);
        self.order.push_back(hash);
    }

    /// Whether it is probably among them.
    pub(super) fn contains(&self, cid: &Cid) -> bool {
        self.known.contains(&self.hasher.hash_one(cid))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Bytes of data.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn weight(&self) -> u64 {
        weight(self.order.len() as u64, self.bytes)
    }

    /// The first so many are written. Returns their weight.
    pub(super) fn written(&mut self, blocks: u64, bytes: u64) -> u64 {
        let before = self.weight();
        for _ in 0..blocks {
            if let Some(hash) = self.order.pop_front() {
                self.known.remove(&hash);
            }
        }
        self.bytes = self.bytes.saturating_sub(bytes);
        before.saturating_sub(self.weight())
    }

    /// One of them will not be. Returns its weight.
    pub(super) fn taken_back(&mut self, cid: &Cid, bytes: u64) -> u64 {
        let before = self.weight();
        let hash = self.hasher.hash_one(cid);
        let at = self.order.iter().position(|other| *other == hash);
        // Where the order was another one than we thought, their number is right still.
        self.order.remove(at.unwrap_or(0));
        self.known.remove(&hash);
        self.bytes = self.bytes.saturating_sub(bytes);
        before.saturating_sub(self.weight())
    }
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) paths: Paths,
    pub(super) wants: BTreeMap<WantKey, Want>,
    ready: BTreeSet<(Reverse<i32>, WantKey)>,
    ready_bytes: u64,
    /// Wants that nothing can be sent for, the least important first.
    idle: BTreeSet<(i32, Reverse<WantKey>)>,
    /// Wants with descendants to be pushed.
    descents: usize,
    pub(super) answers: VecDeque<(Arc<Cid>, bool)>,
    /// A batch of answers is on its way to the socket.
    pub(super) answering: bool,
    /// Bytes it may be sent before the next peer's turn; below zero it has had more than its share.
    pub(super) deficit: i64,
    pub(super) weight: f64,
    pub(super) class: Class,
    pub(super) turn: Turn,
    /// [`weight`] of what is being read or handed to a connection.
    pub(super) in_pipe: u64,
    /// Bytes being read: in the pipeline, but with no connection yet.
    pub(super) reading: u64,
    /// What is handed to connections; none of these is empty.
    pub(super) handed: BTreeMap<ConnKey, Handed>,
    /// When a connection last took something, or began to have something to take.
    pub(super) taken_at: Instant,
    /// Bytes it had taken then, those of a second before counting 1/e.
    taken: f64,
    /// It did not for too long, while the pipelines were filling up.
    pub(super) stuck: bool,
    pub(super) ledger: Ledger,
}

impl Peer {
    pub(super) fn new(id: PeerId, standing: Standing, ledger: Ledger, now: Instant) -> Self {
        Self {
            id,
            paths: Paths::default(),
            wants: BTreeMap::new(),
            ready: BTreeSet::new(),
            ready_bytes: 0,
            idle: BTreeSet::new(),
            descents: 0,
            answers: VecDeque::new(),
            answering: false,
            deficit: 0,
            weight: standing.weight,
            class: standing.class,
            turn: Turn::Idle,
            in_pipe: 0,
            reading: 0,
            handed: BTreeMap::new(),
            taken_at: now,
            taken: 0.0,
            stuck: false,
            ledger,
        }
    }

    pub(super) fn insert(&mut self, key: WantKey, want: Want) {
        let (priority, status) = (want.priority, want.status);
        self.descents += usize::from(want.descent.is_some());
        self.wants.insert(key, want);
        self.list(key, priority, status);
    }

    pub(super) fn remove(&mut self, key: WantKey) -> Option<Want> {
        let want = self.wants.remove(&key)?;
        self.descents -= usize::from(want.descent.is_some());
        self.unlist(key, want.priority, want.status);
        Some(want)
    }

    /// Changes status and priority; the lists follow.
    pub(super) fn set(&mut self, key: WantKey, status: Status, priority: i32) {
        if let Some(want) = self.wants.get_mut(&key) {
            let old = (want.priority, want.status);
            (want.status, want.priority) = (status, priority);
            self.unlist(key, old.0, old.1);
            self.list(key, priority, status);
        }
    }

    /// Gives a want descendants to be pushed after its block.
    pub(super) fn set_descent(&mut self, key: WantKey, descent: Box<Descent>) {
        if let Some(want) = self.wants.get_mut(&key) {
            self.descents += usize::from(want.descent.is_none());
            want.descent = Some(descent);
        }
    }

    fn list(&mut self, key: WantKey, priority: i32, status: Status) {
        match status {
            Status::Ready(bytes) => {
                self.ready.insert((Reverse(priority), key));
                self.ready_bytes += u64::from(bytes);
            }
            Status::Reading => {}
            Status::Absent | Status::Told | Status::Withheld => {
                self.idle.insert((priority, Reverse(key)));
            }
        }
    }

    fn unlist(&mut self, key: WantKey, priority: i32, status: Status) {
        if let Status::Ready(bytes) = status {
            self.ready.remove(&(Reverse(priority), key));
            self.ready_bytes -= u64::from(bytes);
        } else {
            self.idle.remove(&(priority, Reverse(key)));
        }
    }

    /// The next want to be served, with its size.
    pub(super) fn next_ready(&self) -> Option<(WantKey, u32)> {
        let (_, key) = self.ready.first()?;
        match self.wants.get(key)?.status {
            Status::Ready(bytes) => Some((*key, bytes)),
            _ => None,
        }
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Bytes of the blocks that wait for their turn.
    pub(super) fn ready_bytes(&self) -> u64 {
        self.ready_bytes
    }

    /// Wants with descendants to be pushed.
    pub(super) fn descents(&self) -> usize {
        self.descents
    }

    /// The want to give up for a new one of `priority`: the least important of those nothing can be
    /// sent for, else the least important of the others if the new one beats it.
    pub(super) fn victim(&self, priority: i32, new_is_ready: bool) -> Option<WantKey> {
        let idle = self
            .idle
            .first()
            .filter(|(least, _)| new_is_ready || *least < priority);
        match idle {
            Some((_, Reverse(key))) => Some(*key),
            None if new_is_ready => {
                let (Reverse(least), key) = self.ready.last()?;
                (*least < priority).then_some(*key)
            }
            None => None,
        }
    }

    /// Bytes that connections took in about the last second.
    pub(super) fn taken_lately(&self, now: Instant) -> u64 {
        let age = now.saturating_duration_since(self.taken_at);
        (self.taken * (-age.as_secs_f64()).exp()) as u64
    }

    /// A connection took something.
    pub(super) fn on_taken(&mut self, bytes: u64, now: Instant) {
        self.taken = (self.taken_lately(now) + bytes) as f64;
        self.taken_at = now;
        self.stuck = false;
    }

    /// A connection has something to take, after there was nothing.
    pub(super) fn on_first_handed(&mut self, now: Instant) {
        self.taken = self.taken_lately(now) as f64;
        self.taken_at = now;
    }
}
