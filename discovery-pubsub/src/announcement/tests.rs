use proptest::prelude::*;

use super::*;

fn cid(n: u8) -> Cid {
    let digest = cid::multihash::Multihash::wrap(0x12, &[n; 32]).unwrap();
    Cid::new_v1(0x55, digest)
}

fn content(items: Vec<Content>) -> Announcement {
    Announcement {
        sequence: 1_700_000_000_000,
        body: Body::Content {
            items,
            withdrawn: vec![cid(9)],
        },
    }
}

fn all_bodies() -> [Announcement; 3] {
    let item = Content {
        cid: cid(1),
        size: Some(0),
        name: Some("a.txt".to_owned()),
    };
    let body = |body| Announcement { sequence: 7, body };
    [
        content(vec![item, Content::new(cid(2))]),
        body(Body::Relay(Bytes::from_static(b"relay"))),
        body(Body::Role(Role {
            name: "worker".to_owned(),
            load: Load::new(0.25),
        })),
    ]
}

#[test]
fn what_is_written_is_read() {
    for announcement in all_bodies() {
        let bytes = announcement.encode();
        let read = Announcement::decode(&bytes, bytes.len());
        assert_eq!(read, Ok(Some(announcement)));
        let too_large = Announcement::decode(&bytes, bytes.len() - 1);
        assert_eq!(too_large, Err(ProtocolViolation::Oversized));
    }
}

/// The format that other versions will have to read: version 1, sequence 7, role "worker", 250 ‰.
#[test]
fn the_wire_format_stays() {
    let [_, relay, role] = all_bodies();
    assert_eq!(
        hex::encode(role.encode()),
        "080110072a0b0a06776f726b657210fa01"
    );
    assert_eq!(
        hex::encode(relay.encode()),
        "080110072205".to_owned() + &hex::encode("relay")
    );
}

#[test]
fn a_later_version_is_nobodys_fault() {
    // Version 2 and a field 9 that we do not know.
    let bytes = [0x08, 2, 0x4a, 1, 0];
    assert_eq!(Announcement::decode(&bytes, 100), Ok(None));
}

#[test]
fn what_breaks_the_protocol_is_named() {
    let refused = |message: pb::Announcement| {
        Announcement::decode(&message.encode_to_vec(), 65_536).unwrap_err()
    };
    let with = |body| pb::Announcement {
        version: 1,
        sequence: 1,
        body: Some(body),
    };
    let item = pb::Item {
        cid: cid(1).to_bytes(),
        ..pb::Item::default()
    };
    let items = |items| {
        with(pb::announcement::Body::Content(pb::Content {
            items,
            withdrawn: Vec::new(),
        }))
    };
    assert_eq!(
        refused(pb::Announcement::default()),
        ProtocolViolation::Malformed
    );
    assert_eq!(
        refused(items(vec![item.clone(); MAX_CONTENT + 1])),
        ProtocolViolation::TooMany("items")
    );
    let long = pb::Item {
        name: "x".repeat(MAX_NAME_BYTES + 1),
        ..item.clone()
    };
    assert_eq!(
        refused(items(vec![long])),
        ProtocolViolation::TooMany("name bytes")
    );
    let no_cid = pb::Item {
        cid: vec![1, 2, 3],
        ..item
    };
    assert_eq!(refused(items(vec![no_cid])), ProtocolViolation::InvalidCid);
    let relay = pb::announcement::Body::Relay(vec![0; MAX_RELAY_BYTES + 1]);
    assert_eq!(
        refused(with(relay)),
        ProtocolViolation::TooMany("relay bytes")
    );
    let role = pb::announcement::Body::Role(pb::Role {
        role: "r".repeat(MAX_ROLE_BYTES + 1),
        load_permille: 0,
    });
    assert_eq!(
        refused(with(role)),
        ProtocolViolation::TooMany("role bytes")
    );
}

#[test]
fn a_sealed_announcement_names_its_signer_and_cannot_be_changed() {
    let key = Keypair::generate_ed25519();
    for announcement in all_bodies() {
        let sealed = announcement.seal(&key).unwrap();
        let opened = Announcement::open(&sealed, 65_536);
        assert_eq!(opened, Ok(Some((key.public().to_peer_id(), announcement))));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            let opened = Announcement::open(&changed, 65_536);
            assert!(
                opened.is_err() || opened == Ok(None),
                "byte {at}: {opened:?}"
            );
        }
    }
}

#[test]
fn load_stays_between_idle_and_busy() {
    for (ratio, expected) in [(-1.0, 0.0), (0.5, 0.5), (7.0, 1.0), (f64::NAN, 0.0)] {
        assert_eq!(Load::new(ratio).ratio(), expected, "{ratio}");
    }
}

proptest! {
    #[test]
    fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(Some(announcement)) = Announcement::decode(&bytes, 65_536) {
            let again = announcement.encode();
            prop_assert_eq!(Announcement::decode(&again, 65_536), Ok(Some(announcement)));
        }
        let _ = Announcement::open(&bytes, 65_536);
    }
}
