//! Which connected peers may enter the routing table: those that answer this DHT's protocol and whose
//! address is known. A peer that dialled us shows its ephemeral port only; identify, mDNS and others
//! tell the swarm where it listens.

use std::collections::BTreeMap;

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;

/// Whether a peer answers, as far as is known.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Role {
    #[default]
    Unknown,
    /// The engine spoke the protocol with it, in whichever direction.
    Speaks,
    /// It lists the protocol.
    Server,
    /// It lists its protocols, and this one is not among them.
    Client,
}

#[derive(Debug, Default)]
struct Candidate {
    role: Role,
    addresses: Vec<Multiaddr>,
}

impl Candidate {
    fn is_routable(&self) -> bool {
        matches!(self.role, Role::Speaks | Role::Server)
    }
}

/// The connected peers; as many as there are connections.
#[derive(Debug)]
pub(crate) struct Candidates {
    max_addresses: usize,
    peers: BTreeMap<PeerId, Candidate>,
}

impl Candidates {
    pub(crate) fn new(max_addresses: usize) -> Self {
        Self {
            max_addresses,
            peers: BTreeMap::new(),
        }
    }

    pub(crate) fn on_connected(&mut self, peer: PeerId) {
        self.peers.entry(peer).or_default();
    }

    pub(crate) fn on_disconnected(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }

    /// A behaviour told where the peer listens. Returns whether it can be routed to there.
    pub(crate) fn on_address(&mut self, peer: &PeerId, address: &Multiaddr) -> bool {
        let Some(candidate) = self.peers.get_mut(peer) else {
            return false;
        };
        if candidate.addresses.len() >= self.max_addresses || candidate.addresses.contains(address)
        {
            return false;
        }
        candidate.addresses.push(address.clone());
        candidate.is_routable()
    }

    /// The engine spoke the protocol with the peer. Returns where it can be routed to, if it can.
    pub(crate) fn on_speaks(&mut self, peer: &PeerId) -> Option<Vec<Multiaddr>> {
        let candidate = self.peers.get_mut(peer)?;
        if candidate.role == Role::Unknown {
            candidate.role = Role::Speaks;
        }
        candidate.is_routable().then(|| candidate.addresses.clone())
    }

    /// The peer lists the protocol. Returns where it can be routed to.
    pub(crate) fn on_server(&mut self, peer: &PeerId) -> Vec<Multiaddr> {
        let Some(candidate) = self.peers.get_mut(peer) else {
            return Vec::new();
        };
        candidate.role = Role::Server;
        candidate.addresses.clone()
    }

    /// The peer lists protocols without this one: it cannot be routed to.
    pub(crate) fn on_client(&mut self, peer: &PeerId) {
        if let Some(candidate) = self.peers.get_mut(peer) {
            candidate.role = Role::Client;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/1.2.3.4/tcp/{port}").parse().unwrap()
    }

    #[test]
    fn a_server_is_routed_to_once_its_address_is_known_in_whichever_order() {
        let (a, b) = (PeerId::random(), PeerId::random());
        let mut candidates = Candidates::new(2);
        candidates.on_connected(a);
        candidates.on_connected(b);
        assert!(!candidates.on_address(&a, &address(1)));
        assert_eq!(candidates.on_server(&a), [address(1)]);
        assert_eq!(candidates.on_speaks(&b), Some(vec![]));
        assert!(candidates.on_address(&b, &address(1)));
        assert!(!candidates.on_address(&b, &address(1)), "known");
    }

    #[test]
    fn a_client_that_asks_us_is_not_routed_to_and_one_that_becomes_a_server_is() {
        let peer = PeerId::random();
        let mut candidates = Candidates::new(2);
        candidates.on_connected(peer);
        candidates.on_client(&peer);
        assert_eq!(candidates.on_speaks(&peer), None);
        assert!(!candidates.on_address(&peer, &address(1)));
        assert_eq!(candidates.on_server(&peer), [address(1)]);
        assert_eq!(candidates.on_speaks(&peer), Some(vec![address(1)]));
    }

    #[test]
    fn addresses_are_bounded_and_strangers_are_ignored() {
        let peer = PeerId::random();
        let mut candidates = Candidates::new(2);
        assert!(!candidates.on_address(&peer, &address(1)));
        assert_eq!(candidates.on_speaks(&peer), None);
        candidates.on_connected(peer);
        candidates.on_server(&peer);
        let kept = (1..100).filter(|port| candidates.on_address(&peer, &address(*port)));
        assert_eq!(kept.count(), 2);
        candidates.on_disconnected(&peer);
        assert!(candidates.peers.is_empty());
    }
}
