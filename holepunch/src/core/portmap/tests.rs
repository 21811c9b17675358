use std::net::{Ipv6Addr, SocketAddrV4};

use proptest::{collection::vec, prelude::*};

use super::*;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const OUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const ROUTE: Route = Route {
    gateway: GATEWAY,
    local: LOCAL,
};
const QUIC: &str = "/ip4/10.1.0.10/udp/9100/quic-v1";
const TCP: &str = "/ip4/10.1.0.10/tcp/9100";
const WEBSOCKET: &str = "/ip4/10.1.0.10/tcp/9101/ws";
const ALL: [MappingProtocol; 3] = [
    MappingProtocol::Pcp,
    MappingProtocol::NatPmp,
    MappingProtocol::Upnp,
];
const DESCRIPTION: &str = r#"<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><device><deviceList><device><serviceList>
<service><serviceType>urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1</serviceType>
<controlURL>/ctl/CmnIfCfg</controlURL></service></serviceList><deviceList><device><serviceList>
<service><serviceType>urn:schemas-upnp-org:service:WANPPPConnection:1</serviceType><controlURL>/ctl/PPP</controlURL></service>
<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>
<SCPDURL>/WANIPCn.xml</SCPDURL><controlURL>/ctl/IPConn?a=1&amp;b</controlURL><eventSubURL>/evt</eventSubURL></service>
</serviceList></device></deviceList></device></deviceList></device></root>"#;

fn description_url() -> upnp::Url {
    let reply = "HTTP/1.1 200 OK\r\nST: x\r\nLocation: http://10.1.0.1:5000/rootDesc.xml\r\n\r\n";
    upnp::location(reply.as_bytes(), GATEWAY).unwrap()
}

fn found() -> Service {
    upnp::service(DESCRIPTION, &description_url()).unwrap()
}

/// A home router in virtual time.
struct Gateway {
    speaks: Vec<MappingProtocol>,
    outer: Ipv4Addr,
    started: Instant,
    /// Public ports and whom they lead to until when.
    table: BTreeMap<PortKey, (Ipv4Addr, u16, Instant)>,
    /// What it grants, whatever is asked for.
    seconds: Option<u32>,
    /// It grants this public port, whatever is asked for.
    port: Option<u16>,
    only_permanent: bool,
    /// Its clock jumps with every answer.
    jumps: bool,
    /// It does not tell who has a port.
    discreet: bool,
}

impl Gateway {
    fn speaks(&self, protocol: MappingProtocol) -> bool {
        self.speaks.contains(&protocol)
    }

    fn add(&mut self, key: PortKey, number: u16, asked: u32, now: Instant) -> (u16, u32) {
        let seconds = self.seconds.unwrap_or(asked);
        let number = self.port.unwrap_or(number);
        let until = now + Duration::from_secs(seconds.into());
        self.remove(key);
        let public = PortKey { number, ..key };
        self.table.insert(public, (LOCAL, key.number, until));
        (number, seconds)
    }

    fn remove(&mut self, key: PortKey) {
        self.table.retain(|public, (host, inner, _)| {
            *host != LOCAL || (public.proto, *inner) != (key.proto, key.number)
        });
    }

