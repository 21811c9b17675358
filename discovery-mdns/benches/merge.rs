//! Cost of merging the records of a busy network (256 peers with 8 addresses each, in both families).

use std::hint::black_box;

use anypath_discovery_mdns::{Config, Event, Family};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;

// The core is private to the crate, so the bench compiles it once more.
#[path = "../src/core.rs"]
#[expect(
    dead_code,
    reason = "the bench uses a part of it, and none of its tests"
)]
mod core;

fn records() -> Vec<(PeerId, Multiaddr)> {
    let peers = std::iter::repeat_with(PeerId::random).take(256);
    peers
        .flat_map(|peer| {
            (1..=8).map(move |port| {
                let address: Multiaddr =
                    Multiaddr::empty().with(Protocol::Ip4([10, 0, 0, 1].into()));
                (
                    peer,
                    address.with(Protocol::Tcp(port)).with(Protocol::P2p(peer)),
                )
            })
        })
        .collect()
}

fn merge(c: &mut Criterion) {
    let records = records();
    let local = PeerId::random();
    let mut group = c.benchmark_group("merge");
    group.throughput(Throughput::Elements(2 * records.len() as u64));
    group.bench_function("two families, 256 peers x 8 addresses", |b| {
        b.iter_batched(
            || core::Core::new(local, &Config::default()),
            |mut core| {
                core.on_discovered(Family::V4, records.iter().cloned());
                core.on_discovered(Family::V6, records.iter().cloned());
                while let Some(event) = core.poll_output() {
                    black_box::<Event>(event);
                }
                core
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, merge);
criterion_main!(benches);
