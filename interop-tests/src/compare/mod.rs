//! Figures beside their peers, measured in the same run: `compare -- bitswap`, `compare -- relay`, `compare -- store`, `compare -- punch`.
//!
//! Every endpoint of a measurement is a process of its own, ours and the peer's alike, so both sides pay the same for crossing between
//! processes and nothing of one run (heap, caches, connections) reaches the next. Ours and the raw stream are this executable again
//! (`compare endpoint …`); peers with dependencies of their own are built from `peers/rust`. Runs alternate between ours and the peer.

pub mod area;
pub mod bitswap;
pub mod blocks;
pub mod endpoint;
pub mod figure;
pub mod peers;
pub mod punch;
pub mod relay;
pub mod store;
pub mod swarm;

/// Any failure of a comparison ends it with its text.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// How often each side runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// For published figures: the median of 7 runs.
    Full,
    /// For CI: the median of 3 runs and less data; every figure is there.
    Quick,
}

impl Effort {
    /// Runs a side.
    #[must_use]
    pub fn runs(self) -> usize {
        match self {
            Self::Full => 7,
            Self::Quick => 3,
        }
    }

    /// A quarter of the data where only CI looks, so that all figures take minutes.
    #[must_use]
    pub fn scale(self, amount: u64) -> u64 {
        match self {
            Self::Full => amount,
            Self::Quick => amount / 4,
        }
    }
}
