//! Both roles against stock libp2p-relay.

#![expect(clippy::unwrap_used, reason = "a test helper may panic")]

mod common;

use std::time::Duration;

use anypath_relay::{CircuitLimit, StatusCode, client as ours, server};
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

type Stock = Running<libp2p_relay::client::Behaviour>;

/// Asks with the stock client; why not, if it is refused.
async fn stock_reserves(node: &mut Stock, at: &Multiaddr) -> Result<(), String> {
    let circuit = at.clone().with(Protocol::P2pCircuit);
    node.with(move |swarm| swarm.listen_on(circuit))
        .await
        .unwrap();
    node.wait("answer", |event| match event {
        SwarmEvent::Behaviour(libp2p_relay::client::Event::ReservationReqAccepted { .. }) => {
            Some(Ok(()))
        }
        SwarmEvent::ListenerClosed {
            reason: Err(error), ..
        } => {
            // The status is inside a boxed error.
            Some(Err(format!("{error:?}")))
        }
        _ => None,
    })
    .await
}

#[tokio::test]
async fn a_stock_client_renews_at_our_full_relay() {
    let config = server::Config::builder()
        .max_reservations(1)
        .reservation_duration(Duration::from_secs(4))
        .build()
        .unwrap();
    let (mut relay, at) = relay(config).await;
    let mut guest = stock_client();
    stock_reserves(&mut guest, &at).await.unwrap();
    // The stock relay refuses this one.
    guest
        .wait("renewal", |event| match event {
            SwarmEvent::Behaviour(libp2p_relay::client::Event::ReservationReqAccepted {
                renewal: true,
                ..
            }) => Some(()),
            SwarmEvent::ListenerClosed { .. } => panic!("renewal refused"),
            _ => None,
        })
        .await;
    relay
        .wait_relay("renewal", |event| match event {
            server::Event::ReservationAccepted { renewed: true, .. } => Some(()),
            _ => None,
        })
        .await;
}

#[tokio::test]
async fn a_stock_client_understands_why_it_is_refused() {
    let config = server::Config::builder()
        .max_reservations(1)
        .build()
        .unwrap();
    let (relay, at) = relay(config).await;
    let mut holder = stock_client();
    stock_reserves(&mut holder, &at).await.unwrap();
    let refused = stock_reserves(&mut stock_client(), &at).await.unwrap_err();
    assert!(refused.contains("Refused"), "{refused}");
    let mut foe = stock_client();
    let access = server::Access::default().deny_peer(foe.id);
    relay
        .with(move |swarm| swarm.behaviour_mut().relay.set_access(access))
        .await;
    let denied = stock_reserves(&mut foe, &at).await.unwrap_err();
    assert!(!denied.contains("Refused"), "{denied}");
}

#[tokio::test]
async fn a_stock_client_understands_why_its_circuit_is_refused() {
    let config = server::Config::builder()
        .max_circuits_per_peer(1)
        .build()
        .unwrap();
    let (mut relay, at) = relay(config).await;
    let (mut first, mut second) = (stock_client(), stock_client());
    for node in [&mut first, &mut second] {
        stock_reserves(node, &at).await.unwrap();
    }
    let source = stock_client();
    let to = |peer| {
        let at = at.clone();
        at.with(Protocol::P2pCircuit).with(Protocol::P2p(peer))
    };
    let nobody = to(libp2p_identity::PeerId::random());
    let mut answers = Vec::new();
    for address in [nobody, to(first.id), to(second.id)] {
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
        [
            Err(StatusCode::NoReservation),
            Ok(()),
            Err(StatusCode::ResourceLimitExceeded)
        ]
    );
}
