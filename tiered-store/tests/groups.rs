//! Writes that share a group: what the store says after it is what it says after it was opened again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test panics when it fails"
)]

mod common;

use std::{
    any::Any,
    collections::BTreeSet,
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use anypath_tiered_store::{
    Config, PutOptions, Store,
    vfs::{SimVfs, Vfs, VfsFile},
};
use bytes::Bytes;
use cid::Cid;
use common::{MIB, block, open_sim, random, run};
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use multihash_codetable::{Code, MultihashDigest};

const CAPACITY: u64 = 16 * MIB;
const BLOCKS: u32 = 3;
const SETS: [&str; 2] = ["one", "other"];

type Write = BoxFuture<'static, ()>;

/// Carries writes out in one group, in which they lie in this order.
async fn together(vfs: &SimVfs, store: &Store, number: u32, writes: Vec<Write>) {
    together_after(vfs, store, number, writes, || {}).await;
}

/// The same, and something else once all are queued.
async fn together_after(
    vfs: &SimVfs,
    store: &Store,
    number: u32,
    writes: Vec<Write>,
    then: impl FnOnce(),
) {
    let (enter, entered) = mpsc::sync_channel(1);
    let (release, released) = mpsc::sync_channel::<()>(1);
    let once = Mutex::new(Some((enter, released)));
    vfs.on_sync(move |_| {
        let taken = once.lock().unwrap().take();
        if let Some((enter, released)) = taken {
            enter.send(()).unwrap();
            released.recv().unwrap();
        }
    });
    // While the writing job syncs this one the others come.
    let (cid, data) = block(1000 + number, 10);
    let mut first = store.put(cid, data).boxed();
    assert!(futures::poll!(&mut first).is_pending());
    entered.recv().unwrap();
    let mut waiting = Vec::new();
    for mut write in writes {
        // Queued by its first poll.
        if futures::poll!(&mut write).is_pending() {
            waiting.push(write);
        }
    }
    let before = store.stats().disk.batches;
    then();
    release.send(()).unwrap();
    first.await.unwrap();
    join_all(waiting).await;
    assert_eq!(store.stats().disk.batches, before + 1, "one group");
}

/// What a store says of everything.
async fn seen(store: &Store) -> (Vec<bool>, Vec<BTreeSet<Cid>>, Vec<Option<Bytes>>) {
    let (mut blocks, mut values) = (Vec::new(), Vec::new());
    for n in 0..BLOCKS {
        let (cid, data) = block(n, 500);
        let read = store.get(&cid).await.unwrap();
        assert!(read.as_ref().is_none_or(|read| *read == data));
        blocks.push(read.is_some());
    }
    let sets = SETS.map(|set| store.pins(set).into_iter().collect());
    for key in ["a", "b"] {
        values.push(store.get_value(key).await.unwrap());
    }
    (blocks, sets.to_vec(), values)
}

/// Compares the store with what it is after the death of the process, now and once all times to live are over.
async fn agrees_with_the_disk(vfs: &SimVfs, store: &Store, what: &str) {
    let after = SimVfs::from_image(vfs.live_image(), vfs.now_ms());
    let reopened = open_sim(&after, CAPACITY).await;
    assert_eq!(seen(store).await, seen(&reopened).await, "{what}, at once");
    vfs.advance_ms(100_000);
    after.advance_ms(100_000);
    assert_eq!(seen(store).await, seen(&reopened).await, "{what}, later");
}

fn put(store: &Store, n: u32, options: PutOptions) -> Write {
    let (store, (cid, data)) = (store.clone(), block(n, 500));
    async move { store.put_with(cid, data, options).await.unwrap() }.boxed()
}

fn put_value(store: &Store, key: &'static str, value: u8, ttl_s: Option<u64>) -> Write {
    let store = store.clone();
    let ttl = ttl_s.map(Duration::from_secs);
    async move {
        let value = Bytes::from(vec![value; 20]);
        store.put_value(key, value, ttl).await.unwrap();
    }
    .boxed()
}

fn delete_value(store: &Store, key: &'static str) -> Write {
    let store = store.clone();
    async move {
        store.delete_value(key).await.unwrap();
    }
    .boxed()
}

fn pin(store: &Store, set: &'static str, n: u32) -> Write {
    let store = store.clone();
    // The block may not be here.
    async move {
        store.pin(set, &[block(n, 500).0]).await.ok();
    }
    .boxed()
}

fn unpin(store: &Store, set: &'static str, n: u32) -> Write {
    let store = store.clone();
    async move { store.unpin(set, &[block(n, 500).0]).await.unwrap() }.boxed()
}

fn ttl(seconds: u64) -> PutOptions {
    PutOptions::default().with_ttl(Duration::from_secs(seconds))
}

#[test]
fn a_put_for_good_beside_one_for_a_while_is_for_good_after_reopening() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, CAPACITY).await;
        let writes = vec![
            put(&store, 0, ttl(10)),
            put(&store, 0, PutOptions::default()),
        ];
        together(&vfs, &store, 0, writes).await;
        agrees_with_the_disk(&vfs, &store, "a put for good").await;
        assert!(store.has(&block(0, 500).0));
    });
}

