//! The peers that were heard, who said so, and until when.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::IpAddr,
    time::Duration,
};

use hickory_proto::rr::Name;
use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use web_time::Instant;

use super::LinkId;
use crate::Config;

/// Hosts and links that vouch for one address at a time: two families on two interfaces.
const MAX_SIGHTINGS: usize = 4;
/// A peer that is heard again after this time is more than a passing record.
const ESTABLISHED_AFTER: Duration = Duration::from_millis(500);
/// What a cache flush leaves to older records (RFC 6762 §10.2).
const FLUSHED_AFTER: Duration = Duration::from_secs(1);

/// Who said it. Only the same one can take it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Witness {
    pub(super) link: LinkId,
    source: IpAddr,
    /// Of the instance's name, which would take more room than all the rest. Two names of one hash confuse only what the same host says.
    instance: u64,
}

impl Witness {
    pub(super) fn new(link: LinkId, source: IpAddr, instance: &Name) -> Self {
        let mut hash = DefaultHasher::new();
        instance.hash(&mut hash);
        Self {
            link,
            source,
            instance: hash.finish(),
        }
    }
}

/// A consequence for the application or the counters.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Learned(PeerId, Multiaddr),
    Lost(PeerId, Multiaddr),
    /// Lost because another needed the place.
    Displaced(PeerId, Multiaddr),
    /// Not learned: no place.
    Refused,
}

#[derive(Debug)]
struct Sighting {
    by: Witness,
    seen: Instant,
    expires: Instant,
}

#[derive(Debug)]
struct Peer {
    /// No address is without a sighting, no peer without an address.
    addresses: BTreeMap<Multiaddr, Vec<Sighting>>,
    introduced: Instant,
    introduced_by: IpAddr,
    established: bool,
    /// Its place in [`Table::expiries`].
    expires: Instant,
}

impl Peer {
    fn earliest_expiry(&self) -> Option<Instant> {
        let sightings = self.addresses.values().flatten();
        sightings.map(|sighting| sighting.expires).min()
    }
}

#[derive(Debug)]
pub(super) struct Table {
    max_peers: usize,
    max_addresses: usize,
    peers: BTreeMap<PeerId, Peer>,
    /// Each peer once, by the first of its sightings that runs out.
    expiries: BTreeSet<(Instant, PeerId)>,
    /// The peers that may be given up, by who introduced them; those that were heard once come first.
    candidates: BTreeMap<IpAddr, BTreeSet<(bool, PeerId)>>,
    /// Those to whom there is a connection, heard or not, at most `max_peers`: they are never given up.
    connected: BTreeSet<PeerId>,
}

