use proptest::prelude::*;

use super::*;

fn address(text: &str) -> Multiaddr {
    text.parse().unwrap()
}

/// What libp2p-dcutr 0.15 writes: `HolePunch { type: CONNECT, obs_addrs: [/ip4/203.0.113.10/udp/9100/quic-v1] }` and a `SYNC`.
#[test]
fn the_bytes_of_other_implementations_are_read_and_written() {
    let connect = [
        0x08, 0x64, 0x12, 0x0b, 0x04, 203, 0, 113, 10, 0x91, 0x02, 0x23, 0x8c, 0xcd, 0x03,
    ];
    let message = Message {
        kind: Kind::Connect,
        addresses: vec![address("/ip4/203.0.113.10/udp/9100/quic-v1")],
        extras: None,
    };
    assert_eq!(Message::decode(&connect), Ok(message.clone()));
    assert_eq!(message.encode(), connect);
    let sync = [0x08, 0xac, 0x02];
    let message = Message {
        kind: Kind::Sync,
        addresses: Vec::new(),
        extras: None,
    };
    assert_eq!(Message::decode(&sync), Ok(message.clone()));
    assert_eq!(message.encode(), sync);
}

#[test]
fn what_anypath_adds_stands_in_one_field_that_others_skip() {
    let extras = Extras {
        attempt: 2,
        nat: NatReport {
            udp: TransportNat {
                mapping: Some(Mapping::AddressDependent),
                port_step: NonZeroI16::new(-2),
                can_map_port: true,
                ..TransportNat::of(NatType::Symmetric)
            },
            tcp: TransportNat {
                filtering: Some(Filtering::AddressAndPortDependent),
                blocked: true,
                ..TransportNat::of(NatType::PortRestrictedCone)
            },
            ..NatReport::default()
        },
        local: vec![address("/ip4/10.1.0.10/tcp/9100")],
        failure: Some(PunchError::Impossible),
    };
    let message = Message {
        kind: Kind::Connect,
        addresses: vec![address("/ip4/203.0.113.10/tcp/9100")],
        extras: Some(extras),
    };
    let bytes = message.encode();
    assert_eq!(Message::decode(&bytes), Ok(message.clone()));
    let bare = Message {
        extras: None,
        ..message
    };
    assert!(
        bytes.starts_with(&bare.encode()),
        "the specified part first"
    );
}

#[test]
fn nonsense_is_refused_and_says_what_it_is() {
    assert_eq!(Message::decode(&[]), Err(ProtocolViolation::UnknownType));
    assert_eq!(
        Message::decode(&[0x08, 0x07]),
        Err(ProtocolViolation::UnknownType)
    );
    assert_eq!(
        Message::decode(&[0x12]),
        Err(ProtocolViolation::Undecodable)
    );
    let long = vec![0; MAX_BYTES + 1];
    assert_eq!(Message::decode(&long), Err(ProtocolViolation::TooLong));
}

#[test]
fn a_thousand_addresses_fit_as_far_as_they_fit_and_are_looked_at_as_far_as_allowed() {
    let addresses: Vec<Multiaddr> = (0..1000)
        .map(|port| address(&format!("/ip4/203.0.113.10/udp/{port}/quic-v1")))
        .collect();
    let message = Message {
        kind: Kind::Connect,
        addresses: addresses.clone(),
        extras: Some(Extras::default()),
    };
    let bytes = message.encode();
    assert!(bytes.len() <= MAX_BYTES);
    let decoded = Message::decode(&bytes).unwrap();
    assert_eq!(decoded.addresses, addresses[..MAX_ADDRESSES]);
}

#[test]
fn relayed_addresses_are_dropped() {
    let message = Message {
        kind: Kind::Connect,
        addresses: vec![
            address("/ip4/203.0.113.100/tcp/4001/p2p-circuit"),
            address("/ip4/203.0.113.10/tcp/9100"),
        ],
        extras: None,
    };
    let decoded = Message::decode(&message.encode()).unwrap();
    assert_eq!(decoded.addresses, message.addresses[1..]);
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert!(message.addresses.len() <= MAX_ADDRESSES);
            prop_assert!(message.encode().len() <= MAX_BYTES);
        }
    }
}
