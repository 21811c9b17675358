use libp2p_identity::Keypair;
use proptest::prelude::*;

use super::*;
use crate::{ConfigBuilder, DEFAULT_TOPIC};

const SECOND: Duration = Duration::from_secs(1);

struct Node {
    key: Keypair,
    core: Core,
}

impl Node {
    fn new(builder: ConfigBuilder) -> Self {
        let key = Keypair::generate_ed25519();
        let core = Core::new(key.public(), builder.build().unwrap(), [7; 32]);
        Self { key, core }
    }

    fn id(&self) -> PeerId {
        self.core.local
    }

    fn drain(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.core.poll_output()).collect()
    }

    /// Runs the node alone until `end` and returns when it published.
    fn published_until(&mut self, end: Instant) -> Vec<Instant> {
        let mut times = Vec::new();
        while let Some(at) = self.core.poll_timeout().filter(|at| *at <= end) {
            self.core.handle_timeout(at);
            let outputs = self.drain();
            times.extend(
                outputs
                    .iter()
                    .filter(|o| matches!(o, Output::Publish { .. }))
                    .map(|_| at),
            );
        }
        times
    }
}

fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "a point to count from")]
    Instant::now()
}

fn address(text: &str) -> Multiaddr {
    text.parse().unwrap()
}

fn announcement(key: &Keypair, addresses: &[&str]) -> Vec<u8> {
    let addresses = addresses.iter().map(|text| address(text)).collect();
    Announcement {
        public_key: key.public(),
        addresses,
    }
    .encode()
}

fn say(node: &mut Core, key: &Keypair, addresses: &[&str], now: Instant) -> Verdict {
    let author = key.public().to_peer_id();
    node.on_message(
        DEFAULT_TOPIC,
        Some(author),
        &announcement(key, addresses),
        now,
    )
}

#[test]
fn an_announcement_is_reported_once_and_again_when_it_changes() {
    let now = start();
    let mut node = Node::new(Config::builder());
    let key = Keypair::generate_ed25519();
    let peer = key.public().to_peer_id();
    let with_id = |text: &str| address(text).with(Protocol::P2p(peer));
    let discovered = |addresses: Vec<Multiaddr>| Output::Discovered {
        peer,
        addresses,
        topic: DEFAULT_TOPIC.to_owned(),
    };

    assert_eq!(
        say(&mut node.core, &key, &["/ip4/1.2.3.4/tcp/1"], now),
        Verdict::Accept
    );
    assert_eq!(
        node.drain(),
        [discovered(vec![with_id("/ip4/1.2.3.4/tcp/1")])]
    );
    let later = now + 10 * SECOND;
    assert_eq!(
        say(&mut node.core, &key, &["/ip4/1.2.3.4/tcp/1"], later),
        Verdict::Accept
    );
    assert_eq!(node.drain(), []);
    let moved = ["/ip4/1.2.3.4/udp/1/quic-v1", "/ip4/1.2.3.4/tcp/1"];
    assert_eq!(
        say(&mut node.core, &key, &moved, later + SECOND),
        Verdict::Accept
    );
    assert_eq!(node.drain(), [discovered(moved.map(with_id).to_vec())]);
    assert_eq!(node.core.addresses(&peer), moved.map(with_id));
}

#[test]
fn a_peer_expires_after_its_ttl_unless_it_is_heard_again() {
    let now = start();
    let mut node = Node::new(Config::builder());
    let key = Keypair::generate_ed25519();
    let peer = key.public().to_peer_id();
    say(&mut node.core, &key, &["/ip4/1.2.3.4/tcp/1"], now);
    say(
        &mut node.core,
        &key,
        &["/ip4/1.2.3.4/tcp/1"],
        now + 100 * SECOND,
    );
    node.drain();
    assert_eq!(node.core.poll_timeout(), Some(now + 400 * SECOND));
    node.core.handle_timeout(now + 399 * SECOND);
    assert_eq!(node.drain(), []);
    node.core.handle_timeout(now + 400 * SECOND);
    assert_eq!(node.drain(), [Output::Expired { peer }]);
    assert_eq!(node.core.peers().count(), 0);
    assert_eq!(node.core.poll_timeout(), None);
}

