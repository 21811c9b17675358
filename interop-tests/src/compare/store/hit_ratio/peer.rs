//! The caches that are compared, each as it is used best from one thread.

use anypath_tiered_store::heat::Model;

/// Accesses between two maintenances of moka, which decides late and holds more than its capacity until then. More often gives it
/// a hit ratio lower by up to eight points, left to itself it has about the same.
const MAINTENANCE: u64 = 64;

/// Whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// The S3-FIFO of quick_cache.
    QuickCache,
    /// The W-TinyLFU of moka.
    Moka,
}

impl Peer {
    /// All.
    pub(super) const ALL: [Self; 2] = [Self::QuickCache, Self::Moka];

    /// As figures name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::QuickCache => "quick_cache",
            Self::Moka => "moka",
        }
    }

    /// A cache for `capacity` units of weight, of which an entry has `capacity / entries` on average.
    pub(super) fn cache(self, capacity: u64, entries: usize) -> Contestant {
        match self {
            Self::QuickCache => {
                let cache = quick_cache::unsync::Cache::with_weighter(entries, capacity, Weight);
                Contestant::S3Fifo(Box::new(cache))
            }
            Self::Moka => {
                let builder = moka::sync::Cache::builder();
                let cache = builder
                    .max_capacity(capacity)
                    .weigher(|_, weight| *weight)
                    .build();
                Contestant::TinyLfu(cache, 0)
            }
        }
    }
}

/// Keys with their weight as value.
pub(super) enum Contestant {
    /// The memory tier's policy.
    Ours(Box<Model>),
    /// S3-FIFO.
    S3Fifo(Box<quick_cache::unsync::Cache<u32, u32, Weight>>),
    /// W-TinyLFU, and accesses so far.
    TinyLfu(moka::sync::Cache<u32, u32>, u64),
}

/// The value is the weight.
#[derive(Clone)]
pub(super) struct Weight;

impl quick_cache::Weighter<u32, u32> for Weight {
    fn weight(&self, _: &u32, weight: &u32) -> u64 {
        u64::from(*weight)
    }
}

impl Contestant {
    /// Reads a key, and inserts it if it is not there. Whether it was.
    pub(super) fn access(&mut self, key: u32, weight: u32) -> bool {
        match self {
            Self::Ours(model) => model.access(u64::from(key), weight),
            Self::S3Fifo(cache) => {
                let is_hit = cache.get(&key).is_some();
                if !is_hit {
                    cache.insert(key, weight);
                }
                is_hit
            }
            Self::TinyLfu(cache, accesses) => {
                let is_hit = cache.get(&key).is_some();
                if !is_hit {
                    cache.insert(key, weight);
                }
                *accesses += 1;
                if accesses.is_multiple_of(MAINTENANCE) {
                    cache.run_pending_tasks();
                }
                is_hit
            }
        }
    }
}
