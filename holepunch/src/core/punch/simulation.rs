//! Two nodes, a relay between them and a NAT before each, on virtual time: mapping × filtering, latencies, skew and loss.
//!
//! The model of a NAT is that of RFC 4787; that of dials is what libp2p-quic and the kernel do: a QUIC handshake repeats its
//! first packet after 1 s and 3 s, a SYN as well; two SYNs that cross become one connection, in which exactly one side must
//! begin; a SYN that finds only a listener becomes one in which the other side must, and if it does not, the two ports are
//! stuck.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;
use crate::core::nat::report::{NatType, TransportNat};

/// Behind what a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nat {
    pub(super) kind: NatType,
    /// The public port is another one than the host's.
    pub(super) shifts: bool,
    /// A packet that nobody asked for is answered, or accepted by the box itself, so that the flow
    /// of the host to where it came from gets another port.
    pub(super) answers: bool,
    /// Its gateway has mapped [`MAPPED`] to the listening port.
    pub(super) maps: bool,
    /// Each new mapping gets the next port, and the node knows that.
    pub(super) counts: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Scenario {
    /// The responder's and the initiator's.
    pub(super) nats: [Nat; 2],
    pub(super) transport: Transport,
    /// One way between the two.
    pub(super) direct: Duration,
    /// One way through the relay.
    pub(super) relayed: Duration,
    /// How much later than it should a node does what it decides.
    pub(super) late: [Duration; 2],
    /// Of a packet, on the direct path.
    pub(super) loss: f64,
    /// Whether the nodes know what they stand behind.
    pub(super) classified: bool,
    pub(super) early: bool,
    /// Nodes that open ports for later attempts.
    pub(super) fresh: [bool; 2],
    /// Nodes that know nothing but the specification.
    pub(super) stock: [bool; 2],
    /// How much later the initiator's own circuit to the responder is up, if it dialled one too.
    pub(super) crossing: Option<Duration>,
}