#[test]
fn a_put_that_pins_beside_an_unpin_is_pinned_after_reopening() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, CAPACITY).await;
        put(&store, 0, PutOptions::pinned("one")).await;
        let writes = vec![
            unpin(&store, "one", 0),
            put(&store, 0, PutOptions::pinned("one")),
        ];
        together(&vfs, &store, 0, writes).await;
        assert!(store.is_pinned(&block(0, 500).0));
        agrees_with_the_disk(&vfs, &store, "a pin").await;
    });
}

#[test]
fn a_pin_after_an_unpin_of_the_same_group_holds() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, CAPACITY).await;
        put(&store, 0, PutOptions::pinned("one")).await;
        // Its caller gave up waiting, or did not wait, before the pin.
        let writes = vec![unpin(&store, "one", 0), pin(&store, "one", 0)];
        together(&vfs, &store, 0, writes).await;
        assert!(store.is_pinned(&block(0, 500).0));
        agrees_with_the_disk(&vfs, &store, "a pin").await;
    });
}

#[test]
fn a_value_that_was_deleted_or_replaced_beside_its_put_stays_so_after_reopening() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, CAPACITY).await;
        put_value(&store, "a", 1, None).await;
        let writes = vec![
            put_value(&store, "a", 2, Some(1000)),
            delete_value(&store, "a"),
            put_value(&store, "b", 3, Some(1000)),
            put_value(&store, "b", 4, None),
        ];
        together(&vfs, &store, 0, writes).await;
        assert_eq!(store.get_value("a").await.unwrap(), None);
        agrees_with_the_disk(&vfs, &store, "a value").await;
    });
}

#[test]
fn any_writes_of_one_group_are_after_reopening_what_they_were_before() {
    for seed in 0..60 {
        run(async {
            let vfs = SimVfs::new();
            let store = open_sim(&vfs, CAPACITY).await;
            let mut random = random(seed);
            for number in 0..6 {
                let mut what = format!("seed {seed}, group {number}:");
                let writes = (0..2 + random() % 6)
                    .map(|_| {
                        let (n, some) = ((random() % u64::from(BLOCKS)) as u32, random());
                        let set = SETS[some as usize % 2];
                        let key = ["a", "b"][some as usize / 2 % 2];
                        let seconds = [5, 60, 3000][some as usize / 4 % 3];
                        let kind = random() % 8;
                        what += &format!(" ({kind}, block {n}, {set}, {key}, {seconds} s)");
                        match kind {
                            0 => put(&store, n, PutOptions::default()),
                            1 => put(&store, n, ttl(seconds)),
                            2 => put(&store, n, PutOptions::pinned(set)),
                            3 => pin(&store, set, n),
                            4 => unpin(&store, set, n),
                            5 => put_value(&store, key, some as u8, None),
                            6 => put_value(&store, key, some as u8, Some(seconds)),
                            _ => delete_value(&store, key),
                        }
                    })
                    .collect();
                together(&vfs, &store, number, writes).await;
                agrees_with_the_disk(&vfs, &store, &what).await;
            }
        });
    }
}

