//! What is known about one peer.

use std::collections::{BTreeMap, BTreeSet};

use anypath_holepunch::Transport;
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol, swarm::ConnectionId};
use serde::Serialize;
use web_time::Instant;

use super::{DialId, Purpose};

/// How a connection reaches the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// Without a third party.
    Direct,
    /// Through a relay.
    Relayed,
}

impl Path {
    /// Reads it off the address of the other end.
    #[must_use]
    pub fn of(address: &Multiaddr) -> Self {
        if address.iter().any(|part| part == Protocol::P2pCircuit) {
            Self::Relayed
        } else {
            Self::Direct
        }
    }
}

/// Without WebRTC where there is something else: it is the slowest to come up, and libp2p-webrtc never gives back what a dial took that
/// came to nothing.
pub(crate) fn best_transports(mut addresses: Vec<Multiaddr>) -> Vec<Multiaddr> {
    let is_webrtc = |address: &Multiaddr| Transport::of(address) == Transport::WebRtc;
    if !addresses.iter().all(is_webrtc) {
        addresses.retain(|address| !is_webrtc(address));
    }
    addresses
}

/// The best of a peer's connections. A smaller one is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BestPath {
    /// How it reaches the peer.
    pub path: Path,
    /// Whether a relay limits what it may carry.
    pub limited: bool,
    /// Which connection.
    pub connection: ConnectionId,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) path: Path,
    pub(super) limited: bool,
    /// QUIC survives losses better than TCP under Yamux, so it stays when two are equal.
    pub(super) quic: bool,
    /// When it came up.
    pub(super) since: Instant,
    pub(super) idle_since: Option<Instant>,
    pub(super) closing: bool,
    /// It leads nowhere: its end is no news.
    pub(super) lost: bool,
}

/// Why no circuit is dialled yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct RelayWait {
    pub(super) relay: PeerId,
    pub(super) until: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) purposes: BTreeMap<Purpose, usize>,
    pub(super) addresses: Vec<Multiaddr>,
    pub(super) connections: BTreeMap<ConnectionId, Connection>,
    pub(super) direct_dials: BTreeSet<DialId>,
    pub(super) relayed_dials: BTreeSet<DialId>,
    pub(super) relay_wait: Option<RelayWait>,
    pub(super) failures: u32,
    /// Connections that were lost in a row, beside the first, and when the last was.
    pub(super) losses: u32,
    pub(super) lost_at: Option<Instant>,
    pub(super) retry_at: Option<Instant>,
    pub(super) direct_since: Option<Instant>,
    pub(super) inspect_at: Option<Instant>,
}

impl Peer {
    pub(super) fn open(&self) -> impl Iterator<Item = (&ConnectionId, &Connection)> {
        self.connections
            .iter()
            .filter(|(_, connection)| !connection.closing)
    }

    pub(super) fn has(&self, path: Path) -> bool {
        self.open().any(|(_, connection)| connection.path == path)
    }

    pub(super) fn best(&self) -> Option<BestPath> {
        self.open()
            .map(|(id, connection)| BestPath {
                path: connection.path,
                limited: connection.limited,
                connection: *id,
            })
            .min()
    }

    pub(super) fn addresses_of(&self, path: Path) -> Vec<Multiaddr> {
        let of_path = |address: &&Multiaddr| Path::of(address) == path;
        best_transports(self.addresses.iter().filter(of_path).cloned().collect())
    }

    pub(super) fn is_wanted(&self) -> bool {
        !self.purposes.is_empty()
    }

    pub(super) fn is_dialled(&self) -> bool {
        !self.direct_dials.is_empty() || !self.relayed_dials.is_empty() || self.relay_wait.is_some()
    }

    pub(super) fn is_forgettable(&self) -> bool {
        !self.is_wanted() && self.connections.is_empty() && !self.is_dialled()
    }

    /// The connections that a better one has made superfluous, worst first.
    pub(super) fn superfluous(&self) -> Vec<ConnectionId> {
        let mut ranked: Vec<_> = self
            .open()
            // Busy ones first: moving work costs more than any other difference.
            .map(|(id, c)| (c.path, c.limited, c.idle_since.is_some(), !c.quic, *id))
            .collect();
        ranked.sort_unstable();
        ranked
            .into_iter()
            .skip(1)
            .rev()
            .map(|(.., id)| id)
            .collect()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        [
            self.retry_at,
            self.inspect_at,
            self.relay_wait.map(|wait| wait.until),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