    /// Its answer to a datagram.
    fn answer(&mut self, bytes: &[u8], now: Instant) -> Option<Vec<u8>> {
        self.table.retain(|_, (_, _, until)| *until > now);
        if self.jumps {
            let by = if now.duration_since(self.started) > secs(5000) {
                0
            } else {
                5500
            };
            self.started = now - secs(by);
        }
        let epoch = now.duration_since(self.started).as_secs() as u32;
        let number = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let long = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        match bytes[0] {
            2 if self.speaks(MappingProtocol::Pcp) => {
                assert_eq!(bytes[8..24], LOCAL.to_ipv6_mapped().octets());
                let mut answer = vec![2, 0x80 | bytes[1], 0, 0];
                if bytes[1] == 0 {
                    answer.extend([0; 4]);
                    answer.extend(epoch.to_be_bytes());
                    answer.extend([0; 12]);
                    return Some(answer);
                }
                let proto = if bytes[36] == 17 {
                    Proto::Udp
                } else {
                    Proto::Tcp
                };
                let key = PortKey {
                    proto,
                    number: number(40),
                };
                let (port, seconds) = match long(4) {
                    0 => {
                        self.remove(key);
                        (0, 0)
                    }
                    asked => self.add(key, number(42), asked, now),
                };
                answer.extend(seconds.to_be_bytes());
                answer.extend(epoch.to_be_bytes());
                answer.extend([0; 12]);
                answer.extend(&bytes[24..42]);
                answer.extend(port.to_be_bytes());
                answer.extend(self.outer.to_ipv6_mapped().octets());
                Some(answer)
            }
            // A gateway of NAT-PMP alone says so.
            2 if self.speaks(MappingProtocol::NatPmp) => {
                Some([&[0, 128, 0, 1][..], &epoch.to_be_bytes()].concat())
            }
            0 if self.speaks(MappingProtocol::NatPmp) => {
                let mut answer = vec![0, 128 + bytes[1], 0, 0];
                answer.extend(epoch.to_be_bytes());
                if bytes[1] == 0 {
                    answer.extend(self.outer.octets());
                    return Some(answer);
                }
                let proto = if bytes[1] == 1 {
                    Proto::Udp
                } else {
                    Proto::Tcp
                };
                let key = PortKey {
                    proto,
                    number: number(4),
                };
                let (port, seconds) = match long(8) {
                    0 => {
                        assert_eq!(number(6), 0, "RFC 6886 §3.4");
                        self.remove(key);
                        (0, 0)
                    }
                    asked => self.add(key, number(6), asked, now),
                };
                answer.extend(key.number.to_be_bytes());
                answer.extend(port.to_be_bytes());
                answer.extend(seconds.to_be_bytes());
                Some(answer)
            }
            _ => None,
        }
    }

    /// Its answer to a call.
    fn call(&mut self, call: &Call, now: Instant) -> Answer {
        self.table.retain(|_, (_, _, until)| *until > now);
        if !self.speaks(MappingProtocol::Upnp) {
            return Answer::Failed;
        }
        match *call {
            Call::Search => Answer::Found(found()),
            Call::ExternalAddress(_) => Answer::ExternalAddress(self.outer),
            Call::Add {
                port,
                external,
                seconds,
                local,
                ..
            } => {
                assert_eq!(local, LOCAL);
                let public = PortKey {
                    number: external,
                    ..port
                };
                let owner = self.table.get(&public).map(|(host, ..)| *host);
                if owner.is_some_and(|owner| owner != LOCAL) {
                    return Answer::Refused(upnp::Refusal::Conflict);
                }
                if self.only_permanent && seconds != 0 {
                    return Answer::Refused(upnp::Refusal::OnlyPermanent);
                }
                let seconds = if seconds == 0 { u32::MAX } else { seconds };
                self.add(port, external, seconds, now);
                Answer::Done
            }
            Call::Entry { .. } if self.discreet => Answer::Refused(upnp::Refusal::Other(200)),
            Call::Entry { port, external, .. } => {
                let public = PortKey {
                    number: external,
                    ..port
                };
                match self.table.get(&public) {
                    Some((host, inner, _)) => Answer::Entry(*host, *inner),
                    None => Answer::Refused(upnp::Refusal::NoSuchEntry),
                }
            }
            Call::Delete { port, external, .. } => {
                let public = PortKey {
                    number: external,
                    ..port
                };
                self.table.remove(&public);
                Answer::Done
            }
        }
    }
}

struct Bench {
    core: PortMapper,
    gateway: Gateway,
    now: Instant,
    /// Datagrams and calls.
    requests: usize,
    mapped: Vec<PortMapping>,
    lost: Vec<PortMapping>,
    told: Option<super::Gateway>,
}

#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
fn bench(speaks: &[MappingProtocol]) -> Bench {
    let now = Instant::now() + Duration::from_secs(100_000);
    Bench {
        core: PortMapper::new(Config::default(), [7; 12]),
        gateway: Gateway {
            speaks: speaks.to_vec(),
            outer: OUTER,
            started: now - Duration::from_secs(5000),
            table: BTreeMap::new(),
            seconds: None,
            port: None,
            only_permanent: false,
            jumps: false,
            discreet: false,
        },
        now,
        requests: 0,
        mapped: Vec::new(),
        lost: Vec::new(),
        told: None,
    }
}

impl Bench {
    fn listen(&mut self) {
        for address in [QUIC, TCP, WEBSOCKET] {
            self.core.on_listening(&address.parse().unwrap(), self.now);
        }
        self.settle();
    }

