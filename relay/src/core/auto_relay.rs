//! Which relays to reserve at, and when to try again.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use libp2p_core::{Multiaddr, transport::ListenerId};
use libp2p_identity::PeerId;
use rand::{SeedableRng, rngs::StdRng};
use web_time::Instant;

use super::backoff::Backoff;
use crate::{
    CircuitLimit,
    address::{InvalidRelayAddress, RelayAddress},
    client::{Config, LossReason},
};

/// A reservation that lasted this long clears the relay's record of failures. Shorter ones do
/// not, so that a relay which accepts and drops in a loop is asked less and less often.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Keeps reservations: all configured relays for ever, and candidates up to the target.
#[derive(Debug)]
pub(crate) struct AutoRelay {
    config: Config,
    backoff: Backoff,
    random: StdRng,
    relays: BTreeMap<PeerId, Relay>,
    /// Counts calls that added a candidate: the earlier one is asked first.
    arrivals: u64,
    /// When candidates were last asked for, while they are still missing.
    asked: Option<Instant>,
    outputs: VecDeque<Output>,
}

/// What the adapter is to do or to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// Listen on the relay's circuit address, then call [`AutoRelay::on_listening`].
    Reserve(RelayAddress),
    Accepted {
        address: RelayAddress,
        renewal: bool,
        limit: Option<CircuitLimit>,
    },
    Lost {
        relay: PeerId,
        reason: LossReason,
    },
    Failed {
        relay: PeerId,
        reason: LossReason,
    },
    CandidatesWanted {
        missing: usize,
    },
}

/// A reservation that is held, as the adapter shows it.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    pub(crate) address: &'a RelayAddress,
    pub(crate) configured: bool,
    pub(crate) limit: Option<CircuitLimit>,
    pub(crate) since: Instant,
}

#[derive(Debug)]
struct Relay {
    /// Never empty. The next one to try stands first.
    addresses: VecDeque<Multiaddr>,
    configured: bool,
    arrival: u64,
    failures: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    /// May be asked from `not_before` on.
    Idle { not_before: Instant },
    /// The adapter was told to ask.
    Asking {
        address: RelayAddress,
        listener: Option<ListenerId>,
    },
    Held {
        address: RelayAddress,
        listener: ListenerId,
        limit: Option<CircuitLimit>,
        since: Instant,
    },
}

impl State {
    fn listener(&self) -> Option<ListenerId> {
        match self {
            Self::Idle { .. } => None,
            Self::Asking { listener, .. } => *listener,
            Self::Held { listener, .. } => Some(*listener),
        }
    }
}

impl AutoRelay {
    pub(crate) fn new(config: Config, seed: [u8; 32]) -> Self {
        Self {
            backoff: Backoff {
                initial: config.backoff_initial(),
                max: config.backoff_max(),
            },
            random: StdRng::from_seed(seed),
            config,
            relays: BTreeMap::new(),
            arrivals: 0,
            asked: None,
            outputs: VecDeque::new(),
        }
    }

    /// Reserves at this relay for ever.
    pub(crate) fn add_relay(
        &mut self,
        address: RelayAddress,
        now: Instant,
    ) -> Result<(), InvalidRelayAddress> {
        let configured = self.relays.values().filter(|relay| relay.configured);
        let known = self
            .relays
            .get(&address.relay)
            .is_some_and(|relay| relay.configured);
        if !known && configured.count() >= self.config.max_relays() {
            return Err(InvalidRelayAddress::TooMany {
                max: self.config.max_relays(),
            });
        }
        let relay = self.remember(address.relay, [address.transport], now);
        relay.configured = true;
        self.ask(now);
        Ok(())
    }

    /// May reserve at this relay, should reservations be missing.
    pub(crate) fn add_candidate(
        &mut self,
        peer: PeerId,
        addresses: impl IntoIterator<Item = Multiaddr>,
        now: Instant,
    ) {
        let mut addresses = addresses.into_iter().peekable();
        if addresses.peek().is_none() {
            return;
        }
        if !self.relays.contains_key(&peer) && !self.make_room() {
            return;
        }
        self.remember(peer, addresses, now);
        self.ask(now);
    }

