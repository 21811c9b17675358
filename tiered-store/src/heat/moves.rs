//! Promotion and demotion between the disk and the cold tier: what moves, and when. A pure core: facts in, [`Move`]s out.
//!
//! Memory needs no moves: what is in it is on a lower tier too, so that leaving is free, and what enters was read by the user anyway;
//! its own policy decides ([`crate::memory`]). Between disk and cold every move costs I/O twice, so three brakes keep blocks from
//! going to and fro:
//!
//! - **hysteresis**: a cold block comes to a full disk only if its heat is above `(1 + hysteresis)` times that of the hottest block that
//!   had to leave last (the *cut*). Heats compare at any later time, so the cut stays valid;
//! - **thresholds**: it was read `promote_reads` times (decayed), and demotion starts at `demote_at_percent` and ends at
//!   `demote_to_percent`;
//! - **an I/O budget**: a token bucket of one second.
//!
//! The executor tells every read of a cold block ([`Moves::on_read`]), asks for the bytes that have to leave ([`Moves::demand`]), offers the
//! coldest blocks ([`Moves::on_coldest`]), carries out what [`Moves::poll_output`] says (copy, verify, flip, delete) and
//! reports each end ([`Moves::on_done`]). What was held back is asked for again with the next read or put.

use std::{collections::VecDeque, hash::Hash, time::Duration};

use hashbrown::HashMap;
use web_time::Instant;

use super::{Clock, Heat};
use crate::Policy;

/// Where a block can be besides memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    Disk,
    Cold,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move<K> {
    /// Copy it up.
    Promote { key: K, to: Tier },
    /// Copy it down and delete it above.
    Demote { key: K, to: Tier },
}

/// A block as the policy sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block<K> {
    pub(crate) key: K,
    pub(crate) bytes: u32,
    pub(crate) heat: Heat,
}

/// Room for blocks on the disk, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) used: u64,
    pub(crate) limit: u64,
}

impl Usage {
    fn is_above(self, percent: u8) -> bool {
        self.over(percent) > 0
    }

    /// Bytes above a share of the limit.
    fn over(self, percent: u8) -> u64 {
        self.used
            .saturating_sub(self.limit / 100 * u64::from(percent))
    }
}

/// What moved since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MoveStats {
    pub(crate) promotions: u64,
    pub(crate) promoted_bytes: u64,
    pub(crate) demotions: u64,
    pub(crate) demoted_bytes: u64,
    /// Moves that the executor could not carry out.
    pub(crate) failures: u64,
    /// Promotions that were refused for want of budget.
    pub(crate) throttled: u64,
}

/// Bytes of moves that may be under way; one move above it is still begun when nothing else is. The size of a large pack.
const MOST_UNDER_WAY: u64 = 64 * 1024 * 1024;
/// Blocks of moves that may be under way.
const MOST_BLOCKS_UNDER_WAY: usize = 16 * 1024;
/// Pause of demotion after a failure: doubles from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The decisions. `K` names a block.
#[derive(Debug)]
pub(crate) struct Moves<K> {
    policy: Policy,
    budget: Budget,
    outputs: VecDeque<Move<K>>,
    under_way: HashMap<K, (Tier, u32)>,
    under_way_bytes: u64,
    leaving_bytes: u64,
    /// Heat of the hottest block that had to leave the disk last.
    cut: Option<Heat>,
    /// The clock at the last read.
    seen: Clock,
    demoting: bool,
    paused_until: Option<Instant>,
    backoff: Duration,
    stats: MoveStats,
}

impl<K: Copy + Eq + Hash> Moves<K> {
    pub(crate) fn new(policy: Policy, now: Instant) -> Self {
        Moves {
            policy,
            budget: Budget::new(policy.move_bytes_per_second, now),
            outputs: VecDeque::new(),
            under_way: HashMap::new(),
            under_way_bytes: 0,
            leaving_bytes: 0,
            cut: None,
            seen: Clock::default(),
            demoting: false,
            paused_until: None,
            backoff: BACKOFF.0,
            stats: MoveStats::default(),
        }
    }

    /// A block was read from the cold tier; `block.heat` counts the read already. Asks for its promotion if it deserves it.
    pub(crate) fn on_read(&mut self, block: Block<K>, clock: &Clock, disk: Usage, now: Instant) {
        if clock.started_over(self.seen) {
            self.cut = self.cut.map(Clock::rebased);
        }
        self.seen = *clock;
        if clock.score(block.heat) < f64::from(self.policy.promote_reads)
            || self.under_way.contains_key(&block.key)
        {
            return;
        }
        let after = Usage {
            used: disk.used + u64::from(block.bytes),
            ..disk
        };
        let must_displace = after.is_above(self.policy.demote_to_percent);
        let least = |cut: Heat| cut + (1.0 + self.policy.hysteresis).log2();
        if must_displace && self.cut.is_some_and(|cut| block.heat < least(cut)) {
            return;
        }
        if !self.budget.allows(now) || !self.may_begin(block.bytes) {
            self.stats.throttled += 1;
            return;
        }
        self.begin(block, Tier::Disk);
    }

