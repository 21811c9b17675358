//! One relay, as this node knows it.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;
use web_time::Instant;

use super::rank::{Prefix, Rank};
use crate::{
    CircuitLimit,
    address::RelayAddress,
    announcement::Load,
    client::{Config, LossReason},
};

/// Connections to one relay that are remembered, the latest: more are of no use.
const MAX_LINKS: usize = 8;

#[derive(Debug)]
pub(super) struct Relay {
    /// Never empty; the latest stands last.
    pub(super) addresses: VecDeque<Multiaddr>,
    /// Named by the user: never forgotten.
    pub(super) configured: bool,
    /// When it was last said to relay.
    pub(super) seen: Instant,
    /// Direct connections to it, the newest last.
    pub(super) links: Vec<Link>,
    pub(super) failures: u32,
    /// Why the last request failed.
    pub(super) last_failure: Option<LossReason>,
    /// When a reservation there last ended.
    pub(super) last_held: Option<Instant>,
    /// Since when, and how often, its waits were ended because the network changed.
    pub(super) excused: Option<(Instant, u8)>,
    pub(super) trip: RoundTrip,
    pub(super) load: Option<Load>,
    /// When its latest announcement was written, by its own clock.
    pub(super) issued: Option<SystemTime>,
    /// When its announcement ends, if it announced itself.
    pub(super) announced_until: Option<Instant>,
    pub(super) state: State,
    /// Addresses through it that are told to others.
    pub(super) told: Option<Told>,
    pub(super) tie: u64,
}

/// A direct connection.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) id: ConnectionId,
    /// Where it was dialled, without `/p2p`; `None` if the relay dialled.
    pub(crate) address: Option<Multiaddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RoundTrip {
    Unknown,
    Asked(Instant),
    Known(Duration),
    /// It was asked and did not answer in time.
    Failed,
}

#[derive(Debug)]
pub(super) enum State {
    /// May be asked from `not_before` on.
    Idle { not_before: Instant },
    /// A reservation is on its way.
    Asking { since: Instant, stage: Stage },
    /// A reservation is held.
    Held(Hold),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Dialling,
    Reserving(ConnectionId),
}

/// A reservation.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) link: ConnectionId,
    pub(super) address: RelayAddress,
    pub(super) limit: Option<CircuitLimit>,
    pub(super) since: Instant,
    pub(super) expires: Instant,
    pub(super) renewal: Renewal,
    /// Why the relay will not renew it, if it said so: it is replaced while it lasts.
    pub(super) refused: Option<LossReason>,
    pub(super) pulse: Pulse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renewal {
    Due(Instant),
    Asked,
}

/// Whether the relay still answers.
#[derive(Debug)]
pub(super) enum Pulse {
    /// It answered the last time.
    Rest { until: Instant },
    /// It was asked at `sent`; so many questions before went without an answer.
    Asked { sent: Instant, misses: u32 },
    /// The network changed: it answers by then, or the connection is given up.
    Checked { until: Instant },
}

/// What others know about how to reach this node through the relay.
#[derive(Debug)]
pub(super) struct Told {
    /// The address that this node used; the only one known to be true.
    pub(super) external: RelayAddress,
    /// More that the relay named.
    pub(super) listed: Vec<RelayAddress>,
    /// When it is taken back, unless the reservation is made again before.
    pub(super) withdraw_at: Option<Instant>,
}

impl Relay {
    pub(super) fn new(tie: u64, now: Instant) -> Self {
        Self {
            addresses: VecDeque::new(),
            configured: false,
            seen: now,
            links: Vec::new(),
            failures: 0,
            last_failure: None,
            last_held: None,
            excused: None,
            trip: RoundTrip::Unknown,
            load: None,
            issued: None,
            announced_until: None,
            state: State::Idle { not_before: now },
            told: None,
            tie,
        }
    }

    pub(super) fn add_addresses(
        &mut self,
        addresses: impl IntoIterator<Item = Multiaddr>,
        max: usize,
    ) {
        for address in addresses {
            if self.addresses.contains(&address) {
                continue;
            }
            if self.addresses.len() >= max {
                self.addresses.pop_front();
            }
            self.addresses.push_back(address);
        }
    }

