//! Figures of a store, as a struct.

use serde::Serialize;

/// A snapshot of what a store holds and did since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// The memory tier.
    pub memory: MemoryStats,
    /// The disk tier.
    pub disk: DiskStats,
    /// Gets that found nothing.
    pub misses: u64,
    /// Puts that were acknowledged.
    pub puts: u64,
    /// Puts whose block was there already; they are part of `puts`.
    pub duplicate_puts: u64,
    /// Number of pin sets.
    pub pin_sets: u64,
    /// Number of values in the key-value namespace.
    pub values: u64,
}

/// The memory tier. Every block in it is on the disk too.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct MemoryStats {
    /// Blocks in memory.
    pub blocks: u64,
    /// Their bytes, with the bookkeeping of each.
    pub bytes: u64,
    /// Bytes that it may hold.
    pub capacity: u64,
    /// Gets answered from memory.
    pub hits: u64,
    /// Blocks that came from the disk after a read.
    pub promotions: u64,
    /// Blocks that left.
    pub evictions: u64,
}

/// The disk tier.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct DiskStats {
    /// Blocks on the disk.
    pub blocks: u64,
    /// Bytes of records that are still needed, footers included.
    pub live_bytes: u64,
    /// Bytes of records whose block is pinned; part of `live_bytes`.
    pub pinned_bytes: u64,
    /// Bytes of all segment files.
    pub used_bytes: u64,
    /// Bytes that compaction can give back: `used_bytes` − `live_bytes`.
    pub garbage_bytes: u64,
    /// Bytes that it may take.
    pub capacity: u64,
    /// Segment files.
    pub segments: u64,
    /// Gets answered from the disk.
    pub hits: u64,
    /// Blocks forgotten to make room.
    pub evictions: u64,
    /// Blocks forgotten because their time was over.
    pub expirations: u64,
    /// Blocks found damaged.
    pub corruptions: u64,
    /// Segments compacted.
    pub compactions: u64,
    /// Bytes handed in by acknowledged puts that were not there yet.
    pub user_bytes: u64,
    /// Bytes written: records, footers, checkpoints, compaction.
    pub written_bytes: u64,
    /// fdatasync calls.
    pub syncs: u64,
    /// Groups of writes.
    pub batches: u64,
    /// Segments given up because a write or fsync in them failed.
    pub poisoned_segments: u64,
    /// Bytes of the in-memory index, pins and heat included.
    pub index_bytes: u64,
}

impl DiskStats {
    /// Bytes written per byte handed in; `None` before the first put.
    pub fn write_amplification(&self) -> Option<f64> {
        (self.user_bytes > 0).then(|| self.written_bytes as f64 / self.user_bytes as f64)
    }
}

/// What [`Store::gc`](crate::Store::gc) did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct GcReport {
    /// Blocks and values whose time was over.
    pub expired: u64,
    /// Segments compacted or removed.
    pub segments: u64,
    /// Bytes given back to the file system.
    pub freed_bytes: u64,
}

/// What [`Store::scrub`](crate::Store::scrub) found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ScrubReport {
    /// Blocks whose checksum and hash were compared.
    pub checked: u64,
    /// Blocks whose hash function is not built in: the checksum alone was compared.
    pub checksum_only: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Damaged blocks. They count as absent from now on: fetch and put them again.
    pub corrupt: Vec<cid::Cid>,
}
