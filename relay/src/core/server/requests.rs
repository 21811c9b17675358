//! How often each peer, host and network may ask.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
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
    banned: Until<PeerId>,
    /// Hosts from which banned peers came back while they were banned.
    suspect: Until<Network>,
    beginnings: Buckets<Network>,
}

/// What holds for some keys for some time.
#[derive(Debug)]
struct Until<K> {
    ends: HashMap<K, Instant>,
    order: BTreeSet<(Instant, K)>,
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
            banned: Until::default(),
            suspect: Until::default(),
            beginnings: Buckets::new(config.connections_beside_banned(), MAX_REMEMBERED),
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
        if self.banned.holds(&peer, now) {
            return false;
        }
        self.banned.insert(peer, now + self.ban_duration);
        true
    }

    /// Whether a peer that has connected from there is banned. If so, its host is suspect for as long as it was.
    pub(crate) fn is_banned(&mut self, peer: PeerId, host: Option<Network>, now: Instant) -> bool {
        let banned = self.banned.holds(&peer, now);
        if let Some(host) = host.filter(|_| banned) {
            self.suspect.insert(host, now + self.ban_duration);
        }
        banned
    }

    /// Whether a connection from this host may begin, whoever it turns out to be: a handshake costs the relay more than a
    /// flood's request, and who is banned shows only after it.
    pub(crate) fn may_begin(&mut self, host: Network, now: Instant) -> bool {
        !self.suspect.holds(&host, now) || self.beginnings.take(host, now)
    }
}

impl<K: Copy + Ord + Hash> Until<K> {
    fn holds(&mut self, key: &K, now: Instant) -> bool {
        while let Some((until, first)) = self.order.first().copied()
            && until <= now
        {
            self.order.pop_first();
            self.ends.remove(&first);
        }
        self.ends.contains_key(key)
    }

    /// Of more than [`MAX_REMEMBERED`] the one that ends first is forgotten.
    fn insert(&mut self, key: K, until: Instant) {
        if let Some(before) = self.ends.insert(key, until) {
            self.order.remove(&(before, key));
        }
        self.order.insert((until, key));
        if self.ends.len() > MAX_REMEMBERED
            && let Some((_, first)) = self.order.pop_first()
        {
            self.ends.remove(&first);
        }
    }
}

impl<K> Default for Until<K> {
    fn default() -> Self {
        Self {
            ends: HashMap::new(),
            order: BTreeSet::new(),
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;

    #[test]
    fn what_holds_for_some_time_ends_then_and_is_bounded() {
        let mut until = Until::default();
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        until.insert(1, now + second);
        until.insert(1, now + 3 * second);
        until.insert(2, now + 2 * second);
        assert!(until.holds(&1, now + second) && until.holds(&2, now + second));
        assert!(until.holds(&1, now + 2 * second) && !until.holds(&2, now + 2 * second));
        assert!(!until.holds(&1, now + 3 * second));
        assert!(until.ends.is_empty() && until.order.is_empty());
        for key in 0..2 * MAX_REMEMBERED {
            until.insert(key, now + second);
            assert_eq!(until.ends.len(), until.order.len());
            assert!(until.ends.len() <= MAX_REMEMBERED);
        }
    }
}
