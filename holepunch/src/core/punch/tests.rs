use std::time::Duration;

use proptest::prelude::*;

use super::{simulation::*, *};
use crate::{ConfigBuilder, NoPunch, core::nat::report::NatType};

const KINDS: [NatType; 5] = [
    NatType::Public,
    NatType::FullCone,
    NatType::RestrictedCone,
    NatType::PortRestrictedCone,
    NatType::Symmetric,
];

/// Seeded runs of one cell.
const RUNS: u64 = if cfg!(debug_assertions) { 6 } else { 1000 };

/// RFC 4787: two mappings that depend on the destination, or one and a filter that looks at ports.
fn can_be_punched(one: NatType, other: NatType) -> bool {
    use NatType::{PortRestrictedCone, Symmetric};
    !matches!(
        (one, other),
        (Symmetric, Symmetric | PortRestrictedCone) | (PortRestrictedCone, Symmetric)
    )
}

fn successes(scenario: &Scenario, runs: u64) -> (u64, Report) {
    let reports = (0..runs).map(|seed| run(scenario, seed));
    reports.fold((0, Report::default()), |(successes, _), report| {
        (successes + u64::from(report.is_success()), report)
    })
}

fn every_cell(check: impl Fn(NatType, NatType, Transport, Scenario)) {
    for responder in KINDS {
        for initiator in KINDS {
            for transport in [Transport::Quic, Transport::Tcp] {
                let scenario = Scenario::new(responder, initiator, transport);
                check(responder, initiator, transport, scenario);
            }
        }
    }
}

#[test]
fn every_pair_that_can_be_punched_is_punched_at_once_and_one_connection_is_left() {
    for classified in [true, false] {
        every_cell(|responder, initiator, transport, scenario| {
            let scenario = Scenario {
                classified,
                ..scenario
            };
            let what = format!("{responder} to {initiator} over {transport:?}, {classified}");
            for seed in 0..RUNS {
                let report = run(&scenario, seed);
                assert_eq!(
                    report.is_success(),
                    can_be_punched(responder, initiator),
                    "{what}: {report:?}"
                );
                if report.is_success() {
                    assert_eq!(report.connections, 1, "{what}: {report:?}");
                    for outcome in &report.outcomes {
                        let (at, _) = outcome.as_ref().unwrap();
                        assert!(*at < Duration::from_secs(1), "{what}: {report:?}");
                    }
                }
            }
        });
    }
}

#[test]
fn circuits_that_crossed_are_one_punch() {
    for early in [true, false] {
        every_cell(|responder, initiator, transport, scenario| {
            if !can_be_punched(responder, initiator) {
                return;
            }
            // From both at once to the second in the midst of the dials.
            for after in (0..400).step_by(20) {
                let scenario = Scenario {
                    early,
                    crossing: Some(Duration::from_millis(after)),
                    ..scenario.clone()
                };
                let what = format!("{responder} to {initiator} over {transport:?}, {after} ms");
                for seed in 0..2 {
                    let report = run(&scenario, seed);
                    assert!(report.is_success(), "{what}, {early}, {seed}: {report:?}");
                    assert_eq!(report.connections, 1, "{what}: {report:?}");
                    for outcome in &report.outcomes {
                        let (at, _) = outcome.as_ref().unwrap();
                        assert!(*at < Duration::from_secs(1), "{what}, {early}: {report:?}");
                    }
                }
            }
        });
    }
}

#[test]
fn nats_that_change_the_port_are_punched_like_others() {
    every_cell(|responder, initiator, _, mut scenario| {
        if !can_be_punched(responder, initiator) {
            return;
        }
        for nat in &mut scenario.nats {
            nat.shifts = true;
        }
        let (count, report) = successes(&scenario, RUNS);
        assert_eq!(count, RUNS, "{responder} to {initiator}: {report:?}");
    });
}

#[test]
fn what_cannot_be_punched_is_not_dialled_and_both_know_why() {
    let scenario = Scenario::new(NatType::Symmetric, NatType::Symmetric, Transport::Quic);
    let report = run(&scenario, 1);
    assert_eq!(report.dials, [0, 0]);
    for outcome in report.told {
        let outcome = outcome.unwrap();
        assert_eq!(outcome.no_punch, Some(NoPunch::BothSymmetric));
        let nats = (outcome.our_nat, outcome.peer_nat);
        assert_eq!(nats, (NatType::Symmetric, NatType::Symmetric));
    }
    for outcome in report.outcomes {
        let (at, result) = outcome.unwrap();
        assert_eq!(result, Err(PunchError::Impossible));
        assert!(at < Duration::from_secs(1));
    }
}

