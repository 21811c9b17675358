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
            ("misses", "Gets that found nothing", stats.misses),
            ("puts", "Puts acknowledged", stats.puts),
            (
                "duplicate_puts",
                "Puts of blocks that were there",
                stats.duplicate_puts,
            ),
        ];
        for (name, help, value) in counters {
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
