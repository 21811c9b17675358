//! Random operations against a map.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test panics when it fails"
)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anypath_tiered_store::{
    ColdConfig, Config, DeleteError, OpenError, PinError, Policy, PutError, PutOptions, Store,
    vfs::SimVfs,
};
use bytes::Bytes;
use common::{MIB, block, in_parallel, run};
use object_store::memory::InMemory;
use proptest::prelude::*;

const CAPACITY: u64 = 2 * MIB;

#[derive(Debug, Clone)]
enum Step {
    Put {
        n: u32,
        set: Option<u8>,
        ttl_s: Option<u8>,
    },
    Fill(u8),
    Get(u32),
    Delete(u32),
    Pin(u32, u8),
    Unpin(u32, u8),
    Drop(u8),
    Rename(u8, u8),
    PutValue(u8, u8, Option<u8>),
    DeleteValue(u8),
    Wait(u8),
    Gc,
    Reopen {
        close: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let block = 0u32..40;
    let set = 0u8..4;
    prop_oneof![
        8 => (block.clone(), prop::option::of(set.clone()), prop::option::of(1u8..9)).prop_map(|(n, set, ttl_s)| Step::Put { n, set, ttl_s }),
        3 => any::<u8>().prop_map(Step::Fill),
        8 => block.clone().prop_map(Step::Get),
        4 => block.clone().prop_map(Step::Delete),
        3 => (block.clone(), set.clone()).prop_map(|(n, set)| Step::Pin(n, set)),
        3 => (block, set.clone()).prop_map(|(n, set)| Step::Unpin(n, set)),
        1 => set.clone().prop_map(Step::Drop),
        1 => (set.clone(), set).prop_map(|(from, to)| Step::Rename(from, to)),
        2 => (0u8..5, any::<u8>(), prop::option::of(1u8..9)).prop_map(|(key, value, ttl)| Step::PutValue(key, value, ttl)),
        1 => (0u8..5).prop_map(Step::DeleteValue),
        2 => (1u8..4).prop_map(Step::Wait),
        1 => Just(Step::Gc),
        1 => any::<bool>().prop_map(|close| Step::Reopen { close }),
    ]
}

#[derive(Default)]
struct Model {
    now_s: u64,
    /// When a block's time is over; absent: not here, or evicted for all we know.
    blocks: BTreeMap<u32, Option<u64>>,
    sets: BTreeMap<String, BTreeSet<u32>>,
    values: BTreeMap<u8, (u8, Option<u64>)>,
}

impl Model {
    fn is_pinned(&self, n: u32) -> bool {
        self.sets.values().any(|set| set.contains(&n))
    }

    /// Whether it must not be returned.
    fn is_gone(&self, n: u32) -> bool {
        let over =
            |expiry: &Option<u64>| expiry.is_some_and(|at| at <= self.now_s) && !self.is_pinned(n);
        self.blocks.get(&n).is_none_or(over)
    }
}

fn len(n: u32) -> usize {
    [50, 12_000, 400, 30_000, 4000][n as usize % 5]
}

fn name(set: u8) -> String {
    format!("set {set}")
}

/// Which tiers there are besides the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tiers {
    Disk,
    /// A small one, so that blocks come and go.
    Memory,
    /// Memory, and a cold tier without a limit: nothing is ever forgotten.
    All,
}

async fn open(vfs: &SimVfs, bucket: &Arc<InMemory>, tiers: Tiers) -> Store {
    let mut config = Config::builder()
        .path("/store")
        .disk_capacity(CAPACITY)
        .vfs(Arc::new(vfs.clone()))
        .memory_capacity(if tiers == Tiers::Disk { 0 } else { 200 * 1024 });
    if tiers == Tiers::All {
        let cold = ColdConfig::object_store(bucket.clone()).pack_bytes(MIB);
        config = config
            .cold(cold)
            .policy(Policy::builder().promote_reads(1.0).hysteresis(0.0));
    }
    // A store that was dropped without `close` holds its lock until its last write is done, on a busy machine for seconds.
    for _ in 0..1000 {
        match Store::open(config.clone().build().unwrap()).await {
            Err(OpenError::Locked { .. }) => {}
            opened => return opened.unwrap(),
        }
    }
    panic!("the store that was dropped never lets go of its lock")
}

