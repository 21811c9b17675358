//! Power cuts and faults with a cold tier: at every sync of the disk and around every request to the bucket, what a power cut could leave of
//! the one is opened with the other as it is then; and every single request is made to fail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test panics when it fails"
)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use anypath_tiered_store::{
    ColdConfig, Config, DeleteError, GetError, Policy, Store,
    vfs::{Image, SimVfs},
};
use async_trait::async_trait;
use bytes::Bytes;
use common::{MIB, block, random, run};
use futures::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory,
    path::Path,
};
use parking_lot::Mutex;

const CAPACITY: u64 = MIB;
const NOW_MS: u64 = 1_000_000_000_000;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It never arrives.
    Lost,
    /// It is carried out, and the answer never arrives.
    AnswerLost,
    /// A bit of the answer's bytes flips on the way.
    Flipped,
}

type Injector = dyn Fn(usize) -> Option<Fault> + Send + Sync;
type Hook = dyn Fn(&InMemory) + Send + Sync;

/// Objects in memory, with faults, and a hook around every request.
#[derive(Clone)]
struct Bucket {
    memory: Arc<InMemory>,
    calls: Arc<AtomicUsize>,
    injector: Arc<Mutex<Option<Arc<Injector>>>>,
    hook: Arc<Mutex<Option<Arc<Hook>>>>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bucket")
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a bucket in memory")
    }
}

impl Bucket {
    fn new(memory: InMemory) -> Bucket {
        Bucket {
            memory: Arc::new(memory),
            calls: Arc::default(),
            injector: Arc::default(),
            hook: Arc::default(),
        }
    }

    fn begin(&self) -> Option<Fault> {
        let number = self.calls.fetch_add(1, SeqCst);
        self.look();
        let injector = self.injector.lock().clone();
        injector.and_then(|injector| injector(number))
    }

    fn look(&self) {
        let hook = self.hook.lock().clone();
        if let Some(hook) = hook {
            hook(&self.memory);
        }
    }

    /// Ends a request as its fault says.
    fn end<T>(&self, fault: Option<Fault>, answer: Result<T>) -> Result<T> {
        self.look();
        match fault {
            Some(Fault::AnswerLost | Fault::Lost) => Err(lost()),
            _ => answer,
        }
    }
}

fn lost() -> object_store::Error {
    object_store::Error::Generic {
        store: "test",
        source: "the network is down".into(),
    }
}

#[async_trait]
impl ObjectStore for Bucket {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let fault = self.begin();
        if fault == Some(Fault::Lost) {
            return Err(lost());
        }
        let answer = self.memory.put_opts(location, payload, options).await;
        self.end(fault, answer)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.memory.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let fault = self.begin();
        if fault == Some(Fault::Lost) {
            return Err(lost());
        }
        let answer = self.memory.get_opts(location, options).await;
        let mut answer = self.end(fault, answer)?;
        if fault == Some(Fault::Flipped) {
            let (meta, range) = (answer.meta.clone(), answer.range.clone());
            let attributes = answer.attributes.clone();
            let extensions = answer.extensions.clone();
            let mut bytes = answer.bytes().await?.to_vec();
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 4;
            }
            let bytes = Bytes::from(bytes);
            let payload = futures::stream::iter([Ok(bytes)]).boxed();
            answer = GetResult {
                payload: GetResultPayload::Stream(payload),
                meta,
                range,
                attributes,
                extensions,
            };
        }
        Ok(answer)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.memory.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let fault = self.begin();
        if fault == Some(Fault::Lost) {
            return futures::stream::iter([Err(lost())]).boxed();
        }
        let bucket = self.clone();
        let deleted = self.memory.delete_stream(locations);
        deleted.map(move |answer| bucket.end(fault, answer)).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.begin() {
            Some(Fault::Lost | Fault::AnswerLost) => futures::stream::iter([Err(lost())]).boxed(),
            _ => self.memory.list(prefix),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.memory.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.memory.copy_opts(from, to, options).await
    }
}

