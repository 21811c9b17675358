use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest as _};

use super::*;
use crate::{
    Config, Store,
    disk::segment::TRAILER,
    vfs::{Image, SimVfs, Vfs},
};

fn block(n: u8) -> (Cid, Bytes) {
    let data = Bytes::from(vec![n; 4000]);
    (Cid::new_v1(0x55, Code::Sha2_256.digest(&data)), data)
}

fn config(vfs: &SimVfs) -> Config {
    Config::builder()
        .path("/store")
        .disk_capacity(2 * 1024 * 1024)
        .memory_capacity(0)
        .vfs(Arc::new(vfs.clone()))
        .build()
        .unwrap()
}

/// Gives every sealed segment a list without its first half.
fn halve_lists(image: Image) -> (Image, usize) {
    let vfs = SimVfs::from_image(image.clone(), 1_000_000_000_000);
    let mut halved = 0;
    for path in image.keys() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some(id) = segment::parse_name(name) else {
            continue;
        };
        let file = vfs.open(path).unwrap();
        let header = segment::read_header(&*file, id).unwrap().unwrap();
        let Some(items) = segment::read_footer(&*file, &header).unwrap() else {
            continue;
        };
        let mut half = Items::default();
        for item in items.iter().skip(items.count as usize / 2) {
            half.push(&item);
        }
        let at = file.len().unwrap() - TRAILER - items.bytes.len() as u64;
        file.set_len(at).unwrap();
        segment::write_footer(&*file, at, &header, &half).unwrap();
        halved += 1;
    }
    (vfs.live_image(), halved)
}

#[test]
fn a_segment_is_not_removed_while_the_index_has_something_there_that_its_list_does_not_name() {
    futures::executor::block_on(async {
        let vfs = SimVfs::new();
        let store = Store::open(config(&vfs)).await.unwrap();
        for n in 0..200 {
            let (cid, data) = block(n);
            store.put(cid, data).await.unwrap();
        }
        store.close().await.unwrap();
        let (image, halved) = halve_lists(vfs.live_image());
        assert!(halved > 3, "{halved} segments are sealed");
        let vfs = SimVfs::from_image(image, 1_000_000_000_000);
        let store = Store::open(config(&vfs)).await.unwrap();
        for n in (0..200).filter(|n| n % 3 != 0) {
            assert!(store.delete(&block(n).0).await.unwrap());
        }
        let report = store.gc().await.unwrap();
        assert!(report.segments > 3, "{report:?}");
        for n in 0..200 {
            let (cid, data) = block(n);
            let expected = (n % 3 == 0).then_some(data);
            assert_eq!(store.get(&cid).await.unwrap(), expected, "block {n}");
        }
        assert!(store.stats().disk.corruptions > 3);
    });
}
