use super::*;

fn record(peer: PeerId, address: &str) -> (PeerId, Multiaddr) {
    let address: Multiaddr = address.parse().unwrap();
    (peer, address.with(Protocol::P2p(peer)))
}

fn core() -> Merge {
    Merge::new(PeerId::random(), &Config::default())
}

fn drain(core: &mut Merge) -> Vec<Event> {
    std::iter::from_fn(|| core.poll_output()).collect()
}

fn discovered((peer, address): &(PeerId, Multiaddr)) -> Event {
    Event::Discovered {
        peer: *peer,
        addresses: vec![address.clone()],
    }
}

fn expired((peer, address): &(PeerId, Multiaddr)) -> Event {
    Event::Expired {
        peer: *peer,
        addresses: vec![address.clone()],
    }
}

#[test]
fn a_record_known_to_both_families_is_reported_once_and_expires_when_neither_knows_it() {
    let mut core = core();
    let record = record(PeerId::random(), "/ip4/192.168.0.7/tcp/4001");
    core.on_discovered(Family::V4, [record.clone()]);
    core.on_discovered(Family::V6, [record.clone()]);
    assert_eq!(drain(&mut core), [discovered(&record)]);

    core.on_expired(Family::V4, [record.clone()]);
    assert_eq!(drain(&mut core), []);
    assert_eq!(core.addresses(&record.0).count(), 1);

    core.on_expired(Family::V6, [record.clone()]);
    assert_eq!(drain(&mut core), [expired(&record)]);
    assert_eq!(core.peers().count(), 0);
}

#[test]
fn an_expired_record_can_be_discovered_again() {
    let mut core = core();
    let record = record(PeerId::random(), "/ip6/fd00::1/udp/4001/quic-v1");
    core.on_discovered(Family::V6, [record.clone()]);
    core.on_expired(Family::V6, [record.clone()]);
    core.on_discovered(Family::V4, [record.clone()]);
    assert_eq!(
        drain(&mut core),
        [discovered(&record), expired(&record), discovered(&record)]
    );
}

#[test]
fn addresses_of_one_peer_come_in_one_event() {
    let mut core = core();
    let peer = PeerId::random();
    let records = [
        record(peer, "/ip4/10.0.0.1/tcp/1"),
        record(peer, "/ip4/10.0.0.1/udp/1/quic-v1"),
    ];
    core.on_discovered(Family::V4, records.clone());
    let expected = records.map(|(_, address)| address).to_vec();
    assert_eq!(
        drain(&mut core),
        [Event::Discovered {
            peer,
            addresses: expected
        }]
    );
}

#[test]
fn records_that_nobody_can_dial_are_ignored() {
    let mut core = core();
    let (peer, other) = (PeerId::random(), PeerId::random());
    let local = core.local;
    core.on_discovered(
        Family::V6,
        [
            record(peer, "/ip6/fe80::1/tcp/1"),
            record(peer, "/ip4/0.0.0.0/tcp/1"),
            record(peer, "/ip4/224.0.0.251/tcp/1"),
            record(local, "/ip4/10.0.0.1/tcp/1"),
            (peer, record(other, "/ip4/10.0.0.1/tcp/1").1),
            (peer, "/ip4/10.0.0.1/tcp/1".parse().unwrap()),
            (peer, Multiaddr::empty()),
        ],
    );
    assert_eq!(drain(&mut core), []);
    assert_eq!(core.peers().count(), 0);
}

#[test]
fn an_invented_crowd_stays_within_the_limits() {
    let config = Config::builder()
        .max_peers(3)
        .max_addresses_per_peer(2)
        .build()
        .unwrap();
    let mut core = Merge::new(PeerId::random(), &config);
    for peer in std::iter::repeat_with(PeerId::random).take(100) {
        for port in 1..=100 {
            core.on_discovered(
                Family::V4,
                [record(peer, &format!("/ip4/10.0.0.1/tcp/{port}"))],
            );
        }
    }
    assert_eq!(core.peers().count(), 3);
    let addresses = core.peers.values().map(BTreeMap::len).sum::<usize>();
    assert_eq!(addresses, 6);
    assert_eq!(drain(&mut core).len(), 6);
}

#[test]
fn an_expiry_of_something_unknown_changes_nothing() {
    let mut core = core();
    let known = record(PeerId::random(), "/ip4/10.0.0.1/tcp/1");
    core.on_discovered(Family::V4, [known.clone()]);
    drain(&mut core);
    core.on_expired(Family::V6, [known.clone()]);
    core.on_expired(
        Family::V4,
        [record(PeerId::random(), "/ip4/10.0.0.1/tcp/1")],
    );
    core.on_expired(Family::V4, [record(known.0, "/ip4/10.0.0.1/tcp/2")]);
    assert_eq!(drain(&mut core), []);
    assert_eq!(core.addresses(&known.0).count(), 1);
}
