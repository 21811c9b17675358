//! How long a circuit takes to come up, and what keeping candidates costs.
//!
//! Everything runs over the memory transport in one process, so the first figure is the work of
//! three nodes without any network between them.

#![expect(clippy::unwrap_used, reason = "a bench may panic")]

#[path = "../tests/common/mod.rs"]
mod common;

use anypath_relay::{client, server};
use common::{Client, ClientEvent, Running, client as node, relay};
use criterion::{Criterion, criterion_group, criterion_main};
use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_swarm::SwarmEvent;

async fn dial_and_hang_up(source: &mut Running<Client>, address: Multiaddr) {
    source.with(move |swarm| swarm.dial(address)).await.unwrap();
    let (peer, connection) = source
        .wait_client("circuit", |event| match event {
            client::Event::Circuit {
                peer, connection, ..
            } => Some((*peer, *connection)),
            _ => None,
        })
        .await;
    source
        .with(move |swarm| swarm.disconnect_peer_id(peer))
        .await
        .unwrap();
    source
        .wait("end", |event| match event {
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                (*connection_id == connection).then_some(())
            }
            SwarmEvent::Behaviour(ClientEvent::Server(_)) => unreachable!("switched off"),
            _ => None,
        })
        .await;
}

fn circuit(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let (_relay, _destination, mut source, address) = runtime.block_on(async {
        let config = server::Config::builder()
            .rate_limits(false)
            .max_circuits(100_000)
            .max_circuits_per_peer(100_000)
            .build()
            .unwrap();
        let (relay, at) = relay(config).await;
        let (mut destination, _) = node(client::Config::default()).await;
        destination
            .with(move |swarm| swarm.behaviour_mut().client.add_relay(at))
            .await
            .unwrap();
        let (address, _) = destination.reserved().await;
        let (source, _) = node(client::Config::default()).await;
        (relay, destination, source, address)
    });
    criterion.bench_function("circuit up and down", |bench| {
        bench.iter(|| runtime.block_on(dial_and_hang_up(&mut source, address.clone())));
    });
}

fn candidates(criterion: &mut Criterion) {
    let peers: Vec<PeerId> = (0..1000).map(|_| PeerId::random()).collect();
    let addresses: Vec<Multiaddr> = (0..4)
        .map(|port| format!("/ip4/203.0.113.7/tcp/{port}").parse().unwrap())
        .collect();
    criterion.bench_function("1000 candidates offered", |bench| {
        bench.iter(|| {
            let (_transport, mut behaviour) =
                client::new(PeerId::random(), client::Config::default());
            for peer in &peers {
                behaviour.add_candidate(*peer, addresses.clone());
            }
            behaviour
        });
    });
}

criterion_group!(benches, circuit, candidates);
criterion_main!(benches);
