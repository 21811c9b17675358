//! Rare turns of events, each of which once went wrong.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test panics when it fails"
)]

mod common;

use std::{
    io::IoSlice,
    time::Duration,
};

use anypath_tiered_store::{
    PutOptions,
    vfs::{SimVfs, Vfs},
};
use bytes::Bytes;
use common::{MIB, block, open_sim, run};

fn ttl(seconds: u64) -> PutOptions {
    PutOptions {
        ttl: Some(Duration::from_secs(seconds)),
        ..PutOptions::default()
    }
}

/// A process dies after it created a segment and before it synced the directory; the next one goes on in that segment.
#[test]
fn names_that_a_dead_process_left_are_durable_before_they_are_relied_on() {
    run(async {
        let vfs = SimVfs::new();
        open_sim(&vfs, MIB)
            .await
            .put(block(1, 1000).0, block(1, 1000).1)
            .await
            .unwrap();
        let left = vfs.live_image();
        let vfs = SimVfs::new();
        for (path, data) in left {
            let file = vfs.create(&path).unwrap();
            file.write_all_at(0, &[IoSlice::new(&data)]).unwrap();
            file.sync_data().unwrap();
        }
        let store = open_sim(&vfs, MIB).await;
        let (cid, data) = block(2, 1000);
        store.put(cid, data.clone()).await.unwrap();
        // Odd numbers: no name survives that was not synced.
        let image = vfs.crash_image(|| 1);
        drop(store);
        let store = open_sim(&SimVfs::from_image(image, vfs.now_ms()), MIB).await;
        assert_eq!(store.get(&cid).await.unwrap(), Some(data));
    });
}

/// The record of the replaced value is still in the log when that of the expired one goes.
#[test]
fn a_replaced_value_does_not_come_back_when_its_successor_expires() {
    run(async {
        let vfs = SimVfs::new();
        let store = open_sim(&vfs, MIB).await;
        let value = |text: &'static str| Bytes::from_static(text.as_bytes());
        store.put_value("k", value("old"), None).await.unwrap();
        for n in 0..17 {
            let (cid, data) = block(n, 4096);
            store.put(cid, data).await.unwrap();
        }
        let second = Some(Duration::from_secs(1));
        store.put_value("k", value("new"), second).await.unwrap();
        for n in 100..116 {
            let (cid, data) = block(n, 4096);
            store.put_with(cid, data, ttl(1)).await.unwrap();
        }
        for n in 200..217 {
            let (cid, data) = block(n, 4096);
            store.put(cid, data).await.unwrap();
        }
        vfs.advance_ms(5000);
        assert_eq!(store.get_value("k").await.unwrap(), None);
        assert!(store.gc().await.unwrap().segments > 0);
        drop(store);
        let vfs = SimVfs::from_image(vfs.live_image(), vfs.now_ms());
        let store = open_sim(&vfs, MIB).await;
        assert_eq!(store.get_value("k").await.unwrap(), None);
    });
}
