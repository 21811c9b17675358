//! Figures of a store, as a struct.

use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;

use crate::{state::Shared, tiers::Mover};

/// A snapshot of what a store holds and did since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// The memory tier.
    pub memory: MemoryStats,
    /// The disk tier.
    pub disk: DiskStats,
    /// The cold tier; `None` where none is configured.
    pub cold: Option<ColdStats>,
    /// Gets that no tier could answer.
    pub misses: u64,
    /// Misses that the [`Source`](crate::Source) answered.
    pub source_hits: u64,
    /// Misses that it could not answer.
    pub source_misses: u64,
    /// Misses for which it failed, took too long or brought other bytes.
    pub source_errors: u64,
    /// Bytes that it brought.
    pub source_bytes: u64,
    /// Seconds that its answers took, together, errors included.
    pub source_seconds: f64,
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
    /// Their bytes, with all bookkeeping; never more than `capacity`.
    pub bytes: u64,
    /// Bytes that it may hold.
    pub capacity: u64,
    /// Gets answered from memory.
    pub hits: u64,
    /// Gets that were answered further down, or not at all.
    pub misses: u64,
    /// Blocks that came from the disk after a read.
    pub promotions: u64,
    /// Blocks that left.
    pub evictions: u64,
    /// Part of `bytes` that is not payload: tables, heats of blocks that left, the adaptation's samples, spare buffers.
    pub bookkeeping_bytes: u64,
    /// Part of `bytes` that is in the window, which new blocks enter.
    pub window_bytes: u64,
    /// Share of the tier that the window may take, as adapted to the load.
    pub window_share: f64,
    /// Accesses per block in which a block's score halves, as adapted to the load.
    pub half_life: f64,
    /// How often the load made the policy change these two.
    pub adaptations: u64,
    /// Blocks that came back and whose heat was remembered.
    pub ghost_hits: u64,
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
    /// Gets that were answered from the cold tier, or not at all.
    pub misses: u64,
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

/// The cold tier.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct ColdStats {
    /// Whether the last request was answered. While it is `false` blocks stay on the disk, and puts into a full disk wait.
    pub is_reachable: bool,
    /// Whether something moves, is tidied up, or waits for the cold tier to answer.
    pub is_moving: bool,
    /// Blocks in the cold tier.
    pub blocks: u64,
    /// Their bytes, not compressed.
    pub bytes: u64,
    /// Their bytes as they are stored, to a 256th.
    pub stored_bytes: u64,
    /// Bytes of all packs that are known to be there; 0 until the first look after opening.
    pub used_bytes: u64,
    /// Bytes that repacking can give back: `used_bytes` − `stored_bytes`.
    pub garbage_bytes: u64,
    /// Bytes that the packs may take; `None`: no limit.
    pub capacity: Option<u64>,
    /// Packs.
    pub packs: u64,
    /// Gets answered from the cold tier.
    pub hits: u64,
    /// Gets that were not answered by any tier.
    pub misses: u64,
    /// Blocks that came to the disk.
    pub promotions: u64,
    /// Blocks that came from the disk.
    pub demotions: u64,
    /// Blocks forgotten to keep within the capacity.
    pub evictions: u64,
    /// Packs written, those of repacking included.
    pub packs_written: u64,
    /// Packs removed.
    pub packs_removed: u64,
    /// Sets of packs that were written again.
    pub repacks: u64,
    /// Packs that nothing pointed to, left by a crash or a lost answer, and removed.
    pub orphans: u64,
    /// Moves that failed and were tried again.
    pub failed_moves: u64,
    /// Promotions that were refused for want of I/O budget.
    pub throttled_moves: u64,
    /// Blocks on their way to the disk.
    pub waiting_promotions: u64,
    /// Put requests.
    pub put_requests: u64,
    /// Get requests.
    pub get_requests: u64,
    /// List requests.
    pub list_requests: u64,
    /// Delete requests.
    pub delete_requests: u64,
    /// Requests that were tried again; part of the above.
    pub retries: u64,
    /// Requests that were not answered, or with an error; part of the above.
    pub errors: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Bytes of blocks that were compressed since opening, before.
    pub raw_bytes: u64,
    /// And after, with their heads; those of repacking included.
    pub frame_bytes: u64,
}

impl ColdStats {
    /// Bytes of the blocks for each byte that is stored of them; `None` if there are none.
    pub fn compression_ratio(&self) -> Option<f64> {
        (self.stored_bytes > 0).then(|| self.bytes as f64 / self.stored_bytes as f64)
    }

