//! Prometheus metrics of a relay's server and client side. Feature `metrics`.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{client, server};

/// Counts what a [`server::Behaviour`] reports. Give it every event.
#[derive(Debug, Clone)]
pub struct ServerMetrics {
    reservations: Gauge,
    reservation_requests: Family<Outcome, Counter>,
    circuits: Gauge,
    circuit_requests: Family<Outcome, Counter>,
}

/// Counts what a [`client::Behaviour`] reports. Give it every event.
#[derive(Debug, Clone)]
pub struct ClientMetrics {
    reservations: Gauge,
    reservation_results: Family<Outcome, Counter>,
    circuits: Family<Limited, Counter>,
}

/// `accepted`, `renewed`, or why not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Limited {
    limited: bool,
}

impl ServerMetrics {
    /// Registers the metrics, under the prefix `relay_server`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            reservations: Gauge::default(),
            reservation_requests: Family::default(),
            circuits: Gauge::default(),
            circuit_requests: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("relay_server");
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
        registry.register("circuits", "Circuits open", metrics.circuits.clone());
        registry.register(
            "circuit_requests",
            "Requests for a circuit, by outcome",
            metrics.circuit_requests.clone(),
        );
        metrics
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
        match event {
            Event::ReservationAccepted { renewed: true, .. } => reservation("renewed"),
            Event::ReservationAccepted { renewed: false, .. } => {
                reservation("accepted");
                self.reservations.inc();
            }
            Event::ReservationDenied { status, .. } => reservation(status.as_str()),
            Event::ReservationClosed { .. } => {
                self.reservations.dec();
            }
            Event::CircuitAccepted { .. } => {
                circuit("accepted");
                self.circuits.inc();
            }
            Event::CircuitDenied { status, .. } => circuit(status.as_str()),
            Event::CircuitClosed { .. } => {
                self.circuits.dec();
            }
            Event::StatusChanged { .. } => {}
            _ => {}
        }
    }
}

impl ClientMetrics {
    /// Registers the metrics, under the prefix `relay_client`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            reservations: Gauge::default(),
            reservation_results: Family::default(),
            circuits: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("relay_client");
        registry.register(
            "reservations",
            "Reservations held",
            metrics.reservations.clone(),
        );
        registry.register(
            "reservation_results",
            "Answers to requests for a reservation and losses, by outcome",
            metrics.reservation_results.clone(),
        );
        registry.register(
            "circuits",
            "Relayed connections that came up, by whether the relay limits them",
            metrics.circuits.clone(),
        );
        metrics
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
            Event::Lost { .. } => {
                result("lost");
                self.reservations.dec();
            }
            Event::Failed { .. } => result("failed"),
            Event::Circuit { limit, .. } => {
                let limited = limit.is_some();
                self.circuits.get_or_create(&Limited { limited }).inc();
            }
            Event::CandidatesWanted { .. } | Event::Status { .. } => {}
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
}
