//! Both roles against stock libp2p-relay.

mod common;

use std::time::Duration;

use anypath_relay::{CircuitLimit, client as ours, server};
use common::{Running, client, impatient, relay, secured};
use libp2p_core::{Multiaddr, Transport, multiaddr::Protocol, transport::MemoryTransport};
use libp2p_identity::Keypair;
use libp2p_swarm::{Config, Swarm, SwarmEvent};

fn stock_client() -> Running<libp2p_relay::client::Behaviour> {
    let keypair = Keypair::generate_ed25519();
    let id = keypair.public().to_peer_id();
    let (transport, behaviour) = libp2p_relay::client::new(id);
    let transport = secured(transport.or_transport(MemoryTransport::default()), &keypair);
    let config =
        Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(60));
    let swarm = Swarm::new(transport, behaviour, id, config);
    Running::start(swarm, Protocol::Memory(0).into())
}

async fn stock_relay() -> (Running<libp2p_relay::Behaviour>, Multiaddr) {
    let keypair = Keypair::generate_ed25519();
    let id = keypair.public().to_peer_id();
    let behaviour = libp2p_relay::Behaviour::new(id, libp2p_relay::Config::default());
    let transport = secured(MemoryTransport::default(), &keypair);
    let swarm = Swarm::new(transport, behaviour, id, Config::with_tokio_executor());
    let mut relay = Running::start(swarm, Protocol::Memory(0).into());
    let address = relay
        .wait("listen address", |event| match event {
            SwarmEvent::NewListenAddr { address, .. } => Some(address.clone()),
            _ => None,
        })
        .await
        .with(Protocol::P2p(id));
    let external = address.clone();
    relay
        .with(move |swarm| swarm.add_external_address(external))
        .await;
    (relay, address)
}

#[tokio::test]
async fn a_stock_client_is_reached_through_our_relay() {
    let (_relay, at) = relay(server::Config::default()).await;
    let mut destination = stock_client();
    let circuit = at.with(Protocol::P2pCircuit);
    destination
        .with(move |swarm| swarm.listen_on(circuit))
        .await
        .unwrap();
    let address = destination
        .wait("relayed address", |event| match event {
            SwarmEvent::NewListenAddr { address, .. } if anypath_relay::is_relayed(address) => {
                Some(address.clone())
            }
            _ => None,
        })
        .await;
    let (mut source, _) = client(ours::Config::default()).await;
    source.with(move |swarm| swarm.dial(address)).await.unwrap();
    let (peer, limit) = source
        .wait_client("circuit", |event| match event {
            ours::Event::Circuit { peer, limit, .. } => Some((*peer, *limit)),
            _ => None,
        })
        .await;
    assert_eq!(peer, destination.id);
    assert_eq!(limit, Some(CircuitLimit::REFERENCE));
}

#[tokio::test]
async fn our_client_is_reached_by_a_stock_one_through_a_stock_relay() {
    let (relay, at) = stock_relay().await;
    let (mut destination, _) = client(impatient()).await;
    destination
        .with(move |swarm| swarm.behaviour_mut().client.add_relay(at))
        .await
        .unwrap();
    let (address, limit) = destination.reserved().await;
    assert_eq!(limit, Some(CircuitLimit::REFERENCE));
    let source = stock_client();
    source.with(move |swarm| swarm.dial(address)).await.unwrap();
    let (peer, through, limit) = destination
        .wait_client("circuit", |event| match event {
            ours::Event::Circuit {
                peer, relay, limit, ..
            } => Some((*peer, *relay, *limit)),
            _ => None,
        })
        .await;
    assert_eq!((peer, through), (source.id, relay.id));
    assert_eq!(limit, Some(CircuitLimit::REFERENCE));
}

/// The stock relay of these tests answers no pings: it says that it does not know the protocol.
#[tokio::test]
async fn a_relay_without_ping_is_not_taken_for_dead() {
    let (_relay, at) = stock_relay().await;
    let often = ours::Config::builder()
        .probe_interval(Duration::from_millis(100))
        .probe_timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    let (mut node, _) = client(often).await;
    node.with(move |swarm| swarm.behaviour_mut().client.add_relay(at))
        .await
        .unwrap();
    node.reserved().await;
    // Ten pings later it is still held.
    let (mut beat, _) = client(ours::Config::default()).await;
    let to = node.with(|swarm| swarm.listeners().next().cloned()).await;
    let to = to.unwrap().with(Protocol::P2p(node.id));
    beat.with(move |swarm| swarm.dial(to)).await.unwrap();
    let mut pings = 0;
    beat.wait("some time", |event| {
        pings += usize::from(matches!(
            event,
            SwarmEvent::Behaviour(common::ClientEvent::Ping(_))
        ));
        (pings == 60).then_some(())
    })
    .await;
    let lost = node.so_far().iter().any(|event| {
        matches!(
            event,
            SwarmEvent::Behaviour(common::ClientEvent::Client(ours::Event::Lost { .. }))
        )
    });
    assert!(!lost);
    let held = node
        .with(|swarm| swarm.behaviour().client.reservations())
        .await;
    assert_eq!(held.len(), 1);
}