async fn open(vfs: &SimVfs, bucket: &Bucket) -> Store {
    let cold = ColdConfig::object_store(Arc::new(bucket.clone()))
        .pack_bytes(MIB)
        .request_timeout(Duration::from_secs(60))
        .attempts(3);
    let config = Config::builder()
        .path("/store")
        .disk_capacity(CAPACITY)
        .memory_capacity(0)
        .policy(Policy::builder().promote_reads(1.0).hysteresis(0.0))
        .vfs(Arc::new(vfs.clone()))
        .cold(cold)
        .build()
        .unwrap();
    Store::open(config).await.unwrap()
}

fn len_of(n: u32) -> usize {
    [30_000, 9_000, 60_000, 700, 20_000][n as usize % 5]
}

/// What was acknowledged. Nothing is ever evicted, as the cold tier has no limit.
#[derive(Clone, Default)]
struct Acked {
    there: BTreeSet<u32>,
    deleted: BTreeSet<u32>,
    in_flight: Option<u32>,
}

async fn check(store: &Store, acked: &Acked, what: &str) {
    for n in &acked.there {
        if acked.in_flight != Some(*n) {
            let (cid, data) = block(*n, len_of(*n));
            let found = store.get(&cid).await;
            let found = found.unwrap_or_else(|error| panic!("{what}: block {n}: {error:?}"));
            assert_eq!(found, Some(data), "{what}: block {n} is lost");
        }
    }
    for n in &acked.deleted {
        if acked.in_flight != Some(*n) {
            let cid = block(*n, len_of(*n)).0;
            assert!(!store.has(&cid), "{what}: deleted block {n} is back");
        }
    }
}

/// Waits for what runs in the background.
async fn settle(store: &Store) {
    while store.stats().cold.unwrap().is_moving {
        smol::Timer::after(Duration::from_millis(1)).await;
    }
}

fn objects(memory: &InMemory) -> BTreeMap<String, u64> {
    let listed = run(memory.list(None).collect::<Vec<_>>());
    let packs = listed.into_iter().map(|object| object.unwrap());
    packs
        .map(|object| (object.location.to_string(), object.size))
        .filter(|(name, _)| name.ends_with(".pack"))
        .collect()
}

/// Opens what is left, checks it, and that nothing is there twice or for nothing.
fn check_image(image: Image, memory: InMemory, acked: &Acked, what: &str) {
    let vfs = SimVfs::from_image(image, NOW_MS);
    let bucket = Bucket::new(memory);
    run(async {
        let store = open(&vfs, &bucket).await;
        check(&store, acked, what).await;
        store.gc().await.unwrap();
        settle(&store).await;
        let figures = store.stats().cold.unwrap();
        let objects = objects(&bucket.memory);
        assert!(
            objects.len() as u64 <= figures.packs,
            "{what}: {objects:?} for {figures:?}"
        );
        // The store that recovered works.
        let (cid, data) = block(1_000_000, 30_000);
        store.put(cid, data.clone()).await.unwrap();
        assert_eq!(store.get(&cid).await.unwrap(), Some(data));
        check(&store, acked, what).await;
        drop(store);
    });
}

/// Puts, reads, deletions and collections, as numbers say.
async fn work(store: &Store, steps: u32, seed: u64, acked: &Mutex<Acked>) {
    let mut random = random(seed);
    for _ in 0..steps {
        let n = (random() % 150) as u32;
        let (cid, data) = block(n, len_of(n));
        match random() % 16 {
            0..=8 => {
                acked.lock().in_flight = Some(n);
                store.put(cid, data).await.unwrap();
                let mut acked = acked.lock();
                acked.deleted.remove(&n);
                acked.there.insert(n);
                acked.in_flight = None;
            }
            9..=12 => match store.get(&cid).await {
                Ok(found) => {
                    let is_there = acked.lock().there.contains(&n);
                    assert_eq!(found, is_there.then_some(data), "block {n}");
                }
                Err(error) => assert!(
                    matches!(error, GetError::ColdUnreachable { .. }),
                    "{error:?}"
                ),
            },
            13..=14 => {
                acked.lock().in_flight = Some(n);
                match store.delete(&cid).await {
                    Ok(_) | Err(DeleteError::Pinned { .. }) => {}
                    Err(error) => panic!("{error:?}"),
                }
                let mut acked = acked.lock();
                acked.there.remove(&n);
                acked.deleted.insert(n);
                acked.in_flight = None;
            }
            _ => {
                // It may meet a fault; then it is left for later.
                let _ = store.gc().await;
            }
        }
    }
}

