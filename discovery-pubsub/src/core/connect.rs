//! Connecting to those who are found: not to all, not all to one at once, and not again and again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use rand::{Rng, RngExt as _};
use serde::Deserialize;
use web_time::Instant;

use crate::{
    ConfigError,
    address::{Host, host},
};

/// A peer that is found is dialled after up to this long, so that not all who heard of it come in the same
/// instant.
const SPREAD: Duration = Duration::from_secs(2);

/// A connection of ours that ends sooner counts as a failed dial: the peer is full, or does not want us.
const STABLE: Duration = Duration::from_secs(60);

/// How many peers are connected to, and how. With serde all fields have defaults, durations are strings such as
/// `"10s"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct AutoConnect {
    /// As long as fewer peers are connected, whoever connected them, more are dialled; default 16.
    pub peers: usize,
    /// Dials at once; default 4.
    pub pending: usize,
    /// Peers of one network (IPv4 /24, IPv6 /48, a name, a relay's host) that are dialled or were connected by
    /// these dials; default 2. Who owns one network is then not all this node knows.
    pub per_prefix: usize,
    /// The wait after a peer's first failed dial, or its loss; it doubles with each further failure. A connection that
    /// the other end closes within a minute is one. Default 10 s.
    #[serde(with = "humantime_serde")]
    pub backoff: Duration,
    /// The longest wait; default 15 min.
    #[serde(with = "humantime_serde")]
    pub max_backoff: Duration,
}

impl Default for AutoConnect {
    fn default() -> Self {
        Self {
            peers: 16,
            pending: 4,
            per_prefix: 2,
            backoff: Duration::from_secs(10),
            max_backoff: Duration::from_secs(15 * 60),
        }
    }
}

impl AutoConnect {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        for (value, field) in [
            (self.peers, "auto_connect.peers"),
            (self.pending, "auto_connect.pending"),
            (self.per_prefix, "auto_connect.per_prefix"),
            (usize::from(!self.backoff.is_zero()), "auto_connect.backoff"),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero(field));
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Prefix {
    V4(Ipv4Addr),
    V6([u16; 3]),
    Name(String),
}

fn prefix(address: &Multiaddr) -> Option<Prefix> {
    Some(match host(address)? {
        Host::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            Prefix::V4(Ipv4Addr::new(a, b, c, 0))
        }
        Host::V6([a, b, c, _]) => Prefix::V6([a, b, c]),
        Host::Name(name) => Prefix::Name(name),
    })
}

/// The dials of one node. It remembers `max` peers' failures at most.
#[derive(Debug)]
pub(super) struct Connector {
    config: AutoConnect,
    max: usize,
    /// Known and not connected, by when they may be dialled.
    waiting: BTreeSet<(Instant, PeerId)>,
    due: BTreeMap<PeerId, Instant>,
    pending: BTreeMap<PeerId, Vec<Prefix>>,
    /// Connected by our dials, and since when.
    dialled: BTreeMap<PeerId, (Instant, Vec<Prefix>)>,
    /// Dials that failed in a row, and until when that matters.
    failures: BTreeMap<PeerId, (u32, Instant)>,
}

impl Connector {
    pub(super) fn new(config: AutoConnect, max: usize) -> Self {
        Self {
            config,
            max,
            waiting: BTreeSet::new(),
            due: BTreeMap::new(),
            pending: BTreeMap::new(),
            dialled: BTreeMap::new(),
            failures: BTreeMap::new(),
        }
    }

    /// `peer` is known and not connected.
    pub(super) fn on_found(&mut self, peer: PeerId, now: Instant, rng: &mut impl Rng) {
        if self.due.contains_key(&peer) || self.pending.contains_key(&peer) {
            return;
        }
        let until = self.failures.get(&peer).map_or(now, |(_, until)| *until);
        self.wait(peer, until.max(now) + SPREAD.mul_f64(rng.random()));
    }

    /// `peer` is not known any more.
    pub(super) fn on_expired(&mut self, peer: &PeerId) {
        if let Some(at) = self.due.remove(peer) {
            self.waiting.remove(&(at, *peer));
        }
    }

    pub(super) fn on_connected(&mut self, peer: PeerId, now: Instant) {
        self.on_expired(&peer);
        if let Some(prefixes) = self.pending.remove(&peer) {
            self.dialled.insert(peer, (now, prefixes));
        }
    }

    /// The last connection is gone; if `known`, the peer may come back later.
    pub(super) fn on_disconnected(&mut self, peer: PeerId, known: bool, now: Instant) {
        let wait = match self.dialled.remove(&peer) {
            Some((since, _)) if now < since + STABLE => self.fail(peer, now),
            _ => {
                self.failures.remove(&peer);
                self.config.backoff
            }
        };
        if known {
            self.wait(peer, now + wait);
        }
    }

    pub(super) fn on_dial_failed(&mut self, peer: PeerId, known: bool, now: Instant) {
        if self.pending.remove(&peer).is_none() {
            return;
        }
        let wait = self.fail(peer, now);
        if known {
            self.wait(peer, now + wait);
        }
    }

    /// Counts a failure and returns how long to wait.
    fn fail(&mut self, peer: PeerId, now: Instant) -> Duration {
        self.failures
            .retain(|_, (_, until)| *until + self.config.max_backoff > now);
        let failed = self.failures.get(&peer).map_or(0, |(failed, _)| *failed);
        let factor = 1u32 << failed.min(16);
        let wait = (self.config.backoff * factor).min(self.config.max_backoff);
        if failed > 0 || self.failures.len() < self.max {
            self.failures
                .insert(peer, (failed.saturating_add(1), now + wait));
        }
        wait
    }

    /// The next peer to dial; `addresses` tells where it is.
    pub(super) fn next<'a>(
        &mut self,
        connected: usize,
        now: Instant,
        addresses: impl Fn(&PeerId) -> &'a [Multiaddr],
    ) -> Option<PeerId> {
        while self.has_room(connected)
            && let Some((at, peer)) = self.waiting.first().copied()
            && at <= now
        {
            self.on_expired(&peer);
            let prefixes: BTreeSet<_> = addresses(&peer).iter().filter_map(prefix).collect();
            if prefixes.iter().all(|prefix| !self.is_crowded(prefix)) {
                self.pending.insert(peer, prefixes.into_iter().collect());
                return Some(peer);
            }
            self.wait(peer, now + self.config.max_backoff);
        }
        None
    }

    /// When [`next`](Self::next) may have somebody.
    pub(super) fn poll_timeout(&self, connected: usize) -> Option<Instant> {
        let first = self.waiting.first().map(|(at, _)| *at);
        first.filter(|_| self.has_room(connected))
    }

    fn has_room(&self, connected: usize) -> bool {
        self.pending.len() < self.config.pending
            && connected + self.pending.len() < self.config.peers
    }

    fn is_crowded(&self, prefix: &Prefix) -> bool {
        let dialled = self.dialled.values().map(|(_, prefixes)| prefixes);
        let all = self.pending.values().chain(dialled);
        all.filter(|prefixes| prefixes.contains(prefix)).count() >= self.config.per_prefix
    }

    fn wait(&mut self, peer: PeerId, until: Instant) {
        self.on_expired(&peer);
        if self.due.len() < self.max {
            self.due.insert(peer, until);
            self.waiting.insert((until, peer));
        }
    }
}
