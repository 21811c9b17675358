//! Two swarms over loopback TCP, Noise and Yamux, 64 MiB from one to the other: by bitswap, and as one bare
//! stream whose receiver hashes every block.

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

use anypath_bitswap::{Behaviour, Block, Config, Event, Executor, MemorySource, Priority};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p_core::{Transport, multiaddr::Protocol, upgrade::Version};
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{NetworkBehaviour, StreamProtocol, Swarm, SwarmEvent};
use multihash_codetable::{Code, MultihashDigest};

const TOTAL: usize = 64 * 1024 * 1024;
const RAW: StreamProtocol = StreamProtocol::new("/anypath/bench/raw");

fn swarm<B: NetworkBehaviour>(behaviour: B) -> Swarm<B> {
    let key = Keypair::generate_ed25519();
    let transport = libp2p_tcp::tokio::Transport::default()
        .upgrade(Version::V1Lazy)
        .authenticate(libp2p_noise::Config::new(&key).unwrap())
        .multiplex(libp2p_yamux::Config::default())
        .boxed();
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(60));
    Swarm::new(transport, behaviour, key.public().to_peer_id(), config)
}

/// Connects `client` to `server`, which goes on in the background.
async fn connect<B: NetworkBehaviour<ToSwarm: Send> + Send>(
    client: &mut Swarm<B>,
    mut server: Swarm<B>,
) -> (PeerId, tokio::task::JoinHandle<()>) {
    let peer = *server.local_peer_id();
    server
        .listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap())
        .unwrap();
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = server.select_next_some().await {
            break address.with(Protocol::P2p(peer));
        }
    };
    let serving = tokio::spawn(async move {
        loop {
            server.select_next_some().await;
        }
    });
    client.dial(address).unwrap();
    while !matches!(
        client.select_next_some().await,
        SwarmEvent::ConnectionEstablished { .. }
    ) {}
    (peer, serving)
}

/// Time from the first want to the last block.
async fn bitswap(blocks: Vec<Block>) -> Duration {
    let source = Arc::new(MemorySource::new());
    blocks.iter().for_each(|block| source.insert(block.clone()));
    let executor = Executor::new(|work| drop(tokio::spawn(work)));
    let config = Config::builder().executor(Some(executor)).build().unwrap();
    let store = Arc::new(MemorySource::new());
    let server = swarm(Behaviour::new(config.clone(), source));
    let mut client = swarm(Behaviour::new(config, Arc::clone(&store) as _));
    let (peer, serving) = connect(&mut client, server).await;

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
            let bytes = block.data().len();
            store.insert(block);
            client.behaviour_mut().taken(ticket, bytes);
            open.remove(&ticket);
        }
    }
    let elapsed = start.elapsed();
    serving.abort();
    elapsed
}

/// Time from opening the stream to the last block.
async fn raw_stream(blocks: Vec<Block>) -> Duration {
    let server = libp2p_stream::Behaviour::new();
    let mut streams = server.new_control().accept(RAW).unwrap();
    let mut client = swarm(libp2p_stream::Behaviour::new());
    let mut control = client.behaviour().new_control();
    let (peer, serving) = connect(&mut client, swarm(server)).await;
    let sent = blocks.clone();
    let sending = tokio::spawn(async move {
        let (_, mut stream) = streams.next().await.unwrap();
        for block in &sent {
            stream.write_all(block.data()).await.unwrap();
        }
        stream.close().await.unwrap();
    });

    let start = Instant::now();
    let reading = async {
        let mut stream = control.open_stream(peer, RAW).await.unwrap();
        for block in &blocks {
            let mut data = vec![0; block.data().len()];
            stream.read_exact(&mut data).await.unwrap();
            assert_eq!(Code::Sha2_256.digest(&data), *block.cid().hash());
        }
    };
    let mut reading = std::pin::pin!(reading);
    loop {
        tokio::select! {
            () = &mut reading => break,
            _ = client.select_next_some() => {}
        }
    }
    let elapsed = start.elapsed();
    sending.await.unwrap();
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
        group.bench_with_input(BenchmarkId::new("bitswap", size), &blocks, |b, blocks| {
            b.iter_custom(|runs| {
                (0..runs)
                    .map(|_| {
                        runtime
                            .block_on(runtime.spawn(bitswap(blocks.clone())))
                            .unwrap()
                    })
                    .sum::<Duration>()
            });
        });
        group.bench_with_input(
            BenchmarkId::new("raw_stream", size),
            &blocks,
            |b, blocks| {
                b.iter_custom(|runs| {
                    (0..runs)
                        .map(|_| {
                            runtime
                                .block_on(runtime.spawn(raw_stream(blocks.clone())))
                                .unwrap()
                        })
                        .sum::<Duration>()
                });
            },
        );
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
