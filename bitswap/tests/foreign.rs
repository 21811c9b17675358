//! Our node against peers that behave as other implementations do, or worse. The peers speak raw
//! streams.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic and runs on tokio"
)]

use std::{convert::Infallible, sync::Arc, time::Duration};

use anypath_bitswap::{
    Behaviour, Block, Config, Event, MemorySource, Priority, ProtocolViolation, Ticket,
    message::{Entry, Message, Version, WantType, decode},
};
use bytes::Bytes;
use futures::{
    AsyncReadExt, AsyncWriteExt, FutureExt, SinkExt, StreamExt,
    channel::{mpsc, oneshot},
};
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
    // A busy machine may take longer than the default of 10 s for what nobody wants.
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(60))
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

/// Runs `ours` for ever.
async fn run(ours: &mut Swarm<Behaviour>) -> Infallible {
    loop {
        ours.select_next_some().await;
    }
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
            never = run(&mut ours) => match never {},
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

/// Everything a peer reads of us on one stream: one stream for all messages, none above 2 MiB unless
/// one block forces it, each block under the CID that was asked for.
#[tokio::test]
async fn one_stream_carries_all_messages_and_none_exceeds_two_mebibytes_without_need() {
    let (mut ours, source) = node(upgrade::Version::V1Lazy);
    let (_, mut control, mut incoming) = foreign(&mut ours, V1_2).await;
    let us = *ours.local_peer_id();
    let sizes = (0..200)
        .map(|n| n * 200)
        .chain([1_500_000; 3])
        .chain([3_000_000]);
    let blocks: Vec<Block> = sizes
        .enumerate()
        .map(|(n, size)| Block::raw([vec![n as u8; size], n.to_le_bytes().into()].concat()))
        .collect();
    blocks.iter().for_each(|block| source.insert(block.clone()));
    let entries = blocks.iter().enumerate().map(|(n, block)| {
        let v1 = *block.cid();
        let v0 = cid::Cid::new_v0(*v1.hash()).unwrap();
        Entry {
            cid: if n % 2 == 0 { v1 } else { v0 },
            priority: 1,
            cancel: false,
            want_type: WantType::Block,
            send_dont_have: true,
            descend: 0,
        }
    });
    let wants = Message {
        entries: entries.collect(),
        ..Message::default()
    };
    let count = blocks.len();
    let peer = tokio::spawn(async move {
        let mut out = control.open_stream(us, V1_2).await.unwrap();
        write(&mut out, &wants, Version::V1_2).await;
        let (_, mut stream) = incoming.next().await.unwrap();
        let mut got = std::collections::BTreeSet::new();
        while got.len() < count {
            let message = read(&mut stream).await.unwrap();
            assert!(
                message.frame_bytes <= 2 * 1024 * 1024 || message.blocks.len() == 1,
                "{} bytes in {} blocks",
                message.frame_bytes,
                message.blocks.len()
            );
            for block in message.blocks {
                assert!(got.insert(*block.cid()), "sent twice");
            }
        }
        let asked = wants.entries.iter().map(|entry| entry.cid);
        assert_eq!(got, asked.collect());
        assert!(incoming.next().now_or_never().is_none(), "a second stream");
    });
    tokio::select! {
        done = peer => done.unwrap(),
        never = run(&mut ours) => match never {},
    }
}

#[tokio::test]
async fn a_network_of_its_own_puts_its_prefix_before_the_ids() {
    let config = Config::builder().protocol_prefix("/mine".into());
    let behaviour = Behaviour::new(config.build().unwrap(), Arc::new(MemorySource::new()));
    let mut ours = Swarm::new_ephemeral_tokio(|_| behaviour);
    let prefixed = StreamProtocol::new("/mine/ipfs/bitswap/1.1.0");
    let (id, mut control, mut incoming) = foreign(&mut ours, prefixed.clone()).await;
    let block = Block::raw("ours alone");
    let served = block.clone();
    let us = *ours.local_peer_id();
    tokio::spawn(async move {
        // The usual id is none of this network's.
        assert!(control.open_stream(us, V1_2).await.is_err());
        let (_, mut stream) = incoming.next().await.unwrap();
        read(&mut stream).await.unwrap();
        let mut out = control.open_stream(us, prefixed).await.unwrap();
        let message = Message {
            blocks: vec![served],
            ..Message::default()
        };
        write(&mut out, &message, Version::V1_1).await;
        futures::future::pending::<()>().await;
    });
    want(&mut ours, id, std::slice::from_ref(&block));
    assert_eq!(receive(&mut ours, 1).await, [*block.cid()]);
}

#[tokio::test]
async fn an_identity_cid_is_answered_here_and_never_travels() {
    let (mut ours, _) = node(upgrade::Version::V1Lazy);
    let (id, _control, mut incoming) = foreign(&mut ours, V1_2).await;
    let hash = cid::multihash::Multihash::wrap(0, b"inside").unwrap();
    let identity = Block::new(cid::Cid::new_v1(0x55, hash), Bytes::from_static(b"inside"));
    want(&mut ours, id, &[identity.unwrap(), Block::raw("outside")]);
    assert_eq!(receive(&mut ours, 1).await[0].hash().code(), 0);
    let asked = async {
        let (_, mut stream) = incoming.next().await.unwrap();
        read(&mut stream).await.unwrap()
    };
    let message = tokio::select! {
        message = asked => message,
        never = run(&mut ours) => match never {},
    };
    assert_eq!(wanted(&message), [*Block::raw("outside").cid()]);
}

/// R13: whoever sends much that nobody wants is reported, and none of it is kept.
#[tokio::test]
async fn r13_a_peer_that_floods_us_with_unwanted_blocks_is_reported_once() {
    let (mut ours, _) = node(upgrade::Version::V1);
    let (id, mut control, _incoming) = foreign(&mut ours, V1_2).await;
    let us = *ours.local_peer_id();
    let flood = tokio::spawn(async move {
        let mut out = control.open_stream(us, V1_2).await.unwrap();
        for n in 0..24_u8 {
            let message = Message {
                blocks: vec![Block::raw(vec![n; 1024 * 1024])],
                ..Message::default()
            };
            write(&mut out, &message, Version::V1_2).await;
        }
        out
    });
    let found = violation(&mut ours).await;
    assert!(
        matches!(found, ProtocolViolation::UnwantedBlocks { bytes } if bytes > 16 * 1024 * 1024),
        "{found}"
    );
    let mut flood = flood;
    let _stream = loop {
        tokio::select! {
            stream = &mut flood => break stream.unwrap(),
            event = ours.select_next_some() => assert!(
                !matches!(event, SwarmEvent::Behaviour(_)),
                "{event:?}"
            ),
        }
    };
    let ledger = ours.behaviour().ledger(id).unwrap();
    assert_eq!(ledger.blocks_received, 0);
    assert!(ledger.unwanted_bytes > 16 * 1024 * 1024);
}

/// R12 on real streams: a frame that is no message costs its stream, an item that is nothing costs
/// itself.
#[tokio::test]
async fn r12_malformed_messages_cost_no_more_than_their_stream() {
    let (mut ours, source) = node(upgrade::Version::V1);
    let (id, mut control, mut incoming) = foreign(&mut ours, V1_2).await;
    let us = *ours.local_peer_id();
    let block = Block::raw("abc");
    source.insert(block.clone());
    // So that payload is read at all.
    want(&mut ours, id, &[Block::raw("never comes")]);
    let broken = [
        "020a05",
        "01ff",
        "0b1a0b0a040155122012036162",
        "012a",
        "010b",
    ];
    let count = broken.len();
    let peer = tokio::spawn(async move {
        for bytes in broken {
            let mut stream = control.open_stream(us, V1_2).await.unwrap();
            stream
                .write_all(&hex::decode(bytes).unwrap())
                .await
                .unwrap();
            stream.close().await.unwrap();
            // The end of the other direction: our node has given the stream up.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        // No wantlist; an empty CID; an unknown want type; a bad prefix; a good want.
        let good = format!("0a260a24{}", hex::encode(block.cid().to_bytes()));
        let unknown = format!("0a280a24{}2007", hex::encode(block.cid().to_bytes()));
        let entries = format!("0a020a00{unknown}{good}");
        let list = format!("0a{:02x}{entries}", entries.len() / 2);
        let payload = "1a060a01ff120161";
        let body = format!("{payload}{list}");
        let mut stream = control.open_stream(us, V1_2).await.unwrap();
        for body in ["2801".to_owned(), body] {
            let frame = format!("{:02x}{body}", body.len() / 2);
            stream
                .write_all(&hex::decode(frame).unwrap())
                .await
                .unwrap();
        }
        stream.flush().await.unwrap();
        let (_, mut answers) = incoming.next().await.unwrap();
        loop {
            let message = read(&mut answers).await.unwrap();
            if !message.blocks.is_empty() {
                return message.blocks;
            }
        }
    });
    let mut violations = 0;
    let mut peer = peer;
    let served = loop {
        tokio::select! {
            served = &mut peer => break served.unwrap(),
            event = ours.select_next_some() => {
                if let SwarmEvent::Behaviour(Event::ProtocolViolation { violation, .. }) = event {
                    assert!(matches!(violation, ProtocolViolation::Malformed(_)), "{violation}");
                    violations += 1;
                }
            }
        }
    };
    assert_eq!(served, [Block::raw("abc")]);
    assert_eq!(violations, count);
}

/// R14: a peer that refuses every third stream of ours, and drops the others after a message, gets
/// what it wants and gives what it has.
#[tokio::test]
async fn r14_streams_that_fail_to_open_lose_neither_wants_nor_answers() {
    let (mut ours, source) = node(upgrade::Version::V1Lazy);
    let (id, mut control, mut incoming) = foreign(&mut ours, V1_2).await;
    let us = *ours.local_peer_id();
    let theirs: Vec<Block> = (0..8_u8).map(|n| Block::raw(vec![n; 1000])).collect();
    let mine: Vec<Block> = (100..108_u8).map(|n| Block::raw(vec![n; 1000])).collect();
    mine.iter().for_each(|block| source.insert(block.clone()));
    let (served, asked) = (theirs.clone(), mine.clone());
    let peer = tokio::spawn(async move {
        let mut out = control.open_stream(us, V1_2).await.unwrap();
        let mut missing: Vec<Block> = asked;
        let (mut opened, mut answered) = (0, std::collections::BTreeSet::new());
        while !missing.is_empty() || answered.len() < served.len() {
            // Whatever was lost is asked for again.
            let entries = missing.iter().map(|block| Entry {
                cid: *block.cid(),
                priority: 1,
                cancel: false,
                want_type: WantType::Block,
                send_dont_have: false,
                descend: 0,
            });
            let wants = Message {
                entries: entries.collect(),
                ..Message::default()
            };
            write(&mut out, &wants, Version::V1_2).await;
            let (_, mut stream) = incoming.next().await.unwrap();
            opened += 1;
            if opened % 3 == 0 {
                continue;
            }
            let Some(message) = read(&mut stream).await else {
                continue;
            };
            missing.retain(|block| !message.blocks.contains(block));
            for cid in wanted(&message) {
                let block = served.iter().find(|block| *block.cid() == cid).unwrap();
                answered.insert(cid);
                let message = Message {
                    blocks: vec![block.clone()],
                    ..Message::default()
                };
                write(&mut out, &message, Version::V1_2).await;
            }
        }
        opened
    });
    for block in &theirs {
        want(&mut ours, id, std::slice::from_ref(block));
        assert_eq!(receive(&mut ours, 1).await, [*block.cid()]);
    }
    let opened = tokio::select! {
        opened = peer => opened.unwrap(),
        never = run(&mut ours) => match never {},
    };
    assert!(opened >= 3, "{opened}");
}

/// R9: peers that ask for everything and never read cost the others nothing but their share of the
/// pipelines.
#[tokio::test]
async fn r9_peers_that_never_read_do_not_stop_the_others() {
    let (mut ours, source) = node(upgrade::Version::V1Lazy);
    let blocks: Vec<Block> = (0..64_u8)
        .map(|n| Block::raw(vec![n; 256 * 1024]))
        .collect();
    blocks.iter().for_each(|block| source.insert(block.clone()));
    let entries = blocks.iter().map(|block| Entry {
        cid: *block.cid(),
        priority: i32::MAX,
        cancel: false,
        want_type: WantType::Block,
        send_dont_have: true,
        descend: 0,
    });
    let everything = Message {
        entries: entries.collect(),
        ..Message::default()
    };
    let us = *ours.local_peer_id();
    let (stuck, mut all_stuck) = mpsc::channel(64);
    for _ in 0..64 {
        let (_, mut control, mut incoming) = foreign(&mut ours, V1_2).await;
        let (everything, mut stuck) = (everything.clone(), stuck.clone());
        tokio::spawn(async move {
            let mut out = control.open_stream(us, V1_2).await.unwrap();
            write(&mut out, &everything, Version::V1_2).await;
            let held = incoming.next().await;
            stuck.send(()).await.unwrap();
            futures::future::pending::<()>().await;
            drop((held, out));
        });
    }
    let mut waiting = 64;
    while waiting > 0 {
        tokio::select! {
            _ = all_stuck.next() => waiting -= 1,
            _ = ours.select_next_some() => {}
        }
    }
    // One of our own nodes, which reads.
    let store = Arc::new(MemorySource::new());
    let mut client = Swarm::new_ephemeral_tokio(|_| Behaviour::new(Config::default(), store));
    client.listen().with_memory_addr_external().await;
    ours.connect(&mut client).await;
    want(&mut client, us, &blocks);
    tokio::select! {
        got = receive(&mut client, blocks.len()) => assert_eq!(got.len(), blocks.len()),
        never = run(&mut ours) => match never {},
    }
}

/// What waits behind other blocks for a peer that reads slowly is taken back when it is cancelled.
#[tokio::test]
async fn a_cancelled_block_that_is_not_written_does_not_travel() {
    // One fits into the window of a new yamux stream, the second does not.
    const BYTES: usize = 150_000;
    const SENTINEL: &str = "the last one";
    let (mut ours, source) = node(upgrade::Version::V1Lazy);
    let blocks: Vec<Block> = (0..20_u8).map(|n| Block::raw(vec![n; BYTES])).collect();
    let last = Block::raw(SENTINEL);
    for block in blocks.iter().chain([&last]) {
        source.insert(block.clone());
    }
    let us = *ours.local_peer_id();
    let mut swarm = Swarm::new_ephemeral_tokio(|_| libp2p_stream::Behaviour::new());
    let mut control = swarm.behaviour().new_control();
    let mut incoming = control.accept(V1_2).unwrap();
    let (address, _) = swarm.listen().with_memory_addr_external().await;
    tokio::spawn(swarm.loop_on_next());
    ours.dial(address).unwrap();
    let connection = loop {
        if let SwarmEvent::ConnectionEstablished { connection_id, .. } =
            ours.select_next_some().await
        {
            break connection_id;
        }
    };

    let entry = |block: &Block, cancel| Entry {
        cid: *block.cid(),
        priority: 1,
        cancel,
        want_type: WantType::Block,
        send_dont_have: false,
        descend: 0,
    };
    let wants = Message {
        entries: blocks.iter().map(|block| entry(block, false)).collect(),
        ..Message::default()
    };
    let mut cancels = Message {
        entries: blocks.iter().map(|block| entry(block, true)).collect(),
        ..Message::default()
    };
    cancels.entries.push(entry(&last, false));
    let (cancel, cancelled) = oneshot::channel();
    let (read_on, reading) = oneshot::channel();
    let peer = tokio::spawn(async move {
        let mut out = control.open_stream(us, V1_2).await.unwrap();
        write(&mut out, &wants, Version::V1_2).await;
        let (_, mut answers) = incoming.next().await.unwrap();
        cancelled.await.unwrap();
        write(&mut out, &cancels, Version::V1_2).await;
        reading.await.unwrap();
        let mut got = Vec::new();
        while !got.contains(&last) {
            got.extend(read(&mut answers).await.unwrap().blocks);
        }
        got.len() - 1
    });
    let serving = |ours: &Swarm<Behaviour>| ours.behaviour().transfers_on(connection).serving_bytes;
    let queued = async {
        while serving(&ours) < 3 * BYTES as u64 {
            let _ = futures::poll!(ours.select_next_some());
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), queued)
        .await
        .expect("three blocks are queued");
    cancel.send(()).unwrap();
    let one_block = (BYTES + SENTINEL.len()) as u64;
    let taken_back = async {
        while serving(&ours) > one_block {
            let _ = futures::poll!(ours.select_next_some());
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), taken_back)
        .await
        .expect("all but the one being written are taken back");
    read_on.send(()).unwrap();
    tokio::select! {
        got = peer => assert_eq!(got.unwrap(), 2, "the window's, and the one being written"),
        never = run(&mut ours) => match never {},
    }
}

/// Payload that comes while nothing is wanted is passed over, also when it is announced as huge and
/// never ends: other messages of the peer are read, and wants are answered later.
#[tokio::test]
async fn a_peer_from_which_nothing_is_wanted_cannot_fill_our_memory() {
    let (mut ours, _) = node(upgrade::Version::V1);
    let (id, mut control, mut incoming) = foreign(&mut ours, V1_2).await;
    let us = *ours.local_peer_id();
    let block = Block::raw("wanted later");
    let served = block.clone();
    let (sent, all_sent) = oneshot::channel();
    tokio::spawn(async move {
        let mut streams = Vec::new();
        // 60 × 4 MiB without their last byte: four times the budget of all peers together.
        for n in 0..60_u8 {
            let message = Message {
                blocks: vec![Block::raw(vec![n; 4 * 1024 * 1024 - 64])],
                ..Message::default()
            };
            let mut frame = message.encode(Version::V1_2).concat();
            frame.pop();
            let mut stream = control.open_stream(us, V1_2).await.unwrap();
            stream.write_all(&frame).await.unwrap();
            stream.flush().await.unwrap();
            streams.push(stream);
        }
        sent.send(()).unwrap();
        let (_, mut asked) = incoming.next().await.unwrap();
        read(&mut asked).await.unwrap();
        let mut out = control.open_stream(us, V1_2).await.unwrap();
        let message = Message {
            blocks: vec![served],
            ..Message::default()
        };
        write(&mut out, &message, Version::V1_2).await;
        futures::future::pending::<()>().await;
        drop(streams);
    });
    tokio::select! {
        done = all_sent => done.unwrap(),
        never = run(&mut ours) => match never {},
    }
    want(&mut ours, id, std::slice::from_ref(&block));
    assert_eq!(receive(&mut ours, 1).await, [*block.cid()]);
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

fn ask(block: &Block) -> Message {
    Message {
        entries: vec![Entry {
            cid: *block.cid(),
            priority: 1,
            cancel: false,
            want_type: WantType::Block,
            send_dont_have: true,
            descend: 0,
        }],
        ..Message::default()
    }
}

/// Runs `ours` until it tells of a silent peer: who, and whether it owes something.
async fn silent(ours: &mut Swarm<Behaviour>) -> (PeerId, bool) {
    let work = async {
        loop {
            if let SwarmEvent::Behaviour(Event::PeerSilent { peer, owes, .. }) =
                ours.select_next_some().await
            {
                return (peer, owes);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), work)
        .await
        .expect("within 20 s")
}

#[tokio::test]
async fn a_peer_that_owes_a_block_and_sends_nothing_is_told_again_and_again() {
    let (mut ours, _) = node(upgrade::Version::V1Lazy);
    let (id, mut control, mut incoming) = foreign(&mut ours, V1_2).await;
    let block = Block::raw("owed");
    let us = *ours.local_peer_id();
    let owed = block.clone();
    let (pay, paid) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let (_, mut stream) = incoming.next().await.unwrap();
        assert_eq!(wanted(&read(&mut stream).await.unwrap()), [*owed.cid()]);
        paid.await.unwrap();
        let mut out = control.open_stream(us, V1_2).await.unwrap();
        let message = Message {
            blocks: vec![owed],
            ..Message::default()
        };
        write(&mut out, &message, Version::V1_2).await;
        // Whatever comes after it.
        while read(&mut stream).await.is_some() {}
    });
    want(&mut ours, id, std::slice::from_ref(&block));
    assert_eq!(silent(&mut ours).await, (id, true));
    assert_eq!(silent(&mut ours).await, (id, true));
    // That it was told changes nothing for the want.
    pay.send(()).unwrap();
    assert_eq!(receive(&mut ours, 1).await, [*block.cid()]);
}

/// What it owes waits behind what is on its way to it: only that it takes nothing says something.
#[tokio::test]
async fn a_peer_that_takes_nothing_is_told_as_such_even_if_it_owes_something() {
    let (mut ours, source) = node(upgrade::Version::V1Lazy);
    let (id, mut control, mut incoming) = foreign(&mut ours, V1_2).await;
    // Larger than what Yamux lets wait unread.
    let large = Block::raw(vec![7; 1 << 20]);
    source.insert(large.clone());
    let us = *ours.local_peer_id();
    let (asked, wants) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let mut out = control.open_stream(us, V1_2).await.unwrap();
        write(&mut out, &ask(&large), Version::V1_2).await;
        let (_, stream) = incoming.next().await.unwrap();
        asked.send(()).unwrap();
        futures::future::pending::<()>().await;
        drop((out, stream));
    });
    // The stream to the peer is open, and the block in it.
    tokio::select! {
        opened = wants => opened.unwrap(),
        never = run(&mut ours) => match never {},
    }
    want(&mut ours, id, &[Block::raw("owed")]);
    assert_eq!(silent(&mut ours).await, (id, false));
    // What it owes would be told within a second of the other.
    let owes = tokio::time::timeout(Duration::from_millis(1500), silent(&mut ours));
    assert_eq!(owes.await.ok(), None);
}
