use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use multihash_codetable::{Code, MultihashDigest};

use super::*;
use crate::{
    Config, PinError, PutError, PutOptions,
    commit::{self, Delete, Op, Origin, Pin, Put},
    disk::{checkpoint, recovery, victims},
    pinning::Pinned,
    state::Demoter,
    vfs::SimVfs,
};
use futures::channel::oneshot;
use hashbrown::HashSet;

const CAPACITY: u64 = 2 * 1024 * 1024;

fn open(vfs: &SimVfs) -> Arc<Shared> {
    let config = Config::builder()
        .path("/store")
        .disk_capacity(CAPACITY)
        .memory_capacity(0)
        .vfs(Arc::new(vfs.clone()))
        .build()
        .unwrap();
    Arc::new(recovery::open(config).unwrap())
}

/// What the death of the process leaves.
fn reopened(vfs: &SimVfs) -> Arc<Shared> {
    open(&SimVfs::from_image(vfs.live_image(), 1_000_000_000_000))
}

fn block(n: u32, len: usize) -> (Cid, Bytes) {
    let mut data = n.to_le_bytes().to_vec();
    data.resize(len, n as u8);
    let cid = Cid::new_v1(0x55, Code::Sha2_256.digest(&data));
    (cid, data.into())
}

async fn put(
    shared: &Arc<Shared>,
    n: u32,
    len: usize,
    options: PutOptions,
) -> Result<(), PutError> {
    let (cid, data) = block(n, len);
    let (reply, answer) = oneshot::channel();
    let put = Put {
        cid,
        crc: crc32c::crc32c(&data),
        data,
        options: Arc::new(options),
        origin: Origin::User,
        reply,
    };
    commit::submit(shared, Op::Put(put)).await?;
    answer.await.unwrap().map(drop)
}

async fn pin(shared: &Arc<Shared>, cids: Vec<Cid>) -> Result<Pinned, PinError> {
    let (reply, answer) = oneshot::channel();
    let set = "p".to_owned();
    commit::submit(shared, Op::Pin(Pin { set, cids, reply })).await?;
    answer.await.unwrap()
}

async fn delete(shared: &Arc<Shared>, cid: Cid) {
    let (reply, answer) = oneshot::channel();
    commit::submit(shared, Op::Delete(Delete { cid, reply }))
        .await
        .unwrap();
    answer.await.unwrap().unwrap();
}

fn entry(shared: &Shared, n: u32, len: usize) -> Option<Entry> {
    shared.index.get(&shared.kinds.find(&block(n, len).0)?)
}

fn copied(shared: &Shared, n: u32, len: usize, pack: u32) -> Copied {
    let entry = entry(shared, n, len).unwrap();
    let on_disk = super::read(shared, &entry).unwrap();
    Copied {
        key: entry.key(),
        from: entry.place(),
        to: Location {
            pack,
            offset: n * 1000,
            bound: n as u8,
        },
        expiry_ms: on_disk.map_or(u64::from(entry.expiry_s) * 1000, |block| block.expiry_ms),
    }
}

async fn move_to(shared: &Arc<Shared>, pack: u32, copied: Vec<Copied>) -> Moved {
    commit::task(shared, move |shared, log| {
        to_pack(shared, log, pack, &copied)
    })
    .await
    .unwrap()
    .unwrap()
}

#[test]
fn what_moved_to_a_pack_is_there_after_a_death_a_checkpoint_and_a_repack() {
    let vfs = SimVfs::new();
    smol::block_on(async {
        let shared = open(&vfs);
        for n in 1..=3 {
            put(&shared, n, 5000, PutOptions::default()).await.unwrap();
        }
        let live = shared.counters.live.get();
        let blocks = vec![copied(&shared, 1, 5000, 7), copied(&shared, 2, 5000, 7)];
        let moved = move_to(&shared, 7, blocks.clone()).await;
        assert_eq!((moved.blocks, moved.bytes), (2, 10_000));
        assert!(shared.counters.live.get() < live / 2);
        let check = |shared: &Shared, pack| {
            for n in 1..=2 {
                let at = Location {
                    pack,
                    offset: n * 1000,
                    bound: n as u8,
                };
                let entry = entry(shared, n, 5000).unwrap();
                assert_eq!((entry.place(), entry.len()), (Place::Cold(at), 5000));
            }
            assert!(!entry(shared, 3, 5000).unwrap().is_cold());
            assert_eq!(shared.packs.get(pack).blocks, 2);
        };
        check(&shared, 7);
        check(&reopened(&vfs), 7);
        commit::task(&shared, checkpoint::write)
            .await
            .unwrap()
            .unwrap();
        check(&reopened(&vfs), 7);
        let again = vec![copied(&shared, 1, 5000, 8), copied(&shared, 2, 5000, 8)];
        assert_eq!(move_to(&shared, 8, again).await.blocks, 2);
        assert_eq!(shared.packs.get(7).blocks, 0);
        check(&reopened(&vfs), 8);
        // What was copied from pack 7 is not there any more.
        assert_eq!(move_to(&shared, 7, blocks).await.blocks, 0);
    });
}

