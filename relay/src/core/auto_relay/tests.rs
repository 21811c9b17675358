use std::collections::BTreeSet;

use super::*;
use crate::{StatusCode, client::ConfigBuilder};

const SEED: [u8; 32] = [3; 32];
const HOUR: Duration = Duration::from_secs(60 * 60);

/// An `AutoRelay` on virtual time, with the adapter's part and the relays' played by the test.
struct Bench {
    core: AutoRelay,
    now: Instant,
    links: usize,
    /// The connection that each relay was asked over last.
    asked: BTreeMap<PeerId, ConnectionId>,
    /// The last connection to each relay.
    dialled: BTreeMap<PeerId, ConnectionId>,
    /// Relays that do not answer: they are neither dialled nor pinged with success.
    silent: BTreeSet<PeerId>,
    /// Relays that are reached, but say no.
    refusing: BTreeMap<PeerId, LossReason>,
    lifetime: Duration,
    /// Round trips, where they differ from 20 ms.
    rtt: BTreeMap<PeerId, Duration>,
    /// Everything that the core told, with its time.
    told: Vec<(Instant, Output)>,
    /// Where this node listens through each relay.
    addresses: BTreeMap<PeerId, BTreeSet<Multiaddr>>,
    /// Where others are told to find it.
    external: BTreeMap<PeerId, Multiaddr>,
    /// Addresses that a relay names beside the one that was dialled.
    named: BTreeMap<PeerId, Vec<Multiaddr>>,
}

