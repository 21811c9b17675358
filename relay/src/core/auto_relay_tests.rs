use std::collections::BTreeSet;

use super::*;
use crate::{StatusCode, client::ConfigBuilder};

const SEED: [u8; 32] = [3; 32];

/// An `AutoRelay` on virtual time, with the adapter's part played by the test.
struct Bench {
    core: AutoRelay,
    now: Instant,
    listeners: BTreeMap<PeerId, ListenerId>,
}

#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
fn bench(configure: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Bench {
    let config = configure(Config::builder()).build().unwrap();
    Bench {
        core: AutoRelay::new(config, SEED),
        now: Instant::now(),
        listeners: BTreeMap::new(),
    }
}

impl Bench {
    fn configured(&mut self) -> PeerId {
        let relay = PeerId::random();
        let address = RelayAddress {
            relay,
            transport: transport(1),
        };
        self.core.add_relay(address, self.now).unwrap();
        relay
    }

    fn candidate(&mut self) -> PeerId {
        let peer = PeerId::random();
        self.core.add_candidate(peer, [transport(1)], self.now);
        peer
    }

    /// Carries out what is due and returns the relays that were asked, and the rest.
    fn drain(&mut self) -> (Vec<PeerId>, Vec<Output>) {
        let (mut asked, mut rest) = (Vec::new(), Vec::new());
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Reserve(address) => {
                    let listener = ListenerId::next();
                    self.listeners.insert(address.relay, listener);
                    self.core.on_listening(address.relay, listener);
                    asked.push(address.relay);
                }
                other => rest.push(other),
            }
        }
        (asked, rest)
    }

    fn asked(&mut self) -> Vec<PeerId> {
        self.drain().0
    }

    fn accept(&mut self, relay: PeerId) {
        self.core.on_accepted(relay, None, self.now);
    }

    fn close(&mut self, relay: PeerId) {
        let listener = self.listeners[&relay];
        let reason = LossReason::ConnectionClosed;
        self.core.on_listener_closed(listener, reason, self.now);
    }

    /// Lets time pass up to the next deadline, if it is within `limit`.
    fn advance(&mut self, limit: Duration) -> bool {
        let end = self.now + limit;
        let Some(due) = self.core.poll_timeout().filter(|due| *due <= end) else {
            self.now = end;
            return false;
        };
        self.now = self.now.max(due);
        self.core.handle_timeout(self.now);
        true
    }

    fn held(&self) -> BTreeSet<PeerId> {
        self.core.held().map(|held| held.address.relay).collect()
    }
}

fn transport(port: u16) -> Multiaddr {
    format!("/ip4/203.0.113.100/tcp/{port}").parse().unwrap()
}

#[test]
fn every_configured_relay_is_reserved_however_many_are_wanted() {
    let mut bench = bench(|config| config.target_reservations(1));
    let relays: BTreeSet<PeerId> = (0..5).map(|_| bench.configured()).collect();
    let asked: BTreeSet<PeerId> = bench.asked().into_iter().collect();
    assert_eq!(asked, relays);
    for relay in &relays {
        bench.accept(*relay);
    }
    assert_eq!(bench.held(), relays);
}

#[test]
fn candidates_are_used_up_to_the_target_and_no_further() {
    let mut bench = bench(|config| config.target_reservations(2));
    let first = bench.candidate();
    let second = bench.candidate();
    bench.candidate();
    assert_eq!(bench.asked(), [first, second], "in the order they came");
}

#[test]
fn a_lost_reservation_is_replaced_by_a_candidate_at_once() {
    let mut bench = bench(|config| config.target_reservations(1));
    let first = bench.candidate();
    let second = bench.candidate();
    assert_eq!(bench.asked(), [first]);
    bench.accept(first);
    bench.close(first);
    let (asked, rest) = bench.drain();
    assert_eq!(asked, [second]);
    assert!(rest.contains(&Output::Lost {
        relay: first,
        reason: LossReason::ConnectionClosed
    }));
}

#[test]
fn a_configured_relay_is_asked_again_within_a_second_of_a_loss() {
    let mut bench = bench(|config| config);
    let relay = bench.configured();
    bench.asked();
    bench.accept(relay);
    bench.now += Duration::from_secs(3600);
    bench.close(relay);
    assert_eq!(bench.asked(), [], "not at once: it may be restarting");
    let lost = bench.now;
    assert!(bench.advance(Duration::from_secs(1)));
    assert_eq!(bench.asked(), [relay]);
    assert!(bench.now - lost >= Duration::from_millis(500));
}