#[test]
fn a_move_loses_against_a_pin_a_deletion_and_a_block_written_again() {
    let vfs = SimVfs::new();
    smol::block_on(async {
        let shared = open(&vfs);
        for n in 1..=3 {
            put(
                &shared,
                n,
                5000,
                PutOptions::default().with_ttl(Duration::from_secs(60)),
            )
            .await
            .unwrap();
        }
        let blocks = (1..=3).map(|n| copied(&shared, n, 5000, 1)).collect();
        put(&shared, 1, 5000, PutOptions::pinned("p"))
            .await
            .unwrap();
        delete(&shared, block(2, 5000).0).await;
        put(&shared, 3, 5000, PutOptions::default()).await.unwrap();
        assert_eq!(move_to(&shared, 1, blocks).await, Moved::default());
        for shared in [&shared, &reopened(&vfs)] {
            assert!(entry(shared, 1, 5000).unwrap().position().is_some());
            assert!(entry(shared, 2, 5000).is_none());
            assert!(entry(shared, 3, 5000).unwrap().position().is_some());
        }
    });
}

#[test]
fn a_promoted_block_is_on_disk_again_with_its_time_and_its_heat() {
    let vfs = SimVfs::new();
    smol::block_on(async {
        let shared = open(&vfs);
        let options = PutOptions::default().with_ttl(Duration::from_millis(60_500));
        put(&shared, 1, 5000, options).await.unwrap();
        let before = entry(&shared, 1, 5000).unwrap();
        let blocks = vec![copied(&shared, 1, 5000, 1)];
        move_to(&shared, 1, blocks).await;
        let (cid, data) = block(1, 5000);
        // A pinned block is on disk.
        let pinned = pin(&shared, vec![cid]);
        assert!(matches!(pinned.await, Ok(Pinned::Cold(cids)) if cids == [cid]));
        assert!(
            commit::promote(&shared, cid, data.clone(), 0, false)
                .await
                .unwrap()
        );
        assert!(
            !commit::promote(&shared, cid, data.clone(), 0, false)
                .await
                .unwrap()
        );
        assert_eq!(shared.packs.get(1).blocks, 0);
        for shared in [&shared, &reopened(&vfs)] {
            let after = entry(shared, 1, 5000).unwrap();
            // In the cold tier times are whole seconds, rounded down.
            assert_eq!(after.expiry_s + 1, before.expiry_s);
            let read = read(shared, &after).unwrap().unwrap();
            assert_eq!((read.cid, &read.data), (cid, &data));
        }
        assert_eq!(entry(&shared, 1, 5000).unwrap().heat, before.heat);
        let pinned = pin(&shared, vec![cid]);
        assert!(matches!(pinned.await, Ok(Pinned::Done)));
    });
}

#[test]
fn a_dropped_pack_takes_what_was_in_it_along_for_good() {
    let vfs = SimVfs::new();
    smol::block_on(async {
        let shared = open(&vfs);
        for n in 1..=2 {
            put(&shared, n, 5000, PutOptions::default()).await.unwrap();
            let blocks = vec![copied(&shared, n, 5000, n)];
            move_to(&shared, n, blocks).await;
        }
        let dropped = commit::task(&shared, |shared, log| drop_pack(shared, log, 1)).await;
        assert_eq!(dropped.unwrap().unwrap(), 1);
        for shared in [&shared, &reopened(&vfs)] {
            assert!(entry(shared, 1, 5000).is_none());
            assert!(entry(shared, 2, 5000).unwrap().is_cold());
        }
    });
}

/// A stream of numbers that follow from the seed.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }
}

