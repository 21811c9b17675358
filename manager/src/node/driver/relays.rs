//! Relays in the DHT: those who relay provide one key that everybody knows, and those who want relays ask who does.

use std::time::Duration;

use cid::Cid;
use libp2p::PeerId;
use multihash::Multihash;
use web_time::Instant;

use super::{Driver, wiring::DhtWaiter};
use crate::{node::now, strategy::Purpose};

/// SHA-256 of "/anypath/relays/1".
const RELAYS: [u8; 32] = [
    0x9b, 0x61, 0xca, 0xf6, 0x42, 0x53, 0x65, 0x00, 0xd6, 0x1b, 0xf6, 0x68, 0x0c, 0x46, 0x04, 0xff,
    0x2d, 0x13, 0xcb, 0xa3, 0xfa, 0x56, 0xd2, 0x08, 0xd2, 0x5c, 0xdd, 0x23, 0x42, 0x89, 0x90, 0xcc,
];

/// How often the DHT is asked for relays at most, once it knows some. Until then it is asked as often as they are wanted
/// (after 2 s, then less and less often): this node may not have joined yet.
const SEARCH_INTERVAL: Duration = Duration::from_secs(60);

/// Relays that one search connects to. Identify makes candidates of them.
const MAX_CONNECTED: usize = 8;

/// The search for relays in the DHT.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// When the last one began that found any.
    last: Option<Instant>,
    running: bool,
    connected: usize,
}

/// The key under which relays are found.
fn key() -> Option<Cid> {
    const RAW: u64 = 0x55;
    const SHA2_256: u64 = 0x12;
    let hash = Multihash::wrap(SHA2_256, &RELAYS).ok()?;
    Some(Cid::new_v1(RAW, hash))
}

impl Driver {
    /// Tells the DHT whether this node relays.
    pub(super) fn provide_relay(&mut self, relays: bool) {
        let (Some(key), Some(dht)) = (key(), self.dht()) else {
            return;
        };
        if relays {
            // It is kept, and told as soon as the node has joined; nobody waits for it.
            dht.provide(key);
        } else {
            dht.stop_providing(&key);
        }
    }

    /// Asks the DHT for relays.
    pub(super) fn find_relays(&mut self) {
        let now = now();
        let soon = self
            .relay_search
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < SEARCH_INTERVAL);
        let Some(key) = key().filter(|_| !soon && !self.relay_search.running) else {
            return;
        };
        let Some(ticket) = self.dht().map(|dht| dht.find_providers(key)) else {
            return;
        };
        self.relay_search = Search {
            last: None,
            running: true,
            connected: 0,
        };
        self.dht_waiters.insert(ticket, DhtWaiter::Relays);
    }

    pub(super) fn on_relay_search_finished(&mut self) {
        self.relay_search.running = false;
    }

    /// The DHT knows these: once connected, they say themselves whether they relay.
    pub(super) fn on_relays_found(&mut self, relays: Vec<PeerId>) {
        let local = *self.swarm.local_peer_id();
        for relay in relays.into_iter().filter(|relay| *relay != local) {
            self.relay_search.last.get_or_insert_with(now);
            if self.relay_search.connected >= MAX_CONNECTED {
                return;
            }
            if !self.swarm.is_connected(&relay) {
                self.relay_search.connected += 1;
                self.strategy.want(relay, [], Purpose::Once, now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_key_is_the_same_for_everybody() {
        let key = super::key().unwrap();
        assert_eq!(
            key.to_string(),
            "bafkreie3mhfpmqstmuanmg7wnagembh7fuj4xi72k3jarus43urufcmqzq"
        );
    }
}
