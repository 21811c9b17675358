//! How often each peer, host and network may ask.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use libp2p_identity::PeerId;
use web_time::Instant;

use super::{caps::Owner, network::Network, rate::Buckets};
use crate::server::Config;

/// Peers, hosts and networks whose buckets are remembered, each: about 200 bytes an entry. Whoever makes more of them has that
/// many identities or addresses, which the caps bound.
const MAX_REMEMBERED: usize = 4096;

/// All rate limits and bans.
#[derive(Debug)]
pub(crate) struct Requests {
    limited: bool,
    reservations: Limits,
    circuits: Limits,
    any: Buckets<PeerId>,
    ban_duration: Duration,
    banned: HashMap<PeerId, Instant>,
    bans: BTreeSet<(Instant, PeerId)>,
}

#[derive(Debug)]
struct Limits {
    peers: Buckets<PeerId>,
    hosts: Buckets<Network>,
    prefixes: Buckets<Network>,
}

impl Requests {
    pub(crate) fn new(config: &Config) -> Self {
        let limits = || Limits {
            peers: Buckets::new(config.requests_per_peer(), MAX_REMEMBERED),
            hosts: Buckets::new(config.requests_per_ip(), MAX_REMEMBERED),
            prefixes: Buckets::new(config.requests_per_prefix(), MAX_REMEMBERED),
        };
        Self {
            limited: config.rate_limits(),
            reservations: limits(),
            circuits: limits(),
            any: Buckets::new(config.flood(), MAX_REMEMBERED),
            ban_duration: config.ban_duration(),
            banned: HashMap::new(),
            bans: BTreeSet::new(),
        }
    }

    /// Whether a peer may send one more request of any kind. If not, it floods.
    pub(crate) fn any(&mut self, peer: PeerId, now: Instant) -> bool {
        !self.limited || self.any.take(peer, now)
    }

    /// Whether this reservation is in time. A renewal answers to its peer's bucket alone: neighbours cannot use it up.
    pub(crate) fn reservation(&mut self, owner: &Owner, renewal: bool, now: Instant) -> bool {
        if !self.limited {
            return true;
        }
        if renewal {
            return self.reservations.peers.take(owner.peer, now);
        }
        self.reservations.take(owner, now)
    }

    /// Whether this circuit is in time.
    pub(crate) fn circuit(&mut self, owner: &Owner, now: Instant) -> bool {
        !self.limited || self.circuits.take(owner, now)
    }

    /// Bans a peer; false if it is banned already.
    pub(crate) fn ban(&mut self, peer: PeerId, now: Instant) -> bool {
        self.forgive(now);
        if self.banned.contains_key(&peer) {
            return false;
        }
        if self.banned.len() >= MAX_REMEMBERED
            && let Some((_, first)) = self.bans.pop_first()
        {
            self.banned.remove(&first);
        }
        let until = now + self.ban_duration;
        self.banned.insert(peer, until);
        self.bans.insert((until, peer));
        true
    }

    pub(crate) fn is_banned(&mut self, peer: PeerId, now: Instant) -> bool {
        self.forgive(now);
        self.banned.contains_key(&peer)
    }

    fn forgive(&mut self, now: Instant) {
        while let Some((until, peer)) = self.bans.first().copied()
            && until <= now
        {
            self.bans.pop_first();
            self.banned.remove(&peer);
        }
    }
}

impl Limits {
    /// A token from all buckets or from none.
    fn take(&mut self, owner: &Owner, now: Instant) -> bool {
        if let Some(place) = owner.place {
            let (host, prefix) = (place.host, place.prefix);
            if !(self.peers.has(owner.peer, now)
                && self.hosts.has(host, now)
                && self.prefixes.has(prefix, now))
            {
                return false;
            }
            self.hosts.take(host, now);
            self.prefixes.take(prefix, now);
        }
        self.peers.take(owner.peer, now)
    }
}
