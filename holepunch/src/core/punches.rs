//! How each attempt to replace a relayed connection ends: once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;
use web_time::Instant;

use crate::{Config, Event, NatType, Outcome, PunchError, Role, Transport};

/// Follows relayed connections from their beginning to their outcome.
///
/// The stock behaviour tells the initiator how its dials went and the responder nothing, so the
/// outcome is read off the connections: the first direct one, or none in time.
#[derive(Debug)]
pub(crate) struct Punches {
    config: Config,
    pending: BTreeMap<ConnectionId, Pending>,
    /// The direct connections of each peer.
    direct: BTreeMap<PeerId, BTreeSet<ConnectionId>>,
    outputs: VecDeque<Event>,
}

#[derive(Debug)]
struct Pending {
    peer: PeerId,
    role: Role,
    since: Instant,
    deadline: Instant,
    /// What the outcome is at the deadline.
    verdict: PunchError,
}

impl Punches {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            pending: BTreeMap::new(),
            direct: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// A relayed connection is up.
    pub(crate) fn on_relayed(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        role: Role,
        now: Instant,
    ) {
        if !self.config.enabled() || self.direct.contains_key(&peer) {
            return;
        }
        if self.pending.len() >= self.config.max_pending()
            && let Some((&oldest, _)) = self.pending.iter().min_by_key(|(_, p)| p.since)
        {
            self.end(oldest, Err(PunchError::TimedOut), None, now);
        }
        self.pending.insert(
            connection,
            Pending {
                peer,
                role,
                since: now,
                deadline: now + self.config.outcome_timeout(),
                verdict: PunchError::TimedOut,
            },
        );
        self.outputs.push_back(Event::PunchStarted {
            peer,
            relayed: connection,
            role,
        });
    }

    /// A direct connection is up.
    pub(crate) fn on_direct(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        transport: Transport,
        now: Instant,
    ) {
        self.direct.entry(peer).or_default().insert(connection);
        for relayed in self.pending_of(peer) {
            self.end(relayed, Ok(connection), Some(transport), now);
        }
    }

    /// A connection closed, relayed or direct.
    pub(crate) fn on_closed(&mut self, connection: ConnectionId, peer: PeerId, now: Instant) {
        self.end(
            connection,
            Err(PunchError::RelayedConnectionClosed),
            None,
            now,
        );
        if let Some(connections) = self.direct.get_mut(&peer) {
            connections.remove(&connection);
            if connections.is_empty() {
                self.direct.remove(&peer);
            }
        }
    }

    /// Our own part failed. The peer's dials may still get through for a moment.
    pub(crate) fn on_failed(&mut self, peer: PeerId, error: PunchError, now: Instant) {
        let grace = now + self.config.failure_grace();
        for pending in self.pending.values_mut() {
            if pending.peer == peer {
                pending.deadline = pending.deadline.min(grace);
                pending.verdict = error;
            }
        }
    }

    /// Something may be due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<(ConnectionId, PunchError)> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.deadline <= now)
            .map(|(relayed, pending)| (*relayed, pending.verdict))
            .collect();
        for (relayed, error) in due {
            self.end(relayed, Err(error), None, now);
        }
    }

    /// Drain after every call that changes something.
    pub(crate) fn poll_output(&mut self) -> Option<Event> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.deadline).min()
    }

    fn pending_of(&self, peer: PeerId) -> Vec<ConnectionId> {
        self.pending
            .iter()
            .filter(|(_, pending)| pending.peer == peer)
            .map(|(relayed, _)| *relayed)
            .collect()
    }

    fn end(
        &mut self,
        relayed: ConnectionId,
        result: Result<ConnectionId, PunchError>,
        transport: Option<Transport>,
        now: Instant,
    ) {
        let Some(pending) = self.pending.remove(&relayed) else {
            return;
        };
        self.outputs.push_back(Event::Outcome(Outcome {
            peer: pending.peer,
            relayed: Some(relayed),
            role: pending.role,
            result,
            transport,
            elapsed: now.saturating_duration_since(pending.since),
            attempts: 0,
            round_trip: None,
            tried: Vec::new(),
            peer_failure: None,
            no_punch: None,
            our_nat: NatType::Unknown,
            peer_nat: NatType::Unknown,
        }));
    }
}

#[cfg(test)]
#[path = "punches_tests.rs"]
mod tests;
