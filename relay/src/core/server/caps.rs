//! How much of something each peer, host and network has, and how much it may have.

use std::{collections::HashMap, hash::Hash};

use libp2p_identity::PeerId;

use super::network::{Network, Place};

/// How many there may be at the same time. `None`: as many as the others allow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) total: usize,
    pub(crate) per_peer: usize,
    pub(crate) per_ip: Option<usize>,
    pub(crate) per_prefix: Option<usize>,
}

/// Which limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    Total,
    Peer,
    Ip,
    Prefix,
}

/// Who has one: a peer at a place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) peer: PeerId,
    pub(crate) place: Option<Place>,
}

/// Counts owners. Every map has at most `total` entries for each owner of a thing.
#[derive(Debug)]
pub(crate) struct Caps {
    limits: Limits,
    total: usize,
    peers: HashMap<PeerId, usize>,
    hosts: HashMap<Network, usize>,
    prefixes: HashMap<Network, usize>,
}

impl Caps {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            total: 0,
            peers: HashMap::new(),
            hosts: HashMap::new(),
            prefixes: HashMap::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.total
    }

    /// Whether these owners may share one more.
    pub(crate) fn room(&self, owners: &[Owner]) -> Result<(), Full> {
        if self.total >= self.limits.total {
            return Err(Full::Total);
        }
        let count =
            |map: &HashMap<Network, usize>, network| map.get(&network).copied().unwrap_or(0);
        for owner in owners {
            if self.peers.get(&owner.peer).copied().unwrap_or(0) >= self.limits.per_peer {
                return Err(Full::Peer);
            }
            let Some(place) = owner.place else { continue };
            if self
                .limits
                .per_ip
                .is_some_and(|limit| count(&self.hosts, place.host) >= limit)
            {
                return Err(Full::Ip);
            }
            if self
                .limits
                .per_prefix
                .is_some_and(|limit| count(&self.prefixes, place.prefix) >= limit)
            {
                return Err(Full::Prefix);
            }
        }
        Ok(())
    }

    /// Counts one thing for its owners; a host or network that several of them share has it once.
    pub(crate) fn take(&mut self, owners: &[Owner]) {
        self.total += 1;
        for_each_key(owners, |key| match key {
            Key::Peer(peer) => *self.peers.entry(peer).or_default() += 1,
            Key::Host(host) => *self.hosts.entry(host).or_default() += 1,
            Key::Prefix(prefix) => *self.prefixes.entry(prefix).or_default() += 1,
        });
    }

    /// Undoes [`take`](Self::take) with the same owners.
    pub(crate) fn release(&mut self, owners: &[Owner]) {
        self.total = self.total.saturating_sub(1);
        for_each_key(owners, |key| match key {
            Key::Peer(peer) => decrement(&mut self.peers, peer),
            Key::Host(host) => decrement(&mut self.hosts, host),
            Key::Prefix(prefix) => decrement(&mut self.prefixes, prefix),
        });
    }
}

enum Key {
    Peer(PeerId),
    Host(Network),
    Prefix(Network),
}

fn for_each_key(owners: &[Owner], mut each: impl FnMut(Key)) {
    for (index, owner) in owners.iter().enumerate() {
        let before = owners.get(..index).unwrap_or_default();
        if before.iter().all(|other| other.peer != owner.peer) {
            each(Key::Peer(owner.peer));
        }
        let Some(place) = owner.place else { continue };
        let mut places = before.iter().filter_map(|other| other.place);
        if places.clone().all(|other| other.host != place.host) {
            each(Key::Host(place.host));
        }
        if places.all(|other| other.prefix != place.prefix) {
            each(Key::Prefix(place.prefix));
        }
    }
}

fn decrement<K: Hash + Eq>(map: &mut HashMap<K, usize>, key: K) {
    if let std::collections::hash_map::Entry::Occupied(mut entry) = map.entry(key) {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(address: &str) -> Owner {
        Owner {
            peer: PeerId::random(),
            place: Place::of(&address.parse().unwrap(), 24, 48),
        }
    }

    fn caps() -> Caps {
        Caps::new(Limits {
            total: 4,
            per_peer: 2,
            per_ip: Some(2),
            per_prefix: Some(3),
        })
    }

    #[test]
    fn each_limit_holds_exactly() {
        let mut caps = caps();
        let a = owner("/ip4/203.0.113.1/tcp/1");
        caps.take(&[a]);
        assert_eq!(caps.room(&[a]), Ok(()));
        caps.take(&[a]);
        assert_eq!(caps.room(&[a]), Err(Full::Peer));
        assert_eq!(caps.room(&[owner("/ip4/203.0.113.1/tcp/2")]), Err(Full::Ip));
        let b = owner("/ip4/203.0.113.2/tcp/1");
        assert_eq!(caps.room(&[b]), Ok(()));
        caps.take(&[b]);
        assert_eq!(
            caps.room(&[owner("/ip4/203.0.113.3/tcp/1")]),
            Err(Full::Prefix)
        );
        let c = owner("/ip4/198.51.100.1/tcp/1");
        assert_eq!(caps.room(&[c]), Ok(()));
        caps.take(&[c]);
        assert_eq!(
            caps.room(&[owner("/ip4/192.0.2.1/tcp/1")]),
            Err(Full::Total)
        );
    }

    #[test]
    fn what_is_released_leaves_nothing_behind() {
        let mut caps = caps();
        let (a, b) = (
            owner("/ip4/203.0.113.1/tcp/1"),
            owner("/ip4/203.0.113.1/tcp/2"),
        );
        for _ in 0..100 {
            caps.take(&[a, b]);
            assert_eq!(caps.hosts.len(), 1, "a shared host counts once");
            caps.release(&[a, b]);
        }
        assert_eq!(caps.len(), 0);
        assert!(caps.peers.is_empty() && caps.hosts.is_empty() && caps.prefixes.is_empty());
    }
}
