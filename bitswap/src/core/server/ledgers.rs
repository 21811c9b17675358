//! What is remembered of peers, also when they are gone: ledgers and weights.

use libp2p_identity::PeerId;

use super::Server;
use crate::{Ledger, core::client::Received};

impl Server {
    /// What went to a peer.
    pub fn ledger(&self, peer: &PeerId) -> Option<Ledger> {
        let connected = self.keys.get(peer).and_then(|key| self.peers.get(key));
        connected
            .map(|peer| peer.ledger)
            .or_else(|| self.ledgers.get(peer).copied())
    }

    /// Adds what the client knows about a peer that is going to its ledger. Before the last
    /// `on_disconnected`.
    pub fn settle(&mut self, peer: &PeerId, received: Received) {
        if let Some(state) = self.keys.get(peer).and_then(|key| self.peers.get_mut(key)) {
            state.ledger.blocks_received += received.blocks;
            state.ledger.bytes_received += received.bytes;
            state.ledger.unwanted_bytes += received.unwanted_bytes;
        }
    }

    /// Share of a peer in the upload, relative to others; between 0.01 and 100.
    pub fn set_weight(&mut self, peer: PeerId, weight: f64) {
        let weight = if weight.is_finite() {
            weight.clamp(0.01, 100.0)
        } else {
            1.0
        };
        if let Some(state) = self.keys.get(&peer).and_then(|key| self.peers.get_mut(key)) {
            state.weight = weight;
        }
        self.weights.insert(peer, weight);
        while self.weights.len() > self.config.max_ledgers() {
            self.weights.pop_front();
        }
    }

    pub(super) fn keep_ledger(&mut self, peer: PeerId, ledger: Ledger) {
        self.ledgers.insert(peer, ledger);
        while self.ledgers.len() > self.config.max_ledgers() {
            self.ledgers.pop_front();
        }
    }
}
