//! Prometheus metrics of a relay's server and client side. Feature `metrics`.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::{client, server};

/// Counts what a [`server::Behaviour`] reports. Give it every event, and the behaviour before its text is read.
///
/// What go-libp2p's relay service has (`libp2p_relaysvc_*`: status, reservations, their requests and refusals by reason,
/// connections, their requests and refusals by reason, their durations, bytes transferred), and besides: why circuits and
/// reservations ended, bytes by direction, violations, bans.
#[derive(Debug, Clone)]
pub struct ServerMetrics {
    enabled: Gauge,
    reservations: Gauge,
    reservation_requests: Family<Outcome, Counter>,
    reservation_ends: Family<End, Counter>,
    circuits: Gauge,
    circuit_requests: Family<Outcome, Counter>,
    circuit_ends: Family<End, Counter>,
    circuit_duration: Histogram,
    circuit_bytes: Family<Direction, Counter>,
    /// What circuits carried that ended, so that nothing is counted twice.
    ended_bytes: Family<Direction, Counter>,
    violations: Counter,
    bans: Counter,
}

/// Counts what a [`client::Behaviour`] reports. Give it every event, and the behaviour before its text is read.
///
/// What go-libp2p's relay finder has (`libp2p_autorelay_*`: reservations wanted, opened and closed, their requests by outcome,
/// candidates), and besides: why reservations were lost, relayed connections and whether they are limited.
#[derive(Debug, Clone)]
pub struct ClientMetrics {
    reservations: Gauge,
    reservations_wanted: Gauge,
    known_relays: Gauge,
    reservation_results: Family<Outcome, Counter>,
    losses: Family<Outcome, Counter>,
    candidates_wanted: Counter,
    circuits: Family<Limited, Counter>,
}

/// `accepted`, `renewed`, or why not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct End {
    reason: &'static str,
}

/// `to_destination` or `to_source`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Limited {
    limited: bool,
}

impl ServerMetrics {
    /// Registers the metrics, under the prefix `relay_server`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            enabled: Gauge::default(),
            reservations: Gauge::default(),
            reservation_requests: Family::default(),
            reservation_ends: Family::default(),
            circuits: Gauge::default(),
            circuit_requests: Family::default(),
            circuit_ends: Family::default(),
            // A quarter of a second to four and a half hours.
            circuit_duration: Histogram::new(exponential_buckets(0.25, 4.0, 9)),
            circuit_bytes: Family::default(),
            ended_bytes: Family::default(),
            violations: Counter::default(),
            bans: Counter::default(),
        };
        let registry = registry.sub_registry_with_prefix("relay_server");
        registry.register(
            "enabled",
            "1 while this node relays for others",
            metrics.enabled.clone(),
        );
        registry.register(
            "reservations",
            "Reservations held",
            metrics.reservations.clone(),
        );
        registry.register(
            "reservation_requests",
            "Requests for a reservation, by outcome",
            metrics.reservation_requests.clone(),
        );
        registry.register(
            "reservation_ends",
            "Reservations that ended, by reason",
            metrics.reservation_ends.clone(),
        );
        registry.register("circuits", "Circuits open", metrics.circuits.clone());
        registry.register(
            "circuit_requests",
            "Requests for a circuit, by outcome",
            metrics.circuit_requests.clone(),
        );
        registry.register(
            "circuit_ends",
            "Circuits that ended, by reason",
            metrics.circuit_ends.clone(),
        );
        registry.register_with_unit(
            "circuit_duration",
            "How long circuits were open that ended",
            Unit::Seconds,
            metrics.circuit_duration.clone(),
        );
        registry.register_with_unit(
            "circuit",
            "What circuits carried, by direction",
            Unit::Bytes,
            metrics.circuit_bytes.clone(),
        );
        registry.register(
            "violations",
            "Messages that the protocol does not allow",
            metrics.violations.clone(),
        );
        registry.register(
            "bans",
            "Peers that were disconnected because they asked too often",
            metrics.bans.clone(),
        );
        metrics
    }

    /// Counts what open circuits have carried so far. Without it their bytes are counted when they end.
    ///
    /// One `ServerMetrics` is for one behaviour.
    pub fn observe(&self, server: &server::Behaviour) {
        let carried = server.traffic();
        raise(
            &self.circuit_bytes,
            "to_destination",
            carried.to_destination,
        );
        raise(&self.circuit_bytes, "to_source", carried.to_source);
    }

    /// Counts one event.
    pub fn record(&self, event: &server::Event) {
        use server::Event;
        let reservation = |outcome| {
            self.reservation_requests
                .get_or_create(&Outcome { outcome })
                .inc();
        };
        let circuit = |outcome| {
            self.circuit_requests
                .get_or_create(&Outcome { outcome })
                .inc();
        };
        let carried = |direction, bytes| {
            let ended = self.ended_bytes.get_or_create(&Direction { direction });
            ended.inc_by(bytes);
            raise(&self.circuit_bytes, direction, ended.get());
        };
        match event {
            Event::ReservationAccepted { renewed: true, .. } => reservation("renewed"),
            Event::ReservationAccepted { renewed: false, .. } => {
                reservation("accepted");
                self.reservations.inc();
            }
            Event::ReservationDenied { status, .. } => reservation(status.as_str()),
            Event::ReservationClosed { reason, .. } => {
                self.reservations.dec();
                let reason = reason.as_str();
                self.reservation_ends.get_or_create(&End { reason }).inc();
            }
            Event::CircuitAccepted { .. } => {
                circuit("accepted");
                self.circuits.inc();
            }
            Event::CircuitDenied { status, .. } => circuit(status.as_str()),
            Event::CircuitClosed {
                traffic,
                duration,
                end,
                ..
            } => {
                self.circuits.dec();
                let reason = end.as_str();
                self.circuit_ends.get_or_create(&End { reason }).inc();
                self.circuit_duration.observe(duration.as_secs_f64());
                carried("to_destination", traffic.to_destination);
                carried("to_source", traffic.to_source);
            }
            Event::StatusChanged { enabled } => {
                self.enabled.set(i64::from(*enabled));
            }
            Event::ProtocolViolation { .. } => {
                self.violations.inc();
            }
            Event::Banned { .. } => {
                self.bans.inc();
            }
            Event::Drained { .. } => {}
        }
    }
}

