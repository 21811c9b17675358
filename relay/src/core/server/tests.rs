#![expect(clippy::disallowed_methods, reason = "an origin for virtual time")]

use std::ops::{Deref, DerefMut};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;
use crate::server::ConfigBuilder;

/// A relay with a clock of its own and connections that count up.
struct Relay {
    server: Server,
    now: Instant,
    next: usize,
}

impl Deref for Relay {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Relay {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

fn roomy() -> ConfigBuilder {
    ConfigBuilder::generous().rate_limits(false)
}

impl Relay {
    fn new(config: ConfigBuilder) -> Self {
        let config = Arc::new(config.build().unwrap());
        let mut server = Server::new(PeerId::random(), config);
        server.set_enabled(true);
        let mut relay = Self {
            server,
            now: Instant::now(),
            next: 0,
        };
        assert_eq!(relay.outputs(), [Output::Offer(true)]);
        relay
    }

    fn connect_from(&mut self, peer: PeerId, address: &str) -> ConnectionId {
        let connection = ConnectionId::new_unchecked(self.next);
        self.next += 1;
        let address = address.parse().unwrap();
        let relayed = crate::is_relayed(&address);
        self.server
            .on_connected(connection, peer, &address, relayed);
        connection
    }

    /// A new peer with a connection.
    fn guest(&mut self) -> (PeerId, ConnectionId) {
        let peer = PeerId::random();
        (peer, self.connect_from(peer, "/memory/1"))
    }

    /// A new peer with a reservation.
    fn reserved(&mut self) -> (PeerId, ConnectionId) {
        let (peer, connection) = self.guest();
        assert!(!self.ask(connection).unwrap().renewed);
        (peer, connection)
    }

    fn ask(&mut self, connection: ConnectionId) -> Result<Grant, Refusal> {
        self.server.reserve(connection, self.now)
    }

    fn dial(&mut self, from: ConnectionId, to: PeerId) -> Result<Opening, Refusal> {
        self.server.connect(from, to, self.now)
    }

    /// An open circuit.
    fn circuit(&mut self, from: ConnectionId, to: PeerId) -> CircuitId {
        let circuit = self.dial(from, to).unwrap().circuit;
        let now = self.now;
        self.server.on_circuit_open(circuit, now).unwrap();
        circuit
    }

    fn close(&mut self, connection: ConnectionId) {
        self.server.on_disconnected(connection, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.server.handle_timeout(self.now);
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.server.poll_output()).collect()
    }

