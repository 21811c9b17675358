//! Which limit belongs to which relayed connection.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use web_time::Instant;

use crate::CircuitLimit;

/// Announcements that wait for their connection, for each relay or source.
const MAX_WAITING: usize = 64;

/// A circuit whose connection is not up by then failed its handshake: the longest transport
/// timeout in use (20 s in libp2p's own tests, 10 s by default) with some room.
const FORGET_AFTER: Duration = Duration::from_secs(30);

/// Matches the limits that relays announce for circuits with the connections that come of them.
///
/// The stock client announces a circuit without naming its connection, and outbound ones even
/// without naming the destination. Inbound circuits are matched by source and by the relay's
/// address, in order. Outbound circuits through one relay cannot be told apart; each gets the
/// strictest limit among those that are being set up at that moment.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    outbound: BTreeMap<PeerId, Outbound>,
    inbound: VecDeque<Inbound>,
}

#[derive(Debug)]
struct Outbound {
    /// Circuits announced for which no connection came up yet.
    waiting: usize,
    strictest: Option<CircuitLimit>,
    last: Instant,
}

#[derive(Debug)]
struct Inbound {
    source: PeerId,
    relay: PeerId,
    /// The relay's address as the transport will report it, without `/p2p`.
    relay_address: Multiaddr,
    limit: Option<CircuitLimit>,
    at: Instant,
}

/// What is known of the circuit below a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Matched {
    /// `None` when the address does not name it and nothing was announced.
    pub(crate) relay: Option<PeerId>,
    pub(crate) limit: Option<CircuitLimit>,
}

impl Limits {
    /// A relay opened a circuit for us.
    pub(crate) fn on_outbound_circuit(
        &mut self,
        relay: PeerId,
        limit: Option<CircuitLimit>,
        now: Instant,
    ) {
        self.forget(now);
        let Some(entry) = self.outbound.get_mut(&relay) else {
            // One entry for each relay that answered within the last 30 s.
            self.outbound.insert(
                relay,
                Outbound {
                    waiting: 1,
                    strictest: limit,
                    last: now,
                },
            );
            return;
        };
        entry.waiting += 1;
        entry.strictest = CircuitLimit::strictest(entry.strictest, limit);
        entry.last = now;
    }

    /// A relay brought us a circuit.
    pub(crate) fn on_inbound_circuit(
        &mut self,
        source: PeerId,
        relay: PeerId,
        relay_address: Multiaddr,
        limit: Option<CircuitLimit>,
        now: Instant,
    ) {
        self.forget(now);
        if self.inbound.len() >= MAX_WAITING {
            self.inbound.pop_front();
        }
        self.inbound.push_back(Inbound {
            source,
            relay,
            relay_address,
            limit,
            at: now,
        });
    }

    /// An outbound relayed connection is up.
    pub(crate) fn on_outbound_connection(&mut self, relay: PeerId, now: Instant) -> Matched {
        self.forget(now);
        let limit = match self.outbound.get_mut(&relay) {
            Some(entry) => {
                let limit = entry.strictest;
                entry.waiting -= 1;
                if entry.waiting == 0 {
                    self.outbound.remove(&relay);
                }
                limit
            }
            None => Some(CircuitLimit::REFERENCE),
        };
        Matched {
            relay: Some(relay),
            limit,
        }
    }

    /// An inbound relayed connection is up.
    pub(crate) fn on_inbound_connection(
        &mut self,
        source: PeerId,
        relay: Option<PeerId>,
        relay_address: &Multiaddr,
        now: Instant,
    ) -> Matched {
        self.forget(now);
        let position = self.inbound.iter().position(|circuit| {
            circuit.source == source
                && relay.is_none_or(|relay| relay == circuit.relay)
                && &circuit.relay_address == relay_address
        });
        match position.and_then(|position| self.inbound.remove(position)) {
            Some(circuit) => Matched {
                relay: Some(circuit.relay),
                limit: circuit.limit,
            },
            None => Matched {
                relay,
                limit: Some(CircuitLimit::REFERENCE),
            },
        }
    }