#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
fn bench(configure: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Bench {
    let config = configure(Config::builder()).build().unwrap();
    let now = Instant::now();
    Bench {
        core: AutoRelay::new(config, SEED, now),
        now,
        links: 0,
        asked: BTreeMap::new(),
        dialled: BTreeMap::new(),
        silent: BTreeSet::new(),
        refusing: BTreeMap::new(),
        lifetime: HOUR,
        rtt: BTreeMap::new(),
        told: Vec::new(),
        addresses: BTreeMap::new(),
        external: BTreeMap::new(),
        named: BTreeMap::new(),
    }
}

fn transport(host: u8) -> Multiaddr {
    // A network of its own for each host.
    format!("/ip4/198.{host}.0.1/tcp/4001").parse().unwrap()
}

fn peer(number: u8) -> PeerId {
    let mut bytes = [0; 32];
    bytes[0] = number;
    let key = libp2p_identity::Keypair::ed25519_from_bytes(bytes).unwrap();
    key.public().to_peer_id()
}

impl Bench {
    fn configured(&mut self, number: u8) -> PeerId {
        let relay = peer(number);
        let address = RelayAddress {
            relay,
            transport: transport(number),
        };
        self.core.add_relay(address, Vec::new(), self.now).unwrap();
        relay
    }

    fn candidate(&mut self, number: u8) -> PeerId {
        let relay = peer(number);
        self.core
            .add_candidate(relay, [transport(number)], Vec::new(), self.now);
        relay
    }

    /// Does what the core wants until it is content at this moment.
    fn work(&mut self) {
        while let Some(output) = self.core.poll_output() {
            self.told.push((self.now, output.clone()));
            match output {
                Output::Dial { relay, .. } if self.silent.contains(&relay) => {}
                Output::Dial { relay, addresses } => {
                    self.links += 1;
                    let link = Link {
                        id: ConnectionId::new_unchecked(self.links),
                        address: addresses.last().cloned(),
                    };
                    self.dialled.insert(relay, link.id);
                    self.core.on_connected(relay, link, self.now);
                }
                Output::Reserve { relay, link } => {
                    self.asked.insert(relay, link);
                    if let Some(why) = self.refusing.get(&relay) {
                        self.core.on_refused(relay, link, *why, self.now);
                    } else if !self.silent.contains(&relay) {
                        let grant = Grant {
                            limit: None,
                            lifetime: self.lifetime,
                            addresses: self.lists(&relay),
                        };
                        self.core.on_granted(relay, link, grant, self.now);
                    }
                }
                Output::Probe { relay, link } if !self.silent.contains(&relay) => {
                    let rtt = self.rtt.get(&relay).copied();
                    let rtt = rtt.unwrap_or(Duration::from_millis(20));
                    self.core.on_pong(relay, link, Some(rtt), self.now);
                }
                Output::Announce { address } => {
                    let known = self.addresses.entry(address.relay).or_default();
                    assert!(known.insert(address.transport), "told twice");
                }
                Output::Withdraw { address } => {
                    let known = self.addresses.get_mut(&address.relay).unwrap();
                    assert!(known.remove(&address.transport), "it was not told");
                    if known.is_empty() {
                        self.addresses.remove(&address.relay);
                    }
                }
                Output::Confirm { address } => {
                    let known = self.external.insert(address.relay, address.transport);
                    assert_eq!(known, None);
                }
                Output::Expire { address } => {
                    let known = self.external.remove(&address.relay);
                    assert_eq!(known, Some(address.transport));
                }
                _ => {}
            }
        }
        self.check_addresses();
    }

    /// What others were told is what the core believes that they know.
    fn check_addresses(&self) {
        let mut addresses = BTreeMap::<_, BTreeSet<_>>::new();
        let mut external = BTreeMap::new();
        for (relay, known) in &self.core.relays {
            let Some(told) = &known.told else {
                continue;
            };
            external.insert(*relay, told.external.transport.clone());
            let all = told.all().map(|address| address.transport.clone());
            addresses.insert(*relay, all.collect());
        }
        assert_eq!(self.addresses, addresses);
        assert_eq!(self.external, external);
    }

    /// Where a relay says that it is: the addresses that this node knows, and more.
    fn lists(&self, relay: &PeerId) -> Vec<Multiaddr> {
        let known = self.core.addresses(relay);
        let named = self.named.get(relay).into_iter().flatten();
        known.chain(named).cloned().collect()
    }

    /// Lets time pass.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.work();
        for _ in 0..100_000 {
            let Some(due) = self.core.poll_timeout().filter(|due| *due <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(due);
            self.core.handle_timeout(self.now);
            self.work();
        }
        panic!("the core never rests");
    }

    fn held(&self) -> Vec<PeerId> {
        self.core.held().map(|held| held.address.relay).collect()
    }

    fn disconnect(&mut self, relay: PeerId) {
        let link = self.asked[&relay];
        self.core.on_disconnected(relay, link, true, self.now);
        self.work();
    }

    fn since(&self, from: Instant) -> Vec<&Output> {
        self.told
            .iter()
            .filter(|(at, _)| *at >= from)
            .map(|(_, output)| output)
            .collect()
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn the_target_is_reached_at_once_and_in_parallel() {
    let mut bench = bench(|config| config);
    for number in 1..=3 {
        bench.candidate(number);
    }
    bench.work();
    assert_eq!(bench.held().len(), 3);
    assert_eq!(bench.addresses.len(), 3);
    assert!(
        bench
            .told
            .contains(&(bench.now, Output::Status(Status { held: 3, target: 3 })))
    );
}

#[test]
fn the_nearest_relays_of_many_are_chosen() {
    let mut bench = bench(|config| config);
    for number in 1..=9 {
        bench
            .rtt
            .insert(peer(number), ms(20 * 2_u64.pow(number.into())));
    }
    // The first three are asked before there is a choice: the others come in one announcement.
    for number in (1..=9).rev() {
        bench.silent.insert(peer(number));
        bench.candidate(number);
    }
    bench.silent.clear();
    bench.core.outputs.clear();
    bench.pass(Duration::from_secs(30 * 60));
    let held = bench.held();
    let nearest: BTreeSet<_> = (1..=3).map(peer).collect();
    assert_eq!(held.into_iter().collect::<BTreeSet<_>>(), nearest);
}

#[test]
fn relays_of_one_network_are_not_all_taken() {
    let mut bench = bench(|config| config);
    // Nearer, but all in one network; both kinds are known before the node needs any.
    bench.core.on_reachability(true, bench.now);
    for number in 1..=6 {
        let relay = peer(number);
        let same: Multiaddr = format!("/ip4/203.0.113.{number}/tcp/1").parse().unwrap();
        bench
            .core
            .add_candidate(relay, [same], Vec::new(), bench.now);
    }
    for number in [7, 8] {
        bench.rtt.insert(peer(number), ms(150));
        bench.candidate(number);
    }
    bench.core.on_reachability(false, bench.now);
    bench.pass(Duration::from_secs(1));
    let held = bench.held();
    assert_eq!(held.len(), 3);
    assert!(
        held.contains(&peer(7)) && held.contains(&peer(8)),
        "{held:?}"
    );
}

#[test]
fn the_choice_is_the_same_for_the_same_seed() {
    let run = || {
        let mut bench = bench(|config| config);
        for number in 1..=20 {
            bench.candidate(number);
        }
        bench.pass(Duration::from_secs(60));
        let relay = bench.held()[0];
        bench.disconnect(relay);
        bench.pass(HOUR * 2);
        (bench.held(), bench.told.len())
    };
    assert_eq!(run(), run());
}

#[test]
fn a_lost_reservation_is_replaced_at_once_where_a_candidate_is_known() {
    let mut bench = bench(|config| config);
    for number in 1..=5 {
        bench.candidate(number);
    }
    bench.pass(Duration::from_secs(5));
    let lost = bench.held()[1];
    bench.silent.insert(lost);
    let from = bench.now;
    bench.disconnect(lost);
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.held().len(), 3);
    assert!(!bench.held().contains(&lost));
    let why = LossReason::ConnectionClosed;
    assert!(
        bench
            .since(from)
            .contains(&&Output::Lost { relay: lost, why })
    );
    // And its address is withdrawn soon.
    assert!(bench.addresses.contains_key(&lost));
    bench.pass(Duration::from_secs(3));
    assert!(!bench.addresses.contains_key(&lost));
}

#[test]
fn a_reservation_that_is_made_again_within_a_second_is_never_withdrawn() {
    let mut bench = bench(|config| config);
    let relay = bench.configured(1);
    bench.pass(Duration::from_secs(100));
    for _ in 0..3 {
        let from = bench.now;
        bench.disconnect(relay);
        assert!(bench.held().is_empty());
        bench.pass(Duration::from_secs(1));
        assert_eq!(bench.held(), [relay]);
        let withdrawn = bench
            .since(from)
            .iter()
            .any(|output| matches!(output, Output::Withdraw { .. }));
        assert!(!withdrawn);
        bench.pass(Duration::from_secs(100));
    }
}

#[test]
fn a_silent_relay_is_found_out_within_ten_seconds_and_replaced() {
    let mut bench = bench(|config| config);
    for number in 1..=3 {
        bench.configured(number);
    }
    bench.pass(Duration::from_secs(60));
    for number in 4..=5 {
        bench.candidate(number);
    }
    let lost = peer(2);
    bench.silent.insert(lost);
    let from = bench.now;
    bench.pass(ms(10_100));
    assert_eq!(bench.held().len(), 3);
    let why = LossReason::Silent;
    assert!(
        bench
            .since(from)
            .contains(&&Output::Lost { relay: lost, why })
    );
    bench.pass(ms(4_900));
    assert!(
        !bench.addresses.contains_key(&lost),
        "withdrawn within 15 s"
    );
}

#[test]
fn one_lost_ping_is_no_loss() {
    let mut bench = bench(|config| config);
    let relay = bench.configured(1);
    bench.pass(Duration::from_secs(10));
    // The next ping goes unanswered, the one after does not.
    bench.silent.insert(relay);
    let ping = bench.core.poll_timeout().unwrap() - bench.now;
    bench.pass(ping + Duration::from_secs(2));
    bench.silent.clear();
    bench.pass(Duration::from_secs(30));
    let lost = |output: &&Output| matches!(output, Output::Lost { .. });
    let all = bench.since(bench.now - HOUR);
    assert_eq!(all.iter().filter(|output| lost(output)).count(), 0);
}

#[test]
fn renewals_come_before_the_end_and_at_different_times() {
    let mut bench = bench(|config| config);
    let (first, second) = (bench.configured(1), bench.configured(2));
    bench.lifetime = Duration::from_secs(1000);
    bench.work();
    let from = bench.now;
    bench.pass(Duration::from_secs(800));
    let renewed = |relay: PeerId| {
        bench
            .told
            .iter()
            .find(|(_, output)| {
                matches!(output, Output::Reserved { renewal: true, address, .. } if address.relay == relay)
            })
            .map(|(at, _)| *at - from)
            .unwrap()
    };
    for relay in [first, second] {
        let after = renewed(relay).as_secs();
        assert!((650..=750).contains(&after), "{after}");
    }
    assert_ne!(renewed(first), renewed(second));
    bench.pass(24 * HOUR);
    assert_eq!(bench.held().len(), 2);
}

#[test]
fn a_refused_renewal_is_replaced_while_the_reservation_lasts() {
    let mut bench = bench(|config| config.target_reservations(1));
    let relay = bench.candidate(1);
    bench.lifetime = Duration::from_secs(100);
    bench.pass(Duration::from_secs(60));
    let why = LossReason::Refused(StatusCode::ResourceLimitExceeded);
    bench.refusing.insert(relay, why);
    bench.pass(Duration::from_secs(20));
    assert_eq!(bench.held(), [relay], "it lasts until it expires");
    let other = bench.candidate(2);
    bench.pass(Duration::from_secs(5));
    assert_eq!(
        bench.held().len(),
        2,
        "the other one is there before it ends"
    );
    bench.pass(Duration::from_secs(20));
    assert_eq!(bench.held(), [other]);
    assert!(
        bench
            .told
            .iter()
            .any(|(_, output)| *output == Output::Lost { relay, why })
    );
}

#[test]
fn waits_depend_on_the_reason_and_end_at_five_minutes() {
    let waits = |why: LossReason| {
        let mut bench = bench(|config| config.target_reservations(0));
        let relay = bench.configured(1);
        bench.refusing.insert(relay, why);
        bench.pass(4 * HOUR);
        let asked: Vec<_> = bench
            .told
            .iter()
            .filter(|(_, output)| matches!(output, Output::Reserve { .. }))
            .map(|(at, _)| *at)
            .collect();
        let waits: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
        waits
    };
    let busy = waits(LossReason::Refused(StatusCode::ResourceLimitExceeded));
    let broken = waits(LossReason::Stream);
    let forbidden = waits(LossReason::Refused(StatusCode::PermissionDenied));
    assert!(broken[0] <= Duration::from_secs(1) && broken[0] >= ms(500));
    assert!(busy[0] >= Duration::from_secs(4) && busy[0] <= Duration::from_secs(8));
    assert!(forbidden[0] >= Duration::from_secs(150));
    for waits in [busy, broken, forbidden] {
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(300)));
        // For ever.
        assert!(*waits.last().unwrap() >= Duration::from_secs(150));
    }
}

