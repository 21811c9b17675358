use std::collections::{BTreeMap, HashMap};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

const CAPACITY: usize = 1000;
const ACCESSES: usize = 150_000;

/// Hit ratio in percent.
fn ours(keys: &[u64]) -> f64 {
    let mut model = Model::new(CAPACITY as u64, 1);
    let hits = keys.iter().filter(|key| {
        let is_hit = model.access(**key, 1);
        assert!(model.weight() <= CAPACITY as u64);
        is_hit
    });
    percent(hits.count(), keys)
}

fn percent(hits: usize, keys: &[u64]) -> f64 {
    hits as f64 * 100.0 / keys.len() as f64
}

fn lru(keys: &[u64]) -> f64 {
    let mut order = BTreeMap::new();
    let mut last = HashMap::new();
    let mut hits = 0;
    for (now, key) in keys.iter().enumerate() {
        match last.insert(*key, now) {
            Some(before) => {
                hits += 1;
                order.remove(&before);
            }
            None if last.len() > CAPACITY => {
                let (_, oldest) = order.pop_first().unwrap();
                last.remove(&oldest);
            }
            None => {}
        }
        order.insert(now, *key);
    }
    percent(hits, keys)
}

/// Belady's: evicts what is read again last. No policy can do better.
fn optimum(keys: &[u64]) -> f64 {
    let mut next = vec![usize::MAX; keys.len()];
    let mut seen = HashMap::new();
    for (at, key) in keys.iter().enumerate().rev() {
        next[at] = seen.insert(*key, at).unwrap_or(usize::MAX - at);
    }
    let mut held: HashMap<u64, usize> = HashMap::new();
    let mut by_next = BTreeMap::new();
    let mut hits = 0;
    for (at, key) in keys.iter().enumerate() {
        match held.insert(*key, next[at]) {
            Some(before) => {
                hits += 1;
                by_next.remove(&before);
            }
            None if held.len() > CAPACITY => {
                let (_, last) = by_next.pop_last().unwrap();
                held.remove(&last);
            }
            None => {}
        }
        by_next.insert(next[at], *key);
    }
    percent(hits, keys)
}

/// Ranks by a Zipf law.
fn zipf(keys: usize, exponent: f64) -> impl FnMut(&mut StdRng) -> u64 {
    let mut sum = 0.0;
    let law: Vec<f64> = (1..=keys)
        .map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        })
        .collect();
    move |rng| {
        let draw = rng.random_range(0.0..sum);
        law.partition_point(|below| *below < draw) as u64
    }
}

/// How the policy does on a load: at least `over_lru` points above LRU, and this share of what is possible.
fn check(name: &str, keys: &[u64], over_lru: f64, of_optimum: f64) {
    let (ours, lru, optimum) = (ours(keys), lru(keys), optimum(keys));
    println!("{name}: {ours:.1} %, LRU {lru:.1} %, optimum {optimum:.1} %");
    assert!(ours <= optimum + 1e-9, "{name}: better than possible");
    assert!(ours >= lru + over_lru, "{name}: {ours} against LRU's {lru}");
    assert!(ours >= optimum * of_optimum, "{name}: {ours} of {optimum}");
}

#[test]
fn zipf_loads_are_near_the_optimum() {
    for (exponent, over_lru) in [(0.7, 8.0), (0.9, 7.0), (1.1, 3.0)] {
        let mut law = zipf(20_000, exponent);
        let mut rng = StdRng::seed_from_u64(1);
        let keys: Vec<u64> = (0..ACCESSES).map(|_| law(&mut rng)).collect();
        check(&format!("zipf {exponent}"), &keys, over_lru, 0.7);
    }
}

#[test]
fn a_loop_larger_than_the_cache_still_hits() {
    for (length, of_optimum) in [(1050, 0.85), (1500, 0.85), (3000, 0.75)] {
        let keys: Vec<u64> = (0..ACCESSES).map(|at| (at % length) as u64).collect();
        check(&format!("loop of {length}"), &keys, 0.0, of_optimum);
    }
}

#[test]
fn scans_pass_through() {
    let mut law = zipf(5000, 0.9);
    let mut rng = StdRng::seed_from_u64(2);
    let mut fresh = 1_000_000;
    let mut keys = Vec::new();
    while keys.len() < ACCESSES {
        keys.extend((0..10_000).map(|_| law(&mut rng)));
        keys.extend(fresh..fresh + 3000);
        fresh += 3000;
    }
    check(
        "zipf 0.9 with scans of three times the capacity",
        &keys,
        4.0,
        0.8,
    );
}

#[test]
fn what_is_read_once_costs_little() {
    let mut law = zipf(20_000, 0.9);
    let mut rng = StdRng::seed_from_u64(3);
    let keys: Vec<u64> = (0..ACCESSES as u64)
        .map(|at| {
            if at % 2 == 0 {
                1_000_000 + at
            } else {
                law(&mut rng)
            }
        })
        .collect();
    check("zipf 0.9, half of it read once", &keys, 4.0, 0.7);
}

#[test]
fn what_is_popular_may_drift() {
    let mut law = zipf(20_000, 0.9);
    let mut rng = StdRng::seed_from_u64(4);
    let slow: Vec<u64> = (0..ACCESSES)
        .map(|at| law(&mut rng) + at as u64 / 50)
        .collect();
    check("zipf 0.9, drifting", &slow, 0.0, 0.6);
    let sudden: Vec<u64> = (0..ACCESSES)
        .map(|at| law(&mut rng) + 1_000_000 * (at as u64 / 50_000))
        .collect();
    check(
        "zipf 0.9, other keys every 50,000 accesses",
        &sudden,
        2.0,
        0.65,
    );
}

#[test]
fn recency_alone_is_followed_where_only_recency_counts() {
    // Each key is read five times within 600 accesses and never again.
    let mut rng = StdRng::seed_from_u64(5);
    let keys: Vec<u64> = (0..ACCESSES as u64)
        .map(|at| (at / 5).saturating_sub(rng.random_range(0..120)))
        .collect();
    check("recency", &keys, -1.0, 0.9);
}

#[test]
fn a_seed_reproduces_every_decision() {
    let mut law = zipf(20_000, 0.9);
    let mut rng = StdRng::seed_from_u64(6);
    let keys: Vec<u64> = (0..50_000).map(|_| law(&mut rng)).collect();
    let run = |seed| -> Vec<bool> {
        let mut model = Model::new(CAPACITY as u64, seed);
        keys.iter().map(|key| model.access(*key, 1)).collect()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
