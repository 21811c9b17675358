//! When to try a bucket again: pure, with `now` and randomness from outside.

use std::time::Duration;

use web_time::Instant;

/// Delays that double, each between half and all of itself, so that clients that failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) most: Duration,
}

impl Backoff {
    /// The wait after `failures` in a row (1 is the first). `random` is any number.
    pub(crate) fn delay(&self, failures: u32, random: u32) -> Duration {
        let doubled = 2u32.saturating_pow(failures.saturating_sub(1));
        let full = self.first.saturating_mul(doubled).min(self.most);
        let jitter = f64::from(random) / f64::from(u32::MAX);
        full / 2 + (full / 2).mul_f64(jitter)
    }
}

/// Whether a bucket answers. Reads always try; moves wait for `again`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Health {
    /// The last request was answered, or there was none.
    #[default]
    Up,
    /// It was not.
    Down {
        /// Requests in a row.
        failures: u32,
        /// Since when.
        since: Instant,
        /// When moves try again.
        again: Instant,
    },
}

impl Health {
    /// A request was answered, if only with "no such object". `true`: it was down before.
    pub(crate) fn on_answer(&mut self) -> bool {
        !matches!(std::mem::take(self), Health::Up)
    }

    /// A request was not answered, after all its attempts. `true`: it was up before.
    pub(crate) fn on_failure(&mut self, now: Instant, backoff: Backoff, random: u32) -> bool {
        let (failures, since) = match *self {
            Health::Up => (1, now),
            // Requests that were under way together count once.
            Health::Down { again, .. } if now < again => return false,
            Health::Down {
                failures, since, ..
            } => (failures.saturating_add(1), since),
        };
        *self = Health::Down {
            failures,
            since,
            again: now + backoff.delay(failures, random),
        };
        failures == 1
    }

    /// How long moves wait; zero if they may run.
    pub(crate) fn wait(&self, now: Instant) -> Duration {
        match self {
            Health::Up => Duration::ZERO,
            Health::Down { again, .. } => again.saturating_duration_since(now),
        }
    }

    /// Attempts that a request gets: one alone while the bucket is known to be down, so that a get fails soon.
    pub(crate) fn attempts(&self, configured: u32) -> u32 {
        match self {
            Health::Up => configured.max(1),
            Health::Down { .. } => 1,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self, Health::Up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_secs(1),
        most: Duration::from_secs(60),
    };

    #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn delays_double_up_to_the_most_and_keep_within_their_jitter() {
        let mut full = BACKOFF.first;
        for failures in 1..40 {
            let (least, most) = (
                BACKOFF.delay(failures, 0),
                BACKOFF.delay(failures, u32::MAX),
            );
            assert_eq!((least, most), (full / 2, full), "{failures}");
            full = (full * 2).min(BACKOFF.most);
        }
        assert_eq!(BACKOFF.delay(u32::MAX, u32::MAX), BACKOFF.most);
    }

    #[test]
    fn moves_wait_longer_after_each_failed_try_and_run_at_once_after_an_answer() {
        let mut now = start();
        let mut health = Health::default();
        assert!(health.on_failure(now, BACKOFF, u32::MAX));
        let mut before = Duration::ZERO;
        for _ in 0..6 {
            let wait = health.wait(now);
            assert!(wait > before);
            before = wait;
            now += wait;
            assert_eq!(health.wait(now), Duration::ZERO, "one try is due");
            assert!(!health.on_failure(now, BACKOFF, u32::MAX), "no news");
        }
        assert_eq!((health.is_up(), health.attempts(4)), (false, 1));
        assert!(health.on_answer());
        assert_eq!((health.wait(now), health.attempts(4)), (Duration::ZERO, 4));
        assert!(!health.on_answer(), "no news");
    }

    #[test]
    fn a_hundred_requests_that_fail_together_count_as_one_failure() {
        let now = start();
        let mut health = Health::default();
        for _ in 0..100 {
            health.on_failure(now, BACKOFF, u32::MAX);
        }
        assert_eq!(health.wait(now), BACKOFF.first);
    }
}