#[test]
fn a_slow_relay_holds_nobody_up() {
    let mut bench = bench(|config| config.target_reservations(1));
    let slow = bench.candidate(1);
    bench.silent.insert(slow);
    bench.work();
    let next = bench.candidate(2);
    bench.pass(ms(1100));
    assert_eq!(bench.held(), [next]);
}

#[test]
fn a_change_of_network_checks_everything_and_makes_again_what_does_not_answer() {
    let mut bench = bench(|config| config);
    for number in 1..=3 {
        bench.configured(number);
    }
    bench.pass(Duration::from_secs(60));
    // The old connections are dead, new ones work.
    let from = bench.now;
    bench.core.on_network_change(bench.now);
    let probes: Vec<_> = std::iter::from_fn(|| bench.core.poll_output()).collect();
    assert_eq!(probes.len(), 3);
    assert!(
        probes
            .iter()
            .all(|probe| matches!(probe, Output::Probe { .. }))
    );
    bench.pass(ms(1000));
    assert_eq!(bench.held().len(), 3);
    let fresh = bench
        .since(from)
        .into_iter()
        .filter(|output| matches!(output, Output::Dial { .. }));
    assert_eq!(fresh.count(), 3);
    let withdrawn = |output: &&&Output| matches!(output, Output::Withdraw { .. });
    assert_eq!(bench.since(from).iter().filter(withdrawn).count(), 0);

    // Where the old ones answer, nothing else happens.
    bench.pass(Duration::from_secs(1));
    let from = bench.now;
    bench.core.on_network_change(bench.now);
    bench.pass(Duration::from_secs(3));
    let made = bench
        .since(from)
        .into_iter()
        .filter(|output| matches!(output, Output::Reserve { .. } | Output::Lost { .. }));
    assert_eq!(made.count(), 0);
}

