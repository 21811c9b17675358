use std::collections::BTreeSet;

use libp2p_core::multiaddr::Protocol;
use libp2p_identity::Keypair;
use proptest::prelude::*;

use super::{topics::SPREAD, *};
use crate::{ConfigBuilder, DEFAULT_TOPIC, message::PeerAnnouncement};

mod admission;
mod connect;
#[cfg(feature = "json")]
mod json;
mod network;
mod offers;

const SECOND: Duration = Duration::from_secs(1);

/// A core that is driven by hand. What it hears comes from one neighbour.
struct Node {
    key: Keypair,
    core: Core,
    neighbour: PeerId,
}

impl Node {
    fn new(builder: ConfigBuilder) -> Self {
        Self::at(builder, start())
    }

    fn at(builder: ConfigBuilder, now: Instant) -> Self {
        let key = Keypair::generate_ed25519();
        let since_1970 = Duration::from_secs(1_700_000_000);
        let config = builder.build().unwrap();
        let core = Core::new(key.public(), config, [7; 32], now, since_1970);
        Self {
            key,
            core,
            neighbour: PeerId::random(),
        }
    }

    fn id(&self) -> PeerId {
        self.core.local
    }

    fn drain(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.core.poll_output()).collect()
    }

    fn hear(&mut self, topic: &str, author: PeerId, data: &[u8], now: Instant) -> Verdict {
        self.hear_from(self.neighbour, topic, author, data, now)
    }

    fn hear_from(
        &mut self,
        source: PeerId,
        topic: &str,
        author: PeerId,
        data: &[u8],
        now: Instant,
    ) -> Verdict {
        let received = Received {
            topic,
            source,
            author: Some(author),
            sequence: None,
            data,
        };
        self.core.on_message(&received, now)
    }

    /// Hears the peer of `key` announce itself.
    fn say(&mut self, key: &Keypair, addresses: &[&str], now: Instant) -> Verdict {
        let author = key.public().to_peer_id();
        self.hear(DEFAULT_TOPIC, author, &announcement(key, addresses), now)
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
    PeerAnnouncement {
        public_key: key.public(),
        addresses,
    }
    .encode()
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
        node.say(&key, &["/ip4/1.2.3.4/tcp/4001"], now),
        Verdict::Accept
    );
    assert_eq!(
        node.drain(),
        [discovered(vec![with_id("/ip4/1.2.3.4/tcp/4001")])]
    );
    let later = now + 10 * SECOND;
    assert_eq!(
        node.say(&key, &["/ip4/1.2.3.4/tcp/4001"], later),
        Verdict::Accept
    );
    assert_eq!(node.drain(), []);
    let moved = ["/ip4/1.2.3.4/udp/4001/quic-v1", "/ip4/1.2.3.4/tcp/4001"];
    assert_eq!(node.say(&key, &moved, later + SECOND), Verdict::Accept);
    assert_eq!(node.drain(), [discovered(moved.map(with_id).to_vec())]);
    assert_eq!(node.core.addresses(&peer), moved.map(with_id));
}

#[test]
fn unreadable_addresses_do_not_spoil_the_readable_ones() {
    let now = start();
    let mut node = Node::new(Config::builder());
    let key = Keypair::generate_ed25519();
    let peer = key.public().to_peer_id();
    let mut bytes = announcement(&key, &["/ip4/1.2.3.4/tcp/4001"]);
    // Field 2 with an unknown protocol code.
    bytes.extend([0x12, 3, 0xff, 0xff, 0x7f]);
    node.hear(DEFAULT_TOPIC, peer, &bytes, now);
    assert_eq!(node.core.addresses(&peer).len(), 1);
}

#[test]
fn announcements_wait_for_a_subscriber_and_then_come_every_interval() {
    let now = start();
    let mut node = Node::new(Config::builder());
    node.core
        .on_address(Origin::Listen, address("/ip4/1.2.3.4/tcp/4001"), now);
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
        .on_address(Origin::Listen, address("/ip4/1.2.3.4/tcp/4001"), now);
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
        .on_address(Origin::Listen, address("/ip4/1.2.3.4/tcp/4001"), now);
    node.core
        .on_subscribed(DEFAULT_TOPIC, PeerId::random(), now);
    assert_eq!(node.core.poll_timeout(), None);
    let key = Keypair::generate_ed25519();
    node.say(&key, &["/ip4/1.2.3.4/tcp/4001"], now);
    assert_eq!(node.core.peers().count(), 1);
}