#[test]
fn a_port_that_one_gateway_maps_takes_the_place_of_a_punch() {
    use NatType::{PortRestrictedCone, Symmetric};
    for transport in [Transport::Quic, Transport::Tcp] {
        for (responder, initiator, mapped) in [
            (Symmetric, Symmetric, 0),
            (Symmetric, Symmetric, 1),
            (Symmetric, PortRestrictedCone, 0),
            (Symmetric, PortRestrictedCone, 1),
            (PortRestrictedCone, Symmetric, 0),
            (PortRestrictedCone, Symmetric, 1),
        ] {
            let mut scenario = Scenario::new(responder, initiator, transport);
            scenario.nats[mapped].maps = true;
            for seed in 0..RUNS {
                let report = run(&scenario, seed);
                let what = format!("{responder} to {initiator} over {transport:?}, {mapped}");
                assert!(report.is_success(), "{what}: {report:?}");
                assert_eq!(report.connections, 1, "{what}: {report:?}");
                for outcome in &report.outcomes {
                    let (at, _) = outcome.as_ref().unwrap();
                    assert!(*at < Duration::from_secs(1), "{what}: {report:?}");
                }
            }
        }
    }
}

#[test]
fn a_failed_punch_is_known_to_both_sides_within_six_seconds() {
    for transport in [Transport::Quic, Transport::Tcp] {
        let scenario = Scenario {
            classified: false,
            ..Scenario::new(NatType::Symmetric, NatType::PortRestrictedCone, transport)
        };
        let report = run(&scenario, 7);
        for outcome in report.outcomes {
            let (at, result) = outcome.unwrap();
            assert_eq!(result, Err(PunchError::DialsFailed));
            assert!(at <= Duration::from_secs(6), "{at:?}");
        }
        assert!(report.dials.iter().all(|dials| *dials >= 1));
    }
}

#[test]
fn each_side_hears_what_the_other_stands_behind() {
    let (ours, theirs) = (NatType::PortRestrictedCone, NatType::RestrictedCone);
    let report = run(&Scenario::new(ours, theirs, Transport::Quic), 1);
    let nats = report.told.map(|outcome| {
        let outcome = outcome.unwrap();
        (outcome.our_nat, outcome.peer_nat)
    });
    assert_eq!(nats, [(ours, theirs), (theirs, ours)]);
}

#[test]
fn a_peer_that_gives_up_says_why() {
    let mut bench = bench(|config| config.early(false));
    let peer = PeerId::random();
    bench.relayed(1, peer, Role::Responder);
    let addresses = ["/ip4/203.0.113.20/udp/9100/quic-v1".to_owned()];
    bench.opened(1, 0, &connect(addresses));
    bench.synchronised(1, 0);
    assert_eq!(dials(&bench.outputs()), 1);
    let farewell = Message {
        kind: Kind::Sync,
        addresses: Vec::new(),
        extras: Some(Extras {
            failure: Some(PunchError::DialsFailed),
            ..Extras::default()
        }),
    };
    bench.opened(1, 1, &farewell);
    let outcome = bench.core.history().next().unwrap();
    assert_eq!(outcome.result, Err(PunchError::DialsFailed));
    assert_eq!(outcome.peer_failure, Some(PunchError::DialsFailed));
    assert_eq!(outcome.elapsed, Duration::ZERO, "no wait for our own dials");
}

/// Issue 6: ≥ 98 % at 3 %, ≥ 95 % at 8 % on every link, of which two lie between the nodes.
#[test]
fn lost_packets_cost_time_and_seldom_the_punch() {
    for (loss, share) in [(0.03, 0.98), (0.08, 0.95)] {
        for transport in [Transport::Quic, Transport::Tcp] {
            let (kind, runs) = (NatType::PortRestrictedCone, 200.max(RUNS));
            let scenario = Scenario {
                loss: 1.0 - (1.0_f64 - loss).powi(2),
                ..Scenario::new(kind, kind, transport)
            };
            let (count, _) = successes(&scenario, runs);
            assert!(
                count as f64 >= share * runs as f64,
                "{count} of {runs} at {loss} over {transport:?}"
            );
        }
    }
}