#[test]
fn a_change_of_network_ends_all_waits() {
    let mut bench = bench(|config| config);
    let relay = bench.configured(1);
    bench.silent.insert(relay);
    bench.pass(HOUR);
    bench.silent.clear();
    bench.core.on_network_change(bench.now);
    bench.work();
    assert_eq!(bench.held(), [relay]);
}

#[test]
fn nothing_is_held_while_publicly_reachable() {
    let mut bench = bench(|config| config);
    bench.configured(1);
    bench.candidate(2);
    bench.pass(Duration::from_secs(60));
    assert_eq!(bench.held().len(), 2);
    bench.core.on_reachability(true, bench.now);
    bench.pass(Duration::from_secs(9));
    assert_eq!(bench.held().len(), 2, "it might have been a short while");
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.held().len(), 0);
    assert!(bench.addresses.is_empty());
    let from = bench.now;
    bench.pass(HOUR);
    let asked = |output: &&&Output| matches!(output, Output::Reserve { .. });
    assert_eq!(bench.since(from).iter().filter(asked).count(), 0);
    bench.core.on_reachability(false, bench.now);
    bench.work();
    assert!(!bench.held().is_empty());
}

#[test]
fn candidates_are_asked_for_soon_and_then_less_often() {
    let mut bench = bench(|config| config);
    bench.configured(1);
    let from = bench.now;
    bench.pass(Duration::from_secs(120));
    let wishes: Vec<_> = bench
        .told
        .iter()
        .filter_map(|(at, output)| match output {
            Output::CandidatesWanted { missing: 2 } => Some((*at - from).as_secs()),
            Output::CandidatesWanted { missing } => panic!("{missing}"),
            _ => None,
        })
        .collect();
    assert_eq!(wishes, [0, 2, 6, 14, 30, 60, 90, 120]);
}

