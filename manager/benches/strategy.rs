//! What the connection strategy costs: it runs on the driver, between every two events of the swarm.
#![expect(clippy::expect_used, reason = "a benchmark fails by panicking")]

use std::{hint::black_box, time::Duration};

use anypath::{
    libp2p::{Multiaddr, PeerId, swarm::ConnectionId},
    strategy::{Config, Established, Output, Path, Purpose, Strategy},
};
use criterion::{Criterion, criterion_group, criterion_main};
use web_time::Instant;

#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
fn origin() -> Instant {
    Instant::now()
}

/// A node with `peers` connected peers.
fn connected(peers: usize, now: Instant) -> Strategy {
    let mut strategy = Strategy::new(PeerId::random(), Config::default(), [7; 32]);
    for n in 0..peers {
        strategy.on_established(
            Established {
                connection: ConnectionId::new_unchecked(n),
                peer: PeerId::random(),
                path: Path::Direct,
                quic: true,
                dial: None,
            },
            now,
        );
    }
    while strategy.poll_output().is_some() {}
    strategy
}

fn upgrade(criterion: &mut Criterion) {
    let now = origin();
    let address: Multiaddr = "/ip4/192.0.2.1/udp/9100/quic-v1"
        .parse()
        .expect("a multiaddr");
    let mut group = criterion.benchmark_group("strategy");
    for peers in [0, 1000] {
        let mut strategy = connected(peers, now);
        let target = PeerId::random();
        group.bench_function(
            format!("dial_relay_direct_close/{peers}_peers"),
            |bencher| {
                let mut next = 1_000_000;
                bencher.iter(|| {
                    strategy.want(target, [address.clone()], Purpose::Session, now);
                    let mut connections = Vec::new();
                    for path in [Path::Relayed, Path::Direct] {
                        let connection = ConnectionId::new_unchecked(next);
                        next += 1;
                        let quic = path == Path::Direct;
                        let established = Established {
                            connection,
                            peer: target,
                            path,
                            quic,
                            dial: None,
                        };
                        strategy.on_established(established, now);
                        connections.push(connection);
                    }
                    let later = now + Duration::from_secs(2);
                    for connection in strategy.contested() {
                        strategy.on_activity(connection, false, later);
                    }
                    strategy.handle_timeout(later);
                    for connection in connections {
                        strategy.on_closed(connection, later);
                    }
                    strategy.release(target, Purpose::Session);
                    while let Some(output) = strategy.poll_output() {
                        if let Output::Dial { dial, .. } = output {
                            strategy.on_dial_failed(dial, later);
                        }
                    }
                });
            },
        );
        group.bench_function(format!("poll_timeout/{peers}_peers"), |bencher| {
            bencher.iter(|| black_box(&strategy).poll_timeout());
        });
    }
    group.finish();
}

criterion_group!(benches, upgrade);
criterion_main!(benches);
