use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::ConfigBuilder;

struct Bench {
    core: Punches,
    now: Instant,
}

#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
fn bench(configure: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Bench {
    Bench {
        core: Punches::new(configure(Config::builder()).build().unwrap()),
        now: Instant::now(),
    }
}

impl Bench {
    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.core.poll_output()).collect()
    }

    fn outcomes(&mut self) -> Vec<Outcome> {
        let events = self.events().into_iter();
        events
            .filter_map(|event| match event {
                Event::Outcome(outcome) => Some(outcome),
                _ => None,
            })
            .collect()
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.core.handle_timeout(self.now);
    }
}

fn connection(id: usize) -> ConnectionId {
    ConnectionId::new_unchecked(id)
}

#[test]
fn the_first_direct_connection_is_the_outcome_with_its_time_and_transport() {
    for role in [Role::Initiator, Role::Responder] {
        let mut bench = bench(|config| config);
        let peer = PeerId::random();
        bench.core.on_relayed(connection(1), peer, role, bench.now);
        bench.pass(Duration::from_millis(360));
        bench
            .core
            .on_direct(connection(2), peer, Transport::Quic, bench.now);
        // QUIC may bring a second one.
        bench
            .core
            .on_direct(connection(3), peer, Transport::Quic, bench.now);
        assert_eq!(
            bench.events(),
            [
                Event::PunchStarted {
                    peer,
                    relayed: connection(1),
                    role
                },
                Event::Outcome(Outcome {
                    peer,
                    relayed: Some(connection(1)),
                    role,
                    result: Ok(connection(2)),
                    transport: Some(Transport::Quic),
                    elapsed: Duration::from_millis(360),
                    attempts: 0,
                    round_trip: None,
                    tried: Vec::new(),
                    peer_failure: None,
                    no_punch: None,
                    our_nat: NatType::Unknown,
                    peer_nat: NatType::Unknown,
                })
            ]
        );
        bench.pass(Duration::from_secs(3600));
        assert_eq!(bench.events(), []);
    }
}

#[test]
fn a_responder_that_hears_nothing_fails_after_the_timeout() {
    let mut bench = bench(|config| config);
    let peer = PeerId::random();
    bench
        .core
        .on_relayed(connection(1), peer, Role::Responder, bench.now);
    bench.pass(Duration::from_secs(34));
    assert_eq!(bench.outcomes(), []);
    assert_eq!(
        bench.core.poll_timeout(),
        Some(bench.now + Duration::from_secs(1))
    );
    bench.pass(Duration::from_secs(1));
    let outcomes = bench.outcomes();
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0].result, Err(PunchError::TimedOut));
    assert_eq!(outcomes[0].elapsed, Duration::from_secs(35));
    assert_eq!(bench.core.poll_timeout(), None);
}

#[test]
fn an_initiator_whose_dials_failed_knows_it_within_the_grace() {
    let mut bench = bench(|config| config);
    let peer = PeerId::random();
    bench
        .core
        .on_relayed(connection(1), peer, Role::Initiator, bench.now);
    bench
        .core
        .on_failed(peer, PunchError::DialsFailed, bench.now);
    assert_eq!(bench.outcomes(), [], "the peer's dial may still arrive");
    bench.pass(Duration::from_secs(1));
    let outcomes = bench.outcomes();
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0].result, Err(PunchError::DialsFailed));
}

#[test]
fn a_dial_of_the_peer_that_arrives_within_the_grace_is_a_success() {
    let mut bench = bench(|config| config);
    let peer = PeerId::random();
    bench
        .core
        .on_relayed(connection(1), peer, Role::Initiator, bench.now);
    bench
        .core
        .on_failed(peer, PunchError::DialsFailed, bench.now);
    bench.pass(Duration::from_millis(900));
    bench
        .core
        .on_direct(connection(2), peer, Transport::Tcp, bench.now);
    let outcomes = bench.outcomes();
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0].result, Ok(connection(2)));
}

#[test]
fn a_relayed_connection_that_closes_ends_its_attempt() {
    let mut bench = bench(|config| config);
    let peer = PeerId::random();
    bench
        .core
        .on_relayed(connection(1), peer, Role::Initiator, bench.now);
    bench.core.on_closed(connection(1), peer, bench.now);
    bench.core.on_closed(connection(1), peer, bench.now);
    let outcomes = bench.outcomes();
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0].result, Err(PunchError::RelayedConnectionClosed));
}

