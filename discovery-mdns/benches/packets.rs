//! What a packet costs: read, answered, learned from, and thrown away.

#![expect(clippy::expect_used, reason = "a bench")]

use std::{
    hint::black_box,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anypath_discovery_mdns::{
    Config, Family,
    core::{Core, LinkId, Network, Output},
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use libp2p_identity::PeerId;

const LINK: LinkId = LinkId {
    interface: 2,
    family: Family::V4,
};

#[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
fn origin() -> Instant {
    Instant::now()
}

fn source(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 5353))
}

/// A host with four addresses on the link, and the packets that it sends in its first two seconds.
fn host(number: u8, now: Instant) -> (Core, Vec<Vec<u8>>) {
    let mut core = Core::new(PeerId::random(), Config::default(), [number; 32]);
    let network = Network {
        address: [10, 0, 0, number].into(),
        prefix: 24,
    };
    core.on_link_up(LINK, vec![network], false, now);
    for port in 1..=4 {
        let address = format!("/ip4/10.0.0.{number}/tcp/{port}");
        core.on_listening(&address.parse().expect("an address"), now);
    }
    let mut packets = Vec::new();
    while let Some(at) = core
        .poll_timeout()
        .filter(|at| *at < now + Duration::from_secs(2))
    {
        core.handle_timeout(at);
        packets.extend(outputs(&mut core));
    }
    (core, packets)
}

fn outputs(core: &mut Core) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| core.poll_output())
        .filter_map(|output| match output {
            Output::Send { packet, .. } => Some(packet),
            _ => None,
        })
        .collect()
}

fn response(records: u16) -> Vec<u8> {
    let [high, low] = records.to_be_bytes();
    vec![0, 0, 0x84, 0, 0, 0, high, low, 0, 0, 0, 0]
}

/// A record whose data is a chain of pointers, and 80 whose names lead through all of it.
fn chain_of_pointers() -> Vec<u8> {
    const LINKS: u16 = 4_000;
    let mut packet = response(81);
    packet.extend([0, 0, 16, 0, 1, 0, 0, 0, 9]);
    packet.extend((2 * LINKS + 1).to_be_bytes());
    let end = 23;
    packet.push(0);
    for link in 0..LINKS {
        let to = if link == 0 {
            end
        } else {
            end + 1 + 2 * (link - 1)
        };
        packet.extend((0xc000 | to).to_be_bytes());
    }
    for _ in 0..80 {
        packet.extend((0xc000 | (end + 1 + 2 * (LINKS - 1))).to_be_bytes());
        packet.extend([0, 16, 0, 1, 0, 0, 0, 9, 0, 0]);
    }
    packet
}

/// Pointers of the service to 128 names, and texts of 128 others.
fn names_of_strangers() -> Vec<u8> {
    let mut packet = response(256);
    for number in 0..128u8 {
        if number == 0 {
            packet.extend(b"\x04_p2p\x04_udp\x05local\0");
        } else {
            packet.extend([0xc0, 12]);
        }
        packet.extend([
            0, 12, 0, 1, 0, 0, 1, 44, 0, 6, 4, b'a', b'b', b'c', number, 0,
        ]);
    }
    for number in 0..128u8 {
        packet.extend([
            4, b'x', b'y', b'z', number, 0, 0, 16, 0, 1, 0, 0, 1, 44, 0, 0,
        ]);
    }
    packet
}

fn packets(c: &mut Criterion) {
    let now = origin();
    let is_query = |packet: &&Vec<u8>| packet.get(2).is_some_and(|flags| flags & 0x80 == 0);
    let (_, sent) = host(1, now);
    let query = sent.iter().find(is_query).expect("a query").clone();
    let announcements: Vec<Vec<u8>> = (2..=201)
        .filter_map(|number| host(number, now).1.into_iter().find(|it| !is_query(&it)))
        .collect();

    let mut group = c.benchmark_group("packet");
    group.throughput(Throughput::Elements(1));
    let (mut core, _) = host(250, now);
    let mut at = now + Duration::from_secs(10);
    group.bench_function("query, answered", |b| {
        b.iter(|| {
            at += Duration::from_secs(2);
            core.on_packet(LINK, source(1), &query, at);
            core.handle_timeout(at + Duration::from_millis(200));
            black_box(outputs(&mut core)).len()
        });
    });
    let (mut core, _) = host(250, now);
    let first = announcements.first().expect("an announcement");
    group.bench_function("announcement of a known peer, 4 addresses", |b| {
        b.iter(|| {
            core.on_packet(LINK, source(2), first, now);
            black_box(outputs(&mut core)).len()
        });
    });
    let odd = [0xc0, 12].repeat(700);
    group.bench_function("nonsense, 1400 bytes", |b| {
        b.iter(|| core.on_packet(LINK, source(2), black_box(&odd), now));
    });
    let chain = chain_of_pointers();
    group.bench_function(
        "hostile: 9,000 bytes, each name through 4,000 pointers",
        |b| {
            b.iter(|| core.on_packet(LINK, source(2), black_box(&chain), now));
        },
    );
    let strangers = names_of_strangers();
    group.bench_function("hostile: 256 records of as many names", |b| {
        b.iter(|| {
            core.on_packet(LINK, source(2), black_box(&strangers), now);
            black_box(outputs(&mut core)).len()
        });
    });
    group.finish();

    let mut group = c.benchmark_group("network");
    group.throughput(Throughput::Elements(announcements.len() as u64));
    group.bench_function("200 newcomers, 4 addresses each", |b| {
        b.iter_batched(
            || host(250, now).0,
            |mut core| {
                for (packet, number) in announcements.iter().zip(2..) {
                    core.on_packet(LINK, source(number), packet, now);
                }
                black_box(outputs(&mut core)).len();
                core
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, packets);
criterion_main!(benches);
