use super::*;

const ALL: Transports = Transports {
    quic: true,
    websocket: true,
    webrtc: true,
};

struct Server {
    core: Core,
    now: Instant,
}

impl Server {
    fn new(limits: Limits, transports: Transports) -> Self {
        Self {
            core: Core::new(limits, transports, [7; 32]),
            // The origin of virtual time.
            now: crate::node::now(),
        }
    }

    fn ask_as(&mut self, peer: PeerId, from: &str, addresses: &[&str]) -> Answer {
        let addresses: Vec<_> = addresses.iter().map(|text| text.parse().ok()).collect();
        let from = from.parse().unwrap();
        let ongoing = Ongoing::default();
        self.core
            .on_request(peer, &from, &addresses, ongoing, self.now)
    }

    fn ask(&mut self, from: &str, addresses: &[&str]) -> Answer {
        self.ask_as(PeerId::random(), from, addresses)
    }
}

fn server() -> Server {
    Server::new(Limits::default(), ALL)
}

/// Which of the addresses, and whether it costs something.
fn dialled(answer: &Answer) -> Option<(u32, bool)> {
    match answer {
        Answer::Dial { index, price, .. } => Some((*index, price.is_some())),
        _ => None,
    }
}

#[test]
fn the_first_address_that_can_be_dialled_is() {
    let from = "/ip4/1.2.3.4/tcp/5000";
    let addresses = [
        "no address",
        "/ip4/1.2.3.4/udp/4001/quic-v1/webtransport",
        "/ip4/1.2.3.4/tcp/4001/p2p/12D3KooWFhXabKDwALpzqMbto94sB7rvmZ6M28hs9Y9xSopDKwQr/p2p-circuit",
        "/dns4/example.org/tcp/4001",
        "/ip4/1.2.3.4/tcp/0",
        "/ip4/1.2.3.4/udp/4001/quic-v1",
        "/ip4/1.2.3.4/tcp/4001",
    ];
    assert_eq!(dialled(&server().ask(from, &addresses)), Some((5, false)));
    let tcp_alone = Transports {
        quic: false,
        websocket: false,
        webrtc: false,
    };
    let mut private = Server::new(Limits::default(), tcp_alone);
    assert_eq!(dialled(&private.ask(from, &addresses)), Some((6, false)));
    for some in [
        "/ip4/1.2.3.4/udp/4001/webrtc-direct/certhash/uEiDDq4_xNyDorZBH3TlGazyJdOWSwvo4PUo5YHFMrvDE8g",
        "/ip4/1.2.3.4/tcp/4001/ws",
        "/ip4/1.2.3.4/tcp/4001/wss",
        "/ip4/1.2.3.4/tcp/4001/tls/ws",
        "/ip4/1.2.3.4/tcp/4001/tls/sni/1-2-3-4.example.org/ws",
    ] {
        let some = [some];
        assert_eq!(private.ask(from, &some), Answer::Refused);
        assert_eq!(dialled(&server().ask(from, &some)), Some((0, false)));
    }
    assert_eq!(server().ask(from, &addresses[..5]), Answer::Refused);
    assert_eq!(server().ask(from, &[]), Answer::Refused);
}

#[test]
fn an_address_may_end_in_the_name_of_the_client_and_of_nobody_else() {
    let peer = PeerId::random();
    let from = "/ip4/1.2.3.4/tcp/5000";
    let own = format!("/ip4/1.2.3.4/tcp/4001/p2p/{peer}");
    assert_eq!(
        dialled(&server().ask_as(peer, from, &[&own])),
        Some((0, false))
    );
    assert_eq!(server().ask(from, &[&own]), Answer::Refused);
}

#[test]
fn only_a_client_at_the_same_host_pays_nothing() {
    let mut server = server();
    let same = ["/ip4/1.2.3.4/tcp/4001"];
    for from in [
        "/ip4/1.2.3.4/tcp/5000",
        "/ip6/::ffff:1.2.3.4/tcp/5000",
        "/ip4/1.2.3.4/udp/5000/quic-v1",
    ] {
        assert_eq!(
            dialled(&server.ask(from, &same)),
            Some((0, false)),
            "{from}"
        );
    }
    let relayed = "/ip4/1.2.3.4/tcp/4001/p2p/12D3KooWFhXabKDwALpzqMbto94sB7rvmZ6M28hs9Y9xSopDKwQr/p2p-circuit";
    for from in ["/ip4/1.2.3.5/tcp/4001", relayed] {
        let answer = server.ask(from, &same);
        let Answer::Dial {
            price: Some(price), ..
        } = answer
        else {
            panic!("{from}: {answer:?}");
        };
        assert!(DATA.contains(&price.bytes));
        assert!(price.wait <= MAX_WAIT);
    }
}