#[test]
fn a_much_better_relay_takes_the_place_of_the_worst() {
    let mut bench = bench(|config| config.target_reservations(1));
    let far = bench.candidate(1);
    bench.rtt.insert(far, ms(300));
    bench.pass(Duration::from_secs(60));
    assert_eq!(bench.held(), [far]);
    let near = bench.candidate(2);
    // Known from a connection that is there anyway.
    let link = Link {
        id: ConnectionId::new_unchecked(1000),
        address: Some(transport(2)),
    };
    bench
        .core
        .add_candidate(near, [transport(2)], vec![link], bench.now);
    bench.pass(Duration::from_secs(20 * 60));
    assert_eq!(bench.held(), [near]);
}

#[test]
fn announcements_count_by_load_and_end() {
    let mut bench = bench(|config| config.target_reservations(1));
    bench.core.on_reachability(true, bench.now);
    let load = |reservations: u32| Load {
        reservations,
        max_reservations: 100,
        ..Load::default()
    };
    for (number, used) in [(1, 95), (2, 10), (3, 60)] {
        let until = bench.now + HOUR;
        bench.core.on_announcement(
            peer(number),
            [transport(number)],
            Vec::new(),
            (load(used), SystemTime::UNIX_EPOCH, until),
            bench.now,
        );
    }
    let over = bench.now;
    bench.core.on_announcement(
        peer(4),
        [transport(4)],
        Vec::new(),
        (load(0), SystemTime::UNIX_EPOCH, over),
        bench.now,
    );
    assert_eq!(bench.core.candidates(), 3, "one was out of date");
    bench.core.on_reachability(false, bench.now);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.held(), [peer(2)]);
    // Connected relays are not forgotten; these two are not.
    for number in [1, 3] {
        if let Some(link) = bench.dialled.get(&peer(number)) {
            bench
                .core
                .on_disconnected(peer(number), *link, false, bench.now);
        }
    }
    bench.pass(2 * HOUR);
    assert_eq!(bench.core.candidates(), 1, "the others ended");
}

#[test]
fn one_network_cannot_take_all_the_places_of_candidates() {
    let mut bench = bench(|config| config.target_reservations(0));
    for number in 0..=255_u8 {
        let relay = PeerId::random();
        let same: Multiaddr = format!("/ip4/203.0.113.{number}/tcp/1").parse().unwrap();
        bench
            .core
            .add_candidate(relay, [same], Vec::new(), bench.now);
    }
    assert_eq!(bench.core.candidates(), 16);
    for number in 1..=255_u8 {
        bench
            .core
            .add_candidate(PeerId::random(), [transport(number)], Vec::new(), bench.now);
    }
    assert_eq!(bench.core.candidates(), 64);
}

#[test]
fn configured_relays_are_bounded_and_can_be_given_up() {
    let mut bench = bench(|config| config.max_relays(2));
    let (first, _) = (bench.configured(1), bench.configured(2));
    let third = RelayAddress {
        relay: peer(3),
        transport: transport(3),
    };
    assert_eq!(
        bench.core.add_relay(third.clone(), Vec::new(), bench.now),
        Err(InvalidRelayAddress::TooMany { max: 2 })
    );
    bench.work();
    assert!(bench.core.remove_relay(&first, bench.now));
    assert!(!bench.core.remove_relay(&first, bench.now));
    bench.work();
    assert!(!bench.addresses.contains_key(&first));
    assert_eq!(bench.core.add_relay(third, Vec::new(), bench.now), Ok(()));
}

