//! Hosts that mean harm.

use std::net::SocketAddr;

use super::lan::*;
use crate::{
    Config, Event,
    core::{Core, Network, Output},
    dns::{self, Names, Service},
};

const VICTIM: usize = 0;
const HONEST: usize = 1;

/// Two hosts of ours that know each other.
fn pair(config: &Config) -> Lan {
    let mut lan = Lan::new(9);
    assert_eq!((lan.start(config), lan.start(config)), (VICTIM, HONEST));
    assert!(lan.run_until(secs(5), Lan::all_know_all));
    lan.run(secs(2));
    lan
}

fn announcement(name: &str, attributes: Vec<Vec<u8>>, ttl: u32) -> Vec<u8> {
    let service = Service {
        attributes,
        ..Service::default()
    };
    let names = Names::new("_p2p._udp.local", name);
    dns::announcement(&names, &service, ttl, 0).remove(0)
}

fn attribute(peer: u32, port: u32) -> Vec<u8> {
    let port = port % 65_536;
    format!("dnsaddr=/ip4/10.0.9.9/tcp/{port}/p2p/{}", peer_id(peer)).into()
}

fn source(number: u32) -> SocketAddr {
    let [.., high, low] = number.to_be_bytes();
    SocketAddr::from(([10, 0, 128 | high, low], 5353))
}

/// Among sources with as many peers, the one that gives a peer up.
const LAST: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 255, 1)),
    5353,
);

#[test]
fn an_invented_crowd_stays_within_the_bounds_and_passes() {
    let config = Config::builder()
        .max_peers(32)
        .max_addresses_per_peer(4)
        .build()
        .unwrap();
    let mut lan = pair(&config);
    let honest = lan.hosts[HONEST].peer;
    for peer in 0..5_000 {
        let attributes = (0..12).map(|port| attribute(1_000 + peer, port)).collect();
        let packet = announcement(&format!("{peer:032}"), attributes, u32::MAX);
        // From one host, then from a new one each time.
        let from = if peer < 2_500 {
            source(0)
        } else {
            source(peer)
        };
        lan.inject(from, &packet);
        lan.run(millis(1));
        let core = &lan.hosts[VICTIM].core;
        assert!(core.peers().len() <= 32);
        assert!(core.peers().all(|peer| core.addresses(peer).count() <= 4));
        assert!(core.peers().any(|peer| *peer == honest), "displaced");
    }
    assert!(lan.hosts[VICTIM].core.counters().over_limit > 5_000);
    // A newcomer is found while the table is full.
    let newcomer = lan.start(&config);
    lan.run(secs(1));
    let newcomer = lan.hosts[newcomer].peer;
    assert!(lan.hosts[VICTIM].discovered(&newcomer).is_some());
    lan.run(secs(75 * 60));
    assert!(lan.all_know_all(), "junk outlives 75 minutes");
}

#[test]
fn one_host_does_not_fill_the_table_for_the_others() {
    let config = Config::builder().max_peers(32).build().unwrap();
    let mut lan = pair(&config);
    for round in 0..3 {
        for peer in 0..100 {
            let packet = announcement(&format!("{peer:032}"), vec![attribute(500 + peer, 1)], 300);
            lan.inject(source(0), &packet);
            lan.run(millis(10 + round));
        }
    }
    // All of its places are established, and still it is who gives way.
    for number in 1..=20 {
        let attributes = vec![attribute(2_000 + number, 1)];
        lan.inject(
            source(number),
            &announcement(&format!("x{number:031}"), attributes, 300),
        );
        lan.run(millis(10));
    }
    let core = &lan.hosts[VICTIM].core;
    for number in 1..=20 {
        let peer = peer_id(2_000 + number);
        assert!(core.peers().any(|known| *known == peer), "{number}");
    }
}

#[test]
fn a_peer_to_whom_we_are_connected_is_kept() {
    let config = Config::builder().max_peers(4).build().unwrap();
    let mut lan = Lan::new(10);
    lan.start(&config);
    lan.inject(
        LAST,
        &announcement("connected", vec![attribute(77, 1)], 4_000),
    );
    lan.run(millis(1));
    lan.command(VICTIM, |core, _| core.on_connected(&peer_id(77)));
    for number in 0..200 {
        let packet = announcement(
            &format!("{number:032}"),
            vec![attribute(500 + number, 1)],
            300,
        );
        lan.inject(source(number), &packet);
        lan.run(millis(600));
        assert_eq!(lan.hosts[VICTIM].core.addresses(&peer_id(77)).count(), 1);
    }
}