/// Brings a counter up to `total`; what it counted already stays.
fn raise(counters: &Family<Direction, Counter>, direction: &'static str, total: u64) {
    let counter = counters.get_or_create(&Direction { direction });
    counter.inc_by(total.saturating_sub(counter.get()));
}

impl ClientMetrics {
    /// Registers the metrics, under the prefix `relay_client`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            reservations: Gauge::default(),
            reservations_wanted: Gauge::default(),
            known_relays: Gauge::default(),
            reservation_results: Family::default(),
            losses: Family::default(),
            candidates_wanted: Counter::default(),
            circuits: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("relay_client");
        registry.register(
            "reservations",
            "Reservations held",
            metrics.reservations.clone(),
        );
        registry.register(
            "reservations_wanted",
            "Reservations to hold at the same time",
            metrics.reservations_wanted.clone(),
        );
        registry.register(
            "known_relays",
            "Relays that are known, in use or not",
            metrics.known_relays.clone(),
        );
        registry.register(
            "reservation_results",
            "Answers to requests for a reservation, by outcome",
            metrics.reservation_results.clone(),
        );
        registry.register(
            "losses",
            "Reservations that ended, by why",
            metrics.losses.clone(),
        );
        registry.register(
            "candidates_wanted",
            "How often no candidate was left to ask",
            metrics.candidates_wanted.clone(),
        );
        registry.register(
            "circuits",
            "Relayed connections that came up, by whether the relay limits them",
            metrics.circuits.clone(),
        );
        metrics
    }

    /// Counts relays that are known, and reservations that are wanted.
    pub fn observe(&self, client: &client::Behaviour) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.known_relays.set(count(client.known_relays()));
        self.reservations_wanted
            .set(count(client.target_reservations()));
    }

    /// Counts one event.
    pub fn record(&self, event: &client::Event) {
        use client::Event;
        let result = |outcome| {
            self.reservation_results
                .get_or_create(&Outcome { outcome })
                .inc();
        };
        match event {
            Event::Reserved { renewal: true, .. } => result("renewed"),
            Event::Reserved { renewal: false, .. } => {
                result("accepted");
                self.reservations.inc();
            }
            Event::Lost { why, .. } => {
                let outcome = why.as_str();
                self.losses.get_or_create(&Outcome { outcome }).inc();
                self.reservations.dec();
            }
            Event::Failed { why, .. } => result(why.as_str()),
            Event::Circuit { limit, .. } => {
                let limited = limit.is_some();
                self.circuits.get_or_create(&Limited { limited }).inc();
            }
            Event::CandidatesWanted { .. } => {
                self.candidates_wanted.inc();
            }
            Event::Status { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::PeerId;
    use libp2p_swarm::ConnectionId;
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn a_reservation_is_counted_up_once_and_down_once() {
        let mut registry = Registry::default();
        let metrics = ServerMetrics::new(&mut registry);
        let (peer, connection) = (PeerId::random(), ConnectionId::new_unchecked(1));
        for renewed in [false, true] {
            metrics.record(&server::Event::ReservationAccepted {
                peer,
                connection,
                renewed,
            });
        }
        let text = |registry: &Registry| {
            let mut text = String::new();
            encode(&mut text, registry).unwrap();
            text
        };
        assert!(text(&registry).contains("relay_server_reservations 1\n"));
        metrics.record(&server::Event::ReservationClosed {
            peer,
            connection,
            reason: server::CloseReason::Expired,
        });
        let text = text(&registry);
        assert!(text.contains("relay_server_reservations 0\n"), "{text}");
        assert!(
            text.contains(r#"relay_server_reservation_requests_total{outcome="renewed"} 1"#),
            "{text}"
        );
    }

    #[test]
    fn a_circuit_is_accounted_when_it_ends() {
        let mut registry = Registry::default();
        let metrics = ServerMetrics::new(&mut registry);
        let (source, destination) = (PeerId::random(), PeerId::random());
        let circuit = server::CircuitId(7);
        metrics.record(&server::Event::CircuitAccepted {
            circuit,
            source,
            destination,
        });
        metrics.record(&server::Event::CircuitClosed {
            circuit,
            source,
            destination,
            traffic: server::Traffic {
                to_destination: 1000,
                to_source: 30,
            },
            duration: std::time::Duration::from_secs(2),
            end: server::CircuitEnd::ByteLimit,
        });
        metrics.record(&server::Event::StatusChanged { enabled: true });
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "relay_server_circuits 0\n",
            "relay_server_enabled 1\n",
            "relay_server_circuit_requests_total{outcome=\"accepted\"} 1\n",
            "relay_server_circuit_ends_total{reason=\"byte_limit\"} 1\n",
            "relay_server_circuit_duration_seconds_sum 2.0\n",
            "relay_server_circuit_bytes_total{direction=\"to_destination\"} 1000\n",
            "relay_server_circuit_bytes_total{direction=\"to_source\"} 30\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    #[test]
    fn bytes_of_a_circuit_are_counted_once_whether_it_is_looked_at_before_its_end_or_not() {
        let metrics = ServerMetrics::new(&mut Registry::default());
        let counted = || {
            let direction = "to_source";
            let counter = metrics
                .circuit_bytes
                .get_or_create(&Direction { direction });
            counter.get()
        };
        let ends = |to_source| {
            metrics.record(&server::Event::CircuitClosed {
                circuit: server::CircuitId(7),
                source: PeerId::random(),
                destination: PeerId::random(),
                traffic: server::Traffic {
                    to_destination: 0,
                    to_source,
                },
                duration: std::time::Duration::from_secs(2),
                end: server::CircuitEnd::Completed,
            });
        };
        ends(10);
        // Another one has carried 30 so far, and 50 when it ends.
        raise(&metrics.circuit_bytes, "to_source", 40);
        assert_eq!(counted(), 40);
        ends(50);
        assert_eq!(counted(), 60);
        raise(&metrics.circuit_bytes, "to_source", 60);
        assert_eq!(counted(), 60);
    }

    #[test]
    fn a_node_counts_what_it_wants_and_knows() {
        let mut registry = Registry::default();
        let metrics = ClientMetrics::new(&mut registry);
        let config = client::Config::default();
        let (_transport, mut node) = client::new(PeerId::random(), config);
        for host in 1..=4 {
            let address = format!("/ip4/198.51.100.{host}/tcp/1").parse().unwrap();
            node.add_candidate(PeerId::random(), vec![address]);
        }
        metrics.observe(&node);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "relay_client_reservations_wanted 3\n",
            "relay_client_known_relays 4\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn a_node_counts_its_reservations_and_why_they_ended() {
        let mut registry = Registry::default();
        let metrics = ClientMetrics::new(&mut registry);
        let relay = PeerId::random();
        for renewal in [false, true] {
            metrics.record(&client::Event::Reserved {
                relay,
                address: "/ip4/203.0.113.9/tcp/1".parse().unwrap(),
                renewal,
                limit: None,
            });
        }
        let why = client::LossReason::Silent;
        metrics.record(&client::Event::Lost { relay, why });
        metrics.record(&client::Event::CandidatesWanted { missing: 1 });
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "relay_client_reservations 0\n",
            "relay_client_reservation_results_total{outcome=\"accepted\"} 1\n",
            "relay_client_reservation_results_total{outcome=\"renewed\"} 1\n",
            "relay_client_losses_total{outcome=\"silent\"} 1\n",
            "relay_client_candidates_wanted_total 1\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }
}
