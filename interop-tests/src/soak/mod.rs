//! SIGKILL under load: a process fills, pins, deletes, expires and demotes, is killed at any moment, and what it had acknowledged must be there.
//!
//! The load runs in a child, several tasks at once, so that commits have groups. It says `begin <task> <operation>` before each operation
//! and `end <task> ok|refused` once the store answered. The parent keeps a [`model`] of what was acknowledged, kills the child, and starts the
//! next one on the same directory with the model on its stdin; that child opens what the kill left, compares all of it with the
//! model, and goes on with its own load. Nothing is closed in between. A task owns its blocks, sets and values, so at most one operation a task is neither done nor
//! undone at a kill; it may have happened or not.

pub mod load;
pub mod model;
pub mod parent;

/// Any failure ends the soak with its text.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Tasks of a child.
pub const TASKS: u32 = 12;

/// Milliseconds since 1970; parent and child share this clock.
#[must_use]
pub fn now_ms() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "times to live are measured with the real clock here"
    )]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same parts.
    #[must_use]
    pub fn new(parts: &[u64]) -> Self {
        let mut random = Self(0);
        for part in parts {
            random.0 = random.next().wrapping_add(*part);
        }
        random
    }

    /// Any number.
    #[expect(clippy::should_implement_trait, reason = "it is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}