    fn forget(&mut self, now: Instant) {
        let alive = |at: Instant| now.saturating_duration_since(at) < FORGET_AFTER;
        self.outbound.retain(|_, entry| alive(entry.last));
        self.inbound.retain(|circuit| alive(circuit.at));
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;

    fn limit(bytes: u64) -> Option<CircuitLimit> {
        CircuitLimit::announced(None, Some(bytes))
    }

    #[test]
    fn an_outbound_connection_gets_the_limit_of_its_relay() {
        let (now, relay, other) = (Instant::now(), PeerId::random(), PeerId::random());
        let mut limits = Limits::default();
        limits.on_outbound_circuit(relay, limit(5), now);
        limits.on_outbound_circuit(other, None, now);
        assert_eq!(limits.on_outbound_connection(relay, now).limit, limit(5));
        assert_eq!(limits.on_outbound_connection(other, now).limit, None);
    }

    #[test]
    fn circuits_set_up_at_the_same_time_all_get_the_strictest_limit() {
        let (now, relay) = (Instant::now(), PeerId::random());
        let mut limits = Limits::default();
        limits.on_outbound_circuit(relay, limit(9), now);
        limits.on_outbound_circuit(relay, limit(5), now);
        limits.on_outbound_circuit(relay, None, now);
        for _ in 0..3 {
            assert_eq!(limits.on_outbound_connection(relay, now).limit, limit(5));
        }
        limits.on_outbound_circuit(relay, limit(9), now);
        assert_eq!(limits.on_outbound_connection(relay, now).limit, limit(9));
    }

    #[test]
    fn a_connection_that_nobody_announced_gets_the_reference_limit() {
        let (now, relay) = (Instant::now(), PeerId::random());
        let mut limits = Limits::default();
        let reference = Some(CircuitLimit::REFERENCE);
        assert_eq!(limits.on_outbound_connection(relay, now).limit, reference);
        let here = Multiaddr::empty();
        let matched = limits.on_inbound_connection(PeerId::random(), None, &here, now);
        assert_eq!(matched.limit, reference);
        assert_eq!(matched.relay, None);
    }

    #[test]
    fn a_failed_handshake_does_not_lend_its_limit_to_a_later_connection() {
        let (now, relay) = (Instant::now(), PeerId::random());
        let mut limits = Limits::default();
        limits.on_outbound_circuit(relay, limit(1), now);
        let later = now + FORGET_AFTER;
        limits.on_outbound_circuit(relay, limit(9), later);
        assert_eq!(limits.on_outbound_connection(relay, later).limit, limit(9));
    }

    #[test]
    fn inbound_circuits_are_told_apart_by_source_and_relay() {
        let now = Instant::now();
        let (source, relay, other) = (PeerId::random(), PeerId::random(), PeerId::random());
        let address: Multiaddr = "/ip4/203.0.113.100/tcp/9100".parse().unwrap();
        let elsewhere: Multiaddr = "/ip4/203.0.113.101/tcp/9100".parse().unwrap();
        let mut limits = Limits::default();
        limits.on_inbound_circuit(other, relay, address.clone(), limit(1), now);
        limits.on_inbound_circuit(source, other, elsewhere.clone(), limit(2), now);
        limits.on_inbound_circuit(source, relay, address.clone(), limit(3), now);
        let matched = limits.on_inbound_connection(source, None, &address, now);
        assert_eq!((matched.relay, matched.limit), (Some(relay), limit(3)));
        let matched = limits.on_inbound_connection(source, Some(other), &elsewhere, now);
        assert_eq!((matched.relay, matched.limit), (Some(other), limit(2)));
    }

    #[test]
    fn announcements_without_connections_are_bounded() {
        let (now, relay) = (Instant::now(), PeerId::random());
        let mut limits = Limits::default();
        for _ in 0..10 * MAX_WAITING {
            let source = PeerId::random();
            limits.on_inbound_circuit(source, relay, Multiaddr::empty(), None, now);
        }
        assert_eq!(limits.inbound.len(), MAX_WAITING);
    }
}
