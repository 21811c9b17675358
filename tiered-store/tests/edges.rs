//! Rare turns of events, each of which once went wrong.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test panics when it fails"
)]

mod common;

use std::io::IoSlice;

use anypath_tiered_store::vfs::{SimVfs, Vfs};
use common::{MIB, block, open_sim, run};

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
