//! The client core alone: what 100,000 wants cost to enqueue, and what a delivered block costs while
//! they wait ("session tick": the block, the next want of its peer, the message).

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark starts virtual time somewhere and ends if it is wrong"
)]

use std::{collections::VecDeque, time::Duration};

use anypath_bitswap::{
    Block, Config, SessionOptions, WantOptions,
    core::{
        ConnKey, Path,
        client::{Client, Output},
    },
    message::Message,
};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use libp2p_identity::PeerId;
use web_time::Instant;

const WANTS: u32 = 100_000;

fn blocks(bytes: usize) -> Vec<Block> {
    (0..WANTS)
        .map(|number| {
            let mut data = number.to_le_bytes().to_vec();
            data.resize(bytes, 0);
            Block::raw(data)
        })
        .collect()
}

/// A session with members, and what has been asked of each.
struct Load {
    client: Client,
    now: Instant,
    asked: VecDeque<(PeerId, ConnKey, cid::Cid)>,
}

impl Load {
    fn new(peers: &[PeerId]) -> (Self, anypath_bitswap::SessionId) {
        let now = Instant::now();
        let mut client = Client::new(Config::default(), [0; 32], now);
        let session = client.new_session(SessionOptions::default());
        for (number, peer) in peers.iter().enumerate() {
            client.on_connected(*peer, ConnKey(number as u64), Path::Direct, now);
            client.add_session_peer(session, *peer, now);
        }
        let asked = VecDeque::new();
        (Self { client, now, asked }, session)
    }

    fn drain(&mut self) {
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::Send {
                    peer,
                    conn,
                    entries,
                    ..
                } => {
                    self.client.on_written(peer, self.now);
                    let wants = entries.into_iter().filter(|entry| !entry.cancel);
                    self.asked
                        .extend(wants.map(|entry| (peer, conn, entry.cid)));
                }
                Output::Block { ticket, block, .. } => {
                    self.client.taken(ticket, block.data().len(), self.now);
                }
                _ => {}
            }
        }
    }
}

fn enqueue(c: &mut Criterion) {
    let cids: Vec<cid::Cid> = blocks(32).iter().map(|block| *block.cid()).collect();
    let mut group = c.benchmark_group("enqueue");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(WANTS.into()));
    for peers in [0, 4] {
        let peers: Vec<PeerId> = (0..peers).map(|_| PeerId::random()).collect();
        group.bench_function(BenchmarkId::new("100000 wants, peers", peers.len()), |b| {
            b.iter_batched(
                || Load::new(&peers),
                |(mut load, session)| {
                    for cid in &cids {
                        load.client
                            .want(session, *cid, WantOptions::default(), load.now);
                    }
                    load.drain();
                    load
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn tick(c: &mut Criterion) {
    let blocks = blocks(8192);
    let mut group = c.benchmark_group("session tick");
    group.throughput(Throughput::Elements(1));
    for peers in [1, 4, 64, 500] {
        let peers: Vec<PeerId> = (0..peers).map(|_| PeerId::random()).collect();
        let by_cid: std::collections::HashMap<_, _> =
            blocks.iter().map(|block| (*block.cid(), block)).collect();
        let begin = || {
            let (mut load, session) = Load::new(&peers);
            for block in &blocks {
                load.client
                    .want(session, *block.cid(), WantOptions::default(), load.now);
            }
            load.drain();
            load
        };
        let mut load = begin();
        group.bench_function(BenchmarkId::new("peers", peers.len()), |b| {
            b.iter(|| {
                if load.asked.is_empty() {
                    load = begin();
                }
                let (peer, conn, cid) = load.asked.pop_front().unwrap();
                load.now += Duration::from_micros(20);
                let message = Message {
                    blocks: vec![(*by_cid.get(&cid).unwrap()).clone()],
                    ..Message::default()
                };
                load.client.on_message(peer, conn, &message, load.now);
                load.drain();
                load.client.poll_timeout()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, enqueue, tick);
criterion_main!(benches);
