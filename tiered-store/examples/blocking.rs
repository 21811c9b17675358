//! Without async, from several threads: `cargo run -p anypath-tiered-store --example blocking [DIRECTORY]`.

use std::{error::Error, time::Duration};

use anypath_tiered_store::{BlockingStore, Config};
use bytes::Bytes;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest};

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let path = std::env::args_os()
        .nth(1)
        .map_or_else(|| temporary.path().to_owned(), Into::into);
    let store = BlockingStore::open(Config::new(path))?;
    let blocks: Vec<(Cid, Bytes)> = (0..64u32)
        .map(|n| {
            let data = Bytes::from(n.to_le_bytes().repeat(1024));
            (Cid::new_v1(0x55, Code::Sha2_256.digest(&data)), data)
        })
        .collect();
    // Puts that wait at the same time share a sync.
    std::thread::scope(|scope| {
        for part in blocks.chunks(16) {
            let store = &store;
            scope.spawn(move || {
                for (cid, data) in part {
                    if let Err(error) = store.put(*cid, data.clone()) {
                        eprintln!("{cid}: {error}");
                    }
                }
            });
        }
    });
    let disk = store.stats().disk;
    println!("{} blocks with {} syncs", disk.blocks, disk.syncs);

    // Any operation, with a time limit.
    if let Some((cid, _)) = blocks.first() {
        let cid = *cid;
        let limit = Duration::from_secs(2);
        match store.within(limit, |store| async move { store.get(&cid).await }) {
            Some(found) => println!("{:?} bytes", found?.map(|data| data.len())),
            None => println!("not within {limit:?}"),
        }
    }
    store.close()?;
    Ok(())
}
