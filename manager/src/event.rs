//! What a node tells the application.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId};

use crate::strategy::Path;

/// Something that the application may act on. Everything else is tracing and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The node listens at another address.
    Listening {
        /// The address, without the peer id.
        address: Multiaddr,
    },
    /// The best path to a peer changed.
    PathChanged {
        /// The peer.
        peer: PeerId,
        /// How it is reached from now on; `None`: it is not connected any more.
        path: Option<Path>,
    },
    /// A peer was found.
    Discovered {
        /// The peer.
        peer: PeerId,
        /// Where it says it is.
        addresses: Vec<Multiaddr>,
        /// How it was found.
        by: Discovery,
    },
    /// The node can be reached at a relayed address.
    Reserved {
        /// The relay.
        relay: PeerId,
        /// The address.
        address: Multiaddr,
    },
    /// A reservation ended; the node looks for another one.
    ReservationLost {
        /// The relay.
        relay: PeerId,
    },
    /// An attempt to replace a relayed connection is over.
    Punched {
        /// The peer.
        peer: PeerId,
        /// Whether a direct connection is up; else why not.
        result: Result<(), String>,
        /// From the relayed connection to the result.
        elapsed: Duration,
    },
    /// Whether others can reach this node without help.
    NatStatusChanged {
        /// `unknown`, `public` or `private`.
        status: &'static str,
    },
    /// The reader was too slow: so many events are lost to it.
    Lagged(u64),
}

/// How a peer was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Discovery {
    /// On the local network.
    Mdns,
    /// By its announcement over gossipsub.
    Pubsub,
    /// By a file of the same user.
    FileRegistry,
}
