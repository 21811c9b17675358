use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;

/// What the local network told us.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A peer, or further addresses of a known one. The swarm has been told these addresses
    /// (`NewExternalAddrOfPeer`), and a dial by peer id finds them.
    Discovered {
        /// The peer.
        peer: PeerId,
        /// The addresses that are new, each ending in `/p2p/<peer>`; never empty.
        addresses: Vec<Multiaddr>,
    },
    /// Addresses whose record ran out in every address family that knew it.
    Expired {
        /// The peer.
        peer: PeerId,
        /// The addresses that are gone; never empty.
        addresses: Vec<Multiaddr>,
    },
}

/// An address family of the local network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4, group 224.0.0.251.
    V4,
    /// IPv6, group ff02::fb.
    V6,
}
