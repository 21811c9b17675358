//! Circuits between real swarms.

#![expect(clippy::unwrap_used, reason = "a test helper may panic")]

mod common;

use std::time::Duration;

use anypath_relay::{
    CircuitLimit, StatusCode,
    client::{self, Event},
    server,
};
use common::{Client, Running, client, impatient, relay};
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;
use libp2p_swarm::{ConnectionId, SwarmEvent};

/// A node with a reservation at the relay, and its relayed address.
async fn reserved_at(relay: &Multiaddr) -> (Running<Client>, Multiaddr) {
    let (mut node, _) = client(impatient()).await;
    let to = relay.clone();
    node.with(move |swarm| swarm.behaviour_mut().client.add_relay(to))
        .await
        .unwrap();
    let (address, _) = node.reserved().await;
    (node, address)
}

async fn circuit(
    node: &mut Running<Client>,
) -> (ConnectionId, PeerId, PeerId, Option<CircuitLimit>) {
    node.wait_client("circuit", |event| match event {
        Event::Circuit {
            connection,
            peer,
            relay,
            limit,
        } => Some((*connection, *peer, *relay, *limit)),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn both_ends_learn_the_limit_of_their_relayed_connection() {
    let limited = server::Config::builder()
        .max_circuit_bytes(Some(7 << 20))
        .max_circuit_duration(Duration::from_secs(77))
        .build()
        .unwrap();
    for config in [limited, server::Config::generous()] {
        let expected = config.circuit_limit();
        let (mut relay, at) = relay(config).await;
        let (mut destination, address) = reserved_at(&at).await;
        let (mut source, _) = client(client::Config::default()).await;
        source.with(move |swarm| swarm.dial(address)).await.unwrap();

        let (connection, peer, through, limit) = circuit(&mut source).await;
        assert_eq!((peer, through, limit), (destination.id, relay.id, expected));
        let known = source
            .with(move |swarm| swarm.behaviour().client.circuit_limit(connection))
            .await;
        assert_eq!(known, expected);
        let (_, peer, through, limit) = circuit(&mut destination).await;
        assert_eq!((peer, through, limit), (source.id, relay.id, expected));

        relay
            .wait_relay("circuit", |event| {
                matches!(event, server::Event::CircuitAccepted { .. }).then_some(())
            })
            .await;
        let open = relay.with(|swarm| swarm.behaviour().relay.circuits()).await;
        assert_eq!(open, 1);
    }
}

#[tokio::test]
async fn circuits_of_several_relays_keep_their_own_limits() {
    let (mut source, _) = client(client::Config::default()).await;
    let mut others = Vec::new();
    for bytes in [1_u64 << 20, 2 << 20, 3 << 20] {
        let config = server::Config::builder()
            .max_circuit_bytes(Some(bytes))
            .build()
            .unwrap();
        let (relay, at) = relay(config).await;
        let (node, address) = reserved_at(&at).await;
        source.with(move |swarm| swarm.dial(address)).await.unwrap();
        others.push((relay, node, bytes));
    }
    for _ in 0..others.len() {
        let (_, peer, through, limit) = circuit(&mut source).await;
        let (_, _, bytes) = others
            .iter()
            .find(|(relay, node, _)| (relay.id, node.id) == (through, peer))
            .unwrap();
        assert_eq!(limit.unwrap().bytes, Some(*bytes));
    }
}

#[tokio::test]
async fn the_byte_limit_ends_the_circuit_and_ends_it_once() {
    let config = server::Config::builder()
        .max_circuit_bytes(Some(4096))
        .build()
        .unwrap();
    let (mut relay, at) = relay(config).await;
    let (_destination, address) = reserved_at(&at).await;
    let (mut source, _) = client(client::Config::default()).await;
    source.with(move |swarm| swarm.dial(address)).await.unwrap();
    let (connection, ..) = circuit(&mut source).await;
    // Pings use the limit up.
    source
        .wait("end of the relayed connection", |event| match event {
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                (*connection_id == connection).then_some(())
            }
            _ => None,
        })
        .await;
    let end = relay
        .wait_relay("end of the circuit", |event| match event {
            server::Event::CircuitClosed { end, .. } => Some(*end),
            _ => None,
        })
        .await;
    assert_eq!(end, server::CircuitEnd::ByteLimit);
    let open = relay.with(|swarm| swarm.behaviour().relay.circuits()).await;
    assert_eq!(open, 0);
}

#[tokio::test]
async fn the_time_limit_ends_the_circuit() {
    let config = server::Config::builder()
        .max_circuit_duration(Duration::from_secs(1))
        .max_circuit_bytes(None)
        .build()
        .unwrap();
    let (mut relay, at) = relay(config).await;
    let (_destination, address) = reserved_at(&at).await;
    let (mut source, _) = client(client::Config::default()).await;
    source.with(move |swarm| swarm.dial(address)).await.unwrap();
    let (_, _, _, limit) = circuit(&mut source).await;
    assert_eq!(limit.unwrap().duration, Some(Duration::from_secs(1)));
    assert_eq!(limit.unwrap().bytes, None);
    let end = relay
        .wait_relay("end of the circuit", |event| match event {
            server::Event::CircuitClosed { end, .. } => Some(*end),
            _ => None,
        })
        .await;
    assert_eq!(end, server::CircuitEnd::TimeLimit);
}

#[tokio::test]
async fn a_circuit_whose_destination_leaves_ends_once() {
    let (mut relay, at) = relay(server::Config::generous()).await;
    let (mut destination, address) = reserved_at(&at).await;
    let (mut source, _) = client(client::Config::default()).await;
    source.with(move |swarm| swarm.dial(address)).await.unwrap();
    let (connection, ..) = circuit(&mut source).await;
    circuit(&mut destination).await;
    drop(destination);
    source
        .wait("end of the relayed connection", |event| match event {
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                (*connection_id == connection).then_some(())
            }
            _ => None,
        })
        .await;
    let source_id = source.id;
    drop(source);
    let mut ends = 0;
    relay
        .wait("source's end", |event| match event {
            SwarmEvent::Behaviour(common::RelayEvent::Relay(server::Event::CircuitClosed {
                ..
            })) => {
                ends += 1;
                None
            }
            SwarmEvent::ConnectionClosed { peer_id, .. } => (*peer_id == source_id).then_some(()),
            _ => None,
        })
        .await;
    let rest = relay.so_far();
    let late = rest.iter().filter(|event| {
        matches!(
            event,
            SwarmEvent::Behaviour(common::RelayEvent::Relay(
                server::Event::CircuitClosed { .. }
            ))
        )
    });
    assert_eq!(ends + late.count(), 1);
    let open = relay.with(|swarm| swarm.behaviour().relay.circuits()).await;
    assert_eq!(open, 0);
}

#[tokio::test]
async fn a_circuit_to_a_peer_without_a_reservation_is_refused_with_the_reason() {
    let (mut relay, at) = relay(server::Config::default()).await;
    let (source, _) = client(client::Config::default()).await;
    let nobody = PeerId::random();
    let address = at.with(Protocol::P2pCircuit).with(Protocol::P2p(nobody));
    source.with(move |swarm| swarm.dial(address)).await.unwrap();
    let (destination, status) = relay
        .wait_relay("refusal", |event| match event {
            server::Event::CircuitDenied {
                destination,
                status,
                ..
            } => Some((*destination, *status)),
            _ => None,
        })
        .await;
    assert_eq!((destination, status), (nobody, StatusCode::NoReservation));
}

#[tokio::test]
async fn a_peer_has_no_more_circuits_than_allowed() {
    let config = server::Config::builder()
        .max_circuits_per_peer(2)
        .build()
        .unwrap();
    let (mut relay, at) = relay(config).await;
    let (source, _) = client(client::Config::default()).await;
    let mut destinations = Vec::new();
    for _ in 0..3 {
        destinations.push(reserved_at(&at).await);
    }
    let mut answers = Vec::new();
    for (_, address) in &destinations {
        let address = address.clone();
        source.with(move |swarm| swarm.dial(address)).await.unwrap();
        answers.push(
            relay
                .wait_relay("answer", |event| match event {
                    server::Event::CircuitAccepted { .. } => Some(Ok(())),
                    server::Event::CircuitDenied { status, .. } => Some(Err(*status)),
                    _ => None,
                })
                .await,
        );
    }
    assert_eq!(
        answers,
        [Ok(()), Ok(()), Err(StatusCode::ResourceLimitExceeded)]
    );
}