    /// Carries what the core and the gateway have for each other, without delay.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let Some(output) = self.core.poll_output() else {
                return;
            };
            match output {
                Output::FindRoute => self.core.on_route(Some(ROUTE), self.now),
                Output::Send(bytes) => {
                    self.requests += 1;
                    if let Some(answer) = self.gateway.answer(&bytes, self.now) {
                        self.hear(&answer);
                    }
                }
                Output::Call(call) => {
                    self.requests += 1;
                    let answer = self.gateway.call(&call, self.now);
                    self.core.on_answer(answer, self.now);
                }
                Output::Mapped(mapping) => self.mapped.push(mapping),
                Output::Lost(mapping) => self.lost.push(mapping),
                Output::Gateway(gateway) => self.told = Some(gateway),
            }
        }
        panic!("it never comes to rest");
    }

    fn hear(&mut self, bytes: &[u8]) {
        let from = SocketAddr::from((GATEWAY, SERVER_PORT));
        self.core.on_datagram(from, bytes, self.now);
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut steps = 0;
        while let Some(at) = self.core.poll_timeout().filter(|at| *at <= end) {
            steps = if at > self.now { 0 } else { steps + 1 };
            assert!(steps < 100, "a timer that nothing comes of");
            self.now = self.now.max(at);
            self.core.handle_timeout(self.now);
            self.settle();
        }
        self.now = end;
    }

    fn until(&mut self, what: &str, ready: impl Fn(&Self) -> bool) -> Duration {
        let began = self.now;
        while !ready(self) {
            assert!(self.now < began + Duration::from_secs(60), "{what}");
            self.run(Duration::from_millis(50));
        }
        self.now - began
    }

    fn addresses(&self) -> Vec<String> {
        let mappings = self.core.mappings().iter();
        mappings
            .map(|mapping| mapping.address.to_string())
            .collect()
    }

    fn restart_gateway(&mut self) {
        self.gateway.table.clear();
        self.gateway.started = self.now;
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const PUBLIC: [&str; 3] = [
    "/ip4/203.0.113.10/tcp/9100",
    "/ip4/203.0.113.10/tcp/9101/ws",
    "/ip4/203.0.113.10/udp/9100/quic-v1",
];

fn sorted(mut addresses: Vec<String>) -> Vec<String> {
    addresses.sort();
    addresses
}

#[test]
fn the_best_protocol_that_answers_maps_every_port_in_three_seconds() {
    use MappingProtocol::{NatPmp, Pcp, Upnp};
    for (speaks, best) in [
        (&[Pcp, NatPmp, Upnp][..], Pcp),
        (&[NatPmp, Upnp], NatPmp),
        (&[Upnp], Upnp),
    ] {
        let mut bench = bench(speaks);
        bench.listen();
        let took = bench.until("mapped", |bench| bench.core.mappings().len() == 3);
        assert!(took <= secs(3), "{best} after {took:?}");
        assert_eq!(sorted(bench.addresses()), PUBLIC);
        assert!(bench.core.mappings().iter().all(|m| m.protocol == best));
        assert_eq!(bench.gateway.table.len(), 3);
        assert!(bench.told.unwrap().maps_ports);
        assert_eq!(bench.told.unwrap().outer, Some(OUTER.into()));
    }
}

#[test]
fn a_mapping_never_ends_while_the_gateway_renews_it() {
    for protocol in ALL {
        for granted in [None, Some(120)] {
            let mut bench = bench(&[protocol]);
            // UPnP has no way to grant less than was asked for.
            bench.gateway.seconds = granted.filter(|_| protocol != MappingProtocol::Upnp);
            bench.listen();
            bench.run(secs(5));
            for _ in 0..200 {
                bench.run(secs(60));
                let alive = |(_, _, until): &(_, _, Instant)| *until > bench.now;
                let alive = bench.gateway.table.values().filter(|e| alive(e)).count();
                assert_eq!(alive, 3, "{protocol}");
            }
            assert_eq!(bench.lost, [], "{protocol}");
            assert_eq!(bench.mapped.len(), 3, "told once");
        }
    }
}

#[test]
fn a_gateway_that_restarted_is_asked_again_in_time() {
    for protocol in ALL {
        let mut bench = bench(&[protocol]);
        bench.listen();
        bench.run(secs(100));
        assert_eq!(bench.gateway.table.len(), 3);
        bench.restart_gateway();
        let took = bench.until("mapped again", |bench| bench.gateway.table.len() == 3);
        let bar = match protocol {
            MappingProtocol::Upnp => 40,
            _ => 10,
        };
        println!("{protocol}: mapped again after {took:?}");
        assert!(took <= secs(bar), "{protocol} after {took:?}");
        assert_eq!(bench.lost, [], "the same address needs no news");
    }
}

#[test]
fn another_public_address_takes_the_place_of_the_old_one() {
    for protocol in ALL {
        let mut bench = bench(&[protocol]);
        bench.listen();
        bench.run(secs(100));
        bench.restart_gateway();
        bench.gateway.outer = Ipv4Addr::new(203, 0, 113, 99);
        bench.run(secs(40));
        assert_eq!(bench.lost.len(), 3, "{protocol}");
        let moved = |address: &String| address.starts_with("/ip4/203.0.113.99/");
        assert!(bench.addresses().iter().all(moved), "{protocol}");
        assert_eq!(bench.addresses().len(), 3);
    }
}

#[test]
fn a_gateway_that_is_gone_is_found_again_when_it_is_back() {
    for protocol in ALL {
        let mut bench = bench(&[protocol]);
        bench.listen();
        bench.run(secs(100));
        bench.gateway.speaks.clear();
        bench.restart_gateway();
        bench.until("lost", |bench| bench.core.mappings().is_empty());
        assert_eq!(bench.lost.len(), 3);
        assert!(!bench.told.unwrap().maps_ports);
        bench.gateway.speaks.push(protocol);
        let took = bench.until("mapped", |bench| bench.core.mappings().len() == 3);
        assert!(took <= secs(15), "{protocol} after {took:?}");
    }
}

#[test]
fn everything_is_given_back_in_the_end() {
    for protocol in ALL {
        let mut bench = bench(&[protocol]);
        bench.listen();
        bench.run(secs(100));
        bench.core.close(bench.now);
        assert_eq!(bench.core.mappings().len(), 3, "still on the gateway");
        bench.settle();
        assert!(bench.gateway.table.is_empty(), "{protocol}");
        assert!(bench.core.mappings().is_empty(), "{protocol}");
        bench.requests = 0;
        bench.run(secs(10_000));
        assert_eq!(bench.requests, 0);
    }
}

#[test]
fn a_silent_gateway_does_not_keep_the_node_from_ending() {
    for protocol in ALL {
        let mut bench = bench(&[protocol]);
        bench.listen();
        bench.run(secs(100));
        bench.gateway.speaks.clear();
        bench.core.close(bench.now);
        bench.settle();
        let took = bench.until("closed", |bench| bench.core.mappings().is_empty());
        assert!(took <= secs(2), "{protocol} after {took:?}");
    }
}

#[test]
fn closing_while_a_port_is_being_asked_for_leaves_nothing_behind() {
    for protocol in ALL {
        // One output at a time, so that the end comes in between.
        for stop_after in 0..12 {
            let mut bench = bench(&[protocol]);
            bench.core.on_listening(&TCP.parse().unwrap(), bench.now);
            for _ in 0..stop_after {
                match bench.core.poll_output() {
                    Some(Output::FindRoute) => bench.core.on_route(Some(ROUTE), bench.now),
                    Some(Output::Send(bytes)) => {
                        if let Some(answer) = bench.gateway.answer(&bytes, bench.now) {
                            bench.hear(&answer);
                        }
                    }
                    Some(Output::Call(call)) => {
                        let answer = bench.gateway.call(&call, bench.now);
                        bench.core.on_answer(answer, bench.now);
                    }
                    Some(_) => {}
                    None => {
                        bench.now += secs(1);
                        bench.core.handle_timeout(bench.now);
                    }
                }
            }
            bench.core.close(bench.now);
            bench.settle();
            bench.run(secs(10));
            assert!(bench.gateway.table.is_empty(), "{protocol} {stop_after}");
        }
    }
}

#[test]
fn a_listener_that_closed_gives_its_port_back_and_a_new_one_gets_one() {
    for protocol in ALL {
        let mut bench = bench(&[protocol]);
        bench.listen();
        bench.run(secs(10));
        bench
            .core
            .on_not_listening(&QUIC.parse().unwrap(), bench.now);
        bench.settle();
        bench.run(secs(1));
        assert_eq!(sorted(bench.addresses()), PUBLIC[..2], "{protocol}");
        assert_eq!(bench.gateway.table.len(), 2, "{protocol}");
        bench.core.on_listening(&QUIC.parse().unwrap(), bench.now);
        bench.settle();
        bench.run(secs(1));
        assert_eq!(sorted(bench.addresses()), PUBLIC, "{protocol}");
        for address in [QUIC, TCP, WEBSOCKET] {
            let address = address.parse().unwrap();
            bench.core.on_not_listening(&address, bench.now);
            bench.settle();
        }
        assert!(bench.gateway.table.is_empty(), "{protocol}");
        assert_eq!(bench.core.poll_timeout(), None, "{protocol}");
    }
}

#[test]
fn only_private_ipv4_addresses_are_mapped() {
    for address in [
        "/ip4/127.0.0.1/tcp/9100",
        "/ip4/203.0.113.10/tcp/9100",
        "/ip6/fd00::1/tcp/9100",
        "/ip4/10.1.0.10/tcp/9100/p2p/12D3KooWJbJFaZ1dwpuu9tQY3ELCKCpWMJc1dSRVbcMwhiLiFq7q/p2p-circuit",
        "/memory/1",
    ] {
        let mut bench = bench(&ALL);
        bench
            .core
            .on_listening(&address.parse().unwrap(), bench.now);
        assert_eq!(bench.core.poll_output(), None, "{address}");
        assert_eq!(bench.core.poll_timeout(), None);
    }
}

#[test]
fn another_network_means_another_gateway() {
    let mut bench = bench(&[MappingProtocol::Pcp]);
    bench.listen();
    bench.run(secs(10));
    let elsewhere = "/ip4/192.168.7.2/tcp/9100".parse().unwrap();
    bench.core.on_listening(&elsewhere, bench.now);
    for address in [QUIC, TCP, WEBSOCKET] {
        let address = address.parse().unwrap();
        bench.core.on_not_listening(&address, bench.now);
    }
    let mut asked = false;
    while let Some(output) = bench.core.poll_output() {
        asked |= output == Output::FindRoute;
    }
    assert!(asked && bench.core.mappings().is_empty());
    // The old route is of no use.
    bench.core.on_route(Some(ROUTE), bench.now);
    assert!(matches!(bench.core.state, State::Waiting { .. }));
}

#[test]
fn nobody_answers_for_the_gateway() {
    let mut bench = bench(&[]);
    bench.listen();
    let mut other = self::bench(&[MappingProtocol::NatPmp]).gateway;
    let answer = other.answer(&[0, 0], bench.now).unwrap();
    for from in [
        SocketAddr::from(([10, 1, 0, 66], SERVER_PORT)),
        SocketAddr::from((GATEWAY, 5350)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, SERVER_PORT)),
    ] {
        bench.core.on_datagram(from, &answer, bench.now);
    }
    bench.run(secs(3));
    assert!(!matches!(bench.core.state, State::Mapping(_)));
    let mut heard = self::bench(&[]);
    heard.listen();
    heard.hear(&answer);
    heard.run(secs(3));
    assert!(
        matches!(heard.core.state, State::Mapping(_)),
        "else this proves nothing"
    );
}