#[test]
fn a_configured_relay_is_asked_for_ever_less_and_less_often() {
    let mut bench = bench(|config| config.target_reservations(0));
    let relay = bench.configured();
    let start = bench.now;
    let mut attempts = Vec::new();
    while bench.now < start + Duration::from_secs(24 * 60 * 60) {
        if bench.asked() == [relay] {
            attempts.push(bench.now);
            bench.close(relay);
        }
        bench.advance(Duration::from_secs(60 * 60));
    }
    let waits: Vec<Duration> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (failures, wait) in waits.iter().enumerate() {
        let full = Duration::from_secs(1 << failures.min(9)).min(Duration::from_secs(300));
        assert!(*wait >= full / 2 && *wait <= full, "{failures}: {wait:?}");
    }
    // At least one attempt every 5 min for the whole day.
    assert!(attempts.len() >= 288, "{}", attempts.len());
}

#[test]
fn a_relay_that_accepts_and_drops_in_a_loop_is_asked_less_and_less_often() {
    let mut bench = bench(|config| config.target_reservations(0));
    let relay = bench.configured();
    for _ in 0..12 {
        assert_eq!(bench.asked(), [relay]);
        bench.accept(relay);
        bench.close(relay);
        assert!(bench.advance(Duration::from_secs(300)));
    }
    assert_eq!(bench.asked(), [relay]);
    bench.accept(relay);
    bench.close(relay);
    bench.drain();
    let wait = bench.core.poll_timeout().unwrap() - bench.now;
    assert!(wait >= Duration::from_secs(150), "{wait:?}");
}

#[test]
fn a_long_reservation_clears_the_record() {
    let mut bench = bench(|config| config.target_reservations(0));
    let relay = bench.configured();
    for _ in 0..8 {
        bench.asked();
        bench.close(relay);
        bench.advance(Duration::from_secs(300));
    }
    assert_eq!(bench.asked(), [relay]);
    bench.accept(relay);
    bench.now += STABLE_AFTER;
    bench.close(relay);
    bench.drain();
    let wait = bench.core.poll_timeout().unwrap() - bench.now;
    assert!(wait <= Duration::from_secs(1), "{wait:?}");
}

#[test]
fn candidates_are_asked_for_while_some_are_missing_and_not_more_often_than_configured() {
    let mut bench = bench(|config| config.target_reservations(3));
    let relay = bench.configured();
    let (_, rest) = bench.drain();
    assert_eq!(rest, [Output::CandidatesWanted { missing: 2 }]);
    bench.accept(relay);
    bench.candidate();
    let (_, rest) = bench.drain();
    assert!(
        !rest
            .iter()
            .any(|o| matches!(o, Output::CandidatesWanted { .. }))
    );
    assert!(bench.advance(Duration::from_secs(30)));
    let (_, rest) = bench.drain();
    assert_eq!(rest, [Output::CandidatesWanted { missing: 1 }]);
    bench.candidate();
    bench.drain();
    assert!(
        !bench.advance(Duration::from_secs(3600)),
        "nothing is missing"
    );
}

#[test]
fn a_renewal_keeps_the_reservation_and_tells_its_new_limit() {
    let mut bench = bench(|config| config);
    let relay = bench.configured();
    bench.asked();
    bench.accept(relay);
    let since = bench.core.held().next().unwrap().since;
    bench.drain();
    bench.now += Duration::from_secs(2700);
    let limit = Some(CircuitLimit::REFERENCE);
    bench.core.on_accepted(relay, limit, bench.now);
    let (_, rest) = bench.drain();
    assert!(matches!(
        rest.first(),
        Some(Output::Accepted {
            renewal: true,
            limit: Some(_),
            ..
        })
    ));
    let held = bench.core.held().next().unwrap();
    assert_eq!((held.since, held.limit), (since, limit));
}

#[test]
fn another_address_of_the_same_relay_is_tried_after_a_failure() {
    let mut bench = bench(|config| config);
    let peer = PeerId::random();
    bench
        .core
        .add_candidate(peer, [transport(1), transport(2)], bench.now);
    let mut tried = Vec::new();
    for _ in 0..2 {
        while let Some(output) = bench.core.poll_output() {
            if let Output::Reserve(address) = output {
                let listener = ListenerId::next();
                bench.core.on_listening(peer, listener);
                bench.listeners.insert(peer, listener);
                tried.push(address.transport);
            }
        }
        bench.close(peer);
        bench.advance(Duration::from_secs(1));
    }
    assert_eq!(tried, [transport(1), transport(2)]);
}

