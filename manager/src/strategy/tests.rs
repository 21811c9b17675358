//! Scenarios on virtual time. Where two nodes have to agree, both are simulated.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use web_time::Instant;

use super::*;

const TICK: Duration = Duration::from_millis(50);

/// A strategy with a clock, and what it asked for.
struct Node {
    id: PeerId,
    strategy: Strategy,
    now: Instant,
    outputs: Vec<Output>,
    next_connection: usize,
}

impl Node {
    fn new(id: PeerId) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now();
        Self {
            id,
            strategy: Strategy::new(id, Config::default(), [7; 32]),
            now,
            outputs: Vec::new(),
            next_connection: 1,
        }
    }

    fn drain(&mut self) -> Vec<Output> {
        while let Some(output) = self.strategy.poll_output() {
            self.outputs.push(output);
        }
        std::mem::take(&mut self.outputs)
    }

    fn dials(&mut self) -> Vec<(DialId, PeerId, Vec<Multiaddr>)> {
        self.drain()
            .into_iter()
            .filter_map(|output| match output {
                Output::Dial {
                    dial,
                    peer,
                    addresses,
                } => Some((dial, peer, addresses)),
                _ => None,
            })
            .collect()
    }

    fn closed(&mut self) -> Vec<ConnectionId> {
        self.drain()
            .into_iter()
            .filter_map(|output| match output {
                Output::Close { connection } => Some(connection),
                _ => None,
            })
            .collect()
    }

    fn connect(&mut self, peer: PeerId, path: Path, dial: Option<DialId>) -> ConnectionId {
        self.connect_over(peer, path, false, dial)
    }

    fn connect_over(
        &mut self,
        peer: PeerId,
        path: Path,
        quic: bool,
        dial: Option<DialId>,
    ) -> ConnectionId {
        let connection = ConnectionId::new_unchecked(self.next_connection);
        self.next_connection += 1;
        let established = Established {
            connection,
            peer,
            path,
            quic,
            dial,
        };
        self.strategy.on_established(established, self.now);
        connection
    }

    /// Lets time pass; `busy` says which connections carry something.
    fn pass(&mut self, time: Duration, busy: impl Fn(ConnectionId) -> bool) {
        let end = self.now + time;
        while self.now < end {
            self.now += TICK.min(end - self.now);
            for connection in self.strategy.contested() {
                self.strategy
                    .on_activity(connection, busy(connection), self.now);
            }
            self.strategy.handle_timeout(self.now);
            while let Some(output) = self.strategy.poll_output() {
                if let Output::Close { connection } = output {
                    self.outputs.push(Output::Close { connection });
                    self.strategy.on_closed(connection, self.now);
                } else {
                    self.outputs.push(output);
                }
            }
        }
    }
}

fn peer(n: u8) -> PeerId {
    let mut secret = [n; 32];
    libp2p::identity::Keypair::ed25519_from_bytes(&mut secret)
        .unwrap()
        .public()
        .to_peer_id()
}

/// Two ids, the smaller one first.
fn pair() -> (PeerId, PeerId) {
    let (a, b) = (peer(1), peer(2));
    (a.min(b), a.max(b))
}

fn direct() -> Multiaddr {
    "/ip4/192.0.2.1/udp/9100/quic-v1".parse().unwrap()
}

fn relayed(relay: PeerId) -> Multiaddr {
    format!("/ip4/198.51.100.1/tcp/9100/p2p/{relay}/p2p-circuit")
        .parse()
        .unwrap()
}

