//! Cost of an announcement, from the bytes to the table: of a known peer, of a stranger, of a flood, and of
//! content.

#![expect(clippy::unwrap_used, reason = "a bench")]

use std::{hint::black_box, time::Duration};

use anypath_discovery_pubsub::{
    Announcement, Body, Config, Content, DEFAULT_TOPIC, Service,
    core::{Core, Origin, Output, Received},
};
use cid::{Cid, multihash::Multihash};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use libp2p_core::Multiaddr;
use libp2p_identity::{Keypair, PeerId};
use web_time::Instant;

const ADDRESSES: usize = 8;

struct Message {
    topic: String,
    author: PeerId,
    data: Vec<u8>,
}

fn core_of(key: &Keypair, now: Instant) -> Core {
    let config = Config::builder().services(Service::ALL).build().unwrap();
    let since_1970 = Duration::from_secs(1_700_000_000);
    Core::new(key.public(), config, [0; 32], now, since_1970)
}

fn core(now: Instant) -> Core {
    core_of(&Keypair::generate_ed25519(), now)
}

/// An announcement of [`ADDRESSES`] addresses as another core makes it.
fn announcement(now: Instant, n: u8) -> Message {
    let key = Keypair::generate_ed25519();
    let mut core = core_of(&key, now);
    for port in 4001..4001 + ADDRESSES {
        let address: Multiaddr = format!("/ip4/1.2.3.{n}/udp/{port}/quic-v1")
            .parse()
            .unwrap();
        core.on_address(Origin::External, address, now);
    }
    core.on_subscribed(DEFAULT_TOPIC, PeerId::random(), now);
    core.handle_timeout(now + Duration::from_secs(1));
    let Some(Output::Publish { topic, data }) = core.poll_output() else {
        panic!("must announce")
    };
    let author = key.public().to_peer_id();
    Message {
        topic,
        author,
        data,
    }
}

/// 64 pieces of content.
fn content(sequence: u64) -> Message {
    let items = (0..64u8).map(|n| Content {
        cid: Cid::new_v1(0x55, Multihash::wrap(0x12, &[n; 32]).unwrap()),
        size: Some(u64::from(n)),
        name: Some(format!("file {n}")),
    });
    let body = Body::Content {
        items: items.collect(),
        withdrawn: Vec::new(),
    };
    Message {
        topic: Service::Content.topic("anypath"),
        author: PeerId::random(),
        data: Announcement { sequence, body }.encode(),
    }
}

fn hear(core: &mut Core, source: PeerId, message: &Message, now: Instant) {
    let received = Received {
        topic: &message.topic,
        source,
        author: Some(message.author),
        sequence: None,
        data: &message.data,
    };
    black_box(core.on_message(&received, now));
    while let Some(output) = core.poll_output() {
        black_box(output);
    }
}

fn announcements(c: &mut Criterion) {
    #[expect(clippy::disallowed_methods, reason = "a point to count from")]
    let start = Instant::now();
    let known = announcement(start, 1);
    let source = PeerId::random();
    let mut group = c.benchmark_group("announcement");
    group.throughput(Throughput::Elements(1));
    group.bench_function("repeated, 8 addresses", |b| {
        let (mut core, mut now) = (core(start), start);
        b.iter(|| {
            now += Duration::from_secs(10);
            hear(&mut core, source, &known, now);
        });
    });
    group.bench_function("first, 8 addresses", |b| {
        b.iter_batched_ref(
            || core(start),
            |core| hear(core, source, &known, start),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("one of 10,000 a second, over the limit", |b| {
        let (mut core, mut now) = (core(start), start);
        b.iter(|| {
            now += Duration::from_micros(100);
            hear(&mut core, source, &known, now);
        });
    });
    group.bench_function("first, 64 pieces of content", |b| {
        let content = content(1);
        b.iter_batched_ref(
            || core(start),
            |core| hear(core, source, &content, start),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, announcements);
criterion_main!(benches);
