use proptest::prelude::*;
use std::collections::BTreeMap;

use super::*;
use crate::memory::tuner::DEFAULT;

fn hash(key: u32) -> u64 {
    u64::from(key).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn insert(cache: &mut Cache<u32, u32>, key: u32, weight: u32) -> Vec<u32> {
    let mut evicted = Vec::new();
    cache.insert(hash(key), key, key, weight, 1.0, &mut |key| {
        evicted.push(key)
    });
    evicted
}

fn access(cache: &mut Cache<u32, u32>, key: u32) -> bool {
    let is_hit = cache.get(hash(key), &key).is_some();
    if !is_hit {
        insert(cache, key, 1);
    }
    is_hit
}

#[test]
fn a_scan_leaves_the_hot_ones_alone() {
    let mut cache = Cache::new(100, DEFAULT, false);
    for _ in 0..4 {
        for key in 0..80 {
            access(&mut cache, key);
        }
    }
    // Fifteen times the capacity; a scan of hundreds of times would be the new normal.
    for key in 1000..2500 {
        access(&mut cache, key);
    }
    let kept = (0..80).filter(|key| access(&mut cache, *key)).count();
    assert!(kept >= 78, "{kept} of 80");
}

#[test]
fn what_left_and_comes_back_is_remembered() {
    let mut cache = Cache::new(100, DEFAULT, false);
    for _ in 0..20 {
        access(&mut cache, 1);
    }
    let held = cache.len();
    assert_eq!(cache.set_capacity_to(0), [1]);
    cache.set_capacity(100, &mut |_| {});
    insert(&mut cache, 1, 1);
    assert_eq!((cache.ghost_hits(), cache.len()), (1, held));
    for key in 1000..1400 {
        access(&mut cache, key);
    }
    assert!(access(&mut cache, 1), "it kept the heat of its first life");
}

#[test]
fn important_blocks_outlive_others_of_their_age() {
    let mut cache: Cache<u32, u32> = Cache::new(100, DEFAULT, false);
    for key in 0..200 {
        let reads = if key % 4 == 0 { 8.0 } else { 1.0 };
        cache.insert(hash(key), key, key, 1, reads, &mut |_| {});
    }
    let kept = (0..200)
        .step_by(4)
        .filter(|key| cache.peek_mut(hash(*key), key).is_some())
        .count();
    assert!(kept >= 48, "{kept} of 50");
}

#[test]
fn a_large_block_must_be_hotter_than_all_that_it_displaces_together() {
    let mut cache = Cache::new(100, DEFAULT, false);
    for _ in 0..2 {
        for key in 0..100 {
            access(&mut cache, key);
        }
    }
    // Fifty blocks read twice against one block read once.
    insert(&mut cache, 1000, 50);
    for key in 2000..2010 {
        insert(&mut cache, key, 1);
    }
    assert!(cache.peek_mut(hash(1000), &1000).is_none());
    let kept = (0..100).filter(|key| cache.peek_mut(hash(*key), key).is_some());
    assert!(kept.count() >= 90);
}

#[test]
fn what_is_larger_than_the_capacity_is_handed_back_and_nothing_else() {
    let mut cache = Cache::new(10, DEFAULT, false);
    insert(&mut cache, 1, 5);
    assert_eq!(insert(&mut cache, 2, 11), [2]);
    assert_eq!((cache.len(), cache.weight()), (1, 5));
}

#[test]
fn heats_survive_the_start_over_of_the_clock() {
    let mut cache = Cache::new(4, DEFAULT, false);
    // 4,096 half-lives of 64 × 16 accesses.
    for round in 0..5_000_000 {
        access(&mut cache, [1, 2, 1, 3, 1, 4, 1, 2][round % 8]);
    }
    assert!(cache.clock.now() < 4096.0);
    for key in 10..30 {
        access(&mut cache, key);
    }
    assert!(access(&mut cache, 1));
}

impl<V> Cache<u32, V> {
    fn set_capacity_to(&mut self, capacity: u64) -> Vec<V> {
        let mut evicted = Vec::new();
        self.set_capacity(capacity, &mut |value| evicted.push(value));
        evicted
    }

    fn check(&self) {
        assert!(self.weight() <= self.capacity);
        assert_eq!(self.table.len(), self.entries.len());
        let (mut window, mut main) = (0, 0);
        for at in self.entries.numbers() {
            let entry = self.entries.get(at).unwrap();
            match entry.place {
                Place::Window { .. } => window += u64::from(entry.weight),
                Place::Main => main += u64::from(entry.weight),
            }
        }
        assert_eq!((window, main), (self.window_weight, self.main_weight));
    }
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u32, u32),
    Get(u32),
    Remove(u32),
    Capacity(u64),
    Setting(usize),
    Rebuild,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..60u32, 0..400u32).prop_map(|(key, weight)| Step::Insert(key, weight)),
        8 => (0..60u32).prop_map(Step::Get),
        2 => (0..60u32).prop_map(Step::Remove),
        1 => (0..20_000u64).prop_map(Step::Capacity),
        1 => (0..4usize).prop_map(Step::Setting),
        1 => Just(Step::Rebuild),
    ]
}

proptest! {
    /// Against a map: what is in the cache is what was put and neither removed nor handed back, and the limit holds at each step.
    #[test]
    fn holds_what_was_put_and_never_more_than_its_capacity(
        steps in prop::collection::vec(step(), 1..400),
        counts_bookkeeping: bool,
    ) {
        let mut cache: Cache<u32, u32> = Cache::new(10_000, DEFAULT, counts_bookkeeping);
        let mut model: BTreeMap<u32, u32> = BTreeMap::new();
        let mut gone = Vec::new();
        for step in steps {
            match step {
                Step::Insert(key, weight) => {
                    if let std::collections::btree_map::Entry::Vacant(vacant) = model.entry(key) {
                        vacant.insert(weight);
                        cache.insert(hash(key), key, key, weight, 1.0, &mut |key| gone.push(key));
                    }
                }
                Step::Get(key) => {
                    let found = cache.get(hash(key), &key).map(|(value, weight)| (*value, weight));
                    prop_assert_eq!(found, model.get(&key).map(|weight| (key, *weight)));
                }
                Step::Remove(key) => {
                    let removed = cache.remove(hash(key), &key);
                    prop_assert_eq!(removed.is_some(), model.remove(&key).is_some());
                }
                Step::Capacity(capacity) => cache.set_capacity(capacity, &mut |key| gone.push(key)),
                Step::Setting(number) => cache.set_setting(Setting {
                    window: [0.0, 0.01, 0.5, 1.0][number],
                    half_life: 16.0,
                }),
                Step::Rebuild => cache.rebuild(&mut |key| gone.push(key)),
            }
            for key in gone.drain(..) {
                prop_assert!(model.remove(&key).is_some());
            }
            cache.check();
            prop_assert_eq!(cache.len(), model.len());
        }
    }
}
