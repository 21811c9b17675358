//! The server core: what one written block costs to replace by the next one ("tick"), and a
//! thousand new, repeated and cancelled wants ("merge").

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark may panic and has a clock"
)]

use std::hint::black_box;

use anypath_bitswap::{
    Config,
    core::{
        ConnKey, Path,
        server::{Output, Server},
    },
    message::{Entry, Message, WantType},
};
use bytes::Bytes;
use cid::Cid;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use libp2p_identity::PeerId;
use multihash_codetable::{Code, MultihashDigest};
use web_time::Instant;

const BLOCK: u32 = 256 * 1024;

fn entries(range: std::ops::Range<u64>, cancel: bool) -> Message {
    let entries = range.map(|number| Entry {
        cid: Cid::new_v1(0x55, Code::Sha2_256.digest(&number.to_le_bytes())),
        priority: 1,
        cancel,
        want_type: WantType::Block,
        send_dont_have: true,
        descend: 0,
    });
    Message {
        entries: entries.collect(),
        ..Message::default()
    }
}

/// A server, and the blocks it has handed over.
struct Bench {
    server: Server,
    now: Instant,
    data: Bytes,
    handed: std::collections::VecDeque<(PeerId, ConnKey)>,
}

impl Bench {
    fn new(peers: u64, wants: u64) -> Self {
        let now = Instant::now();
        let mut bench = Self {
            server: Server::new(Config::default(), [0; 32], now),
            now,
            data: vec![0; BLOCK as usize].into(),
            handed: std::collections::VecDeque::new(),
        };
        for index in 0..peers {
            let peer = PeerId::random();
            let conn = ConnKey(index);
            bench
                .server
                .on_connected(peer, conn, Path::Direct, &|_| None, now);
            let message = entries(index * wants..(index + 1) * wants, false);
            bench
                .server
                .on_message(peer, &message, &|_| Some(BLOCK), now);
        }
        bench.drain();
        bench
    }

    fn drain(&mut self) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Read { id, .. } => {
                    let data = Some(self.data.clone());
                    self.server
                        .on_read(id, data, Vec::new(), &|_| Some(BLOCK), self.now);
                }
                Output::Block { peer, conn, .. } => self.handed.push_back((peer, conn)),
                _ => {}
            }
        }
    }

    /// A block is written; the next one is chosen, read and handed over.
    fn tick(&mut self) {
        let (peer, conn) = self.handed.pop_front().unwrap();
        self.server
            .on_written(peer, conn, 1, BLOCK.into(), self.now);
        self.drain();
    }
}

fn tick(c: &mut Criterion) {
    let mut group = c.benchmark_group("decision tick");
    for peers in [1, 64, 1024] {
        group.throughput(Throughput::Elements(500));
        group.bench_function(BenchmarkId::from_parameter(peers), |b| {
            b.iter_batched_ref(
                || Bench::new(peers, 1000),
                |bench| (0..500).for_each(|_| bench.tick()),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn merge(c: &mut Criterion) {
    let mut group = c.benchmark_group("wantlist merge");
    group.throughput(Throughput::Elements(1000));
    let (add, cancel) = (entries(0..1000, false), entries(0..1000, true));
    let fresh = || {
        let now = Instant::now();
        let mut server = Server::new(Config::default(), [0; 32], now);
        let peer = PeerId::random();
        server.on_connected(peer, ConnKey(0), Path::Direct, &|_| None, now);
        (server, peer, now)
    };
    let filled = || {
        let (mut server, peer, now) = fresh();
        server.on_message(peer, &add, &|_| None, now);
        (server, peer, now)
    };
    group.bench_function("new", |b| {
        b.iter_batched_ref(
            fresh,
            |(server, peer, now)| server.on_message(*peer, black_box(&add), &|_| None, *now),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("repeated", |b| {
        b.iter_batched_ref(
            filled,
            |(server, peer, now)| server.on_message(*peer, black_box(&add), &|_| None, *now),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("cancelled", |b| {
        b.iter_batched_ref(
            filled,
            |(server, peer, now)| server.on_message(*peer, black_box(&cancel), &|_| None, *now),
            BatchSize::SmallInput,
        );
    });
    // Another peer wants the same blocks.
    group.bench_function("shared", |b| {
        b.iter_batched_ref(
            || {
                let (mut server, _, now) = filled();
                let other = PeerId::random();
                server.on_connected(other, ConnKey(1), Path::Direct, &|_| None, now);
                (server, other, now)
            },
            |(server, peer, now)| server.on_message(*peer, black_box(&add), &|_| None, *now),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, tick, merge);
criterion_main!(benches);
