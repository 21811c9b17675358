//! The client among real swarms.

mod common;

use std::time::Duration;

use anypath_relay::{
    client::{self, LossReason},
    server,
};
use common::{ClientEvent, Running, client, impatient, relay, secured};
use libp2p_core::{Multiaddr, Transport as _, multiaddr::Protocol, transport::MemoryTransport};
use libp2p_identify as identify;
use libp2p_identity::Keypair;
use libp2p_swarm::{Config, NetworkBehaviour, Swarm, SwarmEvent};

#[tokio::test]
async fn listening_on_a_circuit_address_reserves_and_ending_it_gives_the_reservation_up() {
    let (relay, at) = relay(server::Config::default()).await;
    let (mut node, _) = client(impatient()).await;
    let circuit = at.with(Protocol::P2pCircuit);
    let expected = circuit.clone().with(Protocol::P2p(node.id));
    let listener = node
        .with(move |swarm| swarm.listen_on(circuit))
        .await
        .unwrap();
    node.wait("relayed listen address", |event| match event {
        SwarmEvent::NewListenAddr {
            listener_id,
            address,
        } => (*listener_id == listener && *address == expected).then_some(()),
        _ => None,
    })
    .await;
    assert!(
        node.with(move |swarm| swarm.remove_listener(listener))
            .await
    );
    let why = node
        .wait_client("end", |event| match event {
            client::Event::Lost { relay: of, why } => (*of == relay.id).then_some(*why),
            _ => None,
        })
        .await;
    assert_eq!(why, LossReason::Released);
    node.wait("withdrawn address", |event| {
        matches!(event, SwarmEvent::ExternalAddrExpired { address } if *address == expected)
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_relay_is_found_by_its_id_alone_where_it_is_connected() {
    let (relay, at) = relay(server::Config::default()).await;
    let (mut destination, _) = client(impatient()).await;
    let to = at.clone();
    destination
        .with(move |swarm| swarm.behaviour_mut().client.add_relay(to))
        .await
        .unwrap();
    destination.reserved().await;
    let (mut source, _) = client(client::Config::default()).await;
    source.with(move |swarm| swarm.dial(at)).await.unwrap();
    source
        .wait("connection to the relay", |event| {
            matches!(event, SwarmEvent::ConnectionEstablished { .. }).then_some(())
        })
        .await;
    let short = Multiaddr::empty()
        .with(Protocol::P2p(relay.id))
        .with(Protocol::P2pCircuit)
        .with(Protocol::P2p(destination.id));
    source.with(move |swarm| swarm.dial(short)).await.unwrap();
    let peer = source
        .wait_client("circuit", |event| match event {
            client::Event::Circuit { peer, .. } => Some(*peer),
            _ => None,
        })
        .await;
    assert_eq!(peer, destination.id);
}

#[tokio::test]
async fn a_node_gives_its_reservations_back_while_it_is_public() {
    let (_relay, at) = relay(server::Config::default()).await;
    let quick = client::Config::builder()
        .release_after(Duration::ZERO)
        .build()
        .unwrap();
    let (mut node, _) = client(quick).await;
    node.with(move |swarm| swarm.behaviour_mut().client.add_relay(at))
        .await
        .unwrap();
    let (address, _) = node.reserved().await;
    node.with(|swarm| swarm.behaviour_mut().client.on_reachability(true))
        .await;
    node.wait("withdrawn address", |event| {
        matches!(event, SwarmEvent::ExternalAddrExpired { address: of } if *of == address)
            .then_some(())
    })
    .await;
    let held = node
        .with(|swarm| swarm.behaviour().client.reservations())
        .await;
    assert!(held.is_empty());
    node.with(|swarm| swarm.behaviour_mut().client.on_reachability(false))
        .await;
    node.reserved().await;
}

/// libp2p-relay 0.22 drops its own reservation in this case.
#[tokio::test(flavor = "multi_thread")]
async fn an_outbound_circuit_that_times_out_costs_no_reservation() {
    let (relay, at) = relay(server::Config::default()).await;
    let (destination, _) = client(impatient()).await;
    let hasty = client::Config::builder()
        .request_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    let (mut node, _) = client(hasty).await;
    let to = at.clone();
    node.with(move |swarm| swarm.behaviour_mut().client.add_relay(to))
        .await
        .unwrap();
    node.reserved().await;
    // The relay's swarm decides about circuits, and sleeps.
    let asleep = relay.with(|_| std::thread::sleep(Duration::from_secs(2)));
    let address = at
        .with(Protocol::P2pCircuit)
        .with(Protocol::P2p(destination.id));
    let failed = async {
        node.with(move |swarm| swarm.dial(address)).await.unwrap();
        node.wait("failed dial", |event| match event {
            SwarmEvent::OutgoingConnectionError { .. } => Some(()),
            SwarmEvent::Behaviour(ClientEvent::Client(client::Event::Lost { why, .. })) => {
                panic!("{why}")
            }
            _ => None,
        })
        .await;
    };
    tokio::join!(asleep, failed);
    let held = node
        .with(|swarm| swarm.behaviour().client.reservations())
        .await;
    assert_eq!(held.len(), 1);
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Identified {
    client: client::Behaviour,
    server: server::Behaviour,
    identify: identify::Behaviour,
}

fn identified(status: server::Status) -> Running<Identified> {
    let keypair = Keypair::generate_ed25519();
    let id = keypair.public().to_peer_id();
    let (transport, client) = client::new(id, client::Config::default());
    let transport = secured(transport.or_transport(MemoryTransport::default()), &keypair);
    let mut server = server::Behaviour::new(&keypair, server::Config::default());
    server.set_status(status);
    let identify = identify::Config::new("/test/1".to_owned(), keypair.public());
    let behaviour = Identified {
        client,
        server,
        identify: identify::Behaviour::new(identify),
    };
    let config =
        Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(60));
    Running::start(
        Swarm::new(transport, behaviour, id, config),
        Protocol::Memory(0).into(),
    )
}

#[tokio::test]
async fn a_connected_peer_that_relays_offers_itself() {
    let mut relay = identified(server::Status::Enabled);
    let at = relay
        .wait("listen address", |event| match event {
            SwarmEvent::NewListenAddr { address, .. } => Some(address.clone()),
            _ => None,
        })
        .await;
    let mut node = identified(server::Status::Disabled);
    node.with(move |swarm| swarm.dial(at)).await.unwrap();
    let of = node
        .wait("reservation", |event| match event {
            SwarmEvent::Behaviour(IdentifiedEvent::Client(client::Event::Reserved {
                relay,
                ..
            })) => Some(*relay),
            _ => None,
        })
        .await;
    assert_eq!(of, relay.id);
}
