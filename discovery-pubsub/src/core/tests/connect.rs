//! Auto-connect.

use super::*;

fn auto(peers: usize, pending: usize) -> Node {
    let auto_connect = AutoConnect {
        peers,
        pending,
        ..AutoConnect::default()
    };
    Node::new(Config::builder().auto_connect(Some(auto_connect)))
}

/// Runs until `end` and returns who was dialled.
fn dialled(node: &mut Node, end: Instant) -> Vec<(Instant, PeerId)> {
    let mut dials = Vec::new();
    while let Some(at) = node.core.poll_timeout().filter(|at| *at <= end) {
        node.core.handle_timeout(at);
        for output in node.drain() {
            if let Output::Dial { peer, addresses } = output {
                assert!(!addresses.is_empty());
                dials.push((at, peer));
            }
        }
    }
    dials
}

fn announce(node: &mut Node, network: u8, count: u8, now: Instant) -> Vec<PeerId> {
    let peers = (0..count).map(|n| {
        let key = Keypair::generate_ed25519();
        node.say(
            &key,
            &[&format!("/ip4/{}.{network}.1.{network}/tcp/4001", n + 1)],
            now,
        );
        key.public().to_peer_id()
    });
    peers.collect()
}

#[test]
fn found_peers_are_dialled_up_to_the_limits() {
    let now = start();
    let mut node = auto(6, 2);
    announce(&mut node, 1, 20, now);
    let end = now + 3 * SECOND;
    let first = dialled(&mut node, end);
    assert_eq!(first.len(), 2);
    assert_ne!(first[0].0, first[1].0, "spread over time");
    node.core
        .on_connected(first[0].1, &address("/ip4/1.1.1.1/tcp/1"), end);
    node.core.on_dial_failed(first[1].1, end);
    assert_eq!(node.drain().len(), 2);
    for _ in 0..4 {
        node.core
            .on_connected(PeerId::random(), &address("/ip4/1.1.1.1/tcp/1"), end);
    }
    // Five are connected and two are dialled: enough.
    node.drain();
    assert_eq!(dialled(&mut node, end + 5 * SECOND), []);
}

#[test]
fn a_peer_that_cannot_be_reached_is_tried_ever_more_seldom() {
    let now = start();
    let mut node = auto(6, 2);
    let key = Keypair::generate_ed25519();
    let mut tries = Vec::new();
    for n in 0..360 {
        let at = now + 10 * SECOND * n;
        node.say(&key, &["/ip4/1.2.3.4/tcp/4001"], at);
        for (at, peer) in dialled(&mut node, at + 9 * SECOND) {
            tries.push((at - now).as_secs());
            node.core.on_dial_failed(peer, at);
        }
    }
    let gaps: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(tries.len() <= 10, "{tries:?}");
    assert!(
        gaps.windows(2)
            .take(6)
            .all(|pair| pair[1] + 25 >= 2 * pair[0]),
        "{gaps:?}"
    );
    assert!(gaps.iter().all(|gap| *gap <= 15 * 60 + 12), "{gaps:?}");
}

#[test]
fn a_peer_that_hangs_up_is_tried_ever_more_seldom_and_one_that_stays_is_forgiven() {
    let now = start();
    let mut node = auto(6, 2);
    let key = Keypair::generate_ed25519();
    let (mut tries, mut end) = (Vec::new(), None);
    for n in 0..360 {
        let at = now + 10 * SECOND * n;
        if let Some((peer, _)) = end.take_if(|(_, end)| *end <= at) {
            node.core.on_disconnected(&peer, at);
        }
        node.say(&key, &["/ip4/1.2.3.4/tcp/4001"], at);
        for (dialled_at, peer) in dialled(&mut node, at + 9 * SECOND) {
            tries.push((dialled_at - now).as_secs());
            node.core
                .on_connected(peer, &address("/ip4/1.2.3.4/tcp/4001"), dialled_at);
            // The sixth time it stays for two minutes, otherwise for a moment.
            let stays = if tries.len() == 6 {
                120 * SECOND
            } else {
                SECOND
            };
            end = Some((peer, dialled_at + stays));
        }
    }
    let gaps: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        gaps[..4].windows(2).all(|pair| pair[1] > pair[0] + 5),
        "{gaps:?}"
    );
    assert!(gaps[4] > 140, "{gaps:?}");
    // Two minutes, and then as after a first loss.
    assert!((120..=160).contains(&gaps[5]), "{gaps:?}");
    assert!(gaps[6] < 60, "{gaps:?}");
}

#[test]
fn one_network_does_not_get_all_connections() {
    let now = start();
    let mut node = auto(16, 8);
    for n in 1..=20 {
        let key = Keypair::generate_ed25519();
        node.say(&key, &[&format!("/ip4/6.6.6.{n}/tcp/4001")], now);
    }
    let others = announce(&mut node, 2, 3, now);
    let dials = dialled(&mut node, now + 5 * SECOND);
    assert_eq!(dials.len(), 5, "two of the crowd, three others");
    assert!(
        others
            .iter()
            .all(|peer| dials.iter().any(|(_, dialled)| dialled == peer))
    );
}

#[test]
fn who_expired_or_is_connected_is_not_dialled() {
    let now = start();
    let mut node = auto(6, 6);
    let peers = announce(&mut node, 1, 2, now);
    node.drain();
    node.core
        .on_connected(peers[0], &address("/ip4/1.1.1.1/tcp/1"), now);
    let dials = dialled(&mut node, now + 100 * SECOND);
    assert_eq!(dials.len(), 1);
    assert_eq!(dials[0].1, peers[1]);
    // Lost, but it does not announce itself any more.
    node.core.on_disconnected(&peers[0], now + 100 * SECOND);
    assert_eq!(dialled(&mut node, now + 1000 * SECOND), []);
}
