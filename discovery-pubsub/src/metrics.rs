//! Prometheus metrics, prefix `discovery_pubsub_`.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    Service,
    core::{Core, Output, Verdict},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    verdict: VerdictLabel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum VerdictLabel {
    Accept,
    Ignore,
    Reject,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabels {
    service: ServiceLabel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum ServiceLabel {
    Content,
    Relay,
    Role,
}

/// Counts what the behaviour saw and did.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    peers: Gauge,
    announcers: Family<ServiceLabels, Gauge>,
    received: Family<VerdictLabels, Counter>,
    published: Counter,
    expired: Counter,
    violations: Counter,
    dials: Counter,
    graylisted: Counter,
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
            "announcers",
            "Peers that announce a service",
            metrics.announcers.clone(),
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
            "Announcements at fault that were reported",
            metrics.violations.clone(),
        );
        registry.register(
            "dials",
            "Peers that were dialled because they were found",
            metrics.dials.clone(),
        );
        registry.register(
            "graylisted",
            "Peers that were disconnected because gossipsub's score graylisted them",
            metrics.graylisted.clone(),
        );
        metrics
    }

    pub(crate) fn on_verdict(&self, verdict: Verdict) {
        let verdict = match verdict {
            Verdict::Accept => VerdictLabel::Accept,
            Verdict::Ignore => VerdictLabel::Ignore,
            Verdict::Reject => VerdictLabel::Reject,
        };
        self.received
            .get_or_create(&VerdictLabels { verdict })
            .inc();
    }

    pub(crate) fn on_graylisted(&self) {
        self.graylisted.inc();
    }

    pub(crate) fn on_output(&self, output: &Output, core: &Core) {
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
            Output::Dial { .. } => {
                self.dials.inc();
            }
            _ => {}
        }
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.peers.set(count(core.known()));
        for (service, label) in [
            (Service::Content, ServiceLabel::Content),
            (Service::Relay, ServiceLabel::Relay),
            (Service::Role, ServiceLabel::Role),
        ] {
            let labels = ServiceLabels { service: label };
            self.announcers
                .get_or_create(&labels)
                .set(count(core.announcers(service)));
        }
    }
}
