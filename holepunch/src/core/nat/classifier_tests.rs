use proptest::prelude::*;

use super::*;

struct Bench {
    core: Classifier,
    now: Instant,
}

#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
fn bench() -> Bench {
    Bench {
        core: Classifier::new(Config::default()),
        now: Instant::now(),
    }
}

fn at(proto: Proto, socket: &str) -> Endpoint {
    Endpoint {
        proto,
        socket: socket.parse().unwrap(),
    }
}

fn udp(socket: &str) -> Endpoint {
    at(Proto::Udp, socket)
}

fn tcp(socket: &str) -> Endpoint {
    at(Proto::Tcp, socket)
}

fn server(n: u8) -> String {
    format!("198.51.100.{n}:4001")
}

const HOST: &str = "10.1.0.10:9100";
const PUBLIC: &str = "203.0.113.10:9100";

impl Bench {
    /// A server of this number sees us there.
    fn seen(&mut self, n: u8, proto: Proto, observed: &str) {
        self.now += Duration::from_millis(1);
        let destination = at(proto, &server(n));
        self.core.on_contact(destination, self.now);
        let sample = Sample {
            socket: LocalSocket::Node,
            destination,
            observed: observed.parse().unwrap(),
            opened: self.now,
        };
        self.core.on_sample(sample, self.now);
    }

    fn unreached(&mut self, n: u8, unreached: Unreached) {
        let server: SocketAddr = server(n).parse().unwrap();
        self.core
            .on_unreached(server.ip(), udp(PUBLIC), unreached, self.now);
    }

    fn port_restricted(&mut self) {
        self.core.on_listening(udp(HOST), self.now);
        for n in 1..=2 {
            self.seen(n, Proto::Udp, PUBLIC);
            self.unreached(n, BY_PORT);
        }
        assert_eq!(self.udp().nat_type, NatType::PortRestrictedCone);
        self.outputs();
    }

    fn udp(&self) -> TransportNat {
        self.core.report().udp
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.core.poll_output()).collect()
    }

    fn reprobes(&mut self) -> bool {
        self.outputs().contains(&Output::Reprobe)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.core.handle_timeout(self.now);
    }
}

const BY_PORT: Unreached = Unreached {
    from_other_port: true,
    from_other_address: false,
};
const BY_ADDRESS: Unreached = Unreached {
    from_other_port: false,
    from_other_address: true,
};

#[test]
fn a_stranger_who_gets_in_proves_that_strangers_do() {
    let mut bench = bench();
    bench.core.on_listening(udp(HOST), bench.now);
    bench.seen(1, Proto::Udp, PUBLIC);
    bench.seen(2, Proto::Udp, PUBLIC);
    assert_eq!(bench.udp().nat_type, NatType::Unknown);
    bench.core.on_inbound(udp("198.51.100.1:4001"), bench.now);
    assert_eq!(bench.udp().filtering, None, "we had sent there");
    bench.core.on_inbound(udp("198.51.100.1:5000"), bench.now);
    assert_eq!(bench.udp().nat_type, NatType::RestrictedCone);
    bench.core.on_inbound(udp("203.0.113.10:7"), bench.now);
    bench.core.on_inbound(udp("10.1.0.11:7"), bench.now);
    assert_eq!(bench.udp().nat_type, NatType::RestrictedCone, "neighbours");
    bench.core.on_inbound(udp("198.51.100.3:1"), bench.now);
    assert_eq!(bench.udp().nat_type, NatType::FullCone);
}

#[test]
fn without_translation_the_same_host_is_public() {
    let mut bench = bench();
    bench.core.on_listening(udp(PUBLIC), bench.now);
    bench.seen(1, Proto::Udp, PUBLIC);
    assert_eq!(
        bench.udp().mapping,
        Some(Mapping::EndpointIndependent),
        "nothing is mapped"
    );
    bench.core.on_inbound(udp("198.51.100.3:1"), bench.now);
    assert_eq!(bench.udp().nat_type, NatType::Public);
}

#[test]
fn one_server_cannot_make_a_nat_symmetric_or_closed() {
    let mut bench = bench();
    bench.core.on_listening(udp(HOST), bench.now);
    for n in 1..=3 {
        bench.seen(n, Proto::Udp, PUBLIC);
    }
    bench.seen(4, Proto::Udp, "203.0.113.10:1");
    assert_eq!(bench.udp().mapping, Some(Mapping::EndpointIndependent));
    for _ in 0..100 {
        bench.unreached(4, BY_PORT);
        bench.unreached(4, BY_ADDRESS);
    }
    assert_eq!(bench.udp().filtering, None);
}