    /// What the world is told, without the handlers' business.
    fn told(&mut self) -> Vec<Output> {
        let mut outputs = self.outputs();
        outputs.retain(|output| !matches!(output, Output::Hold { .. }));
        outputs
    }
}

fn told(status: StatusCode) -> Refusal {
    Refusal::Told(status)
}

const REFUSED: Refusal = Refusal::Told(StatusCode::ReservationRefused);
const LIMITED: Refusal = Refusal::Told(StatusCode::ResourceLimitExceeded);
const DENIED: Refusal = Refusal::Told(StatusCode::PermissionDenied);

/// The bar: stock refuses all of them.
#[test]
fn a_full_relay_refuses_no_renewal_over_ten_lifetimes() {
    let hour = Duration::from_secs(3600);
    let mut relay = Relay::new(ConfigBuilder::default().reservation_duration(hour));
    let max = Config::default().max_reservations();
    let guests: Vec<_> = (0..max).map(|_| relay.reserved()).collect();
    let mut refused = 0;
    let mut newcomers = 0;
    // Clients renew at three quarters of a lifetime.
    for _ in 0..14 {
        relay.pass(hour * 3 / 4);
        for (_, connection) in &guests {
            let (_, newcomer) = relay.guest();
            newcomers += usize::from(relay.ask(newcomer).is_ok());
            relay.close(newcomer);
            match relay.ask(*connection) {
                Ok(grant) => assert!(grant.renewed),
                Err(_) => refused += 1,
            }
        }
    }
    println!("relay.renewals_refused over 10 lifetimes, {max} of {max} places taken: {refused}");
    assert_eq!((refused, newcomers, relay.reservations()), (0, 0, max));
    assert_eq!(relay.told(), []);
}

#[test]
fn a_reservation_ends_with_its_time_and_no_earlier() {
    let mut relay = Relay::new(roomy().reservation_duration(Duration::from_secs(60)));
    let (peer, connection) = relay.reserved();
    assert_eq!(
        relay.poll_timeout(),
        Some(relay.now + Duration::from_secs(60))
    );
    relay.pass(Duration::from_millis(59_999));
    assert_eq!((relay.reservations(), relay.told().len()), (1, 0));
    relay.pass(Duration::from_millis(1));
    let reason = CloseReason::Expired;
    assert_eq!(
        relay.told(),
        [Output::ReservationClosed {
            peer,
            connection,
            reason
        }]
    );
    assert_eq!((relay.reservations(), relay.poll_timeout()), (0, None));
    let (_, other) = relay.guest();
    assert_eq!(
        relay.dial(other, peer),
        Err(told(StatusCode::NoReservation))
    );
}

#[test]
fn a_renewal_may_come_at_the_last_moment_and_after_a_late_timer() {
    let mut relay = Relay::new(roomy().reservation_duration(Duration::from_secs(60)));
    let (_, connection) = relay.reserved();
    relay.now += Duration::from_secs(61);
    assert!(relay.ask(connection).unwrap().renewed);
    let now = relay.now;
    relay.handle_timeout(now);
    assert_eq!((relay.reservations(), relay.told().len()), (1, 0));
}

#[test]
fn a_reservation_stays_while_its_peer_is_connected_at_all() {
    let mut relay = Relay::new(roomy());
    let (peer, first) = relay.reserved();
    let second = relay.connect_from(peer, "/memory/1");
    relay.outputs();
    relay.close(first);
    let hold = |connection, held| Output::Hold {
        connection,
        peer,
        held,
    };
    assert_eq!(relay.outputs(), [hold(first, false), hold(second, true)]);
    let (_, source) = relay.guest();
    assert_eq!(relay.dial(source, peer).unwrap().through, second);
    relay.close(second);
    let told = relay.told();
    assert!(
        told.iter().any(|output| matches!(
            output,
            Output::ReservationClosed {
                reason: CloseReason::ConnectionClosed,
                ..
            }
        )),
        "{told:?}"
    );
    assert_eq!(relay.reservations(), 0);
}

#[test]
fn a_reservation_does_not_pass_on_to_a_relayed_connection() {
    let mut relay = Relay::new(roomy());
    let (peer, direct) = relay.reserved();
    relay.connect_from(peer, &format!("/memory/1/p2p/{peer}/p2p-circuit"));
    relay.close(direct);
    assert_eq!(relay.reservations(), 0);
}

#[test]
fn a_peer_that_comes_back_to_a_full_relay_takes_its_reservation_along() {
    let mut relay = Relay::new(roomy().max_reservations(2));
    let (peer, dead) = relay.reserved();
    relay.reserved();
    let alive = relay.connect_from(peer, "/memory/1");
    assert!(relay.ask(alive).unwrap().renewed);
    assert_eq!(relay.reservations(), 2);
    let (_, source) = relay.guest();
    assert_eq!(relay.dial(source, peer).unwrap().through, alive);
    relay.outputs();
    relay.close(dead);
    assert!(
        relay
            .told()
            .iter()
            .all(|output| !matches!(output, Output::ReservationClosed { .. }))
    );
    assert_eq!(relay.reservations(), 2);
}

#[test]
fn one_more_than_a_peer_may_have_moves_its_oldest() {
    let mut relay = Relay::new(roomy().max_reservations_per_peer(2));
    let (peer, first) = relay.reserved();
    let second = relay.connect_from(peer, "/memory/1");
    assert!(!relay.ask(second).unwrap().renewed);
    let third = relay.connect_from(peer, "/memory/1");
    assert!(relay.ask(third).unwrap().renewed);
    assert_eq!(relay.reservations(), 2);
    // The first has none any more.
    let place = relay.connections.get(&first).unwrap();
    assert_eq!(place.reserved, None);
}

#[test]
fn a_circuit_goes_to_the_connection_that_was_reserved_or_renewed_last() {
    let mut relay = Relay::new(roomy());
    let (peer, first) = relay.reserved();
    let second = relay.connect_from(peer, "/memory/1");
    relay.ask(second).unwrap();
    let (_, source) = relay.guest();
    assert_eq!(relay.dial(source, peer).unwrap().through, second);
    relay.ask(first).unwrap();
    assert_eq!(relay.dial(source, peer).unwrap().through, first);
}

#[test]
fn no_host_and_no_network_gets_more_than_its_share() {
    let config = roomy()
        .max_reservations_per_ip(Some(2))
        .max_reservations_per_prefix(Some(3));
    let mut relay = Relay::new(config);
    let mut ask = |address| {
        let connection = relay.connect_from(PeerId::random(), address);
        relay.ask(connection).is_ok()
    };
    assert!(ask("/ip4/203.0.113.1/tcp/1"));
    assert!(ask("/ip4/203.0.113.1/udp/1/quic-v1"));
    assert!(!ask("/ip4/203.0.113.1/tcp/2"));
    assert!(ask("/ip4/203.0.113.2/tcp/1"));
    assert!(!ask("/ip4/203.0.113.3/tcp/1"));
    assert!(ask("/ip4/203.0.114.3/tcp/1"));
    // A whole /64 is one host, a /48 one network.
    assert!(ask("/ip6/2001:db8::1/tcp/1"));
    assert!(ask("/ip6/2001:db8::2/tcp/1"));
    assert!(!ask("/ip6/2001:db8::ffff:3/tcp/1"));
    assert!(ask("/ip6/2001:db8:0:1::1/tcp/1"));
    assert!(!ask("/ip6/2001:db8:0:2::1/tcp/1"));
    assert!(ask("/ip6/2001:db8:1::1/tcp/1"));
}

#[test]
fn moving_reservations_fills_no_host_beyond_its_share() {
    let config = roomy()
        .max_reservations(8)
        .max_reservations_per_peer(1)
        .max_reservations_per_ip(Some(2));
    let mut relay = Relay::new(config);
    let mut granted = 0;
    for host in 1..=8 {
        let peer = PeerId::random();
        let far = relay.connect_from(peer, &format!("/ip4/10.0.{host}.1/tcp/1"));
        relay.ask(far).unwrap();
        let near = relay.connect_from(peer, "/ip4/203.0.113.1/tcp/1");
        granted += usize::from(relay.ask(near).is_ok());
        assert!(relay.reservations() <= 8);
    }
    assert_eq!(granted, 2);
    assert_eq!(relay.reservations(), 8, "a refused move costs nothing");
}

#[test]
fn a_peer_that_comes_back_to_a_full_host_or_network_takes_its_reservation_along() {
    let configs = [
        roomy().max_reservations_per_ip(Some(2)),
        roomy().max_reservations_per_prefix(Some(2)),
    ];
    for config in configs {
        let mut relay = Relay::new(config.max_reservations_per_peer(3));
        let host = "/ip4/203.0.113.1/tcp/1";
        let peer = PeerId::random();
        let elsewhere = relay.connect_from(peer, "/ip4/198.51.100.1/tcp/1");
        relay.ask(elsewhere).unwrap();
        let dead = relay.connect_from(peer, host);
        relay.ask(dead).unwrap();
        let neighbour = relay.connect_from(PeerId::random(), host);
        relay.ask(neighbour).unwrap();
        // Nobody knows yet that `dead` is dead.
        let alive = relay.connect_from(peer, host);
        assert!(relay.ask(alive).unwrap().renewed);
        assert_eq!(relay.reservations(), 3);
        let held = |id| relay.connections.get(id).unwrap().reserved.is_some();
        assert_eq!(
            [&elsewhere, &dead, &alive, &neighbour].map(held),
            [true, false, true, true],
            "the one that counted here has moved"
        );
        let stranger = relay.connect_from(PeerId::random(), host);
        assert_eq!(relay.ask(stranger), Err(REFUSED));
    }
}

#[test]
fn circuits_are_capped_at_either_end() {
    let config = roomy()
        .max_circuits(4)
        .max_circuits_per_peer(2)
        .max_circuits_per_ip(Some(3));
    let mut relay = Relay::new(config);
    let (a, _) = relay.reserved();
    let (b, at_b) = relay.reserved();
    let host = "/ip4/203.0.113.1/tcp/1";
    let sources: Vec<_> = (0..5)
        .map(|_| relay.connect_from(PeerId::random(), host))
        .collect();
    assert!(relay.dial(sources[0], a).is_ok());
    assert!(relay.dial(sources[1], a).is_ok());
    assert_eq!(relay.dial(sources[2], a), Err(LIMITED), "to the target");
    assert!(relay.dial(sources[2], b).is_ok());
    assert_eq!(relay.dial(sources[3], b), Err(LIMITED), "from the host");
    let (_, elsewhere) = relay.guest();
    let last = relay.dial(elsewhere, b).unwrap().circuit;
    let (c, _) = relay.reserved();
    assert_eq!(relay.dial(at_b, c), Err(LIMITED), "from the initiator");
    let (_, other) = relay.guest();
    assert_eq!(relay.dial(other, c), Err(LIMITED), "in all");
    relay.on_circuit_refused(last, StatusCode::ConnectionFailed);
    assert!(relay.dial(other, c).is_ok());
}

#[test]
fn a_hop_to_nowhere_is_refused_for_what_it_is() {
    let mut relay = Relay::new(roomy());
    let (peer, connection) = relay.reserved();
    let (_, source) = relay.guest();
    let nobody = PeerId::random();
    assert_eq!(
        relay.dial(source, nobody),
        Err(told(StatusCode::NoReservation))
    );
    let itself = relay.local;
    assert_eq!(
        relay.dial(source, itself),
        Err(told(StatusCode::NoReservation))
    );
    assert_eq!(relay.dial(connection, peer), Err(DENIED), "to oneself");
    let relayed = format!("/ip4/203.0.113.1/tcp/1/p2p/{nobody}/p2p-circuit");
    let circuit = relay.connect_from(PeerId::random(), &relayed);
    assert_eq!(relay.ask(circuit), Err(DENIED), "over a circuit");
    assert_eq!(relay.dial(circuit, peer), Err(DENIED), "circuit to circuit");
    assert_eq!(relay.circuits(), 0);
}

#[test]
fn access_lists_decide_and_lift_limits() {
    let mut relay = Relay::new(ConfigBuilder::default().rate_limits(false));
    let (friend, foe) = (PeerId::random(), PeerId::random());
    relay.set_access(Access::default().allow_peer(friend).deny_peer(foe));
    let at_foe = relay.connect_from(foe, "/memory/1");
    assert_eq!(relay.ask(at_foe), Err(DENIED));
    let at_friend = relay.connect_from(friend, "/memory/1");
    assert_eq!(relay.ask(at_friend).unwrap().limit, None);
    let (stranger, at_stranger) = relay.guest();
    assert_eq!(
        relay.ask(at_stranger).unwrap().limit,
        Some(CircuitLimit::REFERENCE)
    );
    assert_eq!(relay.dial(at_foe, friend), Err(DENIED));
    let opening = relay.dial(at_stranger, friend).unwrap();
    assert_eq!((opening.limit, opening.class), (None, Class::High));
    let (_, other) = relay.guest();
    let opening = relay.dial(other, stranger).unwrap();
    assert_eq!(opening.limit, Some(CircuitLimit::REFERENCE));
    assert_eq!(opening.class, Class::Normal);
}

#[test]
fn a_peer_asks_as_often_as_it_may_and_neighbours_do_not_cost_it_its_renewal() {
    let limit = |burst| crate::server::RateLimit {
        burst,
        interval: Duration::from_secs(60),
    };
    let config = ConfigBuilder::generous()
        .requests_per_peer(limit(3))
        .requests_per_ip(limit(4))
        .requests_per_prefix(limit(100));
    let mut relay = Relay::new(config);
    let host = "/ip4/203.0.113.1/tcp/1";
    let first = relay.connect_from(PeerId::random(), host);
    assert!(relay.ask(first).is_ok());
    for _ in 0..3 {
        let other = relay.connect_from(PeerId::random(), host);
        assert!(relay.ask(other).is_ok());
    }
    let late = relay.connect_from(PeerId::random(), host);
    assert_eq!(relay.ask(late), Err(REFUSED), "the host's bucket is empty");
    for _ in 0..2 {
        assert!(relay.ask(first).unwrap().renewed);
    }
    assert_eq!(relay.ask(first), Err(REFUSED), "its own bucket is empty");
    assert_eq!(relay.reservations(), 4, "a refused renewal ends nothing");
    relay.pass(Duration::from_secs(60));
    assert!(relay.ask(first).unwrap().renewed);
    assert!(relay.ask(late).is_ok());
}

/// An office behind one address: its relay restarts, and everybody comes back in the same moment.
#[test]
fn a_relay_of_ones_own_takes_all_its_nodes_back_at_once() {
    let mut relay = Relay::new(ConfigBuilder::generous());
    let config = Config::generous();
    let host = "/ip4/203.0.113.1/tcp/1";
    let guests: Vec<_> = (0..config.max_reservations())
        .map(|_| {
            let peer = PeerId::random();
            (peer, relay.connect_from(peer, host))
        })
        .collect();
    for (_, connection) in &guests {
        assert!(relay.ask(*connection).is_ok());
    }
    // One of them calls all the others.
    let (_, caller) = guests[0];
    for (peer, _) in &guests[1..] {
        assert!(relay.dial(caller, *peer).is_ok());
    }
    // A flood is one all the same.
    let connection = relay.connect_from(PeerId::random(), host);
    relay.outputs();
    for _ in 0..=config.flood().burst {
        let _ = relay.dial(connection, PeerId::random());
    }
    assert!(matches!(relay.told()[..], [Output::Ban { .. }]));
}

#[test]
fn a_peer_that_floods_is_disconnected_once_and_kept_out_for_a_while() {
    let mut relay = Relay::new(ConfigBuilder::default());
    let (honest, at_honest) = relay.reserved();
    let (flooder, connection) = relay.guest();
    relay.outputs();
    let mut answers = 0;
    for _ in 0..10_000 {
        match relay.ask(connection) {
            Err(Refusal::Ignored) => {}
            _ => answers += 1,
        }
    }
    assert_eq!(answers, Config::default().flood().burst);
    let bans = relay.told();
    assert_eq!(bans, [Output::Ban { peer: flooder }]);
    let now = relay.now;
    let from = "/memory/1".parse().unwrap();
    assert!(relay.is_banned(flooder, &from, now));
    assert!(!relay.is_banned(honest, &from, now));
    assert!(relay.ask(at_honest).unwrap().renewed);
    relay.close(connection);
    assert_eq!(relay.reservations(), 1, "the flooder's went with it");
    let later = now + Config::default().ban_duration();
    assert!(!relay.is_banned(flooder, &from, later));
}

/// A handshake costs more than a request: banned peers that come back at once, again and again, are a flood, too.
#[test]
fn where_banned_peers_keep_coming_back_few_connections_may_begin() {
    let mut relay = Relay::new(ConfigBuilder::default());
    let limit = Config::default().connections_beside_banned();
    let host = Multiaddr::from(std::net::Ipv4Addr::new(203, 0, 113, 1));
    let other = Multiaddr::from(std::net::Ipv4Addr::new(203, 0, 113, 2));
    let now = relay.now;
    let begin = |relay: &mut Relay, from: &Multiaddr, now| {
        (0..1000).filter(|_| relay.may_begin(from, now)).count()
    };
    let connection = relay.connect_from(PeerId::random(), "/ip4/203.0.113.1/tcp/1");
    let peer = relay.connections.get(&connection).unwrap().peer;
    for _ in 0..=Config::default().flood().burst {
        let _ = relay.ask(connection);
    }
    assert_eq!(begin(&mut relay, &host, now), 1000, "it might stay away");
    assert!(relay.is_banned(peer, &host, now));
    let burst = usize::try_from(limit.burst).unwrap();
    assert_eq!(begin(&mut relay, &host, now), burst);
    assert_eq!(begin(&mut relay, &host, now + limit.interval), 1);
    assert_eq!(begin(&mut relay, &other, now), 1000);
    assert_eq!(
        begin(&mut relay, &"/memory/1".parse().unwrap(), now),
        1000,
        "nobody's address"
    );
    let later = now + Config::default().ban_duration();
    assert_eq!(begin(&mut relay, &host, later), 1000);
}

#[test]
fn violations_count_as_requests() {
    let mut relay = Relay::new(ConfigBuilder::default());
    let (peer, connection) = relay.guest();
    let now = relay.now;
    let tolerated = (0..1000).filter(|_| relay.on_violation(connection, now));
    assert_eq!(
        tolerated.count(),
        usize::try_from(Config::default().flood().burst).unwrap()
    );
    assert_eq!(relay.told(), [Output::Ban { peer }]);
}

#[test]
fn a_circuit_is_told_of_once_however_it_ends() {
    let mut relay = Relay::new(roomy());
    let (destination, at_destination) = relay.reserved();
    let (source, at_source) = relay.guest();
    let circuit = relay.circuit(at_source, destination);
    relay.pass(Duration::from_secs(5));
    let now = relay.now;
    relay.outputs();
    relay.on_circuit_ended(circuit, CircuitEnd::Completed, now);
    relay.on_circuit_ended(circuit, CircuitEnd::ByteLimit, now);
    assert_eq!(
        relay.told(),
        [Output::CircuitClosed {
            circuit,
            source,
            destination,
            duration: Duration::from_secs(5),
            end: CircuitEnd::Completed,
        }]
    );
    let second = relay.circuit(at_source, destination);
    assert_ne!(circuit, second, "a number is never used again");
    relay.close(at_destination);
    relay.close(at_source);
    relay.on_circuit_ended(second, CircuitEnd::Completed, now);
    let ends = relay.told();
    let closed = |output: &&Output| matches!(output, Output::CircuitClosed { .. });
    assert_eq!(ends.iter().filter(closed).count(), 1, "{ends:?}");
    assert_eq!(relay.circuits(), 0);
}

#[test]
fn a_circuit_that_loses_an_end_while_it_is_set_up_is_refused_or_forgotten() {
    let mut relay = Relay::new(roomy());
    let (destination, at_destination) = relay.reserved();
    let (peer, at_source) = relay.guest();
    let first = relay.dial(at_source, destination).unwrap().circuit;
    relay.outputs();
    relay.close(at_destination);
    assert_eq!(
        relay.told()[0],
        Output::CircuitFailed {
            circuit: first,
            source: at_source,
            peer,
            destination,
            status: StatusCode::ConnectionFailed,
        }
    );
    let (destination, through) = relay.reserved();
    let second = relay.dial(at_source, destination).unwrap().circuit;
    relay.outputs();
    relay.close(at_source);
    assert_eq!(
        relay.told(),
        [Output::CircuitForgotten {
            circuit: second,
            through,
            destination
        }]
    );
    let now = relay.now;
    assert_eq!(relay.on_circuit_open(second, now), None);
    assert_eq!(relay.circuits(), 0);
}

#[test]
fn sources_that_come_and_go_leave_no_more_exchanges_behind_than_a_peer_may_have_circuits() {
    let mut relay = Relay::new(roomy().max_circuits_per_peer(3));
    let (destination, at_destination) = relay.reserved();
    let mut asked = Vec::new();
    for _ in 0..20 {
        let (_, source) = relay.guest();
        match relay.dial(source, destination) {
            Ok(opening) => asked.push(opening.circuit),
            Err(refusal) => assert_eq!(refusal, LIMITED),
        }
        relay.close(source);
    }
    assert_eq!((asked.len(), relay.circuits()), (3, 3));
    relay.outputs();
    // What comes of them concerns nobody, and makes room.
    let now = relay.now;
    assert_eq!(relay.on_circuit_open(asked[0], now), None);
    relay.on_circuit_refused(asked[1], StatusCode::ConnectionFailed);
    assert_eq!(relay.circuits(), 1);
    relay.close(at_destination);
    assert_eq!(relay.circuits(), 0);
    let told = relay.told();
    let closed = |output: &Output| matches!(output, Output::ReservationClosed { .. });
    assert!(told.iter().all(closed), "{told:?}");
}

#[test]
fn a_drain_waits_for_no_source_that_left_longer_than_for_its_exchange() {
    let mut relay = Relay::new(roomy());
    let (destination, _) = relay.reserved();
    let (_, source) = relay.guest();
    let circuit = relay.dial(source, destination).unwrap().circuit;
    relay.close(source);
    let now = relay.now;
    relay.drain(now + Duration::from_secs(60));
    relay.outputs();
    assert_eq!(relay.on_circuit_open(circuit, now), None);
    assert_eq!(relay.told().last(), Some(&Output::Drained { cut: 0 }));
}

#[test]
fn a_drained_relay_grants_nothing_and_is_done_when_its_last_circuit_is() {
    let mut relay = Relay::new(roomy());
    let (destination, at_destination) = relay.reserved();
    let (_, at_source) = relay.guest();
    let circuit = relay.circuit(at_source, destination);
    relay.outputs();
    let now = relay.now;
    relay.drain(now + Duration::from_secs(60));
    assert_eq!(relay.told(), [Output::Offer(false)]);
    let (_, newcomer) = relay.guest();
    assert_eq!(relay.ask(newcomer), Err(REFUSED));
    assert_eq!(relay.ask(at_destination), Err(REFUSED), "nor renewed");
    assert_eq!(relay.dial(newcomer, destination), Err(LIMITED));
    relay.pass(Duration::from_secs(30));
    assert_eq!(relay.told(), []);
    let now = relay.now;
    relay.on_circuit_ended(circuit, CircuitEnd::Completed, now);
    let told = relay.told();
    assert!(matches!(told[0], Output::CircuitClosed { .. }));
    assert_eq!(
        told[1..],
        [
            Output::ReservationClosed {
                peer: destination,
                connection: at_destination,
                reason: CloseReason::Drained
            },
            Output::Drained { cut: 0 }
        ]
    );
    relay.pass(Duration::from_secs(3600));
    assert_eq!(relay.told(), []);
    assert_eq!(relay.poll_timeout(), None);
}

#[test]
fn the_deadline_of_a_drain_cuts_what_is_left() {
    let mut relay = Relay::new(roomy());
    let (destination, _) = relay.reserved();
    let (_, at_source) = relay.guest();
    relay.circuit(at_source, destination);
    relay.dial(at_source, destination).unwrap();
    let deadline = relay.now + Duration::from_secs(60);
    relay.drain(deadline);
    assert_eq!(relay.poll_timeout(), Some(deadline));
    relay.outputs();
    relay.pass(Duration::from_secs(60));
    let told = relay.told();
    assert_eq!(told.last(), Some(&Output::Drained { cut: 2 }), "{told:?}");
    assert!(told.iter().any(|output| matches!(
        output,
        Output::CircuitClosed {
            end: CircuitEnd::Drained,
            ..
        }
    )));
    assert_eq!((relay.reservations(), relay.circuits()), (0, 0));
}

#[test]
fn an_empty_relay_is_drained_at_once() {
    let mut relay = Relay::new(roomy());
    let deadline = relay.now + Duration::from_secs(60);
    relay.drain(deadline);
    assert_eq!(
        relay.told(),
        [Output::Offer(false), Output::Drained { cut: 0 }]
    );
    relay.drain(deadline + Duration::from_secs(60));
    assert_eq!(relay.told(), [], "once");
    assert_eq!(relay.poll_timeout(), None);
}

#[test]
fn a_drain_that_is_asked_for_again_moves_its_deadline() {
    let mut relay = Relay::new(roomy());
    let (destination, _) = relay.reserved();
    let (_, source) = relay.guest();
    relay.circuit(source, destination);
    let minute = Duration::from_secs(60);
    let now = relay.now;
    relay.drain(now + minute);
    let moved = now + 2 * minute;
    relay.drain(moved);
    assert_eq!(relay.poll_timeout(), Some(moved));
    relay.pass(minute);
    assert_eq!(relay.circuits(), 1);
    relay.outputs();
    relay.pass(minute);
    assert_eq!(relay.told().last(), Some(&Output::Drained { cut: 1 }));
    relay.drain(moved + minute);
    assert_eq!(relay.told(), []);
}

#[test]
fn a_relay_that_is_off_grants_nothing() {
    let mut relay = Relay::new(roomy());
    let (destination, at_destination) = relay.reserved();
    relay.set_enabled(false);
    let (_, source) = relay.guest();
    assert_eq!(relay.ask(source), Err(REFUSED));
    assert_eq!(relay.ask(at_destination), Err(REFUSED));
    assert_eq!(relay.dial(source, destination), Err(LIMITED));
    relay.set_enabled(true);
    assert_eq!(
        relay.dial(source, destination),
        Err(told(StatusCode::NoReservation))
    );
    assert!(!relay.ask(at_destination).unwrap().renewed);
    assert!(relay.dial(source, destination).is_ok());
}

#[test]
fn a_relay_that_is_off_or_drained_holds_no_connection_and_lets_circuits_run() {
    let off = |relay: &mut Relay| relay.set_enabled(false);
    let drained = |relay: &mut Relay| relay.server.drain(relay.now + Duration::from_secs(60));
    for (end, running, reason) in [
        (off as fn(&mut Relay), 1, CloseReason::Disabled),
        (drained as fn(&mut Relay), 0, CloseReason::Drained),
    ] {
        let mut relay = Relay::new(roomy());
        let guests = [relay.reserved(), relay.reserved()];
        if running > 0 {
            let (_, source) = relay.guest();
            relay.circuit(source, guests[0].0);
        }
        relay.outputs();
        end(&mut relay);
        let outputs = relay.outputs();
        for (peer, connection) in guests {
            let held = false;
            let let_go = Output::Hold {
                connection,
                peer,
                held,
            };
            let closed = Output::ReservationClosed {
                peer,
                connection,
                reason,
            };
            assert!(outputs.contains(&let_go), "{outputs:?}");
            assert!(outputs.contains(&closed), "{outputs:?}");
        }
        assert_eq!((relay.reservations(), relay.circuits()), (0, running));
    }
}

/// Any order of anything: the counts stay those of a list that is kept by hand, and nothing is left at the end.
#[test]
fn counts_stay_true_whatever_happens_in_whatever_order() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let config = roomy()
            .max_reservations(12)
            .max_reservations_per_peer(2)
            .max_reservations_per_ip(Some(5))
            .max_circuits(10)
            .max_circuits_per_peer(4)
            .reservation_duration(Duration::from_secs(20));
        let mut relay = Relay::new(config);
        let peers: Vec<PeerId> = (0..8).map(|_| PeerId::random()).collect();
        let mut connections = Vec::new();
        let (mut held, mut open) = (0_i64, 0_i64);
        let mut circuits = Vec::new();
        for _ in 0..3000 {
            match random.random_range(0..9) {
                0 if connections.len() < 30 => {
                    let peer = peers[random.random_range(0..peers.len())];
                    let host = random.random_range(1..4);
                    connections
                        .push(relay.connect_from(peer, &format!("/ip4/10.0.0.{host}/tcp/1")));
                }
                1 if !connections.is_empty() => {
                    let at = random.random_range(0..connections.len());
                    relay.close(connections.swap_remove(at));
                }
                2..=4 if !connections.is_empty() => {
                    let at = random.random_range(0..connections.len());
                    if let Ok(grant) = relay.ask(connections[at]) {
                        held += i64::from(!grant.renewed);
                    }
                }
                5..=6 if !connections.is_empty() => {
                    let at = random.random_range(0..connections.len());
                    let peer = peers[random.random_range(0..peers.len())];
                    if let Ok(opening) = relay.dial(connections[at], peer) {
                        circuits.push(opening.circuit);
                    }
                }
                7 if !circuits.is_empty() => {
                    let circuit = circuits[random.random_range(0..circuits.len())];
                    let now = relay.now;
                    match random.random_range(0..3) {
                        0 => {
                            let waits = relay
                                .circuits
                                .get(&circuit)
                                .is_some_and(|circuit| circuit.opened.is_none());
                            if waits && relay.on_circuit_open(circuit, now).is_some() {
                                open += 1;
                            }
                        }
                        1 => {
                            if relay
                                .circuits
                                .get(&circuit)
                                .is_some_and(|circuit| circuit.opened.is_none())
                            {
                                relay.on_circuit_refused(circuit, StatusCode::ConnectionFailed);
                            }
                        }
                        _ => {
                            if relay
                                .circuits
                                .get(&circuit)
                                .is_some_and(|circuit| circuit.opened.is_some())
                            {
                                relay.on_circuit_ended(circuit, CircuitEnd::Completed, now);
                            }
                        }
                    }
                }
                _ => {
                    let time = Duration::from_millis(random.random_range(0..2000));
                    relay.pass(time);
                }
            }
            for output in relay.outputs() {
                match output {
                    Output::ReservationClosed { .. } => held -= 1,
                    Output::CircuitClosed { .. } => open -= 1,
                    _ => {}
                }
            }
            assert_eq!(relay.reservations(), usize::try_from(held).unwrap());
            assert_eq!(relay.reservations(), relay.expiries.len());
            let truly_open = relay.circuits.values().filter(|it| it.opened.is_some());
            assert_eq!(truly_open.count(), usize::try_from(open).unwrap());
            assert_eq!(relay.circuits.len(), relay.circuit_caps.len());
            assert!(relay.reservations() <= 12 && relay.circuits() <= 10);
        }
        for connection in connections {
            relay.close(connection);
        }
        assert_eq!((relay.reservations(), relay.circuits()), (0, 0));
        assert!(relay.connections.is_empty() && relay.peers.is_empty());
        assert!(relay.expiries.len() == 0);
    }
}

