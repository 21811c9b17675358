//! What is due by the clock: renewals, probes, addresses to take back.

use libp2p_identity::PeerId;
use rand::RngExt;
use web_time::Instant;

use super::{
    AutoRelay, Output, Pulse, Relay, Renewal, RoundTrip, Stage, State, Wish,
    choice::{CHOICE, PATIENCE},
};
use crate::client::LossReason;

impl AutoRelay {
    /// Something may be due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<_> = self
            .relays
            .iter()
            .filter(|(_, relay)| {
                relay
                    .deadline(&self.config)
                    .is_some_and(|deadline| deadline <= now)
            })
            .map(|(peer, _)| *peer)
            .collect();
        for peer in due {
            self.look_after(peer, now);
        }
        if self
            .public
            .is_some_and(|since| since + self.config.release_after() <= now)
        {
            self.release_all();
        }
        if self.improve_at <= now {
            let jitter = self.random.random_range(0.5..=1.0);
            self.improve_at = now + self.config.improve_interval().mul_f64(jitter);
            self.forget(now);
            self.improve(now);
        }
        self.settle(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due. Never in the past of the last call.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let relays = self
            .relays
            .values()
            .filter_map(|relay| relay.deadline(&self.config));
        let release = self
            .public
            .filter(|_| self.relays.values().any(|relay| !relay.is_idle()))
            .map(|since| since + self.config.release_after());
        let common = relays
            .chain(release)
            .chain([self.improve_at])
            .chain(self.begun)
            .min();
        if self.public.is_some() {
            return common;
        }
        // Nothing idle is due at this moment unless a choice is open, or nothing is missing.
        let retry = self
            .relays
            .values()
            .filter(|relay| relay.configured || self.wish != Wish::None)
            .filter_map(|relay| match relay.state {
                State::Idle { not_before } if self.choosing.is_none() || relay.configured => {
                    Some(not_before)
                }
                State::Idle { .. } | State::Held(_) => None,
                State::Asking { .. } => None,
            })
            .min();
        let late = self
            .relays
            .values()
            .filter_map(|relay| match relay.state {
                State::Asking { since, .. } => Some(since + PATIENCE),
                State::Idle { .. } | State::Held(_) => None,
            })
            .filter(|late| *late > self.settled_at)
            .min();
        let choice = self.choosing.map(|since| since + CHOICE);
        let wish = match self.wish {
            // While a choice is open, what is missing is not told.
            Wish::Told { next, .. } if self.choosing.is_none() => Some(next),
            Wish::None | Wish::Told { .. } => None,
        };
        [common, retry, late, choice, wish]
            .into_iter()
            .flatten()
            .min()
    }

    fn look_after(&mut self, peer: PeerId, now: Instant) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        if let RoundTrip::Asked(at) = relay.trip
            && at + self.config.probe_timeout() <= now
        {
            relay.trip = RoundTrip::Failed;
        }
        let withdraw = relay
            .told
            .as_ref()
            .and_then(|told| told.withdraw_at)
            .is_some_and(|at| at <= now);
        match relay.state {
            State::Idle { .. } => {}
            State::Asking { since, stage } => {
                if since + self.config.request_timeout() <= now {
                    let why = match stage {
                        Stage::Dialling => LossReason::Unreachable,
                        Stage::Reserving(_) => LossReason::Stream,
                    };
                    self.fail(peer, why, now);
                }
            }
            State::Held(_) => self.look_after_hold(peer, now),
        }
        if withdraw {
            self.withdraw(peer);
        }
    }

    fn look_after_hold(&mut self, peer: PeerId, now: Instant) {
        let timeout = self.config.probe_timeout();
        let Some(Relay {
            state: State::Held(hold),
            ..
        }) = self.relays.get_mut(&peer)
        else {
            return;
        };
        let link = hold.link;
        if hold.expires <= now {
            let why = hold.refused.unwrap_or(LossReason::Expired);
            self.lose(peer, why, now);
            return;
        }
        if let Renewal::Due(at) = hold.renewal
            && at <= now
        {
            hold.renewal = Renewal::Asked;
            self.outputs
                .push_back(Output::Reserve { relay: peer, link });
        }
        let misses = match hold.pulse {
            Pulse::Rest { until } if until <= now => 0,
            Pulse::Asked { sent, misses } if sent + timeout <= now => misses + 1,
            Pulse::Checked { until } if until <= now => {
                self.lose(peer, LossReason::NetworkChanged, now);
                if self.public.is_none() {
                    self.ask(peer, true, now);
                }
                return;
            }
            Pulse::Rest { .. } | Pulse::Asked { .. } | Pulse::Checked { .. } => return,
        };
        if misses >= self.config.max_misses() {
            self.lose(peer, LossReason::Silent, now);
            return;
        }
        hold.pulse = Pulse::Asked { sent: now, misses };
        self.outputs.push_back(Output::Probe { relay: peer, link });
    }

    fn release_all(&mut self) {
        let used: Vec<_> = self
            .relays
            .iter()
            .filter(|(_, relay)| !relay.is_idle() || relay.told.is_some())
            .map(|(peer, _)| *peer)
            .collect();
        for peer in used {
            self.release(peer);
        }
    }
}