#[test]
fn a_relayed_connection_to_a_peer_with_a_direct_one_starts_nothing() {
    let mut bench = bench(|config| config);
    let peer = PeerId::random();
    bench
        .core
        .on_direct(connection(1), peer, Transport::Tcp, bench.now);
    bench
        .core
        .on_relayed(connection(2), peer, Role::Initiator, bench.now);
    assert_eq!(bench.events(), []);
    bench.core.on_closed(connection(1), peer, bench.now);
    bench
        .core
        .on_relayed(connection(3), peer, Role::Initiator, bench.now);
    assert_eq!(bench.events().len(), 1, "the direct one is gone");
}

#[test]
fn nothing_is_attempted_where_punching_is_switched_off() {
    let mut bench = bench(|config| config.enabled(false));
    let peer = PeerId::random();
    bench
        .core
        .on_relayed(connection(1), peer, Role::Initiator, bench.now);
    assert_eq!(bench.events(), []);
}

#[test]
fn more_attempts_than_allowed_end_the_oldest() {
    let mut bench = bench(|config| config.max_pending(2));
    for id in 0..3 {
        let peer = PeerId::random();
        bench
            .core
            .on_relayed(connection(id), peer, Role::Responder, bench.now);
        bench.pass(Duration::from_millis(1));
    }
    let outcomes = bench.outcomes();
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0].relayed, Some(connection(0)));
}

#[derive(Debug, Clone)]
enum Fact {
    Relayed(usize),
    Direct(usize),
    Closed(usize),
    Failed(usize),
    Pass(u64),
}

fn fact() -> impl Strategy<Value = Fact> {
    prop_oneof![
        (0..4_usize).prop_map(Fact::Relayed),
        (0..4_usize).prop_map(Fact::Direct),
        (0..60_usize).prop_map(Fact::Closed),
        (0..4_usize).prop_map(Fact::Failed),
        (0..20_000_u64).prop_map(Fact::Pass),
    ]
}

proptest! {
    #[test]
    fn every_attempt_has_exactly_one_outcome_and_leaves_nothing(
        facts in prop::collection::vec(fact(), 0..60),
    ) {
        let mut bench = bench(|config| config.max_pending(3));
        let peers: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
        let mut open: BTreeMap<usize, PeerId> = BTreeMap::new();
        let mut started = BTreeSet::new();
        let mut ended = BTreeSet::new();
        let mut next = 0;
        for fact in facts {
            match fact {
                Fact::Relayed(peer) => {
                    open.insert(next, peers[peer]);
                    bench.core.on_relayed(
                        connection(next), peers[peer], Role::Initiator, bench.now,
                    );
                    next += 1;
                }
                Fact::Direct(peer) => {
                    open.insert(next, peers[peer]);
                    bench.core.on_direct(
                        connection(next), peers[peer], Transport::Tcp, bench.now,
                    );
                    next += 1;
                }
                Fact::Closed(id) => {
                    if let Some(peer) = open.remove(&id) {
                        bench.core.on_closed(connection(id), peer, bench.now);
                    }
                }
                Fact::Failed(peer) => {
                    bench.core.on_failed(peers[peer], PunchError::ExchangeFailed, bench.now);
                }
                Fact::Pass(milliseconds) => bench.pass(Duration::from_millis(milliseconds)),
            }
            for event in bench.events() {
                match event {
                    Event::PunchStarted { relayed, .. } => {
                        prop_assert!(started.insert(relayed));
                    }
                    Event::Outcome(outcome) => {
                        let relayed = outcome.relayed.unwrap();
                        prop_assert!(started.contains(&relayed));
                        prop_assert!(ended.insert(relayed), "two outcomes");
                    }
                    Event::NatStatusChanged { .. } | Event::Reachability { .. } => {
                        prop_assert!(false);
                    }
                }
            }
            prop_assert!(bench.core.pending.len() <= 3);
        }
        while let Some((id, peer)) = open.pop_first() {
            bench.core.on_closed(connection(id), peer, bench.now);
        }
        for outcome in bench.outcomes() {
            prop_assert!(ended.insert(outcome.relayed.unwrap()), "two outcomes");
        }
        prop_assert_eq!(started, ended);
        prop_assert!(bench.core.pending.is_empty());
        prop_assert!(bench.core.direct.is_empty());
    }
}
