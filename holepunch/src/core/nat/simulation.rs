//! The classifier against simulated NATs, on virtual time: three servers, two of which the node
//! knows, with round trips of 10 to 300 ms, lost packets and a server that sometimes fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroI16,
    time::Duration,
};

use super::{
    report::{Filtering, Mapping, NatType},
    *,
};
use crate::Config;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const LISTEN: u16 = 9100;
/// The node knows the first two.
const SERVERS: [Ipv4Addr; 3] = [
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv4Addr::new(198, 51, 100, 2),
    Ipv4Addr::new(198, 51, 100, 3),
];
const RUNS: u64 = 200;
/// The bar (issue 6): classified within this time.
const BAR: Duration = Duration::from_secs(5);
/// How long a server waits for a dial-back.
const DIAL_BACK: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
enum Ports {
    Kept,
    Random,
    Counted(u16),
}

#[derive(Debug, Clone, Copy)]
struct Model {
    name: &'static str,
    mapping: Mapping,
    filtering: Filtering,
    translates: bool,
    ports: Ports,
    passes_udp: bool,
    expected: NatType,
}

impl Model {
    const fn new(
        name: &'static str,
        mapping: Mapping,
        filtering: Filtering,
        ports: Ports,
        expected: NatType,
    ) -> Self {
        Self {
            name,
            mapping,
            filtering,
            translates: true,
            ports,
            passes_udp: true,
            expected,
        }
    }
}

const fn models() -> [Model; 13] {
    use Filtering as F;
    use Mapping as M;
    use NatType as T;
    use Ports::{Counted, Kept, Random};
    let open = M::EndpointIndependent;
    let strict = F::AddressAndPortDependent;
    let sym = M::AddressAndPortDependent;
    [
        Model {
            translates: false,
            ..Model::new("public", open, F::EndpointIndependent, Kept, T::Public)
        },
        Model {
            translates: false,
            ..Model::new("firewall", open, strict, Kept, T::PortRestrictedCone)
        },
        Model {
            translates: false,
            ..Model::new(
                "lax firewall",
                open,
                F::AddressDependent,
                Kept,
                T::RestrictedCone,
            )
        },
        Model::new("full", open, F::EndpointIndependent, Kept, T::FullCone),
        Model::new(
            "fullshift",
            open,
            F::EndpointIndependent,
            Random,
            T::FullCone,
        ),
        Model::new("addr", open, F::AddressDependent, Kept, T::RestrictedCone),
        Model::new(
            "addrshift",
            open,
            F::AddressDependent,
            Random,
            T::RestrictedCone,
        ),
        Model::new("port", open, strict, Kept, T::PortRestrictedCone),
        Model::new("portshift", open, strict, Random, T::PortRestrictedCone),
        Model::new("sym", sym, strict, Random, T::Symmetric),
        Model::new("symseq", sym, strict, Counted(2), T::Symmetric),
        Model::new(
            "addrsym",
            M::AddressDependent,
            F::AddressDependent,
            Random,
            T::Symmetric,
        ),
        Model {
            passes_udp: false,
            ..Model::new("noudp", open, strict, Kept, T::PortRestrictedCone)
        },
    ]
}

/// A small generator with a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // Steele et al., "Fast splittable pseudorandom number generators".
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

struct Box {
    model: Model,
    mappings: BTreeMap<(Proto, Option<SocketAddr>), u16>,
    sent: BTreeSet<(Proto, u16, SocketAddr)>,
    counter: u16,
}

impl Box {
    /// A packet from the node's socket goes out: how it looks there.
    fn send(&mut self, to: Endpoint, random: &mut Random) -> Option<SocketAddr> {
        if to.proto == Proto::Udp && !self.model.passes_udp {
            return None;
        }
        let key = match self.model.mapping {
            Mapping::EndpointIndependent => None,
            Mapping::AddressDependent => Some(SocketAddr::new(to.ip(), 0)),
            Mapping::AddressAndPortDependent => Some(to.socket),
        };
        let fresh = match self.model.ports {
            Ports::Kept => LISTEN,
            Ports::Random => 1024 + random.below(64_000) as u16,
            Ports::Counted(step) => self.counter.wrapping_add(step),
        };
        let known = self.mappings.get(&(to.proto, key)).copied();
        let port = known.unwrap_or(fresh);
        if known.is_none() {
            self.counter = fresh;
            self.mappings.insert((to.proto, key), port);
        }
        self.sent.insert((to.proto, port, to.socket));
        let ip = if self.model.translates {
            PUBLIC
        } else {
            HOST_PUBLIC
        };
        Some(SocketAddr::new(ip.into(), port))
    }

    /// Whether a packet from there to a public port of the node's passes.
    fn lets_in(&self, from: Endpoint, port: u16) -> bool {
        let sent = self
            .sent
            .iter()
            .filter(|(proto, p, _)| (*proto, *p) == (from.proto, port));
        match self.model.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => sent.clone().any(|(_, _, to)| to.ip() == from.ip()),
            Filtering::AddressAndPortDependent => sent.clone().any(|(_, _, to)| *to == from.socket),
        }
    }
}

