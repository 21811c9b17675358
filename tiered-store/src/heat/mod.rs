//! Heat: how much a block is worth keeping, in one number.
//!
//! Every read adds 1 to a block's score (a put adds its [`Importance`](crate::Importance)), and all scores halve every *half-life*. The clock
//! counts accesses, not seconds, so an idle store does not cool down. Halving all scores at every access would touch every
//! block; forward decay (Cormode et al. 2009) turns it round and stores `heat = log2(score) + now`, `now` in half-lives. Two
//! heats compare at any later time without a recount:
//!
//! ```text
//! new block:  heat = log2(weight) + now
//! read:       heat = log2(2^(heat − now) + 1) + now
//! access:     now += 1 / (16 × blocks that fit)
//! ```
//!
//! A half-life of 16 times the number of blocks kept was the best fixed one on six traces (`notes/store-and-dht.md` §1.4). As `now` is
//! the sum of the steps, the half-life may change at any time and old heats stay valid.

#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the cold tier's executor uses it")
)]
pub(crate) mod moves;

/// `log2(score) + time`, comparable between blocks of one clock.
pub(crate) type Heat = f32;

/// Half-life in accesses per block kept.
pub(crate) const HALF_LIFE: f64 = 16.0;

/// Fewer blocks than this count as this many, so that an almost empty tier does not forget at once.
const LEAST_BLOCKS: usize = 64;

/// A heat has 24 bits: up to this time a read among 2,000 decayed ones still shows.
const REBASE: f64 = 4096.0;

/// The clock of one tier, in half-lives.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Clock(f64);

impl Clock {
    /// One access happened while the tier held `blocks`.
    pub(crate) fn tick(&mut self, blocks: usize) {
        self.0 += 1.0 / (HALF_LIFE * blocks.max(LEAST_BLOCKS) as f64);
    }

    pub(crate) fn now(self) -> f64 {
        self.0
    }

    /// Starts the time over when the heats begin to lose precision, which is after 4,096 half-lives: then every heat of this clock must be
    /// lowered by what this returns.
    #[cfg_attr(not(test), expect(dead_code, reason = "the disk tier's turn"))]
    pub(crate) fn rebase(&mut self) -> Option<Heat> {
        (self.0 >= REBASE).then(|| {
            self.0 -= REBASE;
            REBASE as Heat
        })
    }

    /// The heat of a block that counts as `weight` reads now.
    pub(crate) fn fresh(self, weight: f32) -> Heat {
        (f64::from(weight.max(f32::MIN_POSITIVE)).log2() + self.0) as Heat
    }

    /// The heat after a read.
    pub(crate) fn touched(self, heat: Heat) -> Heat {
        ((self.score(heat) + 1.0).log2() + self.0) as Heat
    }

    /// The decayed number of reads that a heat stands for.
    pub(crate) fn score(self, heat: Heat) -> f64 {
        (f64::from(heat) - self.0).exp2()
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