#[test]
fn a_gateway_of_pcp_alone_is_not_misunderstood() {
    // Its answer to NAT-PMP says "unsupported version", before and after its answer to PCP.
    let unsupported = [&[2, 128, 0, 1][..], &[0; 20]].concat();
    for first in [true, false] {
        let mut bench = bench(&[]);
        bench.listen();
        bench.gateway.speaks.push(MappingProtocol::Pcp);
        let announce = pcp::announce(LOCAL);
        let announced = bench.gateway.answer(&announce, bench.now).unwrap();
        let answers = match first {
            true => [&unsupported, &announced],
            false => [&announced, &unsupported],
        };
        answers.into_iter().for_each(|answer| bench.hear(answer));
        bench.settle();
        assert_eq!(bench.addresses().len(), 3);
    }
}

#[test]
fn what_was_not_asked_for_is_not_believed() {
    let mut bench = bench(&[MappingProtocol::Pcp]);
    bench.listen();
    bench.run(secs(1));
    let before = bench.addresses();
    let key = PortKey {
        proto: Proto::Udp,
        number: 9100,
    };
    let suggested = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 666);
    for nonce in [[7; 12], [0; 12]] {
        let forged = pcp::map(LOCAL, nonce, key, suggested, 3600);
        let answer = bench.gateway.answer(&forged, bench.now).unwrap();
        bench.hear(&answer);
    }
    // By its own nonce, but nothing is asked for now.
    let State::Mapping(session) = &bench.core.state else {
        panic!("no session");
    };
    let nonce = session.nonce(key);
    let late = pcp::map(LOCAL, nonce, key, suggested, 3600);
    let answer = bench.gateway.answer(&late, bench.now).unwrap();
    bench.hear(&answer);
    bench.settle();
    assert_eq!(bench.addresses(), before);
    assert!(bench.lost.is_empty());
}

