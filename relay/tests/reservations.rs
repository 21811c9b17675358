//! Reservations between real swarms.

#![expect(clippy::unwrap_used, reason = "a test helper may panic")]

mod common;

use std::time::Duration;

use anypath_relay::{
    CircuitLimit, StatusCode,
    client::{self, LossReason},
    server::{self, CloseReason},
};
use common::{ClientEvent, client, impatient, relay, relay_as};
use libp2p_core::multiaddr::Protocol;
use libp2p_identity::Keypair;
use libp2p_swarm::SwarmEvent;

fn short_lived(max_reservations: usize) -> server::Config {
    server::Config::builder()
        .max_reservations(max_reservations)
        .reservation_duration(Duration::from_secs(4))
        .build()
        .unwrap()
}

#[tokio::test]
async fn a_reservation_is_made_announced_and_renewed() {
    let (mut relay, address) = relay(short_lived(8)).await;
    let (mut client, _) = client(client::Config::default()).await;
    let to = address.clone();
    let named = client
        .with(move |swarm| swarm.behaviour_mut().client.add_relay(to))
        .await;
    assert_eq!(named, Ok(relay.id));

    let (relayed, limit) = client.reserved().await;
    let expected = address
        .with(Protocol::P2pCircuit)
        .with(Protocol::P2p(client.id));
    assert_eq!(relayed, expected);
    assert_eq!(limit, Some(CircuitLimit::REFERENCE));
    let held = client
        .with(|swarm| swarm.behaviour().client.reservations())
        .await;
    assert_eq!(held.len(), 1);
    assert_eq!((held[0].relay, &held[0].address), (relay.id, &expected));
    assert!(held[0].configured);

    client
        .wait_client("renewal", |event| match event {
            client::Event::Reserved { renewal: true, .. } => Some(()),
            client::Event::Lost { .. } => panic!("lost instead of renewed"),
            _ => None,
        })
        .await;
    let mut accepted = Vec::new();
    relay
        .wait_relay("renewal", |event| match event {
            server::Event::ReservationAccepted { renewed, .. } => {
                accepted.push(*renewed);
                (accepted.len() == 2).then_some(())
            }
            _ => None,
        })
        .await;
    assert_eq!(accepted, [false, true]);
    let count = relay
        .with(|swarm| swarm.behaviour().relay.reservations())
        .await;
    assert_eq!(count, 1);
}

#[tokio::test]
async fn a_reservation_lost_with_its_connection_is_made_again() {
    let (mut relay, address) = relay(server::Config::default()).await;
    let (mut client, _) = client(impatient()).await;
    client
        .with(move |swarm| swarm.behaviour_mut().client.add_relay(address))
        .await
        .unwrap();
    client.reserved().await;
    for _ in 0..3 {
        let id = client.id;
        relay
            .with(move |swarm| swarm.disconnect_peer_id(id))
            .await
            .unwrap();
        client
            .wait_client("loss", |event| {
                matches!(event, client::Event::Lost { .. }).then_some(())
            })
            .await;
        client.reserved().await;
        relay
            .wait_relay("end", |event| match event {
                server::Event::ReservationClosed { reason, .. } => Some(*reason),
                _ => None,
            })
            .await;
    }
    let (held, count) = (
        client
            .with(|swarm| swarm.behaviour().client.reservations())
            .await,
        relay
            .with(|swarm| swarm.behaviour().relay.reservations())
            .await,
    );
    assert_eq!((held.len(), count), (1, 1));
}

#[tokio::test]
async fn a_relay_that_comes_back_is_reserved_at_again() {
    let keypair = Keypair::generate_ed25519();
    let config = server::Config::default;
    let (first, address) = relay_as(&keypair, Protocol::Memory(0).into(), config()).await;
    let place = address.iter().take(1).collect();
    let (mut client, _) = client(impatient()).await;
    client
        .with(move |swarm| swarm.behaviour_mut().client.add_relay(address))
        .await
        .unwrap();
    client.reserved().await;
    first.stop().await;
    client
        .wait_client("loss", |event| {
            matches!(event, client::Event::Lost { .. }).then_some(())
        })
        .await;
    let failed = client
        .wait_client("failed attempt", |event| match event {
            client::Event::Failed { why, .. } => Some(*why),
            _ => None,
        })
        .await;
    assert_eq!(failed, LossReason::Unreachable);
    let _second = relay_as(&keypair, place, config()).await;
    client.reserved().await;
}

#[tokio::test]
async fn renewal_succeeds_when_the_relay_is_full_and_newcomers_are_told_why_not() {
    let (mut relay, address) = relay(short_lived(1)).await;
    let (mut guest, _) = client(impatient()).await;
    let to = address.clone();
    guest
        .with(move |swarm| swarm.behaviour_mut().client.add_relay(to))
        .await
        .unwrap();
    guest.reserved().await;

    let (mut newcomer, _) = client(impatient()).await;
    newcomer
        .with(move |swarm| swarm.behaviour_mut().client.add_relay(address))
        .await
        .unwrap();
    let reason = newcomer
        .wait_client("refusal", |event| match event {
            client::Event::Failed { why, .. } => Some(*why),
            client::Event::Reserved { .. } => panic!("one too many"),
            _ => None,
        })
        .await;
    assert_eq!(reason, LossReason::Refused(StatusCode::ReservationRefused));
    let id = newcomer.id;
    let status = relay
        .wait_relay("refusal", |event| match event {
            server::Event::ReservationDenied { peer, status } if *peer == id => Some(*status),
            _ => None,
        })
        .await;
    assert_eq!(status, StatusCode::ReservationRefused);

    guest
        .wait_client("renewal", |event| match event {
            client::Event::Reserved { renewal: true, .. } => Some(()),
            client::Event::Lost { .. } => panic!("renewal refused"),
            _ => None,
        })
        .await;

    // The place is free as soon as the guest leaves.
    drop(guest);
    newcomer.reserved().await;
}