    fn of(shared: &Shared, mover: &Mover) -> ColdStats {
        let (cold, counters) = (&mover.cold, &mover.cold.counters);
        let (requests, used, moves) = (
            &cold.bucket.requests,
            shared.packs.sum(),
            mover.move_stats(),
        );
        let used_bytes = cold.used_bytes();
        ColdStats {
            is_reachable: cold.bucket.is_up(),
            is_moving: mover.is_moving(),
            blocks: used.blocks,
            bytes: used.bytes,
            stored_bytes: used.stored,
            used_bytes,
            garbage_bytes: used_bytes.saturating_sub(used.stored),
            capacity: cold.config.capacity,
            packs: used.packs,
            hits: counters.hits.get(),
            misses: shared.counters.misses.get(),
            promotions: counters.promotions.get(),
            demotions: counters.demotions.get(),
            evictions: counters.evictions.get(),
            packs_written: counters.packs_written.get(),
            packs_removed: counters.packs_removed.get(),
            repacks: counters.repacks.get(),
            orphans: counters.orphans.get(),
            failed_moves: counters.failures.get(),
            throttled_moves: moves.throttled,
            waiting_promotions: mover.waiting(),
            put_requests: requests.puts.get(),
            get_requests: requests.gets.get(),
            list_requests: requests.lists.get(),
            delete_requests: requests.deletes.get(),
            retries: requests.retries.get(),
            errors: requests.errors.get(),
            bytes_in: requests.bytes_in.get(),
            bytes_out: requests.bytes_out.get(),
            raw_bytes: counters.raw_bytes.get(),
            frame_bytes: counters.frame_bytes.get(),
        }
    }
}

impl Stats {
    pub(crate) fn of(shared: &Shared, mover: Option<&Mover>) -> Stats {
        let counters = &shared.counters;
        let (memory_blocks, memory_bytes) = shared.memory.usage();
        let policy = shared.memory.policy_stats();
        let pins = shared.pins.read();
        let cold = mover.map(|mover| ColdStats::of(shared, mover));
        let below_disk = cold.map_or(0, |cold| cold.hits) + counters.misses.get();
        let cold_blocks = cold.map_or_else(|| shared.packs.sum().blocks, |cold| cold.blocks);
        Stats {
            memory: MemoryStats {
                blocks: memory_blocks,
                bytes: memory_bytes,
                capacity: shared.memory.capacity(),
                hits: counters.memory_hits.get(),
                misses: counters.disk_hits.get() + below_disk,
                promotions: counters.promotions.get(),
                evictions: shared.memory.evictions.load(Relaxed),
                bookkeeping_bytes: policy.bookkeeping_bytes,
                window_bytes: policy.window_bytes,
                window_share: policy.window,
                half_life: policy.half_life,
                adaptations: policy.switches,
                ghost_hits: policy.ghost_hits,
            },
            disk: DiskStats {
                blocks: (shared.index.len() as u64).saturating_sub(cold_blocks),
                live_bytes: counters.live.get(),
                pinned_bytes: counters.pinned.get(),
                used_bytes: counters.used.get(),
                garbage_bytes: counters.used.get().saturating_sub(counters.live.get()),
                capacity: shared.capacity(),
                segments: counters.segments.get(),
                hits: counters.disk_hits.get(),
                misses: below_disk,
                evictions: counters.evictions.get(),
                expirations: counters.expirations.get(),
                corruptions: counters.corruptions.get(),
                compactions: counters.compactions.get(),
                user_bytes: counters.user_bytes.get(),
                written_bytes: counters.written.get(),
                syncs: counters.syncs.get(),
                batches: counters.batches.get(),
                poisoned_segments: counters.poisoned.get(),
                index_bytes: shared.index.bytes() + pins.bytes(),
            },
            cold,
            misses: counters.misses.get(),
            source_hits: counters.source_hits.get(),
            source_misses: counters.source_misses.get(),
            source_errors: counters.source_errors.get(),
            source_bytes: counters.source_bytes.get(),
            source_seconds: counters.source_micros.get() as f64 / 1e6,
            puts: counters.puts.get(),
            duplicate_puts: counters.duplicate_puts.get(),
            pin_sets: pins.len() as u64,
            values: shared.values.read().len() as u64,
        }
    }

    /// Share of the questions to the source that it answered with the block, in [0, 1]; `None` before the first.
    pub fn source_success_ratio(&self) -> Option<f64> {
        let asked = self.source_asked();
        (asked > 0).then(|| self.source_hits as f64 / asked as f64)
    }

    /// Seconds that the source takes for an answer, on average; `None` before the first.
    pub fn source_latency(&self) -> Option<f64> {
        let asked = self.source_asked();
        (asked > 0).then(|| self.source_seconds / asked as f64)
    }

    fn source_asked(&self) -> u64 {
        self.source_hits + self.source_misses + self.source_errors
    }

    /// Share of gets that a tier answered, in [0, 1]; `None` before the first get.
    pub fn hit_ratio(&self) -> Option<f64> {
        let hits = self.memory.hits + self.disk.hits + self.cold.map_or(0, |cold| cold.hits);
        let gets = hits + self.misses;
        (gets > 0).then(|| hits as f64 / gets as f64)
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
    /// Packs removed from the cold tier.
    pub packs: u64,
    /// Bytes given back there.
    pub freed_cold_bytes: u64,
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
    /// Blocks in a cold tier that did not answer.
    pub unreachable: u64,
    /// Blocks that the disk did not give: I/O errors. They stay as they are.
    pub unreadable: u64,
    /// Damaged blocks. They count as absent from now on: fetch and put them again.
    pub corrupt: Vec<cid::Cid>,
}
