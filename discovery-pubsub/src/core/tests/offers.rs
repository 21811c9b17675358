//! Announcements of content, relays and roles.

use super::*;
use crate::{Body, Load, announcement::Announcement as Message};

const NAMESPACE: &str = "anypath";

fn cid(n: u16) -> Cid {
    let mut digest = [0; 32];
    digest[..2].copy_from_slice(&n.to_be_bytes());
    Cid::new_v1(
        0x55,
        cid::multihash::Multihash::wrap(0x12, &digest).unwrap(),
    )
}

fn item(n: u16) -> Content {
    Content {
        cid: cid(n),
        size: Some(u64::from(n)),
        name: Some(format!("file {n}")),
    }
}

fn worker(load: f64) -> Role {
    Role {
        name: "worker".to_owned(),
        load: Load::new(load),
    }
}

fn serving() -> Node {
    Node::new(Config::builder().services(Service::ALL))
}

/// All services have a listener.
fn heard(node: &mut Node, now: Instant) {
    for service in Service::ALL {
        let topic = service.topic(NAMESPACE);
        node.core.on_subscribed(&topic, PeerId::random(), now);
    }
}

/// What `node` publishes until `end`, decoded.
fn published(node: &mut Node, end: Instant) -> Vec<(Instant, Message)> {
    let mut messages = Vec::new();
    let mut drain = |node: &mut Node, at| {
        for output in node.drain() {
            if let Output::Publish { topic, data } = output {
                let message = Message::decode(&data, 8192).unwrap().unwrap();
                assert_eq!(topic, message.body.service().topic(NAMESPACE));
                messages.push((at, message));
            }
        }
    };
    drain(node, end);
    while let Some(at) = node.core.poll_timeout().filter(|at| *at <= end) {
        node.core.handle_timeout(at);
        drain(node, at);
    }
    messages
}

fn hear(node: &mut Node, author: PeerId, sequence: u64, body: Body, now: Instant) -> Verdict {
    let topic = body.service().topic(NAMESPACE);
    let data = Message { sequence, body }.encode();
    node.hear(&topic, author, &data, now)
}

fn content(items: impl IntoIterator<Item = u16>, withdrawn: &[u16]) -> Body {
    Body::Content {
        items: items.into_iter().map(item).collect(),
        withdrawn: withdrawn.iter().copied().map(cid).collect(),
    }
}

#[test]
fn offers_are_announced_when_there_is_a_listener_and_then_again_and_again() {
    let now = start();
    let mut node = serving();
    node.core.announce_content(item(1), now).unwrap();
    node.core
        .set_relay(Some(Bytes::from_static(b"relay")), now)
        .unwrap();
    node.core.set_role(Some(worker(0.5)), now).unwrap();
    assert_eq!(published(&mut node, now + 60 * SECOND), []);

    let then = now + 60 * SECOND;
    heard(&mut node, then);
    let messages = published(&mut node, then + 660 * SECOND);
    let times = |service: Service| {
        let of = messages.iter().filter(|(_, m)| m.body.service() == service);
        of.map(|(at, _)| *at).collect::<Vec<_>>()
    };
    for (service, interval) in [
        (Service::Content, 300),
        (Service::Relay, 60),
        (Service::Role, 60),
    ] {
        let times = times(service);
        assert!(times[0] - then <= SPREAD, "{service}");
        assert!(times.len() >= 2);
        for pair in times.windows(2) {
            let gap = (pair[1] - pair[0]).as_secs_f64() / f64::from(interval);
            assert!((0.9..=1.1).contains(&gap), "{service}: {gap}");
        }
    }
    let sequences: Vec<_> = messages.iter().map(|(_, m)| m.sequence).collect();
    assert!(
        sequences.windows(2).all(|pair| pair[0] < pair[1]),
        "{sequences:?}"
    );
    assert!(
        sequences[0] >= 1_700_000_060_000,
        "taken from the clock on the wall"
    );
}

#[test]
fn services_that_are_off_and_texts_that_are_too_long_are_refused() {
    let now = start();
    let mut node = Node::new(Config::builder().services([Service::Content]));
    let off = node.core.set_role(Some(worker(0.5)), now);
    assert_eq!(off, Err(AnnounceError::Off(Service::Role)));
    let off = node.core.set_relay(None, now);
    assert_eq!(off, Err(AnnounceError::Off(Service::Relay)));
    let long = Content {
        name: Some("x".repeat(129)),
        ..item(1)
    };
    let refused = node.core.announce_content(long, now);
    assert!(matches!(
        refused,
        Err(AnnounceError::TooLong {
            len: 129,
            max: 128,
            ..
        })
    ));
    let mut node = serving();
    let refused = node.core.set_relay(Some(vec![0; 4097].into()), now);
    assert!(matches!(
        refused,
        Err(AnnounceError::TooLong { len: 4097, .. })
    ));
}

