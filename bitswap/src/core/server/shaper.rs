//! Upload limits: a token bucket for everything, and one for each class of peers.

use std::{num::NonZeroU64, time::Duration};

use serde::Deserialize;
use web_time::Instant;

/// What a bucket holds at most: what flows in this time. Longer than timers are late.
const BURST: Duration = Duration::from_millis(100);

/// How much a peer's downloads matter to us. The user assigns it ([`set_peer_class`]); what a peer
/// claims, such as a want's priority, only orders its own blocks.
///
/// Under a limit, or when the pipelines are full, a class gets what the ones before it leave.
///
/// [`set_peer_class`]: crate::core::server::Server::set_class
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Before everyone else: one's own machines.
    Favoured,
    /// Everyone about whom nothing was said.
    #[default]
    Normal,
    /// What the others leave.
    Background,
}

impl Class {
    /// All, the first served first.
    pub const ALL: [Class; 3] = [Class::Favoured, Class::Normal, Class::Background];
}

/// Upload limits in bytes of blocks a second; `None`: no limit. Each is kept over time: a block
/// starts when its bucket holds anything, and its bytes are paid back before the next one starts.
/// Up to a tenth of a second's worth is saved up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UploadLimits {
    /// Of all peers together.
    pub total: Option<NonZeroU64>,
    /// Of [`Class::Favoured`].
    pub favoured: Option<NonZeroU64>,
    /// Of [`Class::Normal`].
    pub normal: Option<NonZeroU64>,
    /// Of [`Class::Background`].
    pub background: Option<NonZeroU64>,
}

impl UploadLimits {
    fn of(&self, class: Class) -> Option<NonZeroU64> {
        match class {
            Class::Favoured => self.favoured,
            Class::Normal => self.normal,
            Class::Background => self.background,
        }
    }
}

/// The buckets.
#[derive(Debug)]
pub(super) struct Shaper {
    total: Bucket,
    classes: [(Class, Bucket); 3],
}

impl Shaper {
    pub(super) fn new(limits: &UploadLimits, now: Instant) -> Self {
        let classes = Class::ALL.map(|class| (class, Bucket::new(limits.of(class), now)));
        Self {
            total: Bucket::new(limits.total, now),
            classes,
        }
    }

    /// Changes the limits; what was borrowed under the old ones is forgotten.
    pub(super) fn set(&mut self, limits: &UploadLimits, now: Instant) {
        *self = Self::new(limits, now);
    }

    /// Whether a block may start.
    pub(super) fn admits(&self, class: Class, now: Instant) -> bool {
        self.ready_at(class, now) <= now
    }

    /// When the next block may start.
    pub(super) fn ready_at(&self, class: Class, now: Instant) -> Instant {
        let buckets = self.buckets(class);
        buckets
            .map(|bucket| bucket.ready_at(now))
            .max()
            .unwrap_or(now)
    }

    /// A block starts.
    pub(super) fn charge(&mut self, class: Class, bytes: u64, now: Instant) {
        for bucket in self.buckets_mut(class) {
            bucket.add(-(bytes as f64), now);
        }
    }

    /// A block that has started is not sent.
    pub(super) fn refund(&mut self, class: Class, bytes: u64, now: Instant) {
        for bucket in self.buckets_mut(class) {
            bucket.add(bytes as f64, now);
        }
    }

    fn buckets(&self, class: Class) -> impl Iterator<Item = &Bucket> {
        let own = self.classes.iter().filter(move |(of, _)| *of == class);
        own.map(|(_, bucket)| bucket).chain([&self.total])
    }

    fn buckets_mut(&mut self, class: Class) -> impl Iterator<Item = &mut Bucket> {
        let own = self.classes.iter_mut().filter(move |(of, _)| *of == class);
        own.map(|(_, bucket)| bucket).chain([&mut self.total])
    }
}

#[derive(Debug)]
struct Bucket {
    rate: Option<NonZeroU64>,
    /// Bytes; below zero while a block is paid back.
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn new(rate: Option<NonZeroU64>, now: Instant) -> Self {
        let mut bucket = Self {
            rate,
            tokens: 0.0,
            at: now,
        };
        bucket.tokens = bucket.burst();
        bucket
    }

    fn rate(&self) -> f64 {
        self.rate.map_or(f64::INFINITY, |rate| rate.get() as f64)
    }

    fn burst(&self) -> f64 {
        match self.rate {
            Some(_) => self.rate() * BURST.as_secs_f64(),
            None => 0.0,
        }
    }

    fn add(&mut self, bytes: f64, now: Instant) {
        if self.rate.is_none() {
            return;
        }
        let flown = self.rate() * now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + flown).min(self.burst()) + bytes;
        self.tokens = self.tokens.min(self.burst());
        self.at = self.at.max(now);
    }

    /// Not before `now`.
    fn ready_at(&self, now: Instant) -> Instant {
        if self.rate.is_none() || self.tokens > 0.0 {
            return now;
        }
        // Rounded up, so that there is something when the timer fires.
        let wait = Duration::try_from_secs_f64(-self.tokens / self.rate()).unwrap_or(Duration::MAX);
        let wait = wait.saturating_add(Duration::from_micros(1));
        self.at.checked_add(wait).unwrap_or(now + YEAR).max(now)
    }
}

/// Longer than anybody waits.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
