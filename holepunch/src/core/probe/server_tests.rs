use proptest::prelude::*;

use super::*;

struct Bench {
    server: Server,
    now: Instant,
}

#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
fn bench() -> Bench {
    Bench {
        server: Server::new(Config::default()),
        now: Instant::now(),
    }
}

fn parsed(address: &str) -> Multiaddr {
    address.parse().unwrap()
}

fn asker(address: &str) -> Asker {
    Asker {
        peer: PeerId::random(),
        remote: parsed(address),
        inbound: true,
    }
}

fn helper(ip: [u8; 4]) -> Helper {
    Helper {
        peer: PeerId::random(),
        connection: ConnectionId::new_unchecked(usize::from(ip[3])),
        ip: ip.into(),
    }
}

const TARGET: &str = "/ip4/203.0.113.10/udp/40000/quic-v1";
const OTHER_SERVER: &str = "/ip4/198.51.100.9/tcp/4001";

impl Bench {
    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.server.poll_output()).collect()
    }

    fn is_refused(&mut self) -> bool {
        let outputs = self.outputs();
        let refused = outputs
            .iter()
            .any(|output| matches!(output, Output::Answer { answer, .. } if answer.refused));
        assert_eq!(
            refused,
            !outputs.iter().any(|o| matches!(o, Output::Dial { .. }))
        );
        refused
    }

    fn help(&mut self, address: &str, padding: usize, connected: bool) -> bool {
        let (now, asker) = (self.now, asker(OTHER_SERVER));
        self.server.on_help(
            &asker,
            PeerId::random(),
            &parsed(address),
            padding,
            connected,
            now,
        );
        !self.is_refused()
    }
}

#[test]
fn who_asks_is_dialled_where_it_is_seen_and_a_stranger_tries_as_well() {
    let mut bench = bench();
    let asker = asker(TARGET);
    let helpers = [helper([198, 51, 100, 1]), helper([198, 51, 100, 2])];
    let known = [IpAddr::from([198, 51, 100, 1])];
    let ticket = bench.server.on_probe(&asker, &known, &helpers, bench.now);
    let (peer, address) = (asker.peer, parsed(TARGET));
    assert_eq!(
        bench.outputs(),
        [
            Output::Dial {
                ticket,
                peer,
                address: address.clone()
            },
            Output::AskHelp {
                ticket,
                helper: helpers[1].connection,
                peer,
                address
            },
        ]
    );
    bench.server.on_dialled(ticket, true);
    assert_eq!(bench.outputs(), []);
    bench.server.on_helped(ticket, Outcome::Unreached);
    assert_eq!(
        bench.outputs(),
        [Output::Answer {
            ticket,
            answer: Answer {
                refused: false,
                from_other_port: Outcome::Reached,
                from_other_address: Outcome::Unreached,
                helper: Some(helpers[1].ip),
            }
        }]
    );
    assert!(bench.server.running.is_empty());
}

#[test]
fn a_dial_that_takes_too_long_has_failed_and_silence_of_the_helper_says_nothing() {
    let mut bench = bench();
    let helpers = [helper([198, 51, 100, 2])];
    let ticket = bench
        .server
        .on_probe(&asker(TARGET), &[], &helpers, bench.now);
    bench.outputs();
    bench.now = bench.server.poll_timeout().unwrap();
    bench.server.handle_timeout(bench.now);
    let [Output::Answer { answer, .. }] = &bench.outputs()[..] else {
        panic!("one answer");
    };
    assert_eq!(answer.from_other_port, Outcome::Unreached);
    assert_eq!(answer.from_other_address, Outcome::NotTried);
    bench.server.on_dialled(ticket, true);
    assert_eq!(bench.outputs(), [], "too late");
}

