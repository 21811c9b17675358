//! How much is read of what each neighbour passes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use libp2p_identity::PeerId;
use web_time::Instant;

/// A source that is idle for this long has full buckets again, and is forgotten.
const IDLE: Duration = Duration::from_secs(120);

/// Complaints about what one source passes on: a few at once, then one in ten seconds.
const COMPLAINTS: Rate = Rate {
    per_second: 0.1,
    burst: 5.0,
};

/// A token bucket's size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    pub(super) per_second: f64,
    pub(super) burst: f64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn full(rate: Rate, now: Instant) -> Self {
        Self {
            tokens: rate.burst,
            at: now,
        }
    }

    pub(super) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * rate.per_second).min(rate.burst);
        self.at = self.at.max(now);
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

#[derive(Debug)]
struct Source {
    messages: Bucket,
    newcomers: Bucket,
    complaints: Bucket,
    used: Instant,
}

/// The neighbours that passed something on, and what they may still pass on.
#[derive(Debug)]
pub(super) struct Sources {
    messages: Rate,
    newcomers: Rate,
    max: usize,
    sources: BTreeMap<PeerId, Source>,
    by_use: BTreeSet<(Instant, PeerId)>,
}

impl Sources {
    pub(super) fn new(messages: Rate, newcomers: Rate, max: usize) -> Self {
        Self {
            messages,
            newcomers,
            max,
            sources: BTreeMap::new(),
            by_use: BTreeSet::new(),
        }
    }

    /// Whether one more message of `source` is read.
    pub(super) fn message(&mut self, source: PeerId, now: Instant) -> bool {
        let rate = self.messages;
        self.source(source, now).messages.take(rate, now)
    }

    /// Whether one more unknown author of whom `source` tells is listened to.
    pub(super) fn newcomer(&mut self, source: PeerId, now: Instant) -> bool {
        let rate = self.newcomers;
        self.source(source, now).newcomers.take(rate, now)
    }

    /// Whether one more violation in what `source` passes on is worth an event.
    pub(super) fn complaint(&mut self, source: PeerId, now: Instant) -> bool {
        self.source(source, now).complaints.take(COMPLAINTS, now)
    }

    fn source(&mut self, peer: PeerId, now: Instant) -> &mut Source {
        match self.sources.get(&peer) {
            Some(known) => {
                self.by_use.remove(&(known.used, peer));
            }
            None => self.forget_idle(now),
        }
        self.by_use.insert((now, peer));
        let (messages, newcomers) = (self.messages, self.newcomers);
        let source = self.sources.entry(peer).or_insert_with(|| Source {
            messages: Bucket::full(messages, now),
            newcomers: Bucket::full(newcomers, now),
            complaints: Bucket::full(COMPLAINTS, now),
            used: now,
        });
        source.used = now;
        source
    }

    /// Makes room for one more.
    fn forget_idle(&mut self, now: Instant) {
        while let Some((used, peer)) = self.by_use.first().copied()
            && (used + IDLE <= now || self.sources.len() >= self.max)
        {
            self.by_use.remove(&(used, peer));
            self.sources.remove(&peer);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        debug_assert_eq!(self.sources.len(), self.by_use.len());
        self.sources.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        #[expect(clippy::disallowed_methods, reason = "a point to count from")]
        let start = Instant::now();
        let rate = Rate {
            per_second: 2.0,
            burst: 10.0,
        };
        let mut bucket = Bucket::full(rate, start);
        let mut taken = |from: u32, to: u32| {
            (from..to)
                .filter(|ms| bucket.take(rate, start + Duration::from_millis(u64::from(*ms))))
                .count()
        };
        assert_eq!(taken(0, 100), 10);
        assert_eq!(
            taken(100, 10_000),
            19,
            "two a second, the first 0.2 of one used up"
        );
    }

    #[test]
    fn sources_are_bounded_and_the_idle_ones_go_first() {
        #[expect(clippy::disallowed_methods, reason = "a point to count from")]
        let start = Instant::now();
        let rate = Rate {
            per_second: 1.0,
            burst: 1.0,
        };
        let mut sources = Sources::new(rate, rate, 10);
        let busy = PeerId::random();
        assert!(sources.message(busy, start));
        for n in 1..1000 {
            let now = start + Duration::from_millis(n);
            assert!(sources.message(PeerId::random(), now));
            sources.message(busy, now);
            assert!(sources.len() <= 10);
        }
        sources.message(busy, start + IDLE * 2);
        sources.message(PeerId::random(), start + IDLE * 2);
        assert_eq!(sources.len(), 2);
    }
}
