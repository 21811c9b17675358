//! What the lab's legs cost per packet, besides the system calls.

use anypath_interop_tests::lab::{Leg, Line, now};
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Duration;

fn admit(criterion: &mut Criterion) {
    let plain = Leg::default();
    let rough = Leg {
        jitter: Duration::from_millis(5),
        loss: 0.01,
        rate: Some(1_000_000_000),
        ..Leg::default()
    };
    for (name, leg) in [("delay alone", plain), ("jitter, loss and rate", rough)] {
        let start = now();
        let mut line = Line::new(leg, 0, start);
        let mut packet = 0;
        criterion.bench_function(&format!("a packet of 1500 bytes, {name}"), |bencher| {
            bencher.iter(|| {
                packet += 1;
                line.admit(black_box(1500), start + Duration::from_micros(12) * packet)
            });
        });
    }
}

criterion_group!(benches, admit);
criterion_main!(benches);
