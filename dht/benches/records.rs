//! The provider store of a busy server: records of strangers at its capacity, and the look-up of one.

#![expect(clippy::expect_used, reason = "a bench")]

use std::{hint::black_box, time::Duration};

use anypath_dht::{Config, ConfigBuilder};
use criterion::{Criterion, criterion_group, criterion_main};
use libp2p_identity::PeerId;
use libp2p_kad::{ProviderRecord, RecordKey};
use web_time::Instant;

// The store is private to the crate, so the bench compiles it once more.
#[path = "../src/store/providers.rs"]
#[expect(
    dead_code,
    unused_imports,
    reason = "the bench uses a part of it, and none of its tests"
)]
mod providers;

/// What the store's own module gives it.
const MAX_KEY_BYTES: usize = 80;

const KEYS: usize = 65_536;

fn key(n: usize) -> RecordKey {
    let mut bytes = [0; 34];
    bytes[..10].copy_from_slice(&[0x12, 0x20, 1, 2, 3, 4, 5, 6, 7, 8]);
    bytes[26..].copy_from_slice(&(n as u64).to_be_bytes());
    RecordKey::new(&bytes)
}

fn records(c: &mut Criterion) {
    #[expect(clippy::disallowed_methods, reason = "a point to count from")]
    let start = Instant::now();
    let config = Config::builder()
        .max_remote_keys(KEYS)
        .build()
        .expect("valid");
    let mut store = providers::Providers::new(PeerId::random(), &config);
    let provider = PeerId::random();
    let mut next = 0;
    let mut add = |store: &mut providers::Providers| {
        let expires = Some(start + Duration::from_millis(next as u64));
        let record = ProviderRecord {
            key: key(next),
            provider,
            expires,
            addresses: Vec::new(),
        };
        next += 1;
        store.add(record)
    };
    for _ in 0..KEYS {
        add(&mut store).expect("room");
    }
    let mut group = c.benchmark_group("store of 65536 keys");
    group.bench_function("add to the full store", |b| {
        b.iter(|| black_box(add(&mut store)))
    });
    let known = store.next_expiry().is_some();
    assert!(known, "the store must be full");
    group.bench_function("providers of a key", |b| {
        b.iter(|| black_box(store.of(key(7).as_ref())))
    });
    group.finish();
}

criterion_group!(benches, records);
criterion_main!(benches);