fn idle(_: ConnectionId) -> bool {
    false
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn direct_and_relayed_addresses_are_dialled_at_the_same_time() {
    let mut node = Node::new(peer(1));
    node.strategy.on_observed(node.now);
    node.strategy.want(
        peer(2),
        [direct(), relayed(peer(9))],
        Purpose::Session,
        node.now,
    );
    let dials = node.dials();
    assert_eq!(dials.len(), 2);
    assert_eq!(dials[0].2, [direct()]);
    assert_eq!(dials[1].2, [relayed(peer(9))]);
}

#[test]
fn webrtc_is_dialled_where_there_is_nothing_else() {
    let webrtc: Multiaddr = "/ip4/192.0.2.1/udp/9102/webrtc-direct".parse().unwrap();
    let mut node = Node::new(peer(1));
    node.strategy
        .want(peer(2), [webrtc.clone(), direct()], Purpose::Once, node.now);
    node.strategy
        .want(peer(3), [webrtc.clone()], Purpose::Once, node.now);
    let dials = node.dials();
    assert_eq!(dials[0].2, [direct()]);
    assert_eq!(dials[1].2, [webrtc]);
}

#[test]
fn a_lost_connection_is_replaced_before_it_is_closed() {
    let target = peer(2);
    let mut node = Node::new(peer(1));
    node.strategy.on_observed(node.now);
    let (now, purpose) = (node.now, Purpose::Session);
    node.strategy.want(target, [relayed(peer(9))], purpose, now);
    let dial = node.dials().pop().unwrap().0;
    let dead = node.connect(target, Path::Direct, Some(dial));
    node.drain();
    node.strategy.on_lost(dead, node.now);
    assert_eq!(node.strategy.best(&target), None);
    let dials = node.dials();
    assert_eq!(dials.len(), 1);
    let circuit = node.connect(target, Path::Relayed, Some(dials[0].0));
    node.drain();
    node.strategy.on_closed(dead, node.now);
    assert_eq!(node.dials().len(), 0);
    let best = node.strategy.best(&target).unwrap();
    assert_eq!((best.path, best.connection), (Path::Relayed, circuit));
}

#[test]
fn a_circuit_that_comes_after_the_direct_connection_lives_until_that_may_be_known_to_be_dead() {
    let mut node = Node::new(peer(1));
    let dead = node.connect(peer(2), Path::Direct, None);
    node.pass(secs(60), idle);
    let circuit = node.connect(peer(2), Path::Relayed, None);
    node.pass(Duration::from_millis(2500), idle);
    assert_eq!(node.closed(), []);
    node.strategy.on_lost(dead, node.now);
    node.pass(secs(10), idle);
    assert_eq!(node.closed(), []);
    let best = node.strategy.best(&peer(2)).unwrap();
    assert_eq!(best.connection, circuit);
    // The other way round it is closed soon.
    let mut node = Node::new(peer(1));
    let circuit = node.connect(peer(2), Path::Relayed, None);
    node.pass(secs(1), idle);
    node.connect(peer(2), Path::Direct, None);
    node.pass(secs(2), idle);
    assert_eq!(node.closed(), [circuit]);
}

#[test]
fn who_loses_one_connection_after_the_other_waits_longer_before_the_next() {
    let target = peer(2);
    let mut node = Node::new(peer(1));
    node.strategy.on_observed(node.now);
    let (now, purpose) = (node.now, Purpose::Session);
    node.strategy.want(target, [direct()], purpose, now);
    let mut waits = Vec::new();
    for _ in 0..8 {
        let mut waited = Duration::ZERO;
        let dial = loop {
            if let Some((dial, ..)) = node.dials().pop() {
                break dial;
            }
            node.pass(TICK, idle);
            waited += TICK;
        };
        waits.push(waited.as_millis());
        let connection = node.connect(target, Path::Direct, Some(dial));
        node.strategy.on_lost(connection, node.now);
        node.strategy.on_closed(connection, node.now);
    }
    assert_eq!(waits, [0, 0, 0, 500, 1000, 2000, 4000, 5000]);
}

#[test]
fn a_fresh_node_dials_the_relay_first_and_the_circuit_once_it_was_observed() {
    let (target, relay) = (peer(2), peer(9));
    let mut node = Node::new(peer(1));
    node.strategy
        .want(target, [relayed(relay)], Purpose::Session, node.now);
    let dials = node.dials();
    assert_eq!(dials.len(), 1);
    assert_eq!(dials[0].1, relay);

    node.connect(relay, Path::Direct, Some(dials[0].0));
    node.pass(Duration::from_millis(100), idle);
    assert_eq!(node.dials(), [], "the relay has not identified us yet");
    node.strategy.on_observed(node.now);
    let dials = node.dials();
    assert_eq!(dials.len(), 1);
    assert_eq!((dials[0].1, &dials[0].2), (target, &vec![relayed(relay)]));
}

#[test]
fn a_relay_that_never_identifies_us_delays_the_circuit_by_one_second() {
    let (target, relay) = (peer(2), peer(9));
    let mut node = Node::new(peer(1));
    node.strategy
        .want(target, [relayed(relay)], Purpose::Session, node.now);
    let dial = node.dials()[0].0;
    node.connect(relay, Path::Direct, Some(dial));
    node.pass(Duration::from_millis(950), idle);
    assert_eq!(node.dials(), []);
    node.pass(Duration::from_millis(50), idle);
    assert_eq!(node.dials()[0].1, target);
}

#[test]
fn a_direct_connection_that_comes_later_replaces_the_relayed_one() {
    let target = peer(2);
    let mut node = Node::new(peer(1));
    let relayed = node.connect(target, Path::Relayed, None);
    node.strategy.on_circuit(relayed, false);
    assert_eq!(node.strategy.best(&target).unwrap().path, Path::Relayed);
    let direct = node.connect(target, Path::Direct, None);
    assert_eq!(node.strategy.best(&target).unwrap().connection, direct);
    node.drain();

    // A transfer that is still on it keeps it, for a while.
    node.pass(secs(5), |connection| connection == relayed);
    assert_eq!(node.closed(), []);
    node.pass(secs(2), idle);
    assert_eq!(node.closed(), [relayed]);
    assert_eq!(node.strategy.best(&target).unwrap().connection, direct);
    assert_eq!(node.strategy.poll_timeout(), None, "nothing is left to do");
}

#[test]
fn a_relayed_connection_in_use_closes_30_s_after_the_direct_one_is_up() {
    let mut node = Node::new(peer(1));
    let relayed = node.connect(peer(2), Path::Relayed, None);
    node.connect(peer(2), Path::Direct, None);
    let busy = |connection| connection == relayed;
    node.pass(secs(29), busy);
    assert_eq!(node.closed(), []);
    node.pass(secs(1) + TICK * 5, busy);
    assert_eq!(node.closed(), [relayed]);
}

#[test]
fn a_relayed_connection_without_a_direct_one_stays() {
    let mut node = Node::new(peer(1));
    node.connect(peer(2), Path::Relayed, None);
    node.pass(secs(300), idle);
    assert_eq!(node.closed(), []);
}

#[test]
fn of_two_direct_connections_the_two_sides_never_close_different_ones() {
    // Both dialled: each side sees the two connections in its own order.
    let (small, great) = pair();
    let (mut a, mut b) = (Node::new(small), Node::new(great));
    let a_first = a.connect(great, Path::Direct, None);
    let a_second = a.connect(great, Path::Direct, None);
    let b_second = b.connect(small, Path::Direct, None);
    let b_first = b.connect(small, Path::Direct, None);

    a.pass(secs(20), idle);
    assert_eq!(
        a.closed(),
        [],
        "the smaller id leaves the choice to the other"
    );
    b.pass(secs(20), idle);
    let closed = b.closed();
    assert_eq!(closed.len(), 1);
    // The other side sees the same connection close, and has nothing left to decide.
    let same = if closed[0] == b_first {
        a_first
    } else {
        a_second
    };
    let _ = b_second;
    a.strategy.on_closed(same, a.now);
    a.pass(secs(60), idle);
    assert_eq!(a.closed(), []);
}

#[test]
fn duplicates_that_a_foreign_peer_leaves_open_are_closed_after_a_while() {
    let (small, great) = pair();
    let mut node = Node::new(small);
    node.connect(great, Path::Direct, None);
    node.connect(great, Path::Direct, None);
    node.pass(secs(31), idle);
    assert_eq!(node.closed().len(), 1);
}

#[test]
fn of_duplicates_the_busy_one_stays_and_else_the_quic_one() {
    let (small, great) = pair();
    let mut node = Node::new(great);
    let tcp = node.connect_over(small, Path::Direct, false, None);
    let quic = node.connect_over(small, Path::Direct, true, None);
    // The elder may be dead, which takes its time to be found out.
    node.pass(secs(2), |connection| connection == tcp);
    assert_eq!(node.closed(), []);
    node.pass(secs(2), |connection| connection == tcp);
    assert_eq!(node.closed(), [quic]);

    let mut node = Node::new(great);
    let tcp = node.connect_over(small, Path::Direct, false, None);
    node.connect_over(small, Path::Direct, true, None);
    node.pass(secs(4), idle);
    assert_eq!(node.closed(), [tcp]);
}

#[test]
fn the_limit_of_a_circuit_travels_with_the_connection() {
    let mut node = Node::new(peer(1));
    let limited = node.connect(peer(2), Path::Relayed, None);
    assert!(
        node.strategy.best(&peer(2)).unwrap().limited,
        "until the relay says otherwise"
    );
    let unlimited = node.connect(peer(2), Path::Relayed, None);
    node.strategy.on_circuit(limited, true);
    node.strategy.on_circuit(unlimited, false);
    let best = node.strategy.best(&peer(2)).unwrap();
    assert_eq!((best.connection, best.limited), (unlimited, false));
}

#[test]
fn a_peer_of_a_session_that_dies_is_dialled_again_until_it_is_back() {
    let target = peer(2);
    let mut node = Node::new(peer(1));
    node.strategy
        .want(target, [direct()], Purpose::Session, node.now);
    let dial = node.dials()[0].0;
    let connection = node.connect(target, Path::Direct, Some(dial));
    node.drain();

    node.strategy.on_closed(connection, node.now);
    let mut dials = node.dials();
    assert_eq!(dials.len(), 1, "dialled at once");
    let mut attempts = 0;
    let died = node.now;
    while node.now < died + secs(60) {
        for (dial, ..) in dials.drain(..) {
            attempts += 1;
            node.strategy.on_dial_failed(dial, node.now);
        }
        node.pass(TICK, idle);
        dials = node.dials();
    }
    // 0.5 + 1 + 2 + 4 s, then every 5 s, give or take the jitter.
    assert!(
        (11..=20).contains(&attempts),
        "{attempts} attempts in a minute"
    );

    node.strategy.release(target, Purpose::Session);
    for (dial, ..) in dials {
        node.strategy.on_dial_failed(dial, node.now);
    }
    node.pass(secs(60), idle);
    assert_eq!(node.dials(), [], "nobody wants it any more");
}

#[test]
fn one_attempt_ends_with_one_answer() {
    let mut node = Node::new(peer(1));
    node.strategy.on_observed(node.now);
    node.strategy.want(
        peer(2),
        [direct(), relayed(peer(9))],
        Purpose::Once,
        node.now,
    );
    let dials = node.dials();
    node.strategy.on_dial_failed(dials[0].0, node.now);
    assert_eq!(node.drain(), [], "the other dial may still succeed");
    node.strategy.on_dial_failed(dials[1].0, node.now);
    assert_eq!(node.drain(), [Output::Unreachable { peer: peer(2) }]);
    node.pass(secs(600), idle);
    assert_eq!(node.drain(), []);
}

#[test]
fn a_failed_punch_is_followed_by_direct_dials_once_a_minute() {
    let target = peer(2);
    let mut node = Node::new(peer(1));
    node.strategy.on_observed(node.now);
    node.strategy.want(
        target,
        [direct(), relayed(peer(9))],
        Purpose::Session,
        node.now,
    );
    let dials = node.dials();
    node.connect(target, Path::Relayed, Some(dials[1].0));
    node.strategy.on_dial_failed(dials[0].0, node.now);
    node.strategy.on_punch_failed(target, node.now);
    node.drain();
    node.pass(secs(61), idle);
    let dials = node.dials();
    assert_eq!(dials.len(), 1);
    assert_eq!(dials[0].2, [direct()]);
}

#[test]
fn more_targets_and_addresses_than_allowed_are_not_kept() {
    let mut node = Node::new(peer(1));
    let max = Config::default().max_targets;
    for _ in 0..max {
        assert!(
            node.strategy
                .want(PeerId::random(), [direct()], Purpose::Static, node.now)
        );
    }
    assert!(
        !node
            .strategy
            .want(peer(2), [direct()], Purpose::Static, node.now)
    );

    let mut node = Node::new(peer(1));
    let many = (1..=100).map(|port| format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap());
    node.strategy.want(peer(2), many, Purpose::Once, node.now);
    assert_eq!(node.dials()[0].2.len(), Config::default().max_addresses);
}

#[test]
fn the_node_never_dials_itself() {
    let mut node = Node::new(peer(1));
    let id = node.id;
    assert!(
        !node
            .strategy
            .want(id, [direct()], Purpose::Static, node.now)
    );
    assert_eq!(node.drain(), []);
}

#[test]
fn what_is_gone_is_forgotten() {
    let mut node = Node::new(peer(1));
    for _ in 0..100 {
        let stranger = PeerId::random();
        let a = node.connect(stranger, Path::Relayed, None);
        let b = node.connect(stranger, Path::Direct, None);
        node.strategy.on_closed(a, node.now);
        node.strategy.on_closed(b, node.now);
    }
    assert_eq!(node.strategy.remembered(), 0);
}
