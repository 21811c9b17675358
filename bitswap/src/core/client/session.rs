//! One session: its wants by phase, its peers, what it knows about block sizes.

use std::collections::{BTreeMap, BTreeSet};

use hashlink::LinkedHashSet;
use libp2p_identity::PeerId;

use super::{
    peer::PeerKey,
    stash::Stash,
    wants::{NONE, Phase, Rank, WantId},
};
use crate::SessionOptions;

/// Peers that are not connected but would be asked if they were; the ones met longest ago go first.
const MAX_EXPECTED: usize = 256;
/// A peer that says DONT_HAVE so often in a row leaves the session (boxo: 16) …
const MAX_MISSES: u32 = 16;
/// … or so often if it had a block of this session before.
const MAX_MISSES_OF_USEFUL: u32 = 64;
/// So many blocks of a session may be smaller than those that follow; until then a block is taken to
/// weigh this part of what is assumed at least.
const INDEX_BLOCKS: u32 = 8;
const INDEX_SHARE: u32 = 8;
/// Bytes: no block is taken to be smaller, so that windows and budgets bound the number of requests.
const MIN_ESTIMATE: u32 = 64;
/// Weight of the newest answer in a member's hit rate.
const NEWEST: f64 = 0.25;

/// What a session knows about one of its peers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    /// DONT_HAVEs in a row.
    misses: u32,
    useful: bool,
    /// Share of the session's wants that it had, lately. A new one is believed to have all.
    pub(super) hit_rate: f64,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) options: SessionOptions,
    /// The first want takes `options.descend`.
    pub(super) started: bool,
    /// First wish of its list.
    pub(super) first: u32,
    /// Wants to be asked of one of `members`.
    pub(super) pending: BTreeSet<Rank>,
    /// Where the last scan of `pending` ended.
    pub(super) scanned: Option<Rank>,
    /// Wants that wait for a search: those searched for least often first.
    pub(super) waiting: BTreeSet<(u8, Rank)>,
    pub(super) searching: BTreeSet<WantId>,
    resting: BTreeSet<WantId>,
    /// Peers that probably have what the session wants.
    pub(super) members: BTreeMap<PeerKey, Member>,
    expected: LinkedHashSet<PeerId>,
    pub(super) stash: Stash,
    blocks: u32,
    average_bytes: Option<f64>,
    largest_bytes: u64,
    /// What blocks on order are charged with; `None`: what is assumed of blocks.
    pub(super) priced: Option<u64>,
    /// Bytes of blocks received, and bytes asked of a second peer while the first may send them.
    pub(super) received: u64,
    pub(super) hedged: u64,
}

impl Session {
    pub(super) fn new(options: SessionOptions) -> Self {
        Self {
            options,
            started: false,
            first: NONE,
            pending: BTreeSet::new(),
            scanned: None,
            waiting: BTreeSet::new(),
            searching: BTreeSet::new(),
            resting: BTreeSet::new(),
            members: BTreeMap::new(),
            expected: LinkedHashSet::new(),
            stash: Stash::default(),
            blocks: 0,
            average_bytes: None,
            largest_bytes: 0,
            priced: None,
            received: 0,
            hedged: 0,
        }
    }

    pub(super) fn enter(&mut self, phase: Phase, rounds: u8, rank: Rank) {
        match phase {
            Phase::Pending => _ = self.pending.insert(rank),
            Phase::Waiting => _ = self.waiting.insert((rounds, rank)),
            Phase::Searching => _ = self.searching.insert(rank.2),
            Phase::Resting => _ = self.resting.insert(rank.2),
            Phase::Asked | Phase::Closed => {}
        }
    }

    pub(super) fn leave(&mut self, phase: Phase, rounds: u8, rank: Rank) {
        match phase {
            Phase::Pending => _ = self.pending.remove(&rank),
            Phase::Waiting => _ = self.waiting.remove(&(rounds, rank)),
            Phase::Searching => _ = self.searching.remove(&rank.2),
            Phase::Resting => _ = self.resting.remove(&rank.2),
            Phase::Asked | Phase::Closed => {}
        }
    }

    /// Wants that no member was likely to have.
    pub(super) fn parked(&self) -> impl Iterator<Item = WantId> + '_ {
        let waiting = self.waiting.iter().map(|(_, (_, _, id))| *id);
        waiting
            .chain(self.searching.iter().copied())
            .chain(self.resting.iter().copied())
    }

    /// Whether wants wait for their turn to be searched.
    pub(super) fn wants_search(&self) -> bool {
        !self.waiting.is_empty() || (self.members.is_empty() && !self.pending.is_empty())
    }

    /// What the next block is taken to weigh.
    pub(super) fn estimate(&self, assumed: u32) -> u64 {
        // The first ones may be an index, and what it leads to large.
        let least = match self.blocks < INDEX_BLOCKS {
            true => assumed / INDEX_SHARE,
            false => MIN_ESTIMATE,
        };
        self.average_bytes
            .map_or(u64::from(assumed), |bytes| (bytes as u64).max(least.into()))
    }

    /// The most a block of this session has weighed; 0 if none came yet. On a limited circuit the
    /// next one is taken to be as large, and the first one to be small: an index block.
    pub(super) fn cautious_estimate(&self) -> u64 {
        self.largest_bytes
    }

    pub(super) fn on_block(&mut self, from: PeerKey, bytes: u64) {
        self.largest_bytes = self.largest_bytes.max(bytes);
        self.received += bytes;
        self.blocks = self.blocks.saturating_add(1);
        let bytes = bytes as f64;
        self.average_bytes = Some(
            self.average_bytes
                .map_or(bytes, |old| old + (bytes - old) / 8.0),
        );
        self.on_hit(from);
        if let Some(member) = self.members.get_mut(&from) {
            member.useful = true;
        }
    }

    /// Whether the peer was none of its members.
    pub(super) fn join(&mut self, key: PeerKey) -> bool {
        let member = Member {
            misses: 0,
            useful: false,
            hit_rate: 1.0,
        };
        let known = self.members.len();
        self.members.entry(key).or_insert(member);
        self.members.len() > known
    }

    pub(super) fn on_hit(&mut self, key: PeerKey) {
        if let Some(member) = self.members.get_mut(&key) {
            member.misses = 0;
            member.hit_rate += (1.0 - member.hit_rate) * NEWEST;
        }
    }

    /// Whether the peer shall leave the session.
    pub(super) fn on_miss(&mut self, key: PeerKey) -> bool {
        self.members.get_mut(&key).is_some_and(|member| {
            member.misses += 1;
            member.hit_rate -= member.hit_rate * NEWEST;
            let most = match member.useful {
                true => MAX_MISSES_OF_USEFUL,
                false => MAX_MISSES,
            };
            member.misses >= most
        })
    }

    pub(super) fn expect(&mut self, peer: PeerId) {
        self.expected.insert(peer);
        while self.expected.len() > MAX_EXPECTED {
            self.expected.pop_front();
        }
    }

    /// Whether the peer, now connected, was expected.
    pub(super) fn met(&mut self, peer: &PeerId) -> bool {
        self.expected.remove(peer)
    }
}