#[test]
fn a_peer_to_whom_we_were_connected_before_it_was_heard_is_kept_too() {
    let config = Config::builder().max_peers(4).build().unwrap();
    let mut lan = Lan::new(11);
    lan.start(&config);
    lan.command(VICTIM, |core, _| core.on_connected(&peer_id(77)));
    let hello = announcement("connected", vec![attribute(77, 1)], 30);
    let crowd = |lan: &mut Lan, first| {
        for number in first..first + 100 {
            let attributes = vec![attribute(500 + number, 1)];
            lan.inject(
                source(number),
                &announcement(&format!("{number:032}"), attributes, 300),
            );
            lan.run(millis(600));
        }
    };
    // Its record runs out once, while the connection lasts.
    for round in 0..2 {
        lan.inject(LAST, &hello);
        lan.run(millis(1));
        for second in 0..25 {
            let attributes = vec![attribute(900 + second, 1)];
            lan.inject(
                source(second),
                &announcement(&format!("{second:032}"), attributes, 300),
            );
            lan.run(secs(1));
            assert_eq!(lan.hosts[VICTIM].core.addresses(&peer_id(77)).count(), 1);
        }
        lan.run(secs(10));
        assert_eq!(lan.hosts[VICTIM].core.addresses(&peer_id(77)).count(), 0);
        crowd(&mut lan, round * 100);
    }
    lan.command(VICTIM, |core, _| core.on_disconnected(&peer_id(77)));
    lan.inject(LAST, &hello);
    lan.run(millis(1));
    assert_eq!(lan.hosts[VICTIM].core.addresses(&peer_id(77)).count(), 1);
    crowd(&mut lan, 300);
    assert_eq!(lan.hosts[VICTIM].core.addresses(&peer_id(77)).count(), 0);
}

#[test]
fn who_vouched_for_an_address_first_cannot_keep_the_owner_from_being_heard() {
    let mut lan = pair(&Config::default());
    let (peer, owner) = (peer_id(77), source(77));
    let words = || vec![attribute(77, 1)];
    // As many hosts as are remembered say so before the owner does, and then take it back.
    for number in 1..=4 {
        lan.inject(
            source(number),
            &announcement(&format!("{number:032}"), words(), 300),
        );
    }
    lan.run(millis(1));
    let hello = announcement("owner", words(), 300);
    lan.inject(owner, &hello);
    lan.run(secs(1));
    for number in 1..=4 {
        lan.inject(
            source(number),
            &announcement(&format!("{number:032}"), words(), 0),
        );
    }
    lan.run(millis(1));
    assert_eq!(lan.hosts[VICTIM].core.addresses(&peer).count(), 0);
    lan.inject(owner, &hello);
    lan.run(millis(1));
    assert_eq!(lan.hosts[VICTIM].core.addresses(&peer).count(), 1);
}

#[test]
fn forged_addresses_do_not_crowd_out_the_true_ones() {
    let config = Config::builder().max_addresses_per_peer(4).build().unwrap();
    let mut lan = pair(&config);
    let honest = lan.hosts[HONEST].peer;
    for port in 0..100 {
        let forged = format!("dnsaddr=/ip4/10.0.9.9/tcp/{port}/p2p/{honest}").into();
        lan.inject(source(0), &announcement("forger", vec![forged], 4_000));
        lan.run(millis(1));
    }
    lan.command(HONEST, |core, now| {
        core.on_listening(&"/ip4/10.0.0.11/udp/1/quic-v1".parse().unwrap(), now);
    });
    lan.run(secs(1));
    let known = lan.hosts[VICTIM].core.addresses(&honest);
    let known: Vec<_> = known.map(ToString::to_string).collect();
    for address in ["/ip4/10.0.0.11/tcp/4001/", "/ip4/10.0.0.11/udp/1/quic-v1/"] {
        assert!(known.iter().any(|it| it.starts_with(address)), "{known:?}");
    }
}

#[test]
fn nobody_can_say_goodbye_for_another_host() {
    let mut lan = pair(&Config::default());
    let honest = lan.hosts[HONEST].peer;
    let names = lan.hosts[HONEST].core.names().clone();
    let address = format!("dnsaddr={}/p2p/{honest}", listen_address(HONEST));
    let service = Service {
        attributes: vec![address.into()],
        ..Service::default()
    };
    let goodbye = dns::announcement(&names, &service, 0, 0).remove(0);
    lan.inject(source(0), &goodbye);
    // Nor can another host's text flush it.
    let service = Service {
        attributes: vec![format!("dnsaddr=/ip4/10.0.9.9/tcp/1/p2p/{honest}").into()],
        ..Service::default()
    };
    lan.inject(
        source(0),
        &dns::announcement(&names, &service, 1, 0).remove(0),
    );
    lan.run(secs(5));
    assert!(lan.all_know_all());
    let own = format!("{}/p2p/{honest}", listen_address(HONEST));
    let known = lan.hosts[VICTIM].core.addresses(&honest);
    assert_eq!(known.map(ToString::to_string).collect::<Vec<_>>(), [own]);
    lan.inject(SocketAddr::new(ip_of(HONEST), 5353), &goodbye);
    lan.run(millis(5));
    assert_eq!(
        lan.hosts[VICTIM].core.peers().len(),
        0,
        "the host itself can"
    );
}

