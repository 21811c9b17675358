//! What it costs to take in one fact when all tables are full.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench may panic"
)]

use std::{hint::black_box, task::Context};

use anypath_holepunch::{Behaviour, Config, NatReport, NatType, Plans, Role, TransportNat};
use criterion::{Criterion, criterion_group, criterion_main};
use futures::task::noop_waker_ref;
use libp2p_core::Multiaddr;
use libp2p_core::{ConnectedPoint, Endpoint, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_swarm::{ConnectionId, FromSwarm, NetworkBehaviour, behaviour::ConnectionEstablished};

fn drain(behaviour: &mut Behaviour) {
    let mut cx = Context::from_waker(noop_waker_ref());
    while behaviour.poll(&mut cx).is_ready() {}
}

fn addresses() -> Vec<Multiaddr> {
    (0..64)
        .map(|port| {
            format!("/ip4/203.0.113.7/udp/{port}/quic-v1")
                .parse()
                .unwrap()
        })
        .collect()
}

fn observations(criterion: &mut Criterion) {
    let peers: Vec<PeerId> = (0..64).map(|_| PeerId::random()).collect();
    let addresses = addresses();
    let mut behaviour = Behaviour::new(PeerId::random(), Config::default());
    let mut facts = (0_usize..).map(|n| (peers[n % 61], addresses[n % 64].clone()));
    criterion.bench_function("observation", |bench| {
        bench.iter(|| {
            let (peer, address) = facts.next().unwrap();
            behaviour.on_observation(peer, None, address);
            drain(&mut behaviour);
        });
    });
}

fn verdicts(criterion: &mut Criterion) {
    let peers: Vec<PeerId> = (0..64).map(|_| PeerId::random()).collect();
    let addresses = addresses();
    let mut behaviour = Behaviour::new(PeerId::random(), Config::default());
    let mut facts = (0_usize..).map(|n| (peers[n % 61], addresses[n % 64].clone(), n % 3 > 0));
    criterion.bench_function("verdict", |bench| {
        bench.iter(|| {
            let (peer, address, reachable) = facts.next().unwrap();
            behaviour.on_autonat(peer, address, reachable);
            drain(&mut behaviour);
        });
    });
}

/// What 64 servers see, one after another, with evidence from all of them at hand.
fn classification(criterion: &mut Criterion) {
    let mut behaviour = Behaviour::new(PeerId::random(), Config::default());
    let servers: Vec<(ConnectionId, PeerId)> = (0..64)
        .map(|n| {
            let (connection_id, peer_id) = (ConnectionId::new_unchecked(n), PeerId::random());
            let address = format!("/ip4/198.51.100.{n}/udp/4001/quic-v1");
            let endpoint = ConnectedPoint::Dialer {
                address: address.parse().unwrap(),
                role_override: Endpoint::Dialer,
                port_use: PortUse::Reuse,
            };
            behaviour.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint: &endpoint,
                failed_addresses: &[],
                other_established: 0,
            }));
            (connection_id, peer_id)
        })
        .collect();
    let observed: Multiaddr = "/ip4/203.0.113.7/udp/40123/quic-v1".parse().unwrap();
    let mut facts = servers.iter().cycle();
    criterion.bench_function("classification", |bench| {
        bench.iter(|| {
            let (connection, peer) = facts.next().unwrap();
            behaviour.on_observed(*connection, *peer, None, observed.clone());
            drain(&mut behaviour);
        });
    });
}

fn plan(criterion: &mut Criterion) {
    let types = [
        NatType::Unknown,
        NatType::Public,
        NatType::RestrictedCone,
        NatType::PortRestrictedCone,
        NatType::Symmetric,
    ];
    let reports = types.map(|nat_type| {
        let mut report = NatReport::default();
        report.udp = TransportNat::of(nat_type);
        report.tcp = TransportNat::of(nat_type);
        report
    });
    let mut pairs = (0_usize..).map(|n| (reports[n % 5], reports[n / 5 % 5]));
    criterion.bench_function("plan", |bench| {
        bench.iter(|| {
            let (ours, peers) = pairs.next().unwrap();
            black_box(Plans::new(Role::Initiator, &ours, &peers))
        });
    });
}

criterion_group!(benches, observations, verdicts, classification, plan);
criterion_main!(benches);
