//! What the two nodes say to each other.

use std::time::Duration;

use libp2p_identity::PeerId;
use web_time::Instant;

use super::{
    Exchange, Opener, Output, Punches,
    state::{Stage, Step, punch_may_retry},
};
use crate::{
    PunchError, Role,
    address::Scope,
    message::{Extras, Kind, Message},
};

impl Punches {
    /// Opens the next exchange, as soon as there is a place and something to say.
    pub(super) fn talk(&mut self, peer: PeerId, now: Instant) {
        let is_full = self.active() >= self.config.max_concurrent();
        let has_candidates = !self.own.candidates.is_empty();
        let wait = self.config.candidate_wait();
        let nat = self.own.nat;
        let number = self.next_exchange;
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        if is_full && !punch.is_active() {
            punch.stage = match punch.role {
                Role::Initiator => Stage::Queued,
                // Its early exchange is a help, not a must.
                Role::Responder => Stage::Talking,
            };
            return;
        }
        let waited = matches!(punch.stage, Stage::WithoutCandidates { until } if until <= now);
        if !has_candidates && !waited {
            let until = match punch.stage {
                Stage::WithoutCandidates { until } => until,
                _ => now + wait,
            };
            punch.stage = Stage::WithoutCandidates { until };
            return;
        }
        let old = punch.take_exchange_of(Opener::Us);
        punch.attempt = punch.attempt.saturating_add(1);
        punch.stage = Stage::Talking;
        punch.told = nat;
        let exchange = Exchange {
            relayed: punch.relayed,
            opener: Opener::Us,
            number,
        };
        let attempt = punch.attempt;
        punch.exchanges.push((exchange, Step::Sent(attempt)));
        self.next_exchange = self.next_exchange.wrapping_add(1);
        if let Some(old) = old {
            self.abandon(peer, old);
        }
        // Before the peer hears of them.
        self.tell_ports(peer);
        let message = self.connect_message(peer, attempt);
        self.outputs.push_back(Output::Connect {
            peer,
            exchange,
            message,
        });
    }

    /// The peer's first message of an exchange.
    pub(crate) fn on_connect(&mut self, exchange: Exchange, message: &Message, now: Instant) {
        let max = self.config.max_exchanges();
        let Some(relayed) = self.relayed.get_mut(&exchange.relayed) else {
            return;
        };
        let (peer, role) = (relayed.peer, relayed.role);
        relayed.opened_by_peer = relayed.opened_by_peer.saturating_add(1);
        let too_many = relayed.opened_by_peer > max;
        // Where the peer does not count, its exchanges do.
        let attempt = match &message.extras {
            Some(extras) => extras.attempt.max(1),
            None => u8::try_from(relayed.opened_by_peer).unwrap_or(u8::MAX),
        };
        tracing::debug!(%peer, attempt, ?role, "the peer's CONNECT");
        if message.kind == Kind::Sync {
            self.on_farewell(peer, message, now);
            self.abandon(peer, exchange);
            return;
        }
        if too_many || self.direct.contains_key(&peer) {
            tracing::debug!(%peer, too_many, "an exchange is refused");
            self.abandon(peer, exchange);
            return;
        }
        match self.punches.get(&peer).map(|punch| punch.role) {
            // The peer tries again after we gave up.
            None => self.begin_waiting(exchange.relayed, peer, role, now),
            Some(ours) if ours == role => {}
            Some(_) if self.is_preferred(peer, role) => {
                self.change_circuit(exchange.relayed, peer, role);
            }
            // The peer changes to the other circuit as well.
            Some(_) => {
                tracing::debug!(%peer, "an exchange on the circuit that is given up is refused");
                self.abandon(peer, exchange);
                return;
            }
        }
        let is_idle = self
            .punches
            .get(&peer)
            .is_some_and(|punch| !punch.is_active());
        if is_idle && self.active() >= self.config.max_concurrent() {
            let mut busy = self.connect_message(peer, attempt);
            busy.addresses.clear();
            if let Some(extras) = busy.extras.as_mut() {
                extras.failure = Some(PunchError::Busy);
            }
            self.outputs.push_back(Output::Reply {
                peer,
                exchange,
                message: busy,
            });
            return;
        }
        self.tell_ports(peer);
        let answer = self.connect_message(peer, attempt);
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        // A peer has one exchange at a time.
        let old = punch.take_exchange_of(Opener::Peer);
        punch.told = self.own.nat;
        punch.heard = true;
        punch.peers = message.extras.as_ref().map(|extras| extras.nat);
        punch.attempt = punch.attempt.max(attempt);
        let (peers, targets) = self.targets(peer, message);
        if let Some(old) = old {
            self.abandon(peer, old);
        }
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        if matches!(punch.stage, Stage::Queued | Stage::WithoutCandidates { .. }) {
            punch.stage = Stage::Talking;
        }
        punch.no_punch = peers;
        let (at_once, later): (Vec<_>, Vec<_>) =
            targets.into_iter().partition(|target| target.at_once);
        punch.exchanges.push((exchange, Step::Answered(later)));
        self.outputs.push_back(Output::Reply {
            peer,
            exchange,
            message: answer,
        });
        self.dial_all(peer, at_once);
    }

