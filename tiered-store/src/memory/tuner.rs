//! Chooses window and half-life: small copies of the policy, one for each setting, run on a sample of the keys, and the setting whose
//! copy hits most is used.
//!
//! A sample by hash keeps what matters: with one key in `r` and a capacity of one `r`th, a copy hits as often as the whole would (Waldspurger
//! et al. 2017, "Cache modeling and optimization using miniature simulations"). All copies see the same accesses, so that their differences are much less noisy than
//! their hit ratios.

use super::cache::{Cache, Setting};

/// What a new cache starts with: no worse than the best of two other policies on any trace of the comparison.
pub(super) const DEFAULT: Setting = Setting {
    window: 0.05,
    half_life: 16.0,
};

/// The settings that compete; the best fixed ones on the traces of the comparison lie among
/// them or beside them; [`crate::heat`] has the table.
const SETTINGS: [Setting; 6] = [
    DEFAULT,
    Setting {
        window: 0.05,
        half_life: 4.0,
    },
    Setting {
        window: 0.05,
        half_life: 64.0,
    },
    Setting {
        window: 0.2,
        half_life: 16.0,
    },
    Setting {
        window: 0.2,
        half_life: 64.0,
    },
    Setting {
        window: 0.5,
        half_life: 16.0,
    },
];

/// Blocks that a copy may hold; with more, every second key leaves the sample. With less than half as many the choice gets noisy.
const MOST_BLOCKS: usize = 256;
/// Accesses per block of a copy in which old hits count half.
const MEMORY: f64 = 64.0;
/// Accesses per block of a copy before the first choice.
const WARM_UP: u64 = 2;
/// Sampled accesses between two choices.
const PERIOD: u64 = 64;
/// How much better another setting must be: this part of the standard deviation of a count of hits.
const MARGIN: f64 = 0.05;
/// The part of the capacity that the copies may take, where bookkeeping counts.
pub(super) const SHARE: u64 = 64;

#[derive(Debug)]
pub(super) struct Tuner {
    miniatures: Vec<Miniature>,
    chosen: usize,
    /// One key in 2^this is in the sample.
    thinning: u32,
    capacity: u64,
    counts_bookkeeping: bool,
    /// Of the sample, decayed.
    total: f64,
    accesses: u64,
    switches: u64,
}

#[derive(Debug)]
struct Miniature {
    cache: Cache<u64, ()>,
    /// Value of its hits, decayed.
    hits: f64,
}

/// More thinning than this means no sample at all.
const MOST_THINNING: u32 = 24;
/// Capacities in bytes below this are not worth it: the default setting stays.
const LEAST_BYTES: u64 = 1024 * 1024;

/// Whether a key is in the sample. Takes other bits of the hash than shards and tables do.
pub(super) fn is_sampled(hash: u64, thinning: u32) -> bool {
    thinning < MOST_THINNING && (hash >> 16) & ((1 << thinning) - 1) == 0
}

fn least_thinning(capacity: u64, counts_bookkeeping: bool) -> u32 {
    if counts_bookkeeping && capacity < LEAST_BYTES {
        MOST_THINNING
    } else {
        0
    }
}

impl Tuner {
    pub(super) fn new(capacity: u64, counts_bookkeeping: bool) -> Self {
        let miniature = |setting| Miniature {
            cache: Cache::new(capacity, setting, false),
            hits: 0.0,
        };
        Tuner {
            miniatures: SETTINGS.into_iter().map(miniature).collect(),
            chosen: 0,
            thinning: least_thinning(capacity, counts_bookkeeping),
            capacity,
            counts_bookkeeping,
            total: 0.0,
            accesses: 0,
            switches: 0,
        }
    }

    /// One key in 2^this is in the sample.
    pub(super) fn thinning(&self) -> u32 {
        self.thinning
    }

    /// A block was read or came in. The setting to use from now on, if it changed.
    pub(super) fn on_access(&mut self, hash: u64, weight: u32) -> Option<Setting> {
        if !is_sampled(hash, self.thinning) {
            return None;
        }
        self.accesses += 1;
        let blocks = self.miniatures.iter().map(|copy| copy.cache.len()).max();
        let blocks = blocks.unwrap_or(0);
        let decay = (-std::f64::consts::LN_2 / (MEMORY * blocks.max(1) as f64)).exp();
        // As the main part's order does: between requests and bytes.
        let value = f64::from(weight.max(1)).sqrt();
        self.total = self.total * decay + value * value;
        for copy in &mut self.miniatures {
            let is_hit = copy.cache.get(hash, &hash).is_some();
            if !is_hit {
                copy.cache.insert(hash, hash, (), weight, 1.0, &mut |()| {});
            }
            copy.hits = copy.hits * decay + if is_hit { value } else { 0.0 };
        }
        if blocks > MOST_BLOCKS || (self.counts_bookkeeping && self.is_too_large()) {
            self.thin();
        }
        if self.accesses.is_multiple_of(PERIOD) && self.accesses > WARM_UP * blocks as u64 {
            return self.choose();
        }
        None
    }

    pub(super) fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity;
        self.thinning = self
            .thinning
            .max(least_thinning(capacity, self.counts_bookkeeping));
        if self.thinning >= MOST_THINNING {
            *self = Tuner::new(capacity, self.counts_bookkeeping);
            return;
        }
        for copy in &mut self.miniatures {
            copy.cache
                .set_capacity(capacity >> self.thinning, &mut |()| {});
        }
        while self.counts_bookkeeping && self.is_too_large() && self.thinning < MOST_THINNING {
            self.thin();
        }
    }

    pub(super) fn setting(&self) -> Setting {
        SETTINGS.get(self.chosen).copied().unwrap_or(DEFAULT)
    }

    pub(super) fn switches(&self) -> u64 {
        self.switches
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> u64 {
        self.miniatures
            .iter()
            .map(|copy| copy.cache.bookkeeping())
            .sum()
    }

    fn is_too_large(&self) -> bool {
        self.bytes() > self.capacity / SHARE
    }

    /// Halves the sample. The tables are made anew, so that they take half as much.
    fn thin(&mut self) {
        self.thinning = (self.thinning + 1).min(MOST_THINNING);
        let thinning = self.thinning;
        for copy in &mut self.miniatures {
            copy.cache.retain(|hash| is_sampled(hash, thinning));
            copy.cache.rebuild(&mut |()| {});
            copy.cache
                .set_capacity(self.capacity >> thinning, &mut |()| {});
        }
    }

    fn choose(&mut self) -> Option<Setting> {
        let hits = |at: usize| self.miniatures.get(at).map_or(0.0, |copy| copy.hits);
        let best = (0..self.miniatures.len()).max_by(|a, b| hits(*a).total_cmp(&hits(*b)))?;
        if hits(best) - hits(self.chosen) <= MARGIN * self.total.sqrt() {
            return None;
        }
        self.chosen = best;
        self.switches += 1;
        Some(self.setting())
    }
}
