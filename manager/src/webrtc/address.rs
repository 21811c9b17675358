//! Addresses: `/ip4/…/udp/…/webrtc-direct`, to dial with `/certhash/…`
//! ([specification](https://github.com/libp2p/specs/blob/master/webrtc/webrtc-direct.md#addressing)).

use std::net::{IpAddr, SocketAddr};

use libp2p::{Multiaddr, multiaddr::Protocol};
use multihash::Multihash;

use super::core::Fingerprint;

/// Of SHA-256 in multihashes.
const SHA2_256: u64 = 0x12;

/// What an address says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) socket: SocketAddr,
    /// Where it has one that is SHA-256; others cannot be compared with.
    pub(super) fingerprint: Option<Fingerprint>,
}

impl Address {
    /// None: it is no address of WebRTC-direct with a number for the host.
    pub(super) fn parse(address: &Multiaddr) -> Option<Self> {
        let mut parts = address.iter();
        let ip = match parts.next()? {
            Protocol::Ip4(ip) => IpAddr::from(ip),
            Protocol::Ip6(ip) => IpAddr::from(ip),
            _ => return None,
        };
        let Protocol::Udp(port) = parts.next()? else {
            return None;
        };
        let Protocol::WebRTCDirect = parts.next()? else {
            return None;
        };
        let mut fingerprint = None;
        for part in parts {
            match part {
                Protocol::Certhash(hash) if hash.code() == SHA2_256 => {
                    fingerprint = hash.digest().try_into().ok().map(Fingerprint);
                }
                Protocol::Certhash(_) | Protocol::P2p(_) => {}
                _ => return None,
            }
        }
        Some(Self {
            socket: SocketAddr::new(ip, port),
            fingerprint,
        })
    }
}

impl From<Address> for Multiaddr {
    fn from(address: Address) -> Self {
        let multiaddr = Multiaddr::from(address.socket.ip())
            .with(Protocol::Udp(address.socket.port()))
            .with(Protocol::WebRTCDirect);
        match address.fingerprint.and_then(multihash) {
            Some(hash) => multiaddr.with(Protocol::Certhash(hash)),
            None => multiaddr,
        }
    }
}

/// None is for the compiler: 32 bytes fit.
pub(super) fn multihash(fingerprint: Fingerprint) -> Option<Multihash<64>> {
    Multihash::wrap(SHA2_256, &fingerprint.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "uEiAkH5a4DPGKUuOBjYw0CgwjvcJCJMD2K_1aluKR_tpevQ";

    fn parse(text: &str) -> Option<Address> {
        Address::parse(&text.parse().unwrap())
    }

    #[test]
    fn addresses_are_read_and_written_as_the_specification_has_them() {
        let text = format!("/ip4/192.0.2.1/udp/9102/webrtc-direct/certhash/{HASH}");
        let address = parse(&text).unwrap();
        assert_eq!(address.socket, "192.0.2.1:9102".parse().unwrap());
        assert_eq!(Multiaddr::from(address).to_string(), text);
        let peer = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";
        assert_eq!(parse(&format!("{text}/p2p/{peer}")), Some(address));
        let listen = parse("/ip6/::1/udp/0/webrtc-direct").unwrap();
        assert_eq!(listen.fingerprint, None);
    }

    #[test]
    fn other_addresses_are_left_to_others() {
        for text in [
            "/ip4/192.0.2.1/udp/9102/quic-v1",
            "/ip4/192.0.2.1/tcp/9102",
            "/dns4/example.org/udp/9102/webrtc-direct",
            "/ip4/192.0.2.1/udp/9102/webrtc-direct/p2p-circuit",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        // BLAKE3.
        let other = "/ip4/192.0.2.1/udp/9102/webrtc-direct/certhash/uHiAkH5a4DPGKUuOBjYw0CgwjvcJCJMD2K_1aluKR_tpevQ";
        assert_eq!(parse(other).unwrap().fingerprint, None);
    }
}
