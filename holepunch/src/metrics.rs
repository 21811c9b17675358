//! Prometheus metrics. Feature `metrics`.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter, family::Family, gauge::Gauge, histogram::Histogram,
        histogram::exponential_buckets,
    },
    registry::Registry,
};

use crate::{Event, NatStatus};

/// How many outcomes the success rate looks back on.
const WINDOW: usize = 100;

/// Counts what a [`Behaviour`](crate::Behaviour) reports. Give it every event.
#[derive(Debug, Clone)]
pub struct Metrics {
    outcomes: Family<OutcomeLabels, Counter>,
    time_to_direct: Family<TransportLabels, Histogram>,
    round_trip: Histogram,
    tried: Histogram,
    success_rate: Gauge<f64, AtomicU64>,
    public: Gauge,
    nat_status: Family<[(&'static str, &'static str); 1], Gauge>,
    lost_connections: Counter,
    #[cfg(feature = "portmap")]
    mapped_ports: Family<[(&'static str, &'static str); 1], Gauge>,
    window: Arc<Mutex<VecDeque<bool>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
    role: &'static str,
    transport: &'static str,
    /// `0` to `3`, and `more`.
    attempts: &'static str,
    our_nat: &'static str,
    peer_nat: &'static str,
    peer_failure: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransportLabels {
    transport: &'static str,
}

impl Metrics {
    /// Registers the metrics, under the prefix `holepunch`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            outcomes: Family::default(),
            // 50 ms to 51 s.
            time_to_direct: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.05, 2.0, 11))
            }),
            // 5 ms to 5 s.
            round_trip: Histogram::new(exponential_buckets(0.005, 2.0, 11)),
            tried: Histogram::new([0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 24.0]),
            success_rate: Gauge::default(),
            public: Gauge::default(),
            nat_status: Family::default(),
            lost_connections: Counter::default(),
            #[cfg(feature = "portmap")]
            mapped_ports: Family::default(),
            window: Arc::default(),
        };
        let registry = registry.sub_registry_with_prefix("holepunch");
        registry.register(
            "outcomes",
            "Attempts to replace a relayed connection, by outcome",
            metrics.outcomes.clone(),
        );
        registry.register(
            "time_to_direct_seconds",
            "From a relayed connection to the direct one that replaces it",
            metrics.time_to_direct.clone(),
        );
        registry.register(
            "relayed_round_trip_seconds",
            "Round trip of the relayed path, as measured by the exchange",
            metrics.round_trip.clone(),
        );
        registry.register(
            "addresses_tried",
            "Addresses dialled for one punch",
            metrics.tried.clone(),
        );
        registry.register(
            "success_rate",
            "Share of successes among the last 100 attempts",
            metrics.success_rate.clone(),
        );
        registry.register(
            "public",
            "1 if other nodes can reach this one without help, else 0",
            metrics.public.clone(),
        );
        registry.register(
            "nat_status",
            "1 for what is known of whether other nodes can reach this one without help, else 0",
            metrics.nat_status.clone(),
        );
        registry.register(
            "lost_connections",
            "Connections that were closed because their peer gave no sign of life",
            metrics.lost_connections.clone(),
        );
        #[cfg(feature = "portmap")]
        registry.register(
            "mapped_addresses",
            "Public addresses that the gateway sends to this node, by the protocol that asked for them",
            metrics.mapped_ports.clone(),
        );
        metrics.set_nat_status(NatStatus::Unknown);
        metrics
    }

    fn set_nat_status(&self, status: NatStatus) {
        for other in [NatStatus::Unknown, NatStatus::Public, NatStatus::Private] {
            let gauge = self
                .nat_status
                .get_or_create_owned(&[("nat_status", other.as_str())]);
            gauge.set(i64::from(other == status));
        }
    }

    /// Counts one event.
    pub fn record(&self, event: &Event) {
        match event {
            Event::Outcome(outcome) => {
                let transport = outcome.transport.map_or("none", |t| t.as_str());
                self.outcomes
                    .get_or_create(&OutcomeLabels {
                        outcome: outcome
                            .result
                            .map_or_else(|error| error.as_str(), |_| "direct"),
                        role: outcome.role.as_str(),
                        transport,
                        attempts: match outcome.attempts {
                            0 => "0",
                            1 => "1",
                            2 => "2",
                            3 => "3",
                            _ => "more",
                        },
                        our_nat: outcome.our_nat.as_str(),
                        peer_nat: outcome.peer_nat.as_str(),
                        peer_failure: outcome.peer_failure.map_or("none", |f| f.as_str()),
                    })
                    .inc();
                self.tried.observe(outcome.tried.len() as f64);
                if let Some(round_trip) = outcome.round_trip {
                    self.round_trip.observe(round_trip.as_secs_f64());
                }
                if outcome.result.is_ok() {
                    self.time_to_direct
                        .get_or_create(&TransportLabels { transport })
                        .observe(outcome.elapsed.as_secs_f64());
                }
                self.success_rate.set(self.rate(outcome.result.is_ok()));
            }
            Event::NatStatusChanged { new, .. } => {
                self.public.set(i64::from(*new == NatStatus::Public));
                self.set_nat_status(*new);
            }
            Event::ConnectionLost { .. } => {
                self.lost_connections.inc();
            }
            #[cfg(feature = "portmap")]
            Event::PortMapped(mapping) => {
                self.mapped_by(mapping).inc();
            }
            #[cfg(feature = "portmap")]
            Event::PortMappingLost(mapping) => {
                self.mapped_by(mapping).dec();
            }
            Event::PunchStarted { .. } | Event::Reachability { .. } | Event::AnswerLate { .. } => {}
        }
    }

    #[cfg(feature = "portmap")]
    fn mapped_by(&self, mapping: &crate::PortMapping) -> Gauge {
        let labels = [("protocol", mapping.protocol.as_str())];
        self.mapped_ports.get_or_create_owned(&labels)
    }

    fn rate(&self, success: bool) -> f64 {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.len() >= WINDOW {
            window.pop_front();
        }
        window.push_back(success);
        let successes = window.iter().filter(|success| **success).count();
        // At most 100 of 100.
        successes as f64 / window.len() as f64
    }

    /// The share of successes among the last 100 attempts, `None` before the first.
    #[must_use]
    pub fn success_rate(&self) -> Option<f64> {
        let window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let any = !window.is_empty();
        drop(window);
        any.then(|| f64::from_bits(self.success_rate.inner().load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use libp2p_identity::PeerId;
    use libp2p_swarm::ConnectionId;
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::{NatType, Outcome, PunchError, Role, Transport};

    #[test]
    fn the_success_rate_looks_back_on_the_last_hundred_outcomes() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        assert_eq!(metrics.success_rate(), None);
        let connection = ConnectionId::new_unchecked(1);
        let outcome = |result: Result<ConnectionId, PunchError>| {
            Event::Outcome(Outcome {
                peer: PeerId::random(),
                relayed: Some(connection),
                role: Role::Initiator,
                transport: result.ok().map(|_| Transport::Quic),
                result,
                elapsed: Duration::from_millis(360),
                attempts: 1,
                round_trip: Some(Duration::from_millis(100)),
                tried: Vec::new(),
                peer_failure: None,
                no_punch: None,
                our_nat: NatType::PortRestrictedCone,
                peer_nat: NatType::Unknown,
            })
        };
        for _ in 0..100 {
            metrics.record(&outcome(Err(PunchError::DialsFailed)));
        }
        assert_eq!(metrics.success_rate(), Some(0.0));
        for _ in 0..25 {
            metrics.record(&outcome(Ok(connection)));
        }
        assert_eq!(metrics.success_rate(), Some(0.25));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.contains("holepunch_success_rate 0.25\n"), "{text}");
        assert!(
            text.contains(r#"holepunch_time_to_direct_seconds_count{transport="quic"} 25"#),
            "{text}"
        );
    }
    #[test]
    fn the_nat_status_is_one_of_three() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let shows = |status: NatStatus| {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            for other in [NatStatus::Unknown, NatStatus::Public, NatStatus::Private] {
                let (value, other) = (u8::from(other == status), other.as_str());
                let line = format!("holepunch_nat_status{{nat_status=\"{other}\"}} {value}\n");
                assert!(text.contains(&line), "{text}");
            }
        };
        shows(NatStatus::Unknown);
        let mut old = NatStatus::Unknown;
        for new in [NatStatus::Private, NatStatus::Public, NatStatus::Unknown] {
            metrics.record(&Event::NatStatusChanged { old, new });
            shows(new);
            old = new;
        }
    }
}
