//! Our node against peers that behave as other implementations do, or worse. The peers speak raw
//! streams.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic and runs on tokio"
)]

use std::{sync::Arc, time::Duration};

use anypath_bitswap::{
    Behaviour, Block, Config, Event, MemorySource, Priority, ProtocolViolation, Ticket,
    message::{Entry, Message, Version, WantType, decode},
};
use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p_core::{Transport, transport::MemoryTransport, upgrade};
use libp2p_identity::{Keypair, PeerId};
use libp2p_stream::{Control, IncomingStreams};
use libp2p_swarm::{Stream, StreamProtocol, Swarm, SwarmEvent};
use libp2p_swarm_test::SwarmExt;

const V1_2: StreamProtocol = StreamProtocol::new("/ipfs/bitswap/1.2.0");
const V1_0: StreamProtocol = StreamProtocol::new("/ipfs/bitswap/1.0.0");

/// A swarm of ours that negotiates as said.
fn node(version: upgrade::Version) -> (Swarm<Behaviour>, Arc<MemorySource>) {
    let key = Keypair::generate_ed25519();
    let transport = MemoryTransport::default()
        .upgrade(upgrade::Version::V1)
        .authenticate(libp2p_plaintext::Config::new(&key))
        .multiplex(libp2p_yamux::Config::default())
        .boxed();
    let source = Arc::new(MemorySource::new());
    let behaviour = Behaviour::new(Config::default(), Arc::clone(&source) as _);
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_substream_upgrade_protocol_override(version);
    (
        Swarm::new(transport, behaviour, key.public().to_peer_id(), config),
        source,
    )
}

/// A peer that accepts streams of `protocol`; it runs in the background.
async fn foreign(
    ours: &mut Swarm<Behaviour>,
    protocol: StreamProtocol,
) -> (PeerId, Control, IncomingStreams) {
    let mut swarm = Swarm::new_ephemeral_tokio(|_| libp2p_stream::Behaviour::new());
    let mut control = swarm.behaviour().new_control();
    let incoming = control.accept(protocol).unwrap();
    swarm.listen().with_memory_addr_external().await;
    ours.connect(&mut swarm).await;
    let id = *swarm.local_peer_id();
    tokio::spawn(swarm.loop_on_next());
    (id, control, incoming)
}