#[test]
fn an_answer_without_the_secret_of_the_question_is_not_believed() {
    let mut bench = bench(&[]);
    bench.core.on_listening(&TCP.parse().unwrap(), bench.now);
    bench.settle();
    let mut forger = self::bench(&[MappingProtocol::Pcp]).gateway;
    let answer = forger.answer(&pcp::announce(LOCAL), bench.now).unwrap();
    bench.hear(&answer);
    bench.settle();
    let State::Mapping(session) = &bench.core.state else {
        panic!("no session");
    };
    let key = PortKey {
        proto: Proto::Tcp,
        number: 9100,
    };
    let right = session.nonce(key);
    let other_port = session.nonce(PortKey { number: 1, ..key });
    let suggested = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 9100);
    for (nonce, count) in [([0; 12], 0), (other_port, 0), (right, 1)] {
        let question = pcp::map(LOCAL, nonce, key, suggested, 3600);
        let answer = forger.answer(&question, bench.now).unwrap();
        bench.hear(&answer);
        bench.settle();
        assert_eq!(bench.addresses().len(), count);
    }
}

#[test]
fn a_private_outer_address_is_told_as_a_second_nat_and_nothing_is_mapped() {
    for outer in [
        "100.64.3.2",
        "192.168.1.7",
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
    ] {
        for protocol in ALL {
            let mut bench = bench(&[protocol]);
            bench.gateway.outer = outer.parse().unwrap();
            bench.listen();
            bench.run(secs(30));
            assert_eq!(bench.mapped, [], "{protocol} {outer}");
            assert!(bench.gateway.table.is_empty(), "{protocol} {outer}");
            let told = bench.told.unwrap();
            assert!(!told.maps_ports);
            assert_eq!(told.outer, Some(outer.parse().unwrap()), "{protocol}");
        }
    }
}

