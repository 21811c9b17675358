//! Prometheus counters.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

use crate::message::{Message, Presence};

/// What one node received and sent.
#[derive(Debug)]
pub(crate) struct Metrics {
    messages_received: Counter,
    entries_received: Counter,
    blocks_received: Counter,
    bytes_received: Counter,
    items_skipped: Counter,
    blocks_sent: Counter,
    bytes_sent: Counter,
    violations: Counter,
    haves_sent: Counter,
    dont_haves_sent: Counter,
    wants_denied: Counter,
    /// How many of them are counted.
    denied: u64,
    prefetches: Counter,
    blocks_prefetched: Counter,
    bytes_prefetched: Counter,
    peers: Gauge,
    wanted: Gauge,
    reads: Gauge,
    pipeline_bytes: Gauge,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("bitswap");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let own = Self {
            messages_received: counter("messages_received", "Messages received"),
            entries_received: counter("entries_received", "Wantlist entries received"),
            blocks_received: counter("blocks_received", "Blocks received, wanted or not"),
            bytes_received: counter("bytes_received", "Bytes of blocks received"),
            items_skipped: counter("items_skipped", "Items of messages that could not be used"),
            blocks_sent: counter("blocks_sent", "Blocks written"),
            bytes_sent: counter("bytes_sent", "Bytes of blocks written"),
            violations: counter("violations", "Breaches of the protocol by peers"),
            haves_sent: counter("haves_sent", "HAVE answers"),
            dont_haves_sent: counter("dont_haves_sent", "DONT_HAVE answers"),
            wants_denied: counter(
                "wants_denied",
                "Wants refused by the filter, or because nothing is served",
            ),
            denied: 0,
            prefetches: counter(
                "prefetches",
                "Blocks asked for because others want them, or by assignment",
            ),
            blocks_prefetched: counter("blocks_prefetched", "Blocks of these that came"),
            bytes_prefetched: counter("bytes_prefetched", "Bytes of blocks of these that came"),
            peers: Gauge::default(),
            wanted: Gauge::default(),
            reads: Gauge::default(),
            pipeline_bytes: Gauge::default(),
        };
        let gauges = [
            ("peers", "Connected peers", &own.peers),
            ("wanted", "Multihashes that peers wait for", &own.wanted),
            ("reads", "Reads of the block source under way", &own.reads),
            (
                "pipeline_bytes",
                "Bytes being read or written for peers",
                &own.pipeline_bytes,
            ),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        own
    }

    pub(crate) fn on_presences(&self, presences: &[Presence]) {
        let haves = presences.iter().filter(|presence| presence.have).count();
        self.haves_sent.inc_by(haves as u64);
        self.dont_haves_sent
            .inc_by((presences.len() - haves) as u64);
    }

    pub(crate) fn on_prefetch(&self) {
        self.prefetches.inc();
    }

    pub(crate) fn on_prefetched(&self, bytes: usize) {
        self.blocks_prefetched.inc();
        self.bytes_prefetched.inc_by(bytes as u64);
    }

    /// What the server's core counts.
    pub(crate) fn observe(&mut self, counters: [u64; 4], denied: u64) {
        let gauges = [&self.peers, &self.wanted, &self.reads, &self.pipeline_bytes];
        for (gauge, value) in gauges.into_iter().zip(counters) {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        self.wants_denied.inc_by(denied - self.denied);
        self.denied = denied;
    }

    pub(crate) fn on_message(&self, message: &Message) {
        let blocks = message.blocks.len() + message.legacy_blocks.len();
        let legacy: usize = message
            .legacy_blocks
            .iter()
            .map(|block| block.data().len())
            .sum();
        self.messages_received.inc();
        self.entries_received.inc_by(message.entries.len() as u64);
        self.blocks_received.inc_by(blocks as u64);
        self.bytes_received
            .inc_by((message.block_bytes() + legacy) as u64);
        self.items_skipped.inc_by(message.skipped as u64);
    }

    pub(crate) fn on_sent(&self, blocks: u64, bytes: u64) {
        self.blocks_sent.inc_by(blocks);
        self.bytes_sent.inc_by(bytes);
    }

    pub(crate) fn on_violation(&self) {
        self.violations.inc();
    }
}
