//! The first peers: named ones, the public network's, those of the last run, and other nodes of the
//! same user on this machine. None of them has to answer: a node without peers runs and waits.

pub(crate) mod known;
mod registry;

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

pub(crate) use self::known::KnownPeers;
pub(crate) use self::registry::{Found, Registry};

/// The public IPFS network's entry points, as kubo and rust-libp2p's examples have them. Each name
/// resolves to one peer's TCP, QUIC and WebSocket addresses.
const PUBLIC: [&str; 4] = [
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmQCU2EcMqAqQPR2i9bChDtGNJchTbq5TbXJJ16u19uLTa",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmbLHAnMoJPWSCR5Zhtx6BHJX9KiKNN6tpvbUcqanj75Nb",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmcZf59bWwK5XFi76CZX8cbJ4BhTzzA3gU1ZjYZcYW3dwt",
];

/// The public entry points with their peer ids.
pub(crate) fn public() -> impl Iterator<Item = (PeerId, Multiaddr)> {
    PUBLIC
        .iter()
        .filter_map(|address| with_peer(&address.parse().ok()?))
}

/// The peer that an address ends in, and the address; `None` if it names none.
pub(crate) fn with_peer(address: &Multiaddr) -> Option<(PeerId, Multiaddr)> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some((peer, address.clone())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_public_entry_point_names_its_peer() {
        assert_eq!(public().count(), PUBLIC.len());
    }
}