#[test]
fn a_refusal_is_told_with_its_reason() {
    let mut bench = bench(|config| config);
    let relay = bench.configured();
    bench.asked();
    let reason = LossReason::Refused(StatusCode::ResourceLimitExceeded);
    bench
        .core
        .on_listener_closed(bench.listeners[&relay], reason, bench.now);
    let (_, rest) = bench.drain();
    assert!(rest.contains(&Output::Failed { relay, reason }));
}

#[test]
fn other_listeners_and_other_relays_change_nothing() {
    let mut bench = bench(|config| config);
    let relay = bench.configured();
    bench.asked();
    bench.accept(relay);
    bench.drain();
    bench
        .core
        .on_listener_closed(ListenerId::next(), LossReason::Dropped, bench.now);
    bench.accept(PeerId::random());
    assert_eq!(bench.drain(), (vec![], vec![]));
    assert_eq!(bench.held(), BTreeSet::from([relay]));
}

#[test]
fn candidates_and_their_addresses_are_bounded() {
    let mut bench = bench(|config| {
        config
            .target_reservations(2)
            .max_candidates(10)
            .max_addresses_per_relay(4)
    });
    for _ in 0..100 {
        let peer = PeerId::random();
        bench
            .core
            .add_candidate(peer, (0..50).map(transport), bench.now);
    }
    assert_eq!(bench.core.relays.len(), 10);
    assert!(bench.core.relays.values().all(|r| r.addresses.len() <= 4));
    // Those that fail make room for new ones.
    for failed in bench.asked() {
        bench.close(failed);
    }
    let newcomer = bench.candidate();
    assert!(bench.core.relays.contains_key(&newcomer));
    assert_eq!(bench.core.relays.len(), 10);
}

#[test]
fn a_withdrawn_candidate_is_not_asked_and_a_configured_relay_stays() {
    let mut bench = bench(|config| config.target_reservations(1));
    let relay = bench.configured();
    let candidate = bench.candidate();
    bench.asked();
    bench.core.remove_candidate(&candidate);
    bench.core.remove_candidate(&relay);
    bench.close(relay);
    assert_eq!(bench.asked(), []);
    assert!(bench.advance(Duration::from_secs(1)));
    assert_eq!(bench.asked(), [relay]);
}

#[test]
fn the_same_seed_makes_the_same_choices() {
    let run = |seed| {
        let mut waits = Vec::new();
        let mut bench = bench(|config| config.target_reservations(0));
        bench.core.random = StdRng::from_seed(seed);
        let relay = bench.configured();
        for _ in 0..10 {
            bench.asked();
            bench.close(relay);
            waits.push(bench.core.poll_timeout().unwrap() - bench.now);
            bench.advance(Duration::from_secs(300));
        }
        waits
    };
    assert_eq!(run([1; 32]), run([1; 32]));
    assert_ne!(run([1; 32]), run([2; 32]));
}

/// 30 relays that die and return; a node that wants 3 reservations.
#[test]
fn with_enough_relays_a_node_is_hardly_ever_unreachable() {
    let mut bench = bench(|config| config);
    let relays: Vec<PeerId> = (0..30).map(|_| bench.candidate()).collect();
    let mut random = StdRng::from_seed([9; 32]);
    let mut unreachable = Duration::ZERO;
    let mut dead: BTreeMap<PeerId, Instant> = BTreeMap::new();
    let end = bench.now + Duration::from_secs(3600);
    while bench.now < end {
        use rand::RngExt;
        let step = Duration::from_millis(500);
        for asked in bench.asked() {
            if dead.contains_key(&asked) {
                bench.close(asked);
            } else {
                bench.accept(asked);
            }
        }
        if bench.held().is_empty() {
            unreachable += step;
        }
        assert!(bench.held().len() <= 3);
        let now = bench.now;
        dead.retain(|_, until| *until > now);
        // Each minute one in ten dies, for a minute.
        for relay in &relays {
            if random.random_bool(0.1 / 120.0) {
                dead.insert(*relay, now + Duration::from_secs(60));
                if bench.held().contains(relay) {
                    bench.close(*relay);
                }
            }
        }
        bench.now += step;
        bench.core.handle_timeout(bench.now);
    }
    assert!(unreachable <= Duration::from_secs(36), "{unreachable:?}");
}
