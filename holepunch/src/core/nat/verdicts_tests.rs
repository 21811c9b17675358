use proptest::prelude::*;

use super::*;
use crate::ConfigBuilder;

struct Bench {
    core: Verdicts,
    now: Instant,
}

#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
fn bench(configure: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Bench {
    Bench {
        core: Verdicts::new(configure(Config::builder()).build().unwrap()),
        now: Instant::now(),
    }
}

impl Bench {
    fn verdict(&mut self, server: PeerId, address: &str, reachable: bool) {
        self.core
            .on_verdict(server, &address.parse().unwrap(), reachable, self.now);
        self.core.judge(|_| true);
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.core.poll_output()).collect()
    }
}

const TCP: &str = "/ip4/203.0.113.10/tcp/9100";
const QUIC: &str = "/ip4/203.0.113.10/udp/9100/quic-v1";

fn parsed(address: &str) -> Multiaddr {
    address.parse().unwrap()
}

#[test]
fn two_servers_make_an_address_believed_and_the_node_public() {
    let mut bench = bench(|config| config);
    let first = PeerId::random();
    bench.verdict(first, TCP, true);
    bench.verdict(first, TCP, true);
    assert_eq!(bench.outputs(), [], "one server, twice");
    bench.verdict(PeerId::random(), TCP, true);
    assert_eq!(
        bench.outputs(),
        [
            Output::Confirm(parsed(TCP)),
            Output::StatusChanged {
                old: NatStatus::Unknown,
                new: NatStatus::Public
            }
        ]
    );
    assert_eq!(bench.core.status(), NatStatus::Public);
}

#[test]
fn a_server_that_does_not_speak_webrtc_says_nothing_of_the_node() {
    let mut bench = bench(|config| config);
    let webrtc = "/ip4/203.0.113.10/udp/9102/webrtc-direct";
    for _ in 0..10 {
        bench.verdict(PeerId::random(), webrtc, false);
    }
    assert_eq!(bench.core.status(), NatStatus::Unknown);
    let servers = [PeerId::random(), PeerId::random()];
    for server in servers {
        bench.verdict(server, webrtc, true);
    }
    let confirmed = Output::Confirm(parsed(webrtc));
    assert!(bench.outputs().contains(&confirmed));
    for server in servers {
        bench.verdict(server, webrtc, false);
    }
    let withdrawn = Output::Expire(parsed(webrtc));
    assert!(bench.outputs().contains(&withdrawn));
}

#[test]
fn an_address_that_only_known_servers_reach_is_not_believed() {
    let mut bench = bench(|config| config);
    for _ in 0..4 {
        let address = parsed(TCP);
        let server = PeerId::random();
        bench.core.on_verdict(server, &address, true, bench.now);
        bench.core.judge(|_| false);
    }
    assert_eq!(bench.outputs(), []);
    assert_eq!(bench.core.status(), NatStatus::Unknown);
    bench.core.judge(|_| true);
    assert_eq!(
        bench.core.status(),
        NatStatus::Public,
        "once a stranger got in"
    );
}

#[test]
fn failures_make_the_node_private() {
    let mut bench = bench(|config| config);
    let server = PeerId::random();
    bench.verdict(server, TCP, false);
    assert_eq!(bench.core.status(), NatStatus::Unknown);
    bench.verdict(server, QUIC, false);
    assert_eq!(bench.core.status(), NatStatus::Private);
}

#[test]
fn one_wrong_candidate_does_not_hide_a_reachable_address() {
    let mut bench = bench(|config| config);
    let (first, second) = (PeerId::random(), PeerId::random());
    for server in [first, second] {
        bench.verdict(server, TCP, true);
        bench.verdict(server, QUIC, false);
    }
    assert_eq!(bench.core.status(), NatStatus::Public);
}

