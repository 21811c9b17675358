//! Heat: how much a block is worth keeping, in one number.
//!
//! Every read adds 1 to a block's score (a put adds what its [`Importance`](crate::Importance) and class are worth), and all scores
//! halve every *half-life*: frequency, recency and age in one. The clock counts accesses, not seconds, so an idle store does not cool down.
//! Halving all scores at every access would touch every block; forward decay (Cormode et al. 2009) turns it round and stores
//! `heat = log2(score) + now`, `now` in half-lives, in one `f32`. Two heats compare at any later time without a recount:
//!
//! ```text
//! new block:  heat = log2(reads it counts as) + now
//! read:       heat = log2(2^(heat − now) + 1) + now
//! access:     now += 1 / (half-life × blocks that the tier keeps)
//! ```
//!
//! As `now` is the sum of the steps, the half-life may change at any time and old heats stay valid.
//!
//! # Who uses it
//!
//! - The **disk** keeps one heat for each block, with a half-life of 16 accesses per block; the coldest are evicted, or demoted where
//!   there is a cold tier. Pinned blocks are never evicted, whatever their heat.
//! - The **cold tier** gives a block back to the disk by the thresholds of [`Policy`](crate::Policy), which also say how a new block is placed.
//! - **Memory** has a policy of its own on the same formula, which follows.
//!
//! # The memory tier
//!
//! A new block enters a window in order of use. What falls out of the window enters the main part if nine tenths of its score are
//! at least the sum of the scores of the coldest blocks that would have to go for it; otherwise it leaves. So a scan passes through. Blocks
//! of the main part leave in order of `heat − ½·log2(bytes)`, half way between saving requests and saving bytes. The heat of what left is
//! remembered, for four times as many blocks as are kept, in 8 bytes each.
//!
//! The window's share and the half-life adapt: six small copies of the policy run on a sample of the keys, one for each setting
//! ((5 %, 4), (5 %, 16), (5 %, 64), (20 %, 16), (20 %, 64), (50 %, 16)), and the setting whose copy hits most is used. Each copy holds 128 to 256
//! blocks; all together take at most a 64th of the tier.
//!
//! What is fixed, and why: ghosts for four times the blocks kept (all history was not better), six settings (a finer grid won less than
//! 0.1 points), 256 blocks a copy (1,024 were not better and cost four times as much), the margin of a tenth (none: loops larger than
//! the cache never hit; two tenths: 0.2 points less on `w106`). The limit in bytes counts payload and all bookkeeping: tables,
//! ghosts, copies and spare buffers.
//!
//! # Hit ratios
//!
//! In percent, with equal weights at 1 % and 10 % of the keys, by `compare -- store --only store.hit_ratio`; the medians of three seeds. The
//! traces are described there; `-sized` counts bytes and has byte hit ratios in brackets.
//!
//! | trace | at | this | quick_cache 0.7 (S3-FIFO) | moka 0.12 (W-TinyLFU) |
//! |---|---|---|---|---|
//! | oltp | 1% | 47.0 | 44.0 | 40.1 |
//! | oltp | 10% | 68.0 | 66.6 | 62.3 |
//! | p3 | 1% | 5.4 | 3.5 | 1.1 |
//! | p3 | 10% | 36.6 | 30.0 | 34.7 |
//! | w106 | 1% | 80.8 | 80.2 | 79.0 |
//! | w106 | 10% | 92.5 | 92.1 | 91.1 |
//! | adaptsize | 1% | 27.7 | 24.3 | 23.5 |
//! | adaptsize | 10% | 38.4 | 36.7 | 34.6 |
//! | adaptsize-sized | 1% | 32.3 [29.3] | 25.0 [27.1] | 29.0 [26.8] |
//! | adaptsize-sized | 10% | 40.9 [37.5] | 38.1 [36.9] | 37.8 [35.0] |
//! | ipfs-gateway | 1% | 27.3 | 26.1 | 20.8 |
//! | ipfs-gateway | 10% | 43.6 | 41.3 | 39.6 |
//! | ipfs-files | 1% | 38.7 | 38.0 | 32.9 |
//! | ipfs-files | 10% | 54.0 | 51.9 | 50.6 |
//!
//! Against the better of both that is +1.8 points on average for the four recorded traces (oltp, p3, w106, adaptsize) and +1.7 for all six; the least cell is +0.4.
//! Loads made to find weak spots (Zipf, loops, scans, keys read once, drift) are in `memory/model/tests.rs`, against LRU and the optimum.

pub use crate::memory::Model;

pub(crate) mod moves;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// `log2(score) + time`, comparable between blocks of one clock.
pub(crate) type Heat = f32;

/// Half-life in accesses per block kept.
pub(crate) const HALF_LIFE: f64 = 16.0;

/// Fewer blocks than this count as this many, so that an almost empty tier does not forget at once.
const LEAST_BLOCKS: usize = 64;

/// A heat has 24 bits: up to this time a read among 2,000 decayed ones still shows.
const REBASE: f64 = 4096.0;

/// `log2` of more reads than a block can get.
const IMPOSSIBLE: f64 = 48.0;

/// The clock of one tier, in half-lives.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Clock(f64);

