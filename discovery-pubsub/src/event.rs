use bytes::Bytes;
use cid::Cid;
use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;

use crate::{Content, ProtocolViolation, Role, Service};

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
    /// A peer said goodbye, fell silent ([`Config::stale_after_percent`](crate::Config::stale_after_percent),
    /// [`Config::peer_ttl`](crate::Config::peer_ttl)), or had to make room.
    Expired {
        /// The peer.
        peer: PeerId,
    },
    /// A peer provides content, or tells more of it than before. See also
    /// [`Core::providers`](crate::core::Core::providers).
    Content {
        /// The provider: it signed the announcement. Whether it has the content, nobody checked.
        peer: PeerId,
        /// What is new; never empty.
        items: Vec<Content>,
    },
    /// A peer provides content no longer.
    ContentWithdrawn {
        /// The provider.
        peer: PeerId,
        /// What is gone; never empty.
        cids: Vec<Cid>,
    },
    /// A peer relays, or tells other things of its relay than before.
    Relay {
        /// The relay: it signed the message around the announcement.
        peer: PeerId,
        /// The relay crate's `RelayAnnouncement`; never empty. The reader checks that it names the same peer.
        announcement: Bytes,
    },
    /// A peer of the seed relays (feature `json`): its announcement has addresses only.
    RelayAddresses {
        /// The relay: it signed the announcement.
        peer: PeerId,
        /// Those of its addresses that can be used, each ending in `/p2p/<peer>`; never empty.
        addresses: Vec<Multiaddr>,
    },
    /// A peer has another role or load than before.
    Role {
        /// The peer.
        peer: PeerId,
        /// What it does and how busy it is.
        role: Role,
    },
    /// A peer ended what it announced for a service, fell silent, or had to make room. Of content, all is gone.
    OfferExpired {
        /// The peer.
        peer: PeerId,
        /// Which one.
        service: Service,
    },
    /// A peer signed something that is no announcement. Told a few times for each neighbour, then once in ten
    /// seconds.
    ProtocolViolation {
        /// The author.
        peer: PeerId,
        /// The neighbour that passed it on; it may not know better.
        source: PeerId,
        /// What was wrong.
        violation: ProtocolViolation,
    },
    /// Everything of gossipsub but the messages on the topics of this behaviour.
    Gossipsub(libp2p_gossipsub::Event),
}
