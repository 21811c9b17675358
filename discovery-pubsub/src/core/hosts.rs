//! How many peers claim to live on one host.

use std::collections::{BTreeMap, BTreeSet};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;

use crate::address::{Host, host, is_relayed};

#[derive(Debug)]
pub(super) struct Hosts {
    max: usize,
    peers: BTreeMap<Host, BTreeSet<PeerId>>,
}

impl Hosts {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            peers: BTreeMap::new(),
        }
    }

    /// Whether `peer` may be believed to live there. A relay has any number of peers.
    pub(super) fn admits(&self, peer: &PeerId, address: &Multiaddr) -> bool {
        if is_relayed(address) {
            return true;
        }
        let peers = host(address).and_then(|host| self.peers.get(&host));
        peers.is_none_or(|peers| peers.len() < self.max || peers.contains(peer))
    }

    pub(super) fn insert(&mut self, peer: PeerId, addresses: &[Multiaddr]) {
        for host in direct(addresses) {
            self.peers.entry(host).or_default().insert(peer);
        }
    }

    pub(super) fn remove(&mut self, peer: &PeerId, addresses: &[Multiaddr]) {
        for host in direct(addresses) {
            if let Some(peers) = self.peers.get_mut(&host) {
                peers.remove(peer);
                if peers.is_empty() {
                    self.peers.remove(&host);
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }
}

fn direct(addresses: &[Multiaddr]) -> impl Iterator<Item = Host> {
    addresses
        .iter()
        .filter(|address| !is_relayed(address))
        .filter_map(host)
}
