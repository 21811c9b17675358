//! The announcement: js-libp2p's `Peer { bytes publicKey = 1; repeated bytes addrs = 2; }`.

use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::{PeerId, PublicKey};
use prost::Message as _;

use crate::{ProtocolViolation, generated::pb};

/// A peer and its addresses, as they travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Announcement {
    pub(crate) public_key: PublicKey,
    pub(crate) addresses: Vec<Multiaddr>,
}

impl Announcement {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let message = pb::Peer {
            public_key: self.public_key.encode_protobuf(),
            addrs: self.addresses.iter().map(Multiaddr::to_vec).collect(),
        };
        message.encode_to_vec()
    }

    /// Reads an announcement of at most `max_bytes` that `author` signed. Addresses that cannot be read are left
    /// out: other implementations know protocols that we do not.
    pub(crate) fn decode(
        bytes: &[u8],
        author: PeerId,
        max_bytes: usize,
    ) -> Result<Self, ProtocolViolation> {
        if bytes.len() > max_bytes {
            return Err(ProtocolViolation::Oversized);
        }
        let message = pb::Peer::decode(bytes).map_err(|_| ProtocolViolation::Malformed)?;
        let public_key = PublicKey::try_decode_protobuf(&message.public_key)
            .map_err(|_| ProtocolViolation::InvalidKey)?;
        if public_key.to_peer_id() != author {
            return Err(ProtocolViolation::ForeignKey);
        }
        let addresses =
            message.addrs.into_iter().filter_map(|bytes| Multiaddr::try_from(bytes).ok()).collect();
        Ok(Self { public_key, addresses })
    }
}

/// `address` as one of `peer`'s, ending in `/p2p/<peer>`; `None` if nobody can use it or it belongs to
/// another peer.
pub(crate) fn usable(address: Multiaddr, peer: PeerId, allow_loopback: bool) -> Option<Multiaddr> {
    let reachable = match address.iter().next()? {
        Protocol::Ip4(ip) => {
            !ip.is_unspecified()
                && !ip.is_multicast()
                && !ip.is_broadcast()
                && (allow_loopback || !ip.is_loopback())
        }
        // A link-local address means something on one link only, and carries no zone.
        Protocol::Ip6(ip) => {
            !ip.is_unspecified()
                && !ip.is_multicast()
                && !ip.is_unicast_link_local()
                && (allow_loopback || !ip.is_loopback())
        }
        // No transport to begin with: `/p2p/…` alone.
        Protocol::P2p(_) | Protocol::P2pCircuit => false,
        _ => true,
    };
    if reachable { address.with_p2p(peer).ok() } else { None }
}