#[test]
fn ports_that_depend_on_the_destination_are_told_apart() {
    let mut bench = bench();
    bench.core.on_listening(udp(HOST), bench.now);
    bench.seen(1, Proto::Udp, "203.0.113.10:40001");
    assert_eq!(bench.udp().nat_type, NatType::Unknown);
    bench.seen(2, Proto::Udp, "203.0.113.10:50002");
    assert_eq!(bench.udp().nat_type, NatType::Symmetric);
    assert_eq!(
        bench.udp().mapping,
        Some(Mapping::AddressAndPortDependent),
        "the worse is assumed"
    );
    // Another port of the first server, which saw the same.
    let sample = Sample {
        socket: LocalSocket::Node,
        destination: udp("198.51.100.1:4002"),
        observed: "203.0.113.10:40001".parse().unwrap(),
        opened: bench.now,
    };
    bench.core.on_sample(sample, bench.now);
    assert_eq!(bench.udp().mapping, Some(Mapping::AddressDependent));
}

#[test]
fn tcp_dials_from_other_ports_do_not_look_symmetric() {
    let mut bench = bench();
    bench.core.on_listening(tcp(HOST), bench.now);
    bench.core.on_listening(udp(HOST), bench.now);
    bench.seen(1, Proto::Tcp, "203.0.113.10:40001");
    bench.seen(2, Proto::Tcp, "203.0.113.10:50002");
    assert_eq!(bench.core.report().tcp.mapping, None);
    bench.seen(1, Proto::Udp, PUBLIC);
    bench.seen(2, Proto::Udp, PUBLIC);
    assert_eq!(bench.core.report().tcp.mapping, None);
    bench.seen(2, Proto::Udp, "203.0.113.10:1");
    bench.seen(1, Proto::Udp, "203.0.113.10:2");
    assert_eq!(bench.core.report().tcp.nat_type, NatType::Symmetric);
}

#[test]
fn another_public_address_that_two_servers_see_starts_all_over() {
    let mut bench = bench();
    bench.port_restricted();
    bench.seen(1, Proto::Udp, "203.0.113.99:9100");
    assert!(bench.reprobes(), "at the first sign");
    assert_eq!(
        bench.udp().nat_type,
        NatType::PortRestrictedCone,
        "not symmetric because old and new differ"
    );
    bench.seen(2, Proto::Udp, "203.0.113.99:9100");
    assert_eq!(bench.udp().mapping, Some(Mapping::EndpointIndependent));
    assert_eq!(bench.udp().filtering, None, "not yet known again");
    bench.unreached(1, BY_PORT);
    bench.unreached(2, BY_PORT);
    assert_eq!(bench.udp().nat_type, NatType::PortRestrictedCone);
}

#[test]
fn one_server_that_claims_another_address_is_asked_about_and_not_believed() {
    let mut bench = bench();
    bench.port_restricted();
    bench.seen(3, Proto::Udp, "192.0.2.66:9100");
    assert!(bench.reprobes());
    bench.seen(1, Proto::Udp, PUBLIC);
    assert_eq!(bench.udp().nat_type, NatType::PortRestrictedCone);
    for _ in 0..100 {
        bench.seen(3, Proto::Udp, "192.0.2.66:9100");
    }
    assert!(!bench.reprobes(), "it said so before");
    bench.pass(CHANGE_GRACE);
    assert_eq!(bench.udp().nat_type, NatType::PortRestrictedCone);
}

#[test]
fn of_two_servers_the_one_that_others_deny_is_not_believed() {
    let mut bench = bench();
    bench.port_restricted();
    bench.seen(2, Proto::Udp, "192.0.2.66:9100");
    bench.seen(1, Proto::Udp, PUBLIC);
    bench.pass(CHANGE_GRACE);
    assert_ne!(bench.udp().nat_type, NatType::Symmetric);
    assert_eq!(
        bench.udp().filtering,
        Some(Filtering::AddressAndPortDependent)
    );
    bench.seen(2, Proto::Udp, PUBLIC);
    assert_eq!(bench.udp().nat_type, NatType::PortRestrictedCone);
}

#[test]
fn a_change_that_nobody_denies_is_believed_after_a_while() {
    let mut bench = bench();
    bench.port_restricted();
    bench.seen(1, Proto::Udp, "203.0.113.99:9100");
    assert_eq!(bench.core.poll_timeout(), Some(bench.now + CHANGE_GRACE));
    bench.pass(CHANGE_GRACE);
    assert_eq!(bench.udp().nat_type, NatType::Unknown);
}

#[test]
fn another_interface_address_starts_all_over() {
    let mut bench = bench();
    bench.port_restricted();
    bench.core.on_listening(tcp(HOST), bench.now);
    bench.core.on_listening(udp("127.0.0.1:9100"), bench.now);
    assert!(!bench.reprobes(), "the same network");
    bench.core.on_not_listening(udp(HOST), bench.now);
    bench.core.on_not_listening(tcp(HOST), bench.now);
    assert!(bench.reprobes());
    assert_eq!(bench.udp().nat_type, NatType::Unknown);
    bench.core.on_listening(udp("192.168.7.3:9100"), bench.now);
    bench.port_restricted();
}

