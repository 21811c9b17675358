//! Blocks that are not here come from a source: once for all who wait, checked, and stored.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test panics when it fails"
)]

mod common;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use anypath_tiered_store::{
    BlockingStore, BoxError, Config, GetError, PutOptions, Source, Store,
    vfs::{Op, SimVfs},
};
use bytes::Bytes;
use cid::Cid;
use common::{RAW, block, run};
use futures::{
    FutureExt,
    channel::oneshot,
    future::{BoxFuture, Shared, join_all},
};
use multihash::Multihash;

/// A source that answers when it is let, and counts.
struct Slow {
    blocks: HashMap<Cid, Bytes>,
    go: Shared<oneshot::Receiver<()>>,
    fetches: AtomicUsize,
}

impl Source for Slow {
    fn fetch<'a>(&'a self, cid: &'a Cid) -> BoxFuture<'a, Result<Option<Bytes>, BoxError>> {
        self.fetches.fetch_add(1, SeqCst);
        async move {
            let _ = self.go.clone().await;
            match self.blocks.get(cid) {
                Some(data) if data.is_empty() => Err("the gateway burns".into()),
                found => Ok(found.cloned()),
            }
        }
        .boxed()
    }
}

fn slow(blocks: Vec<(Cid, Bytes)>) -> (Arc<Slow>, oneshot::Sender<()>) {
    let (send, go) = oneshot::channel();
    let source = Slow {
        blocks: blocks.into_iter().collect(),
        go: go.shared(),
        fetches: AtomicUsize::new(0),
    };
    (Arc::new(source), send)
}

fn config(dir: &std::path::Path, source: Arc<Slow>) -> Config {
    Config::builder()
        .path(dir)
        .source(source)
        .source_timeout(Duration::from_secs(60))
        .build()
        .unwrap()
}

#[test]
fn a_hundred_gets_of_one_absent_block_are_one_fetch_and_it_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (cid, data) = block(1, 1000);
    let (source, go) = slow(vec![(cid, data.clone())]);
    run(async {
        let store = Store::open(config(dir.path(), source.clone()))
            .await
            .unwrap();
        assert_eq!(store.get_local(&cid).await.unwrap(), None);
        let gets = (0..100).map(|_| {
            let store = store.clone();
            async move { store.get(&cid).await }
        });
        let (answers, ()) = futures::join!(join_all(gets), async {
            go.send(()).unwrap();
        });
        for answer in answers {
            assert_eq!(answer.unwrap().as_ref(), Some(&data));
        }
        assert_eq!(source.fetches.load(SeqCst), 1);
        assert_eq!(store.get_local(&cid).await.unwrap(), Some(data.clone()));
        assert_eq!(store.get(&cid).await.unwrap(), Some(data));
        assert_eq!(source.fetches.load(SeqCst), 1);
        assert_eq!(store.stats().source_hits, 1);
        store.close().await.unwrap();
    });
}

#[test]
fn a_get_that_is_dropped_does_not_strand_those_who_wait_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (cid, data) = block(1, 1000);
    let (source, go) = slow(vec![(cid, data.clone())]);
    run(async {
        let store = Store::open(config(dir.path(), source.clone()))
            .await
            .unwrap();
        let mut first = Box::pin(store.get(&cid));
        let mut second = Box::pin(store.get(&cid));
        // Both wait for the same fetch, which the first began.
        futures::future::poll_immediate(&mut first)
            .await
            .ok_or(())
            .unwrap_err();
        futures::future::poll_immediate(&mut second)
            .await
            .ok_or(())
            .unwrap_err();
        while source.fetches.load(SeqCst) == 0 {
            let _ = futures::future::poll_immediate(&mut first).await;
            smol::future::yield_now().await;
        }
        drop(first);
        go.send(()).unwrap();
        assert_eq!(second.await.unwrap(), Some(data));
        assert_eq!(source.fetches.load(SeqCst), 1);
    });
}

#[test]
fn bytes_that_are_not_the_block_are_refused_and_not_stored() {
    let dir = tempfile::tempdir().unwrap();
    let ((cid, _), (_, other)) = (block(1, 1000), block(2, 1000));
    let (source, go) = slow(vec![(cid, other)]);
    go.send(()).unwrap();
    run(async {
        let store = Store::open(config(dir.path(), source)).await.unwrap();
        let error = store.get(&cid).await.unwrap_err();
        assert!(matches!(error, GetError::WrongBlock { .. }), "{error}");
        assert!(!store.has(&cid));
        assert_eq!(store.stats().source_errors, 1);
    });
}

#[test]
fn a_block_above_the_limit_is_refused_before_it_is_hashed() {
    let dir = tempfile::tempdir().unwrap();
    let (cid, data) = block(1, 5 << 20);
    let (source, go) = slow(vec![(cid, data)]);
    go.send(()).unwrap();
    run(async {
        let store = Store::open(config(dir.path(), source)).await.unwrap();
        let error = store.get(&cid).await.unwrap_err();
        assert!(matches!(error, GetError::Source { .. }), "{error}");
    });
}