#[test]
fn content_is_told_in_announcements_of_bounded_size_and_the_oldest_gives_way() {
    let now = start();
    let mut node = Node::new(
        Config::builder()
            .services([Service::Content])
            .max_announcement_bytes(1024),
    );
    for n in 0..100 {
        node.core.announce_content(item(n), now).unwrap();
    }
    heard(&mut node, now);
    let messages = published(&mut node, now + 60 * SECOND);
    let mut told = BTreeSet::new();
    for (_, message) in &messages {
        assert!(message.encode().len() <= 1024);
        let Body::Content { items, .. } = &message.body else {
            panic!()
        };
        assert!(!items.is_empty());
        told.extend(items.iter().map(|item| item.cid));
    }
    assert_eq!(told, (36..100).map(cid).collect());
    let last = messages.last().unwrap().0;
    // Withdrawn and new content does not wait for the next round.
    assert!(node.core.announces(&cid(50)) && !node.core.announces(&cid(35)));
    assert!(node.core.withdraw_content(&cid(50), last));
    assert!(!node.core.announces(&cid(50)));
    assert!(!node.core.withdraw_content(&cid(50), last));
    node.core.announce_content(item(200), last).unwrap();
    let (at, message) = published(&mut node, last + 10 * SECOND).remove(0);
    assert!(at - last <= 6 * SECOND);
    let Body::Content { items, withdrawn } = message.body else {
        panic!()
    };
    assert_eq!(withdrawn, [cid(50)]);
    assert_eq!(items[0], item(200));
}

#[test]
fn what_a_peer_offers_is_told_once_and_changes_are_told() {
    let now = start();
    let mut node = serving();
    let peer = PeerId::random();
    let relay = |text: &'static str| Body::Relay(Bytes::from_static(text.as_bytes()));
    assert_eq!(
        hear(&mut node, peer, 1, content([1, 2], &[]), now),
        Verdict::Accept
    );
    assert_eq!(hear(&mut node, peer, 1, relay("a"), now), Verdict::Accept);
    assert_eq!(
        hear(&mut node, peer, 1, Body::Role(worker(0.1)), now),
        Verdict::Accept
    );
    assert_eq!(
        node.drain(),
        [
            Output::Content {
                peer,
                items: vec![item(1), item(2)]
            },
            Output::Relay {
                peer,
                announcement: Bytes::from_static(b"a")
            },
            Output::Role {
                peer,
                role: worker(0.1)
            },
        ]
    );
    let later = now + 60 * SECOND;
    assert_eq!(
        hear(&mut node, peer, 2, content([2, 3], &[1]), later),
        Verdict::Accept
    );
    assert_eq!(hear(&mut node, peer, 2, relay("a"), later), Verdict::Accept);
    assert_eq!(
        hear(&mut node, peer, 2, Body::Role(worker(0.2)), later),
        Verdict::Accept
    );
    assert_eq!(
        node.drain(),
        [
            Output::Content {
                peer,
                items: vec![item(3)]
            },
            Output::ContentWithdrawn {
                peer,
                cids: vec![cid(1)]
            },
            Output::Role {
                peer,
                role: worker(0.2)
            },
        ]
    );
    let providers = |node: &Node, n| node.core.providers(&cid(n)).copied().collect::<Vec<_>>();
    assert_eq!(providers(&node, 1), []);
    assert_eq!(providers(&node, 2), [peer]);
    assert_eq!(node.core.content(&peer).count(), 2);
    assert_eq!(node.core.role(&peer), Some(&worker(0.2)));
    assert_eq!(node.core.relays().count(), 1);

    let end = later + 60 * SECOND;
    assert_eq!(hear(&mut node, peer, 3, relay(""), end), Verdict::Accept);
    let service = Service::Relay;
    assert_eq!(node.drain(), [Output::OfferExpired { peer, service }]);
    assert_eq!(node.core.relays().count(), 0);
    // Replays of what was said before bring nothing back.
    assert_eq!(hear(&mut node, peer, 2, relay("a"), end), Verdict::Ignore);
    assert_eq!(
        hear(&mut node, peer, 2, content([1], &[]), end),
        Verdict::Ignore
    );
    assert_eq!(node.drain(), []);
    assert_eq!(hear(&mut node, peer, 4, relay("b"), end), Verdict::Accept);
}

