//! The lab's own proof: delays, loss and rates are what the plan says, and every NAT kind behaves as it
//! is named.
#![cfg(feature = "natlab")]
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use anypath_interop_tests::lab::probe::{Server, classify};
use anypath_interop_tests::lab::{Host, Lab, Leg, Links, NatKind, Network, isolated, now};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

const PROBE: [Ipv4Addr; 2] = [
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv4Addr::new(198, 51, 100, 2),
];

fn ping(from: &Host, to: Ipv4Addr, count: &str) -> String {
    from.run(
        "ping",
        ["-q", "-n", "-i", "0.05", "-c", count, &to.to_string()],
    )
    .expect("ping")
}

/// The least of `rtt min/avg/max/mdev = 50.2/50.4/50.9/0.1 ms`: other work on this machine only adds.
fn least(report: &str) -> f64 {
    let figures = report
        .rsplit('=')
        .next()
        .and_then(|rtt| rtt.split('/').next());
    figures
        .and_then(|least| least.trim().parse().ok())
        .expect("a round trip")
}

fn every_kind(links: Links) {
    let mut plan = Lab::new().links(links);
    for kind in NatKind::ALL {
        plan = plan.nat(kind).host(kind.name());
    }
    let network = plan
        .server("probe", &PROBE)
        .start()
        .expect("the lab starts");
    let server = Server::start(network.host("probe").expect("probe"), PROBE).expect("server");
    let classes = thread::scope(|scope| {
        let probes = NatKind::ALL.map(|kind| {
            let host = network.host(kind.name()).expect("a host for each kind");
            scope.spawn(|| host.enter(|| classify(server.addresses())))
        });
        probes.map(|probe| {
            probe
                .join()
                .expect("no panic")
                .expect("namespace")
                .expect("probe")
        })
    });
    for (kind, class) in NatKind::ALL.into_iter().zip(classes) {
        println!("{kind:>26}  {class}");
        assert_eq!(class, kind.expected(), "{kind}");
    }
}

#[test]
fn every_nat_kind_behaves_as_it_is_named() {
    isolated(|| every_kind(Links::Auto));
}

#[test]
fn every_nat_kind_behaves_as_it_is_named_over_packet_sockets() {
    isolated(|| every_kind(Links::Packet));
}

fn two_sites(links: Links, leg: Leg) -> Network {
    Lab::new()
        .links(links)
        .leg(leg)
        .nat(NatKind::PortRestricted)
        .host("alice")
        .nat(NatKind::None)
        .host("bob")
        .start()
        .expect("the lab starts")
}

fn delays(links: Links) {
    let network = two_sites(links, Leg::default());
    let (alice, bob) = (network.host("alice").unwrap(), network.host("bob").unwrap());
    let round_trip = least(&ping(alice, bob.public(), "20"));
    println!("round trip over {links:?}: {round_trip} ms");
    assert!((50.0..52.0).contains(&round_trip), "{round_trip} ms");
}

#[test]
fn a_round_trip_between_two_sites_takes_50_ms() {
    isolated(|| {
        delays(Links::Auto);
        delays(Links::Packet);
    });
}

#[test]
fn a_leg_loses_its_share() {
    isolated(|| {
        let network = two_sites(
            Links::Auto,
            Leg {
                loss: 0.05,
                seed: 1,
                ..Leg::default()
            },
        );
        let (alice, bob) = (network.host("alice").unwrap(), network.host("bob").unwrap());
        let report = alice
            .run(
                "ping",
                [
                    "-q",
                    "-n",
                    "-i",
                    "0.005",
                    "-c",
                    "600",
                    &bob.public().to_string(),
                ],
            )
            .expect("ping");
        let received = report
            .split(" received")
            .next()
            .and_then(|text| text.rsplit(' ').next())
            .and_then(|number| number.parse::<u32>().ok())
            .expect("a count");
        // Four passages of a line with 5 % loss each leave 81 %; 600 tries are within 6 % of it.
        println!("{received} of 600 pings returned");
        assert!((450..=525).contains(&received), "{received}");
    });
}

/// Seconds that `bytes` take from `from` to `to` over one TCP connection.
fn transfer(from: &Host, to: &Host, bytes: usize) -> f64 {
    let listener = to
        .enter(|| TcpListener::bind((to.public(), 7000)))
        .unwrap()
        .expect("bind");
    thread::scope(|scope| {
        let sink = scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut buffer = vec![0; 1 << 16];
            let mut received = 0;
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                received += length;
            }
            received
        });
        let began = now();
        let mut stream = from
            .enter(|| TcpStream::connect((to.public(), 7000)))
            .unwrap()
            .expect("connect");
        stream.write_all(&vec![7; bytes]).expect("write");
        drop(stream);
        assert_eq!(sink.join().expect("sink"), bytes);
        began.elapsed().as_secs_f64()
    })
}

#[test]
fn a_rate_holds_and_no_rate_does_not_hinder() {
    isolated(|| {
        let leg = Leg {
            rate: Some(20_000_000),
            ..Leg::delay(Duration::from_millis(5))
        };
        let slow = two_sites(Links::Auto, leg);
        let seconds = transfer(
            slow.host("alice").unwrap(),
            slow.host("bob").unwrap(),
            5_000_000,
        );
        let rate = 40.0 / seconds;
        println!("20 Mbit/s legs carry {rate:.1} Mbit/s of TCP payload");
        assert!((12.0..20.0).contains(&rate), "{rate} Mbit/s");
        for links in [Links::Auto, Links::Packet] {
            let fast = two_sites(links, Leg::default());
            let seconds = transfer(
                fast.host("alice").unwrap(),
                fast.host("bob").unwrap(),
                128 << 20,
            );
            let rate = f64::from(128 << 20) / 1e6 / seconds;
            println!("{links:?} legs without a rate carry {rate:.0} MB/s of TCP payload");
            assert!(rate > 15.0, "{rate} MB/s");
        }
    });
}

#[test]
fn hosts_behind_one_nat_share_a_network_and_labs_do_not() {
    isolated(|| {
        let plan = Lab::new()
            .nat(NatKind::PortRestricted)
            .host("alice")
            .host("anna");
        let (one, other) = (
            plan.clone().start().expect("one"),
            plan.start().expect("other"),
        );
        for network in [&one, &other] {
            let (alice, anna) = (
                network.host("alice").unwrap(),
                network.host("anna").unwrap(),
            );
            let round_trip = least(&ping(alice, anna.address(), "3"));
            assert!(round_trip < 5.0, "{round_trip} ms on a bridge");
        }
    });
}
