//! The cold tier: packs of compressed blocks in a directory or a bucket.

pub(crate) mod bucket;
mod config;
pub(crate) mod frame;
mod health;
pub(crate) mod pack;
pub(crate) mod tier;

use std::collections::BTreeMap;

use parking_lot::Mutex;

pub use config::{ColdConfig, MAX_PACK_BYTES, MIN_PACK_BYTES, S3Config};

/// Where a block lies in the cold tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Location {
    /// Number of the pack.
    pub(crate) pack: u32,
    /// Where its frame begins in the pack.
    pub(crate) offset: u32,
    /// Bounds the frame's length, so that one read gets it: at most `len × (bound + 1) / 256` bytes, rounded up.
    pub(crate) bound: u8,
}

/// What is still needed of each pack.
#[derive(Debug, Default)]
pub(crate) struct Packs(Mutex<BTreeMap<u32, Use>>);

/// The part of a pack that the index points to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) blocks: u64,
    /// Bytes of the blocks, not compressed.
    pub(crate) bytes: u64,
    /// Bytes of their frames, by their bounds.
    pub(crate) stored: u64,
}

/// What is needed of all packs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum {
    pub(crate) packs: u64,
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
    pub(crate) stored: u64,
}

impl Packs {
    pub(crate) fn retain(&self, at: Location, len: u32) {
        let mut packs = self.0.lock();
        let used = packs.entry(at.pack).or_default();
        used.blocks += 1;
        used.bytes += u64::from(len);
        used.stored += at.usual_frame(len);
    }

    /// A pack that nothing is needed of stays listed until [`Packs::forget`].
    pub(crate) fn release(&self, at: Location, len: u32) {
        if let Some(used) = self.0.lock().get_mut(&at.pack) {
            used.blocks = used.blocks.saturating_sub(1);
            used.bytes = used.bytes.saturating_sub(u64::from(len));
            used.stored = used.stored.saturating_sub(at.usual_frame(len));
        }
    }

    pub(crate) fn forget(&self, pack: u32) {
        self.0.lock().remove(&pack);
    }

    /// Whether something was ever in a pack, as far as this process and its log know.
    pub(crate) fn knows(&self, pack: u32) -> bool {
        self.0.lock().contains_key(&pack)
    }

    pub(crate) fn get(&self, pack: u32) -> Use {
        self.0.lock().get(&pack).copied().unwrap_or_default()
    }

    pub(crate) fn all(&self) -> Vec<(u32, Use)> {
        let packs = self.0.lock();
        packs.iter().map(|(pack, used)| (*pack, *used)).collect()
    }

    /// All packs together.
    pub(crate) fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        for used in self.0.lock().values() {
            sum.packs += 1;
            sum.blocks += used.blocks;
            sum.bytes += used.bytes;
            sum.stored += used.stored;
        }
        sum
    }
}