#[test]
fn a_key_that_is_not_the_authors_is_a_violation_and_teaches_nothing() {
    let now = start();
    let mut node = Node::new(Config::builder());
    let (victim, attacker) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let author = attacker.public().to_peer_id();
    let forged = announcement(&victim, &["/ip4/6.6.6.6/tcp/1"]);
    let verdict = node
        .core
        .on_message(DEFAULT_TOPIC, Some(author), &forged, now);
    assert_eq!(verdict, Verdict::Reject);
    let violation = ProtocolViolation::ForeignKey;
    assert_eq!(
        node.drain(),
        [Output::ProtocolViolation {
            peer: author,
            violation
        }]
    );
    assert_eq!(node.core.peers().count(), 0);
    let unsigned = node.core.on_message(DEFAULT_TOPIC, None, &forged, now);
    assert_eq!(unsigned, Verdict::Reject);
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
        let verdict = node
            .core
            .on_message(DEFAULT_TOPIC, Some(author), &bytes, now);
        assert_eq!(verdict, Verdict::Reject);
        assert_eq!(
            node.drain(),
            [Output::ProtocolViolation {
                peer: author,
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
    let other = format!("/ip4/1.2.3.4/tcp/1/p2p/{}", PeerId::random());
    let relayed = format!("/ip4/1.2.3.4/tcp/1/p2p/{}/p2p-circuit", PeerId::random());
    say(
        &mut node.core,
        &key,
        &[
            &other,
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/0.0.0.0/tcp/1",
            "/ip6/fe80::1/tcp/1",
            "/ip6/::1/tcp/1",
            &relayed,
            &relayed,
            &format!("/ip4/10.0.0.1/tcp/1/p2p/{peer}"),
            "/dns/example.org/tcp/443",
            "/ip4/1.2.3.4/tcp/4",
        ],
        now,
    );
    let expected = [
        relayed.as_str(),
        "/ip4/10.0.0.1/tcp/1",
        "/dns/example.org/tcp/443",
    ];
    assert_eq!(
        node.core.addresses(&peer),
        expected.map(|text| address(text).with(Protocol::P2p(peer)))
    );
}

#[test]
fn unreadable_addresses_do_not_spoil_the_readable_ones() {
    let now = start();
    let mut node = Node::new(Config::builder());
    let key = Keypair::generate_ed25519();
    let peer = key.public().to_peer_id();
    let mut bytes = announcement(&key, &["/ip4/1.2.3.4/tcp/1"]);
    // Field 2 with an unknown protocol code.
    bytes.extend([0x12, 3, 0xff, 0xff, 0x7f]);
    node.core.on_message(DEFAULT_TOPIC, Some(peer), &bytes, now);
    assert_eq!(node.core.addresses(&peer).len(), 1);
}

#[test]
fn announcements_wait_for_a_subscriber_and_then_come_every_interval() {
    let now = start();
    let mut node = Node::new(Config::builder());
    node.core
        .on_address(Origin::Listen, address("/ip4/1.2.3.4/tcp/1"), now);
    assert_eq!(node.published_until(now + 60 * SECOND), []);

    let joined = now + 60 * SECOND;
    let subscriber = PeerId::random();
    node.core.on_subscribed(DEFAULT_TOPIC, subscriber, joined);
    let times = node.published_until(joined + 60 * SECOND);
    assert!(times[0] - joined <= SPREAD);
    for pair in times.windows(2) {
        let gap = pair[1] - pair[0];
        assert!(gap >= 9 * SECOND && gap <= 11 * SECOND, "{gap:?}");
    }
    assert!((6..=7).contains(&times.len()), "{}", times.len());

    node.core.on_unsubscribed(DEFAULT_TOPIC, &subscriber);
    assert_eq!(node.published_until(joined + 300 * SECOND), []);
}

#[test]
fn a_newcomer_or_a_new_address_is_told_at_once_but_not_more_than_once_a_second() {
    let now = start();
    let mut node = Node::new(Config::builder());
    node.core
        .on_address(Origin::Listen, address("/ip4/1.2.3.4/tcp/1"), now);
    for _ in 0..100 {
        node.core
            .on_subscribed(DEFAULT_TOPIC, PeerId::random(), now);
    }
    let first = node.published_until(now + SECOND);
    assert_eq!(first.len(), 1);
    for port in 2..100 {
        node.core.on_address(
            Origin::External,
            address(&format!("/ip4/1.2.3.4/tcp/{port}")),
            now,
        );
    }
    let second = node.published_until(now + 5 * SECOND);
    assert_eq!(second.len(), 1);
    let gap = second[0] - first[0];
    assert!(gap >= MIN_GAP && gap <= MIN_GAP + SPREAD, "{gap:?}");
}

#[test]
fn a_listen_only_node_says_nothing() {
    let now = start();
    let mut node = Node::new(Config::builder().listen_only(true));
    node.core
        .on_address(Origin::Listen, address("/ip4/1.2.3.4/tcp/1"), now);
    node.core
        .on_subscribed(DEFAULT_TOPIC, PeerId::random(), now);
    assert_eq!(node.core.poll_timeout(), None);
    let key = Keypair::generate_ed25519();
    say(&mut node.core, &key, &["/ip4/1.2.3.4/tcp/1"], now);
    assert_eq!(node.core.peers().count(), 1);
}

#[test]
fn external_addresses_are_announced_first_and_relayed_ones_too() {
    let now = start();
    let mut node = Node::new(Config::builder());
    let relayed = format!("/ip4/5.5.5.5/tcp/1/p2p/{}/p2p-circuit", PeerId::random());
    for (origin, text) in [
        (Origin::Listen, "/ip4/10.0.0.1/tcp/1"),
        (Origin::Listen, relayed.as_str()),
        (Origin::External, relayed.as_str()),
        (Origin::External, "/ip4/1.2.3.4/tcp/1"),
        (Origin::Listen, "/ip4/127.0.0.1/tcp/1"),
    ] {
        node.core.on_address(origin, address(text), now);
    }
    node.core
        .on_subscribed(DEFAULT_TOPIC, PeerId::random(), now);
    let at = node.core.poll_timeout().unwrap();
    node.core.handle_timeout(at);
    let [Output::Publish { topic, data }] = &node.drain()[..] else {
        panic!()
    };
    assert_eq!(topic, DEFAULT_TOPIC);
    let read = Announcement::decode(data, node.id(), 8192).unwrap();
    let expected = [
        "/ip4/1.2.3.4/tcp/1",
        relayed.as_str(),
        "/ip4/10.0.0.1/tcp/1",
    ];
    let id = node.id();
    assert_eq!(
        read.addresses,
        expected.map(|text| address(text).with(Protocol::P2p(id)))
    );
    assert_eq!(read.public_key, node.key.public());

    node.core
        .on_address_gone(Origin::External, address(&relayed), now);
    assert_eq!(
        node.core.announced_addresses().len(),
        3,
        "still listened on"
    );
    node.core
        .on_address_gone(Origin::Listen, address(&relayed), now);
    assert_eq!(node.core.announced_addresses().len(), 2);
}

#[test]
fn a_crowd_of_invented_peers_is_bounded_and_does_not_push_out_the_living() {
    let now = start();
    let mut node = Node::new(Config::builder().max_peers(10));
    let honest = Keypair::generate_ed25519();
    say(&mut node.core, &honest, &["/ip4/1.2.3.4/tcp/1"], now);
    for n in 1..200 {
        let at = now + SECOND * n / 10;
        let key = Keypair::generate_ed25519();
        say(&mut node.core, &key, &["/ip4/6.6.6.6/tcp/1"], at);
        if n % 100 == 0 {
            say(&mut node.core, &honest, &["/ip4/1.2.3.4/tcp/1"], at);
        }
    }
    assert_eq!(node.core.peers().count(), 10);
    assert_eq!(node.core.by_age.len(), 10);
    let honest = honest.public().to_peer_id();
    assert!(node.core.peers().any(|peer| *peer == honest));

    // Three intervals of silence later the invented ones make room.
    let later = now + 45 * SECOND;
    let newcomer = Keypair::generate_ed25519();
    node.drain();
    say(&mut node.core, &newcomer, &["/ip4/1.2.3.4/tcp/1"], later);
    let outputs = node.drain();
    assert!(matches!(
        outputs[..],
        [Output::Expired { .. }, Output::Discovered { .. }]
    ));
}

#[test]
fn a_peer_that_talks_without_end_is_heard_once_a_second() {
    let now = start();
    let mut node = Node::new(Config::builder());
    let key = Keypair::generate_ed25519();
    let mut accepted = 0;
    for n in 0..10_000u32 {
        let text = format!("/ip4/1.2.3.4/tcp/{}", n % 60_000);
        let at = now + SECOND * n / 1000;
        accepted += u32::from(say(&mut node.core, &key, &[&text], at) == Verdict::Accept);
    }
    assert_eq!(accepted, 10);
    assert_eq!(node.drain().len(), 10);
}

#[test]
fn topics_are_apart_and_can_be_added_and_removed() {
    let now = start();
    let mut node = Node::new(Config::builder().topics(["a"]));
    node.core
        .on_address(Origin::Listen, address("/ip4/1.2.3.4/tcp/1"), now);
    assert_eq!(node.core.add_topic("b"), Ok(true));
    assert_eq!(node.core.add_topic("b"), Ok(false));
    assert_eq!(
        node.core.add_topic(""),
        Err(TopicError::Invalid(String::new()))
    );
    node.core.on_subscribed("b", PeerId::random(), now);
    node.core.handle_timeout(node.core.poll_timeout().unwrap());
    let outputs = node.drain();
    assert!(matches!(&outputs[..], [Output::Publish { topic, .. }] if topic == "b"));
    assert!(node.core.remove_topic("b"));
    assert_eq!(node.published_until(now + 60 * SECOND), []);
    for n in 0..99 {
        node.core.add_topic(&format!("t{n}")).unwrap();
    }
    assert_eq!(node.core.add_topic("one more"), Err(TopicError::TooMany));
}

/// A network of cores in which everybody hears everybody, with a little delay.
#[test]
fn two_hundred_peers_know_each_other_within_two_intervals_and_the_dead_fade() {
    const PEERS: usize = 200;
    let now = start();
    let mut nodes: Vec<_> = (0..PEERS)
        .map(|_| Node::new(Config::builder().peer_ttl(30 * SECOND)))
        .collect();
    let ids: Vec<_> = nodes.iter().map(Node::id).collect();
    for (n, node) in nodes.iter_mut().enumerate() {
        let text = format!("/ip4/10.0.{}.{}/tcp/1", n / 250, n % 250 + 1);
        node.core.on_address(Origin::Listen, address(&text), now);
        for id in ids.iter().filter(|id| **id != ids[n]) {
            node.core.on_subscribed(DEFAULT_TOPIC, *id, now);
        }
    }
    let mut run = |from: Instant, to: Instant, alive: std::ops::Range<usize>| {
        let mut now = from;
        while now <= to {
            let mut said = Vec::new();
            for n in alive.clone() {
                nodes[n].core.handle_timeout(now);
                for output in nodes[n].drain() {
                    if let Output::Publish { topic, data } = output {
                        said.push((n, topic, data));
                    }
                }
            }
            for (author, topic, data) in said {
                for n in alive.clone().filter(|n| *n != author) {
                    nodes[n]
                        .core
                        .on_message(&topic, Some(ids[author]), &data, now);
                }
            }
            now += SECOND / 4;
        }
        alive
            .map(|n| nodes[n].core.peers().count())
            .collect::<Vec<_>>()
    };
    let known = run(now, now + 20 * SECOND, 0..PEERS);
    assert!(known.iter().all(|known| *known == PEERS - 1), "{known:?}");
    // A quarter falls silent; one TTL and one interval later nobody remembers it.
    let known = run(now + 20 * SECOND, now + 62 * SECOND, 0..PEERS * 3 / 4);
    assert!(
        known.iter().all(|known| *known == PEERS * 3 / 4 - 1),
        "{known:?}"
    );
}

proptest! {
    #[test]
    fn nothing_that_a_peer_sends_breaks_anything(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        cut in 0usize..200,
    ) {
        let now = start();
        let mut node = Node::new(Config::builder());
        let key = Keypair::generate_ed25519();
        let author = key.public().to_peer_id();
        node.core.on_message(DEFAULT_TOPIC, Some(author), &bytes, now);
        // A real announcement with a damaged tail.
        let mut damaged = announcement(&key, &["/ip4/1.2.3.4/tcp/1"]);
        damaged.truncate(cut);
        damaged.extend(bytes);
        node.core.on_message(DEFAULT_TOPIC, Some(author), &damaged, now);
        prop_assert!(node.core.peers().count() <= 1);
        let ours = |address: &Multiaddr| address.iter().last() == Some(Protocol::P2p(author));
        prop_assert!(node.core.addresses(&author).iter().all(ours));
    }
}
