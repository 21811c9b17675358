//! Failing devices: an error at every call site, one at a time and for ever.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test panics when it fails"
)]

mod common;

use std::io;

use anypath_tiered_store::{
    DeleteError, PutError, PutOptions,
    vfs::{Fault, Op, SimVfs},
};
use bytes::Bytes;
use common::{MIB, block, open_sim, run, try_open_sim};

const CAPACITY: u64 = 2 * MIB;

/// Puts, pins, deletes and collects; returns the pinned blocks that were acknowledged.
async fn work(vfs: &SimVfs) -> Vec<u32> {
    let mut acked = Vec::new();
    let Ok(store) = try_open_sim(vfs, CAPACITY).await else {
        return acked;
    };
    for n in 0..24 {
        let (cid, data) = block(n, 30_000);
        if n % 2 == 0 {
            if store
                .put_with(cid, data, PutOptions::pinned("p"))
                .await
                .is_ok()
            {
                acked.push(n);
            }
        } else if store.put(cid, data).await.is_ok() && n % 3 == 0 {
            let _ = store.delete(&cid).await;
        }
        let _ = store.put_value("n", Bytes::from(vec![n as u8]), None).await;
    }
    let _ = store.gc().await;
    // Whatever failed, what was acknowledged can be read, now that the device answers reads.
    vfs.inject(|_, op| (op != Op::Read).then_some(Fault::Error(io::ErrorKind::Other)));
    for n in &acked {
        let (cid, data) = block(*n, 30_000);
        let read = store.get(&cid).await;
        assert_eq!(read.unwrap(), Some(data), "block {n} cannot be read");
    }
    vfs.heal();
    let _ = store.close().await;
    acked
}

fn check(vfs: &SimVfs, acked: &[u32], what: &str) {
    vfs.heal();
    run(async {
        let store = open_sim(vfs, CAPACITY).await;
        for n in acked {
            let (cid, data) = block(*n, 30_000);
            assert_eq!(
                store.get(&cid).await.unwrap(),
                Some(data),
                "{what}: block {n} is lost"
            );
            assert!(store.is_pinned(&cid), "{what}: pin of {n} is lost");
        }
        let (cid, data) = block(500, 30_000);
        store.put(cid, data).await.unwrap();
    });
}

fn every_call(fault: Fault, what: &str) {
    let calls = {
        let vfs = SimVfs::new();
        run(work(&vfs));
        vfs.calls()
    };
    assert!(calls > 100);
    for at in 0..calls {
        for forever in [false, true] {
            let vfs = SimVfs::new();
            vfs.inject(move |call, _| (call == at || forever && call > at).then_some(fault));
            let acked = run(work(&vfs));
            check(
                &vfs,
                &acked,
                &format!("{what} at call {at}, for ever {forever}"),
            );
        }
    }
}

#[test]
fn an_io_error_at_any_call_loses_nothing_acknowledged() {
    every_call(Fault::Error(io::ErrorKind::Other), "EIO");
}

#[test]
fn no_space_at_any_call_loses_nothing_acknowledged() {
    every_call(Fault::Error(io::ErrorKind::StorageFull), "ENOSPC");
}

#[test]
fn a_short_write_at_any_call_loses_nothing_acknowledged() {
    every_call(Fault::Short, "short write");
}

#[test]
fn a_full_device_is_an_error_that_leaves_the_store_readable_and_ends_with_the_lack_of_space() {
    let vfs = SimVfs::new();
    run(async {
        let store = open_sim(&vfs, 16 * MIB).await;
        let (first, first_data) = block(1, 30_000);
        store.put(first, first_data.clone()).await.unwrap();
        vfs.inject(|_, op| (op == Op::Write).then_some(Fault::Short));
        let (second, second_data) = block(2, 30_000);
        let error = store.put(second, second_data.clone()).await.unwrap_err();
        assert!(matches!(error, PutError::DiskFull { .. }), "{error}");
        assert!(!store.has(&second));
        assert_eq!(store.get(&first).await.unwrap(), Some(first_data.clone()));
        vfs.heal();
        store.put(second, second_data.clone()).await.unwrap();
        drop(store);
        let store = open_sim(&vfs, 16 * MIB).await;
        assert_eq!(store.get(&first).await.unwrap(), Some(first_data));
        assert_eq!(store.get(&second).await.unwrap(), Some(second_data));
    });
}

#[test]
fn a_failed_sync_is_reported_and_the_segment_never_synced_again() {
    let vfs = SimVfs::new();
    run(async {
        let store = open_sim(&vfs, 16 * MIB).await;
        for n in 0..3 {
            let (cid, data) = block(n, 3000);
            store.put(cid, data).await.unwrap();
        }
        // The file cannot be cut after that either.
        let mut synced = false;
        vfs.inject(move |_, op| {
            let cut = op == Op::Write && std::mem::take(&mut synced);
            synced |= op == Op::Sync;
            (cut || synced).then_some(Fault::Error(io::ErrorKind::Other))
        });
        // A deletion that failed must not come true later.
        let deleted = store.delete(&block(0, 3000).0).await;
        assert!(
            matches!(deleted, Err(DeleteError::Sync { .. })),
            "{deleted:?}"
        );
        let (cid, data) = block(3, 3000);
        assert!(store.put(cid, data.clone()).await.is_err());
        vfs.heal();
        assert!(!store.has(&cid));
        store.pin("p", &[block(0, 3000).0]).await.unwrap();
        store.put(cid, data.clone()).await.unwrap();
        assert!(store.stats().disk.poisoned_segments >= 1);
        assert!(store.stats().disk.segments >= 2);
        drop(store);
        // Everything reached the device after all: the failed deletion too.
        let vfs = SimVfs::from_image(vfs.live_image(), 0);
        let store = open_sim(&vfs, 16 * MIB).await;
        assert!(store.is_pinned(&block(0, 3000).0));
        for n in 0..4 {
            let (cid, data) = block(n, 3000);
            assert_eq!(store.get(&cid).await.unwrap(), Some(data), "block {n}");
        }
    });
}