    /// Forgets a relay that is not in use at this moment.
    pub(crate) fn remove_candidate(&mut self, peer: &PeerId) {
        if let Some(relay) = self.relays.get(peer)
            && !relay.configured
            && matches!(relay.state, State::Idle { .. })
        {
            self.relays.remove(peer);
        }
    }

    /// The adapter carried out [`Output::Reserve`].
    pub(crate) fn on_listening(&mut self, relay: PeerId, listener: ListenerId) {
        if let Some(relay) = self.relays.get_mut(&relay)
            && let State::Asking {
                listener: unknown @ None,
                ..
            } = &mut relay.state
        {
            *unknown = Some(listener);
        }
    }

    /// The relay accepted, for the first time or again.
    pub(crate) fn on_accepted(
        &mut self,
        peer: PeerId,
        new_limit: Option<CircuitLimit>,
        now: Instant,
    ) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        let (address, renewal) = match &mut relay.state {
            State::Asking {
                address,
                listener: Some(listener),
            } => {
                let (address, listener) = (address.clone(), *listener);
                relay.state = State::Held {
                    address: address.clone(),
                    listener,
                    limit: new_limit,
                    since: now,
                };
                (address, false)
            }
            State::Held { address, limit, .. } => {
                *limit = new_limit;
                (address.clone(), true)
            }
            // Somebody else listens on this relay.
            State::Asking { listener: None, .. } | State::Idle { .. } => return,
        };
        self.outputs.push_back(Output::Accepted {
            address,
            renewal,
            limit: new_limit,
        });
        self.ask(now);
    }

    /// A listener ended; perhaps one of ours, and then its reservation with it.
    pub(crate) fn on_listener_closed(
        &mut self,
        listener: ListenerId,
        reason: LossReason,
        now: Instant,
    ) {
        let owner = self
            .relays
            .iter_mut()
            .find(|(_, relay)| relay.state.listener() == Some(listener));
        let Some((&peer, relay)) = owner else {
            return;
        };
        let output = match relay.state {
            State::Held { since, .. } => {
                if now.saturating_duration_since(since) >= STABLE_AFTER {
                    relay.failures = 0;
                }
                Output::Lost {
                    relay: peer,
                    reason,
                }
            }
            State::Idle { .. } | State::Asking { .. } => {
                relay.addresses.rotate_left(1);
                Output::Failed {
                    relay: peer,
                    reason,
                }
            }
        };
        relay.failures = relay.failures.saturating_add(1);
        relay.state = State::Idle {
            not_before: now + self.backoff.delay(relay.failures, &mut self.random),
        };
        self.outputs.push_back(output);
        self.ask(now);
    }

    /// Something may be due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.ask(now);
    }

    /// Drain after every call that changes something.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let missing = self.missing() > 0;
        let retry = self
            .relays
            .values()
            .filter(|relay| relay.configured || missing)
            .filter_map(|relay| match relay.state {
                State::Idle { not_before } => Some(not_before),
                State::Asking { .. } | State::Held { .. } => None,
            })
            .min();
        let ask_again = self
            .asked
            .filter(|_| missing)
            .map(|asked| asked + self.config.candidates_interval());
        match (retry, ask_again) {
            (Some(retry), Some(ask_again)) => Some(retry.min(ask_again)),
            (retry, ask_again) => retry.or(ask_again),
        }
    }

    pub(crate) fn held(&self) -> impl Iterator<Item = Held<'_>> {
        self.relays.values().filter_map(|relay| match &relay.state {
            State::Held {
                address,
                limit,
                since,
                ..
            } => Some(Held {
                address,
                configured: relay.configured,
                limit: *limit,
                since: *since,
            }),
            State::Idle { .. } | State::Asking { .. } => None,
        })
    }

    /// Whether one of our relays uses this listener, and whether it is already held.
    pub(crate) fn owner(&self, listener: ListenerId) -> Option<(PeerId, bool)> {
        self.relays.iter().find_map(|(peer, relay)| {
            (relay.state.listener() == Some(listener))
                .then_some((*peer, matches!(relay.state, State::Held { .. })))
        })
    }

    /// Where a relay can be dialled, without `/p2p`.
    pub(crate) fn addresses(&self, relay: &PeerId) -> impl Iterator<Item = &Multiaddr> {
        self.relays
            .get(relay)
            .into_iter()
            .flat_map(|relay| &relay.addresses)
    }

    /// Asks every relay that should be asked now; asks for candidates if that is not enough.
    fn ask(&mut self, now: Instant) {
        let due =
            |relay: &Relay| matches!(relay.state, State::Idle { not_before } if not_before <= now);
        for (peer, relay) in &mut self.relays {
            if relay.configured && due(relay) {
                self.outputs.extend(relay.ask(*peer));
            }
        }
        while self.missing() > 0 {
            let best = self
                .relays
                .iter_mut()
                .filter(|(_, relay)| due(relay))
                .min_by_key(|(_, relay)| (relay.failures, relay.arrival));
            let Some((peer, relay)) = best else {
                break;
            };
            self.outputs.extend(relay.ask(*peer));
        }
        self.want_candidates(now);
    }

    fn want_candidates(&mut self, now: Instant) {
        let missing = self.missing();
        if missing == 0 {
            self.asked = None;
            return;
        }
        let soon = self.asked.is_some_and(|asked| {
            now.saturating_duration_since(asked) < self.config.candidates_interval()
        });
        if !soon {
            self.asked = Some(now);
            self.outputs.push_back(Output::CandidatesWanted { missing });
        }
    }

    /// Reservations wanted beyond those that are held or on their way.
    fn missing(&self) -> usize {
        let used = self
            .relays
            .values()
            .filter(|relay| !matches!(relay.state, State::Idle { .. }))
            .count();
        self.config.target_reservations().saturating_sub(used)
    }

    fn remember(
        &mut self,
        peer: PeerId,
        addresses: impl IntoIterator<Item = Multiaddr>,
        now: Instant,
    ) -> &mut Relay {
        self.arrivals += 1;
        let relay = self.relays.entry(peer).or_insert(Relay {
            addresses: VecDeque::new(),
            configured: false,
            arrival: self.arrivals,
            failures: 0,
            state: State::Idle { not_before: now },
        });
        for address in addresses {
            if relay.addresses.contains(&address) {
                continue;
            }
            if relay.addresses.len() >= self.config.max_addresses_per_relay() {
                relay.addresses.pop_front();
            }
            relay.addresses.push_back(address);
        }
        relay
    }

    /// Makes room for one more candidate. False if all that are known are better than nothing.
    fn make_room(&mut self) -> bool {
        let candidates = self.relays.values().filter(|relay| !relay.configured);
        if candidates.count() < self.config.max_candidates() {
            return true;
        }
        let worst = self
            .relays
            .iter()
            .filter(|(_, relay)| {
                !relay.configured && relay.failures > 0 && matches!(relay.state, State::Idle { .. })
            })
            .max_by_key(|(_, relay)| (relay.failures, relay.arrival))
            .map(|(peer, _)| *peer);
        worst.is_some_and(|peer| self.relays.remove(&peer).is_some())
    }
}

impl Relay {
    fn ask(&mut self, peer: PeerId) -> Option<Output> {
        let address = RelayAddress {
            relay: peer,
            transport: self.addresses.front()?.clone(),
        };
        self.state = State::Asking {
            address: address.clone(),
            listener: None,
        };
        Some(Output::Reserve(address))
    }
}

#[cfg(test)]
#[path = "auto_relay_tests.rs"]
mod tests;