#[test]
fn addresses_inside_networks_are_never_dialled() {
    let mut bench = bench();
    for address in [
        "/ip4/192.168.1.1/tcp/80",
        "/ip4/10.0.0.1/udp/1/quic-v1",
        "/ip4/100.64.0.1/tcp/1",
        "/ip4/169.254.169.254/tcp/80",
        "/ip4/127.0.0.1/tcp/22",
        "/ip4/0.0.0.0/tcp/1",
        "/ip4/224.0.0.1/udp/1/quic-v1",
        "/ip6/::ffff:10.0.0.1/tcp/80",
        "/ip6/fe80::1/tcp/80",
        "/ip6/fd00::1/tcp/80",
        "/ip4/203.0.113.10/tcp/0",
        "/dns4/victim.example/tcp/80",
        "/ip4/203.0.113.10/tcp/1/p2p-circuit",
    ] {
        assert!(!bench.help(address, MIN_PADDING, false), "{address}");
        let asker = asker(address);
        bench.server.on_probe(&asker, &[], &[], bench.now);
        assert!(bench.is_refused(), "{address}");
    }
}

#[test]
fn help_costs_more_than_it_sends_and_is_for_strangers_alone() {
    let mut bench = bench();
    assert!(!bench.help(TARGET, MIN_PADDING - 1, false));
    assert!(!bench.help(TARGET, MIN_PADDING, true));
    assert!(bench.help(TARGET, MIN_PADDING, false));
}

#[test]
fn a_peer_that_this_node_dialled_is_not_dialled_back() {
    let mut bench = bench();
    let asker = Asker {
        inbound: false,
        ..asker(TARGET)
    };
    bench.server.on_probe(&asker, &[], &[], bench.now);
    assert!(bench.is_refused());
}

#[test]
fn a_flood_is_refused_beyond_each_rate() {
    let mut bench = bench();
    let config = Config::default();
    let mut served = 0;
    for _ in 0..1000 {
        let ticket = bench.server.on_probe(&asker(TARGET), &[], &[], bench.now);
        served += usize::from(!bench.is_refused());
        bench.server.on_dialled(ticket, false);
        bench.outputs();
    }
    assert_eq!(served, config.probes_per_prefix());
    for n in 0..5000_u32 {
        let address = format!("/ip4/203.{}.{}.1/tcp/1", n / 256, n % 256);
        let ticket = bench.server.on_probe(&asker(&address), &[], &[], bench.now);
        served += usize::from(!bench.is_refused());
        bench.server.on_dialled(ticket, false);
        bench.outputs();
    }
    assert_eq!(served, config.probes_per_minute());
    assert!(bench.server.rates.len() <= config.probes_per_minute());
    bench.now += MINUTE;
    bench.server.on_probe(&asker(TARGET), &[], &[], bench.now);
    assert!(!bench.is_refused(), "a minute later");
}

proptest! {
    /// Whatever is asked: every request gets one answer, in time, and no more run than may.
    #[test]
    fn every_request_is_answered_once_and_few_run_at_a_time(
        steps in prop::collection::vec((0..4_u8, 0..40_u8, 0..3000_u64), 0..200),
    ) {
        let mut bench = bench();
        let mut open = std::collections::BTreeSet::new();
        for (kind, n, millis) in steps {
            let address = format!("/ip4/203.0.113.{n}/tcp/1");
            match kind {
                0 => {
                    let helpers = [helper([198, 51, 100, n])];
                    let asker = asker(&address);
                    open.insert(bench.server.on_probe(&asker, &[], &helpers, bench.now));
                }
                1 => {
                    let asker = asker(&address);
                    let target = parsed(TARGET);
                    let peer = PeerId::random();
                    let ticket =
                        bench.server.on_help(&asker, peer, &target, MIN_PADDING, false, bench.now);
                    open.insert(ticket);
                }
                2 => bench.server.on_dialled(Ticket(u64::from(n)), millis % 2 == 0),
                _ => {
                    bench.now += Duration::from_millis(millis);
                    bench.server.handle_timeout(bench.now);
                }
            }
            for output in bench.outputs() {
                if let Output::Answer { ticket, .. } = output {
                    prop_assert!(open.remove(&ticket));
                }
            }
            prop_assert!(bench.server.running.len() <= Config::default().max_probes());
        }
        bench.now += PATIENCE + HELP_EXTRA;
        bench.server.handle_timeout(bench.now);
        for output in bench.outputs() {
            if let Output::Answer { ticket, .. } = output {
                prop_assert!(open.remove(&ticket));
            }
        }
        prop_assert!(open.is_empty());
    }
}
