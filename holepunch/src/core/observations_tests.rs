use proptest::prelude::*;

use super::*;
use crate::ConfigBuilder;

fn observations(configure: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Observations {
    Observations::new(configure(Config::builder()).build().unwrap())
}

fn address(text: &str) -> Multiaddr {
    text.parse().unwrap()
}

#[test]
fn the_port_that_the_nat_gave_survives() {
    let mut observations = observations(|config| config);
    let mapped = address("/ip4/203.0.113.10/udp/40123/quic-v1");
    observations.on_observation(PeerId::random(), None, &mapped);
    assert_eq!(observations.new_candidates(), [mapped]);
}

#[test]
fn an_address_of_webrtc_is_no_candidate() {
    let mut observations = observations(|config| config);
    let seen = address("/ip4/203.0.113.10/udp/9102/webrtc-direct");
    observations.on_observation(PeerId::random(), None, &seen);
    assert_eq!(observations.new_candidates(), Vec::<Multiaddr>::new());
    assert_eq!(observations.addresses(), []);
    assert!(!observations.accepts(&seen));
}

#[test]
fn an_address_becomes_a_candidate_once() {
    let mut observations = observations(|config| config);
    let seen = address("/ip4/203.0.113.10/tcp/4001");
    let me = PeerId::random();
    observations.on_observation(PeerId::random(), None, &seen);
    assert_eq!(observations.new_candidates().len(), 1);
    let with_peer = seen.clone().with_p2p(me).unwrap();
    observations.on_observation(PeerId::random(), None, &with_peer);
    assert_eq!(observations.new_candidates(), Vec::<Multiaddr>::new());
    assert_eq!(observations.addresses().len(), 1);
    assert_eq!(observations.addresses()[0].observers, 2);
}

#[test]
fn addresses_that_no_other_machine_can_reach_are_no_candidates() {
    let mut observations = observations(|config| config);
    for useless in [
        "/ip4/127.0.0.1/tcp/4001",
        "/ip4/0.0.0.0/tcp/4001",
        "/ip4/203.0.113.100/tcp/4001/p2p-circuit",
    ] {
        observations.on_observation(PeerId::random(), None, &address(useless));
        assert!(!observations.accepts(&address(useless)), "{useless}");
    }
    assert!(observations.new_candidates().is_empty());
    assert!(observations.addresses().is_empty());
}

#[test]
fn loopback_is_a_candidate_where_it_is_allowed() {
    let mut observations = observations(|config| config.allow_loopback(true));
    observations.on_observation(PeerId::random(), None, &address("/ip4/127.0.0.1/tcp/4001"));
    assert_eq!(observations.new_candidates().len(), 1);
}

#[test]
fn private_addresses_are_candidates_only_while_no_public_one_is_known() {
    let mut observations = observations(|config| config);
    let private = address("/ip4/192.168.1.7/tcp/4001");
    observations.on_observation(PeerId::random(), None, &private);
    assert_eq!(observations.new_candidates(), [private]);
    let public = address("/ip4/203.0.113.10/tcp/4001");
    observations.on_observation(PeerId::random(), None, &public);
    let later = address("/ip4/192.168.1.7/tcp/4002");
    observations.on_observation(PeerId::random(), None, &later);
    assert_eq!(observations.new_candidates(), [public]);
    assert!(!observations.accepts(&later));
}

#[test]
fn an_address_needs_as_many_different_observers_as_configured() {
    let mut observations = observations(|config| config.min_observers(2));
    let (first, second) = (PeerId::random(), PeerId::random());
    let seen = address("/ip4/203.0.113.10/tcp/4001");
    observations.on_observation(first, None, &seen);
    observations.on_observation(first, None, &seen);
    assert!(observations.new_candidates().is_empty());
    observations.on_observation(second, None, &seen);
    assert_eq!(observations.new_candidates(), [seen]);
}

#[test]
fn candidates_with_more_observers_come_first() {
    let mut observations = observations(|config| config.min_observers(2));
    let (common, rare) = (
        address("/ip4/203.0.113.10/tcp/1"),
        address("/ip4/203.0.113.10/tcp/2"),
    );
    for (times, seen) in [(2, &rare), (5, &common)] {
        for _ in 0..times {
            observations.on_observation(PeerId::random(), None, seen);
        }
    }
    assert_eq!(observations.new_candidates(), [common, rare]);
}

#[test]
fn one_peer_with_many_claims_does_not_push_out_what_others_saw() {
    let mut observations = observations(|config| config);
    let honest = address("/ip4/203.0.113.10/tcp/4001");
    observations.on_observation(PeerId::random(), None, &honest);
    let liar = PeerId::random();
    for port in 1..1000 {
        let claim = address(&format!("/ip4/198.51.100.7/tcp/{port}"));
        observations.on_observation(liar, None, &claim);
    }
    let known = observations.addresses();
    assert!(known.iter().any(|seen| seen.address == honest));
    assert_eq!(known.len(), 1 + 4, "the liar's latest claims");
}

fn connection(number: usize) -> ConnectionId {
    ConnectionId::new_unchecked(number)
}

fn known(observations: &Observations) -> Vec<String> {
    let known = observations.candidates().into_iter();
    known.map(|address| address.to_string()).collect()
}

#[test]
fn a_new_public_ip_seen_over_another_transport_moves_what_only_that_peer_saw() {
    let mut observations = observations(|config| config);
    let relay = PeerId::random();
    let old = address("/ip4/203.0.113.10/tcp/9100");
    observations.on_observation(relay, Some(connection(1)), &old);
    observations.new_candidates();
    observations.on_closed(relay, connection(1));
    assert_eq!(known(&observations), ["/ip4/203.0.113.10/tcp/9100"]);
    let new = address("/ip4/203.0.113.55/udp/56263/quic-v1");
    observations.on_observation(relay, Some(connection(2)), &new);
    let moved = "/ip4/203.0.113.55/tcp/9100";
    assert_eq!(known(&observations), [new.to_string(), moved.to_string()]);
    assert_eq!(observations.withdrawn(), [old]);
    // The swarm hears of the guess: AutoNAT tries it.
    assert!(observations.new_candidates().contains(&address(moved)));
    // What is seen takes the guess's place in rank.
    let seen = address("/ip4/203.0.113.55/tcp/40000");
    observations.on_observation(relay, Some(connection(3)), &seen);
    assert_eq!(known(&observations).last().unwrap(), moved);
}

#[test]
fn the_connection_of_old_may_end_after_the_new_one_is_up() {
    let mut observations = observations(|config| config);
    let relay = PeerId::random();
    for (number, seen) in [
        (1, "/ip4/203.0.113.10/tcp/9100"),
        (2, "/ip4/203.0.113.55/udp/9100/quic-v1"),
    ] {
        observations.on_observation(relay, Some(connection(number)), &address(seen));
    }
    assert_eq!(known(&observations).len(), 2, "it may have two uplinks");
    assert!(observations.withdrawn().is_empty());
    observations.on_closed(relay, connection(1));
    assert!(known(&observations).contains(&"/ip4/203.0.113.55/tcp/9100".to_string()));
    assert_eq!(known(&observations).len(), 2);
}

#[test]
fn a_peer_that_names_another_ip_does_not_move_what_others_see() {
    let mut observations = observations(|config| config);
    let (relay, liar) = (PeerId::random(), PeerId::random());
    let honest = address("/ip4/203.0.113.10/tcp/9100");
    observations.on_observation(relay, Some(connection(1)), &honest);
    observations.on_observation(liar, Some(connection(2)), &honest);
    observations.on_closed(liar, connection(2));
    let lie = address("/ip4/198.51.100.7/tcp/1");
    observations.on_observation(liar, Some(connection(3)), &lie);
    assert!(known(&observations).contains(&honest.to_string()));
    assert!(observations.withdrawn().is_empty());
    // Nor what nobody's word can be told to be over of.
    observations.on_observation(PeerId::random(), None, &honest);
    observations.on_closed(relay, connection(1));
    assert!(known(&observations).contains(&honest.to_string()));
}

#[test]
fn the_other_ip_version_and_the_own_network_say_nothing_about_the_public_ip() {
    let mut observations = observations(|config| config);
    let relay = PeerId::random();
    let honest = address("/ip4/203.0.113.10/tcp/9100");
    observations.on_observation(relay, Some(connection(1)), &honest);
    observations.on_closed(relay, connection(1));
    for (number, other) in [(2, "/ip6/2001:db8::1/tcp/9100"), (3, "/ip4/10.0.0.1/tcp/1")] {
        observations.on_observation(relay, Some(connection(number)), &address(other));
    }
    assert!(known(&observations).contains(&honest.to_string()));
    assert!(observations.withdrawn().is_empty());
}

proptest! {
    #[test]
    fn whatever_peers_claim_memory_stays_bounded(
        claims in prop::collection::vec((0..40_u8, 0..4_u8, 0..200_u16, 0..4_u8), 0..600),
    ) {
        let mut observations = observations(|config| {
            config.max_observed_addresses(8).max_observers_per_address(4)
        });
        let peers: Vec<PeerId> = (0..40).map(|_| PeerId::random()).collect();
        for (peer, host, port, over) in claims {
            let seen = address(&format!("/ip4/203.0.113.{host}/udp/{port}/quic-v1"));
            let peer = peers[usize::from(peer)];
            observations.on_observation(peer, Some(connection(usize::from(over))), &seen);
            observations.on_closed(peer, connection(usize::from(host)));
            observations.withdrawn();
            observations.new_candidates();
            prop_assert!(observations.addresses().len() <= 8);
            prop_assert!(observations.addresses().iter().all(|seen| seen.observers <= 4));
        }
    }
}
