//! The announcement: js-libp2p's `Peer { bytes publicKey = 1; repeated bytes addrs = 2; }`.

use libp2p_core::Multiaddr;
use libp2p_identity::{PeerId, PublicKey};
use prost::Message as _;

use crate::{ProtocolViolation, generated::pb};

/// A peer and its addresses, as they travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerAnnouncement {
    pub(crate) public_key: PublicKey,
    pub(crate) addresses: Vec<Multiaddr>,
}

impl PeerAnnouncement {
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
        let announcement = Self::read(bytes)?;
        if announcement.public_key.to_peer_id() != author {
            return Err(ProtocolViolation::ForeignKey);
        }
        Ok(announcement)
    }

    /// Reads an announcement, whoever signed it.
    #[cfg(fuzzing)]
    pub(crate) fn decode_of_anybody(bytes: &[u8]) -> Option<Self> {
        Self::read(bytes).ok()
    }

    fn read(bytes: &[u8]) -> Result<Self, ProtocolViolation> {
        let message = pb::Peer::decode(bytes).map_err(|_| ProtocolViolation::Malformed)?;
        let public_key = PublicKey::try_decode_protobuf(&message.public_key)
            .map_err(|_| ProtocolViolation::InvalidKey)?;
        let addresses = message
            .addrs
            .into_iter()
            .filter_map(|bytes| Multiaddr::try_from(bytes).ok())
            .collect();
        Ok(Self {
            public_key,
            addresses,
        })
    }
}

#[cfg(test)]
mod tests {
    use libp2p_core::multiaddr::Protocol;
    use libp2p_identity::Keypair;

    use super::*;

    /// Encoded by js-libp2p's @libp2p/pubsub-peer-discovery 12.0.0 with @libp2p/crypto 5 and
    /// @multiformats/multiaddr 13, for the ed25519 seed 00 01 … 1f and [`ADDRESSES`].
    const JS_BYTES: &str = "\
        0a240801122003a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8\
        12310401020304060fa1a503260024080112\
        2003a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8\
        12402920010db800000000000000000000000191020fa1cd03a503260024080112\
        2003a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8\
        126a360b6578616d706c652e6f72670601bbc003dd03a503260024080112\
        205765b277d4ebe6747fa03fa081d19e720c4938615eaeed9c64b059b1d5cbbfefa2029902a503260024080112\
        2003a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8";
    const ID: &str = "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB";
    const ADDRESSES: [&str; 3] = [
        "/ip4/1.2.3.4/tcp/4001",
        "/ip6/2001:db8::1/udp/4001/quic-v1",
        "/dns4/example.org/tcp/443/tls/ws/p2p/\
         12D3KooWFhXabKDwALpzqMbto94sB7rvmZ6M28hs9Y9xSopDKwQr/p2p-circuit/webrtc",
    ];

    fn js_announcement() -> PeerAnnouncement {
        let seed: Vec<u8> = (0..32).collect();
        let key = Keypair::ed25519_from_bytes(seed).unwrap();
        let id: PeerId = ID.parse().unwrap();
        assert_eq!(key.public().to_peer_id(), id);
        let addresses =
            ADDRESSES.map(|text| text.parse::<Multiaddr>().unwrap().with(Protocol::P2p(id)));
        PeerAnnouncement {
            public_key: key.public(),
            addresses: addresses.to_vec(),
        }
    }

    #[test]
    fn our_bytes_equal_those_of_js_libp2p() {
        assert_eq!(hex::encode(js_announcement().encode()), JS_BYTES);
        let silent = PeerAnnouncement {
            addresses: Vec::new(),
            ..js_announcement()
        };
        assert_eq!(hex::encode(silent.encode()), JS_BYTES[..76]);
    }

    #[test]
    fn bytes_of_js_libp2p_are_read() {
        let bytes = hex::decode(JS_BYTES).unwrap();
        let read = PeerAnnouncement::decode(&bytes, ID.parse().unwrap(), bytes.len());
        assert_eq!(read, Ok(js_announcement()));
        let too_small = PeerAnnouncement::decode(&bytes, ID.parse().unwrap(), bytes.len() - 1);
        assert_eq!(too_small, Err(ProtocolViolation::Oversized));
    }
}