#[test]
fn a_grant_that_comes_too_late_is_given_back() {
    let mut bench = bench(|config| config);
    let relay = bench.configured(1);
    bench.silent.insert(relay);
    bench.work();
    let link = Link {
        id: ConnectionId::new_unchecked(7),
        address: None,
    };
    bench.core.on_connected(relay, link.clone(), bench.now);
    bench.pass(Duration::from_secs(10));
    let grant = Grant {
        limit: None,
        lifetime: HOUR,
        addresses: Vec::new(),
    };
    bench.core.on_disconnected(relay, link.id, false, bench.now);
    let from = bench.now;
    bench.core.on_granted(relay, link.id, grant, bench.now);
    bench.work();
    assert!(bench.held().is_empty());
    assert!(bench.since(from).contains(&&Output::Release {
        relay,
        link: link.id
    }));
}

#[test]
fn a_relay_that_is_dialled_to_be_measured_is_not_dialled_twice() {
    let mut bench = bench(|config| config.target_reservations(1));
    bench.core.on_reachability(true, bench.now);
    for number in 1..=2 {
        bench.silent.insert(peer(number));
        bench.candidate(number);
    }
    bench.core.on_reachability(false, bench.now);
    // The choice is made before either is connected.
    bench.pass(ms(900));
    let dials = |relay: PeerId| {
        let to = |output: &&(Instant, Output)| matches!(&output.1, Output::Dial { relay: of, .. } if *of == relay);
        bench.told.iter().filter(to).count()
    };
    assert_eq!((dials(peer(1)), dials(peer(2))), (1, 1));
}

#[test]
fn a_request_that_came_to_nothing_lets_go_of_its_connection() {
    let why = LossReason::Refused(StatusCode::ReservationRefused);
    for refuses in [true, false] {
        let mut bench = bench(|config| config);
        let relay = bench.configured(1);
        if refuses {
            bench.refusing.insert(relay, why);
            bench.work();
        } else {
            // It is connected and then says nothing.
            let link = Link {
                id: ConnectionId::new_unchecked(9),
                address: None,
            };
            bench.silent.insert(relay);
            bench.core.on_connected(relay, link, bench.now);
            bench.pass(Duration::from_secs(10));
        }
        let link = bench.asked[&relay];
        let released = Output::Release { relay, link };
        let all = bench.since(bench.now - HOUR);
        assert!(all.contains(&&released), "refuses: {refuses}");
    }
}

#[test]
fn a_request_that_a_change_of_network_overtakes_lets_go_of_its_connection() {
    let mut bench = bench(|config| config);
    let relay = bench.configured(1);
    let link = Link {
        id: ConnectionId::new_unchecked(9),
        address: None,
    };
    bench.silent.insert(relay);
    bench.core.on_connected(relay, link.clone(), bench.now);
    bench.pass(Duration::from_secs(2));
    bench.core.on_network_change(bench.now);
    bench.work();
    let link = link.id;
    let all = bench.since(bench.now - HOUR);
    assert!(all.contains(&&Output::Release { relay, link }));
}

#[test]
fn a_relay_that_stops_relaying_is_asked_and_replaced_at_once() {
    let mut bench = bench(|config| config.target_reservations(1));
    let relay = bench.candidate(1);
    bench.pass(Duration::from_secs(60));
    let other = bench.candidate(2);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.held(), [relay]);
    bench.refusing.insert(relay, LossReason::Unsupported);
    let from = bench.now;
    bench.core.on_withdrawn(relay, bench.now);
    bench.pass(Duration::from_secs(2));
    assert!(bench.held().contains(&other));
    let link = bench.asked[&relay];
    let asked = bench.since(from);
    assert!(asked.contains(&&Output::Reserve { relay, link }));
}

#[test]
fn a_relay_that_relays_after_all_is_kept() {
    let mut bench = bench(|config| config.target_reservations(1));
    let relay = bench.configured(1);
    bench.pass(Duration::from_secs(60));
    bench.core.on_withdrawn(relay, bench.now);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.held(), [relay]);
    assert_eq!(bench.core.missing(bench.now), 0);
}

