//! How often something may happen, for each of very many keys.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    time::Duration,
};

use web_time::Instant;

/// `burst` at once, then one more every `interval`.
///
/// A token bucket with room for `burst`, filled by one token every `interval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// How many may come at once. 0: none ever.
    pub burst: u32,
    /// After how long there may be one more.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

impl RateLimit {
    /// When a full bucket would be empty: what a key may be ahead of time.
    fn depth(&self) -> Duration {
        self.interval.saturating_mul(self.burst)
    }
}

/// Token buckets by key, each one instant long: the moment at which the bucket is full again (generic cell rate algorithm,
/// ITU-T I.371). A full bucket is no entry.
#[derive(Debug)]
pub(crate) struct Buckets<K> {
    limit: RateLimit,
    /// Entries at most. Beyond, the bucket that is nearest to full is forgotten.
    capacity: usize,
    full_at: HashMap<K, Instant>,
    order: BTreeSet<(Instant, K)>,
}

impl<K: Copy + Ord + Hash> Buckets<K> {
    pub(crate) fn new(limit: RateLimit, capacity: usize) -> Self {
        Self {
            limit,
            capacity,
            full_at: HashMap::new(),
            order: BTreeSet::new(),
        }
    }

    /// Whether there is a token for `key`; nothing is taken.
    pub(crate) fn has(&self, key: K, now: Instant) -> bool {
        if self.limit.burst == 0 {
            return false;
        }
        let full_at = self.full_at.get(&key).copied().unwrap_or(now);
        full_at.max(now) + self.limit.interval <= now + self.limit.depth()
    }

    /// Takes a token if there is one.
    pub(crate) fn take(&mut self, key: K, now: Instant) -> bool {
        self.forget(now);
        if !self.has(key, now) {
            return false;
        }
        let before = self.full_at.get(&key).copied();
        let full_at = before.unwrap_or(now).max(now) + self.limit.interval;
        match before {
            Some(before) => {
                self.order.remove(&(before, key));
            }
            None if self.full_at.len() >= self.capacity => {
                if let Some((_, key)) = self.order.pop_first() {
                    self.full_at.remove(&key);
                }
            }
            None => {}
        }
        self.full_at.insert(key, full_at);
        self.order.insert((full_at, key));
        true
    }

    /// Drops up to two full buckets, so that as many go as come.
    fn forget(&mut self, now: Instant) {
        for _ in 0..2 {
            match self.order.first().copied() {
                Some((full_at, key)) if full_at <= now => {
                    self.order.pop_first();
                    self.full_at.remove(&key);
                }
                _ => return,
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        debug_assert_eq!(self.full_at.len(), self.order.len());
        self.full_at.len()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;

    const LIMIT: RateLimit = RateLimit {
        burst: 3,
        interval: Duration::from_secs(10),
    };

    #[test]
    fn a_burst_passes_and_then_one_at_a_time() {
        let mut buckets = Buckets::new(LIMIT, 100);
        let mut now = Instant::now();
        let taken = (0..10).filter(|_| buckets.take(1, now)).count();
        assert_eq!(taken, 3);
        assert!(buckets.take(2, now), "another key has a bucket of its own");
        for _ in 0..20 {
            now += LIMIT.interval;
            assert!(buckets.take(1, now));
            assert!(!buckets.take(1, now));
        }
        now += 100 * LIMIT.interval;
        let taken = (0..10).filter(|_| buckets.take(1, now)).count();
        assert_eq!(taken, 3, "no more than a burst is saved up");
    }

    #[test]
    fn a_refused_request_costs_nothing() {
        let mut buckets = Buckets::new(LIMIT, 100);
        let now = Instant::now();
        for _ in 0..1000 {
            buckets.take(1, now);
        }
        assert!(buckets.take(1, now + LIMIT.interval));
    }

    #[test]
    fn nobody_can_make_it_grow() {
        let mut buckets = Buckets::new(LIMIT, 100);
        let mut now = Instant::now();
        for key in 0..10_000 {
            now += Duration::from_millis(1);
            assert!(buckets.take(key, now));
            assert!(buckets.len() <= 100);
        }
        now += LIMIT.depth();
        for _ in 0..100 {
            buckets.take(0, now);
        }
        assert!(buckets.len() <= 2, "full buckets are dropped");
    }

    #[test]
    fn a_burst_of_nothing_lets_nothing_pass() {
        let limit = RateLimit { burst: 0, ..LIMIT };
        assert!(!Buckets::new(limit, 100).take(1, Instant::now()));
    }
}