#[test]
fn absurd_ports_and_lifetimes_are_refused() {
    for protocol in [MappingProtocol::Pcp, MappingProtocol::NatPmp] {
        let grants = |seconds, port| {
            let mut bench = bench(&[protocol]);
            (bench.gateway.seconds, bench.gateway.port) = (seconds, port);
            bench.listen();
            bench.run(secs(3600));
            bench
        };
        assert_eq!(grants(Some(1), None).mapped, [], "{protocol}: one second");
        assert_eq!(grants(Some(0), None).mapped, [], "{protocol}: none");
        assert_eq!(grants(None, Some(0)).mapped, [], "{protocol}: port 0");
        // Forever is a day.
        let forever = grants(Some(u32::MAX), None);
        assert_eq!(forever.addresses().len(), 3);
        let due = forever.core.poll_timeout().unwrap();
        assert!(due <= forever.now + secs(43_200));
        let State::Mapping(session) = &forever.core.state else {
            panic!("no session");
        };
        assert!(session.held().count() == 3);
        // One public port for all of ours cannot be, but is no danger.
        assert!(grants(None, Some(1)).requests < 3000);
    }
}

#[test]
fn a_gateway_that_never_answers_is_asked_ever_more_seldom() {
    let mut bench = bench(&[]);
    bench.listen();
    bench.run(secs(86_400));
    // Every 600 s, three times two datagrams and a search.
    println!("{} requests in a day", bench.requests);
    assert!((500..1200).contains(&bench.requests), "{}", bench.requests);
    assert_eq!(bench.told, None);
}

#[test]
fn a_gateway_that_restarts_all_the_time_is_asked_no_more_often_than_others() {
    for protocol in ALL {
        let mut bench = bench(&[protocol]);
        bench.listen();
        for _ in 0..360 {
            bench.run(secs(10));
            bench.restart_gateway();
        }
        // 720 queries, and three requests for each of 360 restarts.
        assert!(bench.requests < 2200, "{protocol}: {}", bench.requests);
    }
}