#[test]
fn an_address_that_becomes_the_external_one_is_not_taken_back() {
    let mut bench = bench(|config| config);
    let relay = bench.configured(1);
    let other: Multiaddr = "/ip4/198.1.0.1/udp/4001/quic-v1".parse().unwrap();
    bench.named.insert(relay, vec![other.clone()]);
    bench.work();
    let both = BTreeSet::from([transport(1), other.clone()]);
    assert_eq!(bench.addresses[&relay], both);
    assert_eq!(bench.external[&relay], transport(1));
    // The same relay, over its other address: what was external is listed now, and the reverse.
    bench.pass(Duration::from_secs(1));
    let from = bench.now;
    let link = Link {
        id: ConnectionId::new_unchecked(1000),
        address: Some(other.clone()),
    };
    bench.core.on_connected(relay, link, bench.now);
    bench.disconnect(relay);
    bench.pass(Duration::from_secs(5));
    assert_eq!(bench.held(), [relay]);
    assert_eq!(bench.addresses[&relay], both);
    assert_eq!(bench.external[&relay], other);
    let touched =
        |output: &&&Output| matches!(output, Output::Announce { .. } | Output::Withdraw { .. });
    assert_eq!(bench.since(from).iter().filter(touched).count(), 0);
    // What a relay no longer names goes.
    bench.named.clear();
    bench.core.remove_relay(&relay, bench.now);
    bench.work();
    assert!(bench.addresses.is_empty() && bench.external.is_empty());
}

#[test]
fn nothing_is_due_in_the_past_while_a_choice_is_open() {
    let mut bench = bench(|config| config.target_reservations(1));
    let why = LossReason::Refused(StatusCode::PermissionDenied);
    for number in 1..=6 {
        bench.refusing.insert(peer(number), why);
    }
    for number in 1..=6 {
        bench.candidate(number);
        bench.pass(ms(20));
    }
    bench.pass(Duration::from_secs(5));
    let Wish::Told { next, .. } = bench.core.wish else {
        panic!("{:?}", bench.core.wish);
    };
    bench.now = next - ms(100);
    for number in 1..=6 {
        bench.silent.insert(peer(number));
    }
    bench.core.on_network_change(bench.now);
    assert!(bench.core.choosing.is_some());
    bench.work();
    bench.core.handle_timeout(next);
    let due = bench.core.poll_timeout().unwrap();
    assert!(due > next, "due {:?} ago", next - due);
}

#[test]
fn every_reservation_is_asked_for_again_after_a_sleep() {
    let mut bench = bench(|config| config);
    for number in 1..=3 {
        bench.configured(number);
    }
    bench.pass(Duration::from_secs(60));
    let from = bench.now;
    bench.core.on_sleep(bench.now);
    bench.pass(ms(10));
    let renewed = |output: &&&Output| matches!(output, Output::Reserved { renewal: true, .. });
    assert_eq!(bench.since(from).iter().filter(renewed).count(), 3);
}

#[test]
fn a_relays_clock_is_not_trusted_for_more_than_half_an_hour() {
    let mut bench = bench(|config| config);
    let relay = bench.configured(1);
    bench.lifetime = 24 * HOUR;
    bench.work();
    let from = bench.now;
    bench.pass(Duration::from_secs(30 * 60));
    let renewed = |output: &&&Output| matches!(output, Output::Reserved { renewal: true, .. });
    assert_eq!(bench.since(from).iter().filter(renewed).count(), 1);
    // Where it refuses, too.
    bench.refusing.insert(relay, LossReason::Stream);
    bench.pass(Duration::from_secs(30 * 60));
    let from = bench.now;
    bench.pass(Duration::from_secs(15 * 60));
    let asked = |output: &&&Output| matches!(output, Output::Reserve { .. });
    assert!(bench.since(from).iter().any(|output| asked(&output)));
}

#[test]
fn a_relay_that_was_reached_in_public_names_no_private_addresses() {
    let private: Multiaddr = "/ip4/192.168.1.1/tcp/4001".parse().unwrap();
    let public: Multiaddr = "/ip4/198.7.0.1/udp/4001/quic-v1".parse().unwrap();
    for allowed in [false, true] {
        let mut bench = bench(|config| config.allow_private(allowed));
        let relay = bench.configured(1);
        bench
            .named
            .insert(relay, vec![private.clone(), public.clone()]);
        bench.work();
        let known = &bench.addresses[&relay];
        assert!(known.contains(&public));
        assert_eq!(known.contains(&private), allowed);
    }
    // One of this node's own network may.
    let mut bench = bench(|config| config);
    let relay = peer(1);
    let address = RelayAddress {
        relay,
        transport: "/ip4/10.0.0.1/tcp/4001".parse().unwrap(),
    };
    bench.named.insert(relay, vec![private.clone()]);
    bench
        .core
        .add_relay(address, Vec::new(), bench.now)
        .unwrap();
    bench.work();
    assert!(bench.addresses[&relay].contains(&private));
}