/// The host's address where nothing translates it.
const HOST_PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);

enum Fact {
    Dial(usize, Proto),
    Connected(usize, Proto, SocketAddr),
    Observed(usize, Proto, SocketAddr),
    /// The server at this index was asked to probe; helper is the third.
    Probe(usize, Proto, SocketAddr),
    Inbound(Endpoint),
    Unreached(usize, Proto, SocketAddr, Unreached),
    Autonat(usize, Proto, SocketAddr, bool),
}

struct World {
    nat: Nat,
    gate: Box,
    random: Random,
    queue: BTreeMap<(Instant, u64), Fact>,
    number: u64,
    round_trips: [Duration; 3],
    peers: [PeerId; 3],
    now: Instant,
    /// The first server's own dials fail.
    lame: bool,
}

fn multiaddr(at: Endpoint) -> Multiaddr {
    let ip = match at.ip() {
        IpAddr::V4(ip) => Multiaddr::from(ip),
        IpAddr::V6(ip) => Multiaddr::from(ip),
    };
    match at.proto {
        Proto::Tcp => ip.with(Protocol::Tcp(at.socket.port())),
        Proto::Udp => ip
            .with(Protocol::Udp(at.socket.port()))
            .with(Protocol::QuicV1),
    }
}

fn endpoint(proto: Proto, socket: SocketAddr) -> Endpoint {
    Endpoint { proto, socket }
}

fn server(index: usize, proto: Proto) -> Endpoint {
    endpoint(proto, SocketAddr::new(SERVERS[index].into(), 4001))
}

fn connection(index: usize, proto: Proto) -> ConnectionId {
    ConnectionId::new_unchecked(index * 2 + usize::from(proto == Proto::Tcp))
}

impl World {
    fn new(model: Model, seed: u64, now: Instant) -> Self {
        let mut random = Random(seed);
        let round_trips = [(); 3].map(|()| random.millis(10, 300));
        let mut world = Self {
            nat: Nat::new(Config::default()),
            gate: Box {
                model,
                mappings: BTreeMap::new(),
                sent: BTreeSet::new(),
                counter: 40_000,
            },
            round_trips,
            peers: [(); 3].map(|()| PeerId::random()),
            lame: random.chance(5),
            random,
            queue: BTreeMap::new(),
            number: 0,
            now,
        };
        let own = if model.translates { HOST } else { HOST_PUBLIC };
        for proto in [Proto::Udp, Proto::Tcp] {
            let at = endpoint(proto, SocketAddr::new(own.into(), LISTEN));
            world.nat.on_listening(&multiaddr(at), now);
            for index in 0..2 {
                let after = world.random.millis(0, 100);
                world.at(after, Fact::Dial(index, proto));
            }
        }
        world
    }

    fn at(&mut self, after: Duration, fact: Fact) {
        self.number += 1;
        self.queue.insert((self.now + after, self.number), fact);
    }

    /// A round trip with a server, with a packet lost now and then.
    fn round_trip(&mut self, index: usize) -> Duration {
        let lost = self.random.chance(3);
        self.round_trips[index] + Duration::from_millis(if lost { 1000 } else { 0 })
    }

    fn happen(&mut self, fact: Fact) {
        let now = self.now;
        match fact {
            Fact::Dial(index, proto) => {
                let to = server(index, proto);
                self.nat.on_contact(&multiaddr(to), now);
                if let Some(seen) = self.gate.send(to, &mut self.random) {
                    // Two round trips for a handshake and what follows it.
                    let after = self.round_trip(index) + self.round_trips[index];
                    self.at(after, Fact::Connected(index, proto, seen));
                }
            }
            Fact::Connected(index, proto, seen) => {
                self.nat.on_connected(
                    connection(index, proto),
                    self.peers[index],
                    &multiaddr(server(index, proto)),
                    Direction::Outbound { own_port: true },
                    now,
                );
                let after = self.round_trip(index);
                self.at(after, Fact::Observed(index, proto, seen));
                self.at(after, Fact::Probe(index, proto, seen));
            }
            Fact::Observed(index, proto, seen) => {
                let observed = multiaddr(endpoint(proto, seen));
                let connection = connection(index, proto);
                self.nat.on_observed(connection, &observed, now);
            }
            Fact::Probe(index, proto, seen) => self.probe(index, proto, seen),
            Fact::Inbound(from) => {
                self.number += 1;
                self.nat.on_connected(
                    ConnectionId::new_unchecked(1000 + self.number as usize),
                    PeerId::random(),
                    &multiaddr(from),
                    Direction::Inbound,
                    now,
                );
            }
            Fact::Unreached(index, proto, seen, unreached) => self.nat.on_unreached(
                connection(index, proto),
                endpoint(proto, seen),
                unreached,
                now,
            ),
            Fact::Autonat(index, proto, seen, reachable) => {
                let address = multiaddr(endpoint(proto, seen));
                self.nat
                    .on_verdict(self.peers[index], &address, reachable, now);
            }
        }
    }

