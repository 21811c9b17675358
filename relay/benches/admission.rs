//! What a decision costs, by how many reservations there are: with 10,000 of them at most twice as much as with 10.
//!
//! `cargo bench -p anypath-relay --bench admission`

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a bench may panic, and has a clock"
)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use anypath_relay::server::{Config, bench::Admission};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use libp2p_identity::PeerId;

fn relay(held: usize) -> Admission {
    let config = Config::builder()
        .max_reservations(held + 1)
        .rate_limits(false)
        .build()
        .unwrap();
    Admission::new(config, held, PeerId::random, Instant::now())
}

fn admission(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("admission");
    for held in [10, 10_000] {
        let mut relay = relay(held);
        group.bench_function(BenchmarkId::new("newcomer", held), |bench| {
            bench.iter(|| assert!(black_box(relay.newcomer())));
        });
        let mut index = 0;
        group.bench_function(BenchmarkId::new("renewal", held), |bench| {
            bench.iter(|| {
                index += 7919;
                assert!(black_box(relay.renewal(index)));
            });
        });
    }
    group.finish();
    for (name, ratio) in [
        ("newcomer", ratio(|relay, _| relay.newcomer())),
        ("renewal", ratio(Admission::renewal)),
    ] {
        let met = if ratio <= 2.0 {
            "bar met"
        } else {
            "bar MISSED"
        };
        println!("admission.{name}: 10,000 reservations / 10 = {ratio:.2} (at most 2: {met})");
        assert!(ratio <= 6.0, "admission is not constant in time");
    }
}

/// Median of interleaved rounds.
fn ratio(ask: impl Fn(&mut Admission, usize) -> bool) -> f64 {
    const ASKED: usize = 20_000;
    let (mut few, mut many) = (relay(10), relay(10_000));
    let time = |relay: &mut Admission| {
        let began = Instant::now();
        for index in 0..ASKED {
            assert!(black_box(ask(relay, index * 7919)));
        }
        began.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
    };
    let mut ratios: Vec<f64> = (0..15)
        .map(|_| 1.0 / time(&mut few) * time(&mut many))
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or_default()
}

criterion_group!(benches, admission);
criterion_main!(benches);