/// NATs that drop what nobody asked for, as those of homes do.
#[test]
fn a_node_that_is_late_is_waited_for() {
    for milliseconds in [10, 50, 100, 300] {
        for side in [0, 1] {
            for transport in [Transport::Quic, Transport::Tcp] {
                let kind = NatType::PortRestrictedCone;
                let mut scenario = Scenario::new(kind, kind, transport);
                scenario.late[side] = Duration::from_millis(milliseconds);
                let (count, report) = successes(&scenario, RUNS);
                assert_eq!(count, RUNS, "{milliseconds} ms, {transport:?}: {report:?}");
            }
        }
    }
}

/// Behind NATs that answer what nobody asked for, so that what comes too early spoils the ports.
fn answering(transport: Transport, late: (usize, u64)) -> Scenario {
    let kind = NatType::PortRestrictedCone;
    let mut scenario = Scenario::new(kind, kind, transport);
    for nat in &mut scenario.nats {
        nat.answers = true;
    }
    scenario.late[late.0] = Duration::from_millis(late.1);
    scenario
}

/// Issue 6: ≥ 95 % within three attempts.
#[test]
fn ports_that_came_too_early_spoiled_are_replaced_by_fresh_ones() {
    for transport in [Transport::Quic, Transport::Tcp] {
        for side in [0, 1] {
            for milliseconds in [0, 10, 20, 30, 50, 100, 200, 300] {
                // The side that is late is the one whose ports are spoiled.
                let mut other_is_stock = [true; 2];
                other_is_stock[side] = false;
                for (stock, classified) in [
                    ([false, false], true),
                    ([false, false], false),
                    (other_is_stock, false),
                ] {
                    let scenario = Scenario {
                        stock,
                        classified,
                        ..answering(transport, (side, milliseconds))
                    };
                    let (count, report) = successes(&scenario, RUNS);
                    let what =
                        format!("{transport:?}, {side} late by {milliseconds} ms, {stock:?}");
                    assert!(
                        count as f64 >= 0.95 * RUNS as f64,
                        "{count} of {RUNS}: {what}: {report:?}"
                    );
                    assert_eq!(report.ports_left, 0, "{what}");
                    assert!(report.ports.iter().all(|ports| *ports <= 2), "{what}");
                }
            }
        }
    }
}

/// What [`Behaviour::with_fresh_ports`](crate::Behaviour::with_fresh_ports) is for.
#[test]
fn without_fresh_ports_no_later_attempt_gets_through_spoiled_ones() {
    for transport in [Transport::Quic, Transport::Tcp] {
        let scenario = Scenario {
            fresh: [false; 2],
            ..answering(transport, (0, 200))
        };
        let (count, report) = successes(&scenario, RUNS);
        assert_eq!(count, 0, "{transport:?}: {report:?}");
    }
}

#[test]
fn fresh_ports_of_the_side_that_is_spoiled_are_enough() {
    for transport in [Transport::Quic, Transport::Tcp] {
        for side in [0, 1] {
            let mut fresh = [false; 2];
            fresh[side] = true;
            let scenario = Scenario {
                fresh,
                ..answering(transport, (side, 200))
            };
            let (count, report) = successes(&scenario, RUNS);
            assert_eq!(count, RUNS, "{transport:?}, {side}: {report:?}");
        }
    }
}

#[test]
fn a_first_attempt_that_succeeds_opens_no_port() {
    every_cell(|responder, initiator, transport, scenario| {
        if can_be_punched(responder, initiator) {
            let report = run(&scenario, 1);
            let what = format!("{responder} to {initiator} over {transport:?}");
            assert_eq!(report.ports, [0, 0], "{what}");
        }
    });
}

/// Issue 6: ≥ 95 %.
#[test]
fn ports_that_count_up_are_predicted() {
    for transport in [Transport::Quic, Transport::Tcp] {
        for symmetric in [0, 1] {
            let (symmetric_kind, other) = (NatType::Symmetric, NatType::PortRestrictedCone);
            let mut scenario = match symmetric {
                0 => Scenario::new(symmetric_kind, other, transport),
                _ => Scenario::new(other, symmetric_kind, transport),
            };
            scenario.nats[symmetric].counts = true;
            let (count, report) = successes(&scenario, RUNS);
            assert!(
                count as f64 >= 0.95 * RUNS as f64,
                "{count} of {RUNS}: {transport:?}, {symmetric}: {report:?}"
            );
        }
    }
}

#[test]
fn between_our_own_nodes_the_early_exchange_saves_a_round_trip() {
    let kind = NatType::PortRestrictedCone;
    let early = Scenario::new(kind, kind, Transport::Quic);
    let late = Scenario {
        early: false,
        ..early.clone()
    };
    let time = |scenario: &Scenario| {
        let report = run(scenario, 3);
        assert!(report.is_success());
        report.outcomes[0].as_ref().unwrap().0
    };
    assert_eq!(
        time(&early),
        Duration::from_millis(200),
        "4 round trips of 50 ms"
    );
    assert_eq!(time(&late), Duration::from_millis(250), "5 round trips");
}

