//! Messages to and from bytes: 1 MiB of blocks of each size (decoding hashes them), and a wantlist.

#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::hint::black_box;

use anypath_bitswap::{
    Block,
    message::{Entry, Message, Version, WantType, decode},
};
use bytes::{Bytes, BytesMut};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn frame(message: &Message) -> Bytes {
    let mut frame = BytesMut::new();
    for chunk in message.encode(Version::V1_2) {
        frame.extend_from_slice(&chunk);
    }
    // The length prefix is the transport's business.
    let prefix = frame.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
    frame.freeze().slice(prefix..)
}

fn codec(c: &mut Criterion) {
    let mut group = c.benchmark_group("blocks");
    for size in [8 * 1024, 256 * 1024, 1024 * 1024] {
        let blocks = (0..1024 * 1024 / size)
            .map(|i| Block::raw(vec![i as u8; size]))
            .collect();
        let message = Message {
            blocks,
            ..Message::default()
        };
        let body = frame(&message);
        group.throughput(Throughput::Bytes(1024 * 1024));
        group.bench_with_input(BenchmarkId::new("encode", size), &message, |b, message| {
            b.iter(|| black_box(message.encode(Version::V1_2)));
        });
        group.bench_with_input(
            BenchmarkId::new("decode_and_hash", size),
            &body,
            |b, body| {
                b.iter(|| decode(black_box(body.clone()), 8192).unwrap());
            },
        );
    }
    group.finish();

    let entries = (0..1000_u32)
        .map(|i| Entry {
            cid: *Block::raw(i.to_le_bytes().to_vec()).cid(),
            priority: 1,
            cancel: false,
            want_type: WantType::Block,
            send_dont_have: true,
            descend: 0,
        })
        .collect();
    let message = Message {
        entries,
        ..Message::default()
    };
    let body = frame(&message);
    let mut group = c.benchmark_group("wantlist");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("encode", |b| {
        b.iter(|| black_box(message.encode(Version::V1_2)))
    });
    group.bench_function("decode", |b| {
        b.iter(|| decode(black_box(body.clone()), 8192).unwrap())
    });
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
