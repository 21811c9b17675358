//! What is remembered of those who left, so that their old messages do not bring them back.

use std::collections::{BTreeMap, BTreeSet};

use libp2p_identity::PeerId;
use web_time::Instant;

#[derive(Debug)]
pub(super) struct Departed<T> {
    max: usize,
    peers: BTreeMap<PeerId, (Instant, T)>,
    by_end: BTreeSet<(Instant, PeerId)>,
}

impl<T> Departed<T> {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            peers: BTreeMap::new(),
            by_end: BTreeSet::new(),
        }
    }

    /// Remembers `peer` until then; in a full memory in place of the one whose time ends first.
    pub(super) fn insert(&mut self, peer: PeerId, until: Instant, past: T) {
        self.take(&peer);
        if self.peers.len() >= self.max
            && let Some((_, first)) = self.by_end.pop_first()
        {
            self.peers.remove(&first);
        }
        self.by_end.insert((until, peer));
        self.peers.insert(peer, (until, past));
    }

    pub(super) fn get_mut(&mut self, peer: &PeerId) -> Option<&mut T> {
        self.peers.get_mut(peer).map(|(_, past)| past)
    }

    pub(super) fn take(&mut self, peer: &PeerId) -> Option<T> {
        let (until, past) = self.peers.remove(peer)?;
        self.by_end.remove(&(until, *peer));
        Some(past)
    }

    /// Forgets those whose time is over.
    pub(super) fn forget(&mut self, now: Instant) {
        while let Some((until, peer)) = self.by_end.first().copied()
            && until <= now
        {
            self.take(&peer);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }
}