async fn apply(steps: Vec<Step>, tiers: Tiers) {
    let vfs = SimVfs::new();
    let bucket = Arc::new(InMemory::new());
    let mut store = open(&vfs, &bucket, tiers).await;
    let mut model = Model::default();
    let mut fillers = 100_000;
    for step in steps {
        match step {
            Step::Put { n, set, ttl_s } => {
                let (cid, data) = block(n, len(n));
                let options = PutOptions {
                    pin: set.map(name),
                    ttl: ttl_s.map(|s| Duration::from_secs(s.into())),
                    ..PutOptions::default()
                };
                let was_gone = model.is_gone(n) || !store.has(&cid);
                store.put_with(cid, data, options).await.unwrap();
                let expiry = ttl_s.map(|s| model.now_s + u64::from(s));
                // The put that keeps it longest counts.
                let before = model.blocks.get(&n).copied().filter(|_| !was_gone);
                let longest = match before {
                    Some(before) => before.and_then(|before| Some(before.max(expiry?))),
                    None => expiry,
                };
                model.blocks.insert(n, longest);
                if let Some(set) = set {
                    model.sets.entry(name(set)).or_default().insert(n);
                }
            }
            Step::Fill(count) => {
                let blocks = (0..u32::from(count % 40))
                    .map(|k| block(fillers + k, 20_000))
                    .collect();
                fillers += 40;
                match store.put_many(blocks, PutOptions::default()).await {
                    Ok(()) | Err(PutError::Full { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Get(n) => {
                let (cid, data) = block(n, len(n));
                let read = store.get(&cid).await.unwrap();
                if model.is_gone(n) {
                    assert_eq!(read, None, "block {n} should be gone");
                } else if model.is_pinned(n) {
                    assert_eq!(read, Some(data), "block {n} is pinned");
                } else if read.is_some() || tiers == Tiers::All {
                    assert_eq!(read, Some(data), "block {n}");
                }
            }
            Step::Delete(n) => match store.delete(&block(n, len(n)).0).await {
                Ok(was_there) => {
                    assert!(!model.is_pinned(n));
                    assert!(!was_there || !model.is_gone(n));
                    model.blocks.remove(&n);
                }
                Err(DeleteError::Pinned { .. }) => assert!(model.is_pinned(n)),
                Err(error) => panic!("{error}"),
            },
            Step::Pin(n, set) => match store.pin(&name(set), &[block(n, len(n)).0]).await {
                Ok(()) => {
                    assert!(!model.is_gone(n));
                    model.sets.entry(name(set)).or_default().insert(n);
                }
                Err(PinError::Missing { .. }) => assert!(!model.is_pinned(n)),
                Err(error) => panic!("{error}"),
            },
            Step::Unpin(n, set) => {
                store
                    .unpin(&name(set), &[block(n, len(n)).0])
                    .await
                    .unwrap();
                if let Some(members) = model.sets.get_mut(&name(set)) {
                    members.remove(&n);
                }
            }
            Step::Drop(set) => {
                store.drop_pin_set(&name(set)).await.unwrap();
                model.sets.remove(&name(set));
            }
            Step::Rename(from, to) => match store.rename_pin_set(&name(from), &name(to)).await {
                Ok(()) => {
                    let members = model.sets.remove(&name(from)).unwrap();
                    model.sets.insert(name(to), members);
                }
                Err(PinError::NoSuchSet { .. }) => assert!(!model.sets.contains_key(&name(from))),
                Err(PinError::SetExists { .. }) => assert!(model.sets.contains_key(&name(to))),
                Err(error) => panic!("{error}"),
            },
            Step::PutValue(key, value, ttl) => {
                let ttl_d = ttl.map(|s| Duration::from_secs(s.into()));
                store
                    .put_value(&key.to_string(), Bytes::from(vec![value; 300]), ttl_d)
                    .await
                    .unwrap();
                model
                    .values
                    .insert(key, (value, ttl.map(|s| model.now_s + u64::from(s))));
            }
            Step::DeleteValue(key) => {
                store.delete_value(&key.to_string()).await.unwrap();
                model.values.remove(&key);
            }
            Step::Wait(s) => {
                vfs.advance_ms(u64::from(s) * 1000);
                model.now_s += u64::from(s);
            }
            Step::Gc => drop(store.gc().await.unwrap()),
            Step::Reopen { close } => {
                if close {
                    store.close().await.unwrap();
                    assert_eq!(vfs.file_bytes("segment"), store.stats().disk.used_bytes);
                }
                drop(store);
                store = open(&vfs, &bucket, tiers).await;
            }
        }
        let memory = store.stats().memory;
        assert!(memory.bytes <= memory.capacity, "{memory:?}");
        model.sets.retain(|_, members| !members.is_empty());
        assert_eq!(
            store.pin_sets(),
            model.sets.keys().cloned().collect::<Vec<_>>()
        );
        let used = vfs.file_bytes("segment");
        assert!(
            used <= CAPACITY + CAPACITY / 16 + 40_000,
            "{used} bytes on the disk"
        );
    }
    for (set, members) in &model.sets {
        let expected: BTreeSet<_> = members.iter().map(|n| block(*n, len(*n)).0).collect();
        assert_eq!(
            store.pins(set).into_iter().collect::<BTreeSet<_>>(),
            expected
        );
        for n in members {
            let (cid, data) = block(*n, len(*n));
            assert_eq!(store.get(&cid).await.unwrap(), Some(data));
        }
    }
    for key in 0..5 {
        let expected = model
            .values
            .get(&key)
            .filter(|(_, expiry)| expiry.is_none_or(|at| at > model.now_s));
        let read = store.get_value(&key.to_string()).await.unwrap();
        assert_eq!(
            read,
            expected.map(|(value, _)| Bytes::from(vec![*value; 300]))
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn behaves_like_a_map_that_may_forget_only_what_is_not_pinned(steps in prop::collection::vec(step(), 1..250)) {
        run(apply(steps, Tiers::Disk));
    }
    #[test]
    fn a_memory_tier_changes_nothing_of_that(steps in prop::collection::vec(step(), 1..250)) {
        run(apply(steps, Tiers::Memory));
    }
    #[test]
    fn with_a_cold_tier_it_behaves_like_a_map_that_forgets_nothing(steps in prop::collection::vec(step(), 1..250)) {
        run(apply(steps, Tiers::All));
    }
}

/// A million operations: `cargo test --release -p anypath-tiered-store --test model -- --ignored`.
#[test]
#[ignore = "takes minutes; CI runs it in release"]
fn behaves_like_a_map_for_a_million_operations() {
    let parts = [
        (Tiers::Disk, 150),
        (Tiers::Disk, 150),
        (Tiers::Memory, 150),
        (Tiers::All, 50),
    ];
    in_parallel(parts.into(), |(tiers, cases)| {
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases,
            failure_persistence: None,
            max_shrink_iters: 400,
            ..ProptestConfig::default()
        });
        runner
            .run(&prop::collection::vec(step(), 2000..2100), |steps| {
                run(apply(steps, tiers));
                Ok(())
            })
            .unwrap();
    });
}