    /// The answer to our `CONNECT`.
    pub(crate) fn on_connected(
        &mut self,
        exchange: Exchange,
        message: &Message,
        round_trip: Duration,
        now: Instant,
    ) {
        let Some((peer, Step::Sent(attempt))) = self.take_exchange(exchange) else {
            return;
        };
        tracing::debug!(%peer, attempt, ?round_trip, "our CONNECT is answered");
        let attempts = self.config.attempts();
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        punch.round_trip = Some(round_trip);
        punch.heard = true;
        punch.peers = message.extras.as_ref().map(|extras| extras.nat);
        if attempt <= punch.synchronised {
            // The peer's own exchange was quicker.
            self.abandon(peer, exchange);
            return;
        }
        if let Some(failure) = message.failure() {
            punch.peers_failure = Some(failure);
            let goes_on = failure == PunchError::Busy && punch_may_retry(punch, attempts);
            if goes_on {
                let until = now + self.config.attempt_timeout() / 2;
                punch.stage = Stage::Pausing { until };
            }
            self.abandon(peer, exchange);
            if !goes_on {
                self.end(peer, Err(failure), now);
            }
            return;
        }
        let (no_punch, targets) = self.targets(peer, message);
        let failure = match no_punch {
            Some(_) => Some(PunchError::Impossible),
            // Nobody can dial anybody.
            None if targets.is_empty() && self.own.candidates.is_empty() => {
                Some(PunchError::NoAddresses)
            }
            None => None,
        };
        let mut sync = Message {
            kind: Kind::Sync,
            addresses: Vec::new(),
            extras: Some(Extras::default()),
        };
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        if message.extras.is_none() {
            // As small as the specification has it.
            sync.extras = None;
        } else if let Some(extras) = sync.extras.as_mut() {
            extras.attempt = attempt;
            extras.failure = failure;
        }
        self.outputs.push_back(Output::Sync {
            peer,
            exchange,
            message: sync,
        });
        punch.no_punch = no_punch;
        if let Some(failure) = failure {
            self.end(peer, Err(failure), now);
            return;
        }
        let (at_once, later): (Vec<_>, Vec<_>) =
            targets.into_iter().partition(|target| target.at_once);
        punch.synchronised = attempt;
        punch.stage = Stage::Synchronised {
            at: now + round_trip / 2,
            targets: later,
        };
        self.dial_all(peer, at_once);
    }

    /// The peer's `SYNC`.
    pub(crate) fn on_sync(&mut self, exchange: Exchange, message: &Message, now: Instant) {
        let Some((peer, Step::Answered(targets))) = self.take_exchange(exchange) else {
            return;
        };
        tracing::debug!(%peer, attempt = message.attempt(), "the peer's SYNC");
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        if let Some(failure) = message.failure() {
            punch.peers_failure = Some(failure);
            self.end(peer, Err(failure), now);
            return;
        }
        if message.extras.is_some() && message.attempt() <= punch.synchronised {
            // Both exchanges came through. The peer dials now: so do we, if we were still waiting.
            if let Stage::Synchronised { targets, .. } = &mut punch.stage {
                let targets = std::mem::take(targets);
                self.start_dialling(peer, targets, now);
            }
            return;
        }
        punch.attempt = punch.attempt.max(message.attempt());
        punch.synchronised = punch.attempt;
        if let Some(ours) = punch.take_exchange_of(Opener::Us) {
            self.abandon(peer, ours);
        }
        self.start_dialling(peer, targets, now);
    }

    /// An exchange broke off, whoever opened it.
    pub(crate) fn on_exchange_failed(&mut self, exchange: Exchange, now: Instant) {
        let Some((peer, _)) = self.take_exchange(exchange) else {
            return;
        };
        if self.settle_on_one_circuit(peer, now) {
            return;
        }
        let attempts = self.config.attempts();
        let Some(punch) = self.punches.get_mut(&peer) else {
            return;
        };
        let nothing_left = punch.exchanges.is_empty() && matches!(punch.stage, Stage::Talking);
        // Whoever accepted the relayed connection goes on; the other side waits for it.
        if !nothing_left || punch.role == Role::Responder {
            return;
        }
        if punch_may_retry(punch, attempts) {
            punch.stage = Stage::Pausing {
                until: now + RETRY_PAUSE,
            };
        } else {
            self.end(peer, Err(PunchError::ExchangeFailed), now);
        }
    }

    /// The peer says that nothing more comes.
    pub(super) fn on_farewell(&mut self, peer: PeerId, message: &Message, now: Instant) {
        let failure = message.failure().unwrap_or(PunchError::ExchangeFailed);
        if let Some(punch) = self.punches.get_mut(&peer) {
            punch.peers_failure = Some(failure);
            self.end(peer, Err(failure), now);
        }
    }

    pub(super) fn connect_message(&self, peer: PeerId, attempt: u8) -> Message {
        let own = &self.own;
        // Fresh ports first: a peer may dial but the first few.
        let fresh = self.fresh_candidates(peer).into_iter();
        let candidates = fresh.chain(own.candidates.iter().cloned());
        let private = own.local.iter().filter(|a| Scope::of(a) == Scope::Private);
        Message {
            kind: Kind::Connect,
            addresses: candidates.take(self.config.max_candidates()).collect(),
            extras: Some(Extras {
                attempt,
                nat: own.nat,
                local: private.take(MAX_LOCAL).cloned().collect(),
                failure: None,
            }),
        }
    }

    pub(super) fn abandon(&mut self, peer: PeerId, exchange: Exchange) {
        self.outputs.push_back(Output::Abandon { peer, exchange });
    }

    pub(super) fn take_exchange(&mut self, exchange: Exchange) -> Option<(PeerId, Step)> {
        let peer = self.relayed.get(&exchange.relayed)?.peer;
        let exchanges = &mut self.punches.get_mut(&peer)?.exchanges;
        let at = exchanges.iter().position(|(other, _)| *other == exchange)?;
        Some((peer, exchanges.remove(at).1))
    }
}

/// How long after a broken exchange the next one begins: what broke it may have to be noticed.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Addresses of our own network in a message: two transports, two families.
const MAX_LOCAL: usize = 4;
