//! Prometheus metrics, prefix `discovery_pubsub_`.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::core::{Output, Verdict};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    verdict: Label,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Label {
    Accept,
    Ignore,
    Reject,
}

/// Counts what the behaviour saw and did.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    peers: Gauge,
    received: Family<Labels, Counter>,
    published: Counter,
    expired: Counter,
    violations: Counter,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("discovery_pubsub");
        registry.register(
            "peers",
            "Peers known from announcements",
            metrics.peers.clone(),
        );
        registry.register(
            "received",
            "Announcements received, by what became of them",
            metrics.received.clone(),
        );
        registry.register(
            "published",
            "Announcements of ours",
            metrics.published.clone(),
        );
        registry.register("expired", "Peers that expired", metrics.expired.clone());
        registry.register(
            "violations",
            "Announcements at fault",
            metrics.violations.clone(),
        );
        metrics
    }

    pub(crate) fn on_verdict(&self, verdict: Verdict) {
        let verdict = match verdict {
            Verdict::Accept => Label::Accept,
            Verdict::Ignore => Label::Ignore,
            Verdict::Reject => Label::Reject,
        };
        self.received.get_or_create(&Labels { verdict }).inc();
    }

    pub(crate) fn on_output(&self, output: &Output, peers: usize) {
        match output {
            Output::Publish { .. } => {
                self.published.inc();
            }
            Output::Expired { .. } => {
                self.expired.inc();
            }
            Output::ProtocolViolation { .. } => {
                self.violations.inc();
            }
            Output::Discovered { .. } => {}
        }
        self.peers.set(i64::try_from(peers).unwrap_or(i64::MAX));
    }
}