#[test]
fn evidence_that_is_not_repeated_expires() {
    let mut bench = bench();
    bench.port_restricted();
    bench.pass(Config::default().evidence_ttl());
    assert_eq!(bench.udp().nat_type, NatType::Unknown);
    assert_eq!(bench.udp().mapping, None);
    assert_eq!(bench.core.poll_timeout(), None);
}

#[test]
fn udp_is_blocked_where_two_servers_answer_over_tcp_alone() {
    let mut bench = bench();
    for n in 1..=2 {
        bench.core.on_contact(udp(&server(n)), bench.now);
        bench.core.on_contact(tcp(&server(n)), bench.now);
        bench.core.on_answer(tcp(&server(n)), bench.now);
    }
    assert!(!bench.udp().blocked);
    let due = bench.core.poll_timeout().unwrap();
    assert_eq!(due, bench.now + UNANSWERED);
    bench.pass(UNANSWERED);
    assert!(bench.udp().blocked);
    assert_eq!(bench.core.poll_timeout(), None);
    bench.core.on_answer(udp(&server(3)), bench.now);
    assert!(!bench.udp().blocked, "something got through");
}

#[test]
fn servers_without_quic_do_not_make_udp_blocked() {
    let mut bench = bench();
    bench.core.on_answer(udp(&server(9)), bench.now);
    for n in 1..=5 {
        bench.core.on_contact(udp(&server(n)), bench.now);
        bench.core.on_answer(tcp(&server(n)), bench.now);
    }
    bench.pass(UNANSWERED);
    assert!(!bench.udp().blocked);
}

#[test]
fn one_server_that_answers_over_tcp_alone_rings_no_alarm_for_ever() {
    let mut bench = bench();
    bench.core.on_contact(udp(&server(1)), bench.now);
    bench.core.on_answer(tcp(&server(1)), bench.now);
    assert_eq!(bench.core.poll_timeout(), None);
    bench.pass(UNANSWERED);
    assert!(!bench.udp().blocked);
    assert_eq!(bench.core.poll_timeout(), None);
}

#[test]
fn a_gateway_with_a_private_outer_address_stands_behind_another_nat() {
    let mut bench = bench();
    bench.port_restricted();
    assert_eq!(bench.core.report().double_nat, None);
    let mut outer = |ip: &str| {
        let gateway = Gateway {
            maps_ports: true,
            outer: Some(ip.parse().unwrap()),
        };
        bench.core.on_gateway(gateway, bench.now);
        bench.core.report().double_nat
    };
    assert_eq!(outer("100.64.1.2"), Some(true));
    assert_eq!(outer("203.0.113.10"), Some(false));
    assert_eq!(outer("203.0.113.11"), Some(true), "servers see another one");
    assert!(bench.udp().can_map_port);
}

#[cfg(feature = "stun")]
#[test]
fn what_stun_servers_find_is_evidence_like_any_other() {
    let seen = |bench: &mut Bench, n: u8, observed: &str| {
        let sample = Sample {
            socket: LocalSocket::Probe(5000),
            destination: udp(&server(n)),
            observed: observed.parse().unwrap(),
            opened: bench.now,
        };
        bench.core.on_sample(sample, bench.now);
    };
    let filtered = |bench: &mut Bench, n: u8, filtering| {
        let server = udp(&server(n)).ip();
        bench.core.on_filtering(server, filtering, bench.now);
    };
    use Filtering::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
    let mut one = bench();
    (1..=2).for_each(|n| seen(&mut one, n, PUBLIC));
    filtered(&mut one, 1, AddressAndPortDependent);
    assert_eq!(one.udp().nat_type, NatType::Unknown, "one server's silence");
    filtered(&mut one, 2, AddressAndPortDependent);
    assert_eq!(one.udp().nat_type, NatType::PortRestrictedCone);
    filtered(&mut one, 1, AddressDependent);
    assert_eq!(one.udp().nat_type, NatType::RestrictedCone);
    filtered(&mut one, 1, EndpointIndependent);
    assert_eq!(one.udp().nat_type, NatType::FullCone);
    let mut two = bench();
    seen(&mut two, 1, "203.0.113.10:1");
    seen(&mut two, 2, "203.0.113.10:2");
    assert_eq!(two.udp().nat_type, NatType::Symmetric);
    let mut near = bench();
    let gateway = udp("10.1.0.1:1").ip();
    near.core
        .on_filtering(gateway, EndpointIndependent, near.now);
    assert_eq!(near.udp().filtering, None, "no NAT lies in between");
}

