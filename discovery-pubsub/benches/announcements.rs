//! Cost of one announcement of a known peer, from the bytes to the table, and of one of a stranger.

#![expect(clippy::unwrap_used, reason = "a bench")]

use std::{hint::black_box, time::Duration};

use anypath_discovery_pubsub::{
    Config, DEFAULT_TOPIC,
    core::{Core, Origin, Output},
};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use libp2p_core::Multiaddr;
use libp2p_identity::{Keypair, PeerId};
use web_time::Instant;

const ADDRESSES: usize = 8;

/// An announcement of [`ADDRESSES`] addresses as another core makes it.
fn announcement(now: Instant) -> (PeerId, Vec<u8>) {
    let key = Keypair::generate_ed25519();
    let mut core = Core::new(key.public(), Config::default(), [0; 32]);
    for port in 1..=ADDRESSES {
        let address: Multiaddr = format!("/ip4/1.2.3.4/udp/{port}/quic-v1").parse().unwrap();
        core.on_address(Origin::External, address, now);
    }
    core.on_subscribed(DEFAULT_TOPIC, PeerId::random(), now);
    core.handle_timeout(now + Duration::from_secs(1));
    let Some(Output::Publish { data, .. }) = core.poll_output() else {
        panic!("must announce")
    };
    (key.public().to_peer_id(), data)
}

fn hear(core: &mut Core, (author, data): &(PeerId, Vec<u8>), now: Instant) {
    black_box(core.on_message(DEFAULT_TOPIC, Some(*author), data, now));
    while let Some(output) = core.poll_output() {
        black_box(output);
    }
}

fn announcements(c: &mut Criterion) {
    #[expect(clippy::disallowed_methods, reason = "a point to count from")]
    let now = Instant::now();
    let core = || {
        Core::new(
            Keypair::generate_ed25519().public(),
            Config::default(),
            [0; 32],
        )
    };
    let known = announcement(now);
    let mut group = c.benchmark_group("announcement");
    group.bench_function("repeated, 8 addresses", |b| {
        let (mut core, mut now) = (core(), now);
        b.iter(|| {
            now += Duration::from_secs(10);
            hear(&mut core, &known, now);
        });
    });
    group.bench_function("first, 8 addresses", |b| {
        b.iter_batched_ref(core, |core| hear(core, &known, now), BatchSize::SmallInput);
    });
    group.finish();
}

criterion_group!(benches, announcements);
criterion_main!(benches);
