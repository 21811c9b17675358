//! One session: its wants by state, its peers, what it knows about block sizes.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use libp2p_identity::PeerId;

use super::{WantId, peer::PeerKey, stash::Stash};
use crate::{SessionOptions, Ticket};

/// Peers that are not connected but would be asked if they were.
const MAX_EXPECTED: usize = 256;
/// A peer that says DONT_HAVE so often in a row leaves the session (boxo: 16).
const MAX_MISSES: u32 = 16;

/// Position in the queue: priority, then age.
pub(super) type Rank = (Reverse<i32>, WantId);

#[derive(Debug)]
pub(super) struct Session {
    pub(super) options: SessionOptions,
    /// The first want takes `options.descend`.
    pub(super) started: bool,
    pub(super) tickets: BTreeSet<Ticket>,
    /// Wants to be asked of one of `peers`.
    pub(super) pending: BTreeSet<Rank>,
    /// Wants that no connected peer is likely to have.
    pub(super) searching: BTreeSet<WantId>,
    /// Peers that probably have what the session wants, with their DONT_HAVEs in a row.
    pub(super) peers: BTreeMap<PeerKey, u32>,
    expected: BTreeSet<PeerId>,
    pub(super) stash: Stash,
    average_bytes: Option<f64>,
    largest_bytes: u64,
}

impl Session {
    pub(super) fn new(options: SessionOptions) -> Self {
        Self {
            options,
            started: false,
            tickets: BTreeSet::new(),
            pending: BTreeSet::new(),
            searching: BTreeSet::new(),
            peers: BTreeMap::new(),
            expected: BTreeSet::new(),
            stash: Stash::default(),
            average_bytes: None,
            largest_bytes: 0,
        }
    }

    /// What the next block is taken to weigh.
    pub(super) fn estimate(&self, assumed: u32) -> u64 {
        self.average_bytes
            .map_or(u64::from(assumed), |bytes| bytes.max(64.0) as u64)
    }

    /// The most a block of this session has weighed; 0 if none came yet. On a limited circuit the
    /// next one is taken to be as large, and the first one to be small: an index block.
    pub(super) fn cautious_estimate(&self) -> u64 {
        self.largest_bytes
    }

    pub(super) fn on_block(&mut self, bytes: u64) {
        self.largest_bytes = self.largest_bytes.max(bytes);
        let bytes = bytes as f64;
        self.average_bytes = Some(
            self.average_bytes
                .map_or(bytes, |old| old + (bytes - old) / 8.0),
        );
    }

    /// Whether the peer shall leave the session.
    pub(super) fn on_miss(&mut self, peer: PeerKey) -> bool {
        self.peers.get_mut(&peer).is_some_and(|misses| {
            *misses += 1;
            *misses >= MAX_MISSES
        })
    }

    pub(super) fn expect(&mut self, peer: PeerId) {
        if self.expected.len() < MAX_EXPECTED {
            self.expected.insert(peer);
        }
    }

    /// Whether the peer, now connected, was expected.
    pub(super) fn met(&mut self, peer: &PeerId) -> bool {
        self.expected.remove(peer)
    }
}
