//! Candidates and external addresses of real swarms.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "test code on tokio"
)]

mod common;

use anypath_holepunch::{self as holepunch, Config, Event, NatStatus};
use common::{Node, NodeEvent, Running, node};
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identify as identify;
use libp2p_identity::PeerId;
use libp2p_swarm::{
    NetworkBehaviour, Swarm, SwarmEvent,
    dial_opts::{DialOpts, PeerCondition},
};
use libp2p_swarm_test::SwarmExt;

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Identified {
    holepunch: holepunch::Behaviour,
    identify: identify::Behaviour,
}

fn identified() -> Swarm<Identified> {
    Swarm::new_ephemeral_tokio(|keypair| {
        let config = Config::builder().allow_loopback(true).build().unwrap();
        let identify = identify::Config::new("/test".to_owned(), keypair.public());
        Identified {
            holepunch: holepunch::Behaviour::new(keypair.public().to_peer_id(), config),
            identify: identify::Behaviour::new(identify),
        }
    })
}

fn tcp_port(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|protocol| match protocol {
        Protocol::Tcp(port) => Some(port),
        _ => None,
    })
}

/// A dial from a fresh port looks to the observer like one through a NAT that changes ports.
#[tokio::test]
async fn the_observed_port_that_identify_throws_away_becomes_a_candidate() {
    let mut node = identified();
    let mut observer = identified();
    let (_, listen) = node.listen().await;
    let (_, to) = observer.listen().await;
    let observer_id = *observer.local_peer_id();
    tokio::spawn(observer.loop_on_next());
    let dial = DialOpts::peer_id(observer_id)
        .addresses(vec![to])
        .condition(PeerCondition::Always)
        .allocate_new_port()
        .build();
    node.dial(dial).unwrap();
    let (mut raw, mut candidates) = (None::<Multiaddr>, Vec::new());
    // Two: identify's, with the listen port, and the true one.
    while candidates.len() < 2 {
        match node.next_swarm_event().await {
            SwarmEvent::Behaviour(IdentifiedEvent::Identify(identify::Event::Received {
                info,
                ..
            })) => {
                let observed = info.observed_addr;
                assert_ne!(tcp_port(&observed), tcp_port(&listen), "a fresh port");
                raw = Some(observed.clone());
                let holepunch = &mut node.behaviour_mut().holepunch;
                holepunch.on_observation(observer_id, None, observed);
            }
            SwarmEvent::NewExternalAddrCandidate { address } => candidates.push(address),
            _ => {}
        }
    }
    let raw = raw.expect("identify told what it saw");
    assert!(candidates.contains(&raw), "{candidates:?}");
    let ports: Vec<Option<u16>> = candidates.iter().map(tcp_port).collect();
    assert!(ports.contains(&tcp_port(&listen)), "{candidates:?}");
    let holepunch = &node.behaviour().holepunch;
    assert!(holepunch.has_candidates());
    assert_eq!(holepunch.observed_addresses().len(), 1);
    assert_eq!(holepunch.observed_addresses()[0].address, raw);
}

async fn verdict(node: &Running<Node>, address: &Multiaddr, reachable: bool) {
    let address = address.clone();
    node.with(move |swarm| {
        swarm
            .behaviour_mut()
            .holepunch
            .on_autonat(PeerId::random(), address, reachable);
    })
    .await;
}

async fn status_change(node: &mut Running<Node>) -> (NatStatus, NatStatus) {
    node.wait("change of status", |event| match event {
        SwarmEvent::Behaviour(NodeEvent::Holepunch(Event::NatStatusChanged { old, new })) => {
            Some((*old, *new))
        }
        _ => None,
    })
    .await
}

#[tokio::test]
async fn what_two_servers_reach_is_confirmed_to_the_swarm_and_withdrawn_again() {
    let config = Config::builder().believe_contacted_servers(true);
    let (mut node, _) = node(config.build().unwrap()).await;
    let address: Multiaddr = "/ip4/203.0.113.10/udp/40123/quic-v1".parse().unwrap();
    for _ in 0..2 {
        verdict(&node, &address, true).await;
    }
    let confirmed = node
        .wait("confirmation", |event| match event {
            SwarmEvent::ExternalAddrConfirmed { address } => Some(address.clone()),
            _ => None,
        })
        .await;
    assert_eq!(confirmed, address);
    let change = status_change(&mut node).await;
    assert_eq!(change, (NatStatus::Unknown, NatStatus::Public));

    for _ in 0..3 {
        verdict(&node, &address, false).await;
    }
    let expired = node
        .wait("withdrawal", |event| match event {
            SwarmEvent::ExternalAddrExpired { address } => Some(address.clone()),
            _ => None,
        })
        .await;
    assert_eq!(expired, address);
    let external = node.with(|swarm| swarm.external_addresses().count()).await;
    assert_eq!(external, 0);
}

/// Servers that this node has contacted get in behind an address-restricted NAT as well.
#[tokio::test]
async fn the_word_of_known_servers_alone_makes_nobody_public() {
    let (node, _) = node(Config::default()).await;
    let address: Multiaddr = "/ip4/203.0.113.10/udp/40123/quic-v1".parse().unwrap();
    for _ in 0..4 {
        verdict(&node, &address, true).await;
    }
    let (status, external) = node
        .with(|swarm| {
            let status = swarm.behaviour().holepunch.nat_status();
            (status, swarm.external_addresses().count())
        })
        .await;
    assert_eq!((status, external), (NatStatus::Unknown, 0));
}

#[tokio::test]
async fn a_relayed_external_address_does_not_make_the_node_public() {
    let (mut node, _) = node(Config::default()).await;
    let relay = PeerId::random();
    let relayed: Multiaddr = format!("/ip4/203.0.113.100/tcp/9100/p2p/{relay}/p2p-circuit")
        .parse()
        .unwrap();
    node.with(move |swarm| swarm.add_external_address(relayed))
        .await;
    let status = node
        .with(|swarm| swarm.behaviour().holepunch.nat_status())
        .await;
    assert_eq!(status, NatStatus::Unknown);
    // One that the operator gives does.
    let direct: Multiaddr = "/ip4/203.0.113.10/tcp/9100".parse().unwrap();
    node.with(move |swarm| swarm.add_external_address(direct))
        .await;
    let change = status_change(&mut node).await;
    assert_eq!(change, (NatStatus::Unknown, NatStatus::Public));
}
