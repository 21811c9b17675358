//! Merges what the two address families know into one table: pure, no clock and no socket (the
//! families keep the time to live of their records themselves).

use std::collections::{BTreeMap, VecDeque};

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;

use crate::{Config, Event, Family};

/// The families that know a record. Never empty inside the table.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct KnownBy(u8);

impl KnownBy {
    fn bit(family: Family) -> u8 {
        match family {
            Family::V4 => 1,
            Family::V6 => 2,
        }
    }

    fn insert(&mut self, family: Family) {
        self.0 |= Self::bit(family);
    }

    /// Returns whether nobody knows the record any more.
    fn remove(&mut self, family: Family) -> bool {
        self.0 &= !Self::bit(family);
        self.0 == 0
    }
}

/// The merged table of peers and addresses. Facts go in by `on_*`, events come out of `poll_output`.
#[derive(Debug)]
pub(crate) struct Merge {
    local: PeerId,
    max_peers: usize,
    max_addresses: usize,
    peers: BTreeMap<PeerId, BTreeMap<Multiaddr, KnownBy>>,
    outputs: VecDeque<Event>,
}

impl Merge {
    pub(crate) fn new(local: PeerId, config: &Config) -> Self {
        Self {
            local,
            max_peers: config.max_peers(),
            max_addresses: config.max_addresses_per_peer(),
            peers: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// `family` learned these records. Emits what no family knew before, one event a peer.
    pub(crate) fn on_discovered(
        &mut self,
        family: Family,
        records: impl IntoIterator<Item = (PeerId, Multiaddr)>,
    ) {
        let mut new: BTreeMap<PeerId, Vec<Multiaddr>> = BTreeMap::new();
        for (peer, address) in records {
            if peer == self.local || !is_usable(peer, &address) {
                continue;
            }
            if self.insert(family, peer, &address) {
                new.entry(peer).or_default().push(address);
            }
        }
        self.outputs.extend(
            new.into_iter()
                .map(|(peer, addresses)| Event::Discovered { peer, addresses }),
        );
    }

    /// `family` forgot these records. Emits what no family knows any more, one event a peer.
    pub(crate) fn on_expired(
        &mut self,
        family: Family,
        records: impl IntoIterator<Item = (PeerId, Multiaddr)>,
    ) {
        let mut gone: BTreeMap<PeerId, Vec<Multiaddr>> = BTreeMap::new();
        for (peer, address) in records {
            if self.remove(family, peer, &address) {
                gone.entry(peer).or_default().push(address);
            }
        }
        self.outputs.extend(
            gone.into_iter()
                .map(|(peer, addresses)| Event::Expired { peer, addresses }),
        );
    }

    /// Drain after every `on_*`.
    pub(crate) fn poll_output(&mut self) -> Option<Event> {
        self.outputs.pop_front()
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = &PeerId> {
        self.peers.keys()
    }

    pub(crate) fn addresses(&self, peer: &PeerId) -> impl Iterator<Item = &Multiaddr> {
        self.peers.get(peer).into_iter().flat_map(BTreeMap::keys)
    }

    /// Returns whether the record is new to all families.
    fn insert(&mut self, family: Family, peer: PeerId, address: &Multiaddr) -> bool {
        let known_peers = self.peers.len();
        let addresses = match self.peers.entry(peer) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(_) if known_peers >= self.max_peers => {
                return false;
            }
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(BTreeMap::new()),
        };
        if let Some(known_by) = addresses.get_mut(address) {
            known_by.insert(family);
            return false;
        }
        if addresses.len() >= self.max_addresses {
            return false;
        }
        addresses.entry(address.clone()).or_default().insert(family);
        true
    }

    /// Returns whether the record was known and no family knows it any more.
    fn remove(&mut self, family: Family, peer: PeerId, address: &Multiaddr) -> bool {
        let Some(addresses) = self.peers.get_mut(&peer) else {
            return false;
        };
        let Some(known_by) = addresses.get_mut(address) else {
            return false;
        };
        if !known_by.remove(family) {
            return false;
        }
        addresses.remove(address);
        if addresses.is_empty() {
            self.peers.remove(&peer);
        }
        true
    }
}

/// An address that names a socket on the network and belongs to `peer`. IPv6 link-local addresses are
/// not: without a zone, which the DNS record cannot carry, no one can dial them.
fn is_usable(peer: PeerId, address: &Multiaddr) -> bool {
    let reachable = match address.iter().next() {
        Some(Protocol::Ip4(ip)) => !ip.is_unspecified() && !ip.is_multicast(),
        Some(Protocol::Ip6(ip)) => {
            !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local()
        }
        Some(_) => true,
        None => false,
    };
    let owner = address.iter().last();
    reachable && matches!(owner, Some(Protocol::P2p(id)) if id == peer)
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