struct Bench {
    core: Punches,
    now: Instant,
}

#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
fn bench(configure: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Bench {
    let config = configure(Config::builder()).build().unwrap();
    let mut bench = Bench {
        core: Punches::new(PeerId::random(), config),
        now: Instant::now(),
    };
    let own = Own {
        candidates: vec!["/ip4/203.0.113.10/udp/9100/quic-v1".parse().unwrap()],
        ..Own::default()
    };
    bench.core.on_own(own, bench.now);
    bench
}

impl Bench {
    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.core.poll_output()).collect()
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.core.handle_timeout(self.now);
    }

    fn relayed(&mut self, id: usize, peer: PeerId, role: Role) {
        self.core.on_relayed(connection(id), peer, role, self.now);
    }

    fn opened(&mut self, id: usize, number: u32, message: &Message) {
        let exchange = Exchange {
            relayed: connection(id),
            opener: Opener::Peer,
            number,
        };
        self.core.on_connect(exchange, message, self.now);
    }

    fn synchronised(&mut self, id: usize, number: u32) {
        let exchange = Exchange {
            relayed: connection(id),
            opener: Opener::Peer,
            number,
        };
        let sync = Message {
            kind: Kind::Sync,
            addresses: Vec::new(),
            extras: None,
        };
        self.core.on_sync(exchange, &sync, self.now);
    }
}

fn connection(id: usize) -> ConnectionId {
    ConnectionId::new_unchecked(id)
}

fn connect(addresses: impl IntoIterator<Item = String>) -> Message {
    Message {
        kind: Kind::Connect,
        addresses: addresses.into_iter().map(|a| a.parse().unwrap()).collect(),
        extras: None,
    }
}

fn dials(outputs: &[Output]) -> usize {
    let is_dial = |output: &&Output| matches!(output, Output::Dial { .. });
    outputs.iter().filter(is_dial).count()
}

#[test]
fn however_many_addresses_and_exchanges_a_peer_sends_it_gets_eight_dials() {
    let mut bench = bench(|config| config.early(false));
    let peer = PeerId::random();
    bench.relayed(1, peer, Role::Responder);
    let mut made = 0;
    for number in 0..1000 {
        let addresses = (0..60).map(|n| {
            format!(
                "/ip4/203.0.{number}.{n}/udp/53/quic-v1",
                number = number % 200
            )
        });
        bench.opened(1, number, &connect(addresses));
        bench.synchronised(1, number);
        made += dials(&bench.outputs());
    }
    assert_eq!(made, 8);
}

#[test]
fn dials_that_fail_at_once_make_no_room_for_ever() {
    let mut bench = bench(|config| config.early(false));
    let peer = PeerId::random();
    bench.relayed(1, peer, Role::Responder);
    let mut made = 0;
    for number in 0..1000 {
        let addresses = (0..60).map(|n| format!("/ip4/203.0.{}.{n}/udp/53/quic-v1", number % 200));
        bench.opened(1, number, &connect(addresses));
        bench.synchronised(1, number);
        let outputs = bench.outputs();
        made += dials(&outputs);
        for output in outputs {
            if let Output::Dial { dial, .. } = output {
                bench.core.on_dial_failed(dial, bench.now);
            }
        }
    }
    assert_eq!(made, 24, "8 for each of 3 attempts");
}