/// Where acknowledged blocks may be after a power cut: the pack of their last move to one, and whether it is still on disk.
#[derive(Clone, Default)]
struct Acked {
    /// Packs in which its bytes were, as far as they are not dropped; a block is never in another.
    packs: std::collections::BTreeMap<u32, Vec<u32>>,
    /// Blocks that a move or a deletion that is under way may change.
    busy: Vec<u32>,
    deleted: std::collections::BTreeSet<u32>,
}

/// Moves between disk and packs under power cuts: no block is lost, none points to a pack that was dropped or never held it.
fn torture(seed: u64, steps: u32, images: u64) -> u64 {
    let vfs = SimVfs::new();
    let acked = Arc::new(parking_lot::Mutex::new(Acked::default()));
    let taken = Arc::new(AtomicU64::new(0));
    {
        let (acked, taken) = (acked.clone(), taken.clone());
        let cuts = parking_lot::Mutex::new(random(seed ^ 0xc0ffee));
        vfs.on_sync(move |vfs| {
            let acked = acked.lock().clone();
            for _ in 0..images {
                let image = vfs.crash_image(&mut *cuts.lock());
                let what = format!("seed {seed}, image {}", taken.fetch_add(1, Relaxed));
                let shared = open(&SimVfs::from_image(image, 1_000_000_000_000));
                for (n, packs) in &acked.packs {
                    let is_busy = acked.busy.contains(n);
                    let Some(found) = entry(&shared, *n, 3000) else {
                        assert!(is_busy, "{what}: block {n} is lost");
                        continue;
                    };
                    match found.place() {
                        Place::Disk(_) => {
                            let data = read(&shared, &found).unwrap().map(|read| read.data);
                            assert_eq!(data, Some(block(*n, 3000).1), "{what}: block {n}");
                        }
                        Place::Cold(at) => {
                            assert!(packs.contains(&at.pack), "{what}: block {n} in {at:?}");
                        }
                    }
                }
                for n in acked.deleted.iter().filter(|n| !acked.busy.contains(n)) {
                    assert!(entry(&shared, *n, 3000).is_none(), "{what}: {n} is back");
                }
            }
        });
    }
    let mut random = random(seed);
    smol::block_on(async {
        let mut shared = open(&vfs);
        let mut next_pack = 1;
        for _ in 0..steps {
            let n = (random() % 40) as u32;
            let (cid, data) = block(n, 3000);
            let there: Vec<u32> = acked.lock().packs.keys().copied().collect();
            match random() % 12 {
                0..=4 => {
                    {
                        let mut acked = acked.lock();
                        acked.busy = vec![n];
                        acked.deleted.remove(&n);
                    }
                    put(&shared, n, 3000, PutOptions::default()).await.unwrap();
                    acked.lock().packs.entry(n).or_default();
                }
                5..=7 => {
                    let moving: Vec<u32> = there
                        .into_iter()
                        .filter(|_| random().is_multiple_of(3))
                        .collect();
                    let pack = next_pack;
                    next_pack += 1;
                    let copied = moving
                        .iter()
                        .map(|n| copied(&shared, *n, 3000, pack))
                        .collect();
                    {
                        // It may be in either from the first sync on.
                        let mut acked = acked.lock();
                        for n in &moving {
                            acked.packs.entry(*n).or_default().push(pack);
                        }
                    }
                    move_to(&shared, pack, copied).await;
                    let mut acked = acked.lock();
                    for n in &moving {
                        acked.packs.insert(*n, vec![pack]);
                    }
                }
                8 => {
                    let was_cold = entry(&shared, n, 3000).is_some_and(|entry| entry.is_cold());
                    let back = commit::promote(&shared, cid, data, 0, true).await.unwrap();
                    assert_eq!(back, was_cold);
                    if back {
                        acked.lock().packs.insert(n, Vec::new());
                    }
                }
                9 => {
                    {
                        let mut acked = acked.lock();
                        acked.busy = vec![n];
                    }
                    delete(&shared, cid).await;
                    let mut acked = acked.lock();
                    acked.packs.remove(&n);
                    acked.deleted.insert(n);
                }
                10 => {
                    let task = commit::task(&shared, crate::upkeep::gc);
                    task.await.unwrap().unwrap();
                }
                _ => {
                    drop(shared);
                    shared = open(&vfs);
                }
            }
            acked.lock().busy.clear();
        }
    });
    taken.load(Relaxed)
}

