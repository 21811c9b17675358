//! One host and what it does with single packets.

use std::net::SocketAddr;

use libp2p_core::Multiaddr;

use super::lan::*;
use crate::{
    Config, Event, Family, Scope,
    core::{Core, Destination, LinkId, MDNS_PORT, Network, Output},
    dns::{self, Message, Names, Service, tests::golden},
};

fn drain(core: &mut Core) -> Vec<Output> {
    std::iter::from_fn(|| core.poll_output()).collect()
}

fn events(core: &mut Core) -> Vec<Event> {
    let outputs = drain(core).into_iter();
    outputs
        .filter_map(|output| match output {
            Output::Event(event) => Some(event),
            _ => None,
        })
        .collect()
}

/// What was sent to whom until `time` from now, with the delays.
fn sent(core: &mut Core, time: u64) -> Vec<(Destination, Vec<u8>)> {
    let end = origin() + millis(time);
    let mut all = Vec::new();
    loop {
        all.extend(drain(core).into_iter().filter_map(|output| match output {
            Output::Send { to, packet, .. } => Some((to, packet)),
            Output::Event(_) => None,
        }));
        match core.poll_timeout().filter(|at| *at <= end) {
            Some(at) => core.handle_timeout(at),
            None => return all,
        }
    }
}

fn answers(packets: &[(Destination, Vec<u8>)]) -> usize {
    packets.iter().filter(|(_, it)| it[2] & 0x80 != 0).count()
}

fn addresses_in(packet: &[u8], names: &Names) -> Vec<String> {
    let Ok(Some(Message::Response(response))) = dns::decode(packet, names) else {
        panic!("no response");
    };
    let strings = response.texts.iter().flat_map(|text| text.strings());
    let mut addresses: Vec<_> = strings
        .map(|string| {
            let text = String::from_utf8(string.to_vec()).unwrap();
            let address = text.strip_prefix("dnsaddr=").unwrap();
            address.split_once("/p2p/").unwrap().0.to_owned()
        })
        .collect();
    addresses.sort_unstable();
    addresses
}

const OTHER: &str = "10.0.0.99:5353";

/// A host at 10.0.0.1/24 that listens, after its first packets.
fn host(config: Config) -> Core {
    let mut core = Core::new(peer_id(0), config, [1; 32]);
    let network = Network {
        address: [10, 0, 0, 1].into(),
        prefix: 24,
    };
    let begin = origin() - secs(20);
    core.on_link_up(LINK, vec![network], false, begin);
    core.on_listening(&"/ip4/10.0.0.1/tcp/4001".parse().unwrap(), begin);
    while let Some(at) = core.poll_timeout().filter(|at| *at <= origin()) {
        core.handle_timeout(at);
    }
    drain(&mut core);
    core
}

/// What another peer says about itself.
fn announcement(peer: u32, addresses: &[&str], ttl: u32) -> Vec<u8> {
    let names = Names::new("_p2p._udp.local", &format!("{peer:032}"));
    let service = Service {
        attributes: addresses
            .iter()
            .map(|address| format!("dnsaddr={address}/p2p/{}", peer_id(peer)).into())
            .collect(),
        ..Service::default()
    };
    dns::announcement(&names, &service, ttl, 0).remove(0)
}

fn hear(core: &mut Core, source: &str, packet: &[u8]) -> Vec<Event> {
    core.on_packet(LINK, source.parse().unwrap(), packet, origin());
    events(core)
}

/// The addresses of an event, without the peer.
fn bare(addresses: &[Multiaddr]) -> Vec<String> {
    let addresses = addresses.iter();
    addresses
        .map(|address| {
            let text = address.to_string();
            text.rsplit_once("/p2p/").unwrap().0.to_owned()
        })
        .collect()
}

