//! Which relays to reserve at, when to try again, and when a reservation is worth nothing any more.
//!
//! Here: the facts that happen. `choice` decides whom to ask, `upkeep` looks after what is held, `ends` after what is lost,
//! `addresses` tells others.

mod addresses;
mod choice;
mod ends;
mod rank;
mod relay;
mod upkeep;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime},
};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use web_time::Instant;

pub(crate) use self::relay::Link;
use self::{
    rank::{Prefix, tie},
    relay::{Hold, Pulse, Relay, Renewal, RoundTrip, Stage, State, Told},
};
use super::backoff::Backoff;
use crate::{
    CircuitLimit,
    address::{InvalidRelayAddress, RelayAddress},
    announcement::Load,
    client::{Config, LossReason},
};

/// A relay that still answers after a change of the network does so by then, or within three of its round trips.
const CHECK: Duration = Duration::from_secs(1);

/// Keeps reservations: at all configured relays for ever, and at candidates up to the target.
#[derive(Debug)]
pub(crate) struct AutoRelay {
    config: Config,
    backoff: Backoff,
    random: StdRng,
    seed: u64,
    relays: BTreeMap<PeerId, Relay>,
    /// Since when this node is publicly reachable and needs no relay.
    public: Option<Instant>,
    /// Since when the candidates' round trips are measured, in order to choose.
    choosing: Option<Instant>,
    wish: Wish,
    /// When to look for a much better relay than those in use.
    improve_at: Instant,
    checked_at: Option<Instant>,
    /// When the rules of `choice` were applied last.
    settled_at: Instant,
    /// When this node began, until the rules are applied for the first time: it may be that nothing else happens to it.
    begun: Option<Instant>,
    status: Status,
    outputs: VecDeque<Output>,
}

/// The wish for more candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    None,
    Told { next: Instant, wait: Duration },
}

/// How many reservations there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Status {
    pub(crate) held: usize,
    pub(crate) target: usize,
}

/// What the adapter is to do or to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// Connect directly, even if there is a connection already.
    Dial {
        relay: PeerId,
        addresses: Vec<Multiaddr>,
    },
    /// Ask for a reservation, or for its renewal, over this connection.
    Reserve {
        relay: PeerId,
        link: ConnectionId,
    },
    /// Measure the round trip.
    Probe {
        relay: PeerId,
        link: ConnectionId,
    },
    /// The reservation on this connection is not used any more.
    Release {
        relay: PeerId,
        link: ConnectionId,
    },
    /// The connection is dead, whatever the transport says.
    Close {
        relay: PeerId,
        link: ConnectionId,
    },
    /// This node listens there, the relay says.
    Announce {
        address: RelayAddress,
    },
    /// No longer.
    Withdraw {
        address: RelayAddress,
    },
    /// Tell others that this node is reachable there, for it is.
    Confirm {
        address: RelayAddress,
    },
    /// Take that back.
    Expire {
        address: RelayAddress,
    },
    Reserved {
        address: RelayAddress,
        renewal: bool,
        limit: Option<CircuitLimit>,
    },
    Lost {
        relay: PeerId,
        why: LossReason,
    },
    Failed {
        relay: PeerId,
        why: LossReason,
    },
    CandidatesWanted {
        missing: usize,
    },
    Status(Status),
}

/// A reservation that is held, as the adapter shows it.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    pub(crate) link: ConnectionId,
    pub(crate) address: &'a RelayAddress,
    pub(crate) configured: bool,
    pub(crate) limit: Option<CircuitLimit>,
    pub(crate) since: Instant,
    pub(crate) expires: Instant,
    pub(crate) rtt: Option<Duration>,
}

/// What a relay granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub(crate) limit: Option<CircuitLimit>,
    pub(crate) lifetime: Duration,
    /// Where the relay says that it is, without `/p2p`.
    pub(crate) addresses: Vec<Multiaddr>,
}

