//! What is remembered of peers, also when they are gone: ledgers, weights and classes.

use libp2p_identity::PeerId;
use web_time::Instant;

use super::{Class, Server, Standing, peer::Turn};
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

    /// Share of a peer in the upload of its class, relative to others; between 0.01 and 100.
    pub fn set_weight(&mut self, peer: PeerId, weight: f64) {
        let weight = if weight.is_finite() {
            weight.clamp(0.01, 100.0)
        } else {
            1.0
        };
        if let Some(state) = self.keys.get(&peer).and_then(|key| self.peers.get_mut(key)) {
            state.weight = weight;
        }
        self.change_standing(peer, |standing| standing.weight = weight);
    }

    /// Which limit a peer's blocks count against, and who goes before it.
    pub fn set_class(&mut self, peer: PeerId, class: Class, now: Instant) {
        self.now = now;
        self.change_standing(peer, |standing| standing.class = class);
        let Some(key) = self.keys.get(&peer).copied() else {
            return;
        };
        let Some(state) = self.peers.get_mut(&key) else {
            return;
        };
        let old = std::mem::replace(&mut state.class, class);
        if old != class && state.turn == Turn::Queued {
            state.turn = Turn::Blocked;
            self.rings.of_mut(old).remove(key);
            self.activate(key);
        }
    }

    fn change_standing(&mut self, peer: PeerId, change: impl FnOnce(&mut Standing)) {
        let mut standing = self.standings.remove(&peer).unwrap_or_default();
        change(&mut standing);
        self.standings.insert(peer, standing);
        while self.standings.len() > self.config.max_ledgers() {
            self.standings.pop_front();
        }
    }

    pub(super) fn keep_ledger(&mut self, peer: PeerId, ledger: Ledger) {
        self.ledgers.insert(peer, ledger);
        while self.ledgers.len() > self.config.max_ledgers() {
            self.ledgers.pop_front();
        }
    }
}