impl Clock {
    /// One access happened while the tier held `blocks`.
    #[cfg(test)]
    pub(crate) fn tick(&mut self, blocks: usize) {
        self.tick_by(blocks, HALF_LIFE);
    }

    /// The same with another half-life, in accesses per block.
    pub(crate) fn tick_by(&mut self, blocks: usize, half_life: f64) {
        self.0 += 1.0 / (half_life * blocks.max(LEAST_BLOCKS) as f64);
    }

    pub(crate) fn now(self) -> f64 {
        self.0
    }

    /// Starts the time over when the heats begin to lose precision, which is after 4,096 half-lives: then every heat of this clock must be
    /// lowered by what this returns.
    pub(crate) fn rebase(&mut self) -> Option<Heat> {
        (self.0 >= REBASE).then(|| {
            self.0 -= REBASE;
            REBASE as Heat
        })
    }

    /// Whether the time started over since `before`.
    pub(crate) fn started_over(self, before: Clock) -> bool {
        self.0 + REBASE / 2.0 < before.0
    }

    /// A heat as it is after the time started over.
    pub(crate) fn rebased(heat: Heat) -> Heat {
        heat - REBASE as Heat
    }

    /// The heat of a block that counts as `weight` reads now.
    pub(crate) fn fresh(self, weight: f32) -> Heat {
        (f64::from(weight.max(f32::MIN_POSITIVE)).log2() + self.0) as Heat
    }

    /// The heat after a read.
    pub(crate) fn touched(self, heat: Heat) -> Heat {
        let since = f64::from(heat) - self.0;
        // So many reads there never were: a thread wrote it while the time started over.
        let score = if since < IMPOSSIBLE {
            since.exp2()
        } else {
            0.0
        };
        ((score + 1.0).log2() + self.0) as Heat
    }

    /// The decayed number of reads that a heat stands for.
    pub(crate) fn score(self, heat: Heat) -> f64 {
        (f64::from(heat) - self.0).exp2()
    }
}

/// A [`Clock`] that threads share without a lock.
#[derive(Debug, Default)]
pub(crate) struct SharedClock(AtomicU64);

/// Units of [`SharedClock`] in a half-life. With 2^20 blocks kept an access is 2^20 of them.
const UNITS: f64 = (1u64 << 44) as f64;

impl SharedClock {
    /// One access happened while the tier held `blocks`. The time now.
    pub(crate) fn tick(&self, blocks: usize) -> Clock {
        let step = (UNITS / (HALF_LIFE * blocks.max(LEAST_BLOCKS) as f64)) as u64;
        Clock((self.0.fetch_add(step, Relaxed) + step) as f64 / UNITS)
    }

    /// The time now.
    pub(crate) fn get(&self) -> Clock {
        Clock(self.0.load(Relaxed) as f64 / UNITS)
    }

    /// As [`Clock::rebase`]. A thread that reads meanwhile may leave one block too hot until its next read.
    pub(crate) fn rebase(&self) -> Option<Heat> {
        let by = self.get().rebase()?;
        self.0.fetch_sub((f64::from(by) * UNITS) as u64, Relaxed);
        Some(by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_heats_does_not_change_with_time() {
        let mut clock = Clock::default();
        let once = clock.fresh(1.0);
        let twice = clock.touched(once);
        let before = clock.score(twice) / clock.score(once);
        for _ in 0..10_000 {
            clock.tick(100);
        }
        assert!((clock.score(twice) / clock.score(once) - before).abs() < 1e-3);
        assert!(
            clock.fresh(1.0) > twice,
            "a new block beats two reads of six half-lives ago"
        );
    }

    #[test]
    fn no_access_of_any_thread_is_lost_and_time_starts_over_for_all() {
        let clock = SharedClock::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..16 * 64 * 1024).for_each(|_| {
                        clock.tick(0);
                    })
                });
            }
        });
        assert!((clock.get().now() - 4096.0).abs() < 1e-6);
        let heat = clock.tick(0).touched(clock.get().fresh(3.0));
        let by = clock.rebase().unwrap();
        assert!((clock.get().score(heat - by) - 4.0).abs() < 0.01);
        assert!(clock.get().touched(heat) < 1.0, "a heat from before");
    }

    #[test]
    fn a_rebase_keeps_all_scores_and_restores_precision() {
        let mut clock = Clock::default();
        while clock.now() < REBASE {
            clock.tick(0);
        }
        let heat = clock.fresh(100.0);
        let mut rebased = clock;
        let by = rebased.rebase().unwrap();
        assert!((rebased.score(heat - by) - clock.score(heat)).abs() < 0.1);
        assert_eq!(rebased.rebase(), None);
    }

    #[test]
    fn a_read_adds_one_to_the_decayed_score() {
        let mut clock = Clock::default();
        let heat = clock.fresh(8.0);
        for _ in 0..16 * 64 {
            clock.tick(0);
        }
        assert!(
            (clock.score(heat) - 4.0).abs() < 1e-3,
            "halved after one half-life"
        );
        assert!((clock.score(clock.touched(heat)) - 5.0).abs() < 1e-3);
    }
}