/// A clock that goes on by two seconds whenever somebody looks at it, once it was wound up.
#[derive(Clone)]
struct Hasty {
    disk: SimVfs,
    is_wound_up: Arc<AtomicBool>,
}

impl Vfs for Hasty {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.disk.create(path)
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.disk.open(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        self.disk.lock(path)
    }
    fn now_ms(&self) -> u64 {
        if self.is_wound_up.load(Relaxed) {
            self.disk.advance_ms(2000);
        }
        self.disk.now_ms()
    }
}

/// Puts blocks until little room is left.
async fn fill(store: &Store) {
    let room = |store: &Store| CAPACITY / 8 * 7 - store.stats().disk.live_bytes;
    let mut n = 2000;
    while room(store) > 150_000 {
        let (cid, data) = block(n, 100_000);
        store.put(cid, data).await.unwrap();
        n += 1;
    }
}

/// The index knows a digest over 32 bytes by a table that its entries keep up. One is over when it is put again, and would be forgotten when
/// room is made for the group.
#[test]
fn a_block_with_a_long_digest_is_there_when_it_was_put_again_beside_one_that_needs_room() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, CAPACITY).await;
        let data = Bytes::from(vec![7; 500]);
        let cid = Cid::new_v1(0x55, Code::Sha2_512.digest(&data));
        store.put_with(cid, data.clone(), ttl(1)).await.unwrap();
        fill(&store).await;
        vfs.advance_ms(2000);
        let again = {
            let (store, data) = (store.clone(), data.clone());
            async move { store.put(cid, data).await.unwrap() }.boxed()
        };
        let large = {
            let (store, (cid, data)) = (store.clone(), block(1, 200_000));
            async move { store.put(cid, data).await.unwrap() }.boxed()
        };
        together(&vfs, &store, 0, vec![again, large]).await;
        assert!(store.stats().disk.evictions > 0, "no room was made");
        assert_eq!(store.get(&cid).await.unwrap(), Some(data.clone()));
        store.close().await.unwrap();
        drop(store);
        let store = open_sim(&vfs, CAPACITY).await;
        assert_eq!(store.get(&cid).await.unwrap(), Some(data));
    });
}

/// A pin is decided on, then room is made for a put beside it, which takes its time.
#[test]
fn a_block_whose_time_ends_while_room_is_made_for_its_group_is_pinned_or_the_pin_refused() {
    run(async {
        let vfs = Hasty {
            disk: SimVfs::new(),
            is_wound_up: Arc::default(),
        };
        let config = Config::builder()
            .path("/store")
            .disk_capacity(CAPACITY)
            .memory_capacity(0)
            .vfs(Arc::new(vfs.clone()));
        let store = Store::open(config.build().unwrap()).await.unwrap();
        put(&store, 0, ttl(5)).await;
        fill(&store).await;
        let (pinned, data) = block(0, 500);
        let large = {
            let (store, (cid, data)) = (store.clone(), block(1, 200_000));
            async move { store.put(cid, data).await.unwrap() }.boxed()
        };
        let answer = Arc::new(Mutex::new(None));
        let pin = {
            let (store, answer) = (store.clone(), answer.clone());
            async move {
                let result = store.pin("one", &[pinned]).await;
                *answer.lock().unwrap() = Some(result.is_ok());
            }
            .boxed()
        };
        let winding = vfs.is_wound_up.clone();
        together_after(&vfs.disk, &store, 0, vec![pin, large], move || {
            winding.store(true, Relaxed);
        })
        .await;
        vfs.is_wound_up.store(false, Relaxed);
        let answer = answer.lock().unwrap().take();
        assert_eq!(answer, Some(true), "the clock went too fast for this test");
        assert!(store.is_pinned(&pinned));
        assert_eq!(store.get(&pinned).await.unwrap(), Some(data));
        assert!(store.stats().disk.evictions > 0, "no room was made");
    });
}
