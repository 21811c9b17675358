//! Punches between real swarms: one outcome on each side, whatever happens.

#![expect(clippy::unwrap_used, reason = "a test helper may panic")]

mod common;

use std::time::Duration;

use anypath_holepunch::{Config, Event, PunchError, Role, Transport};
use common::{Node, NodeEvent, Running, node, relay, reserve};
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_swarm::SwarmEvent;

/// Short enough for a test.
fn impatient() -> Config {
    Config::builder()
        .attempts(2)
        .attempt_timeout(Duration::from_secs(1))
        .candidate_wait(Duration::from_millis(200))
        .build()
        .unwrap()
}

/// Where nobody listens. Different for the two sides: nobody dials its own address.
fn nowhere(side: u64) -> Multiaddr {
    Protocol::Memory(u64::MAX - side).into()
}

async fn started(node: &mut Running<Node>) -> Role {
    node.wait("start", |event| match event {
        SwarmEvent::Behaviour(NodeEvent::Holepunch(Event::PunchStarted { role, .. })) => {
            Some(*role)
        }
        _ => None,
    })
    .await
}

#[tokio::test]
async fn a_success_is_told_once_on_each_side() {
    let (_relay, at) = relay().await;
    let (mut listener, listener_address) = node(Config::default()).await;
    let (mut dialer, dialer_address) = node(Config::default()).await;
    let relayed = reserve(&mut listener, &at).await;
    listener.observed_at(listener_address).await;
    dialer.observed_at(dialer_address).await;

    dialer.with(move |swarm| swarm.dial(relayed)).await.unwrap();
    assert_eq!(started(&mut dialer).await, Role::Responder);
    assert_eq!(started(&mut listener).await, Role::Initiator);
    let (dialer_id, listener_id) = (dialer.id, listener.id);
    for (node, peer, role) in [
        (&mut dialer, listener_id, Role::Responder),
        (&mut listener, dialer_id, Role::Initiator),
    ] {
        let outcome = node.outcome().await;
        assert_eq!((outcome.peer, outcome.role), (peer, role));
        assert!(outcome.result.is_ok(), "{outcome:?}");
        assert_ne!(outcome.result.ok(), outcome.relayed);
        assert_eq!(outcome.transport, Some(Transport::Other));
        assert!(outcome.elapsed < Duration::from_secs(3));
    }
    assert_eq!(dialer.outcomes_until_disconnected(listener_id).await, 0);
    assert_eq!(listener.outcomes_until_disconnected(dialer_id).await, 0);
}

#[tokio::test]
async fn dials_that_fail_are_told_once_on_each_side() {
    let (_relay, at) = relay().await;
    let (mut listener, _) = node(impatient()).await;
    let (mut dialer, _) = node(impatient()).await;
    let relayed = reserve(&mut listener, &at).await;
    listener.observed_at(nowhere(0)).await;
    dialer.observed_at(nowhere(1)).await;

    dialer.with(move |swarm| swarm.dial(relayed)).await.unwrap();
    for (node, role, tried) in [
        (&mut listener, Role::Initiator, nowhere(1)),
        (&mut dialer, Role::Responder, nowhere(0)),
    ] {
        let outcome = node.outcome().await;
        assert_eq!(outcome.result, Err(PunchError::DialsFailed));
        assert_eq!((outcome.role, outcome.attempts), (role, 2));
        assert_eq!(outcome.tried, [tried]);
        let known = node.with(|swarm| swarm.behaviour().holepunch.history());
        assert_eq!(known.await, [outcome]);
    }

    let (dialer_id, listener_id) = (dialer.id, listener.id);
    assert_eq!(dialer.outcomes_until_disconnected(listener_id).await, 0);
    assert_eq!(listener.outcomes_until_disconnected(dialer_id).await, 0);
}

#[tokio::test]
async fn an_exchange_without_addresses_fails_and_says_so() {
    let (_relay, at) = relay().await;
    let (mut listener, _) = node(impatient()).await;
    let (mut dialer, _) = node(impatient()).await;
    let relayed = reserve(&mut listener, &at).await;
    for node in [&listener, &dialer] {
        let any = node
            .with(|swarm| swarm.behaviour().holepunch.has_candidates())
            .await;
        assert!(!any);
    }
    dialer.with(move |swarm| swarm.dial(relayed)).await.unwrap();
    for node in [&mut listener, &mut dialer] {
        let outcome = node.outcome().await;
        assert_eq!(outcome.result, Err(PunchError::NoAddresses));
    }
}

#[tokio::test]
async fn a_relayed_connection_that_closes_first_is_told_on_both_sides() {
    let (_relay, at) = relay().await;
    let (mut listener, _) = node(Config::default()).await;
    let (mut dialer, _) = node(Config::default()).await;
    let relayed = reserve(&mut listener, &at).await;
    // The dialer's candidate makes the exchange work, the listener's dial takes its time.
    listener.observed_at(nowhere(0)).await;
    dialer.with(move |swarm| swarm.dial(relayed)).await.unwrap();
    started(&mut dialer).await;
    started(&mut listener).await;
    let peer = listener.id;
    dialer
        .with(move |swarm| swarm.disconnect_peer_id(peer))
        .await
        .unwrap();
    let expected = Err(PunchError::RelayedConnectionClosed);
    assert_eq!(dialer.outcome().await.result, expected);
    assert_eq!(listener.outcome().await.result, expected);
}

#[tokio::test]
async fn where_punching_is_switched_off_nothing_is_told() {
    let off = || Config::builder().enabled(false).build().unwrap();
    let (_relay, at) = relay().await;
    let (mut listener, _) = node(off()).await;
    let (mut dialer, _) = node(off()).await;
    let relayed = reserve(&mut listener, &at).await;
    dialer.with(move |swarm| swarm.dial(relayed)).await.unwrap();
    let peer = listener.id;
    dialer
        .wait("relayed connection", |event| match event {
            SwarmEvent::ConnectionEstablished { peer_id, .. } => (*peer_id == peer).then_some(()),
            SwarmEvent::Behaviour(NodeEvent::Holepunch(event)) => panic!("{event:?}"),
            _ => None,
        })
        .await;
    assert_eq!(dialer.outcomes_until_disconnected(peer).await, 0);
}
