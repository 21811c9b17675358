use std::{
    collections::BTreeMap,
    hash::{BuildHasherDefault, DefaultHasher},
    sync::atomic::AtomicBool,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

type Fixed = BuildHasherDefault<DefaultHasher>;

fn key(n: u32) -> Key {
    let mut digest = [0; 32];
    digest[..4].copy_from_slice(&n.to_be_bytes());
    Key { digest, hash: 1 }
}

/// A block that says whose it is.
fn block(n: u32, len: usize) -> Bytes {
    let mut data = vec![n as u8; len.max(4)];
    data[..4].copy_from_slice(&n.to_be_bytes());
    Bytes::from(data)
}

#[test]
fn never_holds_more_than_its_capacity_with_all_bookkeeping() {
    for capacity in [3000, 40_000, 700_000, 3 << 20, 30 << 20] {
        let memory = Memory::with_hasher(capacity, Fixed::default());
        let mut rng = StdRng::seed_from_u64(capacity);
        for n in 0..6000u32 {
            let len = 1 << rng.random_range(2..18);
            memory.insert(key(n % 3000), block(n, len), 1.0, 0);
            memory.get(&key(rng.random_range(0..3000)), 0);
            let (_, bytes) = memory.usage();
            assert!(bytes <= capacity, "{bytes} of {capacity}");
        }
        assert!(memory.usage().0 > 0 || capacity < 20_000);
        for smaller in [capacity / 2, 5000, 100, 0] {
            memory.set_capacity(smaller);
            assert!(memory.usage().1 <= smaller, "{smaller}");
        }
        memory.set_capacity(capacity);
        memory.insert(key(1), block(1, 100), 1.0, 0);
        assert!(memory.usage().1 <= capacity);
    }
}

#[test]
fn most_of_the_capacity_holds_blocks() {
    for len in [1000, 16_000, 256 * 1024] {
        let memory = Memory::with_hasher(100 << 20, Fixed::default());
        for n in 0..(200 << 20) / len as u32 {
            memory.insert(key(n), block(n, len), 1.0, 0);
        }
        let (blocks, bytes) = memory.usage();
        let payload = blocks * len as u64;
        let share = payload as f64 / memory.capacity() as f64;
        println!(
            "blocks of {len}: {:.1} % of the tier is payload",
            share * 100.0
        );
        assert!(bytes <= memory.capacity());
        assert!(
            share > if len < 2000 { 0.75 } else { 0.85 },
            "{len}: {share}"
        );
    }
}

#[test]
fn what_is_over_is_not_returned() {
    let memory = Memory::new(1 << 20);
    memory.insert(key(1), block(1, 100), 1.0, 5000);
    assert!(memory.get(&key(1), 4999).is_some());
    assert!(memory.get(&key(1), 5000).is_none());
    assert_eq!(memory.usage().0, 0);
    memory.insert(key(2), block(2, 100), 1.0, 5000);
    memory.set_expiry(&key(2), 0);
    assert!(memory.get(&key(2), 5000).is_some());
}

#[test]
fn a_small_block_does_not_pin_the_record_that_it_was_read_in() {
    let memory = Memory::new(8 << 20);
    let record = Bytes::from(vec![1; 60 * 1024]);
    memory.offer(key(1), &record.slice(100..200), 1.0, 0);
    assert!(record.is_unique());
}

#[test]
fn the_same_accesses_leave_the_same_blocks() {
    let run = || {
        let memory = Memory::with_hasher(4 << 20, Fixed::default());
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..30_000 {
            let n = (rng.random::<f64>().powi(4) * 4000.0) as u32;
            if memory.get(&key(n), 0).is_none() {
                memory.insert(key(n), block(n, 4000), 1.0, 0);
            }
        }
        let kept: Vec<u32> = (0..4000).filter(|n| memory.contains(&key(*n))).collect();
        (kept, memory.policy_stats())
    };
    let (first, second) = (run(), run());
    assert!(first.0.len() > 500);
    assert_eq!(first, second);
}

#[test]
fn threads_see_each_block_as_it_was_put_or_not_at_all() {
    const KEYS: u32 = 2000;
    let memory = Memory::new(30 << 20);
    let failed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (memory, failed) = (&memory, &failed);
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(thread);
                for step in 0..20_000 {
                    let n = rng.random_range(0..KEYS);
                    let len = 4 + (n as usize * 37) % 60_000;
                    match rng.random_range(0..10) {
                        0..5 => match memory.get(&key(n), 0) {
                            Some(data) if data != block(n, len) => failed.store(true, Relaxed),
                            _ => {}
                        },
                        5..9 => memory.insert(key(n), block(n, len), 1.0, 0),
                        _ => memory.remove(&key(n)),
                    }
                    if step % 1000 == 0 && thread == 0 {
                        memory.set_capacity(if step % 2000 == 0 { 10 << 20 } else { 30 << 20 });
                    }
                }
            });
        }
    });
    assert!(!failed.load(Relaxed));
    memory.set_capacity(20 << 20);
    assert!(memory.usage().1 <= 20 << 20);
    let (blocks, _) = memory.usage();
    let there = (0..KEYS).filter(|n| memory.get(&key(*n), 0).is_some());
    assert_eq!(there.count() as u64, blocks);
}

/// Reads by a Zipf law of exponent 0.9; keys above `shift`.
fn zipf(rng: &mut StdRng, keys: u32) -> u32 {
    // Inverse of the integral: near enough to the law.
    let top = f64::from(keys).powf(0.1) - 1.0;
    ((1.0 + rng.random::<f64>() * top).powi(10) - 1.0) as u32
}

#[test]
fn the_sharded_tier_hits_as_often_as_one_cache() {
    const LEN: usize = 8 * 1024;
    let capacity = 100u64 << 20;
    let memory = Memory::with_hasher(capacity, Fixed::default());
    let mut model = Model::new(capacity, 1);
    let mut rng = StdRng::seed_from_u64(3);
    let data = Bytes::from(vec![0; LEN]);
    let (mut hits, mut model_hits) = (0, 0);
    for _ in 0..400_000 {
        let n = zipf(&mut rng, 100_000);
        if memory.get(&key(n), 0).is_some() {
            hits += 1;
        } else {
            memory.insert(key(n), data.clone(), 1.0, 0);
        }
        model_hits += i32::from(model.access(u64::from(n), LEN as u32 + 256));
    }
    println!("{hits} hits, {model_hits} in one cache without bookkeeping");
    assert!(f64::from(hits) > f64::from(model_hits) * 0.97);
}

#[test]
fn coherent_with_a_map_where_everything_fits() {
    let memory = Memory::new(64 << 20);
    let mut map = BTreeMap::new();
    let mut rng = StdRng::seed_from_u64(5);
    for _ in 0..20_000 {
        let n = rng.random_range(0..500);
        match rng.random_range(0..3) {
            0 => {
                let data = block(n, rng.random_range(4..9000));
                memory.insert(key(n), data.clone(), 1.0, 0);
                map.entry(n).or_insert(data);
            }
            1 => assert_eq!(memory.get(&key(n), 0).as_ref(), map.get(&n)),
            _ => {
                memory.remove(&key(n));
                map.remove(&n);
            }
        }
    }
    assert_eq!(memory.usage().0, map.len() as u64);
}