    /// The server dials back from another port and asks the third one to dial as well.
    fn probe(&mut self, index: usize, proto: Proto, seen: SocketAddr) {
        let port = 30_000 + self.random.below(30_000) as u16;
        let other_port = endpoint(proto, SocketAddr::new(SERVERS[index].into(), port));
        let stranger = endpoint(proto, SocketAddr::new(SERVERS[2].into(), port));
        let lame = index == 0 && self.lame;
        let same = !lame && self.gate.lets_in(other_port, seen.port());
        let other = !lame && self.gate.lets_in(stranger, seen.port());
        for (from, reached) in [(other_port, same), (stranger, other)] {
            if reached {
                let after = self.round_trip(index);
                self.at(after, Fact::Inbound(from));
            }
        }
        let autonat = self.round_trip(index) + if same { Duration::ZERO } else { DIAL_BACK };
        self.at(autonat, Fact::Autonat(index, proto, seen, same));
        let unreached = Unreached {
            from_other_port: !same,
            from_other_address: !other,
        };
        if unreached != Unreached::default() {
            let after = DIAL_BACK + self.round_trip(index);
            self.at(after, Fact::Unreached(index, proto, seen, unreached));
        }
    }

    /// Runs until then, and fails if the node ever seems more open than it is.
    fn run(&mut self, until: Instant) {
        loop {
            let fact = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timer = self.nat.poll_timeout();
            let next = fact.into_iter().chain(timer).min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            self.now = next.max(self.now);
            if fact == Some(next) {
                if let Some((_, fact)) = self.queue.pop_first() {
                    self.happen(fact);
                }
            } else {
                self.nat.handle_timeout(self.now);
            }
            while self.nat.poll_output().is_some() {}
            self.never_more_open_than_it_is();
        }
    }

    fn never_more_open_than_it_is(&self) {
        let open = self.gate.model.expected;
        let report = self.nat.report();
        for nat in [report.udp, report.tcp] {
            assert!(nat.nat_type != NatType::Public || open == NatType::Public);
            assert!(nat.nat_type != NatType::FullCone || open == NatType::FullCone);
        }
        let may_be_public = open.lets_strangers_in() || !self.gate.model.translates;
        assert!(self.nat.status() != NatStatus::Public || may_be_public);
    }
}

#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
fn origin() -> Instant {
    Instant::now()
}

#[test]
fn every_kind_of_nat_is_recognised_within_five_seconds() {
    let start = origin();
    for model in models() {
        let mut wrong = Vec::new();
        for seed in 0..RUNS {
            let mut world = World::new(model, seed, start);
            world.run(start + BAR);
            let report = *world.nat.report();
            let udp_right = if model.passes_udp {
                report.udp.nat_type == model.expected && !report.udp.blocked
            } else {
                report.udp.blocked
            };
            if !udp_right || report.tcp.nat_type != model.expected {
                wrong.push((seed, report));
            }
        }
        println!("{:>12}: {} of {RUNS} wrong", model.name, wrong.len());
        assert!(
            wrong.len() as u64 * 100 <= RUNS,
            "{}: {wrong:#?}",
            model.name
        );
    }
}

#[test]
fn ports_that_are_kept_or_counted_are_told() {
    let start = origin();
    for model in models().into_iter().filter(|model| model.passes_udp) {
        let mut world = World::new(model, 7, start);
        world.run(start + BAR);
        let udp = world.nat.report().udp;
        let kept = matches!(model.ports, Ports::Kept);
        assert_eq!(udp.port_preserving, Some(kept), "{}", model.name);
        assert_eq!(udp.port_step, None, "two flows are too few to tell");
        // A third server.
        world.happen(Fact::Dial(2, Proto::Udp));
        world.run(start + 2 * BAR);
        let step = match model.ports {
            Ports::Counted(step) => NonZeroI16::new(step as i16),
            _ => None,
        };
        let udp = world.nat.report().udp;
        assert_eq!(udp.port_step, step, "{}", model.name);
        let seen = multiaddr(endpoint(Proto::Udp, SocketAddr::new(PUBLIC.into(), 1)));
        let predicted = world.nat.predicted(&seen);
        assert_eq!(predicted.is_empty(), step.is_none());
        if step.is_some() {
            let to = endpoint(
                Proto::Udp,
                SocketAddr::new(Ipv4Addr::new(8, 8, 8, 8).into(), 1),
            );
            let next = world.gate.send(to, &mut world.random).unwrap();
            assert_eq!(
                predicted.first(),
                Some(&multiaddr(endpoint(Proto::Udp, next)))
            );
        }
    }
}
