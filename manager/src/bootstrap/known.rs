//! Peers that worked, remembered across runs.

use std::collections::VecDeque;

use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};

/// Peers remembered: enough that some are still there after a week.
const MAX_PEERS: usize = 64;
/// The key in the store's small values.
pub(crate) const KEY: &str = "anypath/known-peers";

/// The peers that were connected last, latest first, with the addresses that worked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownPeers {
    peers: VecDeque<(PeerIdText, Multiaddr)>,
    #[serde(skip)]
    changed: bool,
}

/// A peer id as text, which JSON readers understand.
type PeerIdText = String;

impl KnownPeers {
    /// What [`encode`](Self::encode) wrote; nothing of what cannot be read.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let mut known: Self = serde_json::from_slice(bytes).unwrap_or_default();
        known.peers.truncate(MAX_PEERS);
        known
    }

    /// The bytes to keep, if anything changed since the last call.
    pub(crate) fn encode_if_changed(&mut self) -> Option<Vec<u8>> {
        std::mem::take(&mut self.changed)
            .then(|| serde_json::to_vec(self).ok())
            .flatten()
    }

    /// We dialled this peer there, and it worked.
    pub(crate) fn on_dialled(&mut self, peer: PeerId, address: Multiaddr) {
        let peer = peer.to_string();
        if self
            .peers
            .front()
            .is_some_and(|(known, at)| *known == peer && *at == address)
        {
            return;
        }
        self.peers.retain(|(known, _)| *known != peer);
        self.peers.push_front((peer, address));
        self.peers.truncate(MAX_PEERS);
        self.changed = true;
    }

    /// Latest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PeerId, Multiaddr)> {
        self.peers
            .iter()
            .filter_map(|(peer, address)| Some((peer.parse().ok()?, address.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_peers_survive_a_restart_each_with_its_latest_address() {
        let mut known = KnownPeers::default();
        let peers: Vec<_> = (0..MAX_PEERS + 5).map(|_| PeerId::random()).collect();
        let address = |n: usize| format!("/ip4/192.0.2.1/tcp/{}", n + 1).parse().unwrap();
        for (n, peer) in peers.iter().enumerate() {
            known.on_dialled(*peer, address(n));
        }
        known.on_dialled(peers[10], address(999));
        let bytes = known.encode_if_changed().unwrap();
        assert_eq!(known.encode_if_changed(), None, "nothing new to write");

        let read: Vec<_> = KnownPeers::decode(&bytes).iter().collect();
        assert_eq!(read.len(), MAX_PEERS);
        assert_eq!(read[0], (peers[10], address(999)));
        assert!(
            !read.iter().any(|(peer, _)| *peer == peers[0]),
            "the oldest made room"
        );
        assert_eq!(KnownPeers::decode(b"garbage"), KnownPeers::default());
    }
}