#[test]
fn offers_that_are_not_repeated_expire() {
    let now = start();
    let mut node = serving();
    let peer = PeerId::random();
    hear(&mut node, peer, 1, content([1], &[]), now);
    hear(
        &mut node,
        peer,
        1,
        Body::Relay(Bytes::from_static(b"a")),
        now,
    );
    hear(&mut node, peer, 1, Body::Role(worker(0.1)), now);
    node.drain();
    let mut ends = Vec::new();
    while let Some(at) = node.core.poll_timeout() {
        node.core.handle_timeout(at);
        for output in node.drain() {
            let Output::OfferExpired { service, .. } = output else {
                panic!("{output:?}")
            };
            ends.push((service, (at - now).as_secs()));
        }
    }
    ends.sort_unstable();
    let expected = [
        (Service::Content, 900),
        (Service::Relay, 300),
        (Service::Role, 300),
    ];
    assert_eq!(ends, expected);
    assert_eq!(node.core.providers(&cid(1)).count(), 0);
}

#[test]
fn a_relay_that_stops_says_so() {
    let now = start();
    for stop in [
        |node: &mut Node, now| node.core.set_relay(None, now).unwrap(),
        |node: &mut Node, now| node.core.shutdown(now),
    ] {
        let mut node = serving();
        heard(&mut node, now);
        let announcement = Some(Bytes::from_static(b"relay"));
        node.core.set_relay(announcement, now).unwrap();
        assert_eq!(published(&mut node, now + SECOND).len(), 1);
        stop(&mut node, now + 2 * SECOND);
        let (_, message) = published(&mut node, now + 200 * SECOND).remove(0);
        assert_eq!(message.body, Body::Relay(Bytes::new()));
    }
}

#[test]
fn who_shuts_down_takes_back_its_content() {
    let now = start();
    let mut node = serving();
    let peer = node.id();
    for n in 0..64 {
        node.core.announce_content(item(n), now).unwrap();
    }
    heard(&mut node, now);
    let mut listener = serving();
    let mut sequence = 0;
    let mut deliver = |listener: &mut Node, messages: Vec<(Instant, Message)>| {
        for (at, message) in messages {
            assert!(message.sequence > sequence);
            sequence = message.sequence;
            hear(listener, peer, message.sequence, message.body, at);
        }
    };
    deliver(&mut listener, published(&mut node, now + 30 * SECOND));
    assert!((0..64).all(|n| listener.core.providers(&cid(n)).eq([&peer])));
    node.core.shutdown(now + 31 * SECOND);
    deliver(&mut listener, published(&mut node, now + 31 * SECOND));
    assert!((0..64).all(|n| listener.core.providers(&cid(n)).next().is_none()));
    assert!(published(&mut node, now + 2000 * SECOND).is_empty());
}

#[test]
fn an_announcement_on_the_wrong_topic_or_of_another_version_is_not_believed() {
    let now = start();
    let mut node = serving();
    let peer = PeerId::random();
    let role = Message {
        sequence: 1,
        body: Body::Role(worker(0.1)),
    };
    let topic = Service::Relay.topic(NAMESPACE);
    assert_eq!(
        node.hear_from(peer, &topic, peer, &role.encode(), now),
        Verdict::Reject
    );
    // Version 2: not for us, and nobody's fault.
    let verdict = node.hear_from(peer, &topic, peer, &[0x08, 2], now);
    assert_eq!(verdict, Verdict::Ignore);
    assert!(matches!(
        node.drain()[..],
        [Output::ProtocolViolation { .. }]
    ));
}

#[test]
fn one_author_and_one_crowd_are_bounded() {
    let now = start();
    let services = Config::builder().services(Service::ALL).max_peers(64);
    let mut node = Node::new(services);
    let peer = PeerId::random();
    let mut accepted = 0;
    for n in 0..10_000u16 {
        let at = now + SECOND * u32::from(n) / 1000;
        let verdict = hear(&mut node, peer, u64::from(n) + 1, content([n], &[]), at);
        accepted += u32::from(verdict == Verdict::Accept);
    }
    assert!(
        accepted <= 8 + 3,
        "a burst, then one in five seconds: {accepted}"
    );
    // As much content as an announcement holds, however many of them.
    for n in 0..20u16 {
        let at = now + SECOND * (100 + 10 * u32::from(n));
        hear(
            &mut node,
            peer,
            20_000 + u64::from(n),
            content(n * 64..(n + 1) * 64, &[]),
            at,
        );
    }
    assert_eq!(node.core.content(&peer).count(), 64);
    let now = now + 400 * SECOND;
    for n in 0..5_000u16 {
        hear(
            &mut node,
            PeerId::random(),
            1,
            content([n], &[]),
            now + SECOND * u32::from(n) / 100,
        );
        assert!(node.core.offers.len(Service::Content) <= 64);
    }
    let listed: usize = (0..5_000)
        .map(|n| node.core.providers(&cid(n)).count())
        .sum();
    let held: usize = node.core.offers.len(Service::Content);
    assert!(
        listed <= held + 63,
        "the index forgets with the table: {listed}"
    );
}
