//! Each event leads to what the table of seams in DESIGN.md says.

use libp2p::{identity::Keypair, swarm::StreamProtocol};

use super::*;

fn peer() -> PeerId {
    PeerId::random()
}

fn connection(n: usize) -> ConnectionId {
    ConnectionId::new_unchecked(n)
}

fn identified(peer_id: PeerId, on: ConnectionId, protocols: &[StreamProtocol]) -> BehaviourEvent {
    BehaviourEvent::Identify(identify::Event::Received {
        connection_id: on,
        peer_id,
        info: identify::Info {
            public_key: Keypair::generate_ed25519().public(),
            protocol_version: "ipfs/0.1.0".to_owned(),
            agent_version: "test".to_owned(),
            listen_addrs: vec![
                "/ip4/192.0.2.1/tcp/9100".parse().unwrap(),
                format!("/ip4/192.0.2.2/tcp/1/p2p/{}/p2p-circuit", PeerId::random())
                    .parse()
                    .unwrap(),
            ],
            protocols: protocols.to_vec(),
            observed_addr: "/ip4/203.0.113.7/tcp/40001".parse().unwrap(),
            signed_peer_record: None,
        },
    })
}

#[test]
fn what_a_direct_peer_observed_reaches_holepunch_as_it_is() {
    let mut wiring = Wiring::new(true);
    wiring.on_direct(connection(1), None);
    let commands = wiring.on_event(identified(peer(), connection(1), &[]));
    let observed = commands.iter().find_map(|command| match command {
        Command::Observe { observed, .. } => Some(observed.to_string()),
        _ => None,
    });
    assert_eq!(observed.as_deref(), Some("/ip4/203.0.113.7/tcp/40001"));
}

#[test]
fn what_a_relayed_peer_observed_is_ignored() {
    let mut wiring = Wiring::new(true);
    let observes = |commands: &[Command]| {
        commands
            .iter()
            .any(|command| matches!(command, Command::Observe { .. }))
    };
    assert!(!observes(&wiring.on_event(identified(
        peer(),
        connection(1),
        &[]
    ))));
    wiring.on_direct(connection(2), None);
    wiring.on_closed(connection(2));
    assert!(!observes(&wiring.on_event(identified(
        peer(),
        connection(2),
        &[]
    ))));
}

#[test]
fn a_peer_that_relays_is_a_candidate_with_its_direct_addresses_while_we_need_relays() {
    let candidates = |wiring: &mut Wiring| {
        let commands = wiring.on_event(identified(
            peer(),
            connection(1),
            &[relay::HOP_PROTOCOL_NAME],
        ));
        commands.into_iter().find_map(|command| match command {
            Command::AddRelayCandidate { addresses, .. } => Some(addresses.len()),
            _ => None,
        })
    };
    assert_eq!(
        candidates(&mut Wiring::new(true)),
        Some(1),
        "its relayed address does not count"
    );
    assert_eq!(candidates(&mut Wiring::new(false)), None);
    let mut public = Wiring::new(true);
    let commands = public.on_event(BehaviourEvent::Holepunch(
        holepunch::Event::NatStatusChanged {
            old: NatStatus::Unknown,
            new: NatStatus::Public,
        },
    ));
    assert!(matches!(commands[0], Command::SetPublic(true)));
    assert_eq!(candidates(&mut public), None);
}

#[test]
fn a_dht_server_enters_the_routing_table() {
    let commands = Wiring::new(true).on_event(identified(peer(), connection(1), &[KAD]));
    assert!(commands.iter().any(
        |command| matches!(command, Command::AddDhtAddress { addresses, .. } if addresses.len() == 1)
    ));
}

#[test]
fn peers_of_the_local_network_are_connected() {
    let addresses: Vec<Multiaddr> = vec!["/ip4/10.0.0.2/tcp/9100".parse().unwrap()];
    let commands = Wiring::new(true).on_event(BehaviourEvent::Mdns(mdns::Event::Discovered {
        peer: peer(),
        addresses,
    }));
    assert!(commands.iter().any(|command| matches!(
        command,
        Command::AutoConnect {
            by: Discovery::Mdns,
            ..
        }
    )));
}

