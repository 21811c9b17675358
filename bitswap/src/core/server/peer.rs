//! What the server knows about one connected peer: its wantlist, and what is on its way to it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
};

use cid::Cid;
use libp2p_identity::PeerId;
use web_time::Instant;

use crate::{
    Ledger,
    core::{ConnKey, paths::Paths},
    message::{Presence, WantType},
};

/// A peer, by a number that is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PeerKey(pub(super) u64);

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
    /// Waits for its turn.
    Ready(u32),
    /// Being read from the source.
    Reading,
}

#[derive(Debug)]
pub(super) struct Want {
    pub(super) seq: u64,
    pub(super) priority: i32,
    pub(super) kind: WantType,
    pub(super) send_dont_have: bool,
    pub(super) status: Status,
    pub(super) since: Instant,
    pub(super) refreshed: Instant,
    pub(super) descent: Descent,
}

/// Where a peer stands in the round robin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Had nothing to be sent for a whole round.
    Idle,
    /// In one of the rings.
    Queued,
    /// Has something to be sent, but its pipeline is full.
    Blocked,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) paths: Paths,
    /// Keyed by CID: v0 and v1 of one hash are different wants.
    pub(super) wants: HashMap<Cid, Want>,
    /// By age.
    pub(super) order: BTreeMap<u64, Cid>,
    ready: BTreeSet<(Reverse<i32>, u64)>,
    /// Wants that nothing can be sent for, the least important first.
    idle: BTreeSet<(i32, Reverse<u64>)>,
    pub(super) answers: VecDeque<Presence>,
    /// A batch of answers is on its way to the socket.
    pub(super) answering: bool,
    /// Bytes it may be sent before the next peer's turn.
    pub(super) deficit: u64,
    pub(super) weight: f64,
    pub(super) turn: Turn,
    /// Bytes being read or handed to a connection.
    pub(super) in_pipe: u64,
    /// Bytes handed to connections.
    pub(super) handed: BTreeMap<ConnKey, u64>,
    /// When a connection last took something.
    pub(super) taken_at: Instant,
    /// It did not for too long, while others waited.
    pub(super) stuck: bool,
    pub(super) ledger: Ledger,
}

impl Peer {
    pub(super) fn new(id: PeerId, weight: f64, ledger: Ledger, now: Instant) -> Self {
        Self {
            id,
            paths: Paths::default(),
            wants: HashMap::new(),
            order: BTreeMap::new(),
            ready: BTreeSet::new(),
            idle: BTreeSet::new(),
            answers: VecDeque::new(),
            answering: false,
            deficit: 0,
            weight,
            turn: Turn::Idle,
            in_pipe: 0,
            handed: BTreeMap::new(),
            taken_at: now,
            stuck: false,
            ledger,
        }
    }

    pub(super) fn insert(&mut self, cid: Cid, want: Want) {
        self.order.insert(want.seq, cid);
        let (seq, status) = (want.seq, want.status);
        let priority = want.priority;
        self.wants.insert(cid, want);
        self.list(seq, priority, status);
    }

    pub(super) fn remove(&mut self, cid: &Cid) -> Option<Want> {
        let want = self.wants.remove(cid)?;
        self.order.remove(&want.seq);
        self.unlist(want.seq, want.priority);
        Some(want)
    }

    /// Changes status and priority; the lists follow.
    pub(super) fn set(&mut self, cid: &Cid, status: Status, priority: i32) {
        if let Some(want) = self.wants.get_mut(cid) {
            let (seq, old) = (want.seq, want.priority);
            want.status = status;
            want.priority = priority;
            self.unlist(seq, old);
            self.list(seq, priority, status);
        }
    }

    fn list(&mut self, seq: u64, priority: i32, status: Status) {
        match status {
            Status::Ready(_) => {
                self.ready.insert((Reverse(priority), seq));
            }
            Status::Reading => {}
            Status::Absent | Status::Told | Status::Withheld => {
                self.idle.insert((priority, Reverse(seq)));
            }
        }
    }

    fn unlist(&mut self, seq: u64, priority: i32) {
        self.ready.remove(&(Reverse(priority), seq));
        self.idle.remove(&(priority, Reverse(seq)));
    }

    /// The next want to be served, with its size.
    pub(super) fn next_ready(&self) -> Option<(Cid, u32)> {
        let (_, seq) = self.ready.first()?;
        let cid = self.order.get(seq)?;
        match self.wants.get(cid)?.status {
            Status::Ready(size) => Some((*cid, size)),
            _ => None,
        }
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The want to give up for a new one of `priority`: the least important of those nothing can be
    /// sent for, else the least important of the others if the new one beats it.
    pub(super) fn victim(&self, priority: i32, new_is_ready: bool) -> Option<Cid> {
        let idle = self
            .idle
            .first()
            .filter(|(least, _)| new_is_ready || *least < priority);
        let seq = match idle {
            Some((_, Reverse(seq))) => *seq,
            None if new_is_ready => {
                let (Reverse(least), seq) = self.ready.last()?;
                (*least < priority).then_some(*seq)?
            }
            None => return None,
        };
        self.order.get(&seq).copied()
    }

    /// Bytes being read: in the pipeline, but with no connection yet.
    pub(super) fn reading(&self) -> u64 {
        self.in_pipe.saturating_sub(self.handed.values().sum())
    }

    /// How many wants are ready.
    pub(super) fn ready_count(&self) -> usize {
        self.ready.len()
    }
}
