//! What is believed of whom, and the floods that try to exceed the bounds.

use super::*;

#[test]
fn a_key_that_is_not_the_authors_is_a_violation_and_teaches_nothing() {
    let now = start();
    let mut node = Node::new(Config::builder());
    let (victim, attacker) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let author = attacker.public().to_peer_id();
    let forged = announcement(&victim, &["/ip4/6.6.6.6/tcp/1"]);
    // The author is to blame, not the neighbour that passes on what is signed.
    for (source, expected) in [(author, Verdict::Reject), (node.neighbour, Verdict::Ignore)] {
        let verdict = node.hear_from(source, DEFAULT_TOPIC, author, &forged, now);
        assert_eq!(verdict, expected);
        let violation = ProtocolViolation::ForeignKey;
        assert_eq!(
            node.drain(),
            [Output::ProtocolViolation {
                peer: author,
                source,
                violation
            }]
        );
    }
    assert_eq!(node.core.peers().count(), 0);
    let unsigned = Received {
        topic: DEFAULT_TOPIC,
        source: author,
        author: None,
        sequence: None,
        data: &forged,
    };
    assert_eq!(node.core.on_message(&unsigned, now), Verdict::Reject);
    assert_eq!(node.core.peers().count(), 0);
}

#[test]
fn what_is_no_announcement_is_named() {
    let now = start();
    let mut node = Node::new(Config::builder().max_announcement_bytes(64));
    let author = PeerId::random();
    // Field 1 with wire type 2 and a length beyond the end; an empty message; a message over the limit.
    let cases = [
        (vec![0x0a, 0xff], ProtocolViolation::Malformed),
        (vec![], ProtocolViolation::InvalidKey),
        (vec![0; 65], ProtocolViolation::Oversized),
    ];
    for (bytes, violation) in cases {
        let verdict = node.hear_from(author, DEFAULT_TOPIC, author, &bytes, now);
        assert_eq!(verdict, Verdict::Reject);
        assert_eq!(
            node.drain(),
            [Output::ProtocolViolation {
                peer: author,
                source: author,
                violation
            }]
        );
    }
}

#[test]
fn addresses_that_are_foreign_useless_or_too_many_are_left_out() {
    let now = start();
    let mut node = Node::new(Config::builder().max_addresses_per_peer(3));
    let key = Keypair::generate_ed25519();
    let peer = key.public().to_peer_id();
    let other = format!("/ip4/1.2.3.4/tcp/4001/p2p/{}", PeerId::random());
    let relayed = format!("/ip4/1.2.3.4/tcp/4001/p2p/{}/p2p-circuit", PeerId::random());
    node.say(
        &key,
        &[
            &other,
            "/ip4/127.0.0.1/tcp/4001",
            "/ip4/0.0.0.0/tcp/4001",
            "/ip4/10.0.0.1/tcp/4001",
            "/ip6/fe80::1/tcp/4001",
            "/ip6/::1/tcp/4001",
            "/unix/%2Fvar%2Frun%2Fdocker.sock",
            "/ip4/9.9.9.9/udp/53/quic-v1",
            &relayed,
            &relayed,
            &format!("/ip4/5.6.7.8/tcp/4001/p2p/{peer}"),
            "/dns/example.org/tcp/443",
            "/ip4/1.2.3.4/tcp/4001",
        ],
        now,
    );
    let expected = [
        relayed.as_str(),
        "/ip4/5.6.7.8/tcp/4001",
        "/dns/example.org/tcp/443",
    ];
    assert_eq!(
        node.core.addresses(&peer),
        expected.map(|text| address(text).with_p2p(peer).unwrap())
    );
}

#[test]
fn private_addresses_are_believed_of_a_peer_that_is_reached_over_such_a_network() {
    let now = start();
    let private = ["/ip4/192.168.1.1/tcp/4001"];
    for (remote, believed) in [
        (None, 0),
        (Some("/ip4/1.2.3.4/tcp/4001"), 0),
        (Some("/ip4/10.1.1.1/tcp/4001"), 1),
        // Behind a relay of the local network is still anywhere.
        (Some("relayed"), 0),
    ] {
        let mut node = Node::new(Config::builder());
        let key = Keypair::generate_ed25519();
        let peer = key.public().to_peer_id();
        let relay = PeerId::random();
        if let Some(remote) = remote {
            let remote = match remote {
                "relayed" => address(&format!("/ip4/10.1.1.1/tcp/1/p2p/{relay}/p2p-circuit")),
                direct => address(direct),
            };
            node.core.on_connected(peer, &remote, now);
        }
        node.say(&key, &private, now);
        assert_eq!(node.core.addresses(&peer).len(), believed, "{remote:?}");
        // When it is no longer reached there, the same announcement is read anew.
        node.core.on_disconnected(&peer, now);
        node.say(&key, &private, now + 2 * SECOND);
        assert_eq!(node.core.addresses(&peer).len(), 0);
    }
    let mut trusting = Node::new(Config::builder().allow_private(true));
    let key = Keypair::generate_ed25519();
    trusting.say(&key, &private, now);
    assert_eq!(trusting.core.peers().count(), 1);
}

