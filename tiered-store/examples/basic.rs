//! Put, get, pin: `cargo run -p anypath-tiered-store --example basic [DIRECTORY]`.

use std::error::Error;

use anypath_tiered_store::{Config, Importance, PutOptions, Store};
use bytes::Bytes;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest};

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let path = std::env::args_os()
        .nth(1)
        .map_or_else(|| temporary.path().to_owned(), Into::into);
    smol::block_on(async {
        let store = Store::open(Config::new(path)).await?;
        let data = Bytes::from_static(b"hello, world");
        let cid = Cid::new_v1(0x55, Code::Sha2_256.digest(&data));

        // Durable when it returns, and less likely to leave than others.
        let options = PutOptions::default().with_importance(Importance::High);
        store.put_with(cid, data.clone(), options).await?;
        store.pin("my files", &[cid]).await?;

        assert_eq!(store.get(&cid).await?, Some(data));
        println!(
            "{cid}: {:?} bytes, {:?}",
            store.size(&cid),
            store.pins("my files")
        );
        store.close().await?;
        Ok(())
    })
}