#[test]
fn errors_are_shared_and_the_next_get_asks_again() {
    let dir = tempfile::tempdir().unwrap();
    let (cid, _) = block(1, 1000);
    let (source, go) = slow(vec![(cid, Bytes::new())]);
    run(async {
        let store = Store::open(config(dir.path(), source.clone()))
            .await
            .unwrap();
        let gets = (0..10).map(|_| store.get(&cid));
        let (answers, ()) = futures::join!(join_all(gets), async {
            go.send(()).unwrap();
        });
        for answer in answers {
            let error = answer.unwrap_err();
            assert!(matches!(error, GetError::Source { .. }), "{error}");
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert_eq!(cause, "the gateway burns");
        }
        assert_eq!(source.fetches.load(SeqCst), 1);
        store.get(&cid).await.unwrap_err();
        assert_eq!(source.fetches.load(SeqCst), 2);
    });
}

#[test]
fn a_source_that_never_answers_is_given_up_after_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let (cid, _) = block(1, 1000);
    let (source, _never) = slow(vec![]);
    let config = Config::builder()
        .path(dir.path())
        .source(source)
        .source_timeout(Duration::from_millis(20))
        .build()
        .unwrap();
    run(async {
        let store = Store::open(config).await.unwrap();
        let error = store.get(&cid).await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("source_timeout"), "{cause}");
    });
}

#[test]
fn a_damaged_block_comes_whole_from_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let (cid, data) = block(1, 1000);
    let (source, go) = slow(vec![(cid, data.clone())]);
    go.send(()).unwrap();
    let config = || {
        Config::builder()
            .path(dir.path())
            .memory_capacity(0)
            .source(source.clone())
            .build()
            .unwrap()
    };
    run(async {
        let store = Store::open(config()).await.unwrap();
        store.put(cid, data.clone()).await.unwrap();
        store.close().await.unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            // The block's bytes lie in one segment, wherever.
            if let Some(at) = bytes
                .windows(16)
                .position(|window| window == &data[500..516])
            {
                bytes[at] ^= 1;
                std::fs::write(&path, bytes).unwrap();
            }
        }
        let store = Store::open(config()).await.unwrap();
        // The first get finds the damage, the next one the source's copy.
        let error = store.get(&cid).await.unwrap_err();
        assert!(matches!(error, GetError::Corrupt { .. }), "{error}");
        assert_eq!(store.get(&cid).await.unwrap(), Some(data.clone()));
        assert_eq!(store.get_local(&cid).await.unwrap(), Some(data));
        assert_eq!(source.fetches.load(SeqCst), 1);
    });
}

#[test]
fn fetched_blocks_are_stored_as_the_options_say() {
    let dir = tempfile::tempdir().unwrap();
    let blocks: Vec<_> = (0..20).map(|n| block(n, 1000)).collect();
    let (source, go) = slow(blocks.clone());
    go.send(()).unwrap();
    let config = Config::builder()
        .path(dir.path())
        .source(source.clone())
        .source_options(PutOptions::pinned("mirror"))
        .build()
        .unwrap();
    run(async {
        let store = Store::open(config).await.unwrap();
        let mut cids: Vec<Cid> = blocks.iter().map(|(cid, _)| *cid).collect();
        store.put(cids[3], blocks[3].1.clone()).await.unwrap();
        cids.push(block(99, 10).0);
        let found = store.get_many(&cids).await;
        for (found, (_, data)) in found.iter().zip(&blocks) {
            assert_eq!(found.as_ref().unwrap().as_ref(), Some(data));
        }
        assert_eq!(found.last().unwrap().as_ref().unwrap(), &None);
        assert_eq!(store.pins("mirror").len(), 19);
        assert_eq!(source.fetches.load(SeqCst), 20);
    });
}

#[test]
fn the_blocking_front_does_all_that_without_an_executor() {
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = (block(1, 1000), block(2, 1000));
    let (source, go) = slow(vec![there.clone()]);
    let store = BlockingStore::open(config(dir.path(), source.clone())).unwrap();
    store.put(here.0, here.1.clone()).unwrap();
    assert_eq!(store.get(&here.0).unwrap(), Some(here.1.clone()));
    let limit = Duration::from_millis(20);
    let cid = there.0;
    let late = store.within(limit, |store| async move { store.get(&cid).await });
    assert!(late.is_none(), "the source does not answer yet");
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            std::thread::spawn(move || store.get(&cid).unwrap())
        })
        .collect();
    go.send(()).unwrap();
    for thread in threads {
        assert_eq!(thread.join().unwrap().as_ref(), Some(&there.1));
    }
    store.pin("set", &[here.0]).unwrap();
    store
        .put_value("key", Bytes::from_static(b"value"), None)
        .unwrap();
    assert_eq!(store.get_value("key").unwrap().unwrap(), "value");
    assert_eq!(store.scan().filter(Result::is_ok).count(), 2);
    assert_eq!(store.warm(&[here.0, there.0]), 2);
    assert_eq!(store.scrub().unwrap().checked, 2);
    assert!(store.delete(&there.0).unwrap());
    assert!(store.has(&here.0) && store.size(&there.0).is_none());
    store.gc().unwrap();
    store.flush().unwrap();
    store.close().unwrap();
    assert!(matches!(store.get(&here.0), Err(GetError::Closed)));
}