    pub(super) fn add_links(&mut self, links: impl IntoIterator<Item = Link>) {
        for link in links {
            if self.links.iter().any(|known| known.id == link.id) {
                continue;
            }
            if self.links.len() >= MAX_LINKS {
                self.links.remove(0);
            }
            self.links.push(link);
        }
    }

    pub(super) fn hold(&self) -> Option<&Hold> {
        match &self.state {
            State::Held(hold) => Some(hold),
            State::Idle { .. } | State::Asking { .. } => None,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle { .. })
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        matches!(self.state, State::Idle { not_before } if not_before <= now)
    }

    /// Whether it counts towards the target: held for as long as one can see, or asked so lately
    /// that it need not be slow.
    pub(super) fn counts(&self, patience: Duration, now: Instant) -> bool {
        match &self.state {
            State::Idle { .. } => false,
            State::Asking { since, .. } => now.saturating_duration_since(*since) < patience,
            State::Held(hold) => hold.refused.is_none(),
        }
    }

    /// Ends a wait, because the network changed and the failure may have been the network's. Where changes come in a storm
    /// the relay is asked twice in ten seconds, no more.
    pub(super) fn excuse(&mut self, now: Instant) {
        const WINDOW: Duration = Duration::from_secs(10);
        const TIMES: u8 = 2;
        let State::Idle { not_before } = &mut self.state else {
            return;
        };
        if *not_before <= now {
            return;
        }
        let (since, times) = self
            .excused
            .filter(|(since, _)| now.saturating_duration_since(*since) < WINDOW)
            .unwrap_or((now, 0));
        *not_before = if times < TIMES {
            self.excused = Some((since, times + 1));
            now
        } else {
            (since + WINDOW).min(*not_before)
        };
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        match self.trip {
            RoundTrip::Known(rtt) => Some(rtt),
            RoundTrip::Unknown | RoundTrip::Asked(_) | RoundTrip::Failed => None,
        }
    }

    pub(super) fn on_round_trip(&mut self, rtt: Duration) {
        self.trip = RoundTrip::Known(match self.trip {
            // RFC 6298, section 2.3: one eighth of each new measurement.
            RoundTrip::Known(known) => (known * 7 + rtt) / 8,
            RoundTrip::Unknown | RoundTrip::Asked(_) | RoundTrip::Failed => rtt,
        });
    }

    pub(super) fn prefix(&self) -> Option<Prefix> {
        self.addresses.iter().find_map(Prefix::of)
    }

    pub(super) fn rank(&self, neighbours: usize) -> Rank {
        Rank::new(self.failures, neighbours, self.rtt(), self.load, self.tie)
    }

    /// Where others reach this node through it, when the reservation is held over `link`.
    pub(super) fn address_over(&self, relay: PeerId, link: ConnectionId) -> Option<RelayAddress> {
        let dialled = self
            .links
            .iter()
            .find(|known| known.id == link)
            .and_then(|known| known.address.clone());
        let transport = dialled.or_else(|| self.addresses.back().cloned())?;
        Some(RelayAddress { relay, transport })
    }

    /// The next moment at which this relay needs attention, apart from being asked.
    pub(super) fn deadline(&self, config: &Config) -> Option<Instant> {
        let state = match &self.state {
            State::Idle { .. } => None,
            State::Asking { since, .. } => Some(*since + config.request_timeout()),
            State::Held(hold) => Some(hold.deadline(config)),
        };
        let trip = match self.trip {
            RoundTrip::Asked(at) => Some(at + config.probe_timeout()),
            RoundTrip::Unknown | RoundTrip::Known(_) | RoundTrip::Failed => None,
        };
        let told = self.told.as_ref().and_then(|told| told.withdraw_at);
        [state, trip, told].into_iter().flatten().min()
    }
}

impl Hold {
    fn deadline(&self, config: &Config) -> Instant {
        let pulse = match self.pulse {
            Pulse::Rest { until } | Pulse::Checked { until } => until,
            Pulse::Asked { sent, .. } => sent + config.probe_timeout(),
        };
        let renewal = match self.renewal {
            Renewal::Due(at) => at,
            Renewal::Asked => self.expires,
        };
        pulse.min(renewal).min(self.expires)
    }
}
