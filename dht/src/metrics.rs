//! Prometheus metrics, prefix `dht_`.

use std::hash::Hash;

use libp2p_kad::{self as kad, InboundRequest};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{Event, core::Core, store::Store};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueryLabels {
    query: Query,
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Query {
    Provide,
    FindProviders,
    ClosestPeers,
    PutValue,
    GetValue,
    Bootstrap,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Outcome {
    Success,
    Failure,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    request: Request,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Request {
    FindNode,
    GetProviders,
    AddProvider,
    Value,
}

/// Counts what the behaviour did.
#[derive(Debug)]
pub(crate) struct Metrics {
    queries: Family<QueryLabels, Counter>,
    seconds: Histogram,
    requests: Family<RequestLabels, Counter>,
    routed: Gauge,
    provided: Gauge,
    unannounced: Gauge,
    remote_records: Gauge,
    values: Gauge,
    remote_values: Gauge,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            queries: Family::default(),
            // A query takes from a round trip to its timeout of 60 s.
            seconds: Histogram::new([0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]),
            requests: Family::default(),
            routed: Gauge::default(),
            provided: Gauge::default(),
            unannounced: Gauge::default(),
            remote_records: Gauge::default(),
            values: Gauge::default(),
            remote_values: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("dht");
        registry.register("queries", "Finished queries", metrics.queries.clone());
        registry.register(
            "query_seconds",
            "Duration of queries",
            metrics.seconds.clone(),
        );
        registry.register(
            "requests",
            "Requests that were answered",
            metrics.requests.clone(),
        );
        registry.register(
            "routing_table_peers",
            "Peers we route to",
            metrics.routed.clone(),
        );
        registry.register("provided_keys", "Keys we provide", metrics.provided.clone());
        registry.register(
            "unannounced_keys",
            "Keys we provide, or have put a value of, that nobody has heard of yet",
            metrics.unannounced.clone(),
        );
        registry.register(
            "remote_provider_records",
            "Provider records kept for others",
            metrics.remote_records.clone(),
        );
        registry.register("values", "Values that we have put", metrics.values.clone());
        registry.register(
            "remote_values",
            "Values kept for others",
            metrics.remote_values.clone(),
        );
        metrics
    }

    pub(crate) fn on_event(&self, event: &Event) {
        let (query, result) = match event {
            Event::ProvideFinished { result, .. } => (Query::Provide, result),
            Event::FindProvidersFinished { result, .. } => (Query::FindProviders, result),
            Event::ClosestPeersFinished { result, .. } => (Query::ClosestPeers, result),
            Event::BootstrapFinished { result, .. } => (Query::Bootstrap, result),
            Event::PutValueFinished { result, .. } => (Query::PutValue, result),
            Event::GetValueFinished { result, .. } => (Query::GetValue, result),
            Event::ProvidersFound { .. }
            | Event::ValueFound { .. }
            | Event::ValueExpired { .. }
            | Event::PeerRouted { .. } => {
                return;
            }
        };
        let outcome = if result.is_ok() {
            Outcome::Success
        } else {
            Outcome::Failure
        };
        self.queries
            .get_or_create(&QueryLabels { query, outcome })
            .inc();
    }

    pub(crate) fn on_kad_event(&self, event: &kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed { stats, step, .. } if step.last => {
                self.seconds
                    .observe(stats.duration().unwrap_or_default().as_secs_f64());
            }
            kad::Event::InboundRequest { request } => {
                let request = match request {
                    InboundRequest::FindNode { .. } => Request::FindNode,
                    InboundRequest::GetProvider { .. } => Request::GetProviders,
                    InboundRequest::AddProvider { .. } => Request::AddProvider,
                    InboundRequest::GetRecord { .. } | InboundRequest::PutRecord { .. } => {
                        Request::Value
                    }
                };
                self.requests
                    .get_or_create(&RequestLabels { request })
                    .inc();
            }
            _ => {}
        }
    }

    pub(crate) fn on_idle<Q: Copy + Eq + Hash>(
        &self,
        routed: usize,
        store: &Store,
        core: &Core<Q>,
    ) {
        let set = |gauge: &Gauge, value: usize| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.routed, routed);
        set(&self.provided, store.providers.provided().len());
        set(&self.remote_records, store.providers.remote_records());
        let (own, remote) = store.values.counts();
        set(&self.values, own);
        set(&self.remote_values, remote);
        set(&self.unannounced, core.unannounced());
    }
}
