//! What it costs to take in one fact when all tables are full.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench may panic"
)]

use std::task::Context;

use anypath_holepunch::{Behaviour, Config};
use criterion::{Criterion, criterion_group, criterion_main};
use futures::task::noop_waker_ref;
use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_swarm::NetworkBehaviour;

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

criterion_group!(benches, observations, verdicts);
criterion_main!(benches);
