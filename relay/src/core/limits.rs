//! Which limit belongs to which relayed connection.

use std::{collections::VecDeque, time::Duration};

use libp2p_identity::PeerId;
use web_time::Instant;

use crate::CircuitLimit;

/// Circuits that wait for their connection at most; beyond, the oldest is forgotten.
const MAX_WAITING: usize = 256;

/// A circuit whose connection is not up by then failed its handshake: the longest transport
/// timeout in use (20 s in libp2p's own tests, 10 s by default) with some room.
const FORGET_AFTER: Duration = Duration::from_secs(30);

/// Matches circuits, whose limits are known when they open, with the connections that come of
/// them: the swarm gives a connection its id without saying which circuit is below it.
///
/// A relay, a direction and the peer at the other end name the circuit. Where several such circuits
/// are set up at the same moment, each gets the strictest of their limits, which one relay has no
/// reason to make different.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    circuit: Circuit,
    limit: Option<CircuitLimit>,
    at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Circuit {
    pub(crate) relay: PeerId,
    /// Who is at the other end.
    pub(crate) peer: PeerId,
    /// Whether that peer opened it.
    pub(crate) inbound: bool,
}

impl Limits {
    /// A circuit is open, and its connection is being set up.
    pub(crate) fn on_circuit(
        &mut self,
        circuit: Circuit,
        limit: Option<CircuitLimit>,
        now: Instant,
    ) {
        self.forget(now);
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Waiting {
            circuit,
            limit,
            at: now,
        });
    }

    /// The connection over a circuit is up: what it may carry.
    pub(crate) fn on_connection(&mut self, circuit: Circuit, now: Instant) -> Option<CircuitLimit> {
        self.forget(now);
        let mut alike = self
            .waiting
            .iter()
            .filter(|waiting| waiting.circuit == circuit);
        let Some(first) = alike.next() else {
            return Some(CircuitLimit::REFERENCE);
        };
        let limit = alike.fold(first.limit, |limit, other| {
            CircuitLimit::strictest(limit, other.limit)
        });
        let position = self
            .waiting
            .iter()
            .position(|waiting| waiting.circuit == circuit);
        if let Some(position) = position {
            self.waiting.remove(position);
        }
        limit
    }

    fn forget(&mut self, now: Instant) {
        let alive = |at: Instant| now.saturating_duration_since(at) < FORGET_AFTER;
        self.waiting.retain(|waiting| alive(waiting.at));
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;

    fn limit(bytes: u64) -> Option<CircuitLimit> {
        CircuitLimit::announced(None, Some(bytes))
    }

    fn circuit(inbound: bool) -> Circuit {
        Circuit {
            relay: PeerId::random(),
            peer: PeerId::random(),
            inbound,
        }
    }

    #[test]
    fn each_circuit_keeps_its_own_limit_even_through_one_relay_at_the_same_moment() {
        let now = Instant::now();
        let first = circuit(false);
        let second = Circuit {
            peer: PeerId::random(),
            ..first
        };
        let inbound = Circuit {
            inbound: true,
            ..first
        };
        let mut limits = Limits::default();
        limits.on_circuit(first, limit(5), now);
        limits.on_circuit(second, None, now);
        limits.on_circuit(inbound, limit(7), now);
        assert_eq!(limits.on_connection(second, now), None);
        assert_eq!(limits.on_connection(inbound, now), limit(7));
        assert_eq!(limits.on_connection(first, now), limit(5));
    }

    #[test]
    fn circuits_that_nothing_tells_apart_get_the_strictest_limit() {
        let (now, same) = (Instant::now(), circuit(true));
        let mut limits = Limits::default();
        limits.on_circuit(same, limit(5), now);
        limits.on_circuit(same, limit(9), now);
        assert_eq!(limits.on_connection(same, now), limit(5));
        assert_eq!(limits.on_connection(same, now), limit(9));
    }

    #[test]
    fn a_connection_that_nobody_announced_gets_the_reference_limit() {
        let reference = Some(CircuitLimit::REFERENCE);
        let mut limits = Limits::default();
        assert_eq!(
            limits.on_connection(circuit(true), Instant::now()),
            reference
        );
    }

    #[test]
    fn a_failed_handshake_does_not_lend_its_limit_to_a_later_connection() {
        let (now, same) = (Instant::now(), circuit(false));
        let mut limits = Limits::default();
        limits.on_circuit(same, limit(1), now);
        let later = now + FORGET_AFTER;
        limits.on_circuit(same, limit(9), later);
        assert_eq!(limits.on_connection(same, later), limit(9));
    }

    #[test]
    fn circuits_without_connections_are_bounded() {
        let now = Instant::now();
        let mut limits = Limits::default();
        for _ in 0..10 * MAX_WAITING {
            limits.on_circuit(circuit(true), None, now);
        }
        assert_eq!(limits.waiting.len(), MAX_WAITING);
    }
}
