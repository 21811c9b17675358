//! Prometheus metrics, prefix `discovery_mdns_`.

use std::sync::atomic::AtomicU64;

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
    unusable: Counter<u64, AtomicU64>,
    over_limit: Counter<u64, AtomicU64>,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("discovery_mdns");
        registry.register(
            "peers",
            "Peers known on the local network",
            metrics.peers.clone(),
        );
        registry.register(
            "discovered",
            "Addresses discovered",
            metrics.discovered.clone(),
        );
        registry.register("expired", "Addresses expired", metrics.expired.clone());
        registry.register(
            "unusable",
            "Records ignored because nobody could dial them",
            metrics.unusable.clone(),
        );
        registry.register(
            "over_limit",
            "Records ignored because the table was full",
            metrics.over_limit.clone(),
        );
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
            .set(i64::try_from(core.peers().count()).unwrap_or(i64::MAX));
        let ignored = core.ignored();
        self.unusable
            .inner()
            .store(ignored.unusable, std::sync::atomic::Ordering::Relaxed);
        self.over_limit
            .inner()
            .store(ignored.over_limit, std::sync::atomic::Ordering::Relaxed);
    }
}
