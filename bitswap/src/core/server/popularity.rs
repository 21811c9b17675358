//! Where the wantlists meet [`demand`](crate::core::demand): what is asked for is counted, and what is
//! missing may be fetched.

use std::sync::Arc;

use cid::Cid;
use web_time::Instant;

use super::{Lookup, Output, Server, peer::PeerKey};
use crate::{
    MostWanted, Priority,
    core::demand::{self, Requested},
};

/// Requesters looked at to see whether there are enough.
const MAX_COUNTED: usize = 64;

impl Server {
    /// What was asked for most, lately, whether we have it or not: at most `limit`, the hottest first.
    pub fn most_wanted(&self, limit: usize, lookup: Lookup<'_>, now: Instant) -> Vec<MostWanted> {
        let hottest = self.demand.hottest(now).take(limit);
        hottest
            .map(|(cid, heat)| {
                let requested = self.requested(cid, usize::MAX);
                MostWanted {
                    cid: *cid,
                    heat,
                    requesters: requested.peers,
                    priority: Priority(requested.priority),
                    have: lookup(cid).is_some(),
                }
            })
            .collect()
    }

    /// Blocks to be fetched when there is nothing better to do, until they are here or `unassign` is
    /// called. How many were accepted: those we have are not, nor more than `max_assigned` in all.
    pub fn assign(&mut self, cids: &[Cid], lookup: Lookup<'_>, now: Instant) -> usize {
        self.now = now;
        self.dirty = true;
        let missing = cids.iter().filter(|cid| lookup(cid).is_none());
        missing.filter(|cid| self.demand.assign(cid, now)).count()
    }

    /// Takes assignments back.
    pub fn unassign(&mut self, cids: &[Cid], now: Instant) {
        self.now = now;
        self.dirty = true;
        for cid in cids {
            self.demand.unassign(cid);
        }
    }

    /// A block that was prefetched has come, and the user is done with it.
    pub fn on_prefetched(&mut self, cid: &Cid, now: Instant) {
        self.now = now;
        self.dirty = true;
        self.demand.on_fetched(cid, now);
    }

    /// A peer asks for a block that it did not ask for before.
    pub(super) fn count_demand(&mut self, key: PeerKey, cid: &Arc<Cid>) {
        if let Some(peer) = self.peers.get(&key) {
            self.demand.on_want(&peer.id, cid, self.now);
        }
    }

    /// Somebody asks for a block that we lack.
    pub(super) fn consider_prefetch(&mut self, cid: &Arc<Cid>) {
        if self.demand.wants_to_know(cid, self.now) {
            let requested = self.requested(cid, MAX_COUNTED);
            self.demand.on_missing(cid, requested, self.now);
            self.dirty = true;
        }
    }

    fn requested(&self, cid: &Cid, at_most: usize) -> Requested {
        let mut requested = Requested::default();
        let mut last = None;
        let wants = self.by_hash.get(cid.hash()).into_iter().flatten();
        for (key, want) in wants.take(at_most) {
            // Sorted by peer: v0 and v1 of one peer are one requester.
            requested.peers += usize::from(last != Some(*key));
            last = Some(*key);
            if let Some(want) = self.peers.get(key).and_then(|peer| peer.wants.get(want)) {
                requested.priority = requested.priority.max(want.priority);
            }
        }
        requested
    }

    pub(super) fn poll_demand(&mut self) {
        while let Some(output) = self.demand.poll_output(self.now) {
            self.outputs.push_back(match output {
                demand::Output::Fetch(cid) => Output::Prefetch(cid),
                demand::Output::End(cid) => Output::EndPrefetch(cid),
            });
        }
    }
}
