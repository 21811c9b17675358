//! The memory tier's policy without the bytes, to measure what it does on a trace.

use super::{cache::Cache, tuner, tuner::Tuner};

/// The memory tier's policy without the bytes: window, main part, ghosts and adaptation, single-threaded, reproducible by its seed. Made for
/// measuring hit ratios (`compare -- store` does); weights are whatever the capacity counts, and bookkeeping is free.
#[derive(Debug)]
pub struct Model {
    cache: Cache<u64, ()>,
    tuner: Tuner,
    seed: u64,
}

impl Model {
    /// A cache for `capacity` units of weight.
    pub fn new(capacity: u64, seed: u64) -> Self {
        Model {
            cache: Cache::new(capacity, tuner::DEFAULT, false),
            tuner: Tuner::new(capacity, false),
            seed,
        }
    }

    /// Reads a key, and inserts it with `weight` if it is not there. Whether it was.
    pub fn access(&mut self, key: u64, weight: u32) -> bool {
        let hash = mix(key ^ self.seed);
        let is_hit = self.cache.get(hash, &key).is_some();
        if !is_hit {
            self.cache.insert(hash, key, (), weight, 1.0, &mut |()| {});
        }
        if let Some(setting) = self.tuner.on_access(hash, weight) {
            self.cache.set_setting(setting);
        }
        is_hit
    }

    /// Weight of what is in the cache; never above the capacity.
    pub fn weight(&self) -> u64 {
        self.cache.weight()
    }

    /// Share of the capacity that is window, and half-life in accesses per key kept, as they are now.
    pub fn setting(&self) -> (f64, f64) {
        let setting = self.tuner.setting();
        (setting.window, setting.half_life)
    }
}

/// The finalizer of SplitMix64.
fn mix(key: u64) -> u64 {
    let key = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    key ^ (key >> 31)
}

#[cfg(test)]
mod tests;