#[test]
fn what_cannot_be_checked_is_neither_returned_nor_stored() {
    let dir = tempfile::tempdir().unwrap();
    let named = |code, digest: &[u8]| Cid::new_v1(RAW, Multihash::wrap(code, digest).unwrap());
    let unknown = named(0x30_0000, &[7; 32]);
    let empty = named(0x12, &[]);
    let (itself, other) = (named(0, b"itself"), named(0, b"other"));
    let data = Bytes::from_static(b"itself");
    let all = [unknown, empty, itself, other];
    let (source, go) = slow(all.map(|cid| (cid, data.clone())).into());
    go.send(()).unwrap();
    run(async {
        let store = Store::open(config(dir.path(), source)).await.unwrap();
        for cid in [unknown, empty] {
            let error = store.get(&cid).await.unwrap_err();
            assert!(matches!(error, GetError::Source { .. }), "{error:?}");
            assert!(!store.has(&cid));
        }
        let error = store.get(&other).await.unwrap_err();
        assert!(matches!(error, GetError::WrongBlock { .. }), "{error:?}");
        assert_eq!(store.get(&itself).await.unwrap(), Some(data));
        store.close().await.unwrap();
    });
}

#[test]
fn a_get_after_a_put_does_not_share_the_answer_of_a_read_before_it() {
    run(async {
        let vfs = SimVfs::new();
        let store = common::open_sim(&vfs, 1 << 20).await;
        let (cid, data) = block(1, 1000);
        store.put(cid, data.clone()).await.unwrap();
        store.close().await.unwrap();
        let mut image = vfs.live_image();
        let mut flipped = 0;
        for bytes in image.values_mut() {
            let found = bytes.windows(data.len()).position(|part| part == data);
            if let Some(at) = found {
                bytes[at] ^= 1;
                flipped += 1;
            }
        }
        assert_eq!(flipped, 1);
        let vfs = SimVfs::from_image(image, 1_000_000_000_000);
        let store = common::open_sim(&vfs, 1 << 20).await;
        // It finds the damage, and nobody has fetched its answer when the block is put again. Held until it was asked once, it is never
        // faster than that.
        let (go, held) = mpsc::sync_channel::<()>(0);
        vfs.inject(move |_, op| {
            let _over = (op == Op::Read).then(|| held.recv());
            None
        });
        let mut before = Box::pin(store.get(&cid));
        assert!(futures::poll!(&mut before).is_pending());
        drop(go);
        while store.has(&cid) {
            std::thread::yield_now();
        }
        store.put(cid, data.clone()).await.unwrap();
        assert_eq!(store.get(&cid).await.unwrap(), Some(data));
        drop(before);
    });
}

#[test]
fn stats_tell_how_often_the_source_helped_and_how_long_it_took() {
    let dir = tempfile::tempdir().unwrap();
    let (here, absent, broken) = (block(1, 1000), block(2, 1000), block(3, 1000));
    let (source, go) = slow(vec![here.clone(), (broken.0, Bytes::new())]);
    run(async {
        let store = Store::open(config(dir.path(), source)).await.unwrap();
        assert_eq!(store.stats().source_success_ratio(), None);
        let pause = Duration::from_millis(20);
        let (first, ()) = futures::join!(store.get(&here.0), async {
            smol::Timer::after(pause).await;
            go.send(()).unwrap();
        });
        assert_eq!(first.unwrap(), Some(here.1.clone()));
        assert!(store.get(&absent.0).await.unwrap().is_none());
        assert!(store.get(&broken.0).await.is_err());
        // From then on it is here.
        assert_eq!(store.get(&here.0).await.unwrap(), Some(here.1));
        let stats = store.stats();
        let answers = (stats.source_hits, stats.source_misses, stats.source_errors);
        assert_eq!(answers, (1, 1, 1));
        assert_eq!(stats.source_bytes, 1000);
        assert_eq!(stats.source_success_ratio(), Some(1.0 / 3.0));
        assert_eq!((stats.misses, stats.memory.hits), (3, 1));
        assert_eq!(stats.hit_ratio(), Some(0.25));
        assert!(stats.source_seconds >= pause.as_secs_f64(), "{stats:?}");
        assert!(stats.source_latency().unwrap() >= pause.as_secs_f64() / 3.0);
        store.close().await.unwrap();
    });
}
