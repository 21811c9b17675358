use std::time::Duration;

use rand::{RngExt, rngs::StdRng};

/// Exponential waits with jitter, from `initial` to `max`.
///
/// The jitter shortens a wait by up to one half ("equal jitter"), so that nodes which lost the
/// same relay do not come back to it at the same instant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    pub(crate) initial: Duration,
    pub(crate) max: Duration,
}

impl Backoff {
    /// How long to wait after `failures` failures in a row.
    pub(crate) fn delay(&self, failures: u32, random: &mut StdRng) -> Duration {
        // 2^20 s is beyond every `max` that makes sense and below every overflow.
        let doublings = failures.saturating_sub(1).min(20);
        let full = self.initial.saturating_mul(1 << doublings).min(self.max);
        full.mul_f64(random.random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_keep_at_least_half() {
        let backoff = Backoff {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(300),
        };
        let mut random = StdRng::from_seed([7; 32]);
        for failures in 1..=200 {
            let full = Duration::from_secs(1 << (failures - 1).min(9)).min(backoff.max);
            let delay = backoff.delay(failures, &mut random);
            assert!(delay >= full / 2, "{failures}: {delay:?}");
            assert!(delay <= full, "{failures}: {delay:?}");
        }
    }
}