#[test]
fn a_gateway_whose_clock_is_never_right_is_not_asked_without_end() {
    for protocol in [MappingProtocol::Pcp, MappingProtocol::NatPmp] {
        let mut bench = bench(&[protocol]);
        bench.gateway.jumps = true;
        bench.listen();
        bench.run(secs(3600));
        // 720 queries, and three requests after each.
        assert!(bench.requests < 3000, "{protocol}: {}", bench.requests);
        assert_eq!(bench.addresses().len(), 3);
    }
}

#[test]
fn a_port_that_another_host_has_is_replaced() {
    let mut bench = bench(&[MappingProtocol::Upnp]);
    let other = (
        Ipv4Addr::new(10, 1, 0, 11),
        9100,
        bench.now + secs(1_000_000),
    );
    for number in [9100, 9357] {
        let key = PortKey {
            proto: Proto::Udp,
            number,
        };
        bench.gateway.table.insert(key, other);
    }
    bench.listen();
    bench.run(secs(5));
    let taken = "/ip4/203.0.113.10/udp/9614/quic-v1".to_owned();
    assert!(
        bench.addresses().contains(&taken),
        "{:?}",
        bench.addresses()
    );
    bench.core.close(bench.now);
    bench.settle();
    assert_eq!(bench.gateway.table.len(), 2, "those of the other host stay");
}

#[test]
fn a_gateway_that_knows_no_leases_keeps_the_port_until_it_is_given_back() {
    let mut bench = bench(&[MappingProtocol::Upnp]);
    bench.gateway.only_permanent = true;
    bench.listen();
    bench.run(secs(10_000));
    assert_eq!((bench.addresses().len(), bench.lost.len()), (3, 0));
    bench.core.close(bench.now);
    bench.settle();
    assert!(bench.gateway.table.is_empty());
}

#[test]
fn a_gateway_that_does_not_tell_who_has_a_port_is_believed() {
    let mut bench = bench(&[MappingProtocol::Upnp]);
    bench.gateway.discreet = true;
    bench.listen();
    bench.run(secs(10_000));
    assert_eq!((bench.mapped.len(), bench.lost.len()), (3, 0));
}

#[test]
fn where_one_protocol_refuses_the_next_one_maps() {
    let mut bench = bench(&[MappingProtocol::Pcp, MappingProtocol::Upnp]);
    bench.gateway.seconds = Some(1);
    bench.listen();
    // UPnP does not tell what it grants.
    bench.run(secs(4));
    let by = bench.core.mappings().first().unwrap().protocol;
    assert_eq!(by, MappingProtocol::Upnp);
}

#[test]
fn listeners_and_ports_are_bounded() {
    let mut bench = bench(&[MappingProtocol::Pcp]);
    for port in 1..=500 {
        let address = format!("/ip4/10.1.0.10/tcp/{port}").parse().unwrap();
        bench.core.on_listening(&address, bench.now);
    }
    bench.settle();
    bench.run(secs(5));
    assert_eq!(bench.core.listeners.len(), MAX_LISTENERS);
    assert_eq!(bench.gateway.table.len(), MAX_PORTS);
}

#[test]
fn a_description_leads_to_the_gateway_alone() {
    let service = found();
    assert_eq!(service.url.path, "/ctl/IPConn?a=1&b");
    assert_eq!(service.url.address, SocketAddrV4::new(GATEWAY, 5000));
    let at = |location: &str| {
        let reply = format!("HTTP/1.1 200 OK\r\nLOCATION:{location}\r\n\r\n");
        upnp::location(reply.as_bytes(), GATEWAY)
    };
    assert!(at("http://10.1.0.1:80/x").is_some() && at("http://10.1.0.1").is_some());
    for elsewhere in [
        "http://10.1.0.2:80/x",
        "http://10.1.0.1@10.1.0.2/x",
        "http://10.1.0.1:80:81/x",
        "http://10.1.0.1:0/x",
        "https://10.1.0.1/x",
        "http://router/x",
        "http://10.1.0.1/a b",
        "http://10.1.0.1/\u{e9}",
        "//10.1.0.1/x",
        "",
    ] {
        assert_eq!(at(elsewhere), None, "{elsewhere}");
    }
    let long = format!("http://10.1.0.1/{}", "x".repeat(600));
    assert_eq!(at(&long), None);
    assert_eq!(upnp::location(b"NOTIFY * HTTP/1.1\r\n\r\n", GATEWAY), None);
    let hostile = DESCRIPTION.replace("/ctl/IPConn?a=1&amp;b", "http://10.1.0.2/ctl");
    let fallback = upnp::service(&hostile, &description_url()).unwrap();
    assert_eq!(fallback.url.path, "/ctl/PPP", "the other service");
    let split = DESCRIPTION.replace("/ctl/", "/ctl\r\nX: y");
    assert_eq!(upnp::service(&split, &description_url()), None);
    let base = DESCRIPTION.replace("<device>", "<URLBase>http://10.1.0.2:1/</URLBase><device>");
    assert_eq!(
        upnp::service(&base, &description_url()).map(|service| service.url.address),
        Some(SocketAddrV4::new(GATEWAY, 5000))
    );
}

