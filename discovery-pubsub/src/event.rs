use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;

use crate::ProtocolViolation;

/// What the topics told us, and everything else that gossipsub has to say.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A peer announced itself for the first time, or with other addresses than before. The swarm has been told
    /// the addresses that are new (`NewExternalAddrOfPeer`), and a dial by peer id finds all.
    Discovered {
        /// The peer: it signed the announcement.
        peer: PeerId,
        /// All its announced addresses that can be used, each ending in `/p2p/<peer>`; never empty. It says
        /// that it can be reached there; nobody checked.
        addresses: Vec<Multiaddr>,
        /// The topic on which it was announced.
        topic: String,
    },
    /// A peer was not announced for [`Config::peer_ttl`](crate::Config::peer_ttl), or had to make
    /// room.
    Expired {
        /// The peer.
        peer: PeerId,
    },
    /// A peer signed something that is no announcement.
    ProtocolViolation {
        /// The author.
        peer: PeerId,
        /// What was wrong.
        violation: ProtocolViolation,
    },
    /// Everything of gossipsub but the messages on discovery topics.
    Gossipsub(libp2p_gossipsub::Event),
}
