//! Prometheus metrics: the figures of [`Stats`](crate::Stats), read when they are asked for.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use crate::Store;

impl Store {
    /// Registers this store's metrics. The registry keeps a handle: the store lives as long as it.
    pub fn register_metrics(&self, registry: &mut Registry) {
        registry
            .sub_registry_with_prefix("store")
            .register_collector(Box::new(StoreCollector(self.clone())));
    }
}

#[derive(Debug)]
struct StoreCollector(Store);

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stats = self.0.stats();
        let (memory, disk) = (stats.memory, stats.disk);
        let gauges = [
            ("memory_blocks", "Blocks in the memory tier", memory.blocks),
            ("memory_bytes", "Bytes in the memory tier", memory.bytes),
            (
                "memory_capacity_bytes",
                "Bytes the memory tier may hold",
                memory.capacity,
            ),
            (
                "memory_bookkeeping_bytes",
                "Bytes in the memory tier that are not payload",
                memory.bookkeeping_bytes,
            ),
            (
                "memory_window_bytes",
                "Bytes in the memory tier's window",
                memory.window_bytes,
            ),
            (
                "memory_window_percent",
                "Share of the memory tier that its window may take",
                (memory.window_share * 100.0).round() as u64,
            ),
            (
                "memory_half_life",
                "Accesses per block in which a score halves",
                memory.half_life.round() as u64,
            ),
            ("disk_blocks", "Blocks in the disk tier", disk.blocks),
            (
                "disk_live_bytes",
                "Bytes of records that are needed",
                disk.live_bytes,
            ),
            (
                "disk_pinned_bytes",
                "Bytes of records that are pinned",
                disk.pinned_bytes,
            ),
            ("disk_used_bytes", "Bytes of segment files", disk.used_bytes),
            (
                "disk_capacity_bytes",
                "Bytes the disk tier may take",
                disk.capacity,
            ),
            ("disk_segments", "Segment files", disk.segments),
            (
                "index_bytes",
                "Bytes of the index in memory",
                disk.index_bytes,
            ),
            ("pin_sets", "Pin sets", stats.pin_sets),
            ("values", "Values in the key-value namespace", stats.values),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters = [
            ("memory_hits", "Gets answered from memory", memory.hits),
            (
                "memory_promotions",
                "Blocks read into memory",
                memory.promotions,
            ),
            (
                "memory_evictions",
                "Blocks that left memory",
                memory.evictions,
            ),
            (
                "memory_adaptations",
                "Changes of the memory tier's window or half-life",
                memory.adaptations,
            ),
            (
                "memory_ghost_hits",
                "Blocks that came back to memory with their heat",
                memory.ghost_hits,
            ),
            ("disk_hits", "Gets answered from the disk", disk.hits),
            (
                "disk_evictions",
                "Blocks forgotten to make room",
                disk.evictions,
            ),
            (
                "disk_expirations",
                "Blocks forgotten as their time was over",
                disk.expirations,
            ),
            ("disk_corruptions", "Blocks found damaged", disk.corruptions),
            ("disk_compactions", "Segments compacted", disk.compactions),
            ("disk_user_bytes", "Bytes handed in", disk.user_bytes),
            ("disk_written_bytes", "Bytes written", disk.written_bytes),
            ("disk_syncs", "fdatasync calls", disk.syncs),
            ("disk_batches", "Groups of writes", disk.batches),
            (
                "disk_poisoned_segments",
                "Segments given up",
                disk.poisoned_segments,
            ),
            ("misses", "Gets that no tier could answer", stats.misses),
            (
                "source_hits",
                "Misses that the source answered",
                stats.source_hits,
            ),
            (
                "source_misses",
                "Misses that the source could not answer",
                stats.source_misses,
            ),
            (
                "source_errors",
                "Misses for which the source failed",
                stats.source_errors,
            ),
            ("puts", "Puts acknowledged", stats.puts),
            (
                "duplicate_puts",
                "Puts of blocks that were there",
                stats.duplicate_puts,
            ),
        ];
        let cold = stats.cold.map(cold_figures);
        let (cold_gauges, cold_counters) = cold.unzip();
        for (name, help, value) in cold_gauges.into_iter().flatten() {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters = counters.into_iter();
        for (name, help, value) in counters.chain(cold_counters.into_iter().flatten()) {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(
                name,
                help,
                None,
                counter.metric_type(),
            )?)?;
        }
        Ok(())
    }
}

type Figure = (&'static str, &'static str, u64);

/// Gauges and counters of the cold tier.
fn cold_figures(cold: crate::ColdStats) -> ([Figure; 9], [Figure; 19]) {
    let gauges = [
        (
            "cold_reachable",
            "1 if the cold tier answered last time",
            u64::from(cold.is_reachable),
        ),
        ("cold_blocks", "Blocks in the cold tier", cold.blocks),
        ("cold_bytes", "Their bytes, not compressed", cold.bytes),
        (
            "cold_stored_bytes",
            "Their bytes as stored",
            cold.stored_bytes,
        ),
        ("cold_used_bytes", "Bytes of packs", cold.used_bytes),
        (
            "cold_garbage_bytes",
            "Bytes of packs that are not needed",
            cold.garbage_bytes,
        ),
        (
            "cold_capacity_bytes",
            "Bytes the packs may take; 0 for no limit",
            cold.capacity.unwrap_or(0),
        ),
        ("cold_packs", "Packs", cold.packs),
        (
            "cold_waiting_promotions",
            "Blocks on their way to the disk",
            cold.waiting_promotions,
        ),
    ];
    let counters = [
        ("cold_hits", "Gets answered from the cold tier", cold.hits),
        (
            "cold_promotions",
            "Blocks that came to the disk",
            cold.promotions,
        ),
        (
            "cold_demotions",
            "Blocks that came from the disk",
            cold.demotions,
        ),
        (
            "cold_evictions",
            "Blocks forgotten to make room",
            cold.evictions,
        ),
        ("cold_packs_written", "Packs written", cold.packs_written),
        ("cold_packs_removed", "Packs removed", cold.packs_removed),
        ("cold_repacks", "Sets of packs written again", cold.repacks),
        (
            "cold_orphans",
            "Packs that nothing pointed to",
            cold.orphans,
        ),
        ("cold_failed_moves", "Moves that failed", cold.failed_moves),
        (
            "cold_throttled_moves",
            "Promotions refused for want of budget",
            cold.throttled_moves,
        ),
        ("cold_put_requests", "Put requests", cold.put_requests),
        ("cold_get_requests", "Get requests", cold.get_requests),
        ("cold_list_requests", "List requests", cold.list_requests),
        (
            "cold_delete_requests",
            "Delete requests",
            cold.delete_requests,
        ),
        ("cold_retries", "Requests tried again", cold.retries),
        ("cold_errors", "Requests that failed", cold.errors),
        ("cold_received_bytes", "Bytes received", cold.bytes_in),
        ("cold_sent_bytes", "Bytes sent", cold.bytes_out),
        (
            "cold_raw_bytes",
            "Bytes of blocks before compression",
            cold.raw_bytes,
        ),
    ];
    (gauges, counters)
}