    /// Bytes that should leave the disk beyond those that are on their way; 0 until usage reaches `demote_at_percent`, then what is
    /// above `demote_to_percent`.
    pub(crate) fn demand(&mut self, disk: Usage, now: Instant) -> u64 {
        let to = disk.over(self.policy.demote_to_percent);
        self.demoting = to > 0 && (self.demoting || disk.is_above(self.policy.demote_at_percent));
        if !self.demoting || self.paused_until.is_some_and(|until| now < until) {
            return 0;
        }
        // A full disk does not wait for the budget.
        if disk.used < disk.limit && !self.budget.allows(now) {
            return 0;
        }
        to.saturating_sub(self.leaving_bytes)
    }

    /// The coldest blocks of the disk that may leave, coldest first, for [`demand`](Self::demand). Takes as many as fill it.
    pub(crate) fn on_coldest(&mut self, demand: u64, coldest: impl IntoIterator<Item = Block<K>>) {
        let mut taken = 0;
        for block in coldest {
            if taken >= demand || !self.may_begin(block.bytes) {
                break;
            }
            if self.under_way.contains_key(&block.key) {
                continue;
            }
            taken += u64::from(block.bytes);
            self.on_left(block.heat);
            self.begin(block, Tier::Cold);
        }
    }

    /// Blocks up to this heat left the disk: demoted, or evicted where there is no cold tier.
    pub(crate) fn on_left(&mut self, hottest: Heat) {
        self.cut = Some(self.cut.map_or(hottest, |cut| cut.max(hottest)));
    }

    /// The executor carried a move out, or could not.
    pub(crate) fn on_done(&mut self, key: &K, succeeded: bool, now: Instant) {
        let Some((to, bytes)) = self.under_way.remove(key) else {
            return;
        };
        let bytes = u64::from(bytes);
        self.under_way_bytes -= bytes;
        if to == Tier::Cold {
            self.leaving_bytes -= bytes;
        }
        match (succeeded, to) {
            (true, Tier::Disk) => {
                self.stats.promotions += 1;
                self.stats.promoted_bytes += bytes;
            }
            (true, Tier::Cold) => {
                self.stats.demotions += 1;
                self.stats.demoted_bytes += bytes;
                self.backoff = BACKOFF.0;
            }
            (false, Tier::Disk) => self.stats.failures += 1,
            (false, Tier::Cold) => {
                self.stats.failures += 1;
                if self.paused_until.is_none_or(|until| until <= now) {
                    self.paused_until = Some(now + self.backoff);
                    self.backoff = (self.backoff * 2).min(BACKOFF.1);
                }
            }
        }
    }

    /// What to do next.
    pub(crate) fn poll_output(&mut self) -> Option<Move<K>> {
        self.outputs.pop_front()
    }

    pub(crate) fn stats(&self) -> MoveStats {
        self.stats
    }

    fn may_begin(&self, bytes: u32) -> bool {
        self.under_way.is_empty()
            || (self.under_way_bytes + u64::from(bytes) <= MOST_UNDER_WAY
                && self.under_way.len() < MOST_BLOCKS_UNDER_WAY)
    }

    fn begin(&mut self, block: Block<K>, to: Tier) {
        let (key, bytes) = (block.key, u64::from(block.bytes));
        self.budget.spend(bytes);
        self.under_way.insert(key, (to, block.bytes));
        self.under_way_bytes += bytes;
        self.outputs.push_back(match to {
            Tier::Disk => Move::Promote { key, to },
            Tier::Cold => {
                self.leaving_bytes += bytes;
                Move::Demote { key, to }
            }
        });
    }
}

/// A token bucket of one second, which a move may overdraw once.
#[derive(Debug)]
struct Budget {
    per_second: f64,
    tokens: f64,
    at: Instant,
}

impl Budget {
    fn new(per_second: u64, now: Instant) -> Self {
        let per_second = per_second as f64;
        Budget {
            per_second,
            tokens: per_second,
            at: now,
        }
    }

    fn allows(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.tokens = (self.tokens + passed * self.per_second).min(self.per_second);
        self.tokens > 0.0
    }

    fn spend(&mut self, bytes: u64) {
        self.tokens -= bytes as f64;
    }
}

#[cfg(test)]
mod tests;