#[test]
fn external_addresses_are_announced_first_and_relayed_ones_too() {
    let now = start();
    let mut node = Node::new(Config::builder());
    let relayed = format!("/ip4/5.5.5.5/tcp/4001/p2p/{}/p2p-circuit", PeerId::random());
    for (origin, text) in [
        (Origin::Listen, "/ip4/10.0.0.1/tcp/4001"),
        (Origin::Listen, relayed.as_str()),
        (Origin::External, relayed.as_str()),
        (Origin::External, "/ip4/1.2.3.4/tcp/4001"),
        (Origin::Listen, "/ip4/127.0.0.1/tcp/4001"),
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
    let read = PeerAnnouncement::decode(data, node.id(), 8192).unwrap();
    let expected = [
        "/ip4/1.2.3.4/tcp/4001",
        relayed.as_str(),
        "/ip4/10.0.0.1/tcp/4001",
    ];
    let id = node.id();
    assert_eq!(
        read.addresses,
        expected.map(|text| address(text).with(Protocol::P2p(id)))
    );
    assert_eq!(read.public_key, node.key.public());

    node.core
        .on_address_gone(Origin::External, address(&relayed), now);
    assert_eq!(node.core.own.addresses(16).len(), 3, "still listened on");
    node.core
        .on_address_gone(Origin::Listen, address(&relayed), now);
    assert_eq!(node.core.own.addresses(16).len(), 2);
}

#[test]
fn a_peer_that_talks_without_end_is_heard_twice_a_second() {
    let now = start();
    let mut node = Node::new(Config::builder());
    let key = Keypair::generate_ed25519();
    let mut accepted = 0;
    for n in 0..10_000u32 {
        let text = format!("/ip4/1.2.3.4/tcp/{}", 1024 + n % 60_000);
        let at = now + SECOND * n / 1000;
        accepted += u32::from(node.say(&key, &[&text], at) == Verdict::Accept);
    }
    assert_eq!(accepted, 20);
    assert_eq!(node.drain().len(), 20);
}

/// Announcements that are made a second apart arrive now sooner, now later.
#[test]
fn what_is_new_is_heard_although_the_message_overtook_some_delay() {
    let now = start();
    let mut speaker = Node::new(Config::builder().announce_interval(SECOND));
    let peer = speaker.id();
    let address = |port: u16| address(&format!("/ip4/1.2.3.4/tcp/{port}"));
    speaker
        .core
        .on_address(Origin::External, address(4001), now);
    speaker
        .core
        .on_subscribed(DEFAULT_TOPIC, PeerId::random(), now);
    let mut listener = Node::new(Config::builder());
    let mut late = true;
    for second in 0..60u16 {
        let at = speaker.core.poll_timeout().unwrap();
        speaker
            .core
            .on_address(Origin::External, address(5000 + second), at);
        speaker.core.handle_timeout(at);
        for output in speaker.drain() {
            let Output::Publish { topic, data } = output else {
                panic!()
            };
            let delay = Duration::from_millis(if late { 350 } else { 20 });
            late = !late;
            let verdict = listener.hear(&topic, peer, &data, at + delay);
            assert_eq!(verdict, Verdict::Accept, "announcement {second}");
        }
    }
}

#[test]
fn topics_are_apart_and_can_be_added_and_removed() {
    let now = start();
    let mut node = Node::new(Config::builder().topics(["a"]));
    node.core
        .on_address(Origin::Listen, address("/ip4/1.2.3.4/tcp/4001"), now);
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
    assert!(!node.core.remove_topic("b"));
    assert_eq!(node.published_until(now + 60 * SECOND), []);
    for n in 0..99 {
        node.core.add_topic(&format!("t{n}")).unwrap();
    }
    assert_eq!(node.core.add_topic("one more"), Err(TopicError::TooMany));
}

#[test]
fn a_peer_expires_when_the_announcement_after_next_is_due() {
    let now = start();
    let mut node = Node::new(Config::builder());
    let key = Keypair::generate_ed25519();
    let peer = key.public().to_peer_id();
    for n in 0..4 {
        node.say(&key, &["/ip4/1.2.3.4/tcp/4001"], now + 10 * SECOND * n);
    }
    node.drain();
    let gone = now + 30 * SECOND + Duration::from_millis(17_500);
    assert_eq!(node.core.poll_timeout(), Some(gone));
    node.core.handle_timeout(gone - Duration::from_millis(1));
    assert_eq!(node.drain(), []);
    node.core.handle_timeout(gone);
    assert_eq!(node.drain(), [Output::Expired { peer }]);
    assert_eq!(node.core.peers().count(), 0);
    assert_eq!(node.core.poll_timeout(), None);
}

#[test]
fn a_slow_announcer_is_given_the_time_it_takes_but_no_more_than_the_ttl() {
    let now = start();
    let mut node = Node::new(Config::builder());
    let key = Keypair::generate_ed25519();
    let peer = key.public().to_peer_id();
    let mut seen = Vec::new();
    for n in 0..6 {
        let at = now + 60 * SECOND * n;
        node.core.handle_timeout(at);
        seen.push(node.core.peers().count());
        node.say(&key, &["/ip4/1.2.3.4/tcp/4001"], at);
    }
    // Unknown at first, then thought to be gone once; its pace is remembered beyond that.
    assert_eq!(seen, [0, 0, 1, 1, 1, 1]);
    let mut ttl_only = Node::new(Config::builder().stale_after_percent(u32::MAX));
    ttl_only.say(&key, &["/ip4/1.2.3.4/tcp/4001"], now);
    assert_eq!(ttl_only.core.poll_timeout(), Some(now + 300 * SECOND));
    ttl_only.core.handle_timeout(now + 300 * SECOND);
    let outputs = ttl_only.drain();
    assert_eq!(outputs.last(), Some(&Output::Expired { peer }));
}

#[test]
fn who_says_goodbye_is_gone_at_once_and_says_it_on_every_topic() {
    let now = start();
    let mut leaver = Node::new(Config::builder().topics(["a", "b", "silent"]));
    leaver
        .core
        .on_address(Origin::Listen, address("/ip4/1.2.3.4/tcp/4001"), now);
    for topic in ["a", "b"] {
        leaver.core.on_subscribed(topic, PeerId::random(), now);
    }
    let mut node = Node::new(Config::builder().topics(["a", "b", "silent"]));
    let peer = leaver.id();
    let deliver = |node: &mut Node, leaver: &mut Node, now| {
        let mut topics = Vec::new();
        for output in leaver.drain() {
            if let Output::Publish { topic, data } = output {
                let verdict = node.hear(&topic, peer, &data, now);
                topics.push((topic, verdict));
            }
        }
        topics
    };
    leaver.core.handle_timeout(now + SECOND);
    deliver(&mut node, &mut leaver, now + SECOND);
    assert_eq!(node.core.peers().count(), 1);
    node.drain();
    // Sooner than another announcement would be heard.
    let later = now + SECOND + SECOND / 10;
    leaver.core.shutdown(later);
    // The second one finds nothing left to end; the first is passed on.
    assert_eq!(
        deliver(&mut node, &mut leaver, later),
        [
            ("a".to_owned(), Verdict::Accept),
            ("b".to_owned(), Verdict::Ignore)
        ]
    );
    assert_eq!(node.drain(), [Output::Expired { peer }]);
    assert_eq!(leaver.published_until(later + 60 * SECOND), []);
    leaver.core.shutdown(later);
    assert_eq!(leaver.drain(), []);
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
        node.hear(DEFAULT_TOPIC, author, &bytes, now);
        // A real announcement with a damaged tail.
        let mut damaged = announcement(&key, &["/ip4/1.2.3.4/tcp/4001"]);
        damaged.truncate(cut);
        damaged.extend(bytes);
        node.hear(DEFAULT_TOPIC, author, &damaged, now);
        prop_assert!(node.core.peers().count() <= 1);
        let ours = |address: &Multiaddr| address.iter().last() == Some(Protocol::P2p(author));
        prop_assert!(node.core.addresses(&author).iter().all(ours));
    }
}