#[test]
fn no_power_cut_loses_a_block_between_the_disk_and_the_cold_tier() {
    let images: u64 = (0..3).map(|seed| torture(seed, 80, 2)).sum();
    assert!(images > 300, "only {images} images");
}

/// `cargo test -p anypath-tiered-store --lib -- --ignored`.
#[test]
#[ignore = "takes half a minute; CI runs it"]
fn no_power_cut_loses_a_block_between_the_disk_and_the_cold_tier_in_ten_thousand_images() {
    let images: u64 = (100..140).map(|seed| torture(seed, 150, 3)).sum();
    assert!(images > 10_000, "only {images} images");
    println!("{images} crash images");
}

/// A cold tier that takes the coldest blocks, or nothing.
struct Shelf {
    shared: std::sync::Weak<Shared>,
    works: bool,
    asked: AtomicU64,
}

impl Demoter for Shelf {
    fn make_room(&self, bytes: u64, _urgent: bool) {
        let pack = self.asked.fetch_add(1, Relaxed) as u32;
        let (Some(shared), works) = (self.shared.upgrade(), self.works) else {
            return;
        };
        // Of a thread of its own, as the writing job calls.
        blocking::unblock(move || {
            if !works {
                let cause = Arc::new(io::Error::other("no route to the bucket"));
                commit::demotion_failed(&shared, Some(cause));
                return;
            }
            let victims = victims::coldest(&shared, bytes, &HashSet::new());
            let copied = victims.iter().map(|entry| Copied {
                key: entry.key(),
                from: entry.place(),
                to: Location {
                    pack,
                    offset: 0,
                    bound: 255,
                },
                expiry_ms: u64::from(entry.expiry_s) * 1000,
            });
            let copied: Vec<_> = copied.collect();
            smol::block_on(move_to(&shared, pack, copied));
        })
        .detach();
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(20)
    }
}

fn with_shelf(vfs: &SimVfs, works: bool) -> Arc<Shared> {
    let shared = open(vfs);
    let shelf = Shelf {
        shared: Arc::downgrade(&shared),
        works,
        asked: AtomicU64::new(0),
    };
    assert!(shared.demoter.set(Arc::new(shelf)).is_ok());
    shared
}

#[test]
fn a_full_disk_pushes_puts_back_until_the_cold_tier_took_blocks_and_forgets_none() {
    let vfs = SimVfs::new();
    smol::block_on(async {
        let shared = with_shelf(&vfs, true);
        let puts = (0..400).map(|n| put(&shared, n, 20_000, PutOptions::default()));
        for result in futures::future::join_all(puts).await {
            result.unwrap();
        }
        assert_eq!(
            (shared.index.len(), shared.counters.evictions.get()),
            (400, 0)
        );
        assert!(
            shared
                .packs
                .all()
                .iter()
                .map(|(_, pack)| pack.blocks)
                .sum::<u64>()
                > 250
        );
        assert!(shared.counters.live.get() <= shared.live_limit());
        assert_eq!(reopened(&vfs).index.len(), 400);
    });
}

#[test]
fn puts_are_told_when_the_cold_tier_is_unreachable_and_go_on_when_a_deletion_gives_room() {
    let vfs = SimVfs::new();
    smol::block_on(async {
        let shared = with_shelf(&vfs, false);
        let mut stored = 0;
        let error = loop {
            match put(&shared, stored, 20_000, PutOptions::default()).await {
                Ok(()) => stored += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, PutError::ColdTier { .. }), "{error}");
        assert!(stored > 80);
        assert_eq!(shared.index.len(), stored as usize, "nothing was evicted");
        delete(&shared, block(0, 20_000).0).await;
        put(&shared, stored, 20_000, PutOptions::default())
            .await
            .unwrap();
        // One that can never fit is told at once.
        let pins = (0..stored + 1).map(|n| block(n, 20_000).0).filter(|cid| {
            shared
                .kinds
                .find(cid)
                .is_some_and(|key| shared.index.id(&key).is_some())
        });
        let pins: Vec<Cid> = pins.collect();
        let pinned = pin(&shared, pins);
        pinned.await.unwrap();
        let full = put(&shared, 9999, 20_000, PutOptions::default()).await;
        assert!(matches!(full, Err(PutError::Full { .. })), "{full:?}");
    });
}
