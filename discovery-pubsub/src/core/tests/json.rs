//! Among the seed's peers.

use super::*;

fn json() -> ConfigBuilder {
    Config::builder()
        .topics([DEFAULT_TOPIC, "ipfs-kit/discovery/ipfs-kit"])
        .services(Service::ALL)
        .json(true)
}

#[test]
fn two_nodes_that_speak_json_meet_on_the_seeds_topics() {
    let now = start();
    let mut speaker = Node::new(json());
    let peer = speaker.id();
    let topics = [
        "ipfs-kit/content-announce",
        "ipfs-kit/discovery/ipfs-kit",
        "ipfs-kit/relay-announce",
    ];
    assert!(topics.iter().all(|topic| speaker.core.has_topic(topic)));
    let ours = address("/ip4/1.2.3.4/tcp/4001");
    speaker.core.on_address(Origin::External, ours.clone(), now);
    let content = Content::new(
        "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"
            .parse()
            .unwrap(),
    );
    speaker.core.announce_content(content.clone(), now).unwrap();
    let relay = Some(Bytes::from_static(b"x"));
    speaker.core.set_relay(relay, now).unwrap();
    for topic in topics {
        speaker.core.on_subscribed(topic, PeerId::random(), now);
    }
    speaker.core.handle_timeout(now + SECOND);
    let mut listener = Node::new(json());
    for output in speaker.drain() {
        let Output::Publish { topic, data } = output else {
            panic!()
        };
        assert!(topics.contains(&topic.as_str()));
        let text = String::from_utf8(data.clone()).unwrap();
        assert!(text.starts_with('{'), "{text}");
        assert_eq!(listener.hear(&topic, peer, &data, now), Verdict::Accept);
        // Nobody else can say it.
        let other = PeerId::random();
        assert_eq!(
            listener.hear_from(other, &topic, other, &data, now),
            Verdict::Reject
        );
    }
    let addresses = vec![ours.with_p2p(peer).unwrap()];
    let outputs: Vec<_> = listener
        .drain()
        .into_iter()
        .filter(|output| !matches!(output, Output::ProtocolViolation { .. }))
        .collect();
    assert_eq!(
        outputs,
        [
            Output::Content {
                peer,
                items: vec![content]
            },
            Output::Discovered {
                peer,
                addresses: addresses.clone(),
                topic: topics[1].to_owned()
            },
            Output::RelayAddresses { peer, addresses },
        ]
    );
}

/// The original announces JSON on js-libp2p's topic.
#[test]
fn json_on_the_default_topic_is_read_if_asked_for() {
    let now = start();
    let peer = PeerId::random();
    let text = format!(
        r#"{{"type": "peer-discovery", "peer_id": "{peer}", "multiaddrs": ["/ip4/1.2.3.4/tcp/4001"],
            "protocols": [], "timestamp": 1700000000.0}}"#
    );
    let mut node = Node::new(json());
    let verdict = node.hear_from(peer, DEFAULT_TOPIC, peer, text.as_bytes(), now);
    assert_eq!(verdict, Verdict::Accept);
    assert_eq!(node.core.peers().count(), 1);
    // It speaks seldom, so it is given the whole time to live.
    assert_eq!(
        node.core.peers.next_expiry(),
        Some((now + 300 * SECOND, peer))
    );
    let mut strict = Node::new(Config::builder());
    let verdict = strict.hear_from(peer, DEFAULT_TOPIC, peer, text.as_bytes(), now);
    assert_eq!(verdict, Verdict::Reject);
}