#[test]
fn packets_from_other_networks_are_ignored() {
    let mut lan = pair(&Config::default());
    let packet = announcement("far", vec![attribute(77, 1)], 300);
    for far in ["203.0.113.1:5353", "10.1.0.1:5353", "[2001:db8::1]:5353"] {
        lan.inject(far.parse().unwrap(), &packet);
        let query = dns::query(&Names::new("_p2p._udp.local", "far"), true, []);
        lan.inject(far.parse().unwrap(), &query);
    }
    let begin = lan.now;
    lan.run(millis(500));
    assert_eq!(lan.hosts[VICTIM].core.counters().off_link, 6);
    assert!(lan.hosts[VICTIM].discovered(&peer_id(77)).is_none());
    assert_eq!(
        lan.hosts[VICTIM].answers_since(begin),
        0,
        "no amplification"
    );
}

#[test]
fn a_flood_of_questions_gets_one_answer_a_second() {
    let mut lan = pair(&Config::default());
    let begin = lan.now;
    let names = Names::new("_p2p._udp.local", "flood");
    for number in 0..10_000 {
        lan.inject(source(number), &dns::query(&names, number % 2 == 0, []));
        lan.run(millis(1));
    }
    // Ten seconds: ten to all, and the unicast ones that the bucket lets through.
    let answers = lan.hosts[VICTIM].answers_since(begin);
    assert!((10..=11 + 4 + 40).contains(&answers), "{answers}");
    assert!(lan.hosts[VICTIM].queries_since(begin) <= 10);
}

#[test]
fn questions_that_each_host_hears_alone_do_not_keep_hosts_from_asking_themselves() {
    let mut lan = pair(&Config::default());
    // Each is told that its own answer is known, so it neither answers nor asks.
    let names = [VICTIM, HONEST].map(|host| lan.hosts[host].core.names().clone());
    let queries = names.map(|names| dns::query(&names, false, [(&names.instance, 300)]));
    for _ in 0..6_000 {
        for (host, query) in queries.iter().enumerate() {
            lan.inject_to(host, source(0), query);
        }
        lan.run(millis(200));
    }
    for (host, other) in [(VICTIM, HONEST), (HONEST, VICTIM)] {
        let other = lan.hosts[other].peer;
        assert_eq!(lan.hosts[host].expired(&other), None);
    }
    assert!(lan.all_know_all());
}

#[test]
fn one_name_is_one_peer_and_our_own_id_is_nobody_else() {
    let mut lan = pair(&Config::default());
    let own = format!("dnsaddr=/ip4/10.0.9.9/tcp/1/p2p/{}", lan.hosts[VICTIM].peer);
    lan.inject(source(0), &announcement("liar", vec![own.into()], 300));
    let two = vec![attribute(77, 1), attribute(78, 1)];
    lan.inject(source(0), &announcement("two", two, 300));
    lan.run(secs(1));
    let core = &lan.hosts[VICTIM].core;
    assert_eq!(core.addresses(&peer_id(77)).count(), 1);
    assert_eq!(core.addresses(&peer_id(78)).count(), 0);
    assert_eq!(core.addresses(&lan.hosts[VICTIM].peer).count(), 0);
}

#[test]
fn what_is_learned_is_bounded_by_events_that_cancel_out() {
    // One packet that pushes its own addresses out again tells the application only what is left.
    let config = Config::builder().max_addresses_per_peer(2).build().unwrap();
    let mut core = Core::new(peer_id(0), config, [1; 32]);
    let network = Network {
        address: ip_of(0),
        prefix: 16,
    };
    core.on_link_up(LINK, vec![network], false, origin());
    let first = announcement("a", vec![attribute(77, 1), attribute(77, 2)], 300);
    core.on_packet(LINK, source(1), &first, origin());
    let second = announcement("b", (3..9).map(|port| attribute(77, port)).collect(), 300);
    core.on_packet(LINK, source(2), &second, origin());
    let mut known = std::collections::BTreeSet::new();
    while let Some(output) = core.poll_output() {
        match output {
            Output::Event(Event::Discovered { addresses, .. }) => {
                assert!(addresses.into_iter().all(|address| known.insert(address)));
            }
            Output::Event(Event::Expired { addresses, .. }) => {
                assert!(addresses.iter().all(|address| known.remove(address)));
            }
            Output::Send { .. } => {}
        }
    }
    let table: std::collections::BTreeSet<_> = core.addresses(&peer_id(77)).cloned().collect();
    assert_eq!(known, table);
    assert_eq!(table.len(), 2);
}