impl AutoRelay {
    pub(crate) fn new(config: Config, seed: [u8; 32], now: Instant) -> Self {
        let mut random = StdRng::from_seed(seed);
        let seed = random.random();
        let status = Status {
            held: 0,
            target: config.target_reservations(),
        };
        Self {
            backoff: Backoff {
                initial: config.backoff_initial(),
                max: config.backoff_max(),
            },
            random,
            seed,
            relays: BTreeMap::new(),
            public: None,
            choosing: None,
            wish: Wish::None,
            improve_at: now + config.improve_interval(),
            checked_at: None,
            settled_at: now,
            begun: Some(now),
            status,
            config,
            outputs: VecDeque::new(),
        }
    }

    /// Reserves at this relay for ever.
    pub(crate) fn add_relay(
        &mut self,
        address: RelayAddress,
        links: Vec<Link>,
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
        let max = self.config.max_addresses_per_relay();
        let relay = self.relay_or_new(address.relay, now);
        relay.add_addresses([address.transport], max);
        relay.add_links(links);
        relay.configured = true;
        self.settle(now);
        Ok(())
    }

    /// Gives a configured relay up, and a reservation there with it. False if it is not one.
    pub(crate) fn remove_relay(&mut self, peer: &PeerId, now: Instant) -> bool {
        if !self.relays.get(peer).is_some_and(|relay| relay.configured) {
            return false;
        }
        self.release(*peer);
        self.relays.remove(peer);
        self.settle(now);
        true
    }

    /// May reserve at this relay, should reservations be missing. `links`: direct connections to it.
    pub(crate) fn add_candidate(
        &mut self,
        peer: PeerId,
        addresses: impl IntoIterator<Item = Multiaddr>,
        links: Vec<Link>,
        now: Instant,
    ) {
        if self.remember(peer, addresses, links, now) {
            self.settle(now);
        }
    }

    /// The same, for a relay that announced itself. What it said earlier than something else that is known, or again, is
    /// no news: somebody replays it.
    pub(crate) fn on_announcement(
        &mut self,
        peer: PeerId,
        addresses: impl IntoIterator<Item = Multiaddr>,
        links: Vec<Link>,
        (load, issued, expires): (Load, SystemTime, Instant),
        now: Instant,
    ) {
        let known = self.relays.get(&peer).and_then(|relay| relay.issued);
        if known.is_some_and(|known| issued <= known) {
            return;
        }
        if expires <= now || !self.remember(peer, addresses, links, now) {
            return;
        }
        if let Some(relay) = self.relays.get_mut(&peer) {
            relay.load = Some(load);
            relay.issued = Some(issued);
            relay.announced_until = Some(expires);
        }
        self.settle(now);
    }

    /// Forgets a relay that is not in use at this moment.
    pub(crate) fn remove_candidate(&mut self, peer: &PeerId) {
        if let Some(relay) = self.relays.get(peer)
            && !relay.configured
            && relay.is_idle()
            && relay.told.is_none()
        {
            self.relays.remove(peer);
        }
    }

    /// The relay says that it no longer relays: a reservation there is asked for again at once, to learn whether it still
    /// counts, and another relay is looked for meanwhile.
    pub(crate) fn on_withdrawn(&mut self, peer: PeerId, now: Instant) {
        self.remove_candidate(&peer);
        if let Some(relay) = self.relays.get_mut(&peer)
            && let State::Held(hold) = &mut relay.state
        {
            hold.refused = Some(LossReason::Unsupported);
            // One that is on its way tells, too: a relay that says so again and again is not asked as often.
            if let Renewal::Due(at) = &mut hold.renewal {
                *at = now;
            }
        }
        self.settle(now);
    }

