//! Punches with libp2p-dcutr at the other end, in both parts.

#![expect(clippy::unwrap_used, reason = "a test helper may panic")]

mod common;

use std::time::Duration;

use anypath_holepunch::{Config, PunchError, Role};
use common::{Running, node, relay, reserve, secured};
use libp2p_core::{
    Multiaddr, Transport as _, multiaddr::Protocol, transport::MemoryTransport, upgrade::Version,
};
use libp2p_identity::Keypair;
use libp2p_swarm::{FromSwarm, NetworkBehaviour, NewExternalAddrCandidate, Swarm, SwarmEvent};

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Stock {
    relay: libp2p_relay::client::Behaviour,
    dcutr: libp2p_dcutr::Behaviour,
}

/// A node that listens on memory and punches with libp2p-dcutr, and its direct address.
async fn stock(version: Version) -> (Running<Stock>, Multiaddr) {
    let keypair = Keypair::generate_ed25519();
    let id = keypair.public().to_peer_id();
    let (transport, relay) = libp2p_relay::client::new(id);
    let transport = secured(transport.or_transport(MemoryTransport::default()), &keypair);
    let behaviour = Stock {
        relay,
        dcutr: libp2p_dcutr::Behaviour::new(id),
    };
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(60))
        .with_substream_upgrade_protocol_override(version);
    let mut swarm = Swarm::new(transport, behaviour, id, config);
    swarm.listen_on(Protocol::Memory(0).into()).unwrap();
    let mut node = Running::start(swarm);
    let mut address = node.listening().await;
    address.pop();
    (node, address)
}

async fn suggest(node: &Running<Stock>, address: Multiaddr) {
    node.with(move |swarm| {
        let candidate = NewExternalAddrCandidate { addr: &address };
        let dcutr = &mut swarm.behaviour_mut().dcutr;
        dcutr.on_swarm_event(FromSwarm::NewExternalAddrCandidate(candidate));
    })
    .await;
}

async fn result(node: &mut Running<Stock>) -> bool {
    node.wait("event of libp2p-dcutr", |event| match event {
        SwarmEvent::Behaviour(StockEvent::Dcutr(event)) => Some(event.result.is_ok()),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn a_stock_initiator_reaches_us() {
    for version in [Version::V1, Version::V1Lazy] {
        let (_relay, at) = relay().await;
        let (mut listener, its_address) = stock(version).await;
        let (mut dialer, our_address) = node(Config::default()).await;
        let relayed = reserve(&mut listener, &at).await;
        suggest(&listener, its_address.clone()).await;
        dialer.observed_at(our_address).await;
        dialer.with(move |swarm| swarm.dial(relayed)).await.unwrap();
        let outcome = dialer.outcome().await;
        assert_eq!((outcome.peer, outcome.role), (listener.id, Role::Responder));
        assert!(outcome.result.is_ok(), "{outcome:?}");
        // On memory its own dial meets a listener, not a dial: it sees ours.
        let peer = dialer.id;
        listener
            .wait("direct connection", |event| match event {
                SwarmEvent::ConnectionEstablished {
                    peer_id, endpoint, ..
                } => (*peer_id == peer && !endpoint.is_relayed()).then_some(()),
                _ => None,
            })
            .await;
    }
}

#[tokio::test]
async fn we_reach_a_stock_responder() {
    for version in [Version::V1, Version::V1Lazy] {
        let (_relay, at) = relay().await;
        let (mut listener, our_address) = node(Config::default()).await;
        let (dialer, its_address) = stock(version).await;
        let relayed = reserve(&mut listener, &at).await;
        listener.observed_at(our_address).await;
        suggest(&dialer, its_address.clone()).await;
        dialer.with(move |swarm| swarm.dial(relayed)).await.unwrap();
        let outcome = listener.outcome().await;
        assert_eq!((outcome.peer, outcome.role), (dialer.id, Role::Initiator));
        assert!(outcome.result.is_ok(), "{outcome:?}");
        assert!(outcome.round_trip.is_some());
    }
}

#[tokio::test]
async fn a_stock_initiator_that_gets_nowhere_is_given_up_in_time() {
    let (_relay, at) = relay().await;
    let (mut listener, _) = stock(Version::V1).await;
    let config = Config::builder()
        .attempt_timeout(Duration::from_millis(300))
        .punch_timeout(Duration::from_millis(1500))
        .build()
        .unwrap();
    let (mut dialer, _) = node(config).await;
    let relayed = reserve(&mut listener, &at).await;
    let nowhere = |side| Multiaddr::from(Protocol::Memory(u64::MAX - side));
    suggest(&listener, nowhere(0)).await;
    dialer.observed_at(nowhere(1)).await;
    dialer.with(move |swarm| swarm.dial(relayed)).await.unwrap();
    let outcome = dialer.outcome().await;
    assert_eq!(outcome.result, Err(PunchError::DialsFailed));
    assert!(outcome.attempts >= 1);
    assert!(!result(&mut listener).await);
}
