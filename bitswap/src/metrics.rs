//! Prometheus counters.

use prometheus_client::{metrics::counter::Counter, registry::Registry};

use crate::message::Message;

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
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("bitswap");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        Self {
            messages_received: counter("messages_received", "Messages received"),
            entries_received: counter("entries_received", "Wantlist entries received"),
            blocks_received: counter("blocks_received", "Blocks received, wanted or not"),
            bytes_received: counter("bytes_received", "Bytes of blocks received"),
            items_skipped: counter("items_skipped", "Items of messages that could not be used"),
            blocks_sent: counter("blocks_sent", "Blocks written"),
            bytes_sent: counter("bytes_sent", "Bytes of blocks written"),
            violations: counter("violations", "Breaches of the protocol by peers"),
        }
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