#[test]
fn relays_that_announce_themselves_are_candidates_while_we_need_relays() {
    let announced = |wiring: &mut Wiring| {
        let event = pubsub::Event::Relay {
            peer: peer(),
            announcement: Bytes::from_static(b"signed"),
        };
        wiring.on_event(BehaviourEvent::Pubsub(event))
    };
    let commands = announced(&mut Wiring::new(true));
    assert!(matches!(
        &commands[..],
        [Command::AddRelayAnnouncement { announcement }] if announcement == "signed"
    ));
    assert!(announced(&mut Wiring::new(false)).is_empty());
    let wanted = client::Event::CandidatesWanted { missing: 1 };
    let commands = Wiring::new(true).on_event(BehaviourEvent::RelayClient(wanted));
    assert!(matches!(
        commands[..],
        [Command::AddAnnouncedRelays, Command::FindRelays]
    ));
}

#[test]
fn who_announces_content_that_is_wanted_is_asked_for_it() {
    let cid: Cid = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
        .parse()
        .unwrap();
    let provider = peer();
    let announced = |wiring: &mut Wiring| {
        let event = pubsub::Event::Content {
            peer: provider,
            items: vec![pubsub::Content::new(cid)],
        };
        wiring.on_event(BehaviourEvent::Pubsub(event))
    };
    let mut wiring = Wiring::new(true);
    assert!(announced(&mut wiring).is_empty(), "nobody wants it");
    let mut behaviour = anypath_bitswap::Behaviour::new(
        anypath_bitswap::Config::default(),
        std::sync::Arc::new(anypath_bitswap::MemorySource::default()),
    );
    let session = behaviour.new_session();
    let ticket = behaviour.want(session, cid, bitswap::Priority::default());
    wiring.on_event(BehaviourEvent::Bitswap(bitswap::Event::ProvidersWanted {
        ticket,
        cid,
    }));
    let commands = announced(&mut wiring);
    assert!(matches!(
        &commands[..],
        [Command::AddProviders { ticket: asked, peers }] if *asked == ticket && *peers == [provider]
    ));
}

#[test]
fn the_limit_of_a_circuit_reaches_everybody_who_uses_it() {
    let limits = [
        (None, false),
        (
            Some(relay::CircuitLimit {
                bytes: Some(1 << 17),
                duration: None,
            }),
            true,
        ),
        (
            Some(relay::CircuitLimit {
                bytes: None,
                duration: Some(Duration::from_secs(120)),
            }),
            true,
        ),
        (
            Some(relay::CircuitLimit {
                bytes: None,
                duration: Some(LONG_CIRCUIT),
            }),
            false,
        ),
    ];
    for (limit, expected) in limits {
        let event = client::Event::Circuit {
            connection: connection(1),
            peer: peer(),
            relay: peer(),
            limit,
        };
        let commands = Wiring::new(true).on_event(BehaviourEvent::RelayClient(event));
        assert!(
            matches!(&commands[..], [Command::SetCircuitLimit { limited, .. }] if *limited == expected),
            "{limit:?}"
        );
    }
}

#[test]
fn what_bitswap_finds_silent_is_doubted_and_what_is_lost_is_replaced() {
    let mut wiring = Wiring::new(true);
    let (peer, connection) = (peer(), connection(1));
    let silent = bitswap::Event::PeerSilent {
        peer,
        connection,
        owes: true,
    };
    let commands = wiring.on_event(BehaviourEvent::Bitswap(silent));
    assert!(
        matches!(commands.as_slice(), [Command::Doubt { peer: who, owes: true }] if *who == peer),
        "{commands:?}"
    );
    let lost = holepunch::Event::ConnectionLost { peer, connection };
    let commands = wiring.on_event(BehaviourEvent::Holepunch(lost));
    assert!(
        matches!(
            commands.as_slice(),
            [Command::ConnectionLost { connection: which }] if *which == connection
        ),
        "{commands:?}"
    );
    let late = || BehaviourEvent::Holepunch(holepunch::Event::AnswerLate { peer, connection });
    assert!(wiring.on_event(late()).is_empty(), "a circuit");
    wiring.on_direct(connection, None);
    let commands = wiring.on_event(late());
    assert!(
        matches!(commands.as_slice(), [Command::DoubtRelays { peer: who }] if *who == peer),
        "{commands:?}"
    );
}
