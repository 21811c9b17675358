//! Prometheus metrics, prefix `discovery_mdns_`.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

use crate::{Event, core::Core};

/// Counts what the behaviour saw.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    peers: Gauge,
    discovered: Counter,
    expired: Counter,
    received: Counter<u64, AtomicU64>,
    malformed: Counter<u64, AtomicU64>,
    off_link: Counter<u64, AtomicU64>,
    unusable: Counter<u64, AtomicU64>,
    over_limit: Counter<u64, AtomicU64>,
    queries: Counter<u64, AtomicU64>,
    queries_suppressed: Counter<u64, AtomicU64>,
    answers: Counter<u64, AtomicU64>,
    answers_suppressed: Counter<u64, AtomicU64>,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("discovery_mdns");
        let peers = metrics.peers.clone();
        registry.register("peers", "Peers known on the local network", peers);
        for (name, help, counter) in [
            ("discovered", "Addresses discovered", &metrics.discovered),
            ("expired", "Addresses expired", &metrics.expired),
            ("packets_received", "Packets received", &metrics.received),
            (
                "malformed",
                "Packets ignored because they are no DNS messages",
                &metrics.malformed,
            ),
            (
                "off_link",
                "Packets ignored because their sender is not on the link",
                &metrics.off_link,
            ),
            (
                "unusable",
                "Records ignored because nobody could dial them",
                &metrics.unusable,
            ),
            (
                "over_limit",
                "Records ignored or displaced because a bound was reached",
                &metrics.over_limit,
            ),
            ("queries", "Queries sent", &metrics.queries),
            (
                "queries_suppressed",
                "Queries saved because another host asked first",
                &metrics.queries_suppressed,
            ),
            (
                "answers",
                "Answers and announcements sent",
                &metrics.answers,
            ),
            (
                "answers_suppressed",
                "Answers saved because the asker knew them",
                &metrics.answers_suppressed,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        metrics
    }

    pub(crate) fn on_event(&self, event: &Event) {
        match event {
            Event::Discovered { addresses, .. } => self.discovered.inc_by(addresses.len() as u64),
            Event::Expired { addresses, .. } => self.expired.inc_by(addresses.len() as u64),
        };
    }

    pub(crate) fn on_core(&self, core: &Core) {
        self.peers
            .set(i64::try_from(core.peers().len()).unwrap_or(i64::MAX));
        let counters = core.counters();
        for (metric, value) in [
            (&self.received, counters.received),
            (&self.malformed, counters.malformed),
            (&self.off_link, counters.off_link),
            (&self.unusable, counters.unusable),
            (&self.over_limit, counters.over_limit),
            (&self.queries, counters.queries),
            (&self.queries_suppressed, counters.queries_suppressed),
            (&self.answers, counters.answers),
            (&self.answers_suppressed, counters.answers_suppressed),
        ] {
            metric.inner().store(value, Ordering::Relaxed);
        }
    }
}