#[test]
fn nobody_is_dialled_nearer_than_the_client_is() {
    let near = [
        ("/ip4/1.2.3.4/tcp/1", "/ip4/127.0.0.1/tcp/80"),
        ("/ip4/1.2.3.4/tcp/1", "/ip4/192.168.1.1/tcp/80"),
        ("/ip4/1.2.3.4/tcp/1", "/ip4/169.254.169.254/tcp/80"),
        ("/ip4/1.2.3.4/tcp/1", "/ip4/100.64.0.1/tcp/80"),
        ("/ip4/1.2.3.4/tcp/1", "/ip6/::1/tcp/80"),
        ("/ip4/1.2.3.4/tcp/1", "/ip6/fe80::1/tcp/80"),
        ("/ip4/1.2.3.4/tcp/1", "/ip6/fd00::1/tcp/80"),
        ("/ip4/1.2.3.4/tcp/1", "/ip6/::ffff:127.0.0.1/tcp/80"),
        ("/ip4/1.2.3.4/tcp/1", "/ip6/64:ff9b::10.0.0.1/tcp/80"),
        ("/ip4/1.2.3.4/tcp/1", "/ip6/2002:7f00:1::1/tcp/80"),
        ("/ip4/192.168.1.2/tcp/1", "/ip4/127.0.0.1/tcp/80"),
        ("/memory/1", "/ip4/10.0.0.1/tcp/80"),
        // Nowhere, for anybody.
        ("/ip4/127.0.0.1/tcp/1", "/ip4/0.0.0.0/tcp/80"),
        ("/ip4/127.0.0.1/tcp/1", "/ip4/255.255.255.255/tcp/80"),
        ("/ip4/127.0.0.1/tcp/1", "/ip4/224.0.0.251/udp/5353/quic-v1"),
        ("/ip4/127.0.0.1/tcp/1", "/ip6/::/tcp/80"),
        ("/ip4/127.0.0.1/tcp/1", "/ip6/ff02::1/tcp/80"),
    ];
    for (from, to) in near {
        assert_eq!(server().ask(from, &[to]), Answer::Refused, "{from}: {to}");
    }
    let far = [
        ("/ip4/192.168.1.2/tcp/1", "/ip4/192.168.1.3/tcp/80"),
        ("/ip4/192.168.1.2/tcp/1", "/ip4/1.2.3.4/tcp/80"),
        ("/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.3/tcp/80"),
        ("/ip6/2001:db9::1/tcp/1", "/ip6/2001:db9::2/tcp/80"),
        ("/ip6/2001:db9::1/tcp/1", "/ip6/64:ff9b::1.2.3.4/tcp/80"),
    ];
    for (from, to) in far {
        assert_eq!(
            dialled(&server().ask(from, &[to])),
            Some((0, true)),
            "{from}: {to}"
        );
    }
}

#[test]
fn a_peer_and_all_peers_together_ask_so_often_in_a_minute() {
    let limits = Limits {
        requests: 5,
        of_one_peer: 2,
        ..Limits::default()
    };
    let mut server = Server::new(limits, ALL);
    let from = "/ip4/1.2.3.4/tcp/5000";
    let address = ["/ip4/1.2.3.4/tcp/4001"];
    let peer = PeerId::random();
    for _ in 0..2 {
        assert!(dialled(&server.ask_as(peer, from, &address)).is_some());
    }
    assert_eq!(server.ask_as(peer, from, &address), Answer::Rejected);
    server.now += Duration::from_secs(30);
    for _ in 0..3 {
        // What is refused counts, too.
        assert_eq!(server.ask(from, &[]), Answer::Refused);
    }
    assert_eq!(server.ask(from, &address), Answer::Rejected);
    server.now += Duration::from_secs(29);
    assert_eq!(server.ask(from, &address), Answer::Rejected);
    server.now += Duration::from_secs(1);
    assert!(dialled(&server.ask_as(peer, from, &address)).is_some());
    assert_eq!(server.core.requests.len(), 4);
}

#[test]
fn dials_to_other_hosts_are_fewer() {
    let limits = Limits {
        about_others: 2,
        ..Limits::default()
    };
    let mut server = Server::new(limits, ALL);
    let from = "/ip4/1.2.3.4/tcp/5000";
    let victim = ["/ip4/5.6.7.8/tcp/4001"];
    for _ in 0..2 {
        assert_eq!(dialled(&server.ask(from, &victim)), Some((0, true)));
    }
    assert_eq!(server.ask(from, &victim), Answer::Rejected);
    let own = ["/ip4/1.2.3.4/tcp/4001"];
    assert_eq!(dialled(&server.ask(from, &own)), Some((0, false)));
    server.now += WINDOW;
    assert_eq!(dialled(&server.ask(from, &victim)), Some((0, true)));
}

#[test]
fn who_has_too_many_requests_under_way_waits() {
    let mut server = server();
    let limits = Limits::default();
    let full = [
        Ongoing {
            all: limits.at_a_time,
            of_this_peer: 0,
        },
        Ongoing {
            all: limits.of_one_peer_at_a_time,
            of_this_peer: limits.of_one_peer_at_a_time,
        },
    ];
    let address: Multiaddr = "/ip4/1.2.3.4/tcp/4001".parse().unwrap();
    for ongoing in full {
        let answer = server.core.on_request(
            PeerId::random(),
            &address,
            &[Some(address.clone())],
            ongoing,
            server.now,
        );
        assert_eq!(answer, Answer::Rejected);
    }
    assert!(server.core.requests.is_empty());
}
