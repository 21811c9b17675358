//! A small disk tier above a cold one: `cargo run -p anypath-tiered-store --example cold_directory [DIRECTORY]`.

use std::error::Error;

use anypath_tiered_store::{ColdConfig, Config, Store};
use bytes::Bytes;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest};

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let path = std::env::args_os()
        .nth(1)
        .map_or_else(|| temporary.path().to_owned(), Into::into);
    let config = Config::builder()
        .path(path.join("store"))
        .memory_capacity(1 << 20)
        .disk_capacity(8 << 20)
        // A directory here; `ColdConfig::s3` for a bucket.
        .cold(ColdConfig::directory(path.join("cold")).pack_bytes(2 << 20))
        .build()?;
    smol::block_on(async {
        let store = Store::open(config).await?;
        let blocks: Vec<(Cid, Bytes)> = (0..500u32)
            .map(|n| {
                let line = format!("line {n} of a log, which says much the same as the others\n");
                let data = Bytes::from(line.repeat(1200));
                (Cid::new_v1(0x55, Code::Sha2_256.digest(&data)), data)
            })
            .collect();
        for (cid, data) in &blocks {
            store.put(*cid, data.clone()).await?;
        }
        let mut found = 0;
        for (cid, _) in &blocks {
            found += usize::from(store.get(cid).await?.is_some());
        }
        let stats = store.stats();
        println!("{found} of {} blocks found", blocks.len());
        println!(
            "disk: {} blocks, {} bytes",
            stats.disk.blocks, stats.disk.used_bytes
        );
        if let Some(cold) = stats.cold {
            println!(
                "cold: {} blocks in {} packs, {} bytes for {}; {} put and {} get requests",
                cold.blocks,
                cold.packs,
                cold.used_bytes,
                cold.bytes,
                cold.put_requests,
                cold.get_requests
            );
        }
        store.close().await?;
        Ok(())
    })
}