#[test]
fn a_crowd_cannot_point_at_one_victim() {
    let now = start();
    let mut node = Node::new(Config::builder().max_peers_per_host(8));
    for _ in 0..100 {
        let key = Keypair::generate_ed25519();
        node.say(
            &key,
            &["/ip4/6.6.6.6/tcp/4001", "/ip6/2001:db8::1/tcp/4001"],
            now,
        );
    }
    assert_eq!(node.core.peers().count(), 8);
    assert_eq!(node.core.hosts.len(), 2);
    // The one who is there indeed is connected, from there or from anywhere.
    let key = Keypair::generate_ed25519();
    let owner = key.public().to_peer_id();
    node.core
        .on_connected(owner, &address("/ip4/6.6.6.6/tcp/4001"), now);
    node.say(&key, &["/ip4/6.6.6.6/tcp/4001"], now);
    assert_eq!(node.core.addresses(&owner).len(), 1);
    node.core.handle_timeout(now + 300 * SECOND);
    assert_eq!(node.core.hosts.len(), 0);
    // One relay has many peers.
    let relay = PeerId::random();
    for _ in 0..100 {
        let key = Keypair::generate_ed25519();
        let relayed = format!("/ip4/6.6.6.6/tcp/4001/p2p/{relay}/p2p-circuit");
        node.say(&key, &[&relayed], now + 300 * SECOND);
    }
    assert_eq!(node.core.peers().count(), 100);
}

#[test]
fn an_old_message_brings_nobody_back() {
    let now = start();
    let mut node = Node::new(Config::builder());
    let key = Keypair::generate_ed25519();
    let author = key.public().to_peer_id();
    let data = announcement(&key, &["/ip4/1.2.3.4/tcp/4001"]);
    let goodbye = announcement(&key, &[]);
    let source = node.neighbour;
    let hear = |node: &mut Node, data: &[u8], sequence, at: u32| {
        let received = Received {
            topic: DEFAULT_TOPIC,
            source,
            author: Some(author),
            sequence: Some(sequence),
            data,
        };
        let now = now + SECOND * at;
        node.core.handle_timeout(now);
        node.core.on_message(&received, now)
    };
    let first = 1_700_000_000_000_000_000;
    for n in 0..20u32 {
        let verdict = hear(&mut node, &data, first + u64::from(n), 10 * n);
        assert_eq!(verdict, Verdict::Accept);
    }
    // While it lives.
    for n in 0..20 {
        let verdict = hear(&mut node, &data, first + n, 192 + n as u32);
        assert_eq!(verdict, Verdict::Ignore);
    }
    assert_eq!(
        hear(&mut node, &goodbye, first + 20, 213),
        Verdict::Ignore,
        "expired meanwhile"
    );
    assert_eq!(hear(&mut node, &data, first + 21, 220), Verdict::Accept);
    assert_eq!(hear(&mut node, &goodbye, first + 22, 222), Verdict::Accept);
    // And while its time to live lasts.
    for n in 0..20 {
        assert_eq!(
            hear(&mut node, &data, first + n, 225 + 10 * n as u32),
            Verdict::Ignore
        );
    }
    assert_eq!(node.core.peers().count(), 0);
    assert_eq!(hear(&mut node, &data, first + 23, 430), Verdict::Accept);
}