async fn read(stream: &mut Stream) -> Option<Message> {
    let mut length = 0;
    for index in 0.. {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.ok()?;
        length |= usize::from(byte[0] & 0x7f) << (7 * index);
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(decode(body.into(), 8192).unwrap())
}

async fn write(stream: &mut Stream, message: &Message, version: Version) {
    for chunk in message.encode(version) {
        stream.write_all(&chunk).await.unwrap();
    }
    stream.flush().await.unwrap();
}

fn wanted(message: &Message) -> Vec<cid::Cid> {
    let entries = message.entries.iter().filter(|entry| !entry.cancel);
    entries.map(|entry| entry.cid).collect()
}

/// Wants blocks of a peer; their tickets.
fn want(ours: &mut Swarm<Behaviour>, peer: PeerId, blocks: &[Block]) -> Vec<Ticket> {
    let bitswap = ours.behaviour_mut();
    let session = bitswap.new_session();
    bitswap.add_session_peer(session, peer);
    blocks
        .iter()
        .map(|block| bitswap.want(session, *block.cid(), Priority(1)))
        .collect()
}

/// Runs `ours` until `count` blocks have come; their CIDs.
async fn receive(ours: &mut Swarm<Behaviour>, count: usize) -> Vec<cid::Cid> {
    let mut got = Vec::new();
    let work = async {
        while got.len() < count {
            if let SwarmEvent::Behaviour(Event::Block { block, .. }) = ours.select_next_some().await
            {
                got.push(*block.cid());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), work)
        .await
        .expect("blocks within 20 s");
    got
}

async fn violation(ours: &mut Swarm<Behaviour>) -> ProtocolViolation {
    let work = async {
        loop {
            if let SwarmEvent::Behaviour(Event::ProtocolViolation { violation, .. }) =
                ours.select_next_some().await
            {
                return violation;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), work)
        .await
        .expect("within 20 s")
}

#[tokio::test]
async fn a_peer_that_only_speaks_1_0_0_is_served_and_asked_its_way() {
    for negotiation in [upgrade::Version::V1, upgrade::Version::V1Lazy] {
        let (mut ours, source) = node(negotiation);
        let (id, mut control, mut incoming) = foreign(&mut ours, V1_0).await;
        let theirs = Block::raw("theirs");
        let mine = Block::raw("mine");
        source.insert(mine.clone());
        want(&mut ours, id, std::slice::from_ref(&theirs));
        let us = *ours.local_peer_id();
        let answer = theirs.clone();
        let peer = tokio::spawn(async move {
            let (_, mut stream) = incoming.next().await.unwrap();
            let message = read(&mut stream).await.unwrap();
            assert_eq!(wanted(&message), [*answer.cid()]);
            let mut out = control.open_stream(us, V1_0).await.unwrap();
            // A v0 CID, as every want was then.
            let v0 = cid::Cid::new_v0(*mine.cid().hash()).unwrap();
            let entry = Entry {
                cid: v0,
                priority: 1,
                cancel: false,
                want_type: WantType::Block,
                send_dont_have: false,
                descend: 0,
            };
            let reply = Message {
                blocks: vec![answer],
                entries: vec![entry],
                ..Message::default()
            };
            write(&mut out, &reply, Version::V1_0).await;
            loop {
                let message = read(&mut stream).await.unwrap();
                if let Some(block) = message.legacy_blocks.first() {
                    return block.data().clone();
                }
            }
        });
        assert_eq!(receive(&mut ours, 1).await, [*theirs.cid()]);
        let served = tokio::select! {
            served = peer => served.unwrap(),
            _ = ours.loop_on_next() => unreachable!(),
        };
        assert_eq!(served, Bytes::from_static(b"mine"));
    }
}

#[tokio::test]
async fn answers_may_come_on_a_new_stream_each_sixteen_at_a_time() {
    let (mut ours, _) = node(upgrade::Version::V1Lazy);
    let (id, control, mut incoming) = foreign(&mut ours, V1_2).await;
    let blocks: Vec<Block> = (0..64_u8).map(|n| Block::raw(vec![n; 100_000])).collect();
    want(&mut ours, id, &blocks);
    let us = *ours.local_peer_id();
    let served = blocks.clone();
    tokio::spawn(async move {
        let (_, mut stream) = incoming.next().await.unwrap();
        let mut open = Vec::new();
        while let Some(message) = read(&mut stream).await {
            for cid in wanted(&message) {
                let block = served
                    .iter()
                    .find(|block| *block.cid() == cid)
                    .unwrap()
                    .clone();
                let mut control = control.clone();
                open.push(tokio::spawn(async move {
                    let mut out = control.open_stream(us, V1_2).await.unwrap();
                    let message = Message {
                        blocks: vec![block],
                        ..Message::default()
                    };
                    write(&mut out, &message, Version::V1_2).await;
                    out.close().await.unwrap();
                }));
            }
        }
    });
    assert_eq!(receive(&mut ours, 64).await.len(), 64);
}

#[tokio::test]
async fn a_peer_that_drops_our_stream_after_every_message_is_asked_on_a_new_one() {
    let (mut ours, _) = node(upgrade::Version::V1Lazy);
    let (id, mut control, mut incoming) = foreign(&mut ours, V1_2).await;
    let blocks: Vec<Block> = (0..5_u8).map(|n| Block::raw(vec![n; 1000])).collect();
    let us = *ours.local_peer_id();
    let served = blocks.clone();
    tokio::spawn(async move {
        let mut out = control.open_stream(us, V1_2).await.unwrap();
        while let Some((_, mut stream)) = incoming.next().await {
            let Some(message) = read(&mut stream).await else {
                continue;
            };
            drop(stream);
            for cid in wanted(&message) {
                let block = served
                    .iter()
                    .find(|block| *block.cid() == cid)
                    .unwrap()
                    .clone();
                let message = Message {
                    blocks: vec![block],
                    ..Message::default()
                };
                write(&mut out, &message, Version::V1_2).await;
            }
        }
    });
    for block in blocks {
        want(&mut ours, id, std::slice::from_ref(&block));
        assert_eq!(receive(&mut ours, 1).await, [*block.cid()]);
    }
}

/// R2 on a real stream.
#[tokio::test]
async fn r2_a_frame_declared_too_large_closes_the_stream_and_nothing_else() {
    let (mut ours, _) = node(upgrade::Version::V1);
    let (id, mut control, mut incoming) = foreign(&mut ours, V1_2).await;
    let us = *ours.local_peer_id();
    let block = Block::raw("still here");
    let served = block.clone();
    tokio::spawn(async move {
        let mut bad = control.open_stream(us, V1_2).await.unwrap();
        bad.write_all(&[0xff, 0xff, 0xff, 0xff, 0x7f])
            .await
            .unwrap();
        bad.flush().await.unwrap();
        let (_, mut stream) = incoming.next().await.unwrap();
        read(&mut stream).await.unwrap();
        let mut out = control.open_stream(us, V1_2).await.unwrap();
        let message = Message {
            blocks: vec![served],
            ..Message::default()
        };
        write(&mut out, &message, Version::V1_2).await;
        futures::future::pending::<()>().await;
    });
    let found = violation(&mut ours).await;
    assert!(
        matches!(found, ProtocolViolation::FrameTooLarge { .. }),
        "{found}"
    );
    want(&mut ours, id, &[block]);
    receive(&mut ours, 1).await;
}

#[tokio::test]
async fn streams_beyond_the_limit_are_dropped() {
    let (mut ours, _) = node(upgrade::Version::V1);
    let (_, mut control, _incoming) = foreign(&mut ours, V1_2).await;
    let us = *ours.local_peer_id();
    tokio::spawn(async move {
        let mut streams = Vec::new();
        for _ in 0..80 {
            let mut stream = control.open_stream(us, V1_2).await.unwrap();
            stream.write_all(&[0x05]).await.unwrap();
            stream.flush().await.unwrap();
            streams.push(stream);
        }
        futures::future::pending::<()>().await;
    });
    let found = violation(&mut ours).await;
    assert_eq!(found, ProtocolViolation::TooManyStreams { limit: 64 });
}

/// R13: corrupt data is an unwanted block; the right one still comes.
#[tokio::test]
async fn r13_a_corrupt_block_is_not_delivered_and_does_not_end_the_want() {
    let (mut ours, _) = node(upgrade::Version::V1);
    let (id, mut control, mut incoming) = foreign(&mut ours, V1_2).await;
    let block = Block::raw("right");
    let served = block.clone();
    want(&mut ours, id, std::slice::from_ref(&block));
    let us = *ours.local_peer_id();
    tokio::spawn(async move {
        let (_, mut stream) = incoming.next().await.unwrap();
        read(&mut stream).await.unwrap();
        let mut out = control.open_stream(us, V1_2).await.unwrap();
        for block in [Block::raw("wrong"), served] {
            let message = Message {
                blocks: vec![block],
                ..Message::default()
            };
            write(&mut out, &message, Version::V1_2).await;
        }
        futures::future::pending::<()>().await;
    });
    assert_eq!(receive(&mut ours, 1).await, [*block.cid()]);
    assert_eq!(ours.behaviour().ledger(id).unwrap().unwanted_bytes, 5);
}

#[tokio::test]
async fn a_peer_without_bitswap_is_left_alone_and_others_are_asked() {
    let (mut ours, _) = node(upgrade::Version::V1Lazy);
    let other = StreamProtocol::new("/something/else");
    let (mute, _c1, _i1) = foreign(&mut ours, other).await;
    let (id, mut control, mut incoming) = foreign(&mut ours, V1_2).await;
    let block = Block::raw("elsewhere");
    let served = block.clone();
    let bitswap = ours.behaviour_mut();
    let session = bitswap.new_session();
    bitswap.add_session_peer(session, mute);
    bitswap.want(session, *block.cid(), Priority(1));
    let us = *ours.local_peer_id();
    tokio::spawn(async move {
        let (_, mut stream) = incoming.next().await.unwrap();
        let mut out = control.open_stream(us, V1_2).await.unwrap();
        while let Some(message) = read(&mut stream).await {
            if !wanted(&message).is_empty() {
                let message = Message {
                    blocks: vec![served.clone()],
                    ..Message::default()
                };
                write(&mut out, &message, Version::V1_2).await;
            }
        }
    });
    assert_eq!(receive(&mut ours, 1).await, [*block.cid()]);
    assert_eq!(ours.behaviour().ledger(id).unwrap().blocks_received, 1);
}

/// R3: beetswap put all the blocks of a wantlist into one message, and took `full` lists of any length.
#[tokio::test]
async fn r3_a_full_list_of_thousands_is_answered_in_messages_of_bounded_size() {
    let (mut ours, source) = node(upgrade::Version::V1);
    let (_, mut control, mut incoming) = foreign(&mut ours, V1_2).await;
    let blocks: Vec<Block> = (0..600_u32)
        .map(|n| Block::raw([&n.to_le_bytes()[..], &[0; 30_000]].concat()))
        .collect();
    for block in &blocks {
        source.insert(block.clone());
    }
    let us = *ours.local_peer_id();
    let peer = tokio::spawn(async move {
        let mut out = control.open_stream(us, V1_2).await.unwrap();
        let missing = (0..4400_u32).map(|n| *Block::raw(n.to_le_bytes().to_vec()).cid());
        let entries = missing.chain(blocks.iter().map(|block| *block.cid()));
        let message = Message {
            entries: entries
                .map(|cid| Entry {
                    cid,
                    priority: 1,
                    cancel: false,
                    want_type: WantType::Block,
                    send_dont_have: true,
                    descend: 0,
                })
                .collect(),
            full: true,
            ..Message::default()
        };
        write(&mut out, &message, Version::V1_2).await;
        let (_, mut stream) = incoming.next().await.unwrap();
        let (mut got, mut largest) = (0, 0);
        while got < blocks.len() {
            let message = read(&mut stream).await.unwrap();
            got += message.blocks.len();
            largest = largest.max(message.frame_bytes);
        }
        largest
    });
    let largest = tokio::select! {
        largest = peer => largest.unwrap(),
        _ = ours.loop_on_next() => unreachable!(),
    };
    assert!(largest <= 512 * 1024, "{largest} bytes in one message");
}
