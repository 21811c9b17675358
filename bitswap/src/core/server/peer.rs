//! What the server knows about one connected peer: its wantlist, and what is on its way to it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, VecDeque},
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
    /// Bytes being read or handed to a connection.
    pub(super) in_pipe: u64,
    /// Bytes handed to connections.
    pub(super) handed: BTreeMap<ConnKey, u64>,
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

    /// Bytes being read: in the pipeline, but with no connection yet.
    pub(super) fn reading(&self) -> u64 {
        self.in_pipe.saturating_sub(self.handed.values().sum())
    }
}
