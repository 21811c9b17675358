//! What others want from us, over time: the heat of blocks, and which of those we lack to fetch before
//! the next one asks.
//!
//! A peer's want is never passed on. What we fetch for others was wanted by several of them, or
//! assigned by the user, and is asked for when this node wants nothing itself.

mod heat;
mod prefetch;

use std::{sync::Arc, time::Duration};

use cid::Cid;
use libp2p_identity::PeerId;
use serde::Deserialize;
use web_time::Instant;

use self::{heat::Heat, prefetch::Prefetch};
use crate::Config;

/// What a node does for others beyond what it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Prefetches what many want, and what it is assigned.
    Master,
    /// Prefetches what it is assigned.
    #[default]
    Worker,
    /// Prefetches nothing, and sends nothing it was not asked for: a want-have is never answered with
    /// the block, and no descendants are pushed.
    Leecher,
}

impl Role {
    pub(crate) fn pushes(self) -> bool {
        self != Role::Leecher
    }
}

/// More than this priority, and [more requesters than that](SEED_REQUESTERS), make a block worth
/// prefetching (seed S2.37).
const SEED_PRIORITY: i32 = 3;
/// See [`SEED_PRIORITY`].
const SEED_REQUESTERS: usize = 2;

/// Who waits for a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Requested {
    /// Different peers.
    pub(super) peers: usize,
    /// The highest priority any of them gave it.
    pub(super) priority: i32,
}

/// What the demand core wants done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    Fetch(Cid),
    /// Enough of it.
    End(Cid),
}

/// The demand core.
#[derive(Debug)]
pub(super) struct Demand {
    role: Role,
    threshold: f64,
    heat: Heat,
    prefetch: Prefetch,
}

impl Demand {
    pub(super) fn new(config: &Config, seed: [u8; 32], now: Instant) -> Self {
        Self {
            role: config.role(),
            threshold: f64::from(config.prefetch_heat()),
            heat: Heat::new(
                config.max_heat_entries(),
                config.heat_half_life(),
                seed,
                now,
            ),
            prefetch: Prefetch::new(config),
        }
    }

    /// A peer asks for a block that it did not ask for before.
    pub(super) fn on_want(&mut self, peer: &PeerId, cid: &Arc<Cid>, now: Instant) {
        self.heat.touch(peer, cid, now);
    }

    /// Whether [`on_missing`](Self::on_missing) may make a difference.
    pub(super) fn wants_to_know(&self, cid: &Cid, now: Instant) -> bool {
        self.role == Role::Master && self.prefetch.may_add(cid, now)
    }

    /// Somebody asks for a block that we lack.
    pub(super) fn on_missing(&mut self, cid: &Arc<Cid>, requested: Requested, now: Instant) {
        let by_seed = requested.priority > SEED_PRIORITY && requested.peers > SEED_REQUESTERS;
        let by_heat = self.heat.of(cid, now) >= self.threshold;
        if self.wants_to_know(cid, now) && (by_seed || by_heat) {
            self.prefetch.add(cid);
        }
    }

    /// The last one who waited for it does so no more.
    pub(super) fn on_unwanted(&mut self, cid: &Cid) {
        self.prefetch.drop_waiting(cid);
    }

    /// A block is here.
    pub(super) fn on_have(&mut self, cid: &Cid) {
        self.prefetch.on_have(cid);
    }

    /// A fetch has succeeded.
    pub(super) fn on_fetched(&mut self, cid: &Cid, now: Instant) {
        self.prefetch.on_fetched(cid, now);
    }

    /// False: leechers take none, and others only so many.
    pub(super) fn assign(&mut self, cid: &Cid, now: Instant) -> bool {
        self.role != Role::Leecher && self.prefetch.assign(cid, now)
    }

    pub(super) fn unassign(&mut self, cid: &Cid) {
        self.prefetch.unassign(cid);
    }

    /// Blocks by heat, the hottest first.
    pub(super) fn hottest(&self, now: Instant) -> impl Iterator<Item = (&Cid, f64)> {
        self.heat.hottest(now)
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.prefetch.poll_timeout()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.prefetch.handle_timeout(now);
    }

    pub(super) fn poll_output(&mut self, now: Instant) -> Option<Output> {
        let heat = &self.heat;
        self.prefetch.poll_output(now, |cid| heat.rank(cid))
    }
}

/// How long a block that could not be had, or was fetched and not kept, is left alone.
const REST: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests;
