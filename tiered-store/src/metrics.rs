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
                "disk_garbage_bytes",
                "Bytes that compaction can give back",
                disk.garbage_bytes,
            ),
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
        // Of no use before there is something to divide.
        let ratios = [
            (
                "hit_ratio",
                "Share of gets that a tier answered",
                stats.hit_ratio(),
            ),
            (
                "source_success_ratio",
                "Share of questions that the source answered with the block",
                stats.source_success_ratio(),
            ),
            (
                "disk_write_amplification",
                "Bytes written for a byte handed in",
                disk.write_amplification(),
            ),
        ];
        for (name, help, value) in ratios {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(
                    name,
                    help,
                    None,
                    gauge.metric_type(),
                )?)?;
            }
        }
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters = [
            ("memory_hits", "Gets answered from memory", memory.hits),
            (
                "memory_misses",
                "Gets answered further down, or not at all",
                memory.misses,
            ),
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
                "disk_misses",
                "Gets answered from the cold tier, or not at all",
                disk.misses,
            ),
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
            (
                "source_bytes",
                "Bytes that the source brought",
                stats.source_bytes,
            ),
            (
                "source_milliseconds",
                "Time that the source's answers took",
                (stats.source_seconds * 1000.0) as u64,
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cid::Cid;
    use futures::executor::block_on;
    use multihash_codetable::{Code, MultihashDigest};
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::{ColdConfig, Config};

    /// The value of a metric in the text that Prometheus reads.
    fn value(text: &str, name: &str) -> Option<f64> {
        let line = text.lines().find(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(' '))
        });
        line?.rsplit(' ').next()?.parse().ok()
    }

    #[test]
    fn every_tier_tells_its_blocks_bytes_hits_misses_and_moves() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::builder()
            .path(dir.path().join("store"))
            .cold(ColdConfig::directory(dir.path().join("cold")));
        let mut registry = Registry::default();
        let text = block_on(async {
            let store = Store::open(config.build().unwrap()).await.unwrap();
            store.register_metrics(&mut registry);
            let data = Bytes::from(vec![5; 10_000]);
            let cid = Cid::new_v1(0x55, Code::Sha2_256.digest(&data));
            store.put(cid, data).await.unwrap();
            for _ in 0..3 {
                assert!(store.get(&cid).await.unwrap().is_some());
            }
            let absent = Cid::new_v1(0x55, Code::Sha2_256.digest(b"absent"));
            assert!(store.get(&absent).await.unwrap().is_none());
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            store.close().await.unwrap();
            text
        });
        for (name, expected) in [
            ("store_memory_blocks", 1.0),
            ("store_memory_hits_total", 3.0),
            ("store_memory_misses_total", 1.0),
            ("store_disk_blocks", 1.0),
            ("store_disk_hits_total", 0.0),
            ("store_disk_misses_total", 1.0),
            ("store_misses_total", 1.0),
            ("store_hit_ratio", 0.75),
            ("store_puts_total", 1.0),
            ("store_disk_user_bytes_total", 10_000.0),
            ("store_cold_blocks", 0.0),
            ("store_cold_reachable", 1.0),
        ] {
            assert_eq!(value(&text, name), Some(expected), "{name} in\n{text}");
        }
        let written = value(&text, "store_disk_write_amplification").unwrap();
        assert!((1.0..1.1).contains(&written), "{written}");
        for name in [
            "memory_bytes",
            "memory_promotions_total",
            "memory_evictions_total",
            "disk_live_bytes",
            "disk_garbage_bytes",
            "disk_evictions_total",
            "disk_written_bytes_total",
            "cold_stored_bytes",
            "cold_garbage_bytes",
            "cold_hits_total",
            "cold_promotions_total",
            "cold_demotions_total",
            "cold_evictions_total",
            "source_hits_total",
            "source_errors_total",
        ] {
            assert!(value(&text, &format!("store_{name}")).is_some(), "{name}");
        }
    }
}