fn discovered(core: &mut Core, source: &str, packet: &[u8]) -> Vec<String> {
    match hear(core, source, packet).as_slice() {
        [] => Vec::new(),
        [Event::Discovered { addresses, .. }] => bare(addresses),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_query_and_the_announcement_leave_within_100_ms() {
    for seed in 0..100 {
        let mut core = Core::new(peer_id(0), Config::default(), [seed; 32]);
        let network = Network {
            address: [10, 0, 0, 1].into(),
            prefix: 24,
        };
        core.on_link_up(LINK, vec![network], false, origin());
        core.on_listening(&"/ip4/10.0.0.1/tcp/4001".parse().unwrap(), origin());
        let sent = sent(&mut core, 100);
        assert_eq!((sent.len(), answers(&sent)), (2, 1), "seed {seed}");
    }
}

#[test]
fn peers_of_other_implementations_are_discovered() {
    let mut core = host(Config::default());
    let mut found = |name: &str, source: &str| discovered(&mut core, source, &golden(name));
    // Not the loopback addresses of another host; private addresses of another prefix are believed.
    assert_eq!(
        found("go-announcement", OTHER),
        ["/ip4/10.9.0.1/tcp/4001", "/ip6/fd09::1/tcp/4001"]
    );
    assert_eq!(
        found("js-answer", OTHER),
        ["/ip4/10.9.0.1/tcp/4001", "/ip4/10.9.0.1/tcp/4002/ws"]
    );
    assert_eq!(
        found("rust-answer", "10.0.0.99:40000"),
        ["/ip4/10.9.0.1/tcp/4002", "/ip4/10.9.0.1/tcp/4001"]
    );
    assert_eq!(core.peers().len(), 3);
}

#[test]
fn a_query_is_answered_after_a_short_random_delay_and_not_twice_in_a_second() {
    let mut core = host(Config::default());
    let other: SocketAddr = OTHER.parse().unwrap();
    for _ in 0..50 {
        core.on_packet(LINK, other, &golden("rust-query"), origin());
    }
    assert_eq!(answers(&sent(&mut core, 19)), 0);
    assert_eq!(answers(&sent(&mut core, 120)), 1);
    for _ in 0..50 {
        core.on_packet(LINK, other, &golden("js-query"), origin() + millis(200));
    }
    assert_eq!(answers(&sent(&mut core, 900)), 0);
    assert_eq!(answers(&sent(&mut core, 1_200)), 1);
}

#[test]
fn a_newcomer_gets_what_was_just_multicast_by_unicast() {
    let mut core = host(Config::default());
    let names = Names::new("_p2p._udp.local", "newcomer");
    let query = dns::query(&names, true, []);
    let newcomer: SocketAddr = OTHER.parse().unwrap();
    core.on_packet(LINK, newcomer, &query, origin());
    let first = sent(&mut core, 120);
    assert_eq!(first[0].0, Destination::Group, "nobody heard it recently");
    core.on_packet(LINK, newcomer, &query, origin() + millis(300));
    let second = sent(&mut core, 340);
    assert_eq!(second.len(), 1);
    assert_eq!(second[0].0, Destination::Host(newcomer));
    assert_eq!(
        addresses_in(&second[0].1, &names),
        ["/ip4/10.0.0.1/tcp/4001"]
    );
}

#[test]
fn unicast_answers_are_limited() {
    let mut core = host(Config::default());
    let query = dns::query(&Names::new("_p2p._udp.local", "many"), true, []);
    core.on_packet(LINK, OTHER.parse().unwrap(), &query, origin());
    sent(&mut core, 120);
    for host in 2..200 {
        let asker = SocketAddr::from(([10, 0, 0, host], MDNS_PORT));
        core.on_packet(LINK, asker, &query, origin() + millis(200));
    }
    // Those who get none of their own hear the one to all.
    let sent = sent(&mut core, 1_300);
    let unicast = sent.iter().filter(|(to, _)| *to != Destination::Group);
    assert_eq!(unicast.count(), 4);
    assert_eq!(answers(&sent), 5);
}

#[test]
fn who_knows_us_well_gets_no_answer() {
    let ask = |ttl| {
        let mut core = host(Config::default());
        let names = core.names().clone();
        let query = dns::query(&names, false, [(&names.instance, ttl)]);
        core.on_packet(LINK, OTHER.parse().unwrap(), &query, origin());
        (
            answers(&sent(&mut core, 200)),
            core.counters().answers_suppressed,
        )
    };
    assert_eq!(ask(150), (0, 1));
    assert_eq!(ask(149), (1, 0));
}

#[test]
fn a_query_that_another_host_asks_is_not_asked_again() {
    let next_query = |packet: &[u8], source: &str| {
        let mut core = host(Config::default());
        let before = core.poll_timeout().unwrap();
        let at = before - millis(500);
        core.on_packet(LINK, source.parse().unwrap(), packet, at);
        // The answer comes first.
        core.handle_timeout(at + millis(130));
        drain(&mut core);
        core.poll_timeout().unwrap() > before
    };
    assert!(next_query(&golden("js-query"), OTHER));
    // The answers would go to the asker alone.
    assert!(!next_query(&golden("js-query"), "10.0.0.99:40000"));
    let names = Names::new("_p2p._udp.local", "other");
    assert!(!next_query(&dns::query(&names, true, []), OTHER));
    // Someone whom we do not know would not answer.
    let known = [(&names.instance, 200)];
    assert!(!next_query(&dns::query(&names, false, known), OTHER));
}

#[test]
fn only_addresses_of_the_link_are_told() {
    const V6: LinkId = LinkId {
        interface: 2,
        family: Family::V6,
    };
    const OTHER_LINK: LinkId = LinkId {
        interface: 3,
        family: Family::V4,
    };
    let told = |scope, link: LinkId| {
        let config = Config::builder().scope(scope).build().unwrap();
        let mut core = Core::new(peer_id(0), config, [3; 32]);
        let networks = match link {
            LINK => vec![("10.0.0.1", 24), ("169.254.3.4", 16)],
            V6 => vec![("fd00::1", 64), ("fe80::1", 64)],
            _ => vec![("192.168.1.1", 24)],
        };
        let networks = networks.into_iter().map(|(address, prefix)| Network {
            address: address.parse().unwrap(),
            prefix,
        });
        core.on_link_up(link, networks.collect(), false, origin());
        for address in [
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/10.0.0.1/tcp/1",
            "/ip4/10.0.0.1/udp/1/quic-v1",
            "/ip4/169.254.3.4/tcp/1",
            "/ip4/192.168.1.1/tcp/1",
            "/ip4/203.0.113.1/tcp/1",
            "/ip6/::1/tcp/1",
            "/ip6/fd00::1/tcp/1",
            "/ip6/fe80::1/tcp/1",
            "/ip4/0.0.0.0/tcp/1",
            "/dns4/example.com/tcp/1",
            "/unix/socket",
            "/ip4/10.0.0.1/tcp/1/p2p/12D3KooWCmgpYwYECU6GKEi7Ubb7sT773Lgp1eXxXRdjFJBNQ8vM/p2p-circuit",
        ] {
            core.on_listening(&address.parse().unwrap(), origin());
        }
        let names = core.names().clone();
        let sent = sent(&mut core, 90);
        let answer = sent.iter().find(|(_, packet)| packet[2] & 0x80 != 0);
        addresses_in(&answer.unwrap().1, &names)
    };
    assert_eq!(
        told(Scope::Local, LINK),
        [
            "/ip4/10.0.0.1/tcp/1",
            "/ip4/10.0.0.1/udp/1/quic-v1",
            "/ip4/169.254.3.4/tcp/1"
        ]
    );
    assert_eq!(told(Scope::Local, V6), ["/ip6/fd00::1/tcp/1"]);
    assert_eq!(told(Scope::Local, OTHER_LINK), ["/ip4/192.168.1.1/tcp/1"]);
    // The name and the relayed address too.
    assert_eq!(told(Scope::Any, V6).len(), 3);
}

#[test]
fn addresses_that_make_no_sense_here_are_not_believed() {
    let all = [
        "/ip4/10.0.0.7/tcp/1",
        "/ip4/192.168.7.7/tcp/1",
        "/ip6/fd00::7/tcp/1",
        "/dns4/seven.local/tcp/1",
        "/ip4/203.0.113.7/tcp/1",
        "/ip6/2001:db8::7/tcp/1",
        "/dns4/example.com/tcp/1",
        "/ip4/127.0.0.1/tcp/1",
        "/ip6/::ffff:127.0.0.1/tcp/1",
        "/ip4/0.0.0.0/tcp/1",
        "/ip4/224.0.0.251/tcp/1",
        "/ip4/255.255.255.255/tcp/1",
        "/ip6/fe80::7/tcp/1",
        "/memory/7",
    ];
    let mut core = host(Config::default());
    assert_eq!(
        discovered(&mut core, OTHER, &announcement(7, &all, 300)),
        all[..4]
    );
    assert_eq!(core.counters().unusable, 10);
    // Another program on this machine may well listen on loopback.
    let mut core = host(Config::default());
    let found = discovered(&mut core, "10.0.0.1:5353", &announcement(7, &all, 300));
    assert_eq!(found.len(), 6);
    let mut core = host(Config::builder().scope(Scope::Any).build().unwrap());
    assert_eq!(
        discovered(&mut core, OTHER, &announcement(7, &all, 300)),
        all[..7]
    );
}

#[test]
fn relayed_addresses_are_believed_only_where_any_address_is() {
    let relayed = format!("/ip4/10.0.0.8/tcp/1/p2p/{}/p2p-circuit", peer_id(8));
    let packet = announcement(7, &[&relayed], 300);
    let mut core = host(Config::default());
    assert_eq!(hear(&mut core, OTHER, &packet), []);
    let mut core = host(Config::builder().scope(Scope::Any).build().unwrap());
    assert_eq!(hear(&mut core, OTHER, &packet).len(), 1);
}

#[test]
fn a_record_is_forgotten_when_nobody_vouches_for_it_any_more() {
    let mut core = host(Config::default());
    let v6 = LinkId {
        interface: 2,
        family: Family::V6,
    };
    let network = Network {
        address: "fd00::1".parse().unwrap(),
        prefix: 64,
    };
    core.on_link_up(v6, vec![network], false, origin());
    let address = &["/ip4/10.0.0.7/tcp/1"];
    assert_eq!(
        hear(&mut core, "10.0.0.7:5353", &announcement(7, address, 10)).len(),
        1
    );
    let source = "[fe80::7]:5353".parse().unwrap();
    core.on_packet(v6, source, &announcement(7, address, 20), origin());
    assert_eq!(events(&mut core), [], "known already");
    core.handle_timeout(origin() + secs(11));
    assert_eq!(events(&mut core), []);
    core.handle_timeout(origin() + secs(20));
    assert!(matches!(
        events(&mut core).as_slice(),
        [Event::Expired { .. }]
    ));
    // And at once when the link that it was heard on is gone.
    hear(&mut core, "10.0.0.7:5353", &announcement(7, address, 10));
    core.on_link_down(LINK, origin());
    assert!(matches!(
        events(&mut core).as_slice(),
        [Event::Expired { .. }]
    ));
}

#[test]
fn addresses_that_an_announcement_leaves_out_are_forgotten_a_second_later() {
    let mut core = host(Config::default());
    let (old, new) = ("/ip4/10.0.0.7/tcp/1", "/ip4/10.0.0.7/tcp/2");
    hear(&mut core, OTHER, &announcement(7, &[old], 300));
    let later = origin() + secs(5);
    core.on_packet(
        LINK,
        OTHER.parse().unwrap(),
        &announcement(7, &[new], 300),
        later,
    );
    assert_eq!(events(&mut core).len(), 1);
    core.handle_timeout(later + millis(900));
    assert_eq!(events(&mut core), []);
    core.handle_timeout(later + secs(1));
    match events(&mut core).as_slice() {
        [Event::Expired { addresses, .. }] => assert_eq!(bare(addresses), [old]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_said_again_lives_on_and_what_is_left_out_does_not() {
    let mut core = host(Config::default());
    let source: SocketAddr = OTHER.parse().unwrap();
    let (one, two) = ("/ip4/10.0.0.7/tcp/1", "/ip4/10.0.0.7/tcp/2");
    let both = announcement(7, &[one, two], 10);
    let less = announcement(7, &[one], 10);
    for second in 0..30 {
        core.on_packet(LINK, source, &both, origin() + secs(second));
        core.handle_timeout(origin() + secs(second));
    }
    assert_eq!(core.addresses(&peer_id(7)).count(), 2);
    // The timer is late: the address that was left out must not be revived by what is said again.
    for second in 30..33 {
        core.on_packet(LINK, source, &less, origin() + secs(second));
    }
    core.handle_timeout(origin() + secs(33));
    assert_eq!(core.addresses(&peer_id(7)).count(), 1);
    // A goodbye has the same text.
    core.on_packet(
        LINK,
        source,
        &announcement(7, &[one], 0),
        origin() + secs(33),
    );
    assert_eq!(core.peers().len(), 0);
    // And said again after that it is news.
    events(&mut core);
    core.on_packet(LINK, source, &less, origin() + secs(34));
    assert!(matches!(
        events(&mut core).as_slice(),
        [Event::Discovered { .. }]
    ));
}

#[test]
fn what_found_no_place_is_learned_as_soon_as_there_is_one() {
    let mut core = host(Config::builder().max_peers(1).build().unwrap());
    let (first, second) = ("10.0.0.7:5353", "10.0.0.8:5353");
    let hello = announcement(8, &["/ip4/10.0.0.8/tcp/1"], 300);
    core.on_connected(&peer_id(7));
    hear(
        &mut core,
        first,
        &announcement(7, &["/ip4/10.0.0.7/tcp/1"], 300),
    );
    assert_eq!(hear(&mut core, second, &hello), []);
    assert_eq!(core.counters().over_limit, 1);
    hear(
        &mut core,
        first,
        &announcement(7, &["/ip4/10.0.0.7/tcp/1"], 0),
    );
    assert_eq!(
        discovered(&mut core, second, &hello),
        ["/ip4/10.0.0.8/tcp/1"]
    );
}

#[test]
fn what_was_no_use_on_one_network_is_of_use_on_the_next() {
    let mut core = host(Config::default());
    let hello = announcement(7, &["/ip4/10.0.0.7/tcp/1", "/ip4/203.0.113.7/tcp/1"], 300);
    assert_eq!(
        discovered(&mut core, OTHER, &hello),
        ["/ip4/10.0.0.7/tcp/1"]
    );
    let networks = [([10, 0, 0, 1], 24), ([203, 0, 113, 1], 24)];
    let networks = networks.map(|(address, prefix)| Network {
        address: address.into(),
        prefix,
    });
    core.on_link_up(LINK, networks.to_vec(), false, origin());
    drain(&mut core);
    assert_eq!(
        discovered(&mut core, OTHER, &hello),
        ["/ip4/203.0.113.7/tcp/1"]
    );
}

#[test]
fn who_said_goodbye_is_not_named_as_known() {
    // Named as known, it would not answer once it is back.
    let known = |goodbye_from: Option<&str>| {
        let mut core = host(Config::default());
        let source: SocketAddr = OTHER.parse().unwrap();
        let packet = |ttl| announcement(7, &["/ip4/10.0.0.7/tcp/1"], ttl);
        let (hello, goodbye) = (packet(300), packet(0));
        core.on_packet(LINK, source, &hello, origin() - secs(2));
        core.on_packet(LINK, source, &hello, origin());
        if let Some(from) = goodbye_from {
            core.on_packet(LINK, from.parse().unwrap(), &goodbye, origin());
        }
        drain(&mut core);
        let names = core.names().clone();
        let packets = sent(&mut core, 60_000);
        let query = packets.iter().find(|(_, packet)| packet[2] & 0x80 == 0);
        match dns::decode(&query.unwrap().1, &names) {
            Ok(Some(Message::Query(query))) => query.known.len(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(known(None), 1);
    assert_eq!(known(Some(OTHER)), 0);
    assert_eq!(known(Some("10.0.0.98:5353")), 1, "not another's to say");
}

#[test]
fn packets_of_one_announcement_do_not_flush_each_other() {
    let mut core = host(Config::default());
    for packet in 0..5 {
        let address = format!("/ip4/10.0.0.7/tcp/{packet}");
        let packet = announcement(7, &[&address], 300);
        core.on_packet(LINK, OTHER.parse().unwrap(), &packet, origin() + millis(1));
    }
    core.handle_timeout(origin() + secs(10));
    assert_eq!(core.addresses(&peer_id(7)).count(), 5);
}

#[test]
fn a_change_of_addresses_is_told_twice_and_their_end_once() {
    let mut core = host(Config::default());
    let address: Multiaddr = "/ip4/10.0.0.1/udp/1/quic-v1".parse().unwrap();
    core.on_listening(&address, origin());
    let names = core.names().clone();
    let told: Vec<_> = sent(&mut core, 5_000)
        .into_iter()
        .filter(|(_, packet)| packet[2] & 0x80 != 0)
        .collect();
    assert_eq!(told.len(), 2);
    assert!(
        told.iter()
            .all(|(_, packet)| addresses_in(packet, &names).len() == 2)
    );
    core.on_not_listening(&address, origin());
    core.on_not_listening(&"/ip4/10.0.0.1/tcp/4001".parse().unwrap(), origin());
    let goodbye = drain(&mut core);
    let [Output::Send { packet, .. }] = goodbye.as_slice() else {
        panic!("{goodbye:?}");
    };
    let mut other = host(Config::default());
    hear(&mut other, "10.0.0.1:5353", &told[0].1);
    core.on_packet(LINK, OTHER.parse().unwrap(), &golden("js-query"), origin());
    assert_eq!(answers(&sent(&mut core, 6_000)), 0, "nothing to tell");
    assert!(!packet.is_empty());
}

#[test]
fn another_network_on_the_same_interface_is_searched_at_once() {
    let mut core = host(Config::default());
    core.handle_timeout(origin());
    drain(&mut core);
    let begin = origin();
    let network = Network {
        address: [192, 168, 5, 5].into(),
        prefix: 24,
    };
    core.on_link_up(LINK, vec![network], false, begin);
    // The old address is not ours any more: a goodbye; then the query.
    let sent = sent(&mut core, 100);
    assert_eq!((sent.len(), answers(&sent)), (2, 1));
}