#[test]
fn an_address_that_most_servers_no_longer_reach_is_withdrawn() {
    let mut bench = bench(|config| config);
    let servers: Vec<PeerId> = (0..3).map(|_| PeerId::random()).collect();
    bench.verdict(servers[0], TCP, true);
    bench.verdict(servers[1], TCP, true);
    bench.outputs();
    bench.verdict(servers[0], TCP, false);
    assert_eq!(bench.outputs(), [], "a draw changes nothing");
    bench.verdict(servers[2], TCP, false);
    assert_eq!(
        bench.outputs(),
        [
            Output::Expire(parsed(TCP)),
            Output::StatusChanged {
                old: NatStatus::Public,
                new: NatStatus::Unknown
            }
        ]
    );
    bench.verdict(servers[1], TCP, false);
    assert_eq!(bench.core.status(), NatStatus::Private);
}

#[test]
fn relayed_and_private_addresses_prove_nothing() {
    let mut bench = bench(|config| config.public_confidence(1));
    for address in [
        "/ip4/203.0.113.100/tcp/9100/p2p-circuit",
        "/ip4/192.168.1.7/tcp/9100",
        "/ip4/127.0.0.1/tcp/9100",
    ] {
        bench.verdict(PeerId::random(), address, true);
        bench.core.on_configured(&parsed(address));
        bench.core.judge(|_| true);
    }
    assert_eq!(bench.outputs(), []);
    assert_eq!(bench.core.status(), NatStatus::Unknown);
}

#[test]
fn an_address_that_the_operator_vouches_for_makes_the_node_public() {
    let mut bench = bench(|config| config);
    bench.core.on_configured(&parsed(TCP));
    bench.core.judge(|_| true);
    assert_eq!(bench.core.status(), NatStatus::Public);
    bench.core.on_withdrawn(&parsed(TCP));
    bench.core.judge(|_| true);
    assert_eq!(bench.core.status(), NatStatus::Unknown);
}

#[test]
fn a_verdict_that_is_not_repeated_is_forgotten_where_that_is_wanted() {
    let ttl = Duration::from_secs(600);
    let mut bench = bench(|config| config.verdict_ttl(Some(ttl)).public_confidence(1));
    bench.verdict(PeerId::random(), TCP, true);
    bench.outputs();
    assert_eq!(bench.core.poll_timeout(), Some(bench.now + ttl));
    bench.now += ttl;
    bench.core.handle_timeout(bench.now);
    bench.core.judge(|_| true);
    assert_eq!(
        bench.outputs(),
        [
            Output::Expire(parsed(TCP)),
            Output::StatusChanged {
                old: NatStatus::Public,
                new: NatStatus::Unknown
            }
        ]
    );
    assert_eq!(bench.core.poll_timeout(), None);
}

proptest! {
    #[test]
    fn every_withdrawal_follows_its_confirmation_and_memory_stays_bounded(
        verdicts in prop::collection::vec((0..20_u8, 0..40_u16, any::<bool>()), 0..400),
    ) {
        let mut bench = bench(|config| {
            config.max_verdict_addresses(6).max_verdicts_per_address(4)
        });
        let servers: Vec<PeerId> = (0..20).map(|_| PeerId::random()).collect();
        let mut confirmed = BTreeSet::new();
        for (server, port, reachable) in verdicts {
            let address = format!("/ip4/203.0.113.10/tcp/{port}");
            bench.verdict(servers[usize::from(server)], &address, reachable);
            for output in bench.outputs() {
                match output {
                    Output::Confirm(address) => prop_assert!(confirmed.insert(address)),
                    Output::Expire(address) => prop_assert!(confirmed.remove(&address)),
                    Output::StatusChanged { .. } => {}
                }
            }
            prop_assert_eq!(bench.core.status() == NatStatus::Public, !confirmed.is_empty());
            prop_assert!(bench.core.addresses.len() <= 6);
            prop_assert!(bench.core.addresses.values().all(|v| v.by_server.len() <= 4));
        }
    }
}
