//! Relayed connections, and which of them a punch talks on.

use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;
use web_time::Instant;

use super::{
    Output, Punches, Relayed,
    state::{Punch, Stage, Step},
};
use crate::{Event, PunchError, Role, core::nat::report::NatReport};

impl Punches {
    /// A relayed connection is up.
    pub(crate) fn on_relayed(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        role: Role,
        now: Instant,
    ) {
        if !self.config.enabled() {
            return;
        }
        let relayed = Relayed {
            peer,
            role,
            held: true,
            opened_by_peer: 0,
            dials: 0,
        };
        self.relayed.insert(connection, relayed);
        if self.direct.contains_key(&peer) {
            // Who has a direct connection needs no relay: perhaps the peer has it no more.
            self.outputs.push_back(Output::Doubt(peer));
        } else if self.punches.contains_key(&peer) {
            if !self.settle_on_one_circuit(peer, now) {
                self.release(peer, connection);
            }
        } else {
            self.begin(connection, peer, role, now);
        }
    }

    pub(super) fn begin(&mut self, relayed: ConnectionId, peer: PeerId, role: Role, now: Instant) {
        self.begin_waiting(relayed, peer, role, now);
        self.begin_talking(peer, role, now);
    }

    pub(super) fn begin_talking(&mut self, peer: PeerId, role: Role, now: Instant) {
        if role == Role::Initiator || self.config.early() {
            self.talk(peer, now);
        } else if let Some(punch) = self.punches.get_mut(&peer) {
            punch.stage = Stage::Talking;
        }
    }

    /// A punch that waits for its place.
    pub(super) fn begin_waiting(
        &mut self,
        relayed: ConnectionId,
        peer: PeerId,
        role: Role,
        now: Instant,
    ) {
        if self.punches.len() >= self.config.max_pending()
            && let Some(oldest) = self.punches.iter().min_by_key(|(_, punch)| punch.since)
        {
            let oldest = *oldest.0;
            self.end(oldest, Err(PunchError::Busy), now);
        }
        let punch = Punch {
            relayed,
            role,
            since: now,
            deadline: now + self.config.punch_timeout(),
            stage: Stage::Queued,
            attempt: 0,
            synchronised: 0,
            exchanges: Vec::new(),
            round_trip: None,
            heard: false,
            told: NatReport::default(),
            peers: None,
            peers_failure: None,
            tried: Vec::new(),
            no_punch: None,
            peers_at: Vec::new(),
            ports: Vec::new(),
        };
        self.punches.insert(peer, punch);
        if let Some(circuit) = self.relayed.get_mut(&relayed)
            && !std::mem::replace(&mut circuit.held, true)
        {
            self.outputs.push_back(Output::Hold { peer, relayed });
        }
        self.outputs.push_back(Output::Event(Event::PunchStarted {
            peer,
            relayed,
            role,
        }));
    }

    /// Whether a circuit on which we have this role is the one to talk on, where both nodes dialled
    /// each other over a relay: the one that the node with the smaller id dialled. On one circuit
    /// exactly one node is the initiator; each talking on its own, both would dial as the TLS client.
    pub(super) fn is_preferred(&self, peer: PeerId, role: Role) -> bool {
        (role == Role::Responder) == (self.local < peer)
    }

    /// Goes over to the preferred circuit, if there is one and no exchange has come further on the
    /// present one. Tells whether it did.
    pub(super) fn settle_on_one_circuit(&mut self, peer: PeerId, now: Instant) -> bool {
        let Some(punch) = self.punches.get(&peer) else {
            return false;
        };
        let is_answered = |(_, step): &(_, Step)| matches!(step, Step::Answered(_));
        let has_come_further = punch.exchanges.iter().any(is_answered)
            || (punch.synchronised > 0 && punch.synchronised == punch.attempt);
        if has_come_further || self.is_preferred(peer, punch.role) {
            return false;
        }
        let mut relayed = self.relayed.iter();
        let other = relayed.find(|(_, other)| other.peer == peer && other.role != punch.role);
        let Some((other, role)) = other.map(|(id, other)| (*id, other.role)) else {
            return false;
        };
        self.change_circuit(other, peer, role);
        self.begin_talking(peer, role, now);
        true
    }

    pub(super) fn change_circuit(&mut self, relayed: ConnectionId, peer: PeerId, role: Role) {
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        tracing::debug!(%peer, old = %punch.relayed, new = %relayed, "two circuits crossed");
        let old = std::mem::replace(&mut punch.relayed, relayed);
        punch.role = role;
        punch.stage = Stage::Talking;
        // What was said there counts for nothing.
        punch.attempt = punch.synchronised;
        for (exchange, _) in std::mem::take(&mut punch.exchanges) {
            self.abandon(peer, exchange);
        }
        self.release(peer, old);
    }

    pub(super) fn release(&mut self, peer: PeerId, relayed: ConnectionId) {
        if let Some(circuit) = self.relayed.get_mut(&relayed) {
            circuit.held = false;
        }
        self.outputs.push_back(Output::Release { peer, relayed });
    }
}