#[test]
fn who_comes_by_a_mapped_port_says_nothing_of_the_nat() {
    let mut bench = bench();
    bench.port_restricted();
    assert_eq!(bench.udp().nat_type, NatType::PortRestrictedCone);
    let mapped = udp("203.0.113.10:9100");
    bench.core.on_port_mapped(mapped, true, bench.now);
    bench.core.on_inbound(udp("198.51.100.77:5"), bench.now);
    assert_eq!(bench.udp().nat_type, NatType::PortRestrictedCone);
    assert!(bench.core.lets_strangers_in(mapped));
    assert!(!bench.core.lets_strangers_in(udp("203.0.113.10:9101")));
    bench.core.on_port_mapped(mapped, false, bench.now);
    assert!(!bench.core.lets_strangers_in(mapped));
    bench.core.on_inbound(udp("198.51.100.78:5"), bench.now);
    assert_eq!(bench.udp().nat_type, NatType::FullCone, "else it would");
}

#[test]
fn a_firewall_on_ipv6_is_told_by_who_gets_in() {
    let mut bench = bench();
    let own = tcp("[2001:db8::10]:9100");
    bench.core.on_listening(own, bench.now);
    assert_eq!(bench.core.report().ipv6_firewall, None);
    for n in 1..=2 {
        let server: IpAddr = format!("2001:db8:{n}::1").parse().unwrap();
        bench.core.on_unreached(server, own, BY_PORT, bench.now);
    }
    assert_eq!(bench.core.report().ipv6_firewall, Some(true));
    bench.core.on_inbound(tcp("[2001:db8:3::1]:5"), bench.now);
    assert_eq!(bench.core.report().ipv6_firewall, Some(false));
    assert_eq!(
        bench.core.report().tcp.filtering,
        None,
        "says nothing of IPv4"
    );
}

proptest! {
    /// A deadline that is still there when it has passed would keep the adapter busy for ever.
    #[test]
    fn no_deadline_outlives_its_time(
        facts in prop::collection::vec((0..9_u8, 0..5_u8, 0..4_u16, 0..4000_u64), 0..120),
    ) {
        let mut bench = bench();
        bench.core.on_listening(udp(HOST), bench.now);
        for (kind, n, port, millis) in facts {
            let proto = if port % 2 == 0 { Proto::Udp } else { Proto::Tcp };
            let peer = at(proto, &server(n));
            match kind {
                0 => bench.core.on_contact(peer, bench.now),
                1 => bench.core.on_answer(peer, bench.now),
                2 => bench.core.on_closed(peer, bench.now),
                3 => bench.core.on_inbound(peer, bench.now),
                4 => bench.seen(n, proto, &format!("203.0.113.{port}:9100")),
                5 => bench.unreached(n, BY_PORT),
                6 => bench.core.on_not_listening(udp(HOST), bench.now),
                7 => bench.core.on_listening(udp(HOST), bench.now),
                _ => bench.pass(Duration::from_millis(millis)),
            }
            let due = bench.core.poll_timeout().filter(|due| *due <= bench.now);
            if due.is_some() {
                bench.core.handle_timeout(bench.now);
            }
            let left = bench.core.poll_timeout();
            prop_assert!(left.is_none_or(|due| due > bench.now), "{left:?}");
            bench.outputs();
        }
    }
}

#[test]
fn whatever_peers_claim_memory_stays_bounded() {
    let mut bench = bench();
    bench.core.on_listening(udp(HOST), bench.now);
    for n in 0..300_u32 {
        let [_, a, b, c] = n.to_be_bytes();
        let server = udp(&format!("198.{a}.{b}.{c}:1"));
        bench.core.on_contact(server, bench.now);
        bench
            .core
            .on_answer(tcp(&format!("198.{a}.{b}.{c}:1")), bench.now);
        let sample = Sample {
            socket: LocalSocket::Node,
            destination: server,
            observed: SocketAddr::from(([203, a, b, c], 1)),
            opened: bench.now,
        };
        bench.core.on_sample(sample, bench.now);
        bench
            .core
            .on_unreached(server.ip(), udp(PUBLIC), BY_PORT, bench.now);
        let port = (n % 60_000) as u16;
        bench
            .core
            .on_listening(udp(&format!("10.1.0.10:{port}")), bench.now);
        bench
            .core
            .on_port_mapped(udp(&format!("203.0.113.10:{port}")), true, bench.now);
        bench.outputs();
    }
    let config = Config::default();
    let core = &bench.core;
    assert!(core.udp.samples.len() <= config.max_samples());
    assert!(core.udp.filters.unreached.len() <= config.max_verdicts_per_address());
    assert!(core.udp_unanswered.len() <= MAX_SERVERS);
    assert!(core.tcp_answered.len() <= MAX_SERVERS);
    assert!(core.doubted.len() <= MAX_SERVERS);
    assert!(core.listening.len() <= MAX_LOCALS);
    assert!(core.mapped.len() <= MAX_LOCALS);
}