    /// A direct connection came up.
    pub(crate) fn on_connected(&mut self, peer: PeerId, link: Link, now: Instant) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        let id = link.id;
        relay.add_links([link]);
        let link = id;
        match &mut relay.state {
            State::Asking {
                stage: stage @ Stage::Dialling,
                ..
            } => {
                *stage = Stage::Reserving(link);
                self.outputs
                    .push_back(Output::Reserve { relay: peer, link });
            }
            State::Idle { .. } if matches!(relay.trip, RoundTrip::Asked(_)) => {
                self.outputs.push_back(Output::Probe { relay: peer, link });
            }
            State::Idle { .. } | State::Asking { .. } | State::Held(_) => {}
        }
        self.settle(now);
    }

    /// A direct connection is gone. `reset`: not because one of both ends closed it.
    pub(crate) fn on_disconnected(
        &mut self,
        peer: PeerId,
        link: ConnectionId,
        reset: bool,
        now: Instant,
    ) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        relay.links.retain(|known| known.id != link);
        if relay.links.is_empty() && matches!(relay.trip, RoundTrip::Asked(_)) {
            // The question went with the connection, and no dial is under way that would bring an answer.
            relay.trip = RoundTrip::Failed;
        }
        match &relay.state {
            State::Held(hold) if hold.link == link => {
                let other = relay.links.last().map(|link| link.id);
                self.lose(peer, LossReason::ConnectionClosed, now);
                if other.is_some() {
                    self.ask(peer, false, now);
                }
                if reset {
                    self.check_others(peer, now);
                }
            }
            State::Asking {
                stage: Stage::Reserving(asked),
                ..
            } if *asked == link => self.fail(peer, LossReason::ConnectionClosed, now),
            State::Idle { .. } | State::Asking { .. } | State::Held(_) => {}
        }
        self.settle(now);
    }

    /// The relay could not be dialled.
    pub(crate) fn on_dial_failed(&mut self, peer: PeerId, now: Instant) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        if matches!(relay.trip, RoundTrip::Asked(_)) && relay.links.is_empty() {
            relay.trip = RoundTrip::Failed;
        }
        match relay.state {
            State::Asking {
                stage: Stage::Dialling,
                ..
            } => self.fail(peer, LossReason::Unreachable, now),
            // It was dialled in order to measure the way there.
            State::Idle { not_before } if not_before <= now && relay.links.is_empty() => {
                self.fail(peer, LossReason::Unreachable, now);
            }
            State::Idle { .. } | State::Asking { .. } | State::Held(_) => {}
        }
        self.settle(now);
    }

    /// The relay accepted, for the first time or again.
    pub(crate) fn on_granted(
        &mut self,
        peer: PeerId,
        link: ConnectionId,
        grant: Grant,
        now: Instant,
    ) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            self.outputs
                .push_back(Output::Release { relay: peer, link });
            return;
        };
        // A relay whose clock is wrong is asked again every now and then.
        let lifetime = grant.lifetime.clamp(Duration::from_secs(2), MAX_LIFETIME);
        let share = self.random.random_range(0.65..=0.75);
        let renew_at = now + lifetime.min(TRUSTED_LIFETIME).mul_f64(share);
        let renewal = match &mut relay.state {
            State::Held(hold) if hold.link == link => {
                hold.limit = grant.limit;
                hold.expires = now + lifetime;
                hold.renewal = Renewal::Due(renew_at);
                hold.refused = None;
                true
            }
            State::Asking {
                stage: Stage::Reserving(asked),
                ..
            } if *asked == link => {
                let Some(address) = relay.address_over(peer, link) else {
                    return;
                };
                let interval = self.config.probe_interval();
                let rest = interval.mul_f64(self.random.random_range(0.5..=1.0));
                relay.state = State::Held(Hold {
                    link,
                    address,
                    limit: grant.limit,
                    since: now,
                    expires: now + lifetime,
                    renewal: Renewal::Due(renew_at),
                    refused: None,
                    pulse: Pulse::Rest { until: now + rest },
                });
                relay.last_failure = None;
                false
            }
            // Nobody waits for it any more.
            State::Idle { .. } | State::Asking { .. } | State::Held(_) => {
                self.outputs
                    .push_back(Output::Release { relay: peer, link });
                return;
            }
        };
        let Some(address) = relay.hold().map(|hold| hold.address.clone()) else {
            return;
        };
        self.outputs.push_back(Output::Reserved {
            address: address.clone(),
            renewal,
            limit: grant.limit,
        });
        self.tell(peer, address, grant.addresses);
        self.settle(now);
    }

    /// The relay did not accept, or did not answer.
    pub(crate) fn on_refused(
        &mut self,
        peer: PeerId,
        link: ConnectionId,
        why: LossReason,
        now: Instant,
    ) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        match &mut relay.state {
            State::Held(hold) if hold.link == link => {
                // What is held lasts until it expires: try again, and look for another meanwhile
                // if the relay said no.
                let left = hold.expires.saturating_duration_since(now);
                let left = left.min(TRUSTED_LIFETIME);
                hold.renewal = Renewal::Due(now + (left / 3).max(Duration::from_millis(250)));
                if why != LossReason::Stream {
                    hold.refused = Some(why);
                }
            }
            State::Asking {
                stage: Stage::Reserving(asked),
                ..
            } if *asked == link => self.fail(peer, why, now),
            State::Idle { .. } | State::Asking { .. } | State::Held(_) => {}
        }
        self.settle(now);
    }

    /// The relay answered a probe; `rtt`: how long that took, `None` if it answered that it does
    /// not know the protocol.
    pub(crate) fn on_pong(
        &mut self,
        peer: PeerId,
        link: ConnectionId,
        rtt: Option<Duration>,
        now: Instant,
    ) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        match rtt {
            Some(rtt) => relay.on_round_trip(rtt),
            None if matches!(relay.trip, RoundTrip::Asked(_)) => relay.trip = RoundTrip::Failed,
            None => {}
        }
        if let State::Held(hold) = &mut relay.state
            && hold.link == link
        {
            hold.pulse = Pulse::Rest {
                until: now + self.config.probe_interval(),
            };
            // Nobody waits for this: it is what happens most.
            return;
        }
        self.settle(now);
    }

    /// Something about this host's network changed, or time passed without it: every reservation
    /// is checked at once, and made again if need be.
    pub(crate) fn on_network_change(&mut self, now: Instant) {
        let again = self
            .checked_at
            .is_some_and(|at| now.saturating_duration_since(at) < CHECK);
        self.checked_at = Some(now);
        for (&peer, relay) in &mut self.relays {
            // It may have failed for the same reason.
            relay.excuse(now);
            let patience = relay.rtt().map_or(CHECK, |rtt| CHECK.max(3 * rtt));
            match &mut relay.state {
                State::Idle { .. } => {}
                // Whatever began just now began after the change.
                State::Asking { since, stage }
                    if !again && now.saturating_duration_since(*since) >= CHECK =>
                {
                    *since = now;
                    if let Stage::Reserving(link) = *stage {
                        self.outputs
                            .push_back(Output::Release { relay: peer, link });
                    }
                    *stage = Stage::Dialling;
                    self.outputs.push_back(Output::Dial {
                        relay: peer,
                        addresses: relay.addresses.iter().cloned().collect(),
                    });
                }
                State::Asking { .. } => {}
                State::Held(hold) => check(peer, hold, &mut self.outputs, now, patience),
            }
        }
        self.settle(now);
    }

    /// This host slept, and no clock here says for how long: every reservation may have ended meanwhile.
    pub(crate) fn on_sleep(&mut self, now: Instant) {
        for relay in self.relays.values_mut() {
            if let State::Held(hold) = &mut relay.state {
                hold.renewal = Renewal::Due(now);
            }
        }
        self.on_network_change(now);
    }

    /// Whether this node can be reached without relays.
    pub(crate) fn on_reachability(&mut self, public: bool, now: Instant) {
        match (public, self.public) {
            (true, None) => self.public = Some(now),
            (false, Some(_)) => self.public = None,
            (true, Some(_)) | (false, None) => return,
        }
        self.settle(now);
    }

    /// Drain after every call that changes something.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn held(&self) -> impl Iterator<Item = Held<'_>> {
        self.relays.values().filter_map(|relay| {
            let hold = relay.hold()?;
            Some(Held {
                link: hold.link,
                address: &hold.address,
                configured: relay.configured,
                limit: hold.limit,
                since: hold.since,
                expires: hold.expires,
                rtt: relay.rtt(),
            })
        })
    }

    /// Relays that are known, in use or not.
    pub(crate) fn candidates(&self) -> usize {
        self.relays.len()
    }

    pub(crate) fn target(&self) -> usize {
        self.config.target_reservations()
    }

    /// Whether there are relays that this node uses, or would use.
    pub(crate) fn is_active(&self) -> bool {
        self.public.is_none() && !self.relays.is_empty()
    }

    /// Where a relay can be dialled, without `/p2p`.
    pub(crate) fn addresses(&self, relay: &PeerId) -> impl Iterator<Item = &Multiaddr> {
        self.relays
            .get(relay)
            .into_iter()
            .flat_map(|relay| &relay.addresses)
    }

    fn remember(
        &mut self,
        peer: PeerId,
        addresses: impl IntoIterator<Item = Multiaddr>,
        links: Vec<Link>,
        now: Instant,
    ) -> bool {
        let mut addresses = addresses.into_iter().peekable();
        let Some(first) = addresses.peek() else {
            return false;
        };
        if !self.relays.contains_key(&peer) && !self.make_room(Prefix::of(first), now) {
            return false;
        }
        let max = self.config.max_addresses_per_relay();
        let relay = self.relay_or_new(peer, now);
        relay.add_addresses(addresses, max);
        relay.add_links(links);
        // Now it does relay, so somebody says.
        if relay.last_failure == Some(LossReason::Unsupported)
            && let State::Idle { not_before } = &mut relay.state
            && now.saturating_duration_since(relay.seen) > CHECK
        {
            *not_before = now.min(*not_before);
        }
        relay.seen = now;
        let measure = relay.trip == RoundTrip::Unknown && !relay.links.is_empty();
        if measure && self.public.is_none() {
            self.measure(peer, now);
        }
        true
    }

    fn relay_or_new(&mut self, peer: PeerId, now: Instant) -> &mut Relay {
        let seed = self.seed;
        self.relays
            .entry(peer)
            .or_insert_with(|| Relay::new(tie(seed, &peer), now))
    }

    /// One connection broke: the others may have, too.
    fn check_others(&mut self, broken: PeerId, now: Instant) {
        for (&peer, relay) in &mut self.relays {
            if peer != broken
                && let State::Held(hold) = &mut relay.state
                && matches!(hold.pulse, Pulse::Rest { .. })
            {
                hold.pulse = Pulse::Asked {
                    sent: now,
                    misses: 0,
                };
                let link = hold.link;
                self.outputs.push_back(Output::Probe { relay: peer, link });
            }
        }
    }
}

/// A relay says by the time of day when a reservation ends, and either clock may be wrong: it is renewed as if it lasted
/// no longer than this, after 30 min at the latest.
const TRUSTED_LIFETIME: Duration = Duration::from_secs(40 * 60);

/// A relay whose reservations last longer than this is asked again after a day all the same.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

fn check(
    relay: PeerId,
    hold: &mut Hold,
    outputs: &mut VecDeque<Output>,
    now: Instant,
    patience: Duration,
) {
    if matches!(hold.pulse, Pulse::Checked { .. }) {
        return;
    }
    hold.pulse = Pulse::Checked {
        until: now + patience,
    };
    let link = hold.link;
    outputs.push_back(Output::Probe { relay, link });
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
