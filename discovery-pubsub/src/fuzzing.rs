//! The parsers, for `interop-tests/fuzz`.

use cid::{Cid, multihash::Multihash};
use libp2p_identity::Keypair;

use crate::{Announcement, Body, Content, Load, Role, message::PeerAnnouncement};

/// Well-formed inputs to start from.
pub fn seeds(parser: &str) -> Vec<(String, Vec<u8>)> {
    let named = (0..).zip(inputs(parser));
    named
        .map(|(n, bytes): (u32, _)| (format!("{parser}-{n}"), bytes))
        .collect()
}

fn inputs(parser: &str) -> Vec<Vec<u8>> {
    let Ok(key) = Keypair::ed25519_from_bytes([7; 32]) else {
        return Vec::new();
    };
    if parser == "peer" {
        let addresses = [
            "/ip4/1.2.3.4/tcp/4001",
            "/dns4/example.org/tcp/443/tls/ws/p2p/12D3KooWFhXabKDwALpzqMbto94sB7rvmZ6M28hs9Y9xSopDKwQr/p2p-circuit/webrtc",
        ];
        let announcement = PeerAnnouncement {
            public_key: key.public(),
            addresses: addresses
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect(),
        };
        let json = format!(
            r#"{{"peer_id": "{}", "addrs": ["/ip4/1.2.3.4/tcp/4001"], "timestamp": 1.5}}"#,
            key.public().to_peer_id()
        );
        return vec![announcement.encode(), json.into_bytes()];
    }
    let content = Multihash::wrap(0x12, &[7; 32]).map(|digest| Content {
        cid: Cid::new_v1(0x55, digest),
        size: Some(7),
        name: Some("seven".to_owned()),
    });
    let bodies = [
        Body::Content {
            items: content.into_iter().collect(),
            withdrawn: Vec::new(),
        },
        Body::Relay(b"relay".as_slice().into()),
        Body::Role(Role {
            name: "worker".to_owned(),
            load: Load::new(0.5),
        }),
    ];
    let announcements = bodies.map(|body| Announcement { sequence: 7, body });
    let sealed = announcements.iter().filter_map(|one| one.seal(&key).ok());
    let bare = announcements.iter().map(Announcement::encode);
    bare.chain(sealed).collect()
}

/// js-libp2p's announcement, and the seed's in JSON: what is read is written and read the same.
pub fn peer(data: &[u8]) {
    if let Some(announcement) = PeerAnnouncement::decode_of_anybody(data) {
        let author = announcement.public_key.to_peer_id();
        let again = PeerAnnouncement::decode(&announcement.encode(), author, usize::MAX);
        assert_eq!(again, Ok(announcement));
    }
    let Ok(key) = Keypair::ed25519_from_bytes([7; 32]) else {
        return;
    };
    let author = key.public().to_peer_id();
    let _ = PeerAnnouncement::decode(data, author, 8192);
    #[cfg(feature = "json")]
    {
        let _ = crate::json::peer(data, author);
        let _ = crate::json::content(data, author);
    }
}

/// An announcement of a service, bare and sealed: what is read is written and read the same.
pub fn announcement(data: &[u8]) {
    if let Ok(Some(announcement)) = Announcement::decode(data, 65_536) {
        let again = Announcement::decode(&announcement.encode(), usize::MAX);
        assert_eq!(again, Ok(Some(announcement)));
    }
    let _ = Announcement::open(data, 65_536);
}