#[test]
fn a_call_says_what_it_wants_and_reads_what_came_of_it() {
    let port = PortKey {
        proto: Proto::Udp,
        number: 9100,
    };
    let add = Call::Add {
        service: found(),
        port,
        external: 9357,
        local: LOCAL,
        seconds: 3600,
    };
    let post = add.post().unwrap();
    assert_eq!(
        post.action,
        "urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping"
    );
    for part in [
        "<NewExternalPort>9357</NewExternalPort>",
        "<NewProtocol>UDP</NewProtocol>",
        "<NewInternalPort>9100</NewInternalPort>",
        "<NewInternalClient>10.1.0.10</NewInternalClient>",
        "<NewLeaseDuration>3600</NewLeaseDuration>",
    ] {
        assert!(post.body.contains(part), "{part}");
    }
    let refused = "<s:Envelope><s:Body><s:Fault><detail><UPnPError><errorCode>718</errorCode></UPnPError></detail></s:Fault></s:Body></s:Envelope>";
    assert_eq!(
        add.answer(500, refused),
        Answer::Refused(upnp::Refusal::Conflict)
    );
    let other = |code| Answer::Refused(upnp::Refusal::Other(code));
    assert_eq!(add.answer(500, "oh"), other(500));
    assert_eq!(add.answer(200, ""), Answer::Done);
    let address = Call::ExternalAddress(found());
    let body = "<a><NewExternalIPAddress> 203.0.113.10 </NewExternalIPAddress></a>";
    assert_eq!(address.answer(200, body), Answer::ExternalAddress(OUTER));
    assert_eq!(address.answer(200, "<a>"), other(200));
    let entry = Call::Entry {
        service: found(),
        port,
        external: 9357,
    };
    let body = "<e><NewInternalPort>9100</NewInternalPort><NewInternalClient>10.1.0.10</NewInternalClient></e>";
    assert_eq!(entry.answer(200, body), Answer::Entry(LOCAL, 9100));
    assert_eq!(entry.answer(200, "no"), other(200));
}

proptest! {
    /// Whatever the gateway sends, there is an end to what is sent to it.
    #[test]
    fn no_answer_upsets_it(
        answers in vec((0..4_u8, vec(any::<u8>(), 0..70), 0..5000_u64), 0..60),
        speaks in 0..3_usize,
    ) {
        let mut bench = bench(&[ALL[speaks]]);
        bench.listen();
        for (start, mut bytes, wait) in answers {
            // Most are answers at least by their first bytes.
            if let ([version, operation, ..], 1..) = (&mut bytes[..], start) {
                *version = if start == 1 { 0 } else { 2 };
                *operation = 128 + *operation % 3;
            }
            bench.hear(&bytes);
            let _ = nat_pmp::decode(&bytes);
            bench.settle();
            bench.run(Duration::from_millis(wait));
        }
        prop_assert!(bench.requests < 1500, "{}", bench.requests);
        let public = |address: &String| !address.starts_with("/ip4/10.");
        prop_assert!(bench.addresses().iter().all(public));
        bench.core.close(bench.now);
        bench.settle();
        bench.run(secs(10));
        prop_assert!(bench.core.mappings().is_empty());
    }

    #[test]
    fn no_text_upsets_it(text in ".{0,400}") {
        let _ = upnp::location(text.as_bytes(), GATEWAY);
        let _ = upnp::service(&text, &description_url());
        let _ = Call::ExternalAddress(found()).answer(500, &text);
    }
}