fn torture(seed: u64, steps: u32) -> u64 {
    let (vfs, bucket) = (SimVfs::new(), Bucket::new(InMemory::new()));
    let acked = Arc::new(Mutex::new(Acked::default()));
    let taken = Arc::new(AtomicU64::new(0));
    let cuts = Arc::new(Mutex::new(random(seed ^ 0xc01d)));
    let cut = {
        let (acked, taken) = (acked.clone(), taken.clone());
        move |vfs: &SimVfs, memory: &InMemory| {
            // What was acknowledged before: later is not before the picture.
            let acked = acked.lock().clone();
            let image = vfs.crash_image(&mut *cuts.lock());
            let number = taken.fetch_add(1, SeqCst);
            let what = format!("seed {seed}, image {number}");
            check_image(image, memory.fork(), &acked, &what);
        }
    };
    let cut = Arc::new(cut);
    {
        let (cut, memory) = (cut.clone(), bucket.memory.clone());
        vfs.on_sync(move |vfs| cut(vfs, &memory));
    }
    {
        let (cut, vfs) = (cut.clone(), vfs.clone());
        *bucket.hook.lock() = Some(Arc::new(move |memory| cut(&vfs, memory)));
    }
    run(async {
        let store = open(&vfs, &bucket).await;
        work(&store, steps, seed, &acked).await;
        let figures = store.stats().cold.unwrap();
        assert!(figures.demotions > 10, "{figures:?}");
        drop(store);
    });
    *bucket.hook.lock() = None;
    taken.load(SeqCst)
}

#[test]
fn no_power_cut_loses_a_block_in_any_tier_or_leaves_a_pack_for_nothing() {
    let runs: Vec<_> = (1..=2)
        .map(|seed| std::thread::spawn(move || torture(seed, 180)))
        .collect();
    let images: u64 = runs.into_iter().map(|run| run.join().unwrap()).sum();
    println!("{images} crash images with a cold tier, 0 blocks lost");
    assert!(images > 150, "{images}");
}

/// The same with one request failing. Returns how many requests there were.
fn with_fault(fault: Option<(usize, Fault)>) -> usize {
    let (vfs, bucket) = (SimVfs::new(), Bucket::new(InMemory::new()));
    *bucket.injector.lock() = Some(Arc::new(move |number| {
        fault.and_then(|(at, fault)| (number == at).then_some(fault))
    }));
    let acked = Mutex::new(Acked::default());
    let what = format!("{fault:?}");
    run(async {
        let store = open(&vfs, &bucket).await;
        work(&store, 200, 9, &acked).await;
        let calls = bucket.calls.load(SeqCst);
        *bucket.injector.lock() = None;
        let known = acked.lock().clone();
        check(&store, &known, &what).await;
        store.gc().await.unwrap();
        check(&store, &known, &what).await;
        store.close().await.unwrap();
        let store = open(&vfs, &bucket).await;
        check(&store, &known, &what).await;
        store.gc().await.unwrap();
        settle(&store).await;
        let packs = store.stats().cold.unwrap().packs;
        assert!(objects(&bucket.memory).len() as u64 <= packs, "{what}");
        calls
    })
}

#[test]
fn no_request_that_fails_loses_a_block_or_an_acknowledgement() {
    let calls = with_fault(None);
    assert!(calls > 25, "{calls}");
    let next = Arc::new(AtomicUsize::new(0));
    let faults = [Fault::Lost, Fault::AnswerLost, Fault::Flipped];
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let next = next.clone();
            std::thread::spawn(move || {
                loop {
                    let number = next.fetch_add(1, SeqCst);
                    if number >= calls * faults.len() {
                        return;
                    }
                    with_fault(Some((number / faults.len(), faults[number % faults.len()])));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    println!("{} requests failed in 3 ways each, nothing lost", calls);
}