impl Table {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            max_peers: config.max_peers(),
            max_addresses: config.max_addresses_per_peer(),
            peers: BTreeMap::new(),
            expiries: BTreeSet::new(),
            candidates: BTreeMap::new(),
            connected: BTreeSet::new(),
        }
    }

    pub(super) fn peers(&self) -> impl ExactSizeIterator<Item = &PeerId> {
        self.peers.keys()
    }

    pub(super) fn addresses(&self, peer: &PeerId) -> impl Iterator<Item = &Multiaddr> {
        let peer = self.peers.get(peer).into_iter();
        peer.flat_map(|peer| peer.addresses.keys())
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// `by` says that `id` is at `address`.
    pub(super) fn insert(
        &mut self,
        id: PeerId,
        address: Multiaddr,
        by: &Witness,
        ttl: Duration,
        now: Instant,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let expires = now + ttl;
        if !self.peers.contains_key(&id) && !self.make_room(by.source, &mut changes) {
            changes.push(Change::Refused);
            return changes;
        }
        let max_addresses = self.max_addresses;
        let mut peer = self.take(&id).unwrap_or_else(|| Peer {
            addresses: BTreeMap::new(),
            introduced: now,
            introduced_by: by.source,
            established: self.connected.contains(&id),
            expires,
        });
        peer.established |= now >= peer.introduced + ESTABLISHED_AFTER;
        let sighting = Sighting {
            by: *by,
            seen: now,
            expires,
        };
        match peer.addresses.get_mut(&address) {
            Some(sightings) => {
                let same =
                    |old: &&mut Sighting| old.by.link == by.link && old.by.source == by.source;
                if let Some(old) = sightings.iter_mut().find(same) {
                    *old = sighting;
                } else if sightings.len() < MAX_SIGHTINGS {
                    sightings.push(sighting);
                } else {
                    changes.push(Change::Refused);
                }
            }
            None => {
                if peer.addresses.len() < max_addresses
                    || displace_address(id, &mut peer, by.source, &mut changes)
                {
                    peer.addresses.insert(address.clone(), vec![sighting]);
                    changes.push(Change::Learned(id, address));
                } else {
                    changes.push(Change::Refused);
                }
            }
        }
        self.put(id, peer);
        changes
    }

    /// `by` says again what it said last about `id` under this name. Returns how many addresses that are.
    pub(super) fn refresh(
        &mut self,
        id: PeerId,
        by: &Witness,
        ttl: Duration,
        now: Instant,
    ) -> usize {
        let Some(mut peer) = self.take(&id) else {
            return 0;
        };
        peer.established |= now >= peer.introduced + ESTABLISHED_AFTER;
        let sightings = peer.addresses.values().flatten();
        let last = sightings
            .filter(|sighting| sighting.by == *by)
            .map(|sighting| sighting.seen)
            .max();
        let mut count = 0;
        for sighting in peer.addresses.values_mut().flatten() {
            if sighting.by == *by && Some(sighting.seen) == last {
                sighting.seen = now;
                sighting.expires = now + ttl;
                count += 1;
            }
        }
        self.put(id, peer);
        count
    }

    /// How many addresses of `id` has `by` just told.
    pub(super) fn count(&self, id: &PeerId, by: &Witness, now: Instant) -> usize {
        let peer = self.peers.get(id).into_iter();
        let sightings = peer.flat_map(|peer| peer.addresses.values().flatten());
        sightings
            .filter(|sighting| sighting.by == *by && sighting.seen == now)
            .count()
    }

    /// Whether `by` vouches for anything about `id`.
    pub(super) fn is_witness(&self, id: &PeerId, by: &Witness) -> bool {
        let peer = self.peers.get(id).into_iter();
        let mut sightings = peer.flat_map(|peer| peer.addresses.values().flatten());
        sightings.any(|sighting| sighting.by == *by)
    }

    /// `by` takes back that `id` is at `address`.
    pub(super) fn forget_address(
        &mut self,
        id: PeerId,
        address: &Multiaddr,
        by: &Witness,
    ) -> Vec<Change> {
        self.drop_sightings(id, |at, sighting| {
            at == address && sighting.by.link == by.link && sighting.by.source == by.source
        })
    }

    /// `by` takes back all that it said about `id` under this name.
    pub(super) fn forget_instance(&mut self, id: PeerId, by: &Witness) -> Vec<Change> {
        self.drop_sightings(id, |_, sighting| sighting.by == *by)
    }

    /// Drops all sightings of a kind. Looks at everything: not for what a packet can ask for.
    pub(super) fn forget(&mut self, gone: impl Fn(&Witness) -> bool) -> Vec<Change> {
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        ids.into_iter()
            .flat_map(|id| self.drop_sightings(id, |_, sighting| gone(&sighting.by)))
            .collect()
    }

    /// `by` has just told everything that it has to say about `id`: what it said before runs out (RFC 6762 §10.2).
    pub(super) fn flush(&mut self, id: PeerId, by: &Witness, now: Instant) {
        let Some(mut peer) = self.take(&id) else {
            return;
        };
        for sighting in peer.addresses.values_mut().flatten() {
            if sighting.by == *by && now >= sighting.seen + FLUSHED_AFTER {
                sighting.expires = sighting.expires.min(now + FLUSHED_AFTER);
            }
        }
        self.put(id, peer);
    }

    pub(super) fn expire(&mut self, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some((at, id)) = self.expiries.first().copied()
            && at <= now
        {
            changes.extend(self.drop_sightings(id, |_, sighting| sighting.expires <= now));
        }
        changes
    }

    pub(super) fn set_connected(&mut self, id: &PeerId, connected: bool) {
        // Out of the indexes first: they depend on it.
        let peer = self.take(id);
        if !connected {
            self.connected.remove(id);
        } else if self.connected.len() < self.max_peers {
            self.connected.insert(*id);
        }
        if let Some(mut peer) = peer {
            peer.established |= connected;
            self.put(*id, peer);
        }
    }

    fn drop_sightings(
        &mut self,
        id: PeerId,
        gone: impl Fn(&Multiaddr, &Sighting) -> bool,
    ) -> Vec<Change> {
        let Some(mut peer) = self.take(&id) else {
            return Vec::new();
        };
        let mut changes = Vec::new();
        peer.addresses.retain(|address, sightings| {
            sightings.retain(|sighting| !gone(address, sighting));
            if sightings.is_empty() {
                changes.push(Change::Lost(id, address.clone()));
            }
            !sightings.is_empty()
        });
        self.put(id, peer);
        changes
    }

    /// Takes a peer out of the table and its indexes.
    fn take(&mut self, id: &PeerId) -> Option<Peer> {
        let peer = self.peers.remove(id)?;
        self.expiries.remove(&(peer.expires, *id));
        if let Some(candidates) = self.candidates.get_mut(&peer.introduced_by) {
            candidates.remove(&(peer.established, *id));
            if candidates.is_empty() {
                self.candidates.remove(&peer.introduced_by);
            }
        }
        Some(peer)
    }

    /// Puts it back, unless nothing is left of it.
    fn put(&mut self, id: PeerId, mut peer: Peer) {
        let Some(expires) = peer.earliest_expiry() else {
            return;
        };
        peer.expires = expires;
        self.expiries.insert((expires, id));
        if !self.connected.contains(&id) {
            let candidates = self.candidates.entry(peer.introduced_by).or_default();
            candidates.insert((peer.established, id));
        }
        self.peers.insert(id, peer);
    }

    /// Makes room for a peer that `source` introduces. Whoever introduced the most peers gives one up, first one that was heard only
    /// once; no source displaces another that has no more than itself.
    fn make_room(&mut self, source: IpAddr, changes: &mut Vec<Change>) -> bool {
        if self.peers.len() < self.max_peers {
            return true;
        }
        let own = self.candidates.get(&source).map_or(0, BTreeSet::len);
        let most = self.candidates.values().max_by_key(|candidates| {
            let fleeting = candidates
                .first()
                .is_some_and(|(established, _)| !established);
            (candidates.len(), fleeting)
        });
        let Some(&(_, victim)) = most
            .filter(|candidates| candidates.len() > own)
            .and_then(BTreeSet::first)
        else {
            return false;
        };
        if let Some(peer) = self.take(&victim) {
            let addresses = peer.addresses.into_keys();
            changes.extend(addresses.map(|address| Change::Displaced(victim, address)));
        }
        true
    }
}

/// The same among the addresses of one peer: whoever told the most gives up the one that it told first.
fn displace_address(
    id: PeerId,
    peer: &mut Peer,
    source: IpAddr,
    changes: &mut Vec<Change>,
) -> bool {
    let mut told: BTreeMap<IpAddr, (usize, Instant, &Multiaddr)> = BTreeMap::new();
    for (address, sightings) in &peer.addresses {
        let Some(first) = sightings.first() else {
            continue;
        };
        told.entry(first.by.source)
            .and_modify(|(count, oldest, victim)| {
                *count += 1;
                if first.seen < *oldest {
                    (*oldest, *victim) = (first.seen, address);
                }
            })
            .or_insert((1, first.seen, address));
    }
    let own = told.get(&source).map_or(0, |(count, ..)| *count);
    let Some(&(_, _, victim)) = told
        .values()
        .max_by_key(|(count, ..)| *count)
        .filter(|(count, ..)| *count > own)
    else {
        return false;
    };
    let victim = victim.clone();
    peer.addresses.remove(&victim);
    changes.push(Change::Displaced(id, victim));
    true
}
