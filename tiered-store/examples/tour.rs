//! Puts, pins, kills nothing, reopens: `cargo run -p anypath-tiered-store --example tour [DIRECTORY]`.

use std::{error::Error, time::Duration};

use anypath_tiered_store::{Config, PutOptions, Store};
use bytes::Bytes;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest};

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let path = std::env::args_os()
        .nth(1)
        .map_or_else(|| temporary.path().to_owned(), Into::into);
    smol::block_on(async {
        let store = Store::open(Config::new(&path)).await?;
        let blocks: Vec<(Cid, Bytes)> = (0..1000u32)
            .map(|n| {
                let data = Bytes::from(n.to_le_bytes().repeat(1024));
                (Cid::new_v1(0x55, Code::Sha2_256.digest(&data)), data)
            })
            .collect();
        let cids: Vec<Cid> = blocks.iter().map(|(cid, _)| *cid).collect();
        store.put_many(blocks, PutOptions::pinned("tour")).await?;
        let hour = Duration::from_secs(3600);
        store
            .put_value("last tour", Bytes::from_static(b"today"), Some(hour))
            .await?;
        let disk = store.stats().disk;
        println!("{} blocks durable with {} syncs", disk.blocks, disk.syncs);
        // No close: this is how a process that is killed leaves it.
        drop(store);

        let store = Store::open(Config::new(&path)).await?;
        let found = store
            .get_many(&cids)
            .await
            .into_iter()
            .filter(|read| matches!(read, Ok(Some(_))))
            .count();
        println!(
            "{found} blocks after reopening, {} of them pinned",
            store.pins("tour").len()
        );
        println!("scrub: {:?}", store.scrub().await?);
        store.close().await?;
        Ok(())
    })
}