#[test]
fn a_storm_of_changes_does_not_make_a_storm_of_requests() {
    let mut bench = bench(|config| config);
    let relay = bench.configured(1);
    let why = LossReason::Refused(StatusCode::PermissionDenied);
    bench.refusing.insert(relay, why);
    bench.pass(HOUR);
    let from = bench.now;
    for _ in 0..600 {
        bench.core.on_network_change(bench.now);
        bench.pass(ms(100));
    }
    let asked = |output: &&&Output| matches!(output, Output::Reserve { .. });
    let asked = bench.since(from).iter().filter(asked).count();
    assert!((6..=18).contains(&asked), "{asked} in a minute");
}

#[test]
fn a_replayed_announcement_changes_nothing() {
    let mut bench = bench(|config| config.target_reservations(0));
    let start = SystemTime::UNIX_EPOCH;
    let mut announce = |number: u32, used: u32| {
        let load = Load {
            reservations: used,
            max_reservations: 100,
            ..Load::default()
        };
        let issued = start + Duration::from_secs(number.into());
        bench.core.on_announcement(
            peer(1),
            [transport(1)],
            Vec::new(),
            (load, issued, bench.now + HOUR),
            bench.now,
        );
        bench.core.relays[&peer(1)].load.unwrap().percent()
    };
    assert_eq!(announce(2, 90), 90);
    assert_eq!(announce(1, 0), 90, "an older one");
    assert_eq!(announce(2, 0), 90, "the same again");
    assert_eq!(announce(3, 20), 20);
}

#[test]
fn a_candidate_whose_connection_closes_while_it_is_measured_is_dialled_again() {
    let mut bench = bench(|config| config);
    let relay = peer(1);
    bench.silent.insert(relay);
    let link = Link {
        id: ConnectionId::new_unchecked(9),
        address: Some(transport(1)),
    };
    let id = link.id;
    bench
        .core
        .add_candidate(relay, [transport(1)], vec![link], bench.now);
    bench.work();
    bench.core.on_disconnected(relay, id, true, bench.now);
    bench.silent.clear();
    // After the first backoff, and before a ping that went with the connection would be late.
    bench.pass(ms(1500));
    assert_eq!(bench.held(), [relay]);
}

#[test]
fn a_relay_that_withdraws_again_and_again_is_asked_once_at_a_time() {
    let mut bench = bench(|config| config);
    let relay = bench.configured(1);
    bench.pass(Duration::from_secs(60));
    bench.silent.insert(relay);
    let from = bench.now;
    for _ in 0..100 {
        bench.core.on_withdrawn(relay, bench.now);
        bench.pass(ms(10));
    }
    let asked = |output: &&&Output| matches!(output, Output::Reserve { .. });
    assert_eq!(bench.since(from).iter().filter(asked).count(), 1);
}

#[test]
fn a_far_relay_that_answers_in_its_own_time_outlives_a_change_of_network() {
    let mut bench = bench(|config| config);
    let relay = bench.configured(1);
    bench.rtt.insert(relay, ms(1200));
    bench.pass(Duration::from_secs(60));
    bench.silent.insert(relay);
    bench.core.on_network_change(bench.now);
    bench.pass(ms(1200));
    let link = bench.asked[&relay];
    bench.core.on_pong(relay, link, Some(ms(1200)), bench.now);
    bench.silent.clear();
    bench.pass(Duration::from_secs(10));
    let lost = |output: &&&Output| matches!(output, Output::Lost { .. });
    let all = bench.since(bench.now - HOUR);
    assert_eq!(all.iter().filter(lost).count(), 0);
}

#[test]
fn a_node_that_knows_nothing_and_to_which_nothing_happens_asks_for_candidates() {
    let mut bench = bench(|config| config);
    bench.pass(Duration::ZERO);
    let missing = 3;
    assert_eq!(
        bench.told,
        [(bench.now, Output::CandidatesWanted { missing })]
    );
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.told.len(), 2, "and again");
}