/// Whatever the peers do, there is no room for more ports than the bound, and none is left.
#[test]
fn however_many_peers_fail_a_few_ports_are_opened_at_a_time_and_closed_with_the_punch() {
    let mut bench = bench(|config| config.early(false).max_fresh_ports(3).max_concurrent(200));
    let own = Own {
        can_open: vec![Transport::Quic, Transport::Tcp],
        ..bench.core.own().clone()
    };
    bench.core.on_own(own, bench.now);
    let mut open: BTreeSet<PortId> = BTreeSet::new();
    let mut opened = 0;
    for id in 0..100 {
        let peer = PeerId::random();
        bench.relayed(id, peer, Role::Responder);
        let addresses = (0..60).flat_map(|n| {
            let quic = format!("/ip4/203.0.113.{n}/udp/53/quic-v1");
            [quic, format!("/ip4/203.0.113.{n}/tcp/53")]
        });
        bench.opened(id, 0, &connect(addresses));
        bench.synchronised(id, 0);
    }
    for _ in 0..100 {
        bench.pass(Duration::from_millis(100));
        for output in bench.outputs() {
            match output {
                Output::OpenPort(opening) => {
                    assert!(opening.towards.len() <= 2, "{opening:?}");
                    assert!((2..=4).contains(&opening.ttl), "{opening:?}");
                    open.insert(opening.port);
                    opened += 1;
                    let public = "/ip4/203.0.113.10/udp/40000/quic-v1".parse().unwrap();
                    bench.core.on_port(opening.port, Some(public), bench.now);
                }
                Output::ClosePort(port) => assert!(open.remove(&port), "closed twice: {port:?}"),
                _ => {}
            }
            assert!(open.len() <= 3, "{open:?}");
        }
    }
    assert!(opened >= 3);
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn a_port_that_nobody_can_see_is_not_waited_for() {
    let mut bench = bench(|config| config);
    let own = Own {
        can_open: vec![Transport::Quic],
        ..bench.core.own().clone()
    };
    bench.core.on_own(own, bench.now);
    let peer = PeerId::random();
    bench.relayed(1, peer, Role::Initiator);
    bench.outputs();
    let exchange = Exchange {
        relayed: connection(1),
        opener: Opener::Us,
        number: 0,
    };
    let theirs = connect(["/ip4/203.0.113.20/udp/9100/quic-v1".to_owned()]);
    let round_trip = Duration::from_millis(100);
    bench
        .core
        .on_connected(exchange, &theirs, round_trip, bench.now);
    bench.pass(Duration::from_millis(50));
    bench.outputs();
    // Half of the attempt.
    bench.pass(Duration::from_secs(1));
    let opening = bench.outputs().into_iter().find_map(|output| match output {
        Output::OpenPort(opening) => Some(opening),
        _ => None,
    });
    let opening = opening.unwrap();
    assert_eq!(opening.ttl, 2, "behind our own NAT and no further");
    bench.core.on_port(opening.port, None, bench.now);
    assert!(bench.outputs().contains(&Output::ClosePort(opening.port)));
    bench.pass(Duration::from_secs(1));
    let outputs = bench.outputs();
    let again = outputs.iter().find_map(|output| match output {
        Output::OpenPort(opening) => Some(opening.port),
        _ => None,
    });
    bench.core.on_port(again.unwrap(), None, bench.now);
    let talks = bench.outputs().into_iter().any(
        |output| matches!(&output, Output::Connect { message, .. } if message.addresses.len() == 1),
    );
    assert!(talks);
}

/// What is left of a connection that broke is still sent, and may have spoiled the usual ports.
#[test]
fn fresh_ports_come_sooner_where_a_direct_connection_has_just_ended() {
    for (ago, opens_after) in [(None, 1000), (Some(60), 1000), (Some(1), 500)] {
        let mut bench = bench(|config| config);
        let own = Own {
            can_open: vec![Transport::Tcp],
            ..bench.core.own().clone()
        };
        bench.core.on_own(own, bench.now);
        let peer = PeerId::random();
        if let Some(seconds) = ago {
            bench
                .core
                .on_direct(connection(7), peer, Transport::Tcp, None, bench.now);
            bench.core.on_closed(connection(7), peer, bench.now);
            bench.pass(Duration::from_secs(seconds));
        }
        bench.relayed(1, peer, Role::Responder);
        bench.outputs();
        bench.opened(1, 0, &connect(["/ip4/203.0.113.20/tcp/9100".to_owned()]));
        bench.synchronised(1, 0);
        let mut waited = 0;
        while !bench
            .outputs()
            .iter()
            .any(|output| matches!(output, Output::OpenPort(_)))
        {
            assert!(waited < 5000, "none is opened");
            bench.pass(Duration::from_millis(100));
            waited += 100;
        }
        assert_eq!(waited, opens_after, "ended {ago:?} s before");
    }
}

#[test]
fn exchanges_beyond_the_bound_of_a_connection_are_reset() {
    let mut bench = bench(|config| config.early(false).max_exchanges(3));
    let peer = PeerId::random();
    bench.relayed(1, peer, Role::Responder);
    let replies = |outputs: Vec<Output>| {
        let is_reply = |output: &&Output| matches!(output, Output::Reply { .. });
        outputs.iter().filter(is_reply).count()
    };
    for number in 0..3 {
        bench.opened(1, number, &connect([]));
        assert_eq!(replies(bench.outputs()), 1);
    }
    bench.opened(1, 3, &connect([]));
    let outputs = bench.outputs();
    assert!(
        outputs
            .iter()
            .any(|output| matches!(output, Output::Abandon { .. }))
    );
    assert_eq!(replies(outputs), 0);
}

#[test]
fn more_punches_than_allowed_at_once_wait_for_their_turn() {
    let mut bench = bench(|config| config.max_concurrent(2));
    let talks = |outputs: Vec<Output>| {
        let is_connect = |output: &&Output| matches!(output, Output::Connect { .. });
        outputs.iter().filter(is_connect).count()
    };
    let peers: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
    for (id, peer) in peers.iter().enumerate() {
        bench.relayed(id, *peer, Role::Initiator);
    }
    assert_eq!(talks(bench.outputs()), 2);
    // Whoever asks meanwhile is told to come back.
    let stranger = PeerId::random();
    bench.relayed(9, stranger, Role::Responder);
    bench.outputs();
    bench.opened(9, 0, &connect(["/ip4/203.0.113.20/tcp/9100".to_owned()]));
    let busy = bench.outputs().into_iter().find_map(|output| match output {
        Output::Reply { message, .. } => message.failure(),
        _ => None,
    });
    assert_eq!(busy, Some(PunchError::Busy));
    bench.core.on_closed(connection(0), peers[0], bench.now);
    assert_eq!(talks(bench.outputs()), 1);
}

#[test]
fn without_an_address_of_its_own_a_node_waits_a_moment_before_it_talks() {
    let mut bench = bench(|config| config);
    bench.core.on_own(Own::default(), bench.now);
    bench.relayed(1, PeerId::random(), Role::Initiator);
    let is_talk = |output: &Output| matches!(output, Output::Connect { .. });
    assert!(!bench.outputs().iter().any(is_talk));
    bench.pass(Duration::from_millis(400));
    let own = Own {
        candidates: vec!["/ip4/203.0.113.10/tcp/9100".parse().unwrap()],
        ..Own::default()
    };
    bench.core.on_own(own, bench.now);
    assert!(bench.outputs().iter().any(is_talk), "now it is known");
}

#[test]
fn an_inbound_connection_stops_everything() {
    let mut bench = bench(|config| config);
    let peer = PeerId::random();
    bench.relayed(1, peer, Role::Initiator);
    bench.outputs();
    bench
        .core
        .on_direct(connection(2), peer, Transport::Quic, None, bench.now);
    let outputs = bench.outputs();
    assert!(
        outputs
            .iter()
            .any(|output| matches!(output, Output::Abandon { .. }))
    );
    assert_eq!(bench.core.poll_timeout(), None);
    assert_eq!(bench.core.history().count(), 1);
    bench.pass(Duration::from_secs(60));
    assert_eq!(bench.outputs(), []);
}

#[test]
fn a_peer_that_comes_over_a_relay_is_doubted_and_punched_once_its_direct_connection_is_lost() {
    let mut bench = bench(|config| config);
    let peer = PeerId::random();
    let started = |outputs: &[Output]| {
        let is_start =
            |output: &&Output| matches!(output, Output::Event(Event::PunchStarted { .. }));
        outputs.iter().filter(is_start).count()
    };
    let (core, now) = (&mut bench.core, bench.now);
    core.on_direct(connection(1), peer, Transport::Tcp, None, now);
    bench.relayed(2, peer, Role::Initiator);
    assert_eq!(bench.outputs(), [Output::Doubt(peer)]);
    bench.core.on_lost(connection(1), peer, bench.now);
    let outputs = bench.outputs();
    assert_eq!(started(&outputs), 1);
    let talks = |output: &Output| matches!(output, Output::Connect { .. });
    assert!(outputs.iter().any(talks), "{outputs:?}");
    // The transport gives it up later.
    bench.core.on_closed(connection(1), peer, bench.now);
    assert_eq!(started(&bench.outputs()), 0);
}

#[test]
fn a_peer_that_is_alive_needs_no_relay_and_no_punch() {
    let mut bench = bench(|config| config);
    let peer = PeerId::random();
    let (core, now) = (&mut bench.core, bench.now);
    core.on_direct(connection(1), peer, Transport::Tcp, None, now);
    bench.relayed(2, peer, Role::Initiator);
    bench.outputs();
    bench.core.on_alive(connection(1), peer);
    let relayed = connection(2);
    assert_eq!(bench.outputs(), [Output::Release { peer, relayed }]);
    // Whoever closes it now wants no other.
    bench.core.on_closed(connection(1), peer, bench.now);
    assert_eq!(bench.outputs(), []);
}

#[test]
fn a_lost_connection_is_made_good_over_the_circuit_that_was_given_up_for_it() {
    let mut bench = bench(|config| config);
    let peer = PeerId::random();
    bench.relayed(1, peer, Role::Responder);
    let (core, now) = (&mut bench.core, bench.now);
    core.on_direct(connection(2), peer, Transport::Quic, None, now);
    bench.outputs();
    bench.core.on_lost(connection(2), peer, bench.now);
    let outputs = bench.outputs();
    let relayed = connection(1);
    assert!(
        outputs.contains(&Output::Hold { peer, relayed }),
        "{outputs:?}"
    );
    let talks = |output: &Output| matches!(output, Output::Connect { .. });
    assert!(outputs.iter().any(talks), "{outputs:?}");
}

#[test]
fn a_public_peer_is_dialled_while_the_exchange_runs() {
    let mut bench = bench(|config| config);
    let peer = PeerId::random();
    bench.relayed(1, peer, Role::Initiator);
    bench.outputs();
    for port in 1..10 {
        let address = format!("/ip4/203.0.113.20/tcp/{port}").parse().unwrap();
        bench.core.on_peer_address(peer, &address);
    }
    let private = "/ip4/10.0.0.1/tcp/1".parse().unwrap();
    bench.core.on_peer_address(peer, &private);
    assert_eq!(dials(&bench.outputs()), 2);
}

#[derive(Debug, Clone)]
enum Fact {
    Relayed(usize, bool),
    Direct(usize),
    Closed(usize),
    Lost(usize),
    Alive(usize),
    Opened(usize, u32, bool),
    Answered(u32),
    Synchronised(usize, u32),
    Broken(usize, bool, u32),
    DialFailed(u64),
    Pass(u64),
}

fn fact() -> impl Strategy<Value = Fact> {
    prop_oneof![
        (0..4_usize, any::<bool>()).prop_map(|(peer, role)| Fact::Relayed(peer, role)),
        (0..4_usize).prop_map(Fact::Direct),
        (0..60_usize).prop_map(Fact::Closed),
        (0..60_usize).prop_map(Fact::Lost),
        (0..60_usize).prop_map(Fact::Alive),
        (0..12_usize, 0..6_u32, any::<bool>()).prop_map(|(id, n, o)| Fact::Opened(id, n, o)),
        (0..12_u32).prop_map(Fact::Answered),
        (0..12_usize, 0..6_u32).prop_map(|(id, n)| Fact::Synchronised(id, n)),
        (0..12_usize, any::<bool>(), 0..12_u32).prop_map(|(id, o, n)| Fact::Broken(id, o, n)),
        (0..40_u64).prop_map(Fact::DialFailed),
        (0..3_000_u64).prop_map(Fact::Pass),
    ]
}

proptest! {
    /// Facts in any order, true or not: one outcome for each punch, nothing left at the end.
    #[test]
    fn no_order_of_facts_panics_and_everything_ends(
        facts in prop::collection::vec(fact(), 0..120),
    ) {
        let mut bench = bench(|config| config.max_pending(3).max_concurrent(2));
        let peers: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
        let mut open: BTreeMap<usize, PeerId> = BTreeMap::new();
        let (mut started, mut ended) = (0, 0);
        let mut dialled: Vec<DialId> = Vec::new();
        let mut next = 0;
        for fact in facts {
            match fact {
                Fact::Relayed(peer, initiates) => {
                    let role = if initiates { Role::Initiator } else { Role::Responder };
                    open.insert(next, peers[peer]);
                    bench.relayed(next, peers[peer], role);
                    next += 1;
                }
                Fact::Direct(peer) => {
                    open.insert(next, peers[peer]);
                    let (core, now) = (&mut bench.core, bench.now);
                    core.on_direct(connection(next), peers[peer], Transport::Tcp, None, now);
                    next += 1;
                }
                Fact::Closed(id) => {
                    if let Some(peer) = open.remove(&id) {
                        bench.core.on_closed(connection(id), peer, bench.now);
                    }
                }
                Fact::Lost(id) => {
                    if let Some(peer) = open.get(&id) {
                        bench.core.on_lost(connection(id), *peer, bench.now);
                    }
                }
                Fact::Alive(id) => {
                    if let Some(peer) = open.get(&id) {
                        bench.core.on_alive(connection(id), *peer);
                    }
                }
                Fact::Opened(id, number, is_ours) => {
                    let mut message = connect((1..5).map(|n| format!("/ip4/203.0.113.20/tcp/{n}")));
                    message.extras = is_ours.then(Extras::default);
                    bench.opened(id, number, &message);
                }
                Fact::Answered(number) => {
                    let message = connect(["/ip4/203.0.113.20/tcp/9100".to_owned()]);
                    for id in 0..12 {
                        let exchange = Exchange {
                            relayed: connection(id),
                            opener: Opener::Us,
                            number,
                        };
                        let time = Duration::from_millis(100);
                        bench.core.on_connected(exchange, &message, time, bench.now);
                    }
                }
                Fact::Synchronised(id, number) => bench.synchronised(id, number),
                Fact::Broken(id, ours, number) => {
                    let exchange = Exchange {
                        relayed: connection(id),
                        opener: if ours { Opener::Us } else { Opener::Peer },
                        number,
                    };
                    bench.core.on_exchange_failed(exchange, bench.now);
                }
                Fact::DialFailed(id) => bench.core.on_dial_failed(DialId(id), bench.now),
                Fact::Pass(milliseconds) => bench.pass(Duration::from_millis(milliseconds)),
            }
            for output in bench.outputs() {
                match output {
                    Output::Event(Event::PunchStarted { .. }) => started += 1,
                    Output::Event(Event::Outcome(_)) => ended += 1,
                    Output::Dial { dial, .. } => dialled.push(dial),
                    _ => {}
                }
            }
            prop_assert!(bench.core.punches.len() <= 3);
            prop_assert!(started - ended <= 3);
            for peer in &peers {
                let dials = bench.core.dials.values().filter(|dial| dial.peer == *peer);
                prop_assert!(dials.count() <= 8);
            }
        }
        while let Some((id, peer)) = open.pop_first() {
            bench.core.on_closed(connection(id), peer, bench.now);
        }
        for dial in dialled {
            bench.core.on_dial_failed(dial, bench.now);
        }
        bench.pass(Duration::from_secs(60));
        let outcomes = bench.outputs().into_iter();
        ended += outcomes
            .filter(|output| matches!(output, Output::Event(Event::Outcome(_))))
            .count();
        // A circuit that closed may have handed its punch to another one.
        prop_assert!(ended >= started);
        prop_assert!(bench.core.punches.is_empty());
        prop_assert!(bench.core.relayed.is_empty());
        prop_assert!(bench.core.direct.is_empty());
        prop_assert!(bench.core.dials.is_empty());
        prop_assert!(bench.core.reached.is_empty());
    }
}

/// A punch to a peer whose duplicates are on us to close, which reached it over connection 2.
fn reached() -> (Bench, PeerId) {
    let mut bench = bench(|config| config);
    let peer = std::iter::repeat_with(PeerId::random).find(|peer| *peer < bench.core.local);
    let peer = peer.unwrap();
    bench.relayed(1, peer, Role::Responder);
    let (core, now) = (&mut bench.core, bench.now);
    core.on_direct(connection(2), peer, Transport::Quic, None, now);
    bench.outputs();
    (bench, peer)
}

/// Times after the first connection at which a second one comes and is closed, with what is closed.
fn closed(second: u64, deadline: u64, lost: Option<u64>) -> Option<(u64, ConnectionId)> {
    let (mut bench, peer) = reached();
    bench.pass(Duration::from_millis(second));
    let (core, now) = (&mut bench.core, bench.now);
    core.on_direct(connection(3), peer, Transport::Quic, None, now);
    for at in second..deadline {
        if lost == Some(at) {
            bench.core.on_lost(connection(2), peer, bench.now);
        }
        if bench
            .core
            .poll_timeout()
            .is_some_and(|due| due <= bench.now)
        {
            bench.core.handle_timeout(bench.now);
        }
        for output in bench.outputs() {
            if let Output::Close { connection, .. } = output {
                return Some((at, connection));
            }
        }
        bench.now += Duration::from_millis(1);
    }
    None
}

#[test]
fn of_two_connections_the_second_goes_once_both_sides_have_the_first() {
    let second = connection(3);
    assert_eq!(closed(20, 10_000, None), Some((500, second)));
    // Its handshake was sent again.
    assert_eq!(closed(1010, 10_000, None), Some((1010, second)));
}

#[test]
fn a_second_connection_that_comes_late_outlives_a_dead_first_one() {
    assert_eq!(closed(5000, 20_000, None), Some((7500, connection(3))));
    assert_eq!(closed(5000, 20_000, Some(7100)), None);
}
