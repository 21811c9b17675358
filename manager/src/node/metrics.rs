//! Everything that the node and its crates count, in one registry.

use std::sync::atomic::AtomicI64;

use anypath_holepunch::metrics::Metrics as HolepunchMetrics;
use anypath_relay::metrics::{ClientMetrics, ServerMetrics};
use anypath_tiered_store::Store;
use libp2p::metrics::{Metrics as StockMetrics, Recorder as _};
use prometheus_client::{
    encoding::text::encode,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    behaviour::{Behaviour, BehaviourEvent},
    status::ConnectionCounts,
};

pub(super) struct Metrics {
    registry: Registry,
    relay_server: ServerMetrics,
    relay_client: ClientMetrics,
    holepunch: HolepunchMetrics,
    stock: StockMetrics,
    connections: Family<[(&'static str, &'static str); 1], Gauge<i64, AtomicI64>>,
    peers: Gauge,
}

impl Metrics {
    pub(super) fn new(behaviour: &mut Behaviour, store: &Store) -> Self {
        let mut registry = Registry::default();
        let connections = Family::default();
        let peers = Gauge::default();
        let node = registry.sub_registry_with_prefix("anypath");
        node.register(
            "connections",
            "Open connections by path",
            connections.clone(),
        );
        node.register("peers", "Connected peers", peers.clone());
        store.register_metrics(&mut registry);
        behaviour.bitswap.register_metrics(&mut registry);
        if let Some(dht) = behaviour.dht.as_mut() {
            dht.inner_mut().register_metrics(&mut registry);
        }
        if let Some(mdns) = behaviour.mdns.as_mut() {
            mdns.register_metrics(&mut registry);
        }
        if let Some(pubsub) = behaviour.pubsub.as_mut() {
            pubsub.inner_mut().register_metrics(&mut registry);
        }
        Self {
            relay_server: ServerMetrics::new(&mut registry),
            relay_client: ClientMetrics::new(&mut registry),
            holepunch: HolepunchMetrics::new(&mut registry),
            stock: StockMetrics::new(&mut registry),
            connections,
            peers,
            registry,
        }
    }

    pub(super) fn record(&self, event: &BehaviourEvent) {
        match event {
            BehaviourEvent::RelayServer(event) => self.relay_server.record(event),
            BehaviourEvent::RelayClient(event) => self.relay_client.record(event),
            BehaviourEvent::Holepunch(event) => self.holepunch.record(event),
            BehaviourEvent::Identify(event) => self.stock.record(event),
            BehaviourEvent::Ping(event) => self.stock.record(event),
            _ => {}
        }
    }

    pub(super) fn set_connections(&self, counts: ConnectionCounts, peers: usize) {
        let set = |path, count: usize| {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.connections.get_or_create(&[("path", path)]).set(count);
        };
        set("direct", counts.direct);
        set("relayed", counts.relayed);
        self.peers.set(i64::try_from(peers).unwrap_or(i64::MAX));
    }

    /// Looks at what no event tells.
    pub(super) fn observe(&self, behaviour: &Behaviour) {
        self.relay_server.observe(&behaviour.relay_server);
        self.relay_client.observe(&behaviour.relay_client);
    }

    /// OpenMetrics text.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
