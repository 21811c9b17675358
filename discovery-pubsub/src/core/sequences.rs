//! Tells a replayed announcement from a new one by gossipsub's sequence numbers.
//!
//! Rust and go count up from the time at which they started, in nanoseconds; js draws a random number for
//! each message. So a number that was seen never counts again, and of an author that evidently counts
//! up, nothing that lies behind counts either.

use std::collections::VecDeque;

/// Numbers remembered of one author: five minutes of announcements every ten seconds.
const REMEMBERED: usize = 32;

/// Nanoseconds since 1970 between 2017 and 2100. A random number lies in there with 14 %.
const CLOCK: std::ops::Range<u64> = 1_483_228_800_000_000_000..4_102_444_800_000_000_000;

/// Numbers in a row that must grow until the author counts up for certain.
const CERTAIN: u8 = 3;

#[derive(Debug, Clone, Default)]
pub(super) struct Sequences {
    seen: VecDeque<u64>,
    highest: u64,
    /// How many numbers in a row lay in [`CLOCK`] and grew.
    growing: u8,
}

impl Sequences {
    /// Whether `sequence` is new; then it is remembered.
    pub(super) fn accept(&mut self, sequence: u64) -> bool {
        if self.seen.contains(&sequence) {
            return false;
        }
        if CLOCK.contains(&sequence) {
            if sequence > self.highest {
                self.highest = sequence;
                self.growing = self.growing.saturating_add(1);
            } else if self.growing >= CERTAIN {
                return false;
            } else {
                self.highest = sequence;
                self.growing = 1;
            }
        } else {
            self.growing = 0;
            self.highest = 0;
        }
        if self.seen.len() >= REMEMBERED {
            self.seen.pop_front();
        }
        self.seen.push_back(sequence);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_counts_once() {
        let mut sequences = Sequences::default();
        for n in [7, u64::MAX, 0] {
            assert!(sequences.accept(n));
            assert!(!sequences.accept(n));
        }
    }

    #[test]
    fn an_author_that_counts_up_is_never_believed_an_old_number() {
        let mut sequences = Sequences::default();
        let start = CLOCK.start + 1_000_000;
        for n in 0..1000 {
            assert!(sequences.accept(start + n));
        }
        // Long forgotten as numbers, but behind.
        assert!((0..1000).all(|n| !sequences.accept(start + n)));
        assert!(!sequences.accept(start - 1));
        assert!(sequences.accept(start + 1000));
        assert!(sequences.seen.len() <= REMEMBERED);
    }

    #[test]
    fn an_author_with_random_numbers_is_heard() {
        let mut sequences = Sequences::default();
        // A fixed sequence of random numbers (SplitMix64).
        let mut state = 1u64;
        let mut heard = 0;
        for _ in 0..10_000 {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut number = state;
            number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            heard += u32::from(sequences.accept(number ^ (number >> 31)));
        }
        assert!(heard > 9_990, "{heard}");
    }
}