impl Scenario {
    pub(super) fn new(responder: NatType, initiator: NatType, transport: Transport) -> Self {
        let nat = |kind| Nat {
            kind,
            shifts: false,
            answers: false,
            maps: false,
            counts: false,
        };
        Self {
            nats: [nat(responder), nat(initiator)],
            transport,
            direct: Duration::from_millis(25),
            relayed: Duration::from_millis(50),
            late: [Duration::ZERO; 2],
            loss: 0.0,
            classified: true,
            early: true,
            fresh: [true; 2],
            stock: [false; 2],
            crossing: None,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Report {
    /// Each node's result and when.
    pub(super) outcomes: [Option<(Duration, Result<(), PunchError>)>; 2],
    /// All that each node tells.
    pub(super) told: [Option<Outcome>; 2],
    /// Direct connections at the end.
    pub(super) connections: usize,
    /// Dials that were made.
    pub(super) dials: [usize; 2],
    /// Ports that were opened, and those that are left.
    pub(super) ports: [usize; 2],
    pub(super) ports_left: usize,
}

impl Report {
    pub(super) fn is_success(&self) -> bool {
        let ok = |side: usize| matches!(self.outcomes[side], Some((_, Ok(()))));
        ok(0) && ok(1)
    }
}

/// The address of a node before its NAT, and of a public port on it.
type Port = (usize, u16);

const LISTENING: u16 = 9100;
/// The public port that a gateway maps.
const MAPPED: u16 = 15_000;
/// The relay, as a destination of mappings.
const RELAY: Port = (2, 4001);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// The end of a circuit is up, that of the node that dialled it or the other.
    Relayed(usize, Role),
    Timer(usize),
    /// A message through the relay, or the end of a stream.
    Said(usize, Word),
    /// An output that a slow node carries out.
    Act(usize, u64),
    /// Packet of a dial leaves.
    Leaves(u64),
    /// It arrives from there at that public port.
    Arrives {
        dial: u64,
        from: Port,
        to: Port,
    },
    /// The connection is up at one of its ends.
    Up(usize, u64),
    Fails(u64),
    /// A fresh port is seen from outside.
    Seen(usize, PortId, u16),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    Opened(u32),
    Answered(u32),
    Synchronised(u32),
    /// Of an exchange that the hearer opened, or of one that the other did.
    Failed(bool, u32),
    Farewell(u64),
}

struct Attempt {
    side: usize,
    id: Option<DialId>,
    how: As,
    to: Port,
    local: u16,
    /// The first packet dies behind the own NAT.
    dies: bool,
    done: bool,
}

struct Box_ {
    nat: Nat,
    /// Public port by local port, and by destination where the mapping depends on it.
    mappings: BTreeMap<(u16, Option<Port>), u16>,
    /// Local port by public port.
    back: BTreeMap<u16, u16>,
    /// Whom a public port has sent to.
    sent: BTreeSet<(u16, Port)>,
    /// Flows whose port is taken by an answered packet.
    taken: BTreeSet<(u16, Port)>,
    next: u16,
}

impl Box_ {
    fn new(nat: Nat) -> Self {
        Self {
            nat,
            mappings: BTreeMap::new(),
            back: BTreeMap::new(),
            sent: BTreeSet::new(),
            taken: BTreeSet::new(),
            next: 20_000,
        }
    }

    /// The public port of a flow that leaves.
    fn leaves(&mut self, local: u16, to: Port) -> u16 {
        if self.nat.kind == NatType::Public {
            self.back.insert(local, local);
            return local;
        }
        let by_destination = self.nat.kind == NatType::Symmetric;
        let key = (local, by_destination.then_some(to));
        let mut public = match self.mappings.get(&key) {
            Some(public) => *public,
            None if by_destination || self.nat.shifts => self.fresh(),
            None => local,
        };
        if self.taken.contains(&(public, to)) {
            public = self.fresh();
            self.mappings.insert((local, Some(to)), public);
            // Linux gives later flows of the host's port what the last one got (`find_appropriate_src`).
            self.mappings.insert((local, None), public);
        }
        self.mappings.entry(key).or_insert(public);
        let public = *self.mappings.get(&(local, Some(to))).unwrap_or(&public);
        self.back.insert(public, local);
        self.sent.insert((public, to));
        public
    }

    fn fresh(&mut self) -> u16 {
        self.next += if self.nat.counts { 1 } else { 7 };
        self.next
    }

    /// The local port that a packet gets to.
    fn arrives(&mut self, from: Port, public: u16) -> Option<u16> {
        if self.nat.kind == NatType::Public {
            return Some(public);
        }
        if self.nat.maps && public == MAPPED {
            self.mappings.insert((LISTENING, Some(from)), MAPPED);
            return Some(LISTENING);
        }
        let local = self.back.get(&public).copied();
        let passes = match self.nat.kind {
            NatType::FullCone => true,
            NatType::RestrictedCone => self
                .sent
                .iter()
                .any(|(port, to)| *port == public && to.0 == from.0),
            _ => self.sent.contains(&(public, from)),
        };
        let to = local.filter(|_| passes);
        if to.is_none() && self.nat.answers {
            self.taken.insert((public, from));
        }
        to
    }
}

struct World {
    scenario: Scenario,
    random: StdRng,
    start: Instant,
    now: Instant,
    due: BinaryHeap<Reverse<(Instant, u64, Happening)>>,
    order: u64,
    ids: [PeerId; 2],
    cores: [Punches; 2],
    boxes: [Box_; 2],
    attempts: Vec<Attempt>,
    messages: BTreeMap<(usize, Opener, u32), (Message, Instant)>,
    /// On which circuit a node opened an exchange.
    opened: BTreeMap<(usize, u32), ConnectionId>,
    farewells: Vec<Message>,
    acts: Vec<Output>,
    next_connection: usize,
    links: [BTreeSet<ConnectionId>; 2],
    /// Fresh ports that listen.
    ports: BTreeSet<(usize, PortId)>,
    /// Whose listening port is bound up with which remote one, in a TCP connection that waits for
    /// its other end to begin.
    stuck: BTreeSet<(usize, Port)>,
    report: Report,
}

/// The circuits that each node may have dialled; direct connections count on from there.
const CIRCUITS: usize = 2;

/// Runs one scenario to its end.
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
pub(super) fn run(scenario: &Scenario, seed: u64) -> Report {
    let start = Instant::now();
    let config = || {
        Config::builder()
            .early(scenario.early && !scenario.stock.contains(&true))
            .close_duplicates(true)
            .build()
            .unwrap()
    };
    let mut ids = [PeerId::random(), PeerId::random()];
    ids.sort();
    if seed.is_multiple_of(2) {
        ids.swap(0, 1);
    }
    let mut world = World {
        random: StdRng::seed_from_u64(seed),
        start,
        now: start,
        due: BinaryHeap::new(),
        order: 0,
        ids,
        cores: ids.map(|id| Punches::new(id, config())),
        boxes: scenario.nats.map(Box_::new),
        attempts: Vec::new(),
        messages: BTreeMap::new(),
        opened: BTreeMap::new(),
        farewells: Vec::new(),
        acts: Vec::new(),
        next_connection: CIRCUITS,
        links: Default::default(),
        ports: BTreeSet::new(),
        stuck: BTreeSet::new(),
        report: Report::default(),
        scenario: scenario.clone(),
    };
    world.run();
    world.report
}

impl World {
    fn run(&mut self) {
        for side in 0..2 {
            let public = self.boxes[side].leaves(LISTENING, RELAY);
            let counts = self.scenario.nats[side].counts;
            let mut nat = if self.scenario.classified {
                TransportNat::of(self.scenario.nats[side].kind)
            } else {
                TransportNat::default()
            };
            nat.port_step = std::num::NonZeroI16::new(counts.into());
            nat.can_map_port = self.scenario.nats[side].maps;
            let predicted = if counts { public + 1..public + 5 } else { 0..0 };
            let mapped = nat.can_map_port.then_some(MAPPED);
            let ports = std::iter::once(public).chain(predicted).chain(mapped);
            let can_open = self.scenario.fresh[side] && !self.scenario.stock[side];
            let own = Own {
                candidates: ports.map(|port| self.address((side, port))).collect(),
                local: Vec::new(),
                nat: NatReport {
                    udp: nat,
                    tcp: nat,
                    ..NatReport::default()
                },
                can_open: can_open
                    .then_some(self.scenario.transport)
                    .into_iter()
                    .collect(),
            };
            self.cores[side].on_own(own, self.now);
        }
        let relayed = self.scenario.relayed;
        self.at(Duration::ZERO, Happening::Relayed(0, Role::Responder));
        self.at(relayed, Happening::Relayed(1, Role::Initiator));
        if let Some(after) = self.scenario.crossing {
            self.at(after, Happening::Relayed(1, Role::Responder));
            self.at(after + relayed, Happening::Relayed(0, Role::Initiator));
        }
        let end = self.start + Duration::from_secs(20);
        while let Some(Reverse((at, _, happening))) = self.due.pop() {
            if at > end {
                break;
            }
            self.now = at;
            self.happen(happening);
        }
        self.report.ports_left = self.ports.len();
        self.report.connections = self.links[0].intersection(&self.links[1]).count();
    }

    fn at(&mut self, after: Duration, happening: Happening) {
        self.order += 1;
        self.due
            .push(Reverse((self.now + after, self.order, happening)));
    }

    fn address(&self, port: Port) -> Multiaddr {
        let ip = format!("203.0.113.{}", 10 * (port.0 + 1));
        match self.scenario.transport {
            Transport::Quic => format!("/ip4/{ip}/udp/{}/quic-v1", port.1),
            _ => format!("/ip4/{ip}/tcp/{}", port.1),
        }
        .parse()
        .unwrap()
    }

    fn port(address: &Multiaddr) -> Port {
        use libp2p_core::multiaddr::Protocol;
        let mut port = (0, 0);
        for part in address {
            match part {
                Protocol::Ip4(ip) => port.0 = usize::from(ip.octets()[3]) / 10 - 1,
                Protocol::Tcp(number) | Protocol::Udp(number) => port.1 = number,
                _ => {}
            }
        }
        port
    }

    /// The circuit that this node dialled.
    fn circuit(side: usize) -> ConnectionId {
        ConnectionId::new_unchecked(side)
    }

    fn happen(&mut self, happening: Happening) {
        let now = self.now;
        match happening {
            Happening::Relayed(side, role) => {
                let peer = self.ids[1 - side];
                let circuit = match role {
                    Role::Responder => Self::circuit(side),
                    Role::Initiator => Self::circuit(1 - side),
                };
                self.cores[side].on_relayed(circuit, peer, role, now);
                self.drain(side);
            }
            Happening::Timer(side) => {
                if self.cores[side].poll_timeout().is_some_and(|at| at <= now) {
                    self.cores[side].handle_timeout(now);
                }
                self.drain(side);
            }
            Happening::Said(side, word) => self.said(side, word),
            Happening::Act(side, index) => {
                let output = self.acts[index as usize].clone();
                self.act(side, output);
            }
            Happening::Leaves(dial) => self.leaves(dial),
            Happening::Arrives { dial, from, to } => self.arrives(dial, from, to),
            Happening::Up(side, dial) => self.up(side, dial),
            Happening::Seen(side, port, public) => {
                let public = self.address((side, public));
                self.cores[side].on_port(port, Some(public), now);
                self.drain(side);
            }
            Happening::Fails(dial) => {
                let attempt = &mut self.attempts[dial as usize];
                if !std::mem::replace(&mut attempt.done, true) {
                    let side = attempt.side;
                    if let Some(id) = attempt.id {
                        self.cores[side].on_dial_failed(id, now);
                        self.drain(side);
                    }
                }
            }
        }
    }

    fn said(&mut self, side: usize, word: Word) {
        let now = self.now;
        let exchange = |opener, number| Exchange {
            relayed: match opener {
                Opener::Us => self.opened[&(side, number)],
                Opener::Peer => self.opened[&(1 - side, number)],
            },
            opener,
            number,
        };
        let core = &mut self.cores[side];
        match word {
            Word::Opened(number) => {
                let key = (1 - side, Opener::Us, number);
                if let Some((message, _)) = self.messages.get(&key) {
                    core.on_connect(exchange(Opener::Peer, number), message, now);
                }
            }
            Word::Answered(number) => {
                let sent = self.messages[&(side, Opener::Us, number)].1;
                let (message, _) = self.messages[&(1 - side, Opener::Peer, number)].clone();
                let round_trip = now - sent;
                core.on_connected(exchange(Opener::Us, number), &message, round_trip, now);
            }
            Word::Synchronised(number) => {
                let (message, _) = self.messages[&(1 - side, Opener::Us, number)].clone();
                core.on_sync(exchange(Opener::Peer, number), &message, now);
            }
            Word::Failed(ours, number) => {
                let opener = if ours { Opener::Us } else { Opener::Peer };
                core.on_exchange_failed(exchange(opener, number), now);
            }
            Word::Farewell(index) => {
                let message = self.farewells[index as usize].clone();
                let number = u32::MAX - index as u32;
                core.on_connect(exchange(Opener::Peer, number), &message, now);
            }
        }
        self.drain(side);
    }

    fn drain(&mut self, side: usize) {
        while let Some(mut output) = self.cores[side].poll_output() {
            // What one does not say the other need not hear.
            if self.scenario.stock.contains(&true) {
                match &mut output {
                    Output::Connect { message, .. }
                    | Output::Reply { message, .. }
                    | Output::Sync { message, .. } => message.extras = None,
                    Output::Farewell { .. } => continue,
                    _ => {}
                }
            }
            let late = self.scenario.late[side];
            if late.is_zero() {
                self.act(side, output);
            } else {
                self.acts.push(output);
                let index = self.acts.len() as u64 - 1;
                self.at(late, Happening::Act(side, index));
            }
        }
        if let Some(at) = self.cores[side].poll_timeout() {
            let after = at.saturating_duration_since(self.now);
            self.at(after, Happening::Timer(side));
        }
    }

    fn act(&mut self, side: usize, output: Output) {
        let there = 1 - side;
        let relayed = self.scenario.relayed;
        match output {
            Output::Connect {
                exchange, message, ..
            } => {
                let key = (side, Opener::Us, exchange.number);
                self.messages.insert(key, (message, self.now));
                self.opened
                    .insert((side, exchange.number), exchange.relayed);
                self.at(
                    relayed,
                    Happening::Said(there, Word::Opened(exchange.number)),
                );
            }
            Output::Reply {
                exchange, message, ..
            } => {
                let key = (side, Opener::Peer, exchange.number);
                self.messages.insert(key, (message, self.now));
                let word = Word::Answered(exchange.number);
                self.at(relayed, Happening::Said(there, word));
            }
            Output::Sync {
                exchange, message, ..
            } => {
                let key = (side, Opener::Us, exchange.number);
                self.messages.insert(key, (message, self.now));
                let word = Word::Synchronised(exchange.number);
                self.at(relayed, Happening::Said(there, word));
            }
            Output::Farewell {
                relayed: circuit,
                message,
                ..
            } => {
                self.farewells.push(message);
                let index = self.farewells.len() as u64 - 1;
                self.opened.insert((side, u32::MAX - index as u32), circuit);
                self.at(relayed, Happening::Said(there, Word::Farewell(index)));
            }
            Output::Abandon { exchange, .. } => {
                let word = Word::Failed(exchange.opener == Opener::Peer, exchange.number);
                self.at(relayed, Happening::Said(there, word));
            }
            Output::Release { .. } | Output::Hold { .. } => {}
            // Links that are up carry what is sent.
            Output::Doubt(peer) => {
                let links = self.links[side].iter().copied().collect::<Vec<_>>();
                for link in links {
                    self.cores[side].on_alive(link, peer);
                }
            }
            Output::Dial {
                dial,
                address,
                how,
                from,
                ..
            } => self.dial(side, dial, &address, how, from),
            Output::OpenPort(opening) => self.open_port(side, opening),
            Output::ClosePort(port) => {
                self.ports.remove(&(side, port));
            }
            Output::Close { connection, .. } => {
                self.links[side].remove(&connection);
                let peer = self.ids[there];
                self.cores[side].on_closed(connection, peer, self.now);
                // The other end learns it a moment later; nothing here depends on when.
                self.links[there].remove(&connection);
                let peer = self.ids[side];
                self.cores[there].on_closed(connection, peer, self.now);
            }
            Output::Event(Event::Outcome(outcome)) => {
                let elapsed = self.now - self.start;
                let result = outcome.result.map(|_| ());
                assert!(self.report.outcomes[side].is_none(), "two outcomes");
                self.report.outcomes[side] = Some((elapsed, result));
                self.report.told[side] = Some(outcome);
            }
            Output::Event(_) => {}
        }
    }

    /// The NAT is opened at once; what it looks like is known after a handshake with the relay and a
    /// round trip of identify, later if a packet is lost.
    fn open_port(&mut self, side: usize, opening: Opening) {
        self.report.ports[side] += 1;
        self.ports.insert((side, opening.port));
        let local = Self::local(opening.port);
        if self.scenario.transport == Transport::Quic {
            for address in &opening.towards {
                self.boxes[side].leaves(local, Self::port(address));
            }
        }
        let public = self.boxes[side].leaves(local, RELAY);
        let arrives = (1.0 - self.scenario.loss).powi(6);
        let repeats = if self.random.random_bool(arrives) {
            0
        } else {
            1
        };
        let after = 3 * self.scenario.relayed + Duration::from_secs(repeats);
        self.at(after, Happening::Seen(side, opening.port, public));
    }

    fn local(port: PortId) -> u16 {
        40_000 + u16::try_from(port.0).unwrap()
    }

    /// Whether a new connection is taken there.
    fn listens(&self, side: usize, local: u16) -> bool {
        let is_quic = self.scenario.transport == Transport::Quic;
        let mut ports = self.ports.iter();
        local == LISTENING
            || (is_quic && ports.any(|(of, port)| *of == side && Self::local(*port) == local))
    }

    fn dial(
        &mut self,
        side: usize,
        id: DialId,
        address: &Multiaddr,
        how: As,
        from: Option<PortId>,
    ) {
        self.report.dials[side] += 1;
        let dial = self.attempts.len() as u64;
        let local = match from {
            Some(port) => Self::local(port),
            None if how == As::Stranger => 30_000 + u16::try_from(dial).unwrap(),
            None => LISTENING,
        };
        self.attempts.push(Attempt {
            side,
            id: Some(id),
            how,
            to: Self::port(address),
            local,
            dies: from.is_some() && self.scenario.transport == Transport::Tcp,
            done: false,
        });
        let times: Vec<u64> = match how {
            As::Opener => (0..40).map(|n| n * 100).collect(),
            _ => vec![0, 1000, 3000],
        };
        for after in times {
            self.at(Duration::from_millis(after), Happening::Leaves(dial));
        }
        let timeout = match self.scenario.transport {
            Transport::Quic => 5,
            _ => 10,
        };
        self.at(Duration::from_secs(timeout), Happening::Fails(dial));
    }

    fn leaves(&mut self, dial: u64) {
        let attempt = &self.attempts[dial as usize];
        if attempt.done {
            return;
        }
        let (side, to) = (attempt.side, attempt.to);
        if attempt.local == LISTENING && self.stuck.contains(&(side, to)) {
            return;
        }
        let public = self.boxes[side].leaves(attempt.local, to);
        if std::mem::take(&mut self.attempts[dial as usize].dies) {
            return;
        }
        if self.random.random_bool(self.scenario.loss) {
            return;
        }
        let from = (side, public);
        self.at(self.scenario.direct, Happening::Arrives { dial, from, to });
    }

    fn arrives(&mut self, dial: u64, from: Port, to: Port) {
        let there = to.0;
        let Some(local) = self.boxes[there].arrives(from, to.1) else {
            if self.scenario.nats[there].answers && self.scenario.transport == Transport::Tcp {
                // A reset.
                self.at(self.scenario.direct, Happening::Fails(dial));
            }
            return;
        };
        let attempt = &self.attempts[dial as usize];
        if attempt.done || attempt.how == As::Opener {
            return;
        }
        let listens = self.listens(there, local);
        let begins = matches!(attempt.how, As::Client | As::Stranger);
        let mut others = self.attempts.iter().enumerate();
        let crossing = others.find(|(_, other)| {
            other.side == there && !other.done && other.to == from && other.local == local
        });
        let crossing = crossing.map(|(index, other)| (index as u64, other.how));
        match (self.scenario.transport, crossing) {
            (Transport::Quic, crossing) => {
                let taken = crossing.filter(|(_, how)| *how == As::Opener);
                if !listens {
                    return;
                }
                self.connect(dial, taken.map(|(index, _)| index));
            }
            // Simultaneous open: one of the two begins.
            (_, Some((other, how))) if begins != matches!(how, As::Client | As::Stranger) => {
                self.connect(dial, Some(other));
            }
            (_, Some(_)) => {}
            (_, None) if !listens => {}
            // The listener's: the one who came begins.
            (_, None) if begins => self.connect(dial, None),
            (_, None) => {
                self.stuck.insert((there, from));
                let (side, to) = (attempt.side, attempt.to);
                self.stuck.insert((side, to));
            }
        }
    }

    /// A handshake takes a round trip for the one who began it and half as much again for the other.
    fn connect(&mut self, dial: u64, other: Option<u64>) {
        let side = self.attempts[dial as usize].side;
        self.attempts[dial as usize].done = true;
        let other = other.unwrap_or_else(|| {
            self.attempts.push(Attempt {
                side: 1 - side,
                id: None,
                how: As::Server,
                to: (side, 0),
                local: 0,
                dies: false,
                done: true,
            });
            self.attempts.len() as u64 - 1
        });
        self.attempts[other as usize].done = true;
        let connection = self.next_connection;
        self.next_connection += 1;
        for index in [dial, other] {
            // The connection of both ends stands in `to`.
            self.attempts[index as usize].to.1 = u16::try_from(connection).unwrap();
        }
        self.at(self.scenario.direct, Happening::Up(side, dial));
        self.at(2 * self.scenario.direct, Happening::Up(1 - side, other));
    }

    fn up(&mut self, side: usize, dial: u64) {
        let attempt = &self.attempts[dial as usize];
        let connection = ConnectionId::new_unchecked(usize::from(attempt.to.1));
        let id = attempt.id;
        self.links[side].insert(connection);
        let (peer, transport) = (self.ids[1 - side], self.scenario.transport);
        self.cores[side].on_direct(connection, peer, transport, id, self.now);
        self.drain(side);
    }
}
