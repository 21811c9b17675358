//! Two swarms over libp2p's memory transport (plaintext, yamux): 64 MiB from one to the other.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark measures wall time on tokio"
)]

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anypath_bitswap::{Behaviour, Block, Config, Event, MemorySource, Priority};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures::StreamExt;
use libp2p_swarm::{Swarm, SwarmEvent};
use libp2p_swarm_test::SwarmExt;

const TOTAL: usize = 64 * 1024 * 1024;

/// Time from the first want to the last block.
async fn transfer(blocks: &[Block]) -> Duration {
    let source = Arc::new(MemorySource::new());
    blocks.iter().for_each(|block| source.insert(block.clone()));
    let mut server = Swarm::new_ephemeral_tokio(|_| Behaviour::new(Config::default(), source));
    let mut client = Swarm::new_ephemeral_tokio(|_| {
        Behaviour::new(Config::default(), Arc::new(MemorySource::new()))
    });
    server.listen().with_memory_addr_external().await;
    client.connect(&mut server).await;
    let peer = *server.local_peer_id();
    let serving = tokio::spawn(server.loop_on_next());

    let start = Instant::now();
    let bitswap = client.behaviour_mut();
    let session = bitswap.new_session();
    bitswap.add_session_peer(session, peer);
    let mut open: HashSet<_> = blocks
        .iter()
        .map(|block| bitswap.want(session, *block.cid(), Priority::default()))
        .collect();
    while !open.is_empty() {
        if let SwarmEvent::Behaviour(Event::Block { ticket, block, .. }) =
            client.select_next_some().await
        {
            client.behaviour_mut().taken(ticket, block.data().len());
            open.remove(&ticket);
        }
    }
    let elapsed = start.elapsed();
    serving.abort();
    elapsed
}

fn bench(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut group = c.benchmark_group("transfer");
    group
        .sample_size(10)
        .throughput(Throughput::Bytes(TOTAL as u64));
    for size in [8 * 1024, 256 * 1024, 1024 * 1024] {
        let blocks: Vec<Block> = (0..TOTAL / size)
            .map(|index| {
                let mut data = vec![0; size];
                data.iter_mut()
                    .zip(index.to_le_bytes())
                    .for_each(|(to, from)| *to = from);
                Block::raw(data)
            })
            .collect();
        group.bench_with_input(BenchmarkId::from_parameter(size), &blocks, |b, blocks| {
            b.iter_custom(|runs| {
                (0..runs)
                    .map(|_| runtime.block_on(transfer(blocks)))
                    .sum::<Duration>()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
