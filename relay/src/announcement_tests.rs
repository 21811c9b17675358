use super::*;

const NOW: Duration = Duration::from_secs(1_790_000_000);

fn now() -> SystemTime {
    UNIX_EPOCH + NOW
}

fn address() -> Multiaddr {
    "/ip4/203.0.113.9/tcp/4001".parse().unwrap()
}

fn load() -> Load {
    Load {
        reservations: 64,
        max_reservations: 256,
        circuits: 3,
        max_circuits: 4,
    }
}

fn signed(key: &Keypair, issued: SystemTime, lifetime: Duration) -> Vec<u8> {
    let limit = Some(CircuitLimit::REFERENCE);
    Announcement::sign(key, &[address()], load(), limit, issued, lifetime).unwrap()
}

#[test]
fn an_announcement_is_read_as_it_was_written() {
    let key = Keypair::generate_ed25519();
    let bytes = signed(&key, now(), Duration::from_secs(300));
    let read = Announcement::verify(&bytes, now()).unwrap();
    assert_eq!(read.relay, key.public().to_peer_id());
    assert_eq!(read.addresses, [address()]);
    assert_eq!(read.load, load());
    assert_eq!(read.load.percent(), 75);
    assert_eq!(read.limit, Some(CircuitLimit::REFERENCE));
    assert_eq!(read.issued, now());
    assert_eq!(read.expires, now() + Duration::from_secs(300));
    assert!(bytes.len() < 512, "{} bytes", bytes.len());
}

#[test]
fn no_changed_byte_passes() {
    let key = Keypair::generate_ed25519();
    let bytes = signed(&key, now(), Duration::from_secs(300));
    let honest = Announcement::verify(&bytes, now()).unwrap();
    for position in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[position] ^= 1 << bit;
            // A change that passes changed nothing that means anything.
            if let Ok(read) = Announcement::verify(&changed, now()) {
                assert_eq!(read, honest, "bit {bit} of byte {position}");
            }
        }
    }
    for length in 0..bytes.len() {
        assert!(Announcement::verify(&bytes[..length], now()).is_err());
    }
}

#[test]
fn time_bounds_what_is_believed() {
    let key = Keypair::generate_ed25519();
    let verify = |issued: SystemTime, lifetime: u64| {
        let bytes = signed(&key, issued, Duration::from_secs(lifetime));
        Announcement::verify(&bytes, now())
    };
    let old = now() - Duration::from_secs(300);
    assert_eq!(verify(old, 300), Err(InvalidAnnouncement::Expired));
    assert!(verify(old, 301).is_ok());
    let ahead = now() + MAX_SKEW;
    assert!(verify(ahead, 60).is_ok());
    assert_eq!(
        verify(ahead + Duration::from_secs(1), 60),
        Err(InvalidAnnouncement::FromTheFuture)
    );
    assert_eq!(
        verify(now(), 1 << 40).unwrap().expires,
        now() + MAX_LIFETIME
    );
}

#[test]
fn nobody_announces_another_peer() {
    let (relay, other) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let record = PeerRecord::new_interop(&relay, vec![address()]).unwrap();
    let payload = wire::RelayAnnouncement {
        version: VERSION,
        peer_record: record
            .into_signed_envelope()
            .into_protobuf_encoding()
            .into(),
        issued: millis(now()),
        lifetime: 60,
        load: None,
        limit: None,
    };
    let envelope = |payload: &wire::RelayAnnouncement| {
        SignedEnvelope::new(
            &other,
            DOMAIN.to_owned(),
            PAYLOAD_TYPE.to_vec(),
            payload.encode_to_vec(),
        )
        .unwrap()
        .into_protobuf_encoding()
    };
    assert_eq!(
        Announcement::verify(&envelope(&payload), now()),
        Err(InvalidAnnouncement::Stranger)
    );
    let later = wire::RelayAnnouncement {
        version: 2,
        ..payload
    };
    assert_eq!(
        Announcement::verify(&envelope(&later), now()),
        Err(InvalidAnnouncement::Version)
    );
}

#[test]
fn addresses_are_bounded_and_lead_to_the_relay_itself() {
    let key = Keypair::generate_ed25519();
    let id = key.public().to_peer_id();
    let sign = |addresses: &[Multiaddr]| {
        let bytes = Announcement::sign(
            &key,
            addresses,
            Load::default(),
            None,
            now(),
            Duration::from_secs(60),
        );
        Announcement::verify(&bytes.unwrap(), now())
    };
    let many: Vec<Multiaddr> = (1..=100)
        .map(|port| {
            format!("/ip4/203.0.113.9/tcp/{port}/p2p/{id}")
                .parse()
                .unwrap()
        })
        .collect();
    let read = sign(&many).unwrap();
    assert_eq!(read.addresses.len(), MAX_ADDRESSES);
    assert_eq!(read.addresses[0].to_string(), "/ip4/203.0.113.9/tcp/1");
    assert_eq!(read.limit, None);
    let relayed = format!("/ip4/203.0.113.9/tcp/1/p2p/{id}/p2p-circuit");
    assert_eq!(
        sign(&[relayed.parse().unwrap()]),
        Err(InvalidAnnouncement::NoAddress)
    );
    assert_eq!(
        Announcement::verify(&vec![0; MAX_BYTES + 1], now()),
        Err(InvalidAnnouncement::TooLong)
    );
}

#[test]
fn strangers_do_not_send_us_into_our_own_network() {
    let key = Keypair::generate_ed25519();
    let addresses: Vec<Multiaddr> = [
        "/ip4/203.0.113.9/tcp/4001",
        "/ip4/203.0.113.9/udp/443/quic-v1",
        "/ip6/2001:db8::1/tcp/4001",
        "/dns/relay.example/tcp/4001",
        "/ip4/192.168.1.1/tcp/4001",
        "/ip4/127.0.0.1/tcp/4001",
        "/ip4/169.254.169.254/tcp/80",
        "/ip4/0.0.0.0/tcp/4001",
        "/ip4/203.0.113.9/tcp/22",
        "/ip6/::1/tcp/4001",
        "/ip6/fd00::1/tcp/4001",
        "/ip6/fe80::1/tcp/4001",
        "/ip6/::ffff:10.0.0.1/tcp/4001",
        "/ip4/100.64.0.1/tcp/4001",
        "/dnsaddr/relay.example",
        "/memory/5",
    ]
    .iter()
    .map(|text| text.parse().unwrap())
    .collect();
    let minute = Duration::from_secs(60);
    let signed = Announcement::sign(&key, &addresses, Load::default(), None, now(), minute);
    let mut read = Announcement::verify(&signed.unwrap(), now()).unwrap();
    assert_eq!(read.addresses, addresses);
    read.retain_public_addresses();
    assert_eq!(read.addresses, addresses[..4]);
}