/// Some honest peers behind honest neighbours, and a neighbour that does what it likes.
#[test]
fn ten_thousand_forgeries_a_second_are_refused_and_honest_peers_are_found_all_the_same() {
    const PER_SECOND: u32 = 10_000;
    const SECONDS: u32 = 30;
    let now = start();
    let mut node = Node::at(Config::builder().max_peers(128), now);
    let hostile = Keypair::generate_ed25519();
    let hostile_id = hostile.public().to_peer_id();
    let victim = Keypair::generate_ed25519();
    let foreign = announcement(&victim, &["/ip4/6.6.6.6/tcp/4001"]);
    let oversized = vec![0x0a; 60_000];
    let garbage = [0x0a, 0xff, 0xff];
    // Keys made up for the occasion: correctly signed, and more than there is room for.
    let invented: Vec<_> = (0..2_000u32)
        .map(|n| {
            let key = Keypair::generate_ed25519();
            let [_, _, a, b] = n.to_be_bytes();
            let text = format!("/ip4/66.66.{a}.{b}/tcp/4001");
            (key.public().to_peer_id(), announcement(&key, &[&text]))
        })
        .collect();
    let honest: Vec<_> = (0..40)
        .map(|n| {
            let key = Keypair::generate_ed25519();
            let text = format!("/ip4/1.2.3.{n}/tcp/4001");
            (key.public().to_peer_id(), announcement(&key, &[&text]))
        })
        .collect();
    let neighbours = [PeerId::random(), PeerId::random()];
    let (mut accepted, mut admitted, mut events) = (0, 0, 0);
    let mut unknown = Vec::new();
    for n in 0..PER_SECOND * SECONDS {
        let at = now + SECOND * n / PER_SECOND;
        let pick = n as usize;
        let (author, data) = match n % 5 {
            0 => (hostile_id, &foreign[..]),
            1 => (hostile_id, &oversized[..]),
            2 => (hostile_id, &garbage[..]),
            // Somebody else's bytes in an invented name.
            3 => (invented[pick % 2_000].0, &foreign[..]),
            _ => {
                let (author, data) = &invented[(pick / 5) % 2_000];
                (*author, &data[..])
            }
        };
        let verdict = node.hear_from(hostile_id, DEFAULT_TOPIC, author, data, at);
        if n % 5 == 4 {
            admitted += u32::from(verdict == Verdict::Accept);
        } else {
            accepted += u32::from(verdict == Verdict::Accept);
        }
        // Each honest peer speaks every ten seconds; the last one joins in the middle of the attack.
        let slot = 10 * PER_SECOND / 40;
        if n % slot == 0 {
            let which = (n / slot) as usize % 40;
            if which < 39 || n > PER_SECOND * SECONDS / 2 {
                let (author, data) = &honest[which];
                let source = neighbours[which % 2];
                let verdict = node.hear_from(source, DEFAULT_TOPIC, *author, data, at);
                assert_eq!(verdict, Verdict::Accept, "honest peer {which} at {n}");
            }
        }
        if n % 100 == 0 {
            node.core.handle_timeout(at);
        }
        events += node.drain().len();
        if n > 10 * PER_SECOND && n % PER_SECOND == 0 {
            let missing = |(id, _): &&(PeerId, _)| !node.core.peers().any(|peer| peer == id);
            unknown.push(honest[..39].iter().filter(missing).count());
        }
        assert!(node.core.peers.len() <= 128);
        assert!(node.core.departed.len() <= 128);
        assert!(node.core.sources.len() <= 3);
        assert!(node.core.hosts.len() <= 128);
    }
    println!(
        "{} messages at 10,000 a second: {accepted} forgeries accepted, {admitted} announcements of \
         invented keys passed on, {events} events, honest peers unknown at each second: {unknown:?}",
        PER_SECOND * SECONDS
    );
    assert_eq!(accepted, 0);
    assert!(unknown.iter().all(|unknown| *unknown == 0), "{unknown:?}");
    assert!(node.core.peers().any(|peer| *peer == honest[39].0));
    // Its burst and its rate, as for any other neighbour; each admits a peer and costs another its place.
    assert!(admitted <= 2 * (32 + SECONDS * 3) + 128, "{admitted}");
    assert!(events < 2_000, "{events}");
}

#[test]
fn a_neighbour_that_floods_with_invented_keys_leaves_room_for_those_of_others() {
    let now = start();
    let mut node = Node::at(Config::builder().max_peers(64), now);
    let (flood, hub) = (PeerId::random(), PeerId::random());
    let invent = |node: &mut Node, source, now| {
        let key = Keypair::generate_ed25519();
        let port: u16 = 1024 + rand::random::<u16>() / 2;
        let text = format!("/ip4/{}.6.6.6/tcp/{port}", 1 + rand::random::<u8>() % 9);
        let author = key.public().to_peer_id();
        let data = announcement(&key, &[&text]);
        node.hear_from(source, DEFAULT_TOPIC, author, &data, now)
    };
    let mut at = now;
    let mut own_limit = 0;
    for n in 0..600 {
        at = now + SECOND * n / 10;
        own_limit += u32::from(invent(&mut node, flood, at) == Verdict::Accept);
    }
    assert!(
        own_limit <= 16 + 64 + 1,
        "a quarter at once, then the table in a minute: {own_limit}"
    );
    // Honest ones behind a hub, and a neighbour of ours: all of them get in.
    for _ in 0..16 {
        assert_eq!(invent(&mut node, hub, at), Verdict::Accept);
    }
    let key = Keypair::generate_ed25519();
    let neighbour = key.public().to_peer_id();
    let data = announcement(&key, &["/ip4/1.2.3.4/tcp/4001"]);
    let verdict = node.hear_from(neighbour, DEFAULT_TOPIC, neighbour, &data, at);
    assert_eq!(verdict, Verdict::Accept);
}
