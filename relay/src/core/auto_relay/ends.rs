//! How reservations and requests end, and how long a relay is left alone then.

use std::time::Duration;

use libp2p_identity::PeerId;
use rand::rngs::StdRng;
use web_time::Instant;

use super::{AutoRelay, Output, Relay, Stage, State};
use crate::{StatusCode, client::LossReason, core::backoff::Backoff};

/// A reservation that lasted this long clears the relay's record of failures. Shorter ones do
/// not, so that a relay which accepts and drops in a loop is asked less and less often.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// How long an address stays told after its reservation was lost: most relays that drop a
/// reservation give it again at once, and others need not hear of the gap.
const GRACE: Duration = Duration::from_secs(3);

/// The same after a change of network, where dialling again takes longer.
const GRACE_AFTER_CHANGE: Duration = Duration::from_secs(10);

impl AutoRelay {
    /// A held reservation is worth nothing any more.
    pub(super) fn lose(&mut self, peer: PeerId, why: LossReason, now: Instant) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        let State::Held(hold) = &relay.state else {
            return;
        };
        let (link, since) = (hold.link, hold.since);
        if now.saturating_duration_since(since) >= STABLE_AFTER {
            relay.failures = 0;
        }
        relay.failures = relay.failures.saturating_add(1);
        relay.last_held = Some(now);
        relay.last_failure = Some(why);
        let wait = wait(&self.backoff, relay, why, &mut self.random, now);
        relay.state = State::Idle {
            not_before: now + wait,
        };
        match why {
            LossReason::ConnectionClosed => {}
            LossReason::Silent | LossReason::NetworkChanged => {
                relay.links.retain(|known| known.id != link);
                self.outputs.push_back(Output::Close { relay: peer, link });
            }
            _ => self
                .outputs
                .push_back(Output::Release { relay: peer, link }),
        }
        let grace = match why {
            LossReason::NetworkChanged => GRACE_AFTER_CHANGE,
            _ => GRACE,
        };
        if let Some(told) = &mut relay.told {
            told.withdraw_at = Some(now + grace);
        }
        tracing::debug!(relay = %peer, %why, "reservation lost");
        self.outputs.push_back(Output::Lost { relay: peer, why });
    }

    /// A request for a reservation came to nothing.
    pub(super) fn fail(&mut self, peer: PeerId, why: LossReason, now: Instant) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        // A request keeps its connection open, and lets circuits in: that ends with it.
        if let State::Asking {
            stage: Stage::Reserving(link),
            ..
        } = relay.state
            && why != LossReason::ConnectionClosed
        {
            self.outputs
                .push_back(Output::Release { relay: peer, link });
        }
        relay.failures = relay.failures.saturating_add(1);
        relay.last_failure = Some(why);
        let wait = wait(&self.backoff, relay, why, &mut self.random, now);
        relay.state = State::Idle {
            not_before: now + wait,
        };
        tracing::debug!(relay = %peer, %why, "no reservation");
        self.outputs.push_back(Output::Failed { relay: peer, why });
    }

    /// A relay is not needed any more.
    pub(super) fn release(&mut self, peer: PeerId) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        let held = relay.hold().map(|hold| (hold.link, hold.since));
        if let Some((link, not_before)) = held {
            relay.state = State::Idle { not_before };
            self.outputs
                .push_back(Output::Release { relay: peer, link });
            self.outputs.push_back(Output::Lost {
                relay: peer,
                why: LossReason::Released,
            });
        } else if let State::Asking { since, stage } = relay.state {
            relay.state = State::Idle { not_before: since };
            if let Stage::Reserving(link) = stage {
                self.outputs
                    .push_back(Output::Release { relay: peer, link });
            }
        }
        self.withdraw(peer);
    }
}

/// How long to leave a relay alone, by what it said or did.
fn wait(
    backoff: &Backoff,
    relay: &Relay,
    why: LossReason,
    random: &mut StdRng,
    now: Instant,
) -> Duration {
    // Doublings beyond those that the number of failures gives.
    let more = match why {
        // Places come free when others leave.
        LossReason::Refused(StatusCode::ResourceLimitExceeded) => 3,
        LossReason::Refused(StatusCode::PermissionDenied) | LossReason::ProtocolViolation => 20,
        LossReason::Refused(_) => 4,
        LossReason::Unsupported => 5,
        _ => 0,
    };
    // A relay that held a reservation a moment ago is being restarted, perhaps.
    let known = more == 0
        && relay
            .last_held
            .is_some_and(|at| now.saturating_duration_since(at) < STABLE_AFTER);
    let failures = if known {
        relay.failures.min(3)
    } else {
        relay.failures
    };
    backoff.delay(failures.saturating_add(more), random)
}