#[tokio::test]
async fn a_closed_connection_without_a_reservation_ends_no_reservation() {
    let (mut relay, address) = relay(server::Config::default()).await;
    let (mut guest, _) = client(impatient()).await;
    let (visitor, _) = client(impatient()).await;
    let to = address.clone();
    guest
        .with(move |swarm| swarm.behaviour_mut().client.add_relay(to))
        .await
        .unwrap();
    guest.reserved().await;
    visitor
        .with(move |swarm| swarm.dial(address))
        .await
        .unwrap();
    let id = visitor.id;
    relay
        .wait("visitor", |event| match event {
            SwarmEvent::ConnectionEstablished { peer_id, .. } => (*peer_id == id).then_some(()),
            _ => None,
        })
        .await;
    drop(visitor);
    relay
        .wait("visitor's end", |event| match event {
            SwarmEvent::ConnectionClosed { peer_id, .. } => (*peer_id == id).then_some(()),
            SwarmEvent::Behaviour(common::RelayEvent::Relay(
                server::Event::ReservationClosed { .. },
            )) => panic!("nobody's reservation ended"),
            _ => None,
        })
        .await;
    let (guest_id, count) = (
        guest.id,
        relay
            .with(|swarm| swarm.behaviour().relay.reservations())
            .await,
    );
    assert_eq!(count, 1);
    drop(guest);
    let (peer, reason) = relay
        .wait_relay("guest's end", |event| match event {
            server::Event::ReservationClosed { peer, reason, .. } => Some((*peer, *reason)),
            _ => None,
        })
        .await;
    assert_eq!((peer, reason), (guest_id, CloseReason::ConnectionClosed));
}

#[tokio::test]
async fn candidates_are_asked_for_and_used_up_to_the_target() {
    let config = client::Config::builder()
        .target_reservations(2)
        .build()
        .unwrap();
    let (mut client, _) = client(config).await;
    let mut relays = Vec::new();
    for _ in 0..3 {
        relays.push(relay(server::Config::default()).await);
    }
    let configured = relays[0].1.clone();
    client
        .with(move |swarm| swarm.behaviour_mut().client.add_relay(configured))
        .await
        .unwrap();
    client.reserved().await;
    // The first wish was told before anything was configured.
    let missing = client
        .wait_client("wish for candidates", |event| match event {
            client::Event::CandidatesWanted { missing } => Some(*missing),
            _ => None,
        })
        .await;
    assert_eq!(missing, 1);
    for (relay, address) in &relays[1..] {
        let (id, address) = (relay.id, address.clone());
        client
            .with(move |swarm| {
                swarm
                    .behaviour_mut()
                    .client
                    .add_candidate(id, vec![address])
            })
            .await;
    }
    client.reserved().await;
    let held = client
        .with(|swarm| swarm.behaviour().client.reservations())
        .await;
    assert_eq!(held.len(), 2);
}

#[tokio::test]
async fn a_relayed_external_address_does_not_switch_the_server_on() {
    let (_relay, address) = relay(server::Config::default()).await;
    let (mut node, node_address) = client(impatient()).await;
    node.with(move |swarm| swarm.behaviour_mut().client.add_relay(address))
        .await
        .unwrap();
    let relayed = node
        .wait("external address", |event| match event {
            SwarmEvent::ExternalAddrConfirmed { address } => Some(address.clone()),
            SwarmEvent::Behaviour(ClientEvent::Server(event)) => panic!("{event:?}"),
            _ => None,
        })
        .await;
    assert!(anypath_relay::is_relayed(&relayed));
    let status = node.with(|swarm| swarm.behaviour().server.status()).await;
    assert_eq!(status, server::Status::Disabled);

    // Nor can anybody reserve there, until it is switched on.
    let (mut other, _) = client(impatient()).await;
    other
        .with(move |swarm| swarm.behaviour_mut().client.add_relay(node_address))
        .await
        .unwrap();
    let reason = other
        .wait_client("refusal", |event| match event {
            client::Event::Failed { why, .. } => Some(*why),
            _ => None,
        })
        .await;
    assert_eq!(reason, LossReason::Unsupported);
    node.with(|swarm| {
        swarm
            .behaviour_mut()
            .server
            .set_status(server::Status::Enabled);
    })
    .await;
    let (address, _) = other.reserved().await;
    let circuits = address
        .iter()
        .filter(|protocol| matches!(protocol, Protocol::P2pCircuit));
    assert_eq!(circuits.count(), 1);
}

/// A peer can bring this about: it asks for a renewal at the last moment and takes the answer late.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_is_decided_after_the_end_of_the_reservation_does_not_stop_the_relay() {
    let config = server::Config::builder()
        .reservation_duration(Duration::from_secs(4))
        .build()
        .unwrap();
    let (relay, at) = relay(config).await;
    let (mut node, _) = client(impatient()).await;
    node.with(move |swarm| swarm.behaviour_mut().client.add_relay(at))
        .await
        .unwrap();
    node.reserved().await;
    // The client renews after 3 s. The relay's connection sees that, and the end after 4 s; its swarm sees both at once.
    relay
        .with(|_| std::thread::sleep(Duration::from_secs(5)))
        .await;
    node.wait_client("renewal", |event| {
        matches!(event, client::Event::Reserved { .. }).then_some(())
    })
    .await;
    let held = relay
        .with(|swarm| swarm.behaviour().relay.reservations())
        .await;
    assert_eq!(held, 1);
}