#[test]
fn a_destination_that_comes_back_is_asked_there_what_it_does_not_answer_on_its_dead_connection() {
    let mut relay = Relay::new(roomy());
    let (destination, dead) = relay.reserved();
    let (source, at_source) = relay.guest();
    let open = relay.circuit(at_source, destination);
    let asked = relay.dial(at_source, destination).unwrap().circuit;
    let alive = relay.connect_from(destination, "/memory/2");
    relay.ask(alive).unwrap();
    relay.outputs();
    relay.ask_again(alive);
    let moved = Output::CircuitMoved {
        circuit: asked,
        source,
        destination,
        from: dead,
        through: alive,
    };
    assert_eq!(relay.outputs(), [moved], "and not the one that is open");
    assert!(relay.is_asked(asked, alive) && !relay.is_asked(asked, dead));
    relay.ask_again(alive);
    assert_eq!(relay.outputs(), [], "once");
    // The end of the dead connection is none of it any more.
    relay.close(dead);
    let ended = relay.told();
    let of_asked = |output: &Output| matches!(output, Output::CircuitFailed { .. });
    assert!(!ended.iter().any(of_asked), "{ended:?}");
    let now = relay.now;
    let ends = Some((at_source, [source, destination]));
    assert_eq!(relay.on_circuit_open(asked, now), ends);
    relay.close(alive);
    assert_eq!(relay.circuits(), 0, "{open} too");
}
